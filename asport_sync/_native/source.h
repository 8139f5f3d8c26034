/* How many clients that are not admitted yet each source has. A source is an IPv4 address, or a /64 of IPv6, for that
 * is what one subscriber has at the least (RFC 6177). Only those who have proved that they are there are counted: what
 * others claim must not shut anybody out. Engine thread only.
 */
#ifndef AQ_SOURCE_H
#define AQ_SOURCE_H

#include "aq.h"
#include "map.h"
#include "udp.h"

typedef struct aq_source {
    uint32_t clients; /* > 0: it goes with the last one */
    uint8_t key_length;
    uint8_t key[AQ_MAP_KEY_MAX];
} aq_source;

/* No larger than the number of clients counted. */
typedef struct {
    aq_map by_key;
} aq_sources;

int aq_sources_init(aq_sources *sources, const uint8_t secret[16]); /* 0 or AQ_ERR_MEMORY */
void aq_sources_destroy(aq_sources *sources);                       /* every client has left */
uint32_t aq_sources_clients(const aq_sources *sources, const aq_sockaddr *address);
/* One more; aq_sources_leave() takes it back. NULL: no memory. */
aq_source *aq_sources_enter(aq_sources *sources, const aq_sockaddr *address);
void aq_sources_leave(aq_sources *sources, aq_source *source);

#endif

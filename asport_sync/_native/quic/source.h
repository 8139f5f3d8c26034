/* Counts unauthenticated clients per source. A failed handshake keeps counting for a while, so one source cannot make
 * the server compute handshakes continuously. A source is an IPv4 address or an IPv6 /64, the minimum that one
 * subscriber gets (RFC 6177). Only clients with a validated address count, so that spoofed addresses cannot lock
 * anybody out. Engine thread only.
 */
#ifndef AQ_SOURCE_H
#define AQ_SOURCE_H

#include "aq.h"
#include "core/map.h"
#include "core/udp.h"

typedef struct aq_source {
    uint32_t clients; /* > 0; the entry is freed with the last one */
    uint8_t key_length;
    uint8_t key[AQ_ADDRESS_KEY_MAX];
} aq_source;

/* Hash slots for recent failures. Sources with the same slot share its count, which is rare with this many; in return,
 * slots need no cleanup. */
#define AQ_FAILURE_SLOTS 4096

/* Maximum of the count for all sources: it is back at zero ten seconds after the end of a long flood. */
#define AQ_FAILURES_MAX 500

/* Number of clients that left without having been authenticated; decays with time. */
typedef struct {
    uint64_t at; /* time up to which the decay is applied */
    uint32_t clients;
} aq_failures;

typedef struct {
    aq_map by_key;         /* at most one entry per counted client */
    aq_failures *failures; /* AQ_FAILURE_SLOTS slots; NULL: none needed yet, or no memory */
    aq_failures total;     /* of all sources, up to AQ_FAILURES_MAX; decays faster */
} aq_sources;

int aq_sources_init(aq_sources *sources, const uint8_t secret[16]); /* returns 0 or AQ_ERR_MEMORY */
void aq_sources_destroy(aq_sources *sources);                       /* after every client has left */
/* Returns how many unauthenticated clients the source of `address` has, plus its recent failures (aq_failures). */
uint32_t aq_sources_clients(aq_sources *sources, const aq_sockaddr *address, uint64_t now);
/* Returns the recent failures of all sources, at most AQ_FAILURES_MAX. */
uint32_t aq_sources_failures(aq_sources *sources, uint64_t now);
/* Counts one more client; aq_sources_leave() ends that. Returns its source, or NULL if there is no memory. */
aq_source *aq_sources_enter(aq_sources *sources, const aq_sockaddr *address);
void aq_sources_leave(aq_sources *sources, aq_source *source, int joined, uint64_t now);

#endif

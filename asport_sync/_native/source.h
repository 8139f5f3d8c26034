/* How many clients that are not admitted each source has, or had lately: a handshake that led nowhere keeps its place
 * for a while, so that one source can't have the server compute handshakes for nothing all the time. A source is an
 * IPv4 address, or a /64 of IPv6, for that is what one subscriber has at the least (RFC 6177). Only those who have
 * proved that they are there are counted: what others claim must not shut anybody out. Engine thread only.
 */
#ifndef AQ_SOURCE_H
#define AQ_SOURCE_H

#include "aq.h"
#include "map.h"
#include "udp.h"

typedef struct aq_source {
    uint32_t clients; /* > 0: it goes with the last one */
    uint8_t key_length;
    uint8_t key[AQ_ADDRESS_KEY_MAX];
} aq_source;

/* Sources with the same place share what is spent; with so many places that is rare, and they need no clearing up. */
#define AQ_SPENT_PLACES 4096

/* As many of all sources are counted: ten seconds after the last of a long flood nothing is held against anybody. */
#define AQ_SPENT_MOST 500

/* Clients that have left without having been admitted; fewer with time. */
typedef struct {
    uint64_t at; /* up to when time has been taken into account */
    uint32_t clients;
} aq_spent;

typedef struct {
    aq_map by_key;   /* no larger than the number of clients counted */
    aq_spent *spent; /* AQ_SPENT_PLACES of them; NULL before there was any, or without memory */
    aq_spent total;  /* of all sources, up to AQ_SPENT_MOST; forgotten faster */
} aq_sources;

int aq_sources_init(aq_sources *sources, const uint8_t secret[16]); /* 0 or AQ_ERR_MEMORY */
void aq_sources_destroy(aq_sources *sources);                       /* every client has left */
/* Those that are there, and those that were. */
uint32_t aq_sources_clients(aq_sources *sources, const aq_sockaddr *address, uint64_t now);
/* Those of all sources that were, as far as they are counted. */
uint32_t aq_sources_spent(aq_sources *sources, uint64_t now);
/* One more; aq_sources_leave() takes it back. NULL: no memory. */
aq_source *aq_sources_enter(aq_sources *sources, const aq_sockaddr *address);
void aq_sources_leave(aq_sources *sources, aq_source *source, int admitted, uint64_t now);

#endif

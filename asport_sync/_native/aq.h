/* Included first by every C file of the engine: the boundary (aq_api.h) behind an include guard, and what all layers
 * share.
 *
 * A file includes only files listed before it. Layers, lowest first:
 *   0 counters reserve budget pipe packet map slab rotation tls_messages frames descriptors
 *   1 wake ready udp source events keepalive     2 compat reading handshake tls
 *   3 stream dgram association message     4 conn     5 endpoint     6 engine tcp fair_share     7 relay api
 */
#ifndef AQ_H
#define AQ_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "aq_api.h"

#define AQ_ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))
#define AQ_UNUSED(x) ((void)(x))

#define AQ_NSEC_PER_MSEC 1000000ULL
#define AQ_NSEC_PER_SEC 1000000000ULL

/* Returns whether family and IP address are equal; ports are ignored. So is the zone of a link-local address, because
 * only one side knows it. */
static inline int aq_address_same_host(const aq_address *a, const aq_address *b)
{
    return a->family == b->family && memcmp(a->ip, b->ip, a->family == 6 ? 16 : 4) == 0;
}

/* Returns whether host and port are equal. */
static inline int aq_address_equal(const aq_address *a, const aq_address *b)
{
    return a->port == b->port && aq_address_same_host(a, b);
}

/* Returns CLOCK_MONOTONIC in nanoseconds. ngtcp2 aborts if time goes backwards, so every timestamp comes from here. */
uint64_t aq_now(void);

/* Fills `out` with cryptographically secure random bytes. Never fails: aborts if the kernel provides none. */
void aq_random(void *out, size_t length);

#endif

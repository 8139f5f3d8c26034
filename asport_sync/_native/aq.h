/* What every C file of the engine includes first: the boundary, guarded, and the few words that all layers share.
 *
 * Layers, includes only go down:
 *   0 counters reserve budget pipe packet map slab rotation tls_messages frames descriptors
 *   1 wake ready udp source events keepalive     2 tls compat     3 stream dgram flow message     4 conn     5 endpoint
 *   6 engine tcp share     7 relay api
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

/* Equal in family and address, whatever the port. The zone of a link-local address is known on one side only, so it
 * does not count. */
static inline int aq_address_same_host(const aq_address *a, const aq_address *b)
{
    return a->family == b->family && memcmp(a->ip, b->ip, a->family == 6 ? 16 : 4) == 0;
}

/* The same host and port. */
static inline int aq_address_equal(const aq_address *a, const aq_address *b)
{
    return a->port == b->port && aq_address_same_host(a, b);
}

/* CLOCK_MONOTONIC in nanoseconds. ngtcp2 aborts on a clock that goes backwards, so every time stamp comes from here. */
uint64_t aq_now(void);

/* Cryptographically secure random bytes; never fails (aborts where the kernel has none). */
void aq_random(void *out, size_t length);

#endif

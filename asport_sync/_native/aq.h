/* Included first by every C file of the engine: the boundary (aq_api.h) behind an include guard, and what all layers
 * share.
 *
 * A file includes headers, and calls functions, only of itself and of files listed before it. Folders are the layers,
 * lowest first:
 *   core    clock random list counters reserve budget pipe map ranges slab rotation descriptors wake ready bucket
 *   core    events udp
 *   tunnel  packet keepalive stream dgram limits group association message
 *   quic    tls_messages compat frames reading handshake tls_credentials tls_session tls source
 *   quic    conn_state conn_credit conn_streams conn_memory conn_packets conn_callbacks conn conn_send conn_setup
 *   quic    endpoint_admission endpoint
 *   engine  engine_state engine_back_off engine_buckets engine_udp engine_memory fair_share tcp engine_commands engine
 *   api     api api_traffic relay
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

/* Returns the text of an errno, from what strerror_r has returned and the buffer that it got:
 * AQ_ERRNO_TEXT(strerror_r(...), buffer). strerror_r has two forms. That of glibc returns the text, which may be
 * elsewhere; that of POSIX, as in musl, returns 0 or an error and leaves the text in the buffer. */
#define AQ_ERRNO_TEXT(returned, buffer)                                                                                \
    _Generic((returned), char * : aq_errno_text_glibc, int : aq_errno_text_posix)((returned), (buffer))

static inline const char *aq_errno_text_glibc(const char *text, const char *buffer)
{
    AQ_UNUSED(buffer);
    return text;
}

static inline const char *aq_errno_text_posix(int error, const char *buffer)
{
    return error == 0 ? buffer : "unknown error";
}

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

/* UDP packets on their way into a connection: a byte ring between the pump thread (one producer) and the engine (one
 * consumer).
 *
 * A record is a whole UDP packet with its Packet header for the unfragmented case in front; whether it must be cut is
 * decided when it is sent, against the path as it is then. Bounded by bytes: the consumer drops the oldest beyond
 * `limit`; the ring itself is larger, so that the producer drops the newest only when the engine has not run for a
 * while.
 */
#ifndef AQ_DGRAM_H
#define AQ_DGRAM_H

#include "aq.h"

#include <stdatomic.h>

typedef struct {
    uint32_t size;    /* of the record, header and padding included; the top bit marks the unused end of the ring */
    uint32_t payload; /* bytes of UDP payload */
    uint8_t header;   /* bytes of Packet header in front of it */
    uint8_t ipv6;     /* the address in the header is IPv6 */
    uint8_t reserved[6];
    uint8_t data[]; /* header, payload */
} aq_dgram_record;

typedef struct {
    uint8_t *ring;                         /* immutable: anonymous mapping, touched as needed */
    uint64_t capacity;                     /* immutable: a power of two */
    uint64_t limit;                        /* immutable: bytes that may wait */
    _Alignas(64) _Atomic uint64_t written; /* moved by the producer, published with release */
    _Alignas(64) _Atomic uint64_t taken;   /* moved by the consumer, published with release */
} aq_dgram;

int aq_dgram_init(aq_dgram *queue, uint64_t limit); /* AQ_OK or AQ_ERR_MEMORY */
void aq_dgram_destroy(aq_dgram *queue);

/* [producer] Room for a record with up to `payload` bytes, or NULL when the ring is full. Fill in header, ipv6, payload
 * and data, then commit. */
aq_dgram_record *aq_dgram_reserve(aq_dgram *queue, size_t payload);
void aq_dgram_commit(aq_dgram *queue, aq_dgram_record *record);

aq_dgram_record *aq_dgram_front(aq_dgram *queue); /* [consumer] the oldest, or NULL */
void aq_dgram_pop(aq_dgram *queue);               /* [consumer] the oldest is done with */
/* [any] Bytes; on the consumer's side, after aq_dgram_front(), without the unused end of the ring. */
uint64_t aq_dgram_waiting(const aq_dgram *queue);

/* [consumer] Whether the queue is empty and has come some way. It should go back to the ring's beginning then: little
 * traffic uses the same few pages again and again, which stay in the processor's cache, and the others cost nothing. */
int aq_dgram_may_rewind(const aq_dgram *queue);
void aq_dgram_rewind(aq_dgram *queue); /* [consumer, who keeps the producer out meanwhile] where it may */

#endif

/* UDP packets waiting to be sent on a connection: a byte ring with one producer, the thread that reads a UDP socket
 * (pump or engine) and holds the mutex of the associations, and one consumer, the engine thread.
 *
 * A record is a whole UDP packet after its Packet header for the unfragmented case. Whether it must be fragmented is
 * decided when it is sent, by the path MTU at that time. Limited in bytes: the consumer drops the oldest records beyond
 * `limit`. The ring itself is larger, so that the producer drops the newest only if the engine has not run for a while.
 */
#ifndef AQ_DGRAM_H
#define AQ_DGRAM_H

#include "aq.h"

#include <stdatomic.h>

typedef struct {
    uint32_t size;    /* of the record, with header and padding; the top bit marks the unused end of the ring */
    uint32_t payload; /* bytes of UDP payload */
    uint8_t header;   /* bytes of Packet header before the payload */
    uint8_t ipv6;     /* 1: the address in the header is IPv6 */
    uint8_t reserved[6];
    uint8_t data[]; /* header, payload */
} aq_dgram_record;

typedef struct {
    uint8_t *ring;                         /* immutable: anonymous mapping; pages are allocated when first used */
    uint64_t capacity;                     /* immutable: a power of two */
    uint64_t limit;                        /* immutable: maximum of waiting bytes */
    _Alignas(64) _Atomic uint64_t written; /* moved by the producer, stored with release */
    _Alignas(64) _Atomic uint64_t taken;   /* moved by the consumer, stored with release */
} aq_dgram;

int aq_dgram_init(aq_dgram *queue, uint64_t limit); /* returns AQ_OK or AQ_ERR_MEMORY */
void aq_dgram_destroy(aq_dgram *queue);

/* [producer] Returns room for a record with up to `payload` bytes, or NULL if the ring is full. Fill in header, ipv6,
 * payload and data, then call aq_dgram_commit(). */
aq_dgram_record *aq_dgram_reserve(aq_dgram *queue, size_t payload);
void aq_dgram_commit(aq_dgram *queue, aq_dgram_record *record);

aq_dgram_record *aq_dgram_front(aq_dgram *queue); /* [consumer] returns the oldest record, or NULL */
void aq_dgram_pop(aq_dgram *queue);               /* [consumer] removes the oldest record */
/* [any] Returns the waiting bytes. They do not include the unused end of the ring if the consumer calls this after
 * aq_dgram_front(). */
uint64_t aq_dgram_waiting(const aq_dgram *queue);

/* [consumer] Returns whether the queue is empty and has moved far enough from the ring's beginning to return there.
 * With little traffic, the same few pages are then reused: they stay in the CPU cache, and the others use no memory. */
int aq_dgram_may_rewind(const aq_dgram *queue);
void aq_dgram_rewind(aq_dgram *queue); /* [consumer, while it locks out the producer] if aq_dgram_may_rewind() */

#endif

#include "tunnel/dgram.h"

#include "tunnel/packet.h"

#include <string.h>
#include <sys/mman.h>

#define WRAP_MARK 0x80000000U
#define ALIGNMENT 16U
/* Minimum size in bytes. A ring must hold several of the largest records, whatever the limit. */
#define MIN_CAPACITY (512U * 1024U)
/* Offset in bytes from which on an empty queue returns to the ring's beginning; larger than any record. */
#define REWIND_AFTER (128U * 1024U)

static uint64_t record_size(size_t payload)
{
    uint64_t size = sizeof(aq_dgram_record) + AQ_PACKET_HEADER_MAX + payload;
    return (size + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
}

int aq_dgram_init(aq_dgram *queue, uint64_t limit)
{
    uint64_t capacity = MIN_CAPACITY;
    void *ring;
    while (capacity < 2 * limit)
        capacity *= 2;
    ring = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ring == MAP_FAILED)
        return AQ_ERR_MEMORY;
    queue->ring = ring;
    queue->capacity = capacity;
    queue->limit = limit;
    atomic_init(&queue->written, 0);
    atomic_init(&queue->taken, 0);
    return AQ_OK;
}

void aq_dgram_destroy(aq_dgram *queue)
{
    if (queue->ring != NULL)
        munmap(queue->ring, queue->capacity);
    queue->ring = NULL;
}

aq_dgram_record *aq_dgram_reserve(aq_dgram *queue, size_t payload)
{
    uint64_t written = atomic_load_explicit(&queue->written, memory_order_relaxed);
    /* Acquire: the consumer has finished with the bytes that will be overwritten. */
    uint64_t taken = atomic_load_explicit(&queue->taken, memory_order_acquire);
    uint64_t size = record_size(payload);
    uint64_t offset = written & (queue->capacity - 1);
    uint64_t to_end = queue->capacity - offset;
    aq_dgram_record *record = (aq_dgram_record *)(void *)(queue->ring + offset);

    if (to_end < size) {
        if (written + to_end + size - taken > queue->capacity)
            return NULL;
        /* to_end is a multiple of ALIGNMENT, so the mark always has room. */
        record->size = (uint32_t)to_end | WRAP_MARK;
        atomic_store_explicit(&queue->written, written + to_end, memory_order_release);
        return (aq_dgram_record *)(void *)queue->ring;
    }
    if (written + size - taken > queue->capacity)
        return NULL;
    return record;
}

void aq_dgram_commit(aq_dgram *queue, aq_dgram_record *record)
{
    uint64_t written = atomic_load_explicit(&queue->written, memory_order_relaxed);
    record->size = (uint32_t)record_size(record->payload);
    atomic_store_explicit(&queue->written, written + record->size, memory_order_release);
}

aq_dgram_record *aq_dgram_front(aq_dgram *queue)
{
    uint64_t taken = atomic_load_explicit(&queue->taken, memory_order_relaxed);
    while (taken != atomic_load_explicit(&queue->written, memory_order_acquire)) {
        aq_dgram_record *record = (aq_dgram_record *)(void *)(queue->ring + (taken & (queue->capacity - 1)));
        if ((record->size & WRAP_MARK) == 0)
            return record;
        taken += record->size & ~WRAP_MARK;
        atomic_store_explicit(&queue->taken, taken, memory_order_release);
    }
    return NULL;
}

void aq_dgram_pop(aq_dgram *queue)
{
    aq_dgram_record *record = aq_dgram_front(queue);
    if (record != NULL) {
        uint64_t taken = atomic_load_explicit(&queue->taken, memory_order_relaxed);
        atomic_store_explicit(&queue->taken, taken + record->size, memory_order_release);
    }
}

int aq_dgram_may_rewind(const aq_dgram *queue)
{
    uint64_t taken = atomic_load_explicit(&queue->taken, memory_order_relaxed); /* moved by this side */

    return (taken & (queue->capacity - 1)) >= REWIND_AFTER &&
           taken == atomic_load_explicit(&queue->written, memory_order_acquire);
}

void aq_dgram_rewind(aq_dgram *queue)
{
    uint64_t next = atomic_load_explicit(&queue->taken, memory_order_relaxed) + queue->capacity;

    if (!aq_dgram_may_rewind(queue))
        return;
    next &= ~(queue->capacity - 1);
    /* `written` first: aq_dgram_waiting() may be called in between and must never find `taken` ahead of it. */
    atomic_store_explicit(&queue->written, next, memory_order_release);
    atomic_store_explicit(&queue->taken, next, memory_order_release);
}

uint64_t aq_dgram_waiting(const aq_dgram *queue)
{
    /* `taken` first: it never passes `written`, so the difference cannot be negative. */
    uint64_t taken = atomic_load_explicit(&queue->taken, memory_order_acquire);
    return atomic_load_explicit(&queue->written, memory_order_acquire) - taken;
}

#include "reserve.h"

#include <assert.h>
#include <sys/mman.h>

#define BYTES ((size_t)AQ_RESERVE_BLOCK * AQ_RESERVE_BLOCKS)

int aq_reserve_init(aq_reserve *reserve, aq_counters *counters)
{
    void *blocks = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (blocks == MAP_FAILED)
        return AQ_ERR_MEMORY;
    if (pthread_mutex_init(&reserve->mutex, NULL) != 0) {
        munmap(blocks, BYTES);
        return AQ_ERR_MEMORY;
    }
    reserve->blocks = blocks;
    reserve->counters = counters;
    reserve->free_length = AQ_RESERVE_BLOCKS;
    /* The first block lies on top: what was used once is used again before pages that were never touched. */
    for (uint32_t i = 0; i < AQ_RESERVE_BLOCKS; i++)
        reserve->free[i] = (uint16_t)(AQ_RESERVE_BLOCKS - 1 - i);
    return 0;
}

void aq_reserve_destroy(aq_reserve *reserve)
{
    assert(reserve->free_length == AQ_RESERVE_BLOCKS);
    munmap(reserve->blocks, BYTES);
    pthread_mutex_destroy(&reserve->mutex);
}

void *aq_reserve_take(aq_reserve *reserve, size_t size, uint32_t kept)
{
    uint8_t *block = NULL;

    if (size > AQ_RESERVE_BLOCK)
        return NULL;
    pthread_mutex_lock(&reserve->mutex);
    if (reserve->free_length > kept)
        block = reserve->blocks + (size_t)reserve->free[--reserve->free_length] * AQ_RESERVE_BLOCK;
    pthread_mutex_unlock(&reserve->mutex);
    if (block != NULL)
        aq_count(reserve->counters, AQ_C_memory_reserve_used, 1);
    return block;
}

int aq_reserve_owns(const aq_reserve *reserve, const void *memory)
{
    uintptr_t at = (uintptr_t)memory, first = (uintptr_t)reserve->blocks;

    return at >= first && at < first + BYTES;
}

void aq_reserve_give(aq_reserve *reserve, void *block)
{
    size_t index = (size_t)((uint8_t *)block - reserve->blocks) / AQ_RESERVE_BLOCK;

    pthread_mutex_lock(&reserve->mutex);
    assert(reserve->free_length < AQ_RESERVE_BLOCKS);
    reserve->free[reserve->free_length++] = (uint16_t)index;
    pthread_mutex_unlock(&reserve->mutex);
}

#include "core/reserve.h"

#include <assert.h>
#include <sys/mman.h>

#define SMALL_BYTES ((size_t)AQ_RESERVE_SMALL * AQ_RESERVE_SMALL_BLOCKS)
#define BYTES (SMALL_BYTES + (size_t)AQ_RESERVE_LARGE * AQ_RESERVE_LARGE_BLOCKS)

static void blocks_init(aq_reserve_blocks *blocks, uint8_t *first, uint32_t size, uint32_t count, uint16_t *free)
{
    blocks->first = first;
    blocks->size = size;
    blocks->count = blocks->free_length = count;
    blocks->free = free;
    /* The first block is on top of the stack: used blocks are reused before untouched pages. */
    for (uint32_t i = 0; i < count; i++)
        free[i] = (uint16_t)(count - 1 - i);
}

int aq_reserve_init(aq_reserve *reserve, aq_counters *counters)
{
    void *mapping = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (mapping == MAP_FAILED)
        return AQ_ERR_MEMORY;
    if (pthread_mutex_init(&reserve->mutex, NULL) != 0) {
        munmap(mapping, BYTES);
        return AQ_ERR_MEMORY;
    }
    reserve->mapping = mapping;
    reserve->counters = counters;
    blocks_init(&reserve->blocks[0], mapping, AQ_RESERVE_SMALL, AQ_RESERVE_SMALL_BLOCKS, reserve->free);
    blocks_init(&reserve->blocks[1], reserve->mapping + SMALL_BYTES, AQ_RESERVE_LARGE, AQ_RESERVE_LARGE_BLOCKS,
                reserve->free + AQ_RESERVE_SMALL_BLOCKS);
    return 0;
}

void aq_reserve_destroy(aq_reserve *reserve)
{
    assert(reserve->blocks[0].free_length == AQ_RESERVE_SMALL_BLOCKS);
    assert(reserve->blocks[1].free_length == AQ_RESERVE_LARGE_BLOCKS);
    munmap(reserve->mapping, BYTES);
    pthread_mutex_destroy(&reserve->mutex);
}

void *aq_reserve_take(aq_reserve *reserve, size_t size, uint32_t left)
{
    uint8_t *block = NULL;

    pthread_mutex_lock(&reserve->mutex);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(reserve->blocks) && block == NULL; i++) {
        aq_reserve_blocks *blocks = &reserve->blocks[i];

        if (size <= blocks->size && blocks->free_length > blocks->count / 8 * left)
            block = blocks->first + (size_t)blocks->free[--blocks->free_length] * blocks->size;
    }
    pthread_mutex_unlock(&reserve->mutex);
    if (block != NULL)
        aq_count(reserve->counters, AQ_C_memory_reserve_used, 1);
    return block;
}

int aq_reserve_owns(const aq_reserve *reserve, const void *memory)
{
    uintptr_t at = (uintptr_t)memory, first = (uintptr_t)reserve->mapping;

    return at >= first && at < first + BYTES;
}

static size_t which(const aq_reserve *reserve, const void *block)
{
    return (const uint8_t *)block >= reserve->blocks[1].first;
}

size_t aq_reserve_size(const aq_reserve *reserve, const void *block)
{
    return reserve->blocks[which(reserve, block)].size;
}

void aq_reserve_give(aq_reserve *reserve, void *block)
{
    aq_reserve_blocks *blocks = &reserve->blocks[which(reserve, block)];
    size_t index = (size_t)((uint8_t *)block - blocks->first) / blocks->size;

    pthread_mutex_lock(&reserve->mutex);
    assert(blocks->free_length < blocks->count);
    blocks->free[blocks->free_length++] = (uint16_t)index;
    pthread_mutex_unlock(&reserve->mutex);
}

#include "core/budget.h"

#include <malloc.h>
#include <stdlib.h>

/* Blocks of at least this size are refused once the budget is used up. The library's reorder buffers are that large;
 * what a connection needs to continue is smaller. */
#define LARGE_BLOCK 4096

/* ---- accounts -------------------------------------------------------------------------------------------------- */

static uint64_t counting(uint64_t held)
{
    return held > AQ_ACCOUNT_FREE ? held - AQ_ACCOUNT_FREE : 0;
}

void aq_account_add(aq_account *account, uint64_t bytes)
{
    uint64_t before = atomic_fetch_add_explicit(&account->held, bytes, memory_order_relaxed);
    uint64_t more = counting(before + bytes) - counting(before);

    if (account->budget != NULL && more > 0)
        atomic_fetch_add_explicit(&account->budget->used, more, memory_order_relaxed);
}

void aq_account_remove(aq_account *account, uint64_t bytes)
{
    uint64_t before = atomic_fetch_sub_explicit(&account->held, bytes, memory_order_relaxed);
    uint64_t less = counting(before) - counting(before - bytes);

    if (account->budget != NULL && less > 0)
        atomic_fetch_sub_explicit(&account->budget->used, less, memory_order_relaxed);
}

/* ---- the library's memory -------------------------------------------------------------------------------------- */

static size_t size_of(const aq_memory *memory, void *block)
{
    if (block == NULL)
        return 0;
    return aq_reserve_owns(memory->reserve, block) ? aq_reserve_size(memory->reserve, block)
                                                   : malloc_usable_size(block);
}

static void *counted(const aq_memory *memory, void *block)
{
    size_t size = size_of(memory, block);

    if (size > 0) {
        aq_account_add(memory->account, size);
        if (memory->account->budget != NULL)
            atomic_fetch_add_explicit(&memory->account->budget->library, size, memory_order_relaxed);
    }
    return block;
}

static void uncount(const aq_memory *memory, size_t size)
{
    if (size == 0)
        return;
    aq_account_remove(memory->account, size);
    if (memory->account->budget != NULL)
        atomic_fetch_sub_explicit(&memory->account->budget->library, size, memory_order_relaxed);
}

static int is_refused(const aq_memory *memory, size_t size)
{
    return size >= LARGE_BLOCK && memory->account->budget != NULL && aq_budget_left(memory->account->budget) == 0;
}

void *aq_memory_malloc(size_t size, void *context)
{
    const aq_memory *memory = context;
    void *block;

    if (is_refused(memory, size))
        return NULL;
    block = malloc(size);
    if (block == NULL)
        block = aq_reserve_take(memory->reserve, size, 0);
    return counted(memory, block);
}

void aq_memory_free(void *block, void *context)
{
    const aq_memory *memory = context;

    if (block == NULL)
        return;
    uncount(memory, size_of(memory, block));
    if (aq_reserve_owns(memory->reserve, block))
        aq_reserve_give(memory->reserve, block);
    else
        free(block);
}

void *aq_memory_calloc(size_t count, size_t size, void *context)
{
    const aq_memory *memory = context;
    void *block;

    if (size > 0 && count <= SIZE_MAX / size && is_refused(memory, count * size))
        return NULL;
    block = calloc(count, size);
    if (block == NULL && size > 0 && count <= AQ_RESERVE_LARGE / size) {
        block = aq_reserve_take(memory->reserve, count * size, 0);
        if (block != NULL)
            memset(block, 0, count * size);
    }
    return counted(memory, block);
}

void *aq_memory_realloc(void *block, size_t size, void *context)
{
    const aq_memory *memory = context;
    int is_reserve = aq_reserve_owns(memory->reserve, block);
    size_t had = size_of(memory, block);
    void *moved;

    if ((is_reserve && size <= had) || (size > had && is_refused(memory, size)))
        return is_reserve && size <= had ? block : NULL;
    moved = is_reserve ? malloc(size) : realloc(block, size);
    if (moved != NULL && !is_reserve) {
        uncount(memory, had);
        return counted(memory, moved);
    }
    if (moved == NULL)
        moved = aq_reserve_take(memory->reserve, size, 0);
    if (moved == NULL)
        return NULL;
    counted(memory, moved);
    if (had > 0)
        memcpy(moved, block, had < size ? had : size);
    aq_memory_free(block, context);
    return moved;
}

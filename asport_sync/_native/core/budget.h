/* The receive budget: limits the memory of an engine for data received from peers. It counts bytes waiting in receive
 * pipes, incomplete commands and packets, and everything that the QUIC library allocates for a connection, mainly
 * reorder buffers. Each connection has an account; all accounts share one budget.
 *
 * Any thread: everything here is atomic or immutable.
 */
#ifndef AQ_BUDGET_H
#define AQ_BUDGET_H

#include "aq.h"
#include "core/reserve.h"

#include <stdatomic.h>

/* Bytes of each connection that do not count: what the library needs for an idle connection with some streams. */
#define AQ_ACCOUNT_FREE (64ULL * 1024)

typedef struct aq_budget {
    _Atomic uint64_t max;     /* maximum in bytes */
    _Atomic uint64_t used;    /* sum of what each account holds beyond AQ_ACCOUNT_FREE */
    _Atomic uint64_t library; /* bytes held by the library; only used to decide when to return memory to the system */
    _Atomic uint64_t grown;   /* bytes by which stream windows exceed their initial size: may arrive at any time */
} aq_budget;

typedef struct aq_account {
    aq_budget *budget;     /* immutable once set; NULL: none */
    _Atomic uint64_t held; /* bytes, including the first AQ_ACCOUNT_FREE */
} aq_account;

void aq_account_add(aq_account *account, uint64_t bytes);
void aq_account_remove(aq_account *account, uint64_t bytes);

/* Returns the bytes left in the budget; 0 once it is used up. */
static inline uint64_t aq_budget_left(const aq_budget *budget)
{
    uint64_t max = atomic_load_explicit(&budget->max, memory_order_relaxed);
    uint64_t used = atomic_load_explicit(&budget->used, memory_order_relaxed);
    return used < max ? max - used : 0;
}

/* Returns whether at most an eighth is left, which starts load shedding. */
static inline int aq_budget_is_short(const aq_budget *budget)
{
    return aq_budget_left(budget) <= atomic_load_explicit(&budget->max, memory_order_relaxed) / 8;
}

/* Returns the maximum total growth, in bytes, of the stream windows of a connection that have grown by `own` so far.
 * All readers may stall at once, which fills every window, so windows may only grow by half of the budget altogether.
 * One connection may use half of what the others leave of that, so that later ones get something too. */
static inline uint64_t aq_budget_growth(const aq_budget *budget, uint64_t own)
{
    uint64_t max = atomic_load_explicit(&budget->max, memory_order_relaxed) / 2;
    uint64_t all = atomic_load_explicit(&budget->grown, memory_order_relaxed);
    uint64_t others = all > own ? all - own : 0;
    return others < max ? (max - others) / 2 : 0;
}

/* The library's allocator for one connection: malloc(), or the emergency reserve if that fails. All of it is counted in
 * the account. The functions below are those of ngtcp2_mem, with an aq_memory as user data. */
typedef struct aq_memory {
    aq_reserve *reserve; /* immutable */
    aq_account *account; /* the connection's; immutable */
} aq_memory;

void *aq_memory_malloc(size_t size, void *memory);
void aq_memory_free(void *block, void *memory);
void *aq_memory_calloc(size_t count, size_t size, void *memory);
void *aq_memory_realloc(void *block, size_t size, void *memory);

#endif

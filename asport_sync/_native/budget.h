/* How much of what peers have sent an engine may hold: bytes that wait in receive pipes, commands and packets that are
 * not complete, and all that the QUIC library allocates for a connection, its reorder buffers above all. Each
 * connection has an account, and all accounts together one budget.
 *
 * Any thread: everything here is atomic or immutable.
 */
#ifndef AQ_BUDGET_H
#define AQ_BUDGET_H

#include "aq.h"
#include "reserve.h"

#include <stdatomic.h>

/* Bytes of a connection that don't count: what the library needs for one that is idle, and some streams. */
#define AQ_ACCOUNT_FREE (64ULL * 1024)

typedef struct aq_budget {
    _Atomic uint64_t most;    /* bytes */
    _Atomic uint64_t used;    /* what the accounts hold beyond AQ_ACCOUNT_FREE each */
    _Atomic uint64_t library; /* bytes that the library holds: a figure for who gives memory back to the system */
    _Atomic uint64_t grown;   /* bytes of streams' windows beyond the first of each: what may come at any moment */
} aq_budget;

typedef struct aq_account {
    aq_budget *budget;     /* immutable once set; NULL: none */
    _Atomic uint64_t held; /* bytes */
} aq_account;

void aq_account_add(aq_account *account, uint64_t bytes);
void aq_account_remove(aq_account *account, uint64_t bytes);

/* Bytes that are left of it; 0 once it is used up. */
static inline uint64_t aq_budget_left(const aq_budget *budget)
{
    uint64_t most = atomic_load_explicit(&budget->most, memory_order_relaxed);
    uint64_t used = atomic_load_explicit(&budget->used, memory_order_relaxed);
    return used < most ? most - used : 0;
}

/* Whether so little is left, an eighth, that somebody has to give something up. */
static inline int aq_budget_is_short(const aq_budget *budget)
{
    return aq_budget_left(budget) <= atomic_load_explicit(&budget->most, memory_order_relaxed) / 8;
}

/* Bytes by which the windows of a connection that have grown by `own` may have grown in all. Half of the budget is
 * there for such windows, for readers may stall all at once, and then every window is filled. A connection may have
 * half of what the others leave of it, so that there is something left for whoever comes later. */
static inline uint64_t aq_budget_growth(const aq_budget *budget, uint64_t own)
{
    uint64_t most = atomic_load_explicit(&budget->most, memory_order_relaxed) / 2;
    uint64_t all = atomic_load_explicit(&budget->grown, memory_order_relaxed);
    uint64_t others = all > own ? all - own : 0;
    return others < most ? (most - others) / 2 : 0;
}

/* Where the library's memory for one connection comes from: malloc(), and where that fails the reserve. Counted. These
 * are ngtcp2_mem's functions, with one of these as user data. */
typedef struct aq_memory {
    aq_reserve *reserve; /* immutable, as is the next line */
    aq_account *account; /* of the connection */
} aq_memory;

void *aq_memory_malloc(size_t size, void *memory);
void aq_memory_free(void *block, void *memory);
void *aq_memory_calloc(size_t count, size_t size, void *memory);
void *aq_memory_realloc(void *block, size_t size, void *memory);

#endif

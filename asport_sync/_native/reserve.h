/* Memory for what is under way when the system has none left: new work is refused then, and what stands needs little
 * to go on. Blocks of one size in one mapping, whose pages cost nothing until they are first used.
 *
 * Any thread; guarded by its mutex. Only reached where malloc() has failed, and to free what came from here.
 */
#ifndef AQ_RESERVE_H
#define AQ_RESERVE_H

#include "aq.h"
#include "counters.h"

#include <pthread.h>

/* Bytes. Holds the large segment of a pipe (pipe.h), and each of the chunks in which ngtcp2 asks for memory while a
 * connection goes on. */
#define AQ_RESERVE_BLOCK 16384
#define AQ_RESERVE_BLOCKS 256
/* Blocks that stream data leaves for ngtcp2, whose failures end a whole connection. */
#define AQ_RESERVE_KEPT 128

typedef struct aq_reserve {
    pthread_mutex_t mutex;
    uint8_t *blocks;                  /* immutable: the mapping */
    aq_counters *counters;            /* immutable */
    uint16_t free[AQ_RESERVE_BLOCKS]; /* a stack of blocks that are free; guarded by mutex, as is the next line */
    uint32_t free_length;
} aq_reserve;

int aq_reserve_init(aq_reserve *reserve, aq_counters *counters); /* 0 or AQ_ERR_MEMORY */
void aq_reserve_destroy(aq_reserve *reserve);                    /* everything is given back */

/* One block for `size` bytes, not cleared and aligned as by malloc(), and counted. NULL: too large, or no more than
 * `kept` blocks are left. */
void *aq_reserve_take(aq_reserve *reserve, size_t size, uint32_t kept);
int aq_reserve_owns(const aq_reserve *reserve, const void *memory);
void aq_reserve_give(aq_reserve *reserve, void *block); /* one that it owns */

#endif

/* Memory for what is under way when the system has none left: new work is refused then, and what stands needs little
 * to go on. Blocks of two sizes in one mapping, whose pages cost nothing until they are first used.
 *
 * Any thread; guarded by its mutex. Only reached where malloc() has failed, and to free what came from here.
 */
#ifndef AQ_RESERVE_H
#define AQ_RESERVE_H

#include "aq.h"
#include "counters.h"

#include <pthread.h>

/* Bytes of a block, and how many there are. They hold the segments of a pipe (pipe.h), and most of what ngtcp2 asks for
 * while a connection goes on. */
#define AQ_RESERVE_SMALL 2048
#define AQ_RESERVE_SMALL_BLOCKS 1024
#define AQ_RESERVE_LARGE 16384
#define AQ_RESERVE_LARGE_BLOCKS 192

/* Eighths of the blocks of each size that are left for others: by bytes read from sockets, which can wait there, for
 * those that a peer has sent, for which there must be a place; and by both for ngtcp2, whose failures end a whole
 * connection. */
#define AQ_RESERVE_LEFT_BY_READS 5
#define AQ_RESERVE_LEFT 2
#define AQ_RESERVE_LEFT_BY_QUICK_READERS 1

typedef struct {
    uint8_t *first; /* immutable, as are the next two */
    uint32_t size, count;
    uint32_t free_length; /* guarded by the reserve's mutex, as is the next line */
    uint16_t *free;       /* a stack of blocks that are free */
} aq_reserve_blocks;

typedef struct aq_reserve {
    pthread_mutex_t mutex;
    aq_counters *counters; /* immutable */
    uint8_t *mapping;      /* immutable */
    aq_reserve_blocks blocks[2];
    uint16_t free[AQ_RESERVE_SMALL_BLOCKS + AQ_RESERVE_LARGE_BLOCKS]; /* of both sizes */
} aq_reserve;

int aq_reserve_init(aq_reserve *reserve, aq_counters *counters); /* 0 or AQ_ERR_MEMORY */
void aq_reserve_destroy(aq_reserve *reserve);                    /* everything is given back */

/* One block for `size` bytes, not cleared and aligned as by malloc(), and counted. NULL: too large, or no more than
 * `left` eighths of the blocks are left. */
void *aq_reserve_take(aq_reserve *reserve, size_t size, uint32_t left);
int aq_reserve_owns(const aq_reserve *reserve, const void *memory);
size_t aq_reserve_size(const aq_reserve *reserve, const void *block); /* of one that it owns */
void aq_reserve_give(aq_reserve *reserve, void *block);               /* likewise */

#endif

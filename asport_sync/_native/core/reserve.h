/* The emergency reserve: memory for what is already open once malloc() fails. New work is refused then, and existing
 * connections need little to continue. It consists of blocks of two sizes in one mapping, whose pages use no memory
 * until they are first touched.
 *
 * Any thread; guarded by its mutex. Used only after malloc() has failed, and to free blocks taken from here.
 */
#ifndef AQ_RESERVE_H
#define AQ_RESERVE_H

#include "aq.h"
#include "core/counters.h"

#include <pthread.h>

/* Block sizes in bytes, and the number of blocks of each size. They fit the segments of a pipe (pipe.h) and most of
 * what ngtcp2 allocates for an established connection. */
#define AQ_RESERVE_SMALL 2048
#define AQ_RESERVE_SMALL_BLOCKS 1024
#define AQ_RESERVE_LARGE 16384
#define AQ_RESERVE_LARGE_BLOCKS 192

/* Eighths of the blocks of each size that a caller leaves for others. Data read from sockets leaves most, because it
 * can wait in the socket; data from a peer must be stored. If its reader keeps up, it leaves less, because the block is
 * returned at once. ngtcp2 may use every block, because its failures end the whole connection. */
#define AQ_RESERVE_LEFT_BY_READS 5
#define AQ_RESERVE_LEFT 2
#define AQ_RESERVE_LEFT_BY_QUICK_READERS 1

typedef struct {
    uint8_t *first;       /* immutable */
    uint32_t size, count; /* immutable */
    uint32_t free_length; /* guarded by the reserve's mutex */
    uint16_t *free;       /* stack of the indexes of free blocks; guarded by the reserve's mutex */
} aq_reserve_blocks;

typedef struct aq_reserve {
    pthread_mutex_t mutex;
    aq_counters *counters; /* immutable */
    uint8_t *mapping;      /* immutable */
    aq_reserve_blocks blocks[2];
    uint16_t free[AQ_RESERVE_SMALL_BLOCKS + AQ_RESERVE_LARGE_BLOCKS]; /* storage of both stacks */
} aq_reserve;

int aq_reserve_init(aq_reserve *reserve, aq_counters *counters); /* 0 or AQ_ERR_MEMORY */
void aq_reserve_destroy(aq_reserve *reserve);                    /* all blocks have been returned */

/* Takes one block for `size` bytes, not cleared and aligned as by malloc(), and counts it. Returns NULL if the size is
 * too large, or if at most `left` eighths of the blocks that are large enough are free. */
void *aq_reserve_take(aq_reserve *reserve, size_t size, uint32_t left);
int aq_reserve_owns(const aq_reserve *reserve, const void *memory);
size_t aq_reserve_size(const aq_reserve *reserve, const void *block); /* block: one that the reserve owns */
void aq_reserve_give(aq_reserve *reserve, void *block);               /* block: one that the reserve owns */

#endif

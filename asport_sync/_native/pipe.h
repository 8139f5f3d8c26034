/* A byte queue between two threads: one producer, one consumer, no copies inside.
 *
 * Bytes live in segments taken from a pool and given back as soon as they are behind the release cursor, so an idle
 * pipe costs one small segment and a full one what it holds, whatever its limit. Three cursors, counted in bytes since
 * the beginning, never wrapping (2^64):
 *
 *     released <= taken <= written
 *
 * written  moved by the producer: bytes below it may be read.
 * taken    moved by the consumer: where it reads next.
 * released moved by the consumer: bytes below it are gone. A receive pipe releases what it takes; a send pipe keeps
 * bytes in place until the QUIC peer has acknowledged them.
 *
 * Thread safety: aq_pipe_space .. aq_pipe_commit by the producer, aq_pipe_peek .. aq_pipe_release by the consumer; the
 * getters aq_pipe_written/taken/released by any thread. Memory order: written is published with release after the bytes
 * and read with acquire before them; released likewise in the other direction. Both are also read after a seq_cst fence
 * by whoever decides to sleep (wake.h).
 */
#ifndef AQ_PIPE_H
#define AQ_PIPE_H

#include "aq.h"
#include "budget.h"
#include "reserve.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

/* Payload sizes of the two kinds of segment. Small ones keep an idle interactive connection within a few KiB; large
 * ones let one readv or writev move 256 KiB with 16 vectors. */
#define AQ_SEGMENT_SMALL 2032
#define AQ_SEGMENT_LARGE 16352

typedef struct aq_segment {
    /* Written by the producer before it publishes bytes behind it; read by the consumer after. */
    struct aq_segment *next;
    uint32_t capacity;     /* immutable: AQ_SEGMENT_SMALL or AQ_SEGMENT_LARGE */
    uint32_t from_reserve; /* immutable: goes back there */
    uint8_t data[];
} aq_segment;

/* Recycles segments for all pipes of one engine. Any thread; guarded by its mutex. Last in, first out, so that memory
 * stays warm. Keeps at most `most_idle` bytes for reuse; beyond that segments go back to the allocator. */
typedef struct aq_pool {
    pthread_mutex_t mutex;
    aq_segment *small, *large; /* guarded by mutex */
    uint64_t idle;             /* bytes kept for reuse; guarded by mutex */
    uint64_t most_idle;        /* immutable */
    aq_reserve *reserve;       /* immutable once set; NULL: none */
    _Atomic uint64_t live;     /* bytes in use by pipes: a counter for statistics and tests */
} aq_pool;

int aq_pool_init(aq_pool *pool, uint64_t most_idle);
void aq_pool_destroy(aq_pool *pool); /* all pipes are destroyed already */
void aq_pool_shrink(aq_pool *pool);  /* what is kept for reuse goes back to the allocator */

/* Aligned to 64 bytes, so whatever contains it comes from aligned_alloc(), not malloc(). */
typedef struct aq_pipe {
    aq_pool *pool;       /* immutable */
    uint64_t limit;      /* immutable: written - released never exceeds it */
    aq_account *account; /* immutable once bytes flow: its segments count there; NULL: nowhere */
    uint32_t left;       /* producer: eighths of the reserve that it leaves for others */

    _Alignas(64) aq_segment *tail; /* producer */
    uint32_t tail_used;            /* producer: bytes committed in tail */
    aq_segment *spare;             /* producer: segments linked by next, reserved by aq_pipe_space, not yet committed */
    _Atomic uint64_t written;

    _Alignas(64) aq_segment *head; /* consumer: as at, for the byte at released; both NULL before the first byte */
    uint32_t head_released;        /* consumer: offset of released in head */
    aq_segment *at;    /* consumer: holds the byte at taken, or is its predecessor when that is not there yet */
    uint32_t at_taken; /* consumer: offset of taken in at */
    _Atomic uint64_t taken;
    _Atomic uint64_t released;
    _Atomic(aq_segment *) first; /* published once by the producer with the first byte */
} aq_pipe;

void aq_pipe_init(aq_pipe *pipe, aq_pool *pool, uint64_t limit);
void aq_pipe_destroy(aq_pipe *pipe); /* neither side is inside any more */

/* [producer] Free room as at most `most_vectors` vectors, at most `want` bytes in all, and never past the limit. `want`
 * also chooses the kind of segment: up to AQ_SEGMENT_SMALL a small one. Returns the number of vectors; 0 when full; -1
 * when there is no memory. Uncommitted room stays reserved for the next call. */
int aq_pipe_space(aq_pipe *pipe, struct iovec *vectors, int most_vectors, size_t want);
void aq_pipe_commit(aq_pipe *pipe, size_t length); /* [producer] the first `length` bytes of that room hold data now */

/* [producer] Gives reserved room back to the pool. Before a long wait: what a bulk producer reserved and did not fill
 * would stay with a pipe that has gone idle. */
void aq_pipe_trim(aq_pipe *pipe);

/* [producer] Copies. Returns 0, or -1 when the bytes do not fit or there is no memory (then nothing is written). */
int aq_pipe_write(aq_pipe *pipe, const void *data, size_t length);

uint64_t aq_pipe_room(const aq_pipe *pipe);     /* [producer] limit - (written - released) */
uint64_t aq_pipe_readable(const aq_pipe *pipe); /* [consumer] written - taken */
uint64_t aq_pipe_written(const aq_pipe *pipe);  /* [any] */
uint64_t aq_pipe_taken(const aq_pipe *pipe);    /* [any] */
uint64_t aq_pipe_released(const aq_pipe *pipe); /* [any] */

/* [consumer] Bytes from taken on as at most `most_vectors` vectors and at most `want` bytes. Returns the number of
 * vectors. */
int aq_pipe_peek(aq_pipe *pipe, struct iovec *vectors, int most_vectors, size_t want);
void aq_pipe_take(aq_pipe *pipe, size_t length);     /* [consumer] moves taken; length <= readable */
void aq_pipe_release(aq_pipe *pipe, uint64_t up_to); /* [consumer] moves released; segments behind it go back */

#endif

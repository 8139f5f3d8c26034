/* A byte queue between two threads: one producer, one consumer, no copying inside.
 *
 * Bytes are stored in segments from a pool, which are returned as soon as the release cursor has passed them. So an
 * idle pipe costs one small segment, and a full pipe as much as it holds, whatever its limit. Three cursors count bytes
 * since the beginning and never wrap (2^64):
 *
 *     released <= taken <= written
 *
 * written  moved by the producer: bytes below it may be read.
 * taken    moved by the consumer: where it reads next.
 * released moved by the consumer: bytes below it are gone. A receive pipe releases what it takes; a send pipe keeps
 * bytes in place until the QUIC peer has acknowledged them.
 *
 * Thread safety: labels below say [producer], [consumer] or [any] thread. Memory order: `written` is stored with
 * release after the bytes and loaded with acquire before they are read; `released` works the same way in the other
 * direction. A thread that is about to sleep loads both again after a seq_cst fence (wake.h).
 */
#ifndef AQ_PIPE_H
#define AQ_PIPE_H

#include "aq.h"
#include "core/budget.h"
#include "core/reserve.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

/* Payload bytes of the two kinds of segment. Small ones keep an idle interactive connection within a few KiB; with
 * large ones, one readv or writev with 16 vectors moves almost 256 KiB. */
#define AQ_SEGMENT_SMALL 2032
#define AQ_SEGMENT_LARGE 16352

typedef struct aq_segment {
    /* Set by the producer before it publishes bytes after this segment; read by the consumer afterwards. */
    struct aq_segment *next;
    uint32_t capacity;     /* immutable: AQ_SEGMENT_SMALL or AQ_SEGMENT_LARGE */
    uint32_t from_reserve; /* immutable: 1: returned to the emergency reserve */
    uint8_t data[];
} aq_segment;

/* Recycles segments for all pipes of one engine. Any thread; guarded by its mutex. Last in, first out, so that segments
 * are reused while still in the CPU cache. Keeps at most `max_idle` bytes for reuse and frees further segments. */
typedef struct aq_pool {
    pthread_mutex_t mutex;
    aq_segment *small, *large; /* guarded by mutex */
    uint64_t idle;             /* payload bytes kept for reuse; guarded by mutex */
    uint64_t max_idle;         /* maximum of idle; immutable */
    aq_reserve *reserve;       /* immutable once set; NULL: none */
    _Atomic uint64_t live;     /* payload bytes in use by pipes, for memory accounting and tests */
} aq_pool;

int aq_pool_init(aq_pool *pool, uint64_t max_idle);
void aq_pool_destroy(aq_pool *pool); /* after all its pipes */
void aq_pool_shrink(aq_pool *pool);  /* frees the segments kept for reuse */

/* Aligned to 64 bytes: allocate objects that contain a pipe with aligned_alloc(), not malloc(). */
typedef struct aq_pipe {
    aq_pool *pool;       /* immutable */
    uint64_t limit;      /* immutable: written - released never exceeds it */
    aq_account *account; /* where its segments are counted; NULL: nowhere; immutable once bytes flow */
    uint32_t left;       /* producer: eighths of the emergency reserve that it leaves for others */

    _Alignas(64) aq_segment *tail; /* producer */
    uint32_t tail_used;            /* producer: committed bytes in tail */
    aq_segment *spare;             /* producer: chain of segments reserved by aq_pipe_space() and not committed yet */
    _Atomic uint64_t written;

    _Alignas(64) aq_segment *head; /* consumer: segment of the byte at `released`; NULL, like `at`, before the first */
    uint32_t head_released;        /* consumer: offset of `released` in head */
    aq_segment *at; /* consumer: segment of the byte at `taken`, or its predecessor if there is no such segment yet */
    uint32_t at_taken; /* consumer: offset of `taken` in `at` */
    _Atomic uint64_t taken;
    _Atomic uint64_t released;
    _Atomic(aq_segment *) first; /* published once by the producer, with the first byte */
} aq_pipe;

void aq_pipe_init(aq_pipe *pipe, aq_pool *pool, uint64_t limit);
void aq_pipe_destroy(aq_pipe *pipe); /* neither side uses it any more */

/* [producer] Reserves free room as at most `max_vectors` vectors and `want` bytes in all, never beyond the limit.
 * `want` also selects the kind of segment: small up to AQ_SEGMENT_SMALL, else large. Returns the number of vectors, 0
 * if the pipe is full, or -1 if there is no memory. Room that is not committed stays reserved for the next call. */
int aq_pipe_space(aq_pipe *pipe, struct iovec *vectors, int max_vectors, size_t want);
void aq_pipe_commit(aq_pipe *pipe, size_t length); /* [producer] publishes the first `length` bytes of that room */

/* [producer] Returns reserved room to the pool. Call it before a long wait: otherwise an idle pipe keeps what a large
 * transfer reserved and did not fill. */
void aq_pipe_trim(aq_pipe *pipe);

/* [producer] Copies `length` bytes into the pipe. Returns 0, or -1 if they do not fit or there is no memory; then
 * nothing is written. */
int aq_pipe_write(aq_pipe *pipe, const void *data, size_t length);

uint64_t aq_pipe_room(const aq_pipe *pipe);     /* [producer] limit - (written - released) */
uint64_t aq_pipe_readable(const aq_pipe *pipe); /* [consumer] written - taken */
uint64_t aq_pipe_written(const aq_pipe *pipe);  /* [any] */
uint64_t aq_pipe_taken(const aq_pipe *pipe);    /* [any] */
uint64_t aq_pipe_released(const aq_pipe *pipe); /* [any] */

/* [consumer] Describes the bytes from `taken` on as at most `max_vectors` vectors and `want` bytes. Returns the number
 * of vectors. */
int aq_pipe_peek(aq_pipe *pipe, struct iovec *vectors, int max_vectors, size_t want);
void aq_pipe_take(aq_pipe *pipe, size_t length);     /* [consumer] advances `taken`; length <= readable */
void aq_pipe_release(aq_pipe *pipe, uint64_t up_to); /* [consumer] sets `released`; returns the segments below it */

#endif

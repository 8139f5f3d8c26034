/* All segments of a pipe form one chain: head -> .. at .. -> tail -> spare segments -> NULL. The producer owns the
 * links from tail on, the consumer all links before it. `written` separates them: the consumer follows a link only if
 * it has seen that bytes after it are written. A segment is filled to its capacity before the next one is used, so an
 * offset of `capacity` means "the first byte of the next segment".
 */
#include "core/pipe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- pool ---------------------------------------------------------------------------------------------------- */

int aq_pool_init(aq_pool *pool, uint64_t max_idle)
{
    if (pthread_mutex_init(&pool->mutex, NULL) != 0)
        return AQ_ERR_MEMORY;
    pool->small = NULL;
    pool->large = NULL;
    pool->idle = 0;
    pool->max_idle = max_idle;
    pool->reserve = NULL;
    atomic_init(&pool->live, 0);
    return 0;
}

static void free_chain(aq_segment *chain)
{
    while (chain != NULL) {
        aq_segment *next = chain->next;

        free(chain);
        chain = next;
    }
}

void aq_pool_shrink(aq_pool *pool)
{
    aq_segment *small, *large;

    pthread_mutex_lock(&pool->mutex);
    small = pool->small;
    large = pool->large;
    pool->small = pool->large = NULL;
    pool->idle = 0;
    pthread_mutex_unlock(&pool->mutex);
    free_chain(small);
    free_chain(large);
}

void aq_pool_destroy(aq_pool *pool)
{
    free_chain(pool->small);
    free_chain(pool->large);
    pthread_mutex_destroy(&pool->mutex);
}

static aq_segment *new_segment(aq_pool *pool, uint32_t capacity, uint32_t left)
{
    size_t size = sizeof(aq_segment) + capacity;
    aq_segment *segment = malloc(size);
    uint32_t from_reserve = 0;

    if (segment == NULL && pool->reserve != NULL) {
        segment = aq_reserve_take(pool->reserve, size, left);
        from_reserve = 1;
    }
    if (segment != NULL) {
        segment->capacity = capacity;
        segment->from_reserve = from_reserve;
    }
    return segment;
}

/* Returns up to `count` segments as a chain; fewer, or NULL, if memory is short. Locks the mutex only once. */
static aq_segment *pool_take(aq_pool *pool, aq_account *account, uint32_t capacity, size_t count, uint32_t left)
{
    aq_segment **list = capacity == AQ_SEGMENT_SMALL ? &pool->small : &pool->large;
    aq_segment *chain = NULL;
    uint64_t bytes = 0;

    pthread_mutex_lock(&pool->mutex);
    for (; count > 0 && *list != NULL; count--) {
        aq_segment *segment = *list;

        *list = segment->next;
        segment->next = chain;
        chain = segment;
        bytes += capacity;
    }
    pool->idle -= bytes;
    pthread_mutex_unlock(&pool->mutex);

    for (; count > 0; count--) {
        aq_segment *segment = new_segment(pool, capacity, left);

        if (segment == NULL)
            break;
        segment->next = chain;
        chain = segment;
        bytes += capacity;
    }
    atomic_fetch_add_explicit(&pool->live, bytes, memory_order_relaxed);
    if (account != NULL)
        aq_account_add(account, bytes);
    return chain;
}

static void pool_give(aq_pool *pool, aq_account *account, aq_segment *chain)
{
    aq_segment *surplus = NULL;
    uint64_t bytes = 0;

    if (chain == NULL)
        return;
    pthread_mutex_lock(&pool->mutex);
    while (chain != NULL) {
        aq_segment *segment = chain;
        aq_segment **list = segment->capacity == AQ_SEGMENT_SMALL ? &pool->small : &pool->large;

        chain = segment->next;
        bytes += segment->capacity;
        if (segment->from_reserve) {
            aq_reserve_give(pool->reserve, segment);
            continue;
        }
        if (segment->capacity > pool->max_idle - pool->idle)
            list = &surplus;
        else
            pool->idle += segment->capacity;
        segment->next = *list;
        *list = segment;
    }
    pthread_mutex_unlock(&pool->mutex);

    free_chain(surplus);
    atomic_fetch_sub_explicit(&pool->live, bytes, memory_order_relaxed);
    if (account != NULL)
        aq_account_remove(account, bytes);
}

/* ---- pipe ---------------------------------------------------------------------------------------------------- */

void aq_pipe_init(aq_pipe *pipe, aq_pool *pool, uint64_t limit)
{
    pipe->pool = pool;
    pipe->limit = limit;
    pipe->account = NULL;
    pipe->left = AQ_RESERVE_LEFT;
    pipe->tail = NULL;
    pipe->tail_used = 0;
    pipe->spare = NULL;
    atomic_init(&pipe->written, 0);
    pipe->head = NULL;
    pipe->head_released = 0;
    pipe->at = NULL;
    pipe->at_taken = 0;
    atomic_init(&pipe->taken, 0);
    atomic_init(&pipe->released, 0);
    atomic_init(&pipe->first, NULL);
}

void aq_pipe_destroy(aq_pipe *pipe)
{
    aq_segment *chain = pipe->head;

    if (chain == NULL) /* the consumer has read nothing */
        chain = atomic_load_explicit(&pipe->first, memory_order_acquire);
    if (chain == NULL) /* nothing was ever written */
        chain = pipe->spare;
    pool_give(pipe->pool, pipe->account, chain);
    pipe->head = pipe->at = pipe->tail = pipe->spare = NULL;
    atomic_store_explicit(&pipe->first, NULL, memory_order_relaxed);
}

uint64_t aq_pipe_written(const aq_pipe *pipe)
{
    return atomic_load_explicit(&pipe->written, memory_order_acquire);
}

uint64_t aq_pipe_taken(const aq_pipe *pipe)
{
    return atomic_load_explicit(&pipe->taken, memory_order_acquire);
}

uint64_t aq_pipe_released(const aq_pipe *pipe)
{
    return atomic_load_explicit(&pipe->released, memory_order_acquire);
}

/* ---- producer ------------------------------------------------------------------------------------------------ */

uint64_t aq_pipe_room(const aq_pipe *pipe)
{
    uint64_t written = atomic_load_explicit(&pipe->written, memory_order_relaxed); /* moved by this side */

    return pipe->limit - (written - aq_pipe_released(pipe));
}

/* Returns the free bytes in the segment being filled. */
static uint32_t tail_rest(const aq_pipe *pipe)
{
    return pipe->tail == NULL ? 0 : pipe->tail->capacity - pipe->tail_used;
}

/* Adds spare segments until the tail and at most `max` segments in all have `want` free bytes. Returns how many of
 * these bytes are available: fewer if `max` or memory does not allow more. */
static size_t reserve(aq_pipe *pipe, size_t want, uint32_t capacity, size_t max)
{
    size_t have = tail_rest(pipe);
    size_t used = have > 0;
    size_t missing;
    aq_segment *last = pipe->tail, *segment;

    for (segment = pipe->spare; segment != NULL; segment = segment->next) {
        if (have >= want || used == max)
            break;
        have += segment->capacity;
        used++;
        last = segment;
    }
    if (have >= want)
        return want;
    missing = (want - have + capacity - 1) / capacity;
    if (missing > max - used)
        missing = max - used;
    if (missing == 0)
        return have;

    segment = pool_take(pipe->pool, pipe->account, capacity, missing, pipe->left);
    if (last != NULL)
        last->next = segment;
    if (pipe->spare == NULL)
        pipe->spare = segment;
    for (; segment != NULL; segment = segment->next)
        have += segment->capacity;
    return have < want ? have : want;
}

/* Advances `written` over `length` reserved bytes, after copying `data` there unless it is NULL. */
static void append(aq_pipe *pipe, const uint8_t *data, size_t length)
{
    uint64_t written = atomic_load_explicit(&pipe->written, memory_order_relaxed) + length;

    while (length > 0) {
        uint32_t rest = tail_rest(pipe);
        uint32_t step;

        if (rest == 0) {
            assert(pipe->spare != NULL);
            /* Relaxed: the consumer reads `first` only after it has seen `written` above zero. */
            if (pipe->tail == NULL)
                atomic_store_explicit(&pipe->first, pipe->spare, memory_order_relaxed);
            pipe->tail = pipe->spare;
            pipe->tail_used = 0;
            pipe->spare = pipe->tail->next;
            rest = pipe->tail->capacity;
        }
        step = length < rest ? (uint32_t)length : rest;
        if (data != NULL) {
            memcpy(pipe->tail->data + pipe->tail_used, data, step);
            data += step;
        }
        pipe->tail_used += step;
        length -= step;
    }
    atomic_store_explicit(&pipe->written, written, memory_order_release); /* after the bytes and the links to them */
}

/* Returns the capacity of the segments for a producer that asks for `want` bytes. */
static uint32_t capacity_for(size_t want)
{
    return want <= AQ_SEGMENT_SMALL ? AQ_SEGMENT_SMALL : AQ_SEGMENT_LARGE;
}

int aq_pipe_space(aq_pipe *pipe, struct iovec *vectors, int max_vectors, size_t want)
{
    /* Chosen by the requested size, not by the room: a large transfer at its limit must keep using large segments. */
    uint32_t capacity = capacity_for(want);
    uint64_t room = aq_pipe_room(pipe);
    uint32_t rest = tail_rest(pipe);
    aq_segment *segment;
    int count = 0;

    if (want > room)
        want = (size_t)room;
    if (want == 0 || max_vectors <= 0)
        return 0;
    want = reserve(pipe, want, capacity, (size_t)max_vectors);
    if (want == 0)
        return -1;
    if (rest > 0) {
        vectors[count].iov_base = pipe->tail->data + pipe->tail_used;
        vectors[count].iov_len = want < rest ? want : rest;
        want -= vectors[count++].iov_len;
    }
    for (segment = pipe->spare; want > 0; segment = segment->next) {
        vectors[count].iov_base = segment->data;
        vectors[count].iov_len = want < segment->capacity ? want : segment->capacity;
        want -= vectors[count++].iov_len;
    }
    return count;
}

void aq_pipe_commit(aq_pipe *pipe, size_t length)
{
    assert(length <= aq_pipe_room(pipe));
    if (length > 0)
        append(pipe, NULL, length);
}

void aq_pipe_trim(aq_pipe *pipe)
{
    aq_segment *chain = pipe->spare;

    if (chain == NULL)
        return;
    pipe->spare = NULL;
    if (pipe->tail != NULL)
        pipe->tail->next = NULL;
    pool_give(pipe->pool, pipe->account, chain);
}

int aq_pipe_write(aq_pipe *pipe, const void *data, size_t length)
{
    if (length > aq_pipe_room(pipe) || reserve(pipe, length, capacity_for(length), SIZE_MAX) < length)
        return -1;
    if (length > 0)
        append(pipe, data, length);
    return 0;
}

/* ---- consumer ------------------------------------------------------------------------------------------------ */

uint64_t aq_pipe_readable(const aq_pipe *pipe)
{
    uint64_t taken = atomic_load_explicit(&pipe->taken, memory_order_relaxed); /* moved by this side */

    return aq_pipe_written(pipe) - taken;
}

/* Call only after `written` was seen above zero. */
static void pick_up_first(aq_pipe *pipe)
{
    if (pipe->at == NULL)
        pipe->head = pipe->at = atomic_load_explicit(&pipe->first, memory_order_relaxed);
}

int aq_pipe_peek(aq_pipe *pipe, struct iovec *vectors, int max_vectors, size_t want)
{
    uint64_t readable = aq_pipe_readable(pipe);
    aq_segment *segment;
    uint32_t offset;
    int count = 0;

    if (want > readable)
        want = (size_t)readable;
    if (want == 0 || max_vectors <= 0)
        return 0;
    pick_up_first(pipe);
    segment = pipe->at;
    offset = pipe->at_taken;
    while (want > 0 && count < max_vectors) {
        uint32_t rest = segment->capacity - offset;

        if (rest > 0) {
            vectors[count].iov_base = segment->data + offset;
            vectors[count].iov_len = want < rest ? want : rest;
            want -= vectors[count++].iov_len;
        }
        if (want > 0)
            segment = segment->next;
        offset = 0;
    }
    return count;
}

void aq_pipe_take(aq_pipe *pipe, size_t length)
{
    uint64_t taken = atomic_load_explicit(&pipe->taken, memory_order_relaxed) + length;

    assert(length <= aq_pipe_readable(pipe));
    if (length == 0)
        return;
    pick_up_first(pipe);
    while (length > 0) {
        uint32_t rest = pipe->at->capacity - pipe->at_taken;

        if (rest == 0) {
            pipe->at = pipe->at->next;
            pipe->at_taken = 0;
            rest = pipe->at->capacity;
        }
        if (rest > length)
            rest = (uint32_t)length;
        pipe->at_taken += rest;
        length -= rest;
    }
    atomic_store_explicit(&pipe->taken, taken, memory_order_release);
}

void aq_pipe_release(aq_pipe *pipe, uint64_t up_to)
{
    uint64_t step = up_to - atomic_load_explicit(&pipe->released, memory_order_relaxed);
    aq_segment *gone = pipe->head, *last = NULL;

    assert(step <= up_to && up_to <= atomic_load_explicit(&pipe->taken, memory_order_relaxed));
    if (step == 0)
        return;
    for (;;) {
        uint32_t rest = pipe->head->capacity - pipe->head_released;

        if (step < rest) {
            pipe->head_released += (uint32_t)step;
            break;
        }
        step -= rest;
        if (pipe->head == pipe->at) {
            /* Everything taken is released. If nothing more is written, the producer still needs this segment in order
             * to link the next one to it. */
            if (aq_pipe_written(pipe) == up_to) {
                pipe->head_released = pipe->head->capacity;
                break;
            }
            pipe->at = pipe->head->next;
            pipe->at_taken = 0;
        }
        last = pipe->head;
        pipe->head = last->next;
        pipe->head_released = 0;
    }
    if (last != NULL) {
        last->next = NULL;
        pool_give(pipe->pool, pipe->account, gone);
    }
    /* After the segments are returned, so that a producer that sees the room finds them in the pool. */
    atomic_store_explicit(&pipe->released, up_to, memory_order_release);
}

/* Any sequence of a producer's and a consumer's calls: each byte that comes out is the one that went in at its offset,
 * and bytes that are not released stay where they are.
 */
#include "fuzz.h"

#include "core/pipe.h"

#define VECTORS 8
#define LIMITS 4

/* The byte at an offset of the stream; a period that no segment size divides. */
static uint8_t byte_at(uint64_t offset)
{
    return (uint8_t)(offset % 251);
}

typedef struct {
    aq_pool pool;
    aq_pipe pipe;
    uint64_t written, taken, released, limit;
    const uint8_t *kept; /* where the byte at `kept_at` lies; it must not move until it is released */
    uint64_t kept_at;
} state;

static void fill(struct iovec *vectors, int count, uint64_t offset, size_t length)
{
    for (int i = 0; i < count && length > 0; i++) {
        uint8_t *bytes = vectors[i].iov_base;
        size_t step = vectors[i].iov_len < length ? vectors[i].iov_len : length;
        for (size_t at = 0; at < step; at++)
            bytes[at] = byte_at(offset++);
        length -= step;
    }
}

static void produce(state *it, fuzz_input *input)
{
    struct iovec vectors[VECTORS];
    size_t want = fuzz_u16(input), room = 0, length;
    int max = 1 + fuzz_u8(input) % VECTORS, count;

    count = aq_pipe_space(&it->pipe, vectors, max, want);
    MUST(count >= -1 && count <= max);
    if (count <= 0)
        return;
    for (int i = 0; i < count; i++) {
        MUST(vectors[i].iov_len > 0);
        room += vectors[i].iov_len;
    }
    MUST(room <= want && room <= it->limit - (it->written - it->released));
    length = fuzz_u16(input);
    if (length > room)
        length = room;
    fill(vectors, count, it->written, length);
    aq_pipe_commit(&it->pipe, length);
    it->written += length;
}

static void write_copy(state *it, fuzz_input *input)
{
    static uint8_t bytes[UINT16_MAX];
    size_t length = fuzz_u16(input);
    int result;

    for (size_t i = 0; i < length; i++)
        bytes[i] = byte_at(it->written + i);
    result = aq_pipe_write(&it->pipe, bytes, length);
    MUST(result == 0 || result == -1);
    if (result == 0)
        it->written += length;
    else if (fuzz_allocations_left == FUZZ_NO_FAILURE)
        MUST(length > it->limit - (it->written - it->released) || length > 0);
}

static void consume(state *it, fuzz_input *input)
{
    struct iovec vectors[VECTORS];
    size_t want = fuzz_u16(input), seen = 0;
    int max = 1 + fuzz_u8(input) % VECTORS, count;

    count = aq_pipe_peek(&it->pipe, vectors, max, want);
    MUST(count >= 0 && count <= max);
    for (int i = 0; i < count; i++) {
        const uint8_t *bytes = vectors[i].iov_base;
        for (size_t at = 0; at < vectors[i].iov_len; at++)
            MUST(bytes[at] == byte_at(it->taken + seen + at));
        if (i == 0 && it->kept == NULL) {
            it->kept = bytes;
            it->kept_at = it->taken;
        }
        seen += vectors[i].iov_len;
    }
    MUST(seen <= want && seen <= it->written - it->taken);
    MUST(seen > 0 || want == 0 || it->written == it->taken);
    if (seen > 0)
        seen = fuzz_u16(input) % (seen + 1);
    aq_pipe_take(&it->pipe, seen);
    it->taken += seen;
}

static void release(state *it, fuzz_input *input)
{
    uint64_t step = it->taken - it->released;

    if (fuzz_u8(input) % 4 != 0 && step > 0)
        step = fuzz_u16(input) % (step + 1);
    it->released += step;
    if (it->kept != NULL && it->kept_at < it->released)
        it->kept = NULL;
    aq_pipe_release(&it->pipe, it->released);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t LIMIT[LIMITS] = {1, 5000, 65536, 1 << 20};
    fuzz_input input = {data, size};
    state it = {.limit = LIMIT[fuzz_u8(&input) % LIMITS]};

    if (aq_pool_init(&it.pool, (uint64_t)fuzz_u8(&input) * 1024) != 0)
        return 0;
    aq_pipe_init(&it.pipe, &it.pool, it.limit);
    while (input.left > 0) {
        uint8_t what = fuzz_u8(&input);
        fuzz_allocations_left = what >= 0xf0 ? what & 3U : FUZZ_NO_FAILURE;
        switch (what % 8) {
        case 0:
        case 1:
            produce(&it, &input);
            break;
        case 2:
            write_copy(&it, &input);
            break;
        case 3:
        case 4:
            consume(&it, &input);
            break;
        case 5:
        case 6:
            release(&it, &input);
            break;
        default:
            aq_pipe_trim(&it.pipe);
            break;
        }
        fuzz_allocations_left = FUZZ_NO_FAILURE;
        MUST(aq_pipe_written(&it.pipe) == it.written && aq_pipe_taken(&it.pipe) == it.taken &&
             aq_pipe_released(&it.pipe) == it.released);
        MUST(aq_pipe_room(&it.pipe) == it.limit - (it.written - it.released));
        if (it.kept != NULL)
            MUST(*it.kept == byte_at(it.kept_at));
    }
    aq_pipe_destroy(&it.pipe);
    MUST(atomic_load(&it.pool.live) == 0);
    aq_pool_destroy(&it.pool);
    return 0;
}

/* The reserve: every block once, what is kept for others, what is too large, and segments of pipes that come from it.
 * malloc() can be told to fail.
 */
#include "core/pipe.h"
#include "core/reserve.h"

#include "check.h"

#include <stdlib.h>

#define WATCHDOG_SECONDS 60

static int fail_malloc;
void *__real_malloc(size_t size); /* NOLINT: the linker's names */
void *__wrap_malloc(size_t size); /* NOLINT */

void *__wrap_malloc(size_t size)
{
    return fail_malloc ? NULL : __real_malloc(size);
}

static aq_counters counters;

static uint64_t used(void)
{
    return atomic_load(&counters.value[AQ_C_memory_reserve_used]);
}

static void test_blocks(void)
{
    enum { ALL = AQ_RESERVE_SMALL_BLOCKS + AQ_RESERVE_LARGE_BLOCKS };
    static void *blocks[ALL];
    static aq_reserve reserve;
    uint64_t before = used();
    uint32_t count = 0;
    int outside;

    CHECK_INT(aq_reserve_init(&reserve, &counters), 0);
    CHECK(!aq_reserve_owns(&reserve, NULL) && !aq_reserve_owns(&reserve, &outside));
    CHECK(aq_reserve_take(&reserve, AQ_RESERVE_LARGE + 1, 0) == NULL);
    /* Who leaves much stops first; small ones take large blocks once the small ones are used up. */
    while ((blocks[count] = aq_reserve_take(&reserve, AQ_RESERVE_SMALL, AQ_RESERVE_LEFT_BY_READS)) != NULL)
        count++;
    CHECK_INT(count, ALL / 8 * (8 - AQ_RESERVE_LEFT_BY_READS));
    while ((blocks[count] = aq_reserve_take(&reserve, AQ_RESERVE_SMALL, AQ_RESERVE_LEFT)) != NULL)
        count++;
    CHECK_INT(count, ALL / 8 * (8 - AQ_RESERVE_LEFT));
    while (count < ALL && (blocks[count] = aq_reserve_take(&reserve, 1, 0)) != NULL)
        count++;
    CHECK_INT(count, ALL);
    CHECK(aq_reserve_take(&reserve, 1, 0) == NULL);
    CHECK_INT(used() - before, ALL);
    for (uint32_t i = 0; i < ALL; i++) {
        CHECK(aq_reserve_owns(&reserve, blocks[i]));
        CHECK_INT((uintptr_t)blocks[i] % _Alignof(max_align_t), 0);
        memset(blocks[i], (int)i, aq_reserve_size(&reserve, blocks[i]));
    }
    for (uint32_t i = 0; i < ALL; i++) {
        const uint8_t *bytes = blocks[i];
        CHECK_INT(bytes[0], i % 256); /* no two are the same memory */
        CHECK_INT(bytes[aq_reserve_size(&reserve, bytes) - 1], i % 256);
    }
    aq_reserve_give(&reserve, blocks[7]);
    CHECK(aq_reserve_take(&reserve, 1, 0) == blocks[7]);
    for (uint32_t i = 0; i < ALL; i++)
        aq_reserve_give(&reserve, blocks[i]);
    aq_reserve_destroy(&reserve);
}

/* A pipe goes on without memory for as long as the reserve has some for it, and all of it comes back. */
static void test_pipe(void)
{
    static uint8_t in[3 * AQ_SEGMENT_LARGE];
    struct iovec vector;
    static aq_reserve reserve;
    aq_pool pool;
    aq_pipe pipe;
    uint64_t written = 0;

    CHECK_INT(aq_reserve_init(&reserve, &counters), 0);
    CHECK_INT(aq_pool_init(&pool, 0), 0);
    aq_pipe_init(&pipe, &pool, UINT64_MAX / 2);
    fail_malloc = 1;
    CHECK_INT(aq_pipe_write(&pipe, in, sizeof(in)), -1); /* the pool knows of no reserve yet */
    pool.reserve = &reserve;
    while (aq_pipe_write(&pipe, in, sizeof(in)) == 0)
        written += sizeof(in);
    fail_malloc = 0;
    CHECK(written >= (AQ_RESERVE_LARGE_BLOCKS / 8 * (8 - AQ_RESERVE_LEFT) - 3) * (uint64_t)AQ_SEGMENT_LARGE);
    CHECK(reserve.blocks[1].free_length >= AQ_RESERVE_LARGE_BLOCKS / 8 * AQ_RESERVE_LEFT);
    CHECK_INT(aq_pipe_readable(&pipe), written);
    while (aq_pipe_peek(&pipe, &vector, 1, SIZE_MAX) > 0) {
        aq_pipe_take(&pipe, vector.iov_len);
        aq_pipe_release(&pipe, aq_pipe_taken(&pipe));
    }
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    CHECK_INT(reserve.blocks[1].free_length, AQ_RESERVE_LARGE_BLOCKS);
    aq_pool_destroy(&pool);
    aq_reserve_destroy(&reserve);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_blocks();
    test_pipe();
    return check_done();
}

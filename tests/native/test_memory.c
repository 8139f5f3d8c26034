/* Runs out of memory at every single allocation of pipe, slab, map and packet in turn. Linked with --wrap, so that
 * their allocations come here first.
 */
#include "core/map.h"
#include "tunnel/packet.h"
#include "core/pipe.h"
#include "core/slab.h"

#include "check.h"

#include <stdlib.h>

#define WATCHDOG_SECONDS 90

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

static int allocations_left; /* the one after these fails, and no other */
static int failed;           /* it has */

static int fail_now(void)
{
    if (allocations_left-- != 0)
        return 0;
    failed = 1;
    return 1;
}

void *__wrap_malloc(size_t size)
{
    return fail_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fail_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fail_now() ? NULL : __real_realloc(old, size);
}

static uint8_t bytes[100000];

static void use_pipe(void)
{
    struct iovec vectors[16];
    aq_pool pool;
    aq_pipe pipe;
    uint64_t expected = 0;
    int i, count;

    CHECK_INT(aq_pool_init(&pool, 100000), 0);
    aq_pipe_init(&pipe, &pool, sizeof(bytes));
    for (i = 0; i < 4; i++) {
        int before = failed;
        int result = aq_pipe_write(&pipe, bytes, 20000);

        CHECK_INT(result, failed == before ? 0 : -1);
        expected += result == 0 ? 20000 : 0;
        CHECK_INT(aq_pipe_written(&pipe), expected); /* all or nothing */
    }
    for (i = 0; i < 3; i++) {
        int before = failed;

        count = aq_pipe_space(&pipe, vectors, 16, 5000);
        CHECK(count >= 1 || (count == -1 && failed != before)); /* what there is, if there is anything */
        if (count >= 1) {
            aq_pipe_commit(&pipe, vectors[0].iov_len);
            expected += vectors[0].iov_len;
        }
    }
    CHECK_INT(aq_pipe_readable(&pipe), expected);
    aq_pipe_take(&pipe, (size_t)expected);
    aq_pipe_release(&pipe, expected);
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

static int destroyed;

static void count_destroyed(void *object)
{
    CHECK(object == bytes);
    destroyed++;
}

static void use_slab(void)
{
    int before = failed, added = 0, i, result;
    aq_slab slab;

    destroyed = 0;
    result = aq_slab_init(&slab, AQ_KIND_STREAM, 1000, count_destroyed);
    CHECK_INT(result, failed == before ? 0 : AQ_ERR_MEMORY);
    if (result != 0)
        return;
    for (i = 0; i < 100; i++) {
        aq_id id;

        before = failed;
        id = aq_slab_add(&slab, bytes);
        CHECK(failed == before ? id > 0 : id == AQ_ERR_MEMORY);
        added += id > 0;
    }
    CHECK_INT(aq_slab_count(&slab), added);
    CHECK_INT(destroyed, 0);
    aq_slab_destroy(&slab);
    CHECK_INT(destroyed, added);
}

static void use_map(void)
{
    static const uint8_t secret[16];
    int before = failed, result, i;
    aq_map map;

    result = aq_map_init(&map, secret);
    CHECK_INT(result, failed == before ? 0 : AQ_ERR_MEMORY);
    if (result != 0)
        return;
    for (i = 0; i < 100; i++) {
        before = failed;
        result = aq_map_put(&map, &i, sizeof(i), bytes + i);
        CHECK_INT(result, failed == before ? 0 : AQ_ERR_MEMORY);
        if (result != 0) { /* nothing changed, and there may be memory next time */
            CHECK(aq_map_get(&map, &i, sizeof(i)) == NULL);
            CHECK_INT(map.length, i);
            CHECK_INT(aq_map_put(&map, &i, sizeof(i), bytes + i), 0);
        }
    }
    for (i = 0; i < 100; i++)
        CHECK(aq_map_get(&map, &i, sizeof(i)) == bytes + i);
    aq_map_destroy(&map);
}

static void use_assembler(void)
{
    int before = failed;
    aq_assembler *assembler = aq_assembler_new(2, 65535, 1000);
    uint8_t index;

    CHECK((assembler == NULL) == (failed != before));
    if (assembler == NULL)
        return;
    for (index = 0; index < 3; index++) {
        aq_packet_header header = {.association = 1, .packet = 1, .total = 3, .index = index, .size = 1000};
        aq_assembled out;
        int result;

        header.has_address = index == 0;
        before = failed;
        result = aq_assembler_add(assembler, &header, bytes, 0, &out);
        if (failed != before) {
            CHECK_INT(result, AQ_ASSEMBLY_MEMORY);
            CHECK_INT(aq_assembler_expire(assembler, 0), UINT64_MAX); /* the packet is given up */
        } else {
            CHECK(result == AQ_ASSEMBLY_PENDING || result == AQ_ASSEMBLY_COMPLETE);
        }
    }
    CHECK(aq_assembler_dropped(assembler) <= 1);
    aq_assembler_free(assembler);
}

static void fail_each(const char *name, void (*use)(void))
{
    int which = 0;

    do {
        allocations_left = which++;
        failed = 0;
        use();
    } while (failed);
    CHECK(which > 3); /* some did fail */
    printf("%s: %d allocations\n", name, which - 1);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    fail_each("pipe", use_pipe);
    fail_each("slab", use_slab);
    fail_each("map", use_map);
    fail_each("assembler", use_assembler);
    return check_done();
}

/* The assembler of packet.c: fragments in whatever order and state they come. */
#include "tunnel/packet.h"

#include "check.h"

#include <stdlib.h>

#define WATCHDOG_SECONDS 90
#define RANDOM_INPUTS 1000000
#define LIFETIME 1000U

static const aq_address PEER = {.family = 4, .ip = {192, 0, 2, 1}, .port = 53};

static uint8_t big[65536];

static aq_packet_header header_of(uint16_t association, uint16_t packet, uint8_t total, uint8_t index, size_t size)
{
    aq_packet_header header = {
        .association = association, .packet = packet, .total = total, .index = index, .size = (uint16_t)size};

    if (index == 0) {
        header.has_address = 1;
        header.address = PEER;
        header.address.port = packet; /* to be recognised by */
    }
    header.header = header.has_address ? 17 : 11;
    return header;
}

static int add(aq_assembler *assembler, uint16_t association, uint16_t packet, uint8_t total, uint8_t index,
               const uint8_t *payload, size_t size, uint64_t now, aq_assembled *out)
{
    aq_packet_header header = header_of(association, packet, total, index, size);
    uint8_t *copy = NULL;
    int result;

    if (size > 0) { /* gone after the call: what the assembler keeps must be its own */
        copy = malloc(size);
        CHECK(copy != NULL);
        memcpy(copy, payload, size);
    }
    result = aq_assembler_add(assembler, &header, copy, now, out);
    if (result == AQ_ASSEMBLY_COMPLETE) {
        CHECK_INT(out->address.family, 4);
        CHECK_INT(out->address.port, packet);
        if (header.total == 1) {
            CHECK(out->payload == copy); /* without a copy */
            out->payload = payload;
        }
    }
    free(copy);
    return result;
}

static aq_assembler *new_assembler(uint32_t max_packets, size_t max_bytes)
{
    aq_assembler *assembler = aq_assembler_new(max_packets, max_bytes, LIFETIME);

    CHECK(assembler != NULL);
    return assembler;
}

static void test_whole_packets(void)
{
    aq_assembler *assembler = new_assembler(10, 100000);
    aq_assembled out;

    CHECK_INT(add(assembler, 1, 2, 1, 0, big, 5, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 5);
    CHECK(out.payload == big);
    CHECK_INT(add(assembler, 1, 2, 1, 0, big, 0, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 0);
    CHECK_INT(add(assembler, 1, 3, 1, 0, big, 65507, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 65507);
    CHECK_INT(add(assembler, 1, 3, 1, 0, big, 65535, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 65535);

    /* also while fragments of another packet with that id, from before the counter wrapped, are still there */
    CHECK_INT(add(assembler, 1, 4, 2, 0, big, 5, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 4, 1, 0, big, 7, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 7);
    CHECK_INT(add(assembler, 1, 4, 2, 1, big, 5, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(aq_assembler_dropped(assembler), 0);
    aq_assembler_free(assembler);
    aq_assembler_free(NULL);
}

static void test_any_order(void)
{
    static const uint8_t orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    static const char *const pieces[3] = {"AAAA", "BBBB", "C"};
    aq_assembler *assembler = new_assembler(10, 100000);
    aq_assembled out;
    uint64_t state = 77;
    unsigned i, j;

    for (i = 0; i < 6; i++) {
        for (j = 0; j < 3; j++) {
            uint8_t index = orders[i][j];

            CHECK_INT(add(assembler, 0x0102, 0xfffe, 3, index, (const uint8_t *)pieces[index], strlen(pieces[index]), 0,
                          &out),
                      j == 2 ? AQ_ASSEMBLY_COMPLETE : AQ_ASSEMBLY_PENDING);
        }
        CHECK_INT(out.length, 9);
        CHECK_BYTES(out.payload, "AAAABBBBC", 9);
    }

    /* 255 fragments of random sizes, shuffled, several packets of several associations at once */
    for (i = 0; i < 50; i++) {
        enum { TOTAL = 255, PACKETS_AT_ONCE = 4 };
        size_t offsets[TOTAL + 1] = {0};
        unsigned order[TOTAL * PACKETS_AT_ONCE] = {0}, left[PACKETS_AT_ONCE];

        for (j = 0; j < TOTAL; j++)
            offsets[j + 1] = offsets[j] + check_below(&state, 257); /* at most 65,280 bytes */
        for (j = 0; j < AQ_ARRAY_LENGTH(order); j++) {
            unsigned k = check_below(&state, j + 1);

            order[j] = order[k];
            order[k] = j;
        }
        for (j = 0; j < PACKETS_AT_ONCE; j++)
            left[j] = TOTAL;
        aq_assembler_free(assembler);
        assembler = new_assembler(PACKETS_AT_ONCE, PACKETS_AT_ONCE * UINT64_C(65535));
        for (j = 0; j < AQ_ARRAY_LENGTH(order); j++) {
            unsigned which = order[j] / TOTAL, index = order[j] % TOTAL;

            CHECK_INT(add(assembler, (uint16_t)(which / 2), (uint16_t)(which % 2), TOTAL, (uint8_t)index,
                          big + which + offsets[index], offsets[index + 1] - offsets[index], j / 10, &out),
                      --left[which] == 0 ? AQ_ASSEMBLY_COMPLETE : AQ_ASSEMBLY_PENDING);
            if (left[which] > 0)
                continue;
            CHECK_INT(out.length, offsets[TOTAL]);
            CHECK_BYTES(out.payload, big + which, out.length);
        }
        CHECK_INT(aq_assembler_dropped(assembler), 0);
        CHECK_INT(aq_assembler_expire(assembler, 0), UINT64_MAX);
    }
    aq_assembler_free(assembler);
}

/* Every packet size that matters, cut as planned for a limit and put together again. */
static void test_plan_and_assemble(void)
{
    static const size_t sizes[] = {0,    1,    1145, 1146,  1145 + 1151, 1145 + 1151 + 1,
                                   1350, 1472, 9000, 65506, 65507,       65535};
    aq_assembler *assembler = new_assembler(10, 65535);
    aq_assembled out;
    size_t i;

    for (i = 0; i < AQ_ARRAY_LENGTH(sizes); i++) {
        size_t first, rest, at = 0;
        int count = aq_fragment_plan(1162, sizes[i], 0, &first, &rest), j;

        CHECK(count > 0);
        for (j = 0; j < count; j++) {
            size_t size = j == 0 ? first : j < count - 1 ? rest : sizes[i] - at;

            CHECK_INT(add(assembler, 9, (uint16_t)i, (uint8_t)count, (uint8_t)j, big + at, size, 0, &out),
                      j == count - 1 ? AQ_ASSEMBLY_COMPLETE : AQ_ASSEMBLY_PENDING);
            at += size;
        }
        CHECK_INT(at, sizes[i]);
        CHECK_INT(out.length, sizes[i]);
        CHECK_BYTES(out.payload, big, out.length);
    }
    CHECK_INT(aq_assembler_dropped(assembler), 0);
    aq_assembler_free(assembler);
}

static void test_empty_fragments(void)
{
    aq_assembler *assembler = new_assembler(10, 100000);
    aq_assembled out;

    CHECK_INT(add(assembler, 1, 1, 3, 0, NULL, 0, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 3, 0, NULL, 0, 0, &out), AQ_ASSEMBLY_DUPLICATE);
    CHECK_INT(add(assembler, 1, 1, 3, 2, NULL, 0, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 3, 1, NULL, 0, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 0);
    CHECK(out.payload != NULL);
    CHECK_INT(add(assembler, 1, 2, 2, 0, NULL, 0, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 2, 2, 1, (const uint8_t *)"xy", 2, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 2);
    CHECK_BYTES(out.payload, "xy", 2);
    aq_assembler_free(assembler);
}

static void test_bad_fragments(void)
{
    aq_assembler *assembler = new_assembler(10, 100000);
    aq_packet_header header;
    aq_assembled out;

    CHECK_INT(add(assembler, 1, 1, 0, 0, big, 5, 0, &out), AQ_ASSEMBLY_BAD);
    CHECK_INT(add(assembler, 1, 1, 1, 1, big, 5, 0, &out), AQ_ASSEMBLY_BAD);
    CHECK_INT(add(assembler, 1, 1, 2, 2, big, 5, 0, &out), AQ_ASSEMBLY_BAD);
    CHECK_INT(add(assembler, 1, 1, 2, 255, big, 5, 0, &out), AQ_ASSEMBLY_BAD);
    header = header_of(1, 1, 2, 0, 5);
    header.has_address = 0;
    CHECK_INT(aq_assembler_add(assembler, &header, big, 0, &out), AQ_ASSEMBLY_BAD);
    header = header_of(1, 1, 1, 0, 5);
    header.has_address = 0;
    CHECK_INT(aq_assembler_add(assembler, &header, big, 0, &out), AQ_ASSEMBLY_BAD);
    header = header_of(1, 1, 2, 1, 5);
    header.has_address = 1;
    CHECK_INT(aq_assembler_add(assembler, &header, big, 0, &out), AQ_ASSEMBLY_BAD);
    CHECK_INT(aq_assembler_expire(assembler, 0), UINT64_MAX); /* nothing of that was kept */

    /* a contradicted or repeated fragment is lost, the packet is not */
    CHECK_INT(add(assembler, 1, 1, 3, 1, (const uint8_t *)"BB", 2, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 2, 0, (const uint8_t *)"xx", 2, 0, &out), AQ_ASSEMBLY_BAD);
    CHECK_INT(add(assembler, 1, 1, 255, 254, (const uint8_t *)"xx", 2, 0, &out), AQ_ASSEMBLY_BAD);
    CHECK_INT(add(assembler, 1, 1, 3, 1, (const uint8_t *)"xx", 2, 0, &out), AQ_ASSEMBLY_DUPLICATE);
    CHECK_INT(add(assembler, 2, 1, 3, 2, (const uint8_t *)"xx", 2, 0, &out), AQ_ASSEMBLY_PENDING); /* other key */
    CHECK_INT(add(assembler, 1, 2, 3, 2, (const uint8_t *)"xx", 2, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 3, 2, (const uint8_t *)"C", 1, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 3, 0, (const uint8_t *)"A", 1, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 4);
    CHECK_BYTES(out.payload, "ABBC", 4);
    CHECK_INT(aq_assembler_dropped(assembler), 0);
    aq_assembler_free(assembler);
}

static void test_too_big(void)
{
    aq_assembler *assembler = new_assembler(10, 200000);
    aq_assembled out;

    CHECK_INT(add(assembler, 1, 1, 3, 0, big, 40000, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 3, 1, big, 25536, 0, &out), AQ_ASSEMBLY_TOO_BIG);
    CHECK_INT(aq_assembler_dropped(assembler), 1);
    CHECK_INT(aq_assembler_expire(assembler, 0), UINT64_MAX); /* given up */

    CHECK_INT(add(assembler, 1, 1, 2, 0, big, 40000, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 2, 1, big, 25536, 0, &out), AQ_ASSEMBLY_TOO_BIG); /* the last one as well */
    CHECK_INT(aq_assembler_dropped(assembler), 2);

    CHECK_INT(add(assembler, 1, 1, 2, 0, big, 40000, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 2, 1, big + 40000, 25535, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 65535);
    CHECK_BYTES(out.payload, big, out.length);
    aq_assembler_free(assembler);
}

static void test_bounds(void)
{
    aq_assembler *assembler = new_assembler(3, 65535);
    aq_assembled out;

    /* packets: the fourth pushes out the first */
    CHECK_INT(add(assembler, 1, 1, 2, 0, big, 10, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 2, 2, 0, big, 10, 1, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 3, 2, 0, big, 10, 2, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(aq_assembler_dropped(assembler), 0);
    CHECK_INT(add(assembler, 1, 4, 2, 0, big, 10, 3, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(aq_assembler_dropped(assembler), 1);
    CHECK_INT(add(assembler, 1, 2, 2, 1, big, 10, 4, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(add(assembler, 1, 3, 2, 1, big, 10, 4, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(add(assembler, 1, 4, 2, 1, big, 10, 4, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(add(assembler, 1, 1, 2, 1, big, 10, 4, &out), AQ_ASSEMBLY_PENDING); /* its sibling is gone */
    aq_assembler_expire(assembler, UINT64_MAX);
    CHECK_INT(aq_assembler_dropped(assembler), 2);

    /* bytes: the oldest others go, never the packet that asks */
    CHECK_INT(add(assembler, 1, 1, 3, 0, big, 30000, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 2, 3, 0, big, 30000, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 3, 1, big, 6000, 0, &out), AQ_ASSEMBLY_PENDING); /* pushes out 2, the younger one */
    CHECK_INT(aq_assembler_dropped(assembler), 3);
    CHECK_INT(add(assembler, 1, 2, 3, 1, big, 29535, 0, &out), AQ_ASSEMBLY_PENDING); /* exactly full */
    CHECK_INT(aq_assembler_dropped(assembler), 3);
    CHECK_INT(add(assembler, 1, 3, 3, 1, big, 1, 0, &out), AQ_ASSEMBLY_PENDING); /* pushes out 1 */
    CHECK_INT(aq_assembler_dropped(assembler), 4);
    CHECK_INT(add(assembler, 1, 1, 3, 2, big, 1, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 2, 3, 0, big, 1, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 2, 3, 2, big, 1, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(out.length, 29537);

    /* the last fragment is not kept, so it needs no room */
    aq_assembler_expire(assembler, UINT64_MAX);
    CHECK_INT(aq_assembler_dropped(assembler), 6);
    CHECK_INT(add(assembler, 1, 1, 2, 0, big, 35535, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 2, 2, 0, big, 30000, 0, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 2, 2, 1, big, 30000, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(add(assembler, 1, 1, 2, 1, big, 30000, 0, &out), AQ_ASSEMBLY_COMPLETE);
    CHECK_INT(aq_assembler_dropped(assembler), 6);
    aq_assembler_free(assembler);
}

static void test_expiry(void)
{
    aq_assembler *assembler = new_assembler(10, 100000);
    aq_assembled out;

    CHECK_INT(aq_assembler_expire(assembler, 0), UINT64_MAX);
    CHECK_INT(add(assembler, 1, 1, 3, 0, big, 10, 100, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 2, 2, 0, big, 10, 300, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(add(assembler, 1, 1, 3, 1, big, 10, 900, &out), AQ_ASSEMBLY_PENDING); /* the first one counts */
    CHECK_INT(aq_assembler_expire(assembler, 900), 100 + LIFETIME);
    CHECK_INT(aq_assembler_expire(assembler, 100 + LIFETIME - 1), 100 + LIFETIME);
    CHECK_INT(aq_assembler_dropped(assembler), 0);
    CHECK_INT(aq_assembler_expire(assembler, 100 + LIFETIME), 300 + LIFETIME);
    CHECK_INT(aq_assembler_dropped(assembler), 1);

    /* what is too old goes before a late sibling could join it */
    CHECK_INT(add(assembler, 1, 2, 2, 1, big, 10, 300 + LIFETIME, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(aq_assembler_dropped(assembler), 2);
    CHECK_INT(aq_assembler_expire(assembler, 300 + LIFETIME), 300 + 2 * LIFETIME);
    CHECK_INT(aq_assembler_expire(assembler, UINT64_MAX), UINT64_MAX);
    CHECK_INT(aq_assembler_dropped(assembler), 3);
    CHECK_INT(add(assembler, 1, 2, 2, 1, big, 10, UINT64_MAX - 5, &out), AQ_ASSEMBLY_PENDING);
    CHECK_INT(aq_assembler_expire(assembler, UINT64_MAX - 1), UINT64_MAX);
    CHECK_INT(aq_assembler_dropped(assembler), 3);
    aq_assembler_free(assembler);
}

/* Whatever a peer may send: no answer but the known ones, and the bounds hold. */
static void test_random_fragments(void)
{
    enum { MAX_PACKETS = 5 };
    aq_assembler *assembler = new_assembler(MAX_PACKETS, 65535);
    uint64_t state = 99, counts[6] = {0};
    int i;

    for (i = 0; i < RANDOM_INPUTS; i++) {
        uint16_t association = (uint16_t)check_below(&state, 3), packet = (uint16_t)check_below(&state, 5);
        uint8_t total = (uint8_t)check_below(&state, check_below(&state, 50) == 0 ? 256 : 4);
        uint8_t index = (uint8_t)check_below(&state, check_below(&state, 50) == 0 ? 256 : 4);
        size_t size = check_below(&state, check_below(&state, 50) == 0 ? 65536 : 30);
        aq_packet_header header = header_of(association, packet, total, index, size);
        aq_assembled out;
        int result;

        if (check_below(&state, 20) == 0)
            header.has_address = !header.has_address;
        if (check_below(&state, 500) == 0)
            aq_assembler_expire(assembler, UINT64_MAX);
        result = aq_assembler_add(assembler, &header, big, (uint64_t)i * 10, &out);
        CHECK(result >= AQ_ASSEMBLY_MEMORY && result <= AQ_ASSEMBLY_COMPLETE);
        counts[result - AQ_ASSEMBLY_MEMORY]++;
        if (result == AQ_ASSEMBLY_COMPLETE) {
            CHECK(out.length <= 65535);
            CHECK_INT(out.address.port, packet);
        }
    }
    CHECK_INT(counts[AQ_ASSEMBLY_MEMORY - AQ_ASSEMBLY_MEMORY], 0);
    for (i = AQ_ASSEMBLY_TOO_BIG; i <= AQ_ASSEMBLY_COMPLETE; i++)
        CHECK(counts[i - AQ_ASSEMBLY_MEMORY] > 0);
    CHECK(aq_assembler_dropped(assembler) > 0);
    aq_assembler_free(assembler);
}

int main(void)
{
    uint64_t state = 3;
    size_t i;

    check_watchdog(WATCHDOG_SECONDS);
    for (i = 0; i < sizeof(big); i++)
        big[i] = (uint8_t)check_random(&state);
    test_whole_packets();
    test_any_order();
    test_plan_and_assemble();
    test_empty_fragments();
    test_bad_fragments();
    test_too_big();
    test_bounds();
    test_expiry();
    test_random_fragments();
    return check_done();
}

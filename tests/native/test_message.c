/* Commands and Packets that arrive on a stream in pieces. Every piece is a block of its own with no byte to spare, so
 * that the sanitizer sees each byte read too far; malloc() can be told to fail.
 */
#include "tunnel/message.h"

#include "check.h"

#define WATCHDOG_SECONDS 90
#define RANDOM_INPUTS 100000
#define LONGEST 256 /* bytes of the commands here, but for the large Packets */
#define MODE_OFFSET 50

#define UUID_TOKEN "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

static int fail_malloc;
void *__real_malloc(size_t size); /* NOLINT: the linker's names */
void *__wrap_malloc(size_t size); /* NOLINT */

void *__wrap_malloc(size_t size)
{
    return fail_malloc ? NULL : __real_malloc(size);
}

static const struct {
    const char *hex; /* with payload */
    int last_judged; /* offset of the last byte that can make it malformed */
} COMMANDS[] = {
    {"0000" UUID_TOKEN "030001ffff", MODE_OFFSET}, /* ClientHello, mode 3, 1-65535 */
    {"0000" UUID_TOKEN "0707e807e8", MODE_OFFSET}, /* ClientHello, mode 7, 2024-2024 */
    {"00010007e8", 2},                             /* ServerHello Success, port 2024 */
    {"000101", 2},                                 /* AuthFailed */
    {"000102", 2},                                 /* BindFailed */
    {"000103", 2},                                 /* PortDenied */
    {"000104", 2},                                 /* NetworkDenied */
    {"000201cb007107d431", 2},                     /* Connect 203.0.113.7:54321 */
    {"00020400000000000000000000ffffcb007107d431", 2},
    {"00020420010db800000000000000000000000101bb", 2},
    {"0002ff", 2},                                                                /* Connect without an address */
    {"000300010000010000050400000000000000000000ffffc633640914e968656c6c6f", 10}, /* Packet "hello" */
    {"00030102fffe0300000401c0000201003541414141", 10},                           /* Packet in three fragments */
    {"00030102fffe03010004ff42424242", 10},
    {"00030102fffe03020001ff43", 10},
    {"0003000700010100000001c00002010035", 10}, /* Packet without payload */
    {"00040102", 1},                            /* Dissociate */
    {"0005", 1},                                /* Heartbeat */
};

static size_t from_hex(const char *hex, uint8_t *out)
{
    size_t length = 0;
    unsigned byte;

    for (; *hex != '\0'; hex += 2) {
        CHECK(length < LONGEST);
        CHECK_INT(sscanf(hex, "%2x", &byte), 1);
        out[length++] = (uint8_t)byte;
    }
    return length;
}

/* What the layout says about the whole of these bytes: length of the command, 0 when more are needed, -1 malformed.
 * Told from the tables of the wire format, not from packet.c. */
static int64_t judge(const uint8_t *data, size_t length)
{
    static const int ADDRESS[256] = {[1] = 7, [4] = 19, [255] = 1};
    size_t at = 2;

    if (length >= 1 && data[0] != 0)
        return -1;
    if (length < 2)
        return 0;
    switch (data[1]) {
    case 0:
        return length > MODE_OFFSET && data[MODE_OFFSET] > 7 ? -1 : length < 55 ? 0 : 55;
    case 1:
        if (length < 3 || data[2] > 4)
            return length < 3 ? 0 : -1;
        at = data[2] == 0 ? 5 : 3;
        return length < at ? 0 : (int64_t)at;
    case 3:
        at = 10;
        /* fall through */
    case 2:
        if (length <= at || ADDRESS[data[at]] == 0)
            return length <= at ? 0 : -1;
        at += (size_t)ADDRESS[data[at]];
        if (data[1] == 3 && length >= at)
            at += (size_t)data[8] << 8 | data[9];
        return length < at ? 0 : (int64_t)at;
    case 4:
    case 5:
        at = data[1] == 4 ? 4 : 2;
        return length < at ? 0 : (int64_t)at;
    default:
        return -1;
    }
}

/* ---- feeding -------------------------------------------------------------------------------------------------- */

typedef struct {
    aq_incoming *incoming; /* a block of its own */
    int outcome;
    size_t used;    /* over all pieces */
    uint8_t *piece; /* the last one: the command may lie in it */
    const uint8_t *command;
    size_t length;
    const char *problem;
} feeding;

static feeding begin(void)
{
    feeding state = {.incoming = malloc(sizeof(aq_incoming))};

    CHECK(state.incoming != NULL);
    memset(state.incoming, 0, sizeof(*state.incoming));
    aq_incoming_init(state.incoming);
    CHECK_INT(state.incoming->tag, AQ_TAG_INCOMING);
    return state;
}

static void feed(feeding *state, const uint8_t *data, size_t length)
{
    size_t used = SIZE_MAX;

    CHECK_INT(state->outcome, 0); /* nothing is fed behind an end */
    free(state->piece);
    state->piece = malloc(length > 0 ? length : 1);
    CHECK(state->piece != NULL);
    memcpy(state->piece, data, length);
    state->outcome = aq_incoming_feed(state->incoming, state->piece, length, &state->command, &state->length, &used,
                                      &state->problem);
    CHECK(used <= length);
    state->used += used;
    if (state->outcome == 0)
        CHECK_INT(used, length);
    CHECK_INT(state->outcome == -1, state->problem != NULL);
}

static void end(feeding *state)
{
    aq_incoming_release(state->incoming);
    aq_incoming_release(state->incoming); /* harmless */
    CHECK(state->incoming->data == state->incoming->small);
    free(state->incoming);
    free(state->piece);
}

static void check_complete(const feeding *state, const uint8_t *expected, size_t length)
{
    CHECK_INT(state->outcome, 1);
    CHECK_INT(state->used, length);
    CHECK_INT(state->length, length);
    CHECK_BYTES(state->command, expected, length);
}

/* ---- commands ------------------------------------------------------------------------------------------------- */

/* Every way to cut a command into three pieces, some of them empty, with and without bytes behind it. */
static void test_every_split(void)
{
    uint8_t bytes[LONGEST + 8];
    size_t i, first, second, behind;

    for (i = 0; i < AQ_ARRAY_LENGTH(COMMANDS); i++) {
        size_t length = from_hex(COMMANDS[i].hex, bytes);

        CHECK_INT(judge(bytes, length), length);
        memset(bytes + length, 0xee, 8); /* no command begins like that */
        for (first = 0; first <= length; first++) {
            for (second = first; second <= length; second++) {
                for (behind = 0; behind <= 8; behind += 4) {
                    feeding state = begin();

                    if (first < length) {
                        feed(&state, bytes, first);
                        CHECK_INT(state.outcome, 0);
                    }
                    if (first < length && second < length) {
                        feed(&state, bytes + first, second - first);
                        CHECK_INT(state.outcome, 0);
                    }
                    feed(&state, bytes + state.used, length - state.used + behind);
                    check_complete(&state, bytes, length);
                    if (first == length) /* in one piece nothing is copied */
                        CHECK(state.command == state.piece);
                    end(&state);
                }
            }
        }
    }
}

static void test_byte_by_byte(void)
{
    uint8_t bytes[LONGEST];
    size_t i, j;

    for (i = 0; i < AQ_ARRAY_LENGTH(COMMANDS); i++) {
        size_t length = from_hex(COMMANDS[i].hex, bytes);
        feeding state = begin();

        for (j = 0; j < length; j++) {
            CHECK_INT(state.outcome, 0);
            feed(&state, bytes + j, 1);
        }
        check_complete(&state, bytes, length);
        end(&state);
    }
}

/* Every byte of every command with every value: refused as soon as the byte that decides is there, however the bytes
 * are cut; never for a byte that may be anything. */
static void test_malformed(void)
{
    uint8_t bytes[LONGEST];
    uint64_t refused = 0;
    size_t i, position, cut, decides;
    unsigned value;

    for (i = 0; i < AQ_ARRAY_LENGTH(COMMANDS); i++) {
        size_t length = from_hex(COMMANDS[i].hex, bytes);

        for (position = 0; position < length; position++) {
            uint8_t right = bytes[position];

            for (value = 0; value < 256; value++) {
                int64_t expected;
                feeding state = begin();

                bytes[position] = (uint8_t)value;
                expected = judge(bytes, length);
                feed(&state, bytes, length);
                CHECK_INT(state.outcome, expected > 0 ? 1 : expected);
                end(&state);
                if (expected >= 0)
                    continue;
                CHECK((int)position <= COMMANDS[i].last_judged);
                refused++;
                for (decides = position + 1; judge(bytes, decides) == 0; decides++)
                    ;
                for (cut = 0; cut < decides; cut++) {
                    state = begin();
                    feed(&state, bytes, cut);
                    CHECK_INT(state.outcome, 0);
                    feed(&state, bytes + cut, decides - cut);
                    CHECK_INT(state.outcome, -1);
                    end(&state);
                }
            }
            bytes[position] = right;
        }
    }
    CHECK(refused > 10000);
}

/* ---- large Packets --------------------------------------------------------------------------------------------- */

static void check_large(size_t payload, const aq_address *address, size_t step, size_t behind)
{
    uint64_t seed = payload + step;
    size_t header, length, at = 0, i;
    uint8_t *whole = malloc(AQ_PACKET_HEADER_MAX + payload + behind);
    feeding state = begin();

    CHECK(whole != NULL);
    header = aq_packet_encode(whole, 0x1234, 0xfffe, 1, 0, (uint16_t)payload, address);
    length = header + payload;
    for (i = header; i < length + behind; i++)
        whole[i] = (uint8_t)check_random(&seed);
    while (state.outcome == 0) {
        size_t now = step < length + behind - at ? step : length + behind - at;

        CHECK(at < length);
        feed(&state, whole + at, now);
        at += now;
        CHECK(state.incoming->capacity <= length || state.incoming->capacity == sizeof(state.incoming->small));
    }
    check_complete(&state, whole, length);
    end(&state);
    free(whole);
}

static void test_large_packets(void)
{
    static const size_t STEPS[] = {1, 7, 1200, 16384, 65536};
    static const size_t SIZES[] = {26, 38,   39,    44,   45,
                                   46, 1200, 65507, 65535}; /* around what fits without a heap block */
    const aq_address v4 = {.family = 4, .ip = {192, 0, 2, 1}, .port = 53};
    const aq_address v6 = {.family = 6, .ip = {0x20, 1, 0xd, 0xb8}, .port = 53};
    size_t i, j;

    for (i = 0; i < AQ_ARRAY_LENGTH(SIZES); i++) {
        for (j = 0; j < AQ_ARRAY_LENGTH(STEPS); j++) {
            check_large(SIZES[i], &v4, STEPS[j], 0);
            check_large(SIZES[i], &v6, STEPS[j], 3);
            check_large(SIZES[i], NULL, STEPS[j], 2000);
        }
    }
}

/* Without memory nothing is lost: the same bytes may come again. */
static void test_no_memory(void)
{
    uint8_t bytes[AQ_PACKET_HEADER_MAX + 300];
    const aq_address address = {.family = 4, .ip = {192, 0, 2, 1}, .port = 53};
    size_t header = aq_packet_encode(bytes, 1, 2, 1, 0, 300, &address), used, command_length = 0, had;
    const uint8_t *command = NULL;
    const char *problem = NULL;
    feeding state = begin();
    int outcome;

    memset(bytes + header, 0x5a, 300);
    feed(&state, bytes, header);
    fail_malloc = 1;
    outcome = aq_incoming_feed(state.incoming, bytes + header, 300, &command, &command_length, &used, &problem);
    fail_malloc = 0;
    CHECK_INT(outcome, -2);
    CHECK(problem == NULL);
    had = state.used + used;
    outcome =
        aq_incoming_feed(state.incoming, bytes + had, header + 300 - had, &command, &command_length, &used, &problem);
    CHECK_INT(outcome, 1);
    CHECK_INT(command_length, header + 300);
    CHECK_BYTES(command, bytes, header + 300);
    end(&state);
}

/* ---- whatever a peer may send ------------------------------------------------------------------------------------ */

static void test_random_inputs(void)
{
    uint8_t bytes[512];
    uint64_t seed = 2024, outcomes[3] = {0};
    int i;

    for (i = 0; i < RANDOM_INPUTS; i++) {
        size_t length = 1 + check_below(&seed, sizeof(bytes)), at, j;
        int64_t expected;
        feeding state = begin();

        for (j = 0; j < length; j++)
            bytes[j] = (uint8_t)check_random(&seed);
        if (check_below(&seed, 8) != 0)
            bytes[0] = 0;
        if (length > 1 && check_below(&seed, 8) != 0)
            bytes[1] %= 6;
        if (length > 2 && check_below(&seed, 4) != 0)
            bytes[2] = (const uint8_t[]){0, 1, 4, 255}[bytes[2] % 4];
        if (length > 10 && check_below(&seed, 4) != 0)
            bytes[10] = (const uint8_t[]){1, 4, 255, 1}[bytes[10] % 4];
        if (length > 8 && check_below(&seed, 4) != 0)
            bytes[8] = 0;
        expected = judge(bytes, length);
        for (at = 0; at < length && state.outcome == 0;) {
            size_t step = check_below(&seed, check_below(&seed, 2) == 0 ? 4 : 100);

            if (step > length - at)
                step = length - at;
            feed(&state, bytes + at, step);
            at += step;
        }
        CHECK_INT(state.outcome, expected > 0 ? 1 : expected);
        outcomes[state.outcome + 1]++;
        if (expected > 0)
            check_complete(&state, bytes, (size_t)expected);
        end(&state);
    }
    for (i = 0; i < 3; i++)
        CHECK(outcomes[i] > RANDOM_INPUTS / 50);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_every_split();
    test_byte_by_byte();
    test_malformed();
    test_large_packets();
    test_no_memory();
    test_random_inputs();
    return check_done();
}

/* The commands, Connect and the Packet header of packet.c, and its plan of fragments. */
#include "tunnel/packet.h"

#include "check.h"

#include <stdlib.h>

#define WATCHDOG_SECONDS 90
#define RANDOM_INPUTS 1000000

static size_t from_hex(const char *hex, uint8_t *out)
{
    size_t length = 0;
    unsigned byte;

    for (; *hex != '\0'; hex += 2) {
        CHECK_INT(sscanf(hex, "%2x", &byte), 1);
        out[length++] = (uint8_t)byte;
    }
    return length;
}

/* ---- command lengths ----------------------------------------------------------------------------------------- */

#define UUID_TOKEN "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

/* The commands of the wire format, each with the number of bytes that decides its length. */
static const struct {
    const char *hex; /* without payload */
    size_t decides;
} COMMANDS[] = {
    {"0000" UUID_TOKEN "030001ffff", 2},                                /* ClientHello, mode 3, 1-65535 */
    {"0000" UUID_TOKEN "0707e807e8", 2},                                /* ClientHello, mode 7, 2024-2024 */
    {"0000" UUID_TOKEN "000001ffff", 2},                                /* ClientHello, mode 0 */
    {"00010007e8", 3},                                                  /* ServerHello Success, port 2024 */
    {"000101", 3},                                                      /* AuthFailed */
    {"000102", 3},                                                      /* BindFailed */
    {"000103", 3},                                                      /* PortDenied */
    {"000104", 3},                                                      /* NetworkDenied */
    {"000201cb007107d431", 3},                                          /* Connect 203.0.113.7:54321 */
    {"00020400000000000000000000ffffcb007107d431", 3},                  /* Connect [::ffff:203.0.113.7]:54321 */
    {"00020420010db800000000000000000000000101bb", 3},                  /* Connect [2001:db8::1]:443 */
    {"0002ff", 3},                                                      /* Connect without an address */
    {"000300010000010000050400000000000000000000ffffc633640914e9", 11}, /* Packet, IPv6 */
    {"00030102fffe0300000401c00002010035", 11},                         /* Packet, IPv4 */
    {"00030102fffe03010004ff", 11},                                     /* Packet, later fragment */
    {"00040102", 2},                                                    /* Dissociate */
    {"0005", 2},                                                        /* Heartbeat */
};

static void test_command_lengths(void)
{
    size_t i, j;

    for (i = 0; i < AQ_ARRAY_LENGTH(COMMANDS); i++) {
        uint8_t bytes[64];
        size_t length = from_hex(COMMANDS[i].hex, bytes);

        CHECK(length <= AQ_COMMAND_MAX);
        for (j = 0; j <= length; j++) {
            const char *problem = NULL;
            uint8_t *copy = malloc(j + 1); /* exactly as long as said: the sanitizer sees every byte too far */

            CHECK(copy != NULL);
            memcpy(copy + 1, bytes, j);
            CHECK_INT(aq_command_length(copy + 1, j, &problem), j < COMMANDS[i].decides ? 0 : (int64_t)length);
            CHECK(problem == NULL);
            free(copy);
        }
    }
}

static void check_problem(const char *hex, const char *expected)
{
    const char *problem = NULL, *again = NULL;
    uint8_t bytes[64];
    size_t length = from_hex(hex, bytes);

    CHECK_INT(aq_command_length(bytes, length, &problem), -1);
    CHECK(problem != NULL && strstr(problem, expected) != NULL);
    CHECK_INT(aq_command_length(bytes, length, &again), -1);
    CHECK(again == problem); /* constant */
}

static void test_malformed_commands(void)
{
    char hex[2 * 64];
    int i;

    check_problem("01", "version, expected 0");
    check_problem("ff0000", "version, expected 0");
    check_problem("0006", "command type, expected 0 to 5");
    check_problem("00ff", "command type, expected 0 to 5");
    check_problem("000105", "ServerHello code, expected 0 to 4");
    check_problem("0001ff0000", "ServerHello code, expected 0 to 4");
    check_problem("0000" UUID_TOKEN "08", "mode, expected 0 to 7");
    check_problem("0000" UUID_TOKEN "ff0001ffff", "mode, expected 0 to 7");
    for (i = 0; i < 256; i++) {
        if (i == 1 || i == 4 || i == 255)
            continue;
        snprintf(hex, sizeof(hex), "0002%02x", (unsigned)i);
        check_problem(hex, "address family, expected 1 (IPv4), 4 (IPv6) or 255 (none)");
        snprintf(hex, sizeof(hex), "00030000000000000000%02x", (unsigned)i);
        check_problem(hex, "address family, expected 1 (IPv4), 4 (IPv6) or 255 (none)");
    }
}

/* ---- Packet header ------------------------------------------------------------------------------------------- */

/* Whole Packets as they travel, and what is in them. */
static const struct {
    const char *hex; /* with payload */
    uint16_t association, packet;
    uint8_t total, index;
    const char *payload;
    aq_address address; /* family 0: none */
} PACKETS[] = {
    {"000300010000010000050400000000000000000000ffffc633640914e968656c6c6f",
     1,
     0,
     1,
     0,
     "hello",
     {.family = 6, .ip = {[10] = 0xff, 0xff, 198, 51, 100, 9}, .port = 5353}},
    {"00030102fffe0300000401c0000201003541414141",
     0x0102,
     0xfffe,
     3,
     0,
     "AAAA",
     {.family = 4, .ip = {192, 0, 2, 1}, .port = 53}},
    {"00030102fffe03010004ff42424242", 0x0102, 0xfffe, 3, 1, "BBBB", {.family = 0}},
    {"00030102fffe03020001ff43", 0x0102, 0xfffe, 3, 2, "C", {.family = 0}},
    {"0003000700010100000001c00002010035", 7, 1, 1, 0, "", {.family = 4, .ip = {192, 0, 2, 1}, .port = 53}},
};

static void test_packet_vectors(void)
{
    size_t i, j;

    for (i = 0; i < AQ_ARRAY_LENGTH(PACKETS); i++) {
        const aq_address *address = PACKETS[i].address.family == 0 ? NULL : &PACKETS[i].address;
        size_t payload = strlen(PACKETS[i].payload), header;
        uint8_t bytes[64], out[AQ_PACKET_HEADER_MAX];
        size_t length = from_hex(PACKETS[i].hex, bytes);

        header = aq_packet_encode(out, PACKETS[i].association, PACKETS[i].packet, PACKETS[i].total, PACKETS[i].index,
                                  (uint16_t)payload, address);
        CHECK_INT(header, length - payload);
        CHECK_BYTES(out, bytes, header);
        CHECK_BYTES(bytes + header, PACKETS[i].payload, payload);

        for (j = 0; j <= length; j++) {
            const char *problem = NULL;
            uint8_t *copy = malloc(j + 1);
            aq_packet_header decoded;
            int result;

            CHECK(copy != NULL);
            memcpy(copy + 1, bytes, j);
            memset(&decoded, 0xa5, sizeof(decoded));
            result = aq_packet_decode(copy + 1, j, &decoded, &problem);
            free(copy);
            CHECK(problem == NULL);
            CHECK_INT(result, j < header ? 0 : 1);
            if (result == 0)
                continue;
            CHECK_INT(decoded.association, PACKETS[i].association);
            CHECK_INT(decoded.packet, PACKETS[i].packet);
            CHECK_INT(decoded.total, PACKETS[i].total);
            CHECK_INT(decoded.index, PACKETS[i].index);
            CHECK_INT(decoded.size, payload);
            CHECK_INT(decoded.header, header);
            CHECK_INT(decoded.has_address, address != NULL);
            CHECK_INT(decoded.address.family, PACKETS[i].address.family);
            CHECK_BYTES(decoded.address.ip, PACKETS[i].address.ip, sizeof(decoded.address.ip));
            CHECK_INT(decoded.address.port, PACKETS[i].address.port);
            CHECK_INT(decoded.address.scope, 0);
        }
    }
}

static void test_packet_malformed(void)
{
    static const char *const others[] = {"0000", "000100", "0002ff", "00040102", "0005"};
    aq_packet_header decoded;
    const char *problem;
    uint8_t bytes[64];
    size_t length, i;

    for (i = 0; i < AQ_ARRAY_LENGTH(others); i++) {
        problem = NULL;
        length = from_hex(others[i], bytes);
        CHECK_INT(aq_packet_decode(bytes, length, &decoded, &problem), -1);
        CHECK(problem != NULL && strstr(problem, "expected a Packet") != NULL);
    }
    problem = NULL;
    length = from_hex("0103", bytes);
    CHECK_INT(aq_packet_decode(bytes, length, &decoded, &problem), -1);
    CHECK(problem != NULL && strstr(problem, "version") != NULL);
    length = from_hex("0003000700010100000006", bytes);
    CHECK_INT(aq_packet_decode(bytes, length, &decoded, &problem), -1);
    CHECK(strstr(problem, "address family") != NULL);
}

/* Whatever comes in: one of the known answers, nothing read past the end, and what is decoded encodes to the same
 * bytes. */
static void test_random_bytes(void)
{
    uint64_t state = 2024;
    uint32_t decoded_count = 0;
    int i;

    for (i = 0; i < RANDOM_INPUTS; i++) {
        uint8_t buffer[64], out[AQ_PACKET_HEADER_MAX];
        size_t length = check_below(&state, 60), j;
        uint8_t *data = buffer + sizeof(buffer) - length; /* ends where the buffer does: the sanitizer watches there */
        const char *problem = NULL;
        aq_packet_header header;
        int known, result;

        for (j = 0; j < length; j++)
            data[j] = (uint8_t)check_random(&state);
        /* mostly what gets past the first bytes */
        if (length > 0 && i % 8 != 0)
            data[0] = 0;
        if (length > 1 && i % 4 != 0)
            data[1] = (uint8_t)(i % 16 < 8 ? AQ_COMMAND_PACKET : check_below(&state, 7));
        if (length > 10 && i % 2 != 0)
            data[10] = (uint8_t)(i % 3 == 0 ? 1 : i % 3 == 1 ? 4 : 255);

        known = aq_command_length(data, length, &problem);
        CHECK(known >= -1 && known <= AQ_COMMAND_MAX);
        CHECK((known == -1) == (problem != NULL));
        problem = NULL;
        result = aq_packet_decode(data, length, &header, &problem);
        CHECK(result >= -1 && result <= 1);
        CHECK((result == -1) == (problem != NULL));
        if (known == -1)
            CHECK_INT(result, -1);
        if (result != 1)
            continue;
        decoded_count++;
        CHECK_INT(header.header, known);
        CHECK(header.header <= length);
        CHECK_INT(aq_packet_encode(out, header.association, header.packet, header.total, header.index, header.size,
                                   header.has_address ? &header.address : NULL),
                  header.header);
        CHECK_BYTES(out, data, header.header);
    }
    CHECK(decoded_count > RANDOM_INPUTS / 20);
}

/* ---- Connect ------------------------------------------------------------------------------------------------- */

static void test_connect(void)
{
    static const struct {
        const char *hex;
        aq_address source; /* family 0: none */
    } CONNECTS[] = {
        {"000201cb007107d431", {.family = 4, .ip = {203, 0, 113, 7}, .port = 54321}},
        {"00020420010db800000000000000000000000101bb",
         {.family = 6, .ip = {0x20, 1, 0xd, 0xb8, [15] = 1}, .port = 443}},
        {"00020400000000000000000000ffffcb007107d431",
         {.family = 6, .ip = {[10] = 0xff, 0xff, 203, 0, 113, 7}, .port = 54321}},
        {"000201000000000000", {.family = 4}},
        {"0002ff", {.family = 0}},
    };
    size_t i;

    for (i = 0; i < AQ_ARRAY_LENGTH(CONNECTS); i++) {
        const aq_address *source = &CONNECTS[i].source;
        const char *problem = NULL;
        uint8_t bytes[64], out[AQ_CONNECT_MAX];
        size_t length = from_hex(CONNECTS[i].hex, bytes);
        uint8_t *copy = malloc(length); /* exactly as long as the command: the sanitizer sees every byte too far */
        aq_address decoded;

        CHECK(copy != NULL && length <= AQ_CONNECT_MAX);
        memcpy(copy, bytes, length);
        CHECK_INT(aq_command_length(copy, length, &problem), length);
        memset(&decoded, 0xa5, sizeof(decoded));
        aq_connect_decode(copy, &decoded);
        free(copy);
        CHECK_INT(decoded.family, source->family);
        CHECK_BYTES(decoded.ip, source->ip, sizeof(decoded.ip));
        CHECK_INT(decoded.port, source->port);
        CHECK_INT(decoded.scope, 0);
        if (source->family != 0) {
            CHECK_INT(aq_connect_encode(out, source), length);
            CHECK_BYTES(out, bytes, length);
        }
    }
    {
        /* The zone is this machine's own business, and an IPv4 address has no more than its four bytes. */
        const aq_address zoned = {.family = 6, .ip = {0xfe, 0x80, [15] = 1}, .port = 443, .scope = 7};
        const aq_address long_ = {.family = 4, .ip = {1, 2, 3, 4, 5, 6}, .port = 1};
        uint8_t out[AQ_CONNECT_MAX];
        aq_address decoded;

        CHECK_INT(aq_connect_encode(out, &zoned), AQ_CONNECT_MAX);
        aq_connect_decode(out, &decoded);
        CHECK_BYTES(decoded.ip, zoned.ip, sizeof(decoded.ip));
        CHECK_INT(decoded.scope, 0);
        CHECK_INT(aq_connect_encode(out, &long_), 9);
        aq_connect_decode(out, &decoded);
        CHECK_BYTES(decoded.ip, "\1\2\3\4\0\0", 6);
    }
}

/* ---- cutting ------------------------------------------------------------------------------------------------- */

static void check_plan(size_t limit, size_t payload, int ipv6, int count, size_t first, size_t rest)
{
    size_t got_first = 12345, got_rest = 12345;

    CHECK_INT(aq_fragment_plan(limit, payload, ipv6, &got_first, &got_rest), count);
    if (count == 0)
        return;
    CHECK_INT(got_first, first);
    CHECK_INT(got_rest, rest);
}

static void test_fragment_plan(void)
{
    size_t limit, payload;
    int ipv6;

    /* The reference's limits and cuts, but never its one fragment too many. */
    check_plan(1162, 1350, 0, 2, 1145, 1151);
    check_plan(1162, 1350, 1, 2, 1133, 1151);
    check_plan(1414, 1350, 0, 1, 1350, 0);
    check_plan(1414, 1350, 1, 1, 1350, 0);
    check_plan(1162, 1145 + 1151, 0, 2, 1145, 1151);
    check_plan(1162, 1145 + 1151 + 1, 0, 3, 1145, 1151);
    check_plan(1162, 1133 + 1151, 1, 2, 1133, 1151);
    check_plan(1162, 1133 + 1151 + 1, 1, 3, 1133, 1151);
    check_plan(1414, 1397 + 1403, 0, 2, 1397, 1403);
    check_plan(1414, 1385 + 1403, 1, 2, 1385, 1403);
    check_plan(1162, 1145, 0, 1, 1145, 0);
    check_plan(1162, 1146, 0, 2, 1145, 1151);
    check_plan(1162, 0, 0, 1, 0, 0);

    /* one fragment may fill its size field, a packet must fit into one as well */
    check_plan(65535, 65507, 0, 1, 65507, 0);
    check_plan(65535, 65507, 1, 2, 65506, 65524);
    check_plan(SIZE_MAX, 65535, 1, 1, 65535, 0);
    check_plan(SIZE_MAX, 65536, 1, 0, 0, 0);
    check_plan(1162, 65536, 0, 0, 0, 0);
    check_plan(SIZE_MAX, SIZE_MAX, 0, 0, 0, 0);

    /* 255 fragments at most */
    check_plan(100, 83 + 254 * 89, 0, 255, 83, 89);
    check_plan(100, 83 + 254 * 89 + 1, 0, 0, 0, 0);

    /* too small for any: not even the header, or nothing behind it */
    check_plan(16, 0, 0, 0, 0, 0);
    check_plan(17, 0, 0, 1, 0, 0);
    check_plan(17, 1, 0, 0, 0, 0);
    check_plan(18, 1, 0, 1, 1, 0);
    check_plan(18, 2, 0, 2, 1, 7);
    check_plan(28, 0, 1, 0, 0, 0);
    check_plan(29, 0, 1, 1, 0, 0);
    check_plan(29, 5, 1, 0, 0, 0);
    check_plan(0, 0, 0, 0, 0, 0);
    check_plan(0, 1000, 1, 0, 0, 0);

    /* No byte too many or too few, for all small sizes: the last fragment has something, and no more than the others.
     */
    for (ipv6 = 0; ipv6 <= 1; ipv6++) {
        for (limit = 0; limit < 80; limit++) {
            for (payload = 0; payload < 600; payload++) {
                size_t first, rest, header = ipv6 ? 29 : 17;
                int count = aq_fragment_plan(limit, payload, ipv6, &first, &rest);

                CHECK(count >= 0 && count <= AQ_FRAGMENTS_MAX);
                if (count == 0)
                    continue;
                CHECK(first + header <= limit);
                if (count == 1) {
                    CHECK_INT(first, payload);
                } else {
                    CHECK_INT(rest, limit - 11);
                    CHECK_INT(first, limit - header);
                    CHECK(first > 0);
                    CHECK(first + (size_t)(count - 2) * rest < payload);
                    CHECK(first + (size_t)(count - 1) * rest >= payload);
                }
            }
        }
    }
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_command_lengths();
    test_malformed_commands();
    test_packet_vectors();
    test_packet_malformed();
    test_random_bytes();
    test_connect();
    test_fragment_plan();
    return check_done();
}

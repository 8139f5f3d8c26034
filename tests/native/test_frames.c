/* What is found in a packet's frames, whatever stands before it, and that nothing is read behind the end. */
#include "quic/frames.h"

#include "check.h"

#include <stdlib.h>

#define NEW_ID_LENGTH 28

/* NEW_CONNECTION_ID 5, nothing retired, an id of 8 bytes. */
static const uint8_t NEW_ID[NEW_ID_LENGTH] = {0x18, 5, 0, 8};

/* One of each type that has an end of its own. */
static const struct {
    size_t length;
    uint8_t bytes[24];
} FRAMES[] = {
    {1, {0x00}},
    {1, {0x01}},
    {10, {0x02, 9, 0x40, 0x18, 2, 0, 0, 1, 2, 3}},
    {12, {0x02, 0xc0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 1}},
    {10, {0x03, 9, 0, 0, 0, 1, 0x40, 2, 0x40, 3}},
    {4, {0x04, 1, 2, 3}},
    {3, {0x05, 1, 2}},
    {5, {0x06, 0, 2, 0x18, 0x18}},
    {4, {0x07, 2, 0x18, 0x18}},
    {5, {0x0a, 1, 2, 0x18, 0x18}},
    {6, {0x0f, 1, 0x18, 2, 0x18, 0x18}},
    {5, {0x10, 0x80, 0, 0, 1}},
    {3, {0x11, 1, 2}},
    {2, {0x12, 1}},
    {2, {0x13, 1}},
    {2, {0x14, 1}},
    {3, {0x15, 1, 2}},
    {2, {0x16, 1}},
    {2, {0x17, 1}},
    {2, {0x19, 1}},
    {9, {0x1a, 0x18, 0x18}},
    {9, {0x1b, 0x18, 0x18}},
    {6, {0x1c, 1, 2, 2, 0x18, 0x18}},
    {5, {0x1d, 1, 2, 0x18, 0x18}},
    {1, {0x1e}},
    {4, {0x31, 2, 0x18, 0x18}},
};

/* From a block of just that length, so that a sanitizer sees a byte too many. */
static int64_t look(const uint8_t *bytes, size_t length)
{
    uint8_t *copy = malloc(length > 0 ? length : 1);
    int64_t newest;
    CHECK(copy != NULL);
    memcpy(copy, bytes, length);
    newest = aq_frames_newest_id(copy, length);
    free(copy);
    return newest;
}

static size_t append(uint8_t *out, size_t length, const uint8_t *bytes, size_t more)
{
    memcpy(out + length, bytes, more);
    return length + more;
}

static void behind_every_frame(void)
{
    uint8_t packet[512];
    size_t length = 0;

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(FRAMES); i++) {
        size_t whole = append(packet, 0, FRAMES[i].bytes, FRAMES[i].length);
        CHECK_INT(look(packet, whole), -1);
        whole = append(packet, whole, NEW_ID, NEW_ID_LENGTH);
        CHECK_INT(look(packet, whole), 5);
        for (size_t cut = 0; cut < whole; cut++)
            CHECK_INT(look(packet, cut), -1);
    }
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(FRAMES); i++)
        length = append(packet, length, FRAMES[i].bytes, FRAMES[i].length);
    CHECK_INT(look(packet, append(packet, length, NEW_ID, NEW_ID_LENGTH)), 5);
}

static void the_newest_of_several(void)
{
    uint8_t packet[128];
    size_t length = append(packet, 0, NEW_ID, NEW_ID_LENGTH);
    length = append(packet, length, NEW_ID, NEW_ID_LENGTH);
    packet[1] = 0x3f;
    CHECK_INT(look(packet, length), 0x3f);
    packet[1] = 3;
    CHECK_INT(look(packet, length), 5);
}

static void where_ngtcp2_reads_no_further(void)
{
    static const uint8_t TO_THE_END[] = {0x08, 0x09, 0x0c, 0x0d, 0x30};
    static const uint8_t UNKNOWN[] = {0x1f, 0x2f, 0x32, 0x40, 0xff};
    uint8_t packet[64] = {0};
    size_t length = append(packet, 1, NEW_ID, NEW_ID_LENGTH);

    for (size_t i = 0; i < sizeof(TO_THE_END); i++) {
        packet[0] = TO_THE_END[i];
        CHECK_INT(look(packet, length), -1);
    }
    for (size_t i = 0; i < sizeof(UNKNOWN); i++) {
        packet[0] = UNKNOWN[i];
        CHECK_INT(look(packet, length), -1);
    }
    packet[0] = 0x01;
    packet[length] = 0xff; /* what was found before stays found */
    CHECK_INT(look(packet, length + 1), 5);
}

int main(void)
{
    check_watchdog(60);
    behind_every_frame();
    the_newest_of_several();
    where_ngtcp2_reads_no_further();
    return check_done();
}

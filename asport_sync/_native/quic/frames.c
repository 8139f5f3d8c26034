#include "quic/frames.h"

/* Frame types: RFC 9000 section 19, RFC 9221 section 4. */
enum {
    ACK = 0x02,
    ACK_ECN = 0x03,
    STREAM = 0x08,
    STREAM_LAST = 0x0f,
    STREAM_HAS_LENGTH = 0x02,
    STREAM_HAS_OFFSET = 0x04,
    NEW_CONNECTION_ID = 0x18,
    DATAGRAM = 0x30,
    DATAGRAM_WITH_LENGTH = 0x31
};

#define RESET_TOKEN 16 /* bytes, after the connection ID in NEW_CONNECTION_ID */

/* Layouts of all other types: a number of integers, then bytes. */
static const struct {
    uint8_t integers;
    uint8_t bytes;      /* fixed number of bytes after the integers */
    uint8_t has_length; /* 1: the last integer is the number of bytes instead */
    uint8_t known;
} layouts[] = {
    [0x00] = {.known = 1},                                 /* PADDING */
    [0x01] = {.known = 1},                                 /* PING */
    [0x04] = {.known = 1, .integers = 3},                  /* RESET_STREAM */
    [0x05] = {.known = 1, .integers = 2},                  /* STOP_SENDING */
    [0x06] = {.known = 1, .integers = 2, .has_length = 1}, /* CRYPTO */
    [0x07] = {.known = 1, .integers = 1, .has_length = 1}, /* NEW_TOKEN */
    [0x10] = {.known = 1, .integers = 1},                  /* MAX_DATA */
    [0x11] = {.known = 1, .integers = 2},                  /* MAX_STREAM_DATA */
    [0x12] = {.known = 1, .integers = 1},                  /* MAX_STREAMS, both types */
    [0x13] = {.known = 1, .integers = 1},
    [0x14] = {.known = 1, .integers = 1}, /* DATA_BLOCKED */
    [0x15] = {.known = 1, .integers = 2}, /* STREAM_DATA_BLOCKED */
    [0x16] = {.known = 1, .integers = 1}, /* STREAMS_BLOCKED, both types */
    [0x17] = {.known = 1, .integers = 1},
    [0x19] = {.known = 1, .integers = 1},                  /* RETIRE_CONNECTION_ID */
    [0x1a] = {.known = 1, .bytes = 8},                     /* PATH_CHALLENGE */
    [0x1b] = {.known = 1, .bytes = 8},                     /* PATH_RESPONSE */
    [0x1c] = {.known = 1, .integers = 3, .has_length = 1}, /* CONNECTION_CLOSE, of QUIC */
    [0x1d] = {.known = 1, .integers = 2, .has_length = 1}, /* CONNECTION_CLOSE, of the application */
    [0x1e] = {.known = 1},                                 /* HANDSHAKE_DONE */
};

typedef struct {
    const uint8_t *at, *end;
    int short_of; /* 1: stopped at a truncated or unknown frame */
} cursor;

static void skip(cursor *from, uint64_t bytes)
{
    if (bytes > (uint64_t)(from->end - from->at))
        from->short_of = 1;
    else
        from->at += bytes;
}

/* Reads a variable-length integer (RFC 9000 section 16); 0 if it is truncated. */
static uint64_t integer(cursor *from)
{
    const uint8_t *at = from->at;
    size_t bytes;
    uint64_t value;

    if (from->short_of || at == from->end) {
        from->short_of = 1;
        return 0;
    }
    bytes = (size_t)1 << (*at >> 6);
    skip(from, bytes);
    if (from->short_of)
        return 0;
    value = *at & 0x3f;
    for (size_t i = 1; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

static void skip_ack(cursor *from, int has_ecn)
{
    uint64_t ranges;

    integer(from); /* Largest Acknowledged, ACK Delay */
    integer(from);
    ranges = integer(from);
    for (integer(from); ranges > 0 && !from->short_of; ranges--) {
        integer(from);
        integer(from);
    }
    for (int i = 0; has_ecn && i < 3; i++)
        integer(from);
}

static void skip_stream(cursor *from, uint8_t type)
{
    integer(from);
    if (type & STREAM_HAS_OFFSET)
        integer(from);
    if (type & STREAM_HAS_LENGTH)
        skip(from, integer(from));
    else
        from->at = from->end;
}

static int64_t skip_new_id(cursor *from)
{
    uint64_t sequence = integer(from);

    integer(from);
    if (!from->short_of && from->at < from->end)
        skip(from, 1U + *from->at);
    skip(from, RESET_TOKEN);
    return (int64_t)sequence; /* below 2^62 */
}

static void skip_other(cursor *from, uint8_t type)
{
    uint64_t last = 0;

    if (type >= AQ_ARRAY_LENGTH(layouts) || !layouts[type].known) {
        from->short_of = 1;
        return;
    }
    for (int i = 0; i < layouts[type].integers; i++)
        last = integer(from);
    skip(from, layouts[type].has_length ? last : layouts[type].bytes);
}

int64_t aq_frames_newest_id(const uint8_t *payload, size_t length)
{
    cursor from = {.at = payload, .end = payload + length};
    int64_t newest = -1;

    while (from.at < from.end && !from.short_of) {
        uint8_t type = *from.at++;
        if (type == ACK || type == ACK_ECN) {
            skip_ack(&from, type == ACK_ECN);
        } else if (type >= STREAM && type <= STREAM_LAST) {
            skip_stream(&from, type);
        } else if (type == NEW_CONNECTION_ID) {
            int64_t sequence = skip_new_id(&from);
            if (!from.short_of && sequence > newest)
                newest = sequence;
        } else if (type == DATAGRAM) {
            from.at = from.end;
        } else if (type == DATAGRAM_WITH_LENGTH) {
            skip(&from, integer(&from));
        } else {
            skip_other(&from, type);
        }
    }
    return newest;
}

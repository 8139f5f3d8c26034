#include "raw_peer.h"

#define CID 8
#define STREAMS 32
#define PACKETS 4096 /* packet numbers that are remembered */
#define ROOM 65000

typedef struct {
    uint64_t next;   /* packet number to send */
    int64_t largest; /* received; -1: none */
    int unacknowledged;
    uint8_t seen[PACKETS];
} number_space;

const raw_options RAW_GENEROUS = {
    .connection_window = 1 << 20, .stream_window = 1 << 20, .streams = 16, .datagram = 65535};

static struct {
    int is_server, step;
    int has_finished; /* the client's last message is here; or the server's first flight */
    raw_options options;
    uint8_t mine[CID], theirs[20], original[20];
    size_t theirs_length, original_length;
    number_space spaces[RAW_SPACES];
    struct {
        uint64_t id, offset;
    } streams[STREAMS];
    size_t streams_length;
} peer;

static uint8_t *put_varint(uint8_t *out, uint64_t value)
{
    int size = value < 1U << 6 ? 0 : value < 1U << 14 ? 1 : value < 1U << 30 ? 2 : 3;
    int bytes = 1 << size;
    for (int i = bytes - 1; i >= 0; i--, value >>= 8)
        out[i] = (uint8_t)value;
    out[0] = (uint8_t)((out[0] & 0x3f) | size << 6);
    return out + bytes;
}

void raw_send(enum raw_space space, const uint8_t *frames, size_t length)
{
    static uint8_t packet[ROOM + 1500];
    number_space *numbers = &peer.spaces[space];
    uint8_t *at = packet;
    size_t padded = length < 4 ? 4 : length;

    if (length > ROOM || peer.options.token_length > 500)
        return;
    if (space == RAW_INITIAL && padded < 1200)
        padded = 1200;
    if (space == RAW_APPLICATION) {
        *at++ = 0x43;
        memcpy(at, peer.theirs, peer.theirs_length);
        at += peer.theirs_length;
    } else {
        *at++ = space == RAW_INITIAL ? 0xc3 : 0xe3;
        memcpy(at, "\0\0\0\1", 4);
        at += 4;
        *at++ = (uint8_t)peer.theirs_length;
        memcpy(at, peer.theirs, peer.theirs_length);
        at += peer.theirs_length;
        *at++ = CID;
        memcpy(at, peer.mine, CID);
        at += CID;
        if (space == RAW_INITIAL) {
            at = put_varint(at, peer.options.token_length);
            if (peer.options.token_length > 0)
                memcpy(at, peer.options.token, peer.options.token_length);
            at += peer.options.token_length;
        }
        at = put_varint(at, 4 + padded + 16);
    }
    for (int i = 3; i >= 0; i--)
        *at++ = (uint8_t)(numbers->next >> 8 * i);
    numbers->next++;
    if (length > 0)
        memcpy(at, frames, length);
    memset(at + length, 0, padded - length + 16); /* PADDING, and the tag */
    at += padded + 16;
    if (peer.is_server)
        sim_inject(0, 443, packet, (size_t)(at - packet));
    else
        sim_inject(-1, peer.options.port, packet, (size_t)(at - packet));
}

void raw_acknowledge(enum raw_space space)
{
    number_space *numbers = &peer.spaces[space];
    uint8_t frame[600], ranges[500], *at = frame, *range = ranges;
    int64_t number = numbers->largest, low;
    uint64_t count = 0, first;

    if (number < 0 || number >= PACKETS)
        return;
    numbers->unacknowledged = 0;
    for (low = number; low > 0 && numbers->seen[low - 1]; low--)
        ;
    first = (uint64_t)(number - low);
    while (count < 32) {
        int64_t high = low - 2, before = low;
        while (high >= 0 && !numbers->seen[high])
            high--;
        if (high < 0)
            break;
        for (low = high; low > 0 && numbers->seen[low - 1]; low--)
            ;
        range = put_varint(range, (uint64_t)(before - high - 2));
        range = put_varint(range, (uint64_t)(high - low));
        count++;
    }
    *at++ = 0x02;
    at = put_varint(at, (uint64_t)number);
    at = put_varint(at, 0);
    at = put_varint(at, count);
    at = put_varint(at, first);
    memcpy(at, ranges, (size_t)(range - ranges));
    at += range - ranges;
    raw_send(space, frame, (size_t)(at - frame));
}

/* ---- what the engine sends ----------------------------------------------------------------------------------------
 */

static uint64_t get_varint(const uint8_t **at, const uint8_t *end)
{
    uint64_t value;
    size_t bytes;

    if (*at >= end)
        return 0;
    bytes = (size_t)1 << (**at >> 6);
    value = **at & 0x3f;
    (*at)++;
    while (--bytes > 0 && *at < end)
        value = value << 8 | *(*at)++;
    return value;
}

static void note(enum raw_space space, const uint8_t *at, size_t bytes)
{
    number_space *numbers = &peer.spaces[space];
    uint64_t window = UINT64_C(1) << 8 * bytes, expected = (uint64_t)(numbers->largest + 1), number = 0;

    for (size_t i = 0; i < bytes; i++)
        number = number << 8 | at[i];
    number |= expected & ~(window - 1);
    if (number + window / 2 <= expected)
        number += window;
    else if (number > expected + window / 2 && number >= window)
        number -= window;
    if (number >= PACKETS)
        return;
    numbers->seen[number] = 1;
    numbers->unacknowledged = 1;
    if ((int64_t)number > numbers->largest)
        numbers->largest = (int64_t)number;
}

/* Whether a packet of the handshake brings bytes of it, and not acknowledgements only. */
static int has_crypto(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint64_t count;
        uint8_t type = *at++;
        if (type == 0x06)
            return 1;
        if (type == 0x00 || type == 0x01)
            continue;
        if (type != 0x02)
            return 0;
        get_varint(&at, end); /* largest, delay */
        get_varint(&at, end);
        count = get_varint(&at, end);
        get_varint(&at, end);
        while (count-- > 0 && at < end) {
            get_varint(&at, end);
            get_varint(&at, end);
        }
    }
    return 0;
}

/* One packet of a datagram; returns where the next one begins. */
static const uint8_t *receive_packet(const uint8_t *at, const uint8_t *end)
{
    size_t bytes = (size_t)(*at & 3) + 1;
    enum raw_space space = RAW_APPLICATION;
    const uint8_t *dcid;
    uint8_t first = *at++;
    uint64_t length;

    if ((first & 0x80) == 0) {
        if ((size_t)(end - at) >= CID + bytes)
            note(space, at + CID, bytes);
        return end;
    }
    if (end - at < 6 || (first & 0x30) == 0x10 || (first & 0x30) == 0x30 || memcmp(at, "\0\0\0\1", 4) != 0)
        return end; /* version negotiation, 0-RTT, Retry */
    space = (first & 0x30) == 0 ? RAW_INITIAL : RAW_HANDSHAKE;
    dcid = at + 4;
    at = dcid + 1 + *dcid;
    if (at >= end || *dcid > 20 || *at > 20 || end - at < 1 + *at)
        return end;
    if (space == RAW_INITIAL && peer.is_server && peer.original_length == 0) {
        peer.original_length = *dcid;
        memcpy(peer.original, dcid + 1, *dcid);
    }
    peer.theirs_length = *at;
    memcpy(peer.theirs, at + 1, *at);
    at += 1 + *at;
    if (space == RAW_INITIAL) {
        length = get_varint(&at, end);
        if (length > (uint64_t)(end - at))
            return end;
        at += length;
    }
    length = get_varint(&at, end);
    if (length > (uint64_t)(end - at) || length < bytes)
        return end;
    note(space, at, bytes);
    if (space == RAW_HANDSHAKE && has_crypto(at + bytes, at + length))
        peer.has_finished = 1;
    return at + length;
}

static void receive(const uint8_t *data, size_t length)
{
    const uint8_t *at = data, *end = data + length;
    while (at < end)
        at = receive_packet(at, end);
}

/* ---- handshake ----------------------------------------------------------------------------------------------------
 */

static uint8_t *put_number(uint8_t *at, uint64_t id, uint64_t value)
{
    uint8_t bytes[8];
    size_t length = (size_t)(put_varint(bytes, value) - bytes);
    at = put_varint(at, id);
    at = put_varint(at, length);
    memcpy(at, bytes, length);
    return at + length;
}

static uint8_t *put_blob(uint8_t *at, uint64_t id, const uint8_t *data, size_t length)
{
    at = put_varint(at, id);
    at = put_varint(at, length);
    memcpy(at, data, length);
    return at + length;
}

/* A CRYPTO frame with the handshake message; RFC 9000 section 18.2 has the numbers. */
static void send_message(enum raw_space space, int with_parameters)
{
    uint8_t message[512], frame[600], *end = message + 3, *at = frame;
    uint64_t window = peer.options.stream_window;

    message[0] = peer.options.flags;
    if (with_parameters) {
        end = put_number(end, 0x01, 30000);
        end = put_number(end, 0x03, 65527);
        end = put_number(end, 0x04, peer.options.connection_window);
        end = put_number(end, 0x05, window);
        end = put_number(end, 0x06, window);
        end = put_number(end, 0x07, window);
        end = put_number(end, 0x08, peer.options.streams);
        end = put_number(end, 0x09, peer.options.streams);
        end = put_number(end, 0x0e, 4);
        end = put_number(end, 0x20, peer.options.datagram);
        end = put_blob(end, 0x0f, peer.mine, CID);
        if (peer.is_server) {
            end = put_blob(end, 0x00, peer.original, peer.original_length);
            end = put_blob(end, 0x02, (const uint8_t *)"reset-token-0123", 16);
        }
    }
    message[1] = (uint8_t)((end - message - 3) >> 8);
    message[2] = (uint8_t)(end - message - 3);
    *at++ = 0x06;
    at = put_varint(at, 0);
    at = put_varint(at, (uint64_t)(end - message));
    memcpy(at, message, (size_t)(end - message));
    at += end - message;
    raw_send(space, frame, (size_t)(at - frame));
}

void raw_begin(int is_server, const raw_options *options)
{
    memset(&peer, 0, sizeof(peer));
    peer.is_server = is_server;
    peer.options = *options;
    if (peer.options.port == 0)
        peer.options.port = SIM_CLIENT_PORT;
    memcpy(peer.mine, "raw-peer", CID);
    memcpy(peer.theirs, "for-them", CID);
    peer.theirs_length = CID;
    for (int i = 0; i < RAW_SPACES; i++)
        peer.spaces[i].largest = -1;
    sim_peer = receive;
}

static void advance(void)
{
    static const uint8_t HANDSHAKE_DONE = 0x1e;
    if (!peer.is_server && peer.step == 0) {
        send_message(RAW_INITIAL, 1);
        peer.step++;
    } else if (!peer.is_server && peer.step == 1 && peer.has_finished) {
        send_message(RAW_HANDSHAKE, 0);
        peer.step++;
    } else if (peer.is_server && peer.step == 0 && peer.original_length > 0) {
        send_message(RAW_INITIAL, 0);
        send_message(RAW_HANDSHAKE, 1);
        peer.step++;
    } else if (peer.is_server && peer.step == 1 && peer.has_finished) {
        raw_send(RAW_APPLICATION, &HANDSHAKE_DONE, 1);
        peer.step++;
    }
}

void raw_turn(int acknowledges)
{
    advance();
    for (int i = 0; acknowledges && i < RAW_SPACES; i++) {
        if (peer.spaces[i].unacknowledged)
            raw_acknowledge((enum raw_space)i);
    }
}

/* ---- frames -------------------------------------------------------------------------------------------------------
 */

static uint64_t *offset_of(uint64_t id)
{
    for (size_t i = 0; i < peer.streams_length; i++) {
        if (peer.streams[i].id == id)
            return &peer.streams[i].offset;
    }
    if (peer.streams_length == STREAMS)
        peer.streams_length = 0;
    peer.streams[peer.streams_length].id = id;
    peer.streams[peer.streams_length].offset = 0;
    return &peer.streams[peer.streams_length++].offset;
}

void raw_stream(uint64_t id, const uint8_t *data, size_t length, int fin)
{
    uint8_t frame[2048], *at = frame;
    uint64_t *offset = offset_of(id);

    if (length > 2000)
        length = 2000;
    *at++ = (uint8_t)(0x0e | (fin != 0)); /* with offset and length */
    at = put_varint(at, id);
    at = put_varint(at, *offset);
    at = put_varint(at, length);
    if (length > 0)
        memcpy(at, data, length);
    *offset += length;
    raw_send(RAW_APPLICATION, frame, (size_t)(at - frame) + length);
}

void raw_datagram(const uint8_t *data, size_t length)
{
    uint8_t frame[2048], *at = frame;

    if (length > 2000)
        length = 2000;
    *at++ = 0x31;
    at = put_varint(at, length);
    if (length > 0)
        memcpy(at, data, length);
    raw_send(RAW_APPLICATION, frame, (size_t)(at - frame) + length);
}

void raw_end_stream(uint64_t id, int stop, uint64_t code)
{
    uint8_t frame[32], *at = frame;

    *at++ = stop ? 0x05 : 0x04;
    at = put_varint(at, id);
    at = put_varint(at, code);
    if (!stop)
        at = put_varint(at, *offset_of(id));
    raw_send(RAW_APPLICATION, frame, (size_t)(at - frame));
}

void raw_credit(uint64_t id, uint64_t most)
{
    uint8_t frame[64], *at = frame;

    *at++ = 0x10;
    at = put_varint(at, most);
    *at++ = 0x12;
    at = put_varint(at, most % 1024);
    *at++ = 0x13;
    at = put_varint(at, most % 1024);
    if (id != RAW_NO_STREAM) {
        *at++ = 0x11;
        at = put_varint(at, id);
        at = put_varint(at, most);
    }
    raw_send(RAW_APPLICATION, frame, (size_t)(at - frame));
}

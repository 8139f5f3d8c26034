#include "raw_protection.h"

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

raw_identity raw_self;
uint64_t raw_packets;

static struct {
    number_space spaces[RAW_SPACES];
    uint64_t crypto[RAW_SPACES]; /* bytes of CRYPTO frames sent */
    struct {
        uint64_t id, offset;
    } streams[STREAMS];
    size_t streams_length;
} peer;

uint8_t *raw_put_varint(uint8_t *out, uint64_t value)
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
    size_t padded = length < 4 ? 4 : length, number_at;

    if (length > ROOM || raw_self.options.token_length > 500 || !raw_has_keys(space))
        return;
    if (space == RAW_INITIAL && padded < 1200)
        padded = 1200;
    if (space == RAW_APPLICATION) {
        *at++ = 0x43;
        memcpy(at, raw_self.theirs, raw_self.theirs_length);
        at += raw_self.theirs_length;
    } else {
        *at++ = space == RAW_INITIAL ? 0xc3 : 0xe3;
        memcpy(at, "\0\0\0\1", 4);
        at += 4;
        *at++ = (uint8_t)raw_self.theirs_length;
        memcpy(at, raw_self.theirs, raw_self.theirs_length);
        at += raw_self.theirs_length;
        *at++ = RAW_CID;
        memcpy(at, raw_self.mine, RAW_CID);
        at += RAW_CID;
        if (space == RAW_INITIAL) {
            at = raw_put_varint(at, raw_self.options.token_length);
            if (raw_self.options.token_length > 0)
                memcpy(at, raw_self.options.token, raw_self.options.token_length);
            at += raw_self.options.token_length;
        }
        at = raw_put_varint(at, RAW_NUMBER + padded + RAW_TAG);
    }
    number_at = (size_t)(at - packet);
    for (int i = 3; i >= 0; i--)
        *at++ = (uint8_t)(numbers->next >> 8 * i);
    if (length > 0)
        memcpy(at, frames, length);
    memset(at + length, 0, padded - length); /* PADDING */
    raw_seal(space, packet, number_at, numbers->next, padded);
    numbers->next++;
    at += padded + RAW_TAG;
    raw_packets++;
    if (raw_self.is_server)
        sim_inject(0, 443, packet, (size_t)(at - packet));
    else
        sim_inject(-1, raw_self.options.port, packet, (size_t)(at - packet));
}

void raw_crypto(enum raw_space space, const uint8_t *data, size_t length)
{
    static uint8_t frame[ROOM];
    uint8_t *at = frame;

    if (length > ROOM - 16 || !raw_has_keys(space))
        return;
    *at++ = 0x06;
    at = raw_put_varint(at, peer.crypto[space]);
    at = raw_put_varint(at, length);
    if (length > 0)
        memcpy(at, data, length);
    peer.crypto[space] += length;
    raw_send(space, frame, (size_t)(at - frame) + length);
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
        range = raw_put_varint(range, (uint64_t)(before - high - 2));
        range = raw_put_varint(range, (uint64_t)(high - low));
        count++;
    }
    *at++ = 0x02;
    at = raw_put_varint(at, (uint64_t)number);
    at = raw_put_varint(at, 0);
    at = raw_put_varint(at, count);
    at = raw_put_varint(at, first);
    memcpy(at, ranges, (size_t)(range - ranges));
    at += range - ranges;
    raw_send(space, frame, (size_t)(at - frame));
}

/* ---- what the engine sends ----------------------------------------------------------------------------------------
 */

uint64_t raw_get_varint(const uint8_t **at, const uint8_t *end)
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

static void note(enum raw_space space, uint64_t number)
{
    number_space *numbers = &peer.spaces[space];

    if (number >= PACKETS)
        return;
    numbers->seen[number] = 1;
    numbers->unacknowledged = 1;
    if ((int64_t)number > numbers->largest)
        numbers->largest = (int64_t)number;
}

/* RFC 9000 appendix A.3. */
uint64_t raw_whole_number(uint64_t number, size_t bytes, uint64_t expected)
{
    uint64_t window = UINT64_C(1) << 8 * bytes;

    number |= expected & ~(window - 1);
    if (number + window / 2 <= expected)
        number += window;
    else if (number > expected + window / 2 && number >= window)
        number -= window;
    return number;
}

/* What a packet has behind its header, once its protection is off. */
static void receive_payload(enum raw_space space, uint8_t *packet, size_t number_at, size_t length)
{
    raw_opened opened;

    if (length < number_at + RAW_NUMBER + RAW_TAG ||
        !raw_open(space, packet, number_at, length, (uint64_t)(peer.spaces[space].largest + 1), &opened))
        return;
    note(space, opened.number);
    if (space != RAW_APPLICATION)
        raw_handshake_receive(space, opened.payload, opened.length);
}

/* One packet of a datagram; returns where the next one begins. */
static uint8_t *receive_packet(uint8_t *begin, uint8_t *end)
{
    enum raw_space space;
    const uint8_t *dcid, *at = begin + 1;
    uint64_t length;

    if ((*begin & 0x80) == 0) {
        receive_payload(RAW_APPLICATION, begin, 1 + RAW_CID, (size_t)(end - begin));
        return end;
    }
    if (end - at < 6 || (*begin & 0x30) == 0x10 || (*begin & 0x30) == 0x30 || memcmp(at, "\0\0\0\1", 4) != 0)
        return end; /* version negotiation, 0-RTT, Retry */
    space = (*begin & 0x30) == 0 ? RAW_INITIAL : RAW_HANDSHAKE;
    dcid = at + 4;
    at = dcid + 1 + *dcid;
    if (at >= end || *dcid > 20 || *at > 20 || end - at < 1 + *at)
        return end;
    if (space == RAW_INITIAL && raw_self.is_server && raw_self.original_length == 0) {
        raw_self.original_length = *dcid;
        memcpy(raw_self.original, dcid + 1, *dcid);
    }
    raw_self.theirs_length = *at;
    memcpy(raw_self.theirs, at + 1, *at);
    at += 1 + *at;
    if (space == RAW_INITIAL) {
        length = raw_get_varint(&at, end);
        if (length > (uint64_t)(end - at))
            return end;
        at += length;
    }
    length = raw_get_varint(&at, end);
    if (length > (uint64_t)(end - at))
        return end;
    receive_payload(space, begin, (size_t)(at - begin), (size_t)(at - begin) + (size_t)length);
    return begin + (at - begin) + length;
}

static void receive(const uint8_t *data, size_t length)
{
    static uint8_t datagram[65536];
    uint8_t *at = datagram, *end = datagram + length;

    MUST(length <= sizeof(datagram));
    memcpy(datagram, data, length); /* header protection is taken off in place */
    while (at < end)
        at = receive_packet(at, end);
}

/* ---- transport parameters -----------------------------------------------------------------------------------------
 */

static uint8_t *put_number(uint8_t *at, uint64_t id, uint64_t value)
{
    uint8_t bytes[8];
    size_t length = (size_t)(raw_put_varint(bytes, value) - bytes);
    at = raw_put_varint(at, id);
    at = raw_put_varint(at, length);
    memcpy(at, bytes, length);
    return at + length;
}

static uint8_t *put_blob(uint8_t *at, uint64_t id, const uint8_t *data, size_t length)
{
    at = raw_put_varint(at, id);
    at = raw_put_varint(at, length);
    memcpy(at, data, length);
    return at + length;
}

size_t raw_parameters(uint8_t *out)
{
    const raw_options *options = &raw_self.options;
    uint8_t *end = out;

    end = put_number(end, 0x01, 30000);
    end = put_number(end, 0x03, 65527);
    end = put_number(end, 0x04, options->connection_window);
    end = put_number(end, 0x05, options->stream_window);
    end = put_number(end, 0x06, options->stream_window);
    end = put_number(end, 0x07, options->stream_window);
    end = put_number(end, 0x08, options->streams);
    end = put_number(end, 0x09, options->streams);
    end = put_number(end, 0x0e, 4);
    end = put_number(end, 0x20, options->datagram);
    end = put_blob(end, 0x0f, raw_self.mine, RAW_CID);
    if (raw_self.is_server) {
        end = put_blob(end, 0x00, raw_self.original, raw_self.original_length);
        end = put_blob(end, 0x02, (const uint8_t *)"reset-token-0123", 16);
    }
    return (size_t)(end - out);
}

/* ---- turns --------------------------------------------------------------------------------------------------------
 */

void raw_begin(int is_server, const raw_options *options)
{
    memset(&peer, 0, sizeof(peer));
    memset(&raw_self, 0, sizeof(raw_self));
    raw_self.is_server = is_server;
    raw_self.options = *options;
    if (raw_self.options.port == 0)
        raw_self.options.port = SIM_CLIENT_PORT;
    memcpy(raw_self.mine, "raw-peer", RAW_CID);
    memcpy(raw_self.theirs, "for-them", RAW_CID);
    raw_self.theirs_length = RAW_CID;
    if (!is_server) {
        memcpy(raw_self.original, raw_self.theirs, RAW_CID);
        raw_self.original_length = RAW_CID;
    }
    for (int i = 0; i < RAW_SPACES; i++)
        peer.spaces[i].largest = -1;
    raw_handshake_begin();
    sim_peer = receive;
}

void raw_turn(int acknowledges)
{
    raw_handshake_turn();
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
    at = raw_put_varint(at, id);
    at = raw_put_varint(at, *offset);
    at = raw_put_varint(at, length);
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
    at = raw_put_varint(at, length);
    if (length > 0)
        memcpy(at, data, length);
    raw_send(RAW_APPLICATION, frame, (size_t)(at - frame) + length);
}

void raw_end_stream(uint64_t id, int stop, uint64_t code)
{
    uint8_t frame[32], *at = frame;

    *at++ = stop ? 0x05 : 0x04;
    at = raw_put_varint(at, id);
    at = raw_put_varint(at, code);
    if (!stop)
        at = raw_put_varint(at, *offset_of(id));
    raw_send(RAW_APPLICATION, frame, (size_t)(at - frame));
}

void raw_credit(uint64_t id, uint64_t max)
{
    uint8_t frame[64], *at = frame;

    *at++ = 0x10;
    at = raw_put_varint(at, max);
    *at++ = 0x12;
    at = raw_put_varint(at, max % 1024);
    *at++ = 0x13;
    at = raw_put_varint(at, max % 1024);
    if (id != RAW_NO_STREAM) {
        *at++ = 0x11;
        at = raw_put_varint(at, id);
        at = raw_put_varint(at, max);
    }
    raw_send(RAW_APPLICATION, frame, (size_t)(at - frame));
}

void raw_move(uint16_t port)
{
    raw_self.options.port = port;
}

uint8_t *raw_new_cid(uint8_t *at, uint64_t sequence, uint64_t retire_prior_to)
{
    *at++ = 0x18;
    at = raw_put_varint(at, sequence);
    at = raw_put_varint(at, retire_prior_to);
    *at++ = RAW_CID;
    memset(at, 'c', RAW_CID + 16); /* the id, and its token */
    at[0] = at[RAW_CID] = (uint8_t)(sequence >> 8);
    at[1] = at[RAW_CID + 1] = (uint8_t)sequence;
    return at + RAW_CID + 16;
}

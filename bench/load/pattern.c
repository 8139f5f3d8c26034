#include "pattern.h"

#include <string.h>

#define STAMP sizeof(uint64_t)
#define CHECK_KEY 0x6c6f616467656e31ULL

/* A slice starts anywhere in the first half. */
static uint8_t table[2 * PATTERN_PAGE];

/* The finalizer of splitmix64: a bijection, so different inputs have different stamps. */
static uint64_t mix(uint64_t value)
{
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
    return value ^ (value >> 31);
}

void pattern_prepare(void)
{
    uint64_t word;
    size_t at;
    for (at = 0; at < sizeof(table); at += sizeof(word)) {
        word = mix(at * 0x9e3779b97f4a7c15ULL + CHECK_KEY);
        memcpy(&table[at], &word, sizeof(word));
    }
}

static uint64_t stamp_of(uint64_t seed, uint64_t page)
{
    return mix(mix(seed) + page);
}

static const uint8_t *slice_of(uint64_t stamp)
{
    return &table[stamp % PATTERN_PAGE];
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

void pattern_gather(uint64_t seed, uint64_t position, size_t length, struct pattern_pieces *out)
{
    size_t pages = 0;
    size_t offset = position % PATTERN_PAGE;
    uint64_t page = position / PATTERN_PAGE;
    size_t part;
    out->count = 0;
    while (length > 0) {
        out->stamps[pages] = stamp_of(seed, page);
        if (offset < STAMP) {
            part = least(length, STAMP - offset);
            out->pieces[out->count++] =
                (struct iovec){.iov_base = (uint8_t *)&out->stamps[pages] + offset, .iov_len = part};
            offset += part;
            length -= part;
        }
        if (length > 0) {
            part = least(length, PATTERN_PAGE - offset);
            /* sendmsg() only reads, but iovec has no const. */
            out->pieces[out->count++] =
                (struct iovec){.iov_base = (void *)(uintptr_t)(slice_of(out->stamps[pages]) + offset), .iov_len = part};
            length -= part;
        }
        offset = 0;
        page++;
        pages++;
    }
}

bool pattern_matches(uint64_t seed, uint64_t position, const uint8_t *data, size_t length)
{
    struct pattern_pieces expected;
    size_t part;
    size_t at;
    while (length > 0) {
        part = least(length, CHUNK);
        pattern_gather(seed, position, part, &expected);
        for (at = 0; at < expected.count; at++) {
            if (memcmp(data, expected.pieces[at].iov_base, expected.pieces[at].iov_len) != 0)
                return false;
            data += expected.pieces[at].iov_len;
        }
        position += part;
        length -= part;
    }
    return true;
}

const uint8_t *pattern_of_datagram(const struct datagram *header)
{
    return slice_of(stamp_of(header->flow, header->sequence));
}

uint32_t datagram_check(const struct datagram *header, size_t length)
{
    uint64_t lengths = (uint64_t)header->flags << 32 | length;
    return (uint32_t)mix(stamp_of(header->flow, header->sequence) ^ mix(lengths ^ CHECK_KEY));
}

bool datagram_valid(const uint8_t *data, size_t length, struct datagram *header)
{
    if (length < sizeof(*header) || length > DATAGRAM_MAX)
        return false;
    memcpy(header, data, sizeof(*header));
    return header->check == datagram_check(header, length) &&
           memcmp(data + sizeof(*header), pattern_of_datagram(header), length - sizeof(*header)) == 0;
}

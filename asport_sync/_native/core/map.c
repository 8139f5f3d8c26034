#include "core/map.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 16U                /* entries; a power of two */
#define LAST_CAPACITY (UINT32_C(1) << 30) /* entries; twice as many would overflow the fields */

/* ---- SipHash-1-3 ------------------------------------------------------------------------------------------------
 *
 * Aumasson and Bernstein, "SipHash: a fast short-input PRF", with one round per word and three at the end. The paper
 * recommends two and four; one and three are usual for hash tables, where the hash never leaves the process.
 */

static uint64_t load64(const uint8_t *bytes, size_t length)
{
    uint64_t word = 0;

    while (length > 0)
        word = word << 8 | bytes[--length]; /* little endian */
    return word;
}

static uint64_t rotate(uint64_t word, unsigned bits)
{
    return word << bits | word >> (64 - bits);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);

    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static uint64_t siphash13(const uint64_t secret[2], const uint8_t *key, size_t length)
{
    uint64_t v[4] = {
        secret[0] ^ UINT64_C(0x736f6d6570736575), /* "somepseudorandomlygeneratedbytes" */
        secret[1] ^ UINT64_C(0x646f72616e646f6d),
        secret[0] ^ UINT64_C(0x6c7967656e657261),
        secret[1] ^ UINT64_C(0x7465646279746573),
    };
    uint64_t last = (uint64_t)length << 56; /* the top byte of the last word is the length modulo 256 */

    for (; length >= 8; length -= 8, key += 8) {
        uint64_t word = load64(key, 8);

        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    last |= load64(key, length);
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;

    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* ---- table --------------------------------------------------------------------------------------------------- */

uint64_t aq_map_hash(const aq_map *map, const void *key, size_t key_length)
{
    uint64_t hash = siphash13(map->secret, key, key_length);

    return hash == 0 ? 1 : hash; /* 0 marks an empty entry */
}

/* Returns the index of the key's entry, or of the empty entry where it belongs. The table always has an empty entry. */
static uint32_t locate(const aq_map *map, uint64_t hash, const void *key, size_t key_length)
{
    uint32_t mask = map->capacity - 1;
    uint32_t i = (uint32_t)hash & mask;

    for (; map->entries[i].hash != 0; i = (i + 1) & mask) {
        const aq_map_entry *entry = &map->entries[i];

        if (entry->hash == hash && entry->key_length == key_length && memcmp(entry->key, key, key_length) == 0)
            break;
    }
    return i;
}

int aq_map_init(aq_map *map, const uint8_t secret[16])
{
    map->entries = calloc(FIRST_CAPACITY, sizeof(*map->entries));
    if (map->entries == NULL)
        return AQ_ERR_MEMORY;
    map->capacity = FIRST_CAPACITY;
    map->length = 0;
    map->secret[0] = load64(secret, 8);
    map->secret[1] = load64(secret + 8, 8);
    return 0;
}

void aq_map_destroy(aq_map *map)
{
    free(map->entries);
    map->entries = NULL;
    map->capacity = map->length = 0;
}

static int grow(aq_map *map)
{
    aq_map_entry *old = map->entries;
    aq_map_entry *entries;
    uint32_t capacity = map->capacity * 2;
    uint32_t i;

    if (map->capacity >= LAST_CAPACITY)
        return AQ_ERR_MEMORY;
    entries = calloc(capacity, sizeof(*entries));
    if (entries == NULL)
        return AQ_ERR_MEMORY;
    for (i = 0; i < map->capacity; i++) {
        uint32_t to = (uint32_t)old[i].hash & (capacity - 1);

        if (old[i].hash == 0)
            continue;
        while (entries[to].hash != 0)
            to = (to + 1) & (capacity - 1);
        entries[to] = old[i];
    }
    map->entries = entries;
    map->capacity = capacity;
    free(old);
    return 0;
}

int aq_map_put(aq_map *map, const void *key, size_t key_length, void *value)
{
    aq_map_entry *entry;
    uint64_t hash;

    if (key_length > AQ_MAP_KEY_MAX || value == NULL)
        return AQ_ERR_INVALID;
    hash = aq_map_hash(map, key, key_length);
    entry = &map->entries[locate(map, hash, key, key_length)];
    if (entry->hash == 0) {
        if (map->length >= map->capacity / 4 * 3) {
            if (grow(map) != 0)
                return AQ_ERR_MEMORY;
            entry = &map->entries[locate(map, hash, key, key_length)];
        }
        entry->hash = hash;
        entry->key_length = (uint8_t)key_length;
        memcpy(entry->key, key, key_length);
        map->length++;
    }
    entry->value = value;
    return 0;
}

void *aq_map_get(const aq_map *map, const void *key, size_t key_length)
{
    const aq_map_entry *entry;

    if (key_length > AQ_MAP_KEY_MAX)
        return NULL;
    entry = &map->entries[locate(map, aq_map_hash(map, key, key_length), key, key_length)];
    return entry->hash == 0 ? NULL : entry->value;
}

void *aq_map_remove(aq_map *map, const void *key, size_t key_length)
{
    uint32_t mask = map->capacity - 1;
    uint32_t hole, i;
    void *value;

    if (key_length > AQ_MAP_KEY_MAX)
        return NULL;
    hole = locate(map, aq_map_hash(map, key, key_length), key, key_length);
    if (map->entries[hole].hash == 0)
        return NULL;
    value = map->entries[hole].value;

    /* A search cannot cross the hole. So every later entry of the run whose home position is at or before the hole is
     * moved back into it, which moves the hole. */
    for (i = (hole + 1) & mask; map->entries[i].hash != 0; i = (i + 1) & mask) {
        uint32_t home = (uint32_t)map->entries[i].hash & mask;

        if (((i - home) & mask) >= ((i - hole) & mask)) {
            map->entries[hole] = map->entries[i];
            hole = i;
        }
    }
    map->entries[hole].hash = 0;
    map->length--;
    return value;
}

size_t aq_address_key(const aq_address *address, uint8_t key[AQ_ADDRESS_KEY_MAX])
{
    size_t ip_length = address->family == 4 ? 4 : 16;
    size_t at = 0;

    key[at++] = address->family;
    memcpy(key + at, address->ip, ip_length);
    at += ip_length;
    memcpy(key + at, &address->port, sizeof(address->port));
    at += sizeof(address->port);
    if (address->family != 4) {
        memcpy(key + at, &address->scope, sizeof(address->scope));
        at += sizeof(address->scope);
    }
    return at;
}

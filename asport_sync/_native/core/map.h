/* A hash table from short byte keys to pointers, safe with keys chosen by an attacker (SipHash-1-3 with a random key).
 * Used for connection IDs and source addresses. Not thread-safe: one thread, or the caller's lock.
 */
#ifndef AQ_MAP_H
#define AQ_MAP_H

#include "aq.h"

#define AQ_ADDRESS_KEY_MAX 23                   /* bytes of the key of an IPv6 address */
#define AQ_MAP_KEY_MAX (2 * AQ_ADDRESS_KEY_MAX) /* longest key: two addresses; a connection ID has up to 20 bytes */

typedef struct aq_map_entry {
    uint64_t hash; /* 0: empty */
    void *value;
    uint8_t key_length;
    uint8_t key[AQ_MAP_KEY_MAX];
} aq_map_entry;

typedef struct aq_map {
    aq_map_entry *entries; /* open addressing, linear probing, backward-shift deletion; capacity is a power of two */
    uint32_t capacity, length;
    uint64_t secret[2];
} aq_map;

int aq_map_init(aq_map *map, const uint8_t secret[16]); /* starts empty and small; returns 0 or AQ_ERR_MEMORY */
void aq_map_destroy(aq_map *map);
/* Adds the key or replaces its value. Returns 0, AQ_ERR_MEMORY or AQ_ERR_INVALID (key too long, value NULL). */
int aq_map_put(aq_map *map, const void *key, size_t key_length, void *value);
void *aq_map_get(const aq_map *map, const void *key, size_t key_length); /* returns the value, or NULL */
/* Returns the hash of a key; never 0. For tables other than the map that only need a hash. */
uint64_t aq_map_hash(const aq_map *map, const void *key, size_t key_length);
void *aq_map_remove(aq_map *map, const void *key, size_t key_length); /* returns the removed value, or NULL */

/* Writes the key of an address: family, IP address, port and, for IPv6, zone; port and zone in host byte order. Returns
 * its length: 7 or 23. */
size_t aq_address_key(const aq_address *address, uint8_t key[AQ_ADDRESS_KEY_MAX]);

#endif

/* Any sequence of put, get and remove against a plain list. */
#include "fuzz.h"

#include "core/map.h"

#define ENTRIES 128

typedef struct {
    uint8_t key[AQ_MAP_KEY_MAX + 1];
    size_t length;
    void *value; /* NULL: not in the map */
} entry;

static entry model[ENTRIES];
static uint32_t known, present;

static entry *find(const uint8_t *key, size_t length)
{
    for (uint32_t i = 0; i < known; i++) {
        if (model[i].length == length && memcmp(model[i].key, key, length) == 0)
            return &model[i];
    }
    return NULL;
}

/* One of the keys that were used before, or a new one. */
static entry *choose(fuzz_input *input)
{
    uint8_t key[AQ_MAP_KEY_MAX + 1] = {0}, how = fuzz_u8(input);
    const uint8_t *bytes;
    size_t length, got;
    entry *old;

    if ((how & 1) != 0 && known > 0)
        return &model[how / 2 % known];
    length = how / 2 % (AQ_MAP_KEY_MAX + 2);
    bytes = fuzz_bytes(input, length, &got);
    memcpy(key, bytes, got);
    old = find(key, length);
    if (old != NULL || known == ENTRIES)
        return old != NULL ? old : &model[0];
    memcpy(model[known].key, key, sizeof(key));
    model[known].length = length;
    model[known].value = NULL;
    return &model[known++];
}

static void put(aq_map *map, entry *one, fuzz_input *input)
{
    void *value = (void *)(uintptr_t)fuzz_u8(input);
    int result;

    fuzz_allocations_left = fuzz_u8(input) == 1 ? 0 : FUZZ_NO_FAILURE;
    result = aq_map_put(map, one->key, one->length, value);
    fuzz_allocations_left = FUZZ_NO_FAILURE;
    if (one->length > AQ_MAP_KEY_MAX || value == NULL) {
        MUST(result == AQ_ERR_INVALID);
    } else if (result == 0) {
        present += one->value == NULL;
        one->value = value;
    } else {
        MUST(result == AQ_ERR_MEMORY);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input input = {data, size};
    uint8_t secret[16] = {0};
    size_t got;
    const uint8_t *bytes = fuzz_bytes(&input, sizeof(secret), &got);
    aq_map map;

    memcpy(secret, bytes, got);
    known = present = 0;
    if (aq_map_init(&map, secret) != 0)
        return 0;
    while (input.left > 0) {
        uint8_t what = fuzz_u8(&input) % 4;
        entry *one = choose(&input);
        if (what < 2) {
            put(&map, one, &input);
        } else if (what == 2) {
            void *removed = aq_map_remove(&map, one->key, one->length);
            MUST(removed == one->value);
            present -= removed != NULL;
            one->value = NULL;
        } else {
            MUST(aq_map_get(&map, one->key, one->length) == one->value);
        }
        MUST(map.length == present && map.length < map.capacity);
    }
    for (uint32_t i = 0; i < known; i++)
        MUST(aq_map_get(&map, model[i].key, model[i].length) == model[i].value);
    aq_map_destroy(&map);
    return 0;
}

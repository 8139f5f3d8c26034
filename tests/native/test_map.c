/* The hash table, against vectors and a model. */
#include "core/map.h"

#include "check.h"

#include <stdlib.h>

#define WATCHDOG_SECONDS 90

static const uint8_t SECRET[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static int values[4096]; /* their addresses are what the maps hold */

/* The hash that a map with this secret gives a key, as its only entry tells. */
static uint64_t hash_in_map(const uint8_t secret[16], const uint8_t *key, size_t length)
{
    aq_map map;
    uint64_t hash = 0;
    uint32_t i;

    CHECK_INT(aq_map_init(&map, secret), 0);
    CHECK_INT(aq_map_put(&map, key, length, &values[0]), 0);
    for (i = 0; i < map.capacity; i++)
        hash |= map.entries[i].hash;
    aq_map_destroy(&map);
    return hash;
}

/* Key 00..0f, message 00..n-1. Computed with a program whose SipHash-2-4 gives the vector printed in the paper. */
static void test_siphash(void)
{
    static const uint64_t expected[] = {
        UINT64_C(0xabac0158050fc4dc), UINT64_C(0xc9f49bf37d57ca93), UINT64_C(0x82cb9b024dc7d44d),
        UINT64_C(0x8bf80ab8e7ddf7fb), UINT64_C(0xcf75576088d38328), UINT64_C(0xdef9d52f49533b67),
        UINT64_C(0xc50d2b50c59f22a7), UINT64_C(0xd3927d989bb11140), UINT64_C(0x369095118d299a8e),
        UINT64_C(0x25a48eb36c063de4), UINT64_C(0x79de85ee92ff097f), UINT64_C(0x70c118c1f94dc352),
        UINT64_C(0x78a384b157b4d9a2), UINT64_C(0x306f760c1229ffa7), UINT64_C(0x605aa111c0f95d34),
        UINT64_C(0xd320d86d2a519956), UINT64_C(0xcc4fdd1a7d908b66), UINT64_C(0x9cf2689063dbd80c),
        UINT64_C(0x8ffc389cb473e63e), UINT64_C(0xf21f9de58d297d1c), UINT64_C(0xc0dc2f46a6cce040),
        UINT64_C(0xb992abfe2b45f844), UINT64_C(0x7ffe7b9ba320872e), UINT64_C(0x525a0e7fdae6c123),
        UINT64_C(0xf464aeb267349c8c)};
    uint8_t message[AQ_ARRAY_LENGTH(expected) - 1], other[16];
    size_t i;

    for (i = 0; i < sizeof(message); i++)
        message[i] = (uint8_t)i;
    for (i = 0; i <= sizeof(message); i++)
        CHECK_INT(hash_in_map(SECRET, message, i), expected[i]);

    /* every byte of the secret counts */
    for (i = 0; i < sizeof(other); i++) {
        memcpy(other, SECRET, sizeof(other));
        other[i] ^= 1;
        CHECK(hash_in_map(other, message, 8) != expected[8]);
    }
}

static void test_basics(void)
{
    uint8_t key[AQ_MAP_KEY_MAX + 1] = {0};
    aq_map map;

    CHECK_INT(aq_map_init(&map, SECRET), 0);
    CHECK(aq_map_get(&map, key, 5) == NULL);
    CHECK(aq_map_remove(&map, key, 5) == NULL);
    CHECK_INT(aq_map_put(&map, key, 5, &values[1]), 0);
    CHECK_INT(aq_map_put(&map, key, 6, &values[2]), 0); /* the same bytes and one more: another key */
    CHECK_INT(aq_map_put(&map, key, 0, &values[3]), 0);
    CHECK_INT(aq_map_put(&map, key, AQ_MAP_KEY_MAX, &values[4]), 0);
    CHECK_INT(map.length, 4);
    CHECK(aq_map_get(&map, key, 5) == &values[1]);
    CHECK(aq_map_get(&map, key, 6) == &values[2]);
    CHECK(aq_map_get(&map, key, 0) == &values[3]);
    CHECK(aq_map_get(&map, key, AQ_MAP_KEY_MAX) == &values[4]);
    CHECK(aq_map_get(&map, key, 7) == NULL);

    CHECK_INT(aq_map_put(&map, key, 5, &values[5]), 0); /* replaces */
    CHECK_INT(map.length, 4);
    CHECK(aq_map_get(&map, key, 5) == &values[5]);
    CHECK(aq_map_remove(&map, key, 5) == &values[5]);
    CHECK(aq_map_remove(&map, key, 5) == NULL);
    CHECK(aq_map_get(&map, key, 5) == NULL);
    CHECK_INT(map.length, 3);

    CHECK_INT(aq_map_put(&map, key, AQ_MAP_KEY_MAX + 1, &values[1]), AQ_ERR_INVALID);
    CHECK_INT(aq_map_put(&map, key, 5, NULL), AQ_ERR_INVALID);
    CHECK(aq_map_get(&map, key, AQ_MAP_KEY_MAX + 1) == NULL);
    CHECK(aq_map_remove(&map, key, AQ_MAP_KEY_MAX + 1) == NULL);
    CHECK_INT(map.length, 3);
    aq_map_destroy(&map);
}

static void test_growth(void)
{
    aq_map map;
    uint32_t i, before;

    CHECK_INT(aq_map_init(&map, SECRET), 0);
    CHECK(map.capacity <= 64);
    for (i = 0; i < 4096; i++) {
        before = map.capacity;
        CHECK_INT(aq_map_put(&map, &i, sizeof(i), &values[i]), 0);
        CHECK_INT(map.length, i + 1);
        CHECK(map.length <= map.capacity / 4 * 3);
        CHECK(map.capacity == before || (map.capacity == 2 * before && i == before / 4 * 3));
    }
    for (i = 0; i < 4096; i++)
        CHECK(aq_map_get(&map, &i, sizeof(i)) == &values[i]);
    for (i = 0; i < 4096; i++)
        CHECK(aq_map_remove(&map, &i, sizeof(i)) == &values[i]);
    CHECK_INT(map.length, 0);
    for (i = 0; i < map.capacity; i++)
        CHECK_INT(map.entries[i].hash, 0);
    aq_map_destroy(&map);
}

/* ---- random operations against an array that is searched from end to end ------------------------------------------
 */

#define KEYS 60

struct model {
    uint8_t key[KEYS][AQ_MAP_KEY_MAX];
    size_t length[KEYS];
    int *value[KEYS]; /* NULL: not in the map */
};

/* Keys that all belong within the last two and the first places of a table of 64: long runs that wrap around its end.
 */
static void make_colliding_keys(struct model *model)
{
    uint64_t candidate = 0;
    int i;

    for (i = 0; i < KEYS; candidate++) {
        uint32_t home = (uint32_t)hash_in_map(SECRET, (uint8_t *)&candidate, sizeof(candidate)) & 63;

        if (home < 62 && home != 0)
            continue;
        memcpy(model->key[i], &candidate, sizeof(candidate));
        model->length[i++] = sizeof(candidate);
    }
}

static void make_random_keys(struct model *model, uint64_t *state)
{
    int i, j;

    for (i = 0; i < KEYS; i++) {
        model->length[i] = 1 + check_below(state, AQ_MAP_KEY_MAX);
        for (j = 0; j < AQ_MAP_KEY_MAX; j++)
            model->key[i][j] = (uint8_t)check_random(state);
        model->key[i][0] = (uint8_t)i; /* all different */
    }
}

static void check_against(const aq_map *map, const struct model *model)
{
    uint32_t count = 0, used = 0, i;

    for (i = 0; i < KEYS; i++) {
        CHECK(aq_map_get(map, model->key[i], model->length[i]) == model->value[i]);
        count += model->value[i] != NULL;
    }
    for (i = 0; i < map->capacity; i++)
        used += map->entries[i].hash != 0;
    CHECK_INT(map->length, count);
    CHECK_INT(used, count);
}

static void test_model(struct model *model, uint32_t max, uint64_t seed)
{
    uint64_t state = seed;
    uint32_t count = 0;
    aq_map map;
    int i;

    memset(model->value, 0, sizeof(model->value));
    CHECK_INT(aq_map_init(&map, SECRET), 0);
    for (i = 0; i < 20000; i++) {
        uint32_t k = check_below(&state, KEYS);
        int *value = &values[check_below(&state, 4096)];

        if (check_below(&state, 2) == 0 && (model->value[k] != NULL || count < max)) {
            count += model->value[k] == NULL;
            CHECK_INT(aq_map_put(&map, model->key[k], model->length[k], value), 0);
            model->value[k] = value;
        } else {
            count -= model->value[k] != NULL;
            CHECK(aq_map_remove(&map, model->key[k], model->length[k]) == model->value[k]);
            model->value[k] = NULL;
        }
        if (i % 8 == 0)
            check_against(&map, model);
    }
    check_against(&map, model);
    aq_map_destroy(&map);
}

/* ---- addresses ----------------------------------------------------------------------------------------------- */

static void test_address_key(void)
{
    aq_address base = {.family = 6, .ip = {0x20, 0x01, 0x0d, 0xb8, [15] = 1}, .port = 443, .scope = 2}, other;
    uint8_t key[AQ_ADDRESS_KEY_MAX], again[AQ_ADDRESS_KEY_MAX];
    size_t length, i;

    length = aq_address_key(&base, key);
    CHECK_INT(length, AQ_ADDRESS_KEY_MAX);
    CHECK_INT(aq_address_key(&base, again), length);
    CHECK_BYTES(again, key, length);

    for (i = 0; i < 16; i++) {
        other = base;
        other.ip[i] ^= 0x80;
        CHECK_INT(aq_address_key(&other, again), length);
        CHECK(memcmp(key, again, length) != 0);
    }
    other = base;
    other.port ^= 0x100;
    CHECK_INT(aq_address_key(&other, again), length);
    CHECK(memcmp(key, again, length) != 0);
    other = base;
    other.scope = 3;
    CHECK_INT(aq_address_key(&other, again), length);
    CHECK(memcmp(key, again, length) != 0);

    /* IPv4 uses four bytes of ip; what is in the others does not matter */
    memset(&base, 0, sizeof(base));
    base.family = 4;
    base.ip[0] = 192;
    base.port = 53;
    length = aq_address_key(&base, key);
    CHECK_INT(length, 7);
    other = base;
    memset(other.ip + 4, 0xee, 12);
    CHECK_INT(aq_address_key(&other, again), length);
    CHECK_BYTES(again, key, length);
    other.ip[3] = 1;
    CHECK_INT(aq_address_key(&other, again), length);
    CHECK(memcmp(key, again, length) != 0);
}

int main(void)
{
    static struct model model;
    uint64_t state = 1;

    check_watchdog(WATCHDOG_SECONDS);
    test_siphash();
    test_basics();
    test_growth();
    make_colliding_keys(&model);
    test_model(&model, 48, 1); /* stays within 64 entries, where all keys collide */
    test_model(&model, KEYS, 2);
    make_random_keys(&model, &state);
    test_model(&model, 12, 3);
    test_model(&model, KEYS, 4);
    test_address_key();
    return check_done();
}

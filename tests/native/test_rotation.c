/* A key lives as the current one, then as the one before it, and then no more. */
#include "core/rotation.h"

#include "check.h"

#define LIFETIME 1000U

static void get(aq_rotating_key *key, int before, uint64_t now, uint8_t out[AQ_ROTATING_KEY_LENGTH])
{
    memcpy(out, aq_rotating_key_get(key, before, now), AQ_ROTATING_KEY_LENGTH);
}

static int same(const uint8_t *first, const uint8_t *second)
{
    return memcmp(first, second, AQ_ROTATING_KEY_LENGTH) == 0;
}

int main(void)
{
    aq_rotating_key key;
    uint8_t first[AQ_ROTATING_KEY_LENGTH], second[AQ_ROTATING_KEY_LENGTH], now[AQ_ROTATING_KEY_LENGTH];
    check_watchdog(60);
    aq_rotating_key_init(&key, LIFETIME, 5000);
    get(&key, 0, 5000, first);
    get(&key, 1, 5000, now);
    CHECK(!same(first, now)); /* a token made before the start is no good */
    get(&key, 0, 5999, now);
    CHECK(same(first, now));
    get(&key, 0, 6000, second);
    CHECK(!same(first, second));
    get(&key, 1, 6999, now);
    CHECK(same(first, now));
    get(&key, 1, 7000, now);
    CHECK(same(second, now));
    get(&key, 0, 7000, now);
    CHECK(!same(first, now) && !same(second, now));
    /* The first to ask after a long silence may be for the one before. */
    get(&key, 1, 1000000, first);
    CHECK(same(first, now));
    return check_done();
}

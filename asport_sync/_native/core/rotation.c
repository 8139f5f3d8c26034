#include "core/rotation.h"

void aq_rotating_key_init(aq_rotating_key *key, uint64_t lifetime, uint64_t now)
{
    aq_random(key->keys, sizeof(key->keys));
    key->since = now;
    key->lifetime = lifetime;
}

const uint8_t *aq_rotating_key_get(aq_rotating_key *key, int before, uint64_t now)
{
    if (now - key->since >= key->lifetime) {
        memcpy(key->keys[1], key->keys[0], sizeof(key->keys[0]));
        aq_random(key->keys[0], sizeof(key->keys[0]));
        key->since = now;
    }
    return key->keys[before];
}

/* A secret key that is replaced periodically; the previous one stays available. Not thread-safe: one thread. */
#ifndef AQ_ROTATION_H
#define AQ_ROTATION_H

#include "aq.h"

#define AQ_ROTATING_KEY_LENGTH 32

typedef struct {
    uint8_t keys[2][AQ_ROTATING_KEY_LENGTH]; /* the current key and the previous one */
    uint64_t since;                          /* when the current key was generated, aq_now() */
    uint64_t lifetime;                       /* how long a key is the current one, nanoseconds */
} aq_rotating_key;

void aq_rotating_key_init(aq_rotating_key *key, uint64_t lifetime, uint64_t now);
/* Replaces the current key if it is too old. Returns the current key, or the previous one if `before` is 1; valid until
 * the next call. */
const uint8_t *aq_rotating_key_get(aq_rotating_key *key, int before, uint64_t now);

#endif

/* A secret key that is replaced from time to time, with the one before it still at hand. One thread. */
#ifndef AQ_ROTATION_H
#define AQ_ROTATION_H

#include "aq.h"

#define AQ_ROTATING_KEY_LENGTH 32

typedef struct {
    uint8_t keys[2][AQ_ROTATING_KEY_LENGTH]; /* the current one, and the one before */
    uint64_t since;                          /* when the current one was made, nanoseconds */
    uint64_t lifetime;                       /* of one as the current one, nanoseconds */
} aq_rotating_key;

void aq_rotating_key_init(aq_rotating_key *key, uint64_t lifetime, uint64_t now);
/* The current key, or with `before` 1 the one that was current before it; valid until the next call. */
const uint8_t *aq_rotating_key_get(aq_rotating_key *key, int before, uint64_t now);

#endif

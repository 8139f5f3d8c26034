/* The bytes of a transfer, such that a receiver notices any loss, duplication, reordering, corruption or mix-up.
 *
 * A stream is cut into pages. Each begins with a stamp, which no other page of any stream shares; the rest is a slice
 * of one table of random bytes, from a place that depends on the page. So nothing is generated and nothing copied to
 * send, and verifying is comparing with memory that stays in the cache. */
#ifndef LOAD_PATTERN_H
#define LOAD_PATTERN_H

#include "common.h"

#include <sys/uio.h>

#define PATTERN_PAGE ((size_t)64 * 1024)
/* Pages that a chunk can touch. */
#define PATTERN_PAGES (CHUNK / PATTERN_PAGE + 1)

struct pattern_pieces {
    struct iovec pieces[2 * PATTERN_PAGES];
    uint64_t stamps[PATTERN_PAGES]; /* the pieces point here */
    size_t count;
};

/* Before anything else, once. */
void pattern_prepare(void);

/* The bytes of stream `seed` from `position`, length <= CHUNK, to be sent with sendmsg(). */
void pattern_gather(uint64_t seed, uint64_t position, size_t length, struct pattern_pieces *out);

bool pattern_matches(uint64_t seed, uint64_t position, const uint8_t *data, size_t length);

/* What follows the header of a datagram, length <= DATAGRAM_MAX. */
const uint8_t *pattern_of_datagram(const struct datagram *header);

/* What `check` must be in a datagram of this length. */
uint32_t datagram_check(const struct datagram *header, size_t length);

/* Whole, unchanged, and from a generator. Copies the header out. */
bool datagram_valid(const uint8_t *data, size_t length, struct datagram *header);

#endif

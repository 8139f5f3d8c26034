/* Round trips of a small datagram. */
#ifndef LOAD_ROUNDS_H
#define LOAD_ROUNDS_H

#include "common.h"

/* Sends an echo datagram and waits for it, or for `limit` nanoseconds; others that come meanwhile are dropped. */
bool round_trip(int fd, uint64_t flow, uint64_t sequence, uint64_t limit);

/* Sends until one comes back, so that what is measured then does not include that a tunnel makes itself ready for a new
 * source. Ends the program where none does. */
void round_open(int fd, uint64_t flow);

#endif

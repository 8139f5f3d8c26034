#include "rounds.h"
#include "pattern.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define SIZE 32
#define OPENING_TRIES 25
#define OPENING_WAIT (100 * NSEC_PER_MSEC)

bool round_trip(int fd, uint64_t flow, uint64_t sequence, uint64_t limit)
{
    struct datagram header = {.flags = FLAG_ECHO, .flow = flow, .sequence = sequence};
    struct datagram answer;
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    uint8_t data[DATAGRAM_MAX];
    uint64_t begin = now();
    uint64_t passed;
    ssize_t got;
    header.check = datagram_check(&header, SIZE);
    memcpy(data, &header, sizeof(header));
    memcpy(data + sizeof(header), pattern_of_datagram(&header), SIZE - sizeof(header));
    /* May fail for an earlier one that nobody took; this one then counts as lost. */
    send(fd, data, SIZE, 0);
    for (;;) {
        passed = now() - begin;
        if (passed >= limit || poll(&wanted, 1, (int)((limit - passed) / NSEC_PER_MSEC) + 1) <= 0)
            return false;
        got = recv(fd, data, sizeof(data), MSG_DONTWAIT);
        if (got == SIZE && datagram_valid(data, SIZE, &answer) && answer.flow == flow && answer.sequence == sequence)
            return true;
    }
}

void round_open(int fd, uint64_t flow)
{
    uint64_t at;
    for (at = 0; at < OPENING_TRIES; at++)
        /* The same number each time, one that no measurement uses: on a long path, the answer to an earlier one will
         * do.
         */
        if (round_trip(fd, flow, UINT64_MAX, OPENING_WAIT))
            return;
    fail("no datagram comes back");
}

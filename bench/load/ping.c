/* Round trips of one byte over TCP or of one small datagram. */
#include "common.h"
#include "pattern.h"
#include "rounds.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_SECONDS 5.0
#define LOST_AFTER NSEC_PER_SEC

struct samples {
    uint64_t *nanoseconds;
    size_t count;
    size_t room;
};

static void add(struct samples *samples, uint64_t nanoseconds)
{
    if (samples->count == samples->room) {
        samples->room = samples->room == 0 ? 65536 : 2 * samples->room;
        samples->nanoseconds = realloc(samples->nanoseconds, samples->room * sizeof(uint64_t));
        if (samples->nanoseconds == NULL)
            fail("out of memory");
    }
    samples->nanoseconds[samples->count++] = nanoseconds;
}

static int compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a;
    uint64_t right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static double microseconds(uint64_t nanoseconds)
{
    return (double)nanoseconds * 1e-3;
}

static void print_result(struct samples *samples, uint64_t lost)
{
    double sum = 0;
    size_t last;
    size_t at;
    if (samples->count == 0)
        fail("no answer came");
    qsort(samples->nanoseconds, samples->count, sizeof(uint64_t), compare);
    for (at = 0; at < samples->count; at++)
        sum += microseconds(samples->nanoseconds[at]);
    last = samples->count - 1;
    printf(
        "{\"count\": %zu, \"p50_us\": %.3f, \"p99_us\": %.3f, \"mean_us\": %.3f, \"max_us\": %.3f, \"lost\": %llu}\n",
        samples->count, microseconds(samples->nanoseconds[last / 2]),
        microseconds(samples->nanoseconds[(size_t)((double)last * 0.99)]), sum / (double)samples->count,
        microseconds(samples->nanoseconds[last]), (unsigned long long)lost);
}

/* One byte there and back. */
static void byte_round(int fd, uint8_t value)
{
    uint8_t answer;
    ssize_t got;
    if (!send_all(fd, &value, 1))
        fail("send: %s", strerror(errno));
    got = recv(fd, &answer, 1, 0);
    if (got == 0)
        fail("the connection was closed");
    if (got < 0)
        fail("no answer: %s", strerror(errno));
    if (answer != value)
        fail("another byte came back");
}

static int open_stream(const struct options *options)
{
    struct {
        struct request request;
        uint8_t first;
    } __attribute__((packed)) opening = {.request = {.operation = OPERATION_ECHO}, .first = 0x55};
    uint8_t answer = 0;
    int fd = connect_wait(&options->connect, 0, ANSWER_SECONDS);
    if (fd < 0)
        fail("connect: %s", strerror(errno));
    if (!send_all(fd, &opening, sizeof(opening)) || recv(fd, &answer, 1, 0) != 1 || answer != opening.first)
        fail("no answer to the first byte");
    return fd;
}

int ping_run(const struct options *options)
{
    struct timespec pause = {.tv_sec = (time_t)(options->interval / NSEC_PER_SEC),
                             .tv_nsec = (long)(options->interval % NSEC_PER_SEC)};
    struct samples samples = {0};
    uint64_t flow = random_number();
    uint64_t tries = 0;
    uint64_t lost = 0;
    uint64_t begin;
    uint64_t end;
    int fd;
    if ((options->count > 0) == (options->seconds > 0))
        fail("one of --count and --seconds is needed");
    fd = options->udp ? datagram_socket(&options->connect) : open_stream(options);
    if (options->udp)
        round_open(fd, flow);
    end = now() + to_nanoseconds(options->seconds);
    while (options->count > 0 ? tries < options->count : now() < end) {
        tries++;
        begin = now();
        if (!options->udp)
            byte_round(fd, (uint8_t)tries);
        if (!options->udp || round_trip(fd, flow, tries, LOST_AFTER))
            add(&samples, now() - begin);
        else
            lost++;
        if (options->interval > 0)
            nanosleep(&pause, NULL);
    }
    close(fd);
    print_result(&samples, lost);
    free(samples.nanoseconds);
    return 0;
}

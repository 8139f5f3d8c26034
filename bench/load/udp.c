/* Datagrams at a set rate, counted by the service or, as echoes, here. */
#include "flow.h"
#include "pattern.h"
#include "report.h"
#include "rounds.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
/* Batches a second, as far as BATCH allows: each costs a wakeup, and larger ones are bursts. */
#define BATCHES 10000.0
/* A sender that is behind catches up, but not with more than this at once. */
#define CATCH_UP 0.005
#define QUIET (300 * NSEC_PER_MSEC)
#define QUIET_POLL (50 * NSEC_PER_MSEC)
/* However long it keeps coming. */
#define QUIET_LIMIT (5 * NSEC_PER_SEC)

static struct {
    int fd;
    uint64_t flow;
    size_t size;
    uint32_t flags;
    uint64_t sent;
    uint64_t begin;
    uint64_t end;
} run;

static struct {
    pthread_t thread;
    atomic_bool stop;
    atomic_ullong received; /* the flow's, while the thread counts */
    struct flow flow;
    uint64_t damaged;
} echoes;

/* ---- sending ------------------------------------------------------------------------------------------------------
 */

/* As many as the kernel takes of the next `count`. */
static void send_batch(unsigned count)
{
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH][2];
    struct datagram headers[BATCH];
    unsigned at;
    int sent;
    for (at = 0; at < count; at++) {
        headers[at] = (struct datagram){.flags = run.flags, .flow = run.flow, .sequence = run.sent + at};
        headers[at].check = datagram_check(&headers[at], run.size);
        pieces[at][0] = (struct iovec){.iov_base = &headers[at], .iov_len = sizeof(headers[at])};
        /* sendmmsg() only reads, but iovec has no const. */
        pieces[at][1] = (struct iovec){.iov_base = (void *)(uintptr_t)pattern_of_datagram(&headers[at]),
                                       .iov_len = run.size - sizeof(headers[at])};
        messages[at] = (struct mmsghdr){.msg_hdr = {.msg_iov = pieces[at], .msg_iovlen = 2}};
    }
    sent = sendmmsg(run.fd, messages, count, 0);
    if (sent > 0)
        run.sent += (uint64_t)sent;
    else if (errno != ECONNREFUSED && errno != ENOBUFS && errno != EAGAIN && errno != EINTR)
        fail("send: %s", strerror(errno));
}

static void sleep_until(uint64_t time)
{
    struct timespec until = {.tv_sec = (time_t)(time / NSEC_PER_SEC), .tv_nsec = (long)(time % NSEC_PER_SEC)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void send_all_paced(double rate, double seconds)
{
    double batch = rate / BATCHES;
    double skipped = 0; /* what the sender was too slow for */
    double due;
    double behind;
    uint64_t time;
    uint64_t stop;
    batch = batch < 1 ? 1 : batch > BATCH ? BATCH : batch;
    run.begin = now();
    stop = run.begin + to_nanoseconds(seconds);
    while ((time = now()) < stop) {
        due = to_seconds(time - run.begin) * rate - skipped;
        behind = due - (double)run.sent;
        if (behind > rate * CATCH_UP + BATCH) {
            skipped += behind - rate * CATCH_UP - BATCH;
            behind = rate * CATCH_UP + BATCH;
        }
        if (behind >= batch)
            send_batch(behind > BATCH ? BATCH : (unsigned)behind);
        else
            sleep_until(run.begin + to_nanoseconds(((double)run.sent + skipped + batch) / rate) + 1);
    }
    run.end = now();
}

/* ---- counting -----------------------------------------------------------------------------------------------------
 */

static void *count_echoes(void *unused)
{
    static uint8_t data[BATCH][DATAGRAM_MAX + 1];
    struct pollfd wanted = {.fd = run.fd, .events = POLLIN};
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    struct datagram header;
    int count;
    int at;
    while (!atomic_load(&echoes.stop)) {
        if (poll(&wanted, 1, 20) <= 0)
            continue;
        for (at = 0; at < BATCH; at++) {
            pieces[at] = (struct iovec){.iov_base = data[at], .iov_len = sizeof(data[at])};
            messages[at] = (struct mmsghdr){.msg_hdr = {.msg_iov = &pieces[at], .msg_iovlen = 1}};
        }
        count = recvmmsg(run.fd, messages, BATCH, MSG_DONTWAIT, NULL);
        for (at = 0; at < count; at++) {
            if (!datagram_valid(data[at], messages[at].msg_len, &header))
                echoes.damaged++;
            else if (header.flow == run.flow)
                flow_note(&echoes.flow, header.sequence, messages[at].msg_len);
        }
        atomic_store(&echoes.received, echoes.flow.received);
    }
    return unused;
}

/* What arrived, or came back, so far. */
static struct report count_so_far(const struct options *options)
{
    if (!options->echo)
        return report_ask(&options->service, run.flow);
    return (struct report){.received = atomic_load(&echoes.received)};
}

/* Waits until nothing has arrived for a while. */
static struct report wait_for_quiet(const struct options *options)
{
    struct report report = {0};
    struct report next;
    uint64_t begin = now();
    uint64_t changed = begin;
    while (now() - changed < QUIET && now() - begin < QUIET_LIMIT) {
        sleep_until(now() + QUIET_POLL);
        next = count_so_far(options);
        if (next.received != report.received)
            changed = now();
        report = next;
    }
    return report;
}

int udp_run(const struct options *options)
{
    struct report report;
    uint64_t stray;
    uint64_t damaged;
    double seconds;
    if (options->size < sizeof(struct datagram) || options->size > DATAGRAM_MAX)
        fail("--size is out of range");
    if (options->rate <= 0 || options->seconds <= 0)
        fail("--rate and --seconds are needed");
    run.fd = datagram_socket(&options->connect);
    run.size = (size_t)options->size;
    run.flags = options->echo ? FLAG_ECHO : 0;
    run.flow = random_number();
    /* A sleep ends when it should, not up to 50 us later. */
    prctl(PR_SET_TIMERSLACK, 1UL);
    stray = report_ask(&options->service, 0).stray;
    /* As another flow, so that none of its datagrams are counted. */
    round_open(run.fd, random_number());
    flow_start(&echoes.flow, run.flow);
    if (options->echo && pthread_create(&echoes.thread, NULL, count_echoes, NULL) != 0)
        fail("no thread");
    send_all_paced(options->rate, options->seconds);
    report = wait_for_quiet(options);
    damaged = report_ask(&options->service, run.flow).stray - stray;
    if (options->echo) {
        atomic_store(&echoes.stop, true);
        pthread_join(echoes.thread, NULL);
        report.received = echoes.flow.received;
        report.duplicates = echoes.flow.duplicates;
        report.reordered = echoes.flow.reordered;
        damaged += echoes.damaged;
    }
    flow_end(&echoes.flow);
    seconds = to_seconds(run.end - run.begin);
    printf("{\"sent\": %llu, \"seconds\": %.6f, \"offered_per_second\": %.1f, \"delivered\": %llu, "
           "\"delivered_per_second\": %.1f, \"loss\": %.6f, \"duplicates\": %llu, \"reordered\": %llu, "
           "\"corrupt\": %llu}\n",
           (unsigned long long)run.sent, seconds, (double)run.sent / seconds, (unsigned long long)report.received,
           (double)report.received / seconds, run.sent > 0 ? 1 - (double)report.received / (double)run.sent : 0.0,
           (unsigned long long)report.duplicates, (unsigned long long)report.reordered, (unsigned long long)damaged);
    return 0;
}

/* Connections opened, used for one byte each way and closed: a fixed number of them at any time, in one thread. */
#include "common.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 256
#define POLL_MSEC 50
#define CONCURRENCY_MAX 4096
/* A connection that takes longer is an error. */
#define LIMIT (5 * NSEC_PER_SEC)
/* Pause after an error, so that a tunnel that is gone is not asked a million times. */
#define PAUSE (5 * NSEC_PER_MSEC)

struct slot {
    int fd; /* -1: pauses */
    bool asked;
    uint8_t value;
    uint64_t since;
};

static struct {
    struct address target;
    int poller;
    uint64_t turn;
    uint64_t done;
    uint64_t errors;
    char error[128]; /* the first */
} run;

static void drop(struct slot *slot, const char *reason)
{
    if (run.errors++ == 0)
        snprintf(run.error, sizeof(run.error), "%s", reason);
    if (slot->fd >= 0)
        close(slot->fd);
    slot->fd = -1;
    slot->since = now();
}

/* Also says whether the connection is there: before that, nothing can be sent. */
static bool ask(struct slot *slot)
{
    struct {
        struct request request;
        uint8_t value;
    } __attribute__((packed)) opening = {.request = {.operation = OPERATION_ECHO}, .value = slot->value};
    ssize_t sent = send(slot->fd, &opening, sizeof(opening), MSG_NOSIGNAL);
    if (sent == sizeof(opening)) {
        slot->asked = true;
        return true;
    }
    if (sent < 0 && errno == EAGAIN)
        return false;
    drop(slot, strerror(errno));
    return false;
}

static void start(struct slot *slot)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = slot};
    slot->since = now();
    slot->asked = false;
    slot->value = (uint8_t)run.turn;
    slot->fd = connect_start(&run.target, run.turn++);
    if (slot->fd < 0) {
        drop(slot, strerror(errno));
        return;
    }
    /* On this machine the connection is mostly there when connect() returns, which saves a wait. */
    if (!ask(slot)) {
        if (slot->fd < 0)
            return;
        event.events = EPOLLOUT;
    }
    epoll_ctl(run.poller, EPOLL_CTL_ADD, slot->fd, &event);
}

static void handle(struct slot *slot)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = slot};
    uint8_t answer;
    ssize_t got;
    if (!slot->asked) {
        if (ask(slot))
            epoll_ctl(run.poller, EPOLL_CTL_MOD, slot->fd, &event);
        return;
    }
    got = recv(slot->fd, &answer, 1, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got != 1) {
        drop(slot, got == 0 ? "closed without an answer" : strerror(errno));
        return;
    }
    if (answer != slot->value) {
        drop(slot, "another byte came back");
        return;
    }
    close(slot->fd);
    run.done++;
    start(slot);
}

static void check_slots(struct slot *slots, size_t count)
{
    uint64_t time = now();
    size_t at;
    for (at = 0; at < count; at++) {
        if (slots[at].fd < 0) {
            if (time - slots[at].since >= PAUSE)
                start(&slots[at]);
        } else if (time - slots[at].since >= LIMIT) {
            drop(&slots[at], "no answer in time");
        }
    }
}

int connections_run(const struct options *options)
{
    static struct slot slots[CONCURRENCY_MAX];
    struct epoll_event events[EVENTS];
    uint64_t begin = now();
    uint64_t end = begin + to_nanoseconds(options->seconds);
    uint64_t checked = begin;
    double seconds;
    size_t at;
    int count;
    if (options->concurrency < 1 || options->concurrency > CONCURRENCY_MAX || options->seconds <= 0)
        fail("--concurrency or --seconds is out of range");
    run.target = options->connect;
    run.turn = random_number() % 65536;
    run.poller = epoll_create1(EPOLL_CLOEXEC);
    for (at = 0; at < options->concurrency; at++)
        start(&slots[at]);
    while (now() < end) {
        count = epoll_wait(run.poller, events, EVENTS, run.errors > 0 ? 5 : POLL_MSEC);
        for (at = 0; count > 0 && at < (size_t)count; at++)
            handle(events[at].data.ptr);
        if (now() - checked >= PAUSE) {
            check_slots(slots, (size_t)options->concurrency);
            checked = now();
        }
    }
    seconds = to_seconds(now() - begin);
    if (run.done == 0)
        fail("no connection worked: %s", run.errors > 0 ? run.error : "no answer");
    printf("{\"connections\": %llu, \"seconds\": %.6f, \"per_second\": %.1f, \"errors\": %llu}\n",
           (unsigned long long)run.done, seconds, (double)run.done / seconds, (unsigned long long)run.errors);
    return 0;
}

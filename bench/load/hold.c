/* Many connections at the same time, held open until stdin says otherwise. */
#include "common.h"
#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256
#define POLL_MSEC 10
#define DEFAULT_TIMEOUT 5.0
#define COUNT_MAX 1000000
/* Connections that wait for their first answer; more would only wait in a listen queue. */
#define OPENING_MAX 128
/* How long the service may take to see the end of all connections, and how often it is asked. */
#define CLOSE_LIMIT (30 * NSEC_PER_SEC)
#define CLOSE_POLL (2 * NSEC_PER_MSEC)

enum stage { UNUSED, CONNECTING, WAITING, ANSWERED, SILENT, FAILED };

struct held {
    int fd;
    enum stage stage;
};

static struct {
    const struct options *options;
    struct held *all;
    size_t count;
    size_t tried;
    size_t opened;
    size_t answered;
    size_t waiting; /* for connect() or an answer */
    size_t errors;
    int poller;
    uint8_t value;  /* what they answer now */
    uint64_t moved; /* when there was progress last */
    bool input;     /* there is something at stdin */
} run;

static void settle(struct held *held, enum stage stage)
{
    if (held->stage == CONNECTING || held->stage == WAITING)
        run.waiting--;
    if (held->stage == ANSWERED)
        run.answered--;
    held->stage = stage;
    run.moved = now();
    if (stage == ANSWERED)
        run.answered++;
    if (stage == FAILED) {
        run.errors++;
        close(held->fd);
        held->fd = -1;
    }
}

static void watch(struct held *held, int action, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = held};
    epoll_ctl(run.poller, action, held->fd, &event);
}

static void open_next(void)
{
    struct held *held = &run.all[run.tried];
    held->fd = connect_start(&run.options->connect, run.tried++);
    held->stage = CONNECTING;
    run.waiting++;
    if (held->fd < 0)
        settle(held, FAILED);
    else
        watch(held, EPOLL_CTL_ADD, EPOLLOUT);
}

static void ask_first(struct held *held)
{
    struct {
        struct request request;
        uint8_t value;
    } __attribute__((packed)) opening = {.request = {.operation = OPERATION_ECHO}, .value = run.value};
    if (send(held->fd, &opening, sizeof(opening), MSG_NOSIGNAL) != sizeof(opening)) {
        settle(held, FAILED);
        return;
    }
    run.opened++;
    run.moved = now();
    held->stage = WAITING;
    watch(held, EPOLL_CTL_MOD, EPOLLIN);
}

static void handle(struct held *held)
{
    uint8_t answer;
    ssize_t got;
    if (held->stage == CONNECTING) {
        ask_first(held);
        return;
    }
    got = recv(held->fd, &answer, 1, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    /* A silent one may still answer what was asked long ago. */
    if (held->stage == SILENT && got == 1)
        return;
    settle(held, got == 1 && held->stage == WAITING && answer == run.value ? ANSWERED : FAILED);
}

static void poll_once(int timeout)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(run.poller, events, EVENTS, timeout);
    int at;
    run.input = false;
    for (at = 0; at < count; at++) {
        if (events[at].data.ptr == NULL)
            run.input = true;
        else
            handle(events[at].data.ptr);
    }
}

static bool stands_still(void)
{
    double timeout = run.options->timeout < 0 ? DEFAULT_TIMEOUT : run.options->timeout;
    return now() - run.moved >= to_nanoseconds(timeout);
}

/* Those that have not answered will not be asked again. */
static void give_up_waiting(void)
{
    size_t at;
    for (at = 0; at < run.tried; at++) {
        if (run.all[at].stage == WAITING)
            settle(&run.all[at], SILENT);
        else if (run.all[at].stage == CONNECTING)
            settle(&run.all[at], FAILED);
    }
}

static void open_all(void)
{
    uint64_t begin = now();
    double pace = run.options->pace;
    double due = (double)run.count;
    run.moved = begin;
    while ((run.tried < run.count || run.waiting > 0) && !stands_still()) {
        if (pace > 0)
            due = 1 + to_seconds(now() - begin) * pace;
        while (run.tried < run.count && run.waiting < OPENING_MAX && (double)run.tried < due)
            open_next();
        poll_once(pace > 0 ? 1 : POLL_MSEC);
    }
    give_up_waiting();
    printf("{\"opened\": %zu, \"answered\": %zu, \"errors\": %zu}\n", run.opened, run.answered, run.errors);
}

static void check_all(void)
{
    uint64_t begin = now();
    uint64_t last;
    size_t at;
    run.value++;
    run.moved = begin;
    for (at = 0; at < run.tried; at++) {
        if (run.all[at].stage != ANSWERED)
            continue;
        if (send(run.all[at].fd, &run.value, 1, MSG_NOSIGNAL) != 1) {
            settle(&run.all[at], FAILED);
            continue;
        }
        settle(&run.all[at], WAITING);
        run.waiting++;
    }
    while (run.waiting > 0 && !stands_still())
        poll_once(POLL_MSEC);
    last = run.moved;
    give_up_waiting();
    printf("{\"answered\": %zu, \"seconds\": %.6f}\n", run.answered, to_seconds(last - begin));
}

/* Bulk transfers may come and go meanwhile; all others that are open are counted. */
static uint64_t open_at_service(void)
{
    struct report report = report_ask(&run.options->service, 0);
    return report.open > report.bulk ? report.open - report.bulk : 0;
}

static void close_all(uint64_t before)
{
    struct timespec pause = {.tv_nsec = CLOSE_POLL};
    uint64_t begin = now();
    uint64_t left;
    size_t closed = 0;
    size_t at;
    for (at = 0; at < run.tried; at++) {
        if (run.all[at].fd < 0)
            continue;
        close(run.all[at].fd);
        run.all[at] = (struct held){.fd = -1, .stage = UNUSED};
        closed++;
    }
    run.answered = 0;
    while ((left = open_at_service()) > before && now() - begin < CLOSE_LIMIT)
        nanosleep(&pause, NULL);
    printf("{\"closed\": %zu, \"seconds\": %.6f, \"left\": %llu}\n", closed, to_seconds(now() - begin),
           (unsigned long long)(left > before ? left - before : 0));
}

/* The next line of stdin; NULL at its end. */
static const char *next_command(void)
{
    static char line[64];
    size_t have = 0;
    while (have < sizeof(line) - 1) {
        while (!run.input)
            poll_once(-1);
        if (read(STDIN_FILENO, line + have, 1) != 1)
            return NULL;
        if (line[have] == '\n')
            break;
        have++;
        poll_once(0);
    }
    line[have] = 0;
    return line;
}

int hold_run(const struct options *options)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    const char *command;
    uint64_t before;
    bool has_input;
    if (options->count < 1 || options->count > COUNT_MAX)
        fail("--count is out of range");
    run.options = options;
    run.count = (size_t)options->count;
    run.all = allocate(run.count, sizeof(struct held));
    run.poller = epoll_create1(EPOLL_CLOEXEC);
    before = open_at_service();
    open_all();
    fflush(stdout);
    /* A file cannot be polled, so only a pipe or a terminal gives commands. */
    has_input = epoll_ctl(run.poller, EPOLL_CTL_ADD, STDIN_FILENO, &event) == 0;
    while (has_input && (command = next_command()) != NULL && strcmp(command, "quit") != 0) {
        if (strcmp(command, "check") == 0)
            check_all();
        else if (strcmp(command, "close") == 0)
            close_all(before);
        else
            printf("{\"error\": \"not a command\"}\n");
        fflush(stdout);
    }
    return 0;
}

/* Transfers in bulk. One thread for all streams: what it does for each byte is a copy and a comparison.
 *
 * A source's bytes count when they are verified here. A sink's count when the service says so, on the same connection:
 * for a known size once, at its end and without a half-close, which several tunnels do not carry; else every 100 ms,
 * with the time at which it counted, so that the delay of the answer does not matter. */
#include "pattern.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 64
#define POLL_MSEC 20
#define DEFAULT_TIMEOUT 60.0
#define STREAMS_MAX 20000
/* How long a sink's last count may be on its way. */
#define LAST_COUNT (NSEC_PER_SEC)
/* How long to look for bytes after the last one. */
#define AFTER_END (NSEC_PER_SEC / 4)
#define ERRORS_SHOWN 8

struct stream {
    int fd; /* -1: over */
    bool up;
    bool done;  /* all is verified; fd stays to see that nothing follows */
    bool asked; /* the request is sent */
    uint32_t watched;
    uint64_t seed;
    uint64_t size;
    uint64_t sent;
    uint64_t count;   /* bytes verified at the receiver */
    uint64_t moved;   /* when there was progress last */
    uint64_t counted; /* up: when the service had verified count */
    struct progress progress;
    size_t have; /* bytes of progress */
};

struct transfer {
    struct stream *streams;
    size_t count;
    size_t open; /* neither done nor failed */
    int poller;
    uint64_t start;
    uint64_t from; /* what is counted */
    uint64_t until;
    uint64_t finished; /* when the last stream was done */
    double counted;    /* bytes between from and until */
    bool timed;        /* --seconds */
    size_t failures;
    char errors[ERRORS_SHOWN][160];
    uint8_t buffer[CHUNK];
};

static struct transfer transfer;

static void stop(struct stream *stream, bool abort)
{
    if (stream->fd < 0)
        return;
    if (abort)
        abort_on_close(stream->fd);
    close(stream->fd);
    stream->fd = -1;
}

__attribute__((format(printf, 2, 3))) static void give_up(struct stream *stream, const char *format, ...)
{
    char text[100];
    va_list arguments;
    if (!stream->done)
        transfer.open--;
    stream->done = false;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (transfer.failures < ERRORS_SHOWN)
        snprintf(transfer.errors[transfer.failures], sizeof(transfer.errors[0]), "%s stream %zu: %s",
                 stream->up ? "up" : "down", (size_t)(stream - transfer.streams), json_safe(text));
    transfer.failures++;
    stop(stream, true);
}

static void complete(struct stream *stream, uint64_t time)
{
    stream->done = true;
    stream->moved = time;
    transfer.open--;
    transfer.finished = time;
    if (stream->up)
        stop(stream, false);
}

static void watch(struct stream *stream, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = stream};
    if (stream->watched != events)
        epoll_ctl(transfer.poller, stream->watched == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, stream->fd, &event);
    stream->watched = events;
}

/* Adds bytes that were verified evenly between two times, as far as these are in the time that counts. */
static void count_between(uint64_t bytes, uint64_t begin, uint64_t end)
{
    uint64_t first = begin > transfer.from ? begin : transfer.from;
    uint64_t last = end < transfer.until ? end : transfer.until;
    if (last > first)
        transfer.counted += (double)bytes * (double)(last - first) / (double)(end - begin);
}

/* ---- one stream ---------------------------------------------------------------------------------------------------
 */

static void start_stream(struct stream *stream, const struct options *options, size_t at)
{
    stream->seed = random_number();
    stream->moved = now();
    stream->counted = stream->moved;
    stream->fd = connect_start(&options->connect, at);
    if (stream->fd < 0)
        give_up(stream, "connect: %s", strerror(errno));
    else
        watch(stream, EPOLLOUT);
}

static void ask(struct stream *stream)
{
    struct request request = {.operation = stream->up ? OPERATION_SINK : OPERATION_SOURCE,
                              .flags = stream->up && transfer.timed ? FLAG_PROGRESS : 0,
                              .size = stream->size,
                              .seed = stream->seed};
    /* The first bytes on a connection always find room. */
    if (send(stream->fd, &request, sizeof(request), MSG_NOSIGNAL) != sizeof(request)) {
        give_up(stream, "connect: %s", strerror(errno));
        return;
    }
    stream->asked = true;
    watch(stream, stream->up ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void send_some(struct stream *stream)
{
    uint64_t left = transfer.timed ? UINT64_MAX : stream->size - stream->sent;
    struct pattern_pieces pieces;
    struct msghdr message = {.msg_iov = pieces.pieces};
    ssize_t sent;
    pattern_gather(stream->seed, stream->sent, left < CHUNK ? (size_t)left : CHUNK, &pieces);
    message.msg_iovlen = pieces.count;
    sent = sendmsg(stream->fd, &message, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            give_up(stream, "%s after %llu bytes", strerror(errno), (unsigned long long)stream->sent);
        return;
    }
    stream->sent += (uint64_t)sent;
    stream->moved = now();
    if ((uint64_t)sent == left)
        watch(stream, EPOLLIN);
}

static void take_progress(struct stream *stream)
{
    const struct progress *progress = &stream->progress;
    if (progress->ok != 1) {
        give_up(stream, "the service found something wrong after %llu bytes", (unsigned long long)progress->count);
        return;
    }
    if (progress->count < stream->count || progress->count > stream->sent ||
        (progress->final != 0 && (transfer.timed || progress->count != stream->size))) {
        give_up(stream, "the service's count is wrong");
        return;
    }
    if (progress->count > stream->count)
        stream->moved = now();
    count_between(progress->count - stream->count, stream->counted, progress->nanoseconds);
    stream->count = progress->count;
    stream->counted = progress->nanoseconds;
    if (progress->final != 0)
        complete(stream, now());
}

static void take_pattern(struct stream *stream, size_t length)
{
    uint64_t time = now();
    if (!transfer.timed && length > stream->size - stream->count) {
        give_up(stream, "there are bytes after the end");
        return;
    }
    if (!pattern_matches(stream->seed, stream->count, transfer.buffer, length)) {
        give_up(stream, "wrong bytes after %llu", (unsigned long long)stream->count);
        return;
    }
    stream->count += length;
    stream->moved = time;
    if (time >= transfer.from && time < transfer.until)
        transfer.counted += (double)length;
    if (!transfer.timed && stream->count == stream->size)
        complete(stream, time);
}

static void receive(struct stream *stream)
{
    uint8_t *to = stream->up ? (uint8_t *)&stream->progress + stream->have : transfer.buffer;
    size_t most = stream->up ? sizeof(stream->progress) - stream->have : sizeof(transfer.buffer);
    ssize_t got = recv(stream->fd, to, most, 0);
    if (got < 0) {
        if (errno == EAGAIN || errno == EINTR)
            return;
        if (stream->done)
            stop(stream, false);
        else
            give_up(stream, "%s after %llu bytes", strerror(errno), (unsigned long long)stream->count);
    } else if (got == 0) {
        if (stream->done)
            stop(stream, false);
        else
            give_up(stream, "ended after %llu bytes", (unsigned long long)stream->count);
    } else if (!stream->up) {
        take_pattern(stream, (size_t)got);
    } else {
        stream->have += (size_t)got;
        if (stream->have == sizeof(stream->progress)) {
            stream->have = 0;
            take_progress(stream);
        }
    }
}

static void handle(struct stream *stream, uint32_t events)
{
    if (!stream->asked) {
        ask(stream);
        return;
    }
    /* An answer first: it says why no more can be sent. */
    if ((events & EPOLLIN) || !(events & EPOLLOUT))
        receive(stream);
    if (stream->fd >= 0 && (events & EPOLLOUT))
        send_some(stream);
}

/* ---- the transfer -------------------------------------------------------------------------------------------------
 */

static void fail_stalled(double timeout)
{
    uint64_t time = now();
    size_t at;
    for (at = 0; at < transfer.count; at++) {
        struct stream *stream = &transfer.streams[at];
        if (stream->fd >= 0 && !stream->done && time - stream->moved >= to_nanoseconds(timeout))
            give_up(stream, "no progress for %.1f s, after %llu bytes", timeout, (unsigned long long)stream->count);
    }
}

/* Whether each sink has said what it had at the end. */
static bool counts_are_in(void)
{
    size_t at;
    for (at = 0; at < transfer.count; at++)
        if (transfer.streams[at].up && transfer.streams[at].fd >= 0 && transfer.streams[at].counted < transfer.until)
            return false;
    return true;
}

static bool is_over(void)
{
    uint64_t time = now();
    size_t at;
    if (transfer.timed)
        return transfer.open == 0 || time >= transfer.until + LAST_COUNT || (time >= transfer.until && counts_are_in());
    if (transfer.open > 0)
        return false;
    for (at = 0; at < transfer.count; at++)
        if (transfer.streams[at].fd >= 0)
            return time - transfer.finished >= AFTER_END;
    return true;
}

static void run(double timeout)
{
    struct epoll_event events[EVENTS];
    uint64_t checked = now();
    int count;
    int at;
    while (!is_over()) {
        count = epoll_wait(transfer.poller, events, EVENTS, POLL_MSEC);
        for (at = 0; at < count; at++)
            handle(events[at].data.ptr, events[at].events);
        if (now() - checked >= POLL_MSEC * NSEC_PER_MSEC) {
            fail_stalled(timeout);
            checked = now();
        }
    }
}

static int print_result(void)
{
    uint64_t bytes = 0;
    double seconds;
    size_t at;
    if (transfer.timed) {
        bytes = (uint64_t)transfer.counted;
        seconds = to_seconds(transfer.until - transfer.from);
    } else {
        for (at = 0; at < transfer.count; at++)
            bytes += transfer.streams[at].count;
        seconds = to_seconds((transfer.failures == 0 ? transfer.finished : now()) - transfer.start);
    }
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"ok\": %s, \"errors\": [", (unsigned long long)bytes, seconds,
           transfer.failures == 0 ? "true" : "false");
    for (at = 0; at < transfer.failures && at < ERRORS_SHOWN; at++)
        printf("%s\"%s\"", at > 0 ? ", " : "", transfer.errors[at]);
    if (transfer.failures > ERRORS_SHOWN)
        printf(", \"and %zu more\"", transfer.failures - ERRORS_SHOWN);
    printf("]}\n");
    return transfer.failures == 0 ? 0 : 1;
}

int bulk_run(const struct options *options)
{
    size_t ways = options->direction == DIRECTION_BOTH ? 2 : 1;
    size_t at;
    if (options->direction == 0 || (options->bytes > 0) == (options->seconds > 0))
        fail("--direction and one of --bytes and --seconds are needed");
    transfer.count = (size_t)options->streams * ways;
    if (options->streams < 1 || options->streams > STREAMS_MAX)
        fail("--streams is out of range");
    if (options->bytes > 0 && options->bytes < transfer.count)
        fail("--bytes is less than the number of streams");
    transfer.timed = options->seconds > 0;
    transfer.streams = allocate(transfer.count, sizeof(struct stream));
    transfer.open = transfer.count;
    transfer.poller = epoll_create1(EPOLL_CLOEXEC);
    transfer.start = now();
    transfer.from = transfer.start + to_nanoseconds(options->warmup);
    transfer.until = transfer.from + to_nanoseconds(options->seconds);
    for (at = 0; at < transfer.count; at++) {
        struct stream *stream = &transfer.streams[at];
        stream->up = options->direction == DIRECTION_UP || (ways == 2 && at % 2 == 0);
        if (!transfer.timed)
            stream->size = options->bytes / transfer.count + (at < options->bytes % transfer.count);
        start_stream(stream, options, at);
    }
    run(options->timeout < 0 ? DEFAULT_TIMEOUT : options->timeout);
    for (at = 0; at < transfer.count; at++)
        stop(&transfer.streams[at], transfer.timed);
    return print_result();
}

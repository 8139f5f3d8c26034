/* The service's TCP connections. */
#include "pattern.h"
#include "service.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS 256
#define ACCEPT_AT_ONCE 32
#define TELL_INTERVAL (100 * NSEC_PER_MSEC)
#define TELL_POLL_MSEC 20
/* An echo takes no more than this at once, so that what cannot be sent on at once stays small. */
#define ECHO_CHUNK ((size_t)64 * 1024)

struct peer {
    int fd;
    uint32_t watched; /* epoll events */
    bool polled;      /* is in a worker's poller */
    bool answered;    /* sink: the final answer is sent */
    bool ended;       /* the other side sends no more */
    bool listed;      /* is in worker->telling */
    size_t have;      /* bytes of the request */
    struct request request;
    uint64_t count;   /* bytes verified or sent */
    uint64_t told;    /* when */
    uint8_t *pending; /* echo: what could not be sent yet, owned */
    size_t pending_length;
    struct peer *next; /* in worker->telling */
    struct peer *previous;
};

enum outcome { GOES_ON, IS_OVER };

static bool is_bulk(const struct peer *peer)
{
    return peer->request.operation == OPERATION_SINK || peer->request.operation == OPERATION_SOURCE;
}

static void list(struct worker *worker, struct peer *peer)
{
    peer->listed = true;
    peer->told = now();
    peer->next = worker->telling;
    if (peer->next != NULL)
        peer->next->previous = peer;
    worker->telling = peer;
}

static void discard(struct worker *worker, struct peer *peer)
{
    if (peer->listed) {
        if (peer->next != NULL)
            peer->next->previous = peer->previous;
        if (peer->previous != NULL)
            peer->previous->next = peer->next;
        else
            worker->telling = peer->next;
    }
    if (peer->have == sizeof(peer->request) && is_bulk(peer))
        atomic_fetch_sub(&worker->service->bulk, 1);
    if (peer->have < sizeof(peer->request) || peer->request.operation != OPERATION_REPORT)
        atomic_fetch_sub(&worker->service->open, 1);
    close(peer->fd);
    free(peer->pending);
    free(peer);
}

static enum outcome watch(struct worker *worker, struct peer *peer, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = peer};
    int action = peer->polled ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (peer->polled && peer->watched == events)
        return GOES_ON;
    peer->polled = true;
    peer->watched = events;
    return epoll_ctl(worker->poller, action, peer->fd, &event) == 0 ? GOES_ON : IS_OVER;
}

/* ---- sink ---------------------------------------------------------------------------------------------------------
 */

static enum outcome tell(struct peer *peer, bool ok, bool final)
{
    struct progress progress = {.count = peer->count, .nanoseconds = now(), .ok = ok, .final = final};
    peer->told = progress.nanoseconds;
    peer->answered = final;
    /* Part of it sent would be the end of its meaning; the buffer is only that full if nobody reads. */
    return send(peer->fd, &progress, sizeof(progress), MSG_NOSIGNAL) == sizeof(progress) ? GOES_ON : IS_OVER;
}

static enum outcome sink(struct worker *worker, struct peer *peer, const uint8_t *data, size_t length)
{
    uint64_t size = peer->request.size;
    if (peer->answered) {
        atomic_fetch_add(&worker->service->surplus, length);
        return GOES_ON;
    }
    if ((size > 0 && length > size - peer->count) || !pattern_matches(peer->request.seed, peer->count, data, length))
        return tell(peer, false, true);
    peer->count += length;
    return size > 0 && peer->count == size ? tell(peer, true, true) : GOES_ON;
}

static enum outcome sink_end(struct peer *peer)
{
    if (!peer->answered)
        tell(peer, peer->request.size == 0 || peer->request.size == peer->count, true);
    return IS_OVER;
}

static void tell_all(struct worker *worker)
{
    uint64_t time = now();
    struct peer *peer = worker->telling;
    struct peer *next;
    for (; peer != NULL; peer = next) {
        next = peer->next;
        if (!peer->answered && time - peer->told >= TELL_INTERVAL && tell(peer, true, false) == IS_OVER)
            discard(worker, peer);
    }
}

/* ---- source -------------------------------------------------------------------------------------------------------
 */

static enum outcome source(struct worker *worker, struct peer *peer)
{
    uint64_t left = peer->request.size == 0 ? UINT64_MAX : peer->request.size - peer->count;
    struct pattern_pieces pieces;
    struct msghdr message = {.msg_iov = pieces.pieces};
    ssize_t sent;
    pattern_gather(peer->request.seed, peer->count, left < CHUNK ? (size_t)left : CHUNK, &pieces);
    message.msg_iovlen = pieces.count;
    sent = sendmsg(peer->fd, &message, MSG_NOSIGNAL);
    if (sent < 0)
        return errno == EAGAIN || errno == EINTR ? GOES_ON : IS_OVER;
    peer->count += (uint64_t)sent;
    if (peer->request.size == 0 || peer->count < peer->request.size)
        return GOES_ON;
    if (peer->ended)
        return IS_OVER;
    shutdown(peer->fd, SHUT_WR);
    return watch(worker, peer, EPOLLIN);
}

/* The other side has stopped sending, which says nothing about receiving, unless there is no end but this. */
static enum outcome source_end(struct worker *worker, struct peer *peer)
{
    peer->ended = true;
    if (peer->request.size == 0 || peer->count == peer->request.size)
        return IS_OVER;
    return watch(worker, peer, EPOLLOUT);
}

/* ---- echo ---------------------------------------------------------------------------------------------------------
 */

static enum outcome echo(struct worker *worker, struct peer *peer, const uint8_t *data, size_t length)
{
    ssize_t sent = send(peer->fd, data, length, MSG_NOSIGNAL);
    size_t left;
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
        return IS_OVER;
    left = length - (sent > 0 ? (size_t)sent : 0);
    if (left == 0)
        return GOES_ON;
    peer->pending = malloc(left);
    if (peer->pending == NULL)
        return IS_OVER;
    memcpy(peer->pending, data + length - left, left);
    peer->pending_length = left;
    return watch(worker, peer, EPOLLOUT);
}

static enum outcome echo_pending(struct worker *worker, struct peer *peer)
{
    ssize_t sent = send(peer->fd, peer->pending, peer->pending_length, MSG_NOSIGNAL);
    if (sent < 0)
        return errno == EAGAIN || errno == EINTR ? GOES_ON : IS_OVER;
    peer->pending_length -= (size_t)sent;
    memmove(peer->pending, peer->pending + sent, peer->pending_length);
    if (peer->pending_length > 0)
        return GOES_ON;
    free(peer->pending);
    peer->pending = NULL;
    return watch(worker, peer, EPOLLIN);
}

/* ---- report -------------------------------------------------------------------------------------------------------
 */

static void give_report(struct service *service, struct peer *peer)
{
    struct report report = {0};
    char line[1024];
    size_t length;
    report.open = atomic_load(&service->open);
    report.bulk = atomic_load(&service->bulk);
    report.accepted = atomic_load(&service->accepted);
    report.surplus = atomic_load(&service->surplus);
    report.stray = atomic_load(&service->stray);
    datagrams_report(peer->request.seed, &report);
    length = report_print(&report, line, sizeof(line));
    send(peer->fd, line, length, MSG_NOSIGNAL); /* a fresh connection has room for a line */
}

/* ---- events -------------------------------------------------------------------------------------------------------
 */

/* The request is complete; data is what came with it. */
static enum outcome begin(struct worker *worker, struct peer *peer, const uint8_t *data, size_t length)
{
    switch (peer->request.operation) {
    case OPERATION_SINK:
        atomic_fetch_add(&worker->service->bulk, 1);
        return sink(worker, peer, data, length);
    case OPERATION_SOURCE:
        atomic_fetch_add(&worker->service->bulk, 1);
        return GOES_ON;
    case OPERATION_ECHO:
        return length > 0 ? echo(worker, peer, data, length) : GOES_ON;
    case OPERATION_REPORT:
        atomic_fetch_sub(&worker->service->open, 1);
        give_report(worker->service, peer);
        return IS_OVER;
    default:
        abort_on_close(peer->fd);
        return IS_OVER;
    }
}

static enum outcome take(struct worker *worker, struct peer *peer, const uint8_t *data, size_t length)
{
    size_t part = sizeof(peer->request) - peer->have;
    if (part > 0) {
        part = part < length ? part : length;
        memcpy((uint8_t *)&peer->request + peer->have, data, part);
        peer->have += part;
        if (peer->have < sizeof(peer->request))
            return GOES_ON;
        return begin(worker, peer, data + part, length - part);
    }
    switch (peer->request.operation) {
    case OPERATION_SINK:
        return sink(worker, peer, data, length);
    case OPERATION_ECHO:
        return echo(worker, peer, data, length);
    default:
        return GOES_ON;
    }
}

static enum outcome receive(struct worker *worker, struct peer *peer)
{
    bool begun = peer->have == sizeof(peer->request);
    size_t most = !begun || peer->request.operation == OPERATION_ECHO ? ECHO_CHUNK : CHUNK;
    ssize_t got = recv(peer->fd, worker->buffer, most, 0);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? GOES_ON : IS_OVER;
    if (got > 0)
        return take(worker, peer, worker->buffer, (size_t)got);
    if (begun && peer->request.operation == OPERATION_SINK)
        return sink_end(peer);
    if (begun && peer->request.operation == OPERATION_SOURCE)
        return source_end(worker, peer);
    return IS_OVER;
}

/* A transfer whose request has come goes to the worker whose turn it is. From here on, only that one touches it. */
static void deal(struct worker *worker, struct peer *peer)
{
    struct service *service = worker->service;
    struct worker *other = &service->workers[atomic_fetch_add(&service->dealt, 1) % WORKERS];
    struct epoll_event event = {.events = peer->request.operation == OPERATION_SOURCE ? EPOLLIN | EPOLLOUT : EPOLLIN,
                                .data.ptr = peer};
    if (other != worker && peer->polled) {
        epoll_ctl(worker->poller, EPOLL_CTL_DEL, peer->fd, NULL);
        peer->polled = false;
    }
    if (other == worker) {
        if (watch(worker, peer, event.events) == IS_OVER)
            discard(worker, peer);
        return;
    }
    peer->polled = true;
    peer->watched = event.events;
    if (epoll_ctl(other->poller, EPOLL_CTL_ADD, peer->fd, &event) != 0) {
        peer->polled = false;
        discard(worker, peer);
    }
}

static void serve(struct worker *worker, struct peer *peer, uint32_t events)
{
    bool begun = peer->have == sizeof(peer->request);
    enum outcome outcome = GOES_ON;
    if (begun && (peer->request.flags & FLAG_PROGRESS) && peer->request.operation == OPERATION_SINK && !peer->listed)
        list(worker, peer);
    if (begun && (events & EPOLLOUT))
        outcome = peer->request.operation == OPERATION_SOURCE ? source(worker, peer) : echo_pending(worker, peer);
    /* Without either, only an error can have woken this; reading says which. */
    if (outcome == GOES_ON && ((events & EPOLLIN) || !(events & EPOLLOUT)))
        outcome = receive(worker, peer);
    if (outcome == IS_OVER)
        discard(worker, peer);
    else if (!begun && peer->have == sizeof(peer->request) && is_bulk(peer))
        deal(worker, peer);
    else if (!peer->polled && watch(worker, peer, EPOLLIN) == IS_OVER)
        discard(worker, peer);
}

static void accept_some(struct worker *worker)
{
    struct peer *peer;
    int fd;
    int at;
    for (at = 0; at < ACCEPT_AT_ONCE; at++) {
        fd = accept4(worker->service->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            /* Out of descriptors: the listener stays ready, and there is nothing to do but wait. */
            if (errno == EMFILE || errno == ENFILE)
                usleep(1000);
            return;
        }
        atomic_fetch_add(&worker->service->accepted, 1);
        atomic_fetch_add(&worker->service->open, 1);
        peer = allocate(1, sizeof(*peer));
        peer->fd = fd;
        serve(worker, peer, EPOLLIN); /* the request is mostly there already */
    }
}

void *worker_run(void *argument)
{
    struct worker *worker = argument;
    struct epoll_event events[EVENTS];
    int count;
    int at;
    for (;;) {
        count = epoll_wait(worker->poller, events, EVENTS, worker->telling != NULL ? TELL_POLL_MSEC : -1);
        for (at = 0; at < count; at++) {
            if (events[at].data.ptr == NULL)
                accept_some(worker);
            else
                serve(worker, events[at].data.ptr, events[at].events);
        }
        if (worker->telling != NULL)
            tell_all(worker);
    }
    return NULL;
}

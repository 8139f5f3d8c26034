/* TCP sockets in the engine's epoll: visitors' connections from listeners, connections to the local service, and
 * attached sockets. Engine thread only.
 *
 *   accepted:  listener readable -> aq_tcp_accept -> stream with Connect -> attach
 *   dialled:   Connect complete (conn_streams.c) -> aq_tcp_dial -> socket connected -> aq_stream_transfer
 *   attached:  aq_stream_attach() -> command -> attach
 *
 * After that aq_tcp_serve runs in every turn in which the stream has work, until the stream ends or a worker takes
 * over.
 */
#include "engine/tcp.h"

#include "engine/fair_share.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define READ_SHORT (64U * 1024U) /* bytes read from a socket per stream and turn */
#define READ_LONG (256U * 1024U)
#define WRITE_BUDGET (256U * 1024U) /* bytes written likewise; one batch of packets is gone before the next comes */
#define ACCEPTS_PER_TURN 64         /* then the other sockets get their turn */
#define CHECKS_PER_TURN 256         /* likewise; a check takes about 2 µs */
#define SHED_PER_CHECK 64           /* connections reset at once to refill the reserve of descriptors */
/* A large transfer: a stream this fast (64 MiB/s) is worth a worker's wake-ups. */
#define LARGE_BYTES (16ULL * 1024 * 1024)
#define LARGE_TIME (250 * AQ_NSEC_PER_MSEC)
/* Back-off of a listener after an error. Without descriptors or memory, connections stay in the backlog; other errors
 * do not tell when they will pass. */
#define BACK_OFF_WITHOUT_RESOURCES (100 * AQ_NSEC_PER_MSEC)
#define BACK_OFF_AFTER_ERROR AQ_NSEC_PER_SEC
/* Period of the reports to Python: at most one of each listener's errors, and as many stream ends as it has asked for.
 */
#define REPORT_PERIOD AQ_NSEC_PER_SEC

/* ---- stream ends --------------------------------------------------------------------------------------------- */

void aq_tcp_count_end(aq_engine *engine, const aq_stream_result *result)
{
    aq_count(&engine->counters, (enum aq_counter)(AQ_C_relays_finished + result->end), 1);
    /* On a timeout the kernel reports the last ICMP error, if there was one, instead of ETIMEDOUT. */
    if (result->end == AQ_END_SOCKET_ERROR &&
        (result->error == ETIMEDOUT || result->error == EHOSTUNREACH || result->error == ENETUNREACH))
        aq_count(&engine->counters, AQ_C_relays_timed_out, 1);
}

static void report_begin(aq_engine *engine, const aq_stream *stream)
{
    aq_event event = {
        .type = AQ_EVENT_STREAM_BEGUN, .connection = stream->connection, .stream = stream->id, .peer = stream->peer};
    if (!atomic_load_explicit(&engine->report_begins, memory_order_relaxed))
        return;
    if (aq_events_backlog(&engine->events) < AQ_EVENTS_WAITING)
        aq_events_post(&engine->events, &event);
    else
        aq_count(&engine->counters, AQ_C_events_dropped, 1); /* would have been one log line */
}

static void report_end(aq_engine *engine, aq_stream *stream)
{
    aq_event event = {.type = AQ_EVENT_STREAM_ENDED,
                      .connection = stream->connection,
                      .stream = stream->id,
                      .peer = stream->peer,
                      .code = engine->now - stream->began,
                      .value = engine->reports_left_out,
                      .result = stream->result};
    uint32_t max = atomic_load_explicit(&engine->report_streams, memory_order_relaxed);
    aq_tcp_count_end(engine, &stream->result);
    aq_count(&engine->counters, AQ_C_streams_attached, 1);
    if (max == 0)
        return;
    if (engine->now - engine->reports_since >= REPORT_PERIOD) {
        engine->reports_since = engine->now;
        engine->reports = 0;
    }
    if (engine->reports < max && aq_events_backlog(&engine->events) < AQ_EVENTS_WAITING) {
        engine->reports++;
        engine->reports_left_out = 0;
        aq_events_post(&engine->events, &event);
    } else {
        engine->reports_left_out++;
        aq_count(&engine->counters, AQ_C_events_dropped, 1); /* would have been one log line */
    }
}

static void end_dialling(aq_engine *engine, aq_stream *stream)
{
    if (!stream->dialling)
        return;
    stream->dialling = 0;
    stream->deadline = UINT64_MAX;
    AQ_LIST_REMOVE(&engine->dialling, stream, socket_link);
}

/* ---- TCP peers that may be gone ---------------------------------------------------------------------------- */

static void cancel_check(aq_engine *engine, aq_stream *stream)
{
    if (!stream->check_scheduled)
        return;
    stream->check_scheduled = 0;
    AQ_LIST_REMOVE(&engine->checks, stream, check_link);
}

/* Schedules a check of a stream whose socket may hold unacknowledged bytes. Only such streams are in the list, so idle
 * streams cost nothing. */
static void schedule_check(aq_engine *engine, aq_stream *stream)
{
    if (stream->check_scheduled || aq_keepalive_due(&stream->keepalive, stream->result.received) == UINT64_MAX)
        return;
    stream->check_scheduled = 1;
    stream->check_at = engine->now + aq_keepalive_period(&stream->keepalive);
    AQ_LIST_ADD_LAST(&engine->checks, stream, check_link);
}

void aq_tcp_run_checks(aq_engine *engine)
{
    /* Streams have the same period, unless the setting has changed since, so the first is due next. */
    for (int i = 0;
         i < CHECKS_PER_TURN && engine->checks.first != NULL && engine->checks.first->check_at <= engine->now; i++) {
        aq_stream *stream = engine->checks.first;
        cancel_check(engine, stream);
        if (aq_stream_check_peer(stream, stream->attached_fd, engine->now))
            aq_engine_touch_stream(engine, stream);
        else
            schedule_check(engine, stream);
    }
}

/* ---- relaying ------------------------------------------------------------------------------------------------ */

/* A connection's accepted sockets that the engine serves are in a list, newest first: the newest is shed first. */
static void enter_sockets(aq_stream *stream)
{
    if (!stream->accepted)
        return;
    AQ_LIST_ADD_FIRST(&stream->credit->sockets, stream, socket_link);
}

static void leave_sockets(aq_stream *stream)
{
    if (!stream->accepted)
        return;
    AQ_LIST_REMOVE(&stream->credit->sockets, stream, socket_link);
}

/* Ends a stream that cannot be served: both its ends see a reset. Closes the socket, on which aq_stream_begin() has
 * run. */
static void give_up(aq_engine *engine, aq_stream *stream, int fd, int error)
{
    cancel_check(engine, stream);
    aq_fd_close(fd);
    stream->result.end = AQ_END_SOCKET_ERROR;
    stream->result.error = error;
    atomic_store(&stream->reset, AQ_STREAM_ABORTED + 1);
    report_end(engine, stream);
    aq_stream_leave(stream);
}

static int watch(aq_engine *engine, const aq_stream *stream, int fd)
{
    struct epoll_event interest = {.events = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                   .data.u64 = (uint64_t)stream->id};
    return epoll_ctl(engine->epoll, EPOLL_CTL_ADD, fd, &interest);
}

/* The socket has its options, from aq_stream_begin() or from its listener (aq_stream_prepare). */
static void attach(aq_engine *engine, aq_stream *stream, int fd)
{
    if (watch(engine, stream, fd) != 0) {
        give_up(engine, stream, fd, errno);
        return;
    }
    stream->attached_fd = fd;
    enter_sockets(stream);
    stream->large_since = engine->now;
    /* epoll reports at once what the socket is ready for; trying it here would often waste a system call. */
    stream->can_read = stream->can_write = 0;
}

void aq_tcp_attach(aq_engine *engine, aq_stream *stream, int fd)
{
    aq_stream_begin(stream, fd);
    attach(engine, stream, fd);
}

/* Returns whether a worker should take over. */
static int wants_worker(aq_engine *engine, aq_stream *stream)
{
    uint64_t moved = stream->result.sent + stream->result.received;
    int is_large_transfer;
    if (moved - stream->large_bytes < LARGE_BYTES)
        return 0;
    is_large_transfer = engine->now - stream->large_since < LARGE_TIME;
    stream->large_bytes = moved;
    stream->large_since = engine->now;
    return is_large_transfer && atomic_load_explicit(&engine->workers_free, memory_order_relaxed) > 0;
}

/* Posts the event that gives a stream and its socket to a worker. The engine does not watch the socket. */
static void leave_to_worker(aq_engine *engine, aq_stream *stream, int fd)
{
    aq_event event = {.type = AQ_EVENT_STREAM_LARGE_TRANSFER,
                      .connection = stream->connection,
                      .stream = stream->id,
                      .peer = stream->peer,
                      .code = engine->now > stream->began ? engine->now - stream->began : 0,
                      .value = (uint64_t)fd};
    atomic_fetch_sub(&engine->workers_free, 1);
    stream->attached_fd = -1;
    aq_count(&engine->counters, AQ_C_streams_shared, 1);
    atomic_store(&stream->owned, 0);
    aq_events_post(&engine->events, &event);
}

/* Hands a stream that the engine relays to a worker. */
static void hand_to_worker(aq_engine *engine, aq_stream *stream)
{
    cancel_check(engine, stream);
    epoll_ctl(engine->epoll, EPOLL_CTL_DEL, stream->attached_fd, NULL);
    leave_sockets(stream);
    leave_to_worker(engine, stream, stream->attached_fd);
}

/* Leaves a stream that begins now to a worker, if its listener wants that and one is free. Returns whether it did. */
static int begin_with_worker(aq_engine *engine, const aq_listener *listener, aq_stream *stream, int fd)
{
    if (!listener->for_workers)
        return 0;
    if (atomic_load_explicit(&engine->workers_free, memory_order_relaxed) <= 0) {
        aq_count(&engine->counters, AQ_C_streams_without_worker, 1);
        return 0;
    }
    if (!listener->inherited || listener->keepalive != stream->keepalive.idle)
        aq_stream_begin(stream, fd);
    leave_to_worker(engine, stream, fd);
    return 1;
}

void aq_tcp_serve(aq_engine *engine, aq_stream *stream)
{
    unsigned need = aq_stream_transfer(stream, stream->attached_fd,
                                       aq_engine_is_interactive(engine) ? READ_SHORT : READ_LONG, WRITE_BUDGET);
    if (need & AQ_NEED_TURN)
        aq_engine_touch_stream(engine, stream);
    if (need & AQ_NEED_MEMORY) {
        if (stream->conn != NULL && stream->conn->quic != NULL && aq_conn_make_room(stream->conn, stream))
            aq_engine_touch_stream(engine, stream);
        else
            aq_engine_pause_stream(engine, stream);
    }
    if (need & AQ_NEED_PAUSE)
        aq_engine_pause_stream(engine, stream);
    if (need != 0) {
        schedule_check(engine, stream);
        if (wants_worker(engine, stream))
            hand_to_worker(engine, stream);
        return;
    }
    end_dialling(engine, stream);
    cancel_check(engine, stream);
    aq_fd_close(stream->attached_fd); /* also removes it from epoll */
    stream->attached_fd = -1;
    leave_sockets(stream);
    report_end(engine, stream);
    aq_stream_leave(stream);
}

/* ---- fair shares of descriptors ------------------------------------------------------------------------------- */

/* Resets the newest connection of the port with the most, if these are more than its fair share. Returns whether there
 * was one. */
static int shed_newest(aq_engine *engine)
{
    aq_stream *stream = aq_fair_shares_newest(engine);
    int fd;
    if (stream == NULL)
        return 0;
    aq_count(&engine->counters, AQ_C_tcp_shed, 1);
    fd = stream->attached_fd;
    stream->attached_fd = -1;
    leave_sockets(stream);
    give_up(engine, stream, fd, EMFILE); /* the visitor sees a reset too, prepared by aq_stream_begin() */
    return 1;
}

/* Resets connections while more are open than the budget allows. Call before accepting: the budget may have shrunk. */
static void check_shares(aq_engine *engine)
{
    if (!aq_fair_shares_check(engine))
        return;
    for (int i = 0; i < SHED_PER_CHECK && aq_fair_shares_exceeded(engine) && shed_newest(engine); i++)
        ;
}

/* Returns whether this connection's port may accept one more. */
static int may_accept(aq_engine *engine, const aq_credit *credit)
{
    switch (aq_fair_shares_allow(engine, credit)) {
    case AQ_SHARE_USED_UP:
        return 0;
    case AQ_SHARE_TO_BE_FREED:
        shed_newest(engine);
        return 1;
    default:
        return 1;
    }
}

/* ---- dialling the local service ------------------------------------------------------------------------------ */

/* Leaves the stream to Python, which knows every address of the service and reports why none of them answers. */
static void leave_to_python(aq_engine *engine, aq_stream *stream)
{
    aq_event event = {.type = AQ_EVENT_STREAM_OPENED,
                      .connection = stream->connection,
                      .stream = stream->id,
                      .length = stream->header_length};
    end_dialling(engine, stream);
    cancel_check(engine, stream);
    if (stream->attached_fd >= 0)
        aq_fd_close(stream->attached_fd);
    stream->attached_fd = -1;
    stream->can_read = stream->can_write = 1;
    aq_count(&engine->counters, AQ_C_tcp_dial_failures, 1);
    memcpy(event.data, stream->header, stream->header_length);
    atomic_store(&stream->owned, 0);
    aq_events_post(&engine->events, &event);
}

static int begin_dialling(aq_engine *engine, aq_stream *stream, const aq_address *to)
{
    aq_sockaddr address;
    socklen_t length = aq_sockaddr_from(&address, to, 0);
    int fd = AQ_FD_OPEN(socket(address.sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (fd < 0)
        return 0;
    aq_stream_begin(stream, fd);
    if ((connect(fd, &address.sa, length) != 0 && errno != EINPROGRESS) || watch(engine, stream, fd) != 0) {
        aq_fd_close(fd);
        return 0;
    }
    stream->attached_fd = fd;
    return 1;
}

void aq_tcp_dial(aq_engine *engine, aq_stream *stream)
{
    const aq_conn *conn = stream->conn;
    stream->dial_wanted = 0;
    if (conn != NULL && conn->quic == NULL)
        return; /* the connection is over and its streams are about to be reset */
    if (atomic_exchange(&stream->owned, 1))
        return; /* the stream has ended with its connection */
    stream->reported = 1;
    if (conn == NULL || !begin_dialling(engine, stream, &conn->dial_to)) {
        leave_to_python(engine, stream);
        return;
    }
    /* Keeps aq_stream_transfer() from using the socket before it is connected. */
    stream->can_read = stream->can_write = 0;
    stream->dialling = 1;
    stream->deadline = engine->now + conn->dial_timeout;
    stream->large_since = engine->now;
    AQ_LIST_ADD_LAST(&engine->dialling, stream, socket_link);
}

/* Handles events of a socket that is being dialled. Returns whether it is, or was, connected; *error: the error that
 * has ended the connection already, as SO_ERROR reports it only once. */
static int dialled(aq_engine *engine, aq_stream *stream, uint32_t events, int *error)
{
    socklen_t length = sizeof(*error);
    if (events & (EPOLLERR | EPOLLHUP))
        getsockopt(stream->attached_fd, SOL_SOCKET, SO_ERROR, error, &length);
    /* ECONNRESET and EPIPE mean that there was a connection; a service that does not listen refuses it instead. */
    if (*error != 0 && *error != ECONNRESET && *error != EPIPE) {
        leave_to_python(engine, stream);
        return 0;
    }
    end_dialling(engine, stream);
    aq_count(&engine->counters, AQ_C_tcp_dialled, 1);
    report_begin(engine, stream);
    return 1;
}

void aq_tcp_dial_timers(aq_engine *engine)
{
    /* All connections of a client have the same timeout, so the first stream is due next. If timeouts differ, a stream
     * that is due may wait behind one that is not. */
    while (engine->dialling.first != NULL && engine->dialling.first->deadline <= engine->now)
        leave_to_python(engine, engine->dialling.first);
}

void aq_tcp_event(aq_engine *engine, aq_id id, uint32_t events)
{
    aq_stream *stream = aq_slab_get(&engine->streams, id);
    int error = 0;
    if (stream == NULL)
        return;
    if (stream->attached_fd >= 0 && (!stream->dialling || dialled(engine, stream, events, &error))) {
        if (events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP))
            stream->can_read = 1;
        if (events & EPOLLPRI)
            stream->urgent = 1;
        if (events & EPOLLRDHUP)
            stream->read_ended = 1;
        if (events & EPOLLOUT)
            stream->can_write = 1;
        if (events & (EPOLLERR | EPOLLHUP))
            aq_stream_socket_failed(stream, stream->attached_fd, error);
        aq_engine_touch_stream(engine, stream);
    }
    aq_slab_put(&engine->streams, id);
}

/* ---- accepting ----------------------------------------------------------------------------------------------- */

static int watch_listener(aq_engine *engine, const aq_listener *listener)
{
    struct epoll_event interest = {.events = EPOLLIN, .data.u64 = (uint64_t)listener->id};
    return epoll_ctl(engine->epoll, EPOLL_CTL_ADD, listener->fd, &interest);
}

int64_t aq_tcp_listen_again(aq_engine *engine, aq_listener *listener)
{
    return watch_listener(engine, listener) == 0 ? AQ_OK : AQ_ERR_SYSTEM - errno;
}

/* Of the listeners of a group, which have the same socket, one is watched. */
static int64_t enter_group(aq_engine *engine, aq_listener *listener, aq_group *group)
{
    int64_t result = group->listeners.watched == NULL ? aq_tcp_listen_again(engine, listener) : AQ_OK;
    if (result != AQ_OK)
        return result;
    listener->group = group;
    aq_group_ref(group);
    listener->member = (aq_member){.id = listener->id, .connection = listener->connection, .fd = listener->fd};
    aq_members_enter(&group->listeners, &listener->member);
    if (group->listeners.watched == NULL)
        group->listeners.watched = &listener->member;
    return AQ_OK;
}

static void leave_group(aq_engine *engine, aq_listener *listener)
{
    aq_members *members = &listener->group->listeners;
    struct epoll_event interest = {.events = EPOLLIN};
    aq_member *next;
    aq_members_leave(members, &listener->member);
    next = members->list.first;
    if (members->watched != NULL || next == NULL)
        return;
    members->watched = next;
    interest.data.u64 = (uint64_t)next->id;
    if (epoll_ctl(engine->epoll, EPOLL_CTL_ADD, next->fd, &interest) != 0) {
        aq_count(&engine->counters, AQ_C_watch_failures, 1);
        aq_engine_back_off(engine, next->id, next->fd, BACK_OFF_WITHOUT_RESOURCES);
    }
}

int64_t aq_tcp_listen(aq_engine *engine, aq_listener *listener, const aq_conn *conn)
{
    aq_group *group = atomic_load(&conn->group);
    int64_t result = group != NULL ? enter_group(engine, listener, group) : aq_tcp_listen_again(engine, listener);
    if (result == AQ_OK) {
        listener->credit = conn->credit;
        aq_credit_ref(conn->credit);
        aq_fair_shares_enter(engine, listener);
        check_shares(engine);
    }
    return result;
}

void aq_tcp_unlisten(aq_engine *engine, aq_listener *listener)
{
    int was_over = listener->over;
    listener->over = 1;
    epoll_ctl(engine->epoll, EPOLL_CTL_DEL, listener->fd, NULL);
    if (listener->credit == NULL || was_over)
        return;
    aq_fair_shares_leave(engine, listener);
    if (listener->group != NULL)
        leave_group(engine, listener);
}

/* Reports an error to Python, at most once per REPORT_PERIOD. The callers count every error. */
static void report_trouble(aq_engine *engine, aq_listener *listener, int error)
{
    aq_event event = {.type = AQ_EVENT_ACCEPT_FAILED,
                      .connection = listener->connection,
                      .socket = listener->id,
                      .code = (uint64_t)error};
    if (listener->reported != 0 && engine->now - listener->reported < REPORT_PERIOD)
        return;
    listener->reported = engine->now;
    aq_events_post(&engine->events, &event);
}

static void accept_failed(aq_engine *engine, aq_listener *listener, int error)
{
    int short_of = error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
    /* No error ends a listener: the tunnel would stay up and look healthy, yet be unreachable. */
    aq_count(&engine->counters, AQ_C_tcp_accept_errors, 1);
    report_trouble(engine, listener, error);
    if (error == EMFILE)
        aq_fair_shares_short(engine);
    aq_engine_back_off(engine, listener->id, listener->fd,
                       short_of ? BACK_OFF_WITHOUT_RESOURCES : BACK_OFF_AFTER_ERROR);
}

/* Resets a connection that was just accepted. An orderly end would look like an answer of the service, and would leave
 * the socket's state (TIME_WAIT) with this machine. */
static void refuse_connection(const aq_listener *listener, int fd)
{
    if (!listener->inherited)
        aq_stream_prepare(fd, 0); /* close() resets it, as it does if the socket has its listener's options */
    aq_fd_close(fd);
}

/* Returns the listener of a member of a group. */
static aq_listener *listener_of(aq_member *member)
{
    return (aq_listener *)(void *)((char *)member - offsetof(aq_listener, member));
}

/* Returns how many visitors' connections are open: of the connection, or of all members of its group. */
static uint32_t open_connections(const aq_listener *listener, const aq_conn *conn)
{
    uint32_t open = 0;
    if (listener->group == NULL)
        return atomic_load(&conn->credit->visitors);
    for (aq_member *member = listener->group->listeners.list.first; member != NULL; member = member->link.next)
        open += atomic_load(&listener_of(member)->credit->visitors);
    return open;
}

/* Returns whether the connection has got the visitor. */
static int take_connection(aq_engine *engine, aq_listener *listener, aq_conn *conn, int fd, const aq_address *visitor)
{
    uint8_t header[AQ_CONNECT_MAX];
    aq_stream *stream;
    int64_t error;
    if (!aq_conn_admits(conn, visitor, open_connections(listener, conn))) {
        refuse_connection(listener, fd);
        return 0;
    }
    stream = aq_conn_new_stream(conn, header, aq_connect_encode(header, visitor), &error);
    if (stream == NULL) {
        refuse_connection(listener, fd);
        aq_count(&engine->counters, AQ_C_tcp_drop_stream_limit, 1);
        report_trouble(engine, listener, 0);
        return 0;
    }
    stream->peer = *visitor;
    stream->accepted = 1;
    atomic_fetch_add(&stream->credit->accepted, 1);
    atomic_fetch_add(&engine->accepted, 1);
    atomic_store(&stream->owned, 1);
    aq_count(&engine->counters, AQ_C_tcp_accepted, 1);
    aq_conn_admit(conn, stream);
    aq_conn_adopt_stream(conn, stream);
    aq_engine_touch(engine, conn);
    report_begin(engine, stream);
    if (begin_with_worker(engine, listener, stream, fd)) {
        aq_slab_put(&engine->streams, stream->id);
        return 1;
    }
    if (listener->inherited && listener->keepalive == stream->keepalive.idle)
        attach(engine, stream, fd); /* the options are its listener's, see aq_stream_prepare() */
    else
        aq_tcp_attach(engine, stream, fd);
    aq_slab_put(&engine->streams, stream->id);
    return 1;
}

/* Accepts the next connection, non-blocking. Returns -1 with errno on failure. */
static int accept_connection(int listener, aq_sockaddr *from)
{
    socklen_t length = sizeof(*from);
    int fd = AQ_FD_OPEN(accept4(listener, &from->sa, &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    int error;
    if (fd >= 0 || (errno != ENOSYS && errno != EPERM))
        return fd;
    /* A container's seccomp filter may know only the older call. */
    length = sizeof(*from);
    fd = AQ_FD_OPEN(accept(listener, &from->sa, &length));
    if (fd < 0 || (fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0))
        return fd;
    error = errno;
    aq_fd_close(fd);
    errno = error;
    return -1;
}

/* Returns whether the error concerns one connection only: accept(2) passes on network errors of the connection it would
 * return. The next connection may succeed at once. */
static int is_of_one_connection(int error)
{
    switch (error) {
    case ECONNABORTED:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case EINTR:
    case ENETDOWN:
    case ENETUNREACH:
    case ENONET:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case EPROTO:
    case ETIMEDOUT:
        return 1;
    default:
        return 0;
    }
}

/* Accepts a connection for `conn`. Returns 0 if nothing more can be accepted now. *is_taken: whether it was given to
 * the connection. */
static int accept_one(aq_engine *engine, aq_listener *listener, aq_conn *conn, int *is_taken)
{
    aq_sockaddr from;
    int fd;
    if (!may_accept(engine, conn->credit)) {
        aq_count(&engine->counters, AQ_C_tcp_accept_deferred, 1);
        report_trouble(engine, listener, EDQUOT); /* accept(2) never returns it */
        aq_engine_back_off(engine, listener->id, listener->fd, BACK_OFF_WITHOUT_RESOURCES);
        return 0;
    }
    fd = accept_connection(listener->fd, &from);
    if (fd >= 0) {
        aq_address visitor;
        aq_sockaddr_to(&from, &visitor);
        *is_taken = take_connection(engine, listener, conn, fd, &visitor);
        return 1;
    }
    if (errno == EAGAIN) {
        listener->inherited = 1; /* the backlog is empty: all later connections inherit from aq_stream_prepare() */
        return 0;
    }
    if (is_of_one_connection(errno)) {
        aq_count(&engine->counters, AQ_C_tcp_accept_errors, 1);
        return 1;
    }
    accept_failed(engine, listener, errno);
    return 0;
}

static aq_candidate candidate_of(void *context, const aq_member *member)
{
    aq_engine *engine = context;
    aq_candidate candidate = {AQ_FITNESS_GONE, 0};
    const aq_conn *conn = aq_slab_get(&engine->connections, member->connection);
    if (conn == NULL)
        return candidate;
    candidate.fitness = aq_conn_fitness(conn);
    if (candidate.fitness == AQ_FITNESS_FIT && aq_member_is_stalled(member, conn->last_received, engine->now))
        candidate.fitness = AQ_FITNESS_SLOW;
    if (candidate.fitness > AQ_FITNESS_FULL && aq_fair_shares_allow(engine, conn->credit) == AQ_SHARE_USED_UP)
        candidate.fitness = AQ_FITNESS_FULL;
    candidate.load = atomic_load(&conn->credit->visitors);
    aq_slab_put(&engine->connections, member->connection);
    return candidate;
}

/* Accepts a connection for a member of a group. Returns 0 if nothing more can be accepted now. */
static int accept_for_group(aq_engine *engine, aq_listener *listener)
{
    aq_members *members = &listener->group->listeners;
    int is_other, is_taken = 0, result = 0;
    aq_member *member = aq_group_choose(listener->group, members, candidate_of, engine, &is_other);
    aq_id id = member != NULL ? member->connection : 0; /* NULL: all are gone; they are about to be removed */
    aq_conn *conn = id != 0 ? aq_slab_get(&engine->connections, id) : NULL;
    if (conn == NULL)
        return 0;
    conn->now = engine->now;
    result = accept_one(engine, listener, conn, &is_taken);
    if (is_taken) {
        aq_members_given(members, member, conn->last_received, engine->now);
        if (is_other)
            aq_count(&engine->counters, AQ_C_balance_passed_over, 1);
    }
    aq_slab_put(&engine->connections, id);
    return result;
}

void aq_tcp_accept(aq_engine *engine, aq_id id)
{
    aq_listener *listener = aq_slab_get(&engine->listeners, id);
    aq_conn *conn;
    int is_taken;
    if (listener == NULL)
        return;
    conn = aq_slab_get(&engine->connections, listener->connection);
    if (conn != NULL && conn->quic != NULL) {
        conn->now = engine->now;
        check_shares(engine);
        for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
            if (!(listener->group != NULL ? accept_for_group(engine, listener)
                                          : accept_one(engine, listener, conn, &is_taken)))
                break;
        }
    } else {
        /* New visitors wait in the backlog until another connection takes over the port, or the port is closed. */
        aq_tcp_unlisten(engine, listener);
    }
    if (conn != NULL)
        aq_slab_put(&engine->connections, listener->connection);
    aq_slab_put(&engine->listeners, id);
}

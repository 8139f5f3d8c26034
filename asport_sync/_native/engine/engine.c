#include "engine/engine.h"

#include "engine/tcp.h"

#include <errno.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Limits per turn of the loop, so that no connection and no direction starves another. */
#define READ_SHORT 2 /* recvmmsg() messages per QUIC socket, up to 64 KiB each */
#define READ_LONG 8
#define TRAINS_SHORT 1 /* segmented sends per connection */
#define TRAINS_LONG 2
/* A turn that read at least this many bytes of QUIC packets has delayed data from TCP and UDP sockets: the next turn
 * sends that data before it reads more packets. After smaller turns everything leaves together, including
 * acknowledgements, in fewer packets. */
#define READ_MUCH (16ULL * 1024)
/* Before an idle wait the engine polls for this long, as long as polling finds work more often than not. That halves
 * the time of a request and its response within one machine or room. An idle engine does not poll. */
#define SPIN_TIME (100 * AQ_NSEC_PER_SEC / 1000000)
#define SPIN_CREDIT 4 /* failures in a row, after as many successes, that end polling */
#define SPIN_EVENTS 1 /* maximum per turn; with more, the processor has other work */
#define SPIN_RETRY 32 /* idle waits until polling is tried again */
#define EPOLL_EVENTS 128
/* Time per turn for streams of ended connections, and how many are handled between two clock readings, so that a large
 * number of them delays nothing else. */
#define ENDING_TIME (2 * AQ_NSEC_PER_MSEC)
#define ENDING_STEP 32
/* Free space in a send pipe that is worth waking its writer for. With less, the writer of a large transfer would be
 * woken for every acknowledgement. */
#define SPACE_WORTH (256ULL * 1024)
#define WAKE_TAG 0ULL
/* The loop sleeps this long after a turn with an error that would be reported again immediately. Long enough for other
 * work on the processor, short compared with any packet's time on the path. Nanoseconds. */
#define AFTER_FAULT (1 * AQ_NSEC_PER_MSEC)
#define CANNOT_WAIT (20 * AQ_NSEC_PER_MSEC) /* if waiting itself fails: commands are still carried out */
/* Consecutive failed reads of a QUIC socket that count as a fault. Single errors may come from the network (ICMP) and
 * are cleared by reading them. */
#define MANY_READ_ERRORS 16

/* ---- timers: a binary heap by expiry ----------------------------------------------------------------------------- */

static void heap_place(aq_engine *engine, uint32_t index, aq_conn *conn)
{
    engine->heap[index] = conn;
    conn->heap_index = index;
}

static void heap_up(aq_engine *engine, uint32_t index)
{
    aq_conn *conn = engine->heap[index];
    while (index > 0 && engine->heap[(index - 1) / 2]->expiry > conn->expiry) {
        heap_place(engine, index, engine->heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    heap_place(engine, index, conn);
}

static void heap_down(aq_engine *engine, uint32_t index)
{
    aq_conn *conn = engine->heap[index];
    for (;;) {
        uint32_t child = 2 * index + 1;
        if (child >= engine->heap_length)
            break;
        if (child + 1 < engine->heap_length && engine->heap[child + 1]->expiry < engine->heap[child]->expiry)
            child++;
        if (engine->heap[child]->expiry >= conn->expiry)
            break;
        heap_place(engine, index, engine->heap[child]);
        index = child;
    }
    heap_place(engine, index, conn);
}

static void heap_remove(aq_engine *engine, aq_conn *conn)
{
    uint32_t index = conn->heap_index;
    if (index == UINT32_MAX)
        return;
    conn->heap_index = UINT32_MAX;
    if (index != --engine->heap_length) {
        heap_place(engine, index, engine->heap[engine->heap_length]);
        heap_up(engine, index);
        heap_down(engine, engine->heap[index]->heap_index);
    }
}

static void heap_update(aq_engine *engine, aq_conn *conn)
{
    if (conn->heap_index == UINT32_MAX) {
        size_t capacity = engine->heap_capacity;
        if (aq_engine_make_room(&engine->heap, engine->heap_length, &capacity, sizeof(aq_conn *)) != AQ_OK) {
            aq_count(&engine->counters, AQ_C_memory_failures, 1);
            aq_engine_touch(engine, conn); /* polled instead of timed until memory is available */
            engine->faulty = 1;
            return;
        }
        engine->heap_capacity = (uint32_t)capacity;
        heap_place(engine, engine->heap_length++, conn);
    }
    heap_up(engine, conn->heap_index);
    heap_down(engine, conn->heap_index);
}

static void end_later(void *context, aq_conn *conn)
{
    aq_engine *engine = context;
    if (conn->ending)
        return;
    conn->ending = 1;
    AQ_LIST_ADD_FIRST(&engine->ending_conns, conn, ending_link);
}

static void has_ended(aq_engine *engine, aq_conn *conn)
{
    if (!conn->ending)
        return;
    conn->ending = 0;
    AQ_LIST_REMOVE(&engine->ending_conns, conn, ending_link);
}

static void forget(void *context, aq_conn *conn)
{
    aq_engine *engine = context;
    has_ended(engine, conn);
    heap_remove(engine, conn);
    if (conn->touched) {
        AQ_LIST_REMOVE(&engine->touched, conn, touched_link);
        conn->touched = 0;
    }
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */

/* The stream keeps its reference, and in_touched stays set, since it is served anyway. */
static void put_among_ending(aq_engine *engine, aq_stream *stream)
{
    AQ_LIST_ADD_LAST(&engine->ending_streams, stream, touched_link);
}

static void serve_ending(aq_engine *engine)
{
    aq_stream *stream = engine->ending_streams.first;
    AQ_LIST_REMOVE(&engine->ending_streams, stream, touched_link);
    stream->in_touched = 0;
    if (stream->attached_fd >= 0)
        aq_tcp_serve(engine, stream);
    aq_slab_put(&engine->streams, stream->id);
}

/* Handles a part of what has ended, as much as fits into ENDING_TIME. */
static void run_ending(aq_engine *engine)
{
    uint64_t until;
    if (engine->ending_conns.first == NULL && engine->ending_streams.first == NULL)
        return;
    until = aq_now() + ENDING_TIME;
    do {
        aq_conn *conn = engine->ending_conns.first;
        if (conn != NULL && !aq_conn_cut_some(conn, ENDING_STEP))
            has_ended(engine, conn);
        for (int i = 0; i < ENDING_STEP && engine->ending_streams.first != NULL; i++)
            serve_ending(engine);
    } while ((engine->ending_conns.first != NULL || engine->ending_streams.first != NULL) && aq_now() < until);
}

/* Serves or dials streams that the last reads touched, or notifies their owners. */
static void run_touched_streams(aq_engine *engine)
{
    /* What is touched meanwhile waits for the next turn. */
    aq_stream *stream = engine->touched_streams.first, *next;
    engine->touched_streams = (aq_stream_list){0};
    for (; stream != NULL; stream = next) {
        next = stream->touched_link.next;
        if (stream->attached_fd >= 0 && atomic_load(&stream->dead) != 0) {
            put_among_ending(engine, stream);
            continue;
        }
        stream->in_touched = 0;
        if (stream->dial_wanted) {
            aq_tcp_dial(engine, stream);
        } else if (stream->attached_fd >= 0) {
            aq_tcp_serve(engine, stream);
        } else {
            uint64_t worth = stream->tx.limit / 4 < SPACE_WORTH ? stream->tx.limit / 4 : SPACE_WORTH;
            unsigned what = AQ_NEED_END;
            if (aq_pipe_written(&stream->rx) != aq_pipe_taken(&stream->rx) || atomic_load(&stream->rx_fin))
                what |= AQ_NEED_DATA;
            if (aq_stream_has_grant(stream))
                what |= AQ_NEED_TOKENS;
            if (aq_pipe_written(&stream->tx) - aq_pipe_released(&stream->tx) + worth <= stream->tx.limit &&
                aq_pipe_readable(&stream->tx) <= AQ_READ_AHEAD / 2)
                what |= AQ_NEED_SPACE;
            aq_stream_signal(stream, what);
        }
        aq_slab_put(&engine->streams, stream->id);
    }
}

static void run_ready(aq_engine *engine)
{
    aq_ready_node *node = aq_ready_take(&engine->ready), *next;
    for (; node != NULL; node = next) {
        next = node->next;
        atomic_store(&node->queued, 0);
        if (node->kind == AQ_READY_STREAM) {
            aq_stream *stream = (aq_stream *)(void *)node;
            aq_id id = stream->id;
            aq_conn_update_stream(stream, engine->now);
            aq_slab_put(&engine->streams, id);
        } else if (node->kind == AQ_READY_CREDIT) {
            aq_credit *credit = (aq_credit *)(void *)node;
            aq_conn *conn = aq_slab_get(&engine->connections, credit->connection);
            if (conn != NULL) {
                aq_conn_return_credit(conn);
                aq_engine_touch(engine, conn);
                aq_slab_put(&engine->connections, credit->connection);
            }
            aq_credit_unref(credit);
        } else if (node->kind == AQ_READY_BUCKET) {
            aq_engine_use_bucket(engine, (aq_bucket *)(void *)node);
        } else {
            aq_assocs *assocs = (aq_assocs *)(void *)node;
            aq_conn *conn = aq_slab_get(&engine->connections, assocs->connection);
            if (conn != NULL) {
                aq_conn_datagrams_ready(conn);
                aq_slab_put(&engine->connections, assocs->connection);
            }
            aq_assocs_unref(assocs);
        }
    }
}

/* ---- endpoints --------------------------------------------------------------------------------------------------- */

static void want_writable(aq_engine *engine, aq_endpoint *endpoint)
{
    struct epoll_event interest = {.events = EPOLLIN | (endpoint->blocked ? EPOLLOUT : 0U), .data.ptr = endpoint};
    epoll_ctl(engine->epoll, EPOLL_CTL_MOD, endpoint->fd, &interest);
    endpoint->waits_writable = endpoint->blocked;
}

/* epoll drops a descriptor only once its last duplicate is closed. The application, or a child that it forked, may hold
 * one. */
static void free_endpoint(aq_engine *engine, aq_endpoint *endpoint)
{
    epoll_ctl(engine->epoll, EPOLL_CTL_DEL, endpoint->fd, NULL);
    aq_endpoint_free(endpoint);
}

/* Frees endpoints that are over. Runs between turns, when no event of the turn can refer to them any more. */
static void sweep_endpoints(aq_engine *engine)
{
    size_t kept = 0;
    for (size_t i = 0; i < engine->endpoints_length; i++) {
        aq_endpoint *endpoint = engine->all_endpoints[i];
        if (endpoint->blocked != endpoint->waits_writable)
            want_writable(engine, endpoint);
        if (endpoint->conns.first == NULL && (endpoint->closed || !endpoint->is_server)) {
            free_endpoint(engine, endpoint);
            engine->endpoints_dirty = 1;
        } else {
            engine->all_endpoints[kept++] = endpoint;
        }
    }
    engine->endpoints_length = kept;
}

/* ---- back-off --------------------------------------------------------------------------------------------------- */

/* Adds the socket of this id to epoll again, unless it is gone. */
static int64_t watch_again(aq_engine *engine, aq_id id)
{
    int64_t result = AQ_OK;
    if (aq_id_kind((uint64_t)id) == AQ_KIND_LISTENER) {
        aq_listener *listener = aq_slab_get(&engine->listeners, id);
        if (listener != NULL) {
            if (!listener->over)
                result = aq_tcp_listen_again(engine, listener);
            aq_slab_put(&engine->listeners, id);
        }
    } else {
        aq_udp *udp = aq_slab_get(&engine->udps, id);
        if (udp != NULL) {
            result = aq_engine_watch_udp(engine, udp);
            aq_slab_put(&engine->udps, id);
        }
    }
    return result;
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static void run_timers(aq_engine *engine)
{
    aq_tcp_dial_timers(engine);
    aq_tcp_run_checks(engine);
    if (engine->backed_off_length > 0)
        aq_engine_run_back_offs(engine, watch_again);
    aq_engine_run_pauses(engine, engine->now);
    if (engine->buckets_at <= engine->now)
        aq_engine_run_buckets(engine);
    while (engine->heap_length > 0 && engine->heap[0]->expiry <= engine->now) {
        aq_conn *conn = engine->heap[0];
        uint64_t began;
        if (conn->quic == NULL && conn->keep_until > engine->now) {
            /* Ended in this turn: the due timer is one from before the end. */
            aq_conn_schedule(conn, engine->now);
            heap_update(engine, conn);
            continue;
        }
        if (conn->quic == NULL) {
            aq_endpoint_remove(conn->endpoint, conn); /* the closing or draining period is over */
            engine->endpoints_dirty = 1;
            continue;
        }
        heap_remove(engine, conn); /* added again after the next write */
        began = aq_endpoint_start_charge(conn);
        aq_conn_timers(conn, engine->now);
        aq_endpoint_charge(conn->endpoint, began);
        aq_engine_touch(engine, conn);
    }
}

static void run_writes(aq_engine *engine)
{
    aq_conn *conn = engine->touched.first, *next;
    int max = aq_engine_is_interactive(engine) ? TRAINS_SHORT : TRAINS_LONG;
    engine->touched = (aq_conn_list){0};
    for (; conn != NULL; conn = next) {
        int trains = 0, more;
        uint64_t began = aq_endpoint_start_charge(conn);
        next = conn->touched_link.next;
        conn->touched = 0;
        do {
            more = aq_conn_write(conn, engine->now);
        } while (more && ++trains < max);
        aq_endpoint_charge(conn->endpoint, began);
        if (conn->endpoint->blocked != conn->endpoint->waits_writable)
            engine->endpoints_dirty = 1; /* EPOLLOUT must be enabled or disabled */
        aq_conn_schedule(conn, engine->now);
        heap_update(engine, conn);
        if (more)
            aq_engine_touch(engine, conn);
    }
}

static void flush(aq_engine *engine)
{
    uint64_t dropped = 0;
    aq_udp_out_flush(engine->host.udp_out, &dropped);
    if (dropped > 0)
        aq_count(&engine->counters, AQ_C_packet_drop_socket, dropped);
    while (engine->closing_fds_length > 0)
        aq_fd_close(engine->closing_fds[--engine->closing_fds_length]);
}

static void nap(uint64_t duration)
{
    struct timespec time = {.tv_nsec = (long)duration};
    nanosleep(&time, NULL);
}

static int has_work(aq_engine *engine)
{
    return engine->touched.first != NULL || engine->touched_streams.first != NULL ||
           engine->ending_conns.first != NULL || engine->ending_streams.first != NULL ||
           atomic_load(&engine->ready.filled) || atomic_load(&engine->commands_filled) ||
           atomic_load(&engine->stopping);
}

static uint64_t next_timer(const aq_engine *engine)
{
    uint64_t expiry = engine->heap_length > 0 ? engine->heap[0]->expiry : UINT64_MAX;
    uint64_t pause = aq_engine_next_pause(engine);
    if (pause < expiry)
        expiry = pause;
    if (engine->buckets_at < expiry)
        expiry = engine->buckets_at;
    if (engine->dialling.first != NULL && engine->dialling.first->deadline < expiry)
        expiry = engine->dialling.first->deadline;
    if (aq_engine_memory_timer(engine) < expiry)
        expiry = aq_engine_memory_timer(engine);
    if (engine->checks.first != NULL && engine->checks.first->check_at < expiry)
        expiry = engine->checks.first->check_at;
    for (size_t i = 0; i < engine->backed_off_length; i++) {
        if (engine->backed_off[i].until < expiry)
            expiry = engine->backed_off[i].until;
    }
    return expiry;
}

/* Waits at most `wait`; NULL: indefinitely. Returns the number of events, negative on an error or a signal. */
static int wait_for_events(aq_engine *engine, struct epoll_event *events, const struct timespec *wait)
{
    int count, milliseconds = -1;
    if (engine->has_epoll_pwait2) {
        count = (int)syscall(SYS_epoll_pwait2, engine->epoll, events, EPOLL_EVENTS, wait, NULL, (size_t)0);
        if (count >= 0 || errno == EINTR)
            return count;
        /* Missing before Linux 5.11; older seccomp filters refuse it with any errno. */
        engine->has_epoll_pwait2 = 0;
    }
    /* Whole milliseconds, rounded up so that a short wait does not become a busy loop. */
    if (wait != NULL)
        milliseconds =
            (int)(wait->tv_sec > 86400 ? 86400000 : wait->tv_sec * 1000 + (wait->tv_nsec + 999999) / 1000000);
    count = epoll_wait(engine->epoll, events, EPOLL_EVENTS, milliseconds);
    if (count < 0 && errno != EINTR)
        count = epoll_pwait(engine->epoll, events, EPOLL_EVENTS, milliseconds, NULL);
    if (count < 0 && errno != EINTR) {
        aq_events_log_once(&engine->events, &engine->logged, AQ_LOGGED_WAIT, "the engine cannot wait for its sockets",
                           errno);
        nap(CANNOT_WAIT);
    }
    return count;
}

static int block_until_work(aq_engine *engine, struct epoll_event *events)
{
    struct timespec timeout = {0, 0}, *wait = &timeout;
    uint64_t now = aq_now();
    int count;
    aq_wake_prepare(&engine->wake);
    if (!has_work(engine)) {
        uint64_t expiry = next_timer(engine);
        if (expiry == UINT64_MAX) {
            wait = NULL;
        } else if (expiry > now) {
            timeout.tv_sec = (time_t)((expiry - now) / AQ_NSEC_PER_SEC);
            timeout.tv_nsec = (long)((expiry - now) % AQ_NSEC_PER_SEC);
        }
    }
    count = wait_for_events(engine, events, wait);
    aq_wake_cancel(&engine->wake);
    engine->idle += aq_now() - now;
    return count;
}

/* Polls for a moment instead of sleeping: waking up takes longer than many answers, especially on a virtual machine.
 * Yields the processor to other threads. Returns -1 if nothing arrived. */
static int spin(aq_engine *engine, struct epoll_event *events)
{
    uint64_t now = aq_now(), timer = next_timer(engine), until = now + SPIN_TIME;
    int count = 0;
    if (timer < until)
        until = timer;
    while (now < until) {
        count = epoll_wait(engine->epoll, events, EPOLL_EVENTS, 0);
        if (count > 0 || has_work(engine))
            return count > 0 ? count : 0;
        sched_yield();
        now = aq_now();
    }
    return -1;
}

/* Returns whether polling is worthwhile now: someone waits for short answers, there is little other work, and polling
 * succeeded more often than not. Otherwise it is tried occasionally. `handled`: events of this turn. */
static int wants_spin(aq_engine *engine, int handled)
{
    if (handled > SPIN_EVENTS || !aq_engine_is_interactive(engine))
        return 0;
    if (engine->spin_credit > 0)
        return 1;
    if (++engine->sleeps_without_spin < SPIN_RETRY)
        return 0;
    engine->sleeps_without_spin = 0;
    return 1;
}

static int sleep_until_work(aq_engine *engine, struct epoll_event *events, int handled)
{
    if (!has_work(engine) && wants_spin(engine, handled)) {
        int found = spin(engine, events);
        if (found >= 0) {
            if (engine->spin_credit < SPIN_CREDIT)
                engine->spin_credit++;
            return found;
        }
        if (engine->spin_credit > 0)
            engine->spin_credit--;
    }
    return block_until_work(engine, events);
}

/* Includes streams whose connection ended earlier while their socket still accepts what was received. */
static void stop_stream(void *object, aq_id id, void *context)
{
    aq_stream *stream = object;
    AQ_UNUSED(id);
    atomic_store(&stream->dead, 2);
    aq_engine_touch_stream(context, stream);
}

static void stop_everything(aq_engine *engine)
{
    for (size_t i = 0; i < engine->endpoints_length; i++) {
        for (aq_conn *conn = engine->all_endpoints[i]->conns.first; conn != NULL; conn = conn->endpoint_link.next)
            aq_conn_stop(conn, engine->now);
    }
    aq_engine_run_pauses(engine, UINT64_MAX);
    aq_slab_each(&engine->streams, stop_stream, engine);
    run_ready(engine);
    while (engine->touched_streams.first != NULL || engine->ending_streams.first != NULL) {
        run_touched_streams(engine);
        while (engine->ending_streams.first != NULL)
            serve_ending(engine);
    }
    run_ready(engine);
    for (size_t i = 0; i < engine->endpoints_length; i++) {
        aq_endpoint *endpoint = engine->all_endpoints[i];
        while (endpoint->conns.first != NULL)
            aq_endpoint_remove(endpoint, endpoint->conns.first);
        free_endpoint(engine, endpoint);
    }
    engine->endpoints_length = 0;
    aq_engine_release_buckets(engine);
    aq_engine_fail_commands(engine);
    flush(engine);
}

/* Moves bytes between the sockets and pipes of attached streams, and from the pipes to the QUIC connections. */
static void move(aq_engine *engine)
{
    run_touched_streams(engine);
    run_ready(engine);
}

static void socket_event(aq_engine *engine, aq_id id, uint32_t events)
{
    switch (aq_id_kind((uint64_t)id)) {
    case AQ_KIND_STREAM:
        aq_tcp_event(engine, id, events);
        break;
    case AQ_KIND_LISTENER:
        aq_tcp_accept(engine, id);
        break;
    default:
        aq_engine_read_udp(engine, id);
        break;
    }
}

static void read_services(aq_engine *engine, const struct epoll_event *events, int count)
{
    for (int i = 0; i < count; i++) {
        if (aq_id_kind(events[i].data.u64) != 0)
            socket_event(engine, (aq_id)events[i].data.u64, events[i].events);
    }
}

static void read_endpoints(aq_engine *engine, const struct epoll_event *events, int count)
{
    engine->read = 0;
    for (int i = 0; i < count; i++) {
        aq_endpoint *endpoint = events[i].data.ptr;
        if (aq_id_kind(events[i].data.u64) != 0 || events[i].data.u64 == WAKE_TAG)
            continue;
        if (events[i].events & EPOLLOUT)
            aq_endpoint_writable(endpoint, engine->now);
        if (events[i].events & (EPOLLIN | EPOLLERR))
            engine->read += aq_endpoint_read(endpoint, engine->receiver,
                                             aq_engine_is_interactive(engine) ? READ_SHORT : READ_LONG, engine->now);
        if (endpoint->read_errors >= MANY_READ_ERRORS)
            engine->faulty = 1;
        engine->endpoints_dirty = 1;
    }
}

int64_t aq_engine_loop(aq_engine *engine)
{
    struct epoll_event events[EPOLL_EVENTS];
    int count = 0;

    prctl(PR_SET_TIMERSLACK, 1UL); /* pacing needs microseconds; the default slack is 50 */
    engine->has_epoll_pwait2 = 1;
    engine->now = aq_now();
    while (!atomic_load(&engine->stopping)) {
        /* 1. commands from other threads, and ready objects: before the packets that may result from them */
        aq_engine_run_commands(engine);
        run_ready(engine);
        /* 2. public and local TCP and UDP sockets; after a large batch of packets their data is sent first, since
         * decrypting such a batch takes longer than all of it */
        read_services(engine, events, count);
        move(engine);
        if (engine->read >= READ_MUCH)
            run_writes(engine);
        /* 3. packets of QUIC sockets; owners of streams are notified, attached streams move their bytes */
        read_endpoints(engine, events, count);
        move(engine); /* what attached streams read leaves in this turn */
        /* 4. due timers, ended streams, free memory */
        run_timers(engine);
        run_ending(engine);
        aq_engine_give_back_memory(engine);
        /* 5. every connection with something to send */
        run_writes(engine);
        /* 6. UDP packets received from QUIC peers leave; descriptors with no more datagrams to send are closed */
        flush(engine);
        if (engine->endpoints_dirty) {
            engine->endpoints_dirty = 0;
            sweep_endpoints(engine);
        }
        if (engine->faulty) {
            engine->faulty = 0;
            nap(AFTER_FAULT);
        }
        /* 7. idle wait until the nearest expiry, unless there is work */
        count = sleep_until_work(engine, events, count);
        engine->now = aq_now();
    }
    stop_everything(engine);
    return AQ_OK;
}

void aq_engine_host_functions(aq_conn_host *host)
{
    host->touch = aq_engine_touch;
    host->touch_stream = aq_engine_touch_stream;
    host->end_later = end_later;
    host->shed_load = aq_engine_shed_load;
    host->forget = forget;
    host->route = aq_endpoint_route;
    host->unroute = aq_endpoint_unroute;
    host->validated = aq_endpoint_validated;
    host->leave_half_open = aq_endpoint_leave_half_open;
    host->transmit = aq_endpoint_transmit;
}

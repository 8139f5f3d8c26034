#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Per turn of the loop, so that no connection and no direction starves another. */
#define READ_BATCHES 2                 /* recvmmsg calls per socket */
#define TRAINS_PER_TURN 2              /* segmented sends per connection */
#define ATTACHED_BUDGET (256U * 1024U) /* bytes per attached stream and direction */
#define EPOLL_EVENTS 128
/* Room in a send pipe that is worth waking its writer for; less, and a bulk sender would be woken for every
 * acknowledgement. */
#define SPACE_WORTH (256ULL * 1024)
#define WAKE_TAG 0ULL
/* Socket buffers below this lose packets when a whole window arrives between two turns of the loop. */
#define BUFFER_WORTH (2 * 1024 * 1024)

/* ---- growing arrays -------------------------------------------------------------------------------------------- */

/* Makes room for one more element. 0 or AQ_ERR_MEMORY. */
static int make_room(void *array, size_t length, size_t *capacity, size_t element)
{
    void **pointer = array;
    size_t bigger = *capacity < 16 ? 16 : *capacity * 2;
    void *moved;
    if (length < *capacity)
        return AQ_OK;
    moved = realloc(*pointer, bigger * element);
    if (moved == NULL)
        return AQ_ERR_MEMORY;
    *pointer = moved;
    *capacity = bigger;
    return AQ_OK;
}

/* ---- commands from other threads -------------------------------------------------------------------------------- */

static int hand_over(aq_engine *engine, aq_engine_command *command)
{
    int accepted;
    command->next = NULL;
    pthread_mutex_lock(&engine->command_mutex);
    accepted = !atomic_load(&engine->stopping);
    if (accepted) {
        if (engine->commands_last != NULL)
            engine->commands_last->next = command;
        else
            engine->commands_first = command;
        engine->commands_last = command;
        atomic_store(&engine->commands_filled, 1);
    }
    pthread_mutex_unlock(&engine->command_mutex);
    if (accepted)
        aq_wake_signal(&engine->wake);
    return accepted;
}

/* What a command carried and nobody took. */
static void release_command(aq_engine *engine, aq_engine_command *command)
{
    if (command->kind == AQ_DO_OPEN_STREAM && command->object != NULL) {
        aq_stream *stream = command->object;
        atomic_store(&stream->dead, 2);
        aq_stream_disown(stream);
        aq_stream_close(stream);
        aq_slab_put(&engine->streams, stream->id);
    }
    if (command->kind == AQ_DO_ATTACH || command->kind == AQ_DO_CLOSE_FD || command->kind == AQ_DO_LISTEN ||
        command->kind == AQ_DO_CONNECT)
        close(command->fd);
}

int64_t aq_engine_ask(aq_engine *engine, aq_engine_command *command)
{
    int64_t result;
    command->waited_for = 1;
    command->done = 0;
    if (!hand_over(engine, command)) {
        release_command(engine, command);
        return AQ_ERR_STOPPED;
    }
    pthread_mutex_lock(&engine->command_mutex);
    while (!command->done)
        pthread_cond_wait(&engine->command_done, &engine->command_mutex);
    result = command->result;
    pthread_mutex_unlock(&engine->command_mutex);
    return result;
}

int64_t aq_engine_tell(aq_engine *engine, const aq_engine_command *command)
{
    aq_engine_command *copy = malloc(sizeof(*copy));
    if (copy == NULL) {
        aq_engine_command released = *command;
        aq_count(&engine->counters, AQ_C_memory_failures, 1);
        release_command(engine, &released);
        return AQ_ERR_MEMORY;
    }
    *copy = *command;
    copy->waited_for = 0;
    if (!hand_over(engine, copy)) {
        release_command(engine, copy);
        free(copy);
        return AQ_ERR_STOPPED;
    }
    return AQ_OK;
}

static void complete(aq_engine *engine, aq_engine_command *command, int64_t result)
{
    if (!command->waited_for) {
        free(command);
        return;
    }
    pthread_mutex_lock(&engine->command_mutex);
    command->result = result;
    command->done = 1;
    pthread_cond_broadcast(&engine->command_done);
    pthread_mutex_unlock(&engine->command_mutex);
}

static aq_engine_command *take_commands(aq_engine *engine)
{
    aq_engine_command *list;
    if (!atomic_load(&engine->commands_filled))
        return NULL;
    pthread_mutex_lock(&engine->command_mutex);
    list = engine->commands_first;
    engine->commands_first = engine->commands_last = NULL;
    atomic_store(&engine->commands_filled, 0);
    pthread_mutex_unlock(&engine->command_mutex);
    return list;
}

void aq_engine_fail_commands(aq_engine *engine)
{
    aq_engine_command *command = take_commands(engine), *next;
    for (; command != NULL; command = next) {
        next = command->next;
        release_command(engine, command);
        complete(engine, command, AQ_ERR_STOPPED);
    }
}

/* ---- what connections ask of the engine ---------------------------------------------------------------------------
 */

static void touch(void *context, aq_conn *conn)
{
    aq_engine *engine = context;
    if (conn->touched)
        return;
    conn->touched = 1;
    conn->touched_next = NULL;
    if (engine->touched_last != NULL)
        engine->touched_last->touched_next = conn;
    else
        engine->touched_first = conn;
    engine->touched_last = conn;
}

static void touch_stream(void *context, aq_stream *stream)
{
    aq_engine *engine = context;
    if (stream->in_touched)
        return;
    if (make_room(&engine->touched_streams, engine->touched_streams_length, &engine->touched_streams_capacity,
                  sizeof(aq_stream *)) != AQ_OK) {
        aq_count(&engine->counters, AQ_C_memory_failures, 1);
        aq_stream_signal(stream, ~0U);
        return;
    }
    if (aq_slab_get(&engine->streams, stream->id) == NULL)
        return;
    stream->in_touched = 1;
    engine->touched_streams[engine->touched_streams_length++] = stream;
}

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
        if (make_room(&engine->heap, engine->heap_length, &capacity, sizeof(aq_conn *)) != AQ_OK) {
            aq_count(&engine->counters, AQ_C_memory_failures, 1);
            touch(engine, conn); /* polled instead of timed until there is memory */
            return;
        }
        engine->heap_capacity = (uint32_t)capacity;
        heap_place(engine, engine->heap_length++, conn);
    }
    heap_up(engine, conn->heap_index);
    heap_down(engine, conn->heap_index);
}

static void forget(void *context, aq_conn *conn)
{
    aq_engine *engine = context;
    heap_remove(engine, conn);
    if (conn->touched) {
        aq_conn **link = &engine->touched_first, *before = NULL;
        while (*link != conn) {
            before = *link;
            link = &before->touched_next;
        }
        *link = conn->touched_next;
        if (engine->touched_last == conn)
            engine->touched_last = before;
        conn->touched = 0;
    }
}

/* ---- attached streams -------------------------------------------------------------------------------------------- */

static void serve_attached(aq_engine *engine, aq_stream *stream)
{
    aq_event event = {.type = AQ_EVENT_STREAM_ENDED, .connection = stream->connection, .stream = stream->id};
    unsigned need = aq_stream_pump(stream, stream->attached_fd, ATTACHED_BUDGET);
    if (need & AQ_NEED_TURN) {
        touch_stream(engine, stream);
        return;
    }
    if (need != 0)
        return;
    close(stream->attached_fd); /* leaves epoll by itself */
    stream->attached_fd = -1;
    event.result = stream->result;
    aq_count(&engine->counters, AQ_C_streams_attached, 1);
    aq_stream_leave(stream);
    aq_events_post(&engine->events, &event);
}

static int64_t attach(aq_engine *engine, aq_stream *stream, int fd)
{
    struct epoll_event interest = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                   .data.u64 = (uint64_t)stream->id};
    if (epoll_ctl(engine->epoll, EPOLL_CTL_ADD, fd, &interest) != 0) {
        int64_t error = AQ_ERR_SYSTEM - errno;
        close(fd);
        atomic_store(&stream->reset, AQ_STREAM_ABORTED + 1);
        aq_stream_leave(stream);
        return error;
    }
    stream->attached_fd = fd;
    touch_stream(engine, stream);
    return AQ_OK;
}

static void socket_event(aq_engine *engine, aq_id id, uint32_t events)
{
    aq_stream *stream = aq_slab_get(&engine->streams, id);
    if (stream == NULL)
        return;
    if (stream->attached_fd >= 0) {
        if (events & (EPOLLIN | EPOLLRDHUP))
            stream->can_read = 1;
        if (events & EPOLLOUT)
            stream->can_write = 1;
        if (events & (EPOLLERR | EPOLLHUP))
            aq_stream_socket_failed(stream, stream->attached_fd);
        touch_stream(engine, stream);
    }
    aq_slab_put(&engine->streams, id);
}

/* Tells owners of what the last reads brought. */
static void run_touched_streams(aq_engine *engine)
{
    size_t count = engine->touched_streams_length;
    for (size_t i = 0; i < count; i++) {
        aq_stream *stream = engine->touched_streams[i];
        stream->in_touched = 0;
        if (stream->attached_fd >= 0) {
            serve_attached(engine, stream);
        } else {
            uint64_t worth = stream->tx.limit / 4 < SPACE_WORTH ? stream->tx.limit / 4 : SPACE_WORTH;
            unsigned what = AQ_NEED_END;
            if (aq_pipe_written(&stream->rx) != aq_pipe_taken(&stream->rx) || atomic_load(&stream->rx_fin))
                what |= AQ_NEED_DATA;
            if (aq_pipe_written(&stream->tx) - aq_pipe_released(&stream->tx) + worth <= stream->tx.limit)
                what |= AQ_NEED_SPACE;
            aq_stream_signal(stream, what);
        }
        aq_slab_put(&engine->streams, stream->id);
    }
    /* What was touched meanwhile moves to the front, for the next turn. */
    engine->touched_streams_length -= count;
    if (count > 0)
        memmove(engine->touched_streams, engine->touched_streams + count,
                engine->touched_streams_length * sizeof(aq_stream *));
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
        } else {
            aq_flows *flows = (aq_flows *)(void *)node;
            aq_conn *conn = aq_slab_get(&engine->connections, flows->connection);
            if (conn != NULL) {
                aq_conn_datagrams_ready(conn);
                aq_slab_put(&engine->connections, flows->connection);
            }
            aq_flows_unref(flows);
        }
    }
}

/* ---- endpoints --------------------------------------------------------------------------------------------------- */

static int64_t adopt_endpoint(aq_engine *engine, aq_endpoint *endpoint)
{
    struct epoll_event interest = {.events = EPOLLIN, .data.ptr = endpoint};
    if (make_room(&engine->all_endpoints, engine->endpoints_length, &engine->endpoints_capacity,
                  sizeof(aq_endpoint *)) != AQ_OK)
        return AQ_ERR_MEMORY;
    if (epoll_ctl(engine->epoll, EPOLL_CTL_ADD, endpoint->fd, &interest) != 0)
        return AQ_ERR_SYSTEM - errno;
    engine->all_endpoints[engine->endpoints_length++] = endpoint;
    return AQ_OK;
}

static void want_writable(aq_engine *engine, aq_endpoint *endpoint)
{
    struct epoll_event interest = {.events = EPOLLIN | (endpoint->blocked ? EPOLLOUT : 0U), .data.ptr = endpoint};
    epoll_ctl(engine->epoll, EPOLL_CTL_MOD, endpoint->fd, &interest);
    endpoint->waits_writable = endpoint->blocked;
}

/* Frees what is over. Runs between turns, when no event of this turn can name it any more. */
static void sweep_endpoints(aq_engine *engine)
{
    size_t kept = 0;
    for (size_t i = 0; i < engine->endpoints_length; i++) {
        aq_endpoint *endpoint = engine->all_endpoints[i];
        if (endpoint->blocked != endpoint->waits_writable)
            want_writable(engine, endpoint);
        if (endpoint->first == NULL && (endpoint->closed || !endpoint->is_server)) {
            aq_endpoint_free(endpoint);
            engine->endpoints_dirty = 1;
        } else {
            engine->all_endpoints[kept++] = endpoint;
        }
    }
    engine->endpoints_length = kept;
}

/* Says once per socket when the kernel's limits are too tight for high rates. */
static void log_buffers(aq_engine *engine, const aq_endpoint *endpoint)
{
    aq_event event = {.type = AQ_EVENT_LOG, .code = 20, .endpoint = endpoint->id};
    int length;
    if (endpoint->receive_buffer >= BUFFER_WORTH && endpoint->send_buffer >= BUFFER_WORTH)
        return;
    length =
        snprintf((char *)event.data, sizeof(event.data),
                 "the kernel grants the QUIC socket %d bytes to receive and %d to send; more avoids losses at high "
                 "rates: sysctl net.core.rmem_max=4194304 net.core.wmem_max=4194304",
                 endpoint->receive_buffer, endpoint->send_buffer);
    event.length = (uint32_t)length < sizeof(event.data) ? (uint32_t)length : (uint32_t)sizeof(event.data) - 1;
    aq_events_post(&engine->events, &event);
}

static int64_t do_listen(aq_engine *engine, aq_engine_command *command)
{
    const aq_listen_options *options = command->input;
    aq_credentials *credentials = aq_slab_get(&engine->credentials, options->credentials);
    aq_endpoint *endpoint;
    int64_t result;
    if (credentials == NULL) {
        close(command->fd);
        return AQ_ERR_GONE;
    }
    endpoint = aq_endpoint_new(&engine->host, command->fd, credentials, &options->transport, NULL, &result);
    aq_slab_put(&engine->credentials, options->credentials);
    if (endpoint == NULL)
        return result;
    memcpy(endpoint->reset_key, options->reset_key, sizeof(endpoint->reset_key));
    endpoint->retry_threshold = options->retry_threshold;
    endpoint->max_half_open = options->max_half_open;
    endpoint->max_connections = options->max_connections;
    result = aq_slab_add(&engine->endpoints, endpoint);
    if (result > 0) {
        int64_t adopted = adopt_endpoint(engine, endpoint);
        endpoint->id = result;
        if (adopted == AQ_OK) {
            log_buffers(engine, endpoint);
            return result;
        }
        aq_slab_remove(&engine->endpoints, endpoint->id);
        result = adopted;
    }
    aq_endpoint_free(endpoint);
    return result;
}

static int64_t do_connect(aq_engine *engine, aq_engine_command *command)
{
    const aq_connect_options *options = command->input;
    aq_credentials *credentials = aq_slab_get(&engine->credentials, options->credentials);
    aq_endpoint *endpoint;
    aq_conn *conn;
    aq_sockaddr remote;
    int64_t result;
    if (credentials == NULL) {
        close(command->fd);
        return AQ_ERR_GONE;
    }
    aq_sockaddr_from(&remote, &options->remote, 0);
    endpoint = aq_endpoint_new(&engine->host, command->fd, credentials, &options->transport, &remote, &result);
    aq_slab_put(&engine->credentials, options->credentials);
    if (endpoint == NULL)
        return result;
    result = adopt_endpoint(engine, endpoint);
    if (result != AQ_OK) {
        aq_endpoint_free(endpoint);
        return result;
    }
    conn = aq_endpoint_connect(endpoint, &remote, options->server_name, options->send_sni, engine->now, &result);
    if (conn == NULL) {
        engine->endpoints_dirty = 1; /* swept, having no connection */
        return result;
    }
    log_buffers(engine, endpoint);
    touch(engine, conn);
    return conn->id;
}

static int64_t do_close_endpoint(aq_engine *engine, aq_engine_command *command)
{
    aq_endpoint *endpoint = aq_slab_get(&engine->endpoints, command->id);
    if (endpoint == NULL)
        return AQ_ERR_GONE;
    endpoint->accepting = 0;
    if (command->a) {
        aq_conn *conn, *next;
        for (conn = endpoint->first; conn != NULL; conn = next) {
            next = conn->next;
            aq_conn_close(conn, AQ_CLOSE_LOCAL, 0, "", engine->now);
        }
    }
    endpoint->closed = 1;
    engine->endpoints_dirty = 1;
    aq_slab_put(&engine->endpoints, command->id);
    aq_slab_remove(&engine->endpoints, command->id);
    return AQ_OK;
}

static int64_t do_set_credentials(aq_engine *engine, aq_engine_command *command)
{
    aq_endpoint *endpoint = aq_slab_get(&engine->endpoints, command->id);
    aq_credentials *credentials;
    if (endpoint == NULL)
        return AQ_ERR_GONE;
    credentials = aq_slab_get(&engine->credentials, (aq_id)command->a);
    if (credentials != NULL) {
        aq_tls_credentials_ref(credentials);
        aq_tls_credentials_unref(endpoint->credentials);
        endpoint->credentials = credentials;
        aq_slab_put(&engine->credentials, (aq_id)command->a);
    }
    aq_slab_put(&engine->endpoints, command->id);
    return credentials != NULL ? AQ_OK : AQ_ERR_GONE;
}

/* ---- carrying out commands ----------------------------------------------------------------------------------------
 */

static int64_t do_for_connection(aq_engine *engine, aq_conn *conn, aq_engine_command *command)
{
    const aq_export_request *request = command->input;
    if (conn->quic == NULL)
        return AQ_ERR_GONE;
    conn->now = engine->now;
    switch (command->kind) {
    case AQ_DO_CLOSE:
        aq_conn_close_application(conn, command->a, command->b, engine->now);
        return AQ_OK;
    case AQ_DO_EXPORT:
        if (conn->state != AQ_CONN_OPEN)
            return AQ_ERR_STATE;
        return aq_tls_session_export(conn->tls, request->label, request->label_length, request->context,
                                     request->context_length, command->output, request->out_length);
    case AQ_DO_SEND:
        return aq_conn_send_command(conn, command->data, command->length);
    case AQ_DO_HEARTBEAT:
        return aq_conn_set_heartbeat(conn, command->data, command->length, command->a, engine->now);
    case AQ_DO_ADMIT:
        return aq_conn_admit(conn, (enum aq_carrier)command->a, command->b != 0);
    case AQ_DO_PROBE:
        return aq_conn_probe(conn, command->a, engine->now);
    case AQ_DO_INFO:
        return aq_conn_get_info(conn, command->output, engine->now);
    case AQ_DO_FLOW_READY:
        aq_conn_flow_ready(conn, (uint16_t)command->a, command->b != 0, engine->now);
        return AQ_OK;
    default:
        return AQ_ERR_INVALID;
    }
}

static int64_t do_stream(aq_engine *engine, aq_engine_command *command)
{
    aq_stream *stream = command->object;
    aq_conn *conn;
    int64_t result = AQ_OK;
    switch (command->kind) {
    case AQ_DO_OPEN_STREAM:
        conn = aq_slab_get(&engine->connections, command->id);
        if (conn != NULL && conn->quic != NULL) {
            conn->now = engine->now;
            aq_conn_adopt_stream(conn, stream);
            touch(engine, conn);
        } else {
            atomic_store(&stream->dead, 1);
            aq_stream_close(stream);
            touch_stream(engine, stream);
            aq_stream_signal(stream, AQ_NEED_END);
        }
        if (conn != NULL)
            aq_slab_put(&engine->connections, command->id);
        break;
    case AQ_DO_ATTACH:
        result = attach(engine, stream, command->fd);
        break;
    default:
        result = aq_conn_refuse_stream(stream);
        break;
    }
    aq_slab_put(&engine->streams, stream->id);
    return result;
}

static int64_t carry_out(aq_engine *engine, aq_engine_command *command)
{
    aq_conn *conn;
    int64_t result;
    switch (command->kind) {
    case AQ_DO_LISTEN:
        return do_listen(engine, command);
    case AQ_DO_CONNECT:
        return do_connect(engine, command);
    case AQ_DO_CLOSE_ENDPOINT:
        return do_close_endpoint(engine, command);
    case AQ_DO_SET_CREDENTIALS:
        return do_set_credentials(engine, command);
    case AQ_DO_OPEN_STREAM:
    case AQ_DO_ATTACH:
    case AQ_DO_REFUSE:
        return do_stream(engine, command);
    case AQ_DO_CLOSE_FD:
        if (make_room(&engine->closing_fds, engine->closing_fds_length, &engine->closing_fds_capacity, sizeof(int)) ==
            AQ_OK) {
            engine->closing_fds[engine->closing_fds_length++] = command->fd;
        } else {
            uint64_t dropped = 0;
            aq_udp_out_flush(engine->host.udp_out, &dropped);
            aq_count(&engine->counters, AQ_C_packet_drop_socket, dropped);
            close(command->fd);
        }
        return AQ_OK;
    default:
        conn = aq_slab_get(&engine->connections, command->id);
        if (conn == NULL)
            return AQ_ERR_GONE;
        result = do_for_connection(engine, conn, command);
        aq_slab_put(&engine->connections, command->id);
        return result;
    }
}

static void run_commands(aq_engine *engine)
{
    aq_engine_command *command = take_commands(engine), *next;
    for (; command != NULL; command = next) {
        next = command->next;
        complete(engine, command, carry_out(engine, command));
    }
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static void run_timers(aq_engine *engine)
{
    while (engine->heap_length > 0 && engine->heap[0]->expiry <= engine->now) {
        aq_conn *conn = engine->heap[0];
        if (conn->quic == NULL) {
            aq_endpoint_remove(conn->endpoint, conn); /* closing or draining is over */
            engine->endpoints_dirty = 1;
            continue;
        }
        heap_remove(engine, conn); /* comes back when it is written */
        aq_conn_timers(conn, engine->now);
        touch(engine, conn);
    }
}

static void run_writes(aq_engine *engine)
{
    aq_conn *conn = engine->touched_first, *next;
    engine->touched_first = engine->touched_last = NULL;
    for (; conn != NULL; conn = next) {
        int trains = 0, more;
        next = conn->touched_next;
        conn->touched = 0;
        do {
            more = aq_conn_write(conn, engine->now);
        } while (more && ++trains < TRAINS_PER_TURN);
        aq_conn_schedule(conn, engine->now);
        heap_update(engine, conn);
        if (more)
            touch(engine, conn);
    }
}

static void flush(aq_engine *engine)
{
    uint64_t dropped = 0;
    aq_udp_out_flush(engine->host.udp_out, &dropped);
    if (dropped > 0)
        aq_count(&engine->counters, AQ_C_packet_drop_socket, dropped);
    while (engine->closing_fds_length > 0)
        close(engine->closing_fds[--engine->closing_fds_length]);
}

static int has_work(aq_engine *engine)
{
    return engine->touched_first != NULL || engine->touched_streams_length > 0 || atomic_load(&engine->ready.filled) ||
           atomic_load(&engine->commands_filled) || atomic_load(&engine->stopping);
}

static int sleep_until_work(aq_engine *engine, struct epoll_event *events)
{
    struct timespec timeout = {0, 0}, *wait = &timeout;
    int count;
    aq_wake_prepare(&engine->wake);
    if (!has_work(engine)) {
        uint64_t now = aq_now();
        uint64_t expiry = engine->heap_length > 0 ? engine->heap[0]->expiry : UINT64_MAX;
        if (expiry == UINT64_MAX) {
            wait = NULL;
        } else if (expiry > now) {
            timeout.tv_sec = (time_t)((expiry - now) / AQ_NSEC_PER_SEC);
            timeout.tv_nsec = (long)((expiry - now) % AQ_NSEC_PER_SEC);
        }
    }
    count = -1;
    errno = ENOSYS;
    if (engine->has_epoll_pwait2)
        count = (int)syscall(SYS_epoll_pwait2, engine->epoll, events, EPOLL_EVENTS, wait, NULL, (size_t)0);
    if (count < 0 && errno == ENOSYS) {
        /* Kernels before 5.11: whole milliseconds, rounded up so that a short wait does not become a busy loop. */
        int milliseconds =
            wait == NULL ? -1
                         : (int)(timeout.tv_sec > 86400 ? 86400000
                                                        : timeout.tv_sec * 1000 + (timeout.tv_nsec + 999999) / 1000000);
        engine->has_epoll_pwait2 = 0;
        count = epoll_wait(engine->epoll, events, EPOLL_EVENTS, milliseconds);
    }
    aq_wake_cancel(&engine->wake);
    return count;
}

/* Also streams whose connection ended before, while their socket still takes what came. */
static void stop_stream(void *object, aq_id id, void *context)
{
    aq_stream *stream = object;
    AQ_UNUSED(id);
    atomic_store(&stream->dead, 2);
    touch_stream(context, stream);
}

static void stop_everything(aq_engine *engine)
{
    for (size_t i = 0; i < engine->endpoints_length; i++) {
        for (aq_conn *conn = engine->all_endpoints[i]->first; conn != NULL; conn = conn->next)
            aq_conn_stop(conn, engine->now);
    }
    aq_slab_each(&engine->streams, stop_stream, engine);
    run_ready(engine);
    while (engine->touched_streams_length > 0)
        run_touched_streams(engine);
    run_ready(engine);
    for (size_t i = 0; i < engine->endpoints_length; i++) {
        aq_endpoint *endpoint = engine->all_endpoints[i];
        while (endpoint->first != NULL)
            aq_endpoint_remove(endpoint, endpoint->first);
        aq_endpoint_free(endpoint);
    }
    engine->endpoints_length = 0;
    aq_engine_fail_commands(engine);
    flush(engine);
}

int64_t aq_engine_loop(aq_engine *engine)
{
    struct epoll_event events[EPOLL_EVENTS];
    int count = 0;

    prctl(PR_SET_TIMERSLACK, 1UL); /* pacing wants microseconds; the default slack is 50 */
    engine->has_epoll_pwait2 = 1;
    engine->now = aq_now();
    while (!atomic_load(&engine->stopping)) {
        /* 1. other threads' commands, and objects they want a look at: before the packets that may follow from them */
        run_commands(engine);
        run_ready(engine);
        /* 2. what the kernel reported */
        for (int i = 0; i < count; i++) {
            if (events[i].data.u64 == WAKE_TAG)
                continue;
            if (events[i].data.u64 >> 56 != 0) {
                socket_event(engine, (aq_id)events[i].data.u64, events[i].events);
            } else {
                aq_endpoint *endpoint = events[i].data.ptr;
                if (events[i].events & EPOLLOUT)
                    aq_endpoint_writable(endpoint, engine->now);
                if (events[i].events & (EPOLLIN | EPOLLERR))
                    aq_endpoint_read(endpoint, engine->receiver, READ_BATCHES, engine->now);
                engine->endpoints_dirty = 1;
            }
        }
        /* 3. owners of streams hear of it; attached ones move their bytes */
        run_touched_streams(engine);
        run_ready(engine); /* what attached ones read leaves in this turn */
        /* 4. timers that are due */
        run_timers(engine);
        /* 5. every connection with something to send */
        run_writes(engine);
        /* 6. UDP packets that came out of connections leave; descriptors that nothing is collected for any more are
         * closed */
        flush(engine);
        if (engine->endpoints_dirty) {
            engine->endpoints_dirty = 0;
            sweep_endpoints(engine);
        }
        /* 7. sleep until the nearest expiry, unless there is work */
        count = sleep_until_work(engine, events);
        engine->now = aq_now();
    }
    stop_everything(engine);
    return AQ_OK;
}

void aq_engine_host_functions(aq_conn_host *host)
{
    host->touch = touch;
    host->touch_stream = touch_stream;
    host->forget = forget;
    host->route = aq_endpoint_route;
    host->unroute = aq_endpoint_unroute;
    host->transmit = aq_endpoint_transmit;
}

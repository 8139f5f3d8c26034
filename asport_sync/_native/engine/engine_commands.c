/* Commands from other threads: how they reach the engine thread, and what it does for each. */
#include "engine/engine.h"

#include "engine/tcp.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

/* Smaller socket buffers lose packets when a whole window arrives between two turns of the loop. */
#define BUFFER_WORTH (2 * 1024 * 1024)
/* recvmmsg() messages read from a socket before it is closed. */
#define LAST_READ 8

/* ---- handing over -------------------------------------------------------------------------------- */

static int hand_over(aq_engine *engine, aq_engine_command *command)
{
    int accepted;
    pthread_mutex_lock(&engine->command_mutex);
    if (engine->commands_length >= AQ_COMMANDS_MAX && !atomic_load(&engine->stopping)) {
        aq_count(&engine->counters, AQ_C_commands_waited, 1);
        engine->commands_waiters++;
        while (engine->commands_length >= AQ_COMMANDS_MAX && !atomic_load(&engine->stopping))
            pthread_cond_wait(&engine->command_done, &engine->command_mutex);
        engine->commands_waiters--;
    }
    accepted = !atomic_load(&engine->stopping);
    if (accepted) {
        AQ_QUEUE_ADD(&engine->commands, command);
        engine->commands_length++;
        atomic_store(&engine->commands_filled, 1);
    }
    pthread_mutex_unlock(&engine->command_mutex);
    if (accepted)
        aq_wake_signal(&engine->wake);
    return accepted;
}

/* Returns the descriptor that a command hands over; -1: none. */
static int descriptor_of(const aq_engine_command *command)
{
    switch (command->kind) {
    case AQ_DO_LISTEN:
        return command->listen.fd;
    case AQ_DO_CONNECT:
        return command->connect.fd;
    case AQ_DO_ATTACH:
        return command->attach.fd;
    case AQ_DO_CLOSE_UDP:
        return command->close_udp.fd;
    case AQ_DO_MOVE_UDP:
        return command->move_udp.fd;
    case AQ_DO_MIGRATE:
        return command->migrate.fd;
    default:
        return -1;
    }
}

/* Releases what a command carries that was not carried out. */
static void release_command(aq_engine *engine, const aq_engine_command *command)
{
    int fd = descriptor_of(command);
    if (command->kind == AQ_DO_OPEN_STREAM) {
        aq_stream *stream = command->open_stream.stream;
        atomic_store(&stream->dead, 2);
        aq_stream_disown(stream);
        aq_stream_close(stream);
        aq_slab_put(&engine->streams, stream->id);
    }
    if (command->kind == AQ_DO_WATCH_UDP)
        aq_slab_put(&engine->udps, command->id);
    if (command->kind == AQ_DO_CLOSE_UDP && command->close_udp.group != NULL)
        aq_group_unref(command->close_udp.group);
    if (command->kind == AQ_DO_LIMIT)
        aq_ranges_unref(command->limit.limits.permitted);
    if (fd >= 0)
        aq_fd_close(fd);
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
        aq_count(&engine->counters, AQ_C_memory_failures, 1);
        release_command(engine, command);
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
    list = engine->commands.first;
    engine->commands.first = engine->commands.last = NULL;
    engine->commands_length = 0;
    if (engine->commands_waiters > 0)
        pthread_cond_broadcast(&engine->command_done);
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

/* Logs once per socket that the kernel's limits are too low for high rates. */
static void log_buffers(aq_engine *engine, const aq_endpoint *endpoint)
{
    aq_event event = {.type = AQ_EVENT_LOG_RECORD, .code = 20, .endpoint = endpoint->id};
    int length;
    if (endpoint->receive_buffer >= BUFFER_WORTH && endpoint->send_buffer >= BUFFER_WORTH)
        return;
    length = snprintf(
        (char *)event.data, sizeof(event.data),
        "the kernel limits the QUIC socket's buffers to %d bytes (receive) and %d bytes (send); larger ones avoid "
        "losses at high rates: sysctl net.core.rmem_max=4194304 net.core.wmem_max=4194304",
        endpoint->receive_buffer, endpoint->send_buffer);
    event.length = (uint32_t)length < sizeof(event.data) ? (uint32_t)length : (uint32_t)sizeof(event.data) - 1;
    aq_events_post(&engine->events, &event);
}

static int64_t adopt_endpoint(aq_engine *engine, aq_endpoint *endpoint)
{
    struct epoll_event interest = {.events = EPOLLIN, .data.ptr = endpoint};
    if (aq_engine_make_room(&engine->all_endpoints, engine->endpoints_length, &engine->endpoints_capacity,
                            sizeof(aq_endpoint *)) != AQ_OK)
        return AQ_ERR_MEMORY;
    if (epoll_ctl(engine->epoll, EPOLL_CTL_ADD, endpoint->fd, &interest) != 0)
        return AQ_ERR_SYSTEM - errno;
    engine->all_endpoints[engine->endpoints_length++] = endpoint;
    return AQ_OK;
}

static int64_t do_listen(aq_engine *engine, aq_engine_command *command)
{
    const aq_listen_options *options = command->listen.options;
    aq_credentials *credentials = aq_slab_get(&engine->credentials, options->credentials);
    aq_endpoint *endpoint;
    int64_t result;
    if (credentials == NULL) {
        aq_fd_close(command->listen.fd);
        return AQ_ERR_GONE;
    }
    endpoint = aq_endpoint_new(&engine->host, command->listen.fd, credentials, &options->transport, NULL, &result);
    aq_slab_put(&engine->credentials, options->credentials);
    if (endpoint == NULL)
        return result;
    memcpy(endpoint->reset_key, options->reset_key, sizeof(endpoint->reset_key));
    endpoint->retry_threshold = options->retry_threshold;
    endpoint->max_half_open = options->max_half_open;
    endpoint->max_half_open_per_source = options->max_half_open_per_source;
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
    const aq_connect_options *options = command->connect.options;
    aq_credentials *credentials = aq_slab_get(&engine->credentials, options->credentials);
    aq_endpoint *endpoint;
    aq_conn *conn;
    aq_sockaddr remote;
    int64_t result;
    if (credentials == NULL) {
        aq_fd_close(command->connect.fd);
        return AQ_ERR_GONE;
    }
    aq_sockaddr_from(&remote, &options->remote, 0);
    endpoint = aq_endpoint_new(&engine->host, command->connect.fd, credentials, &options->transport, &remote, &result);
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
        engine->endpoints_dirty = 1; /* swept, as it has no connection */
        return result;
    }
    log_buffers(engine, endpoint);
    aq_engine_touch(engine, conn);
    return conn->id;
}

/* Moves a client's connection to the address that the socket gets when it is connected. Takes over fd. */
static int64_t do_migrate(aq_engine *engine, aq_conn *conn, int fd)
{
    aq_endpoint *endpoint = conn->endpoint;
    struct epoll_event interest = {.events = EPOLLIN, .data.ptr = endpoint};
    aq_sockaddr local;
    int64_t result = endpoint->is_server ? AQ_ERR_INVALID : aq_endpoint_route_socket(endpoint, fd, &local);
    if (result == 1 && epoll_ctl(engine->epoll, EPOLL_CTL_ADD, fd, &interest) != 0)
        result = AQ_ERR_SYSTEM - errno;
    if (result == 1) {
        /* Packets that have arrived at the old address still count. */
        aq_endpoint_read(endpoint, engine->receiver, LAST_READ, engine->now);
        result = conn->quic == NULL ? AQ_ERR_GONE : aq_conn_migrate(conn, &local, engine->now);
        if (result == AQ_OK) {
            fd = aq_endpoint_swap_socket(endpoint, fd, &local);
            result = 1;
        }
        epoll_ctl(engine->epoll, EPOLL_CTL_DEL, fd, NULL); /* the application may hold a duplicate of either socket */
    }
    aq_fd_close(fd);
    return result;
}

static int64_t do_close_endpoint(aq_engine *engine, aq_engine_command *command)
{
    aq_endpoint *endpoint = aq_slab_get(&engine->endpoints, command->id);
    if (endpoint == NULL)
        return AQ_ERR_GONE;
    endpoint->accepting = 0;
    if (command->close_endpoint.connections) {
        aq_conn *conn, *next;
        for (conn = endpoint->conns.first; conn != NULL; conn = next) {
            next = conn->endpoint_link.next;
            aq_conn_close(conn, AQ_CLOSE_LOCAL, aq_conn_last_code(conn), "", engine->now);
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
    credentials = aq_slab_get(&engine->credentials, command->set_credentials.credentials);
    if (credentials != NULL) {
        engine->host.handshake->credentials_ref(credentials);
        engine->host.handshake->credentials_unref(endpoint->credentials);
        endpoint->credentials = credentials;
        aq_slab_put(&engine->credentials, command->set_credentials.credentials);
    }
    aq_slab_put(&engine->endpoints, command->id);
    return credentials != NULL ? AQ_OK : AQ_ERR_GONE;
}

static int64_t do_set_transport(aq_engine *engine, const aq_engine_command *command)
{
    aq_endpoint *endpoint = aq_slab_get(&engine->endpoints, command->id);
    if (endpoint == NULL)
        return AQ_ERR_GONE;
    endpoint->options = *command->set_transport.options; /* connections have copies of their own */
    aq_slab_put(&engine->endpoints, command->id);
    return AQ_OK;
}

static int64_t do_limit_endpoint(aq_engine *engine, const aq_engine_command *command)
{
    aq_endpoint *endpoint = aq_slab_get(&engine->endpoints, command->id);
    if (endpoint == NULL)
        return AQ_ERR_GONE;
    endpoint->max_connections = command->limit_endpoint.max_connections;
    aq_slab_put(&engine->endpoints, command->id);
    return AQ_OK;
}

/* ---- carrying out commands --------------------------------------------------------------------------------------- */

static int64_t do_for_connection(aq_engine *engine, aq_conn *conn, aq_engine_command *command)
{
    if (conn->quic == NULL) {
        release_command(engine, command);
        return AQ_ERR_GONE;
    }
    conn->now = engine->now;
    switch (command->kind) {
    case AQ_DO_CLOSE:
        aq_conn_close_application(conn, command->close.code, command->close.linger, engine->now);
        return AQ_OK;
    case AQ_DO_EXPORT:
        if (conn->state != AQ_CONN_OPEN)
            return AQ_ERR_STATE;
        return conn->host->handshake->session_export(conn->tls, command->export.label, command->export.label_length,
                                                     command->export.context, command->export.context_length,
                                                     command->export.out, command->export.out_length);
    case AQ_DO_PEER_CHAIN:
        if (conn->state != AQ_CONN_OPEN)
            return AQ_ERR_STATE;
        return (int64_t)conn->host->handshake->session_peer_chain(conn->tls, command->peer_chain.out,
                                                                  command->peer_chain.out_length);
    case AQ_DO_SEND:
        return aq_conn_send_command(conn, command->send.data, command->send.length);
    case AQ_DO_HEARTBEAT:
        return aq_conn_set_heartbeat(conn, command->heartbeat.data, command->heartbeat.length,
                                     command->heartbeat.interval, engine->now);
    case AQ_DO_SET_JOINED:
        return aq_conn_set_joined(conn, command->set_joined.carrier, command->set_joined.udp);
    case AQ_DO_PROBE:
        return aq_conn_probe(conn, command->probe.timeout, command->probe.grace_period, engine->now);
    case AQ_DO_MIGRATE:
        return do_migrate(engine, conn, command->migrate.fd);
    case AQ_DO_INFO:
        return aq_conn_get_info(conn, command->info.out, engine->now);
    case AQ_DO_LIMIT:
        aq_conn_limit(conn, &command->limit.limits);
        return AQ_OK;
    case AQ_DO_ASSOCIATION_READY:
        aq_conn_association_ready(conn, command->association_ready.association, command->association_ready.accepted,
                                  engine->now);
        return AQ_OK;
    case AQ_DO_DIAL:
        conn->dial_to = command->dial.to;
        conn->dial_timeout = command->dial.timeout;
        conn->dial_until =
            command->dial.valid > UINT64_MAX - engine->now ? UINT64_MAX : engine->now + command->dial.valid;
        return AQ_OK;
    default:
        return AQ_ERR_INVALID;
    }
}

static int64_t do_attach(aq_engine *engine, const aq_engine_command *command)
{
    aq_stream *stream = command->attach.stream;
    aq_tcp_attach(engine, stream, command->attach.fd);
    aq_slab_put(&engine->streams, stream->id);
    return AQ_OK;
}

static int64_t do_open_stream(aq_engine *engine, const aq_engine_command *command)
{
    aq_stream *stream = command->open_stream.stream;
    aq_conn *conn = aq_slab_get(&engine->connections, command->id);
    if (conn != NULL && conn->quic != NULL) {
        conn->now = engine->now;
        aq_conn_adopt_stream(conn, stream);
        aq_engine_touch(engine, conn);
    } else {
        atomic_store(&stream->dead, 1);
        aq_stream_close(stream);
        aq_engine_touch_stream(engine, stream);
        aq_stream_signal(stream, AQ_NEED_END);
    }
    if (conn != NULL)
        aq_slab_put(&engine->connections, command->id);
    aq_slab_put(&engine->streams, stream->id);
    return AQ_OK;
}

/* Sends the datagrams collected so far. */
static void flush_out(aq_engine *engine)
{
    uint64_t dropped = 0;
    aq_udp_out_flush(engine->host.udp_out, &dropped);
    aq_count(&engine->counters, AQ_C_packet_drop_socket, dropped);
}

/* Replaces the socket of a local UDP socket under the same descriptor. Takes over the command's fd. */
static int64_t do_move_udp(aq_engine *engine, const aq_engine_command *command)
{
    aq_udp *udp = aq_slab_get(&engine->udps, command->id);
    aq_conn *conn = udp != NULL ? aq_slab_get(&engine->connections, udp->assocs->connection) : NULL;
    int64_t result = conn != NULL && conn->quic != NULL ? AQ_OK : AQ_ERR_GONE;
    if (result == AQ_OK) {
        int64_t watched;
        flush_out(engine);
        epoll_ctl(engine->epoll, EPOLL_CTL_DEL, udp->fd, NULL); /* the application holds a duplicate */
        result = aq_udp_replace(udp, command->move_udp.fd, command->move_udp.prefix, command->move_udp.prefix_length);
        watched = udp->for_pump ? AQ_OK : aq_engine_watch_udp(engine, udp);
        if (result == AQ_OK)
            result = watched;
    }
    if (result == AQ_OK) {
        udp->refusal_told_until = 0;
        conn->now = engine->now;
        aq_conn_udp_moved(conn, udp, engine->now);
    }
    aq_fd_close(command->move_udp.fd);
    if (conn != NULL)
        aq_slab_put(&engine->connections, udp->assocs->connection);
    if (udp != NULL)
        aq_slab_put(&engine->udps, command->id);
    return result;
}

static int64_t do_watch(aq_engine *engine, aq_engine_command *command)
{
    aq_listener *listener;
    int64_t result = AQ_ERR_GONE;
    if (command->kind == AQ_DO_WATCH_UDP) {
        aq_udp *udp = command->watch_udp.udp;
        if (udp->group != NULL)
            aq_engine_enter_group(engine, udp);
        result = udp->group != NULL ? AQ_OK : aq_engine_watch_udp(engine, udp);
        aq_slab_put(&engine->udps, command->id);
        return result;
    }
    listener = aq_slab_get(&engine->listeners, command->id);
    if (listener == NULL)
        return result;
    if (command->kind == AQ_DO_LISTEN_TCP) {
        aq_conn *conn = aq_slab_get(&engine->connections, listener->connection);
        if (conn != NULL && conn->quic != NULL)
            result = aq_tcp_listen(engine, listener, conn);
        if (conn != NULL)
            aq_slab_put(&engine->connections, listener->connection);
    } else {
        result = AQ_OK;
        aq_tcp_unlisten(engine, listener);
    }
    aq_slab_put(&engine->listeners, command->id);
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
    case AQ_DO_SET_TRANSPORT:
        return do_set_transport(engine, command);
    case AQ_DO_LIMIT_ENDPOINT:
        return do_limit_endpoint(engine, command);
    case AQ_DO_OPEN_STREAM:
        return do_open_stream(engine, command);
    case AQ_DO_ATTACH:
        return do_attach(engine, command);
    case AQ_DO_WATCH_UDP:
    case AQ_DO_LISTEN_TCP:
    case AQ_DO_UNLISTEN_TCP:
        return do_watch(engine, command);
    case AQ_DO_MOVE_UDP:
        return do_move_udp(engine, command);
    case AQ_DO_CLOSE_UDP:
        if (command->close_udp.group != NULL) {
            aq_engine_watch_group(engine, command->close_udp.group);
            aq_group_unref(command->close_udp.group);
        }
        epoll_ctl(engine->epoll, EPOLL_CTL_DEL, command->close_udp.fd, NULL); /* the application holds a duplicate */
        if (aq_engine_make_room(&engine->closing_fds, engine->closing_fds_length, &engine->closing_fds_capacity,
                                sizeof(int)) == AQ_OK) {
            engine->closing_fds[engine->closing_fds_length++] = command->close_udp.fd;
        } else {
            flush_out(engine);
            aq_fd_close(command->close_udp.fd);
        }
        return AQ_OK;
    default:
        conn = aq_slab_get(&engine->connections, command->id);
        if (conn == NULL) {
            release_command(engine, command);
            return AQ_ERR_GONE;
        }
        result = do_for_connection(engine, conn, command);
        aq_slab_put(&engine->connections, command->id);
        return result;
    }
}

void aq_engine_run_commands(aq_engine *engine)
{
    aq_engine_command *command = take_commands(engine), *next;
    for (; command != NULL; command = next) {
        next = command->next;
        complete(engine, command, carry_out(engine, command));
    }
}

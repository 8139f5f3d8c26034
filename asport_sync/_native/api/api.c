/* The functions of aq_api.h. Each enters the engine, resolves its ids, and either acts on thread-safe objects or hands
 * a command to the engine thread. */
#include "engine/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

/* Maximum sizes of the id tables. Ids have 24 bits of index. */
#define MAX_CREDENTIALS 4096
#define MAX_ENDPOINTS 4096
#define MAX_CONNECTIONS 65536
#define MAX_STREAMS 1048576
#define MAX_UDP 262144
#define MAX_LISTENERS 262144
#define MAX_BUCKETS 262144 /* two for each user with a limit */
/* Maximum number of workers that relay at the same time. Each costs a thread, so Python's own limit is far lower. */
#define MAX_WAKES 16384
/* Receive budget until Python sets another one; bytes. */
#define RECEIVE_MEMORY (1024ULL * 1024 * 1024)
/* Bytes of segments kept for reuse; beyond that, memory goes back to the allocator. */
#define POOL_IDLE (64ULL * 1024 * 1024)

/* ---- library --------------------------------------------------------------------------------------------------- */

const char *aq_build_id(void)
{
    return AQ_BUILD_ID;
}

const char *aq_ngtcp2_version(void)
{
    return ngtcp2_version(0)->version_str;
}

const char *aq_ngtcp2_origin(void)
{
    return AQ_NGTCP2_ORIGIN;
}

const char *aq_gnutls_version(void)
{
    return aq_handshake->version();
}

const char *aq_strerror(int64_t error, char *buffer, size_t length)
{
    static const char *const texts[] = {
        [AQ_OK] = "no error",
        [-AQ_ERR_STOPPED] = "the engine is stopped",
        [-AQ_ERR_GONE] = "the connection, stream or socket is gone",
        [-AQ_ERR_INVALID] = "an argument is out of range",
        [-AQ_ERR_MEMORY] = "out of memory",
        [-AQ_ERR_LIMIT] = "a table or queue of the engine is full",
        [-AQ_ERR_STATE] = "not allowed in this state",
        [-AQ_ERR_TLS] = "TLS failed",
        [-AQ_ERR_TIMEOUT] = "timed out",
        [-AQ_ERR_NO_TRUST] = "the default trust store is missing or empty",
    };
    char system[128];
    const char *text = "unknown error";
    if (error <= 0 && -error < (int64_t)AQ_ARRAY_LENGTH(texts))
        text = texts[-error];
    else if (error < AQ_ERR_SYSTEM && error > AQ_ERR_SYSTEM - 4096)
        text = AQ_ERRNO_TEXT(strerror_r((int)(AQ_ERR_SYSTEM - error), system, sizeof(system)), system);
    if (length > 0)
        snprintf(buffer, length, "%s", text);
    return buffer;
}

int32_t aq_equal(const uint8_t *first, const uint8_t *second, size_t length)
{
    return aq_handshake->equal(first, second, length);
}

int64_t aq_derive_key(const uint8_t *secret, size_t secret_length, const uint8_t *salt, size_t salt_length,
                      const uint8_t *info, size_t info_length, uint8_t *out)
{
    return aq_handshake->derive_key(secret, secret_length, salt, salt_length, info, info_length, out);
}

void aq_malloc_arenas(int32_t max)
{
#ifdef __GLIBC__
    mallopt(M_ARENA_MAX, max);
#else
    AQ_UNUSED(max);
#endif
}

int64_t aq_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out)
{
    return aq_handshake->certificate_pin(certificate, length, out);
}

int64_t aq_certificates_read(const uint8_t *data, size_t length, aq_certificate *out, uint32_t max, char *text,
                             size_t text_length)
{
    return aq_handshake->certificates_read(data, length, out, max, text, text_length);
}

uint32_t aq_counter_count(void)
{
    return AQ_COUNTER_COUNT;
}

const aq_counter_description *aq_counter_describe(uint32_t index)
{
    return index < AQ_COUNTER_COUNT ? &aq_counter_descriptions[index] : NULL;
}

/* ---- engine ---------------------------------------------------------------------------------------------------- */

int aq_api_enter(aq_engine *engine)
{
    atomic_fetch_add(&engine->inside, 1);
    if (!atomic_load(&engine->stopping))
        return 1;
    atomic_fetch_sub(&engine->inside, 1);
    return 0;
}

/* For the few calls that still have work to do while the engine stops. */
int aq_api_enter_until_closed(aq_engine *engine)
{
    atomic_fetch_add(&engine->inside, 1);
    if (!atomic_load(&engine->closed))
        return 1;
    atomic_fetch_sub(&engine->inside, 1);
    return 0;
}

void aq_api_leave(aq_engine *engine)
{
    atomic_fetch_sub(&engine->inside, 1);
}

static void destroy_credentials(void *object)
{
    aq_handshake->credentials_unref(object);
}

static void destroy_udp(void *object)
{
    aq_udp *udp = object;
    int still_open = !udp->closed; /* Python did not close it before the engine ended */
    aq_udp_detach(udp);
    if (still_open)
        aq_fd_close(udp->fd);
    aq_udp_free(udp);
}

static void destroy_listener(void *object)
{
    aq_listener *listener = object;
    aq_fd_close(listener->fd);
    if (listener->credit != NULL)
        aq_credit_unref(listener->credit);
    if (listener->group != NULL)
        aq_group_unref(listener->group);
    free(listener);
}

static void destroy_bucket(void *object)
{
    aq_bucket_unref(object);
}

static void destroy_group(void *object)
{
    aq_group_unref(object);
}

static void destroy_nothing(void *object)
{
    AQ_UNUSED(object); /* endpoints belong to the engine thread; their ids do not keep them alive */
}

/* Releases everything that init_tables() did not create, except the struct itself. */
static void release_engine(aq_engine *engine)
{
    while (engine->wakes_length > 0) {
        aq_wake *wake = engine->wakes_all[--engine->wakes_length];
        aq_wake_destroy(wake);
        free(wake);
    }
    free(engine->wakes);
    free(engine->wakes_all);
    free(engine->heap);
    free(engine->all_endpoints);
    free(engine->closing_fds);
    free(engine->backed_off);
    free(engine->host.train);
    if (engine->host.udp_out != NULL)
        aq_udp_out_free(engine->host.udp_out);
    if (engine->receiver != NULL)
        aq_udp_receiver_free(engine->receiver);
    if (engine->pump_receiver != NULL)
        aq_udp_receiver_free(engine->pump_receiver);
    if (engine->epoll >= 0)
        close(engine->epoll);
    pthread_mutex_destroy(&engine->command_mutex);
    pthread_cond_destroy(&engine->command_done);
    pthread_mutex_destroy(&engine->wakes_mutex);
}

static int64_t init_tables(aq_engine *engine)
{
    int woken;
    int64_t problem = AQ_ERR_MEMORY;
    if (aq_slab_init(&engine->credentials, AQ_KIND_CREDENTIALS, MAX_CREDENTIALS, destroy_credentials) != AQ_OK)
        return AQ_ERR_MEMORY;
    if (aq_slab_init(&engine->endpoints, AQ_KIND_ENDPOINT, MAX_ENDPOINTS, destroy_nothing) != AQ_OK)
        goto no_endpoints;
    if (aq_slab_init(&engine->connections, AQ_KIND_CONNECTION, MAX_CONNECTIONS, aq_conn_destroy) != AQ_OK)
        goto no_connections;
    if (aq_slab_init(&engine->streams, AQ_KIND_STREAM, MAX_STREAMS, aq_stream_destroy) != AQ_OK)
        goto no_streams;
    if (aq_slab_init(&engine->udps, AQ_KIND_UDP, MAX_UDP, destroy_udp) != AQ_OK)
        goto no_udps;
    if (aq_slab_init(&engine->listeners, AQ_KIND_LISTENER, MAX_LISTENERS, destroy_listener) != AQ_OK)
        goto no_listeners;
    if (aq_slab_init(&engine->buckets, AQ_KIND_BUCKET, MAX_BUCKETS, destroy_bucket) != AQ_OK)
        goto no_buckets;
    if (aq_slab_init(&engine->groups, AQ_KIND_GROUP, MAX_LISTENERS, destroy_group) != AQ_OK)
        goto no_groups;
    if (aq_reserve_init(&engine->reserve, &engine->counters) != AQ_OK)
        goto no_reserve;
    if (aq_pool_init(&engine->pool, POOL_IDLE) != AQ_OK)
        goto no_pool;
    engine->pool.reserve = &engine->reserve;
    if (aq_events_init(&engine->events, &engine->counters) != AQ_OK)
        goto no_events;
    woken = aq_wake_init(&engine->wake);
    if (woken == 0)
        return AQ_OK;
    problem = AQ_ERR_SYSTEM + woken;
    aq_events_destroy(&engine->events);
no_events:
    aq_pool_destroy(&engine->pool);
no_pool:
    aq_reserve_destroy(&engine->reserve);
no_reserve:
    aq_slab_destroy(&engine->groups);
no_groups:
    aq_slab_destroy(&engine->buckets);
no_buckets:
    aq_slab_destroy(&engine->listeners);
no_listeners:
    aq_slab_destroy(&engine->udps);
no_udps:
    aq_slab_destroy(&engine->streams);
no_streams:
    aq_slab_destroy(&engine->connections);
no_connections:
    aq_slab_destroy(&engine->endpoints);
no_endpoints:
    aq_slab_destroy(&engine->credentials);
    return problem;
}

/* Drops the references that the list of ready objects still holds. */
static void release_ready(aq_engine *engine)
{
    aq_ready_node *node = aq_ready_take(&engine->ready), *next;
    for (; node != NULL; node = next) {
        next = node->next;
        if (node->kind == AQ_READY_STREAM)
            aq_slab_put(&engine->streams, ((aq_stream *)(void *)node)->id);
        else if (node->kind == AQ_READY_CREDIT)
            aq_credit_unref((aq_credit *)(void *)node);
        else if (node->kind == AQ_READY_BUCKET)
            aq_bucket_unref((aq_bucket *)(void *)node);
        else
            aq_assocs_unref((aq_assocs *)(void *)node);
    }
}

static void destroy_tables(aq_engine *engine)
{
    release_ready(engine);
    aq_slab_destroy(&engine->listeners);
    aq_slab_destroy(&engine->udps);
    aq_slab_destroy(&engine->streams);
    aq_slab_destroy(&engine->connections);
    aq_slab_destroy(&engine->endpoints);
    aq_slab_destroy(&engine->credentials);
    aq_slab_destroy(&engine->buckets);
    aq_slab_destroy(&engine->groups);
    release_ready(engine); /* added by the destructors of the tables */
    aq_ready_destroy(&engine->ready);
    aq_pool_destroy(&engine->pool);
    aq_reserve_destroy(&engine->reserve);
    aq_events_destroy(&engine->events);
    aq_wake_destroy(&engine->wake);
}

aq_engine *aq_engine_new(int64_t *error)
{
    struct epoll_event interest = {.events = EPOLLIN, .data.u64 = 0};
    aq_engine *engine;

    *error = AQ_ERR_STATE;
    if (!aq_compat_library_fits())
        return NULL;
    *error = AQ_ERR_MEMORY;
    engine = aligned_alloc(_Alignof(aq_engine), sizeof(*engine));
    if (engine == NULL)
        return NULL;
    memset(engine, 0, sizeof(*engine));
    pthread_mutex_init(&engine->command_mutex, NULL);
    pthread_cond_init(&engine->command_done, NULL);
    pthread_mutex_init(&engine->wakes_mutex, NULL);
    engine->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (engine->epoll < 0)
        *error = AQ_ERR_SYSTEM - errno;
    engine->receiver = aq_udp_receiver_new();
    engine->host.udp_out = aq_udp_out_new();
    engine->host.train_capacity = AQ_TRAIN_MAX + 65536; /* a whole train followed by one packet of any size */
    engine->host.train = malloc(engine->host.train_capacity);
    engine->wakes = calloc(MAX_WAKES, sizeof(*engine->wakes));
    engine->wakes_all = calloc(MAX_WAKES, sizeof(*engine->wakes_all));
    engine->wakes_all_capacity = MAX_WAKES;
    if (engine->epoll < 0 || engine->receiver == NULL || engine->host.udp_out == NULL || engine->host.train == NULL ||
        engine->wakes == NULL || engine->wakes_all == NULL || (*error = init_tables(engine)) != AQ_OK) {
        release_engine(engine);
        free(engine);
        return NULL;
    }
    aq_ready_init(&engine->ready, &engine->wake);
    engine->buckets_at = UINT64_MAX;
    engine->host.handshake = aq_handshake;
    engine->host.counters = &engine->counters;
    engine->host.reserve = &engine->reserve;
    engine->host.budget = &engine->budget;
    atomic_init(&engine->budget.max, RECEIVE_MEMORY);
    engine->host.events = &engine->events;
    engine->host.connections = &engine->connections;
    engine->host.ready = &engine->ready;
    engine->host.streams.table = &engine->streams;
    engine->host.streams.ready = &engine->ready;
    engine->host.streams.counters = &engine->counters;
    engine->host.streams.pool = &engine->pool;
    engine->host.streams.keepalive = &engine->keepalive;
    engine->host.idle = &engine->idle;
    engine->host.accepted = &engine->accepted;
    engine->host.interactive_at = &engine->interactive_at;
    engine->host.logged = &engine->logged;
    engine->host.engine = engine;
    aq_engine_host_functions(&engine->host);
    if (epoll_ctl(engine->epoll, EPOLL_CTL_ADD, engine->wake.fd, &interest) != 0) {
        *error = AQ_ERR_SYSTEM - errno;
        destroy_tables(engine);
        release_engine(engine);
        free(engine);
        return NULL;
    }
    return engine;
}

int64_t aq_engine_run(aq_engine *engine)
{
    int expected = AQ_ENGINE_NEW;
    int64_t result;
    if (!aq_api_enter_until_closed(engine))
        return AQ_ERR_STOPPED;
    if (!atomic_compare_exchange_strong(&engine->state, &expected, AQ_ENGINE_RUNNING)) {
        aq_api_leave(engine);
        return AQ_ERR_STATE;
    }
#ifdef __GLIBC__
    malloc_trim(0); /* left over from imports and reading the configuration: about a megabyte */
#endif
    result = aq_engine_loop(engine);
    aq_events_close(&engine->events);
    atomic_store(&engine->state, AQ_ENGINE_STOPPED);
    aq_api_leave(engine);
    return result;
}

void aq_engine_stop(aq_engine *engine)
{
    int expected = AQ_ENGINE_NEW;
    if (!aq_api_enter_until_closed(engine))
        return;
    pthread_mutex_lock(&engine->command_mutex);
    atomic_store(&engine->stopping, 1);            /* with the mutex held: no command is queued after the last check */
    pthread_cond_broadcast(&engine->command_done); /* wakes producers blocked on the full queue */
    pthread_mutex_unlock(&engine->command_mutex);
    aq_wake_signal(&engine->wake);
    /* The loop never ran: nothing else ends the waiting commands. */
    if (atomic_compare_exchange_strong(&engine->state, &expected, AQ_ENGINE_STOPPED)) {
        aq_engine_fail_commands(engine);
        aq_events_close(&engine->events);
    }
    aq_api_leave(engine);
}

void aq_engine_close(aq_engine *engine)
{
    struct timespec moment = {0, 1000000};
    aq_engine_stop(engine);
    atomic_store(&engine->closed, 1); /* later calls return immediately; calls still inside are waited for */
    while (atomic_load(&engine->inside) != 0)
        nanosleep(&moment, NULL);
    destroy_tables(engine);
    release_engine(engine);
}

void aq_engine_free(aq_engine *engine)
{
    free(engine);
}

int64_t aq_events_wait(aq_engine *engine, aq_event *events, uint32_t max, int32_t timeout_ms)
{
    int64_t result;
    if (!aq_api_enter_until_closed(engine)) /* while stopping, queued events are still returned */
        return AQ_ERR_STOPPED;
    result = max == 0 ? AQ_ERR_INVALID : aq_events_take(&engine->events, events, max, timeout_ms);
    aq_api_leave(engine);
    return result;
}

int64_t aq_events_wake(aq_engine *engine)
{
    if (!aq_api_enter_until_closed(engine))
        return AQ_ERR_STOPPED;
    aq_events_wake_consumer(&engine->events);
    aq_api_leave(engine);
    return AQ_OK;
}

int64_t aq_engine_counters(aq_engine *engine, uint64_t *values, uint32_t count)
{
    uint32_t i;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    for (i = 0; i < count && i < AQ_COUNTER_COUNT; i++)
        values[i] = atomic_load_explicit(&engine->counters.value[i], memory_order_relaxed);
    aq_api_leave(engine);
    return i;
}

/* ---- commands to the engine -------------------------------------------------------------------------------------- */

static int64_t ask(aq_engine *engine, aq_engine_command *command)
{
    int64_t result;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    result = aq_engine_ask(engine, command);
    aq_api_leave(engine);
    return result;
}

/* Uses a duplicate of fd, which belongs to the engine from here on; `own` is its place in the command. */
static int64_t ask_with_descriptor(aq_engine *engine, aq_engine_command *command, int *own, int fd)
{
    int64_t result;
    *own = aq_api_duplicate(fd);
    if (*own < 0)
        return AQ_ERR_SYSTEM - errno;
    if (!aq_api_enter(engine)) {
        aq_fd_close(*own);
        return AQ_ERR_STOPPED;
    }
    result = aq_engine_ask(engine, command);
    aq_api_leave(engine);
    return result;
}

/* For existing connections. It is no error if the connection ends before the command arrives. */
static int64_t tell_connection(aq_engine *engine, aq_engine_command *command)
{
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    if (aq_slab_get(&engine->connections, command->id) != NULL) {
        result = aq_engine_tell(engine, command);
        aq_slab_put(&engine->connections, command->id);
    }
    aq_api_leave(engine);
    return result;
}

int aq_api_duplicate(int fd)
{
    return AQ_FD_OPEN(fcntl(fd, F_DUPFD_CLOEXEC, 3));
}

aq_id aq_credentials_new(aq_engine *engine, const aq_credentials_options *options, char *text, size_t text_length)
{
    aq_credentials *credentials;
    int64_t result = AQ_OK;
    if (text_length > 0)
        text[0] = '\0';
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    credentials = aq_handshake->credentials_new(options, &result, text, text_length);
    if (credentials != NULL) {
        result = aq_slab_add(&engine->credentials, credentials);
        if (result < 0) {
            aq_handshake->credentials_unref(credentials);
            if (text_length > 0)
                text[0] = '\0'; /* it says what was loaded */
        }
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_credentials_free(aq_engine *engine, aq_id credentials)
{
    int64_t result;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    result = aq_slab_remove(&engine->credentials, credentials);
    aq_api_leave(engine);
    return result;
}

/* Rejects values that make no sense or on which ngtcp2 would abort. */
static int transport_is_valid(const aq_transport_options *options)
{
    return options->congestion <= AQ_CONGESTION_BBR && options->max_udp_payload >= NGTCP2_MAX_UDP_PAYLOAD_SIZE &&
           options->max_udp_payload <= 65527 && options->handshake_timeout > 0 && options->send_window >= 16384 &&
           options->receive_window >= 16384 && options->connection_window >= options->receive_window &&
           options->connection_window < 1ULL << 62 && options->datagram_queue >= 65536 &&
           options->datagram_queue <= 1ULL << 32 && options->max_streams_bidi <= 1U << 20 &&
           options->max_streams_uni >= AQ_STREAMS_BEFORE_JOIN && options->max_streams_uni <= 1U << 20 &&
           options->idle_timeout < UINT64_MAX / 4 && options->keep_alive < UINT64_MAX / 4 &&
           options->silence < UINT64_MAX / 4 && options->handshake_timeout < UINT64_MAX / 4 &&
           options->command_timeout < UINT64_MAX / 4 && options->fragment_lifetime < UINT64_MAX / 4;
}

aq_id aq_listen(aq_engine *engine, const aq_listen_options *options)
{
    aq_engine_command command = {.kind = AQ_DO_LISTEN, .listen.options = options};
    if (!transport_is_valid(&options->transport))
        return AQ_ERR_INVALID;
    return ask_with_descriptor(engine, &command, &command.listen.fd, options->fd);
}

int64_t aq_endpoint_close(aq_engine *engine, aq_id endpoint, int32_t close_connections)
{
    aq_engine_command command = {
        .kind = AQ_DO_CLOSE_ENDPOINT, .id = endpoint, .close_endpoint.connections = close_connections != 0};
    return ask(engine, &command);
}

int64_t aq_endpoint_set_credentials(aq_engine *engine, aq_id endpoint, aq_id credentials)
{
    aq_engine_command command = {
        .kind = AQ_DO_SET_CREDENTIALS, .id = endpoint, .set_credentials.credentials = credentials};
    return ask(engine, &command);
}

int64_t aq_endpoint_set_transport(aq_engine *engine, aq_id endpoint, const aq_transport_options *options)
{
    aq_engine_command command = {.kind = AQ_DO_SET_TRANSPORT, .id = endpoint, .set_transport.options = options};
    if (!transport_is_valid(options))
        return AQ_ERR_INVALID;
    return ask(engine, &command);
}

int64_t aq_endpoint_limit(aq_engine *engine, aq_id endpoint, uint32_t max_connections)
{
    aq_engine_command command = {
        .kind = AQ_DO_LIMIT_ENDPOINT, .id = endpoint, .limit_endpoint.max_connections = max_connections};
    return ask(engine, &command);
}

aq_id aq_connect(aq_engine *engine, const aq_connect_options *options)
{
    aq_engine_command command = {.kind = AQ_DO_CONNECT, .connect.options = options};
    if (!transport_is_valid(&options->transport) || options->server_name == NULL ||
        (options->remote.family != 4 && options->remote.family != 6) || options->remote.port == 0)
        return AQ_ERR_INVALID;
    return ask_with_descriptor(engine, &command, &command.connect.fd, options->fd);
}

int64_t aq_connection_migrate(aq_engine *engine, aq_id connection, int32_t fd)
{
    aq_engine_command command = {.kind = AQ_DO_MIGRATE, .id = connection};
    return ask_with_descriptor(engine, &command, &command.migrate.fd, fd);
}

int64_t aq_connection_close(aq_engine *engine, aq_id connection, uint64_t code, uint64_t linger)
{
    aq_engine_command command = {.kind = AQ_DO_CLOSE, .id = connection, .close = {code, linger}};
    if ((code >= 1ULL << 62 && code != AQ_NO_APPLICATION_CODE) || linger >= UINT64_MAX / 4)
        return AQ_ERR_INVALID;
    return tell_connection(engine, &command);
}

int64_t aq_connection_export(aq_engine *engine, aq_id connection, const uint8_t *label, size_t label_length,
                             const uint8_t *context, size_t context_length, uint8_t *out, size_t out_length)
{
    aq_engine_command command = {.kind = AQ_DO_EXPORT,
                                 .id = connection,
                                 .export = {label, context, label_length, context_length, out, out_length}};
    return ask(engine, &command);
}

int64_t aq_connection_peer_chain(aq_engine *engine, aq_id connection, uint8_t *out, size_t out_length)
{
    aq_engine_command command = {.kind = AQ_DO_PEER_CHAIN, .id = connection, .peer_chain = {out, out_length}};
    return ask(engine, &command);
}

int64_t aq_connection_send(aq_engine *engine, aq_id connection, const uint8_t *data, size_t length)
{
    aq_engine_command command = {.kind = AQ_DO_SEND, .id = connection, .send.length = length};
    if (length == 0 || length > sizeof(command.send.data))
        return AQ_ERR_INVALID;
    memcpy(command.send.data, data, length);
    return tell_connection(engine, &command);
}

int64_t aq_connection_heartbeat(aq_engine *engine, aq_id connection, const uint8_t *data, size_t length,
                                uint64_t interval)
{
    aq_engine_command command = {.kind = AQ_DO_HEARTBEAT, .id = connection, .heartbeat = {interval, length, {0}}};
    if (length > sizeof(command.heartbeat.data) || interval >= UINT64_MAX / 4 ||
        (interval > 0 && interval < AQ_NSEC_PER_MSEC) ||
        (interval > 0 && length == 0)) /* an empty DATAGRAM frame, on which older releases of ngtcp2 abort */
        return AQ_ERR_INVALID;
    if (length > 0)
        memcpy(command.heartbeat.data, data, length);
    return tell_connection(engine, &command);
}

int64_t aq_connection_set_joined(aq_engine *engine, aq_id connection, uint32_t carrier, int32_t udp)
{
    aq_engine_command command = {
        .kind = AQ_DO_SET_JOINED, .id = connection, .set_joined = {(enum aq_carrier)carrier, udp != 0}};
    if (carrier > AQ_CARRIER_UNKNOWN)
        return AQ_ERR_INVALID;
    return tell_connection(engine, &command);
}

int64_t aq_connection_probe(aq_engine *engine, aq_id connection, uint64_t timeout, uint64_t grace_period)
{
    aq_engine_command command = {.kind = AQ_DO_PROBE, .id = connection, .probe = {timeout, grace_period}};
    if (timeout >= UINT64_MAX / 4 || grace_period >= UINT64_MAX / 4)
        return AQ_ERR_INVALID;
    return ask(engine, &command);
}

int64_t aq_connection_limit(aq_engine *engine, aq_id connection, const aq_visitor_limits *limits)
{
    aq_engine_command command = {
        .kind = AQ_DO_LIMIT,
        .id = connection,
        .limit.limits = {.max_connections = limits->max_connections, .max_new = limits->max_new}};
    int64_t result;
    if (limits->restricted) {
        command.limit.limits.permitted =
            aq_ranges_new(limits->permitted, limits->permitted_length, limits->unknown_permitted, &result);
        if (command.limit.limits.permitted == NULL)
            return result;
    }
    if (!aq_api_enter(engine)) {
        aq_ranges_unref(command.limit.limits.permitted);
        return AQ_ERR_STOPPED;
    }
    result = aq_engine_ask(engine, &command);
    aq_api_leave(engine);
    return result;
}

int64_t aq_connection_info_get(aq_engine *engine, aq_id connection, aq_connection_info *info)
{
    aq_engine_command command = {.kind = AQ_DO_INFO, .id = connection, .info.out = info};
    return ask(engine, &command);
}

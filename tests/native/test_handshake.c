/* The seam of the handshake layer (handshake.h): an engine that is linked without GnuTLS, on the fake layer of
 * null_tls.c with sessions that fail on demand. Both sides are in one engine and exchange real UDP packets.
 */
#include "engine/engine.h"

#include "check.h"

/* The file itself is included for its table. */
#include "null_tls.c"

#include <arpa/inet.h>

#define WATCHDOG_SECONDS 60
#define WAIT_MS 20000                       /* for an event that must come */
#define UNANSWERED (200 * AQ_NSEC_PER_MSEC) /* handshake timeout where the server does not answer */
#define ALERT 48
#define PROBLEM "the fake refuses"
#define NO_FAILURE UINT32_MAX

/* ---- a fake layer with faults -------------------------------------------------------------------------------- */

enum victim { NOBODY, CLIENT, SERVER };

static _Atomic int refused;          /* enum victim: whose sessions can't be created */
static _Atomic int uncertain;        /* the client's check after the handshake fails */
static _Atomic uint32_t sessions;    /* existing ones */
static _Atomic uint32_t attached;    /* sessions ever attached */
static _Atomic uint32_t made_tokens; /* stateless reset tokens */

static aq_tls_session *fake_session_new(aq_credentials *credentials, const char *server_name, int send_sni,
                                        int64_t *error)
{
    aq_tls_session *session;
    if (atomic_load(&refused) == (server_name != NULL ? CLIENT : SERVER)) {
        *error = AQ_ERR_TLS;
        return NULL;
    }
    session = null_session_new(credentials, server_name, send_sni, error);
    if (session != NULL)
        atomic_fetch_add(&sessions, 1);
    return session;
}

static void fake_session_free(aq_tls_session *session)
{
    atomic_fetch_sub(&sessions, session != NULL);
    null_session_free(session);
}

static void fake_session_attach(aq_tls_session *session, ngtcp2_conn *quic)
{
    atomic_fetch_add(&attached, 1);
    null_session_attach(session, quic);
}

static int fails_check(const aq_tls_session *session)
{
    return atomic_load(&uncertain) && !ngtcp2_conn_is_server(session->quic);
}

static int fake_session_check(aq_tls_session *session)
{
    return fails_check(session) ? ALERT : null_session_check(session);
}

static const char *fake_session_certificate_problem(aq_tls_session *session)
{
    return fails_check(session) ? PROBLEM : null_session_certificate_problem(session);
}

static int fake_reset_token(uint8_t *token, const uint8_t *secret, const ngtcp2_cid *cid)
{
    atomic_fetch_add(&made_tokens, 1);
    return null_reset_token(token, secret, cid);
}

static aq_handshake_ops fake; /* written once, by main() */

/* ---- allocations that fail ------------------------------------------------------------------------------------ */

static _Thread_local uint32_t allocations_left = NO_FAILURE; /* the one after so many fails */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

static int fails(void)
{
    return allocations_left != NO_FAILURE && allocations_left-- == 0;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

/* ---- an engine with both sides -------------------------------------------------------------------------------- */

static aq_engine *engine;
static pthread_t thread;
static aq_id credentials_id;
static aq_address server_address;
static uint64_t handshake_timeout = WAIT_MS * AQ_NSEC_PER_MSEC;

static void *run_engine(void *context)
{
    aq_engine_run(context);
    return NULL;
}

static aq_transport_options transport(void)
{
    return (aq_transport_options){.max_udp_payload = 1452,
                                  .idle_timeout = 30 * AQ_NSEC_PER_SEC,
                                  .handshake_timeout = handshake_timeout,
                                  .command_timeout = AQ_NSEC_PER_SEC,
                                  .send_window = 65536,
                                  .receive_window = 65536,
                                  .connection_window = 65536,
                                  .datagram_queue = 65536,
                                  .fragment_lifetime = AQ_NSEC_PER_SEC,
                                  .max_streams_bidi = 8,
                                  .max_streams_uni = 8};
}

static int bound_socket(aq_sockaddr *address)
{
    socklen_t length = sizeof(*address);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    memset(address, 0, sizeof(*address));
    address->in.sin_family = AF_INET;
    address->in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(fd >= 0 && bind(fd, &address->sa, sizeof(address->in)) == 0);
    CHECK_INT(getsockname(fd, &address->sa, &length), 0);
    return fd;
}

static void make_engine(void)
{
    int64_t problem;

    engine = aq_engine_new(&problem);
    CHECK(engine != NULL);
    CHECK(engine->host.handshake == aq_handshake);
    engine->host.handshake = &fake;
}

static void begin(void)
{
    aq_credentials_options identity = {.server = 1};
    aq_listen_options options = {.transport = transport(),
                                 .retry_threshold = 100,
                                 .max_half_open = 4,
                                 .max_half_open_per_source = 4,
                                 .max_connections = 4};
    aq_sockaddr address;

    make_engine();
    CHECK_INT(pthread_create(&thread, NULL, run_engine, engine), 0);
    credentials_id = aq_credentials_new(engine, &identity, NULL, 0);
    CHECK(credentials_id > 0);
    options.credentials = credentials_id;
    options.fd = bound_socket(&address);
    CHECK(aq_listen(engine, &options) > 0);
    close(options.fd);
    aq_sockaddr_to(&address, &server_address);
}

static void end(void)
{
    aq_engine_stop(engine);
    CHECK_INT(pthread_join(thread, NULL), 0);
    aq_engine_close(engine);
    aq_engine_free(engine);
    CHECK_INT(atomic_load(&sessions), 0);
}

static aq_id connect_client(void)
{
    aq_connect_options options = {
        .credentials = credentials_id, .remote = server_address, .server_name = "localhost", .transport = transport()};
    aq_id result;

    options.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(options.fd >= 0);
    result = aq_connect(engine, &options);
    close(options.fd);
    return result;
}

/* Waits for the next event of this type; others are skipped. connection 0: of any connection. */
static aq_event expect_event(uint32_t type, aq_id connection)
{
    aq_event event;

    do {
        CHECK_INT(aq_events_wait(engine, &event, 1, WAIT_MS), 1);
    } while (event.type != type || (connection != 0 && event.connection != connection));
    return event;
}

static uint64_t counted(enum aq_counter which)
{
    return atomic_load(&engine->counters.value[which]);
}

/* Nothing is left of any connection. The engine releases it after the turn in which it has posted the event. */
static void expect_nothing_left(void)
{
    for (int waited = 0; waited < WAIT_MS && aq_slab_count(&engine->connections) != 0; waited++)
        usleep(1000);
    CHECK_INT(aq_slab_count(&engine->connections), 0);
    CHECK_INT(atomic_load(&sessions), 0);
}

/* Both sides connect, and each has a session of the fake. */
static void expect_connection(void)
{
    aq_id client = connect_client();
    aq_event event, other;
    uint8_t exported[8];

    CHECK(client > 0);
    event = expect_event(AQ_EVENT_CONNECTED, 0);
    other = expect_event(AQ_EVENT_CONNECTED, 0);
    CHECK((event.connection == client) != (other.connection == client));
    CHECK_INT(event.length, 6);
    CHECK_BYTES(event.data, "asport", 6);
    CHECK_INT(other.length, 6);
    memset(exported, 0xff, sizeof(exported));
    CHECK_INT(aq_connection_export(engine, client, exported, 1, NULL, 0, exported, sizeof(exported)), AQ_OK);
    CHECK_BYTES(exported, "\0\0\0\0\0\0\0\0", sizeof(exported));         /* what null_tls.c exports */
    CHECK_INT(aq_connection_peer_chain(engine, client, exported, 1), 2); /* does not fit */
    CHECK_INT(aq_connection_peer_chain(engine, client, exported, sizeof(exported)), 2);
    CHECK_BYTES(exported, "\x30\0", 2); /* what null_tls.c has got */
    CHECK_INT(atomic_load(&sessions), 2);
    CHECK_INT(aq_connection_close(engine, client, 7, 0), AQ_OK);
    expect_event(AQ_EVENT_CLOSED, client);
    event = expect_event(AQ_EVENT_CLOSED, 0);
    CHECK_INT(event.code, AQ_CLOSE_PEER_APPLICATION);
    CHECK_INT(event.value, 7);
    expect_nothing_left();
}

static void test_an_engine_on_another_layer(void)
{
    begin();
    expect_connection();
    CHECK_INT(counted(AQ_C_connections_accepted), 1);
    CHECK_INT(counted(AQ_C_quic_handshakes_completed), 2);
    CHECK_INT(atomic_load(&attached), 2);
    CHECK(atomic_load(&made_tokens) > 1); /* also for further connection IDs */
    end();
}

/* The error of the layer is the result of aq_connect(). */
static void test_no_session_for_a_client(void)
{
    begin();
    atomic_store(&refused, CLIENT);
    CHECK_INT(connect_client(), AQ_ERR_TLS);
    expect_nothing_left();
    CHECK_INT(counted(AQ_C_connections_opened), 0);
    atomic_store(&refused, NOBODY);
    expect_connection();
    end();
}

/* The server keeps nothing of the client, and serves the next one. */
static void test_no_session_for_a_server(void)
{
    aq_event event;
    aq_id client;

    begin();
    atomic_store(&refused, SERVER);
    handshake_timeout = UNANSWERED;
    client = connect_client();
    handshake_timeout = WAIT_MS * AQ_NSEC_PER_MSEC;
    CHECK(client > 0);
    event = expect_event(AQ_EVENT_CLOSED, client);
    CHECK_INT(event.code, AQ_CLOSE_HANDSHAKE_TIMEOUT);
    CHECK(counted(AQ_C_memory_failures) > 0);
    CHECK_INT(counted(AQ_C_connections_accepted), 0);
    expect_nothing_left();
    atomic_store(&refused, NOBODY);
    expect_connection();
    end();
}

/* The verdict of the layer after the handshake: alert and text reach the event. */
static void test_a_refused_certificate(void)
{
    aq_event event;
    aq_id client;

    begin();
    atomic_store(&uncertain, 1);
    client = connect_client();
    CHECK(client > 0);
    event = expect_event(AQ_EVENT_CLOSED, client);
    CHECK_INT(event.code, AQ_CLOSE_CERTIFICATE);
    CHECK_INT(event.value, ALERT);
    CHECK_INT(event.length, strlen(PROBLEM));
    CHECK_BYTES(event.data, PROBLEM, strlen(PROBLEM));
    atomic_store(&uncertain, 0);
    end();
}

/* Each allocation of a client's connection fails once. The main thread plays the engine. */
static void test_no_memory(void)
{
    const aq_transport_options options = transport();
    aq_sockaddr remote;
    int fd = bound_socket(&remote);
    aq_credentials *credentials;
    aq_endpoint *endpoint;
    aq_conn *conn;
    int64_t error;
    uint32_t failures = 0;

    make_engine();
    credentials = fake.credentials_new(NULL, &error, NULL, 0);
    CHECK(credentials != NULL);
    endpoint = aq_endpoint_new(&engine->host, socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), credentials, &options,
                               &remote, &error);
    CHECK(endpoint != NULL);
    for (uint32_t left = 0;; left++) {
        uint32_t rest;
        allocations_left = left;
        conn = aq_endpoint_connect(endpoint, &remote, "localhost", 0, aq_now(), &error);
        rest = allocations_left;
        allocations_left = NO_FAILURE;
        if (conn == NULL) {
            CHECK_INT(error, AQ_ERR_MEMORY);
            failures++;
        } else {
            CHECK_INT(error, AQ_OK);
            CHECK_INT(atomic_load(&sessions), 1);
            aq_endpoint_remove(endpoint, conn);
        }
        CHECK_INT(atomic_load(&sessions), 0);
        CHECK_INT(aq_slab_count(&engine->connections), 0);
        CHECK_INT(endpoint->connections, 0);
        CHECK_INT(credentials->references, 2);
        if (rest != NO_FAILURE && rest > 0) /* there are no more */
            break;
    }
    CHECK(conn != NULL || failures > 0);
    CHECK(failures > 3); /* the connection, its queues, its session ... */
    aq_endpoint_free(endpoint);
    CHECK_INT(credentials->references, 1);
    fake.credentials_unref(credentials);
    aq_engine_close(engine);
    aq_engine_free(engine);
    close(fd);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    fake = *aq_handshake;
    fake.session_new = fake_session_new;
    fake.session_free = fake_session_free;
    fake.session_attach = fake_session_attach;
    fake.session_check = fake_session_check;
    fake.session_certificate_problem = fake_session_certificate_problem;
    fake.reset_token = fake_reset_token;
    test_an_engine_on_another_layer();
    test_no_session_for_a_client();
    test_no_session_for_a_server();
    test_a_refused_certificate();
    test_no_memory();
    return check_done();
}

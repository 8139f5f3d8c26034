/* Peers that keep no rules, played by hand against a whole engine (tests/fuzz/raw_peer.h), on one thread and in
 * simulated time. Without encryption, so that every frame can be written as it is needed; ngtcp2 is the real one.
 *
 * Each trap is a function that is called whenever nothing is under way: it does the next thing, looks at what came of
 * the one before, and returns 0 at its end. Without arguments all are run; with names, those.
 */
#include "raw_peer.h"

#include "check.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#define WATCHDOG_SECONDS 90
#define TURNS_MAX 200000
#define CLIENT_HELLO_LENGTH 55

static struct {
    unsigned quiet, turns;
    uint64_t shortest_sleep; /* ns; 0: not asked yet */
    unsigned events[32];     /* by type */
    aq_id connection, stream, credentials;
    uint64_t close_cause, close_code;
    uint32_t command_length;
    int silent;      /* the raw peer does nothing by itself */
    int roomy;       /* windows and streams as a server has them; few and small otherwise */
    int far_ends[8]; /* of sockets that the engine has */
    size_t far_length;
    unsigned answers; /* datagrams to the raw peer */
    int udp, user;    /* public UDP socket, and who sends to it */
    aq_id udp_id;
} it;

static int server_fd, client_fd;

static uint64_t counted(const aq_engine *engine, enum aq_counter which)
{
    return atomic_load(&engine->counters.value[which]);
}

static void later(uint64_t milliseconds)
{
    sim_now += milliseconds * AQ_NSEC_PER_MSEC;
}

/* ---- beginnings ---------------------------------------------------------------------------------------------------
 */

static aq_transport_options transport(void)
{
    return (aq_transport_options){.max_udp_payload = 1452,
                                  .idle_timeout = 30 * AQ_NSEC_PER_SEC,
                                  .handshake_timeout = 5 * AQ_NSEC_PER_SEC,
                                  .command_timeout = 3 * AQ_NSEC_PER_SEC,
                                  .send_window = 65536,
                                  .receive_window = 65536,
                                  .connection_window = it.roomy ? 6ULL << 30 : 65536,
                                  .datagram_queue = 131072,
                                  .fragment_lifetime = AQ_NSEC_PER_SEC,
                                  .max_streams_bidi = 8,
                                  .max_streams_uni = it.roomy ? 1024 : 8,
                                  .max_pending_streams = 8,
                                  .gso = 1,
                                  .datagrams = 1};
}

static void make_credentials(aq_engine *engine)
{
    aq_credentials_options options = {.server = 1};
    it.credentials = aq_credentials_new(engine, &options, NULL, 0);
    CHECK(it.credentials > 0);
}

static void (*peer_receives)(const uint8_t *data, size_t length);

static void count_answer(const uint8_t *data, size_t length)
{
    it.answers++;
    peer_receives(data, length);
}

static void begin_peer(int is_server, const raw_options *options)
{
    raw_begin(is_server, options);
    peer_receives = sim_peer;
    sim_peer = count_answer;
}

/* The engine's server, and a client played by hand. */
static void serve(aq_engine *engine, const raw_options *client)
{
    aq_listen_options options = {.fd = server_fd,
                                 .transport = transport(),
                                 .retry_threshold = 100,
                                 .max_half_open = 4,
                                 .max_half_open_per_source = 4,
                                 .max_connections = 4};
    make_credentials(engine);
    options.credentials = it.credentials;
    CHECK(aq_listen(engine, &options) > 0);
    if (client != NULL)
        begin_peer(0, client);
}

/* The engine's client, and a server played by hand. */
static void join(aq_engine *engine, const raw_options *server)
{
    aq_connect_options options = {.fd = client_fd,
                                  .remote = {.family = 4, .ip = {127, 0, 0, 1}, .port = 443},
                                  .server_name = "localhost",
                                  .transport = transport()};
    make_credentials(engine);
    options.credentials = it.credentials;
    if (server != NULL)
        begin_peer(1, server);
    it.connection = aq_connect(engine, &options);
    CHECK(it.connection > 0);
}

static void is_connected(const aq_engine *engine)
{
    CHECK_INT(it.events[AQ_EVENT_CONNECTED], 1);
    CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
    CHECK_INT(counted(engine, AQ_C_quic_handshakes_completed), 1);
}

/* ---- the traps ----------------------------------------------------------------------------------------------------
 */

static int empty_datagram_frame(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        serve(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        raw_datagram(NULL, 0);
        raw_datagram((const uint8_t *)"\0\5", 2);
        return 1;
    default:
        CHECK_INT(counted(engine, AQ_C_violations), 1);
        CHECK_INT(counted(engine, AQ_C_commands_received), 1);
        CHECK_INT(it.events[AQ_EVENT_VIOLATION], 1);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0); /* Python decides what it costs */
        return 0;
    }
}

static int empty_stream_frames(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        join(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        raw_stream(1, NULL, 0, 0);
        raw_stream(1, (const uint8_t *)"\0\2\377", 3, 0);
        raw_stream(1, NULL, 0, 0);
        raw_stream(3, NULL, 0, 0);
        raw_stream(3, (const uint8_t *)"\0\4\0\1", 4, 1);
        raw_stream(5, NULL, 0, 1);
        return 1;
    default:
        CHECK_INT(it.events[AQ_EVENT_STREAM_OPENED], 1);
        CHECK_INT(it.events[AQ_EVENT_COMMAND_RECEIVED], 1);
        CHECK_INT(counted(engine, AQ_C_violations), 1); /* the one that ended without Connect */
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    }
}

/* A server that confirms the handshake before it can have Finished. */
static int early_confirmation(aq_engine *engine, unsigned moment)
{
    static const uint8_t HANDSHAKE_DONE = 0x1e;
    switch (moment) {
    case 0:
        it.silent = 1;
        join(engine, &RAW_GENEROUS);
        return 1;
    case 1: /* in one batch, with the first of them waiting for its keys */
        raw_send(RAW_APPLICATION, &HANDSHAKE_DONE, 1);
        raw_turn(0);
        raw_turn(0);
        raw_send(RAW_HANDSHAKE, (const uint8_t *)"\1", 1);
        raw_send(RAW_APPLICATION, (const uint8_t *)"\1", 1);
        return 1;
    case 2:
        later(500);
        return 1;
    default:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 1);
        CHECK_INT(it.close_cause, AQ_CLOSE_PEER_FAULT);
        CHECK_INT(it.close_code, NGTCP2_PROTOCOL_VIOLATION);
        return 0;
    }
}

/* The same, in the moment in which pacing may hold the client's Finished back. Where it has left already, the server
 * can't be told from one that has got it. */
static int confirmation_before_finished(aq_engine *engine, unsigned moment)
{
    static const uint8_t HANDSHAKE_DONE = 0x1e;
    switch (moment) {
    case 0:
        it.silent = 1;
        join(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        raw_turn(0);
        return 1;
    case 2:
        is_connected(engine);
        raw_send(RAW_APPLICATION, &HANDSHAKE_DONE, 1);
        return 1;
    case 3:
        later(500);
        return 1;
    default:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], it.close_cause == AQ_CLOSE_PEER_FAULT ? 1 : 0);
        return 0;
    }
}

/* A server that takes its connection id back before the client has Finished. */
static int early_retirement(aq_engine *engine, unsigned moment)
{
    uint8_t frame[64];
    switch (moment) {
    case 0:
        it.silent = 1;
        join(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        raw_turn(0);
        raw_send(RAW_APPLICATION, frame, (size_t)(raw_new_cid(frame, 1, 1) - frame));
        return 1;
    case 2:
        later(500);
        return 1;
    default: /* older libraries can't go on */
        CHECK_INT(it.events[AQ_EVENT_CLOSED], AQ_SURVIVES_EARLY_RETIREMENT ? 0 : 1);
        return 0;
    }
}

static void attach(aq_engine *engine, aq_id stream, size_t length)
{
    static uint8_t bytes[65536];
    int ends[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    CHECK_INT(write(ends[1], bytes, length), length);
    it.far_ends[it.far_length++] = ends[1];
    CHECK_INT(aq_stream_attach(engine, stream, ends[0]), AQ_OK);
}

static void open_streams(aq_engine *engine, int count, size_t length)
{
    static const uint8_t CONNECT[] = {0, 2, 1, 127, 0, 0, 1, 4, 0};
    for (int i = 0; i < count; i++) {
        aq_id stream = aq_stream_open(engine, it.connection, CONNECT, sizeof(CONNECT));
        CHECK(stream > 0);
        attach(engine, stream, length);
    }
}

/* Streams that are blocked one after the other while a packet is being built, and packets and timers in between. */
static int half_built_packets(aq_engine *engine, unsigned moment)
{
    static const uint8_t PING = 1;
    raw_options narrow = RAW_GENEROUS;
    uint8_t command[50] = {0};
    narrow.stream_window = 40;
    switch (moment) {
    case 0:
        serve(engine, &narrow);
        return 1;
    case 1:
        is_connected(engine);
        open_streams(engine, 4, 1000);
        for (int i = 0; i < 3; i++)
            CHECK_INT(aq_connection_send(engine, it.connection, command, sizeof(command)), AQ_OK);
        CHECK_INT(aq_connection_heartbeat(engine, it.connection, (const uint8_t *)"\0\5", 2, AQ_NSEC_PER_MSEC), AQ_OK);
        return 1;
    case 40:
        CHECK_INT(counted(engine, AQ_C_stream_bytes_sent), 4 * 40);
        for (uint64_t id = 1; id < 16; id += 4)
            raw_credit(id, 2000);
        return 1;
    case 80:
        CHECK_INT(counted(engine, AQ_C_stream_bytes_sent), 4 * 1009);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    default:
        raw_send(RAW_APPLICATION, &PING, 1);
        later(5);
        return 1;
    }
}

static int no_credit(aq_engine *engine, unsigned moment)
{
    raw_options miser = {.connection_window = 0};
    switch (moment) {
    case 0:
        serve(engine, &miser);
        return 1;
    case 1:
        is_connected(engine);
        open_streams(engine, 4, 1000);
        CHECK_INT(aq_connection_send(engine, it.connection, (const uint8_t *)"\0\5", 2), AQ_OK);
        CHECK_INT(aq_connection_heartbeat(engine, it.connection, (const uint8_t *)"\0\5", 2, AQ_NSEC_PER_MSEC), AQ_OK);
        return 1;
    case 20:
        CHECK_INT(counted(engine, AQ_C_stream_bytes_sent), 0);
        CHECK_INT(counted(engine, AQ_C_streams_opened), 0);
        raw_credit(RAW_NO_STREAM, (1 << 13) + 16); /* bytes, and 16 streams */
        return 1;
    case 21:
        CHECK_INT(counted(engine, AQ_C_streams_opened), 4);
        CHECK_INT(counted(engine, AQ_C_stream_bytes_sent), 0);
        for (uint64_t id = 1; id < 16; id += 4)
            raw_credit(id, 1 << 13);
        return 1;
    case 40:
        CHECK_INT(counted(engine, AQ_C_stream_bytes_sent), 4 * 1009);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    default:
        later(5);
        return 1;
    }
}

/* Bytes for all streams together run out first, and come back. */
static int connection_window(aq_engine *engine, unsigned moment)
{
    raw_options narrow = RAW_GENEROUS;
    narrow.connection_window = 100;
    switch (moment) {
    case 0:
        serve(engine, &narrow);
        return 1;
    case 1:
        is_connected(engine);
        open_streams(engine, 4, 1000);
        return 1;
    case 10:
        CHECK_INT(counted(engine, AQ_C_stream_bytes_sent), 100);
        raw_credit(1, 1 << 20);
        return 1;
    case 30:
        CHECK_INT(counted(engine, AQ_C_stream_bytes_sent), 4 * 1009);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    default:
        later(20);
        return 1;
    }
}

/* While the QUIC socket is full, and timers are due, the engine sleeps: a turn is no longer than a moment of quiet. */
static int full_socket(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        sim_full = UINT32_MAX;
        join(engine, &RAW_GENEROUS);
        return 1;
    case 40:
        CHECK(counted(engine, AQ_C_quic_send_blocked) > 0);
        sim_full = 0;
        return 1;
    case 100:
        is_connected(engine);
        CHECK(it.turns < 2000);
        return 0;
    default:
        later(50);
        return 1;
    }
}

/* A UDP packet that needs more fragments than there can be does not hold up the ones behind it. */
static int oversize_datagram(aq_engine *engine, unsigned moment)
{
    static uint8_t bytes[30000];
    raw_options small = RAW_GENEROUS;
    struct sockaddr_in here = {.sin_family = AF_INET}, from;
    socklen_t length = sizeof(here);
    aq_address source = {.family = 4, .ip = {127, 0, 0, 1}};
    small.datagram = 60;
    switch (moment) {
    case 0:
        serve(engine, &small);
        return 1;
    case 1:
        is_connected(engine);
        CHECK_INT(aq_connection_set_joined(engine, it.connection, AQ_CARRIER_DATAGRAM, 1), AQ_OK);
        it.udp = socket(AF_INET, SOCK_DGRAM, 0);
        it.user = socket(AF_INET, SOCK_DGRAM, 0);
        here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        CHECK_INT(bind(it.udp, (const struct sockaddr *)&here, sizeof(here)), 0);
        CHECK_INT(getsockname(it.udp, (struct sockaddr *)&here, &length), 0);
        CHECK_INT(connect(it.user, (const struct sockaddr *)&here, sizeof(here)), 0);
        CHECK_INT(getsockname(it.user, (struct sockaddr *)&from, &length), 0);
        source.port = ntohs(from.sin_port);
        it.udp_id = aq_udp_open(engine, it.connection, it.udp, 1, 0);
        CHECK(it.udp_id > 0);
        CHECK_INT(aq_association_add(engine, it.udp_id, 7, &source, NULL, NULL, 0), AQ_OK);
        CHECK_INT(send(it.user, bytes, sizeof(bytes), 0), sizeof(bytes));
        CHECK_INT(send(it.user, bytes, 100, 0), 100);
        return 1;
    case 20:
        CHECK_INT(counted(engine, AQ_C_packet_drop_too_big), 1);
        CHECK_INT(counted(engine, AQ_C_packets_sent), 1);
        close(it.udp);
        close(it.user);
        return 0;
    default:
        later(5);
        return 1;
    }
}

static int no_alpn(aq_engine *engine, unsigned moment)
{
    raw_options without = RAW_GENEROUS;
    without.flags = 1;
    switch (moment) {
    case 0:
        serve(engine, &without);
        return 1;
    default:
        CHECK_INT(it.events[AQ_EVENT_CONNECTED], 0);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 1);
        CHECK_INT(it.close_cause, AQ_CLOSE_TLS);
        CHECK_INT(it.close_code, 120);
        return 0;
    }
}

static int silent_after_initial(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        it.silent = 1;
        serve(engine, &RAW_GENEROUS);
        raw_turn(0);
        return 1;
    case 150: /* fifteen seconds; the connection is forgotten three PTO after its end */
        CHECK_INT(counted(engine, AQ_C_quic_handshakes_failed), 1);
        CHECK_INT(engine->all_endpoints[0]->half_open, 0);
        CHECK_INT(engine->all_endpoints[0]->connections, 0);
        return 0;
    default:
        CHECK_INT(counted(engine, AQ_C_connections_accepted), 1);
        if (moment < 40)
            CHECK_INT(engine->all_endpoints[0]->half_open, 1);
        later(100);
        return 1;
    }
}

static int early_packets(aq_engine *engine, unsigned moment)
{
    static const uint8_t PING = 1;
    switch (moment) {
    case 0:
        it.silent = 1;
        serve(engine, &RAW_GENEROUS);
        raw_send(RAW_APPLICATION, &PING, 1);
        raw_send(RAW_HANDSHAKE, &PING, 1);
        return 1;
    case 1:
        CHECK_INT(counted(engine, AQ_C_connections_accepted), 0);
        CHECK_INT(counted(engine, AQ_C_quic_drop_unknown_connection), 2);
        raw_turn(0); /* the Initial */
        return 1;
    case 2: /* before the end of the handshake, to the connection itself */
        raw_datagram((const uint8_t *)"\0\5", 2);
        raw_stream(2, (const uint8_t *)"\0\5", 2, 1);
        return 1;
    case 3:
        CHECK_INT(it.events[AQ_EVENT_CONNECTED], 0);
        CHECK_INT(counted(engine, AQ_C_commands_received), 0);
        it.silent = 0;
        return 1;
    case 12:
        is_connected(engine);
        return 0;
    default:
        later(100);
        return 1;
    }
}

/* The 1st, 2nd, 4th, 8th ... packet behind a close is answered with the close again, for three times the PTO. */
static int late_packets(aq_engine *engine, unsigned moment)
{
    static const uint8_t PING = 1;
    switch (moment) {
    case 0:
        serve(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        it.silent = 1;
        CHECK_INT(aq_connection_close(engine, it.connection, 7, 0), AQ_OK);
        return 1;
    case 2:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 1);
        it.answers = 0;
        for (int i = 0; i < 16; i++)
            raw_send(RAW_APPLICATION, &PING, 1);
        return 1;
    case 3:
        CHECK_INT(it.answers, 5);
        CHECK_INT(counted(engine, AQ_C_quic_drop_closing), 16);
        later(15000);
        return 1;
    case 4:
        CHECK_INT(engine->all_endpoints[0]->connections, 0);
        raw_send(RAW_APPLICATION, &PING, 1);
        return 1;
    default:
        CHECK_INT(counted(engine, AQ_C_quic_drop_unknown_connection), 1);
        return 0;
    }
}

/* Datagrams from ports of services that answer anything: the way to make two of them shout at each other. */
static int reflecting_port(aq_engine *engine, unsigned moment)
{
    raw_options reflecting = RAW_GENEROUS;
    reflecting.port = 53;
    switch (moment) {
    case 0:
        it.silent = 1;
        serve(engine, &reflecting);
        raw_turn(0);
        return 1;
    default:
        CHECK_INT(counted(engine, AQ_C_connections_accepted), 0);
        CHECK_INT(counted(engine, AQ_C_quic_drop_source_port), 1);
        CHECK_INT(it.answers, 0);
        return 0;
    }
}

static int foreign_retry_token(aq_engine *engine, unsigned moment)
{
    static const uint8_t TOKEN[] = {0xb7 /* RETRY_TOKEN of null_tls.c */, 200, 'n', 'o', 't', 'o', 'u', 'r', 's'};
    raw_options liar = RAW_GENEROUS;
    liar.token = TOKEN;
    liar.token_length = sizeof(TOKEN);
    switch (moment) {
    case 0:
        it.silent = 1;
        serve(engine, &liar);
        raw_turn(0);
        return 1;
    default:
        CHECK_INT(counted(engine, AQ_C_retry_tokens_invalid), 1);
        CHECK_INT(counted(engine, AQ_C_connections_refused), 1);
        CHECK_INT(counted(engine, AQ_C_connections_accepted), 0);
        CHECK_INT(it.answers, 1); /* INVALID_TOKEN, so that it need not wait */
        return 0;
    }
}

static int truncated(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        serve(engine, NULL);
        join(engine, NULL);
        sim_fault = (sim_fault_plan){SIM_TRUNCATED, 1, 0};
        return 1;
    case 40: /* the Initial is sent again after a second */
        CHECK_INT(counted(engine, AQ_C_quic_drop_truncated), 1);
        CHECK_INT(counted(engine, AQ_C_quic_handshakes_completed), 2);
        return 0;
    default:
        later(100);
        return 1;
    }
}

static void ping(void)
{
    static const uint8_t PING = 1;
    raw_send(RAW_APPLICATION, &PING, 1);
}

/* A ClientHello byte by byte: in time, and not. */
static int slow_command(aq_engine *engine, unsigned moment)
{
    static const uint8_t HELLO[CLIENT_HELLO_LENGTH] = {0, 0};
    if (moment == 0) {
        serve(engine, &RAW_GENEROUS);
    } else if (moment <= CLIENT_HELLO_LENGTH) { /* 2.75 seconds */
        raw_stream(2, HELLO + moment - 1, 1, moment == CLIENT_HELLO_LENGTH);
        later(50);
    } else if (moment == CLIENT_HELLO_LENGTH + 1) {
        CHECK_INT(it.events[AQ_EVENT_COMMAND_RECEIVED], 1);
        CHECK_INT(it.command_length, CLIENT_HELLO_LENGTH);
        CHECK_INT(it.events[AQ_EVENT_VIOLATION], 0);
    } else if (moment <= 2 * CLIENT_HELLO_LENGTH) { /* 5.4 seconds, all but the last byte */
        raw_stream(6, HELLO + moment - CLIENT_HELLO_LENGTH - 2, 1, 0);
        later(100);
    } else {
        CHECK_INT(it.events[AQ_EVENT_COMMAND_RECEIVED], 1);
        CHECK_INT(it.events[AQ_EVENT_VIOLATION], 1);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    }
    return 1;
}

static int slow_connect(aq_engine *engine, unsigned moment)
{
    if (moment == 0) {
        join(engine, &RAW_GENEROUS);
    } else if (moment == 1) {
        raw_stream(1, (const uint8_t *)"\0\2\1\177", 4, 0);
        raw_stream(5, (const uint8_t *)"\0\2", 2, 0);
    } else if (moment == 20) {
        raw_stream(5, (const uint8_t *)"\377", 1, 0);
    } else if (moment == 40) {
        CHECK_INT(it.events[AQ_EVENT_STREAM_OPENED], 1);
        CHECK_INT(counted(engine, AQ_C_commands_late), 1);
        CHECK_INT(it.events[AQ_EVENT_VIOLATION], 0);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    } else {
        ping();
        later(100);
    }
    return 1;
}

/* A path that is interrupted in the middle of a command is no fault of the peer's; and one that goes on without the
 * rest costs the command, and not the connection. */
static int stalled_command(aq_engine *engine, unsigned moment)
{
    if (moment == 0) {
        serve(engine, &RAW_GENEROUS);
    } else if (moment == 1) {
        is_connected(engine);
        CHECK_INT(aq_connection_set_joined(engine, it.connection, AQ_CARRIER_STREAM, 1), AQ_OK);
        raw_stream(2, (const uint8_t *)"\0\4", 2, 0);
    } else if (moment < 50) { /* nothing arrives for 4.7 seconds */
        it.silent = 1;
        later(100);
    } else if (moment == 50) {
        it.silent = 0;
        ping();
    } else if (moment == 51) {
        raw_stream(2, (const uint8_t *)"\0\1", 2, 1);
    } else if (moment == 52) {
        CHECK_INT(it.events[AQ_EVENT_COMMAND_RECEIVED], 1);
        CHECK_INT(counted(engine, AQ_C_commands_late), 0);
        raw_stream(6, (const uint8_t *)"\0\4", 2, 0);
    } else if (moment < 90) { /* 3.7 seconds, in which other things arrive */
        ping();
        later(100);
    } else if (moment == 90) {
        CHECK_INT(counted(engine, AQ_C_commands_late), 1);
        raw_stream(10, (const uint8_t *)"\0\4\0\1", 4, 1);
    } else {
        CHECK_INT(it.events[AQ_EVENT_COMMAND_RECEIVED], 2);
        CHECK_INT(it.events[AQ_EVENT_VIOLATION], 0);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    }
    return 1;
}

/* What is said of a peer that breaks the rules of QUIC is that, and the code that it is told. */
static int fault_of_the_peer(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        serve(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        raw_send(RAW_APPLICATION, (const uint8_t *)"\077", 1); /* no frame has this type */
        return 1;
    default:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 1);
        CHECK_INT(it.close_cause, AQ_CLOSE_PEER_FAULT);
        CHECK_INT(it.close_code, NGTCP2_FRAME_ENCODING_ERROR);
        return 0;
    }
}

#define SPARSE_BYTES 8192 /* what a single byte makes ngtcp2 keep */

/* STREAM frames of one byte each, far apart, on so many streams from the one of this number on. */
static void send_sparse(unsigned first, unsigned streams, unsigned per_packet)
{
    for (unsigned stream = first; stream < first + streams; stream++) {
        uint8_t frames[400], *at = frames;
        for (unsigned i = 0; i < AQ_UNI_WINDOW / SPARSE_BYTES; i++) {
            uint32_t id = 0x80000002U + 4 * stream, offset = 0x80000001U + i * SPARSE_BYTES;
            *at++ = 0x0e;
            for (int shift = 24; shift >= 0; shift -= 8)
                *at++ = (uint8_t)(id >> shift);
            for (int shift = 24; shift >= 0; shift -= 8)
                *at++ = (uint8_t)(offset >> shift);
            *at++ = 1;
            *at++ = 'x';
            if ((i + 1) % per_packet == 0) {
                raw_send(RAW_APPLICATION, frames, (size_t)(at - frames));
                at = frames;
            }
        }
    }
}

/* Bytes far apart hold no more memory than the credit of the connection, which is small at first. */
static int sparse_data(aq_engine *engine, unsigned moment)
{
    uint64_t used = atomic_load(&engine->budget.used);
    switch (moment) {
    case 0:
        it.roomy = 1;
        serve(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        CHECK_INT(aq_connection_set_joined(engine, it.connection, AQ_CARRIER_DATAGRAM, 1), AQ_OK);
        return 1;
    case 2: /* until the credit has left, in the library's own time */
        later(100);
        return 1;
    case 3:
        CHECK_INT(used, 0);
        send_sparse(0, 7, 16);
        return 1;
    case 4:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        CHECK(used > 7 * AQ_UNI_WINDOW - AQ_ACCOUNT_FREE && used < AQ_CONN_FIRST_WINDOW * 5 / 4);
        send_sparse(7, 1000, 16); /* as if there were no end of it */
        return 1;
    default:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 1);
        CHECK_INT(it.close_cause, AQ_CLOSE_PEER_FAULT);
        CHECK_INT(it.close_code, NGTCP2_FLOW_CONTROL_ERROR);
        CHECK_INT(used, 0);
        return 0;
    }
}

/* Where it is too much nevertheless, the connection that holds the most is closed. */
static int too_much_sparse_data(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        it.roomy = 1;
        CHECK_INT(aq_receive_memory(engine, 512 * 1024), AQ_OK);
        serve(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        CHECK_INT(aq_connection_set_joined(engine, it.connection, AQ_CARRIER_DATAGRAM, 1), AQ_OK);
        CHECK_INT(aq_receive_memory(engine, 128 * 1024), AQ_OK);
        return 1;
    case 2: /* until the credit has left, in the library's own time */
        later(100);
        return 1;
    case 3:
        send_sparse(0, 1, 1);
        return 1;
    case 4:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        send_sparse(1, 1, 1); /* within the credit of the connection */
        return 1;
    default:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 1);
        CHECK_INT(it.close_cause, AQ_CLOSE_LOCAL);
        CHECK_INT(counted(engine, AQ_C_connections_shed), 1);
        CHECK_INT(atomic_load(&engine->budget.used), 0);
        return 0;
    }
}

/* A stream that is given up inside its Connect: given back at once, and nobody is to blame for it. */
static int reset_before_connect(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        join(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        raw_stream(1, (const uint8_t *)"\0\2\1\177", 4, 0);
        raw_end_stream(1, 0, 7);
        raw_end_stream(5, 0, 7); /* before its first byte */
        return 1;
    case 2:
        later(200); /* so far from command_timeout */
        return 1;
    default:
        CHECK_INT(counted(engine, AQ_C_streams_accepted), 2);
        CHECK_INT(counted(engine, AQ_C_streams_reset_by_peer), 2);
        CHECK_INT(aq_slab_count(&engine->streams), 0);
        CHECK_INT(it.events[AQ_EVENT_VIOLATION], 0);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    }
}

/* A peer that wants no more of a stream, whose window it has used up, and says nothing itself: who writes to the socket
 * is not held up, and after a while the connection is reset. */
static int stop_sending_alone(aq_engine *engine, unsigned moment)
{
    static const uint8_t PING = 1;
    static uint8_t bytes[30000];
    raw_options narrow = RAW_GENEROUS;
    narrow.stream_window = 40;
    switch (moment) {
    case 0:
        serve(engine, &narrow);
        return 1;
    case 1:
        is_connected(engine);
        CHECK_INT(aq_connection_set_joined(engine, it.connection, AQ_CARRIER_DATAGRAM, 0), AQ_OK);
        open_streams(engine, 1, 1000);
        return 1;
    case 10:
        CHECK_INT(counted(engine, AQ_C_stream_bytes_sent), 40);
        raw_end_stream(1, 1, 7);
        return 1;
    case 30: /* more than pipe and socket hold, but not all at once, as a program with blocking calls has it */
    case 31:
    case 32:
    case 33:
    case 34:
    case 35:
    case 36:
    case 37:
    case 38:
    case 39:
        CHECK_INT(send(it.far_ends[0], bytes, sizeof(bytes), MSG_DONTWAIT), sizeof(bytes));
        return 1;
    case 40:
        CHECK(counted(engine, AQ_C_stream_bytes_dropped) >= 10 * sizeof(bytes));
        CHECK_INT(counted(engine, AQ_C_relays_cut_short), 0);
        raw_stream(1, (const uint8_t *)"and on", 6, 0); /* what it says arrives, and begins the wait anew */
        return 1;
    case 300:
        CHECK_INT(recv(it.far_ends[0], bytes, sizeof(bytes), MSG_DONTWAIT), 6);
        CHECK_INT(counted(engine, AQ_C_relays_cut_short), 0);
        CHECK_INT(aq_slab_count(&engine->streams), 1);
        return 1;
    case 500: /* 46 seconds */
        CHECK_INT(counted(engine, AQ_C_relays_cut_short), 1);
        CHECK_INT(counted(engine, AQ_C_relays_peer_reset), 1);
        CHECK_INT(recv(it.far_ends[0], bytes, sizeof(bytes), MSG_DONTWAIT), 0);
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 0);
        return 0;
    default:
        raw_send(RAW_APPLICATION, &PING, 1);
        later(100);
        return 1;
    }
}

/* Small packets now and then: none of them asks for a timer of its pace, which would end the engine's sleep for
 * nothing. */
static int no_pace_for_the_few(aq_engine *engine, unsigned moment)
{
    switch (moment) {
    case 0:
        join(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        return 1;
    case 10: /* what follows the handshake is over */
        it.shortest_sleep = 0;
        break;
    case 50:
        CHECK_INT(counted(engine, AQ_C_commands_sent), 40);
        CHECK(it.shortest_sleep >= 5 * AQ_NSEC_PER_MSEC);
        return 0;
    default:
        break;
    }
    if (moment >= 10)
        CHECK_INT(aq_connection_send(engine, it.connection, (const uint8_t *)"\0\5", 2), AQ_OK);
    later(20);
    return 1;
}

/* From another port each time: connection ids for the server to answer with, a probe of the path, and with `moves` a
 * packet that makes it the connection's own. */
static void from_elsewhere(unsigned moment, int moves)
{
    static const uint8_t PING = 1;
    uint8_t frames[64], *at = raw_new_cid(frames, moment, 0);
    raw_move((uint16_t)(SIM_CLIENT_PORT + 100 + moment));
    *at++ = 0x1a;
    memset(at, 'x', 8);
    raw_send(RAW_APPLICATION, frames, (size_t)(at + 8 - frames));
    if (moves)
        raw_send(RAW_APPLICATION, &PING, 1);
}

/* A client that never acknowledges the end of a connection id. The library remembers sixteen of those. */
static int unacknowledged_ids(aq_engine *engine, unsigned moment, int moves)
{
    if (moment == 0) {
        serve(engine, &RAW_GENEROUS);
    } else if (moment < 60) {
        if (moment == 1)
            is_connected(engine);
        it.silent = 1;
        from_elsewhere(moment, moves);
    } else {
        CHECK_INT(it.events[AQ_EVENT_CLOSED], 1);
        CHECK_INT(it.close_cause, AQ_CLOSE_PEER_FAULT);
        CHECK_INT(it.close_code, NGTCP2_CONNECTION_ID_LIMIT_ERROR);
        return 0;
    }
    return 1;
}

static int many_probed_paths(aq_engine *engine, unsigned moment)
{
    return unacknowledged_ids(engine, moment, 0);
}

static int many_paths(aq_engine *engine, unsigned moment)
{
    return unacknowledged_ids(engine, moment, 1);
}

/* As many packets as could use up all numbers, had each skipped as many as it may. */
static int last_packet_numbers(aq_engine *engine, unsigned moment)
{
    static const uint8_t PING = 1;
    switch (moment) {
    case 0:
        serve(engine, &RAW_GENEROUS);
        return 1;
    case 1:
        is_connected(engine);
        engine->all_endpoints[0]->conns.first->half_open = 0; /* or the limit for strangers would be first */
        engine->all_endpoints[0]->half_open--;
        engine->all_endpoints[0]->conns.first->packets_received = (UINT64_C(1) << 31) - (UINT64_C(1) << 20);
        raw_send(RAW_APPLICATION, &PING, 1);
        return 1;
    default:
        CHECK_INT(it.events[AQ_EVENT_CLOSED], AQ_MAX_PACKETS_RECEIVED == UINT64_MAX ? 0 : 1);
        return 0;
    }
}

/* ---- running them -------------------------------------------------------------------------------------------------
 */

#define TRAP(name)                                                                                                     \
    {                                                                                                                  \
#name, name                                                                                                    \
    }

static const struct {
    const char *name;
    int (*trap)(aq_engine *engine, unsigned moment);
} TRAPS[] = {
    TRAP(empty_datagram_frame),
    TRAP(empty_stream_frames),
    TRAP(early_confirmation),
    TRAP(confirmation_before_finished),
    TRAP(early_retirement),
    TRAP(half_built_packets),
    TRAP(no_credit),
    TRAP(connection_window),
    TRAP(oversize_datagram),
    TRAP(no_alpn),
    TRAP(silent_after_initial),
    TRAP(early_packets),
    TRAP(late_packets),
    TRAP(reflecting_port),
    TRAP(foreign_retry_token),
    TRAP(truncated),
    TRAP(slow_command),
    TRAP(full_socket),
    TRAP(slow_connect),
    TRAP(reset_before_connect),
    TRAP(stop_sending_alone),
    TRAP(stalled_command),
    TRAP(fault_of_the_peer),
    TRAP(sparse_data),
    TRAP(too_much_sparse_data),
    TRAP(no_pace_for_the_few),
    TRAP(many_probed_paths),
    TRAP(many_paths),
    TRAP(last_packet_numbers),
};

static int (*trap)(aq_engine *engine, unsigned moment);

static void take_events(aq_engine *engine)
{
    aq_event event;
    while (aq_events_wait(engine, &event, 1, 0) == 1) {
        it.events[event.type]++;
        if (event.type == AQ_EVENT_CONNECTED)
            it.connection = event.connection;
        if (event.type == AQ_EVENT_STREAM_OPENED)
            it.stream = event.stream;
        if (event.type == AQ_EVENT_COMMAND_RECEIVED)
            it.command_length = event.length;
        if (event.type == AQ_EVENT_CLOSED) {
            it.close_cause = event.code;
            it.close_code = event.value;
        }
    }
}

static void sleep_turn(aq_engine *engine, const struct timespec *wait)
{
    int busy = wait != NULL && wait->tv_sec == 0 && wait->tv_nsec == 0;
    uint64_t sleep = wait == NULL ? UINT64_MAX : (uint64_t)wait->tv_sec * AQ_NSEC_PER_SEC + (uint64_t)wait->tv_nsec;

    if (sleep > 0 && (it.shortest_sleep == 0 || sleep < it.shortest_sleep))
        it.shortest_sleep = sleep;
    CHECK(++it.turns < TURNS_MAX);
    sim_now += 1000;
    take_events(engine);
    if (sim_peer != NULL && !it.silent)
        raw_turn(1);
    if (!busy && !sim_is_waiting() && !trap(engine, it.quiet++))
        aq_engine_stop(engine);
}

static void run(const char *name, int (*one)(aq_engine *engine, unsigned moment))
{
    aq_engine *engine;
    int64_t problem;

    printf("%s\n", name);
    fflush(stdout);
    memset(&it, 0, sizeof(it));
    trap = one;
    sim_peer = NULL;
    sim_sleep = sleep_turn;
    engine = aq_engine_new(&problem);
    CHECK(engine != NULL);
    sim_begin(engine);
    CHECK_INT(aq_engine_run(engine), AQ_OK);
    while (it.far_length > 0)
        close(it.far_ends[--it.far_length]);
    aq_engine_close(engine);
    aq_engine_free(engine);
    sim_end();
}

static int bound(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(fd >= 0 && bind(fd, (const struct sockaddr *)&here, sizeof(here)) == 0);
    return fd;
}

int main(int count, char **names)
{
    check_watchdog(WATCHDOG_SECONDS);
    server_fd = bound();
    client_fd = bound();
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(TRAPS); i++) {
        int wanted = count < 2;
        for (int at = 1; at < count; at++)
            wanted |= strcmp(names[at], TRAPS[i].name) == 0;
        if (wanted)
            run(TRAPS[i].name, TRAPS[i].trap);
    }
    return check_done();
}

/* A whole engine: datagrams that are mutated, lost, doubled and made up; commands in any order and with any id; frames
 * and ASPORT bytes of a peer that keeps no rules; allocations and system calls that fail.
 *
 * The first bytes say who plays: a client and a server of the engine with each other, or one of them with a peer played
 * by hand (raw_peer.h). The rest are operations, done where the engine sleeps. Compiled three times: NULL_TLS, with the
 * null handshake of null_tls.c; WITH_TLS, a pair with GnuTLS; RAW_TLS, with GnuTLS on both sides and a raw peer.
 *
 * Besides what the sanitizers find, an engine that never sleeps again is a finding.
 */
#include "sim.h"

#if defined(NULL_TLS) || defined(RAW_TLS)
#define WITH_RAW
#include "raw_peer.h"
#endif
#if defined(WITH_TLS) || defined(RAW_TLS)
#define WITH_GNUTLS
#endif
#ifdef RAW_TLS
#include "raw_tls.h"
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define IDS 192        /* ids remembered; what comes later is reached only if it is made up */
#define FAR_ENDS 32    /* our ends of sockets that the engine has the other end of */
#define OPERATIONS 400 /* per input */
#define WIND_DOWN 60   /* turns without operations before the engine is stopped, in which time jumps to its timers */
#define BUSY_TURNS 20000
#define PIECE 1400 /* bytes of the largest piece of an input that goes anywhere as it is */

enum role { PAIR, PAIR_WITH_RETRY, RAW_CLIENT, RAW_SERVER };

static struct {
    fuzz_input input;
    enum role role;
    uint8_t options;
    int started, acknowledges;
    unsigned operations, idle, busy, quiet;
    aq_id ids[IDS];
    size_t ids_length;
    aq_id credentials, endpoint;
    int far_ends[FAR_ENDS];
    size_t far_length;
    aq_address source;  /* that the engine asked about last */
    uint32_t fail_next; /* allocations until the one that fails, from the next turn on */
    size_t wound_down;
} run;

static int server_fd, client_fd, tcp_listener, udp_service, group_udp;
static struct sockaddr_in tcp_address, udp_address, group_address;

/* ---- what is there to name -------------------------------------------------------------------------------------- */

static aq_id remember(aq_id id)
{
    if (id > 0 && run.ids_length < IDS)
        run.ids[run.ids_length++] = id;
    return id;
}

/* Mostly an id of this kind, of something that may be over; sometimes another's, sometimes one that never was. */
static aq_id pick(int kind)
{
    uint8_t which = fuzz_u8(&run.input);
    size_t count = 0;

    if (which == 255)
        return (aq_id)((uint64_t)fuzz_u32(&run.input) << 32 | fuzz_u32(&run.input));
    if (run.ids_length == 0)
        return 1;
    if (which >= 240)
        return run.ids[which % run.ids_length];
    for (size_t i = 0; i < run.ids_length; i++)
        count += aq_id_kind((uint64_t)run.ids[i]) == kind;
    if (count == 0)
        return 0;
    count = which % count;
    for (size_t i = 0;; i++) {
        if (aq_id_kind((uint64_t)run.ids[i]) == kind && count-- == 0)
            return run.ids[i];
    }
}

static int keep_far(int fd)
{
    if (run.far_length == FAR_ENDS) {
        close(fd);
        return -1;
    }
    run.far_ends[run.far_length++] = fd;
    return fd;
}

static int far_end(void)
{
    return run.far_length > 0 ? run.far_ends[fuzz_u8(&run.input) % run.far_length] : -1;
}

static const uint8_t *piece(size_t *length)
{
    return fuzz_bytes(&run.input, (size_t)fuzz_u8(&run.input) * 8 % PIECE, length);
}

static aq_address address(void)
{
    aq_address out = {.family = 4, .ip = {127, 0, 0, 1}};
    uint8_t what = fuzz_u8(&run.input);

    if (what & 8)
        return run.source;
    out.port = (uint16_t)(1024 + what % 8);
    if (what >= 0xf0) {
        out.family = 6;
        memset(out.ip, what, sizeof(out.ip));
    }
    return out;
}

/* ---- the beginning ------------------------------------------------------------------------------------------------
 */

static aq_transport_options transport(int is_server)
{
    aq_transport_options options = {
        .congestion = run.options % 3U,
        .max_udp_payload = run.options & 4 ? 1200 : 1452,
        .idle_timeout = 30 * AQ_NSEC_PER_SEC,
        .keep_alive = is_server ? 0 : 10 * AQ_NSEC_PER_SEC,
        .silence = is_server ? 0 : 2 * AQ_NSEC_PER_SEC,
        .handshake_timeout = 5 * AQ_NSEC_PER_SEC,
        .command_timeout = 3 * AQ_NSEC_PER_SEC,
        .send_window = run.options & 8 ? 16384 : 262144,
        .receive_window = run.options & 16 ? 16384 : 262144,
        .connection_window = run.options & 16 ? 16384 : 1048576,
        .datagram_queue = 65536,
        .fragment_lifetime = AQ_NSEC_PER_SEC,
        .max_streams_bidi = is_server ? 0 : 8,
        .max_streams_uni = 8,
        .max_pending_streams = 6,
        .gso = (run.options & 32) == 0,
        .datagrams = 1,
    };
    return options;
}

static void listen_quic(aq_engine *engine)
{
    aq_listen_options options = {.fd = server_fd,
                                 .credentials = run.credentials,
                                 .transport = transport(1),
                                 .retry_threshold = run.role == PAIR_WITH_RETRY ? 0 : 3,
                                 .max_half_open = 4,
                                 .max_half_open_per_source = 3,
                                 .max_connections = 6};
    run.endpoint = remember(aq_listen(engine, &options));
}

static void connect_quic(aq_engine *engine, aq_id credentials)
{
    aq_connect_options options = {.fd = client_fd,
                                  .credentials = credentials,
                                  .remote = {.family = 4, .ip = {127, 0, 0, 1}, .port = 443},
                                  .server_name = "localhost",
                                  .send_sni = 1,
                                  .transport = transport(0)};
    remember(aq_connect(engine, &options));
}

#ifdef WITH_GNUTLS
aq_id fuzz_credentials(aq_engine *engine, int is_server);
static aq_id client_credentials;
#endif

#ifdef WITH_RAW
static void start_raw(void)
{
    raw_options peer = RAW_GENEROUS;

    if (run.options & 64) /* one that grants little or nothing */
        peer = (raw_options){.connection_window = fuzz_u16(&run.input),
                             .stream_window = fuzz_u8(&run.input),
                             .streams = fuzz_u8(&run.input) % 4,
                             .datagram = fuzz_u16(&run.input) % 200};
#ifdef RAW_TLS
    uint8_t plan = run.options & 128 ? fuzz_u8(&run.input) : 0;
    raw_tls = (raw_tls_plan){.parameters = (enum raw_parameters)(plan % 4U),
                             .hello_retry = (plan & 4) != 0,
                             .asks = (plan & 8) != 0,
                             .meddles = (plan & 16) != 0,
                             .crowded = (plan & 32) != 0,
                             .input = &run.input};
#else
    peer.flags = run.options & 128 ? fuzz_u8(&run.input) : 0;
#endif
    raw_begin(run.role == RAW_SERVER, &peer);
}
#endif

static void start(aq_engine *engine)
{
#ifdef WITH_GNUTLS
    run.credentials = remember(fuzz_credentials(engine, 1));
    client_credentials = remember(fuzz_credentials(engine, 0));
#else
    aq_credentials_options options = {.server = 1};
    run.credentials = remember(aq_credentials_new(engine, &options, NULL, 0));
    aq_id client_credentials = run.credentials;
#endif
    if (run.role != RAW_SERVER)
        listen_quic(engine);
    if (run.role != RAW_CLIENT)
        connect_quic(engine, client_credentials);
#ifdef WITH_RAW
    if (run.role == RAW_CLIENT || run.role == RAW_SERVER)
        start_raw();
#endif
}

/* ---- operations -----------------------------------------------------------------------------------------------------
 */

static void do_time(void)
{
    sim_now += UINT64_C(1000) << fuzz_u8(&run.input) % 28; /* up to two minutes */
}

static void do_fault(void)
{
    sim_fault.kind = (enum sim_fault_kind)fuzz_below(&run.input, SIM_FAULTS);
    sim_fault.count = 1 + fuzz_below(&run.input, 8);
    sim_fault.argument = fuzz_u16(&run.input);
}

/* A stranger's datagram, or one that pretends to come from a client. */
static void do_inject(void)
{
    static const uint16_t PORTS[] = {SIM_CLIENT_PORT, SIM_CLIENT_PORT + SIM_CLIENTS, 53, 1024, 443};
    static const uint8_t LONG[] = {0xc3, 0, 0, 0, 1, 8, 's', 't', 'r', 'a', 'n', 'g', 'e', 'r', 0};
    uint8_t datagram[1500] = {0}, what = fuzz_u8(&run.input);
    size_t length, head = 0;
    const uint8_t *bytes = piece(&length);

    if (what & 16) {
        head = sizeof(LONG);
        memcpy(datagram, LONG, head);
    }
    if (length > 0)
        memcpy(datagram + head, bytes, length);
    length += head;
    if ((what & 32) && length < 1200)
        length = 1200;
    sim_inject(what & 64 ? 0 : -1, PORTS[what % 5], datagram, length);
}

static void do_failure(void)
{
    static const int ERRORS[] = {EAGAIN, ENOBUFS, EMSGSIZE, ECONNREFUSED, ENOMEM,      EMFILE, EIO,
                                 EINVAL, EPERM,   EINTR,    ENOSPC,       ENETUNREACH, EPIPE,  ECONNRESET};
    uint8_t what = fuzz_u8(&run.input);

    if (what & 128) {
        run.fail_next = what & 127;
    } else {
        sim_calls_left = what % 8;
        sim_errno = ERRORS[what / 8 % AQ_ARRAY_LENGTH(ERRORS)];
    }
}

static void do_endpoint(aq_engine *engine)
{
    uint8_t what = fuzz_u8(&run.input);
    aq_transport_options options = transport(1);
    switch (what % 6) {
    case 0:
        aq_endpoint_close(engine, pick(AQ_KIND_ENDPOINT), what & 128);
        break;
    case 1:
        if (what & 128)
            aq_endpoint_set_transport(engine, pick(AQ_KIND_ENDPOINT), &options);
        else
            aq_endpoint_set_credentials(engine, pick(AQ_KIND_ENDPOINT), pick(AQ_KIND_CREDENTIALS));
        break;
    case 2:
        aq_credentials_free(engine, pick(AQ_KIND_CREDENTIALS));
        break;
    case 3:
        listen_quic(engine);
        break;
    case 4:
        aq_connection_migrate(engine, pick(AQ_KIND_CONNECTION), client_fd);
        break;
    default:
#ifdef WITH_GNUTLS
        connect_quic(engine, client_credentials);
#else
        connect_quic(engine, pick(AQ_KIND_CREDENTIALS));
#endif
        break;
    }
}

/* Sets what visitors are granted: everything; nobody; or loopback, a few connections and a few new ones a second. */
static void limit(aq_engine *engine, aq_id connection, uint8_t what)
{
    const aq_address_range loopback = {.family = 4, .first = {127}, .last = {127, 255, 255, 255}};
    const aq_visitor_limits limits = {.restricted = (what & 24) != 0,
                                      .unknown_permitted = what & 32,
                                      .permitted = &loopback,
                                      .permitted_length = what / 8 % 2,
                                      .max_connections = what / 16 % 2,
                                      .max_new = what / 16 % 4};
    uint16_t refused[8];
    aq_connection_limit(engine, connection, &limits);
    aq_associations_refused(engine, connection, refused, AQ_ARRAY_LENGTH(refused));
}

static void do_connection(aq_engine *engine)
{
    uint8_t what = fuzz_u8(&run.input), out[32];
    aq_id connection = pick(AQ_KIND_CONNECTION);
    aq_connection_info info;
    size_t length;
    const uint8_t *bytes;
    int64_t result;

    switch (what % 8) {
    case 0:
        aq_connection_close(engine, connection, what & 128 ? UINT64_MAX : what,
                            (uint64_t)fuzz_u8(&run.input) * 10 * AQ_NSEC_PER_MSEC);
        break;
    case 1:
        bytes = piece(&length);
        aq_connection_send(engine, connection, bytes, length);
        break;
    case 2:
        bytes = fuzz_bytes(&run.input, fuzz_u8(&run.input) % 18, &length);
        aq_connection_heartbeat(engine, connection, bytes, length,
                                (uint64_t)fuzz_u8(&run.input) * 10 * AQ_NSEC_PER_MSEC);
        break;
    case 3:
    case 4:
        aq_connection_set_joined(engine, connection, what / 8 % 3, what & 128);
        break;
    case 5:
        aq_connection_probe(engine, connection, (uint64_t)fuzz_u8(&run.input) * AQ_NSEC_PER_MSEC,
                            (uint64_t)(run.options & 1) * AQ_NSEC_PER_SEC);
        break;
    case 6:
        result = aq_connection_info_get(engine, connection, &info);
        MUST(result != AQ_OK || info.datagram_limit < info.path_payload);
        if (what & 64)
            limit(engine, connection, what);
        break;
    default:
        aq_connection_export(engine, connection, out, sizeof(out), out, sizeof(out), out, sizeof(out));
        aq_connection_peer_chain(engine, connection, out, sizeof(out));
        break;
    }
}

static void attach(aq_engine *engine, aq_id stream)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0)
        return;
    keep_far(ends[1]);
    aq_stream_attach(engine, stream, ends[0]);
}

static void do_stream(aq_engine *engine)
{
    static const uint8_t CONNECT[] = {0, 2, 1, 127, 0, 0, 1, 4, 0};
    uint8_t what = fuzz_u8(&run.input);
    size_t length;
    const uint8_t *bytes;

    switch (what % 8) {
    case 0:
    case 1:
        remember(aq_stream_open(engine, pick(AQ_KIND_CONNECTION), CONNECT, sizeof(CONNECT)));
        break;
    case 2:
        bytes = fuzz_bytes(&run.input, what / 8 * 3U, &length);
        remember(aq_stream_open(engine, pick(AQ_KIND_CONNECTION), bytes, length));
        break;
    case 3:
    case 4:
    case 5:
        attach(engine, pick(AQ_KIND_STREAM));
        break;
    case 6:
        aq_stream_reset(engine, pick(AQ_KIND_STREAM), what / 8);
        break;
    default:
        aq_stream_reset(engine, pick(AQ_KIND_STREAM), AQ_STREAM_REFUSED);
        break;
    }
}

/* What the other ends of sockets do. */
static void do_far(void)
{
    static uint8_t bytes[65536];
    uint8_t what = fuzz_u8(&run.input);
    int fd = far_end();
    ssize_t done = 0;

    if (fd < 0)
        return;
    switch (what % 8) {
    case 0:
    case 1:
    case 2:
        done = write(fd, bytes, (size_t)fuzz_u16(&run.input));
        break;
    case 3:
    case 4:
    case 5:
        done = read(fd, bytes, sizeof(bytes));
        break;
    case 6:
        shutdown(fd, what & 128 ? SHUT_WR : SHUT_RDWR);
        break;
    default: /* closed, under its number */
        done = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (done >= 0) {
            dup2((int)done, fd);
            close((int)done);
        }
        break;
    }
    (void)done;
}

static void do_tcp(aq_engine *engine)
{
    uint8_t what = fuzz_u8(&run.input);
    aq_address to = {.family = 4, .ip = {127, 0, 0, 1}};
    int fd;

    switch (what % 6) {
    case 0:
    case 1:
        remember(aq_listener_open(engine, pick(AQ_KIND_CONNECTION), tcp_listener, what % 6));
        break;
    case 2:
        aq_listener_close(engine, pick(AQ_KIND_LISTENER));
        break;
    case 3:
    case 4:
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd >= 0 && keep_far(fd) >= 0)
            (void)!connect(fd, (const struct sockaddr *)&tcp_address, sizeof(tcp_address));
        break;
    default:
        to.port = what & 64 ? 1 : ntohs(tcp_address.sin_port);
        aq_connection_dial(engine, pick(AQ_KIND_CONNECTION), what & 128 ? &to : NULL,
                           (uint64_t)fuzz_u8(&run.input) * AQ_NSEC_PER_MSEC, AQ_NSEC_PER_SEC);
        break;
    }
}

static void open_udp(aq_engine *engine, int is_public, int everywhere, int for_pump)
{
    struct sockaddr_in here = {.sin_family = AF_INET};
    socklen_t length = sizeof(here);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    here.sin_addr.s_addr = htonl(everywhere ? INADDR_ANY : INADDR_LOOPBACK);
    if (fd < 0)
        return;
    if (bind(fd, (const struct sockaddr *)&here, sizeof(here)) == 0 &&
        getsockname(fd, (struct sockaddr *)&here, &length) == 0 &&
        (is_public || connect(fd, (const struct sockaddr *)&udp_address, sizeof(udp_address)) == 0)) {
        remember(aq_udp_open(engine, pick(AQ_KIND_CONNECTION), fd, is_public, for_pump));
        here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        (void)!connect(udp_service, (const struct sockaddr *)&here, sizeof(here));
    }
    close(fd);
}

static void move_udp(aq_engine *engine, const uint8_t *prefix, size_t length)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)&udp_address, sizeof(udp_address)) == 0)
        aq_udp_move(engine, pick(AQ_KIND_UDP), fd, prefix, length);
    close(fd);
}

/* Connections that share tcp_listener and group_udp. */
static void do_group(aq_engine *engine)
{
    uint8_t what = fuzz_u8(&run.input);
    aq_id connection;
    int fd;

    switch (what % 8) {
    case 0:
        remember(aq_group_open(engine, what / 8 % 3));
        break;
    case 1:
    case 2:
    case 3:
        connection = pick(AQ_KIND_CONNECTION);
        aq_connection_join(engine, connection, pick(AQ_KIND_GROUP));
        if (what & 8)
            remember(aq_listener_open(engine, connection, tcp_listener, what & 16));
        if (what & 32)
            remember(aq_udp_open(engine, connection, group_udp, 1, what & 16));
        break;
    case 4:
        aq_group_balance(engine, pick(AQ_KIND_GROUP), what / 8 % 3);
        break;
    case 5:
        aq_group_close(engine, pick(AQ_KIND_GROUP));
        break;
    case 6: /* a source that comes back */
        (void)!sendto(udp_service, "known", what / 8 % 6, MSG_DONTWAIT, (const struct sockaddr *)&group_address,
                      sizeof(group_address));
        break;
    default: /* new ones */
        for (int i = 0; i < what / 64 + 1; i++) {
            fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
            if (fd < 0)
                return;
            (void)!sendto(fd, "new", 3, MSG_DONTWAIT, (const struct sockaddr *)&group_address, sizeof(group_address));
            close(fd);
        }
        break;
    }
}

static void do_udp(aq_engine *engine)
{
    static uint8_t bytes[65536];
    uint8_t what = fuzz_u8(&run.input);
    uint16_t association = fuzz_u8(&run.input) % 6;
    const aq_address local = {.family = (uint8_t)(what & 128 ? 6 : 4), .ip = {127, 0, 0, 1}}; /* of 6 nobody has it */
    aq_address peer;
    uint16_t idle[8];
    size_t length;
    const uint8_t *prefix;

    switch (what % 16) {
    case 0:
    case 1:
        open_udp(engine, what & 128, (what & 192) == 192, what & 32);
        break;
    case 2:
        aq_udp_close(engine, pick(AQ_KIND_UDP));
        break;
    case 3:
        aq_udp_receive(engine, pick(AQ_KIND_UDP));
        break;
    case 4:
        aq_udp_return(engine, pick(AQ_KIND_UDP));
        break;
    case 5:
        peer = address();
        aq_udp_refuse(engine, pick(AQ_KIND_UDP), &peer, what & 16 ? &local : NULL);
        break;
    case 6:
    case 7:
    case 8:
        peer = address();
        prefix = fuzz_bytes(&run.input, what / 16 * 5U, &length);
        aq_association_add(engine, pick(AQ_KIND_UDP), association, &peer, what & 16 ? &local : NULL, prefix, length);
        break;
    case 9:
        aq_association_remove(engine, pick(AQ_KIND_CONNECTION), association);
        break;
    case 10:
        aq_associations_idle(engine, pick(AQ_KIND_CONNECTION), NULL, (uint64_t)what * AQ_NSEC_PER_MSEC, idle, 8);
        aq_associations_unanswered(engine, pick(AQ_KIND_CONNECTION), (uint64_t)what * AQ_NSEC_PER_MSEC, AQ_NSEC_PER_SEC,
                                   idle, 8);
        break;
    case 12:
        prefix = fuzz_bytes(&run.input, what / 16 * 5U, &length);
        move_udp(engine, prefix, length);
        break;
    case 11:
        aq_udp_share(engine, what & 128);
        aq_streams_share(engine, what / 16 % 4);
        aq_streams_keepalive(engine, what / 16 % 3 * AQ_NSEC_PER_SEC);
        peer = address();
        aq_associations_refuse(engine, pick(AQ_KIND_CONNECTION), what & 64 ? &peer : NULL,
                               (uint64_t)what * AQ_NSEC_PER_MSEC);
        aq_streams_report(engine, what & 64, what & 32);
        aq_associations_report(engine, what & 32);
        if (what & 16)
            remember(aq_bucket_open(engine, fuzz_u16(&run.input) % 512 * 1000U));
        aq_connection_bucket(engine, pick(AQ_KIND_CONNECTION), pick(AQ_KIND_BUCKET), what & 1);
        if (what & 128)
            aq_bucket_rate(engine, pick(AQ_KIND_BUCKET), fuzz_u16(&run.input) % 512 * 1000U);
        if ((what & 192) == 64)
            aq_bucket_close(engine, pick(AQ_KIND_BUCKET));
        break;
    case 13:
        do_group(engine);
        break;
    default:
        (void)!send(udp_service, bytes, fuzz_u16(&run.input) % 20000, MSG_DONTWAIT);
        break;
    }
}

#ifdef WITH_RAW
static void do_raw(void)
{
    uint8_t what = fuzz_u8(&run.input);
    uint64_t id = (uint64_t)(what / 16) << 2 | (fuzz_u8(&run.input) & 3U);
    size_t length;
    const uint8_t *bytes;

    if (sim_peer == NULL)
        return;
#ifdef RAW_TLS
    if (what % 12 >= 10 && (what & 16)) {
        if (what & 32)
            raw_update_keys();
        else
            raw_message(&run.input);
        return;
    }
#endif
    switch (what % 12) {
    case 0:
    case 1:
    case 2:
        bytes = piece(&length);
        raw_stream(id, bytes, length, fuzz_u8(&run.input) & 1);
        break;
    case 3:
    case 4:
        bytes = piece(&length);
        raw_datagram(bytes, length);
        break;
    case 5:
    case 6:
        bytes = piece(&length);
        raw_send(RAW_APPLICATION, bytes, length);
        break;
    case 7:
        bytes = piece(&length);
        raw_send(what & 16 ? RAW_INITIAL : RAW_HANDSHAKE, bytes, length);
        break;
    case 8:
        run.acknowledges = !run.acknowledges;
        raw_acknowledge((enum raw_space)(what / 16 % RAW_SPACES));
        break;
    case 9:
        raw_end_stream(id, what & 128, fuzz_u8(&run.input));
        break;
    case 10:
        raw_credit(id, (uint64_t)fuzz_u16(&run.input) << 8);
        break;
    default:
        raw_stream(id, (const uint8_t *)"\0\2\1\177\0\0\1\4\0hello", 14, 0);
        break;
    }
}
#endif

static void operate(aq_engine *engine)
{
    uint8_t what = fuzz_u8(&run.input);

    switch (what % 16) {
    case 0:
        run.quiet = 1 + what / 16;
        break;
    case 1:
        do_time();
        break;
    case 2:
    case 3:
        do_fault();
        break;
    case 4:
        do_inject();
        break;
    case 5:
        do_failure();
        break;
    case 6:
        if (what & 64)
            sim_full = what / 16;
        else
            do_endpoint(engine);
        break;
    case 7:
    case 8:
        do_connection(engine);
        break;
    case 9:
        do_stream(engine);
        break;
    case 10:
    case 11:
        do_far();
        break;
    case 12:
        do_tcp(engine);
        break;
    case 13:
        do_udp(engine);
        break;
    default:
#ifdef WITH_RAW
        do_raw();
#else
        do_stream(engine);
#endif
        break;
    }
}

/* ---- turns ----------------------------------------------------------------------------------------------------------
 */

static void take_events(aq_engine *engine)
{
    aq_event events[16];
    int64_t count;

    while ((count = aq_events_wait(engine, events, 16, 0)) > 0) {
        for (int64_t i = 0; i < count; i++) {
            const aq_event *event = &events[i];
            MUST(event->length <= sizeof(event->data));
            MUST(event->type >= AQ_EVENT_CONNECTED && event->type <= AQ_EVENT_VISITORS_REFUSED);
            if (event->type == AQ_EVENT_CONNECTED)
                remember(event->connection);
            if (event->type == AQ_EVENT_STREAM_OPENED)
                remember(event->stream);
            if (event->type == AQ_EVENT_SOURCE_UNKNOWN || event->type == AQ_EVENT_ASSOCIATION_WANTED)
                run.source = event->peer;
            if (event->type == AQ_EVENT_STREAM_LARGE_TRANSFER)
                aq_stream_attach(engine, event->stream, (int)event->value);
        }
    }
}

static void go_on(aq_engine *engine, const struct timespec *wait)
{
    uint64_t pause = wait == NULL ? UINT64_MAX : (uint64_t)wait->tv_sec * AQ_NSEC_PER_SEC + (uint64_t)wait->tv_nsec;

    /* Packets on their way and work at hand come before the next operation, up to a point. */
    if (pause == 0 || sim_is_waiting()) {
        MUST(++run.busy < BUSY_TURNS);
        if (run.quiet > 0 || run.operations == 0 || run.busy % 4 != 0)
            return;
    }
    if (pause != 0)
        run.busy = 0;
    if (run.quiet > 0) {
        run.quiet--;
        if (pause != UINT64_MAX)
            sim_now += pause;
        return;
    }
    if (run.input.left > 0 && run.operations < OPERATIONS) {
        run.operations++;
        operate(engine);
        return;
    }
    sim_calls_left = FUZZ_NO_FAILURE;
    run.fail_next = FUZZ_NO_FAILURE;
    sim_full = 0;
    if (pause == UINT64_MAX || ++run.wound_down > WIND_DOWN)
        aq_engine_stop(engine);
    else
        sim_now += pause;
}

static void sleep_turn(aq_engine *engine, const struct timespec *wait)
{
    fuzz_allocations_left = FUZZ_NO_FAILURE;
    sim_now += 1000;
    if (!run.started) {
        run.started = 1;
        start(engine);
        run.quiet = run.options & 1 ? 0 : 8; /* or the operations begin with the handshake */
    } else {
        take_events(engine);
        go_on(engine, wait);
    }
#ifdef WITH_RAW
    if (sim_peer != NULL)
        raw_turn(run.acknowledges);
#endif
    fuzz_allocations_left = run.fail_next;
    run.fail_next = FUZZ_NO_FAILURE;
}

/* ---- the program ----------------------------------------------------------------------------------------------------
 */

static int bound(int type, struct sockaddr_in *address_out)
{
    socklen_t length = sizeof(*address_out);
    int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    memset(address_out, 0, sizeof(*address_out));
    address_out->sin_family = AF_INET;
    address_out->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    MUST(fd >= 0 && bind(fd, (const struct sockaddr *)address_out, sizeof(*address_out)) == 0);
    MUST(getsockname(fd, (struct sockaddr *)address_out, &length) == 0);
    return fd;
}

#ifdef WITH_RAW
static void tell_packets(void)
{
    fprintf(stderr, "stat::raw_packets: %llu\n", (unsigned long long)raw_packets);
}
#endif

static void set_up(void)
{
    struct sockaddr_in unused;
#ifdef WITH_RAW
    MUST(atexit(tell_packets) == 0);
#endif
    signal(SIGPIPE, SIG_IGN);
    server_fd = bound(SOCK_DGRAM, &unused);
    client_fd = bound(SOCK_DGRAM, &unused);
    udp_service = bound(SOCK_DGRAM, &udp_address);
    group_udp = bound(SOCK_DGRAM, &group_address);
    tcp_listener = bound(SOCK_STREAM, &tcp_address);
    MUST(listen(tcp_listener, 64) == 0);
}

static void clean_up(void)
{
    struct sockaddr_in nobody = {.sin_family = AF_UNSPEC};
    uint8_t byte;
    int fd;

    while (run.far_length > 0)
        close(run.far_ends[--run.far_length]);
    (void)!connect(udp_service, (const struct sockaddr *)&nobody, sizeof(nobody));
    while (recv(udp_service, &byte, 1, MSG_DONTWAIT) >= 0)
        ;
    while (recv(group_udp, &byte, 1, MSG_DONTWAIT) >= 0)
        ;
    while ((fd = accept(tcp_listener, NULL, NULL)) >= 0) /* what nobody accepted */
        close(fd);
}

/* How far an input got, for people: with FUZZ_TELL in the environment. */
static void tell(aq_engine *engine)
{
    if (getenv("FUZZ_TELL") == NULL)
        return;
    for (size_t i = 0; i < AQ_COUNTER_COUNT; i++) {
        uint64_t value = atomic_load(&engine->counters.value[i]);
        if (value != 0)
            fprintf(stderr, "%s=%llu ", aq_counter_descriptions[i].name, (unsigned long long)value);
    }
    fprintf(stderr, "operations=%u\n", run.operations);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int64_t problem;
    static int is_set_up;
    aq_engine *engine;

    if (!is_set_up)
        set_up();
    is_set_up = 1;
    memset(&run, 0, sizeof(run));
    run.input = (fuzz_input){data, size};
    run.role = (enum role)(fuzz_u8(&run.input) % 4);
#ifdef WITH_TLS
    run.role %= 2;
#elif defined(RAW_TLS)
    run.role = run.role % 2 == 0 ? RAW_CLIENT : RAW_SERVER;
#endif
    run.options = fuzz_u8(&run.input);
    run.fail_next = FUZZ_NO_FAILURE;
    run.acknowledges = 1;
    sim_peer = NULL;
    sim_sleep = sleep_turn;
    engine = aq_engine_new(&problem);
    if (engine == NULL)
        return 0;
    sim_begin(engine);
    MUST(aq_engine_run(engine) == AQ_OK);
    fuzz_allocations_left = FUZZ_NO_FAILURE;
    tell(engine);
    take_events(engine);
    aq_engine_close(engine);
    aq_engine_free(engine);
    sim_end();
    clean_up();
    return 0;
}

#include "quic/endpoint.h"

#include "core/descriptors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

/* Short header packets below this size are never valid (RFC 9000 section 10.3). ngtcp2 aborts on an empty packet. */
#define SHORTEST_DATAGRAM 21
/* Maximum number of responses of each kind per second to packets without a connection; beyond that, none. Each costs a
 * few microseconds and is smaller than the packet that it answers. */
#define ANSWERS_PER_SECOND 1000
/* A Retry token is valid for one round trip of a slow path. */
#define RETRY_LIFETIME (10 * AQ_NSEC_PER_SEC)
/* How long tokens are made with the same key. After as long again, knowing the key is useless. Much longer than a token
 * is valid. */
#define TOKEN_KEY_LIFETIME (3600 * AQ_NSEC_PER_SEC)
/* Services that are prone to reflection (echo, DNS, NTP ...) are never QUIC clients. RFC 9308 section 8.1. */
#define LOWEST_CLIENT_PORT 1024

aq_endpoint *aq_endpoint_new(const aq_conn_host *host, int fd, aq_credentials *credentials,
                             const aq_transport_options *options, const aq_sockaddr *remote, int64_t *error)
{
    aq_endpoint *endpoint = calloc(1, sizeof(*endpoint));
    socklen_t length = sizeof(endpoint->bound);
    uint8_t secret[16];
    int failed;

    *error = AQ_ERR_MEMORY;
    if (endpoint == NULL)
        goto fail;
    failed = aq_udp_setup_quic(fd, &endpoint->receive_buffer, &endpoint->send_buffer);
    if (failed != 0) {
        *error = AQ_ERR_SYSTEM + failed;
        goto fail;
    }
    /* On a connected socket a client receives ICMP errors, the kernel finds the socket faster, and datagrams from other
     * addresses are discarded. */
    if ((remote != NULL && connect(fd, &remote->sa, aq_sockaddr_length(remote)) != 0) ||
        getsockname(fd, &endpoint->bound.sa, &length) != 0) {
        *error = AQ_ERR_SYSTEM - errno;
        goto fail;
    }
    aq_random(secret, sizeof(secret));
    if (aq_map_init(&endpoint->routes, secret) != AQ_OK)
        goto fail;
    if (aq_sources_init(&endpoint->sources, secret) != AQ_OK) {
        aq_map_destroy(&endpoint->routes);
        goto fail;
    }
    aq_rotating_key_init(&endpoint->token_key, TOKEN_KEY_LIFETIME, aq_now());
    endpoint->host = host;
    endpoint->is_server = endpoint->accepting = remote == NULL;
    endpoint->fd = fd;
    endpoint->credentials = credentials;
    host->handshake->credentials_ref(credentials);
    endpoint->options = *options;
    *error = AQ_OK;
    return endpoint;
fail:
    free(endpoint);
    aq_fd_close(fd);
    return NULL;
}

static void count_lost(const aq_endpoint *endpoint, uint32_t lost)
{
    if (lost > 0)
        aq_count(endpoint->host->counters, AQ_C_quic_drop_kernel, lost);
}

void aq_endpoint_free(aq_endpoint *endpoint)
{
    count_lost(endpoint, aq_udp_losses_end(&endpoint->losses, endpoint->fd));
    aq_map_destroy(&endpoint->routes);
    aq_sources_destroy(&endpoint->sources);
    endpoint->host->handshake->credentials_unref(endpoint->credentials);
    aq_fd_close(endpoint->fd);
    explicit_bzero(endpoint->reset_key, sizeof(endpoint->reset_key));
    explicit_bzero(&endpoint->token_key, sizeof(endpoint->token_key));
    free(endpoint);
}

/* ---- routing --------------------------------------------------------------------------------------------------- */

int aq_endpoint_route(aq_endpoint *endpoint, const ngtcp2_cid *cid, aq_conn *conn)
{
    return aq_map_put(&endpoint->routes, cid->data, cid->datalen, conn);
}

void aq_endpoint_unroute(aq_endpoint *endpoint, const ngtcp2_cid *cid)
{
    endpoint->latest = NULL;
    aq_map_remove(&endpoint->routes, cid->data, cid->datalen);
}

static void link_conn(aq_endpoint *endpoint, aq_conn *conn)
{
    AQ_LIST_ADD_FIRST(&endpoint->conns, conn, endpoint_link);
    endpoint->connections++;
}

void aq_endpoint_remove(aq_endpoint *endpoint, aq_conn *conn)
{
    AQ_LIST_REMOVE(&endpoint->conns, conn, endpoint_link);
    endpoint->connections--;
    aq_conn_free(conn);
}

/* ---- sending --------------------------------------------------------------------------------------------------- */

/* Errors that the network reports if the peer is unreachable. */
static int is_unreachable(int error)
{
    return error == -ECONNREFUSED || error == -EHOSTUNREACH || error == -ENETUNREACH;
}

/* Errors of a local firewall or a system call filter. */
static int is_denied(int error)
{
    return error == -EPERM || error == -EACCES || error == -ENOSYS;
}

static void log_once(const aq_endpoint *endpoint, unsigned bit, const char *what, int error)
{
    const aq_conn_host *host = endpoint->host;
    if (host->logged != NULL)
        aq_events_log_once(host->events, host->logged, bit, what, -error);
}

int aq_endpoint_transmit(aq_conn *conn, const aq_sockaddr *remote, const aq_sockaddr *local, uint8_t ecn,
                         const uint8_t *data, size_t length, size_t segment, size_t *sent)
{
    aq_endpoint *endpoint = conn->endpoint;
    aq_counters *counters = endpoint->host->counters;
    int result = aq_udp_send(endpoint->fd, endpoint->is_server ? remote : NULL, endpoint->is_server ? local : NULL, ecn,
                             data, length, segment, &conn->gso, sent);
    if (result < 0)
        aq_count(counters, AQ_C_quic_send_errors, 1);
    if (is_denied(result))
        log_once(endpoint, AQ_LOGGED_SEND,
                 "the system refuses to send QUIC packets (check firewall and seccomp filter)", result);
    if (!endpoint->is_server && is_unreachable(result))
        aq_conn_suspect(conn, conn->now);
    if (result == 1)
        endpoint->blocked = 1;
    conn->bytes_sent += *sent;
    conn->packets_sent += (*sent + segment - 1) / segment;
    aq_count(counters, AQ_C_quic_bytes_sent, *sent);
    aq_count(counters, AQ_C_quic_datagrams_sent, (*sent + segment - 1) / segment);
    return result;
}

void aq_endpoint_writable(aq_endpoint *endpoint, uint64_t now)
{
    aq_conn *conn, *next;
    endpoint->blocked = 0; /* set again by connections that still cannot send */
    for (conn = endpoint->conns.first; conn != NULL; conn = next) {
        next = conn->endpoint_link.next;
        aq_conn_unblock(conn, now);
    }
}

/* Sends a response to a packet without a connection. Dropped if the socket is full: no known peer asked for it. */
static void send_alone(aq_endpoint *endpoint, const aq_sockaddr *remote, const aq_sockaddr *local, const uint8_t *data,
                       size_t length)
{
    aq_counters *counters = endpoint->host->counters;
    size_t sent;
    int gso = 0, result = aq_udp_send(endpoint->fd, remote, local, 0, data, length, length, &gso, &sent);
    if (result == 0) {
        aq_count(counters, AQ_C_quic_bytes_sent, length);
        aq_count(counters, AQ_C_quic_datagrams_sent, 1);
    } else {
        aq_count(counters, result == 1 ? AQ_C_answers_suppressed : AQ_C_quic_send_errors, 1);
    }
}

static int may_answer(aq_endpoint *endpoint, enum aq_answer kind, uint64_t now)
{
    if (now - endpoint->answers_since >= AQ_NSEC_PER_SEC) {
        endpoint->answers_since = now;
        memset(endpoint->answers, 0, sizeof(endpoint->answers));
    }
    if (endpoint->answers[kind] < ANSWERS_PER_SECOND) {
        endpoint->answers[kind]++;
        return 1;
    }
    aq_count(endpoint->host->counters, AQ_C_answers_suppressed, 1);
    return 0;
}

/* ---- packets without a connection -------------------------------------------------------------------------------- */

typedef struct {
    const aq_sockaddr *local, *remote;
    const uint8_t *data;
    size_t length;
    uint8_t ecn;
    uint64_t now;
} arrival;

static void negotiate_version(aq_endpoint *endpoint, const arrival *packet, const ngtcp2_version_cid *ids)
{
    static const uint32_t versions[] = {NGTCP2_PROTO_VER_V1, NGTCP2_PROTO_VER_V2};
    uint8_t out[NGTCP2_MAX_UDP_PAYLOAD_SIZE], unused;
    ngtcp2_ssize length;
    if (!may_answer(endpoint, AQ_ANSWER_VERSION, packet->now))
        return;
    aq_random(&unused, 1);
    length = ngtcp2_pkt_write_version_negotiation(out, sizeof(out), unused, ids->scid, ids->scidlen, ids->dcid,
                                                  ids->dcidlen, versions, AQ_ARRAY_LENGTH(versions));
    if (length > 0) {
        aq_count(endpoint->host->counters, AQ_C_version_negotiations_sent, 1);
        send_alone(endpoint, packet->remote, packet->local, out, (size_t)length);
    }
}

/* Sends a stateless reset (RFC 9000 section 10.3). A peer that had this connection with this server accepts it, even
 * after a restart. */
static void reset_stateless(aq_endpoint *endpoint, const arrival *packet, const ngtcp2_version_cid *ids)
{
    /* 16 bytes of token and at least 5 of noise. Shorter than the packet that it answers, so that two endpoints cannot
     * reset each other in a loop. */
    enum { MIN_LENGTH = NGTCP2_STATELESS_RESET_TOKENLEN + NGTCP2_MIN_STATELESS_RESET_RANDLEN };
    uint8_t out[64], noise[64], token[NGTCP2_STATELESS_RESET_TOKENLEN];
    size_t noise_length = NGTCP2_MIN_STATELESS_RESET_RANDLEN;
    ngtcp2_cid cid;
    ngtcp2_ssize length;
    if (packet->length <= MIN_LENGTH + 1 || !may_answer(endpoint, AQ_ANSWER_RESET, packet->now))
        return;
    if (packet->length <= 43)
        noise_length = packet->length - 1 - NGTCP2_STATELESS_RESET_TOKENLEN;
    else
        noise_length = 43 - NGTCP2_STATELESS_RESET_TOKENLEN;
    ngtcp2_cid_init(&cid, ids->dcid, ids->dcidlen);
    if (endpoint->host->handshake->reset_token(token, endpoint->reset_key, &cid) != 0)
        return;
    aq_random(noise, noise_length);
    length = ngtcp2_pkt_write_stateless_reset(out, sizeof(out), token, noise, noise_length);
    if (length > 0) {
        aq_count(endpoint->host->counters, AQ_C_stateless_resets_sent, 1);
        send_alone(endpoint, packet->remote, packet->local, out, (size_t)length);
    }
}

static void refuse(aq_endpoint *endpoint, const arrival *packet, const ngtcp2_pkt_hd *header, uint64_t code)
{
    uint8_t out[NGTCP2_MAX_UDP_PAYLOAD_SIZE];
    ngtcp2_ssize length;
    if (!may_answer(endpoint, AQ_ANSWER_REFUSAL, packet->now))
        return;
    length = endpoint->host->handshake->write_refusal(out, sizeof(out), header, code);
    if (length > 0)
        send_alone(endpoint, packet->remote, packet->local, out, (size_t)length);
}

/* Tokens contain the time of day, so that they do not depend on when this process started. */
static uint64_t time_of_day(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * AQ_NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

static void send_retry(aq_endpoint *endpoint, const arrival *packet, const ngtcp2_pkt_hd *header)
{
    const aq_handshake_ops *handshake = endpoint->host->handshake;
    uint8_t out[NGTCP2_MAX_UDP_PAYLOAD_SIZE];
    ngtcp2_cid scid;
    ngtcp2_ssize length;
    scid.datalen = AQ_SCID_LENGTH;
    handshake->random(scid.data, scid.datalen);
    length =
        handshake->write_retry(out, sizeof(out), header, &scid, &packet->remote->sa, aq_sockaddr_length(packet->remote),
                               aq_rotating_key_get(&endpoint->token_key, 0, packet->now), time_of_day());
    if (length > 0 && (size_t)length <= 3 * packet->length) {
        aq_count(endpoint->host->counters, AQ_C_retries_sent, 1);
        send_alone(endpoint, packet->remote, packet->local, out, (size_t)length);
    }
}

/* Checks a Retry token. Returns 1 if it is valid, with *original set; 0 if there is none; -1 if it is invalid or was
 * made before this process started: the client cannot continue with such a token and should be refused at once. */
static int check_token(aq_endpoint *endpoint, const arrival *packet, const ngtcp2_pkt_hd *header, ngtcp2_cid *original)
{
    if (header->tokenlen == 0)
        return 0;
    for (int before = 0; before < 2; before++) {
        int result = endpoint->host->handshake->check_retry(
            header, &packet->remote->sa, aq_sockaddr_length(packet->remote),
            aq_rotating_key_get(&endpoint->token_key, before, packet->now), RETRY_LIFETIME, time_of_day(), original);
        if (result >= 0)
            return result;
    }
    aq_count(endpoint->host->counters, AQ_C_retry_tokens_invalid, 1);
    return -1;
}

static aq_conn *accept_client(aq_endpoint *endpoint, const arrival *packet, const ngtcp2_pkt_hd *header)
{
    aq_conn_setup setup = {.host = endpoint->host,
                           .endpoint = endpoint,
                           .endpoint_id = endpoint->id,
                           .credentials = endpoint->credentials,
                           .options = &endpoint->options,
                           .local = packet->local,
                           .remote = packet->remote,
                           .reset_key = endpoint->reset_key,
                           .header = header,
                           .now = packet->now};
    ngtcp2_cid original;
    int64_t error;
    aq_conn *conn;
    int token;

    if (!endpoint->accepting || endpoint->half_open >= endpoint->max_half_open ||
        endpoint->connections >= endpoint->max_connections) {
        aq_count(endpoint->host->counters, AQ_C_connections_refused, 1);
        refuse(endpoint, packet, header, NGTCP2_CONNECTION_REFUSED);
        return NULL;
    }
    if (aq_sources_clients(&endpoint->sources, packet->remote, packet->now) >= endpoint->max_half_open_per_source) {
        aq_count(endpoint->host->counters, AQ_C_connections_refused_source, 1);
        refuse(endpoint, packet, header, NGTCP2_CONNECTION_REFUSED);
        return NULL;
    }
    token = check_token(endpoint, packet, header, &original);
    if (token < 0) {
        aq_count(endpoint->host->counters, AQ_C_connections_refused, 1);
        refuse(endpoint, packet, header, NGTCP2_INVALID_TOKEN);
        return NULL;
    }
    if (token == 1) {
        setup.original_dcid = &original;
    } else if (endpoint->half_open >= endpoint->retry_threshold) {
        send_retry(endpoint, packet, header);
        return NULL;
    }
    conn = aq_conn_new(&setup, &error);
    if (conn == NULL) {
        aq_count(endpoint->host->counters, AQ_C_memory_failures, 1);
        return NULL;
    }
    aq_endpoint_enter_half_open(endpoint, conn);
    if (token == 1)
        aq_endpoint_validated(conn);
    link_conn(endpoint, conn);
    return conn;
}

static int can_be_client(const aq_sockaddr *remote)
{
    return ntohs(remote->sa.sa_family == AF_INET6 ? remote->in6.sin6_port : remote->in.sin_port) >= LOWEST_CLIENT_PORT;
}

/* Returns the connection that a packet belongs to. NULL: none, and *ids is filled in unless *result, ngtcp2's return
 * value, says otherwise. */
static aq_conn *find(aq_endpoint *endpoint, const arrival *packet, ngtcp2_version_cid *ids, int *result)
{
    aq_conn *conn;
    /* Most packets arrive in runs for one connection, with short headers: first byte, connection ID. */
    if (endpoint->latest != NULL && (packet->data[0] & 0x80) == 0 &&
        memcmp(packet->data + 1, endpoint->latest_id, AQ_SCID_LENGTH) == 0)
        return endpoint->latest;
    *result = ngtcp2_pkt_decode_version_cid(ids, packet->data, packet->length, AQ_SCID_LENGTH);
    if (*result != 0)
        return NULL;
    conn = aq_map_get(&endpoint->routes, ids->dcid, ids->dcidlen);
    if (conn != NULL && ids->dcidlen == AQ_SCID_LENGTH) {
        endpoint->latest = conn;
        memcpy(endpoint->latest_id, ids->dcid, AQ_SCID_LENGTH);
    }
    return conn;
}

/* Handles a packet matching no connection. Returns the connection that it starts, or NULL. */
static aq_conn *meet(aq_endpoint *endpoint, const arrival *packet, const ngtcp2_version_cid *ids, int decoded)
{
    ngtcp2_pkt_hd header;
    if (decoded == NGTCP2_ERR_VERSION_NEGOTIATION) {
        negotiate_version(endpoint, packet, ids);
        return NULL;
    }
    if (decoded == 0 && ids->dcidlen <= NGTCP2_MAX_CIDLEN) {
        if (ngtcp2_accept(&header, packet->data, packet->length) == 0) {
            if (aq_endpoint_may_begin(endpoint, packet->now))
                return accept_client(endpoint, packet, &header);
            aq_count(endpoint->host->counters, AQ_C_initials_deferred, 1);
            return NULL;
        }
        if ((packet->data[0] & 0x80) == 0)
            reset_stateless(endpoint, packet, ids);
    }
    aq_count(endpoint->host->counters, AQ_C_quic_drop_unknown_connection, 1);
    return NULL;
}

/* ---- receiving ------------------------------------------------------------------------------------------------- */

static void read_packet(aq_endpoint *endpoint, aq_conn *conn, const arrival *packet)
{
    ngtcp2_pkt_hd header;
    switch (aq_conn_read(conn, packet->local, packet->remote, packet->ecn, packet->data, packet->length, packet->now)) {
    case AQ_READ_RETRY:
        if (ngtcp2_accept(&header, packet->data, packet->length) == 0)
            send_retry(endpoint, packet, &header);
        aq_endpoint_remove(endpoint, conn);
        return;
    case AQ_READ_DROP:
        aq_count(endpoint->host->counters, AQ_C_initials_dropped, 1);
        aq_endpoint_remove(endpoint, conn);
        return;
    default:
        break;
    }
    if (aq_budget_is_short(endpoint->host->budget))
        endpoint->host->shed_load(endpoint->host->engine);
}

static void receive_one(aq_endpoint *endpoint, const arrival *packet)
{
    ngtcp2_version_cid ids;
    aq_conn *conn = endpoint->conns.first;
    uint64_t began;
    int decoded = 0;
    if (packet->length < SHORTEST_DATAGRAM) {
        aq_count(endpoint->host->counters, AQ_C_quic_drop_short, 1);
        return;
    }
    /* Also for packets of a known connection: its client may have spoofed the source, and path validation (RFC 9000
     * section 9.3) would send packets there. */
    if (endpoint->is_server && !can_be_client(packet->remote)) {
        aq_count(endpoint->host->counters, AQ_C_quic_drop_source_port, 1);
        return;
    }
    if (endpoint->is_server)
        conn = find(endpoint, packet, &ids, &decoded);
    if (!endpoint->is_server || (conn != NULL && !conn->half_open)) {
        if (conn != NULL)
            read_packet(endpoint, conn, packet);
        return;
    }
    began = aq_now();
    if (conn == NULL)
        conn = meet(endpoint, packet, &ids, decoded);
    if (conn != NULL)
        read_packet(endpoint, conn, packet);
    aq_endpoint_charge(endpoint, began);
}

static void receive_error(aq_endpoint *endpoint, int error, uint64_t now)
{
    aq_conn *conn = endpoint->conns.first;
    aq_count(endpoint->host->counters, AQ_C_quic_receive_errors, 1);
    if (is_denied(error))
        log_once(endpoint, AQ_LOGGED_RECEIVE, "the system refuses to receive QUIC packets", error);
    if (endpoint->is_server || conn == NULL || !is_unreachable(error))
        return;
    /* Before the handshake is complete, an ICMP error ends the wait early. Afterwards anyone could forge one, so it is
     * only a reason to try another connection meanwhile. */
    if (conn->state == AQ_CONN_HANDSHAKE)
        aq_conn_close(conn, AQ_CLOSE_UNREACHABLE, (uint64_t)(-error), strerror(-error), now);
    else
        aq_conn_suspect(conn, now);
}

static void receive_message(aq_endpoint *endpoint, const aq_udp_message *message, uint64_t now)
{
    aq_sockaddr local = endpoint->bound;
    arrival packet = {.local = &local, .remote = &message->peer, .ecn = message->ecn, .now = now};
    size_t step = message->segment != 0 ? message->segment : message->length;
    size_t offset = 0;
    uint64_t packets = 0;

    /* A client's socket has one local address only; a server answers from the address that a packet was sent to. */
    if (endpoint->is_server && message->local.sa.sa_family == endpoint->bound.sa.sa_family) {
        local = message->local;
        if (local.sa.sa_family == AF_INET6)
            local.in6.sin6_port = endpoint->bound.in6.sin6_port;
        else
            local.in.sin_port = endpoint->bound.in.sin_port;
    }
    if (message->truncated) {
        aq_count(endpoint->host->counters, AQ_C_quic_drop_truncated, 1);
        return;
    }
    do { /* once even for an empty datagram: it is dropped and counted */
        packet.data = message->data + offset;
        packet.length = message->length - offset < step ? message->length - offset : step;
        receive_one(endpoint, &packet);
        packets++;
        offset += step;
    } while (offset < message->length);
    aq_count(endpoint->host->counters, AQ_C_quic_bytes_received, message->length);
    aq_count(endpoint->host->counters, AQ_C_quic_datagrams_received, packets);
}

uint64_t aq_endpoint_read(aq_endpoint *endpoint, aq_udp_receiver *receiver, int max, uint64_t now)
{
    aq_udp_message messages[AQ_UDP_MESSAGES];
    uint64_t bytes = 0;
    int count = aq_udp_receive_batch(receiver, endpoint->fd, messages, max);
    if (count >= 0)
        endpoint->read_errors = 0;
    else if (endpoint->read_errors < UINT32_MAX)
        endpoint->read_errors++;
    if (count < 0)
        receive_error(endpoint, count, now);
    else
        count_lost(endpoint, aq_udp_losses_read(&endpoint->losses, endpoint->fd, messages, count, max));
    for (int i = 0; i < count; i++) {
        bytes += messages[i].length;
        receive_message(endpoint, &messages[i], now);
    }
    return bytes;
}

aq_conn *aq_endpoint_connect(aq_endpoint *endpoint, const aq_sockaddr *remote, const char *server_name, int send_sni,
                             uint64_t now, int64_t *error)
{
    aq_conn_setup setup = {.host = endpoint->host,
                           .endpoint = endpoint,
                           .credentials = endpoint->credentials,
                           .options = &endpoint->options,
                           .local = &endpoint->bound,
                           .remote = remote,
                           .server_name = server_name,
                           .send_sni = send_sni,
                           .now = now};
    aq_conn *conn = aq_conn_new(&setup, error);
    if (conn != NULL)
        link_conn(endpoint, conn);
    return conn;
}

/* ---- another local address ------------------------------------------------------------------------------------- */

/* Both zones belong to this machine, so they count. */
static int same_host_and_zone(const aq_sockaddr *first, const aq_sockaddr *second)
{
    aq_address a, b;
    aq_sockaddr_to(first, &a);
    aq_sockaddr_to(second, &b);
    return a.scope == b.scope && aq_address_same_host(&a, &b);
}

int aq_endpoint_route_socket(aq_endpoint *endpoint, int fd, aq_sockaddr *local)
{
    const aq_sockaddr *remote = &endpoint->conns.first->remote;
    socklen_t length = sizeof(*local);
    int receive, send;
    int failed = aq_udp_setup_quic(fd, &receive, &send);
    if (failed != 0)
        return AQ_ERR_SYSTEM + failed;
    memset(local, 0, sizeof(*local));
    if (connect(fd, &remote->sa, aq_sockaddr_length(remote)) != 0 || getsockname(fd, &local->sa, &length) != 0)
        return AQ_ERR_SYSTEM - errno;
    return same_host_and_zone(local, &endpoint->bound) ? 0 : 1;
}

int aq_endpoint_swap_socket(aq_endpoint *endpoint, int fd, const aq_sockaddr *local)
{
    int before = endpoint->fd;
    count_lost(endpoint, aq_udp_losses_end(&endpoint->losses, before));
    endpoint->fd = fd;
    endpoint->losses = (aq_udp_losses){0};
    endpoint->bound = *local;
    endpoint->blocked = endpoint->waits_writable = 0;
    return before;
}

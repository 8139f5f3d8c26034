/* Arriving packets of a connection, its timers, and its end. Its beginning is in conn_setup.c. */
#include "quic/conn.h"

#include "quic/reading.h"

#include <stdlib.h>
#include <string.h>

/* Interval of PINGs while the peer is probed (aq_conn_probe). */
#define PROBE_PING (20 * AQ_NSEC_PER_MSEC)
/* A hint that the peer is gone counts only if nothing has arrived for SUSPECT_MIN, and the next one only after
 * SUSPECT_PAUSE: a hint may be late or forged, and must not cost more than an occasional attempt. */
#define SUSPECT_MIN (100 * AQ_NSEC_PER_MSEC)
#define SUSPECT_PAUSE (10 * AQ_NSEC_PER_SEC)
/* Streams that are cut off immediately when a connection ends. Further ones follow in later turns, so that other
 * connections do not have to wait for all of them. */
#define CUT_AT_ONCE 256
/* Closing and draining last three PTO (RFC 9000 section 10.2), within these bounds. */
#define KEEP_MIN (100 * AQ_NSEC_PER_MSEC)
#define KEEP_MAX (10 * AQ_NSEC_PER_SEC)
/* Maximum for a client that was never admitted: it controls how slow its path looks, and its place is needed for
 * others. */
#define KEEP_MAX_HALF_OPEN AQ_NSEC_PER_SEC
/* Pause between checks of timers that are due but cannot be handled yet. */
#define BLOCKED_PAUSE AQ_NSEC_PER_MSEC
/* Time between the acknowledgement of the last command and the close: an acknowledgement shows what the peer's QUIC
 * layer has, not what its program has read, and some QUIC implementations drop unread bytes on a close. */
#define LINGER_GRACE (300 * AQ_NSEC_PER_MSEC)

/* ---- end of the handshake and of the connection ------------------------------------------------------------- */

static void leave_half_open(aq_conn *conn)
{
    if (conn->half_open)
        conn->host->leave_half_open(conn);
}

/* Fills in what the connection has moved, and ngtcp2's figures, which include the losses. The QUIC state exists. */
static void get_totals(aq_conn *conn, aq_connection_totals *totals, ngtcp2_conn_info *raw)
{
    aq_compat_losses(conn->quic, raw, &totals->packets_lost, &totals->bytes_lost);
    totals->packets_sent = conn->packets_sent;
    totals->packets_received = conn->packets_received;
    totals->bytes_sent = conn->bytes_sent;
    totals->bytes_received = conn->bytes_received;
    totals->streams_total = conn->streams_total;
    totals->payload_sent = atomic_load(&conn->credit->payload_sent);
    totals->payload_received = atomic_load(&conn->credit->payload_received);
    pthread_mutex_lock(&conn->assocs->mutex);
    totals->payload_sent += conn->assocs->payload_sent;
    totals->payload_received += conn->assocs->payload_received;
    pthread_mutex_unlock(&conn->assocs->mutex);
}

static void post_closed(aq_conn *conn, enum aq_close_cause cause, uint64_t code, const char *reason, size_t length)
{
    aq_event event = {.type = AQ_EVENT_CLOSED, .code = (uint64_t)cause, .value = code};
    ngtcp2_conn_info raw;
    if (length > sizeof(event.data))
        length = sizeof(event.data);
    if (length > 0)
        memcpy(event.data, reason, length);
    event.length = (uint32_t)length;
    aq_sockaddr_to(&conn->remote, &event.peer);
    get_totals(conn, &event.totals, &raw);
    aq_conn_post(conn, &event);
}

static void heard(aq_conn *conn, uint64_t now)
{
    conn->alive = aq_conn_alive_time(conn, now);
    conn->last_received = now;
}

/* ---- cutting off -------------------------------------------------------------------------------------------- */

/* Frees the QUIC and TLS state; the routes of its connection ids stay. */
static void end_quic(aq_conn *conn)
{
    if (conn->quic != NULL)
        ngtcp2_conn_del(conn->quic);
    conn->quic = NULL;
    if (conn->tls != NULL)
        conn->host->handshake->session_free(conn->tls);
    conn->tls = NULL;
}

/* Cuts off everything on the connection, and removes its id from the table. */
static void cut_off(aq_conn *conn, int dead, uint32_t max)
{
    /* ngtcp2 first: it points into buffers that are freed afterwards. */
    end_quic(conn);
    aq_conn_cut_streams(conn, dead, max);
    if (conn->streams.first != NULL)
        conn->host->end_later(conn->host->engine, conn);
    if (conn->assocs != NULL)
        aq_conn_cut_packets(conn);
    free(conn->blocked);
    conn->blocked = NULL;
    if (conn->named) {
        conn->named = 0;
        aq_slab_remove(conn->host->connections, conn->id);
    }
}

int aq_conn_cut_some(aq_conn *conn, uint32_t max)
{
    aq_conn_cut_streams(conn, 1, max);
    return conn->streams.first != NULL;
}

void aq_conn_free(aq_conn *conn)
{
    leave_half_open(conn);
    cut_off(conn, 1, UINT32_MAX);
    while (conn->cids_length > 0)
        conn->host->unroute(conn->endpoint, &conn->cids[--conn->cids_length]);
    free(conn->close_packet);
    conn->close_packet = NULL;
    conn->host->forget(conn->host->engine, conn);
    aq_slab_put(conn->host->connections, conn->id);
}

void aq_conn_destroy(void *object)
{
    /* The table of associations lives until here: the pump takes a reference to it through a connection that may end
     * meanwhile. */
    aq_conn *conn = object;
    if (conn->assocs != NULL)
        aq_assocs_unref(conn->assocs);
    if (conn->credit != NULL)
        aq_credit_unref(conn->credit);
    aq_ranges_unref(conn->limits.permitted);
    if (atomic_load(&conn->group) != NULL)
        aq_group_unref(atomic_load(&conn->group));
    explicit_bzero(conn->reset_key, sizeof(conn->reset_key));
    free(conn);
}

/* ---- closing --------------------------------------------------------------------------------------------------- */

static int sends_close(enum aq_close_cause cause)
{
    switch (cause) {
    case AQ_CLOSE_LOCAL:
    case AQ_CLOSE_TLS:
    case AQ_CLOSE_CERTIFICATE:
    case AQ_CLOSE_INTERNAL:
    case AQ_CLOSE_PEER_FAULT:
    case AQ_CLOSE_HANDSHAKE_TIMEOUT:
        return 1;
    default:
        return 0;
    }
}

static void send_close(aq_conn *conn, enum aq_close_cause cause, uint64_t code, const char *reason, uint64_t now)
{
    ngtcp2_ccerr error;
    ngtcp2_path_storage path;
    ngtcp2_pkt_info info = {0};
    aq_sockaddr remote = {0}, local = {0};
    ngtcp2_ssize length;
    size_t sent;

    ngtcp2_ccerr_default(&error); /* the transport error code NO_ERROR */
    if (cause == AQ_CLOSE_LOCAL) {
        if (code != AQ_NO_APPLICATION_CODE)
            ngtcp2_ccerr_set_application_error(&error, code, (const uint8_t *)reason, strlen(reason));
    } else if (cause == AQ_CLOSE_TLS || cause == AQ_CLOSE_CERTIFICATE) {
        ngtcp2_ccerr_set_tls_alert(&error, (uint8_t)code, NULL, 0);
    } else if (cause == AQ_CLOSE_PEER_FAULT) {
        ngtcp2_ccerr_set_transport_error(&error, code, NULL, 0);
    } else {
        ngtcp2_ccerr_set_liberr(&error, -(int)code, NULL, 0);
    }
    ngtcp2_path_storage_zero(&path);
    length = ngtcp2_conn_write_connection_close(conn->quic, &path.path, &info, conn->host->train,
                                                conn->host->train_capacity, &error, now);
    if (length <= 0)
        return; /* nothing may be sent, e.g. because of the anti-amplification limit */
    memcpy(&remote, path.path.remote.addr, (size_t)path.path.remote.addrlen);
    memcpy(&local, path.path.local.addr, (size_t)path.path.local.addrlen);
    conn->host->transmit(conn, &remote, &local, info.ecn, conn->host->train, (size_t)length, (size_t)length, &sent);
    conn->close_packet = malloc((size_t)length);
    if (conn->close_packet != NULL) {
        memcpy(conn->close_packet, conn->host->train, (size_t)length);
        conn->close_packet_length = (size_t)length;
    } else {
        aq_count(conn->host->counters, AQ_C_memory_failures, 1);
    }
}

static void enter_end(aq_conn *conn, enum aq_conn_state state, enum aq_close_cause cause, uint64_t code,
                      const char *reason, size_t length, uint64_t now)
{
    uint64_t keep = 3 * ngtcp2_conn_get_pto(conn->quic);
    uint64_t max = conn->half_open ? KEEP_MAX_HALF_OPEN : KEEP_MAX;
    if (keep < KEEP_MIN)
        keep = KEEP_MIN;
    if (keep > max)
        keep = max;
    if (!conn->handshake_done)
        aq_count(conn->host->counters, AQ_C_quic_handshakes_failed, 1);
    aq_count(conn->host->counters, AQ_C_connections_closed, 1);
    conn->keep_until = now + keep;
    conn->state = state;
    post_closed(conn, cause, code, reason, length);
    cut_off(conn, 1, CUT_AT_ONCE);
    conn->host->touch(conn->host->engine, conn);
}

/* Counts a failure if ngtcp2 had no memory for the connection, not even in the emergency reserve. */
static void count_memory(aq_conn *conn, int result)
{
    if (result == NGTCP2_ERR_NOMEM || result == NGTCP2_ERR_CALLBACK_FAILURE)
        aq_count(conn->host->counters, AQ_C_memory_failures, 1);
}

void aq_conn_close(aq_conn *conn, enum aq_close_cause cause, uint64_t code, const char *reason, uint64_t now)
{
    if (conn->state == AQ_CONN_CLOSING || conn->state == AQ_CONN_DRAINING)
        return;
    if (cause == AQ_CLOSE_INTERNAL)
        count_memory(conn, -(int)code);
    if (sends_close(cause))
        send_close(conn, cause, code, reason, now);
    enter_end(conn, conn->close_packet != NULL ? AQ_CONN_CLOSING : AQ_CONN_DRAINING, cause, code, reason,
              strlen(reason), now);
}

void aq_conn_close_application(aq_conn *conn, uint64_t code, uint64_t linger, uint64_t now)
{
    /* Also if everything is acknowledged already: the peer's program may be about to read it. */
    if (linger > 0) {
        conn->linger_until = now + linger;
        conn->linger_code = code;
        conn->host->touch(conn->host->engine, conn);
    } else {
        aq_conn_close(conn, AQ_CLOSE_LOCAL, code, "", now);
    }
}

uint64_t aq_conn_last_code(const aq_conn *conn)
{
    /* To a client that waits for its ServerHello, an application code would mean that it is refused. */
    return conn->is_server ? AQ_NO_APPLICATION_CODE : 0;
}

void aq_conn_stop(aq_conn *conn, uint64_t now)
{
    if (conn->quic != NULL)
        send_close(conn, AQ_CLOSE_LOCAL, aq_conn_last_code(conn), "", now);
    cut_off(conn, 2, UINT32_MAX);
}

static void closed_by_peer(aq_conn *conn, uint64_t now)
{
    const ngtcp2_ccerr *error = ngtcp2_conn_get_ccerr(conn->quic);
    if (conn->reset_received)
        enter_end(conn, AQ_CONN_DRAINING, AQ_CLOSE_STATELESS_RESET, 0, "", 0, now);
    else
        enter_end(conn, AQ_CONN_DRAINING,
                  error->type == NGTCP2_CCERR_TYPE_APPLICATION ? AQ_CLOSE_PEER_APPLICATION : AQ_CLOSE_PEER_TRANSPORT,
                  error->error_code, (const char *)error->reason, error->reasonlen, now);
}

/* ---- arriving packets ------------------------------------------------------------------------------------------ */

/* Handles a packet for an ended connection: every 1st, 2nd, 4th, 8th ... is answered with the same CONNECTION_CLOSE
 * (RFC 9000 section 10.2.1). */
static void answer_late(aq_conn *conn, const aq_sockaddr *local, const aq_sockaddr *remote, size_t length)
{
    size_t sent;
    aq_count(conn->host->counters, AQ_C_quic_drop_closing, 1);
    if (conn->state != AQ_CONN_CLOSING || conn->close_packet_length > 3 * length)
        return;
    if (++conn->close_received >= 1U << conn->close_replies && conn->close_replies < 31) {
        conn->close_replies++;
        conn->host->transmit(conn, remote, local, 0, conn->close_packet, conn->close_packet_length,
                             conn->close_packet_length, &sent);
    }
}

/* Returns the effective idle timeout, which is the smaller one of both sides (RFC 9000 section 10.1); 0: none. */
static uint64_t idle_timeout(const aq_conn *conn)
{
    const ngtcp2_transport_params *remote = ngtcp2_conn_get_remote_transport_params(conn->quic);
    uint64_t own = conn->options.idle_timeout, other = remote != NULL ? remote->max_idle_timeout : 0;
    return own == 0 || (other != 0 && other < own) ? other : own;
}

/* Keep-alive probes must be frequent enough for the idle timeout of both sides, with room for two lost PINGs. Silence
 * is then reported as much earlier, so that it still comes before the idle timeout. */
static void adapt_keep_alive(aq_conn *conn)
{
    uint64_t max = idle_timeout(conn) / 3, less;
    if (conn->keep_alive == UINT64_MAX || max == 0 || conn->keep_alive <= max)
        return;
    less = conn->keep_alive - max;
    if (conn->options.silence > less)
        conn->options.silence -= less;
    conn->keep_alive = max;
    ngtcp2_conn_set_keep_alive_timeout(conn->quic, conn->keep_alive);
}

void aq_conn_handshake_done(aq_conn *conn)
{
    aq_event event = {.type = AQ_EVENT_CONNECTED};
    conn->handshake_done = 1;
    conn->handshake_alert = conn->host->handshake->session_check(conn->tls);
    if (conn->handshake_alert != 0 || (!conn->announced && aq_events_backlog(conn->host->events) >= AQ_EVENTS_WAITING))
        return;
    conn->state = AQ_CONN_OPEN;
    if (conn->half_open)
        conn->host->validated(conn);
    aq_count(conn->host->counters, AQ_C_quic_handshakes_completed, 1);
    conn->announced = 1;
    event.length = (uint32_t)conn->host->handshake->session_alpn(conn->tls, event.data, sizeof(event.data));
    aq_sockaddr_to(&conn->remote, &event.peer);
    aq_conn_post(conn, &event);
}

/* The handshake is complete, but there will be no connection. */
static void give_up_handshake(aq_conn *conn, uint64_t now)
{
    const char *problem = conn->host->handshake->session_certificate_problem(conn->tls);
    conn->state = AQ_CONN_OPEN;
    if (conn->half_open)
        conn->host->validated(conn);
    if (conn->handshake_alert == 0) {
        aq_count(conn->host->counters, AQ_C_connections_refused, 1);
        aq_conn_close(conn, AQ_CLOSE_LOCAL, 0, "", now);
    } else if (problem[0] != '\0') {
        aq_conn_close(conn, AQ_CLOSE_CERTIFICATE, (uint64_t)conn->handshake_alert, problem, now);
    } else {
        aq_conn_close(conn, AQ_CLOSE_TLS, (uint64_t)conn->handshake_alert, "the peer offered no ALPN protocol", now);
    }
}

/* Records the peer's address from ngtcp2's validated path; the source of a single packet is no proof. */
static void note_path(aq_conn *conn)
{
    const ngtcp2_addr *remote = &ngtcp2_conn_get_path(conn->quic)->remote;
    if ((size_t)remote->addrlen <= sizeof(conn->remote))
        memcpy(&conn->remote, remote->addr, (size_t)remote->addrlen);
}

/* Acts on what the callbacks recorded. */
static void after_callbacks(aq_conn *conn, uint64_t now)
{
    if (conn->quic == NULL || !conn->handshake_done || conn->handshake_seen)
        return;
    conn->handshake_seen = 1;
    adapt_keep_alive(conn);
    if (conn->state == AQ_CONN_HANDSHAKE)
        give_up_handshake(conn, now);
}

/* Closes after ngtcp2 failed to process what was read. The error code shows whose fault it is: an error that RFC 9000
 * has a code for is the peer's, any other is ours. */
static void close_for(aq_conn *conn, int result, uint64_t now)
{
    uint64_t code = ngtcp2_err_infer_quic_transport_error_code(result), fault = aq_reading_take_fault();
    if (result == NGTCP2_ERR_CALLBACK_FAILURE && fault != 0)
        aq_conn_close(conn, AQ_CLOSE_PEER_FAULT, fault, "", now);
    else if (code == NGTCP2_INTERNAL_ERROR || code == NGTCP2_NO_ERROR || code == NGTCP2_NO_VIABLE_PATH ||
             code == NGTCP2_AEAD_LIMIT_REACHED)
        aq_conn_close(conn, AQ_CLOSE_INTERNAL, (uint64_t)(-result), ngtcp2_strerror(result), now);
    else
        aq_conn_close(conn, AQ_CLOSE_PEER_FAULT, code, ngtcp2_strerror(result), now);
}

enum aq_read aq_conn_read(aq_conn *conn, const aq_sockaddr *local, const aq_sockaddr *remote, uint8_t ecn,
                          const uint8_t *data, size_t length, uint64_t now)
{
    ngtcp2_path path = {0};
    ngtcp2_pkt_info info = {.ecn = ecn};
    aq_sockaddr local_copy = *local, remote_copy = *remote;
    const char *problem;
    int result;

    if (conn->quic == NULL) {
        answer_late(conn, local, remote, length);
        return AQ_READ_OK;
    }
    if (conn->half_open && conn->packets_received >= AQ_PACKETS_BEFORE_JOIN) {
        aq_count(conn->host->counters, AQ_C_connections_flooding, 1);
        aq_conn_close(conn, AQ_CLOSE_LOCAL, 0, "too many packets before authentication", now);
        return AQ_READ_OVER;
    }
    if (conn->packets_received >= AQ_MAX_PACKETS_RECEIVED) {
        aq_conn_close(conn, AQ_CLOSE_LOCAL, 0, "packet numbers are almost used up", now);
        return AQ_READ_OVER;
    }
    conn->now = now;
    ngtcp2_addr_init(&path.local, &local_copy.sa, aq_sockaddr_length(&local_copy));
    ngtcp2_addr_init(&path.remote, &remote_copy.sa, aq_sockaddr_length(&remote_copy));
    aq_reading_begin();
    result = ngtcp2_conn_read_pkt(conn->quic, &path, &info, data, length, now);
    switch (result) {
    case 0:
        conn->packets_received++;
        conn->bytes_received += length;
        if (aq_reading_was_authentic()) {
            heard(conn, now);
            note_path(conn);
        } else {
            /* Noise, or the stateless reset of a server that was restarted with another key. */
            aq_conn_suspect(conn, now);
        }
        after_callbacks(conn, now);
        aq_conn_return_credit(conn);
        conn->host->touch(conn->host->engine, conn);
        return AQ_READ_OK;
    case NGTCP2_ERR_DRAINING:
        after_callbacks(conn, now);
        if (conn->quic != NULL)
            closed_by_peer(conn, now);
        return AQ_READ_OK;
    case NGTCP2_ERR_RETRY:
        return AQ_READ_RETRY;
    case NGTCP2_ERR_DROP_CONN:
        return AQ_READ_DROP;
    case NGTCP2_ERR_CRYPTO:
        problem = conn->host->handshake->session_certificate_problem(conn->tls);
        aq_conn_close(conn, problem[0] != '\0' ? AQ_CLOSE_CERTIFICATE : AQ_CLOSE_TLS,
                      ngtcp2_conn_get_tls_alert(conn->quic), problem, now);
        return AQ_READ_OVER;
    case NGTCP2_ERR_RECV_VERSION_NEGOTIATION:
        aq_conn_close(conn, AQ_CLOSE_VERSION, 0, "no QUIC version in common with the server", now);
        return AQ_READ_OVER;
    default:
        close_for(conn, result, now);
        return AQ_READ_OVER;
    }
}

static void sooner(uint64_t *expiry, uint64_t other)
{
    if (other < *expiry)
        *expiry = other;
}

/* ---- timers ---------------------------------------------------------------------------------------------------- */

/* Ends streams whose command was not complete in time. The connection goes on if it is admitted: losses may have
 * delayed only this stream. */
static void give_up_commands(aq_conn *conn, uint64_t now)
{
    while (conn->incomplete.first != NULL && conn->incomplete.first->deadline <= aq_conn_alive_time(conn, now)) {
        aq_incoming *incoming = conn->incomplete.first;
        int64_t id = incoming->quic_id;
        aq_conn_drop_incoming(conn, incoming);
        aq_count(conn->host->counters, AQ_C_commands_late, 1);
        if (!conn->joined)
            aq_conn_violation(conn, "a command was not complete in time");
        ngtcp2_conn_shutdown_stream_read(conn->quic, 0, id, 0);
    }
    aq_conn_end_late_headers(conn, now);
}

/* Whether to keep waiting for an answer. If something hints that the peer has forgotten the connection, the limit is
 * `probe_timeout`. Otherwise its packets may be lost on the way, as in an outage, and the limit is `probe_until`, also
 * if nothing could be sent. */
static int is_held(aq_conn *conn, uint64_t now)
{
    int has_left = conn->packets_sent != conn->probe_packets;
    int is_suspected = conn->suspected > conn->last_received;
    if (now < conn->probe_until && (!has_left || !is_suspected)) {
        conn->probe_held = 1;
        conn->probe_deadline = now + PROBE_PING;
        return 1;
    }
    if (!has_left || !conn->probe_held)
        return 0;
    conn->probe_held = 0;
    conn->probe_deadline = now + conn->probe_timeout;
    return 1;
}

static void answer_probe(aq_conn *conn, uint64_t now)
{
    aq_event event = {.type = AQ_EVENT_PROBED, .value = conn->last_received > conn->probe_from};
    if (!event.value && (now < conn->probe_deadline || is_held(conn, now)))
        return;
    conn->probe_deadline = UINT64_MAX;
    ngtcp2_conn_set_keep_alive_timeout(conn->quic, conn->keep_alive);
    aq_conn_post(conn, &event);
}

/* When to report that the peer is silent, or that it is no longer silent. */
static uint64_t silence_expiry(const aq_conn *conn, uint64_t now)
{
    if (conn->options.silence == 0 || conn->state != AQ_CONN_OPEN)
        return UINT64_MAX;
    if (conn->silent)
        return conn->last_received > conn->silence_from ? now : UINT64_MAX;
    /* The answer to a PING may take a round trip; the probe timeout covers it. */
    return conn->last_received + conn->options.silence + ngtcp2_conn_get_pto(conn->quic);
}

static void post_silence(aq_conn *conn, int silent)
{
    aq_event event = {.type = AQ_EVENT_SILENCE, .value = (uint64_t)silent};
    conn->silent = silent;
    conn->silence_from = conn->last_received;
    aq_conn_post(conn, &event);
}

void aq_conn_suspect(aq_conn *conn, uint64_t now)
{
    conn->suspected = now;
    if (conn->state == AQ_CONN_OPEN && conn->options.silence > 0 && !conn->silent &&
        now - conn->last_received >= SUSPECT_MIN && now >= conn->suspect_next) {
        conn->suspect_next = now + SUSPECT_PAUSE;
        post_silence(conn, 1);
    }
}

void aq_conn_timers(aq_conn *conn, uint64_t now)
{
    int result;
    if (conn->quic == NULL)
        return;
    conn->now = now;
    if (ngtcp2_conn_get_expiry(conn->quic) <= now) {
        conn->handled_expiry = ngtcp2_conn_get_expiry(conn->quic);
        result = ngtcp2_conn_handle_expiry(conn->quic, now);
        if (result == NGTCP2_ERR_IDLE_CLOSE) {
            aq_conn_close(conn, AQ_CLOSE_IDLE, 0, "", now);
            return;
        }
        if (result != 0) {
            aq_conn_close(conn, result == NGTCP2_ERR_HANDSHAKE_TIMEOUT ? AQ_CLOSE_HANDSHAKE_TIMEOUT : AQ_CLOSE_INTERNAL,
                          (uint64_t)(-result), ngtcp2_strerror(result), now);
            return;
        }
    }
    if (conn->heartbeat_at <= now) {
        conn->heartbeat_due = 1;
        conn->heartbeat_at = now + conn->heartbeat_interval;
    }
    give_up_commands(conn, now);
#if !AQ_HAVE_RECV_STOP_SENDING
    aq_conn_retry_blocked(conn, now);
#endif
    if (conn->assembler != NULL && conn->assembler_expiry <= now) {
        conn->assembler_expiry = aq_assembler_expire(conn->assembler, now);
        aq_conn_count_incomplete(conn);
    }
    aq_conn_carrier_timer(conn, now);
    if (conn->probe_deadline != UINT64_MAX)
        answer_probe(conn, now);
    if (silence_expiry(conn, now) <= now)
        post_silence(conn, !conn->silent);
    after_callbacks(conn, now);
    if (conn->linger_until != UINT64_MAX && !conn->linger_grace && conn->commands_unacknowledged == 0) {
        conn->linger_grace = 1;
        sooner(&conn->linger_until, now + LINGER_GRACE);
    }
    if (conn->quic != NULL && conn->linger_until <= now)
        aq_conn_close(conn, AQ_CLOSE_LOCAL, conn->linger_code, "", now);
    else if (conn->quic != NULL)
        conn->host->touch(conn->host->engine, conn);
}

void aq_conn_schedule(aq_conn *conn, uint64_t now)
{
    uint64_t expiry;
    if (conn->quic == NULL) {
        conn->expiry = conn->keep_until;
        return;
    }
    expiry = ngtcp2_conn_get_expiry(conn->quic);
    /* A packet that is due cannot be sent before the socket has room, which epoll reports; or ngtcp2 keeps a timer that
     * it was told to handle. Without this pause the engine would never sleep. */
    if (expiry < now + BLOCKED_PAUSE && (conn->blocked != NULL || expiry == conn->handled_expiry))
        expiry = now + BLOCKED_PAUSE;
    sooner(&expiry, conn->heartbeat_at);
    sooner(&expiry, conn->assembler_expiry);
    sooner(&expiry, conn->question_deadline);
    sooner(&expiry, silence_expiry(conn, now));
    if (conn->probe_deadline != UINT64_MAX)
        sooner(&expiry, conn->last_received > conn->probe_from ? now : conn->probe_deadline);
    if (conn->linger_until != UINT64_MAX)
        sooner(&expiry, conn->commands_unacknowledged == 0 && !conn->linger_grace ? now : conn->linger_until);
    if (conn->incomplete.first != NULL)
        sooner(&expiry, aq_conn_when_alive(conn, conn->incomplete.first->deadline));
    if (conn->headers.first != NULL)
        sooner(&expiry, aq_conn_when_alive(conn, conn->headers.first->deadline));
    conn->expiry = expiry;
}

/* ---- commands from other threads -------------------------------------------------------------------------------- */

int64_t aq_conn_set_heartbeat(aq_conn *conn, const uint8_t *data, size_t length, uint64_t interval, uint64_t now)
{
    if (length > sizeof(conn->heartbeat))
        return AQ_ERR_INVALID;
    memcpy(conn->heartbeat, data, length);
    conn->heartbeat_length = length;
    conn->heartbeat_interval = interval;
    conn->heartbeat_at = interval > 0 ? now + interval : UINT64_MAX;
    conn->host->touch(conn->host->engine, conn);
    return AQ_OK;
}

int64_t aq_conn_set_joined(aq_conn *conn, enum aq_carrier carrier, int udp)
{
    if (carrier == AQ_CARRIER_UNKNOWN && (!conn->is_server || conn->joined))
        return AQ_ERR_INVALID;
    conn->carrier = carrier;
    if (carrier == AQ_CARRIER_UNKNOWN)
        aq_conn_ask_carrier(conn);
    conn->udp_allowed = udp;
    if (conn->is_server && !conn->joined) {
        if (conn->options.max_streams_uni > AQ_STREAMS_BEFORE_JOIN)
            ngtcp2_conn_extend_max_streams_uni(conn->quic, conn->options.max_streams_uni - AQ_STREAMS_BEFORE_JOIN);
    }
    conn->joined = 1;
    aq_conn_return_credit(conn);
    leave_half_open(conn);
    conn->host->touch(conn->host->engine, conn);
    return AQ_OK;
}

int64_t aq_conn_probe(aq_conn *conn, uint64_t timeout, uint64_t grace_period, uint64_t now)
{
    if (conn->state != AQ_CONN_OPEN)
        return AQ_ERR_STATE;
    conn->probe_from = now;
    conn->probe_deadline = now + timeout;
    conn->probe_timeout = timeout;
    conn->probe_until = now + grace_period;
    conn->probe_packets = conn->packets_sent;
    conn->probe_held = 0;
    ngtcp2_conn_set_keep_alive_timeout(conn->quic, PROBE_PING);
    conn->host->touch(conn->host->engine, conn);
    return AQ_OK;
}

int64_t aq_conn_migrate(aq_conn *conn, const aq_sockaddr *local, uint64_t now)
{
    ngtcp2_path path = {0};
    aq_sockaddr local_copy = *local, remote = conn->remote;
    int result;
    if (conn->state != AQ_CONN_OPEN)
        return AQ_ERR_STATE;
    ngtcp2_addr_init(&path.local, &local_copy.sa, aq_sockaddr_length(&local_copy));
    ngtcp2_addr_init(&path.remote, &remote.sa, aq_sockaddr_length(&remote));
    /* Immediately, without waiting for the validation of the new path: the old address may be gone. */
    result = ngtcp2_conn_initiate_immediate_migration(conn->quic, &path, now);
    if (result == NGTCP2_ERR_NOMEM)
        return AQ_ERR_MEMORY;
    if (result != 0)
        return AQ_ERR_STATE; /* forbidden by the peer, handshake not confirmed, or no spare connection id */
    free(conn->blocked);     /* built for the old path; QUIC treats it as lost */
    conn->blocked = NULL;
    conn->gso = conn->options.gso; /* the new path may use another device */
    aq_count(conn->host->counters, AQ_C_connections_migrated, 1);
    conn->host->touch(conn->host->engine, conn);
    return AQ_OK;
}

/* Replaces limits; takes over the reference to the addresses. What was used up stays so. */
static void replace_limits(aq_limits *limits, const aq_limits *by)
{
    uint64_t new_until = limits->new_until;
    aq_ranges_unref(limits->permitted);
    *limits = *by;
    limits->new_until = new_until;
}

void aq_conn_limit(aq_conn *conn, const aq_limits *limits)
{
    aq_group *group = atomic_load(&conn->group);
    if (group != NULL) {
        if (limits->permitted != NULL)
            aq_ranges_ref(limits->permitted);
        replace_limits(&group->limits, limits);
    }
    replace_limits(&conn->limits, limits);
    aq_assocs_permit(conn->assocs, limits->permitted);
    for (aq_stream *stream = conn->streams.first; stream != NULL; stream = stream->conn_link.next) {
        if (atomic_load(&stream->admitted) && !aq_limits_permit(limits->permitted, &stream->peer)) {
            aq_conn_refused(conn, AQ_REFUSED_BY_TCP_RULES, &stream->peer);
            aq_stream_cut(stream, AQ_STREAM_REFUSED);
            conn->host->touch_stream(conn->host->engine, stream);
        }
    }
}

int64_t aq_conn_get_info(aq_conn *conn, aq_connection_info *info, uint64_t now)
{
    ngtcp2_conn_info raw;
    memset(info, 0, sizeof(*info));
    get_totals(conn, &info->totals, &raw);
    aq_sockaddr_to(&conn->remote, &info->peer);
    info->smoothed_rtt = raw.smoothed_rtt;
    info->min_rtt = raw.min_rtt != UINT64_MAX ? raw.min_rtt : 0;
    info->latest_rtt = raw.latest_rtt;
    info->congestion_window = raw.cwnd;
    info->bytes_in_flight = raw.bytes_in_flight;
    info->path_payload = ngtcp2_conn_get_path_max_tx_udp_payload_size(conn->quic);
    info->datagram_limit = conn->handshake_done ? aq_conn_datagram_limit(conn) : 0;
    info->silence = now - conn->last_received;
    info->idle_timeout = idle_timeout(conn);
    info->keep_alive = conn->keep_alive != UINT64_MAX ? conn->keep_alive : 0;
    info->streams = conn->streams_count;
    info->relays = atomic_load_explicit(&conn->credit->relays, memory_order_relaxed);
    pthread_mutex_lock(&conn->assocs->mutex);
    info->associations = conn->assocs->count;
    pthread_mutex_unlock(&conn->assocs->mutex);
    info->datagrams_queued = atomic_load(&conn->assocs->has_queue) ? aq_dgram_waiting(&conn->assocs->queue) : 0;
    return AQ_OK;
}

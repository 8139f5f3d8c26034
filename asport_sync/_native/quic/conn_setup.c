/* Creation of a connection: settings, transport parameters, callbacks, connection ids. */
#include "quic/conn.h"

#include "quic/reading.h"

#include <stdlib.h>
#include <string.h>

#define ACTIVE_CID_LIMIT 8
/* IPv6 and UDP headers, bytes. IPv4's are smaller, but a translator may be on the path. */
#define PACKET_HEADERS 48
#define ETHERNET_PAYLOAD (1500 - PACKET_HEADERS)
/* Consumed bytes are returned to the peer in pieces of at least 1/CREDIT_PARTS of connection_window. They must not wait
 * for long: the peer may have used up the rest of the window. */
#define CREDIT_PARTS 64
/* Two of these fill a segmented send, the maximum of one system call. Only interfaces inside a machine take larger
 * packets, and nothing would be gained by them. */
#define LARGEST_PAYLOAD 32736

/* ---- callbacks of the connection as a whole -------------------------------------------------------------------- */

static int on_new_cid(ngtcp2_conn *quic, ngtcp2_cid *cid, uint8_t *token, size_t length, void *user)
{
    aq_conn *conn = user;
    AQ_UNUSED(quic);
    cid->datalen = length;
    conn->host->handshake->random(cid->data, length);
    if (conn->host->handshake->reset_token(token, conn->reset_key, cid) != 0)
        return NGTCP2_ERR_CALLBACK_FAILURE;
    if (conn->cids_length == AQ_CIDS_MAX || conn->host->route(conn->endpoint, cid, conn) != 0)
        return NGTCP2_ERR_CALLBACK_FAILURE;
    conn->cids[conn->cids_length++] = *cid;
    return 0;
}

static int on_remove_cid(ngtcp2_conn *quic, const ngtcp2_cid *cid, void *user)
{
    aq_conn *conn = user;
    AQ_UNUSED(quic);
    for (size_t i = 0; i < conn->cids_length; i++) {
        if (ngtcp2_cid_eq(&conn->cids[i], cid)) {
            conn->host->unroute(conn->endpoint, cid);
            conn->cids[i] = conn->cids[--conn->cids_length];
            break;
        }
    }
    return 0;
}

static int on_crypto_data(ngtcp2_conn *quic, ngtcp2_encryption_level level, uint64_t offset, const uint8_t *data,
                          size_t length, void *user)
{
    const aq_conn *conn = user;
    AQ_UNUSED(quic);
    return conn->host->handshake->session_receive(conn->tls, level, offset, data, length);
}

static int on_handshake_completed(ngtcp2_conn *quic, void *user)
{
    aq_conn *conn = user;
    AQ_UNUSED(quic);
    aq_conn_handshake_done(conn);
    return 0;
}

/* A client's connection starts to use a connection id of its peer. The first time that this happens during a write, the
 * handshake ends: Finished has been sent. */
static int on_dcid_status(ngtcp2_conn *quic, ngtcp2_connection_id_status_type type, uint64_t sequence,
                          const ngtcp2_cid *cid, const uint8_t *token, void *user)
{
    aq_conn *conn = user;
    AQ_UNUSED(quic);
    AQ_UNUSED(sequence);
    AQ_UNUSED(cid);
    AQ_UNUSED(token);
    if (type != NGTCP2_CONNECTION_ID_STATUS_TYPE_ACTIVATE || conn->handshake_written)
        return 0;
    if (!conn->writing)
        return AQ_SURVIVES_EARLY_RETIREMENT ? 0 : NGTCP2_ERR_CALLBACK_FAILURE;
    conn->handshake_written = 1;
    return 0;
}

/* A server that has not received Finished cannot confirm the handshake. Up to 1.25, ngtcp2 accepts the confirmation,
 * discards its handshake keys, and dereferences them in the next packet or write; so the connection ends here. Our own
 * build of ngtcp2 detects the violation (vendor/adjustments.py). */
static int on_handshake_confirmed(ngtcp2_conn *quic, void *user)
{
    const aq_conn *conn = user;
    AQ_UNUSED(quic);
    return conn->handshake_written ? 0 : aq_reading_stop(NGTCP2_PROTOCOL_VIOLATION);
}

static int on_stateless_reset(ngtcp2_conn *quic, const ngtcp2_pkt_stateless_reset *reset, void *user)
{
    aq_conn *conn = user;
    AQ_UNUSED(quic);
    AQ_UNUSED(reset);
    conn->reset_received = 1;
    return 0;
}

static int on_datagram(ngtcp2_conn *quic, uint32_t flags, const uint8_t *data, size_t length, void *user)
{
    AQ_UNUSED(quic);
    AQ_UNUSED(flags);
    aq_conn_receive_datagram(user, data, length);
    return 0;
}

static void fill_callbacks(const aq_conn *conn, ngtcp2_callbacks *callbacks)
{
    memset(callbacks, 0, sizeof(*callbacks));
    conn->host->handshake->set_callbacks(callbacks, conn->is_server);
    if (!conn->is_server) {
        callbacks->handshake_confirmed = on_handshake_confirmed;
        callbacks->dcid_status = on_dcid_status;
    }
    callbacks->recv_crypto_data = on_crypto_data;
    callbacks->get_new_connection_id = on_new_cid;
    callbacks->remove_connection_id = on_remove_cid;
    callbacks->handshake_completed = on_handshake_completed;
    callbacks->recv_stateless_reset = on_stateless_reset;
    callbacks->recv_datagram = on_datagram;
    aq_conn_stream_callbacks(callbacks);
}

/* ---- creation and end ------------------------------------------------------------------------------------------ */

/* Largest UDP payload, in bytes, that leaves the interface towards the peer unfragmented. What the path behind it
 * carries is for the path MTU search to find out. */
static size_t largest_payload(const aq_sockaddr *remote)
{
    size_t mtu = aq_udp_route_mtu(remote);
    if (mtu == 0)
        return ETHERNET_PAYLOAD;
    if (mtu > LARGEST_PAYLOAD + PACKET_HEADERS)
        return LARGEST_PAYLOAD;
    return mtu > NGTCP2_MAX_UDP_PAYLOAD_SIZE + PACKET_HEADERS ? mtu - PACKET_HEADERS : NGTCP2_MAX_UDP_PAYLOAD_SIZE;
}

static void fill_settings(aq_conn *conn, const aq_conn_setup *setup, ngtcp2_settings *settings)
{
    static const ngtcp2_cc_algo algorithms[] = {NGTCP2_CC_ALGO_CUBIC, NGTCP2_CC_ALGO_RENO, NGTCP2_CC_ALGO_BBR};
    /* Below the maximum of the options: sizes that fit Ethernet in common tunnels, down to IPv6's minimum. */
    static const uint16_t common[] = {1420, 1372, 1280};
    size_t probes = 0, route = largest_payload(setup->remote);
    size_t max = conn->options.max_udp_payload < route ? conn->options.max_udp_payload : route;
    size_t usual = max < ETHERNET_PAYLOAD ? max : ETHERNET_PAYLOAD;

    ngtcp2_settings_default(settings);
    settings->initial_ts = setup->now;
    settings->handshake_timeout = conn->options.handshake_timeout;
    settings->cc_algo = algorithms[conn->options.congestion];
    settings->max_tx_udp_payload_size = max;
    /* The usual size first, so that it is found within a round trip. Larger sizes are tried only if it got through,
     * smaller ones only if it did not. */
    if (usual > NGTCP2_MAX_UDP_PAYLOAD_SIZE)
        conn->probes[probes++] = (uint16_t)usual;
    if (max > usual)
        conn->probes[probes++] = (uint16_t)max;
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(common); i++) {
        if (common[i] < usual)
            conn->probes[probes++] = common[i];
    }
    aq_compat_settings(settings, probes > 0 ? conn->probes : NULL, probes);
    /* Windows follow the readers (conn_streams.c); ngtcp2's auto-tuning would exceed the pipes. */
    settings->max_window = settings->max_stream_window = 0;
    if (setup->header != NULL && setup->original_dcid != NULL) {
        settings->token = setup->header->token;
        settings->tokenlen = setup->header->tokenlen;
        settings->token_type = NGTCP2_TOKEN_TYPE_RETRY;
    }
}

static int fill_params(aq_conn *conn, const aq_conn_setup *setup, const ngtcp2_cid *scid,
                       ngtcp2_transport_params *params)
{
    const aq_transport_options *options = &conn->options;
    uint64_t window = options->receive_window < AQ_FIRST_WINDOW ? options->receive_window : AQ_FIRST_WINDOW;
    ngtcp2_transport_params_default(params);
    params->initial_max_data = conn->granted;
    params->initial_max_stream_data_bidi_local = window;
    params->initial_max_stream_data_bidi_remote = window;
    params->initial_max_stream_data_uni = AQ_UNI_WINDOW;
    params->initial_max_streams_bidi = options->max_streams_bidi;
    params->initial_max_streams_uni = conn->is_server ? AQ_STREAMS_BEFORE_JOIN : options->max_streams_uni;
    params->max_idle_timeout = options->idle_timeout;
    params->max_datagram_frame_size = options->datagrams ? UINT16_MAX : 0;
    params->active_connection_id_limit = ACTIVE_CID_LIMIT - 1;
    if (conn->is_server) {
        params->original_dcid = setup->original_dcid != NULL ? *setup->original_dcid : setup->header->dcid;
        params->original_dcid_present = 1;
        if (setup->original_dcid != NULL) {
            params->retry_scid = setup->header->dcid;
            params->retry_scid_present = 1;
        }
        params->stateless_reset_token_present = 1;
        return conn->host->handshake->reset_token(params->stateless_reset_token, conn->reset_key, scid);
    }
    return 0;
}

static void random_cid(const aq_conn *conn, ngtcp2_cid *cid)
{
    cid->datalen = AQ_SCID_LENGTH;
    conn->host->handshake->random(cid->data, cid->datalen);
}

static int start_quic(aq_conn *conn, const aq_conn_setup *setup)
{
    ngtcp2_callbacks callbacks;
    ngtcp2_settings settings;
    ngtcp2_transport_params params;
    ngtcp2_path path = {0};
    aq_sockaddr local = *setup->local, remote = *setup->remote;
    ngtcp2_cid scid, dcid;
    int result;

    ngtcp2_addr_init(&path.local, &local.sa, aq_sockaddr_length(&local));
    ngtcp2_addr_init(&path.remote, &remote.sa, aq_sockaddr_length(&remote));
    random_cid(conn, &scid);
    random_cid(conn, &dcid);
    fill_callbacks(conn, &callbacks);
    fill_settings(conn, setup, &settings);
    if (fill_params(conn, setup, &scid, &params) != 0)
        return AQ_ERR_TLS;
    if (conn->is_server)
        result = ngtcp2_conn_server_new(&conn->quic, &setup->header->scid, &scid, &path, setup->header->version,
                                        &callbacks, &settings, &params, &conn->memory, conn);
    else
        result = ngtcp2_conn_client_new(&conn->quic, &dcid, &scid, &path, NGTCP2_PROTO_VER_V1, &callbacks, &settings,
                                        &params, &conn->memory, conn);
    if (result != 0)
        return AQ_ERR_MEMORY;
    conn->host->handshake->session_attach(conn->tls, conn->quic);
    ngtcp2_conn_set_keep_alive_timeout(conn->quic, conn->keep_alive);
    conn->cids[conn->cids_length++] = scid;
    if (conn->host->route(conn->endpoint, &scid, conn) != 0)
        return AQ_ERR_MEMORY;
    if (conn->is_server) {
        /* The client uses the connection id that it chose until it has seen ours. */
        conn->cids[conn->cids_length++] = setup->header->dcid;
        if (conn->host->route(conn->endpoint, &setup->header->dcid, conn) != 0)
            return AQ_ERR_MEMORY;
    }
    return AQ_OK;
}

aq_conn *aq_conn_new(const aq_conn_setup *setup, int64_t *error)
{
    const aq_conn_host *host = setup->host;
    aq_conn *conn = calloc(1, sizeof(*conn));
    aq_id name;
    *error = AQ_ERR_MEMORY;
    if (conn == NULL)
        return NULL;
    conn->host = host;
    conn->endpoint = setup->endpoint;
    conn->endpoint_id = setup->endpoint_id;
    conn->is_server = setup->header != NULL;
    conn->joined = conn->udp_allowed = conn->announced = !conn->is_server;
    conn->options = *setup->options;
    conn->remote = *setup->remote;
    conn->now = conn->handshake_at = conn->last_received = setup->now;
    conn->heap_index = UINT32_MAX;
    conn->heartbeat_at = conn->linger_until = conn->keep_until = UINT64_MAX;
    conn->probe_deadline = conn->assembler_expiry = conn->question_deadline = UINT64_MAX;
    conn->gso = conn->options.gso;
    conn->stream_quantum = AQ_STREAM_TURN * NGTCP2_MAX_UDP_PAYLOAD_SIZE;
    conn->keep_alive = conn->options.keep_alive > 0 ? conn->options.keep_alive : UINT64_MAX;
    if (setup->reset_key != NULL)
        memcpy(conn->reset_key, setup->reset_key, sizeof(conn->reset_key));
    else
        aq_random(conn->reset_key, sizeof(conn->reset_key));
    name = aq_slab_add(host->connections, conn);
    if (name < 0) {
        *error = name;
        free(conn);
        return NULL;
    }
    conn->id = name;
    conn->named = 1;
    aq_slab_get(host->connections, name); /* our reference, until aq_conn_free() */
    conn->credit = aq_credit_new(conn->options.connection_window / CREDIT_PARTS, name, host->ready);
    if (conn->credit != NULL)
        conn->credit->accepted_in_all = host->accepted;
    conn->granted = conn->is_server ? AQ_WINDOW_BEFORE_JOIN : AQ_CONN_MIN_WINDOW;
    if (conn->granted > conn->options.connection_window)
        conn->granted = conn->options.connection_window;
    conn->window = AQ_CONN_FIRST_WINDOW;
    conn->window_from_at = setup->now;
    conn->assocs = aq_assocs_new(name, host->ready, host->counters, conn->options.datagram_queue);
    if (conn->assocs != NULL)
        conn->assocs->events = host->events;
    if (conn->credit != NULL && conn->assocs != NULL) {
        conn->credit->account.budget = host->budget;
        conn->memory_source = (aq_memory){host->reserve, &conn->credit->account};
        conn->memory =
            (ngtcp2_mem){&conn->memory_source, aq_memory_malloc, aq_memory_free, aq_memory_calloc, aq_memory_realloc};
        conn->tls = host->handshake->session_new(setup->credentials, setup->server_name, setup->send_sni, error);
        if (conn->tls != NULL)
            *error = start_quic(conn, setup);
    }
    if (*error != AQ_OK || conn->quic == NULL) {
        aq_conn_free(conn);
        return NULL;
    }
    aq_count(host->counters, conn->is_server ? AQ_C_connections_accepted : AQ_C_connections_opened, 1);
    return conn;
}

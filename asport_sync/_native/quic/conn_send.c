/* The write loop: packets are built one after the other into one buffer, and those of equal size leave in one segmented
 * send (a train).
 *
 * The path of outgoing bytes:
 *   1. aq_conn_write  decides how long the train may be
 *   2. build_packet   fills one packet: commands, then UDP packets and stream data in turns, then ngtcp2's own frames
 *   3. send_train     hands the train to the socket; what the socket does not take waits in conn->blocked
 *
 * Between the calls for one packet no other function of ngtcp2 may be called: see NGTCP2_WRITE_STREAM_FLAG_MORE.
 */
#include "quic/conn.h"

#include <stdlib.h>
#include <string.h>

/* Vectors of stream bytes per call. A packet of the largest size spans three or four segments of a pipe. */
#define VECTORS 4

typedef struct {
    ngtcp2_path *path;
    ngtcp2_pkt_info *info;
    uint8_t *out;
    size_t room;
    uint64_t now;
} packet_target;

/* Results of a stage of build_packet other than the length of a finished packet. */
#define STAGE_DONE 0     /* nothing more from this stage; the packet is still open */
#define STAGE_STOP (-1)  /* congestion control, pacing or the path allows no packet now */
#define STAGE_FATAL (-2) /* ngtcp2's error is in *error */

/* Whether the owner may read more from its socket once less data waits here. True for every worker: only
 * aq_stream_signal() can check without a race what a worker waits for. */
static int waits_for_room(const aq_stream *stream)
{
    return stream->attached_fd < 0 || stream->can_read;
}

static ngtcp2_ssize stream_stage(aq_conn *conn, packet_target *target, int *error)
{
    while (conn->sending.first != NULL && ngtcp2_conn_get_max_data_left(conn->quic) > 0) {
        aq_stream *stream = conn->sending.first;
        struct iovec vectors[VECTORS];
        uint32_t flags = NGTCP2_WRITE_STREAM_FLAG_MORE;
        ngtcp2_ssize taken = -1, result;
        size_t offered = 0;
        /* fin before readable: the owner publishes them in the opposite order. */
        int fin = atomic_load_explicit(&stream->tx_fin, memory_order_acquire);
        int count = aq_pipe_peek(&stream->tx, vectors, VECTORS, target->room);
        for (int i = 0; i < count; i++)
            offered += vectors[i].iov_len;
        if (fin && offered == aq_pipe_readable(&stream->tx))
            flags |= NGTCP2_WRITE_STREAM_FLAG_FIN;
        else if (offered == 0) {
            aq_conn_unqueue_stream(conn, stream);
            continue;
        }
        result = ngtcp2_conn_writev_stream(conn->quic, target->path, target->info, target->out, target->room, &taken,
                                           flags, stream->quic_id, (const ngtcp2_vec *)(const void *)vectors,
                                           (size_t)count, target->now);
        if (taken >= 0 && (result == NGTCP2_ERR_WRITE_MORE || result > 0)) {
            aq_pipe_take(&stream->tx, (size_t)taken);
            if (aq_pipe_readable(&stream->tx) <= AQ_READ_AHEAD / 2 && waits_for_room(stream))
                conn->host->touch_stream(conn->host->engine, stream);
            aq_count(conn->host->counters, AQ_C_stream_bytes_sent, (uint64_t)taken);
            if ((flags & NGTCP2_WRITE_STREAM_FLAG_FIN) && (size_t)taken == offered)
                stream->fin_sent = 1;
            stream->quantum -= (uint64_t)taken < stream->quantum ? (uint64_t)taken : stream->quantum;
            if (stream->fin_sent || aq_pipe_readable(&stream->tx) == 0) {
                aq_conn_unqueue_stream(conn, stream);
                /* The owner may have set tx_fin since the check above; it also notifies the engine, so nothing is
                 * missed. */
            } else if (stream->quantum == 0) {
                aq_conn_unqueue_stream(conn, stream);
                aq_conn_queue_stream(conn, stream);
            }
        }
        if (result > 0)
            return result;
        switch (result) {
        case 0:
            return STAGE_STOP;
        case NGTCP2_ERR_WRITE_MORE:
            break;
        case NGTCP2_ERR_STREAM_DATA_BLOCKED:
            stream->blocked = 1; /* until on_extend_stream */
            aq_conn_unqueue_stream(conn, stream);
            break;
        case NGTCP2_ERR_STREAM_SHUT_WR:
        case NGTCP2_ERR_STREAM_NOT_FOUND:
            aq_conn_stream_stopped(conn, stream);
            break;
        default:
            *error = (int)result;
            return STAGE_FATAL;
        }
    }
    return STAGE_DONE;
}

static ngtcp2_ssize outgoing_stage(aq_conn *conn, packet_target *target, int *error)
{
    while (conn->out_queue.first != NULL && ngtcp2_conn_get_max_data_left(conn->quic) > 0) {
        aq_outgoing *outgoing = conn->out_queue.first;
        ngtcp2_vec vector = {.base = outgoing->data + outgoing->sent, .len = outgoing->length - outgoing->sent};
        uint32_t fin = outgoing->unfinished ? 0 : NGTCP2_WRITE_STREAM_FLAG_FIN;
        ngtcp2_ssize taken = -1, result;
        if (outgoing->quic_id < 0) {
            if (ngtcp2_conn_get_streams_uni_left(conn->quic) == 0)
                break; /* until on_extend_streams */
            if (ngtcp2_conn_open_uni_stream(conn->quic, &outgoing->quic_id, &outgoing->tag) != 0) {
                aq_count(conn->host->counters, AQ_C_memory_failures, 1);
                break;
            }
        }
        result =
            ngtcp2_conn_writev_stream(conn->quic, target->path, target->info, target->out, target->room, &taken,
                                      NGTCP2_WRITE_STREAM_FLAG_MORE | fin, outgoing->quic_id, &vector, 1, target->now);
        if (taken >= 0 && (result == NGTCP2_ERR_WRITE_MORE || result > 0)) {
            outgoing->sent += (size_t)taken;
            if (outgoing->sent == outgoing->length) {
                outgoing->fin_sent = !outgoing->unfinished;
                aq_conn_unqueue_outgoing(conn, outgoing);
            }
        }
        if (result > 0)
            return result;
        switch (result) {
        case 0:
            return STAGE_STOP;
        case NGTCP2_ERR_WRITE_MORE:
            break;
        case NGTCP2_ERR_STREAM_DATA_BLOCKED:
            outgoing->blocked = 1; /* until on_extend_stream */
            aq_conn_unqueue_outgoing(conn, outgoing);
            break;
        case NGTCP2_ERR_STREAM_SHUT_WR:
        case NGTCP2_ERR_STREAM_NOT_FOUND:
            aq_conn_unqueue_outgoing(conn, outgoing); /* freed when the stream is closed */
            break;
        default:
            *error = (int)result;
            return STAGE_FATAL;
        }
    }
    return STAGE_DONE;
}

/* Prepares the next DATAGRAM of the packet at the head of the queue: header (into scratch) and slice of its payload.
 * Returns 0 if the packet had to be given up. */
static int next_piece(aq_conn *conn, aq_dgram_record *record, size_t limit, uint8_t *scratch, ngtcp2_vec vectors[2])
{
    size_t whole = record->header + record->payload, size;
    if (conn->fragment_next == 0) { /* planned again until the first fragment has left: the path may change */
        int total = 1;
        if (whole > limit)
            total = aq_fragment_plan(limit, record->payload, record->ipv6, &conn->fragment_first, &conn->fragment_rest);
        if (total == 0) {
            aq_count(conn->host->counters, AQ_C_packet_drop_too_big, 1);
            return 0;
        }
        conn->fragment_total = (uint16_t)total;
        conn->fragment_next = 0;
        conn->fragment_offset = 0;
    }
    if (conn->fragment_total == 1) {
        vectors[0].base = record->data;
        vectors[0].len = whole;
        vectors[1].len = 0;
        size = whole;
    } else {
        int first = conn->fragment_next == 0;
        size_t header = first ? record->header : AQ_PACKET_HEADER_NONE;
        size_t left = record->payload - conn->fragment_offset;
        size_t piece = first ? conn->fragment_first : conn->fragment_rest;
        if (piece > left)
            piece = left;
        memcpy(scratch, record->data, first ? record->header : 10U);
        scratch[6] = (uint8_t)conn->fragment_total;
        scratch[7] = (uint8_t)conn->fragment_next;
        scratch[8] = (uint8_t)(piece >> 8);
        scratch[9] = (uint8_t)piece;
        if (!first)
            scratch[10] = 0xff;
        vectors[0].base = scratch;
        vectors[0].len = header;
        vectors[1].base = record->data + record->header + conn->fragment_offset;
        vectors[1].len = piece;
        size = header + piece;
    }
    if (size > limit) {
        /* The path MTU has shrunk since the first fragment left. */
        aq_count(conn->host->counters, AQ_C_packet_drop_too_big, 1);
        return 0;
    }
    return 1;
}

static ngtcp2_ssize datagram_stage(aq_conn *conn, packet_target *target, int *error)
{
    uint8_t scratch[AQ_PACKET_HEADER_MAX];
    aq_dgram_record *record;
    size_t limit = aq_conn_datagram_limit(conn);
    int queued = atomic_load(&conn->assocs->has_queue) && conn->carrier == AQ_CARRIER_DATAGRAM;

    while (conn->heartbeat_due || queued) {
        ngtcp2_vec vectors[2] = {{.base = conn->heartbeat, .len = conn->heartbeat_length}, {.base = NULL, .len = 0}};
        int is_heartbeat = conn->heartbeat_due, accepted = 0;
        ngtcp2_ssize result;
        if (!is_heartbeat) {
            aq_conn_trim_datagrams(conn);
            record = aq_dgram_front(&conn->assocs->queue);
            if (record == NULL) {
                aq_conn_rewind_datagrams(conn);
                break;
            }
            if (limit == 0) {
                aq_count(conn->host->counters, AQ_C_packet_drop_carrier, 1);
                aq_conn_advance_datagram(conn);
                continue;
            }
            if (!next_piece(conn, record, limit, scratch, vectors)) {
                aq_conn_advance_datagram(conn);
                continue;
            }
        } else if (limit == 0) {
            conn->heartbeat_due = 0;
            continue;
        }
        result = ngtcp2_conn_writev_datagram(conn->quic, target->path, target->info, target->out, target->room,
                                             &accepted, NGTCP2_WRITE_DATAGRAM_FLAG_MORE, 0, vectors,
                                             vectors[1].len > 0 ? 2 : 1, target->now);
        if (accepted && is_heartbeat) {
            conn->heartbeat_due = 0;
        } else if (accepted) {
            conn->fragment_offset += vectors[1].len;
            conn->fragment_next++;
            if (conn->fragment_next >= conn->fragment_total) {
                aq_count(conn->host->counters, AQ_C_packets_sent, 1);
                aq_conn_advance_datagram(conn);
            }
        }
        if (result > 0)
            return result;
        if (result == 0)
            return STAGE_STOP; /* the DATAGRAM fits the path, so congestion control or pacing stopped it */
        if (result == NGTCP2_ERR_INVALID_ARGUMENT || result == NGTCP2_ERR_INVALID_STATE) {
            if (is_heartbeat) {
                conn->heartbeat_due = 0;
            } else {
                aq_count(conn->host->counters, AQ_C_packet_drop_carrier, 1);
                aq_conn_advance_datagram(conn);
            }
        } else if (result != NGTCP2_ERR_WRITE_MORE) {
            *error = (int)result;
            return STAGE_FATAL;
        }
    }
    return STAGE_DONE;
}

typedef ngtcp2_ssize (*stage)(aq_conn *conn, packet_target *target, int *error);

/* Builds one packet. Returns > 0: its length; 0: nothing to send, or nothing may be sent; < 0: a fatal error of
 * ngtcp2. */
static ngtcp2_ssize build_packet(aq_conn *conn, packet_target *target)
{
    stage stages[3] = {outgoing_stage, datagram_stage, stream_stage};
    int error = 0;
    if (ngtcp2_conn_get_handshake_completed(conn->quic)) {
        /* UDP packets are not flow-controlled: while stream data waits, they get the front of every other packet. */
        conn->datagrams_turn = !conn->datagrams_turn;
        if (!conn->datagrams_turn) {
            stages[1] = stream_stage;
            stages[2] = datagram_stage;
        }
        for (size_t i = 0; i < AQ_ARRAY_LENGTH(stages); i++) {
            ngtcp2_ssize result = stages[i](conn, target, &error);
            if (result > 0)
                return result;
            if (result == STAGE_STOP)
                return 0;
            if (result == STAGE_FATAL)
                return error;
        }
    }
    return ngtcp2_conn_writev_stream(conn->quic, target->path, target->info, target->out, target->room, NULL,
                                     NGTCP2_WRITE_STREAM_FLAG_NONE, -1, NULL, 0, target->now);
}

static void to_sockaddr(aq_sockaddr *out, const ngtcp2_addr *in)
{
    size_t length = (size_t)in->addrlen < sizeof(*out) ? (size_t)in->addrlen : sizeof(*out);
    memset(out, 0, sizeof(*out));
    if (length > 0)
        memcpy(out, in->addr, length);
}

static void send_train(aq_conn *conn, const ngtcp2_path *path, uint8_t ecn, const uint8_t *data, size_t length,
                       size_t segment)
{
    aq_sockaddr remote, local;
    size_t sent = 0;
    to_sockaddr(&remote, &path->remote);
    to_sockaddr(&local, &path->local);
    if (conn->host->transmit(conn, &remote, &local, ecn, data, length, segment, &sent) != 1 || sent >= length)
        return;
    /* The socket is full. These packets count as sent; they are kept until the socket takes them. */
    aq_count(conn->host->counters, AQ_C_quic_send_blocked, 1);
    if (conn->blocked != NULL)
        return; /* dropped; QUIC treats it as lost */
    conn->blocked = malloc(length - sent);
    if (conn->blocked == NULL) {
        aq_count(conn->host->counters, AQ_C_memory_failures, 1);
        return; /* likewise */
    }
    memcpy(conn->blocked, data + sent, length - sent);
    conn->blocked_length = length - sent;
    conn->blocked_segment = segment;
    conn->blocked_ecn = ecn;
    conn->blocked_remote = remote;
    conn->blocked_local = local;
}

void aq_conn_unblock(aq_conn *conn, uint64_t now)
{
    uint8_t *rest = conn->blocked;
    size_t sent = 0;
    AQ_UNUSED(now);
    if (rest == NULL)
        return;
    if (conn->host->transmit(conn, &conn->blocked_remote, &conn->blocked_local, conn->blocked_ecn, rest,
                             conn->blocked_length, conn->blocked_segment, &sent) == 1 &&
        sent < conn->blocked_length) {
        memmove(rest, rest + sent, conn->blocked_length - sent);
        conn->blocked_length -= sent;
        return;
    }
    free(rest);
    conn->blocked = NULL;
    conn->host->touch(conn->host->engine, conn);
}

int aq_conn_write(aq_conn *conn, uint64_t now)
{
    ngtcp2_path_storage first, other;
    ngtcp2_pkt_info first_info = {0}, other_info = {0};
    packet_target target = {.now = now};
    uint8_t *train = conn->host->train;
    size_t path_size, hard_size, limit, length = 0, segment = 0;
    ngtcp2_ssize built = 0;
    int more = 0;

    if (conn->quic == NULL || conn->blocked != NULL)
        return 0;
    conn->now = now;
    if (ngtcp2_conn_get_handshake_completed(conn->quic)) {
        aq_conn_open_waiting(conn);
        if (conn->carrier != AQ_CARRIER_DATAGRAM && atomic_load(&conn->assocs->has_queue)) {
            aq_conn_trim_datagrams(conn);
            if (conn->carrier == AQ_CARRIER_STREAM)
                aq_conn_packets_to_streams(conn);
        }
    }
    ngtcp2_path_storage_zero(&first);
    ngtcp2_path_storage_zero(&other);
    path_size = ngtcp2_conn_get_path_max_tx_udp_payload_size(conn->quic);
    hard_size = ngtcp2_conn_get_max_tx_udp_payload_size(conn->quic);
    limit = aq_compat_send_quantum(conn->quic, path_size);
    conn->stream_quantum = AQ_STREAM_TURN * limit;
    if (limit > AQ_TRAIN_MAX)
        limit = AQ_TRAIN_MAX;
    limit = limit / path_size * path_size;
    if (limit > AQ_SEGMENTS_MAX * path_size)
        limit = AQ_SEGMENTS_MAX * path_size;
    if (limit < path_size)
        limit = path_size;

    conn->writing = 1;
    for (;;) {
        int is_first = length == 0;
        target.out = train + length;
        target.room = is_first ? hard_size : path_size;
        target.path = is_first ? &first.path : &other.path;
        target.info = is_first ? &first_info : &other_info;
        built = build_packet(conn, &target);
        if (built <= 0)
            break;
        if (is_first) {
            segment = (size_t)built;
            length = segment;
            /* A path MTU probe, which is larger than the path's size, and a short packet are both sent alone. */
            if (segment != path_size) {
                more = 1;
                break;
            }
        } else if (other_info.ecn != first_info.ecn || !ngtcp2_path_eq(&first.path, &other.path) ||
                   (size_t)built > segment) {
            send_train(conn, &first.path, first_info.ecn, train, length, segment);
            send_train(conn, &other.path, other_info.ecn, train + length, (size_t)built, (size_t)built);
            length = 0;
            more = 1;
            break;
        } else {
            length += (size_t)built;
            if ((size_t)built < segment) {
                more = 1;
                break;
            }
        }
        if (length + path_size > limit) {
            more = 1;
            break;
        }
    }
    if (length > 0)
        send_train(conn, &first.path, first_info.ecn, train, length, segment);
    conn->writing = 0;
    if (built < 0) {
        aq_conn_close(conn, AQ_CLOSE_INTERNAL, (uint64_t)(-built), ngtcp2_strerror((int)built), now);
        return 0;
    }
    ngtcp2_conn_update_pkt_tx_time(conn->quic, now);
    return more && conn->blocked == NULL;
}

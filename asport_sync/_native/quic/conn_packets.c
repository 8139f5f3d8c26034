/* Commands and UDP packets of a connection.
 *
 * Out: pump thread -> queue (dgram.h) -> DATAGRAM frames, fragmented for the current path, or one unidirectional stream
 * each.
 * In: DATAGRAM frame or stream -> header -> association -> reassembly -> one collected send on the association's
 * socket.
 */
#include "quic/conn.h"

#include <stdlib.h>
#include <string.h>

/* Maximum number of commands that wait for the peer's stream credit and acknowledgement. A peer that grants none must
 * not cost unlimited memory. */
#define COMMANDS_WAITING 16384
/* Cost of a command or packet on its own stream in addition to its bytes: our memory and ngtcp2's. */
#define OUTGOING_COST 512
/* Maximum of packets that wait for Python to decide on their association: two seconds' worth of many new sources. */
#define WAITING_PACKETS 4096
#define WAITING_BYTES (1024U * 1024U)
/* Maximum of incomplete Packets of one connection. */
#define INCOMPLETE_PACKETS 256
#define INCOMPLETE_BYTES (4U * 1024U * 1024U)
/* Frame type and two bytes of length of a DATAGRAM frame; RFC 9221 section 4. */
#define DATAGRAM_FRAME_OVERHEAD 3
/* The association of the Packet that asks for the carrier. Our servers never assign it. */
#define QUESTION_ASSOCIATION 0
/* A client that takes no Packets on streams stops the asking stream as soon as it reads it: within a millisecond of
 * its acknowledgement, unless its machine is busy. It gets this many nanoseconds and round trips, which also cover a
 * loss of the answer, or of the ServerHello before it. */
#define ANSWER_TIME AQ_NSEC_PER_SEC
#define ANSWER_ROUND_TRIPS 4
/* Maximum of that time, nanoseconds. Clients give up a command that is not complete after 3 s, which must not be taken
 * for an answer. */
#define ANSWER_TIME_MAX (5 * AQ_NSEC_PER_SEC / 2)

/* ---- commands ------------------------------------------------------------------------------------------------ */

void aq_conn_queue_outgoing(aq_conn *conn, aq_outgoing *outgoing)
{
    outgoing->queued = 1;
    AQ_LIST_ADD_LAST(&conn->out_queue, outgoing, queue_link);
}

void aq_conn_unqueue_outgoing(aq_conn *conn, aq_outgoing *outgoing)
{
    if (!outgoing->queued)
        return;
    outgoing->queued = 0;
    AQ_LIST_REMOVE(&conn->out_queue, outgoing, queue_link);
}

aq_outgoing *aq_conn_new_outgoing(aq_conn *conn, size_t length, int is_command)
{
    aq_outgoing *outgoing = aq_conn_allocate(conn, sizeof(*outgoing) + length);
    if (outgoing == NULL) {
        aq_count(conn->host->counters, AQ_C_memory_failures, 1);
        return NULL;
    }
    outgoing->tag = AQ_TAG_OUTGOING;
    outgoing->quic_id = -1;
    outgoing->length = length;
    outgoing->is_command = is_command;
    AQ_LIST_ADD_FIRST(&conn->outgoing, outgoing, conn_link);
    conn->outgoing_bytes += OUTGOING_COST + length;
    conn->commands_unacknowledged += is_command ? 1U : 0U;
    aq_conn_queue_outgoing(conn, outgoing);
    return outgoing;
}

void aq_conn_free_outgoing(aq_conn *conn, aq_outgoing *outgoing)
{
    aq_conn_unqueue_outgoing(conn, outgoing);
    AQ_LIST_REMOVE(&conn->outgoing, outgoing, conn_link);
    if (conn->question == outgoing)
        conn->question = NULL;
    conn->outgoing_bytes -= OUTGOING_COST + outgoing->length;
    conn->commands_unacknowledged -= outgoing->is_command ? 1U : 0U;
    aq_conn_give_back(conn, outgoing);
}

void aq_conn_drop_incoming(aq_conn *conn, aq_incoming *incoming)
{
    incoming->done = 1;
    aq_incoming_release(incoming);
    AQ_LIST_REMOVE(&conn->incomplete, incoming, incomplete_link);
}

void aq_conn_free_incoming(aq_conn *conn, aq_incoming *incoming)
{
    if (!incoming->done)
        aq_conn_drop_incoming(conn, incoming);
    AQ_LIST_REMOVE(&conn->incoming, incoming, conn_link);
    aq_conn_give_back(conn, incoming);
}

int64_t aq_conn_send_command(aq_conn *conn, const uint8_t *data, size_t length)
{
    aq_outgoing *outgoing;
    if (conn->quic == NULL)
        return AQ_ERR_GONE;
    if (conn->commands_unacknowledged >= COMMANDS_WAITING) {
        aq_count(conn->host->counters, AQ_C_command_drop_queue_full, 1);
        return AQ_ERR_LIMIT;
    }
    outgoing = aq_conn_new_outgoing(conn, length, 1);
    if (outgoing == NULL)
        return AQ_ERR_MEMORY;
    memcpy(outgoing->data, data, length);
    aq_count(conn->host->counters, AQ_C_commands_sent, 1);
    conn->host->touch(conn->host->engine, conn);
    return AQ_OK;
}

void aq_conn_receive_command(aq_conn *conn, const uint8_t *data, size_t length, enum aq_carrier carrier,
                             const uint8_t *behind)
{
    aq_event event = {.type = AQ_EVENT_COMMAND_RECEIVED, .length = (uint32_t)length, .value = (uint64_t)carrier};
    aq_count(conn->host->counters, AQ_C_commands_received, 1);
    /* A heartbeat needs no answer, and last_received already records its arrival. A client should get none, so there
     * Python is notified. */
    if (conn->is_server && data[1] == AQ_COMMAND_HEARTBEAT && carrier == AQ_CARRIER_DATAGRAM)
        return;
    memcpy(event.data, data, length);
    if (behind != NULL)
        event.data[event.length++] = *behind;
    aq_conn_post(conn, &event);
}

void aq_conn_receive_datagram(aq_conn *conn, const uint8_t *data, size_t length)
{
    const char *problem = "";
    int header = aq_command_length(data, length, &problem);
    if (header > 0 && (size_t)header <= length) {
        if (data[1] == AQ_COMMAND_PACKET)
            aq_conn_receive_packet(conn, data, length, AQ_CARRIER_DATAGRAM);
        else
            aq_conn_receive_command(conn, data, (size_t)header, AQ_CARRIER_DATAGRAM, NULL);
    } else {
        aq_conn_violation(conn, header < 0 ? problem : "a DATAGRAM frame ended inside its command");
    }
}

/* ---- which carrier the peer takes ---------------------------------------------------------------------------- */

/* A client that wants its Packets in DATAGRAMs drops one on a stream once it has read the header, and stops the stream.
 * A client that wants them on streams waits for the payload. So a header without payload tells the two apart, and
 * nothing has reached a local service when the stream is reset. */

void aq_conn_ask_carrier(aq_conn *conn)
{
    static const aq_address nowhere = {.family = 4};
    uint8_t header[AQ_PACKET_HEADER_MAX];
    size_t length = aq_packet_encode(header, QUESTION_ASSOCIATION, 0, 1, 0, 1, &nowhere);
    aq_outgoing *question = aq_conn_new_outgoing(conn, length, 0);
    conn->carrier_guessed = 1;
    if (question == NULL) {
        conn->carrier = AQ_CARRIER_DATAGRAM; /* no memory to ask: this is what most clients take */
        return;
    }
    memcpy(question->data, header, length);
    question->unfinished = 1;
    conn->question = question;
    aq_count(conn->host->counters, AQ_C_carrier_asked, 1);
}

void aq_conn_carrier_asked(aq_conn *conn, const aq_outgoing *outgoing)
{
    ngtcp2_conn_info info;
    uint64_t time;
    if (outgoing != conn->question || conn->carrier != AQ_CARRIER_UNKNOWN || conn->question_deadline != UINT64_MAX)
        return;
    ngtcp2_conn_get_conn_info(conn->quic, &info);
    time = ANSWER_TIME + ANSWER_ROUND_TRIPS * info.smoothed_rtt;
    conn->question_deadline = conn->now + (time < ANSWER_TIME_MAX ? time : ANSWER_TIME_MAX);
}

void aq_conn_carrier_refused(aq_conn *conn, const aq_outgoing *outgoing)
{
    if (outgoing != conn->question || conn->carrier != AQ_CARRIER_UNKNOWN)
        return;
    conn->carrier = AQ_CARRIER_DATAGRAM;
    conn->carrier_guessed = 0;
    conn->question_deadline = UINT64_MAX;
    aq_count(conn->host->counters, AQ_C_carrier_told_datagram, 1);
    conn->host->touch(conn->host->engine, conn);
}

void aq_conn_carrier_timer(aq_conn *conn, uint64_t now)
{
    if (conn->question_deadline > now)
        return;
    conn->question_deadline = UINT64_MAX;
    if (conn->carrier == AQ_CARRIER_UNKNOWN) {
        conn->carrier = AQ_CARRIER_STREAM;
        aq_count(conn->host->counters, AQ_C_carrier_taken_stream, 1);
    }
    if (conn->question != NULL && conn->question->quic_id < 0)
        aq_conn_free_outgoing(conn, conn->question);
    else if (conn->question != NULL)
        ngtcp2_conn_shutdown_stream_write(conn->quic, 0, conn->question->quic_id, 0);
}

/* ---- UDP packets from the peer ------------------------------------------------------------------------------- */

/* The caller holds the table's mutex. */
static void send_out(aq_conn *conn, const aq_assoc *assoc, const uint8_t *payload, size_t length)
{
    uint64_t dropped = 0;
    const aq_sockaddr *to = assoc->to.sa.sa_family == AF_UNSPEC ? NULL : &assoc->to;
    const aq_sockaddr *from = assoc->from.sa.sa_family == AF_UNSPEC ? NULL : &assoc->from;
    aq_udp_out_add(conn->host->udp_out, assoc->socket->fd, to, from, assoc->prefix, assoc->prefix_length, payload,
                   length, &dropped);
    if (dropped > 0)
        aq_count(conn->host->counters, AQ_C_packet_drop_socket, dropped);
}

/* The caller holds the table's mutex. */
static void deliver(aq_conn *conn, aq_assoc *assoc, const uint8_t *payload, size_t length)
{
    aq_count(conn->host->counters, AQ_C_packets_received, 1);
    if (!aq_buckets_pass(&conn->assocs->buckets, AQ_DIRECTION_RECEIVED, length, conn->now))
        return;
    if (!assoc->socket->is_public && !assoc->was_answered)
        aq_assoc_keep(assoc, payload, length, conn->now);
    send_out(conn, assoc, payload, length);
    conn->assocs->payload_received += length;
    aq_assoc_seen(assoc, !assoc->socket->is_public, length, conn->now);
}

/* Sends a kept packet of a local socket's association once more. */
static void send_again(void *context, aq_assoc *assoc, const uint8_t *payload, size_t length)
{
    send_out(context, assoc, payload, length);
}

void aq_conn_udp_moved(aq_conn *conn, aq_udp *udp, uint64_t now)
{
    pthread_mutex_lock(&conn->assocs->mutex);
    if (udp->only != NULL)
        aq_assoc_each_kept(udp->only, now, send_again, conn);
    pthread_mutex_unlock(&conn->assocs->mutex);
}

/* Keeps a client's Packet for an association that does not exist yet, while Python decides. */
static void wait_for_assoc(aq_conn *conn, uint16_t association, const aq_assembled *packet)
{
    aq_event event = {.type = AQ_EVENT_ASSOCIATION_WANTED, .value = association, .peer = packet->address};
    aq_waiting_list *list;
    aq_waiting_packet *waiting;
    int asked = 0, refused = 0;
    if (conn->waiting == NULL)
        conn->waiting = calloc(AQ_WAITING_LISTS, sizeof(*conn->waiting));
    if (conn->waiting == NULL) {
        aq_count(conn->host->counters, AQ_C_packet_drop_waiting_full, 1);
        return;
    }
    list = &conn->waiting[association % AQ_WAITING_LISTS];
    for (waiting = list->first; waiting != NULL && !asked; waiting = waiting->next)
        asked = waiting->association == association;
    if (!asked && !aq_limits_permit(conn->limits.permitted, &packet->address)) {
        aq_conn_refused(conn, AQ_REFUSED_BY_UDP_RULES, &packet->address);
        return;
    }
    if (!asked) {
        pthread_mutex_lock(&conn->assocs->mutex);
        refused = aq_assocs_refuses(conn->assocs, &packet->address, conn->now);
        pthread_mutex_unlock(&conn->assocs->mutex);
    }
    if (refused) {
        aq_count(conn->host->counters, AQ_C_packet_drop_association_refused, 1);
        return;
    }
    if (conn->waiting_count >= WAITING_PACKETS || conn->waiting_bytes + packet->length > WAITING_BYTES ||
        (waiting = malloc(sizeof(*waiting) + packet->length)) == NULL) {
        aq_count(conn->host->counters, AQ_C_packet_drop_waiting_full, 1);
        return;
    }
    /* Nothing may wait unless the question has been posted, so that an answer is certain. */
    if (!asked && !aq_conn_post(conn, &event)) {
        aq_count(conn->host->counters, AQ_C_packet_drop_waiting_full, 1);
        free(waiting);
        return;
    }
    waiting->association = association;
    waiting->length = packet->length;
    if (packet->length > 0)
        memcpy(waiting->data, packet->payload, packet->length);
    AQ_QUEUE_ADD(list, waiting);
    conn->waiting_count++;
    conn->waiting_bytes += packet->length;
    aq_account_add(&conn->credit->account, sizeof(*waiting) + packet->length);
}

/* Passes a client's Packets that wait for an association to it, or drops them if that is NULL. The caller holds
 * the table's mutex. */
static void end_waiting(aq_conn *conn, uint16_t association, aq_assoc *assoc)
{
    aq_waiting_list none = {0}, *list = conn->waiting != NULL ? &conn->waiting[association % AQ_WAITING_LISTS] : &none;
    aq_waiting_packet **link = &list->first, *last = NULL;
    while (*link != NULL) {
        aq_waiting_packet *waiting = *link;
        if (waiting->association != association) {
            last = waiting;
            link = &waiting->next;
            continue;
        }
        *link = waiting->next;
        conn->waiting_count--;
        conn->waiting_bytes -= waiting->length;
        aq_account_remove(&conn->credit->account, sizeof(*waiting) + waiting->length);
        if (assoc != NULL)
            deliver(conn, assoc, waiting->data, waiting->length);
        else
            aq_count(conn->host->counters, AQ_C_packet_drop_association_refused, 1);
        free(waiting);
    }
    list->last = last;
    if (assoc != NULL)
        assoc->is_open = 1;
}

void aq_conn_association_ready(aq_conn *conn, uint16_t association, int accepted, uint64_t now)
{
    conn->now = now;
    pthread_mutex_lock(&conn->assocs->mutex);
    end_waiting(conn, association, accepted ? aq_assocs_find(conn->assocs, association) : NULL);
    pthread_mutex_unlock(&conn->assocs->mutex);
}

void aq_conn_count_incomplete(aq_conn *conn)
{
    uint64_t dropped = aq_assembler_dropped(conn->assembler);
    aq_count(conn->host->counters, AQ_C_packet_drop_incomplete, dropped - conn->assembler_dropped);
    conn->assembler_dropped = dropped;
    aq_account_add(&conn->credit->account, aq_assembler_held(conn->assembler));
    aq_account_remove(&conn->credit->account, conn->assembler_held);
    conn->assembler_held = aq_assembler_held(conn->assembler);
}

static int assemble(aq_conn *conn, const aq_packet_header *header, const uint8_t *payload, aq_assembled *out)
{
    static const struct {
        int outcome;
        enum aq_counter counter;
    } drops[] = {
        {AQ_ASSEMBLY_BAD, AQ_C_fragment_drop_bad},
        {AQ_ASSEMBLY_DUPLICATE, AQ_C_fragment_drop_duplicate},
        {AQ_ASSEMBLY_TOO_BIG, AQ_C_fragment_drop_too_big},
        {AQ_ASSEMBLY_MEMORY, AQ_C_fragment_drop_memory},
    };
    int outcome;
    if (conn->assembler == NULL) {
        conn->assembler = aq_assembler_new(INCOMPLETE_PACKETS, INCOMPLETE_BYTES, conn->options.fragment_lifetime);
        if (conn->assembler == NULL) {
            aq_count(conn->host->counters, AQ_C_fragment_drop_memory, 1);
            return 0;
        }
    }
    outcome = aq_assembler_add(conn->assembler, header, payload, conn->now, out);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(drops); i++) {
        if (outcome == drops[i].outcome)
            aq_count(conn->host->counters, drops[i].counter, 1);
    }
    aq_conn_count_incomplete(conn);
    if (outcome == AQ_ASSEMBLY_PENDING && conn->assembler_expiry == UINT64_MAX)
        conn->assembler_expiry = conn->now + conn->options.fragment_lifetime;
    return outcome == AQ_ASSEMBLY_COMPLETE;
}

void aq_conn_receive_packet(aq_conn *conn, const uint8_t *data, size_t length, enum aq_carrier carrier)
{
    const char *problem = "";
    aq_packet_header header;
    aq_assembled packet;
    aq_assoc *assoc;

    if (aq_packet_decode(data, length, &header, &problem) != 1) {
        aq_conn_violation(conn, problem[0] != '\0' ? problem : "a DATAGRAM frame ended inside its Packet header");
        return;
    }
    if (header.size > length - header.header) {
        aq_conn_violation(conn, "a Packet is larger than the DATAGRAM frame that contains it");
        return;
    }
    if (!conn->udp_allowed) {
        aq_count(conn->host->counters, AQ_C_packet_drop_not_joined, 1);
        return;
    }
    if (conn->is_server) {
        /* Before anything is kept for it: a server assigned every valid ASSOC_ID itself. */
        int known;
        pthread_mutex_lock(&conn->assocs->mutex);
        known = aq_assocs_find(conn->assocs, header.association) != NULL;
        pthread_mutex_unlock(&conn->assocs->mutex);
        if (!known) {
            aq_count(conn->host->counters, AQ_C_packet_drop_unknown_association, 1);
            return;
        }
    }
    if (conn->carrier_guessed) {
        conn->carrier = carrier; /* a client sends the way it wants to receive */
        conn->carrier_guessed = 0;
        if (conn->question != NULL)
            conn->question_deadline = conn->now;
    }
    if (!assemble(conn, &header, data + header.header, &packet))
        return;
    pthread_mutex_lock(&conn->assocs->mutex);
    assoc = aq_assocs_find(conn->assocs, header.association);
    if (assoc != NULL && conn->is_server && !aq_address_equal(&assoc->source.peer, &packet.address))
        aq_count(conn->host->counters, AQ_C_packet_drop_wrong_address, 1);
    else if (assoc != NULL) {
        /* Another thread adds the association and notifies the engine afterwards: this packet may arrive in between. */
        if (!assoc->is_open)
            end_waiting(conn, header.association, assoc);
        deliver(conn, assoc, packet.payload, packet.length);
    }
    pthread_mutex_unlock(&conn->assocs->mutex);
    if (assoc == NULL && conn->is_server)
        aq_count(conn->host->counters, AQ_C_packet_drop_unknown_association, 1);
    else if (assoc == NULL)
        wait_for_assoc(conn, header.association, &packet);
}

/* ---- UDP packets to the peer --------------------------------------------------------------------------------- */

size_t aq_conn_datagram_limit(aq_conn *conn)
{
    const ngtcp2_transport_params *remote = ngtcp2_conn_get_remote_transport_params(conn->quic);
    size_t path = ngtcp2_conn_get_path_max_tx_udp_payload_size(conn->quic);
    /* Short header: first byte, connection id, packet number of up to 4 bytes, 16 bytes of AEAD tag; RFC 9000
     * section 17.3.1. */
    size_t overhead = 1 + ngtcp2_conn_get_dcid(conn->quic)->datalen + 4 + 16 + DATAGRAM_FRAME_OVERHEAD;
    size_t limit;
    if (remote == NULL || remote->max_datagram_frame_size <= DATAGRAM_FRAME_OVERHEAD || path <= overhead)
        return 0;
    limit = path - overhead;
    if (limit > remote->max_datagram_frame_size - DATAGRAM_FRAME_OVERHEAD)
        limit = (size_t)remote->max_datagram_frame_size - DATAGRAM_FRAME_OVERHEAD;
    return limit;
}

void aq_conn_datagrams_ready(aq_conn *conn)
{
    conn->host->touch(conn->host->engine, conn);
}

/* Removes the packet at the head of the queue, sent or not. */
void aq_conn_advance_datagram(aq_conn *conn)
{
    aq_dgram_pop(&conn->assocs->queue);
    conn->fragment_total = conn->fragment_next = 0;
    conn->fragment_offset = 0;
}

void aq_conn_rewind_datagrams(aq_conn *conn)
{
    if (!aq_dgram_may_rewind(&conn->assocs->queue))
        return;
    pthread_mutex_lock(&conn->assocs->mutex);
    aq_dgram_rewind(&conn->assocs->queue);
    pthread_mutex_unlock(&conn->assocs->mutex);
}

void aq_conn_trim_datagrams(aq_conn *conn)
{
    aq_dgram *queue = &conn->assocs->queue;
    /* The packet at the head may be half sent. It is finished first, otherwise its fragments were sent in vain. */
    while (conn->fragment_next == 0 && aq_dgram_front(queue) != NULL && aq_dgram_waiting(queue) > queue->limit) {
        aq_conn_advance_datagram(conn);
        aq_count(conn->host->counters, AQ_C_packet_drop_queue_full, 1);
    }
}

void aq_conn_packets_to_streams(aq_conn *conn)
{
    aq_dgram *queue = &conn->assocs->queue;
    uint64_t credit = ngtcp2_conn_get_streams_uni_left(conn->quic);
    aq_dgram_record *record;
    for (aq_outgoing *outgoing = conn->out_queue.first; outgoing != NULL && credit > 0;
         outgoing = outgoing->queue_link.next)
        credit -= outgoing->quic_id < 0 ? 1U : 0U;
    while (credit > 0 && conn->outgoing_bytes < conn->options.datagram_queue &&
           (record = aq_dgram_front(queue)) != NULL) {
        size_t length = record->header + record->payload;
        aq_outgoing *outgoing = aq_conn_new_outgoing(conn, length, 0);
        if (outgoing == NULL)
            return;
        memcpy(outgoing->data, record->data, length);
        aq_dgram_pop(queue);
        aq_count(conn->host->counters, AQ_C_packets_sent, 1);
        credit--;
    }
    aq_conn_rewind_datagrams(conn);
}

void aq_conn_cut_packets(aq_conn *conn)
{
    aq_assocs_kill(conn->assocs);
    if (atomic_load(&conn->assocs->has_queue)) {
        while (aq_dgram_front(&conn->assocs->queue) != NULL) {
            aq_dgram_pop(&conn->assocs->queue);
            aq_count(conn->host->counters, AQ_C_packet_drop_connection_closed, 1);
        }
    }
    for (size_t i = 0; conn->waiting != NULL && i < AQ_WAITING_LISTS; i++) {
        aq_waiting_packet *waiting = conn->waiting[i].first, *next;
        for (; waiting != NULL; waiting = next) {
            next = waiting->next;
            aq_count(conn->host->counters, AQ_C_packet_drop_connection_closed, 1);
            aq_account_remove(&conn->credit->account, sizeof(*waiting) + waiting->length);
            free(waiting);
        }
    }
    free(conn->waiting);
    conn->waiting = NULL;
    while (conn->outgoing.first != NULL)
        aq_conn_free_outgoing(conn, conn->outgoing.first);
    while (conn->incoming.first != NULL)
        aq_conn_free_incoming(conn, conn->incoming.first);
    if (conn->assembler != NULL) {
        aq_assembler_expire(conn->assembler, UINT64_MAX);
        aq_conn_count_incomplete(conn);
    }
    aq_assembler_free(conn->assembler);
    conn->assembler = NULL;
}

/* One QUIC connection: an ngtcp2_conn with its TLS session, its streams, commands and UDP packets. Engine thread only,
 * all of it; other threads name a connection by its id and send commands (engine.h).
 *
 * Life: HANDSHAKE -> OPEN -> CLOSING (we closed; answers late packets with the same CONNECTION_CLOSE) or DRAINING (the
 * peer closed; silent)
 * -> freed by the endpoint after three PTO. On leaving OPEN the name goes, AQ_EVENT_CLOSED is posted, streams and UDP
 * are cut off.
 *
 * ngtcp2 callbacks only note what happened; everything that reads, writes or closes runs after they have returned.
 */
#ifndef AQ_CONN_H
#define AQ_CONN_H

#include "aq.h"
#include "budget.h"
#include "compat.h"
#include "counters.h"
#include "events.h"
#include "flow.h"
#include "message.h"
#include "packet.h"
#include "slab.h"
#include "stream.h"
#include "tls.h"
#include "udp.h"

#include <stdatomic.h>

#define AQ_SCID_LENGTH 8    /* of every connection id of ours; byte 0 is left for the number of an engine thread */
#define AQ_CIDS_MOST 16     /* active_connection_id_limit 8, some retired, the client's first choice */
#define AQ_TRAIN_MOST 65487 /* bytes of one segmented send: IPv4's 65,507 less room for IPv6 extension */
#define AQ_SEGMENTS_MOST 64 /* UDP_MAX_SEGMENTS of kernels before 6.9 */
/* Events that Python may lag behind before those that can be repeated at will are dropped, and clients turned away. */
#define AQ_EVENTS_WAITING 4096

/* Flow-control windows of streams, in bytes. All together they never exceed what connection_window lets through: a
 * stream whose reader has stalled then stalls no other.
 *
 * Every stream has the first one, whatever the others hold. A reader that keeps up gets the second at once, so that a
 * fast one over a long path is not held up: 2 MiB are 80 Mbit/s over a round trip of 200 ms. From there on it doubles,
 * up to receive_window. */
#define AQ_FIRST_WINDOW (256ULL * 1024)
#define AQ_SECOND_WINDOW (2048ULL * 1024)
/* What all streams of a connection may have beyond their first windows, and one of them of what is left of that: the
 * less there is, the more slowly it is used up. Less than this where half of connection_window or the engine's budget
 * says so (aq_budget_growth). */
#define AQ_WINDOW_GROWTH (512ULL * 1024 * 1024)
#define AQ_WINDOW_SHARE 16
/* A stream's turn lasts about so many milliseconds at the rate of the path, up to 256 KiB: few wake-ups for the owners
 * of many fast streams, and a short wait on a slow path. */
#define AQ_STREAM_TURN 4
/* Unidirectional streams that a client may hold open before it is admitted: ClientHello needs one. */
#define AQ_STREAMS_BEFORE_ADMISSION 4
/* Credit of a connection beyond what it has used, in bytes. It begins with the first, doubles as the peer uses it up,
 * and goes down as the engine's budget is used up: a connection may have a share of what is left, but never less than
 * the least. Credit returns when bytes arrive in order, not when they are consumed: streams whose readers stall hold up
 * no other. */
#define AQ_CONN_FIRST_WINDOW (1024ULL * 1024)
#define AQ_CONN_LEAST_WINDOW (256ULL * 1024)
#define AQ_BUDGET_SHARE 16
/* Flow-control window of a client's connection before it is admitted, bytes; a ClientHello has less than 64. */
#define AQ_WINDOW_BEFORE_ADMISSION (16U * 1024U)
/* Commands and violations of a client of which Python hears before it is admitted: a ClientHello and, for clients that
 * say more with it than they should, the first few that show it. */
#define AQ_EVENTS_BEFORE_ADMISSION 4
/* Packets of a client before it is admitted; beyond, it is cut off. A handshake takes about ten on either side, with
 * losses and probes of the path three times as many; after a refusal it may go on with heartbeats for a while. */
#define AQ_PACKETS_BEFORE_ADMISSION 512
/* Flow-control window of a unidirectional stream: the largest Packet with its header, and room to spare. */
#define AQ_UNI_WINDOW (128U * 1024)

enum aq_conn_state { AQ_CONN_HANDSHAKE, AQ_CONN_OPEN, AQ_CONN_CLOSING, AQ_CONN_DRAINING };

struct aq_endpoint;
struct aq_conn;

/* What a connection needs from the layers above it. One per engine, immutable. */
typedef struct aq_conn_host {
    aq_counters *counters;
    aq_events *events;
    aq_slab *connections;
    aq_stream_setup streams; /* windows are filled in per connection */
    aq_ready *ready;
    aq_udp_out *udp_out;
    aq_reserve *reserve; /* where malloc() fails, for what goes on */
    aq_budget *budget;   /* for what peers have sent */
    uint8_t *train;      /* buffer for packets on their way out, AQ_TRAIN_MOST and one packet more */
    size_t train_capacity;
    const uint64_t *idle;       /* [engine] nanoseconds that the engine has slept, in all */
    unsigned *said;             /* what the log has a line of, see events.h; NULL: nothing is said */
    _Atomic uint32_t *accepted; /* open sockets that came from public listeners, of all connections */
    uint64_t *interactive_at;   /* [engine] when a stream last had something short to say */
    void *engine;
    void (*touch)(void *engine, struct aq_conn *conn);     /* has something to write, or another expiry */
    void (*end_later)(void *engine, struct aq_conn *conn); /* has many streams that aq_conn_cut_some() is to cut off */
    void (*forget)(void *engine, struct aq_conn *conn);    /* is about to be freed */
    void (*touch_stream)(void *engine,
                         aq_stream *stream); /* rx grew or ended, tx shrank: tell the owner after this batch */
    int (*route)(struct aq_endpoint *endpoint, const ngtcp2_cid *cid, struct aq_conn *conn); /* 0 or AQ_ERR_MEMORY */
    void (*unroute)(struct aq_endpoint *endpoint, const ngtcp2_cid *cid);
    void (*relieve)(void *engine);           /* the budget is short: somebody gives something up */
    void (*validated)(struct aq_conn *conn); /* server: a peer that is not admitted is where it says it is */
    void (*leave_half_open)(struct aq_conn *conn);
    /* As aq_udp_send; when it returns 1 the endpoint calls aq_conn_unblock() later. */
    int (*transmit)(struct aq_conn *conn, const aq_sockaddr *remote, const aq_sockaddr *local, uint8_t ecn,
                    const uint8_t *data, size_t length, size_t segment, size_t *sent);
} aq_conn_host;

typedef struct aq_waiting_packet {
    struct aq_waiting_packet *next;
    uint16_t association;
    size_t length;
    uint8_t data[];
} aq_waiting_packet;

/* In the order in which they came. A crowd of new associations must not make the search for one of them long. */
#define AQ_WAITING_LISTS 256U
typedef struct {
    aq_waiting_packet *first, *last;
} aq_waiting_list;

typedef struct aq_conn {
    const aq_conn_host *host;
    struct aq_endpoint *endpoint;
    aq_id id;
    enum aq_conn_state state;
    int is_server, admitted, udp_allowed, named;
    int announced; /* Python knows of it: by its own aq_connect(), or by AQ_EVENT_CONNECTED */
    /* Of a server: counts among the endpoint's half-open connections, which it does until it is admitted or freed. */
    int half_open;
    struct aq_source *source;         /* where it is counted too, once its address is validated */
    uint32_t events_before_admission; /* up to AQ_EVENTS_BEFORE_ADMISSION */
    enum aq_carrier carrier;
    /* A server that was not told the carrier, all [engine]: the Packet without an end that asks the client; NULL: there
     * is none. When no answer is taken for one; UINT64_MAX: not before the question is acknowledged, or never. Whether
     * the carrier is a guess, which the client's first Packet corrects. */
    struct aq_outgoing *question;
    uint64_t question_deadline;
    int carrier_guessed;
    aq_transport_options options;
    uint16_t probes[8]; /* path MTU discovery tries these payload sizes; pointed to by ngtcp2 */

    ngtcp2_mem memory; /* of the library and of what comes and goes on the connection: counted, see budget.h */
    aq_memory memory_source;
    ngtcp2_conn *quic; /* NULL once closing or draining */
    aq_tls_session *tls;
    ngtcp2_crypto_conn_ref reference; /* fixed address: TLS points here */
    ngtcp2_cid cids[AQ_CIDS_MOST];    /* what the endpoint routes here */
    size_t cids_length;
    aq_sockaddr remote; /* of the last packet read */

    uint64_t handled_expiry; /* of ngtcp2, when it was last told that it was due */
    uint64_t expiry;         /* when the engine must look again; key of its heap */
    uint32_t heap_index;     /* UINT32_MAX: not in it */
    int touched;             /* in the engine's list of connections to write */
    struct aq_conn *touched_previous, *touched_next;
    struct aq_conn *previous, *next; /* all of the endpoint */

    /* what the socket did not take: the rest of a train; nothing new is built before it is gone */
    uint8_t *blocked;
    size_t blocked_length, blocked_segment;
    uint8_t blocked_ecn;
    aq_sockaddr blocked_local, blocked_remote;
    int gso;

    aq_stream *streams;                            /* all, newest first */
    struct aq_conn *ending_previous, *ending_next; /* in the engine's list of those that are over and have streams */
    int ending;                                    /* whether it is in it */
    uint64_t streams_count;
    aq_stream *send_first, *send_last;       /* with something to send: round robin */
    uint64_t stream_quantum;                 /* bytes that one of them may send before the next has its turn */
    aq_stream *opening_first, *opening_last; /* wait for stream credit */
    _Atomic uint32_t opening_count;          /* also those on their way here; raised by any thread */
    aq_stream *header_first, *header_last;   /* the peer's, whose header is incomplete, oldest first */
    aq_credit *credit;
    /* Credit of the connection, in bytes: what it has given the peer so far, what came of streams in order, and what of
     * that is done with. */
    uint64_t granted, delivered, consumed;
    uint64_t window;                      /* credit that the peer may have and not have used; it grows with the rate */
    uint64_t window_from, window_from_at; /* `delivered` when the growth was last looked at, and when */

    aq_outgoing *outgoing;             /* all, newest first */
    aq_outgoing *out_first, *out_last; /* with something to send, in order */
    uint64_t outgoing_bytes;           /* what they cost */
    uint32_t commands_unacknowledged;
    aq_incoming *incoming;                       /* all, newest first */
    aq_incoming *incoming_first, *incoming_last; /* incomplete, oldest first */

    aq_flows *flows;
    aq_assembler *assembler;
    uint64_t assembler_expiry, assembler_dropped;
    size_t assembler_held;   /* bytes of it in the account */
    uint16_t fragment_total; /* the packet at the head of the queue is being sent in so many pieces; 0: not begun */
    uint16_t fragment_next;
    size_t fragment_first, fragment_rest, fragment_offset;
    int datagrams_turn;       /* datagrams and streams take turns at the front of a packet */
    aq_waiting_list *waiting; /* client: Packets for associations that Python was asked for, in AQ_WAITING_LISTS lists
                                 by the association's last bits; NULL until the first */
    uint32_t waiting_count;
    size_t waiting_bytes;

    uint8_t heartbeat[16];
    size_t heartbeat_length;
    uint64_t heartbeat_interval, heartbeat_at;
    int heartbeat_due;

    uint64_t packets_sent, packets_received, bytes_sent, bytes_received; /* UDP datagrams of this connection */
    uint64_t last_received;              /* aq_now() of the last packet that was the peer's */
    uint64_t alive;                      /* time up to last_received in which the path was alive */
    uint64_t probe_deadline, probe_from; /* UINT64_MAX: none */
    uint64_t probe_timeout, probe_until; /* as asked for, and when patience ends */
    uint64_t probe_packets;              /* packets_sent when it was asked for */
    int probe_held;                      /* patience was needed */

    uint64_t keep_alive;   /* PING after this much silence; UINT64_MAX: never */
    int silent;            /* AQ_EVENT_SILENCE has said so */
    uint64_t silence_from; /* last_received at the latest AQ_EVENT_SILENCE */
    uint64_t suspected;    /* aq_now() of the last hint that the peer is gone; 0: there was none */
    uint64_t suspect_next; /* no hint is told before */

    uint64_t linger_until; /* UINT64_MAX: not closing gracefully */
    uint64_t linger_code;
    int linger_grace; /* all is acknowledged; the peer's program has a moment to read it */

    /* close */
    uint64_t keep_until; /* closing or draining: when to free */
    uint8_t *close_packet;
    size_t close_packet_length;
    uint32_t close_replies, close_received; /* every 2^n-th late packet is answered */
    int reset_received, certificate_failed;
    uint64_t handshake_at; /* creation */
    uint64_t now;          /* of this turn, for callbacks */
#if !AQ_HAVE_RECV_STOP_SENDING
    uint64_t retried_at; /* when streams without window were last tried */
#endif
    aq_address dial_to; /* client: where the engine dials for the peer's streams; family 0: it does not */
    uint64_t dial_timeout, dial_until;
    int handshake_done;    /* noted by the callback */
    int handshake_seen;    /* and acted on after it */
    int handshake_alert;   /* why there is no connection although it is done; 0: none */
    int handshake_written; /* a client's Finished has left */
    int writing;           /* inside the loop of aq_conn_write(), where packets are built */
    uint8_t reset_key[32]; /* for the tokens of further connection ids */
    aq_id endpoint_id;     /* 0 on a client */
} aq_conn;

/* Cuts off so many streams of a connection that is over. Returns whether there are more. */
int aq_conn_cut_some(aq_conn *conn, uint32_t most);

/* Creates a connection. `header` is the client's Initial on a server, NULL on a client. NULL: *error. */
typedef struct {
    const aq_conn_host *host;
    struct aq_endpoint *endpoint;
    aq_id endpoint_id; /* 0 on a client */
    aq_credentials *credentials;
    const aq_transport_options *options;
    const aq_sockaddr *local, *remote;
    const uint8_t *reset_key; /* server: 32 bytes */
    const char *server_name;  /* client */
    int send_sni;
    /* server */
    const ngtcp2_pkt_hd *header;
    const ngtcp2_cid *original_dcid; /* from a Retry token, or NULL */
    uint64_t now;
} aq_conn_setup;

aq_conn *aq_conn_new(const aq_conn_setup *setup, int64_t *error);
void aq_conn_free(aq_conn *conn); /* ends it without a word; the memory goes with the last reference */
void aq_conn_destroy(void *conn); /* the slab's destructor */

/* Outcome of aq_conn_read for the endpoint. */
enum aq_read { AQ_READ_OK, AQ_READ_RETRY, AQ_READ_DROP, AQ_READ_OVER };
enum aq_read aq_conn_read(aq_conn *conn, const aq_sockaddr *local, const aq_sockaddr *remote, uint8_t ecn,
                          const uint8_t *data, size_t length, uint64_t now);

/* Sends what can be sent now, at most one train. Returns 1 when there may be more at once. */
int aq_conn_write(aq_conn *conn, uint64_t now);
void aq_conn_timers(aq_conn *conn, uint64_t now);   /* whatever is due */
void aq_conn_schedule(aq_conn *conn, uint64_t now); /* works out expiry */
void aq_conn_unblock(aq_conn *conn, uint64_t now);  /* the socket takes bytes again */
/* In the callback, for what the peer said before its last handshake packet came is read within the same call and has to
 * follow CONNECTED. */
void aq_conn_handshake_done(aq_conn *conn);
void aq_conn_suspect(aq_conn *conn, uint64_t now); /* a hint, by whomever, that the peer is gone */

/* Leaves OPEN: CONNECTION_CLOSE where that is due, AQ_EVENT_CLOSED, everything on it is cut off. */
void aq_conn_close(aq_conn *conn, enum aq_close_cause cause, uint64_t code, const char *reason, uint64_t now);
void aq_conn_close_application(aq_conn *conn, uint64_t code, uint64_t linger, uint64_t now);
void aq_conn_stop(aq_conn *conn, uint64_t now); /* the engine stops: close, and no event */

/* [any, holding a reference] A stream that begins with this header, named and with a second reference for the caller,
 * who has the engine adopt it. NULL: *error is AQ_ERR_LIMIT or AQ_ERR_MEMORY. */
aq_stream *aq_conn_new_stream(aq_conn *conn, const uint8_t *header, size_t length, int64_t *error);

/* Commands from other threads, carried out by the engine. */
int64_t aq_conn_send_command(aq_conn *conn, const uint8_t *data, size_t length);
int64_t aq_conn_set_heartbeat(aq_conn *conn, const uint8_t *data, size_t length, uint64_t interval, uint64_t now);
int64_t aq_conn_admit(aq_conn *conn, enum aq_carrier carrier, int udp);
int64_t aq_conn_probe(aq_conn *conn, uint64_t timeout, uint64_t patience, uint64_t now);
int64_t aq_conn_migrate(aq_conn *conn, const aq_sockaddr *local, uint64_t now); /* the socket is swapped after it */
int64_t aq_conn_get_info(aq_conn *conn, aq_connection_info *info, uint64_t now);
/* A local UDP socket has been replaced: what its service may not have got is sent through the new one. */
void aq_conn_udp_moved(aq_conn *conn, aq_udp *udp, uint64_t now);
void aq_conn_flow_ready(aq_conn *conn, uint16_t association, int accepted, uint64_t now);
void aq_conn_adopt_stream(aq_conn *conn, aq_stream *stream); /* opened here; takes a reference */
void aq_conn_update_stream(aq_stream *stream, uint64_t now); /* the owner moved something */
void aq_conn_datagrams_ready(aq_conn *conn);

/* Between the files of this module. */
/* Memory for what a connection that stands needs to go on; where there is none, from the reserve. NULL: not even there.
 */
static inline void *aq_conn_allocate(aq_conn *conn, size_t size)
{
    return conn->memory.calloc(1, size, conn->memory.user_data);
}
static inline void aq_conn_give_back(aq_conn *conn, void *memory)
{
    conn->memory.free(memory, conn->memory.user_data);
}
/* The clock of what the peer has to do in time: it stands still while nothing arrives, for a peer can't be blamed for a
 * path that is interrupted. */
uint64_t aq_conn_alive_time(const aq_conn *conn, uint64_t now);
void aq_conn_end_late_headers(aq_conn *conn, uint64_t now);
int aq_conn_take_decrypted(void);  /* whether a packet was authentic since the last call */
uint64_t aq_conn_take_fault(void); /* QUIC error code of what a callback refused since the last call, or 0 */
int aq_conn_post(aq_conn *conn, aq_event *event); /* 0: dropped and counted, Python is too far behind */
void aq_conn_violation(aq_conn *conn, const char *problem);
/* There is no memory for bytes of this stream. The newest one whose reader is behind is cut off for it, if it began
 * later: what is old goes on. 0: there is none. */
int aq_conn_make_room(aq_conn *conn, const aq_stream *stream);
/* The engine's budget is short, and this connection holds the most: it gives up the newest streams whose readers are
 * behind, until a quarter of the budget is free or it holds half as much; where that isn't enough, it is closed.
 * Returns whether some of the memory is coming later, for the readers are other threads. */
int aq_conn_shed(aq_conn *conn, uint64_t now);
void aq_conn_queue_stream(aq_conn *conn, aq_stream *stream);
void aq_conn_unqueue_stream(aq_conn *conn, aq_stream *stream);
void aq_conn_open_waiting(aq_conn *conn); /* streams that waited for credit */
void aq_conn_return_credit(aq_conn *conn);
size_t aq_conn_datagram_limit(aq_conn *conn); /* largest DATAGRAM payload now; 0: the peer takes none */
void aq_conn_receive_packet(aq_conn *conn, const uint8_t *data, size_t length, enum aq_carrier carrier);
void aq_conn_receive_datagram(aq_conn *conn, const uint8_t *data, size_t length);
/* `behind`: a byte that belongs to the command although the format says that it is over; NULL: there is none. */
void aq_conn_receive_command(aq_conn *conn, const uint8_t *data, size_t length, enum aq_carrier carrier,
                             const uint8_t *behind);
void aq_conn_ask_carrier(aq_conn *conn);
void aq_conn_carrier_asked(aq_conn *conn, const aq_outgoing *outgoing);   /* this much of what was sent has arrived */
void aq_conn_carrier_refused(aq_conn *conn, const aq_outgoing *outgoing); /* the peer has stopped this stream */
void aq_conn_carrier_timer(aq_conn *conn, uint64_t now);
void aq_conn_packets_to_streams(aq_conn *conn); /* quic mode: waiting UDP packets become unidirectional streams */
void aq_conn_trim_datagrams(aq_conn *conn);
void aq_conn_rewind_datagrams(aq_conn *conn); /* where none is waiting */
void aq_conn_advance_datagram(aq_conn *conn);
void aq_conn_queue_outgoing(aq_conn *conn, aq_outgoing *outgoing);
void aq_conn_unqueue_outgoing(aq_conn *conn, aq_outgoing *outgoing); /* where it is queued */
aq_outgoing *aq_conn_new_outgoing(aq_conn *conn, size_t length, int is_command);
void aq_conn_free_outgoing(aq_conn *conn, aq_outgoing *outgoing);
/* Bytes came in order on a stream; and bytes that came are done with. */
static inline void aq_conn_delivered(aq_conn *conn, uint64_t bytes)
{
    conn->delivered += bytes;
}
static inline void aq_conn_consumed(aq_conn *conn, uint64_t bytes)
{
    conn->consumed += bytes;
}
void aq_conn_cut_streams(aq_conn *conn, int dead, uint32_t most);
void aq_conn_cut_packets(aq_conn *conn);
void aq_conn_count_incomplete(aq_conn *conn);                  /* what the assembler has given up since the last call */
void aq_conn_stream_stopped(aq_conn *conn, aq_stream *stream); /* the peer wants no more of it */
#if !AQ_HAVE_RECV_STOP_SENDING
void aq_conn_retry_blocked(aq_conn *conn, uint64_t now); /* whether the peer still wants of them what waits for it */
#endif
void aq_conn_drop_incoming(aq_conn *conn, aq_incoming *incoming); /* takes it off the list of incomplete ones */
void aq_conn_free_incoming(aq_conn *conn, aq_incoming *incoming);
void aq_conn_stream_callbacks(ngtcp2_callbacks *callbacks);
#endif

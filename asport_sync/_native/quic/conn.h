/* One QUIC connection: an ngtcp2_conn with its TLS session, its streams, commands and UDP packets. Engine thread only;
 * other threads name a connection by its id and send commands (engine.h).
 *
 * States: HANDSHAKE -> OPEN -> CLOSING (closed by us; late packets are answered with the same CONNECTION_CLOSE) or
 * DRAINING (closed by the peer, or without a CONNECTION_CLOSE; nothing is sent) -> freed by the endpoint after three
 * PTO. On entering CLOSING or DRAINING the id is removed from the table, AQ_EVENT_CLOSED is posted, and streams and UDP
 * are cut off.
 *
 * ngtcp2 callbacks record state and post events. Reading, writing and closing the connection happen after they have
 * returned.
 */
#ifndef AQ_CONN_H
#define AQ_CONN_H

#include "aq.h"
#include "core/budget.h"
#include "core/counters.h"
#include "core/events.h"
#include "core/list.h"
#include "core/slab.h"
#include "core/udp.h"
#include "quic/compat.h"
#include "quic/handshake.h"
#include "tunnel/association.h"
#include "tunnel/group.h"
#include "tunnel/limits.h"
#include "tunnel/message.h"
#include "tunnel/packet.h"
#include "tunnel/stream.h"

#include <stdatomic.h>

#define AQ_SCID_LENGTH 8   /* of every connection id of ours; byte 0 is reserved for the number of an engine thread */
#define AQ_CIDS_MAX 16     /* active_connection_id_limit 8, some retired ids, and the client's first choice */
#define AQ_TRAIN_MAX 65487 /* bytes of one segmented send: IPv4's 65,507 minus room for IPv6 extension */
#define AQ_SEGMENTS_MAX 64 /* UDP_MAX_SEGMENTS of kernels before 6.9 */

/* Flow-control windows of streams, in bytes. Their sum stays within connection_window, so a stream whose reader has
 * stalled cannot stall another.
 *
 * Every stream has the first window, whatever the others hold. If its reader keeps up, it gets the second one in one
 * step, so that a fast transfer over a long path is not held up: 2 MiB allow 80 Mbit/s at a round-trip time of 200 ms.
 * From then on the window doubles, up to receive_window. */
#define AQ_FIRST_WINDOW (256ULL * 1024)
#define AQ_SECOND_WINDOW (2048ULL * 1024)
/* Maximum growth of all stream windows of a connection beyond their first ones, in bytes; one stream may grow by
 * 1/AQ_WINDOW_SHARE of what remains of it. The maximum is lower if half of connection_window or aq_budget_growth() is
 * lower. */
#define AQ_WINDOW_GROWTH (512ULL * 1024 * 1024)
#define AQ_WINDOW_SHARE 16
/* A stream's turn lasts about this many milliseconds at the rate of the path, up to 256 KiB: few wake-ups for the
 * owners of many fast streams, and a short wait on a slow path. */
#define AQ_STREAM_TURN 4
/* Maximum number of open unidirectional streams of an unauthenticated client. ClientHello needs one. */
#define AQ_STREAMS_BEFORE_JOIN 4
/* Unused credit of a connection, in bytes. Its maximum starts at AQ_CONN_FIRST_WINDOW, doubles while the peer uses it
 * up quickly, and shrinks as the receive budget is used up: a connection may have 1/AQ_BUDGET_SHARE of what remains of
 * the budget, but at least AQ_CONN_MIN_WINDOW. Credit is returned when bytes arrive in order, not when they are
 * consumed, so streams whose readers stall do not hold up others. */
#define AQ_CONN_FIRST_WINDOW (1024ULL * 1024)
#define AQ_CONN_MIN_WINDOW (256ULL * 1024)
#define AQ_BUDGET_SHARE 16
/* Flow-control window of an unauthenticated client's connection, bytes. A ClientHello has less than 64. */
#define AQ_WINDOW_BEFORE_JOIN (16U * 1024U)
/* Maximum number of command and violation events of an unauthenticated client: its ClientHello and, if the client sends
 * more than it should, the first few events that show it. */
#define AQ_EVENTS_BEFORE_JOIN 4
/* Maximum number of packets of an unauthenticated client; beyond it, the connection is closed. A handshake takes about
 * ten packets in each direction, three times as many with losses and path MTU probes. After a refusal the client may go
 * on with heartbeats for a while. */
#define AQ_PACKETS_BEFORE_JOIN 512
/* Flow-control window of a unidirectional stream: the largest Packet with its header, plus a margin. */
#define AQ_UNI_WINDOW (128U * 1024)

#define AQ_NO_APPLICATION_CODE UINT64_MAX /* of aq_connection_close(); no application error code is that large */

#define AQ_HEARTBEAT_BYTES 16 /* maximum for aq_connection_heartbeat() */

enum aq_conn_state { AQ_CONN_HANDSHAKE, AQ_CONN_OPEN, AQ_CONN_CLOSING, AQ_CONN_DRAINING };

struct aq_endpoint;
struct aq_conn;

/* What a connection needs from the layers above it. One per engine, immutable. */
typedef struct aq_conn_host {
    const aq_handshake_ops *handshake; /* the handshake layer */
    aq_counters *counters;
    aq_events *events;
    aq_slab *connections;
    aq_stream_setup streams; /* windows are set per connection */
    aq_ready *ready;
    aq_udp_out *udp_out;
    aq_reserve *reserve; /* emergency reserve for open connections, used when malloc() fails */
    aq_budget *budget;   /* receive budget */
    uint8_t *train;      /* buffer for outgoing packets: AQ_TRAIN_MAX plus one packet */
    size_t train_capacity;
    const uint64_t *idle;       /* [engine] total nanoseconds of idle wait */
    unsigned *logged;           /* warnings already logged, see events.h; NULL: no logging */
    _Atomic uint32_t *accepted; /* open sockets accepted from public listeners, over all connections */
    uint64_t *interactive_at;   /* [engine] time of the last short message: on a stream, or a few UDP datagrams */
    void *engine;
    void (*touch)(void *engine, struct aq_conn *conn);     /* data to write, or a new expiry */
    void (*end_later)(void *engine, struct aq_conn *conn); /* streams are left for aq_conn_cut_some() to cut off */
    void (*forget)(void *engine, struct aq_conn *conn);    /* called before the connection is freed */
    void (*touch_stream)(void *engine,
                         aq_stream *stream); /* rx grew or ended, or tx shrank: notifies the owner after this batch */
    int (*route)(struct aq_endpoint *endpoint, const ngtcp2_cid *cid, struct aq_conn *conn); /* 0 or AQ_ERR_MEMORY */
    void (*unroute)(struct aq_endpoint *endpoint, const ngtcp2_cid *cid);
    void (*shed_load)(void *engine);         /* the receive budget is short: makes connections give up memory */
    void (*validated)(struct aq_conn *conn); /* server: the address of an unauthenticated client is validated */
    void (*leave_half_open)(struct aq_conn *conn);
    /* As aq_udp_send(). If it returns 1, the endpoint calls aq_conn_unblock() later. */
    int (*transmit)(struct aq_conn *conn, const aq_sockaddr *remote, const aq_sockaddr *local, uint8_t ecn,
                    const uint8_t *data, size_t length, size_t segment, size_t *sent);
} aq_conn_host;

typedef struct aq_waiting_packet {
    struct aq_waiting_packet *next;
    uint16_t association;
    size_t length;
    uint8_t data[];
} aq_waiting_packet;

/* In order of arrival. There are several lists so that many new associations do not slow down the search for one of
 * them. */
#define AQ_WAITING_LISTS 256U
typedef struct {
    aq_waiting_packet *first, *last;
} aq_waiting_list;

typedef struct aq_conn {
    const aq_conn_host *host;
    struct aq_endpoint *endpoint;
    aq_id id;
    enum aq_conn_state state;
    int is_server, joined, udp_allowed, named;
    int announced; /* known to Python: from its own aq_connect(), or from AQ_EVENT_CONNECTED */
    /* Server: counts among the endpoint's half-open connections until the client is admitted or the connection is
     * freed. */
    int half_open;
    struct aq_source *source;    /* its entry in the endpoint's sources, once its address is validated */
    uint32_t events_before_join; /* up to AQ_EVENTS_BEFORE_JOIN */
    enum aq_carrier carrier;
    /* Server that was not told the carrier, all [engine]. question: the Packet header without payload or FIN that asks
     * the client; NULL: none. question_deadline: when the lack of an answer counts as `quic`; UINT64_MAX: the question
     * is not acknowledged yet, or nothing is expected. carrier_guessed: the carrier is a guess that the client's first
     * Packet corrects. */
    struct aq_outgoing *question;
    uint64_t question_deadline;
    int carrier_guessed;
    aq_transport_options options;
    uint16_t probes[8]; /* payload sizes for the path MTU search; ngtcp2 points here */

    ngtcp2_mem memory; /* allocator for ngtcp2 and for commands and packets; counted, see budget.h */
    aq_memory memory_source;
    ngtcp2_conn *quic; /* NULL once closing or draining */
    aq_tls_session *tls;
    ngtcp2_cid cids[AQ_CIDS_MAX]; /* connection ids that the endpoint routes here */
    size_t cids_length;
    aq_sockaddr remote; /* the peer's address on ngtcp2's current path */

    uint64_t handled_expiry; /* expiry that ngtcp2 was last told to handle */
    uint64_t expiry;         /* when the engine must look at the connection again; key of its heap */
    uint32_t heap_index;     /* UINT32_MAX: not in the heap */
    int touched;             /* in the engine's list of connections to write */
    AQ_LINK(struct aq_conn) touched_link;
    AQ_LINK(struct aq_conn) endpoint_link; /* all connections of the endpoint */

    /* what the socket did not take: the rest of a train; no new packet is built before it is sent */
    uint8_t *blocked;
    size_t blocked_length, blocked_segment;
    uint8_t blocked_ecn;
    aq_sockaddr blocked_local, blocked_remote;
    int gso;

    aq_stream_list streams;              /* all streams, newest first */
    AQ_LINK(struct aq_conn) ending_link; /* engine's list: ended, still with streams */
    int ending;                          /* in that list */
    uint64_t streams_count;
    aq_stream_list sending;         /* streams with data to send: round robin */
    uint64_t stream_quantum;        /* bytes that a stream may send per turn */
    aq_stream_list opening;         /* streams that wait for stream credit */
    _Atomic uint32_t opening_count; /* includes those not yet adopted; incremented by any thread */
    aq_stream_list headers;         /* the peer's streams with an incomplete header, oldest first */
    aq_credit *credit;
    /* Credit of the connection, in bytes: granted to the peer so far, received in order on streams, and consumed. */
    uint64_t granted, delivered, consumed;
    uint64_t window;                      /* maximum unused credit of the peer; grows with the rate */
    uint64_t window_from, window_from_at; /* `delivered` at the last check for growth, and its time */

    uint64_t streams_total;                   /* visitors' TCP connections so far */
    _Atomic(aq_group *) group;                /* set once, by any thread; one reference; NULL: none */
    aq_limits limits;                         /* for visitors; with a group, those of the group count */
    aq_refusals refused[AQ_REFUSED_BY_COUNT]; /* by enum aq_refused_by; likewise, and not those of public UDP sockets */

    AQ_LIST(aq_outgoing) outgoing;  /* all messages, newest first */
    AQ_LIST(aq_outgoing) out_queue; /* messages with data to send, in order */
    uint64_t outgoing_bytes;        /* memory that all messages cost */
    uint32_t commands_unacknowledged;
    AQ_LIST(aq_incoming) incoming;   /* all messages, newest first */
    AQ_LIST(aq_incoming) incomplete; /* incomplete messages, oldest first */

    aq_assocs *assocs;
    aq_assembler *assembler;
    uint64_t assembler_expiry, assembler_dropped;
    size_t assembler_held;   /* its bytes that are counted in the account */
    uint16_t fragment_total; /* number of DATAGRAMs for the packet at the head of the queue; 0: not begun */
    uint16_t fragment_next;
    size_t fragment_first, fragment_rest, fragment_offset;
    int datagrams_turn;       /* DATAGRAMs and streams take turns at the front of a packet */
    aq_waiting_list *waiting; /* client: Packets for associations that Python was asked about, in AQ_WAITING_LISTS lists
                                 by the association's last bits; NULL until the first one */
    uint32_t waiting_count;
    size_t waiting_bytes;

    uint8_t heartbeat[AQ_HEARTBEAT_BYTES];
    size_t heartbeat_length;
    uint64_t heartbeat_interval, heartbeat_at;
    int heartbeat_due;

    uint64_t packets_sent, packets_received, bytes_sent, bytes_received; /* UDP datagrams of this connection */
    uint64_t last_received;              /* aq_now() of the peer's last authentic packet */
    uint64_t alive;                      /* time up to last_received during which the path was alive */
    uint64_t probe_deadline, probe_from; /* deadline UINT64_MAX: no probe */
    uint64_t probe_timeout, probe_until; /* as requested, and the end of the grace period */
    uint64_t probe_packets;              /* packets_sent when the probe was requested */
    int probe_held;                      /* the deadline was extended */

    uint64_t keep_alive;   /* interval of keep-alive probes; UINT64_MAX: none */
    int silent;            /* the last AQ_EVENT_SILENCE reported silence */
    uint64_t silence_from; /* last_received at the last AQ_EVENT_SILENCE */
    uint64_t suspected;    /* aq_now() of the last hint that the peer is gone; 0: none */
    uint64_t suspect_next; /* no hint is reported before this time */

    uint64_t linger_until; /* UINT64_MAX: no graceful close */
    uint64_t linger_code;
    int linger_grace; /* all commands are acknowledged; the peer's program has a moment to read them */

    /* close */
    uint64_t keep_until; /* closing or draining: when to free the connection */
    uint8_t *close_packet;
    size_t close_packet_length;
    uint32_t close_replies, close_received; /* every 2^n-th late packet is answered */
    int reset_received, certificate_failed;
    uint64_t handshake_at; /* creation time */
    uint64_t now;          /* time of this turn, for callbacks */
#if !AQ_HAVE_RECV_STOP_SENDING
    uint64_t retried_at; /* time of the last retry of streams without window */
#endif
    aq_address dial_to; /* client: where the engine dials for the peer's streams; family 0: it does not dial */
    uint64_t dial_timeout, dial_until;
    int handshake_done;                     /* the callback has run */
    int handshake_seen;                     /* and has been acted on */
    int handshake_alert;                    /* TLS alert that ends the connection after a complete handshake; 0: none */
    int handshake_written;                  /* client: Finished has been sent */
    int writing;                            /* inside the loop of aq_conn_write() that builds packets */
    uint8_t reset_key[AQ_TOKEN_KEY_LENGTH]; /* for the stateless reset tokens of further connection ids */
    aq_id endpoint_id;                      /* 0 on a client */
} aq_conn;

typedef AQ_LIST(aq_conn) aq_conn_list;

/* Cuts off at most `max` streams of an ended connection. Returns whether more are left. */
int aq_conn_cut_some(aq_conn *conn, uint32_t max);

/* Arguments of aq_conn_new(), which returns NULL and sets *error on failure. `header` is the client's Initial on a
 * server, NULL on a client. */
typedef struct {
    const aq_conn_host *host;
    struct aq_endpoint *endpoint;
    aq_id endpoint_id; /* 0 on a client */
    aq_credentials *credentials;
    const aq_transport_options *options;
    const aq_sockaddr *local, *remote;
    const uint8_t *reset_key; /* server: AQ_TOKEN_KEY_LENGTH bytes */
    const char *server_name;  /* client */
    int send_sni;
    /* server */
    const ngtcp2_pkt_hd *header;
    const ngtcp2_cid *original_dcid; /* from a Retry token, or NULL */
    uint64_t now;
} aq_conn_setup;

aq_conn *aq_conn_new(const aq_conn_setup *setup, int64_t *error);
void aq_conn_free(aq_conn *conn); /* sends and posts nothing; the last reference releases the memory */
void aq_conn_destroy(void *conn); /* the slab's destructor */

/* Outcome of aq_conn_read() for the endpoint. */
enum aq_read { AQ_READ_OK, AQ_READ_RETRY, AQ_READ_DROP, AQ_READ_OVER };
enum aq_read aq_conn_read(aq_conn *conn, const aq_sockaddr *local, const aq_sockaddr *remote, uint8_t ecn,
                          const uint8_t *data, size_t length, uint64_t now);

/* Sends what can be sent now, at most one train. Returns 1 if more may be sent at once. */
int aq_conn_write(aq_conn *conn, uint64_t now);
void aq_conn_timers(aq_conn *conn, uint64_t now);   /* runs all timers that are due */
void aq_conn_schedule(aq_conn *conn, uint64_t now); /* computes the expiry */
void aq_conn_unblock(aq_conn *conn, uint64_t now);  /* call when the socket takes bytes again */
/* Runs inside ngtcp2's callback: data that the peer sent before its last handshake packet arrived is read within the
 * same call, and its events must follow CONNECTED. */
void aq_conn_handshake_done(aq_conn *conn);
void aq_conn_suspect(aq_conn *conn, uint64_t now); /* a hint from any source that the peer is gone */

/* Enters CLOSING or DRAINING: sends CONNECTION_CLOSE if the cause requires it, posts AQ_EVENT_CLOSED, and cuts off
 * everything on the connection. */
void aq_conn_close(aq_conn *conn, enum aq_close_cause cause, uint64_t code, const char *reason, uint64_t now);
void aq_conn_close_application(aq_conn *conn, uint64_t code, uint64_t linger, uint64_t now);
/* Returns the code with which a connection is closed because its endpoint or the engine ends. */
uint64_t aq_conn_last_code(const aq_conn *conn);
void aq_conn_stop(aq_conn *conn, uint64_t now); /* the engine stops: closes without an event */

/* Returns how well the connection can take a visitor now. */
enum aq_fitness aq_conn_fitness(const aq_conn *conn);
/* [any, holding a reference] Creates a named stream that begins with this header, with a second reference for the
 * caller, which has the engine adopt it. Returns NULL on failure: *error is AQ_ERR_LIMIT or AQ_ERR_MEMORY. */
aq_stream *aq_conn_new_stream(aq_conn *conn, const uint8_t *header, size_t length, int64_t *error);

/* Commands from other threads, carried out by the engine. */
int64_t aq_conn_send_command(aq_conn *conn, const uint8_t *data, size_t length);
int64_t aq_conn_set_heartbeat(aq_conn *conn, const uint8_t *data, size_t length, uint64_t interval, uint64_t now);
int64_t aq_conn_set_joined(aq_conn *conn, enum aq_carrier carrier, int udp);
int64_t aq_conn_probe(aq_conn *conn, uint64_t timeout, uint64_t grace_period, uint64_t now);
int64_t aq_conn_migrate(aq_conn *conn, const aq_sockaddr *local, uint64_t now); /* before the socket is swapped */
int64_t aq_conn_get_info(aq_conn *conn, aq_connection_info *info, uint64_t now);
/* Replaces the limits for visitors; takes over the reference to their addresses. Resets the TCP connections of those
 * that are no longer permitted. */
void aq_conn_limit(aq_conn *conn, const aq_limits *limits);
/* A local UDP socket has been replaced: sends what its service may not have received through the new one. */
void aq_conn_udp_moved(aq_conn *conn, aq_udp *udp, uint64_t now);
void aq_conn_association_ready(aq_conn *conn, uint16_t association, int accepted, uint64_t now);
void aq_conn_adopt_stream(aq_conn *conn, aq_stream *stream); /* a stream opened here; takes over a reference */
void aq_conn_update_stream(aq_stream *stream, uint64_t now); /* the owner moved data */
void aq_conn_datagrams_ready(aq_conn *conn);

/* The rest is shared by the parts of this module. */

/* ---- conn_state.c ------------------------------------------------------------------------------------------------ */

/* Allocates zeroed memory that an open connection needs; from the emergency reserve if malloc() fails. Returns NULL if
 * both fail. */
static inline void *aq_conn_allocate(aq_conn *conn, size_t size)
{
    return conn->memory.calloc(1, size, conn->memory.user_data);
}
static inline void aq_conn_give_back(aq_conn *conn, void *memory)
{
    conn->memory.free(memory, conn->memory.user_data);
}
int aq_conn_post(aq_conn *conn, aq_event *event); /* 0: dropped and counted, too many events wait */
void aq_conn_violation(aq_conn *conn, const char *problem);
/* Counts a visitor that is refused, and reports it, together with others. */
void aq_conn_refused(aq_conn *conn, enum aq_refused_by reason, const aq_address *visitor);
/* Returns whether a new TCP connection of a visitor is within the limits, while `open` others are open; if not, counts
 * and reports it. */
int aq_conn_admits(aq_conn *conn, const aq_address *visitor, uint32_t open);
/* A stream carries a visitor's TCP connection that was admitted. Call before other threads can see the stream. */
void aq_conn_admit(aq_conn *conn, aq_stream *stream);
/* Clock for the peer's deadlines. It stops while nothing arrives: an interrupted path is not the peer's fault. */
uint64_t aq_conn_alive_time(const aq_conn *conn, uint64_t now);
/* Returns when aq_conn_alive_time() reaches `time` if nothing arrives before; UINT64_MAX: not without a packet. */
uint64_t aq_conn_when_alive(const aq_conn *conn, uint64_t time);

/* ---- conn_credit.c ----------------------------------------------------------------------------------------------- */

/* Bytes arrived in order on a stream; bytes that arrived are consumed. */
static inline void aq_conn_delivered(aq_conn *conn, uint64_t bytes)
{
    conn->delivered += bytes;
}
static inline void aq_conn_consumed(aq_conn *conn, uint64_t bytes)
{
    conn->consumed += bytes;
}
void aq_conn_return_credit(aq_conn *conn);
void aq_conn_return_stream_credit(aq_conn *conn, aq_stream *stream, uint64_t now); /* for what its reader has taken */

/* ---- conn_streams.c ---------------------------------------------------------------------------------------------- */

void aq_conn_link_stream(aq_conn *conn, aq_stream *stream);   /* a new stream */
void aq_conn_unlink_stream(aq_conn *conn, aq_stream *stream); /* QUIC no longer needs it, or the connection has ended */
void aq_conn_queue_stream(aq_conn *conn, aq_stream *stream);
void aq_conn_unqueue_stream(aq_conn *conn, aq_stream *stream);
/* A stream of the peer begins to wait for its Connect command; its header is complete, or never will be. */
void aq_conn_begin_header(aq_conn *conn, aq_stream *stream);
void aq_conn_end_header(aq_conn *conn, aq_stream *stream);
void aq_conn_end_late_headers(aq_conn *conn, uint64_t now);
void aq_conn_open_waiting(aq_conn *conn);                      /* opens streams that waited for credit */
void aq_conn_stream_stopped(aq_conn *conn, aq_stream *stream); /* the peer reads no more of it */
void aq_conn_cut_streams(aq_conn *conn, int dead, uint32_t max);
#if !AQ_HAVE_RECV_STOP_SENDING
void aq_conn_retry_blocked(aq_conn *conn, uint64_t now); /* finds blocked streams that the peer has stopped */
#endif

/* ---- conn_memory.c ----------------------------------------------------------------------------------------------- */

/* There is no memory for bytes of this stream. Cuts off the newest attached stream whose reader is behind, if it began
 * after this one: older streams go on. Returns 0 if there is none. */
int aq_conn_make_room(aq_conn *conn, const aq_stream *stream);
/* The receive budget is short, and this connection holds the most. Cuts off its newest streams whose readers are
 * behind, until a quarter of the budget is free or the connection holds half as much; *is_enough: 0 if that cannot be
 * reached, so that the connection has to be closed. Returns whether some memory is released later, because the readers
 * are other threads. */
int aq_conn_shed(aq_conn *conn, uint64_t now, int *is_enough);

/* ---- conn_packets.c ---------------------------------------------------------------------------------------------- */

aq_outgoing *aq_conn_new_outgoing(aq_conn *conn, size_t length, int is_command);
void aq_conn_free_outgoing(aq_conn *conn, aq_outgoing *outgoing);
void aq_conn_queue_outgoing(aq_conn *conn, aq_outgoing *outgoing);
void aq_conn_unqueue_outgoing(aq_conn *conn, aq_outgoing *outgoing); /* if it is queued */
void aq_conn_drop_incoming(aq_conn *conn, aq_incoming *incoming);    /* removes it from the incomplete messages */
void aq_conn_free_incoming(aq_conn *conn, aq_incoming *incoming);
void aq_conn_receive_packet(aq_conn *conn, const uint8_t *data, size_t length, enum aq_carrier carrier);
void aq_conn_receive_datagram(aq_conn *conn, const uint8_t *data, size_t length);
/* `behind`: a byte after the command's end that still belongs to it; NULL: none. */
void aq_conn_receive_command(aq_conn *conn, const uint8_t *data, size_t length, enum aq_carrier carrier,
                             const uint8_t *behind);
void aq_conn_ask_carrier(aq_conn *conn);
void aq_conn_carrier_asked(aq_conn *conn, const aq_outgoing *outgoing);   /* call when all its bytes are acknowledged */
void aq_conn_carrier_refused(aq_conn *conn, const aq_outgoing *outgoing); /* the peer has stopped this stream */
void aq_conn_carrier_timer(aq_conn *conn, uint64_t now);
size_t aq_conn_datagram_limit(aq_conn *conn);   /* largest DATAGRAM payload now; 0: none can be sent */
void aq_conn_packets_to_streams(aq_conn *conn); /* quic mode: waiting UDP packets become unidirectional streams */
void aq_conn_trim_datagrams(aq_conn *conn);
void aq_conn_rewind_datagrams(aq_conn *conn); /* if the queue is empty */
void aq_conn_advance_datagram(aq_conn *conn);
void aq_conn_count_incomplete(aq_conn *conn); /* what the assembler has dropped since the last call */
void aq_conn_cut_packets(aq_conn *conn);

/* ---- conn_callbacks.c -------------------------------------------------------------------------------------------- */

void aq_conn_stream_callbacks(ngtcp2_callbacks *callbacks);

#endif

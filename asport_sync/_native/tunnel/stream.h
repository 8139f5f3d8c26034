/* A bidirectional stream that carries one TCP connection: two pipes between the engine and the owner of the TCP socket.
 *
 * The owner of the socket is a worker inside aq_stream_relay(), or the engine itself once the stream is attached. Both
 * drive the same aq_stream_transfer(), which never blocks.
 *
 *   TCP -> QUIC:  owner writes tx, engine reads it; bytes stay in tx until acknowledged
 *   QUIC -> TCP:  engine writes rx, owner reads it; the QUIC window is extended by what the owner has taken
 *
 * The end has two steps, in any order: the owner sets relay_over when it no longer uses the stream; the engine sets
 * quic_closed when QUIC is done with it. The second of them removes the id from the table; the last reference frees the
 * stream.
 */
#ifndef AQ_STREAM_H
#define AQ_STREAM_H

#include "aq.h"
#include "core/bucket.h"
#include "core/counters.h"
#include "core/list.h"
#include "core/pipe.h"
#include "core/ready.h"
#include "core/slab.h"
#include "tunnel/keepalive.h"

#include <stdatomic.h>

/* Stream error code of a relay that was cut short. The reference implementation resets with 0 even after an orderly
 * end, so a different value tells the two apart. AQ_STREAM_REFUSED is in aq_api.h. */
#define AQ_STREAM_ABORTED 1

#define AQ_STREAM_HEADER_MAX 64

/* Maximum of bytes read from a socket that wait in tx to be sent for the first time. Enough for the longest turn of the
 * engine. More would leave the processor's cache and delay the back-pressure on the TCP peer. */
#define AQ_READ_AHEAD (256ULL * 1024)
/* Maximum once all pipes together hold AQ_PIPES_MUCH: thousands of streams that cannot send must not hold 256 KiB each.
 */
#define AQ_READ_AHEAD_SCARCE (32ULL * 1024)
#define AQ_PIPES_MUCH (256ULL * 1024 * 1024)

/* What the owner of the socket waits for. */
#define AQ_NEED_READ 1U     /* the socket to become readable */
#define AQ_NEED_WRITE 2U    /* the socket to become writable */
#define AQ_NEED_SPACE 4U    /* room in tx */
#define AQ_NEED_DATA 8U     /* bytes or an end in rx */
#define AQ_NEED_TURN 16U    /* nothing: the budget is used up; call again */
#define AQ_NEED_END 32U     /* always: a reset, STOP_SENDING, the end of the connection */
#define AQ_NEED_MEMORY 64U  /* memory to read into: call again after a pause */
#define AQ_NEED_PAUSE 128U  /* something that is not signalled: call again after a pause */
#define AQ_NEED_TOKENS 256U /* tokens of a bucket, see aq_bucket_run() */

/* A pause lasts AQ_PAUSE_MIN << stream->pause nanoseconds: from 10 ms, too short to be noticed, to 1.28 s, so that
 * thousands of waiting streams cost next to nothing. */
#define AQ_PAUSE_MIN (10 * AQ_NSEC_PER_MSEC)
#define AQ_PAUSES 8
/* Grace period, nanoseconds. A relay that has to end (its peer or socket is gone, or the peer has reset the stream)
 * first passes on the data it holds. It is cut short when none of that data has moved for this long: a program that is
 * merely busy reads again by then, and memory must not be held for ever for one that does not. */
#define AQ_ENDING_GRACE_PERIOD (30 * AQ_NSEC_PER_SEC)

struct aq_stream;
typedef AQ_LIST(struct aq_stream) aq_stream_list;

/* Flow-control credit that one connection has not yet returned to its peer: bytes consumed and streams finished.
 * Outlives the connection. */
typedef struct aq_credit {
    aq_ready_node node; /* first member; queued: the engine returns credit */
    _Atomic uint32_t references;
    _Atomic uint64_t owed;     /* bytes consumed */
    _Atomic uint64_t streams;  /* the peer's streams that are over on this side too: it may open as many new ones */
    _Atomic uint32_t relays;   /* streams that are not destroyed: QUIC or their relay still needs them */
    _Atomic uint32_t accepted; /* open sockets accepted from public listeners */
    _Atomic uint32_t *accepted_in_all; /* for all connections: the engine's counter, which outlives this; immutable */
    _Atomic uint32_t visitors;         /* visitors' TCP connections that are open, on either side */
    /* Bytes of payload that all streams have taken from sockets, and written to them. */
    _Atomic uint64_t payload_sent, payload_received;
    aq_stream_list sockets; /* engine thread only: accepted sockets that it has attached, newest first; no references */
    _Atomic uint64_t grown; /* bytes that windows have grown beyond each stream's first, for streams whose memory is in
                               use; also counted in the budget */
    aq_account account;     /* memory held for data that the peer has sent */
    uint64_t threshold;     /* owed bytes at which the engine is notified; immutable, as are the next two */
    aq_id connection;
    aq_ready *ready;
    aq_buckets buckets; /* any thread: the buckets of the connection's streams */
} aq_credit;

aq_credit *aq_credit_new(uint64_t threshold, aq_id connection, aq_ready *ready);
void aq_credit_ref(aq_credit *credit);
void aq_credit_unref(aq_credit *credit);
/* Adds to the growth of its streams' windows, modulo 2^64, so that it can also be negative. Any thread. */
void aq_credit_grow(aq_credit *credit, uint64_t bytes);

/* ngtcp2's stream user data points to one of these, inside the object that the stream belongs to. */
enum aq_stream_tag { AQ_TAG_BIDI, AQ_TAG_OUTGOING, AQ_TAG_INCOMING };

#define AQ_TAGGED(pointer, type) ((type *)(void *)((char *)(pointer)-offsetof(type, tag)))

struct aq_conn;

typedef struct aq_stream {
    aq_ready_node node; /* first member; queued: the engine looks at the stream */
    enum aq_stream_tag tag;

    /* immutable once the stream has its id */
    aq_id id;
    aq_id connection;
    aq_slab *table;
    aq_ready *ready;
    aq_counters *counters;
    aq_credit *credit; /* one reference */
    aq_address peer;   /* the visitor's address, as in Connect; set before other threads can see the stream */
    uint64_t began;    /* aq_now() of its creation */

    /* engine only */
    _Alignas(64) struct aq_conn *conn;   /* NULL once the connection is gone */
    int64_t quic_id;                     /* -1: waits for stream credit */
    AQ_LINK(struct aq_stream) conn_link; /* all streams of the connection */
    /* Links in the queue of streams with data to send, or of those that wait to be opened. */
    AQ_LINK(struct aq_stream) queue_link;
    AQ_LINK(struct aq_stream) header_link; /* peer's streams whose header is incomplete, oldest first */
    uint64_t window;                       /* flow-control window that the peer has now */
    uint64_t max_window;                   /* maximum that it may grow to */
    uint64_t grown;                        /* bytes it has grown; also counted in credit->grown */
    uint64_t returned;                     /* bytes of rx already returned as stream credit */
    uint64_t returned_at;                  /* time of the last return */
    uint64_t quantum;                      /* bytes left in this turn of the round robin */
    uint64_t deadline;                     /* for the header, then for dialling; UINT64_MAX: none */
    /* Links in a list of sockets: in the engine's list of those being dialled, or in the connection's list of those
     * accepted and attached, newest first. */
    AQ_LINK(struct aq_stream) socket_link;
    uint64_t large_bytes, large_since; /* bytes moved, and time, at the last check of the throughput */
    uint8_t header[AQ_STREAM_HEADER_MAX];
    uint8_t header_length;
    uint8_t dial_wanted, dialling;
    uint8_t accepted; /* counts in credit->accepted; owner of the socket only, set before other threads can see the
                         stream */
    uint8_t in_send_queue, announced, fin_sent, blocked, shut_sent, peer_opened, header_done, reported, in_touched;
    uint8_t stop_sent;                      /* STOP_SENDING was sent after an orderly end of our own direction */
    uint8_t pausing;                        /* in one of the engine's lists of pausing streams */
    AQ_LINK(struct aq_stream) pause_link;   /* in that list */
    uint64_t pause_until;                   /* end of the pause */
    AQ_LINK(struct aq_stream) touched_link; /* in the engine's list of streams whose owners must be notified */
    AQ_LINK(struct aq_stream) check_link;   /* list of attached streams whose TCP peer is checked */
    uint64_t check_at;                      /* time of the next check */
    uint8_t check_scheduled;                /* in that list */
    int attached_fd;                        /* -1: not attached */

    /* owner of the socket only (a worker, or the engine when attached) */
    _Alignas(64) aq_stream_result result;
    size_t read_want;     /* adapts: small for interactive use, large for large transfers */
    uint64_t credited;    /* bytes of rx counted into credit->owed */
    uint64_t waits_since; /* aq_now() of the last progress while it is ending; 0: it is not */
    uint64_t waits_moved; /* measure of that progress, see is_within_grace_period() */
    aq_keepalive keepalive;
    aq_taker takers[AQ_DIRECTIONS]; /* by enum aq_direction; bucket.h has what others may touch */
    int socket_error;               /* errno: the first that the socket reported; 0: none */
    uint8_t can_read, can_write, tx_done, rx_done, hung_up;
    uint8_t rx_lost;    /* the socket can no longer be written: received data is dropped */
    uint8_t aborted;    /* no more data is moved; the socket is to be reset */
    uint8_t cut;        /* aborted at once, whatever data is still in flight */
    uint8_t over;       /* aq_stream_transfer() has returned 0 */
    uint8_t pause;      /* length of the next pause, see AQ_PAUSE_MIN */
    uint8_t starved;    /* the last call found no memory to read into */
    uint8_t read_ended; /* epoll has reported the end of the TCP peer's data, which it does only once */
    uint8_t gone;       /* the TCP peer is gone: only data already in the socket can be read */
    uint8_t urgent;     /* epoll has reported urgent data: a read stops in front of it although more follows */

    /* shared */
    aq_pipe tx;              /* producer: owner, consumer: engine */
    aq_pipe rx;              /* producer: engine, consumer: owner */
    _Atomic int tx_fin;      /* owner -> engine: FIN after the last byte */
    _Atomic int tx_stopped;  /* engine -> owner: the peer reads no more (STOP_SENDING) */
    _Atomic int rx_fin;      /* engine -> owner: no more bytes follow; set after the last are published */
    _Atomic int rx_reset;    /* engine -> owner: the peer has reset it; set after the bytes before that are published */
    _Atomic int rx_code;     /* engine -> owner: code of that reset, INT32_MAX for larger ones; set before rx_reset */
    _Atomic int opened;      /* engine -> owner: open in QUIC; until then it waits for stream credit */
    _Atomic int dead;        /* engine -> owner: connection gone (1) or engine stopped (2) */
    _Atomic uint64_t reset;  /* any -> engine: reset with this value - 1 as code; 0: no reset */
    _Atomic int local_reset; /* any -> owner: aq_stream_reset() was called, or its memory is needed */
    _Atomic uint64_t report_at; /* engine -> owner: bytes taken from rx at which to notify the engine */
    _Atomic unsigned wants;     /* owner -> engine: AQ_NEED bits while it sleeps */
    _Atomic(aq_wake *) wake;    /* the sleeping worker's; lives as long as the engine, so a late signal is harmless */
    _Atomic int admitted;       /* counts in credit->visitors: an open TCP connection of a visitor */
    _Atomic int owned;          /* a worker relays it, or it is attached to the engine */
    _Atomic int relay_over;
    _Atomic int quic_closed;
} aq_stream;

typedef struct {
    aq_slab *table;
    aq_ready *ready;
    aq_counters *counters;
    aq_pool *pool;
    uint64_t send_window, receive_window;
    const _Atomic uint32_t *keepalive; /* seconds, see aq_keepalive; NULL: none */
} aq_stream_setup;

/* [any] Creates a stream without an id, which aq_slab_add() gives it. Returns NULL without memory. */
aq_stream *aq_stream_new(const aq_stream_setup *setup, aq_id connection, aq_credit *credit);
void aq_stream_destroy(void *stream); /* the slab's destructor */

/* [any, holding a reference] Notifies the engine that it should look at the stream. */
void aq_stream_notify(aq_stream *stream);

/* Returns the stream of a taker. */
static inline aq_stream *aq_stream_of_taker(aq_taker *taker)
{
    return (aq_stream *)(void *)((char *)(taker - taker->direction) - offsetof(aq_stream, takers));
}

/* [owner, engine] Returns whether a bucket has granted tokens that are not taken yet. */
static inline int aq_stream_has_grant(const aq_stream *stream)
{
    return atomic_load(&stream->takers[AQ_DIRECTION_SENT].granted) > 0 ||
           atomic_load(&stream->takers[AQ_DIRECTION_RECEIVED].granted) > 0;
}

/* [owner, engine] Returns whether the socket may be read now: tx has room, and little enough in it waits to be sent. */
int aq_stream_may_read(const aq_stream *stream);

/* [engine] Wakes a worker that waits for one of these: AQ_NEED_SPACE, AQ_NEED_DATA, AQ_NEED_TOKENS, AQ_NEED_END. */
void aq_stream_signal(aq_stream *stream, unsigned what);

/* [owner] Sets the socket's options; called before any other use of the socket, and before connect() where it is
 * dialled here. From then on closing the socket resets the TCP connection, also when the process is killed, until
 * aq_stream_transfer() has seen both directions end in order. */
void aq_stream_begin(aq_stream *stream, int fd);
/* [any] Sets the same options on a listening socket: on Linux a connection inherits the options that its listener had
 * when the connection was established, which saves eight system calls for each. Connections already in the backlog have
 * none of them. keepalive: seconds, see aq_keepalive. */
void aq_stream_prepare(int fd, uint32_t keepalive);

/* [owner] Moves bytes in both directions between the socket and the pipes; in each direction until the system call that
 * uses up its budget of bytes. Returns what it needs next as AQ_NEED bits; 0: the relay is over, see result, and the
 * caller closes the socket. */
unsigned aq_stream_transfer(aq_stream *stream, int fd, uint64_t read_budget, uint64_t write_budget);

/* [owner] Handles an error or hang-up of the socket; aq_stream_transfer() must be called after it. error: what the
 * socket has already reported, as it does so only once; 0: not asked yet. */
void aq_stream_socket_failed(aq_stream *stream, int fd, int error);

/* [owner] Checks whether the TCP peer is gone. Returns 1 if it is: aq_stream_transfer() must be called after it. */
int aq_stream_check_peer(aq_stream *stream, int fd, uint64_t now);

/* [any, holding a reference] Resets the stream with this code, and the TCP connection, at once. A stream that was not
 * relayed yet never will be. */
void aq_stream_cut(aq_stream *stream, uint64_t code);

/* [owner] Ends the owner's use of the stream. */
void aq_stream_leave(aq_stream *stream);
/* [any] Marks a stream that will never be relayed. Returns 0 if it has an owner already. */
int aq_stream_disown(aq_stream *stream);
/* [engine] Marks the stream as closed by QUIC. */
void aq_stream_close(aq_stream *stream);

#endif

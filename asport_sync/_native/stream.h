/* A bidirectional stream that carries one TCP connection: two pipes between the engine and whoever owns the TCP socket.
 *
 * The owner of the socket is a worker thread inside aq_stream_relay(), or the engine itself once the stream is
 * attached. Both drive the same aq_stream_pump(), which never blocks.
 *
 *   TCP -> QUIC:  owner writes tx, engine reads it; bytes stay in tx until acknowledged
 *   QUIC -> TCP:  engine writes rx, owner reads it; the QUIC window is extended by what the owner took
 *
 * The end, in stages: the owner sets relay_over when it will not look again; the engine sets quic_closed when QUIC is
 * done with the stream. Whoever comes second removes the name; the last reference frees.
 */
#ifndef AQ_STREAM_H
#define AQ_STREAM_H

#include "aq.h"
#include "counters.h"
#include "keepalive.h"
#include "pipe.h"
#include "ready.h"
#include "slab.h"

#include <stdatomic.h>

/* Stream error code of a relay that was cut short. The reference resets with 0 also after an orderly end, so another
 * value tells the two apart. AQ_STREAM_REFUSED is in aq_api.h. */
#define AQ_STREAM_ABORTED 1

#define AQ_STREAM_HEADER_MAX 64

/* Bytes read from a socket that may wait in tx to be sent for the first time. Enough for the longest turn of the
 * engine; what waits longer leaves the processor's cache, and the peer of the socket learns too late how fast it goes.
 */
#define AQ_READ_AHEAD (256ULL * 1024)
/* And so many where all pipes together hold much: thousands of streams that can't send must not hold 256 KiB each. */
#define AQ_READ_AHEAD_SCARCE (32ULL * 1024)
#define AQ_PIPES_MUCH (256ULL * 1024 * 1024)

/* What the owner of the socket waits for. */
#define AQ_NEED_READ 1U    /* the socket to become readable */
#define AQ_NEED_WRITE 2U   /* the socket to become writable */
#define AQ_NEED_SPACE 4U   /* room in tx */
#define AQ_NEED_DATA 8U    /* bytes or an end in rx */
#define AQ_NEED_TURN 16U   /* nothing: the budget is used up, call again */
#define AQ_NEED_END 32U    /* always: a reset, STOP_SENDING, the end of the connection */
#define AQ_NEED_MEMORY 64U /* there is none to read into: call again after a pause */
#define AQ_NEED_PAUSE 128U /* nothing tells when what it waits for has happened: call again after a pause */

/* A pause lasts AQ_PAUSE_LEAST << stream->pause nanoseconds: from 10 ms, which is short beside what a user notices, to
 * 1.28 s, so that thousands of streams that wait for nothing cost next to nothing. */
#define AQ_PAUSE_LEAST (10 * AQ_NSEC_PER_MSEC)
#define AQ_PAUSES 8
/* A relay that has to end (the peer or the socket has gone, or the peer has reset) first passes on what it has. It is
 * cut short where nothing of that has moved for so long, nanoseconds: a program that is only busy reads again by then,
 * and memory for one that does not must not be held for ever. */
#define AQ_ENDING_PATIENCE (30 * AQ_NSEC_PER_SEC)

/* What one connection owes its peer: bytes that were consumed and streams that are over, not yet returned as credit.
 * Outlives the connection. */
typedef struct aq_credit {
    aq_ready_node node; /* first: "return credit" for the engine */
    _Atomic uint32_t references;
    _Atomic uint64_t owed;     /* bytes */
    _Atomic uint64_t streams;  /* streams of the peer that are over on this side too: it may open as many new ones */
    _Atomic uint32_t accepted; /* sockets that came from public listeners and are open */
    _Atomic uint32_t *accepted_in_all; /* the same of all connections: the engine's, which outlives this; immutable */
    struct aq_stream
        *newest;            /* [engine] of those sockets that it serves, the one that was attached last; no reference */
    _Atomic uint64_t grown; /* bytes of windows beyond the first of each stream, of streams whose memory is in use; also
                               counted in the budget */
    aq_account account;     /* what is held of what the peer has sent */
    uint64_t threshold;     /* immutable, as are the next two: owed bytes of which the engine should hear */
    aq_id connection;
    aq_ready *ready;
} aq_credit;

aq_credit *aq_credit_new(uint64_t threshold, aq_id connection, aq_ready *ready);
void aq_credit_ref(aq_credit *credit);
void aq_credit_unref(aq_credit *credit);
/* Windows of its streams have grown by so many bytes, modulo 2^64: they may have shrunk. Any thread. */
void aq_credit_grow(aq_credit *credit, uint64_t bytes);

/* ngtcp2's stream user data points to one of these inside the object that the stream belongs to. */
enum aq_stream_tag { AQ_TAG_BIDI, AQ_TAG_OUTGOING, AQ_TAG_INCOMING };

#define AQ_TAGGED(pointer, type) ((type *)(void *)((char *)(pointer)-offsetof(type, tag)))

struct aq_conn;

typedef struct aq_stream {
    aq_ready_node node; /* first: "look at this stream" for the engine */
    enum aq_stream_tag tag;

    /* immutable once the stream has its name */
    aq_id id;
    aq_id connection;
    aq_slab *table;
    aq_ready *ready;
    aq_counters *counters;
    aq_credit *credit; /* one reference */
    aq_address peer;   /* whose TCP connection it is, as Connect says; set before anybody but the engine knows of it */
    uint64_t began;    /* aq_now() of its creation */

    /* engine only */
    _Alignas(64) struct aq_conn *conn; /* NULL once the connection is gone */
    int64_t quic_id;                   /* -1: waits for stream credit */
    struct aq_stream *previous, *next; /* all streams of the connection */
    /* In the queue of streams with something to send, or of those that wait to be opened. */
    struct aq_stream *queue_previous, *queue_next;
    struct aq_stream *header_previous, *header_next; /* peer's streams whose header is incomplete, oldest first */
    uint64_t window;                                 /* flow-control window that the peer has now */
    uint64_t most_window;                            /* it may grow to this */
    uint64_t grown;                                  /* by how much it has; also counted in credit->grown */
    uint64_t returned;                               /* bytes of rx already returned as stream credit */
    uint64_t returned_at;                            /* when */
    uint64_t quantum;                                /* bytes left in this turn of the round robin */
    uint64_t deadline; /* until the header, then the dialling, must be complete; UINT64_MAX: neither */
    /* By their sockets: those that are being dialled, in the engine's list; those that were accepted and are attached,
     * in their connection's, the newest first. */
    struct aq_stream *socket_previous, *socket_next;
    uint64_t bulk_bytes, bulk_since; /* bytes moved, and when, at the last look at how fast it goes */
    uint8_t header[AQ_STREAM_HEADER_MAX];
    uint8_t header_length;
    uint8_t dial_wanted, dialling;
    uint8_t accepted; /* counts in credit->accepted; its owner's, set before anybody but the engine knows of it */
    uint8_t in_send_queue, announced, fin_sent, blocked, shut_sent, peer_opened, header_done, reported, in_touched;
    uint8_t stop_sent;              /* the peer was asked to send no more, after an end of our own in order */
    uint8_t resting;                /* in one of the engine's lists of streams that pause */
    struct aq_stream *rest_next;    /* in that list */
    uint64_t rest_until;            /* when it leaves it */
    struct aq_stream *touched_next; /* in the engine's list of streams whose owners have to hear of something */
    struct aq_stream *look_previous, *look_next; /* streams that the engine relays and whose socket it looks at again */
    uint64_t look_at;                            /* when */
    uint8_t looked_after;                        /* in that list */
    int attached_fd;                             /* -1: not attached */

    /* owner of the socket only (a worker, or the engine when attached) */
    _Alignas(64) aq_stream_result result;
    size_t read_want;     /* adapts: small for interactive use, large for bulk */
    uint64_t credited;    /* bytes of rx counted into credit->owed */
    uint64_t waits_since; /* aq_now() when something last moved while it has to end; 0: it has not to */
    uint64_t waits_moved; /* what had moved then, see is_patient() */
    aq_keepalive keepalive;
    int socket_error; /* errno: the first that the socket told; 0: none */
    uint8_t can_read, can_write, tx_done, rx_done, hung_up;
    uint8_t rx_lost;    /* the socket takes nothing any more: what comes is dropped */
    uint8_t aborted;    /* nothing is moved any more; the socket is to be reset */
    uint8_t cut;        /* at once, whatever is still under way */
    uint8_t over;       /* the pump has answered 0 */
    uint8_t pause;      /* how long the next one is, see AQ_PAUSE_LEAST */
    uint8_t starved;    /* the last turn found no memory to read into */
    uint8_t read_ended; /* epoll has announced the end of what the peer sends, which it does once */
    uint8_t gone;       /* the socket's peer is: nothing comes but what the socket has already */
    uint8_t urgent;     /* epoll has announced urgent data: a read stops in front of it, with more to come */

    /* shared */
    aq_pipe tx;                 /* producer: owner, consumer: engine */
    aq_pipe rx;                 /* producer: engine, consumer: owner */
    _Atomic int tx_fin;         /* owner -> engine: FIN after the last byte */
    _Atomic int tx_stopped;     /* engine -> owner: the peer wants no more (STOP_SENDING) */
    _Atomic int rx_fin;         /* engine -> owner: no bytes follow; set after they are published */
    _Atomic int rx_reset;       /* engine -> owner: the peer gave up; set after the bytes before it are published */
    _Atomic int rx_code;        /* engine -> owner: with this code, INT32_MAX for larger ones; set before rx_reset */
    _Atomic int opened;         /* engine -> owner: QUIC has the stream; until then it waits for credit */
    _Atomic int dead;           /* engine -> owner: connection gone (1) or engine stopped (2) */
    _Atomic uint64_t reset;     /* any -> engine: reset with this code - 1; 0: no */
    _Atomic int local_reset;    /* any -> owner: aq_stream_reset() was called, or its memory is needed */
    _Atomic uint64_t report_at; /* engine -> owner: consumption that the engine wants to hear of */
    _Atomic unsigned wants;     /* owner -> engine: AQ_NEED bits while it sleeps */
    _Atomic(aq_wake *) wake; /* the sleeping worker's; wakes live as long as the engine, so a late signal is harmless */
    _Atomic int owned;       /* a worker relays, or the engine is attached */
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

/* [any] The name is still to be given (aq_slab_add). NULL: no memory. */
aq_stream *aq_stream_new(const aq_stream_setup *setup, aq_id connection, aq_credit *credit);
void aq_stream_destroy(void *stream); /* the slab's destructor */

/* [any, holding a reference] The engine should look at the stream. */
void aq_stream_notify(aq_stream *stream);

/* [owner, engine] Whether the socket may be read now: tx has room, and not so much waits in it that more would only
 * grow cold there. */
int aq_stream_may_read(const aq_stream *stream);

/* [engine] Something that the owner may wait for has happened: AQ_NEED_SPACE, AQ_NEED_DATA, AQ_NEED_END. */
void aq_stream_signal(aq_stream *stream, unsigned what);

/* [owner] Before anything else with this socket, before it connects if it is dialled here. Whoever closes it, the
 * kernel when the process is killed too, resets the TCP connection, until the pump has seen both directions end in
 * order.
 */
void aq_stream_begin(aq_stream *stream, int fd);
/* [any] The same for all that is accepted from this socket: on Linux a connection has the options that its listener had
 * when it was established, which saves eight system calls for each. Those that are in the backlog already have none of
 * them. keepalive: seconds, see aq_keepalive. */
void aq_stream_prepare(int fd, uint32_t keepalive);

/* [owner] Moves bytes both ways between the socket and the pipes; in each direction until the system call that uses up
 * `budget` bytes. Returns what it needs next as AQ_NEED bits; 0: over, see result, and the socket is to be closed. */
unsigned aq_stream_pump(aq_stream *stream, int fd, uint64_t read_budget, uint64_t write_budget);

/* [owner] The socket reported an error or a hang-up; the pump is to be called after it. error: 0, or what the socket
 * has told once. */
void aq_stream_socket_failed(aq_stream *stream, int fd, int error);

/* [owner] Looks whether the socket's peer is still there. Returns 1 where it is not: the pump is to be called after it.
 */
int aq_stream_look_after(aq_stream *stream, int fd, uint64_t now);

/* [owner] It will not look again. */
void aq_stream_leave(aq_stream *stream);
/* [any] Nobody will ever relay it. 0: somebody does already. */
int aq_stream_disown(aq_stream *stream);
/* [engine] QUIC is done with it. */
void aq_stream_close(aq_stream *stream);

#endif

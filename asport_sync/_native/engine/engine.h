/* The engine thread: everything that touches QUIC happens in aq_engine_loop(), in the phases listed there. Other
 * threads reach it only through commands (a multi-producer queue) and the list of ready objects (ready.h). */
#ifndef AQ_ENGINE_H
#define AQ_ENGINE_H

#include "aq.h"
#include "core/bucket.h"
#include "core/counters.h"
#include "core/descriptors.h"
#include "core/events.h"
#include "core/list.h"
#include "core/pipe.h"
#include "core/ready.h"
#include "core/slab.h"
#include "core/udp.h"
#include "core/wake.h"
#include "quic/conn.h"
#include "quic/endpoint.h"

#include <pthread.h>
#include <stdatomic.h>

enum aq_command_kind {
    AQ_DO_LISTEN,
    AQ_DO_CONNECT,
    AQ_DO_CLOSE_ENDPOINT,
    AQ_DO_SET_CREDENTIALS,
    AQ_DO_SET_TRANSPORT,
    AQ_DO_LIMIT_ENDPOINT,
    AQ_DO_CLOSE,
    AQ_DO_EXPORT,
    AQ_DO_PEER_CHAIN,
    AQ_DO_SEND,
    AQ_DO_HEARTBEAT,
    AQ_DO_SET_JOINED,
    AQ_DO_PROBE,
    AQ_DO_INFO,
    AQ_DO_OPEN_STREAM,
    AQ_DO_ATTACH,
    AQ_DO_ASSOCIATION_READY,
    AQ_DO_WATCH_UDP,
    AQ_DO_CLOSE_UDP,
    AQ_DO_MOVE_UDP,
    AQ_DO_LISTEN_TCP,
    AQ_DO_UNLISTEN_TCP,
    AQ_DO_DIAL,
    AQ_DO_MIGRATE,
    AQ_DO_LIMIT
};

/* Queue limit of commands for the engine; producers block when it is full. */
#define AQ_COMMANDS_MAX 16384
#define AQ_COMMAND_BYTES 256 /* maximum for aq_connection_send() */

/* One command for the engine. A command whose caller waits for it lives on the caller's stack; others live on the heap
 * and are freed by the engine. Pointers of commands that are waited for belong to the caller, unless they are said to
 * be references: those, and descriptors, are handed over to the engine. */
typedef struct aq_engine_command {
    struct aq_engine_command *next; /* guarded by the engine's command mutex, as are `done` and `result` */
    enum aq_command_kind kind;      /* says which member of the union is used */
    int waited_for;
    int done;
    int64_t result;
    aq_id id; /* of the connection, endpoint, listener or UDP socket that it is for; 0: none */
    union {
        struct {
            const aq_listen_options *options;
            int fd;
        } listen;
        struct {
            const aq_connect_options *options;
            int fd;
        } connect;
        struct {
            int connections; /* 1: also closes its connections */
        } close_endpoint;
        struct {
            aq_id credentials;
        } set_credentials;
        struct {
            const aq_transport_options *options;
        } set_transport;
        struct {
            uint32_t max_connections;
        } limit_endpoint;
        struct {
            uint64_t code, linger;
        } close;
        struct {
            const uint8_t *label, *context;
            size_t label_length, context_length;
            uint8_t *out;
            size_t out_length;
        } export;
        struct {
            uint8_t *out;
            size_t out_length;
        } peer_chain;
        struct {
            size_t length;
            uint8_t data[AQ_COMMAND_BYTES];
        } send;
        struct {
            uint64_t interval;
            size_t length;
            uint8_t data[AQ_HEARTBEAT_BYTES];
        } heartbeat;
        struct {
            enum aq_carrier carrier;
            int udp;
        } set_joined;
        struct {
            uint64_t timeout, grace_period;
        } probe;
        struct {
            aq_connection_info *out;
        } info;
        struct {
            aq_stream *stream; /* a reference */
        } open_stream;
        struct {
            aq_stream *stream; /* a reference */
            int fd;
        } attach;
        struct {
            uint16_t association;
            int accepted;
        } association_ready;
        struct {
            aq_udp *udp; /* a reference */
        } watch_udp;
        struct {
            aq_group *group; /* a reference; NULL: none */
            int fd;
        } close_udp;
        struct {
            const uint8_t *prefix;
            size_t prefix_length;
            int fd;
        } move_udp;
        struct {
            aq_address to; /* family 0: do not dial */
            uint64_t timeout, valid;
        } dial;
        struct {
            int fd;
        } migrate;
        struct {
            aq_limits limits; /* with a reference to the permitted addresses */
        } limit;
    };
} aq_engine_command;

/* A listening TCP socket. Its connections become streams of one QUIC connection. */
typedef struct aq_listener {
    aq_id id; /* immutable, as are the next four */
    aq_id connection;
    int fd;             /* owned */
    int for_workers;    /* immutable: its streams go to workers from the beginning, as long as one is free */
    uint32_t keepalive; /* TCP keepalive idle time that accepted sockets inherit, in seconds */
    uint64_t reported;  /* [engine] time of the last AQ_EVENT_ACCEPT_FAILED; 0: never */
    int inherited;      /* [engine] all connections still to be accepted have inherited its options */
    int over;           /* [engine] not in service any more */
    aq_group *group;    /* [engine] of its connection, with a reference, once in service; NULL: none */
    aq_member member;   /* [engine] all zeros without a group */
    aq_credit *credit;  /* [engine] of its connection, with a reference; NULL: was never in service */
    AQ_LINK(struct aq_listener) link; /* [engine] in the list of listeners in service */
} aq_listener;

/* How many descriptors public TCP connections may use, see fair_share.c. Engine thread only. */
typedef struct {
    AQ_LIST(aq_listener) listeners; /* in service */
    uint32_t ports;                 /* their number */
    /* Descriptor limit of the process; UINT32_MAX: none. Like the fields below, as of the last check. */
    uint32_t limit;
    uint32_t others;  /* open descriptors in addition to accepted sockets */
    uint32_t budget;  /* maximum number of accepted sockets */
    uint64_t checked; /* time of the last check; 0: check now */
    uint64_t counted; /* time when open descriptors were last counted; 0: never */
    uint64_t took;    /* nanoseconds that counting took */
} aq_fair_shares;

enum aq_engine_state { AQ_ENGINE_NEW, AQ_ENGINE_RUNNING, AQ_ENGINE_STOPPED };

struct aq_engine {
    /* any thread: each of these is thread-safe */
    aq_counters counters;
    aq_events events;
    aq_reserve reserve;
    aq_pool pool;
    aq_budget budget;
    aq_wake wake;
    aq_ready ready;
    aq_slab credentials, endpoints, connections, streams, udps, listeners, buckets, groups;
    _Atomic int state; /* enum aq_engine_state */
    _Atomic int stopping;
    _Atomic int closed;              /* all but this struct is freed, or about to be */
    _Atomic uint32_t inside;         /* API calls that have not returned */
    _Atomic uint32_t report_streams; /* maximum number of AQ_EVENT_STREAM_ENDED per second */
    _Atomic int report_begins;       /* whether to post AQ_EVENT_STREAM_BEGUN */
    _Atomic uint32_t keepalive;      /* seconds, see aq_keepalive: for streams created from now on */
    _Atomic int pump_shares;         /* whether the pump may read busy UDP sockets */
    _Atomic int32_t workers_free;    /* workers free for attached streams; raised by Python, lowered by the engine */
    _Atomic uint32_t accepted;       /* open sockets accepted from public listeners */

    pthread_mutex_t command_mutex;
    pthread_cond_t command_done;
    AQ_LIST(aq_engine_command) commands; /* a queue; guarded by command_mutex, as are the next two */
    uint32_t commands_length;
    uint32_t commands_waiters; /* threads blocked on the full queue */
    _Atomic int commands_filled;

    pthread_mutex_t wakes_mutex;
    aq_wake **wakes; /* idle wakes for workers; guarded by wakes_mutex, as are the next fields */
    size_t wakes_idle;
    aq_wake **wakes_all; /* every wake ever made; freed with the engine, so that a late signal always has a target */
    size_t wakes_length, wakes_all_capacity;

    aq_udp_receiver *pump_receiver; /* pump thread only; NULL until needed */

    /* engine thread only */
    aq_conn_host host;
    aq_udp_receiver *receiver;
    int epoll;
    int has_epoll_pwait2;
    unsigned logged;                /* bits of the messages already logged, see events.h */
    int faulty;                     /* an error in this turn would end the next idle wait immediately */
    aq_conn_list touched;           /* with something to write */
    aq_stream_list touched_streams; /* each with a reference */
    /* By stream->pause: streams with equally long pauses, in the order in which these end; each with a reference. */
    aq_stream_list pauses[AQ_PAUSES];
    AQ_LIST(aq_bucket) buckets_in_use; /* with waiting streams; each with a reference */
    uint64_t buckets_at;               /* when the first of them is due; UINT64_MAX: none */
    aq_stream_list ending_streams;     /* their connection has ended; each with a reference */
    aq_conn_list ending_conns;         /* ended, with streams still to be cut off */
    aq_conn **heap;                    /* ordered by expiry */
    uint32_t heap_length, heap_capacity;
    aq_endpoint **all_endpoints;
    size_t endpoints_length, endpoints_capacity;
    int endpoints_dirty;     /* some may be over, or wait for room in their socket */
    aq_stream_list dialling; /* being dialled, by deadline */
    aq_stream_list checks;   /* with sockets to be checked, by check_at */
    aq_fair_shares shares;
    struct {
        aq_id id;
        uint64_t until;
    } * backed_off; /* listeners and UDP sockets in back-off, out of epoll */
    size_t backed_off_length, backed_off_capacity;
    int *closing_fds; /* to be closed once the datagrams collected for them are sent */
    size_t closing_fds_length, closing_fds_capacity;
    uint64_t now;
    uint64_t read;             /* bytes of QUIC packets received in the last turn */
    uint64_t idle;             /* total nanoseconds of idle waits */
    uint64_t shed_next;        /* no load shedding before this time */
    uint64_t shed_logged;      /* time of the last log line about load shedding; 0: never */
    uint64_t memory_next;      /* time of the next memory check */
    uint64_t memory_peak;      /* maximum number of bytes in use since memory was last returned, estimated */
    int memory_skipped;        /* this turn passed without a check */
    uint64_t memory_fell_at;   /* when use fell well below the peak; 0: it has not */
    uint64_t interactive_at;   /* time of the last short message */
    uint64_t reports_since;    /* start of the second in which `reports` are counted */
    uint32_t reports;          /* AQ_EVENT_STREAM_ENDED events posted in that second */
    uint64_t reports_left_out; /* ends of streams not reported since the last event */
    int spin_credit;           /* > 0: polling before an idle wait currently pays off */
    int sleeps_without_spin;   /* idle waits since polling was last tried */
};

int64_t aq_engine_loop(aq_engine *engine); /* returns once stopping */
void aq_engine_host_functions(aq_conn_host *host);

/* [any] Hands over a command and waits for its result. */
int64_t aq_engine_ask(aq_engine *engine, aq_engine_command *command);
/* [any] Hands over a copy of a command. Returns 0, AQ_ERR_MEMORY or AQ_ERR_STOPPED. On failure what it hands over is
 * released, except the stream of AQ_DO_ATTACH, whose reference stays the caller's. */
int64_t aq_engine_tell(aq_engine *engine, const aq_engine_command *command);
void aq_engine_fail_commands(aq_engine *engine); /* all queued ones, with AQ_ERR_STOPPED */

/* [any] Bracket every API call, so that freeing the engine can wait for it. 0: stopping, do not proceed. */
int aq_api_enter(aq_engine *engine);
int aq_api_enter_until_closed(aq_engine *engine); /* for the few calls that still have work to do while stopping */
void aq_api_leave(aq_engine *engine);
int aq_api_duplicate(int fd); /* close-on-exec; -1 with errno */

/* [any] Borrows a wake for a worker while it relays. NULL: no descriptors, no memory, or too many wakes in use. */
aq_wake *aq_engine_borrow_wake(aq_engine *engine);
void aq_engine_return_wake(aq_engine *engine, aq_wake *wake);

/* [engine] Shared by the files of this module. */
/* Makes room for one more element. Returns 0 or AQ_ERR_MEMORY. */
int aq_engine_make_room(void *array, size_t length, size_t *capacity, size_t element);
void aq_engine_touch(void *engine, aq_conn *conn);
/* Returns whether turns should be short, at some cost for large transfers, because someone waits for short answers. */
int aq_engine_is_interactive(const aq_engine *engine);
void aq_engine_touch_stream(void *engine, aq_stream *stream);
/* [engine; or pump, for a local socket that the engine does not know yet] Adds the socket to epoll. */
int64_t aq_engine_watch_udp(aq_engine *engine, aq_udp *udp);
void aq_engine_enter_group(aq_engine *engine, aq_udp *udp);     /* instead, for a socket of a group; idempotent */
void aq_engine_watch_group(aq_engine *engine, aq_group *group); /* call when one of its sockets has left */
/* [engine or pump] Asks Python about each new source. If it cannot be asked, the waiting datagrams are dropped. */
void aq_engine_ask_about(aq_engine *engine, aq_udp *udp, const aq_udp_batch *batch);
/* [engine, pump] Reports that the local service does not accept datagrams: Python may know another address. Called by
 * whoever reads the socket. */
void aq_engine_tell_refused(aq_conn *conn, aq_udp *udp, const aq_udp_batch *batch, uint64_t now);
/* [engine, pump] Reports datagrams of visitors that are not permitted. */
void aq_engine_tell_denied(aq_engine *engine, const aq_udp *udp, const aq_udp_batch *batch);
/* engine_back_off.c */
void aq_engine_back_off(aq_engine *engine, aq_id id, int fd, uint64_t duration);
void aq_engine_pause_stream(aq_engine *engine, aq_stream *stream); /* for the length of stream->pause */
void aq_engine_run_pauses(aq_engine *engine, uint64_t until);      /* those that end by then */
uint64_t aq_engine_next_pause(const aq_engine *engine);            /* end of the next one; UINT64_MAX: none */
/* Puts sockets back into epoll whose back-off is over; watch_again does that for one of them, unless it is gone. */
void aq_engine_run_back_offs(aq_engine *engine, int64_t (*watch_again)(aq_engine *engine, aq_id id));
/* engine_buckets.c */
void aq_engine_use_bucket(aq_engine *engine, aq_bucket *bucket); /* streams wait for it; takes over a reference */
void aq_engine_run_buckets(aq_engine *engine);                   /* those that are due */
void aq_engine_release_buckets(aq_engine *engine);               /* the engine ends */
/* engine_memory.c */
void aq_engine_shed_load(void *engine);                   /* sheds load if the receive budget is short */
void aq_engine_give_back_memory(aq_engine *engine);       /* to the system, after a large drop in use */
uint64_t aq_engine_memory_timer(const aq_engine *engine); /* time of the next check; UINT64_MAX: never */
/* engine_udp.c */
void aq_engine_read_udp(aq_engine *engine, aq_id id); /* epoll has reported the socket */
/* engine_commands.c */
void aq_engine_run_commands(aq_engine *engine);

#endif

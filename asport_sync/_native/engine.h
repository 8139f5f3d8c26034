/* The event thread: everything that touches QUIC happens in aq_engine_loop(), in the phases listed there. Other threads
 * reach it by commands (a queue, many producers), by the list of objects that want a look (ready.h), and by nothing
 * else.
 */
#ifndef AQ_ENGINE_H
#define AQ_ENGINE_H

#include "aq.h"
#include "conn.h"
#include "counters.h"
#include "descriptors.h"
#include "endpoint.h"
#include "events.h"
#include "pipe.h"
#include "ready.h"
#include "slab.h"
#include "udp.h"
#include "wake.h"

#include <pthread.h>
#include <stdatomic.h>

enum aq_command_kind {
    AQ_DO_LISTEN,
    AQ_DO_CONNECT,
    AQ_DO_CLOSE_ENDPOINT,
    AQ_DO_SET_CREDENTIALS,
    AQ_DO_CLOSE,
    AQ_DO_EXPORT,
    AQ_DO_SEND,
    AQ_DO_HEARTBEAT,
    AQ_DO_ADMIT,
    AQ_DO_PROBE,
    AQ_DO_INFO,
    AQ_DO_OPEN_STREAM,
    AQ_DO_ATTACH,
    AQ_DO_FLOW_READY,
    AQ_DO_WATCH_UDP,
    AQ_DO_CLOSE_UDP,
    AQ_DO_MOVE_UDP,
    AQ_DO_LISTEN_TCP,
    AQ_DO_UNLISTEN_TCP,
    AQ_DO_DIAL,
    AQ_DO_MIGRATE
};

/* Commands on their way to the engine; who has more to say waits until it has taken these. */
#define AQ_COMMANDS_MOST 16384
#define AQ_COMMAND_BYTES 256 /* aq_connection_send() takes no more */

/* One thing for the engine to do. A waited-for command lives on its caller's stack; the others on the heap and the
 * engine frees them. */
typedef struct aq_engine_command {
    struct aq_engine_command *next;
    enum aq_command_kind kind;
    int waited_for;
    int done;       /* guarded by the engine's command mutex */
    int64_t result; /* likewise */
    aq_id id;
    int fd;
    uint64_t a, b;
    const void *input; /* of the waiting caller */
    void *output;      /* of the waiting caller */
    void *object;      /* a reference that passes to the engine, or NULL */
    size_t length;
    uint8_t data[AQ_COMMAND_BYTES];
} aq_engine_command;

/* What AQ_DO_EXPORT needs more than one pointer for. */
typedef struct {
    const uint8_t *label, *context;
    size_t label_length, context_length, out_length;
} aq_export_request;

/* What AQ_DO_DIAL is told. */
typedef struct {
    aq_address to; /* family 0: none */
    uint64_t timeout, valid;
} aq_dial_request;

/* What AQ_DO_MOVE_UDP is told. */
typedef struct {
    const uint8_t *prefix;
    size_t prefix_length;
} aq_move_request;

/* A listening TCP socket; its connections become streams of one QUIC connection. */
typedef struct aq_listener {
    aq_id id; /* immutable, as are the next two */
    aq_id connection;
    int fd;                              /* ours, as is the next */
    uint32_t keepalive;                  /* seconds, which accepted sockets have from this one */
    uint64_t reported;                   /* [engine] when Python last heard of trouble; 0: never */
    int inherited;                       /* [engine] all that is still to be accepted has this one's options */
    int over;                            /* [engine] not to be watched any more */
    aq_credit *credit;                   /* [engine] of its connection, a reference; NULL: was never in service */
    struct aq_listener *previous, *next; /* [engine] in the list of those that are in service */
} aq_listener;

/* Streams that pause equally long, in the order in which that is over; each with a reference. */
typedef struct {
    aq_stream *first, *last;
} aq_pause_list;
/* What public TCP connections may have of the descriptors, see share.c. Engine thread only. */
typedef struct {
    aq_listener *first; /* those that are in service */
    uint32_t ports;     /* how many they are */
    uint32_t
        limit; /* descriptors that the process may have; UINT32_MAX: any number. As is the rest: at the last look */
    uint32_t others;  /* that it had open besides accepted sockets */
    uint32_t budget;  /* accepted sockets that there may be */
    uint64_t looked;  /* when that was; 0: look now */
    uint64_t counted; /* when what is open was counted; 0: never */
    uint64_t took;    /* nanoseconds that the counting took */
} aq_shares;

enum aq_engine_state { AQ_ENGINE_NEW, AQ_ENGINE_RUNNING, AQ_ENGINE_STOPPED };

struct aq_engine {
    /* thread-safe by themselves */
    aq_counters counters;
    aq_events events;
    aq_reserve reserve;
    aq_pool pool;
    aq_budget budget;
    aq_wake wake;
    aq_ready ready;
    aq_slab credentials, endpoints, connections, streams, udps, listeners;
    _Atomic int state; /* aq_engine_state */
    _Atomic int stopping;
    _Atomic int closed;              /* only this struct is left */
    _Atomic uint32_t inside;         /* calls from outside that have not returned */
    _Atomic uint32_t report_streams; /* of so many ends of attached streams a second Python wants to hear */
    _Atomic int report_begins;       /* and whether of their beginnings */
    _Atomic uint32_t keepalive;      /* seconds, see aq_keepalive: of streams that begin from now on */
    _Atomic int pump_shares;         /* the pump may read UDP sockets with much traffic */
    _Atomic int32_t workers_free;    /* that may take over attached streams; raised by Python, lowered by the engine */
    _Atomic uint32_t accepted;       /* open sockets that came from public listeners */

    pthread_mutex_t command_mutex;
    pthread_cond_t command_done;
    aq_engine_command *commands_first, *commands_last; /* guarded by command_mutex, as are the next two */
    uint32_t commands_length;
    uint32_t commands_waiters; /* threads that wait until there are fewer */
    _Atomic int commands_filled;

    pthread_mutex_t wakes_mutex;
    aq_wake **wakes; /* idle wakes of workers; guarded by wakes_mutex, as are the next lines */
    size_t wakes_idle;
    aq_wake **wakes_all; /* every wake ever made: freed with the engine, so that a late signal always has a target */
    size_t wakes_length, wakes_all_capacity;

    aq_udp_receiver *pump_receiver; /* pump thread; NULL until it is needed */

    /* engine thread */
    aq_conn_host host;
    aq_udp_receiver *receiver;
    int epoll;
    int has_epoll_pwait2;
    unsigned said; /* what the log has a line of, see events.h */
    int faulty;    /* something in this turn would make the next one come at once, for nothing */
    aq_conn *touched_first, *touched_last;
    aq_stream *touched_streams, *touched_streams_last; /* each with a reference */
    aq_pause_list pauses[AQ_PAUSES];                   /* by stream->pause */
    aq_stream *ending_streams, *ending_streams_last;   /* their connection is over; each with a reference */
    aq_conn *ending_conns;                             /* over, and have streams that are to be cut off */
    aq_conn **heap;                                    /* by expiry */
    uint32_t heap_length, heap_capacity;
    aq_endpoint **all_endpoints;
    size_t endpoints_length, endpoints_capacity;
    int endpoints_dirty;               /* some may be over, or wait for room in their socket */
    aq_stream *dial_first, *dial_last; /* being dialled, by deadline */
    aq_stream *look_first, *look_last; /* whose sockets are looked at again, by look_at */
    aq_shares shares;
    struct {
        aq_id id;
        uint64_t until;
    } * resting; /* listeners and UDP sockets that left epoll for a while */
    size_t resting_length, resting_capacity;
    int *closing_fds; /* once what is collected for them has left */
    size_t closing_fds_length, closing_fds_capacity;
    uint64_t now;
    uint64_t read;             /* bytes of QUIC packets in the last turn */
    uint64_t idle;             /* nanoseconds slept, in all */
    uint64_t relieve_next;     /* nobody has to give up memory before */
    uint64_t relieve_said;     /* when the log last said that somebody has to; 0: never */
    uint64_t memory_next;      /* when the next two are looked at again */
    uint64_t memory_peak;      /* bytes, estimated: the most that was in use since memory was last given back */
    int memory_skipped;        /* a turn has passed without that look */
    uint64_t memory_fell_at;   /* since when it has been well below its peak; 0: it is not */
    uint64_t interactive_at;   /* when a stream last had something short to say */
    uint64_t reports_since;    /* when the second began in which these were reported */
    uint32_t reports;          /* ends of streams that Python has heard of in it */
    uint64_t reports_left_out; /* since it heard of the last one */
    int spin_credit;           /* > 0: looking on before a sleep pays at the moment */
    int sleeps_without_spin;   /* since it was last tried */
};

int64_t aq_engine_loop(aq_engine *engine); /* returns once stopping */
void aq_engine_host_functions(aq_conn_host *host);

/* [any] Hands a command over and waits for its result. */
int64_t aq_engine_ask(aq_engine *engine, aq_engine_command *command);
/* [any] Hands a copy over. 0, AQ_ERR_MEMORY or AQ_ERR_STOPPED; object and fd are released on failure. */
int64_t aq_engine_tell(aq_engine *engine, const aq_engine_command *command);
void aq_engine_fail_commands(aq_engine *engine); /* every waiting command gets AQ_ERR_STOPPED */

/* [any] Around every call from outside, so that freeing can wait for them. 0: stopping, do not go on. */
int aq_api_enter(aq_engine *engine);
int aq_api_enter_until_closed(aq_engine *engine); /* for the few calls that still have something to do while it stops */
void aq_api_leave(aq_engine *engine);
int aq_api_duplicate(int fd); /* close-on-exec; -1 with errno */

/* [any] A wake for a worker while it relays. NULL: no descriptors left. */
aq_wake *aq_engine_borrow_wake(aq_engine *engine);
void aq_engine_return_wake(aq_engine *engine, aq_wake *wake);

/* [engine] Between the files of this module. */
int aq_engine_make_room(void *array, size_t length, size_t *capacity,
                        size_t element); /* for one more: 0 or AQ_ERR_MEMORY */
void aq_engine_touch(void *engine, aq_conn *conn);
/* Whether to take short turns, at some cost for bulk, because somebody waits for short answers. */
int aq_engine_is_interactive(const aq_engine *engine);
void aq_engine_touch_stream(void *engine, aq_stream *stream);
int64_t aq_engine_adopt_endpoint(aq_engine *engine, aq_endpoint *endpoint);
/* [engine; or pump, for a local socket of which the engine has not heard yet] */
int64_t aq_engine_watch_udp(aq_engine *engine, aq_udp *udp);
/* [engine or pump] Asks Python about each new source; where it can't be asked, what waits is dropped. */
void aq_engine_ask_about(aq_engine *engine, aq_udp *udp, const aq_udp_batch *batch);
/* engine_rest.c */
void aq_engine_rest(aq_engine *engine, aq_id id, int fd, uint64_t duration);
void aq_engine_rest_stream(aq_engine *engine, aq_stream *stream); /* for as long as stream->pause says */
void aq_engine_run_pauses(aq_engine *engine, uint64_t until);     /* those that are over by then */
uint64_t aq_engine_next_pause(const aq_engine *engine);           /* when the next one is over; UINT64_MAX: none */
void aq_engine_run_resting(aq_engine *engine);
/* engine_memory.c */
void aq_engine_relieve(void *engine);               /* the budget is short: who holds the most gives something up */
void aq_engine_give_back_memory(aq_engine *engine); /* to the system, where much has become free */
uint64_t aq_engine_memory_timer(const aq_engine *engine); /* when to look again; UINT64_MAX: never */
/* tcp.c */
void aq_engine_attach(aq_engine *engine, aq_stream *stream, int fd); /* takes over fd, also on failure */
void aq_engine_serve(aq_engine *engine, aq_stream *stream);          /* moves what can be moved */
void aq_engine_dial(aq_engine *engine, aq_stream *stream);
void aq_engine_dial_timers(aq_engine *engine);
void aq_engine_run_looks(aq_engine *engine); /* at sockets whose far ends may have gone */
void aq_engine_stream_event(aq_engine *engine, aq_id id, uint32_t events);
int64_t aq_engine_listen_tcp(aq_engine *engine, aq_listener *listener, aq_credit *credit);
int64_t aq_engine_listen_again(aq_engine *engine, aq_listener *listener); /* after a rest */
void aq_engine_unlisten_tcp(aq_engine *engine, aq_listener *listener);
void aq_engine_accept(aq_engine *engine, aq_id id);
void aq_engine_take_back(aq_engine *engine, aq_stream *stream); /* resets one that was accepted and is attached */
/* share.c */
void aq_shares_look(aq_engine *engine);                          /* before accepting */
int aq_shares_allow(aq_engine *engine, const aq_credit *credit); /* whether this connection's port may accept one */
void aq_shares_enter(aq_engine *engine, aq_listener *listener);  /* in service */
void aq_shares_leave(aq_engine *engine, aq_listener *listener);
void aq_shares_short(aq_engine *engine);                                     /* there was no descriptor after all */
void aq_engine_count_end(aq_engine *engine, const aq_stream_result *result); /* [any] */
void aq_engine_run_commands(aq_engine *engine);

#endif

/* Events for Python: a growing queue with any number of producers and one consumer, which blocks in C. Its size is
 * limited by the number of objects that events are about. Events that a peer could repeat at will are the exception;
 * they are dropped when too many are waiting (aq_conn_post()). */
#ifndef AQ_EVENTS_H
#define AQ_EVENTS_H

#include "aq.h"
#include "core/counters.h"

#include <pthread.h>
#include <stdatomic.h>

/* Maximum backlog of events. Beyond it, events that a peer can repeat at will are dropped, and new clients are closed
 * after their handshake. */
#define AQ_EVENTS_WAITING 4096

typedef struct aq_events {
    pthread_mutex_t mutex;
    pthread_cond_t filled; /* CLOCK_MONOTONIC */
    aq_event *ring;        /* guarded by mutex, as is everything below */
    uint32_t capacity;     /* power of two */
    uint32_t first, length;
    int waiting; /* 1: the consumer is blocked */
    int woken;   /* 1: the consumer's next wait ends, even without an event */
    int closed;
    aq_counters *counters;           /* immutable */
    _Atomic int associations_wanted; /* 1: ends of associations are posted; set by any thread */
} aq_events;

int aq_events_init(aq_events *events, aq_counters *counters); /* returns 0 or AQ_ERR_MEMORY */
void aq_events_destroy(aq_events *events);
void aq_events_post(aq_events *events, const aq_event *event); /* [any] copies */
uint32_t aq_events_backlog(aq_events *events);                 /* [any] returns the number of waiting events */
/* [engine] Posts a log line at level WARNING: `what` and the text of an errno. Only once for each bit of *logged,
 * because the cause is unlikely to change while this process runs. */
enum { AQ_LOGGED_WAIT = 1, AQ_LOGGED_RECEIVE = 2, AQ_LOGGED_SEND = 4 };
void aq_events_log_once(aq_events *events, unsigned *logged, unsigned bit, const char *what, int error);
void aq_events_wake_consumer(aq_events *events); /* [any] ends the consumer's current wait, or else its next one */
void aq_events_close(aq_events *events);         /* [any] the consumer gets the waiting events, then AQ_ERR_STOPPED */
/* [events] Takes up to `max` events, waiting up to timeout_ms for the first; negative: without a limit. Returns their
 * number, 0 after the timeout or a wake-up, or AQ_ERR_STOPPED. */
int64_t aq_events_take(aq_events *events, aq_event *out, uint32_t max, int32_t timeout_ms);

#endif

/* Events for Python: a growing queue, any number of producers, one consumer that blocks in C. It can't grow without end
 * because what it holds is bounded by what exists; the only events that a peer could repeat at will are dropped when
 * too many wait: see aq_conn_post(). */
#ifndef AQ_EVENTS_H
#define AQ_EVENTS_H

#include "aq.h"
#include "counters.h"

#include <pthread.h>

typedef struct aq_events {
    pthread_mutex_t mutex;
    pthread_cond_t filled; /* CLOCK_MONOTONIC */
    aq_event *ring;        /* everything below: guarded by mutex */
    uint32_t capacity;     /* power of two */
    uint32_t first, length;
    int waiting; /* the consumer is blocked */
    int closed;
    aq_counters *counters; /* immutable */
} aq_events;

int aq_events_init(aq_events *events, aq_counters *counters); /* 0 or AQ_ERR_MEMORY */
void aq_events_destroy(aq_events *events);
void aq_events_post(aq_events *events, const aq_event *event); /* [any] copies */
uint32_t aq_events_backlog(aq_events *events);                 /* [any] how many wait */
/* [engine] A line at level warning: `what`, and the words for an errno. Once for each bit of *said, for it is about
 * what will hardly change as long as this process lives. */
enum { AQ_SAID_WAIT = 1, AQ_SAID_RECEIVE = 2, AQ_SAID_SEND = 4 };
void aq_events_say_once(aq_events *events, unsigned *said, unsigned bit, const char *what, int error);
void aq_events_close(aq_events *events); /* [any] the consumer gets what is there, then AQ_ERR_STOPPED */
int64_t aq_events_take(aq_events *events, aq_event *out, uint32_t most, int32_t timeout_ms); /* [events] */

#endif

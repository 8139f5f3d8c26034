/* "Look at this": objects that other threads hand to the engine thread. A list with many producers and one consumer; an
 * object is in it at most once, whatever it is signalled. Whoever signals holds a reference to the object; the list
 * takes one of its own.
 */
#ifndef AQ_READY_H
#define AQ_READY_H

#include "aq.h"
#include "wake.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct aq_ready_node {
    struct aq_ready_node *next; /* guarded by the list's mutex */
    _Atomic int queued;         /* 1: in the list */
    int kind;                   /* what holds this node; immutable */
} aq_ready_node;

enum aq_ready_kind { AQ_READY_STREAM, AQ_READY_FLOWS, AQ_READY_CREDIT };

typedef struct aq_ready {
    pthread_mutex_t mutex;
    aq_ready_node *first, *last; /* guarded by mutex */
    _Atomic int filled;          /* whether first is set, for a look without the mutex */
    aq_wake *wake;               /* immutable */
} aq_ready;

void aq_ready_init(aq_ready *ready, aq_wake *wake);
void aq_ready_destroy(aq_ready *ready);

/* [any] Returns 1 when the node is now in the list by this call: the caller then gives the list a reference. The
 * reference must be taken before the call and given back when it returns 0. */
int aq_ready_add(aq_ready *ready, aq_ready_node *node);

/* [engine] Takes the whole list, linked by next. Before it looks at an object, the engine clears `queued` (seq_cst), so
 * that a signal that comes later queues it again. */
aq_ready_node *aq_ready_take(aq_ready *ready);

#endif

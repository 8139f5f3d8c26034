/* A list of objects that need the engine thread's attention, with many producers and one consumer. An object is in it
 * at most once, however often it is signalled. A thread that signals an object holds a reference to it; the list holds
 * one of its own.
 */
#ifndef AQ_READY_H
#define AQ_READY_H

#include "aq.h"
#include "core/list.h"
#include "core/wake.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct aq_ready_node {
    struct aq_ready_node *next; /* guarded by the list's mutex; the engine's once taken */
    _Atomic int queued;         /* 1: in the list */
    int kind;                   /* enum aq_ready_kind: the object that contains this node; immutable */
} aq_ready_node;

enum aq_ready_kind { AQ_READY_STREAM, AQ_READY_ASSOCIATIONS, AQ_READY_CREDIT, AQ_READY_BUCKET };

typedef struct aq_ready {
    pthread_mutex_t mutex;
    AQ_LIST(aq_ready_node) nodes; /* a queue; guarded by mutex */
    _Atomic int filled;           /* 1: not empty; for a check without the mutex */
    aq_wake *wake;                /* immutable */
} aq_ready;

void aq_ready_init(aq_ready *ready, aq_wake *wake);
void aq_ready_destroy(aq_ready *ready);

/* [any] Adds the node unless it is in the list. The caller takes a reference for the list before the call. Returns 1 if
 * the list now owns that reference, or 0 if the node was in the list already and the caller must drop the reference. */
int aq_ready_add(aq_ready *ready, aq_ready_node *node);

/* [engine] Takes the whole list, linked by `next`. The engine clears `queued` (seq_cst) before it handles an object, so
 * that later signals add it again. */
aq_ready_node *aq_ready_take(aq_ready *ready);

#endif

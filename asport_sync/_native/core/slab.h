/* A table of objects that other code names by an aq_id: index, generation and kind in one positive number.
 *
 * The table holds pointers and reference counts, not the objects. Any thread; guarded by its mutex, which is held only
 * for a few instructions. The thread that drops the last reference destroys the object, after it releases the mutex.
 */
#ifndef AQ_SLAB_H
#define AQ_SLAB_H

#include "aq.h"

#include <pthread.h>

/* Kind of object, part of every id, so that a stream's id is never mistaken for a connection's. */
enum aq_kind {
    AQ_KIND_CREDENTIALS = 1,
    AQ_KIND_ENDPOINT,
    AQ_KIND_CONNECTION,
    AQ_KIND_STREAM,
    AQ_KIND_UDP,
    AQ_KIND_LISTENER,
    AQ_KIND_BUCKET,
    AQ_KIND_GROUP
};

/* Returns the kind of an id. 64-bit values that are no ids, such as user-space pointers, have kind 0. */
static inline int aq_id_kind(uint64_t id)
{
    return (int)(id >> 56);
}

typedef void (*aq_destroy)(void *object);

typedef struct aq_slab_slot {
    void *object;        /* NULL: free */
    uint32_t generation; /* incremented each time the slot is freed; never 0 */
    uint32_t references;
    uint32_t next_free;
    uint8_t named; /* 1: the id is valid; references may outlive it */
} aq_slab_slot;

typedef struct aq_slab {
    pthread_mutex_t mutex;
    aq_slab_slot *slots;            /* guarded by mutex, as are the next three lines */
    uint32_t length, capacity, max; /* slots ever used, slots allocated, maximum (immutable) */
    uint32_t first_free;            /* UINT32_MAX: none */
    uint32_t named;                 /* number of valid ids */
    enum aq_kind kind;              /* immutable */
    aq_destroy destroy;             /* immutable */
} aq_slab;

/* Creates a table for up to `max` objects (at most 2^24 - 1) at a time. Returns 0 or AQ_ERR_MEMORY. */
int aq_slab_init(aq_slab *slab, enum aq_kind kind, uint32_t max, aq_destroy destroy);
void aq_slab_destroy(aq_slab *slab); /* destroys the remaining objects, even if references exist */

/* Returns a new id for the object, or AQ_ERR_LIMIT or AQ_ERR_MEMORY. The id holds one reference. */
aq_id aq_slab_add(aq_slab *slab, void *object);
void *aq_slab_get(aq_slab *slab, aq_id id);  /* takes a reference; NULL if the id is stale */
void aq_slab_put(aq_slab *slab, aq_id id);   /* drops a reference from aq_slab_get(), even after aq_slab_remove() */
int aq_slab_remove(aq_slab *slab, aq_id id); /* invalidates the id and drops its reference: 0, or AQ_ERR_GONE */
uint32_t aq_slab_count(aq_slab *slab);       /* returns the number of valid ids */

/* Calls visit(object, id, context) for every object with a valid id, holding a reference to it but not the mutex. */
void aq_slab_each(aq_slab *slab, void (*visit)(void *object, aq_id id, void *context), void *context);

#endif

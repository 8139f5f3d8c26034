/* A table of objects that are named from outside by an aq_id: index, generation and kind in one positive number.
 *
 * The table holds pointers and reference counts, not the objects. Any thread; guarded by its mutex, which is held for a
 * few instructions only. An object is destroyed by whoever drops the last reference, after the mutex is released.
 */
#ifndef AQ_SLAB_H
#define AQ_SLAB_H

#include "aq.h"

#include <pthread.h>

/* Kind of object, part of every id, so that a stream's id is never taken for a connection's. */
enum aq_kind {
    AQ_KIND_CREDENTIALS = 1,
    AQ_KIND_ENDPOINT,
    AQ_KIND_CONNECTION,
    AQ_KIND_STREAM,
    AQ_KIND_UDP,
    AQ_KIND_LISTENER
};

/* Anything else that fits 64 bits and is no id, such as a pointer of user space, has kind 0. */
static inline int aq_id_kind(uint64_t id)
{
    return (int)(id >> 56);
}

typedef void (*aq_destroy)(void *object);

typedef struct aq_slab_slot {
    void *object;        /* NULL: free */
    uint32_t generation; /* counts the slot's owners, never 0 */
    uint32_t references;
    uint32_t next_free;
    uint8_t named; /* the id is still valid; references may outlive the name */
} aq_slab_slot;

typedef struct aq_slab {
    pthread_mutex_t mutex;
    aq_slab_slot *slots; /* everything here: guarded by mutex */
    uint32_t length, capacity, most;
    uint32_t first_free; /* UINT32_MAX: none */
    uint32_t named;      /* how many ids are valid */
    enum aq_kind kind;   /* immutable */
    aq_destroy destroy;  /* immutable */
} aq_slab;

/* most: how many objects at once (up to 2^24 - 1). Returns 0 or AQ_ERR_MEMORY. */
int aq_slab_init(aq_slab *slab, enum aq_kind kind, uint32_t most, aq_destroy destroy);
void aq_slab_destroy(aq_slab *slab); /* destroys what is left, whatever its references */

aq_id aq_slab_add(aq_slab *slab,
                  void *object);             /* names it; the name holds one reference. AQ_ERR_LIMIT / AQ_ERR_MEMORY */
void *aq_slab_get(aq_slab *slab, aq_id id);  /* one more reference, or NULL when the id is stale */
void aq_slab_put(aq_slab *slab, aq_id id);   /* gives back a reference from aq_slab_get, even when the name is gone */
int aq_slab_remove(aq_slab *slab, aq_id id); /* ends the name and its reference: 0, or AQ_ERR_GONE */
uint32_t aq_slab_count(aq_slab *slab);       /* how many names are valid */

/* Calls visit(object, context) for every named object with a reference held and the mutex not held. */
void aq_slab_each(aq_slab *slab, void (*visit)(void *object, aq_id id, void *context), void *context);

#endif

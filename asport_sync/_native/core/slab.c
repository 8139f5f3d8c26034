#include "core/slab.h"

#include <assert.h>
#include <stdlib.h>

/* Layout of an id, from the highest bit: 2 zero bits (so it is positive), 6 bits kind, 32 bits generation, 24 bits
 * index. */
#define INDEX_BITS 24
#define GENERATION_BITS 32
#define KIND_BITS 6
#define INDEX_MASK ((UINT32_C(1) << INDEX_BITS) - 1)
#define NO_SLOT UINT32_MAX
#define FIRST_CAPACITY 16 /* initial number of slots; doubled as needed */

static aq_id make_id(enum aq_kind kind, uint32_t generation, uint32_t index)
{
    return (aq_id)(((uint64_t)kind << (GENERATION_BITS + INDEX_BITS)) | ((uint64_t)generation << INDEX_BITS) | index);
}

/* Returns the slot of an id that is valid or still has references, else NULL. Mutex held. */
static aq_slab_slot *find(const aq_slab *slab, aq_id id)
{
    uint32_t index = (uint32_t)id & INDEX_MASK;
    aq_slab_slot *slot;

    if (id <= 0 || index >= slab->length)
        return NULL;
    slot = &slab->slots[index];
    if (slot->object == NULL || id != make_id(slab->kind, slot->generation, index))
        return NULL;
    return slot;
}

/* Drops one reference. Returns the object if it was the last one; the caller destroys it after releasing the mutex.
 * Mutex held. */
static void *drop(aq_slab *slab, aq_slab_slot *slot)
{
    void *object;

    assert(slot->references > 0);
    if (--slot->references > 0)
        return NULL;
    object = slot->object;
    slot->object = NULL;
    if (++slot->generation == 0)
        slot->generation = 1;
    slot->next_free = slab->first_free;
    slab->first_free = (uint32_t)(slot - slab->slots);
    return object;
}

int aq_slab_init(aq_slab *slab, enum aq_kind kind, uint32_t max, aq_destroy destroy)
{
    assert((uint32_t)kind < UINT32_C(1) << KIND_BITS && max <= INDEX_MASK);
    slab->slots = calloc(FIRST_CAPACITY, sizeof(*slab->slots));
    if (slab->slots == NULL)
        return AQ_ERR_MEMORY;
    if (pthread_mutex_init(&slab->mutex, NULL) != 0) {
        free(slab->slots);
        return AQ_ERR_MEMORY;
    }
    slab->length = 0;
    slab->capacity = FIRST_CAPACITY;
    slab->max = max;
    slab->first_free = NO_SLOT;
    slab->named = 0;
    slab->kind = kind;
    slab->destroy = destroy;
    return 0;
}

void aq_slab_destroy(aq_slab *slab)
{
    uint32_t index;

    for (index = 0; index < slab->length; index++) {
        if (slab->slots[index].object != NULL)
            slab->destroy(slab->slots[index].object);
    }
    free(slab->slots);
    slab->slots = NULL;
    slab->length = slab->capacity = 0;
    pthread_mutex_destroy(&slab->mutex);
}

/* Returns the index of a free slot, or an error. Mutex held. */
static int64_t free_slot(aq_slab *slab)
{
    uint32_t index = slab->first_free;

    if (index != NO_SLOT) {
        slab->first_free = slab->slots[index].next_free;
        return index;
    }
    if (slab->length >= slab->max)
        return AQ_ERR_LIMIT;
    if (slab->length == slab->capacity) {
        aq_slab_slot *slots = realloc(slab->slots, (size_t)slab->capacity * 2 * sizeof(*slots));

        if (slots == NULL)
            return AQ_ERR_MEMORY;
        slab->slots = slots;
        slab->capacity *= 2;
    }
    index = slab->length++;
    slab->slots[index].generation = 1;
    return index;
}

aq_id aq_slab_add(aq_slab *slab, void *object)
{
    int64_t result;

    assert(object != NULL);
    pthread_mutex_lock(&slab->mutex);
    result = free_slot(slab);
    if (result >= 0) {
        aq_slab_slot *slot = &slab->slots[result];

        slot->object = object;
        slot->references = 1;
        slot->named = 1;
        slab->named++;
        result = make_id(slab->kind, slot->generation, (uint32_t)result);
    }
    pthread_mutex_unlock(&slab->mutex);
    return result;
}

void *aq_slab_get(aq_slab *slab, aq_id id)
{
    aq_slab_slot *slot;
    void *object = NULL;

    pthread_mutex_lock(&slab->mutex);
    slot = find(slab, id);
    if (slot != NULL && slot->named) {
        slot->references++;
        object = slot->object;
    }
    pthread_mutex_unlock(&slab->mutex);
    return object;
}

void aq_slab_put(aq_slab *slab, aq_id id)
{
    aq_slab_slot *slot;
    void *last = NULL;

    pthread_mutex_lock(&slab->mutex);
    slot = find(slab, id);
    assert(slot != NULL); /* the caller's reference keeps the slot in use */
    if (slot != NULL)
        last = drop(slab, slot);
    pthread_mutex_unlock(&slab->mutex);
    if (last != NULL)
        slab->destroy(last);
}

int aq_slab_remove(aq_slab *slab, aq_id id)
{
    aq_slab_slot *slot;
    void *last = NULL;
    int result = AQ_ERR_GONE;

    pthread_mutex_lock(&slab->mutex);
    slot = find(slab, id);
    if (slot != NULL && slot->named) {
        slot->named = 0;
        slab->named--;
        last = drop(slab, slot);
        result = 0;
    }
    pthread_mutex_unlock(&slab->mutex);
    if (last != NULL)
        slab->destroy(last);
    return result;
}

uint32_t aq_slab_count(aq_slab *slab)
{
    uint32_t named;

    pthread_mutex_lock(&slab->mutex);
    named = slab->named;
    pthread_mutex_unlock(&slab->mutex);
    return named;
}

/* Returns the first object with a valid id at or after *index, with a reference taken, and moves *index behind it; NULL
 * at the end. */
static void *next_named(aq_slab *slab, uint32_t *index, aq_id *id)
{
    void *object = NULL;

    pthread_mutex_lock(&slab->mutex);
    while (object == NULL && *index < slab->length) {
        aq_slab_slot *slot = &slab->slots[*index];

        if (slot->object != NULL && slot->named) {
            slot->references++;
            object = slot->object;
            *id = make_id(slab->kind, slot->generation, *index);
        }
        (*index)++;
    }
    pthread_mutex_unlock(&slab->mutex);
    return object;
}

void aq_slab_each(aq_slab *slab, void (*visit)(void *object, aq_id id, void *context), void *context)
{
    uint32_t index = 0;
    aq_id id = 0;
    void *object;

    while ((object = next_named(slab, &index, &id)) != NULL) {
        visit(object, id, context);
        aq_slab_put(slab, id);
    }
}

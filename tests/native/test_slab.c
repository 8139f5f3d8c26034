/* The table of ids, alone and under many threads. */
#include "core/slab.h"

#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#define WATCHDOG_SECONDS 90

struct thing {
    aq_slab *slab;
    _Atomic int *destroyed;
    uint32_t mark;
};

#define ALIVE 0x600dbeefU

static void destroy_thing(void *object)
{
    struct thing *thing = object;

    CHECK_INT(thing->mark, ALIVE);
    thing->mark = 0;
    if (thing->slab != NULL) /* hangs if the mutex were held */
        (void)aq_slab_count(thing->slab);
    atomic_fetch_add(thing->destroyed, 1);
    free(thing);
}

static struct thing *new_thing(aq_slab *slab, _Atomic int *destroyed)
{
    struct thing *thing = malloc(sizeof(*thing));

    CHECK(thing != NULL);
    thing->slab = slab;
    thing->destroyed = destroyed;
    thing->mark = ALIVE;
    return thing;
}

/* ---- one thread ---------------------------------------------------------------------------------------------- */

static void test_id_layout(void)
{
    static const enum aq_kind kinds[] = {AQ_KIND_CREDENTIALS, AQ_KIND_ENDPOINT, AQ_KIND_CONNECTION, AQ_KIND_STREAM,
                                         AQ_KIND_UDP};
    _Atomic int destroyed = 0;
    size_t i;

    for (i = 0; i < AQ_ARRAY_LENGTH(kinds); i++) {
        aq_slab slab;
        aq_id first, second;

        CHECK_INT(aq_slab_init(&slab, kinds[i], 10, destroy_thing), 0);
        first = aq_slab_add(&slab, new_thing(&slab, &destroyed));
        second = aq_slab_add(&slab, new_thing(&slab, &destroyed));
        CHECK(first > 0 && second > 0);
        CHECK_INT(first >> 56, kinds[i]);
        CHECK_INT(first >> 24 & 0xffffffff, 1);
        CHECK_INT(first & 0xffffff, 0);
        CHECK_INT(second & 0xffffff, 1);

        /* the place is used again under another generation */
        CHECK_INT(aq_slab_remove(&slab, first), 0);
        first = aq_slab_add(&slab, new_thing(&slab, &destroyed));
        CHECK_INT(first >> 24 & 0xffffffff, 2);
        CHECK_INT(first & 0xffffff, 0);

        /* the last generation is followed by 1: it is never 0 */
        CHECK_INT(aq_slab_remove(&slab, first), 0);
        slab.slots[0].generation = UINT32_MAX;
        first = aq_slab_add(&slab, new_thing(&slab, &destroyed));
        CHECK(first > 0);
        CHECK_INT(first >> 24 & 0xffffffff, UINT32_MAX);
        CHECK_INT(first >> 56, kinds[i]);
        CHECK_INT(aq_slab_remove(&slab, first), 0);
        first = aq_slab_add(&slab, new_thing(&slab, &destroyed));
        CHECK_INT(first >> 24 & 0xffffffff, 1);
        aq_slab_remove(&slab, first);
        aq_slab_remove(&slab, second);
        CHECK_INT(aq_slab_count(&slab), 0);
        aq_slab_destroy(&slab);
    }
    CHECK_INT(destroyed, 5 * AQ_ARRAY_LENGTH(kinds));
}

static void test_stale_and_strange_ids(void)
{
    _Atomic int destroyed = 0;
    struct thing *thing;
    aq_slab slab;
    aq_id id, next;
    uint64_t state = 5;
    int i;

    CHECK_INT(aq_slab_init(&slab, AQ_KIND_STREAM, 10, destroy_thing), 0);
    CHECK(aq_slab_get(&slab, (aq_id)AQ_KIND_STREAM << 56) == NULL); /* empty */
    thing = new_thing(&slab, &destroyed);
    id = aq_slab_add(&slab, thing);
    CHECK(aq_slab_get(&slab, id) == thing);
    aq_slab_put(&slab, id);
    CHECK_INT(destroyed, 0);

    CHECK(aq_slab_get(&slab, 0) == NULL);
    CHECK(aq_slab_get(&slab, -1) == NULL);
    CHECK(aq_slab_get(&slab, INT64_MIN) == NULL);
    CHECK(aq_slab_get(&slab, INT64_MAX) == NULL);
    CHECK(aq_slab_get(&slab, id + 1) == NULL);                  /* index */
    CHECK(aq_slab_get(&slab, id + (1 << 24)) == NULL);          /* generation */
    CHECK(aq_slab_get(&slab, id - (INT64_C(1) << 56)) == NULL); /* kind */
    CHECK(aq_slab_get(&slab, id | INT64_C(1) << 62) == NULL);   /* bits without a meaning */
    CHECK(aq_slab_get(&slab, (aq_id)(id | INT64_MIN)) == NULL); /* sign */
    CHECK_INT(aq_slab_remove(&slab, id + 1), AQ_ERR_GONE);
    for (i = 0; i < 10000; i++) {
        aq_id strange = (aq_id)check_random(&state);

        CHECK(strange == id || aq_slab_get(&slab, strange) == NULL);
    }

    CHECK_INT(aq_slab_remove(&slab, id), 0);
    CHECK_INT(destroyed, 1);
    CHECK(aq_slab_get(&slab, id) == NULL);
    CHECK_INT(aq_slab_remove(&slab, id), AQ_ERR_GONE);
    next = aq_slab_add(&slab, new_thing(&slab, &destroyed));
    CHECK(next != id);
    CHECK(aq_slab_get(&slab, id) == NULL);
    CHECK_INT(aq_slab_remove(&slab, id), AQ_ERR_GONE);
    CHECK_INT(aq_slab_remove(&slab, next), 0);
    CHECK_INT(destroyed, 2);
    aq_slab_destroy(&slab);
}

static void test_reference_outlives_name(void)
{
    _Atomic int destroyed = 0;
    struct thing *thing;
    aq_slab slab;
    aq_id id, other;

    CHECK_INT(aq_slab_init(&slab, AQ_KIND_CONNECTION, 2, destroy_thing), 0);
    thing = new_thing(&slab, &destroyed);
    id = aq_slab_add(&slab, thing);
    CHECK(aq_slab_get(&slab, id) == thing);
    CHECK(aq_slab_get(&slab, id) == thing);
    CHECK_INT(aq_slab_count(&slab), 1);
    CHECK_INT(aq_slab_remove(&slab, id), 0);
    CHECK_INT(aq_slab_count(&slab), 0);
    CHECK_INT(destroyed, 0);
    CHECK_INT(thing->mark, ALIVE);
    CHECK(aq_slab_get(&slab, id) == NULL); /* no new users */
    CHECK_INT(aq_slab_remove(&slab, id), AQ_ERR_GONE);

    /* its place is taken until then */
    other = aq_slab_add(&slab, new_thing(&slab, &destroyed));
    CHECK(other > 0);
    CHECK((other & 0xffffff) != (id & 0xffffff));

    aq_slab_put(&slab, id);
    CHECK_INT(destroyed, 0);
    aq_slab_put(&slab, id);
    CHECK_INT(destroyed, 1);
    CHECK_INT(aq_slab_remove(&slab, other), 0);
    CHECK_INT(destroyed, 2);
    aq_slab_destroy(&slab);
}

static void test_limit(void)
{
    enum { MAX_OBJECTS = 1000 };
    _Atomic int destroyed = 0;
    struct thing *surplus;
    aq_slab slab;
    aq_id ids[MAX_OBJECTS], id;
    int i;

    CHECK_INT(aq_slab_init(&slab, AQ_KIND_STREAM, MAX_OBJECTS, destroy_thing), 0);
    for (i = 0; i < MAX_OBJECTS; i++) {
        ids[i] = aq_slab_add(&slab, new_thing(&slab, &destroyed));
        CHECK(ids[i] > 0);
    }
    CHECK_INT(aq_slab_count(&slab), MAX_OBJECTS);
    surplus = new_thing(&slab, &destroyed);
    CHECK_INT(aq_slab_add(&slab, surplus), AQ_ERR_LIMIT);
    CHECK_INT(surplus->mark, ALIVE); /* still the caller's */
    CHECK_INT(aq_slab_remove(&slab, ids[500]), 0);
    id = aq_slab_add(&slab, surplus);
    CHECK(id > 0);
    CHECK(aq_slab_get(&slab, id) == surplus);
    CHECK_INT(destroyed, 1);

    /* what is left goes with the table, references or not */
    for (i = 0; i < MAX_OBJECTS; i++)
        ((struct thing *)slab.slots[i].object)->slab = NULL;
    aq_slab_destroy(&slab);
    CHECK_INT(destroyed, MAX_OBJECTS + 1);
}

struct visits {
    aq_slab *slab;
    _Atomic int *destroyed;
    int count;
    int remove_all, add;
    aq_id ids[64];
};

static void visit(void *object, aq_id id, void *context)
{
    struct visits *visits = context;
    struct thing *thing = object;

    CHECK_INT(thing->mark, ALIVE);
    visits->ids[visits->count++] = id;
    if (visits->remove_all) {
        int before = atomic_load(visits->destroyed);

        CHECK_INT(aq_slab_remove(visits->slab, id), 0);
        CHECK_INT(atomic_load(visits->destroyed), before); /* the visit holds a reference */
        CHECK_INT(thing->mark, ALIVE);
    }
    if (visits->add && visits->count < 20)
        CHECK(aq_slab_add(visits->slab, new_thing(NULL, visits->destroyed)) > 0);
}

static void test_each(void)
{
    _Atomic int destroyed = 0;
    aq_slab slab;
    struct visits visits = {.slab = &slab, .destroyed = &destroyed};
    aq_id ids[5];
    int i;

    CHECK_INT(aq_slab_init(&slab, AQ_KIND_UDP, 100, destroy_thing), 0);
    aq_slab_each(&slab, visit, &visits);
    CHECK_INT(visits.count, 0);
    for (i = 0; i < 5; i++)
        ids[i] = aq_slab_add(&slab, new_thing(NULL, &destroyed));
    CHECK(aq_slab_get(&slab, ids[1]) != NULL);
    CHECK_INT(aq_slab_remove(&slab, ids[1]), 0); /* nameless: not visited, though still referred to */
    CHECK_INT(aq_slab_remove(&slab, ids[3]), 0);
    aq_slab_each(&slab, visit, &visits);
    CHECK_INT(visits.count, 3);
    CHECK_INT(visits.ids[0], ids[0]);
    CHECK_INT(visits.ids[1], ids[2]);
    CHECK_INT(visits.ids[2], ids[4]);
    aq_slab_put(&slab, ids[1]);
    CHECK_INT(destroyed, 2);

    visits.count = 0;
    visits.remove_all = 1;
    aq_slab_each(&slab, visit, &visits);
    CHECK_INT(visits.count, 3);
    CHECK_INT(destroyed, 5);
    CHECK_INT(aq_slab_count(&slab), 0);

    /* growing the table under a visit */
    visits.count = 0;
    visits.remove_all = 0;
    visits.add = 1;
    CHECK(aq_slab_add(&slab, new_thing(NULL, &destroyed)) > 0);
    aq_slab_each(&slab, visit, &visits);
    CHECK(visits.count >= 1);
    CHECK(aq_slab_count(&slab) >= 2);
    aq_slab_destroy(&slab);
}

/* ---- many threads -------------------------------------------------------------------------------------------- */

#define THREADS 4
#define SHARED 8 /* few ids for many threads: they meet */

static aq_slab shared;
static _Atomic int64_t shared_ids[SHARED];
static _Atomic int shared_added, shared_destroyed;

static void look(void *object, aq_id id, void *context)
{
    const struct thing *thing = object;

    CHECK(id > 0);
    CHECK_INT(thing->mark, ALIVE);
    (*(int *)context)++;
}

static void *meddle(void *argument)
{
    uint64_t state = (uint64_t)(uintptr_t)argument;
    int i;

    for (i = 0; i < 50000; i++) {
        _Atomic int64_t *place = &shared_ids[check_below(&state, SHARED)];
        aq_id id = atomic_load(place);
        struct thing *thing;
        int seen = 0;

        switch (check_below(&state, 8)) {
        case 0: /* another takes the name's place */
            thing = new_thing(&shared, &shared_destroyed);
            id = aq_slab_add(&shared, thing);
            CHECK(id > 0);
            atomic_fetch_add(&shared_added, 1);
            id = atomic_exchange(place, id);
            if (id != 0)
                (void)aq_slab_remove(&shared, id); /* another thread may have been first */
            break;
        case 1: /* the name ends */
            (void)aq_slab_remove(&shared, id);
            break;
        case 2:
            aq_slab_each(&shared, look, &seen);
            CHECK(seen <= SHARED + THREADS);
            break;
        default: /* a user */
            thing = aq_slab_get(&shared, id);
            if (thing == NULL)
                break;
            CHECK_INT(thing->mark, ALIVE);
            if (check_below(&state, 4) == 0)
                sched_yield();
            CHECK_INT(thing->mark, ALIVE);
            aq_slab_put(&shared, id);
            break;
        }
    }
    return NULL;
}

static void test_threads(void)
{
    pthread_t threads[THREADS];
    int i;

    CHECK_INT(aq_slab_init(&shared, AQ_KIND_STREAM, 1000, destroy_thing), 0);
    for (i = 0; i < THREADS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, meddle, (void *)(uintptr_t)(i + 1)), 0);
    for (i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    for (i = 0; i < SHARED; i++)
        (void)aq_slab_remove(&shared, atomic_load(&shared_ids[i]));
    CHECK_INT(aq_slab_count(&shared), 0);
    CHECK_INT(atomic_load(&shared_destroyed), atomic_load(&shared_added));
    CHECK(atomic_load(&shared_added) > 1000);
    aq_slab_destroy(&shared);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_id_layout();
    test_stale_and_strange_ids();
    test_reference_outlives_name();
    test_limit();
    test_each();
    test_threads();
    return check_done();
}

/* The list of objects that the engine should look at: each is in it at most once, and no signal is lost. */
#include "core/ready.h"

#include "check.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>

#define WATCHDOG_SECONDS 90
#define NODES 16
#define PRODUCERS 4
#ifdef __SANITIZE_THREAD__
#define EACH 30000U /* signals of one producer */
#else
#define EACH 300000U
#endif

typedef struct {
    aq_ready_node node;         /* first */
    _Atomic uint64_t published; /* work left for the consumer */
    uint64_t seen;              /* the rest is the consumer's: how much of it it found */
    uint64_t taken_at;          /* number of the list that it was in last */
} object;

static object objects[NODES];
static aq_ready ready;
static aq_wake wake;

static void begin(void)
{
    CHECK_INT(aq_wake_init(&wake), 0);
    aq_ready_init(&ready, &wake);
    memset(objects, 0, sizeof(objects));
    CHECK(aq_ready_take(&ready) == NULL);
}

static void end(void)
{
    CHECK(aq_ready_take(&ready) == NULL);
    CHECK_INT(atomic_load(&ready.filled), 0);
    aq_ready_destroy(&ready);
    aq_wake_destroy(&wake);
}

static int woken(void)
{
    struct pollfd item = {.fd = wake.fd, .events = POLLIN};

    return poll(&item, 1, 0) == 1;
}

/* ---- one thread ------------------------------------------------------------------------------------------------ */

static void test_one_thread(void)
{
    aq_ready_node *list;
    size_t i;

    begin();
    /* in the order of the first signal; further ones change nothing */
    CHECK_INT(aq_ready_add(&ready, &objects[2].node), 1);
    CHECK_INT(atomic_load(&ready.filled), 1);
    CHECK_INT(aq_ready_add(&ready, &objects[0].node), 1);
    CHECK_INT(aq_ready_add(&ready, &objects[2].node), 0);
    CHECK_INT(aq_ready_add(&ready, &objects[1].node), 1);
    CHECK_INT(aq_ready_add(&ready, &objects[0].node), 0);
    list = aq_ready_take(&ready);
    CHECK(list == &objects[2].node);
    CHECK(list->next == &objects[0].node);
    CHECK(list->next->next == &objects[1].node);
    CHECK(list->next->next->next == NULL);
    CHECK_INT(atomic_load(&ready.filled), 0);
    CHECK(aq_ready_take(&ready) == NULL);

    /* taken, not looked at yet: a signal is covered by the look to come */
    CHECK_INT(aq_ready_add(&ready, &objects[1].node), 0);
    CHECK(aq_ready_take(&ready) == NULL);

    /* cleared: a signal queues it again, alone */
    atomic_store(&objects[1].node.queued, 0);
    CHECK_INT(aq_ready_add(&ready, &objects[1].node), 1);
    CHECK_INT(aq_ready_add(&ready, &objects[1].node), 0);
    CHECK_INT(aq_ready_add(&ready, &objects[2].node), 0);
    list = aq_ready_take(&ready);
    CHECK(list == &objects[1].node);
    CHECK(list->next == NULL);

    /* all of them, over and over */
    for (i = 0; i < NODES; i++)
        atomic_store(&objects[i].node.queued, 0);
    for (i = 0; i < 100U * NODES; i++) {
        CHECK_INT(aq_ready_add(&ready, &objects[i % NODES].node), 1);
        if (i % 3 == 2 || i % NODES == NODES - 1) {
            for (list = aq_ready_take(&ready); list != NULL; list = list->next)
                atomic_store(&list->queued, 0);
        }
    }
    end();
}

/* A signal that queues wakes a consumer that sleeps; one that changes nothing does not. */
static void test_wakes(void)
{
    begin();
    CHECK_INT(aq_ready_add(&ready, &objects[0].node), 1);
    CHECK(!woken()); /* nobody sleeps */
    aq_wake_prepare(&wake);
    CHECK_INT(aq_ready_add(&ready, &objects[0].node), 0);
    CHECK(!woken());
    CHECK_INT(aq_ready_add(&ready, &objects[1].node), 1);
    CHECK(woken());
    aq_wake_cancel(&wake);
    CHECK(!woken());
    CHECK(aq_ready_take(&ready) == &objects[0].node);
    end();
}

/* ---- many producers -------------------------------------------------------------------------------------------- */

static _Atomic uint64_t queued_by_producers; /* how often aq_ready_add() said 1 */

static void *produce(void *context)
{
    uint64_t state = (uint64_t)(uintptr_t)context, queued = 0;
    uint32_t i;

    for (i = 0; i < EACH; i++) {
        /* Few objects at first, for contention on one flag; then all of them. */
        object *one = &objects[check_below(&state, i < EACH / 2 ? 2 : NODES)];

        atomic_fetch_add(&one->published, 1);
        queued += (uint64_t)aq_ready_add(&ready, &one->node);
        if (i % 128 == 0) /* lets the consumer fall asleep now and then */
            sched_yield();
    }
    atomic_fetch_add(&queued_by_producers, queued);
    return NULL;
}

/* Works as the engine does and sleeps without a time-out, so a signal that gets lost hangs here. */
static void test_many_producers(void)
{
    pthread_t producers[PRODUCERS];
    uint64_t found = 0, lists = 0, taken = 0, sleeps = 0;
    uintptr_t i;

    begin();
    atomic_store(&queued_by_producers, 0);
    for (i = 0; i < PRODUCERS; i++)
        CHECK_INT(pthread_create(&producers[i], NULL, produce, (void *)(i + 1)), 0);
    while (found < (uint64_t)PRODUCERS * EACH) {
        aq_ready_node *node = aq_ready_take(&ready), *next;

        lists += node != NULL;
        for (; node != NULL; node = next) {
            object *one = (object *)(void *)node;
            uint64_t published;

            next = node->next;
            CHECK(one->taken_at != lists); /* once in a list */
            one->taken_at = lists;
            taken++;
            CHECK_INT(atomic_exchange(&node->queued, 0), 1);
            published = atomic_load(&one->published);
            CHECK(published >= one->seen);
            found += published - one->seen;
            one->seen = published;
        }
        aq_wake_prepare(&wake);
        if (!atomic_load(&ready.filled) && found < (uint64_t)PRODUCERS * EACH) {
            struct pollfd item = {.fd = wake.fd, .events = POLLIN};

            sleeps++;
            while (poll(&item, 1, -1) < 0)
                CHECK_INT(errno, EINTR);
        }
        aq_wake_cancel(&wake);
    }
    for (i = 0; i < PRODUCERS; i++)
        CHECK_INT(pthread_join(producers[i], NULL), 0);
    CHECK_INT(found, (uint64_t)PRODUCERS * EACH);
    CHECK(sleeps > 0);

    /* Signals whose work was found by an earlier look are in the list still. */
    for (aq_ready_node *node = aq_ready_take(&ready); node != NULL; node = node->next) {
        CHECK_INT(atomic_load(&node->queued), 1);
        taken++;
    }
    CHECK_INT(taken, atomic_load(&queued_by_producers)); /* a reference for each, and no more */
    end();
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_one_thread();
    test_wakes();
    test_many_producers();
    return check_done();
}

/* The wake-up: what it writes and reads, and that none is lost between threads. */
#include "core/wake.h"

#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>

#define ROUNDS 100000 /* through sleep and wake-up */
#ifdef __SANITIZE_THREAD__
#define RACE_ROUNDS 20000 /* without sleeping; this sanitizer is slow and does not see fences anyway */
#else
#define RACE_ROUNDS 300000
#endif
/* What a test of two threads takes at most: beside other programs each round may wait for a turn on a processor. */
#define LONGEST_TEST (15 * AQ_NSEC_PER_SEC)
#define WATCHDOG_SECONDS 90

static int readable(const aq_wake *wake)
{
    struct pollfd item = {.fd = wake->fd, .events = POLLIN};

    return poll(&item, 1, 0) == 1;
}

static void test_one_thread(void)
{
    aq_wake wake;

    CHECK_INT(aq_wake_init(&wake), 0);
    CHECK(wake.fd >= 0);
    CHECK((fcntl(wake.fd, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK((fcntl(wake.fd, F_GETFL) & O_NONBLOCK) != 0);

    /* nobody sleeps: nothing is written */
    aq_wake_signal(&wake);
    CHECK(!readable(&wake));

    /* prepared and cancelled without a signal */
    aq_wake_prepare(&wake);
    CHECK(!readable(&wake));
    aq_wake_cancel(&wake);
    aq_wake_signal(&wake);
    CHECK(!readable(&wake));

    /* many signals cost one write, and one cancel swallows it */
    aq_wake_prepare(&wake);
    aq_wake_signal(&wake);
    CHECK(readable(&wake));
    aq_wake_signal(&wake);
    aq_wake_signal(&wake);
    aq_wake_cancel(&wake);
    CHECK(!readable(&wake));
    CHECK_INT(wake.owed, 0);

    aq_wake_destroy(&wake);
    CHECK_INT(wake.fd, -1);
    aq_wake_destroy(&wake); /* harmless */
}

/* A signaller that is held up between its claim and its write: the late write may end one later sleep, not all of them.
 */
static void test_late_write(void)
{
    const uint64_t one = 1;
    aq_wake wake;

    CHECK_INT(aq_wake_init(&wake), 0);
    aq_wake_prepare(&wake);
    CHECK_INT(atomic_exchange(&wake.waiting, 0), 1); /* the claim */
    aq_wake_cancel(&wake);                           /* before the write: nothing to swallow yet */
    CHECK_INT(wake.owed, 1);

    aq_wake_prepare(&wake);
    CHECK_INT(write(wake.fd, &one, sizeof(one)), sizeof(one)); /* the write */
    CHECK(readable(&wake));
    aq_wake_cancel(&wake);
    CHECK(!readable(&wake));
    CHECK_INT(wake.owed, 0);

    /* the same with a true signal on top: two writes, one read */
    aq_wake_prepare(&wake);
    CHECK_INT(atomic_exchange(&wake.waiting, 0), 1);
    aq_wake_cancel(&wake);
    aq_wake_prepare(&wake);
    aq_wake_signal(&wake);
    CHECK_INT(write(wake.fd, &one, sizeof(one)), sizeof(one));
    aq_wake_cancel(&wake);
    CHECK(!readable(&wake));
    CHECK_INT(wake.owed, 0);
    aq_wake_destroy(&wake);
}

/* ---- two threads --------------------------------------------------------------------------------------------- */

struct side {
    aq_wake wake;
    _Atomic uint32_t ball; /* number of the round in which the ball was passed to this side */
};

static struct side sides[2];
static _Atomic uint32_t last_round = ROUNDS; /* of the ball; brought forward where the time is over */

/* Waits as the engine does: prepare, look again, block without a time-out, cancel. A lost wake-up hangs here. */
static void wait_for(struct side *side, uint32_t round)
{
    while (atomic_load_explicit(&side->ball, memory_order_acquire) < round) {
        aq_wake_prepare(&side->wake);
        if (atomic_load_explicit(&side->ball, memory_order_acquire) < round) {
            struct pollfd item = {.fd = side->wake.fd, .events = POLLIN};

            while (poll(&item, 1, -1) < 0)
                CHECK_INT(errno, EINTR);
        }
        aq_wake_cancel(&side->wake);
    }
}

static void pass_to(struct side *side, uint32_t round)
{
    atomic_store_explicit(&side->ball, round, memory_order_release);
    aq_wake_signal(&side->wake);
}

static void *return_balls(void *unused)
{
    uint32_t round;

    for (round = 1; round <= atomic_load(&last_round); round++) {
        wait_for(&sides[1], round);
        pass_to(&sides[0], round);
    }
    return unused;
}

static void test_ping_pong(void)
{
    const uint64_t begun = aq_now();
    pthread_t other;
    uint32_t round;

    CHECK_INT(aq_wake_init(&sides[0].wake), 0);
    CHECK_INT(aq_wake_init(&sides[1].wake), 0);
    CHECK_INT(pthread_create(&other, NULL, return_balls, NULL), 0);
    for (round = 1; round <= atomic_load(&last_round); round++) {
        if (aq_now() - begun > LONGEST_TEST)
            atomic_store(&last_round, round); /* before the ball, with which the other side learns of it */
        pass_to(&sides[1], round);
        wait_for(&sides[0], round);
    }
    CHECK_INT(pthread_join(other, NULL), 0);
    CHECK_INT(atomic_load(&sides[0].ball), atomic_load(&last_round));
    CHECK_INT(atomic_load(&sides[1].ball), atomic_load(&last_round));
    aq_wake_destroy(&sides[0].wake);
    aq_wake_destroy(&sides[1].wake);
}

/* ---- both at the same moment ----------------------------------------------------------------------------------
 *
 * The sleeper says that it sleeps and looks for work, while the signaller leaves work and looks for a sleeper. One of
 * them must see the other, in each of many rounds that begin for both at once. Needs no blocking, so a fault is a
 * failure and no hang.
 */

static struct {
    aq_wake wake;
    _Atomic uint32_t begun, work, signalled; /* numbers of rounds */
    _Atomic uint32_t last;                   /* round; brought forward where the time is over */
} race = {.last = RACE_ROUNDS};

static void spin_until(_Atomic uint32_t *counter, uint32_t round)
{
    unsigned spins = 0;

    while (atomic_load_explicit(counter, memory_order_acquire) < round) {
        if (++spins % 256 == 0) /* the other one may need this processor */
            sched_yield();
    }
}

static void *signal_rounds(void *unused)
{
    uint32_t round;

    for (round = 1; round <= atomic_load(&race.last); round++) {
        spin_until(&race.begun, round);
        atomic_store_explicit(&race.work, round, memory_order_release);
        aq_wake_signal(&race.wake);
        atomic_store_explicit(&race.signalled, round, memory_order_release);
    }
    return unused;
}

static void test_same_moment(void)
{
    const uint64_t begun = aq_now();
    pthread_t signaller;
    uint64_t state = 1;
    uint32_t round;

    CHECK_INT(aq_wake_init(&race.wake), 0);
    CHECK_INT(pthread_create(&signaller, NULL, signal_rounds, NULL), 0);
    for (round = 1; round <= atomic_load(&race.last); round++) {
        volatile uint32_t delay =
            check_below(&state, 128); /* the signaller learns of the round a little later than this side */
        int seen;

        if (aq_now() - begun > LONGEST_TEST)
            atomic_store(&race.last, round); /* before the round begins, with which the signaller learns of it */
        atomic_store_explicit(&race.begun, round, memory_order_release);
        while (delay > 0)
            delay--;
        aq_wake_prepare(&race.wake);
        seen = atomic_load_explicit(&race.work, memory_order_acquire) == round;
        spin_until(&race.signalled, round);
        CHECK(seen || readable(&race.wake));
        aq_wake_cancel(&race.wake);
        CHECK_INT(race.wake.owed, 0);
    }
    CHECK_INT(pthread_join(signaller, NULL), 0);
    CHECK(!readable(&race.wake));
    aq_wake_destroy(&race.wake);
}

/* ---- many signallers ----------------------------------------------------------------------------------------- */

#define SIGNALLERS 3

static aq_wake shared_wake;
static _Atomic uint32_t work_done;

static void *work(void *unused)
{
    uint32_t i;

    for (i = 0; i < ROUNDS / SIGNALLERS; i++) {
        atomic_fetch_add_explicit(&work_done, 1, memory_order_release);
        aq_wake_signal(&shared_wake);
        if (i % 64 == 0) /* lets the sleeper fall asleep now and then */
            sched_yield();
    }
    return unused;
}

static void test_many_signallers(void)
{
    const uint32_t all = ROUNDS / SIGNALLERS * SIGNALLERS;
    pthread_t threads[SIGNALLERS];
    uint32_t seen = 0;
    int i;

    CHECK_INT(aq_wake_init(&shared_wake), 0);
    for (i = 0; i < SIGNALLERS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, work, NULL), 0);
    while (seen < all) {
        uint32_t now;

        aq_wake_prepare(&shared_wake);
        now = atomic_load_explicit(&work_done, memory_order_acquire);
        if (now == seen) {
            struct pollfd item = {.fd = shared_wake.fd, .events = POLLIN};

            while (poll(&item, 1, -1) < 0)
                CHECK_INT(errno, EINTR);
        }
        aq_wake_cancel(&shared_wake);
        seen = now;
    }
    CHECK_INT(seen, all);
    for (i = 0; i < SIGNALLERS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);

    /* Whatever was written late is still owed, and one more sleep swallows it. */
    aq_wake_prepare(&shared_wake);
    aq_wake_cancel(&shared_wake);
    CHECK_INT(shared_wake.owed, 0);
    CHECK(!readable(&shared_wake));
    aq_wake_destroy(&shared_wake);
}

/* ---- the clock, which has no file of its own here -------------------------------------------------------------- */

static void test_clock(void)
{
    uint64_t last = aq_now();
    int i;

    CHECK(last > 0);
    for (i = 0; i < 1000; i++) {
        uint64_t now = aq_now();

        CHECK(now >= last);
        last = now;
    }
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_one_thread();
    test_late_write();
    test_ping_pong();
    test_same_moment();
    test_many_signallers();
    test_clock();
    return check_done();
}

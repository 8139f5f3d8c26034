/* The queue of commands: who has too many for the engine waits until it has taken some, or until it is over. The test's
 * main thread plays the engine.
 */
#include "engine/engine.h"

#include "check.h"

#include <sched.h>

#define WATCHDOG_SECONDS 60

static aq_engine *engine;
static _Atomic int told;

static uint64_t waited(void)
{
    return atomic_load(&engine->counters.value[AQ_C_commands_waited]);
}

/* For a connection that there is not. */
static int64_t tell(void)
{
    const aq_engine_command command = {.kind = AQ_DO_CLOSE, .id = 1};

    return aq_engine_tell(engine, &command);
}

static void *tell_one(void *context)
{
    int64_t result = tell();

    *(int64_t *)context = result;
    atomic_fetch_add(&told, 1);
    return NULL;
}

static void fill(void)
{
    for (int i = 0; i < AQ_COMMANDS_MAX; i++)
        CHECK_INT(tell(), AQ_OK);
}

static void test_waiting(int stops)
{
    int64_t results[3], problem;
    pthread_t threads[3];
    uint64_t before;

    engine = aq_engine_new(&problem);
    CHECK(engine != NULL);
    fill();
    CHECK_INT(waited(), 0);
    before = waited();
    atomic_store(&told, 0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, tell_one, &results[i]), 0);
    while (waited() < before + 3)
        sched_yield();
    CHECK_INT(atomic_load(&told), 0);
    if (stops)
        aq_engine_stop(engine);
    else
        aq_engine_run_commands(engine);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(pthread_join(threads[i], NULL), 0);
        CHECK_INT(results[i], stops ? AQ_ERR_STOPPED : AQ_OK);
    }
    if (!stops) {
        CHECK_INT(engine->commands_length, 3);
        aq_engine_run_commands(engine);
        CHECK_INT(engine->commands_length, 0);
    }
    aq_engine_close(engine);
    aq_engine_free(engine);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_waiting(0);
    test_waiting(1);
    return check_done();
}

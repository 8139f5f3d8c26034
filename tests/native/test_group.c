/* Connections that share a public port: who gets a visitor, where UDP sources lead, and what leaves with a member. */
#include "tunnel/group.h"

#include "check.h"

#include <pthread.h>
#include <stdlib.h>

#define WATCHDOG_SECONDS 90
#define SECOND AQ_NSEC_PER_SEC
#define MEMBERS 4
#define SOURCES 200

static _Atomic int fail_calloc;

void *__real_calloc(size_t count, size_t size); /* NOLINT */
void *__wrap_calloc(size_t count, size_t size); /* NOLINT */

void *__wrap_calloc(size_t count, size_t size)
{
    return atomic_load(&fail_calloc) ? NULL : __real_calloc(count, size);
}

/* What the test says about each member; by the id, which is a number from 1. */
static aq_candidate candidates[MEMBERS + 1];
static aq_member members[MEMBERS + 1];

static aq_candidate candidate_of(void *context, const aq_member *member)
{
    CHECK(context == candidates);
    return candidates[member->id];
}

static void begin(aq_members *list, size_t count)
{
    memset(members, 0, sizeof(members));
    for (size_t i = 1; i <= count; i++) {
        members[i] = (aq_member){.id = (aq_id)i};
        candidates[i] = (aq_candidate){AQ_FITNESS_FIT, 0};
        aq_members_enter(list, &members[i]);
    }
}

/* Gives a visitor to the member that is chosen; returns its number. */
static int64_t give(aq_group *group, aq_members *list, int *is_other)
{
    aq_member *member = aq_group_choose(group, list, candidate_of, candidates, is_other);
    if (member == NULL)
        return 0;
    aq_members_given(list, member, UINT64_MAX, 1);
    candidates[member->id].load++;
    return member->id;
}

/* Gives `visitors` away and counts who got how many. */
static void give_many(aq_group *group, uint32_t visitors, uint32_t count[MEMBERS + 1], uint32_t *others)
{
    memset(count, 0, (MEMBERS + 1) * sizeof(*count));
    *others = 0;
    for (uint32_t i = 0; i < visitors; i++) {
        int is_other;
        count[give(group, &group->listeners, &is_other)]++;
        *others += (uint32_t)is_other;
    }
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

static void test_round_robin(void)
{
    aq_group *group = aq_group_new(AQ_BALANCE_ROUND_ROBIN);
    uint32_t count[MEMBERS + 1], others;
    int is_other;

    CHECK(aq_group_choose(group, &group->listeners, candidate_of, candidates, &is_other) == NULL);
    CHECK_INT(is_other, 0);
    begin(&group->listeners, 3);
    give_many(group, 30, count, &others);
    CHECK_INT(count[1], 10);
    CHECK_INT(count[2], 10);
    CHECK_INT(count[3], 10);
    CHECK_INT(others, 0);

    /* One that joins is next, and has no debt of visitors. */
    members[4] = (aq_member){.id = 4};
    candidates[4] = (aq_candidate){AQ_FITNESS_FIT, 0};
    aq_members_enter(&group->listeners, &members[4]);
    aq_members_enter(&group->listeners, &members[4]);
    CHECK_INT(give(group, &group->listeners, &is_other), 4);
    give_many(group, 8, count, &others);
    for (size_t i = 1; i <= MEMBERS; i++)
        CHECK_INT(count[i], 2);

    /* The fitter ones get all, whoever's turn it is; of those the order stays. */
    candidates[1].fitness = AQ_FITNESS_SLOW;
    candidates[2].fitness = AQ_FITNESS_GONE;
    give_many(group, 8, count, &others);
    CHECK_INT(count[1], 0);
    CHECK_INT(count[2], 0);
    CHECK_INT(count[3], 4);
    CHECK_INT(count[4], 4);
    CHECK(others >= 7); /* it is the turn of the slow one from the first or second on */
    candidates[3].fitness = candidates[4].fitness = AQ_FITNESS_FULL;
    give_many(group, 3, count, &others);
    CHECK_INT(count[1], 3);
    candidates[1].fitness = candidates[3].fitness = candidates[4].fitness = AQ_FITNESS_GONE;
    CHECK_INT(give(group, &group->listeners, &is_other), 0);
    CHECK_INT(is_other, 0);

    for (size_t i = 1; i <= MEMBERS; i++) {
        aq_members_leave(&group->listeners, &members[i]);
        aq_members_leave(&group->listeners, &members[i]);
    }
    CHECK(group->listeners.list.first == NULL);
    aq_group_unref(group);
}

static void test_least_connections(void)
{
    aq_group *group = aq_group_new(AQ_BALANCE_LEAST_CONNECTIONS);
    uint32_t count[MEMBERS + 1], others;
    int is_other;

    begin(&group->listeners, 3);
    candidates[1].load = 5;
    candidates[2].load = 2;
    give_many(group, 5, count, &others);
    CHECK_INT(count[1], 0);
    CHECK(count[2] >= 1 && count[3] >= 3); /* seven together */
    CHECK_INT(others, 0);
    give_many(group, 30, count, &others);
    for (size_t i = 1; i <= 3; i++)
        CHECK(candidates[i].load >= 13 && candidates[i].load <= 15);
    /* The one with the fewest does not answer. */
    candidates[3] = (aq_candidate){AQ_FITNESS_SLOW, 0};
    give_many(group, 4, count, &others);
    CHECK_INT(count[3], 0);
    CHECK_INT(others, 4);
    /* Another policy applies to the next visitor. */
    atomic_store(&group->balance, AQ_BALANCE_ROUND_ROBIN);
    candidates[1].load = 1000;
    candidates[3].fitness = AQ_FITNESS_FIT;
    give_many(group, 6, count, &others);
    CHECK_INT(count[1], 2);
    candidates[2].fitness = AQ_FITNESS_GONE;
    CHECK(give(group, &group->listeners, &is_other) != 2);
    aq_group_unref(group);
}

static void test_stalled(void)
{
    aq_members list = {0};
    aq_member member = {.id = 1};

    aq_members_enter(&list, &member);
    CHECK(!aq_member_is_stalled(&member, 0, 0));
    aq_members_given(&list, &member, 5 * SECOND, 10 * SECOND);
    CHECK(!aq_member_is_stalled(&member, 5 * SECOND, 11 * SECOND));
    CHECK(aq_member_is_stalled(&member, 5 * SECOND, 11 * SECOND + 1));
    CHECK(!aq_member_is_stalled(&member, 10 * SECOND, 20 * SECOND)); /* it has answered */
    /* The time of the engine's turn may be earlier than that of the datagram. */
    CHECK(!aq_member_is_stalled(&member, 5 * SECOND, 10 * SECOND - 1));
    /* Further visitors do not put the answer off; after an answer, the time counts from the next visitor. */
    aq_members_given(&list, &member, 5 * SECOND, 11 * SECOND);
    CHECK(aq_member_is_stalled(&member, 5 * SECOND, 11 * SECOND + 1));
    aq_members_given(&list, &member, 12 * SECOND, 13 * SECOND);
    CHECK(!aq_member_is_stalled(&member, 12 * SECOND, 14 * SECOND));
    CHECK(aq_member_is_stalled(&member, 12 * SECOND, 14 * SECOND + 1));
}

/* ---- UDP -------------------------------------------------------------------------------------------------------- */

static size_t key_of(uint32_t source, uint8_t key[AQ_MAP_KEY_MAX])
{
    memcpy(key, &source, sizeof(source));
    return sizeof(source);
}

static aq_id route(aq_group *group, uint32_t source, int *is_new)
{
    uint8_t key[AQ_MAP_KEY_MAX];
    int is_other;
    return aq_group_route(group, key, key_of(source, key), candidate_of, candidates, is_new, &is_other);
}

static int64_t enter(aq_group *group, int64_t member, uint32_t source)
{
    uint8_t key[AQ_MAP_KEY_MAX];
    int64_t result = aq_group_enter_source(group, &members[member], key, key_of(source, key));
    candidates[member].load = members[member].sources;
    return result;
}

static void leave(aq_group *group, int64_t member, uint32_t source)
{
    uint8_t key[AQ_MAP_KEY_MAX];
    aq_group_leave_source(group, &members[member], key, key_of(source, key));
    candidates[member].load = members[member].sources;
}

static void test_sources_stick(void)
{
    aq_group *group = aq_group_new(AQ_BALANCE_LEAST_CONNECTIONS);
    aq_id owner[SOURCES];
    uint32_t count[MEMBERS + 1] = {0};
    int is_new;

    CHECK_INT(route(group, 0, &is_new), 0);
    begin(&group->sockets, 3);
    for (uint32_t i = 0; i < SOURCES; i++) {
        owner[i] = route(group, i, &is_new);
        CHECK(is_new);
        CHECK_INT(enter(group, owner[i], i), AQ_OK);
        CHECK_INT(enter(group, owner[i], i), AQ_OK); /* counted once */
        aq_group_given(group, &members[owner[i]], UINT64_MAX, i);
        count[owner[i]]++;
    }
    for (size_t i = 1; i <= 3; i++) {
        CHECK(count[i] >= SOURCES / 3);
        CHECK_INT(members[i].sources, count[i]);
    }
    CHECK_INT(enter(group, owner[0] % 3 + 1, 0), AQ_ERR_LIMIT); /* it leads to another */
    leave(group, owner[0] % 3 + 1, 0);                          /* which has no say in it */
    for (uint32_t i = 0; i < SOURCES; i++) {
        candidates[owner[i]].fitness = AQ_FITNESS_SLOW; /* no reason to move */
        CHECK_INT(route(group, i, &is_new), owner[i]);
        CHECK(!is_new);
        candidates[owner[i]].fitness = AQ_FITNESS_FIT;
    }

    /* The connection of a member is over. Its sources move, before and after its socket is closed. */
    candidates[1].fitness = AQ_FITNESS_GONE;
    for (uint32_t i = 0; i < SOURCES; i++) {
        aq_id now = route(group, i, &is_new);
        CHECK(now != 1);
        CHECK_INT(is_new, owner[i] == 1);
        if (owner[i] == 1 && i % 2 == 0)
            CHECK_INT(enter(group, now, i), AQ_OK);
    }
    CHECK_INT(members[1].sources, 0);
    for (uint32_t i = 0; i < SOURCES; i++) {
        if (owner[i] == 1)
            leave(group, 1, i); /* what it thought that it had: no longer, and not counted twice */
    }
    CHECK_INT(members[1].sources, 0);
    CHECK_INT(aq_group_leave_socket(group, &members[1]), 0);
    CHECK_INT(enter(group, 1, SOURCES), AQ_ERR_GONE);
    aq_group_given(group, &members[1], 0, 1); /* too late: it is in no list any more */
    CHECK_INT(group->sources.length, members[2].sources + members[3].sources);

    /* It comes back, as another member, and gets new sources only. */
    members[1] = (aq_member){.id = 1};
    candidates[1] = (aq_candidate){AQ_FITNESS_FIT, 0};
    aq_members_enter(&group->sockets, &members[1]);
    for (uint32_t i = 0; i < SOURCES; i++) {
        if (owner[i] != 1)
            CHECK_INT(route(group, i, &is_new), owner[i]);
    }
    CHECK_INT(route(group, SOURCES, &is_new), 1);

    for (uint32_t i = 0; i <= SOURCES; i++) {
        for (int64_t j = 1; j <= 3; j++)
            leave(group, j, i);
    }
    CHECK_INT(group->sources.length, 0);
    for (size_t i = 1; i <= 3; i++)
        CHECK_INT(members[i].sources, 0);
    aq_group_unref(group);
}

static void test_the_one_that_is_read(void)
{
    aq_group *group = aq_group_new(AQ_BALANCE_ROUND_ROBIN);
    begin(&group->sockets, 2);
    group->sockets.watched = &members[2];
    CHECK_INT(aq_group_leave_socket(group, &members[1]), 0);
    CHECK(group->sockets.watched == &members[2]);
    CHECK_INT(aq_group_leave_socket(group, &members[2]), 1);
    CHECK(group->sockets.watched == NULL);
    CHECK_INT(aq_group_leave_socket(group, &members[2]), 0);
    aq_group_unref(group);
}

static void test_no_memory(void)
{
    aq_group *group;
    int is_new;
    uint32_t source = 0;

    atomic_store(&fail_calloc, 1);
    CHECK(aq_group_new(AQ_BALANCE_ROUND_ROBIN) == NULL);
    atomic_store(&fail_calloc, 0);
    group = aq_group_new(AQ_BALANCE_ROUND_ROBIN);
    begin(&group->sockets, 1);
    atomic_store(&fail_calloc, 1);
    while (enter(group, 1, source) == AQ_OK)
        source++;
    CHECK_INT(enter(group, 1, source), AQ_ERR_MEMORY);
    CHECK_INT(members[1].sources, source);
    CHECK_INT(route(group, source, &is_new), 1); /* as of any source that leads nowhere yet */
    CHECK(is_new);
    atomic_store(&fail_calloc, 0);
    CHECK_INT(enter(group, 1, source), AQ_OK);
    aq_group_unref(group);
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static _Atomic int over;
static aq_group *shared;
static aq_member workers[MEMBERS];

/* The pump's part: a member enters sources, leaves them, and leaves itself. */
static void *pump(void *argument)
{
    aq_member *member = argument;
    uint32_t first = (uint32_t)(member - workers) * SOURCES;
    uint8_t key[AQ_MAP_KEY_MAX];

    for (int round = 0; round < 200; round++) {
        uint32_t entered = 0;
        pthread_mutex_lock(&shared->mutex); /* as aq_engine_enter_group() */
        aq_members_enter(&shared->sockets, member);
        pthread_mutex_unlock(&shared->mutex);
        for (uint32_t i = 0; i < 20; i++)
            entered += aq_group_enter_source(shared, member, key, key_of(first + i, key)) == AQ_OK;
        CHECK_INT(entered, 20);
        for (uint32_t i = 0; i < 20; i++)
            aq_group_leave_source(shared, member, key, key_of(first + i, key));
        aq_group_leave_socket(shared, member);
        CHECK_INT(aq_group_enter_source(shared, member, key, key_of(first, key)), AQ_ERR_GONE);
        CHECK_INT(member->sources, 0);
    }
    aq_group_unref(shared);
    return NULL;
}

static aq_candidate any(void *context, const aq_member *member)
{
    (void)context;
    return (aq_candidate){AQ_FITNESS_FIT, member->sources};
}

/* The engine's part: routes, and counts what it has given. */
static void *engine(void *argument)
{
    uint8_t key[AQ_MAP_KEY_MAX];
    uint32_t source = 0;
    int is_new, is_other;

    (void)argument;
    while (!atomic_load(&over)) {
        size_t length = key_of(source++ % (MEMBERS * SOURCES), key);
        aq_id id = aq_group_route(shared, key, length, any, NULL, &is_new, &is_other);
        CHECK(id >= 0 && id <= MEMBERS);
        if (id > 0 && is_new)
            aq_group_given(shared, &workers[id - 1], 0, source);
    }
    aq_group_unref(shared);
    return NULL;
}

static void test_threads(void)
{
    pthread_t threads[MEMBERS + 1];

    shared = aq_group_new(AQ_BALANCE_LEAST_CONNECTIONS);
    for (size_t i = 0; i < MEMBERS; i++) {
        workers[i] = (aq_member){.id = (aq_id)i + 1};
        aq_group_ref(shared);
        CHECK_INT(pthread_create(&threads[i], NULL, pump, &workers[i]), 0);
    }
    aq_group_ref(shared);
    CHECK_INT(pthread_create(&threads[MEMBERS], NULL, engine, NULL), 0);
    for (size_t i = 0; i < MEMBERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&over, 1);
    pthread_join(threads[MEMBERS], NULL);
    CHECK_INT(shared->sources.length, 0);
    CHECK(shared->sockets.list.first == NULL);
    aq_group_unref(shared); /* the last one: the sanitizers would see a leak */
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_round_robin();
    test_least_connections();
    test_stalled();
    test_sources_stick();
    test_the_one_that_is_read();
    test_no_memory();
    test_threads();
    return check_done();
}

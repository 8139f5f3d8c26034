/* Descriptors for public TCP connections: one budget for the engine, in which each public port has a share. Engine
 * thread only.
 *
 *   budget  what the process may have, less what it has open besides accepted sockets, less a reserve for clients that
 *           join: a port takes four descriptors, and Python a few for a moment
 *   share   the budget divided by the number of ports and one more, which is for who joins next
 *
 * A port that has less than its share accepts in any case. Where nothing is left for it, the newest connection of the
 * port that has most is reset: as ports come the shares of those before become smaller, and nothing else gives back
 * what a flood holds. A port that has its share accepts further ones as long as a quarter of the budget is free, so
 * that this is rare.
 */
#include "engine.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define RESERVE_PART 8 /* of all descriptors one in so many is kept for clients that join */
#define RESERVE_LEAST 8
#define BUDGET_LEAST 4 /* of all descriptors one in so many is the budget at the least, whatever else is open */
#define FREE_PART 4    /* of the budget one in so many is left to ports below their share */
#define LOOK_PERIOD (100 * AQ_NSEC_PER_MSEC) /* how old what is known of limit and use may be */
/* Counting what is open takes no more than one part in so many of the engine's time: before Linux 6.2 that is reading a
 * folder. */
#define COUNT_PART 100
#define TAKEN_PER_LOOK 64       /* connections reset at a time to fill the reserve up */
#define USUAL_DESCRIPTORS 1024U /* what the limit is taken for where the system does not tell it */
#define DESCRIPTORS_PER_PORT 4  /* a TCP and a UDP socket, each with a duplicate of the engine's */

/* ---- the budget ---------------------------------------------------------------------------------------------- */

/* Descriptors that the process has open; 0: it can't be told. */
static uint32_t count_open(void)
{
    struct stat status;
    uint32_t count = 0;
    DIR *directory;
    if (stat("/proc/self/fd", &status) == 0 && status.st_size > 0)
        return (uint32_t)status.st_size; /* Linux 6.2 and later */
    directory = opendir("/proc/self/fd");
    if (directory == NULL)
        return 0;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count > 3 ? count - 3 : 0; /* ".", ".." and the folder itself */
}

static uint32_t accepted(aq_engine *engine)
{
    return atomic_load_explicit(&engine->accepted, memory_order_relaxed);
}

static uint32_t budget_of(const aq_shares *shares)
{
    uint32_t limit = shares->limit, reserve = limit / RESERVE_PART, least = limit / BUDGET_LEAST, taken;
    if (limit == UINT32_MAX)
        return limit;
    if (reserve < RESERVE_LEAST)
        reserve = RESERVE_LEAST;
    taken = shares->others > limit ? limit : shares->others;
    return limit - taken > reserve + least ? limit - taken - reserve : least;
}

static uint32_t share_of(const aq_shares *shares)
{
    uint32_t share = shares->budget / (shares->ports + 1);
    return share > 0 ? share : 1;
}

/* Far from the limit it makes no difference what else is open. */
static int may_matter(const aq_shares *shares, uint32_t all)
{
    return shares->counted == 0 || all + shares->others >= shares->limit / 2;
}

static void look(aq_engine *engine)
{
    aq_shares *shares = &engine->shares;
    uint32_t all = accepted(engine), open;
    struct rlimit limit;
    /* At each look, for it may have been raised. */
    shares->limit = UINT32_MAX;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        shares->limit = USUAL_DESCRIPTORS;
    else if (limit.rlim_cur < UINT32_MAX)
        shares->limit = (uint32_t)limit.rlim_cur;
    if (shares->limit != UINT32_MAX && may_matter(shares, all) &&
        engine->now - shares->counted >= shares->took * COUNT_PART) {
        uint64_t began = aq_now();
        open = count_open();
        if (open > 0)
            shares->others = open > all ? open - all : 0;
        shares->counted = engine->now;
        shares->took = aq_now() - began;
    }
    shares->looked = engine->now;
    shares->budget = budget_of(shares);
}

/* ---- taking back --------------------------------------------------------------------------------------------- */

/* Resets the newest connection of the port that has most, where that is more than `share`. Returns whether there was
 * one. What a worker relays is left alone. */
static int take_back(aq_engine *engine, uint32_t share)
{
    aq_credit *largest = NULL;
    uint32_t most = share;
    for (aq_listener *listener = engine->shares.first; listener != NULL; listener = listener->next) {
        uint32_t own = atomic_load_explicit(&listener->credit->accepted, memory_order_relaxed);
        if (own > most && listener->credit->newest != NULL) {
            largest = listener->credit;
            most = own;
        }
    }
    if (largest == NULL)
        return 0;
    aq_count(&engine->counters, AQ_C_tcp_taken_back, 1);
    aq_engine_take_back(engine, largest->newest);
    return 1;
}

/* ---- for tcp.c ----------------------------------------------------------------------------------------------- */

void aq_shares_look(aq_engine *engine)
{
    const aq_shares *shares = &engine->shares;
    if (shares->looked != 0 && engine->now - shares->looked < LOOK_PERIOD)
        return;
    look(engine);
    for (int i = 0; i < TAKEN_PER_LOOK && accepted(engine) > shares->budget; i++) {
        if (!take_back(engine, share_of(shares)))
            break;
    }
}

int aq_shares_allow(aq_engine *engine, const aq_credit *credit)
{
    const aq_shares *shares = &engine->shares;
    uint32_t all = accepted(engine), share = share_of(shares);
    if (atomic_load_explicit(&credit->accepted, memory_order_relaxed) >= share)
        return all < shares->budget - shares->budget / FREE_PART;
    if (all >= shares->budget)
        take_back(engine, share);
    return 1;
}

void aq_shares_enter(aq_engine *engine, aq_listener *listener)
{
    listener->next = engine->shares.first;
    if (listener->next != NULL)
        listener->next->previous = listener;
    engine->shares.first = listener;
    engine->shares.ports++;
    engine->shares.others += DESCRIPTORS_PER_PORT; /* as it is where they are not counted now */
    engine->shares.looked = 0;
    aq_shares_look(engine);
}

void aq_shares_leave(aq_engine *engine, aq_listener *listener)
{
    if (listener->previous != NULL)
        listener->previous->next = listener->next;
    else
        engine->shares.first = listener->next;
    if (listener->next != NULL)
        listener->next->previous = listener->previous;
    listener->previous = listener->next = NULL;
    engine->shares.ports--;
    if (engine->shares.others >= DESCRIPTORS_PER_PORT)
        engine->shares.others -= DESCRIPTORS_PER_PORT;
}

void aq_shares_short(aq_engine *engine)
{
    aq_shares *shares = &engine->shares;
    uint32_t all = accepted(engine);
    if (shares->limit != UINT32_MAX && shares->limit > all)
        shares->others = shares->limit - all;
    shares->looked = 0;
}

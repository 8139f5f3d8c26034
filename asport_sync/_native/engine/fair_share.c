/* Descriptors for visitors' TCP connections: one budget for the engine, of which each public port has a fair share.
 * Engine thread only.
 *
 *   budget  what the process may open, less what it has open other than accepted sockets, less a reserve for clients
 *           that join: a port takes four descriptors, and Python a few temporarily
 *   share   the budget divided by the number of ports plus one; the extra share is for the client that joins next
 *
 * A port below its share always accepts. If the budget is used up, the newest connection of the port with the most is
 * reset for it. This is needed because shares shrink as ports are added, and nothing else frees what a flood holds. To
 * keep resets rare, a port at its share accepts more only while a quarter of the budget is free.
 */
#include "engine/fair_share.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define RESERVE_PART 8    /* 1/RESERVE_PART of all descriptors is reserved for joining clients */
#define RESERVE_MIN 8     /* minimum of that reserve */
#define BUDGET_MIN_PART 4 /* the budget is at least 1/BUDGET_MIN_PART of all descriptors, whatever else is open */
#define FREE_PART 4       /* 1/FREE_PART of the budget is left to ports below their share */
#define CHECK_PERIOD (100 * AQ_NSEC_PER_MSEC) /* maximum age of the known limit and use */
/* Counting open descriptors may take 1/COUNT_PART of the engine's time: before Linux 6.2 it reads a directory. */
#define COUNT_PART 100
#define USUAL_DESCRIPTORS 1024U /* assumed limit if the system does not report one */
#define DESCRIPTORS_PER_PORT 4  /* a TCP and a UDP socket, each duplicated for the engine */

/* ---- the budget ---------------------------------------------------------------------------------------------- */

/* Returns the number of open descriptors of the process; 0: unknown. */
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
    return count > 3 ? count - 3 : 0; /* ".", ".." and the directory itself */
}

static uint32_t accepted(aq_engine *engine)
{
    return atomic_load_explicit(&engine->accepted, memory_order_relaxed);
}

static uint32_t budget_of(const aq_fair_shares *shares)
{
    uint32_t limit = shares->limit, reserve = limit / RESERVE_PART, min = limit / BUDGET_MIN_PART, taken;
    if (limit == UINT32_MAX)
        return limit;
    if (reserve < RESERVE_MIN)
        reserve = RESERVE_MIN;
    taken = shares->others > limit ? limit : shares->others;
    return limit - taken > reserve + min ? limit - taken - reserve : min;
}

static uint32_t share_of(const aq_fair_shares *shares)
{
    uint32_t share = shares->budget / (shares->ports + 1);
    return share > 0 ? share : 1;
}

/* Returns whether the count of open descriptors matters: not while use is far below the limit. */
static int may_matter(const aq_fair_shares *shares, uint32_t all)
{
    return shares->counted == 0 || all + shares->others >= shares->limit / 2;
}

static void check(aq_engine *engine)
{
    aq_fair_shares *shares = &engine->shares;
    uint32_t all = accepted(engine), open;
    struct rlimit limit;
    /* Read each time, because it may have been raised. */
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
    shares->checked = engine->now;
    shares->budget = budget_of(shares);
}

/* ---- for tcp.c ----------------------------------------------------------------------------------------------- */

int aq_fair_shares_check(aq_engine *engine)
{
    const aq_fair_shares *shares = &engine->shares;
    if (shares->checked != 0 && engine->now - shares->checked < CHECK_PERIOD)
        return 0;
    check(engine);
    return 1;
}

int aq_fair_shares_exceeded(aq_engine *engine)
{
    return accepted(engine) > engine->shares.budget;
}

enum aq_fair_shares_answer aq_fair_shares_allow(aq_engine *engine, const aq_credit *credit)
{
    const aq_fair_shares *shares = &engine->shares;
    uint32_t all = accepted(engine);
    if (atomic_load_explicit(&credit->accepted, memory_order_relaxed) >= share_of(shares))
        return all < shares->budget - shares->budget / FREE_PART ? AQ_SHARE_FREE : AQ_SHARE_USED_UP;
    return all < shares->budget ? AQ_SHARE_FREE : AQ_SHARE_TO_BE_FREED;
}

aq_stream *aq_fair_shares_newest(aq_engine *engine)
{
    aq_credit *largest = NULL;
    uint32_t max = share_of(&engine->shares);
    for (aq_listener *listener = engine->shares.listeners.first; listener != NULL; listener = listener->link.next) {
        uint32_t own = atomic_load_explicit(&listener->credit->accepted, memory_order_relaxed);
        if (own > max && listener->credit->sockets.first != NULL) {
            largest = listener->credit;
            max = own;
        }
    }
    return largest != NULL ? largest->sockets.first : NULL;
}

void aq_fair_shares_enter(aq_engine *engine, aq_listener *listener)
{
    AQ_LIST_ADD_FIRST(&engine->shares.listeners, listener, link);
    engine->shares.ports++;
    engine->shares.others += DESCRIPTORS_PER_PORT; /* an estimate, in case they are not counted now */
    engine->shares.checked = 0;
}

void aq_fair_shares_leave(aq_engine *engine, aq_listener *listener)
{
    AQ_LIST_REMOVE(&engine->shares.listeners, listener, link);
    engine->shares.ports--;
    if (engine->shares.others >= DESCRIPTORS_PER_PORT)
        engine->shares.others -= DESCRIPTORS_PER_PORT;
}

void aq_fair_shares_short(aq_engine *engine)
{
    aq_fair_shares *shares = &engine->shares;
    uint32_t all = accepted(engine);
    if (shares->limit != UINT32_MAX && shares->limit > all)
        shares->others = shares->limit - all;
    shares->checked = 0;
}

/* Groups: connections that share a public port (`balance`). Each connection of a group, a member, has a listener and a
 * UDP socket of its own, which are duplicates of the same two sockets. One of each is read, and whoever comes is given
 * to the member that the policy chooses:
 *
 *   TCP: aq_tcp_accept() chooses a member for each connection that it accepts
 *   UDP: aq_engine_read_udp() chooses one for each new source; `sources` says which one it was, as long as the source
 *        has an association there or waits for one
 *
 * Connections without a group use nothing of this.
 */
#ifndef AQ_GROUP_H
#define AQ_GROUP_H

#include "aq.h"
#include "core/list.h"
#include "core/map.h"
#include "tunnel/limits.h"

#include <pthread.h>
#include <stdatomic.h>

/* Nanoseconds. A member that was given a visitor this long ago, and from whose client nothing has come since, gets no
 * more as long as others answer: a live client acknowledges within a round trip. */
#define AQ_STALLED_AFTER AQ_NSEC_PER_SEC

/* A listener or UDP socket in a group. That of a listener belongs to the engine thread, that of a UDP socket is guarded
 * by the group's mutex. */
typedef struct aq_member {
    AQ_LINK(struct aq_member) link;
    aq_id id;          /* of the listener or UDP socket; immutable, as are the next two */
    aq_id connection;  /* its connection */
    int fd;            /* of the listener or UDP socket */
    int is_listed;     /* in the group's list */
    uint32_t sources;  /* UDP: how many entries of `sources` lead here */
    uint64_t given_at; /* time when it was given a visitor while it owed no answer, see aq_member_is_stalled() */
} aq_member;

typedef struct {
    /* Those that were given a visitor most recently are last. */
    AQ_LIST(aq_member) list;
    aq_member *watched; /* the one that is read; NULL: none */
} aq_members;

typedef struct aq_group {
    _Atomic uint32_t references;
    _Atomic uint32_t balance; /* enum aq_balance */
    aq_limits limits;         /* for visitors of all members together; engine thread only, as are the next two */
    aq_refusals refused[AQ_REFUSED_BY_COUNT]; /* by enum aq_refused_by, of all members together */
    aq_members listeners;
    pthread_mutex_t mutex; /* taken after that of a table of associations, and before that of a slab */
    aq_members sockets;    /* UDP; guarded by mutex, as is the next one */
    aq_map sources;        /* source key -> member */
} aq_group;

aq_group *aq_group_new(enum aq_balance balance); /* [any] with one reference; NULL: no memory */
void aq_group_ref(aq_group *group);              /* [any] */
void aq_group_unref(aq_group *group);            /* [any] */

/* What aq_group_choose() asks about a member. */
enum aq_fitness {
    AQ_FITNESS_GONE, /* its connection is over */
    AQ_FITNESS_FULL, /* it can't take anything now */
    AQ_FITNESS_SLOW, /* what it takes may wait: for stream credit, or for a client that does not answer */
    AQ_FITNESS_FIT
};
typedef struct {
    enum aq_fitness fitness;
    uint32_t load; /* its visitors; for AQ_BALANCE_LEAST_CONNECTIONS */
} aq_candidate;
typedef aq_candidate (*aq_candidate_of)(void *context, const aq_member *member);

/* [guard of the members] Returns the member that the next visitor should be given to: of the fittest the one with the
 * least load, or the one that was given none for longest. NULL: all are gone. *is_other: whether its turn had not come,
 * but others were less fit. */
aq_member *aq_group_choose(const aq_group *group, const aq_members *members, aq_candidate_of candidate_of,
                           void *context, int *is_other);
/* [guard of the members] A visitor is given to this member. last_received: when a packet last came from its client. */
void aq_members_given(aq_members *members, aq_member *member, uint64_t last_received, uint64_t now);
/* Returns whether a client owes an answer for too long. */
static inline int aq_member_is_stalled(const aq_member *member, uint64_t last_received, uint64_t now)
{
    return member->given_at > last_received && now > member->given_at + AQ_STALLED_AFTER; /* given_at may be later */
}

/* [guard of the members] Idempotent. A member that leaves is not watched any more, and nothing leads to it. */
void aq_members_enter(aq_members *members, aq_member *member);
void aq_members_leave(aq_members *members, aq_member *member);

/* [engine] Returns the id of the UDP socket that a source leads to, or that it should lead to; 0: all are gone.
 * *is_new: it leads nowhere yet; *is_other: as for aq_group_choose(). */
aq_id aq_group_route(aq_group *group, const uint8_t *key, size_t length, aq_candidate_of candidate_of, void *context,
                     int *is_new, int *is_other);
/* [engine] A new source was given to this UDP socket; see aq_members_given(). */
void aq_group_given(aq_group *group, aq_member *member, uint64_t last_received, uint64_t now);
/* [any] A UDP socket leaves the group. Returns whether it was the one that is read. */
int aq_group_leave_socket(aq_group *group, aq_member *member);
/* [any] A source leads to this member from now on. Returns AQ_OK, also if it does already; AQ_ERR_LIMIT: it leads to
 * another; AQ_ERR_MEMORY; AQ_ERR_GONE: the member has left. */
int64_t aq_group_enter_source(aq_group *group, aq_member *member, const uint8_t *key, size_t length);
/* [any] A source does not lead to this member any more. Idempotent. */
void aq_group_leave_source(aq_group *group, aq_member *member, const uint8_t *key, size_t length);

#endif

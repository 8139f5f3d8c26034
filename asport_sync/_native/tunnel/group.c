#include "tunnel/group.h"

#include <stdlib.h>

aq_group *aq_group_new(enum aq_balance balance)
{
    aq_group *group = calloc(1, sizeof(*group));
    uint8_t secret[16];
    if (group == NULL)
        return NULL;
    aq_random(secret, sizeof(secret));
    if (aq_map_init(&group->sources, secret) != AQ_OK) {
        free(group);
        return NULL;
    }
    atomic_init(&group->references, 1);
    atomic_init(&group->balance, (uint32_t)balance);
    pthread_mutex_init(&group->mutex, NULL);
    return group;
}

void aq_group_ref(aq_group *group)
{
    atomic_fetch_add_explicit(&group->references, 1, memory_order_relaxed);
}

void aq_group_unref(aq_group *group)
{
    if (atomic_fetch_sub_explicit(&group->references, 1, memory_order_acq_rel) != 1)
        return;
    aq_ranges_unref(group->limits.permitted);
    aq_map_destroy(&group->sources);
    pthread_mutex_destroy(&group->mutex);
    free(group);
}

/* ---- members ------------------------------------------------------------------------------------------------- */

aq_member *aq_group_choose(const aq_group *group, const aq_members *members, aq_candidate_of candidate_of,
                           void *context, int *is_other)
{
    int by_load = atomic_load(&group->balance) == AQ_BALANCE_LEAST_CONNECTIONS;
    aq_candidate best = {AQ_FITNESS_GONE, 0}, due = best;
    aq_member *chosen = NULL;
    for (aq_member *member = members->list.first; member != NULL; member = member->link.next) {
        aq_candidate each = candidate_of(context, member);
        if (each.fitness == AQ_FITNESS_GONE)
            continue;
        if (due.fitness == AQ_FITNESS_GONE || (by_load && each.load < due.load))
            due = each;
        if (each.fitness > best.fitness || (each.fitness == best.fitness && by_load && each.load < best.load)) {
            best = each;
            chosen = member;
        }
    }
    *is_other = due.fitness < best.fitness;
    return chosen;
}

void aq_members_given(aq_members *members, aq_member *member, uint64_t last_received, uint64_t now)
{
    if (member->given_at <= last_received)
        member->given_at = now;
    AQ_LIST_REMOVE(&members->list, member, link);
    AQ_LIST_ADD_LAST(&members->list, member, link);
}

void aq_members_enter(aq_members *members, aq_member *member)
{
    if (member->is_listed)
        return;
    member->is_listed = 1;
    AQ_LIST_ADD_FIRST(&members->list, member, link); /* it has been given nothing yet */
}

void aq_members_leave(aq_members *members, aq_member *member)
{
    if (!member->is_listed)
        return;
    member->is_listed = 0;
    AQ_LIST_REMOVE(&members->list, member, link);
    if (members->watched == member)
        members->watched = NULL;
}

/* ---- UDP ------------------------------------------------------------------------------------------------------- */

aq_id aq_group_route(aq_group *group, const uint8_t *key, size_t length, aq_candidate_of candidate_of, void *context,
                     int *is_new, int *is_other)
{
    aq_member *member;
    aq_id id;
    *is_other = 0;
    pthread_mutex_lock(&group->mutex);
    member = aq_map_get(&group->sources, key, length);
    if (member != NULL && candidate_of(context, member).fitness == AQ_FITNESS_GONE) {
        /* Python is about to remove it. The source need not wait for that. */
        aq_map_remove(&group->sources, key, length);
        member->sources--;
        member = NULL;
    }
    *is_new = member == NULL;
    if (member == NULL)
        member = aq_group_choose(group, &group->sockets, candidate_of, context, is_other);
    id = member != NULL ? member->id : 0;
    pthread_mutex_unlock(&group->mutex);
    return id;
}

void aq_group_given(aq_group *group, aq_member *member, uint64_t last_received, uint64_t now)
{
    pthread_mutex_lock(&group->mutex);
    if (member->is_listed)
        aq_members_given(&group->sockets, member, last_received, now);
    pthread_mutex_unlock(&group->mutex);
}

int aq_group_leave_socket(aq_group *group, aq_member *member)
{
    int was_watched;
    pthread_mutex_lock(&group->mutex);
    was_watched = group->sockets.watched == member;
    aq_members_leave(&group->sockets, member);
    pthread_mutex_unlock(&group->mutex);
    return was_watched;
}

int64_t aq_group_enter_source(aq_group *group, aq_member *member, const uint8_t *key, size_t length)
{
    const aq_member *there;
    int64_t result = AQ_OK;
    pthread_mutex_lock(&group->mutex);
    there = aq_map_get(&group->sources, key, length);
    if (!member->is_listed)
        result = AQ_ERR_GONE;
    else if (there != NULL && there != member)
        result = AQ_ERR_LIMIT;
    else if (there == NULL && (result = aq_map_put(&group->sources, key, length, member)) == AQ_OK)
        member->sources++;
    pthread_mutex_unlock(&group->mutex);
    return result;
}

void aq_group_leave_source(aq_group *group, aq_member *member, const uint8_t *key, size_t length)
{
    pthread_mutex_lock(&group->mutex);
    if (aq_map_get(&group->sources, key, length) == member) {
        aq_map_remove(&group->sources, key, length);
        member->sources--;
    }
    pthread_mutex_unlock(&group->mutex);
}

#include "tunnel/association.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Limits per socket: bytes of datagrams that wait for Python's decision on their sources, and sources that it is asked
 * about at a time. When sources come faster than Python decides, their first packets are dropped, as UDP may do. */
#define WAITING_BYTES (512U * 1024U)
#define WAITING_SOURCES 4096

/* Nanoseconds. Precision of the order in the lists of associations: a busy one moves ten times a second, not for each
 * packet. */
#define ORDER_PRECISION (100 * AQ_NSEC_PER_MSEC)
/* Maximum of packets from the visitor in a short exchange: two questions, each of them sent twice. */
#define SHORT_EXCHANGE 4
/* Nanoseconds for which packets to a service that has not answered are kept: a refusal comes within a round trip of the
 * local network. And the maximum of their bytes, for all associations of a connection. */
#define KEPT_TIME AQ_NSEC_PER_SEC
#define KEPT_BYTES (1024U * 1024U)

typedef struct waiting_datagram {
    struct waiting_datagram *next;
    size_t length;
    uint8_t data[];
} waiting_datagram;

struct aq_waiting_source {
    AQ_LINK(aq_waiting_source) link;
    aq_udp_source source;
    waiting_datagram *first, *last;
};

/* ---- the table --------------------------------------------------------------------------------------------- */

aq_assocs *aq_assocs_new(aq_id connection, aq_ready *ready, aq_counters *counters, uint64_t queue_limit)
{
    aq_assocs *assocs = calloc(1, sizeof(*assocs));
    if (assocs == NULL)
        return NULL;
    assocs->node.kind = AQ_READY_ASSOCIATIONS;
    atomic_init(&assocs->references, 1);
    assocs->connection = connection;
    assocs->ready = ready;
    assocs->counters = counters;
    assocs->queue_limit = queue_limit;
    pthread_mutex_init(&assocs->mutex, NULL);
    return assocs;
}

/* Frees the kept packets sent before this time. The mutex is held, or no other thread has the table any more. */
static void drop_kept(aq_assocs *assocs, uint64_t before)
{
    while (assocs->kept.first != NULL && assocs->kept.first->sent < before) {
        aq_kept_packet *kept = assocs->kept.first;
        assocs->kept.first = kept->next;
        assocs->kept_bytes -= sizeof(*kept) + kept->length;
        free(kept);
    }
}

void aq_assocs_ref(aq_assocs *assocs)
{
    atomic_fetch_add_explicit(&assocs->references, 1, memory_order_relaxed);
}

void aq_assocs_unref(aq_assocs *assocs)
{
    if (atomic_fetch_sub_explicit(&assocs->references, 1, memory_order_acq_rel) != 1)
        return;
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(assocs->pages); i++)
        free(assocs->pages[i]);
    drop_kept(assocs, UINT64_MAX);
    if (atomic_load(&assocs->has_queue))
        aq_dgram_destroy(&assocs->queue);
    aq_buckets_release(&assocs->buckets);
    aq_ranges_unref(assocs->permitted);
    pthread_mutex_destroy(&assocs->mutex);
    free(assocs);
}

void aq_assocs_kill(aq_assocs *assocs)
{
    pthread_mutex_lock(&assocs->mutex);
    assocs->dead = 1;
    drop_kept(assocs, UINT64_MAX);
    pthread_mutex_unlock(&assocs->mutex);
}

aq_assoc *aq_assocs_find(aq_assocs *assocs, uint16_t association)
{
    aq_assoc **page = assocs->pages[association >> 8];
    return page != NULL ? page[association & 0xff] : NULL;
}

/* Makes the association the newest of a list. The mutex is held. */
static void place_assoc(aq_assocs *assocs, aq_assoc *assoc, int is_done, uint64_t now)
{
    aq_assoc_list *list = &assocs->lists[is_done];
    assoc->is_done = is_done != 0;
    assoc->placed = now;
    AQ_LIST_ADD_LAST(list, assoc, order_link);
}

/* The mutex is held. */
static void displace_assoc(aq_assocs *assocs, aq_assoc *assoc)
{
    aq_assoc_list *list = &assocs->lists[assoc->is_done];
    AQ_LIST_REMOVE(list, assoc, order_link);
}

/* The mutex is held. */
static void unlink_assoc(aq_assocs *assocs, aq_assoc *assoc)
{
    assocs->pages[assoc->association >> 8][assoc->association & 0xff] = NULL;
    displace_assoc(assocs, assoc);
    assocs->count--;
}

/* Writes the key of both addresses, with their scopes. A key with a local address is longer than any without one of the
 * same family. */
static size_t source_key(const aq_udp_source *source, uint8_t key[AQ_MAP_KEY_MAX])
{
    size_t length = aq_address_key(&source->peer, key);
    if (source->local.family != 0)
        length += aq_address_key(&source->local, key + length);
    return length;
}

void aq_assoc_seen(aq_assoc *assoc, int from_visitor, size_t length, uint64_t now)
{
    aq_assocs *assocs = assoc->socket->assocs;
    int is_done;

    assoc->active = now;
    if (from_visitor == assoc->socket->is_public)
        assoc->sent += length;
    else
        assoc->received += length;
    if (from_visitor) {
        assoc->asked = (uint8_t)(assoc->asked + (assoc->asked < UINT8_MAX));
        if (assoc->unanswered_since == 0)
            assoc->unanswered_since = now;
    } else {
        assoc->was_answered = 1;
        assoc->unanswered_since = 0;
    }
    is_done = !from_visitor && assoc->asked <= SHORT_EXCHANGE;
    if (is_done != assoc->is_done || now > assoc->placed + ORDER_PRECISION) {
        displace_assoc(assocs, assoc);
        place_assoc(assocs, assoc, is_done, now);
    }
}

/* Tells Python that an association has ended, if it wants to know. The mutex is held. */
static void report_end(const aq_assocs *assocs, const aq_assoc *assoc)
{
    aq_event event = {
        .type = AQ_EVENT_ASSOCIATION_ENDED,
        .connection = assocs->connection,
        .value = assoc->association,
        .peer = assoc->source.peer,
        .result = {.sent = assoc->sent,
                   .received = assoc->received,
                   .end = atomic_load(&assocs->dead) ? AQ_END_CONNECTION : AQ_END_FINISHED},
    };
    if (assocs->events == NULL || !atomic_load_explicit(&assocs->events->associations_wanted, memory_order_relaxed))
        return;
    event.code = aq_now() - assoc->began;
    if (aq_events_backlog(assocs->events) < AQ_EVENTS_WAITING)
        aq_events_post(assocs->events, &event);
    else
        aq_count(assocs->counters, AQ_C_events_dropped, 1); /* would have been one line of an access log */
}

/* The mutex is held. */
static void drop_assoc(aq_assoc *assoc)
{
    aq_udp *udp = assoc->socket;
    uint8_t key[AQ_MAP_KEY_MAX];
    report_end(udp->assocs, assoc);
    if (udp->is_public) {
        size_t length = source_key(&assoc->source, key);
        aq_map_remove(&udp->by_source, key, length);
        if (udp->group != NULL)
            aq_group_leave_source(udp->group, udp->member, key, length);
    }
    if (udp->only == assoc)
        udp->only = NULL;
    if (udp->last == assoc)
        udp->last = NULL;
    free(assoc);
}

int64_t aq_assoc_forget(aq_assocs *assocs, uint16_t association)
{
    aq_assoc *assoc;
    pthread_mutex_lock(&assocs->mutex);
    assoc = aq_assocs_find(assocs, association);
    if (assoc != NULL) {
        unlink_assoc(assocs, assoc);
        drop_assoc(assoc);
    }
    pthread_mutex_unlock(&assocs->mutex);
    return assoc != NULL ? AQ_OK : AQ_ERR_GONE;
}

/* Adds the associations of a list that were last active before this time; only those of `host` if it is not NULL. The
 * mutex is held. */
static uint32_t list_idle(const aq_assoc_list *list, const aq_address *host, uint64_t before, uint16_t *out,
                          uint32_t found, uint32_t max)
{
    for (const aq_assoc *assoc = list->first; assoc != NULL && assoc->placed < before && found < max;
         assoc = assoc->order_link.next) {
        if (assoc->active < before && (host == NULL || aq_address_same_host(&assoc->source.peer, host)))
            out[found++] = assoc->association;
    }
    return found;
}

uint32_t aq_assocs_list_idle(aq_assocs *assocs, const aq_address *host, uint64_t before, uint16_t *out, uint32_t max)
{
    uint32_t found;
    pthread_mutex_lock(&assocs->mutex);
    found = list_idle(&assocs->lists[1], host, before, out, 0, max);
    found = list_idle(&assocs->lists[0], host, before, out, found, max);
    pthread_mutex_unlock(&assocs->mutex);
    return found;
}

uint32_t aq_assocs_list_unanswered(aq_assocs *assocs, uint64_t since, uint64_t active, uint16_t *out, uint32_t max)
{
    uint32_t found = 0;
    pthread_mutex_lock(&assocs->mutex);
    for (const aq_assoc *assoc = assocs->lists[0].last;
         assoc != NULL && assoc->placed + ORDER_PRECISION >= active && found < max;
         assoc = assoc->order_link.previous) {
        if (assoc->active >= active && assoc->unanswered_since != 0 && assoc->unanswered_since < since)
            out[found++] = assoc->association;
    }
    pthread_mutex_unlock(&assocs->mutex);
    return found;
}

/* ---- packets to a service that has not answered yet; the mutex is held ------------------------------------------ */

void aq_assoc_keep(aq_assoc *assoc, const uint8_t *payload, size_t length, uint64_t now)
{
    aq_assocs *assocs = assoc->socket->assocs;
    size_t size = sizeof(aq_kept_packet) + length;
    aq_kept_packet *kept;

    drop_kept(assocs, now > KEPT_TIME ? now - KEPT_TIME : 0);
    while (assocs->kept.first != NULL && assocs->kept_bytes + size > KEPT_BYTES)
        drop_kept(assocs, assocs->kept.first->sent + 1);
    kept = malloc(size);
    if (kept == NULL)
        return; /* it is sent all the same */
    kept->sent = now;
    kept->length = length;
    kept->association = assoc->association;
    if (length > 0)
        memcpy(kept->data, payload, length);
    AQ_QUEUE_ADD(&assocs->kept, kept);
    assocs->kept_bytes += size;
}

void aq_assoc_each_kept(aq_assoc *assoc, uint64_t now, void (*send)(void *, aq_assoc *, const uint8_t *, size_t),
                        void *context)
{
    for (aq_kept_packet *kept = assoc->socket->assocs->kept.first; kept != NULL; kept = kept->next) {
        if (kept->association == assoc->association && kept->sent + KEPT_TIME >= now)
            send(context, assoc, kept->data, kept->length);
    }
}

/* ---- addresses that get no new associations ------------------------------------------------------------------- */

void aq_assocs_refuse(aq_assocs *assocs, const aq_address *from, uint64_t until)
{
    aq_address host = from != NULL ? *from : (aq_address){0};
    aq_refusal *place = &assocs->refusals[0];
    pthread_mutex_lock(&assocs->mutex);
    for (size_t i = 0; i < AQ_REFUSALS; i++) {
        aq_refusal *refusal = &assocs->refusals[i];
        if (refusal->until != 0 && aq_address_same_host(&refusal->from, &host)) {
            place = refusal;
            break;
        }
        if (refusal->until < place->until)
            place = refusal;
    }
    place->from = host;
    place->until = until;
    pthread_mutex_unlock(&assocs->mutex);
}

int aq_assocs_refuses(const aq_assocs *assocs, const aq_address *from, uint64_t now)
{
    for (size_t i = 0; i < AQ_REFUSALS; i++) {
        const aq_refusal *refusal = &assocs->refusals[i];
        if (now < refusal->until && (refusal->from.family == 0 || aq_address_same_host(&refusal->from, from)))
            return 1;
    }
    return 0;
}

/* ---- visitors that are not permitted ---------------------------------------------------------------------------- */

void aq_assocs_permit(aq_assocs *assocs, aq_ranges *permitted)
{
    aq_ranges *before;
    if (permitted != NULL)
        aq_ranges_ref(permitted);
    pthread_mutex_lock(&assocs->mutex);
    before = assocs->permitted;
    assocs->permitted = permitted;
    pthread_mutex_unlock(&assocs->mutex);
    aq_ranges_unref(before);
}

uint32_t aq_assocs_list_refused(aq_assocs *assocs, uint16_t *out, uint32_t max)
{
    uint32_t found = 0;
    pthread_mutex_lock(&assocs->mutex);
    for (size_t i = 0; assocs->permitted != NULL && i < AQ_ARRAY_LENGTH(assocs->lists); i++) {
        for (const aq_assoc *assoc = assocs->lists[i].first; assoc != NULL && found < max;
             assoc = assoc->order_link.next) {
            if (!aq_limits_permit(assocs->permitted, &assoc->source.peer))
                out[found++] = assoc->association;
        }
    }
    pthread_mutex_unlock(&assocs->mutex);
    return found;
}

/* ---- sockets ----------------------------------------------------------------------------------------------- */

aq_udp *aq_udp_new(aq_assocs *assocs, int fd, int is_public, aq_group *group, int64_t *error)
{
    aq_udp *udp;
    aq_sockaddr bound;
    socklen_t length = sizeof(bound);
    uint8_t secret[16];
    int failed, has_many_addresses;
    aq_udp_losses losses;

    if (getsockname(fd, &bound.sa, &length) != 0) {
        *error = AQ_ERR_SYSTEM - errno;
        return NULL;
    }
    has_many_addresses = is_public && aq_udp_has_many_addresses(&bound);
    aq_udp_losses_begin(&losses, fd);
    failed = aq_udp_setup_service(fd, has_many_addresses);
    if (failed != 0) {
        *error = AQ_ERR_SYSTEM + failed;
        return NULL;
    }
    pthread_mutex_lock(&assocs->mutex);
    *error = assocs->dead ? AQ_ERR_GONE : AQ_OK;
    if (*error == AQ_OK && !atomic_load(&assocs->has_queue)) {
        *error = aq_dgram_init(&assocs->queue, assocs->queue_limit);
        if (*error == AQ_OK)
            atomic_store(&assocs->has_queue, 1);
    }
    pthread_mutex_unlock(&assocs->mutex);
    if (*error != AQ_OK)
        return NULL;
    udp = calloc(1, sizeof(*udp));
    *error = AQ_ERR_MEMORY;
    if (udp == NULL)
        return NULL;
    aq_random(secret, sizeof(secret));
    if (is_public) {
        if (aq_map_init(&udp->by_source, secret) != AQ_OK)
            goto no_map;
        if (aq_map_init(&udp->waiting_by_source, secret) != AQ_OK)
            goto no_waiting;
    }
    if (group != NULL) {
        udp->member = calloc(1, sizeof(*udp->member));
        if (udp->member == NULL)
            goto no_member;
        udp->group = group;
        aq_group_ref(group);
    }
    udp->fd = fd;
    udp->is_public = is_public;
    udp->has_many_addresses = has_many_addresses;
    udp->losses = losses;
    udp->family = bound.sa.sa_family;
    udp->assocs = assocs;
    aq_assocs_ref(assocs);
    *error = AQ_OK;
    return udp;

no_member:
    aq_map_destroy(&udp->waiting_by_source);
no_waiting:
    aq_map_destroy(&udp->by_source);
no_map:
    free(udp);
    return NULL;
}

/* ---- sources that wait for an association; the mutex is held ---------------------------------------------------- */

static aq_waiting_source *waiting_source(aq_udp *udp, const aq_udp_source *source)
{
    uint8_t key[AQ_MAP_KEY_MAX];
    if (!udp->is_public)
        return udp->waiting.first; /* connected: there is only one */
    return aq_map_get(&udp->waiting_by_source, key, source_key(source, key));
}

/* Bytes that a waiting datagram occupies. */
static size_t waiting_size(size_t length)
{
    return sizeof(waiting_datagram) + length;
}

static aq_waiting_source *new_source(aq_udp *udp, const aq_udp_source *source)
{
    aq_waiting_source *waiting = calloc(1, sizeof(*waiting));
    uint8_t key[AQ_MAP_KEY_MAX];
    if (waiting == NULL)
        return NULL;
    waiting->source = *source;
    if (udp->is_public) {
        size_t length = source_key(source, key);
        if (udp->group != NULL && aq_group_enter_source(udp->group, udp->member, key, length) != AQ_OK) {
            free(waiting);
            return NULL;
        }
        if (aq_map_put(&udp->waiting_by_source, key, length, waiting) != AQ_OK) {
            if (udp->group != NULL)
                aq_group_leave_source(udp->group, udp->member, key, length);
            free(waiting);
            return NULL;
        }
    }
    AQ_LIST_ADD_FIRST(&udp->waiting, waiting, link);
    udp->waiting_count++;
    return waiting;
}

/* Removes the source from the list; its datagrams pass to the caller. */
static waiting_datagram *take_source(aq_udp *udp, aq_waiting_source *source)
{
    waiting_datagram *first = source->first;
    uint8_t key[AQ_MAP_KEY_MAX];
    for (const waiting_datagram *datagram = first; datagram != NULL; datagram = datagram->next)
        udp->waiting_bytes -= waiting_size(datagram->length);
    if (udp->is_public)
        aq_map_remove(&udp->waiting_by_source, key, source_key(&source->source, key));
    AQ_LIST_REMOVE(&udp->waiting, source, link);
    udp->waiting_count--;
    free(source);
    return first;
}

static void drop_source(aq_udp *udp, aq_waiting_source *source)
{
    waiting_datagram *datagram, *next;
    if (udp->group != NULL) {
        uint8_t key[AQ_MAP_KEY_MAX];
        aq_group_leave_source(udp->group, udp->member, key, source_key(&source->source, key));
    }
    datagram = take_source(udp, source);
    for (; datagram != NULL; datagram = next) {
        next = datagram->next;
        aq_count(udp->assocs->counters, AQ_C_udp_drop_no_association, 1);
        free(datagram);
    }
}

static void drop_waiting(aq_udp *udp)
{
    while (udp->waiting.first != NULL)
        drop_source(udp, udp->waiting.first);
}

void aq_udp_drop_source(aq_udp *udp, const aq_udp_source *source)
{
    aq_waiting_source *waiting;
    pthread_mutex_lock(&udp->assocs->mutex);
    waiting = waiting_source(udp, source);
    if (waiting != NULL)
        drop_source(udp, waiting);
    pthread_mutex_unlock(&udp->assocs->mutex);
}

/* ---- closing a socket ------------------------------------------------------------------------------------------- */

static void count_lost(aq_udp *udp, uint32_t lost)
{
    if (lost > 0)
        aq_count(udp->assocs->counters, AQ_C_udp_drop_kernel, lost);
}

/* The mutex is held. */
static void end_assoc(aq_assocs *assocs, aq_assoc *assoc)
{
    unlink_assoc(assocs, assoc);
    drop_assoc(assoc);
}

void aq_udp_detach(aq_udp *udp)
{
    aq_assocs *assocs = udp->assocs;
    pthread_mutex_lock(&assocs->mutex);
    if (!udp->closed && (udp->group == NULL || aq_group_leave_socket(udp->group, udp->member)))
        count_lost(udp, aq_udp_losses_end(&udp->losses, udp->fd));
    udp->closed = 1;
    if (udp->only != NULL)
        end_assoc(assocs, udp->only);
    for (size_t i = 0; udp->is_public && i < AQ_ARRAY_LENGTH(assocs->lists); i++) {
        aq_assoc *assoc, *next;
        for (assoc = assocs->lists[i].first; assoc != NULL; assoc = next) {
            next = assoc->order_link.next;
            if (assoc->socket == udp)
                end_assoc(assocs, assoc);
        }
    }
    drop_waiting(udp);
    pthread_mutex_unlock(&assocs->mutex);
}

void aq_udp_free(aq_udp *udp)
{
    drop_waiting(udp);
    if (udp->is_public) {
        aq_map_destroy(&udp->by_source);
        aq_map_destroy(&udp->waiting_by_source);
    }
    if (udp->group != NULL)
        aq_group_unref(udp->group);
    free(udp->member);
    aq_assocs_unref(udp->assocs);
    free(udp);
}

/* ---- the path of a datagram into the connection -------------------------------------------------------------- */

/* Queues one UDP packet of a known association, unless it is beyond a bandwidth limit. The mutex is held. */
static void forward(aq_assoc *assoc, const uint8_t *payload, size_t length, uint64_t now)
{
    aq_assocs *assocs = assoc->socket->assocs;
    aq_dgram_record *record;
    uint16_t packet;
    if (!aq_buckets_pass(&assocs->buckets, AQ_DIRECTION_SENT, length, now))
        return;
    packet = assoc->next_packet++;
    if (length > UINT16_MAX) {
        aq_count(assocs->counters, AQ_C_packet_drop_too_big, 1);
        return;
    }
    record = aq_dgram_reserve(&assocs->queue, length);
    if (record == NULL) {
        aq_count(assocs->counters, AQ_C_packet_drop_ring_full, 1);
        return;
    }
    record->header = assoc->header_length;
    record->ipv6 = assoc->source.peer.family == 6;
    record->payload = (uint32_t)length;
    memcpy(record->data, assoc->header, assoc->header_length);
    record->data[4] = (uint8_t)(packet >> 8);
    record->data[5] = (uint8_t)packet;
    record->data[8] = (uint8_t)(length >> 8);
    record->data[9] = (uint8_t)length;
    memcpy(record->data + assoc->header_length, payload, length);
    aq_dgram_commit(&assocs->queue, record);
    assocs->payload_sent += length;
    aq_assoc_seen(assoc, assoc->socket->is_public, length, now);
}

/* The mutex is held. */
static void wait_for_association(aq_udp *udp, aq_udp_batch *batch, const aq_udp_source *from, const uint8_t *payload,
                                 size_t length, uint64_t now)
{
    aq_waiting_source *source = waiting_source(udp, from);
    waiting_datagram *datagram = NULL;
    if (udp->is_public && source == NULL && aq_assocs_refuses(udp->assocs, &from->peer, now)) {
        aq_count(udp->assocs->counters, AQ_C_udp_drop_no_association, 1);
        return;
    }
    if (udp->waiting_bytes + waiting_size(length) <= WAITING_BYTES &&
        (source != NULL || (udp->waiting_count < WAITING_SOURCES && batch->asked < AQ_UDP_ASKED)))
        datagram = malloc(waiting_size(length));
    if (datagram != NULL && source == NULL && (source = new_source(udp, from)) != NULL &&
        udp->is_public) /* the owner of a local socket is about to add its association anyway */
        batch->sources[batch->asked++] = *from;
    if (datagram == NULL || source == NULL) {
        aq_count(udp->assocs->counters, AQ_C_packet_drop_waiting_full, 1);
        free(datagram);
        return;
    }
    datagram->length = length;
    memcpy(datagram->data, payload, length);
    AQ_QUEUE_ADD(source, datagram);
    udp->waiting_bytes += waiting_size(length);
}

/* Scopes count: two interfaces may lead to the same link-local address. */
static int same_source(const aq_udp_source *first, const aq_udp_source *second)
{
    return aq_address_equal(&first->peer, &second->peer) && first->peer.scope == second->peer.scope &&
           aq_address_equal(&first->local, &second->local) && first->local.scope == second->local.scope;
}

/* The mutex is held. */
static aq_assoc *assoc_of(aq_udp *udp, const aq_udp_source *source)
{
    uint8_t key[AQ_MAP_KEY_MAX];
    if (!udp->is_public)
        return udp->only;
    if (udp->last != NULL && same_source(&udp->last->source, source))
        return udp->last;
    return aq_map_get(&udp->by_source, key, source_key(source, key));
}

/* Returns whether this is a multicast or broadcast address: no host owns it, so nothing can be sent from it. */
static int is_group(const aq_sockaddr *address)
{
    if (address->sa.sa_family == AF_INET)
        return IN_MULTICAST(ntohl(address->in.sin_addr.s_addr)) || address->in.sin_addr.s_addr == INADDR_BROADCAST;
    return address->sa.sa_family == AF_INET6 && IN6_IS_ADDR_MULTICAST(&address->in6.sin6_addr);
}

static void source_of(const aq_udp *udp, const aq_udp_message *message, aq_udp_source *source)
{
    aq_sockaddr_to(&message->peer, &source->peer);
    if (udp->has_many_addresses && !is_group(&message->local))
        aq_sockaddr_to(&message->local, &source->local);
    else
        memset(&source->local, 0, sizeof(source->local)); /* the kernel chooses the source of answers */
}

int aq_udp_is_transient_error(int64_t error)
{
    return error == -ECONNREFUSED || error == -EHOSTUNREACH || error == -ENETUNREACH || error == -EHOSTDOWN ||
           error == -ENETDOWN || error == -EMSGSIZE || error == -EPROTO || error == -ENOPROTOOPT;
}

/* Errors which mean that the destination does not take what was sent. */
static int is_refusal(int64_t error)
{
    return error == -ECONNREFUSED || error == -EHOSTUNREACH || error == -ENETUNREACH || error == -EHOSTDOWN ||
           error == -EPROTO || error == -ENOPROTOOPT;
}

uint32_t aq_udp_datagrams(const aq_udp_message *message)
{
    if (message->segment == 0 || message->length == 0)
        return 1;
    return (uint32_t)((message->length + message->segment - 1) / message->segment);
}

/* Counts the datagrams of a message whose visitor is not permitted. Python is not asked. The mutex is held. */
static void deny(aq_assocs *assocs, const aq_udp_message *message, const aq_address *visitor, aq_udp_batch *batch,
                 uint64_t now)
{
    uint32_t datagrams = aq_udp_datagrams(message);
    uint64_t due = aq_refusals_add(&assocs->refused, datagrams, now);
    aq_count(assocs->counters, AQ_C_udp_drop_not_permitted, datagrams);
    batch->received += datagrams;
    if (due == 0)
        return;
    batch->denied += due;
    batch->denied_peer = *visitor;
}

/* Handles each datagram of a message, into which the kernel may have merged many. The mutex is held. */
static void read_message(aq_udp *udp, const aq_udp_message *message, aq_udp_batch *batch, uint64_t now)
{
    size_t step = message->segment != 0 ? message->segment : message->length;
    size_t offset = 0;
    aq_udp_source source;
    aq_assoc *assoc;

    source_of(udp, message, &source);
    assoc = assoc_of(udp, &source);
    udp->last = assoc;
    if (assoc == NULL && udp->is_public && !aq_limits_permit(udp->assocs->permitted, &source.peer)) {
        deny(udp->assocs, message, &source.peer, batch, now);
        return;
    }
    do {
        size_t length = message->length - offset;
        if (length > step)
            length = step;
        batch->received++;
        if (assoc != NULL) {
            forward(assoc, message->data + offset, length, now);
            batch->forwarded++;
        } else {
            wait_for_association(udp, batch, &source, message->data + offset, length, now);
        }
        offset += length;
    } while (offset < message->length);
}

int64_t aq_udp_read(aq_udp *udp, aq_udp_receiver *receiver, aq_udp_batch *batch)
{
    aq_assocs *assocs = udp->assocs;
    aq_udp_message messages[AQ_UDP_MESSAGES];
    uint64_t now = aq_now();
    int count, gone;

    batch->received = batch->forwarded = batch->asked = 0;
    batch->denied = 0;
    batch->more = batch->refused = 0;
    count = aq_udp_receive_batch(receiver, udp->fd, messages, AQ_UDP_MESSAGES);
    if (count < 0 && aq_udp_is_transient_error(count)) {
        if (!udp->is_public && is_refusal(count)) {
            batch->refused = -count;
            pthread_mutex_lock(&assocs->mutex);
            batch->was_answered = udp->only != NULL && udp->only->was_answered;
            pthread_mutex_unlock(&assocs->mutex);
        }
        aq_count(assocs->counters, batch->refused != 0 ? AQ_C_udp_service_refused : AQ_C_udp_receive_errors, 1);
        batch->more = 1;
        return AQ_OK;
    }
    if (count < 0)
        return AQ_ERR_SYSTEM + count;
    batch->more = count == AQ_UDP_MESSAGES;
    pthread_mutex_lock(&assocs->mutex);
    gone = assocs->dead || udp->closed;
    for (int i = 0; i < count; i++) {
        if (gone)
            batch->received += aq_udp_datagrams(&messages[i]);
        else
            read_message(udp, &messages[i], batch, now);
    }
    if (!gone)
        count_lost(udp, aq_udp_losses_read(&udp->losses, udp->fd, messages, count, AQ_UDP_MESSAGES));
    pthread_mutex_unlock(&assocs->mutex);
    aq_count(assocs->counters, AQ_C_udp_received, batch->received);
    if (gone)
        aq_count(assocs->counters, AQ_C_packet_drop_connection_closed, batch->received);
    return gone ? AQ_ERR_GONE : AQ_OK;
}

int64_t aq_udp_take(aq_udp *udp, const aq_udp_message *message, aq_udp_batch *batch, uint64_t now)
{
    aq_assocs *assocs = udp->assocs;
    int gone;
    batch->received = batch->forwarded = batch->asked = 0;
    batch->denied = 0;
    pthread_mutex_lock(&assocs->mutex);
    gone = assocs->dead || udp->closed;
    if (!gone)
        read_message(udp, message, batch, now);
    pthread_mutex_unlock(&assocs->mutex);
    if (gone)
        return AQ_ERR_GONE;
    aq_count(assocs->counters, AQ_C_udp_received, batch->received);
    return AQ_OK;
}

size_t aq_udp_source_key(const aq_udp *udp, const aq_udp_message *message, uint8_t key[AQ_MAP_KEY_MAX])
{
    aq_udp_source source;
    source_of(udp, message, &source);
    return source_key(&source, key);
}

void aq_udp_begin_losses(aq_udp *udp)
{
    pthread_mutex_lock(&udp->assocs->mutex);
    aq_udp_losses_begin(&udp->losses, udp->fd);
    pthread_mutex_unlock(&udp->assocs->mutex);
}

void aq_udp_count_losses(aq_udp *udp, const aq_udp_message *messages, int count)
{
    pthread_mutex_lock(&udp->assocs->mutex);
    count_lost(udp, aq_udp_losses_read(&udp->losses, udp->fd, messages, count, AQ_UDP_MESSAGES));
    pthread_mutex_unlock(&udp->assocs->mutex);
}

void aq_assocs_signal(aq_assocs *assocs)
{
    aq_assocs_ref(assocs);
    if (!aq_ready_add(assocs->ready, &assocs->node))
        aq_assocs_unref(assocs);
}

/* ---- new associations ---------------------------------------------------------------------------------------- */

/* The mutex is held. */
static int64_t link_assoc(aq_udp *udp, aq_assoc *assoc)
{
    aq_assocs *assocs = udp->assocs;
    aq_assoc ***page = &assocs->pages[assoc->association >> 8];
    uint8_t key[AQ_MAP_KEY_MAX];
    size_t key_length = source_key(&assoc->source, key);
    int64_t result;

    if (assocs->dead || udp->closed)
        return AQ_ERR_GONE;
    if (!aq_limits_permit(assocs->permitted, &assoc->source.peer))
        return AQ_ERR_STATE; /* the rules have changed since Python was asked */
    if (udp->is_public ? aq_map_get(&udp->by_source, key, key_length) != NULL : udp->only != NULL)
        return AQ_ERR_LIMIT;
    if (*page == NULL && (*page = calloc(256, sizeof(**page))) == NULL)
        return AQ_ERR_MEMORY;
    if ((*page)[assoc->association & 0xff] != NULL)
        return AQ_ERR_LIMIT;
    if (udp->group != NULL && (result = aq_group_enter_source(udp->group, udp->member, key, key_length)) != AQ_OK)
        return result;
    if (udp->is_public && (result = aq_map_put(&udp->by_source, key, key_length, assoc)) != AQ_OK) {
        if (udp->group != NULL && waiting_source(udp, &assoc->source) == NULL)
            aq_group_leave_source(udp->group, udp->member, key, key_length);
        return result;
    }
    (*page)[assoc->association & 0xff] = assoc;
    place_assoc(assocs, assoc, 0, assoc->active);
    assocs->count++;
    if (!udp->is_public)
        udp->only = assoc;
    return AQ_OK;
}

/* Queues the datagrams that waited for the association, in order. Returns whether there were any. The mutex is held. */
static int64_t replay(aq_udp *udp, aq_assoc *assoc)
{
    aq_waiting_source *source = waiting_source(udp, &assoc->source);
    uint64_t now = aq_now();
    waiting_datagram *datagram, *next;

    if (source == NULL)
        return 0;
    for (datagram = take_source(udp, source); datagram != NULL; datagram = next) {
        next = datagram->next;
        forward(assoc, datagram->data, datagram->length, now);
        free(datagram);
    }
    return 1;
}

static void set_prefix(aq_assoc *assoc, const uint8_t *prefix, size_t length)
{
    assoc->prefix_length = (uint8_t)length;
    if (length > 0)
        memcpy(assoc->prefix, prefix, length);
}

static int is_known_family(int family)
{
    return family == 4 || family == 6;
}

int64_t aq_assoc_new(aq_udp *udp, uint16_t association, const aq_udp_source *source, const uint8_t *prefix,
                     size_t prefix_length)
{
    aq_assoc *assoc;
    int64_t result;

    if (!is_known_family(source->peer.family) || prefix_length > AQ_ASSOC_PREFIX_MAX ||
        (source->local.family != 0 && (!udp->has_many_addresses || !is_known_family(source->local.family))))
        return AQ_ERR_INVALID;
    assoc = calloc(1, sizeof(*assoc));
    if (assoc == NULL)
        return AQ_ERR_MEMORY;
    assoc->association = association;
    assoc->source = *source;
    assoc->source.local.port = 0;
    assoc->socket = udp;
    assoc->to.sa.sa_family = assoc->from.sa.sa_family = AF_UNSPEC;
    if (udp->is_public)
        aq_sockaddr_from(&assoc->to, &source->peer, udp->family);
    if (source->local.family != 0)
        aq_sockaddr_from(&assoc->from, &source->local, udp->family);
    assoc->header_length = (uint8_t)aq_packet_encode(assoc->header, association, 0, 1, 0, 0, &source->peer);
    set_prefix(assoc, prefix, prefix_length);
    assoc->active = assoc->began = aq_now();

    /* Both under one lock: a reader between them would overtake the datagrams that waited. */
    pthread_mutex_lock(&udp->assocs->mutex);
    result = link_assoc(udp, assoc);
    if (result == AQ_OK)
        result = replay(udp, assoc);
    pthread_mutex_unlock(&udp->assocs->mutex);
    if (result < 0)
        free(assoc);
    return result;
}

int64_t aq_udp_replace(aq_udp *udp, int fd, const uint8_t *prefix, size_t prefix_length)
{
    aq_udp_losses losses;
    int64_t result = AQ_OK;
    int failed;

    if (udp->is_public || prefix_length > AQ_ASSOC_PREFIX_MAX)
        return AQ_ERR_INVALID;
    aq_udp_losses_begin(&losses, fd);
    failed = aq_udp_setup_service(fd, 0);
    if (failed != 0)
        return AQ_ERR_SYSTEM + failed;
    pthread_mutex_lock(&udp->assocs->mutex);
    if (udp->only == NULL) {
        result = AQ_ERR_GONE;
    } else {
        count_lost(udp, aq_udp_losses_end(&udp->losses, udp->fd));
        if (dup3(fd, udp->fd, O_CLOEXEC) < 0) {
            result = AQ_ERR_SYSTEM - errno;
        } else {
            udp->losses = losses;
            set_prefix(udp->only, prefix, prefix_length);
            udp->only->was_answered = 0;
        }
    }
    pthread_mutex_unlock(&udp->assocs->mutex);
    return result;
}

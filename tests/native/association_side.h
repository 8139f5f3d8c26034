/* What the tests of UDP associations share: loopback sockets, and the engine's side played by hand, which reads what
 * the pump left in the queue.
 */
#ifndef ASSOCIATION_SIDE_H
#define ASSOCIATION_SIDE_H

#include "tunnel/association.h"

#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>

#define CONNECTION 4711

static aq_counters counters;
static aq_wake wake;
static aq_ready ready;
static aq_udp_receiver *receiver;
static aq_udp_batch batch;

static inline uint64_t counted(enum aq_counter which)
{
    return atomic_exchange(&counters.value[which], 0);
}

/* A source of a socket that has one address. */
#define FROM(address) (&(const aq_udp_source){.peer = *(address)})

/* ---- sockets --------------------------------------------------------------------------------------------------- */

/* A socket on loopback; *address gets where it is, as a socket of the same family reports it. */
static inline int open_socket(int family, aq_address *address)
{
    aq_sockaddr name;
    socklen_t length = sizeof(name);
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    memset(&name, 0, sizeof(name));
    name.sa.sa_family = (sa_family_t)family;
    if (family == AF_INET)
        name.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else
        name.in6.sin6_addr = in6addr_loopback;
    CHECK_INT(bind(fd, &name.sa, aq_sockaddr_length(&name)), 0);
    CHECK_INT(getsockname(fd, &name.sa, &length), 0);
    aq_sockaddr_to(&name, address);
    return fd;
}

static inline uint32_t held_by(int fd)
{
    uint32_t memory[SK_MEMINFO_VARS] = {0};
    socklen_t length = sizeof(memory);

    CHECK_INT(getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &length), 0);
    return memory[SK_MEMINFO_RMEM_ALLOC];
}

/* Sends a datagram and returns once it is in the receiver's buffer, so that one batch finds all that was sent. */
static inline void send_to(int from, int fd, const aq_address *to, const void *data, size_t length)
{
    uint32_t before = held_by(fd);
    aq_sockaddr name;
    socklen_t name_length = aq_sockaddr_from(&name, to, 0);

    CHECK_INT(sendto(from, data, length, 0, &name.sa, name_length), (int64_t)length);
    while (held_by(fd) <= before)
        sched_yield();
}

static inline aq_udp *open_udp(aq_assocs *assocs, int fd, int is_public)
{
    int64_t error = 1;
    aq_udp *udp = aq_udp_new(assocs, fd, is_public, NULL, &error);

    CHECK_INT(error, AQ_OK);
    CHECK(udp != NULL);
    return udp;
}

static inline void close_udp(aq_udp *udp)
{
    int fd = udp->fd;

    aq_udp_detach(udp);
    aq_udp_free(udp);
    CHECK_INT(close(fd), 0); /* it was left open */
}

/* Reads as the engine and the pump do: what went into the queue is told to the engine. */
static inline void read_batch(aq_udp *udp, uint32_t received, uint32_t forwarded, uint32_t asked)
{
    CHECK_INT(aq_udp_read(udp, receiver, &batch), AQ_OK);
    CHECK_INT(batch.received, received);
    CHECK_INT(batch.forwarded, forwarded);
    CHECK_INT(batch.asked, asked);
    CHECK_INT(counted(AQ_C_udp_received), received);
    if (batch.forwarded > 0)
        aq_assocs_signal(udp->assocs);
}

/* Adds an association; `waited`: something of its source follows at once. */
static inline void add_association(aq_udp *udp, uint16_t association, const aq_address *peer, int waited)
{
    CHECK_INT(aq_assoc_new(udp, association, FROM(peer), NULL, 0), waited);
    if (waited)
        aq_assocs_signal(udp->assocs);
}

/* ---- the engine's side ----------------------------------------------------------------------------------------- */

/* Whether the engine was told to look; gives back the list's reference as the engine does. */
static inline int told(aq_assocs *assocs)
{
    aq_ready_node *node = aq_ready_take(&ready);

    if (node == NULL)
        return 0;
    CHECK(node == &assocs->node && node->next == NULL);
    CHECK_INT(node->kind, AQ_READY_ASSOCIATIONS);
    CHECK_INT(atomic_exchange(&node->queued, 0), 1);
    aq_assocs_unref(assocs);
    return 1;
}

/* The oldest packet in the queue is this one. */
static inline void next_packet(aq_assocs *assocs, uint16_t association, uint16_t packet, const aq_address *address,
                               const void *expected, size_t length)
{
    aq_dgram_record *record = aq_dgram_front(&assocs->queue);
    aq_packet_header header;
    const char *problem = NULL;

    CHECK(record != NULL);
    CHECK_INT(record->payload, length);
    CHECK_INT(record->ipv6, address->family == 6);
    CHECK_INT(aq_packet_decode(record->data, record->header, &header, &problem), 1);
    CHECK_INT(header.header, record->header);
    CHECK_INT(header.association, association);
    CHECK_INT(header.packet, packet);
    CHECK_INT(header.total, 1);
    CHECK_INT(header.index, 0);
    CHECK_INT(header.size, length);
    CHECK(aq_address_equal(&header.address, address));
    CHECK_BYTES(record->data + record->header, expected, length);
    aq_dgram_pop(&assocs->queue);
}

static inline void nothing_left(aq_assocs *assocs)
{
    CHECK(aq_dgram_front(&assocs->queue) == NULL);
    CHECK(!told(assocs));
}

static inline aq_assocs *new_assocs(void)
{
    aq_assocs *assocs = aq_assocs_new(CONNECTION, &ready, &counters, 64 * 1024);

    CHECK(assocs != NULL);
    CHECK_INT(assocs->connection, CONNECTION);
    return assocs;
}

/* The last reference: whoever forgot one makes the leak checker speak. */
static inline void end_assocs(aq_assocs *assocs)
{
    CHECK_INT(assocs->count, 0);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(assocs->lists); i++)
        CHECK(assocs->lists[i].first == NULL && assocs->lists[i].last == NULL);
    CHECK_INT(atomic_load(&assocs->references), 1);
    aq_assocs_unref(assocs);
    for (size_t i = 0; i < AQ_COUNTER_COUNT; i++)
        CHECK_INT(atomic_load(&counters.value[i]), 0); /* every one was expected */
}

static inline void sides_init(void)
{
    CHECK_INT(aq_wake_init(&wake), 0);
    aq_ready_init(&ready, &wake);
    receiver = aq_udp_receiver_new();
    CHECK(receiver != NULL);
}

static inline void sides_destroy(void)
{
    CHECK(aq_ready_take(&ready) == NULL);
    aq_udp_receiver_free(receiver);
    aq_ready_destroy(&ready);
    aq_wake_destroy(&wake);
}

#endif

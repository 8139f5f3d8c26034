/* Datagrams of known associations on their way into the connection: order, sizes, bounds, errors, and two threads. */
#include "association_side.h"

#define WATCHDOG_SECONDS 60
#define LARGEST 65507U /* payload of the largest UDP packet over IPv4 */
#define PACKETS 20000U /* through the two threads */

static uint8_t payload[LARGEST + 256];

static void test_sizes(void)
{
    static const size_t SIZES[] = {0, 1, 0, 2, 1200, 1472, 1473, 9000, LARGEST, 0, 5};
    aq_address here, peer;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), sender = open_socket(AF_INET, &peer);
    aq_udp *udp = open_udp(assocs, fd, 1);
    aq_assoc *assoc;
    size_t i;

    CHECK_INT(aq_assoc_new(udp, 258, FROM(&peer), NULL, 0), AQ_OK);
    assoc = aq_assocs_find(assocs, 258);
    assoc->active = 1;
    assoc->next_packet = UINT16_MAX - 3; /* the packet id wraps on the way */
    for (i = 0; i < AQ_ARRAY_LENGTH(SIZES); i++)
        send_to(sender, fd, &here, payload + i, SIZES[i]);
    read_batch(udp, AQ_ARRAY_LENGTH(SIZES), AQ_ARRAY_LENGTH(SIZES), 0);
    CHECK(!batch.more);
    CHECK(told(assocs));
    for (i = 0; i < AQ_ARRAY_LENGTH(SIZES); i++)
        next_packet(assocs, 258, (uint16_t)(UINT16_MAX - 3 + i), &peer, payload + i, SIZES[i]);
    nothing_left(assocs);
    CHECK(assoc->active > 1);

    /* more than a batch: the reader is told to come again */
    for (i = 0; i < AQ_UDP_MESSAGES + 3; i++)
        send_to(sender, fd, &here, payload + i, 3);
    read_batch(udp, AQ_UDP_MESSAGES, AQ_UDP_MESSAGES, 0);
    CHECK(batch.more);
    read_batch(udp, 3, 3, 0);
    CHECK(!batch.more);
    CHECK(told(assocs));
    for (i = 0; i < AQ_UDP_MESSAGES + 3; i++)
        next_packet(assocs, 258, (uint16_t)(UINT16_MAX - 3 + AQ_ARRAY_LENGTH(SIZES) + i), &peer, payload + i, 3);
    nothing_left(assocs);
    close_udp(udp);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);
}

/* A train that the kernel hands over as one message is the datagrams that it was made of, for a source that waits and
 * for a known one. */
static void test_train(void)
{
    enum { SEGMENT = 1000, COUNT = 5, LAST = 17, LENGTH = (COUNT - 1) * SEGMENT + LAST };
    aq_address here, peer;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), sender = open_socket(AF_INET, &peer), gso = 1, round;
    aq_udp *udp = open_udp(assocs, fd, 1);
    aq_sockaddr to;
    uint16_t i;

    aq_sockaddr_from(&to, &here, 0);
    for (round = 0; round < 2; round++) {
        struct pollfd item = {.fd = fd, .events = POLLIN};
        size_t sent = 0;

        CHECK_INT(aq_udp_send(sender, &to, NULL, 0, payload, LENGTH, SEGMENT, &gso, &sent), 0);
        CHECK_INT(sent, LENGTH);
        CHECK_INT(poll(&item, 1, -1), 1);
        read_batch(udp, COUNT, round == 0 ? 0 : COUNT, round == 0);
        if (round == 0)
            add_association(udp, 9, &peer, 1);
        CHECK(told(assocs));
        for (i = 0; i < COUNT; i++)
            next_packet(assocs, 9, (uint16_t)(round * COUNT + i), &peer, payload + i * SEGMENT,
                        i == COUNT - 1 ? LAST : SEGMENT);
        nothing_left(assocs);
    }
    close_udp(udp);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);
}

/* A client's socket is connected to the service and belongs to one association, whose address is another. */
static void test_local_socket(void)
{
    const aq_address outside = {.family = 6, .ip = {0x20, 1, 0xd, 0xb8, [15] = 1}, .port = 443};
    aq_address here, service, closed;
    aq_sockaddr name;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), at = open_socket(AF_INET, &service), gone = open_socket(AF_INET, &closed);
    aq_udp *udp;

    aq_sockaddr_from(&name, &service, 0);
    CHECK_INT(connect(fd, &name.sa, aq_sockaddr_length(&name)), 0);
    udp = open_udp(assocs, fd, 0);
    send_to(at, fd, &here, "early", 5);
    read_batch(udp, 1, 0, 0); /* waits, and nobody is asked: the association is about to come */
    add_association(udp, 5, &outside, 1);
    CHECK_INT(aq_assocs_find(assocs, 5)->to.sa.sa_family, AF_UNSPEC);
    CHECK_INT(aq_assoc_new(udp, 6, FROM(&here), NULL, 0), AQ_ERR_LIMIT); /* one only */
    send_to(at, fd, &here, "next", 4);
    read_batch(udp, 1, 1, 0);
    CHECK(told(assocs));
    next_packet(assocs, 5, 0, &outside, "early", 5);
    next_packet(assocs, 5, 1, &outside, "next", 4);
    nothing_left(assocs);
    CHECK_INT(aq_assoc_forget(assocs, 5), AQ_OK);
    add_association(udp, 6, &outside, 0);
    close_udp(udp);

    /* A service that is not there: counted, and the socket goes on. */
    CHECK_INT(close(gone), 0);
    fd = open_socket(AF_INET, &here);
    aq_sockaddr_from(&name, &closed, 0);
    CHECK_INT(connect(fd, &name.sa, aq_sockaddr_length(&name)), 0);
    udp = open_udp(assocs, fd, 0);
    CHECK_INT(send(fd, "x", 1, 0), 1);
    {
        struct pollfd item = {.fd = fd, .events = POLLIN};

        CHECK_INT(poll(&item, 1, -1), 1);
        CHECK((item.revents & POLLERR) != 0);
    }
    CHECK_INT(aq_udp_read(udp, receiver, &batch), AQ_OK);
    CHECK_INT(batch.received, 0);
    CHECK_INT(batch.more, 1);
    CHECK_INT(counted(AQ_C_udp_service_refused), 1);
    read_batch(udp, 0, 0, 0);
    close_udp(udp);
    CHECK_INT(close(at), 0);
    end_assocs(assocs);
}

/* The engine does not come: the newest are dropped, counted, and still have their packet ids. */
static void test_ring_full(void)
{
    enum { SIZE = 60000, BATCH = 5, BATCHES = 3 };
    aq_address here, peer;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), sender = open_socket(AF_INET, &peer), i;
    aq_udp *udp = open_udp(assocs, fd, 1);
    uint64_t fits;

    CHECK_INT(aq_assoc_new(udp, 1, FROM(&peer), NULL, 0), AQ_OK);
    for (i = 0; i < BATCH * BATCHES; i++) {
        send_to(sender, fd, &here, payload + i, SIZE);
        if (i % BATCH == BATCH - 1)
            read_batch(udp, BATCH, BATCH, 0);
    }
    fits = assocs->queue.capacity / SIZE; /* the headers don't add up to one more */
    CHECK(fits < BATCH * BATCHES);
    CHECK_INT(counted(AQ_C_packet_drop_ring_full), BATCH * BATCHES - fits);
    CHECK(told(assocs));
    for (i = 0; i < (int)fits; i++)
        next_packet(assocs, 1, (uint16_t)i, &peer, payload + i, SIZE);
    nothing_left(assocs);
    send_to(sender, fd, &here, payload, 10);
    read_batch(udp, 1, 1, 0);
    CHECK(told(assocs));
    next_packet(assocs, 1, BATCH * BATCHES, &peer, payload, 10);
    close_udp(udp);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);
}

/* More than half a MiB of one socket does not wait for an answer; with the answer there is room again. */
static void test_waiting_full(void)
{
    enum { SIZE = 60000, SENT = 11, WAITING = 512 * 1024 / SIZE };
    aq_address here, peer;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), sender = open_socket(AF_INET, &peer), round, i;
    aq_udp *udp = open_udp(assocs, fd, 1);

    for (round = 0; round < 2; round++) {
        for (i = 0; i < SENT; i++) {
            send_to(sender, fd, &here, payload + i, SIZE);
            read_batch(udp, 1, 0, i == 0);
        }
        CHECK_INT(counted(AQ_C_packet_drop_waiting_full), SENT - WAITING);
        if (round == 0) {
            aq_udp_drop_source(udp, FROM(&peer));
            CHECK_INT(counted(AQ_C_udp_drop_no_association), WAITING);
        }
    }
    add_association(udp, 1, &peer, 1);
    CHECK(told(assocs));
    for (i = 0; i < WAITING; i++)
        next_packet(assocs, 1, (uint16_t)i, &peer, payload + i, SIZE);
    nothing_left(assocs);
    close_udp(udp);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);
}

/* Small ones cost more than their bytes, and empty ones are not free. */
static void test_waiting_small(void)
{
    enum { MAX_DATAGRAMS = 512 * 1024 / 16 }; /* with no more than a pointer and a length each */
    aq_address here, peer;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), sender = open_socket(AF_INET, &peer), i;
    aq_udp *udp = open_udp(assocs, fd, 1);
    uint64_t waiting = 0, dropped = 0;

    for (i = 0; dropped == 0 && i <= MAX_DATAGRAMS; i++) {
        send_to(sender, fd, &here, "", 0);
        read_batch(udp, 1, 0, i == 0);
        dropped = counted(AQ_C_packet_drop_waiting_full);
        waiting += dropped == 0;
    }
    CHECK_INT(dropped, 1);
    CHECK(waiting > 1000);
    close_udp(udp);
    CHECK_INT(counted(AQ_C_udp_drop_no_association), waiting);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);
}

/* ---- two threads ------------------------------------------------------------------------------------------------- */

static struct {
    aq_assocs *assocs;
    aq_address here, peer;
    int fd;
    _Atomic int asked; /* the engine waits for a word on the source */
    _Atomic int over;
    uint32_t taken; /* the engine's, until it has ended */
} shared;

/* The engine: sleeps until it is told, takes what is there, and looks up associations meanwhile. */
static void *take_packets(void *unused)
{
    uint32_t taken = 0;

    while (taken < PACKETS) {
        aq_dgram_record *record;

        if (told(shared.assocs)) {
            pthread_mutex_lock(&shared.assocs->mutex);
            CHECK(aq_assocs_find(shared.assocs, 77) != NULL);
            pthread_mutex_unlock(&shared.assocs->mutex);
            while ((record = aq_dgram_front(&shared.assocs->queue)) != NULL) {
                next_packet(shared.assocs, 77, (uint16_t)taken, &shared.peer, payload + taken % 200, taken % 1400);
                taken++;
            }
        }
        aq_wake_prepare(&wake);
        if (!atomic_load(&ready.filled) && taken < PACKETS) {
            struct pollfd item = {.fd = wake.fd, .events = POLLIN};

            while (poll(&item, 1, -1) < 0)
                CHECK_INT(errno, EINTR);
        }
        aq_wake_cancel(&wake);
    }
    return unused;
}

/* A busy socket: the pump reads it. */
static void test_pump_reads(void)
{
    pthread_t engine;
    int sender = open_socket(AF_INET, &shared.peer);
    uint32_t sent = 0, received = 0;
    uint16_t extra = 0, idle[2];
    aq_udp *udp;

    shared.assocs = aq_assocs_new(CONNECTION, &ready, &counters, 64ULL * 1024 * 1024); /* room for all of them */
    CHECK(shared.assocs != NULL);
    shared.fd = open_socket(AF_INET, &shared.here);
    udp = open_udp(shared.assocs, shared.fd, 1);
    CHECK_INT(aq_assoc_new(udp, 77, FROM(&shared.peer), NULL, 0), AQ_OK);
    CHECK_INT(pthread_create(&engine, NULL, take_packets, NULL), 0);
    while (received < PACKETS) {
        const aq_address other = {.family = 4, .port = ++extra};

        for (; sent < PACKETS && sent < received + 10; sent++)
            send_to(sender, shared.fd, &shared.here, payload + sent % 200, sent % 1400);
        CHECK_INT(aq_udp_read(udp, receiver, &batch), AQ_OK);
        CHECK_INT(batch.forwarded, batch.received);
        if (batch.forwarded > 0)
            aq_assocs_signal(shared.assocs);
        received += batch.received;
        /* the table changes around the one that carries */
        CHECK_INT(aq_assoc_new(udp, 78, FROM(&other), NULL, 0), AQ_OK);
        CHECK(aq_assocs_list_idle(shared.assocs, NULL, UINT64_MAX, idle, 2) == 2);
        CHECK_INT(aq_assoc_forget(shared.assocs, 78), AQ_OK);
    }
    CHECK_INT(pthread_join(engine, NULL), 0);
    CHECK_INT(counted(AQ_C_udp_received), PACKETS);
    told(shared.assocs); /* a signal whose packets were found by the look before */
    close_udp(udp);
    CHECK_INT(close(sender), 0);
    end_assocs(shared.assocs);
}

/* The engine: reads the socket itself, passes questions to the pump, and takes what is there. */
static void *read_and_take(void *socket)
{
    aq_udp *udp = socket;
    aq_dgram_record *record;
    uint32_t next = 0;

    while (!atomic_load(&shared.over) || told(shared.assocs)) {
        CHECK_INT(aq_udp_read(udp, receiver, &batch), AQ_OK);
        CHECK(batch.asked <= 1);
        if (batch.asked > 0) {
            CHECK(aq_address_equal(&batch.sources[0].peer, &shared.peer));
            CHECK_INT(atomic_exchange(&shared.asked, 1), 0); /* once, until it is answered */
        }
        while ((record = aq_dgram_front(&shared.assocs->queue)) != NULL) {
            uint32_t number;

            CHECK_INT(record->payload, sizeof(number));
            memcpy(&number, record->data + record->header, sizeof(number));
            CHECK(number >= next); /* nothing overtakes what waited */
            next = number + 1;
            shared.taken++;
            aq_dgram_pop(&shared.assocs->queue);
        }
        told(shared.assocs); /* looked already */
    }
    return NULL;
}

/* A socket as usual: the engine reads, while the pump decides on its source again and again. */
static void test_engine_reads(void)
{
    pthread_t engine;
    int sender = open_socket(AF_INET, &shared.peer);
    aq_udp *udp;
    uint32_t sent, answers = 0;
    uint64_t dropped, received = 0;
    int known = 0;

    shared.assocs = aq_assocs_new(CONNECTION, &ready, &counters, 64ULL * 1024 * 1024);
    CHECK(shared.assocs != NULL);
    shared.fd = open_socket(AF_INET, &shared.here);
    shared.taken = 0;
    udp = open_udp(shared.assocs, shared.fd, 1);
    CHECK_INT(pthread_create(&engine, NULL, read_and_take, udp), 0);
    for (sent = 0; sent < PACKETS; sent++) {
        aq_sockaddr to;
        socklen_t length = aq_sockaddr_from(&to, &shared.here, 0);

        CHECK_INT(sendto(sender, &sent, sizeof(sent), 0, &to.sa, length), sizeof(sent));
        while (sent + 1 - received > 50) { /* no more than the socket holds */
            received += counted(AQ_C_udp_received);
            sched_yield();
        }
        if (known && sent % 7 == 0) {
            CHECK_INT(aq_assoc_forget(shared.assocs, 5), AQ_OK);
            known = 0;
        } else if (atomic_exchange(&shared.asked, 0) != 0) {
            if (answers++ % 3 == 0) {
                aq_udp_drop_source(udp, FROM(&shared.peer));
            } else {
                int64_t waited = aq_assoc_new(udp, 5, FROM(&shared.peer), NULL, 0);

                CHECK_INT(waited, 1);
                aq_assocs_signal(shared.assocs);
                known = 1;
            }
        }
    }
    while ((received += counted(AQ_C_udp_received)) < PACKETS)
        sched_yield();
    CHECK_INT(received, PACKETS);
    atomic_store(&shared.over, 1);
    CHECK_INT(pthread_join(engine, NULL), 0);
    while (aq_dgram_front(&shared.assocs->queue) != NULL) {
        aq_dgram_pop(&shared.assocs->queue);
        shared.taken++;
    }
    CHECK(answers > 10);
    close_udp(udp);
    dropped = counted(AQ_C_udp_drop_no_association);
    CHECK(shared.taken > 0 && dropped > 0);
    CHECK_INT(shared.taken + dropped, PACKETS); /* every one has gone one way or the other */
    CHECK_INT(close(sender), 0);
    end_assocs(shared.assocs);
}

int main(void)
{
    uint64_t state = 4;
    size_t i;

    check_watchdog(WATCHDOG_SECONDS);
    for (i = 0; i < sizeof(payload); i++)
        payload[i] = (uint8_t)check_random(&state);
    sides_init();
    test_sizes();
    test_train();
    test_local_socket();
    test_ring_full();
    test_waiting_full();
    test_waiting_small();
    test_pump_reads();
    test_engine_reads();
    sides_destroy();
    return check_done();
}

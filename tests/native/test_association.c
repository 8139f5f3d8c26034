/* The table of UDP associations, and what happens to datagrams of sources that have none yet. */
#include "association_side.h"

#define WATCHDOG_SECONDS 60
#define SOURCE_PORT 20000

/* ---- the table ------------------------------------------------------------------------------------------------- */

static aq_address source(uint16_t number)
{
    return (aq_address){.family = 4, .ip = {192, 0, 2, (uint8_t)(number >> 8)}, .port = (uint16_t)(1000 + number)};
}

static void test_table(void)
{
    static const uint16_t IDS[] = {0, 1, 255, 256, 65535};
    const aq_address bad = {.family = 5, .port = 1}, again = source(3), other = source(99);
    uint8_t prefix[AQ_ASSOC_PREFIX_MAX + 1] = "prefix";
    aq_address here;
    aq_assocs *assocs = new_assocs();
    aq_udp *udp = open_udp(assocs, open_socket(AF_INET, &here), 1);
    size_t i;

    for (i = 0; i < AQ_ARRAY_LENGTH(IDS); i++) {
        const aq_address peer = source((uint16_t)i);
        const aq_assoc *assoc;

        CHECK(aq_assocs_find(assocs, IDS[i]) == NULL);
        CHECK_INT(aq_assoc_new(udp, IDS[i], FROM(&peer), prefix, i), AQ_OK);
        assoc = aq_assocs_find(assocs, IDS[i]);
        CHECK(assoc != NULL && assoc->socket == udp && aq_address_equal(&assoc->source.peer, &peer));
        CHECK_INT(assoc->association, IDS[i]);
        CHECK_INT(assoc->to.in.sin_port, htons(peer.port));
        CHECK_INT(assoc->prefix_length, i);
        CHECK_BYTES(assoc->prefix, prefix, i);
        CHECK_INT(assocs->count, i + 1);
    }
    CHECK_INT(aq_assoc_new(udp, 256, FROM(&other), NULL, 0), AQ_ERR_LIMIT); /* the id is taken */
    CHECK_INT(aq_assoc_new(udp, 257, FROM(&again), NULL, 0), AQ_ERR_LIMIT); /* the source is taken */
    CHECK(aq_assocs_find(assocs, 257) == NULL);
    CHECK_INT(aq_assoc_new(udp, 7, FROM(&bad), NULL, 0), AQ_ERR_INVALID);
    CHECK_INT(aq_assoc_new(udp, 7, FROM(&other), prefix, AQ_ASSOC_PREFIX_MAX + 1), AQ_ERR_INVALID);
    CHECK_INT(assocs->count, 5);
    CHECK_INT(aq_assoc_new(udp, 7, FROM(&other), prefix, AQ_ASSOC_PREFIX_MAX),
              AQ_OK); /* none of them took id or source */
    CHECK_BYTES(aq_assocs_find(assocs, 7)->prefix, prefix, AQ_ASSOC_PREFIX_MAX);

    CHECK_INT(aq_assoc_forget(assocs, 8), AQ_ERR_GONE);
    CHECK_INT(aq_assoc_forget(assocs, 256), AQ_OK);
    CHECK_INT(aq_assoc_forget(assocs, 256), AQ_ERR_GONE);
    CHECK_INT(aq_assoc_new(udp, 256, FROM(&again), NULL, 0), AQ_OK); /* id and source are free again */
    CHECK_INT(assocs->count, 6);
    close_udp(udp);
    end_assocs(assocs);
}

static void test_idle_and_detach(void)
{
    aq_address here;
    aq_assocs *assocs = new_assocs();
    aq_udp *udps[2] = {open_udp(assocs, open_socket(AF_INET, &here), 1),
                       open_udp(assocs, open_socket(AF_INET6, &here), 1)};
    uint16_t out[40], i;
    uint32_t count = 0;
    aq_assoc *assoc, *before = NULL;

    /* Sources are told apart per socket; the ids are the connection's. */
    for (i = 0; i < 40; i++) {
        const aq_address peer = source(i / 2);

        CHECK_INT(aq_assoc_new(udps[i % 2], (uint16_t)(1000 - i), FROM(&peer), NULL, 0), AQ_OK);
        assoc = aq_assocs_find(assocs, (uint16_t)(1000 - i));
        CHECK(assoc->active <= aq_now());
        assoc->active = assoc->placed = 100U + i;
    }
    CHECK_INT(aq_assocs_list_idle(assocs, NULL, 100, out, 40), 0);
    CHECK_INT(aq_assocs_list_idle(assocs, NULL, 105, out, 40), 5); /* older than that, not as old */
    for (i = 0; i < 5; i++)
        CHECK_INT(out[i], 1000 - i);
    CHECK_INT(aq_assocs_list_idle(assocs, NULL, UINT64_MAX, out, 3), 3);
    CHECK_INT(aq_assocs_list_idle(assocs, NULL, UINT64_MAX, out, 0), 0);
    CHECK_INT(aq_assocs_list_idle(assocs, NULL, UINT64_MAX, out, 40), 40);
    CHECK_INT(aq_assoc_forget(assocs, 1000), AQ_OK); /* the oldest, one in the middle, the newest */
    CHECK_INT(aq_assoc_forget(assocs, 981), AQ_OK);
    CHECK_INT(aq_assoc_forget(assocs, 961), AQ_OK);

    aq_udp_detach(udps[0]);
    CHECK_INT(assocs->count, 18);
    for (assoc = assocs->lists[0].first; assoc != NULL; before = assoc, assoc = assoc->order_link.next, count++) {
        CHECK(assoc->socket == udps[1] && assoc->order_link.previous == before);
        CHECK(aq_assocs_find(assocs, assoc->association) == assoc);
    }
    CHECK(assocs->lists[0].last == before);
    CHECK_INT(count, 18);
    for (i = 0; i < 40; i += 2)
        CHECK(aq_assocs_find(assocs, (uint16_t)(1000 - i)) == NULL);
    aq_udp_detach(udps[0]); /* harmless */
    CHECK_INT(aq_assocs_list_idle(assocs, NULL, UINT64_MAX, out, 40), 18);
    close_udp(udps[1]);
    close_udp(udps[0]);
    end_assocs(assocs);
}

/* A packet of the association in this direction at this moment. */
static void seen(aq_assocs *assocs, uint16_t association, int from_visitor, uint64_t now)
{
    pthread_mutex_lock(&assocs->mutex);
    aq_assoc_seen(aq_assocs_find(assocs, association), from_visitor, 1, now);
    pthread_mutex_unlock(&assocs->mutex);
}

static void expect_idle(aq_assocs *assocs, const aq_address *host, uint64_t before, const uint16_t *ids, uint32_t count)
{
    uint16_t out[8];

    CHECK_INT(aq_assocs_list_idle(assocs, host, before, out, AQ_ARRAY_LENGTH(out)), count);
    for (uint32_t i = 0; i < count; i++)
        CHECK_INT(out[i], ids[i]);
}

/* Who makes room first: a question or two that were answered, the longest ago first; then all others likewise. */
static void test_who_makes_room(void)
{
    enum { ASKING, ANSWERED, LATER, TALKING, AGAIN, COUNT };
    const uint64_t second = AQ_NSEC_PER_SEC, start = aq_now() + second;
    const uint16_t order[] = {ANSWERED, LATER, ASKING, TALKING, AGAIN}, one[] = {AGAIN}, busy[] = {LATER, ASKING};
    aq_address here;
    aq_assocs *assocs = new_assocs();
    aq_udp *udp = open_udp(assocs, open_socket(AF_INET, &here), 1);
    uint16_t out[8];

    for (uint16_t i = 0; i < COUNT; i++) {
        const aq_address peer = source(i < AGAIN ? i : 300); /* another host */

        CHECK_INT(aq_assoc_new(udp, i, FROM(&peer), NULL, 0), AQ_OK);
        seen(assocs, i, 1, start + i * second);
    }
    seen(assocs, ANSWERED, 0, start + 10 * second);
    seen(assocs, LATER, 0, start + 11 * second);
    for (int i = 0; i < 9; i++) /* no short exchange any more */
        seen(assocs, TALKING, i % 2 == 0, start + (11 + (uint64_t)i) * second);
    seen(assocs, AGAIN, 0, start + 5 * second);
    seen(assocs, AGAIN, 1, start + 20 * second); /* it waits again */
    expect_idle(assocs, NULL, start, NULL, 0);
    expect_idle(assocs, NULL, UINT64_MAX, order, COUNT);
    expect_idle(assocs, NULL, UINT64_MAX, order, COUNT); /* to ask changes nothing */
    {
        const aq_address host = source(300);
        expect_idle(assocs, &host, UINT64_MAX, one, 1);
        expect_idle(assocs, &host, start + 20 * second, NULL, 0);
    }

    /* Those that still send and wait. */
    CHECK_INT(aq_assocs_list_unanswered(assocs, start + 20 * second, start + 20 * second, out, 8), 0);
    CHECK_INT(aq_assocs_list_unanswered(assocs, start + 21 * second, start + 20 * second, out, 8), 1);
    CHECK_INT(out[0], AGAIN);
    CHECK_INT(aq_assocs_list_unanswered(assocs, start + 21 * second, start, out, 8), 3);
    CHECK_INT(out[1], TALKING);
    CHECK_INT(out[2], ASKING);
    seen(assocs, AGAIN, 0, start + 30 * second);
    seen(assocs, TALKING, 0, start + 30 * second);
    seen(assocs, ANSWERED, 1, start + 30 * second);
    expect_idle(assocs, NULL, start + 30 * second, busy, 2);
    CHECK_INT(aq_assocs_list_unanswered(assocs, start + 30 * second, start, out, 8), 1);
    CHECK_INT(out[0], ASKING);

    /* A busy one does not move for each of its packets; that it is busy counts all the same. */
    seen(assocs, ASKING, 1, start + 40 * second);
    CHECK_INT(aq_assocs_find(assocs, ASKING)->placed, start + 40 * second);
    seen(assocs, ASKING, 1, start + 40 * second + 1);
    CHECK_INT(aq_assocs_find(assocs, ASKING)->placed, start + 40 * second);
    CHECK_INT(aq_assocs_list_idle(assocs, NULL, start + 40 * second + 1, out, 8), COUNT - 1);
    close_udp(udp);
    end_assocs(assocs);
}

static void note(void *context, aq_assoc *assoc, const uint8_t *payload, size_t length)
{
    char *text = context;

    CHECK_INT(assoc->association, 1);
    memcpy(text + strlen(text), payload, length);
}

static const char *kept(aq_udp *udp, uint64_t now)
{
    static char text[64];

    memset(text, 0, sizeof(text));
    pthread_mutex_lock(&udp->assocs->mutex);
    aq_assoc_each_kept(udp->only, now, note, text);
    pthread_mutex_unlock(&udp->assocs->mutex);
    return text;
}

static void keep(aq_udp *udp, const void *payload, size_t length, uint64_t now)
{
    pthread_mutex_lock(&udp->assocs->mutex);
    aq_assoc_keep(udp->only, payload, length, now);
    pthread_mutex_unlock(&udp->assocs->mutex);
}

static void test_kept_packets(void)
{
    static uint8_t large[60000];
    const aq_address peer = source(1), other = source(2);
    const uint64_t start = aq_now(), second = AQ_NSEC_PER_SEC;
    aq_address here;
    aq_assocs *assocs = new_assocs();
    aq_udp *udp = open_udp(assocs, open_socket(AF_INET, &here), 0);
    aq_udp *another = open_udp(assocs, open_socket(AF_INET, &here), 0);
    int next = open_socket(AF_INET, &here);

    CHECK_INT(aq_udp_replace(udp, next, NULL, 0), AQ_ERR_GONE);
    CHECK_INT(aq_assoc_new(udp, 1, FROM(&peer), NULL, 0), AQ_OK);
    CHECK_INT(aq_assoc_new(another, 2, FROM(&other), NULL, 0), AQ_OK);
    CHECK(strcmp(kept(udp, start), "") == 0);
    keep(udp, "a", 1, start);
    keep(another, "x", 1, start);
    keep(udp, "", 0, start);
    keep(udp, "b", 1, start + second);
    CHECK(strcmp(kept(udp, start + second), "ab") == 0);
    CHECK(strcmp(kept(udp, start + second + 1), "b") == 0); /* too old by now: the refusal would have come */
    CHECK(strcmp(kept(udp, start + 3 * second), "") == 0);
    keep(udp, "c", 1, start + 3 * second);
    CHECK(assocs->kept.first == assocs->kept.last);
    CHECK(strcmp(kept(udp, start + 3 * second), "c") == 0);

    /* A megabyte at most, the latest of it. */
    for (uint64_t i = 0; i < 40; i++) {
        keep(another, large, sizeof(large), start + 3 * second + i);
        CHECK(assocs->kept_bytes <= 1024 * 1024);
    }
    CHECK(assocs->kept_bytes > 1024 * 1024 - 61000);
    CHECK(strcmp(kept(udp, start + 3 * second), "") == 0);

    /* Where the service is elsewhere, whether it has answered is open again. */
    seen(assocs, 1, 0, start);
    CHECK(aq_assocs_find(assocs, 1)->was_answered);
    CHECK_INT(aq_udp_replace(udp, next, large, AQ_ASSOC_PREFIX_MAX + 1), AQ_ERR_INVALID);
    CHECK_INT(aq_udp_replace(udp, -1, NULL, 0), AQ_ERR_SYSTEM - EBADF);
    CHECK(aq_assocs_find(assocs, 1)->was_answered);
    CHECK_INT(aq_udp_replace(udp, next, (const uint8_t *)"prefix", 6), AQ_OK);
    CHECK_INT(close(next), 0);
    CHECK(!aq_assocs_find(assocs, 1)->was_answered);
    CHECK_BYTES(aq_assocs_find(assocs, 1)->prefix, "prefix", 6);
    close_udp(udp);
    close_udp(another);
    aq_assocs_kill(assocs);
    CHECK(assocs->kept.first == NULL && assocs->kept_bytes == 0);
    end_assocs(assocs);
}

/* A local socket whose service is not there: what the kernel says about it comes with the next read. */
static void test_refused(void)
{
    aq_address here, nobody;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), gone = open_socket(AF_INET, &nobody);
    aq_udp *udp;
    aq_sockaddr name;

    aq_sockaddr_from(&name, &nobody, 0);
    CHECK_INT(connect(fd, &name.sa, aq_sockaddr_length(&name)), 0);
    CHECK_INT(close(gone), 0);
    udp = open_udp(assocs, fd, 0);
    CHECK_INT(aq_assoc_new(udp, 1, FROM(&nobody), NULL, 0), AQ_OK);
    for (int answered = 0; answered < 2; answered++) {
        CHECK_INT(send(fd, "x", 1, 0), 1);
        CHECK_INT(aq_udp_read(udp, receiver, &batch), AQ_OK);
        CHECK_INT(batch.refused, ECONNREFUSED);
        CHECK_INT(batch.was_answered, answered);
        CHECK_INT(counted(AQ_C_udp_service_refused), 1);
        read_batch(udp, 0, 0, 0);
        CHECK_INT(batch.refused, 0);
        seen(assocs, 1, 0, aq_now());
    }
    close_udp(udp);
    end_assocs(assocs);
}

static void test_dead(void)
{
    const aq_address peer = source(1), late = source(2);
    int64_t error = 0;
    aq_address here;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), other = open_socket(AF_INET, &here), sender = open_socket(AF_INET, &here);
    aq_udp *udp = open_udp(assocs, fd, 1);

    CHECK_INT(aq_assoc_new(udp, 1, FROM(&peer), NULL, 0), AQ_OK);
    aq_assocs_kill(assocs);
    CHECK_INT(aq_assoc_new(udp, 2, FROM(&late), NULL, 0), AQ_ERR_GONE);
    CHECK_INT(aq_udp_read(udp, receiver, &batch), AQ_ERR_GONE);
    CHECK(aq_udp_new(assocs, other, 1, NULL, &error) == NULL);
    CHECK_INT(error, AQ_ERR_GONE);
    CHECK_INT(aq_assoc_forget(assocs, 1), AQ_OK); /* tidying up is still possible */
    close_udp(udp);
    CHECK_INT(close(other), 0);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);

    assocs = new_assocs();
    CHECK(aq_udp_new(assocs, other, 1, NULL, &error) == NULL); /* closed above */
    CHECK_INT(error, AQ_ERR_SYSTEM - EBADF);
    end_assocs(assocs);
}

/* ---- datagrams ------------------------------------------------------------------------------------------------- */

static void test_unknown_sources(int family)
{
    const char *text[] = {"a0", "b0", "a1", "", "b1", "a2"}; /* the empty one is a's */
    aq_address here, a, b, c;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(family, &here), from_a = open_socket(family, &a), from_b = open_socket(family, &b);
    int from_c = open_socket(family, &c);
    aq_udp *udp = open_udp(assocs, fd, 1);
    size_t i;

    read_batch(udp, 0, 0, 0); /* nothing there yet */
    for (i = 0; i < AQ_ARRAY_LENGTH(text); i++)
        send_to(text[i][0] == 'b' ? from_b : from_a, fd, &here, text[i], strlen(text[i]));
    read_batch(udp, 6, 0, 2);
    CHECK(aq_address_equal(&batch.sources[0].peer, &a) && aq_address_equal(&batch.sources[1].peer, &b));
    nothing_left(assocs); /* nothing for the engine before somebody decides */
    add_association(udp, 11, &a, 1);
    CHECK(told(assocs));
    next_packet(assocs, 11, 0, &a, "a0", 2);
    next_packet(assocs, 11, 1, &a, "a1", 2);
    next_packet(assocs, 11, 2, &a, "", 0);
    next_packet(assocs, 11, 3, &a, "a2", 2);
    nothing_left(assocs);

    /* b was not answered: it is not asked about again, and what comes waits behind the rest. a goes straight on. */
    send_to(from_b, fd, &here, "b2", 2);
    send_to(from_a, fd, &here, "a3", 2);
    send_to(from_c, fd, &here, "c0", 2);
    send_to(from_b, fd, &here, "b3", 2);
    read_batch(udp, 4, 1, 1);
    CHECK(aq_address_equal(&batch.sources[0].peer, &c));
    CHECK(told(assocs));
    next_packet(assocs, 11, 4, &a, "a3", 2);
    nothing_left(assocs);
    add_association(udp, 12, &c, 1); /* the one behind */
    add_association(udp, 13, &b, 1);
    CHECK(told(assocs)); /* twice is once */
    next_packet(assocs, 12, 0, &c, "c0", 2);
    next_packet(assocs, 13, 0, &b, "b0", 2);
    next_packet(assocs, 13, 1, &b, "b1", 2);
    next_packet(assocs, 13, 2, &b, "b2", 2);
    next_packet(assocs, 13, 3, &b, "b3", 2);
    nothing_left(assocs);

    /* a forgotten source is unknown again; a refused one is asked about again; what waits when the socket goes is
     * counted */
    send_to(from_a, fd, &here, "a4", 2);
    read_batch(udp, 1, 1, 0);
    CHECK(told(assocs));
    next_packet(assocs, 11, 5, &a, "a4", 2);
    CHECK_INT(aq_assoc_forget(assocs, 11), AQ_OK);
    aq_udp_drop_source(udp, FROM(&a)); /* nothing of it waits: nothing happens */
    for (i = 0; i < 2; i++) {
        send_to(from_a, fd, &here, "a5", 2);
        send_to(from_a, fd, &here, "a6", 2);
        read_batch(udp, 2, 0, 1);
        CHECK(aq_address_equal(&batch.sources[0].peer, &a));
        aq_udp_drop_source(udp, FROM(i == 0 ? &a : &b)); /* of another source nothing waits */
        CHECK_INT(counted(AQ_C_udp_drop_no_association), i == 0 ? 2 : 0);
    }
    add_association(udp, 14, &(aq_address){.family = 4, .ip = {192, 0, 2, 1}, .port = 9}, 0); /* nor of this one */
    CHECK_INT(aq_assoc_new(udp, 13, FROM(&a), NULL, 0), AQ_ERR_LIMIT); /* no answer: it waits on */
    nothing_left(assocs);
    close_udp(udp);
    CHECK_INT(counted(AQ_C_udp_drop_no_association), 2);
    CHECK_INT(close(from_a) | close(from_b) | close(from_c), 0);
    end_assocs(assocs);
}

/* From an address of 127.0.0.0/8, which no other socket may have. */
static void send_as(const aq_address *source, int fd, const aq_address *to, const void *data, size_t length)
{
    int sender = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    aq_sockaddr name;
    socklen_t name_length = aq_sockaddr_from(&name, source, 0);

    CHECK(sender >= 0);
    CHECK_INT(bind(sender, &name.sa, name_length), 0);
    send_to(sender, fd, to, data, length);
    CHECK_INT(close(sender), 0);
}

/* A crowd that outruns Python is not asked about without end. */
static void test_many_sources(void)
{
    enum { WAITING = 4096, SENDERS = WAITING + 2 };
    static aq_address sources[SENDERS];
    aq_address here;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), i, j;
    aq_udp *udp = open_udp(assocs, fd, 1);

    for (i = 0; i < SENDERS; i++)
        sources[i] = (aq_address){.family = 4, .ip = {127, 1, (uint8_t)(i >> 8), (uint8_t)i}, .port = SOURCE_PORT};
    for (i = 0; i < WAITING; i += AQ_UDP_ASKED) {
        for (j = i; j < i + AQ_UDP_ASKED; j++)
            send_as(&sources[j], fd, &here, "first", 5);
        read_batch(udp, AQ_UDP_ASKED, 0, AQ_UDP_ASKED);
        for (j = 0; j < AQ_UDP_ASKED; j++)
            CHECK(aq_address_equal(&batch.sources[j].peer, &sources[i + j]));
    }
    send_as(&sources[WAITING], fd, &here, "too many", 8);
    send_as(&sources[WAITING - 1], fd, &here, "second", 6); /* was asked about */
    read_batch(udp, 2, 0, 0);
    CHECK_INT(counted(AQ_C_packet_drop_waiting_full), 1);
    aq_udp_drop_source(udp, FROM(&sources[7]));
    CHECK_INT(counted(AQ_C_udp_drop_no_association), 1);
    send_as(&sources[WAITING], fd, &here, "room", 4);
    send_as(&sources[WAITING + 1], fd, &here, "too many again", 14);
    read_batch(udp, 2, 0, 1);
    CHECK(aq_address_equal(&batch.sources[0].peer, &sources[WAITING]));
    CHECK_INT(counted(AQ_C_packet_drop_waiting_full), 1);
    add_association(udp, 1, &sources[WAITING], 1);
    add_association(udp, 2, &sources[WAITING - 1], 1);
    CHECK(told(assocs));
    next_packet(assocs, 1, 0, &sources[WAITING], "room", 4);
    next_packet(assocs, 2, 0, &sources[WAITING - 1], "first", 5);
    next_packet(assocs, 2, 1, &sources[WAITING - 1], "second", 6);
    nothing_left(assocs);
    close_udp(udp);
    CHECK_INT(counted(AQ_C_udp_drop_no_association), WAITING - 2);
    end_assocs(assocs);
}

/* A socket on all addresses: who writes to two of them is two sources, and each is answered from where it wrote to. */
static void test_two_addresses(int family)
{
    static const struct in_addr any = {INADDR_ANY};
    const int off = 0;
    aq_address peer;
    aq_sockaddr bound = {.in = {.sin_family = AF_INET, .sin_addr = any}}, to;
    aq_udp_source sources[2];
    aq_assocs *assocs = new_assocs();
    aq_udp *udp;
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0), sender = open_socket(AF_INET, &peer);
    socklen_t length = sizeof(bound);

    if (family == AF_INET6) {
        bound = (aq_sockaddr){.in6 = {.sin6_family = AF_INET6}};
        CHECK_INT(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)), 0);
    }
    CHECK_INT(bind(fd, &bound.sa, aq_sockaddr_length(&bound)), 0);
    CHECK_INT(getsockname(fd, &bound.sa, &length), 0);
    udp = open_udp(assocs, fd, 1);
    CHECK(udp->has_many_addresses);
    for (uint8_t i = 0; i < 6; i++) {
        const aq_address here = {.family = 4,
                                 .ip = {127, 0, 0, (uint8_t)(2 + i % 2)},
                                 .port = ntohs(family == AF_INET ? bound.in.sin_port : bound.in6.sin6_port)};
        send_to(sender, fd, &here, &i, 1);
    }
    read_batch(udp, 6, 0, 2);
    for (int i = 0; i < 2; i++) {
        sources[i] = batch.sources[i];
        CHECK_INT(sources[i].peer.port, peer.port);
        CHECK_INT(sources[i].local.family, family == AF_INET ? 4 : 6);
        CHECK_INT(sources[i].local.ip[family == AF_INET ? 3 : 15], 2 + i);
        CHECK_INT(sources[i].local.port, 0);
        CHECK_INT(aq_assoc_new(udp, (uint16_t)(20 + i), &sources[i], NULL, 0), 1);
        aq_assocs_signal(assocs);
    }
    CHECK(told(assocs));
    for (uint8_t i = 0; i < 6; i++)
        next_packet(assocs, (uint16_t)(20 + i / 3), i % 3, &sources[0].peer, &(uint8_t){(uint8_t)(i / 3 + i % 3 * 2)},
                    1);
    /* Both are known now, one after the other. */
    for (uint8_t i = 0; i < 2; i++) {
        const aq_address here = {.family = 4,
                                 .ip = {127, 0, 0, (uint8_t)(3 - i)},
                                 .port = ntohs(family == AF_INET ? bound.in.sin_port : bound.in6.sin6_port)};
        send_to(sender, fd, &here, "x", 1);
    }
    read_batch(udp, 2, 2, 0);
    CHECK(told(assocs));
    next_packet(assocs, 21, 3, &sources[0].peer, "x", 1);
    next_packet(assocs, 20, 3, &sources[0].peer, "x", 1);
    for (uint16_t i = 0; i < 2; i++) {
        to = aq_assocs_find(assocs, (uint16_t)(20 + i))->from;
        CHECK_INT(to.sa.sa_family, family);
        CHECK_INT(((uint8_t *)(family == AF_INET ? (void *)&to.in.sin_addr
                                                 : (void *)&to.in6.sin6_addr))[family == AF_INET ? 3 : 15],
                  2 + i);
    }
    CHECK_INT(aq_assoc_new(udp, 22, &sources[1], NULL, 0), AQ_ERR_LIMIT);
    CHECK_INT(aq_assoc_forget(assocs, 21), AQ_OK);
    CHECK_INT(aq_assoc_new(udp, 22, &sources[1], NULL, 0), AQ_OK); /* and only its own place was free */
    sources[0].local.family = 5;
    CHECK_INT(aq_assoc_new(udp, 23, &sources[0], NULL, 0), AQ_ERR_INVALID);
    close_udp(udp);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);
}

/* What the kernel had no room for is counted, also before the socket was set up, and once where it changes hands. */
static void test_dropped_by_the_kernel(void)
{
    enum { SENT = 3000 };
    aq_address here, peer;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), sender = open_socket(AF_INET, &peer), small = 4096;
    aq_sockaddr to;
    socklen_t length = aq_sockaddr_from(&to, &here, 0);
    uint64_t received = 0, dropped = 0;
    aq_udp *udp;

    CHECK_INT(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
    for (int i = 0; i < SENT; i++)
        CHECK_INT(sendto(sender, "x", 1, 0, &to.sa, length), 1);
    for (int owner = 0; owner < 2; owner++) {
        udp = open_udp(assocs, fd, 1);
        CHECK_INT(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
        for (int i = 0; i < SENT; i++)
            CHECK_INT(sendto(sender, "x", 1, 0, &to.sa, length), 1);
        do {
            CHECK_INT(aq_udp_read(udp, receiver, &batch), AQ_OK);
            received += batch.received;
        } while (batch.received > 0);
        aq_udp_detach(udp);
        aq_udp_free(udp);
        dropped += counted(AQ_C_udp_drop_kernel);
        counted(AQ_C_udp_received);
        counted(AQ_C_udp_drop_no_association);
        counted(AQ_C_packet_drop_waiting_full);
    }
    CHECK(received > 0 && dropped > SENT);
    CHECK_INT(received + dropped, 3 * SENT);
    CHECK_INT(close(fd), 0);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);
}

/* Whoever reads a socket that was closed meanwhile learns it, and nothing of it gets into the connection. */
static void test_detached(void)
{
    aq_address here, peer;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), sender = open_socket(AF_INET, &peer);
    aq_udp *udp = open_udp(assocs, fd, 1);

    add_association(udp, 1, &peer, 0);
    send_to(sender, fd, &here, "late", 4);
    aq_udp_detach(udp);
    CHECK_INT(aq_udp_read(udp, receiver, &batch), AQ_ERR_GONE);
    CHECK_INT(counted(AQ_C_udp_received), 1);
    CHECK_INT(counted(AQ_C_packet_drop_connection_closed), 1);
    CHECK_INT(aq_assoc_new(udp, 1, FROM(&peer), NULL, 0), AQ_ERR_GONE);
    nothing_left(assocs);
    close_udp(udp);
    CHECK_INT(close(sender), 0);
    end_assocs(assocs);
}

static void test_addresses_that_get_no_association(void)
{
    const aq_address other_port = {.family = 4, .ip = {192, 0, 2, 0}, .port = 9}, other = source(256);
    const aq_address first = source(0);
    aq_assocs *assocs = new_assocs();
    CHECK(!aq_assocs_refuses(assocs, &first, 5));
    aq_assocs_refuse(assocs, &first, 10);
    CHECK(aq_assocs_refuses(assocs, &first, 9));
    CHECK(aq_assocs_refuses(assocs, &other_port, 9));
    CHECK(!aq_assocs_refuses(assocs, &other, 9));
    CHECK(!aq_assocs_refuses(assocs, &first, 10));
    aq_assocs_refuse(assocs, &first, 20); /* the same once more takes no place */
    for (uint16_t i = 1; i < AQ_REFUSALS; i++) {
        const aq_address next = source((uint16_t)(256 * i));
        aq_assocs_refuse(assocs, &next, 20U + i);
    }
    for (uint16_t i = 0; i < AQ_REFUSALS; i++) {
        const aq_address each = source((uint16_t)(256 * i));
        CHECK(aq_assocs_refuses(assocs, &each, 19));
    }
    /* One too many: the one that would end first is asked about again. */
    aq_assocs_refuse(assocs, NULL, 15);
    CHECK(!aq_assocs_refuses(assocs, &first, 15));
    CHECK(aq_assocs_refuses(assocs, &first, 14)); /* as is everybody */
    CHECK(aq_assocs_refuses(assocs, &other, 15));
    end_assocs(assocs);
}

/* Sets the only permitted address; NULL: all are. */
static void permit(aq_assocs *assocs, const char *first, const char *last)
{
    aq_address_range range = {.family = 4};
    int64_t error = AQ_OK;
    aq_ranges *ranges = NULL;

    if (first != NULL) {
        CHECK_INT(inet_pton(AF_INET, first, range.first) + inet_pton(AF_INET, last, range.last), 2);
        ranges = aq_ranges_new(&range, 1, 0, &error);
        CHECK(ranges != NULL);
    }
    aq_assocs_permit(assocs, ranges);
    aq_ranges_unref(ranges); /* the table has its own */
}

/* Python is not asked about a visitor that is not permitted; what is dropped is reported once a second. */
static void test_visitors_that_are_not_permitted(void)
{
    const aq_address permitted = {.family = 4, .ip = {127, 1, 0, 1}, .port = SOURCE_PORT};
    const aq_address denied = {.family = 4, .ip = {127, 1, 0, 2}, .port = SOURCE_PORT};
    const aq_address known = {.family = 4, .ip = {127, 1, 0, 3}, .port = SOURCE_PORT};
    aq_address here;
    aq_assocs *assocs = new_assocs();
    int fd = open_socket(AF_INET, &here), i;
    aq_udp *udp = open_udp(assocs, fd, 1);
    uint16_t out[4];

    add_association(udp, 3, &known, 0);
    CHECK_INT(aq_assocs_list_refused(assocs, out, 4), 0);
    permit(assocs, "127.1.0.1", "127.1.0.1");
    for (i = 0; i < 3; i++)
        send_as(&denied, fd, &here, "x", 1);
    send_as(&permitted, fd, &here, "y", 1);
    send_as(&known, fd, &here, "z", 1);
    read_batch(udp, 5, 1, 1);
    CHECK(aq_address_equal(&batch.sources[0].peer, &permitted));
    CHECK_INT(batch.denied, 1); /* the first at once, the others with one of a second later */
    CHECK(aq_address_equal(&batch.denied_peer, &denied));
    CHECK_INT(counted(AQ_C_udp_drop_not_permitted), 3);
    CHECK_INT(assocs->refused.count, 2);
    CHECK(told(assocs));
    next_packet(assocs, 3, 0, &known, "z", 1); /* its association goes on until it is removed */
    CHECK_INT(assocs->payload_sent, 1);
    nothing_left(assocs);
    CHECK_INT(aq_assocs_list_refused(assocs, out, 4), 1);
    CHECK_INT(out[0], 3);
    CHECK_INT(aq_assocs_list_refused(assocs, out, 0), 0);
    CHECK_INT(aq_assoc_forget(assocs, 3), AQ_OK);
    CHECK_INT(aq_assocs_list_refused(assocs, out, 4), 0);

    /* The rules change while Python is asked. */
    CHECK_INT(aq_assoc_new(udp, 4, FROM(&denied), NULL, 0), AQ_ERR_STATE);
    permit(assocs, "127.1.0.2", "127.1.0.9");
    CHECK_INT(aq_assoc_new(udp, 4, FROM(&permitted), NULL, 0), AQ_ERR_STATE);
    aq_udp_drop_source(udp, FROM(&permitted));
    CHECK_INT(counted(AQ_C_udp_drop_no_association), 1);
    send_as(&denied, fd, &here, "now permitted", 13);
    read_batch(udp, 1, 0, 1);
    CHECK_INT(batch.denied, 0);
    add_association(udp, 4, &denied, 1);
    CHECK(told(assocs));
    next_packet(assocs, 4, 0, &denied, "now permitted", 13);
    permit(assocs, NULL, NULL);
    send_as(&known, fd, &here, "all are", 7);
    read_batch(udp, 1, 0, 1);
    aq_udp_drop_source(udp, FROM(&known));
    CHECK_INT(counted(AQ_C_udp_drop_no_association), 1);
    permit(assocs, "127.1.0.2", "127.1.0.9"); /* freed with the table */
    close_udp(udp);
    end_assocs(assocs);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    sides_init();
    test_table();
    test_idle_and_detach();
    test_who_makes_room();
    test_kept_packets();
    test_refused();
    test_dead();
    test_unknown_sources(AF_INET);
    test_unknown_sources(AF_INET6);
    test_many_sources();
    test_two_addresses(AF_INET);
    test_two_addresses(AF_INET6);
    test_dropped_by_the_kernel();
    test_detached();
    test_addresses_that_get_no_association();
    test_visitors_that_are_not_permitted();
    sides_destroy();
    return check_done();
}

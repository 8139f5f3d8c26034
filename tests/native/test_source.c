/* Who counts as one source, and what stays of those that have left. */
#include "quic/source.h"

#include "check.h"

#include <arpa/inet.h>

static const uint8_t SECRET[16] = {1, 2, 3};

static aq_sockaddr address(const char *text, uint16_t port)
{
    aq_sockaddr out;
    memset(&out, 0, sizeof(out));
    if (inet_pton(AF_INET, text, &out.in.sin_addr) == 1) {
        out.in.sin_family = AF_INET;
        out.in.sin_port = htons(port);
    } else {
        CHECK_INT(inet_pton(AF_INET6, text, &out.in6.sin6_addr), 1);
        out.in6.sin6_family = AF_INET6;
        out.in6.sin6_port = htons(port);
    }
    return out;
}

#define SECOND 1000000000ULL

static uint32_t clients_at(aq_sources *sources, const char *text, uint64_t now)
{
    aq_sockaddr from = address(text, 4711);
    return aq_sources_clients(sources, &from, now);
}

static uint32_t clients(aq_sources *sources, const char *text)
{
    return clients_at(sources, text, 100 * SECOND);
}

static aq_source *enter(aq_sources *sources, const char *text, uint16_t port)
{
    aq_sockaddr from = address(text, port);
    return aq_sources_enter(sources, &from);
}

static void test_what_is_one_source(void)
{
    static const struct {
        const char *first, *second;
        int same;
    } pairs[] = {
        {"192.0.2.7", "192.0.2.7", 1},
        {"192.0.2.7", "192.0.2.8", 0},
        {"192.0.2.7", "::ffff:192.0.2.7", 1}, /* as a dual-stack socket names it */
        {"::ffff:192.0.2.7", "::ffff:192.0.2.8", 0},
        {"2001:db8:0:1::1", "2001:db8:0:1:ffff::9", 1},
        {"2001:db8:0:1::1", "2001:db8:0:2::1", 0},
        {"192.0.2.7", "2001:db8::1", 0},
    };
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(pairs); i++) {
        aq_sources sources;
        aq_source *source;
        CHECK_INT(aq_sources_init(&sources, SECRET), 0);
        source = enter(&sources, pairs[i].first, 1000);
        CHECK_INT(clients(&sources, pairs[i].second), pairs[i].same);
        aq_sources_leave(&sources, source, 1, 100 * SECOND);
        CHECK_INT(clients(&sources, pairs[i].first), 0);
        aq_sources_destroy(&sources);
    }
}

static void test_a_crowd_leaves_nothing(void)
{
    static aq_source *entered[1000];
    aq_sources sources;
    CHECK_INT(aq_sources_init(&sources, SECRET), 0);
    for (uint32_t i = 0; i < 1000; i++) {
        char text[32];
        snprintf(text, sizeof(text), "198.51.%u.%u", i % 2, i % 10);
        entered[i] = enter(&sources, text, (uint16_t)(1024 + i));
        CHECK(entered[i] != NULL);
    }
    CHECK_INT(sources.by_key.length, 10);
    CHECK_INT(clients(&sources, "198.51.0.4"), 100);
    for (uint32_t i = 0; i < 1000; i++)
        aq_sources_leave(&sources, entered[i], 1, 100 * SECOND);
    CHECK_INT(sources.by_key.length, 0);
    aq_sources_destroy(&sources);
}

/* Who leaves without having been admitted keeps a tenth of a second each. */
static void test_those_for_nothing_count_for_a_while(void)
{
    static const char one[] = "192.0.2.7", other[] = "192.0.2.8";
    aq_source *entered[30];
    aq_sources sources;
    CHECK_INT(aq_sources_init(&sources, SECRET), 0);
    for (uint16_t i = 0; i < 30; i++)
        entered[i] = enter(&sources, one, (uint16_t)(1024 + i));
    for (int i = 0; i < 20; i++)
        aq_sources_leave(&sources, entered[i], 0, 100 * SECOND);
    CHECK_INT(clients_at(&sources, one, 100 * SECOND), 30);
    CHECK_INT(clients_at(&sources, other, 100 * SECOND), 0);
    CHECK_INT(clients_at(&sources, one, 100 * SECOND + SECOND / 20), 30);
    CHECK_INT(clients_at(&sources, one, 101 * SECOND), 20);
    CHECK_INT(clients_at(&sources, one, 101 * SECOND + SECOND / 20), 20);
    CHECK_INT(clients_at(&sources, one, 101 * SECOND + SECOND / 10), 19);
    /* A moment that is past already, as connections may have it, changes nothing. */
    CHECK_INT(clients_at(&sources, one, 90 * SECOND), 19);
    aq_sources_leave(&sources, entered[20], 0, 90 * SECOND);
    CHECK_INT(clients_at(&sources, one, 101 * SECOND + SECOND / 10), 19);
    for (int i = 21; i < 30; i++)
        aq_sources_leave(&sources, entered[i], 1, 102 * SECOND);
    CHECK_INT(sources.by_key.length, 0);
    CHECK_INT(clients_at(&sources, one, 103 * SECOND), 0);
    aq_sources_destroy(&sources);
}

/* Of all sources together, fifty a second are forgotten, and no more are counted than are forgotten soon. */
static void test_those_for_nothing_of_all_sources(void)
{
    static aq_source *entered[2 * AQ_FAILURES_MAX];
    aq_sources sources;
    CHECK_INT(aq_sources_init(&sources, SECRET), 0);
    CHECK_INT(aq_sources_failures(&sources, 100 * SECOND), 0);
    for (uint32_t i = 0; i < AQ_ARRAY_LENGTH(entered); i++) {
        char text[32];
        snprintf(text, sizeof(text), "198.51.%u.%u", i % 2, i % 10);
        entered[i] = enter(&sources, text, (uint16_t)(1024 + i));
        CHECK(entered[i] != NULL);
    }
    CHECK_INT(aq_sources_failures(&sources, 100 * SECOND), 0); /* those that are there are not among them */
    for (int i = 0; i < 100; i++)
        aq_sources_leave(&sources, entered[i], i < 60, 100 * SECOND);
    CHECK_INT(aq_sources_failures(&sources, 100 * SECOND), 40);
    CHECK_INT(aq_sources_failures(&sources, 100 * SECOND + SECOND / 2), 15);
    CHECK_INT(aq_sources_failures(&sources, 90 * SECOND), 15);
    CHECK_INT(aq_sources_failures(&sources, 101 * SECOND), 0);
    for (uint32_t i = 100; i < AQ_ARRAY_LENGTH(entered); i++)
        aq_sources_leave(&sources, entered[i], 0, 200 * SECOND);
    CHECK_INT(aq_sources_failures(&sources, 200 * SECOND), AQ_FAILURES_MAX);
    CHECK_INT(aq_sources_failures(&sources, 210 * SECOND), 0);
    aq_sources_destroy(&sources);
}

int main(void)
{
    check_watchdog(60);
    test_what_is_one_source();
    test_a_crowd_leaves_nothing();
    test_those_for_nothing_count_for_a_while();
    test_those_for_nothing_of_all_sources();
    return check_done();
}

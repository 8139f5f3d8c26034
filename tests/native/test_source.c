/* Who counts as one source, and that nothing stays of those that have left. */
#include "source.h"

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

static uint32_t clients(const aq_sources *sources, const char *text)
{
    aq_sockaddr from = address(text, 4711);
    return aq_sources_clients(sources, &from);
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
        aq_sources_leave(&sources, source);
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
        aq_sources_leave(&sources, entered[i]);
    CHECK_INT(sources.by_key.length, 0);
    aq_sources_destroy(&sources);
}

int main(void)
{
    check_watchdog(60);
    test_what_is_one_source();
    test_a_crowd_leaves_nothing();
    return check_done();
}

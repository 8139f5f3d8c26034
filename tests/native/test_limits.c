/* What visitors are granted: their addresses, the number of connections and the rate of new ones; and how often
 * refusals are reported. */
#include "tunnel/limits.h"

#include "check.h"

#include <stdlib.h>

#define WATCHDOG_SECONDS 60
#define SECOND AQ_NSEC_PER_SEC

static const aq_address VISITOR = {.family = 4, .ip = {192, 0, 2, 1}, .port = 4711};
static const aq_address OTHER = {.family = 4, .ip = {192, 0, 2, 2}, .port = 4711};

/* Admits as many connections as there may be at this moment, up to `most`; returns how many. */
static uint32_t admit(aq_limits *limits, uint64_t now, uint32_t most)
{
    uint32_t count = 0;
    while (count < most) {
        int reason = aq_limits_admit(limits, &VISITOR, 0, now);
        if (reason != AQ_ADMITTED) {
            CHECK_INT(reason, AQ_REFUSED_BY_RATE);
            break;
        }
        count++;
    }
    return count;
}

static void test_no_limits(void)
{
    aq_limits limits = {0};
    const aq_address unknown = {0};
    CHECK_INT(admit(&limits, 0, 100000), 100000);
    CHECK_INT(aq_limits_admit(&limits, &unknown, UINT32_MAX, UINT64_MAX), AQ_ADMITTED);
}

static void test_order(void)
{
    const aq_address_range one = {.family = 4, .first = {192, 0, 2, 1}, .last = {192, 0, 2, 1}};
    int64_t error;
    aq_limits limits = {.permitted = aq_ranges_new(&one, 1, 0, &error), .max_connections = 2, .max_new = 1};

    CHECK(limits.permitted != NULL);
    /* What is refused anyway uses up nothing. */
    for (int i = 0; i < 100; i++)
        CHECK_INT(aq_limits_admit(&limits, &OTHER, 0, SECOND), AQ_REFUSED_BY_TCP_RULES);
    CHECK_INT(aq_limits_admit(&limits, &OTHER, 2, SECOND), AQ_REFUSED_BY_TCP_RULES);
    CHECK_INT(aq_limits_admit(&limits, &VISITOR, 2, SECOND), AQ_REFUSED_BY_MAX_CONNECTIONS);
    CHECK_INT(aq_limits_admit(&limits, &VISITOR, 3, SECOND), AQ_REFUSED_BY_MAX_CONNECTIONS); /* it was lowered */
    CHECK_INT(aq_limits_admit(&limits, &VISITOR, 1, SECOND), AQ_ADMITTED);
    CHECK_INT(aq_limits_admit(&limits, &VISITOR, 1, SECOND), AQ_REFUSED_BY_RATE);
    aq_ranges_unref(limits.permitted);
}

static void test_rates(void)
{
    static const uint32_t rates[] = {1, 2, 3, 7, 10, 999, 1000, 1000000};
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(rates); i++) {
        const uint32_t rate = rates[i];
        aq_limits limits = {.max_new = rate};
        uint64_t now = 5 * SECOND;
        uint64_t total;

        CHECK_INT(admit(&limits, now, 2 * rate), rate); /* at once */
        CHECK_INT(admit(&limits, now + SECOND / rate / 2, 2 * rate), 0);
        CHECK_INT(admit(&limits, now + SECOND / rate + 1, 2 * rate), 1);
        now += 100 * SECOND; /* a long pause earns no more than a second's worth */
        CHECK_INT(admit(&limits, now, 2 * rate), rate);
        total = 0;
        for (uint64_t tenth = 1; tenth <= 100; tenth++)
            total += admit(&limits, now + tenth * (SECOND / 10), 2 * rate);
        CHECK_INT(total, 10 * rate);
    }
}

static void test_reports(void)
{
    aq_refusals refusals = {0};
    CHECK_INT(aq_refusals_add(&refusals, 1, 7 * SECOND), 1); /* the first at once */
    for (uint64_t i = 1; i < 10; i++)
        CHECK_INT(aq_refusals_add(&refusals, 3, 7 * SECOND + i), 0);
    CHECK_INT(aq_refusals_add(&refusals, 1, 8 * SECOND), 28); /* and all others with one of a second later */
    CHECK_INT(aq_refusals_add(&refusals, 1, 8 * SECOND), 0);
    CHECK_INT(aq_refusals_add(&refusals, 1, 100 * SECOND), 2);
}

static void test_counters(void)
{
    CHECK_INT(aq_refusals_counter(AQ_REFUSED_BY_TCP_RULES, 0), AQ_C_tcp_drop_not_permitted);
    CHECK_INT(aq_refusals_counter(AQ_REFUSED_BY_TCP_RULES, 1), AQ_C_tcp_drop_not_permitted);
    CHECK_INT(aq_refusals_counter(AQ_REFUSED_BY_UDP_RULES, 0), AQ_C_packet_drop_not_permitted);
    CHECK_INT(aq_refusals_counter(AQ_REFUSED_BY_UDP_RULES, 1), AQ_C_udp_drop_not_permitted);
    CHECK_INT(aq_refusals_counter(AQ_REFUSED_BY_MAX_CONNECTIONS, 1), AQ_C_tcp_drop_max_connections);
    CHECK_INT(aq_refusals_counter(AQ_REFUSED_BY_RATE, 1), AQ_C_tcp_drop_rate);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_no_limits();
    test_order();
    test_rates();
    test_reports();
    test_counters();
    return check_done();
}

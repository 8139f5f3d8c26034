/* Sets of IP addresses: what belongs to them, and what is refused as a description of one. */
#include "core/ranges.h"

#include "check.h"

#include <arpa/inet.h>
#include <stdlib.h>

#define WATCHDOG_SECONDS 60

static void parse(const char *text, uint8_t *family, uint8_t ip[16])
{
    memset(ip, 0, 16);
    *family = strchr(text, ':') != NULL ? 6 : 4;
    CHECK_INT(inet_pton(*family == 6 ? AF_INET6 : AF_INET, text, ip), 1);
}

static aq_address_range range(const char *first, const char *last)
{
    aq_address_range made;
    uint8_t family;
    parse(first, &made.family, made.first);
    parse(last, &family, made.last);
    CHECK_INT(family, made.family);
    return made;
}

static int contain(const aq_ranges *ranges, const char *text)
{
    aq_address address = {.port = 80, .scope = 7};
    parse(text, &address.family, address.ip);
    return aq_ranges_contain(ranges, &address);
}

static aq_ranges *made(const aq_address_range *ranges, uint32_t count, int has_unknown)
{
    int64_t error = 1;
    aq_ranges *set = aq_ranges_new(ranges, count, has_unknown, &error);
    CHECK_INT(error, AQ_OK);
    CHECK(set != NULL);
    return set;
}

static void test_bounds(void)
{
    const aq_address_range ranges[] = {
        range("10.0.0.0", "10.0.0.255"),     range("10.0.1.1", "10.0.1.1"),           range("192.0.2.1", "192.0.2.6"),
        range("2001:db8::", "2001:db8::ff"), range("2001:db8:1::1", "2001:db8:1::1"),
    };
    static const char *const inside[] = {"10.0.0.0",        "10.0.0.255", "10.0.1.1",        "192.0.2.1",
                                         "192.0.2.6",       "2001:db8::", "2001:db8::ff",    "2001:db8:1::1",
                                         "::ffff:10.0.0.7", "10.0.0.128", "::ffff:192.0.2.6"};
    static const char *const outside[] = {"9.255.255.255",
                                          "10.0.1.0",
                                          "10.0.1.2",
                                          "192.0.2.0",
                                          "192.0.2.7",
                                          "0.0.0.0",
                                          "255.255.255.255",
                                          "2001:db7:ffff::",
                                          "2001:db8::100",
                                          "2001:db8:1::",
                                          "::ffff:192.0.2.7",
                                          "::10.0.0.7",
                                          "::",
                                          "ffff::"};
    const aq_address unknown = {0};
    aq_ranges *set = made(ranges, AQ_ARRAY_LENGTH(ranges), 0);

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(inside); i++)
        CHECK_INT(contain(set, inside[i]), 1);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(outside); i++)
        CHECK_INT(contain(set, outside[i]), 0);
    CHECK_INT(aq_ranges_contain(set, &unknown), 0);
    aq_ranges_ref(set);
    aq_ranges_unref(set);
    CHECK_INT(contain(set, "10.0.0.0"), 1); /* one reference is left */
    aq_ranges_unref(set);
    aq_ranges_unref(NULL);
}

static void test_extremes(void)
{
    const aq_address_range all[] = {range("0.0.0.0", "255.255.255.255"),
                                    range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")};
    const aq_address unknown = {0};
    aq_ranges *set = made(all, 2, 1);

    CHECK_INT(contain(set, "0.0.0.0"), 1);
    CHECK_INT(contain(set, "255.255.255.255"), 1);
    CHECK_INT(contain(set, "::"), 1);
    CHECK_INT(contain(set, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), 1);
    CHECK_INT(aq_ranges_contain(set, &unknown), 1);
    aq_ranges_unref(set);
    set = made(all + 1, 1, 0);
    CHECK_INT(contain(set, "::ffff:1.2.3.4"), 0); /* counts as IPv4, of which there is nothing */
    CHECK_INT(contain(set, "1.2.3.4"), 0);
    aq_ranges_unref(set);
    set = made(NULL, 0, 0);
    CHECK_INT(contain(set, "1.2.3.4"), 0);
    CHECK_INT(contain(set, "::1"), 0);
    aq_ranges_unref(set);
}

static void refused(const aq_address_range *ranges, uint32_t count)
{
    int64_t error = AQ_OK;
    CHECK(aq_ranges_new(ranges, count, 0, &error) == NULL);
    CHECK_INT(error, AQ_ERR_INVALID);
}

static void test_wrong_descriptions(void)
{
    const aq_address_range backwards = range("10.0.0.2", "10.0.0.1");
    const aq_address_range overlapping[] = {range("10.0.0.0", "10.0.0.5"), range("10.0.0.5", "10.0.0.9")};
    const aq_address_range descending[] = {range("2001:db8::5", "2001:db8::6"), range("2001:db8::1", "2001:db8::2")};
    const aq_address_range mixed[] = {range("::1", "::2"), range("10.0.0.5", "10.0.0.9")};
    const aq_address_range nothing = {0};

    refused(&backwards, 1);
    refused(overlapping, 2);
    refused(descending, 2);
    refused(mixed, 2);
    refused(&nothing, 1);
}

/* As many as there may be: every other address. */
static void test_most(void)
{
    aq_address_range *many = calloc(AQ_RANGES_MAX + 1, sizeof(*many));
    aq_ranges *set;
    CHECK(many != NULL);
    for (uint32_t i = 0; i <= AQ_RANGES_MAX; i++) {
        many[i].family = 4;
        many[i].first[1] = many[i].last[1] = (uint8_t)(i >> 15);
        many[i].first[2] = many[i].last[2] = (uint8_t)(i >> 7);
        many[i].first[3] = many[i].last[3] = (uint8_t)(i << 1);
    }
    refused(many, AQ_RANGES_MAX + 1);
    set = made(many, AQ_RANGES_MAX, 0);
    for (uint32_t i = 0; i < 2 * AQ_RANGES_MAX; i++) {
        aq_address address = {.family = 4, .ip = {0, (uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i}};
        CHECK_INT(aq_ranges_contain(set, &address), i % 2 == 0);
    }
    aq_ranges_unref(set);
    free(many);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_bounds();
    test_extremes();
    test_wrong_descriptions();
    test_most();
    return check_done();
}

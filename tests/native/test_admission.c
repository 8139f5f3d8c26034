/* The time that those who are not admitted may take. The file itself is included, for its
 * constants.
 */
#include "quic/endpoint_admission.c"

#include "check.h"

#define MS AQ_NSEC_PER_MSEC
#define BEGIN (100 * AQ_NSEC_PER_SEC)

static const uint8_t SECRET[16] = {1, 2, 3};

static uint64_t slept; /* of the engine that the endpoint is of */

static void prepare(aq_endpoint *endpoint, aq_conn_host *host)
{
    memset(endpoint, 0, sizeof(*endpoint));
    memset(host, 0, sizeof(*host));
    slept = 0;
    host->idle = &slept;
    endpoint->host = host;
    endpoint->credit_at = BEGIN;
    CHECK_INT(aq_sources_init(&endpoint->sources, SECRET), 0);
}

/* One part in so many, whatever becomes of the rest. */
static void test_a_share_of_the_time(void)
{
    aq_endpoint endpoint;
    aq_conn_host host;
    prepare(&endpoint, &host);
    CHECK(!aq_endpoint_may_begin(&endpoint, BEGIN));
    CHECK(aq_endpoint_may_begin(&endpoint, BEGIN + HANDSHAKE_PART * MS));
    CHECK_INT(endpoint.handshake_credit, MS);
    CHECK(aq_endpoint_may_begin(&endpoint, BEGIN + 3 * HANDSHAKE_PART * MS));
    CHECK_INT(endpoint.handshake_credit, 3 * MS);
    aq_sources_destroy(&endpoint.sources);
}

/* Neither what is saved up nor what was taken too much goes on for ever. */
static void test_the_share_has_its_ends(void)
{
    aq_endpoint endpoint;
    aq_conn_host host;
    prepare(&endpoint, &host);
    CHECK(aq_endpoint_may_begin(&endpoint, BEGIN + 3600 * AQ_NSEC_PER_SEC));
    CHECK_INT(endpoint.handshake_credit, HANDSHAKE_CREDIT);
    endpoint.handshake_credit = -HANDSHAKE_CREDIT * 100;
    CHECK(!aq_endpoint_may_begin(&endpoint, BEGIN + 3600 * AQ_NSEC_PER_SEC));
    CHECK_INT(endpoint.handshake_credit, -HANDSHAKE_CREDIT);
    aq_sources_destroy(&endpoint.sources);
}

/* What the engine sleeps is for those who want to join, until there are many of them. */
static void test_what_is_left_over(void)
{
    aq_endpoint endpoint;
    aq_conn_host host;
    prepare(&endpoint, &host);
    endpoint.half_open = MANY_UNAUTHENTICATED - 1;
    slept = 5 * MS;
    CHECK(aq_endpoint_may_begin(&endpoint, BEGIN + 8 * MS));
    CHECK_INT(endpoint.handshake_credit, 5 * MS + 8 * MS / HANDSHAKE_PART);

    endpoint.half_open = MANY_UNAUTHENTICATED;
    endpoint.handshake_credit = 0;
    slept = 13 * MS;
    CHECK(aq_endpoint_may_begin(&endpoint, BEGIN + 16 * MS));
    CHECK_INT(endpoint.handshake_credit, 8 * MS / HANDSHAKE_PART);

    /* What was slept meanwhile is not made up for. */
    endpoint.half_open = 0;
    endpoint.handshake_credit = 0;
    slept = 14 * MS;
    CHECK(aq_endpoint_may_begin(&endpoint, BEGIN + 24 * MS));
    CHECK_INT(endpoint.handshake_credit, MS + 8 * MS / HANDSHAKE_PART);
    aq_sources_destroy(&endpoint.sources);
}

/* Those that left without having joined count with those that are there, for as long as they are remembered. */
static void test_those_who_left_count_for_a_while(void)
{
    static aq_source *entered[MANY_UNAUTHENTICATED];
    aq_endpoint endpoint;
    aq_conn_host host;
    aq_sockaddr from;
    prepare(&endpoint, &host);
    memset(&from, 0, sizeof(from));
    from.in.sin_family = AF_INET;
    from.in.sin_addr.s_addr = htonl(0xc0000207); /* 192.0.2.7 */
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(entered); i++) {
        entered[i] = aq_sources_enter(&endpoint.sources, &from);
        CHECK(entered[i] != NULL);
    }
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(entered); i++)
        aq_sources_leave(&endpoint.sources, entered[i], 0, BEGIN);
    slept = 5 * MS;
    CHECK(aq_endpoint_may_begin(&endpoint, BEGIN + 8 * MS));
    CHECK_INT(endpoint.handshake_credit, 8 * MS / HANDSHAKE_PART);
    endpoint.handshake_credit = 0;
    endpoint.credit_at = BEGIN + AQ_NSEC_PER_SEC;
    slept = 10 * MS;
    CHECK(aq_endpoint_may_begin(&endpoint, BEGIN + AQ_NSEC_PER_SEC));
    CHECK_INT(endpoint.handshake_credit, 5 * MS);
    aq_sources_destroy(&endpoint.sources);
}

/* What is done for those who are not admitted is taken from it, and for nobody else. */
static void test_what_is_done_is_charged(void)
{
    static aq_conn conn;
    aq_endpoint endpoint;
    aq_conn_host host;
    uint64_t began;
    prepare(&endpoint, &host);
    CHECK_INT(aq_endpoint_start_charge(&conn), 0);
    aq_endpoint_charge(&endpoint, 0);
    CHECK_INT(endpoint.handshake_credit, 0);
    conn.half_open = 1;
    began = aq_endpoint_start_charge(&conn);
    CHECK(began != 0);
    aq_endpoint_charge(&endpoint, began - MS);
    CHECK(endpoint.handshake_credit <= -(int64_t)MS);
    aq_sources_destroy(&endpoint.sources);
}

int main(void)
{
    check_watchdog(60);
    test_a_share_of_the_time();
    test_the_share_has_its_ends();
    test_what_is_left_over();
    test_those_who_left_count_for_a_while();
    test_what_is_done_is_charged();
    return check_done();
}

/* The admission budget: how much of the engine's time clients may use that are not authenticated, and how many of them
 * there are. */
#include "quic/endpoint.h"

/* Handshakes may use 1/HANDSHAKE_PART of the engine's time, and its idle time. So joined clients keep most of the
 * engine however many others try to connect; what joined clients do not need is available to the others. */
#define HANDSHAKE_PART 8
/* Handshakes get no idle time while at least this many clients are, or recently were, unauthenticated (decays by 50 per
 * second): while the engine sleeps, other programs use the processors, among them the services of its own clients.
 * Clients that join are authenticated as fast as they arrive, so even a large number of them stays below this limit, or
 * drops below it again. */
#define MANY_UNAUTHENTICATED 250
/* Maximum time saved up for handshakes, or overdrawn: many clients that arrive at once, after a restart or a network
 * failure, are not delayed at first. */
#define HANDSHAKE_CREDIT ((int64_t)(100 * AQ_NSEC_PER_MSEC))
_Static_assert(AQ_ROTATING_KEY_LENGTH == AQ_TOKEN_KEY_LENGTH, "the rotating key makes Retry tokens");

void aq_endpoint_enter_half_open(aq_endpoint *endpoint, aq_conn *conn)
{
    conn->half_open = 1;
    endpoint->half_open++;
}

void aq_endpoint_validated(aq_conn *conn)
{
    if (conn->source != NULL)
        return;
    conn->source = aq_sources_enter(&conn->endpoint->sources, &conn->remote);
    if (conn->source == NULL)
        aq_count(conn->host->counters, AQ_C_memory_failures, 1);
}

void aq_endpoint_leave_half_open(aq_conn *conn)
{
    conn->half_open = 0;
    conn->endpoint->half_open--;
    if (conn->source != NULL)
        aq_sources_leave(&conn->endpoint->sources, conn->source, conn->joined, aq_now());
    conn->source = NULL;
}

/* ---- the engine's time ---------------------------------------------------------------------------------------- */

int aq_endpoint_may_begin(aq_endpoint *endpoint, uint64_t now)
{
    uint64_t idle = *endpoint->host->idle;
    endpoint->handshake_credit += (int64_t)((now - endpoint->credit_at) / HANDSHAKE_PART);
    if (endpoint->half_open + aq_sources_failures(&endpoint->sources, now) < MANY_UNAUTHENTICATED)
        endpoint->handshake_credit += (int64_t)(idle - endpoint->idle_seen);
    endpoint->credit_at = now;
    endpoint->idle_seen = idle;
    if (endpoint->handshake_credit > HANDSHAKE_CREDIT)
        endpoint->handshake_credit = HANDSHAKE_CREDIT;
    if (endpoint->handshake_credit < -HANDSHAKE_CREDIT)
        endpoint->handshake_credit = -HANDSHAKE_CREDIT;
    return endpoint->handshake_credit > 0;
}

uint64_t aq_endpoint_start_charge(const aq_conn *conn)
{
    return conn->half_open ? aq_now() : 0;
}

void aq_endpoint_charge(aq_endpoint *endpoint, uint64_t began)
{
    if (began != 0)
        endpoint->handshake_credit -= (int64_t)(aq_now() - began);
}

/* What all parts of a connection use: its events and the clock of its peer's deadlines. */
#include "quic/conn.h"

#include <string.h>

/* The path counts as alive for this long without a packet: with data in flight, acknowledgements and probes arrive at
 * shorter intervals, unless they are lost. */
#define ALIVE_WITHOUT_PACKETS (250 * AQ_NSEC_PER_MSEC)

/* ---- events -------------------------------------------------------------------------------------------------- */

/* Whether to drop an event of a kind that a peer can cause without limit. A server may well end thousands of
 * associations at once; what Python cannot keep up with is dropped, and idle timers make up for it. An unauthenticated
 * client must not fill the queue at the expense of the others: its first command counts, and anything further ends its
 * connection. */
static int is_too_much(aq_conn *conn, const aq_event *event)
{
    if (event->type == AQ_EVENT_CLOSED)
        return !conn->announced && aq_events_backlog(conn->host->events) >= AQ_EVENTS_WAITING;
    if (event->type != AQ_EVENT_COMMAND_RECEIVED && event->type != AQ_EVENT_VIOLATION &&
        event->type != AQ_EVENT_ASSOCIATION_WANTED && event->type != AQ_EVENT_UDP_REFUSED &&
        event->type != AQ_EVENT_VISITORS_REFUSED)
        return 0;
    if (!conn->joined && conn->events_before_join >= AQ_EVENTS_BEFORE_JOIN)
        return 1;
    if (!conn->joined)
        conn->events_before_join++;
    return aq_events_backlog(conn->host->events) >= AQ_EVENTS_WAITING;
}

int aq_conn_post(aq_conn *conn, aq_event *event)
{
    event->connection = conn->id;
    event->endpoint = conn->endpoint_id;
    if (is_too_much(conn, event)) {
        aq_count(conn->host->counters, AQ_C_events_dropped, 1);
        return 0;
    }
    aq_events_post(conn->host->events, event);
    return 1;
}

void aq_conn_violation(aq_conn *conn, const char *problem)
{
    aq_event event = {.type = AQ_EVENT_VIOLATION};
    size_t length = strlen(problem);
    aq_count(conn->host->counters, AQ_C_violations, 1);
    if (length > sizeof(event.data))
        length = sizeof(event.data);
    memcpy(event.data, problem, length);
    event.length = (uint32_t)length;
    aq_conn_post(conn, &event);
}

/* ---- visitors ------------------------------------------------------------------------------------------------ */

void aq_conn_refused(aq_conn *conn, enum aq_refused_by reason, const aq_address *visitor)
{
    aq_event event = {.type = AQ_EVENT_VISITORS_REFUSED, .code = (uint64_t)reason, .peer = *visitor};
    aq_group *group = atomic_load(&conn->group);
    aq_refusals *refused = group != NULL ? group->refused : conn->refused;
    aq_count(conn->host->counters, aq_refusals_counter(reason, conn->is_server), 1);
    event.value = aq_refusals_add(&refused[reason], 1, conn->now);
    if (event.value > 0)
        aq_conn_post(conn, &event);
}

int aq_conn_admits(aq_conn *conn, const aq_address *visitor, uint32_t open)
{
    aq_group *group = atomic_load(&conn->group);
    aq_limits *limits = group != NULL ? &group->limits : &conn->limits;
    int reason = aq_limits_admit(limits, visitor, open, conn->now);
    if (reason == AQ_ADMITTED)
        return 1;
    aq_conn_refused(conn, (enum aq_refused_by)reason, visitor);
    return 0;
}

void aq_conn_admit(aq_conn *conn, aq_stream *stream)
{
    atomic_store(&stream->admitted, 1);
    atomic_fetch_add(&conn->credit->visitors, 1);
    conn->streams_total++;
}

/* ---- deadlines of the peer ----------------------------------------------------------------------------------- */

/* How long the path counts as alive without a packet. No limit for an unauthenticated client: its deadlines are
 * absolute. */
static uint64_t grace_period(const aq_conn *conn)
{
    return conn->joined ? ALIVE_WITHOUT_PACKETS : UINT64_MAX;
}

uint64_t aq_conn_alive_time(const aq_conn *conn, uint64_t now)
{
    uint64_t since = now > conn->last_received ? now - conn->last_received : 0, max = grace_period(conn);
    return conn->alive + (since < max ? since : max);
}

uint64_t aq_conn_when_alive(const aq_conn *conn, uint64_t time)
{
    uint64_t since = time > conn->alive ? time - conn->alive : 0;
    return since <= grace_period(conn) ? conn->last_received + since : UINT64_MAX;
}

#include "tunnel/limits.h"

/* A token bucket that needs no timer (the "generic cell rate algorithm" of ITU-T I.371): each new connection moves
 * `new_until` on by its part of a second, and must not move it further than a second ahead. So max_new connections may
 * come at once, and as many each second. */
static int is_too_often(aq_limits *limits, uint64_t now)
{
    uint64_t begin = limits->new_until > now ? limits->new_until : now;
    uint64_t end = begin + AQ_NSEC_PER_SEC / limits->max_new;
    if (end > now + AQ_NSEC_PER_SEC)
        return 1;
    limits->new_until = end;
    return 0;
}

int aq_limits_admit(aq_limits *limits, const aq_address *visitor, uint32_t open, uint64_t now)
{
    if (!aq_limits_permit(limits->permitted, visitor))
        return AQ_REFUSED_BY_TCP_RULES;
    if (limits->max_connections > 0 && open >= limits->max_connections)
        return AQ_REFUSED_BY_MAX_CONNECTIONS;
    if (limits->max_new > 0 && is_too_often(limits, now))
        return AQ_REFUSED_BY_RATE;
    return AQ_ADMITTED;
}

enum aq_counter aq_refusals_counter(enum aq_refused_by reason, int is_server)
{
    switch (reason) {
    case AQ_REFUSED_BY_TCP_RULES:
        return AQ_C_tcp_drop_not_permitted;
    case AQ_REFUSED_BY_UDP_RULES:
        return is_server ? AQ_C_udp_drop_not_permitted : AQ_C_packet_drop_not_permitted;
    case AQ_REFUSED_BY_MAX_CONNECTIONS:
        return AQ_C_tcp_drop_max_connections;
    default:
        return AQ_C_tcp_drop_rate;
    }
}

uint64_t aq_refusals_add(aq_refusals *refusals, uint64_t more, uint64_t now)
{
    uint64_t count = refusals->count + more;
    refusals->count = count;
    if (now < refusals->next_at)
        return 0;
    refusals->count = 0;
    refusals->next_at = now + AQ_REFUSALS_APART;
    return count;
}

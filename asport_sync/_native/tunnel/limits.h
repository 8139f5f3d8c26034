/* What a public port (server) or a tunnel (client) grants its visitors: which addresses, how many TCP connections, and
 * how many new ones a second. No locks: whoever owns an object guards it.
 */
#ifndef AQ_LIMITS_H
#define AQ_LIMITS_H

#include "aq.h"
#include "core/counters.h"
#include "core/ranges.h"

#define AQ_REFUSED_BY_COUNT 4 /* values of enum aq_refused_by */
#define AQ_ADMITTED (-1)

/* Minimum interval between two events about visitors refused for the same reason. */
#define AQ_REFUSALS_APART AQ_NSEC_PER_SEC

typedef struct {
    aq_ranges *permitted;     /* one reference; NULL: every address */
    uint32_t max_connections; /* open TCP connections; 0: no limit */
    uint32_t max_new;         /* new TCP connections per second, and at once; 0: no limit */
    uint64_t new_until;       /* the time up to which new connections have used up what max_new allows */
} aq_limits;

/* Refusals for one reason that no event has reported yet. */
typedef struct {
    uint64_t count;
    uint64_t next_at; /* no event before this time */
} aq_refusals;

/* Returns whether a visitor with this address is permitted. */
static inline int aq_limits_permit(const aq_ranges *permitted, const aq_address *visitor)
{
    return permitted == NULL || aq_ranges_contain(permitted, visitor);
}

/* Returns AQ_ADMITTED if a new TCP connection of this visitor is within the limits, while `open` others are open, and
 * counts it; else the enum aq_refused_by value. A connection that is refused does not count. */
int aq_limits_admit(aq_limits *limits, const aq_address *visitor, uint32_t open, uint64_t now);

/* Returns the counter of a reason; on a client, Packets are counted instead of datagrams. */
enum aq_counter aq_refusals_counter(enum aq_refused_by reason, int is_server);

/* Adds refusals. Returns how many an event has to report now; 0: none, the last event is too recent. */
uint64_t aq_refusals_add(aq_refusals *refusals, uint64_t more, uint64_t now);

#endif

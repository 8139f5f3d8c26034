/* An immutable set of IP addresses: ascending ranges that do not overlap, looked up by binary search. Any thread that
 * holds a reference may use it, without a lock. IPv4-mapped IPv6 addresses count as IPv4 addresses.
 */
#ifndef AQ_RANGES_H
#define AQ_RANGES_H

#include "aq.h"

/* Maximum number of ranges of a set: what four lists of 4,096 networks can become, twice. 1 MiB if all are IPv6. */
#define AQ_RANGES_MAX 32768

typedef struct aq_ranges aq_ranges;

/* Creates a set with one reference. The ranges of IPv4 come first; those of a family are ascending and do not overlap.
 * has_unknown: whether an unknown address, of family 0, belongs to the set. Returns NULL and sets *error:
 * AQ_ERR_INVALID if the ranges are not as described or too many, else AQ_ERR_MEMORY. */
aq_ranges *aq_ranges_new(const aq_address_range *ranges, uint32_t count, int has_unknown, int64_t *error);
void aq_ranges_ref(aq_ranges *ranges);
void aq_ranges_unref(aq_ranges *ranges); /* NULL: does nothing */

/* Returns whether the address belongs to the set; its port and zone do not matter. */
int aq_ranges_contain(const aq_ranges *ranges, const aq_address *address);

#endif

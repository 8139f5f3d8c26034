#include "core/ranges.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define IPV4_BYTES 4
#define IPV6_BYTES 16

/* Bounds of ranges in network byte order, which memcmp() compares: those of IPv4, 2 * 4 bytes each, then those of IPv6,
 * 2 * 16 bytes each. Ranges of their own size for each family halve the memory of long lists of IPv4 networks. */
struct aq_ranges {
    _Atomic uint32_t references;
    int has_unknown;  /* immutable, as is all below */
    uint32_t of_ipv4; /* number of ranges */
    uint32_t of_ipv6; /* likewise */
    uint8_t bounds[];
};

static size_t bytes_of(int family)
{
    return family == 4 ? IPV4_BYTES : IPV6_BYTES;
}

/* Returns whether a range is valid and comes after the previous one (NULL: it is the first). */
static int follows(const aq_address_range *previous, const aq_address_range *range)
{
    size_t size = bytes_of(range->family);
    if ((range->family != 4 && range->family != 6) || memcmp(range->first, range->last, size) > 0)
        return 0;
    if (previous == NULL || previous->family < range->family)
        return 1;
    return previous->family == range->family && memcmp(previous->last, range->first, size) < 0;
}

aq_ranges *aq_ranges_new(const aq_address_range *ranges, uint32_t count, int has_unknown, int64_t *error)
{
    aq_ranges *made;
    uint8_t *next;
    size_t size = 0;
    *error = AQ_ERR_INVALID;
    if (count > AQ_RANGES_MAX)
        return NULL;
    for (uint32_t i = 0; i < count; i++) {
        if (!follows(i > 0 ? &ranges[i - 1] : NULL, &ranges[i]))
            return NULL;
        size += 2 * bytes_of(ranges[i].family);
    }
    made = malloc(sizeof(*made) + size);
    *error = AQ_ERR_MEMORY;
    if (made == NULL)
        return NULL;
    atomic_init(&made->references, 1);
    made->has_unknown = has_unknown;
    made->of_ipv4 = made->of_ipv6 = 0;
    next = made->bounds;
    for (uint32_t i = 0; i < count; i++) {
        size_t bytes = bytes_of(ranges[i].family);
        memcpy(next, ranges[i].first, bytes);
        memcpy(next + bytes, ranges[i].last, bytes);
        next += 2 * bytes;
        if (ranges[i].family == 4)
            made->of_ipv4++;
        else
            made->of_ipv6++;
    }
    *error = AQ_OK;
    return made;
}

void aq_ranges_ref(aq_ranges *ranges)
{
    atomic_fetch_add_explicit(&ranges->references, 1, memory_order_relaxed);
}

void aq_ranges_unref(aq_ranges *ranges)
{
    if (ranges != NULL && atomic_fetch_sub_explicit(&ranges->references, 1, memory_order_acq_rel) == 1)
        free(ranges);
}

/* Returns whether one of `count` ranges has the address. */
static int has(const uint8_t *bounds, uint32_t count, const uint8_t *ip, size_t bytes)
{
    uint32_t low = 0, high = count; /* ranges below `low` begin at or before the address, those from `high` on after */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (memcmp(bounds + middle * 2 * bytes, ip, bytes) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 && memcmp(ip, bounds + (low - 1) * 2 * bytes + bytes, bytes) <= 0;
}

int aq_ranges_contain(const aq_ranges *ranges, const aq_address *address)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    if (address->family == 4)
        return has(ranges->bounds, ranges->of_ipv4, address->ip, IPV4_BYTES);
    if (address->family != 6)
        return ranges->has_unknown;
    if (memcmp(address->ip, mapped, sizeof(mapped)) == 0)
        return has(ranges->bounds, ranges->of_ipv4, address->ip + sizeof(mapped), IPV4_BYTES);
    return has(ranges->bounds + (size_t)ranges->of_ipv4 * 2 * IPV4_BYTES, ranges->of_ipv6, address->ip, IPV6_BYTES);
}

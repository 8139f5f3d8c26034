#include "quic/source.h"

#include <stdlib.h>
#include <string.h>

#define PREFIX_BYTES 8 /* bytes of an IPv6 address that identify a source: a /64 */
/* A source is forgiven one failure per period: ten per second. */
#define FAILURE_LASTS (100 * AQ_NSEC_PER_MSEC)
/* The same for the count of all sources together: fifty per second are harmless. */
#define TOTAL_FAILURE_LASTS (20 * AQ_NSEC_PER_MSEC)

/* Writes the key of an address's source. Returns its length. */
static size_t source_key(const aq_sockaddr *address, uint8_t key[AQ_ADDRESS_KEY_MAX])
{
    const uint8_t *ip;
    if (address->sa.sa_family == AF_INET) {
        memcpy(key, &address->in.sin_addr, 4);
        return 4;
    }
    ip = address->in6.sin6_addr.s6_addr;
    if (IN6_IS_ADDR_V4MAPPED(&address->in6.sin6_addr)) {
        memcpy(key, ip + 12, 4);
        return 4;
    }
    memcpy(key, ip, PREFIX_BYTES);
    return PREFIX_BYTES;
}

int aq_sources_init(aq_sources *sources, const uint8_t secret[16])
{
    sources->failures = NULL;
    sources->total = (aq_failures){.at = 0, .clients = 0};
    return aq_map_init(&sources->by_key, secret);
}

void aq_sources_destroy(aq_sources *sources)
{
    aq_map_destroy(&sources->by_key);
    free(sources->failures);
}

/* Applies the decay up to `now`: one client less per `lasts` nanoseconds. */
static void forget(aq_failures *failures, uint64_t lasts, uint64_t now)
{
    uint64_t over = now > failures->at ? (now - failures->at) / lasts : 0;
    if (over >= failures->clients) { /* also if there were none */
        failures->clients = 0;
        failures->at = now;
    } else {
        failures->clients -= (uint32_t)over;
        failures->at += over * lasts;
    }
}

/* Returns the recent failures of a source as of `now`. */
static aq_failures *failures_of(aq_sources *sources, const uint8_t *key, size_t length, uint64_t now)
{
    aq_failures *failures = &sources->failures[aq_map_hash(&sources->by_key, key, length) % AQ_FAILURE_SLOTS];
    forget(failures, FAILURE_LASTS, now);
    return failures;
}

uint32_t aq_sources_clients(aq_sources *sources, const aq_sockaddr *address, uint64_t now)
{
    uint8_t key[AQ_ADDRESS_KEY_MAX];
    size_t length = source_key(address, key);
    const aq_source *source = aq_map_get(&sources->by_key, key, length);
    return (source != NULL ? source->clients : 0) +
           (sources->failures != NULL ? failures_of(sources, key, length, now)->clients : 0);
}

uint32_t aq_sources_failures(aq_sources *sources, uint64_t now)
{
    forget(&sources->total, TOTAL_FAILURE_LASTS, now);
    return sources->total.clients;
}

aq_source *aq_sources_enter(aq_sources *sources, const aq_sockaddr *address)
{
    uint8_t key[AQ_ADDRESS_KEY_MAX];
    size_t length = source_key(address, key);
    aq_source *source = aq_map_get(&sources->by_key, key, length);
    if (source == NULL) {
        source = calloc(1, sizeof(*source));
        if (source == NULL || aq_map_put(&sources->by_key, key, length, source) != AQ_OK) {
            free(source);
            return NULL;
        }
        memcpy(source->key, key, length);
        source->key_length = (uint8_t)length;
    }
    source->clients++;
    return source;
}

void aq_sources_leave(aq_sources *sources, aq_source *source, int joined, uint64_t now)
{
    if (!joined && aq_sources_failures(sources, now) < AQ_FAILURES_MAX)
        sources->total.clients++;
    if (!joined && sources->failures == NULL)
        sources->failures = calloc(AQ_FAILURE_SLOTS, sizeof(*sources->failures));
    if (!joined && sources->failures != NULL)
        failures_of(sources, source->key, source->key_length, now)->clients++;
    if (--source->clients > 0)
        return;
    aq_map_remove(&sources->by_key, source->key, source->key_length);
    free(source);
}

#include "source.h"

#include <stdlib.h>
#include <string.h>

#define PREFIX_BYTES 8 /* of an IPv6 address: a /64 */

/* Returns the length of the key. */
static size_t source_key(const aq_sockaddr *address, uint8_t key[AQ_MAP_KEY_MAX])
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
    return aq_map_init(&sources->by_key, secret);
}

void aq_sources_destroy(aq_sources *sources)
{
    aq_map_destroy(&sources->by_key);
}

uint32_t aq_sources_clients(const aq_sources *sources, const aq_sockaddr *address)
{
    uint8_t key[AQ_MAP_KEY_MAX];
    const aq_source *source = aq_map_get(&sources->by_key, key, source_key(address, key));
    return source != NULL ? source->clients : 0;
}

aq_source *aq_sources_enter(aq_sources *sources, const aq_sockaddr *address)
{
    uint8_t key[AQ_MAP_KEY_MAX];
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

void aq_sources_leave(aq_sources *sources, aq_source *source)
{
    if (--source->clients > 0)
        return;
    aq_map_remove(&sources->by_key, source->key, source->key_length);
    free(source);
}

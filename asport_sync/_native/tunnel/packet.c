#include "tunnel/packet.h"

#include "core/list.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 0x00
#define SERVER_HELLO_CODE_MAX 4
#define MODE_MAX 7     /* largest mode byte in any dialect of ClientHello */
#define MODE_OFFSET 50 /* after version, type, UUID and token */

/* Family bytes on the wire; aq_address uses 4 and 6 instead. */
#define FAMILY_IPV4 1
#define FAMILY_IPV6 4
#define FAMILY_NONE 255
#define ADDRESS_IPV4 7  /* family, 4 bytes, port */
#define ADDRESS_IPV6 19 /* family, 16 bytes, port */
#define ADDRESS_NONE 1  /* family only, without a port */

#define CONNECT_FIXED 2 /* bytes before the address */
#define PACKET_FIXED 10
#define PACKET_SIZE_MAX UINT16_MAX /* the size field has two bytes; a whole packet is limited to the same size */

static uint16_t load16(const uint8_t *data)
{
    return (uint16_t)(data[0] << 8 | data[1]);
}

static uint8_t *store16(uint8_t *out, uint16_t value)
{
    out[0] = (uint8_t)(value >> 8);
    out[1] = (uint8_t)value;
    return out + 2;
}

static uint8_t *store_address(uint8_t *out, const aq_address *address)
{
    size_t ip_length = address->family == 4 ? 4 : 16;

    *out++ = address->family == 4 ? FAMILY_IPV4 : FAMILY_IPV6;
    memcpy(out, address->ip, ip_length);
    return store16(out + ip_length, address->port);
}

/* Requires family IPv4 or IPv6 and a complete address. */
static void load_address(const uint8_t *data, aq_address *address)
{
    size_t ip_length = data[0] == FAMILY_IPV4 ? 4 : 16;

    address->family = data[0] == FAMILY_IPV4 ? 4 : 6;
    memcpy(address->ip, data + 1, ip_length);
    address->port = load16(data + 1 + ip_length);
}

/* ---- lengths ------------------------------------------------------------------------------------------------- */

static int malformed(const char **problem, const char *text)
{
    *problem = text;
    return -1;
}

/* Returns the length of a command that ends with an address at `offset`, like aq_command_length(). */
static int length_with_address(const uint8_t *data, size_t length, int offset, const char **problem)
{
    if (length <= (size_t)offset)
        return 0;
    switch (data[offset]) {
    case FAMILY_IPV4:
        return offset + ADDRESS_IPV4;
    case FAMILY_IPV6:
        return offset + ADDRESS_IPV6;
    case FAMILY_NONE:
        return offset + ADDRESS_NONE;
    default:
        return malformed(problem, "unknown address family, expected 1 (IPv4), 4 (IPv6) or 255 (none)");
    }
}

int aq_command_length(const uint8_t *data, size_t length, const char **problem)
{
    if (length >= 1 && data[0] != VERSION)
        return malformed(problem, "unknown ASPORT version, expected 0");
    if (length < 2)
        return 0;
    switch (data[1]) {
    case AQ_COMMAND_CLIENT_HELLO:
        if (length > MODE_OFFSET && data[MODE_OFFSET] > MODE_MAX)
            return malformed(problem, "unknown ClientHello mode, expected 0 to 7");
        return AQ_COMMAND_MAX;
    case AQ_COMMAND_SERVER_HELLO:
        if (length < 3)
            return 0;
        if (data[2] > SERVER_HELLO_CODE_MAX)
            return malformed(problem, "unknown ServerHello code, expected 0 to 4");
        return data[2] == 0 ? 5 : 3; /* only Success has a port */
    case AQ_COMMAND_CONNECT:
        return length_with_address(data, length, CONNECT_FIXED, problem);
    case AQ_COMMAND_PACKET:
        return length_with_address(data, length, PACKET_FIXED, problem);
    case AQ_COMMAND_DISSOCIATE:
        return 4;
    case AQ_COMMAND_HEARTBEAT:
        return 2;
    default:
        return malformed(problem, "unknown command type, expected 0 to 5");
    }
}

/* ---- Packet header ------------------------------------------------------------------------------------------- */

int aq_packet_decode(const uint8_t *data, size_t length, aq_packet_header *out, const char **problem)
{
    int header = aq_command_length(data, length, problem);

    if (header < 0)
        return -1;
    if (length >= 2 && data[1] != AQ_COMMAND_PACKET)
        return malformed(problem, "unexpected command, expected a Packet");
    if (header == 0 || length < (size_t)header)
        return 0;

    memset(out, 0, sizeof(*out));
    out->association = load16(data + 2);
    out->packet = load16(data + 4);
    out->total = data[6];
    out->index = data[7];
    out->size = load16(data + 8);
    out->header = (size_t)header;
    if (data[PACKET_FIXED] == FAMILY_NONE)
        return 1;
    out->has_address = 1;
    load_address(data + PACKET_FIXED, &out->address);
    return 1;
}

size_t aq_packet_encode(uint8_t *out, uint16_t association, uint16_t packet, uint8_t total, uint8_t index,
                        uint16_t size, const aq_address *address)
{
    uint8_t *at = out;

    *at++ = VERSION;
    *at++ = AQ_COMMAND_PACKET;
    at = store16(at, association);
    at = store16(at, packet);
    *at++ = total;
    *at++ = index;
    at = store16(at, size);
    if (address == NULL)
        *at++ = FAMILY_NONE;
    else
        at = store_address(at, address);
    return (size_t)(at - out);
}

/* ---- Connect ------------------------------------------------------------------------------------------------- */

size_t aq_connect_encode(uint8_t *out, const aq_address *source)
{
    out[0] = VERSION;
    out[1] = AQ_COMMAND_CONNECT;
    return (size_t)(store_address(out + CONNECT_FIXED, source) - out);
}

void aq_connect_decode(const uint8_t *data, aq_address *source)
{
    memset(source, 0, sizeof(*source));
    if (data[CONNECT_FIXED] != FAMILY_NONE)
        load_address(data + CONNECT_FIXED, source);
}

/* ---- fragments ----------------------------------------------------------------------------------------------- */

int aq_fragment_plan(size_t limit, size_t payload, int ipv6, size_t *first, size_t *rest)
{
    size_t header = PACKET_FIXED + (ipv6 ? ADDRESS_IPV6 : ADDRESS_IPV4);
    size_t later;

    if (payload > PACKET_SIZE_MAX || limit < header + (payload > 0))
        return 0;
    if (payload <= limit - header) {
        *first = payload;
        *rest = 0;
        return 1;
    }
    *first = limit - header;
    *rest = limit - AQ_PACKET_HEADER_NONE;
    later = (payload - *first + *rest - 1) / *rest;
    return later < AQ_FRAGMENTS_MAX ? 1 + (int)later : 0;
}

/* ---- assembler ----------------------------------------------------------------------------------------------- */

typedef struct fragment {
    uint16_t size;
    uint8_t data[];
} fragment;

/* A packet with missing fragments. */
typedef struct incomplete {
    AQ_LINK(struct incomplete) order_link; /* in order of the first fragment's arrival */
    struct incomplete *next;               /* in its bucket */
    uint64_t started;                      /* when the first fragment arrived */
    uint32_t key;
    uint32_t length; /* payload bytes so far; at most PACKET_SIZE_MAX */
    uint8_t total, present;
    aq_address address;    /* valid once fragment 0 has arrived */
    fragment *fragments[]; /* `total` entries; NULL: missing */
} incomplete;

struct aq_assembler {
    uint32_t max_packets, packets;
    size_t max_bytes, bytes; /* payload held */
    uint64_t lifetime;       /* nanoseconds, from the first fragment on */
    uint64_t dropped;
    AQ_LIST(incomplete) entries; /* oldest first */
    uint8_t *whole;              /* buffer of the packet returned last */
    size_t whole_capacity;
    uint32_t bucket_mask;
    incomplete *buckets[];
};

/* There is about one bucket per packet, up to this maximum. A peer can make keys collide on purpose, but a search never
 * visits more than max_packets entries. */
#define BUCKETS_MAX 1024U

aq_assembler *aq_assembler_new(uint32_t max_packets, size_t max_bytes, uint64_t lifetime)
{
    aq_assembler *assembler;
    uint32_t buckets = 1;

    assert(max_packets > 0 && max_bytes >= PACKET_SIZE_MAX);
    while (buckets < max_packets && buckets < BUCKETS_MAX)
        buckets *= 2;
    assembler = calloc(1, sizeof(*assembler) + buckets * sizeof(assembler->buckets[0]));
    if (assembler == NULL)
        return NULL;
    assembler->max_packets = max_packets;
    assembler->max_bytes = max_bytes;
    assembler->lifetime = lifetime;
    assembler->bucket_mask = buckets - 1;
    return assembler;
}

static incomplete **bucket_of(aq_assembler *assembler, uint32_t key)
{
    /* Packet IDs count up, so their low bits are well distributed; the association is mixed in. */
    return &assembler->buckets[(key ^ key >> 16) & assembler->bucket_mask];
}

static incomplete *find(aq_assembler *assembler, uint32_t key)
{
    incomplete *entry = *bucket_of(assembler, key);

    while (entry != NULL && entry->key != key)
        entry = entry->next;
    return entry;
}

static void remove_entry(aq_assembler *assembler, incomplete *entry)
{
    incomplete **link = bucket_of(assembler, entry->key);
    unsigned i;

    while (*link != entry)
        link = &(*link)->next;
    *link = entry->next;
    AQ_LIST_REMOVE(&assembler->entries, entry, order_link);
    assembler->packets--;
    assembler->bytes -= entry->length;
    for (i = 0; i < entry->total; i++)
        free(entry->fragments[i]);
    free(entry);
}

static void give_up(aq_assembler *assembler, incomplete *entry)
{
    remove_entry(assembler, entry);
    assembler->dropped++;
}

static incomplete *add_entry(aq_assembler *assembler, uint32_t key, uint8_t total, uint64_t now)
{
    incomplete *entry = calloc(1, sizeof(*entry) + total * sizeof(entry->fragments[0]));
    incomplete **bucket = bucket_of(assembler, key);

    if (entry == NULL)
        return NULL;
    if (assembler->packets == assembler->max_packets)
        give_up(assembler, assembler->entries.first);
    entry->key = key;
    entry->total = total;
    entry->started = now;
    entry->next = *bucket;
    *bucket = entry;
    AQ_LIST_ADD_LAST(&assembler->entries, entry, order_link);
    assembler->packets++;
    return entry;
}

void aq_assembler_free(aq_assembler *assembler)
{
    if (assembler == NULL)
        return;
    while (assembler->entries.first != NULL)
        remove_entry(assembler, assembler->entries.first);
    free(assembler->whole);
    free(assembler);
}

/* Keeps one fragment. Drops the oldest other packets to make room. That is always enough, because no packet alone
 * exceeds max_bytes. */
static int keep(aq_assembler *assembler, incomplete *entry, const aq_packet_header *header, const uint8_t *payload)
{
    fragment *copy = malloc(sizeof(*copy) + header->size);

    if (copy == NULL)
        return AQ_ASSEMBLY_MEMORY;
    while (assembler->bytes + header->size > assembler->max_bytes)
        give_up(assembler, assembler->entries.first != entry ? assembler->entries.first : entry->order_link.next);
    copy->size = header->size;
    if (header->size > 0)
        memcpy(copy->data, payload, header->size);
    if (header->index == 0)
        entry->address = header->address;
    entry->fragments[header->index] = copy;
    entry->present++;
    entry->length += header->size;
    assembler->bytes += header->size;
    return AQ_ASSEMBLY_PENDING;
}

/* Combines the kept fragments with the last missing one, which is copied only once. */
static int join(aq_assembler *assembler, incomplete *entry, const aq_packet_header *header, const uint8_t *payload,
                aq_assembled *out)
{
    size_t length = entry->length + header->size;
    size_t at = 0;
    unsigned i;

    if (assembler->whole == NULL || assembler->whole_capacity < length) {
        free(assembler->whole);
        assembler->whole_capacity = length > 0 ? length : 1;
        assembler->whole = malloc(assembler->whole_capacity);
        if (assembler->whole == NULL)
            return AQ_ASSEMBLY_MEMORY;
    }
    for (i = 0; i < entry->total; i++) {
        const uint8_t *data = i == header->index ? payload : entry->fragments[i]->data;
        size_t size = i == header->index ? header->size : entry->fragments[i]->size;

        if (size > 0)
            memcpy(assembler->whole + at, data, size);
        at += size;
    }
    out->payload = assembler->whole;
    out->length = length;
    out->address = header->index == 0 ? header->address : entry->address;
    remove_entry(assembler, entry);
    return AQ_ASSEMBLY_COMPLETE;
}

int aq_assembler_add(aq_assembler *assembler, const aq_packet_header *header, const uint8_t *payload, uint64_t now,
                     aq_assembled *out)
{
    uint32_t key = (uint32_t)header->association << 16 | header->packet;
    incomplete *entry;
    int result;

    aq_assembler_expire(assembler, now);
    if (header->index >= header->total || (header->index == 0) != (header->has_address != 0))
        return AQ_ASSEMBLY_BAD;
    if (header->total == 1) {
        out->payload = payload;
        out->length = header->size;
        out->address = header->address;
        return AQ_ASSEMBLY_COMPLETE;
    }

    entry = find(assembler, key);
    if (entry == NULL) {
        entry = add_entry(assembler, key, header->total, now);
        if (entry == NULL)
            return AQ_ASSEMBLY_MEMORY;
    } else if (entry->total != header->total) {
        return AQ_ASSEMBLY_BAD;
    } else if (entry->fragments[header->index] != NULL) {
        return AQ_ASSEMBLY_DUPLICATE;
    }
    if (entry->length + header->size > PACKET_SIZE_MAX)
        result = AQ_ASSEMBLY_TOO_BIG;
    else if (entry->present + 1 == entry->total)
        result = join(assembler, entry, header, payload, out);
    else
        result = keep(assembler, entry, header, payload);
    if (result < 0)
        give_up(assembler, entry); /* it can no longer be completed */
    return result;
}

uint64_t aq_assembler_expire(aq_assembler *assembler, uint64_t now)
{
    incomplete *oldest;

    while ((oldest = assembler->entries.first) != NULL) {
        uint64_t end =
            oldest->started > UINT64_MAX - assembler->lifetime ? UINT64_MAX : oldest->started + assembler->lifetime;

        if (now < end)
            return end;
        give_up(assembler, oldest);
    }
    return UINT64_MAX;
}

size_t aq_assembler_held(const aq_assembler *assembler)
{
    return assembler->bytes + assembler->packets * (sizeof(incomplete) + 255 * sizeof(fragment *));
}

uint64_t aq_assembler_dropped(const aq_assembler *assembler)
{
    return assembler->dropped;
}

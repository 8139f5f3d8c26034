/* Any bytes as a command: lengths, Packet headers, Connect. What is accepted is canonical: encoded again it gives the
 * same bytes. The last four bytes also make a plan for fragments.
 */
#include "fuzz.h"

#include "tunnel/packet.h"

static void lengths(const uint8_t *data, size_t size)
{
    const char *problem = NULL;
    int whole = aq_command_length(data, size, &problem);

    MUST(whole >= -1 && whole <= AQ_COMMAND_MAX);
    MUST(whole != -1 || problem != NULL);
    /* Fewer bytes never say something else, only less. */
    for (size_t length = 0; length < size && length <= AQ_COMMAND_MAX; length++) {
        int known = aq_command_length(data, length, &problem);
        MUST(known == 0 || known == whole || whole == -1);
    }
}

static void packet(const uint8_t *data, size_t size)
{
    uint8_t again[AQ_PACKET_HEADER_MAX];
    aq_packet_header header;
    const char *problem = NULL;
    int result = aq_packet_decode(data, size, &header, &problem);

    MUST(result == 1 || result == 0 || (result == -1 && problem != NULL));
    if (result != 1)
        return;
    MUST(header.header <= size && header.header <= AQ_PACKET_HEADER_MAX);
    MUST(aq_packet_encode(again, header.association, header.packet, header.total, header.index, header.size,
                          header.has_address ? &header.address : NULL) == header.header);
    MUST(memcmp(again, data, header.header) == 0);
}

static void connect(const uint8_t *data, size_t size)
{
    uint8_t again[AQ_CONNECT_MAX];
    aq_address source;
    const char *problem;
    int whole = aq_command_length(data, size, &problem);

    if (whole <= 0 || (size_t)whole > size || data[1] != AQ_COMMAND_CONNECT)
        return;
    aq_connect_decode(data, &source);
    if (source.family == 0)
        return;
    MUST(aq_connect_encode(again, &source) == (size_t)whole);
    MUST(memcmp(again, data, (size_t)whole) == 0);
}

static void plan(size_t limit, size_t payload, int ipv6)
{
    size_t first = 0, rest = 0, header = ipv6 ? AQ_PACKET_HEADER_MAX : AQ_PACKET_HEADER_MAX - 12;
    int count = aq_fragment_plan(limit, payload, ipv6, &first, &rest);

    MUST(count >= 0 && count <= AQ_FRAGMENTS_MAX);
    if (count == 1)
        MUST(first == payload && header + first <= limit);
    if (count <= 1)
        return;
    MUST(header + first <= limit && AQ_PACKET_HEADER_NONE + rest <= limit);
    /* All but the last are full, and the last is neither empty nor too long. */
    MUST(first + (size_t)(count - 2) * rest < payload);
    MUST(first + (size_t)(count - 1) * rest >= payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* A block with no byte to spare: the sanitizer sees each byte read too far. */
    uint8_t *copy = malloc(size > 0 ? size : 1);

    if (copy == NULL)
        return 0;
    if (size > 0)
        memcpy(copy, data, size);
    lengths(copy, size);
    packet(copy, size);
    connect(copy, size);
    free(copy);
    if (size >= 5) {
        const uint8_t *end = data + size - 5;
        plan((size_t)(end[0] << 8 | end[1]), (size_t)(end[2] << 8 | end[3]), end[4] & 1);
    }
    return 0;
}

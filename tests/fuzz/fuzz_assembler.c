/* Fragments in any order, of any kind, over any time: what comes out whole is what went in. Every fragment is filled
 * with bytes that tell where it belongs.
 */
#include "fuzz.h"

#include "tunnel/packet.h"

#define LIFETIME 1000
#define PACKETS_MAX 6
#define BYTES_MAX 70000

static uint8_t mark(const aq_packet_header *header)
{
    return (uint8_t)(header->association * 31 + header->packet * 7 + header->index + 1);
}

/* Every part of a whole packet is marked as its own; `sizes` is how long the accepted fragments were. */
static void whole(const aq_packet_header *last, const aq_assembled *out)
{
    aq_packet_header part = *last;
    size_t at = 0;

    MUST(out->length <= UINT16_MAX);
    for (unsigned i = 0; i < last->total; i++) {
        part.index = (uint8_t)i;
        while (at < out->length && out->payload[at] == mark(&part))
            at++;
    }
    MUST(at == out->length);
}

static void add(aq_assembler *assembler, fuzz_input *input, uint64_t now)
{
    static const uint16_t SIZES[] = {0, 1, 2, 100, 1200, 30000, 65535, 7};
    aq_packet_header header = {.association = fuzz_u8(input) % 3, .packet = fuzz_u8(input) % 4};
    aq_assembled out;
    uint8_t *payload;
    uint64_t dropped = aq_assembler_dropped(assembler);
    int result;

    header.total = fuzz_u8(input) % 6;
    if (header.total == 5)
        header.total = 255;
    header.index = fuzz_u8(input);
    if (header.total > 1 && header.total < 255)
        header.index %= header.total + 1;
    header.size = SIZES[fuzz_u8(input) % 8];
    header.has_address = header.index == 0;
    if (fuzz_u8(input) == 1)
        header.has_address = !header.has_address;
    header.address.family = 4;
    payload = malloc(header.size > 0 ? header.size : 1U);
    if (payload == NULL)
        return;
    memset(payload, mark(&header), header.size);
    fuzz_allocations_left = fuzz_u8(input) == 2 ? fuzz_u8(input) % 3 : FUZZ_NO_FAILURE;
    result = aq_assembler_add(assembler, &header, payload, now, &out);
    fuzz_allocations_left = FUZZ_NO_FAILURE;
    MUST(result >= AQ_ASSEMBLY_MEMORY && result <= AQ_ASSEMBLY_COMPLETE);
    MUST(aq_assembler_dropped(assembler) >= dropped);
    if (result == AQ_ASSEMBLY_COMPLETE)
        whole(&header, &out);
    free(payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input input = {data, size};
    aq_assembler *assembler = aq_assembler_new(1 + fuzz_u8(&input) % PACKETS_MAX, BYTES_MAX, LIFETIME);
    uint64_t now = 0, next;

    if (assembler == NULL)
        return 0;
    while (input.left > 0) {
        uint8_t what = fuzz_u8(&input);
        switch (what % 8) {
        case 0:
            now += what;
            break;
        case 1:
            MUST(aq_assembler_expire(assembler, UINT64_MAX) == UINT64_MAX);
            break;
        case 2:
            next = aq_assembler_expire(assembler, now);
            MUST(next > now && (next == UINT64_MAX || next <= now + LIFETIME));
            break;
        default:
            add(assembler, &input, now);
            break;
        }
    }
    aq_assembler_free(assembler);
    return 0;
}

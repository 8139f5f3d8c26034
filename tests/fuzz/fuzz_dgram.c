/* The ring of waiting UDP packets: what goes in comes out, in order and whole, until the ring is full. */
#include "fuzz.h"

#include "tunnel/dgram.h"

#define WAITING 4096 /* records that the model remembers */
#define LIMIT 65536

typedef struct {
    uint32_t payload;
    uint8_t header, ipv6, mark;
} record;

static record model[WAITING];
static uint32_t first, waiting;

static void add(aq_dgram *queue, fuzz_input *input)
{
    uint32_t reserve = fuzz_u16(input), payload = fuzz_u8(input) < 128 ? reserve : fuzz_u16(input);
    uint8_t header = fuzz_u8(input) % 30, mark = fuzz_u8(input);
    aq_dgram_record *place;
    record *one = &model[(first + waiting) % WAITING];

    if (waiting == WAITING)
        return;
    if (payload > reserve)
        payload = reserve;
    place = aq_dgram_reserve(queue, reserve);
    if (place == NULL) {
        MUST(waiting > 0); /* an empty ring has room for the largest packet */
        return;
    }
    *one = (record){.payload = payload, .header = header, .ipv6 = mark & 1, .mark = mark};
    place->header = header;
    place->ipv6 = one->ipv6;
    place->payload = payload;
    memset(place->data, mark, header + payload);
    aq_dgram_commit(queue, place);
    waiting++;
}

static void take(aq_dgram *queue)
{
    aq_dgram_record *place = aq_dgram_front(queue);
    const record *one = &model[first];

    MUST((place == NULL) == (waiting == 0));
    if (place == NULL)
        return;
    MUST(place->payload == one->payload && place->header == one->header && place->ipv6 == one->ipv6);
    for (uint32_t at = 0; at < one->header + one->payload; at++)
        MUST(place->data[at] == one->mark);
    aq_dgram_pop(queue);
    first = (first + 1) % WAITING;
    waiting--;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input input = {data, size};
    aq_dgram queue;

    first = waiting = 0;
    if (aq_dgram_init(&queue, LIMIT) != AQ_OK)
        return 0;
    while (input.left > 0) {
        if (fuzz_u8(&input) % 2 == 0)
            add(&queue, &input);
        else
            take(&queue);
        MUST((aq_dgram_waiting(&queue) == 0) == (waiting == 0));
    }
    while (waiting > 0)
        take(&queue);
    MUST(aq_dgram_front(&queue) == NULL);
    aq_dgram_destroy(&queue);
    return 0;
}

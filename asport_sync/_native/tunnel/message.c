#include "tunnel/message.h"

#include <string.h>

/* Stores the length of the command at data, with its payload, in *whole. Returns 1: known, 0: not known yet, -1:
 * malformed. */
static int whole_length(const uint8_t *data, size_t length, size_t *whole, const char **problem)
{
    int header = aq_command_length(data, length, problem);
    if (header <= 0)
        return header;
    *whole = (size_t)header;
    if (data[1] == AQ_COMMAND_PACKET) {
        aq_packet_header packet;
        int known = aq_packet_decode(data, length, &packet, problem);
        if (known <= 0)
            return known;
        *whole = packet.header + packet.size;
    }
    return 1;
}

static int reserve(aq_incoming *incoming, size_t capacity)
{
    uint8_t *bigger;
    if (capacity <= incoming->capacity)
        return 0;
    bigger = malloc(capacity);
    if (bigger == NULL)
        return -1;
    memcpy(bigger, incoming->data, incoming->have);
    aq_incoming_release(incoming);
    incoming->data = bigger;
    incoming->capacity = capacity;
    if (incoming->account != NULL)
        aq_account_add(incoming->account, capacity);
    return 0;
}

int aq_incoming_feed(aq_incoming *incoming, const uint8_t *data, size_t length, const uint8_t **command,
                     size_t *command_length, size_t *used, const char **problem)
{
    size_t whole = 0;
    int known;

    *used = 0;
    if (incoming->have == 0) {
        known = whole_length(data, length, &whole, problem);
        if (known < 0)
            return -1;
        if (known > 0 && length >= whole) {
            *command = data;
            *command_length = *used = whole;
            return 1;
        }
    }
    while (*used < length) {
        size_t have = incoming->have, step;
        /* Until the length is known, no more than the longest command header is read; `small` has room for it. */
        size_t want = incoming->need != 0 ? incoming->need : AQ_COMMAND_MAX;
        if (reserve(incoming, want) != 0)
            return -2;
        step = want - have;
        if (step > length - *used)
            step = length - *used;
        memcpy(incoming->data + have, data + *used, step);
        /* Also once the length is known: fields after those that determine it may still be invalid. */
        known = whole_length(incoming->data, have + step, &whole, problem);
        if (known < 0)
            return -1;
        if (known > 0 && incoming->need == 0) {
            incoming->need = whole;
            if (have + step > whole)
                step = whole - have; /* the other bytes come after the command */
        }
        incoming->have = have + step;
        *used += step;
        if (incoming->need != 0 && incoming->have == incoming->need) {
            *command = incoming->data;
            *command_length = incoming->need;
            return 1;
        }
    }
    return 0;
}

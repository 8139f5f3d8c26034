/* A command that arrives on a stream in pieces: however it is cut, the outcome is that of the whole in one piece. */
#include "fuzz.h"

#include "tunnel/message.h"

#define PIECES_MAX 32

typedef struct {
    int outcome;
    size_t used;
    uint8_t *command; /* a copy */
    size_t length;
} result;

static result feed(const uint8_t *data, size_t size, const uint8_t *cuts, size_t cuts_length)
{
    result end = {0, 0, NULL, 0};
    aq_incoming *incoming = calloc(1, sizeof(*incoming));
    size_t at = 0, piece = 0;

    MUST(incoming != NULL);
    aq_incoming_init(incoming);
    while (at < size && end.outcome == 0) {
        size_t step = piece < cuts_length ? cuts[piece++] : size - at, used = 0, length = 0;
        const uint8_t *command = NULL;
        const char *problem = NULL;
        uint8_t *copy;
        if (step > size - at)
            step = size - at;
        copy = malloc(step > 0 ? step : 1);
        MUST(copy != NULL);
        memcpy(copy, data + at, step);
        end.outcome = aq_incoming_feed(incoming, copy, step, &command, &length, &used, &problem);
        MUST(used <= step);
        MUST(end.outcome != -1 || problem != NULL);
        end.used += used;
        at += step;
        if (end.outcome == 1) {
            end.command = malloc(length);
            MUST(end.command != NULL);
            memcpy(end.command, command, length);
            end.length = length;
        }
        free(copy);
    }
    aq_incoming_release(incoming);
    free(incoming);
    return end;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input input = {data, size};
    size_t cuts_length = fuzz_u8(&input) % PIECES_MAX, length;
    const uint8_t *cuts = fuzz_bytes(&input, cuts_length, &cuts_length);
    const uint8_t *stream = fuzz_bytes(&input, input.left, &length);
    result pieces = feed(stream, length, cuts, cuts_length), whole = feed(stream, length, NULL, 0);

    MUST(pieces.outcome == whole.outcome);
    if (whole.outcome == 1) {
        MUST(pieces.used == whole.used && pieces.length == whole.length && whole.used == whole.length);
        MUST(memcmp(pieces.command, whole.command, whole.length) == 0);
        MUST(memcmp(whole.command, stream, whole.length) == 0);
    }
    free(pieces.command);
    free(whole.command);
    return 0;
}

#include "flow.h"

#include <stdlib.h>
#include <string.h>

#define WORD 64

void flow_start(struct flow *flow, uint64_t id)
{
    *flow = (struct flow){.id = id, .seen = allocate(FLOW_WINDOW / WORD, sizeof(uint64_t))};
}

void flow_end(struct flow *flow)
{
    free(flow->seen);
    flow->seen = NULL;
}

static uint64_t *word_of(struct flow *flow, uint64_t sequence)
{
    return &flow->seen[sequence % FLOW_WINDOW / WORD];
}

static uint64_t bit_of(uint64_t sequence)
{
    return 1ULL << (sequence % WORD);
}

/* Forgets what the ring held at the places of the sequence numbers up to this one. */
static void advance(struct flow *flow, uint64_t sequence)
{
    if (sequence - flow->highest >= FLOW_WINDOW) {
        memset(flow->seen, 0, FLOW_WINDOW / 8);
        flow->highest = sequence;
    }
    while (flow->highest < sequence) {
        flow->highest++;
        *word_of(flow, flow->highest) &= ~bit_of(flow->highest);
    }
}

void flow_note(struct flow *flow, uint64_t sequence, size_t length)
{
    bool late = flow->received > 0 && sequence < flow->highest;
    if (late && flow->highest - sequence >= FLOW_WINDOW) {
        flow->duplicates++;
        return;
    }
    if (sequence > flow->highest)
        advance(flow, sequence);
    if (*word_of(flow, sequence) & bit_of(sequence)) {
        flow->duplicates++;
        return;
    }
    *word_of(flow, sequence) |= bit_of(sequence);
    flow->received++;
    flow->bytes += length;
    flow->reordered += late;
}

/* What arrived of a numbered flow of datagrams. */
#ifndef LOAD_FLOW_H
#define LOAD_FLOW_H

#include "common.h"

/* How far back a datagram can be told from its duplicate; what is older counts as a duplicate. */
#define FLOW_WINDOW (1ULL << 22)

struct flow {
    uint64_t id;
    uint64_t received; /* different ones */
    uint64_t bytes;
    uint64_t duplicates;
    uint64_t reordered; /* came after one that was sent later */
    uint64_t highest;   /* sequence number */
    uint64_t *seen;     /* a ring of bits, owned */
};

void flow_start(struct flow *flow, uint64_t id);
void flow_end(struct flow *flow);
void flow_note(struct flow *flow, uint64_t sequence, size_t length);

#endif

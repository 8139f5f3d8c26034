/* The counters of the service. */
#ifndef LOAD_REPORT_H
#define LOAD_REPORT_H

#include "common.h"

struct report {
    uint64_t open; /* TCP connections, without the one that asks */
    uint64_t bulk; /* of these, sinks and sources */
    uint64_t accepted;
    uint64_t surplus; /* bytes after the end of a sink of known size */
    uint64_t stray;   /* datagrams that were not valid */
    /* Of one UDP flow. */
    uint64_t received;
    uint64_t bytes;
    uint64_t duplicates;
    uint64_t reordered;
    uint64_t highest;
};

/* As one line of JSON; returns its length. */
size_t report_print(const struct report *report, char *buffer, size_t length);

/* Asks the service; ends the program where it does not answer. */
struct report report_ask(const struct address *service, uint64_t flow);

#endif

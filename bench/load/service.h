/* The local service: two threads for TCP, one for UDP, and the main thread that waits for the end. */
#ifndef LOAD_SERVICE_H
#define LOAD_SERVICE_H

#include "common.h"
#include "report.h"

#include <pthread.h>
#include <stdatomic.h>

#define WORKERS 2

struct service;
struct peer;

/* A thread with its TCP connections. Both threads accept; who transfers in bulk is then dealt out in turn, since the
 * kernel would often wake the same thread for all of them. */
struct worker {
    struct service *service;
    pthread_t thread;
    int poller;
    struct peer *telling; /* sinks that want to know how far they are */
    uint8_t buffer[CHUNK];
};

struct service {
    int listener;
    int datagrams;
    pthread_t datagram_thread;
    struct worker workers[WORKERS];
    atomic_uint dealt;
    atomic_ullong open;
    atomic_ullong bulk;
    atomic_ullong accepted;
    atomic_ullong surplus;
    atomic_ullong stray;
};

/* Threads; they never end. */
void *worker_run(void *worker);
void *datagrams_run(void *service);

/* Adds what arrived of this flow. */
void datagrams_report(uint64_t flow, struct report *report);

#endif

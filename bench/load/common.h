/* What the parts of the load generator share: the bytes on the wire, addresses, time, and how a command ends. */
#ifndef LOAD_COMMON_H
#define LOAD_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))
#define NSEC_PER_MSEC 1000000ULL
#define NSEC_PER_SEC 1000000000ULL

/* Bytes for one read or write in bulk. */
#define CHUNK ((size_t)256 * 1024)

/* ---- wire ---------------------------------------------------------------------------------------------------------
 * Both ends run on one machine, so everything is in its byte order. */

enum operation {
    OPERATION_SINK = 1,   /* verify what comes, answer with a struct progress that is final */
    OPERATION_SOURCE = 2, /* send the pattern */
    OPERATION_ECHO = 3,   /* send back what comes */
    OPERATION_REPORT = 4, /* answer with counters as JSON; seed names a UDP flow, or 0 */
};

/* Sink: also tell how far it is, every 100 ms. */
#define FLAG_PROGRESS 1u

/* What a TCP connection begins with. The payload may follow in the same segment. */
struct request {
    uint32_t operation;
    uint32_t flags;
    uint64_t size; /* bytes to transfer; 0: until one side closes */
    uint64_t seed; /* of the pattern */
};

struct progress {
    uint64_t count;       /* bytes verified so far */
    uint64_t nanoseconds; /* CLOCK_MONOTONIC at that moment; one clock for all network namespaces */
    uint32_t ok;          /* 0: there was a byte that should not have been, or the end came too early */
    uint32_t final;       /* no other follows */
};

/* Service: send the datagram back instead of counting it. */
#define FLAG_ECHO 1u

/* What a datagram begins with. The pattern follows to its end. */
struct datagram {
    uint32_t check; /* over the other fields and the length, see datagram_check() */
    uint32_t flags;
    uint64_t flow;
    uint64_t sequence;
};

#define DATAGRAM_MAX 9216

_Static_assert(sizeof(struct request) == 24, "the request has no padding");
_Static_assert(sizeof(struct progress) == 24, "the answer has no padding");
_Static_assert(sizeof(struct datagram) == 24, "the header has no padding");

/* ---- addresses and sockets ----------------------------------------------------------------------------------------
 */

struct address {
    struct sockaddr_storage storage;
    socklen_t length; /* 0: not given */
};

/* HOST:PORT or [HOST]:PORT. Ends the program where it is neither. */
struct address address_parse(const char *text);
uint16_t address_port(const struct address *address);

/* A TCP socket whose connect() to `target` has begun, without waiting; or -1 with errno. TCP_NODELAY is on. Towards
 * 127.0.0.1, `turn` picks one of 249 source addresses, so that ports in TIME_WAIT never run out. */
int connect_start(const struct address *target, uint64_t turn);

/* The same, connected and blocking, with a time limit for each operation on it. */
int connect_wait(const struct address *target, uint64_t turn, double timeout);

/* A UDP socket connected to `target`, with large buffers. Ends the program where there is none. */
int datagram_socket(const struct address *target);

/* Sends everything or fails; for blocking sockets. */
bool send_all(int fd, const void *data, size_t length);

/* Makes close() a reset: what is on the way is dropped. */
void abort_on_close(int fd);

/* As large as the system lets it be. */
void enlarge_buffer(int fd, int forced_option, int option);

void raise_descriptor_limit(void);

/* ---- the rest -----------------------------------------------------------------------------------------------------
 */

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t now(void);
static inline double to_seconds(uint64_t nanoseconds)
{
    return (double)nanoseconds * 1e-9;
}
static inline uint64_t to_nanoseconds(double seconds)
{
    return seconds <= 0 ? 0 : (uint64_t)(seconds * 1e9);
}

uint64_t random_number(void);

/* Memory of zeros; ends the program where there is none. */
void *allocate(size_t count, size_t size);

/* Prints {"error": text} and ends the program with status 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A text as it may stand between quotes in JSON: everything else is replaced. In place; returns text. */
char *json_safe(char *text);

/* ---- commands -----------------------------------------------------------------------------------------------------
 */

enum direction { DIRECTION_UP = 1, DIRECTION_DOWN = 2, DIRECTION_BOTH = 3 };

struct options {
    struct address connect;
    struct address service;
    struct address listen;
    enum direction direction;
    bool udp;
    bool echo;
    uint64_t streams;
    uint64_t bytes;
    uint64_t count;
    uint64_t concurrency;
    uint64_t size;
    uint64_t flow;
    uint64_t interval; /* nanoseconds */
    double seconds;
    double warmup;
    double timeout; /* negative: not given */
    double pace;
    double rate;
};

/* Each prints its JSON and returns the exit status. */
int service_run(const struct options *options);
int report_run(const struct options *options);
int bulk_run(const struct options *options);
int ping_run(const struct options *options);
int connections_run(const struct options *options);
int hold_run(const struct options *options);
int udp_run(const struct options *options);

#endif

/* The path between two TUN devices, as tests/path/forwarder.py carries it and with the same control interface, for
 * loads that would keep an interpreter too busy.
 *
 *   carrier --devices=A,B --control=FD --seed=N --delay_ms=X --loss=X --rate_mbit=X --queue_ms=X --black_hole=false
 *
 * A packet's way in one direction: read from the sender's device, dropped if the direction is a black hole, dropped at
 * the tail if the queue is full, sent at the bottleneck's rate, lost at random after that, delayed, written to the
 * receiver's device. It ends when the other end of the control socket is closed. One thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64             /* packets taken from one device before the other gets its turn */
#define LARGEST_PACKET 65535 /* longer than any MTU a TUN device can have */
#define CONTROL_SIZE 65536
#define NEVER INT64_MAX
/* Nanoseconds from one round to the next at least. What comes or is due in between is carried together: that halves the
 * work at 100 Mbit/s, and adds at most this to a packet's delay at each of its two ends. */
#define GRAIN 200000

enum field { DELAY_MS, LOSS, RATE_MBIT, QUEUE_MS, BLACK_HOLE, FIELDS };
static const char *const field_names[FIELDS] = {"delay_ms", "loss", "rate_mbit", "queue_ms", "black_hole"};

enum counter { RECEIVED, DELIVERED, DELIVERED_BYTES, LOST, QUEUE_FULL, BLACK_HOLED, REFUSED, IN_FLIGHT, COUNTERS };
static const char *const counter_names[COUNTERS] = {"received",   "delivered",   "delivered_bytes",   "lost",
                                                    "queue_full", "black_holed", "refused_by_device", "in_flight"};

struct packet {
    int64_t arrival; /* nanoseconds of the monotonic clock */
    uint64_t number; /* keeps packets of the same time in line */
    size_t length;
    uint8_t data[];
};

/* One direction. Times are nanoseconds. */
struct link {
    double settings[FIELDS];
    uint64_t counters[COUNTERS];
    uint64_t random;      /* state of splitmix64 */
    int64_t idle_at;      /* when the bottleneck has sent all it was given */
    struct packet **heap; /* owned, and the packets in it too; the earliest first */
    size_t count, room;   /* of the heap */
    int sender, receiver; /* devices */
};

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time); /* cannot fail: the clock exists and the pointer is good */
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

_Noreturn static void fail(const char *what)
{
    fprintf(stderr, "carrier: %s: %s\n", what, errno != 0 ? strerror(errno) : "not understood");
    exit(1);
}

/* From 0 to just under 1. */
static double random_share(struct link *link)
{
    uint64_t z = link->random += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

static int earlier(const struct packet *one, const struct packet *other)
{
    return one->arrival != other->arrival ? one->arrival < other->arrival : one->number < other->number;
}

static void push(struct link *link, struct packet *packet)
{
    size_t at = link->count++;

    if (link->count > link->room) {
        link->room = link->room == 0 ? 1024 : 2 * link->room;
        link->heap = realloc(link->heap, link->room * sizeof(*link->heap));
        if (link->heap == NULL)
            fail("memory for packets on their way");
    }
    while (at > 0 && earlier(packet, link->heap[(at - 1) / 2])) {
        link->heap[at] = link->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    link->heap[at] = packet;
}

/* The earliest packet, which is the caller's from here on. The heap must not be empty. */
static struct packet *pop(struct link *link)
{
    struct packet *first = link->heap[0], *last = link->heap[--link->count];
    size_t at = 0;

    for (size_t child = 1; child < link->count; child = 2 * at + 1) {
        if (child + 1 < link->count && earlier(link->heap[child + 1], link->heap[child]))
            child++;
        if (!earlier(link->heap[child], last))
            break;
        link->heap[at] = link->heap[child];
        at = child;
    }
    link->heap[at] = last;
    return first;
}

static void offer(struct link *link, const uint8_t *data, size_t length, int64_t time)
{
    const int64_t start = link->idle_at > time ? link->idle_at : time;
    struct packet *packet;

    link->counters[RECEIVED]++;
    if (link->settings[BLACK_HOLE] != 0) {
        link->counters[BLACK_HOLED]++;
        return;
    }
    if ((double)(start - time) > link->settings[QUEUE_MS] * 1e6) {
        link->counters[QUEUE_FULL]++;
        return;
    }
    link->idle_at = start + (int64_t)((double)length * 8e3 / link->settings[RATE_MBIT]);
    /* One number for each packet that was queued, lost or not: then which ones are lost depends on the seed alone. */
    if (random_share(link) < link->settings[LOSS]) {
        link->counters[LOST]++;
        return;
    }
    packet = malloc(sizeof(*packet) + length);
    if (packet == NULL)
        fail("memory for a packet");
    packet->arrival = link->idle_at + (int64_t)(link->settings[DELAY_MS] * 1e6);
    packet->number = link->counters[RECEIVED];
    packet->length = length;
    memcpy(packet->data, data, length);
    push(link, packet);
}

static void take(struct link *link)
{
    static uint8_t data[LARGEST_PACKET];

    for (int i = 0; i < BATCH; i++) {
        const ssize_t length = read(link->sender, data, sizeof(data));

        if (length < 0)
            return; /* EAGAIN: none is left */
        /* The clock after the read: a packet is never delivered earlier than its delay after it was sent. */
        offer(link, data, (size_t)length, now());
    }
}

static void hand_over(struct link *link)
{
    const int64_t time = link->count != 0 ? now() : 0;

    while (link->count != 0 && link->heap[0]->arrival <= time) {
        struct packet *packet = pop(link);

        if (write(link->receiver, packet->data, packet->length) < 0) {
            link->counters[REFUSED]++; /* the device is down, or has no room */
        } else {
            link->counters[DELIVERED]++;
            link->counters[DELIVERED_BYTES] += packet->length;
        }
        free(packet);
    }
}

static double value_of(const char *text)
{
    char *end;
    const double value = strtod(text, &end);

    if (end != text)
        return value;
    if (strncmp(text, "true", 4) == 0)
        return 1;
    if (strncmp(text, "false", 5) == 0)
        return 0;
    errno = 0;
    fail(text);
}

/* Carries out {"0": {"loss": 0.1}, "1": {}}, which the other end has checked. Returns 0 where nothing more will come.
 */
static int obey(int control, struct link links[2])
{
    static char text[CONTROL_SIZE];
    const ssize_t length = recv(control, text, sizeof(text) - 1, 0);
    struct link *link = NULL;
    size_t used = 0;

    if (length <= 0)
        return 0;
    text[length] = 0;
    for (char *name = strchr(text, '"'); name != NULL; name = strchr(name, '"')) {
        char *end = strchr(++name, '"'), *value;

        if (end == NULL)
            break;
        *end = 0;
        value = end + 1 + strspn(end + 1, ": ");
        if (*value == '{') {
            link = &links[strcmp(name, "1") == 0];
        } else {
            for (int field = 0; field < FIELDS && link != NULL; field++)
                if (strcmp(name, field_names[field]) == 0)
                    link->settings[field] = value_of(value);
        }
        name = value;
    }
    for (int direction = 0; direction < 2; direction++) {
        links[direction].counters[IN_FLIGHT] = links[direction].count;
        for (int counter = 0; counter < COUNTERS; counter++)
            used += (size_t)snprintf(text + used, sizeof(text) - used, "%s\"%s\": %" PRIu64,
                                     counter != 0 ? ", " : (direction != 0 ? "}, {" : "[{"), counter_names[counter],
                                     links[direction].counters[counter]);
    }
    used += (size_t)snprintf(text + used, sizeof(text) - used, "}]");
    return send(control, text, used, MSG_NOSIGNAL) == (ssize_t)used;
}

static void run(int control, struct link links[2])
{
    struct pollfd ready[3] = {{.fd = control, .events = POLLIN},
                              {.fd = links[0].sender, .events = POLLIN},
                              {.fd = links[1].sender, .events = POLLIN}};

    for (;;) {
        struct timespec wait;
        int64_t next = NEVER, left;

        for (int direction = 0; direction < 2; direction++)
            if (links[direction].count != 0 && links[direction].heap[0]->arrival < next)
                next = links[direction].heap[0]->arrival;
        left = next != NEVER ? next - now() : 0;
        wait =
            (struct timespec){.tv_sec = left > 0 ? left / 1000000000 : 0, .tv_nsec = left > 0 ? left % 1000000000 : 0};
        if (ppoll(ready, 3, next != NEVER ? &wait : NULL, NULL) < 0 && errno != EINTR)
            fail("ppoll");
        for (int direction = 0; direction < 2; direction++)
            take(&links[direction]);
        for (int direction = 0; direction < 2; direction++)
            hand_over(&links[direction]);
        /* After the packets that were sent before the request was. */
        if (ready[0].revents != 0 && !obey(control, links))
            return;
        nanosleep(&(struct timespec){.tv_nsec = GRAIN}, NULL);
    }
}

static void release(struct link *link)
{
    while (link->count != 0)
        free(pop(link));
    free(link->heap);
}

int main(int argc, char **argv)
{
    struct link links[2] = {{.sender = -1, .receiver = -1}, {.sender = -1, .receiver = -1}};
    int control = -1;

    for (int i = 1; i < argc; i++) {
        const char *name = strncmp(argv[i], "--", 2) == 0 ? argv[i] + 2 : "", *value = strchr(name, '=');
        const size_t length = value != NULL ? (size_t)(value++ - name) : 0;
        int field = 0;

        if (length == 0)
            fail(argv[i]);
        while (field < FIELDS &&
               (strlen(field_names[field]) != length || memcmp(name, field_names[field], length) != 0))
            field++;
        if (field < FIELDS) {
            links[0].settings[field] = links[1].settings[field] = value_of(value);
        } else if (strncmp(name, "devices=", 8) == 0) {
            if (sscanf(value, "%d,%d", &links[0].sender, &links[0].receiver) != 2)
                fail(argv[i]);
        } else if (strncmp(name, "control=", 8) == 0) {
            control = (int)value_of(value);
        } else if (strncmp(name, "seed=", 5) == 0) {
            /* The seeds differ, or both directions would lose the same packets. */
            links[0].random = 2 * (uint64_t)value_of(value);
            links[1].random = links[0].random + 1;
        } else {
            fail(argv[i]);
        }
    }
    links[1].sender = links[0].receiver;
    links[1].receiver = links[0].sender;
    if (control < 0 || links[0].sender < 0 || links[0].settings[RATE_MBIT] <= 0)
        fail("devices, a control socket and a rate are needed");
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); /* the usual 50 us would be added to every delay */
    run(control, links);
    release(&links[0]);
    release(&links[1]);
    return 0;
}

/* The service's datagrams: counted by flow, or sent back. */
#include "flow.h"
#include "pattern.h"
#include "service.h"

#include <stdlib.h>
#include <time.h>

#define BATCH 64
#define COUNT_PAUSE 200000 /* nanoseconds */
/* Flows remembered; the oldest makes room. */
#define FLOWS 32

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct flow flows[FLOWS]; /* under lock, as next_flow */
static size_t next_flow;

static uint8_t data[BATCH][DATAGRAM_MAX + 1];
static struct sockaddr_storage sources[BATCH];

static struct flow *find_flow(uint64_t id)
{
    size_t at;
    for (at = 0; at < FLOWS; at++)
        if (flows[at].seen != NULL && flows[at].id == id)
            return &flows[at];
    return NULL;
}

static struct flow *get_flow(uint64_t id)
{
    static struct flow *last;
    if (last != NULL && last->id == id)
        return last;
    last = find_flow(id);
    if (last == NULL) {
        last = &flows[next_flow++ % FLOWS];
        flow_end(last);
        flow_start(last, id);
    }
    return last;
}

void datagrams_report(uint64_t id, struct report *report)
{
    const struct flow *flow;
    pthread_mutex_lock(&lock);
    flow = find_flow(id);
    if (flow != NULL) {
        report->received = flow->received;
        report->bytes = flow->bytes;
        report->duplicates = flow->duplicates;
        report->reordered = flow->reordered;
        report->highest = flow->highest;
    }
    pthread_mutex_unlock(&lock);
}

/* Returns whether any was to be sent back. */
static bool take_batch(struct service *service, struct mmsghdr *messages, unsigned count)
{
    struct mmsghdr answers[BATCH];
    struct iovec pieces[BATCH];
    struct datagram header;
    unsigned echoes = 0;
    unsigned at;
    pthread_mutex_lock(&lock);
    for (at = 0; at < count; at++) {
        if (!datagram_valid(data[at], messages[at].msg_len, &header)) {
            atomic_fetch_add(&service->stray, 1);
        } else if (header.flags & FLAG_ECHO) {
            pieces[echoes] = (struct iovec){.iov_base = data[at], .iov_len = messages[at].msg_len};
            answers[echoes] = (struct mmsghdr){.msg_hdr = {.msg_name = &sources[at],
                                                           .msg_namelen = messages[at].msg_hdr.msg_namelen,
                                                           .msg_iov = &pieces[echoes],
                                                           .msg_iovlen = 1}};
            echoes++;
        } else {
            flow_note(get_flow(header.flow), header.sequence, messages[at].msg_len);
        }
    }
    pthread_mutex_unlock(&lock);
    if (echoes > 0)
        sendmmsg(service->datagrams, answers, echoes, MSG_DONTWAIT); /* what finds no room is lost, as on a network */
    return echoes > 0;
}

void *datagrams_run(void *argument)
{
    struct service *service = argument;
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    struct timespec pause = {.tv_nsec = COUNT_PAUSE};
    int count;
    int at;
    enlarge_buffer(service->datagrams, SO_RCVBUFFORCE, SO_RCVBUF);
    enlarge_buffer(service->datagrams, SO_SNDBUFFORCE, SO_SNDBUF);
    for (;;) {
        for (at = 0; at < BATCH; at++) {
            pieces[at] = (struct iovec){.iov_base = data[at], .iov_len = sizeof(data[at])};
            messages[at] = (struct mmsghdr){.msg_hdr = {.msg_name = &sources[at],
                                                        .msg_namelen = sizeof(sources[at]),
                                                        .msg_iov = &pieces[at],
                                                        .msg_iovlen = 1}};
        }
        count = recvmmsg(service->datagrams, messages, BATCH, MSG_WAITFORONE, NULL);
        /* What is only counted can wait. Woken for each datagram, this thread would cost the sender, who does the
         * waking, more than the sending; the buffer holds far more than comes in this time. */
        if (count > 0 && !take_batch(service, messages, (unsigned)count) && count < BATCH)
            nanosleep(&pause, NULL);
    }
    return NULL;
}

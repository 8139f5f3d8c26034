#include "sim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/udp.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif

#define SOCKETS 16      /* QUIC sockets at once */
#define IDLE_TURN 20000 /* nanoseconds that a look without waiting takes */

uint64_t sim_now;
sim_fault_plan sim_fault;
uint32_t sim_calls_left = FUZZ_NO_FAILURE;
int sim_errno;
uint32_t sim_full;
uint64_t sim_datagrams;
void (*sim_sleep)(aq_engine *engine, const struct timespec *wait);
void (*sim_peer)(const uint8_t *data, size_t length);

void *__real_malloc(size_t size); /* NOLINT: the linker's names, here and below */

/* ---- time and chance ------------------------------------------------------------------------------------------- */

static uint64_t chance;

uint64_t aq_now(void)
{
    return sim_now;
}

void aq_random(void *out, size_t length)
{
    uint8_t *bytes = out;
    for (size_t i = 0; i < length; i++) {
        chance = chance * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bytes[i] = (uint8_t)(chance >> 56);
    }
}

/* ---- the network ------------------------------------------------------------------------------------------------ */

typedef struct datagram {
    struct datagram *next;
    uint16_t from;
    uint8_t ecn;
    int truncated;
    size_t length, segment;
    uint8_t data[];
} datagram;

typedef struct {
    int fd;     /* -1: free */
    int client; /* -1: the server */
    aq_endpoint *endpoint;
    uint32_t events;
    datagram *first, *last;
} quic_socket;

static aq_engine *the_engine;
static quic_socket sockets[SOCKETS];
static int clients;  /* numbered so far */
static uint16_t nat; /* added to the ports of clients */
static datagram *held;

static quic_socket *by_fd(int fd)
{
    for (int i = 0; i < SOCKETS; i++) {
        if (sockets[i].fd == fd && fd >= 0)
            return &sockets[i];
    }
    return NULL;
}

static quic_socket *by_client(int client)
{
    for (int i = 0; i < SOCKETS; i++) {
        if (sockets[i].fd >= 0 && sockets[i].client == client)
            return &sockets[i];
    }
    return NULL;
}

static void drop_all(datagram *list)
{
    while (list != NULL) {
        datagram *next = list->next;
        free(list);
        list = next;
    }
}

static void enqueue(quic_socket *to, datagram *one)
{
    if (to == NULL) {
        free(one);
        return;
    }
    one->next = NULL;
    if (to->last != NULL)
        to->last->next = one;
    else
        to->first = one;
    to->last = one;
}

static datagram *new_datagram(uint16_t from, uint8_t ecn, const uint8_t *data, size_t length)
{
    datagram *one = __real_malloc(sizeof(*one) + length);
    MUST(one != NULL);
    memset(one, 0, sizeof(*one));
    one->from = from;
    one->ecn = ecn;
    one->length = length;
    if (length > 0)
        memcpy(one->data, data, length);
    return one;
}

void sim_inject(int client, uint16_t from_port, const uint8_t *data, size_t length)
{
    sim_datagrams++;
    enqueue(by_client(client), new_datagram(from_port, 0, data, length));
}

int sim_is_waiting(void)
{
    for (int i = 0; i < SOCKETS; i++) {
        if (sockets[i].fd >= 0 && sockets[i].first != NULL)
            return 1;
    }
    return 0;
}

/* One datagram on its way, with what the plan does to it. */
static void travel(const quic_socket *from, uint16_t to_port, uint8_t ecn, const uint8_t *data, size_t length)
{
    uint16_t port = from->client < 0 ? 443 : (uint16_t)(SIM_CLIENT_PORT + from->client + nat);
    int client = from->client < 0 ? (to_port - SIM_CLIENT_PORT) % SIM_CLIENTS : -1;
    quic_socket *to = by_client(client);
    datagram *one;
    enum sim_fault_kind kind = SIM_DELIVER;

    sim_datagrams++;
    if (sim_fault.count > 0) {
        sim_fault.count--;
        kind = sim_fault.kind;
    }
    if (kind == SIM_REBIND)
        nat = (uint16_t)((nat + SIM_CLIENTS) % 64);
    if (sim_peer != NULL) {
        sim_peer(data, length);
        return;
    }
    one = new_datagram(port, ecn, data, length);
    switch (kind) {
    case SIM_DROP:
        free(one);
        return;
    case SIM_TWICE:
        enqueue(to, new_datagram(port, ecn, data, length));
        break;
    case SIM_CUT:
        one->length = sim_fault.argument < length ? sim_fault.argument : length;
        break;
    case SIM_FLIP:
        if (length > 0)
            one->data[sim_fault.argument / 8 % length] ^= (uint8_t)(1 << sim_fault.argument % 8);
        break;
    case SIM_HOLD:
        one->next = held;
        held = one;
        return;
    case SIM_TRUNCATED:
        one->truncated = 1;
        break;
    case SIM_MARK:
        one->ecn = 3;
        break;
    default:
        break;
    }
    enqueue(to, one);
    while (kind == SIM_RELEASE && held != NULL) {
        datagram *next = held->next;
        int to_server = held->from != 443;
        enqueue(to_server ? by_client(-1) : to, held);
        held = next;
    }
}

void sim_begin(aq_engine *engine)
{
    the_engine = engine;
    for (int i = 0; i < SOCKETS; i++)
        sockets[i] = (quic_socket){.fd = -1};
    clients = 0;
    nat = 0;
    chance = 1;
    sim_now = AQ_NSEC_PER_SEC;
    sim_fault = (sim_fault_plan){SIM_DELIVER, 0, 0};
    sim_calls_left = FUZZ_NO_FAILURE;
    sim_full = 0;
    sim_datagrams = 0;
}

void sim_end(void)
{
    for (int i = 0; i < SOCKETS; i++) {
        drop_all(sockets[i].first);
        sockets[i] = (quic_socket){.fd = -1};
    }
    drop_all(held);
    held = NULL;
    sim_calls_left = FUZZ_NO_FAILURE;
    sim_full = 0;
}

/* ---- system calls of the engine -----------------------------------------------------------------------------------
 */

static int fails(void)
{
    if (sim_calls_left == FUZZ_NO_FAILURE || sim_calls_left-- != 0)
        return 0;
    errno = sim_errno;
    return 1;
}

int __real_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);

int __wrap_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    quic_socket *known = by_fd(fd);

    if (operation != EPOLL_CTL_DEL && fails())
        return -1;
    if (known == NULL && operation == EPOLL_CTL_ADD && event->data.u64 != 0 && aq_id_kind(event->data.u64) == 0) {
        aq_endpoint *endpoint = event->data.ptr;
        for (known = sockets; known->fd >= 0; known++) {
            if (known == &sockets[SOCKETS - 1]) {
                errno = ENOSPC;
                return -1;
            }
        }
        *known = (quic_socket){.fd = fd, .client = endpoint->is_server ? -1 : clients++ % SIM_CLIENTS};
        known->endpoint = endpoint;
    }
    if (known == NULL)
        return __real_epoll_ctl(epoll, operation, fd, event);
    if (operation == EPOLL_CTL_DEL) {
        drop_all(known->first);
        *known = (quic_socket){.fd = -1};
    } else {
        known->events = event->events;
    }
    return 0;
}

int __real_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout);
int __wrap_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout);

/* What is ready: QUIC sockets here, all others in the kernel. */
int __wrap_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout)
{
    int count = __real_epoll_wait(epoll, events, max, 0);

    (void)timeout;
    if (count < 0)
        count = 0;
    for (int i = 0; i < SOCKETS && count < max; i++) {
        uint32_t ready = 0;
        if (sockets[i].fd < 0)
            continue;
        if (sockets[i].first != NULL)
            ready |= EPOLLIN;
        if (sim_full == 0)
            ready |= EPOLLOUT;
        ready &= sockets[i].events;
        if (ready != 0)
            events[count++] = (struct epoll_event){.events = ready, .data.ptr = sockets[i].endpoint};
    }
    sim_now += IDLE_TURN;
    return count;
}

long __wrap_syscall(long number, ...);

long __wrap_syscall(long number, ...)
{
    va_list arguments;
    struct epoll_event *events;
    const struct timespec *wait;
    int epoll, max;

    MUST(number == SYS_epoll_pwait2); /* the engine makes no other */
    va_start(arguments, number);
    epoll = va_arg(arguments, int);
    events = va_arg(arguments, struct epoll_event *);
    max = va_arg(arguments, int);
    wait = va_arg(arguments, const struct timespec *);
    va_end(arguments);
    sim_sleep(the_engine, wait);
    return __wrap_epoll_wait(epoll, events, max, 0);
}

int __wrap_nanosleep(const struct timespec *duration, struct timespec *rest);

/* After a turn in which something failed that would fail again at once. */
int __wrap_nanosleep(const struct timespec *duration, struct timespec *rest)
{
    (void)rest;
    sim_now += (uint64_t)duration->tv_sec * AQ_NSEC_PER_SEC + (uint64_t)duration->tv_nsec;
    return 0;
}

/* Whoever waits for the engine is the engine's own thread, at the place where it sleeps. */
int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);

int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    MUST(condition == &the_engine->command_done);
    pthread_mutex_unlock(mutex);
    the_engine->now = sim_now;
    aq_engine_run_commands(the_engine);
    pthread_mutex_lock(mutex);
    return 0;
}

ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    const quic_socket *from = by_fd(fd);
    const struct sockaddr_in *to = message->msg_name;
    struct cmsghdr *control;
    uint16_t segment = 0;
    int ecn = 0;
    size_t length = 0;
    static uint8_t bytes[1 << 16];

    if (fails())
        return -1;
    if (from == NULL)
        return __real_sendmsg(fd, message, flags);
    if (sim_full > 0) {
        sim_full--;
        errno = EAGAIN;
        return -1;
    }
    for (control = message->msg_controllen > 0 ? CMSG_FIRSTHDR(message) : NULL; control != NULL;
         control = CMSG_NXTHDR((struct msghdr *)(uintptr_t)message, control)) {
        if (control->cmsg_level == SOL_UDP && control->cmsg_type == UDP_SEGMENT)
            memcpy(&segment, CMSG_DATA(control), sizeof(segment));
        if (control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_TOS)
            memcpy(&ecn, CMSG_DATA(control), sizeof(ecn));
    }
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        MUST(message->msg_iov[i].iov_len <= sizeof(bytes) - length);
        memcpy(bytes + length, message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
        length += message->msg_iov[i].iov_len;
    }
    MUST(length > 0 && length <= 65507); /* the kernel takes no more, and nothing here sends empty packets */
    for (size_t at = 0; at < length;) {
        size_t step = segment != 0 && segment < length - at ? segment : length - at;
        travel(from, to != NULL ? ntohs(to->sin_port) : 0, (uint8_t)(ecn & 3), bytes + at, step);
        at += step;
    }
    return (ssize_t)length;
}

static void put_control(struct msghdr *header, size_t *used, int level, int type, const void *data, size_t length)
{
    struct cmsghdr control = {.cmsg_len = CMSG_LEN(length), .cmsg_level = level, .cmsg_type = type};
    uint8_t *place = header->msg_control;

    memcpy(place + *used, &control, sizeof(control));
    memcpy(place + *used + CMSG_LEN(0), data, length);
    *used += CMSG_SPACE(length);
}

static void receive(quic_socket *at, struct mmsghdr *into)
{
    datagram *one = at->first;
    struct msghdr *header = &into->msg_hdr;
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(one->from)};
    struct in_pktinfo information = {.ipi_ifindex = 1};
    size_t used = 0;
    int segment = (int)one->segment;

    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    information.ipi_spec_dst.s_addr = htonl(INADDR_LOOPBACK);
    memcpy(header->msg_name, &name, sizeof(name));
    header->msg_namelen = sizeof(name);
    put_control(header, &used, IPPROTO_IP, IP_PKTINFO, &information, sizeof(information));
    put_control(header, &used, IPPROTO_IP, IP_TOS, &one->ecn, 1);
    if (segment != 0)
        put_control(header, &used, SOL_UDP, UDP_GRO, &segment, sizeof(segment));
    header->msg_controllen = used;
    header->msg_flags = one->truncated ? MSG_TRUNC : 0;
    MUST(one->length <= header->msg_iov[0].iov_len);
    memcpy(header->msg_iov[0].iov_base, one->data, one->length);
    into->msg_len = (unsigned)one->length;
    at->first = one->next;
    if (at->first == NULL)
        at->last = NULL;
    free(one);
}

int __real_recvmmsg(int fd, struct mmsghdr *messages, unsigned max, int flags, struct timespec *timeout);
int __wrap_recvmmsg(int fd, struct mmsghdr *messages, unsigned max, int flags, struct timespec *timeout);

int __wrap_recvmmsg(int fd, struct mmsghdr *messages, unsigned max, int flags, struct timespec *timeout)
{
    quic_socket *at = by_fd(fd);
    unsigned count = 0;

    if (fails())
        return -1;
    if (at == NULL)
        return __real_recvmmsg(fd, messages, max, flags, timeout);
    while (count < max && at->first != NULL)
        receive(at, &messages[count++]);
    if (count == 0)
        errno = EAGAIN;
    return count > 0 ? (int)count : -1;
}

ssize_t __real_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags);

ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
    quic_socket *at = by_fd(fd);
    struct mmsghdr one = {.msg_hdr = *message};

    if (fails())
        return -1;
    if (at == NULL)
        return __real_recvmsg(fd, message, flags);
    if (at->first == NULL) {
        errno = EAGAIN;
        return -1;
    }
    receive(at, &one);
    *message = one.msg_hdr;
    return (ssize_t)one.msg_len;
}

ssize_t __real_readv(int fd, const struct iovec *vectors, int count);
ssize_t __wrap_readv(int fd, const struct iovec *vectors, int count);

ssize_t __wrap_readv(int fd, const struct iovec *vectors, int count)
{
    return fails() ? -1 : __real_readv(fd, vectors, count);
}

int __real_accept(int fd, struct sockaddr *from, socklen_t *length);
int __wrap_accept(int fd, struct sockaddr *from, socklen_t *length);

int __wrap_accept(int fd, struct sockaddr *from, socklen_t *length)
{
    return fails() ? -1 : __real_accept(fd, from, length);
}

int __real_accept4(int fd, struct sockaddr *from, socklen_t *length, int flags);
int __wrap_accept4(int fd, struct sockaddr *from, socklen_t *length, int flags);

int __wrap_accept4(int fd, struct sockaddr *from, socklen_t *length, int flags)
{
    return fails() ? -1 : __real_accept4(fd, from, length, flags);
}

int __real_socket(int domain, int type, int protocol);
int __wrap_socket(int domain, int type, int protocol);

int __wrap_socket(int domain, int type, int protocol)
{
    return fails() ? -1 : __real_socket(domain, type, protocol);
}

int __real_connect(int fd, const struct sockaddr *to, socklen_t length);
int __wrap_connect(int fd, const struct sockaddr *to, socklen_t length);

int __wrap_connect(int fd, const struct sockaddr *to, socklen_t length)
{
    return fails() ? -1 : __real_connect(fd, to, length);
}

/* ---- the receiver's buffers, four megabytes: made once, for the sanitizer takes long to make them ------------------
 */

aq_udp_receiver *__real_aq_udp_receiver_new(void);
aq_udp_receiver *__wrap_aq_udp_receiver_new(void);
void __wrap_aq_udp_receiver_free(aq_udp_receiver *receiver);

static aq_udp_receiver *spare[2];

aq_udp_receiver *__wrap_aq_udp_receiver_new(void)
{
    aq_udp_receiver *receiver;

    for (int i = 0; i < 2; i++) {
        if (spare[i] != NULL) {
            receiver = spare[i];
            spare[i] = NULL;
            return receiver;
        }
    }
    return __real_aq_udp_receiver_new();
}

void __wrap_aq_udp_receiver_free(aq_udp_receiver *receiver)
{
    for (int i = 0; i < 2; i++) {
        if (spare[i] == NULL) {
            spare[i] = receiver;
            return;
        }
    }
    MUST(0);
}

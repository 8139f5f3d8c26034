/* A flood: datagrams from addresses that are made up, datagrams from one address and very many ports, or TCP
 * connections. Everything stays on loopback: every address of 127.0.0.0/8 is this machine's, so that no right is needed
 * to send from it, and answers come back here to be counted.
 *
 *   flood udp   TARGET SECONDS COUNT RATE FILE SIZE SOURCES   the file holds payloads of SIZE bytes; SOURCES 1: one
 *                                                             address, otherwise a random one for each datagram
 *   flood ports TARGET SECONDS COUNT RATE FILE SIZE FIRST     from 127.0.0.2, ports FIRST, FIRST + 1 ...
 *   flood tcp   TARGET SECONDS COUNT RATE hold|close          connections that stay silent until the end, or are closed
 *                                                             at once
 *
 * TARGET is a port of 127.0.0.1. At most COUNT in at most SECONDS, RATE a second. Prints one line of JSON.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NSEC_PER_SEC 1000000000ULL
#define BURST 32        /* datagrams of one system call */
#define SOCKETS 64      /* source ports of `udp` */
#define BUFFER 65536    /* bytes: of an answer, the largest possible one */
#define TICK 1000000ULL /* nanoseconds that it sleeps where it is ahead of its rate */

struct result {
    uint64_t sent, bytes, failed, answers, answer_bytes;
};

static struct sockaddr_in target;
static struct result result;
static uint64_t seed = 88172645463325252ULL;

static void fail(const char *what)
{
    fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * NSEC_PER_SEC + (uint64_t)time.tv_nsec;
}

/* xorshift64: which address comes next is no secret. */
static uint64_t random_number(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* 127.1.0.0 to 127.254.255.255 */
static struct in_addr random_address(void)
{
    uint64_t number = random_number();
    uint32_t address = 127U << 24 | (uint32_t)(1 + number % 254) << 16 | (uint32_t)(number >> 32 & 0xffff);
    return (struct in_addr){htonl(address)};
}

static uint8_t *payloads;
static size_t payload_size, payload_count, payload_next;

static void load_payloads(const char *path, size_t size)
{
    struct stat status;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fstat(fileno(file), &status) != 0)
        fail(path);
    payload_size = size;
    payload_count = size == 0 ? 1 : (size_t)status.st_size / size;
    payloads = malloc(payload_count * size + 1);
    if (payload_count == 0 || payloads == NULL ||
        fread(payloads, 1, payload_count * size, file) != payload_count * size)
        fail(path);
    fclose(file);
}

static uint8_t *next_payload(void)
{
    uint8_t *payload = payloads + payload_size * payload_next;
    payload_next = (payload_next + 1) % payload_count;
    return payload;
}

static void drain(int fd)
{
    static uint8_t buffer[BUFFER];
    struct sockaddr_in from;
    socklen_t length = sizeof(from);
    ssize_t got;
    for (; (got = recvfrom(fd, buffer, sizeof(buffer), MSG_DONTWAIT, (struct sockaddr *)&from, &length)) >= 0;
         length = sizeof(from)) {
        if (from.sin_port != target.sin_port)
            continue; /* for whoever had this port before */
        result.answers++;
        result.answer_bytes += (uint64_t)got;
    }
}

/* ---- datagrams from made-up addresses -----------------------------------------------------------------------------
 */

static void send_burst(int fd, unsigned count, int one_source)
{
    struct mmsghdr messages[BURST];
    struct iovec vectors[BURST];
    union {
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
    } controls[BURST];
    int sent;
    memset(messages, 0, sizeof(messages));
    memset(controls, 0, sizeof(controls));
    for (unsigned i = 0; i < count; i++) {
        struct in_pktinfo source = {.ipi_spec_dst =
                                        one_source ? (struct in_addr){htonl(0x7f000002)} : random_address()};
        struct cmsghdr *header = &controls[i].header;
        vectors[i] = (struct iovec){next_payload(), payload_size};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &target,
                                              .msg_namelen = sizeof(target),
                                              .msg_iov = &vectors[i],
                                              .msg_iovlen = 1,
                                              .msg_control = &controls[i],
                                              .msg_controllen = sizeof(controls[i].bytes)};
        header->cmsg_level = IPPROTO_IP;
        header->cmsg_type = IP_PKTINFO;
        header->cmsg_len = CMSG_LEN(sizeof(source));
        memcpy(CMSG_DATA(header), &source, sizeof(source));
    }
    sent = sendmmsg(fd, messages, count, 0);
    if (sent > 0) {
        result.sent += (uint64_t)sent;
        result.bytes += (uint64_t)sent * payload_size;
    } else {
        result.failed++;
    }
}

/* How many are due by now, at most `max`; sleeps where none are. */
static unsigned due(uint64_t began, double rate, uint64_t done, uint64_t count, unsigned max)
{
    double wanted = (double)(now() - began) * 1e-9 * rate;
    uint64_t allowed = wanted < (double)count ? (uint64_t)wanted : count;
    if (allowed <= done) {
        struct timespec pause = {0, TICK};
        nanosleep(&pause, NULL);
        return 0;
    }
    return allowed - done < max ? (unsigned)(allowed - done) : max;
}

static void flood_udp(uint64_t until, uint64_t count, double rate, int one_source)
{
    int sockets[SOCKETS];
    uint64_t began = now(), done = 0;
    size_t turn = 0;
    for (size_t i = 0; i < SOCKETS; i++) {
        struct sockaddr_in any = {.sin_family = AF_INET};
        int bytes = 1 << 20;
        sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
        if (sockets[i] < 0 || bind(sockets[i], (struct sockaddr *)&any, sizeof(any)) != 0)
            fail("socket");
        setsockopt(sockets[i], SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
    }
    while (done < count && now() < until) {
        unsigned more = due(began, rate, done, count, BURST);
        if (more > 0) {
            send_burst(sockets[turn], more, one_source);
            done += more;
        }
        turn = (turn + 1) % SOCKETS;
        drain(sockets[turn]);
    }
    usleep(200000); /* for the last answers */
    for (size_t i = 0; i < SOCKETS; i++) {
        drain(sockets[i]);
        close(sockets[i]);
    }
}

static void flood_ports(uint64_t until, uint64_t count, double rate, uint64_t first)
{
    uint64_t began = now(), done = 0;
    while (done < count && now() < until) {
        struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002)};
        int fd;
        if (due(began, rate, done, count, 1) == 0)
            continue;
        source.sin_port = htons((uint16_t)(first + done % (65536 - first)));
        done++;
        fd = socket(AF_INET, SOCK_DGRAM, 0);
        if (fd < 0)
            fail("socket");
        if (bind(fd, (struct sockaddr *)&source, sizeof(source)) == 0 &&
            sendto(fd, next_payload(), payload_size, 0, (struct sockaddr *)&target, sizeof(target)) >= 0) {
            result.sent++;
            result.bytes += payload_size;
        } else {
            result.failed++;
        }
        close(fd);
    }
}

/* ---- TCP --------------------------------------------------------------------------------------------------------- */

static void flood_tcp(uint64_t until, uint64_t count, double rate, int hold)
{
    uint64_t began = now(), done = 0, held = 0;
    int *sockets = calloc(count, sizeof(*sockets));
    if (sockets == NULL)
        fail("memory");
    while (done < count && now() < until) {
        struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr = random_address()};
        int fd;
        if (due(began, rate, done, count, 1) == 0)
            continue;
        done++;
        fd = socket(AF_INET, SOCK_STREAM | (hold ? SOCK_NONBLOCK : 0), 0);
        if (fd < 0)
            fail("socket");
        if (bind(fd, (struct sockaddr *)&source, sizeof(source)) == 0 &&
            (connect(fd, (struct sockaddr *)&target, sizeof(target)) == 0 || errno == EINPROGRESS))
            result.sent++;
        else
            result.failed++;
        if (hold)
            sockets[held++] = fd;
        else
            close(fd);
    }
    while (hold && now() < until)
        usleep(10000);
    while (held > 0)
        close(sockets[--held]);
    free(sockets);
}

int main(int argc, char **argv)
{
    struct rlimit limit;
    uint64_t began, count;
    double seconds, rate;
    if (argc < 7)
        return 2;
    target = (struct sockaddr_in){.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)strtoul(argv[2], NULL, 10))};
    seconds = strtod(argv[3], NULL);
    count = strtoull(argv[4], NULL, 10);
    rate = strtod(argv[5], NULL);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (argc > 8)
        load_payloads(argv[6], strtoul(argv[7], NULL, 10));
    began = now();
    if (strcmp(argv[1], "udp") == 0 && argc > 8)
        flood_udp(began + (uint64_t)(seconds * 1e9), count, rate, strcmp(argv[8], "1") == 0);
    else if (strcmp(argv[1], "ports") == 0 && argc > 8)
        flood_ports(began + (uint64_t)(seconds * 1e9), count, rate, strtoul(argv[8], NULL, 10));
    else if (strcmp(argv[1], "tcp") == 0)
        flood_tcp(began + (uint64_t)(seconds * 1e9), count, rate, strcmp(argv[6], "hold") == 0);
    else
        return 2;
    printf("{\"sent\": %llu, \"bytes\": %llu, \"failed\": %llu, \"answers\": %llu, \"answer_bytes\": %llu, "
           "\"seconds\": %.3f}\n",
           (unsigned long long)result.sent, (unsigned long long)result.bytes, (unsigned long long)result.failed,
           (unsigned long long)result.answers, (unsigned long long)result.answer_bytes, (double)(now() - began) * 1e-9);
    return 0;
}

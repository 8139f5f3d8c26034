#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_WANTED (32 * 1024 * 1024)

/* Source addresses: 127.0.0.2 to 127.0.0.250. */
#define SOURCE_FIRST 2
#define SOURCE_COUNT 249

/* ---- addresses and sockets ----------------------------------------------------------------------------------------
 */

struct address address_parse(const char *text)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    struct address address = {0};
    const char *colon = strrchr(text, ':');
    char host[256];
    size_t length;
    if (colon == NULL || (size_t)(colon - text) >= sizeof(host))
        fail("not HOST:PORT: %s", text);
    length = (size_t)(colon - text);
    if (length >= 2 && text[0] == '[' && text[length - 1] == ']') {
        text++;
        length -= 2;
    }
    memcpy(host, text, length);
    host[length] = 0;
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0 || found == NULL)
        fail("no such address: %s", host);
    memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
    address.length = found->ai_addrlen;
    freeaddrinfo(found);
    return address;
}

uint16_t address_port(const struct address *address)
{
    if (address->storage.ss_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)&address->storage)->sin6_port);
    return ntohs(((const struct sockaddr_in *)&address->storage)->sin_port);
}

static int bind_source(int fd, const struct address *target, uint64_t turn)
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)&target->storage;
    struct sockaddr_in source = {.sin_family = AF_INET};
    int on = 1;
    if (target->storage.ss_family != AF_INET || in->sin_addr.s_addr != htonl(INADDR_LOOPBACK))
        return 0;
    source.sin_addr.s_addr = htonl((INADDR_LOOPBACK & ~0xffu) | (uint32_t)(SOURCE_FIRST + turn % SOURCE_COUNT));
    /* The port is chosen by connect(), where only the whole pair of addresses has to be unused. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
    return bind(fd, (struct sockaddr *)&source, sizeof(source));
}

int connect_start(const struct address *target, uint64_t turn)
{
    int fd = socket(target->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    int error;
    if (fd < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (bind_source(fd, target, turn) == 0 &&
        (connect(fd, (const struct sockaddr *)&target->storage, target->length) == 0 || errno == EINPROGRESS))
        return fd;
    error = errno;
    close(fd);
    errno = error;
    return -1;
}

int connect_wait(const struct address *target, uint64_t turn, double timeout)
{
    struct timeval limit = {.tv_sec = (time_t)timeout,
                            .tv_usec = (suseconds_t)((timeout - (double)(time_t)timeout) * 1e6)};
    struct pollfd wanted = {.events = POLLOUT};
    socklen_t length = sizeof(int);
    int error = 0;
    int fd = connect_start(target, turn);
    if (fd < 0)
        return -1;
    wanted.fd = fd;
    if (poll(&wanted, 1, (int)(timeout * 1e3)) != 1)
        error = ETIMEDOUT;
    else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0)
        error = errno;
    if (error != 0) {
        close(fd);
        errno = error;
        return -1;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    return fd;
}

int datagram_socket(const struct address *target)
{
    int fd = socket(target->storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&target->storage, target->length) != 0)
        fail("no UDP socket: %s", strerror(errno));
    enlarge_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF);
    return fd;
}

bool send_all(int fd, const void *data, size_t length)
{
    const uint8_t *next = data;
    ssize_t sent;
    while (length > 0) {
        sent = send(fd, next, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        next += sent;
        length -= (size_t)sent;
    }
    return true;
}

void abort_on_close(int fd)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

void enlarge_buffer(int fd, int forced_option, int option)
{
    int wanted = BUFFER_WANTED;
    if (setsockopt(fd, SOL_SOCKET, forced_option, &wanted, sizeof(wanted)) != 0)
        setsockopt(fd, SOL_SOCKET, option, &wanted, sizeof(wanted));
}

void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* ---- the rest -----------------------------------------------------------------------------------------------------
 */

uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time); /* cannot fail: the clock exists and the pointer is good */
    return (uint64_t)time.tv_sec * NSEC_PER_SEC + (uint64_t)time.tv_nsec;
}

uint64_t random_number(void)
{
    uint64_t number;
    if (getrandom(&number, sizeof(number), 0) != (ssize_t)sizeof(number))
        fail("no random bytes");
    return number;
}

void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL)
        fail("out of memory");
    return memory;
}

void fail(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    printf("{\"error\": \"%s\"}\n", json_safe(text));
    exit(1);
}

char *json_safe(char *text)
{
    char *next;
    for (next = text; *next != 0; next++)
        if (*next < ' ' || *next > '~' || *next == '"' || *next == '\\')
            *next = '?';
    return text;
}

/* udp.c against real sockets on loopback, and against errors that loopback never gives: sendmsg() is interposed here
 * and can be told to fail. */
#include "core/udp.h"

#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define WATCHDOG_SECONDS 60
#define WAIT_MS 5000 /* a datagram on loopback takes microseconds; this is only reached by a failure */

/* ---- the interposed sendmsg --------------------------------------------------------------------------------- */

static struct {
    int errors[16]; /* what the next calls answer; 0: the kernel's answer */
    int errors_left, errors_at;
    int calls;
    int trains; /* calls with a segment size */
    size_t sizes[64];
} fake;

static void fake_reset(const int *errors, size_t count)
{
    memset(&fake, 0, sizeof(fake));
    CHECK(count <= AQ_ARRAY_LENGTH(fake.errors));
    if (count > 0)
        memcpy(fake.errors, errors, count * sizeof(*errors));
    fake.errors_left = (int)count;
}

#define FAKE(...) fake_reset((const int[]){__VA_ARGS__}, sizeof((const int[]){__VA_ARGS__}) / sizeof(int))

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(message);

    if (fake.calls < (int)AQ_ARRAY_LENGTH(fake.sizes))
        fake.sizes[fake.calls] = message->msg_iov->iov_len;
    fake.calls++;
    for (; control != NULL; control = CMSG_NXTHDR((struct msghdr *)(uintptr_t)message, control))
        fake.trains += control->cmsg_level == IPPROTO_UDP && control->cmsg_type == UDP_SEGMENT;
    if (fake.errors_left > 0) {
        int error = fake.errors[fake.errors_at++];
        fake.errors_left--;
        if (error != 0) {
            errno = error;
            return -1;
        }
    }
    return syscall(SYS_sendmsg, fd, message, flags);
}

/* ---- sockets ------------------------------------------------------------------------------------------------ */

static aq_sockaddr address_of(const char *ip, uint16_t port)
{
    aq_sockaddr address;

    memset(&address, 0, sizeof(address));
    if (strchr(ip, ':') != NULL) {
        address.in6.sin6_family = AF_INET6;
        address.in6.sin6_port = htons(port);
        CHECK_INT(inet_pton(AF_INET6, ip, &address.in6.sin6_addr), 1);
    } else {
        address.in.sin_family = AF_INET;
        address.in.sin_port = htons(port);
        CHECK_INT(inet_pton(AF_INET, ip, &address.in.sin_addr), 1);
    }
    return address;
}

/* A socket bound to a port that the kernel chooses; *bound gets the address. */
static int socket_on(const char *ip, aq_sockaddr *bound)
{
    aq_sockaddr address = address_of(ip, 0);
    socklen_t length = sizeof(*bound);
    int zero = 0, fd = socket(address.sa.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    if (address.sa.sa_family == AF_INET6)
        CHECK_INT(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero)), 0);
    CHECK_INT(bind(fd, &address.sa, aq_sockaddr_length(&address)), 0);
    CHECK_INT(getsockname(fd, &bound->sa, &length), 0);
    return fd;
}

static int quic_socket(const char *ip, aq_sockaddr *bound)
{
    int receive = 0, send = 0, fd = socket_on(ip, bound);

    CHECK_INT(aq_udp_setup_quic(fd, &receive, &send), 0);
    CHECK(receive > 0 && send > 0);
    return fd;
}

static int service_socket(const char *ip, aq_sockaddr *bound)
{
    int fd = socket_on(ip, bound);

    CHECK_INT(aq_udp_setup_service(fd, 0), 0);
    return fd;
}

static uint16_t port_of(const aq_sockaddr *address)
{
    return ntohs(address->sa.sa_family == AF_INET ? address->in.sin_port : address->in6.sin6_port);
}

/* Whether the addresses are the same, ports aside. */
static int same_ip(const aq_sockaddr *address, const char *ip)
{
    aq_sockaddr other = address_of(ip, 0);

    if (address->sa.sa_family != other.sa.sa_family)
        return 0;
    return address->sa.sa_family == AF_INET
               ? memcmp(&address->in.sin_addr, &other.in.sin_addr, sizeof(other.in.sin_addr)) == 0
               : memcmp(&address->in6.sin6_addr, &other.in6.sin6_addr, sizeof(other.in6.sin6_addr)) == 0;
}

static int get_option(int fd, int level, int name)
{
    int value = -1;
    socklen_t length = sizeof(value);

    CHECK_INT(getsockopt(fd, level, name, &value, &length), 0);
    return value;
}

static void wait_readable(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};

    CHECK_INT(poll(&entry, 1, WAIT_MS), 1);
}

/* Waits until the refusal of a datagram is back. */
static void wait_refused(int fd)
{
    struct pollfd entry = {.fd = fd, .events = 0};

    CHECK(poll(&entry, 1, WAIT_MS) == 1 && (entry.revents & POLLERR) != 0);
}

/* One message, which must be there soon. */
static aq_udp_message receive_one(aq_udp_receiver *receiver, int fd)
{
    aq_udp_message message;

    wait_readable(fd);
    CHECK_INT(aq_udp_receive_batch(receiver, fd, &message, 1), 1);
    CHECK(!message.truncated);
    return message;
}

static int is_empty(aq_udp_receiver *receiver, int fd)
{
    aq_udp_message message;

    return aq_udp_receive_batch(receiver, fd, &message, 1) == 0;
}

static uint8_t pattern[4 * 65536]; /* every place tells where it is */

static void fill_pattern(void)
{
    for (size_t i = 0; i < sizeof(pattern); i++)
        pattern[i] = (uint8_t)((i * 2654435761u) >> 13);
}

/* Receives until `total` bytes are here and compares them with the pattern. Returns the number of datagrams; all but
 * the last must have `segment` bytes. */
static size_t receive_pattern(aq_udp_receiver *receiver, int fd, size_t total, size_t segment, int *messages)
{
    size_t got = 0, datagrams = 0;

    *messages = 0;
    while (got < total) {
        aq_udp_message message = receive_one(receiver, fd);
        size_t each = message.segment != 0 ? message.segment : message.length;
        CHECK(message.length > 0);
        CHECK(each == segment || got + message.length == total);
        CHECK(got + message.length <= total && memcmp(message.data, pattern + got, message.length) == 0);
        got += message.length;
        datagrams += (message.length + each - 1) / each;
        ++*messages;
    }
    return datagrams;
}

/* ---- tests -------------------------------------------------------------------------------------------------- */

static int same_address(const aq_address *a, const aq_address *b)
{
    return a->family == b->family && a->port == b->port && a->scope == b->scope &&
           memcmp(a->ip, b->ip, sizeof(a->ip)) == 0;
}

static void test_addresses(void)
{
    aq_address four = {.family = 4, .ip = {192, 0, 2, 1}, .port = 4433};
    aq_address six = {.family = 6, .ip = {0xfe, 0x80, [15] = 9}, .port = 53, .scope = 7}, back;
    aq_address mapped = {.family = 6, .ip = {[10] = 0xff, 0xff, 192, 0, 2, 1}, .port = 4433};
    aq_address nothing = {.family = 0};
    aq_sockaddr out;

    CHECK(aq_sockaddr_from(&out, &four, 0) == sizeof(struct sockaddr_in) && same_ip(&out, "192.0.2.1"));
    CHECK_INT(port_of(&out), 4433);
    aq_sockaddr_to(&out, &back);
    CHECK(same_address(&back, &four));
    CHECK_INT(aq_sockaddr_from(&out, &four, AF_INET), sizeof(struct sockaddr_in));
    CHECK(aq_sockaddr_from(&out, &four, AF_INET6) == sizeof(struct sockaddr_in6) && same_ip(&out, "::ffff:192.0.2.1"));
    aq_sockaddr_to(&out, &back);
    CHECK(same_address(&back, &mapped));
    CHECK(aq_sockaddr_from(&out, &mapped, AF_INET) == sizeof(struct sockaddr_in) && same_ip(&out, "192.0.2.1"));
    CHECK(aq_sockaddr_from(&out, &six, 0) == sizeof(struct sockaddr_in6) && out.in6.sin6_scope_id == 7);
    aq_sockaddr_to(&out, &back);
    CHECK(same_address(&back, &six));
    CHECK_INT(aq_sockaddr_from(&out, &six, AF_INET), 0);
    CHECK(aq_sockaddr_from(&out, &nothing, 0) == 0 && aq_sockaddr_length(&out) == 0);
    aq_sockaddr_to(&out, &back);
    CHECK_INT(back.family, 0);
}

static void test_setup(void)
{
    aq_sockaddr bound;
    int receive = 0, send = 0, fd = quic_socket("127.0.0.1", &bound), local;

    CHECK((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK_INT(get_option(fd, IPPROTO_IP, IP_MTU_DISCOVER), IP_PMTUDISC_PROBE);
    CHECK(get_option(fd, IPPROTO_IP, IP_PKTINFO) == 1 && get_option(fd, IPPROTO_IP, IP_RECVTOS) == 1);
    CHECK_INT(get_option(fd, IPPROTO_UDP, UDP_GRO), 1);
    close(fd);
    fd = quic_socket("::", &bound);
    CHECK_INT(get_option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER), IPV6_PMTUDISC_PROBE);
    CHECK_INT(get_option(fd, IPPROTO_IP, IP_MTU_DISCOVER), IP_PMTUDISC_PROBE);
    CHECK_INT(get_option(fd, IPPROTO_IPV6, IPV6_DONTFRAG), 1);
    CHECK_INT(aq_udp_setup_quic(fd, &receive, &send), 0); /* a second time does no harm */
    CHECK(receive == get_option(fd, SOL_SOCKET, SO_RCVBUF) && send == get_option(fd, SOL_SOCKET, SO_SNDBUF));
    close(fd);
    CHECK_INT(aq_udp_setup_quic(fd, &receive, &send), -EBADF);
    CHECK_INT(aq_udp_setup_service(fd, 0), -EBADF);
    local = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(local >= 0 && aq_udp_setup_quic(local, &receive, &send) == -EAFNOSUPPORT);
    close(local);
}

static void test_train(const char *ip)
{
    aq_sockaddr to, from;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    int gso = 1, messages, sink = quic_socket(ip, &to), source = quic_socket(ip, &from);
    size_t sent, total;

    CHECK(receiver != NULL);
    /* One train arrives as one message; the last segment is short. */
    fake_reset(NULL, 0);
    total = 10 * 1200 + 500;
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, total, 1200, &gso, &sent) == 0 && sent == total && gso == 1);
    CHECK(fake.calls == 1 && fake.trains == 1);
    wait_readable(sink);
    {
        aq_udp_message message = receive_one(receiver, sink);
        CHECK(message.length == total && message.segment == 1200 && memcmp(message.data, pattern, total) == 0);
        CHECK(port_of(&message.peer) == port_of(&from) && same_ip(&message.peer, ip));
        CHECK(same_ip(&message.local, ip) && port_of(&message.local) == 0);
    }
    CHECK(is_empty(receiver, sink));
    /* A single datagram needs no segmentation, whether its size is the segment or less. */
    fake_reset(NULL, 0);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 1200, 1200, &gso, &sent) == 0 && sent == 1200);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 700, 1200, &gso, &sent) == 0 && sent == 700);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 0, 1200, &gso, &sent) == 0 && sent == 0);
    CHECK(fake.calls == 3 && fake.trains == 0);
    CHECK_INT(receive_one(receiver, sink).length, 1200);
    CHECK_INT(receive_one(receiver, sink).length, 700);
    CHECK_INT(receive_one(receiver, sink).length, 0);
    /* More than 64 segments, and more than one send may hold, leave in several trains of whole segments. */
    fake_reset(NULL, 0);
    total = 150 * 500 + 1;
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, total, 500, &gso, &sent) == 0 && sent == total);
    CHECK(fake.calls == 3 && fake.sizes[0] == 64 * 500 && fake.sizes[1] == 64 * 500 && fake.sizes[2] == 22 * 500 + 1);
    CHECK_INT(receive_pattern(receiver, sink, total, 500, &messages), 151);
    fake_reset(NULL, 0);
    total = 100 * 1452;
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, total, 1452, &gso, &sent) == 0 && sent == total);
    CHECK(fake.calls == 3 && fake.sizes[0] == 45 * 1452 && fake.sizes[2] == 10 * 1452);
    CHECK_INT(receive_pattern(receiver, sink, total, 1452, &messages), 100);
    /* Segments so large that a second one does not fit leave as plain datagrams. */
    fake_reset(NULL, 0);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 80000, 40000, &gso, &sent) == 0 && sent == 80000);
    CHECK(fake.calls == 2 && fake.trains == 0);
    CHECK_INT(receive_pattern(receiver, sink, 80000, 40000, &messages), 2);
    /* gso 0: one by one. */
    fake_reset(NULL, 0);
    gso = 0;
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 3100, 1000, &gso, &sent) == 0 && sent == 3100);
    CHECK(fake.calls == 4 && fake.trains == 0 && gso == 0);
    CHECK(receive_pattern(receiver, sink, 3100, 1000, &messages) == 4 && messages == 4);
    aq_udp_receiver_free(receiver);
    close(sink);
    close(source);
}

static void test_train_ipv4(void)
{
    test_train("127.0.0.1");
}

static void test_train_ipv6(void)
{
    test_train("::1");
}

/* Every ECN codepoint arrives, alone and in a train, to a given address and on a connected socket. */
static void check_ecn(const char *sink_ip, const char *source_ip, const char *to_ip)
{
    aq_sockaddr sink_bound, source_bound, to;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    int gso = 1, sink = quic_socket(sink_ip, &sink_bound), source = quic_socket(source_ip, &source_bound);
    size_t sent;

    to = address_of(to_ip, port_of(&sink_bound));
    for (int connected = 0; connected <= 1; connected++) {
        if (connected)
            CHECK_INT(connect(source, &to.sa, aq_sockaddr_length(&to)), 0);
        for (uint8_t ecn = 0; ecn <= 3; ecn++) {
            const aq_sockaddr *peer = connected ? NULL : &to;
            CHECK_INT(aq_udp_send(source, peer, NULL, ecn, pattern, 100, 100, &gso, &sent), 0);
            CHECK_INT(receive_one(receiver, sink).ecn, ecn);
            CHECK_INT(aq_udp_send(source, peer, NULL, ecn, pattern, 350, 100, &gso, &sent), 0);
            aq_udp_message message = receive_one(receiver, sink);
            CHECK(message.ecn == ecn && message.segment == 100 && message.length == 350);
        }
    }
    aq_udp_receiver_free(receiver);
    close(sink);
    close(source);
}

static void test_ecn_ipv4(void)
{
    check_ecn("0.0.0.0", "127.0.0.1", "127.0.0.1");
}

static void test_ecn_ipv6(void)
{
    check_ecn("::1", "::1", "::1");
    check_ecn("::", "::", "::1");
    check_ecn("::", "::", "::ffff:127.0.0.1");
    check_ecn("::", "127.0.0.1", "127.0.0.1");
    check_ecn("127.0.0.1", "::", "::ffff:127.0.0.1");
}

/* A request to one of several addresses of a wildcard socket is answered from that address. */
static void check_source(const char *server_ip, const char *client_ip, const char *to_ip, const char *peer_ip)
{
    aq_sockaddr server_bound, client_bound, to;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    int gso = 1, server = quic_socket(server_ip, &server_bound), client = quic_socket(client_ip, &client_bound);
    size_t sent;
    aq_udp_message request, answer;

    to = address_of(to_ip, port_of(&server_bound));
    CHECK_INT(aq_udp_send(client, &to, NULL, 0, pattern, 200, 200, &gso, &sent), 0);
    request = receive_one(receiver, server);
    CHECK(same_ip(&request.peer, peer_ip) && port_of(&request.peer) == port_of(&client_bound));
    CHECK_INT(request.local.sa.sa_family, server_bound.sa.sa_family);
    CHECK_INT(aq_udp_send(server, &request.peer, &request.local, 1, pattern, 600, 200, &gso, &sent), 0);
    answer = receive_one(receiver, client);
    CHECK(same_ip(&answer.peer, to_ip) && port_of(&answer.peer) == port_of(&server_bound));
    CHECK(answer.length == 600 && answer.segment == 200 && answer.ecn == 1);
    aq_udp_receiver_free(receiver);
    close(server);
    close(client);
}

static void test_source_ipv4(void)
{
    aq_sockaddr bound, to, local = address_of("127.0.0.5", 0), unspecified = {.sa.sa_family = AF_UNSPEC};
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    int gso = 1, client, server;
    size_t sent;
    aq_udp_message message;

    check_source("0.0.0.0", "127.0.0.1", "127.0.0.2", "127.0.0.1");
    check_source("0.0.0.0", "127.0.0.9", "127.0.0.1", "127.0.0.9");
    /* Without a choice the kernel's own; connected sockets too can choose. */
    server = quic_socket("127.0.0.1", &to);
    client = quic_socket("0.0.0.0", &bound);
    CHECK_INT(aq_udp_send(client, &to, &unspecified, 0, pattern, 10, 10, &gso, &sent), 0);
    message = receive_one(receiver, server);
    CHECK(same_ip(&message.peer, "127.0.0.1"));
    CHECK_INT(connect(client, &to.sa, aq_sockaddr_length(&to)), 0);
    CHECK_INT(aq_udp_send(client, NULL, &local, 0, pattern, 10, 10, &gso, &sent), 0);
    message = receive_one(receiver, server);
    CHECK(same_ip(&message.peer, "127.0.0.5"));
    aq_udp_receiver_free(receiver);
    close(client);
    close(server);
}

static void test_source_ipv6(void)
{
    aq_sockaddr bound, to, four = address_of("127.0.0.3", 0), mapped = address_of("::ffff:127.0.0.3", 0);
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    int gso = 1, one = 1, server, client;
    size_t sent;
    aq_udp_message message;

    check_source("::", "::1", "::1", "::1");
    check_source("::", "127.0.0.1", "127.0.0.2", "::ffff:127.0.0.1");
    /* On a dual-stack socket the IPv4 form and the mapped form of a source address are equally good. */
    server = quic_socket("127.0.0.1", &to);
    client = quic_socket("::", &bound);
    to = address_of("::ffff:127.0.0.1", port_of(&to));
    CHECK_INT(aq_udp_send(client, &to, &four, 2, pattern, 10, 10, &gso, &sent), 0);
    message = receive_one(receiver, server);
    CHECK(same_ip(&message.peer, "127.0.0.3") && message.ecn == 2);
    CHECK_INT(aq_udp_send(client, &to, &mapped, 2, pattern, 10, 10, &gso, &sent), 0);
    message = receive_one(receiver, server);
    CHECK(same_ip(&message.peer, "127.0.0.3") && message.ecn == 2);
    close(client);
    close(server);
    /* A dual-stack socket that delivers IPv4 packet information reports the mapped form all the same. */
    server = quic_socket("::", &to);
    client = quic_socket("127.0.0.1", &bound);
    CHECK_INT(setsockopt(server, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one)), 0);
    to = address_of("127.0.0.4", port_of(&to));
    CHECK_INT(aq_udp_send(client, &to, NULL, 0, pattern, 10, 10, &gso, &sent), 0);
    message = receive_one(receiver, server);
    CHECK(same_ip(&message.local, "::ffff:127.0.0.4"));
    aq_udp_receiver_free(receiver);
    close(client);
    close(server);
}

static void test_batch(void)
{
    aq_sockaddr to, from, nowhere;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    aq_udp_message messages[AQ_UDP_MESSAGES];
    int gso = 0, sink = quic_socket("127.0.0.1", &to), source = quic_socket("127.0.0.1", &from), gone;
    size_t sent;

    /* Sizes that differ keep the kernel from joining them. */
    for (size_t i = 0; i < AQ_UDP_MESSAGES + 4; i++)
        CHECK_INT(aq_udp_send(source, &to, NULL, 0, pattern + i, 100 + i, 200, &gso, &sent), 0);
    CHECK_INT(aq_udp_receive_batch(receiver, sink, messages, 1000), AQ_UDP_MESSAGES);
    for (size_t i = 0; i < AQ_UDP_MESSAGES; i++)
        CHECK(messages[i].length == 100 + i && memcmp(messages[i].data, pattern + i, 100 + i) == 0);
    CHECK(aq_udp_receive_batch(receiver, sink, messages, 3) == 3 && messages[2].length == 100 + AQ_UDP_MESSAGES + 2);
    CHECK_INT(aq_udp_receive_batch(receiver, sink, messages, AQ_UDP_MESSAGES), 1);
    CHECK_INT(aq_udp_receive_batch(receiver, sink, messages, AQ_UDP_MESSAGES), 0);
    CHECK_INT(aq_udp_receive_batch(receiver, -1, messages, 1), -EBADF);
    /* A socket without packet information knows no local address. */
    gone = socket_on("127.0.0.1", &nowhere);
    CHECK_INT(aq_udp_send(source, &nowhere, NULL, 3, pattern, 5, 5, &gso, &sent), 0);
    CHECK_INT(receive_one(receiver, gone).local.sa.sa_family, AF_UNSPEC);
    /* A refusal reaches the reader of a connected socket as an error, once. */
    close(gone);
    CHECK_INT(connect(source, &nowhere.sa, aq_sockaddr_length(&nowhere)), 0);
    CHECK_INT(aq_udp_send(source, NULL, NULL, 0, pattern, 5, 5, &gso, &sent), 0);
    wait_refused(source);
    CHECK_INT(aq_udp_receive_batch(receiver, source, messages, 1), -ECONNREFUSED);
    CHECK_INT(aq_udp_receive_batch(receiver, source, messages, 1), 0);
    aq_udp_receiver_free(receiver);
    close(sink);
    close(source);
}

static void test_send_errors(void)
{
    aq_sockaddr to, from;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    int gso = 1, messages, sink = quic_socket("127.0.0.1", &to), source = quic_socket("127.0.0.1", &from);
    size_t sent, total = 150 * 500;

    /* Full after the first train: the caller learns how far it got and goes on from there. */
    for (int i = 0; i < 2; i++) {
        FAKE(0, i == 0 ? EAGAIN : EWOULDBLOCK);
        CHECK(aq_udp_send(source, &to, NULL, 0, pattern, total, 500, &gso, &sent) == 1 && sent == 64 * 500);
        CHECK_INT(aq_udp_send(source, &to, NULL, 0, pattern + sent, total - sent, 500, &gso, &sent), 0);
        CHECK(sent == 86 * 500 && gso == 1);
        CHECK_INT(receive_pattern(receiver, sink, total, 500, &messages), 150);
    }
    FAKE(EAGAIN);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, total, 500, &gso, &sent) == 1 && sent == 0);
    CHECK(is_empty(receiver, sink));
    /* Short of memory is not full: the socket may well be writable, so waiting for that would spin. What it took is
     * lost. */
    FAKE(ENOBUFS);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, total, 500, &gso, &sent) == -ENOBUFS && sent == total);
    CHECK(!is_empty(receiver, sink)); /* the trains after it */
    while (!is_empty(receiver, sink))
        ;
    /* A signal is no answer. */
    FAKE(EINTR, EINTR);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 1000, 500, &gso, &sent) == 0 && fake.calls == 3);
    CHECK_INT(receive_pattern(receiver, sink, 1000, 500, &messages), 2);
    /* A train that is too large for the path: its datagrams alone, without those that fail, and the next train whole.
     */
    for (int i = 0; i < 2; i++) {
        FAKE(i == 0 ? EMSGSIZE : EINVAL);
        CHECK(aq_udp_send(source, &to, NULL, 0, pattern, total, 500, &gso, &sent) == 0 && sent == total && gso == 1);
        CHECK(fake.calls == 1 + 64 + 2 && fake.trains == 3);
        CHECK_INT(receive_pattern(receiver, sink, total, 500, &messages), 150);
    }
    FAKE(EMSGSIZE, EMSGSIZE, 0, EPERM);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 1700, 500, &gso, &sent) == -EPERM && sent == 1700 && gso == 1);
    CHECK_INT(receive_one(receiver, sink).length, 500);
    CHECK_INT(receive_one(receiver, sink).length, 200);
    CHECK(is_empty(receiver, sink));
    /* Full in the middle of a train that went one by one. */
    FAKE(EMSGSIZE, 0, EAGAIN);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 2000, 500, &gso, &sent) == 1 && sent == 500);
    CHECK_INT(receive_one(receiver, sink).length, 500);
    /* A device that can't segment is not asked again. */
    FAKE(EIO);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, total, 500, &gso, &sent) == 0 && sent == total && gso == 0);
    CHECK(fake.calls == 1 + 150 && fake.trains == 1);
    CHECK_INT(receive_pattern(receiver, sink, total, 500, &messages), 150);
    /* Anything else loses the train and goes on with the next. */
    gso = 1;
    FAKE(ENETUNREACH);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 65 * 500, 500, &gso, &sent) == -ENETUNREACH && sent == 65 * 500);
    CHECK(fake.calls == 2 && receive_one(receiver, sink).length == 500 && is_empty(receiver, sink));
    aq_udp_receiver_free(receiver);
    close(sink);
    close(source);
}

/* The refusal of an earlier datagram is reported, but costs no later one. */
static void test_refused(void)
{
    aq_sockaddr to, from;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    aq_udp_out *out = aq_udp_out_new();
    int gso = 1, messages, sink = service_socket("127.0.0.1", &to), source = service_socket("127.0.0.1", &from);
    size_t sent;
    uint64_t dropped = 0;

    CHECK_INT(connect(source, &to.sa, aq_sockaddr_length(&to)), 0);
    for (int i = 0; i < 2; i++) {
        close(sink);
        CHECK_INT(aq_udp_send(source, NULL, NULL, 0, pattern, 100, 100, &gso, &sent), 0);
        wait_refused(source);
        sink = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        CHECK(sink >= 0 && bind(sink, &to.sa, aq_sockaddr_length(&to)) == 0);
        if (i == 0) {
            CHECK(aq_udp_send(source, NULL, NULL, 0, pattern, 900, 300, &gso, &sent) == -ECONNREFUSED && sent == 900);
        } else {
            for (size_t j = 0; j < 3; j++)
                aq_udp_out_add(out, source, NULL, NULL, NULL, 0, pattern + j * 300, 300, &dropped);
            aq_udp_out_flush(out, &dropped);
        }
        CHECK_INT(receive_pattern(receiver, sink, 900, 300, &messages), 3);
    }
    /* Not even an empty one; but a socket that is refused twice in a row is taken at its word. */
    FAKE(ECONNREFUSED);
    aq_udp_out_add(out, source, NULL, NULL, NULL, 0, NULL, 0, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK_INT(receive_one(receiver, sink).length, 0);
    CHECK_INT(dropped, 0);
    FAKE(ECONNREFUSED, ECONNREFUSED, ECONNREFUSED);
    aq_udp_out_add(out, source, NULL, NULL, NULL, 0, NULL, 0, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK_INT(fake.calls, 2);
    CHECK_INT(dropped, 1);
    dropped = 0;
    CHECK_INT(dropped, 0);
    aq_udp_out_free(out);
    aq_udp_receiver_free(receiver);
    close(sink);
    close(source);
}

static void check_out(const char *ip)
{
    aq_sockaddr to, other, from;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    aq_udp_out *out = aq_udp_out_new();
    int messages, sink = service_socket(ip, &to), second = service_socket(ip, &other);
    int source = service_socket(ip, &from);
    size_t at = 0, largest = strchr(ip, ':') != NULL ? 65527 : 65507;
    uint64_t dropped = 0;
    static const size_t sizes[] = {100, 100, 100, 50, 100};
    aq_udp_message message;

    CHECK(out != NULL && receiver != NULL);
    aq_udp_out_flush(out, &dropped); /* nothing is there */
    /* Equal sizes make a run, a shorter one ends it. */
    fake_reset(NULL, 0);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(sizes); i++) {
        aq_udp_out_add(out, source, &to, NULL, pattern + at, 7, pattern + at + 7, sizes[i] - 7, &dropped);
        at += sizes[i];
    }
    CHECK(fake.calls == 1 && fake.sizes[0] == 350 && fake.trains == 1);
    aq_udp_out_flush(out, &dropped);
    CHECK(fake.calls == 2 && fake.sizes[1] == 100 && fake.trains == 1);
    message = receive_one(receiver, sink);
    CHECK(message.length == 350 && message.segment == 100 && memcmp(message.data, pattern, 350) == 0);
    message = receive_one(receiver, sink);
    CHECK(message.length == 100 && memcmp(message.data, pattern + 350, 100) == 0);
    /* A larger one begins a new run, and so does another destination or socket. */
    fake_reset(NULL, 0);
    aq_udp_out_add(out, source, &to, NULL, NULL, 0, pattern, 100, &dropped);
    aq_udp_out_add(out, source, &to, NULL, NULL, 0, pattern, 101, &dropped);
    aq_udp_out_add(out, source, &other, NULL, NULL, 0, pattern, 101, &dropped);
    aq_udp_out_add(out, second, &other, NULL, NULL, 0, pattern, 101, &dropped);
    CHECK_INT(connect(source, &to.sa, aq_sockaddr_length(&to)), 0);
    aq_udp_out_add(out, source, NULL, NULL, NULL, 0, pattern, 101, &dropped);
    aq_udp_out_add(out, source, &to, NULL, NULL, 0, pattern, 101, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(fake.calls == 6 && fake.trains == 0);
    CHECK_INT(receive_pattern(receiver, sink, 100, 100, &messages), 1);
    CHECK(receive_one(receiver, sink).length == 101 && receive_one(receiver, sink).length == 101);
    CHECK(receive_one(receiver, sink).length == 101 && receive_one(receiver, second).length == 101);
    CHECK_INT(receive_one(receiver, second).length, 101);
    CHECK(is_empty(receiver, sink) && is_empty(receiver, second));
    /* Empty datagrams are real ones, at their place, and never in a train. */
    fake_reset(NULL, 0);
    for (size_t i = 0; i < 7; i++)
        aq_udp_out_add(out, source, &to, NULL, NULL, 0, pattern, i == 2 || i == 3 ? 0 : 40, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(fake.calls == 4 && fake.trains == 2 && fake.sizes[1] == 0 && fake.sizes[2] == 0);
    message = receive_one(receiver, sink);
    CHECK(message.length == 80 && message.segment == 40);
    CHECK(receive_one(receiver, sink).length == 0 && receive_one(receiver, sink).length == 0);
    message = receive_one(receiver, sink);
    CHECK(message.length == 120 && message.segment == 40);
    /* A prefix alone is a datagram too, and a payload may be gone after the call. */
    {
        uint8_t payload[4] = {1, 2, 3, 4};
        aq_udp_out_add(out, source, &to, NULL, pattern, 5, NULL, 0, &dropped);
        aq_udp_out_add(out, source, &to, NULL, NULL, 0, payload, sizeof(payload), &dropped);
        memset(payload, 0, sizeof(payload));
    }
    aq_udp_out_flush(out, &dropped);
    message = receive_one(receiver, sink);
    CHECK(message.length == 9 && message.segment == 5 && memcmp(message.data + 5, (uint8_t[]){1, 2, 3, 4}, 4) == 0);
    /* Limits of a run: 64 datagrams, 65,487 bytes. */
    fake_reset(NULL, 0);
    for (size_t i = 0; i < 65; i++)
        aq_udp_out_add(out, source, &to, NULL, NULL, 0, pattern + 10 * i, 10, &dropped);
    CHECK(fake.calls == 1 && fake.sizes[0] == 640);
    aq_udp_out_flush(out, &dropped);
    CHECK(fake.calls == 2 && receive_pattern(receiver, sink, 650, 10, &messages) == 65);
    fake_reset(NULL, 0);
    for (size_t i = 0; i < 46; i++)
        aq_udp_out_add(out, source, &to, NULL, NULL, 0, pattern + 1452 * i, 1452, &dropped);
    CHECK(fake.calls == 1 && fake.sizes[0] == 45 * 1452);
    aq_udp_out_flush(out, &dropped);
    CHECK_INT(receive_pattern(receiver, sink, 46 * 1452, 1452, &messages), 46);
    CHECK_INT(dropped, 0);
    /* The largest datagram passes; larger ones are refused here or by the kernel, and counted. */
    aq_udp_out_add(out, source, &to, NULL, pattern, 20, pattern + 20, largest - 20, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(dropped == 0 && receive_pattern(receiver, sink, largest, largest, &messages) == 1);
    aq_udp_out_add(out, source, &to, NULL, NULL, 0, pattern, largest + 1, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK_INT(dropped, 1);
    aq_udp_out_add(out, source, &to, NULL, pattern, 1, pattern, 65527, &dropped);
    aq_udp_out_add(out, source, &to, NULL, pattern, SIZE_MAX, pattern, 1, &dropped);
    CHECK_INT(dropped, 3);
    aq_udp_out_flush(out, &dropped);
    CHECK(dropped == 3 && is_empty(receiver, sink));
    aq_udp_out_free(out);
    aq_udp_receiver_free(receiver);
    close(sink);
    close(second);
    close(source);
}

/* A public socket answers each request from the address that this was sent to. */
static void check_out_source(const char *server_ip, const char *client_ip, const char *const to_ip[2])
{
    aq_sockaddr bound, client_bound;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    aq_udp_out *out = aq_udp_out_new();
    int gso = 1, server = socket_on(server_ip, &bound), client = service_socket(client_ip, &client_bound);
    static const uint32_t starts[] = {0, 150, 250}, lengths[] = {150, 100, 50};
    aq_sockaddr peer, local[2];
    uint64_t dropped = 0;
    size_t sent;

    CHECK(aq_udp_has_many_addresses(&bound) && !aq_udp_has_many_addresses(&client_bound));
    CHECK_INT(aq_udp_setup_service(server, 1), 0);
    for (int i = 0; i < 2; i++) {
        aq_sockaddr to = address_of(to_ip[i], port_of(&bound));
        aq_udp_message request;
        CHECK_INT(aq_udp_send(client, &to, NULL, 0, pattern, 10, 10, &gso, &sent), 0);
        request = receive_one(receiver, server);
        CHECK_INT(request.local.sa.sa_family, bound.sa.sa_family);
        peer = request.peer;
        local[i] = request.local;
    }
    /* One run for as long as the source stays the same. */
    fake_reset(NULL, 0);
    for (int i = 0; i < 6; i++)
        aq_udp_out_add(out, server, &peer, i < 5 ? &local[i / 3] : NULL, NULL, 0, pattern + 50 * i, 50, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(fake.calls == 3 && fake.trains == 2 && dropped == 0);
    for (int i = 0; i < 3; i++) {
        aq_udp_message answer = receive_one(receiver, client);
        CHECK(i == 2 || same_ip(&answer.peer, to_ip[i]));
        CHECK(port_of(&answer.peer) == port_of(&bound));
        CHECK(answer.length == lengths[i] && memcmp(answer.data, pattern + starts[i], answer.length) == 0);
    }
    aq_udp_out_free(out);
    aq_udp_receiver_free(receiver);
    close(server);
    close(client);
}

static void test_out_source_ipv4(void)
{
    check_out_source("0.0.0.0", "127.0.0.1", (const char *const[]){"127.0.0.2", "127.0.0.3"});
}

static void test_out_source_dual_stack(void)
{
    check_out_source("::", "127.0.0.1", (const char *const[]){"127.0.0.2", "127.0.0.3"});
    check_out_source("::ffff:0.0.0.0", "127.0.0.1", (const char *const[]){"127.0.0.2", "127.0.0.3"});
}

/* What the kernel has no room for is known once the socket is empty, whether or not a datagram came behind it. */
static void test_losses(void)
{
    enum { SENT = 2000, ROUNDS = 3 };
    aq_sockaddr to, from;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    int sink = socket_on("127.0.0.1", &to), source = service_socket("127.0.0.1", &from), gso = 0, count;
    uint32_t received = 0, lost = 0;
    aq_udp_losses losses, later;
    aq_udp_message messages[AQ_UDP_MESSAGES];
    size_t sent;

    for (int i = 0; i < SENT; i++) /* before anything is set up */
        CHECK_INT(aq_udp_send(source, &to, NULL, 0, pattern, 100, 100, &gso, &sent), 0);
    aq_udp_losses_begin(&losses, sink);
    CHECK_INT(setsockopt(sink, SOL_SOCKET, SO_RXQ_OVFL, &(int){1}, sizeof(int)), 0);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < SENT; i++)
            CHECK_INT(aq_udp_send(source, &to, NULL, 0, pattern, 100, 100, &gso, &sent), 0);
        do {
            count = aq_udp_receive_batch(receiver, sink, messages, AQ_UDP_MESSAGES);
            received += (uint32_t)count;
            lost += aq_udp_losses_read(&losses, sink, messages, count, AQ_UDP_MESSAGES);
        } while (count > 0);
        CHECK_INT(count, 0);
        CHECK(lost > 0);
        CHECK_INT(received + lost, (round + 2) * SENT);
    }
    /* Whoever has the socket next counts what comes from then on; whoever has it no more counts the rest. */
    aq_udp_losses_begin(&later, sink);
    CHECK_INT(aq_udp_losses_end(&later, sink), 0);
    for (int i = 0; i < SENT; i++)
        CHECK_INT(aq_udp_send(source, &to, NULL, 0, pattern, 100, 100, &gso, &sent), 0);
    lost = aq_udp_losses_end(&later, sink);
    CHECK(lost > 0 && lost == aq_udp_losses_end(&losses, sink));
    aq_udp_receiver_free(receiver);
    close(sink);
    close(source);
    /* The figure wraps; an older one is no news. */
    losses = (aq_udp_losses){.dropped = UINT32_MAX - 1};
    messages[0] = (aq_udp_message){.dropped = 3};
    CHECK_INT(aq_udp_losses_read(&losses, -1, messages, 1, 1), 5);
    CHECK_INT(aq_udp_losses_read(&losses, -1, messages, 1, 1), 0);
    messages[0].dropped = UINT32_MAX;
    CHECK_INT(aq_udp_losses_read(&losses, -1, messages, 1, 1), 0);
}

static void test_out_ipv4(void)
{
    check_out("127.0.0.1");
}

static void test_out_ipv6(void)
{
    check_out("::1");
}

static void add_run(aq_udp_out *out, int fd, const aq_sockaddr *to, size_t count, size_t size, uint64_t *dropped)
{
    for (size_t i = 0; i < count; i++)
        aq_udp_out_add(out, fd, to, NULL, NULL, 0, pattern + i * size, size, dropped);
}

static void test_out_errors(void)
{
    aq_sockaddr to, from;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    aq_udp_out *out = aq_udp_out_new();
    int messages, sink = service_socket("127.0.0.1", &to), source = service_socket("127.0.0.1", &from);
    uint64_t dropped = 0;

    /* A full socket drops what is collected, whole or what is left of it. */
    FAKE(EAGAIN);
    add_run(out, source, &to, 4, 100, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(dropped == 4 && is_empty(receiver, sink));
    dropped = 0;
    FAKE(EMSGSIZE, 0, EPERM, EAGAIN);
    add_run(out, source, &to, 5, 100, &dropped);
    aq_udp_out_add(out, source, &to, NULL, NULL, 0, pattern, 1, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(dropped == 5 && receive_one(receiver, sink).length == 100 && is_empty(receiver, sink));
    dropped = 0;
    FAKE(ENOBUFS);
    aq_udp_out_add(out, source, &to, NULL, NULL, 0, NULL, 0, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK_INT(dropped, 1);
    dropped = 0;
    FAKE(EPERM);
    add_run(out, source, &to, 3, 100, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(dropped == 3 && is_empty(receiver, sink));
    /* What was dropped is forgotten. */
    aq_udp_out_flush(out, &dropped);
    CHECK_INT(dropped, 3);
    /* Without segmentation everything arrives all the same, and it is not asked for again. */
    dropped = 0;
    FAKE(EIO);
    add_run(out, source, &to, 5, 100, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(dropped == 0 && fake.trains == 1 && receive_pattern(receiver, sink, 500, 100, &messages) == 5);
    add_run(out, source, &to, 5, 100, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(dropped == 0 && fake.trains == 1 && receive_pattern(receiver, sink, 500, 100, &messages) == 5);
    aq_udp_out_free(out);
    aq_udp_receiver_free(receiver);
    close(sink);
    close(source);
}

/* In a network namespace of its own, whose loopback takes 1400 bytes: a QUIC socket must not fragment, a service socket
 * must. */
static void in_small_mtu(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    aq_sockaddr to, from;
    aq_udp_receiver *receiver = aq_udp_receiver_new();
    aq_udp_out *out = aq_udp_out_new();
    int gso = 1, messages, sink, source;
    size_t sent;
    uint64_t dropped = 0;

    sink = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(sink >= 0);
    request.ifr_mtu = 1400;
    CHECK_INT(ioctl(sink, SIOCSIFMTU, &request), 0);
    request.ifr_flags = IFF_UP;
    CHECK_INT(ioctl(sink, SIOCSIFFLAGS, &request), 0);
    close(sink);
    to = address_of("127.0.0.1", 443);
    CHECK_INT(aq_udp_route_mtu(&to), 1400);
    to = address_of("192.0.2.1", 443);
    CHECK_INT(aq_udp_route_mtu(&to), 0); /* no way there */
    sink = quic_socket("127.0.0.1", &to);
    source = quic_socket("127.0.0.1", &from);
    fake_reset(NULL, 0);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 3 * 1372, 1372, &gso, &sent) == 0 && fake.calls == 1);
    CHECK_INT(receive_pattern(receiver, sink, 3 * 1372, 1372, &messages), 3);
    CHECK_INT(aq_udp_send(source, &to, NULL, 0, pattern, 1373, 1373, &gso, &sent), -EMSGSIZE);
    fake_reset(NULL, 0);
    CHECK(aq_udp_send(source, &to, NULL, 0, pattern, 2 * 1373 + 10, 1373, &gso, &sent) == -EMSGSIZE && gso == 1);
    CHECK(fake.calls == 4 && sent == 2 * 1373 + 10);
    CHECK(receive_one(receiver, sink).length == 10 && is_empty(receiver, sink));
    close(source);
    source = service_socket("127.0.0.1", &from);
    add_run(out, source, &to, 3, 3000, &dropped);
    aq_udp_out_flush(out, &dropped);
    CHECK(dropped == 0 && receive_pattern(receiver, sink, 9000, 3000, &messages) == 3);
    aq_udp_out_free(out);
    aq_udp_receiver_free(receiver);
    close(sink);
    close(source);
}

/* What the interface takes, whichever way the address is written. */
static void test_route_mtu(void)
{
    static const char *const ADDRESSES[] = {"127.0.0.1", "::ffff:127.0.0.1", "::1"};
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    CHECK_INT(ioctl(fd, SIOCGIFMTU, &request), 0);
    close(fd);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(ADDRESSES); i++) {
        aq_sockaddr to = address_of(ADDRESSES[i], 443);
        size_t mtu = aq_udp_route_mtu(&to);

        /* The kernel counts no more than an IPv4 packet may have. */
        CHECK_INT(mtu, i < 2 && request.ifr_mtu > 65535 ? 65535 : request.ifr_mtu);
    }
}

static void test_small_mtu(void)
{
    int status = 0;
    pid_t child;

    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
            printf("skipped: no network namespace of our own (%s)\n", strerror(errno));
            exit(0);
        }
        in_small_mtu();
        exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int has_ipv6(void)
{
    aq_sockaddr address = address_of("::1", 0);
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int works = fd >= 0 && bind(fd, &address.sa, sizeof(address.in6)) == 0;

    if (fd >= 0)
        close(fd);
    return works;
}

int main(void)
{
    static const struct {
        const char *name;
        void (*run)(void);
        int ipv6; /* needs ::1 */
    } tests[] = {
        {"addresses", test_addresses, 0},
        {"setup", test_setup, 1},
        {"train over IPv4", test_train_ipv4, 0},
        {"train over IPv6", test_train_ipv6, 1},
        {"ECN over IPv4", test_ecn_ipv4, 0},
        {"ECN over IPv6 and dual stack", test_ecn_ipv6, 1},
        {"source address over IPv4", test_source_ipv4, 0},
        {"source address over IPv6 and dual stack", test_source_ipv6, 1},
        {"batch", test_batch, 0},
        {"send errors", test_send_errors, 0},
        {"refused", test_refused, 0},
        {"collected send over IPv4", test_out_ipv4, 0},
        {"collected send over IPv6", test_out_ipv6, 1},
        {"collected send from the address written to, IPv4", test_out_source_ipv4, 0},
        {"collected send from the address written to, dual stack", test_out_source_dual_stack, 1},
        {"collected send, errors", test_out_errors, 0},
        {"what the kernel drops", test_losses, 0},
        {"MTU of a route", test_route_mtu, 1},
        {"small MTU", test_small_mtu, 0},
    };

    check_watchdog(WATCHDOG_SECONDS);
    fill_pattern();
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(tests); i++) {
        if (tests[i].ipv6 && !has_ipv6()) {
            printf("%s: skipped, this machine has no ::1\n", tests[i].name);
            continue;
        }
        fake_reset(NULL, 0);
        tests[i].run();
    }
    return check_done();
}

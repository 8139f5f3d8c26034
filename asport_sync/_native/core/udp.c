/* Path of a received packet: aq_udp_receive_batch() -> describe() -> read_control().
 * Path of a sent packet: aq_udp_send() or aq_udp_out_add() .. aq_udp_out_flush() -> send_datagrams() -> send_once().
 */
#include "core/udp.h"

#include "core/descriptors.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sock_diag.h>
#include <netinet/udp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* linux/udp.h; C libraries older than the kernel interface lack it */
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef IPV6_FREEBIND
#define IPV6_FREEBIND 78 /* linux/in6.h */
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif

#define ECN_MASK 3 /* the two low bits of TOS and traffic class, RFC 3168 section 5 */

/* Bytes. One QUIC connection at 1 Gbit/s and 20 ms fills 2.5 MB; the kernel reports twice the requested size. */
#define QUIC_BUFFER (4 << 20)
/* Bytes. A service socket has one application behind it; there may be thousands of such sockets. */
#define SERVICE_BUFFER (1 << 20)

/* Maximum of segments in one send: every kernel with segmentation takes this many, newer ones take more. */
#define TRAIN_SEGMENTS 64
/* Bytes of the largest train: what fits into an IPv4 packet of 65,535 bytes after its headers, with room for IP
 * options. */
#define TRAIN_BYTES 65487
/* Bytes of the largest UDP payload: 65,535 less the UDP header. IPv4 takes 20 bytes less, which the kernel enforces. */
#define DATAGRAM_BYTES 65527

/* Bytes. After reading this much without a pause, the socket may have been full and datagrams may have been dropped
 * after the last one read. Well below any buffer in use, most of which the kernel fills with its own overhead. */
#define BURST_BYTES (64U * 1024U)
/* Bytes that each message counts for in addition to its payload: small messages fill a buffer, too. */
#define MESSAGE_BYTES 1024U

/* Bytes of control data: packet information and traffic class, each in both families at most, the segment size, and the
 * kernel's count of drops. */
#define CONTROL_BYTES                                                                                                  \
    (CMSG_SPACE(sizeof(struct in_pktinfo)) + CMSG_SPACE(sizeof(struct in6_pktinfo)) + 4 * CMSG_SPACE(sizeof(int)))

typedef union {
    struct cmsghdr header; /* for the alignment */
    uint8_t bytes[CONTROL_BYTES];
} control_buffer;

/* ---- addresses ---------------------------------------------------------------------------------------------- */

static void map_ipv4(struct in6_addr *out, const void *ipv4)
{
    memset(out->s6_addr, 0, 10);
    memset(out->s6_addr + 10, 0xff, 2);
    memcpy(out->s6_addr + 12, ipv4, 4);
}

/* Returns whether packets to or from this address are IPv4 on the wire; sets *ipv4 if so. */
static int is_ipv4(const aq_sockaddr *address, struct in_addr *ipv4)
{
    if (address->sa.sa_family == AF_INET) {
        *ipv4 = address->in.sin_addr;
        return 1;
    }
    if (address->sa.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&address->in6.sin6_addr)) {
        memcpy(ipv4, address->in6.sin6_addr.s6_addr + 12, 4);
        return 1;
    }
    return 0;
}

socklen_t aq_sockaddr_from(aq_sockaddr *out, const aq_address *address, int family)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

    memset(out, 0, sizeof(*out));
    if (address->family == 4 && family == AF_INET6) {
        out->in6.sin6_family = AF_INET6;
        out->in6.sin6_port = htons(address->port);
        map_ipv4(&out->in6.sin6_addr, address->ip);
    } else if (address->family == 4) {
        out->in.sin_family = AF_INET;
        out->in.sin_port = htons(address->port);
        memcpy(&out->in.sin_addr, address->ip, 4);
    } else if (address->family == 6 && family == AF_INET) {
        if (memcmp(address->ip, mapped, sizeof(mapped)) != 0)
            return 0;
        out->in.sin_family = AF_INET;
        out->in.sin_port = htons(address->port);
        memcpy(&out->in.sin_addr, address->ip + 12, 4);
    } else if (address->family == 6) {
        out->in6.sin6_family = AF_INET6;
        out->in6.sin6_port = htons(address->port);
        out->in6.sin6_scope_id = address->scope;
        memcpy(&out->in6.sin6_addr, address->ip, 16);
    }
    return aq_sockaddr_length(out);
}

void aq_sockaddr_to(const aq_sockaddr *in, aq_address *address)
{
    memset(address, 0, sizeof(*address));
    if (in->sa.sa_family == AF_INET) {
        address->family = 4;
        address->port = ntohs(in->in.sin_port);
        memcpy(address->ip, &in->in.sin_addr, 4);
    } else if (in->sa.sa_family == AF_INET6) {
        address->family = 6;
        address->port = ntohs(in->in6.sin6_port);
        address->scope = in->in6.sin6_scope_id;
        memcpy(address->ip, &in->in6.sin6_addr, 16);
    }
}

socklen_t aq_sockaddr_length(const aq_sockaddr *in)
{
    switch (in->sa.sa_family) {
    case AF_INET:
        return sizeof(in->in);
    case AF_INET6:
        return sizeof(in->in6);
    default:
        return 0;
    }
}

/* ---- options ------------------------------------------------------------------------------------------------ */

static int set_option(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof(value)) == 0 ? 0 : -errno;
}

/* Returns -1 if the kernel does not know the option. */
static int get_option(int fd, int level, int name)
{
    int value = 0;
    socklen_t length = sizeof(value);

    return getsockopt(fd, level, name, &value, &length) == 0 ? value : -1;
}

static int set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 ? 0 : -errno;
}

/* Never shrinks a larger default that the administrator has set. Returns the size in force. */
static int enlarge_buffer(int fd, int force, int plain, int bytes)
{
    if (get_option(fd, SOL_SOCKET, plain) < bytes && set_option(fd, SOL_SOCKET, force, bytes) != 0)
        set_option(fd, SOL_SOCKET, plain, bytes); /* clamped to net.core.[rw]mem_max, so it may give less */
    return get_option(fd, SOL_SOCKET, plain);
}

/* A local route may deliver a whole network to this machine. The kernel sends from such an address with IPv4; with IPv6
 * it requires that an interface has the address, unless IPV6_FREEBIND is set. */
static void answer_from_routed(int fd)
{
    set_option(fd, IPPROTO_IPV6, IPV6_FREEBIND, 1);
}

int aq_udp_setup_quic(int fd, int *got_receive, int *got_send)
{
    int family = get_option(fd, SOL_SOCKET, SO_DOMAIN);
    int error = set_nonblocking(fd);

    if (error == 0 && family != AF_INET && family != AF_INET6)
        error = -EAFNOSUPPORT;
    /* Without packet information a wildcard socket would answer from an address that the peer never sent to. Without
     * PMTUDISC_PROBE the kernel fragments the MTU probes, and every probe "succeeds". On a dual-stack socket the IPv4
     * options govern the mapped addresses. */
    if (error == 0 && family == AF_INET6) {
        error = set_option(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
        if (error == 0)
            error = set_option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
        if (error == 0)
            error = set_option(fd, IPPROTO_IPV6, IPV6_DONTFRAG, 1);
        set_option(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
        answer_from_routed(fd);
    } else if (error == 0) {
        error = set_option(fd, IPPROTO_IP, IP_PKTINFO, 1);
    }
    if (error == 0 && !(family == AF_INET6 && get_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 1)) {
        error = set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
        set_option(fd, IPPROTO_IP, IP_RECVTOS, 1);
    }
    if (error != 0)
        return error;
    set_option(fd, SOL_UDP, UDP_GRO, 1);
    set_option(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
    *got_receive = enlarge_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, QUIC_BUFFER);
    *got_send = enlarge_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, QUIC_BUFFER);
    return 0;
}

int aq_udp_setup_service(int fd, int has_many_addresses)
{
    int family = get_option(fd, SOL_SOCKET, SO_DOMAIN);
    int error = set_nonblocking(fd);

    if (error == 0 && has_many_addresses && family == AF_INET6)
        error = set_option(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    if (has_many_addresses && family == AF_INET6)
        answer_from_routed(fd);
    /* Also for IPv4 on a dual-stack socket: for a broadcast only this tells which address may answer it. */
    if (error == 0 && has_many_addresses && !(family == AF_INET6 && get_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 1))
        error = set_option(fd, IPPROTO_IP, IP_PKTINFO, 1);
    if (error != 0)
        return error;
    set_option(fd, SOL_UDP, UDP_GRO, 1);
    set_option(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
    enlarge_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, SERVICE_BUFFER);
    enlarge_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, SERVICE_BUFFER);
    return 0;
}

int aq_udp_has_many_addresses(const aq_sockaddr *bound)
{
    struct in_addr ipv4;

    if (is_ipv4(bound, &ipv4))
        return ipv4.s_addr == INADDR_ANY;
    return bound->sa.sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&bound->in6.sin6_addr);
}

/* ---- drops by the kernel ---------------------------------------------------------------------------------------- */

/* Returns the kernel's count of drops; 0 on kernels before 4.12. */
static uint32_t dropped_so_far(int fd)
{
    uint32_t memory[SK_MEMINFO_VARS] = {0};
    socklen_t length = sizeof(memory);

    return getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &length) == 0 ? memory[SK_MEMINFO_DROPS] : 0;
}

void aq_udp_losses_begin(aq_udp_losses *losses, int fd)
{
    losses->read = 0;
    losses->dropped = get_option(fd, SOL_SOCKET, SO_RXQ_OVFL) == 1 ? dropped_so_far(fd) : 0;
}

static uint32_t news(aq_udp_losses *losses, uint32_t dropped)
{
    uint32_t more = dropped - losses->dropped; /* the count wraps */

    /* A datagram carries the count at its arrival, which may be older than the last one seen. */
    if (more > INT32_MAX)
        return 0;
    losses->dropped = dropped;
    return more;
}

uint32_t aq_udp_losses_read(aq_udp_losses *losses, int fd, const aq_udp_message *messages, int count, int max)
{
    uint32_t lost = count > 0 ? news(losses, messages[count - 1].dropped) : 0;

    for (int i = 0; i < count && losses->read < BURST_BYTES; i++)
        losses->read += messages[i].length + MESSAGE_BYTES;
    if (count < max) {
        /* The socket is empty: nothing is dropped until it has filled again. */
        if (losses->read >= BURST_BYTES)
            lost += news(losses, dropped_so_far(fd));
        losses->read = 0;
    }
    return lost;
}

uint32_t aq_udp_losses_end(aq_udp_losses *losses, int fd)
{
    return news(losses, dropped_so_far(fd));
}

size_t aq_udp_route_mtu(const aq_sockaddr *remote)
{
    aq_sockaddr to = *remote;
    struct in_addr ipv4;
    int fd, mtu;

    /* The kernel reports the MTU of a connected socket only. */
    if (is_ipv4(remote, &ipv4)) {
        uint16_t port = remote->sa.sa_family == AF_INET ? remote->in.sin_port : remote->in6.sin6_port;
        memset(&to, 0, sizeof(to));
        to.in.sin_family = AF_INET;
        to.in.sin_port = port;
        to.in.sin_addr = ipv4;
    }
    fd = AQ_FD_OPEN(socket(to.sa.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (fd < 0)
        return 0;
    mtu = -1;
    if (connect(fd, &to.sa, aq_sockaddr_length(&to)) == 0)
        mtu = to.sa.sa_family == AF_INET ? get_option(fd, IPPROTO_IP, IP_MTU) : get_option(fd, IPPROTO_IPV6, IPV6_MTU);
    aq_fd_close(fd);
    return mtu > 0 ? (size_t)mtu : 0;
}

/* ---- receive ------------------------------------------------------------------------------------------------ */

struct aq_udp_receiver {
    struct mmsghdr headers[AQ_UDP_MESSAGES];
    struct iovec vectors[AQ_UDP_MESSAGES];
    aq_sockaddr names[AQ_UDP_MESSAGES];
    control_buffer controls[AQ_UDP_MESSAGES];
    uint8_t buffers[AQ_UDP_MESSAGES][AQ_UDP_MESSAGE_SIZE]; /* last, so that untouched pages stay untouched */
};

aq_udp_receiver *aq_udp_receiver_new(void)
{
    aq_udp_receiver *receiver = malloc(sizeof(*receiver));

    if (receiver == NULL)
        return NULL;
    memset(receiver, 0, offsetof(aq_udp_receiver, buffers));
    for (size_t i = 0; i < AQ_UDP_MESSAGES; i++) {
        receiver->vectors[i].iov_base = receiver->buffers[i];
        receiver->vectors[i].iov_len = AQ_UDP_MESSAGE_SIZE;
        receiver->headers[i].msg_hdr.msg_iov = &receiver->vectors[i];
        receiver->headers[i].msg_hdr.msg_iovlen = 1;
        receiver->headers[i].msg_hdr.msg_name = &receiver->names[i];
        receiver->headers[i].msg_hdr.msg_control = &receiver->controls[i];
    }
    return receiver;
}

void aq_udp_receiver_free(aq_udp_receiver *receiver)
{
    free(receiver);
}

/* Reads a number that the kernel writes as one byte (IP_TOS) or as an int (IPV6_TCLASS, UDP_GRO). Returns -1 if it is
 * neither. */
static int control_number(struct cmsghdr *control)
{
    int number;

    if (control->cmsg_len >= CMSG_LEN(sizeof(number))) {
        memcpy(&number, CMSG_DATA(control), sizeof(number));
        return number;
    }
    return control->cmsg_len >= CMSG_LEN(1) ? *CMSG_DATA(control) : -1;
}

/* Returns the address that a datagram was sent to. ipi_spec_dst is empty for datagrams that arrived before the socket
 * was asked for it; the destination in their header is the same except for broadcasts. Without that fallback the first
 * packet of a connection would seem to use another path than all others, and a handshake has only one path (RFC 9000,
 * section 9). */
static struct in_addr destination_of(const struct in_pktinfo *information)
{
    return information->ipi_spec_dst.s_addr != INADDR_ANY ? information->ipi_spec_dst : information->ipi_addr;
}

static void read_control(struct cmsghdr *control, aq_udp_message *out)
{
    int level = control->cmsg_level, type = control->cmsg_type;

    if ((level == IPPROTO_IP && type == IP_TOS) || (level == IPPROTO_IPV6 && type == IPV6_TCLASS)) {
        int number = control_number(control);
        out->ecn = (uint8_t)(number < 0 ? 0 : number & ECN_MASK);
    } else if (level == SOL_UDP && type == UDP_GRO) {
        int number = control_number(control);
        out->segment = number < 0 ? 0 : (uint32_t)number;
    } else if (level == SOL_SOCKET && type == SO_RXQ_OVFL) {
        memcpy(&out->dropped, CMSG_DATA(control), sizeof(out->dropped));
    } else if (level == IPPROTO_IP && type == IP_PKTINFO) {
        struct in_pktinfo information;
        struct in_addr destination;
        memcpy(&information, CMSG_DATA(control), sizeof(information));
        destination = destination_of(&information);
        /* One family per socket: the same address, plain IPv4 in one place and mapped in another, would look like two
         * paths. */
        if (out->peer.sa.sa_family == AF_INET6) {
            out->local.in6.sin6_family = AF_INET6;
            map_ipv4(&out->local.in6.sin6_addr, &destination);
        } else {
            out->local.in.sin_family = AF_INET;
            out->local.in.sin_addr = destination;
        }
    } else if (level == IPPROTO_IPV6 && type == IPV6_PKTINFO) {
        struct in6_pktinfo information;
        memcpy(&information, CMSG_DATA(control), sizeof(information));
        out->local.in6.sin6_family = AF_INET6;
        out->local.in6.sin6_addr = information.ipi6_addr;
        /* Only link-local addresses require their interface. */
        if (IN6_IS_ADDR_LINKLOCAL(&information.ipi6_addr))
            out->local.in6.sin6_scope_id = (uint32_t)information.ipi6_ifindex;
    }
}

static void describe(struct mmsghdr *received, aq_udp_message *out)
{
    struct msghdr *header = &received->msg_hdr;

    memset(out, 0, sizeof(*out));
    memcpy(&out->peer, header->msg_name, sizeof(out->peer));
    if (out->peer.sa.sa_family == AF_INET6)
        out->peer.in6.sin6_flowinfo = 0; /* a flow label is not part of a path's identity */
    out->data = header->msg_iov->iov_base;
    out->length = received->msg_len;
    out->truncated = (header->msg_flags & MSG_TRUNC) != 0;
    for (struct cmsghdr *control = CMSG_FIRSTHDR(header); control != NULL; control = CMSG_NXTHDR(header, control))
        read_control(control, out);
    if (out->segment >= out->length)
        out->segment = 0;
}

/* Does with recvmsg() what is needed here of recvmmsg(), for systems that refuse the latter. */
static int receive_singly(aq_udp_receiver *receiver, int fd, int max)
{
    int count = 0;
    while (count < max) {
        ssize_t length = recvmsg(fd, &receiver->headers[count].msg_hdr, MSG_DONTWAIT);
        if (length < 0 && errno == EINTR)
            continue;
        if (length < 0)
            break;
        receiver->headers[count++].msg_len = (unsigned int)length;
    }
    return count > 0 ? count : -1;
}

static int receive_messages(aq_udp_receiver *receiver, int fd, int max)
{
    int count;

    do {
        count = recvmmsg(fd, receiver->headers, (unsigned int)max, MSG_DONTWAIT, NULL);
    } while (count < 0 && errno == EINTR);
    /* A container's seccomp filter may know only the older call. */
    return count < 0 && (errno == ENOSYS || errno == EPERM) ? receive_singly(receiver, fd, max) : count;
}

int aq_udp_receive_batch(aq_udp_receiver *receiver, int fd, aq_udp_message *out, int max)
{
    int count;

    if (max > AQ_UDP_MESSAGES)
        max = AQ_UDP_MESSAGES;
    for (int i = 0; i < max; i++) {
        receiver->names[i].sa.sa_family = AF_UNSPEC;
        receiver->headers[i].msg_hdr.msg_namelen = sizeof(receiver->names[i]);
        receiver->headers[i].msg_hdr.msg_controllen = sizeof(receiver->controls[i].bytes);
        receiver->headers[i].msg_hdr.msg_flags = 0;
    }
    count = receive_messages(receiver, fd, max);
    if (count < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
    for (int i = 0; i < count; i++)
        describe(&receiver->headers[i], &out[i]);
    return count;
}

/* ---- send --------------------------------------------------------------------------------------------------- */

/* Destination and source of datagrams, shared by all sends of one call. */
typedef struct {
    int fd;
    aq_sockaddr peer; /* sendmsg() takes it without const */
    control_buffer control;
    size_t control_used; /* bytes of source address and ECN; the segment size of a train follows them */
} sender;

static size_t put_control(sender *way, size_t at, int level, int type, const void *data, size_t length)
{
    struct cmsghdr header = {.cmsg_len = CMSG_LEN(length), .cmsg_level = level, .cmsg_type = type};

    memcpy(way->control.bytes + at, &header, sizeof(header));
    memcpy(way->control.bytes + at + CMSG_LEN(0), data, length);
    return at + CMSG_SPACE(length);
}

static void sender_init(sender *way, int fd, const aq_sockaddr *peer, const aq_sockaddr *local, uint8_t ecn)
{
    size_t used = 0;
    int traffic_class = ecn & ECN_MASK;
    struct in_addr ipv4 = {0};

    memset(way, 0, sizeof(*way));
    way->fd = fd;
    if (peer != NULL)
        way->peer = *peer;
    /* The kernel sends packets to mapped addresses through its IPv4 code, which reads IPv4 control messages. */
    if (local != NULL && is_ipv4(local, &ipv4)) {
        struct in_pktinfo information = {.ipi_spec_dst = ipv4};
        used = put_control(way, used, IPPROTO_IP, IP_PKTINFO, &information, sizeof(information));
    } else if (local != NULL && local->sa.sa_family == AF_INET6) {
        struct in6_pktinfo information = {.ipi6_addr = local->in6.sin6_addr, .ipi6_ifindex = local->in6.sin6_scope_id};
        used = put_control(way, used, IPPROTO_IPV6, IPV6_PKTINFO, &information, sizeof(information));
    }
    /* On a connected socket the family on the wire is unknown here; each IP version ignores the other's messages. */
    if (traffic_class != 0 && (peer == NULL || is_ipv4(peer, &ipv4)))
        used = put_control(way, used, IPPROTO_IP, IP_TOS, &traffic_class, sizeof(traffic_class));
    if (traffic_class != 0 && (peer == NULL || !is_ipv4(peer, &ipv4)))
        used = put_control(way, used, IPPROTO_IPV6, IPV6_TCLASS, &traffic_class, sizeof(traffic_class));
    way->control_used = used;
}

/* Calls sendmsg once; sends a train if segment is not 0. Returns 0 or the errno. */
static int send_once(sender *way, const uint8_t *data, size_t length, size_t segment)
{
    struct iovec vector = {.iov_base = (void *)(uintptr_t)data, .iov_len = length}; /* only read, despite its type */
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    size_t control_length = way->control_used;

    if (segment != 0) {
        uint16_t size = (uint16_t)segment;
        control_length = put_control(way, control_length, SOL_UDP, UDP_SEGMENT, &size, sizeof(size));
    }
    message.msg_namelen = aq_sockaddr_length(&way->peer);
    message.msg_name = message.msg_namelen == 0 ? NULL : &way->peer;
    message.msg_controllen = control_length;
    message.msg_control = control_length == 0 ? NULL : &way->control;
    for (;;) {
        if (sendmsg(way->fd, &message, MSG_DONTWAIT) >= 0)
            return 0;
        if (errno != EINTR)
            return errno;
    }
}

/* Returns whether the kernel segments. Kernels before 4.18 ignore the control message and would send a train as one
 * huge datagram. Asked once per process. */
static int kernel_segments(int fd)
{
    static _Atomic int answer; /* 0: not asked yet, 1: yes, -1: no. Racing threads find the same answer */
    int known = atomic_load_explicit(&answer, memory_order_relaxed);

    if (known == 0) {
        known = get_option(fd, SOL_UDP, UDP_SEGMENT) < 0 && errno == ENOPROTOOPT ? -1 : 1;
        atomic_store_explicit(&answer, known, memory_order_relaxed);
    }
    return known > 0;
}

/* Returns the bytes of the next send: as many whole segments as a train may have; the last one may be short. */
static size_t train_length(size_t length, size_t segment)
{
    size_t max = segment == 0 || segment > TRAIN_BYTES ? 1 : TRAIN_BYTES / segment;

    if (max > TRAIN_SEGMENTS)
        max = TRAIN_SEGMENTS;
    return length > max * segment ? max * segment : length;
}

/* Common core of both ways to send. Returns 0, 1 (socket full) or -errno as aq_udp_send() does. *done counts the bytes
 * that are dealt with, sent or lost; *lost counts the datagrams that the kernel refused. */
static int send_datagrams(sender *way, const uint8_t *data, size_t length, size_t segment, int *gso, size_t *done,
                          uint64_t *lost)
{
    size_t singly = 0; /* up to here datagrams are sent one by one, because their train was refused */
    int refused = 0, problem = 0;

    if (segment == 0 || segment > length)
        segment = length;
    if (*gso && length > segment && !kernel_segments(way->fd))
        *gso = 0;
    *done = 0;
    for (;;) {
        size_t rest = length - *done;
        size_t now = *gso && *done >= singly ? train_length(rest, segment) : (rest < segment ? rest : segment);
        int is_train = now > segment;
        int error = send_once(way, data + *done, now, is_train ? segment : 0);

        if (error == EAGAIN || error == EWOULDBLOCK)
            return 1;
        if (is_train && (error == EIO || error == EMSGSIZE || error == EINVAL)) {
            /* EIO: this device cannot checksum or segment at all. The others: a segment is longer than the path MTU
             * (older kernels report EINVAL), which need not hold for the next train. */
            if (error == EIO)
                *gso = 0;
            singly = *done + now;
            continue;
        }
        if (error == ECONNREFUSED && !refused) {
            /* The answer to an earlier datagram; this one has not been sent yet. */
            refused = 1;
            problem = -error;
            continue;
        }
        if (error != 0) {
            problem = -error;
            *lost += is_train ? (now + segment - 1) / segment : 1;
        }
        refused = 0;
        *done += now;
        if (*done >= length) /* checked last: an empty datagram is a datagram, too */
            return problem;
    }
}

int aq_udp_send(int fd, const aq_sockaddr *peer, const aq_sockaddr *local, uint8_t ecn, const uint8_t *data,
                size_t length, size_t segment, int *gso, size_t *sent_bytes)
{
    sender way;
    uint64_t lost = 0;

    sender_init(&way, fd, peer, local, ecn);
    return send_datagrams(&way, data, length, segment, gso, sent_bytes, &lost);
}

/* ---- collected send ----------------------------------------------------------------------------------------- */

struct aq_udp_out {
    int fd;
    int connected; /* 1: peer is not used */
    aq_sockaddr peer;
    aq_sockaddr local; /* source address; AF_UNSPEC: the kernel chooses */
    size_t segment;    /* size of the run's first datagram; the others are no longer */
    size_t used;       /* bytes collected */
    size_t count;      /* datagrams collected; 0: no run, the fields above are unused */
    int ended;         /* the run's last datagram is shorter or empty, so nothing may follow it */
    int gso;           /* cleared permanently once a device turns out not to segment */
    uint8_t bytes[DATAGRAM_BYTES];
};

aq_udp_out *aq_udp_out_new(void)
{
    aq_udp_out *out = malloc(sizeof(*out));

    if (out != NULL) {
        out->count = 0;
        out->gso = 1;
    }
    return out;
}

void aq_udp_out_free(aq_udp_out *out)
{
    free(out);
}

static int same_address(const aq_sockaddr *first, const aq_sockaddr *second)
{
    return first->sa.sa_family == second->sa.sa_family && memcmp(first, second, aq_sockaddr_length(first)) == 0;
}

static int run_takes(const aq_udp_out *out, int fd, const aq_sockaddr *peer, const aq_sockaddr *local, size_t size)
{
    if (out->fd != fd || out->ended || size == 0 || size > out->segment || out->count >= TRAIN_SEGMENTS ||
        out->used + size > TRAIN_BYTES)
        return 0;
    if (out->connected || peer == NULL)
        return out->connected && peer == NULL;
    return same_address(peer, &out->peer) &&
           (local == NULL ? out->local.sa.sa_family == AF_UNSPEC : same_address(local, &out->local));
}

void aq_udp_out_add(aq_udp_out *out, int fd, const aq_sockaddr *peer, const aq_sockaddr *local, const uint8_t *prefix,
                    size_t prefix_length, const uint8_t *payload, size_t length, uint64_t *dropped)
{
    if (length > DATAGRAM_BYTES || prefix_length > DATAGRAM_BYTES - length) {
        ++*dropped;
        return;
    }
    size_t size = prefix_length + length;
    if (out->count > 0 && !run_takes(out, fd, peer, local, size))
        aq_udp_out_flush(out, dropped);
    if (out->count == 0) {
        out->fd = fd;
        out->connected = peer == NULL;
        if (peer != NULL)
            out->peer = *peer;
        out->local.sa.sa_family = AF_UNSPEC;
        if (local != NULL)
            out->local = *local;
        out->segment = size;
        out->used = 0;
    }
    if (prefix_length > 0)
        memcpy(out->bytes + out->used, prefix, prefix_length);
    if (length > 0)
        memcpy(out->bytes + out->used + prefix_length, payload, length);
    out->used += size;
    out->count++;
    out->ended = size < out->segment || size == 0;
}

void aq_udp_out_flush(aq_udp_out *out, uint64_t *dropped)
{
    sender way;
    size_t done = 0;

    if (out->count == 0)
        return;
    sender_init(&way, out->fd, out->connected ? NULL : &out->peer, &out->local, 0);
    if (send_datagrams(&way, out->bytes, out->used, out->segment, &out->gso, &done, dropped) > 0) {
        /* The socket is full. Waiting would delay every other association, so the rest is dropped, as UDP may do. */
        *dropped += out->count - (out->segment == 0 ? 0 : done / out->segment);
    }
    out->count = 0;
}

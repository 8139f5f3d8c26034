/* UDP sockets as the engine and the pump use them: options, batched receive with GRO, segmented send with GSO, packet
 * information, and transient send errors. There is no state beyond the sockets and the objects declared here. Each
 * object belongs to one thread; functions without one may be called from any thread.
 */
#ifndef AQ_UDP_H
#define AQ_UDP_H

#include "aq.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

typedef union {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
} aq_sockaddr;

socklen_t aq_sockaddr_from(aq_sockaddr *out, const aq_address *address,
                           int family);                          /* family AF_INET6 maps IPv4; 0: unchanged */
void aq_sockaddr_to(const aq_sockaddr *in, aq_address *address); /* mapped IPv4 stays IPv6, as the socket reports it */
socklen_t aq_sockaddr_length(const aq_sockaddr *in);

/* Sets up a QUIC socket: non-blocking, close-on-exec, PKTINFO, TOS/TCLASS reception, PMTUDISC_PROBE and DONTFRAG, GRO,
 * large buffers (SO_RCVBUFFORCE, else SO_RCVBUF). Returns 0, or -errno if an indispensable option fails. *got_receive,
 * *got_send: the buffer sizes in force. */
int aq_udp_setup_quic(int fd, int *got_receive, int *got_send);
/* Sets up a public or local UDP socket: non-blocking, large buffers, GRO if available. has_many_addresses: with packet
 * information, so that answers can be sent from the address that was written to. */
int aq_udp_setup_service(int fd, int has_many_addresses);
/* Returns whether a socket bound to this address receives on every address of the machine. */
int aq_udp_has_many_addresses(const aq_sockaddr *bound);

/* Returns the size of the largest packet that the interface towards `remote` takes without fragmentation, IP header
 * included, as far as the kernel knows; 0: unknown. */
size_t aq_udp_route_mtu(const aq_sockaddr *remote);

#define AQ_UDP_MESSAGES 64        /* messages per recvmmsg; with GRO each may hold 64 datagrams */
#define AQ_UDP_MESSAGE_SIZE 65536 /* the largest UDP payload or GRO train */

typedef struct {
    aq_sockaddr peer;
    aq_sockaddr local; /* from PKTINFO; family AF_UNSPEC if the kernel gave none; port 0 */
    uint8_t ecn;       /* two bits of TOS / TCLASS */
    uint32_t segment;  /* size of each datagram in the train but the last; 0: one datagram */
    uint32_t length;   /* bytes in the buffer */
    uint32_t dropped;  /* the kernel's count of the socket's dropped datagrams when this one arrived */
    uint8_t *data;     /* into the receiver's buffer; valid until the next receive */
    int truncated;
} aq_udp_message;

/* Buffers for recvmmsg: about 4 MiB of address space, touched as needed. One thread. */
typedef struct aq_udp_receiver aq_udp_receiver;
aq_udp_receiver *aq_udp_receiver_new(void);
void aq_udp_receiver_free(aq_udp_receiver *receiver);
/* Calls recvmmsg once. Returns the number of messages in out[0..most), 0 when the socket is empty, or -errno (also for
 * transient errors such as ECONNREFUSED: the caller counts them and may call again). most <= AQ_UDP_MESSAGES. */
int aq_udp_receive_batch(aq_udp_receiver *receiver, int fd, aq_udp_message *out, int max);

/* Counts the datagrams of a socket that the kernel drops: no room in its buffer, or a bad checksum. A datagram carries
 * the kernel's count at its arrival (SO_RXQ_OVFL, which costs nothing until something is dropped). The kernel is asked
 * after a burst and at the end, as no further datagram may come. The functions return the number of new drops. */
typedef struct {
    uint32_t dropped; /* the part already counted of the kernel's count, which wraps */
    uint32_t read;    /* bytes read since the socket was last found empty, up to a burst */
} aq_udp_losses;

/* Called before the socket is set up. On a new socket all drops count; on one that was set up before, only those from
 * now on. */
void aq_udp_losses_begin(aq_udp_losses *losses, int fd);
/* Called after each aq_udp_receive_batch() that did not fail. */
uint32_t aq_udp_losses_read(aq_udp_losses *losses, int fd, const aq_udp_message *messages, int count, int max);
uint32_t aq_udp_losses_end(aq_udp_losses *losses, int fd); /* called before the socket is closed or passed on */

/* Sends `length` bytes as datagrams of `segment` bytes each (the last may be shorter) to peer (NULL: connected socket),
 * from local (NULL or AF_UNSPEC: the kernel chooses), with this ECN codepoint. Clears *gso when the device turns out
 * not to segment; then, and on EMSGSIZE or EINVAL, datagrams are sent one by one. Returns 0 when all are sent; 1 when
 * the socket is full (*sent_bytes says how much was sent, perhaps nothing: call again with the rest); or -errno of the
 * last error when datagrams were lost to it, which is a transient send error: QUIC recovers. *sent_bytes includes lost
 * datagrams. -ECONNREFUSED may also be the answer to an earlier datagram of a connected socket; the current one was
 * then tried again. */
int aq_udp_send(int fd, const aq_sockaddr *peer, const aq_sockaddr *local, uint8_t ecn, const uint8_t *data,
                size_t length, size_t segment, int *gso, size_t *sent_bytes);

/* Collects datagrams for service sockets and sends runs of equal size to the same destination in one segmented send.
 * One thread. The payload is copied, so the caller may free it after aq_udp_out_add(). */
typedef struct aq_udp_out aq_udp_out;
aq_udp_out *aq_udp_out_new(void);
void aq_udp_out_free(aq_udp_out *out);
/* Adds prefix + payload as one datagram to peer (NULL: connected) from local (NULL: the kernel chooses). Sends the
 * collected run first if the datagram does not fit it. *dropped counts datagrams that are too large, that the kernel
 * refused, or that found the socket full. Flush before closing the descriptor of a collected datagram. */
void aq_udp_out_add(aq_udp_out *out, int fd, const aq_sockaddr *peer, const aq_sockaddr *local, const uint8_t *prefix,
                    size_t prefix_length, const uint8_t *payload, size_t length, uint64_t *dropped);
void aq_udp_out_flush(aq_udp_out *out, uint64_t *dropped);

#endif

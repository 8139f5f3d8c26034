/* UDP sockets as the engine and the pump use them: options, batched receive with GRO, segmented send with GSO, packet
 * information, and errors as weather. No state beyond the socket's own; each function says which thread may call it.
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
                           int family);                          /* family AF_INET6 maps IPv4; 0: as it is */
void aq_sockaddr_to(const aq_sockaddr *in, aq_address *address); /* mapped IPv4 stays IPv6, as the socket reports it */
socklen_t aq_sockaddr_length(const aq_sockaddr *in);

/* Sets up a QUIC socket: non-blocking, close-on-exec, PKTINFO, TOS/TCLASS reception, PMTUDISC_PROBE and DONTFRAG, GRO,
 * large buffers (SO_RCVBUFFORCE, else SO_RCVBUF). Returns 0 or -errno for what can't be done without. *got_receive,
 * *got_send: the buffer sizes in force. */
int aq_udp_setup_quic(int fd, int *got_receive, int *got_send);
/* Sets up a public or local UDP socket: non-blocking, large buffers, GRO where it is there. has_many_addresses: with
 * packet information, so that answers can leave from the address that was written to. */
int aq_udp_setup_service(int fd, int has_many_addresses);
/* Whether a socket that is bound to this address hears of every address of the machine. */
int aq_udp_has_many_addresses(const aq_sockaddr *bound);

/* Largest packet that the interface towards `remote` takes without fragments, IP header included, as far as the kernel
 * knows; 0: it doesn't say. */
size_t aq_udp_route_mtu(const aq_sockaddr *remote);

#define AQ_UDP_MESSAGES 64        /* messages per recvmmsg; with GRO each may hold 64 datagrams */
#define AQ_UDP_MESSAGE_SIZE 65536 /* the largest UDP payload or GRO train */

typedef struct {
    aq_sockaddr peer;
    aq_sockaddr local; /* from PKTINFO; family AF_UNSPEC when the kernel gave none. Its port is left 0 */
    uint8_t ecn;       /* two bits of TOS / TCLASS */
    uint32_t segment;  /* size of each datagram in the train but the last; 0: one datagram */
    uint32_t length;   /* bytes in the buffer */
    uint32_t dropped;  /* what the kernel had dropped of the socket's datagrams when this came */
    uint8_t *data;     /* into the receiver's buffer; valid until the next receive */
    int truncated;
} aq_udp_message;

/* Buffers for recvmmsg: about 1 MiB of address space, touched as needed. One thread. */
typedef struct aq_udp_receiver aq_udp_receiver;
aq_udp_receiver *aq_udp_receiver_new(void);
void aq_udp_receiver_free(aq_udp_receiver *receiver);
/* One recvmmsg. Returns the number of messages in out[0..most), 0 when the socket is empty, or -errno (transient errors
 * such as ECONNREFUSED too: the caller counts them and may call again). most <= AQ_UDP_MESSAGES. */
int aq_udp_receive_batch(aq_udp_receiver *receiver, int fd, aq_udp_message *out, int most);

/* What the kernel drops of a socket's datagrams: no room in its buffer, or a bad checksum. A datagram carries the
 * figure of the moment when it came (SO_RXQ_OVFL, which costs nothing until there is one); the kernel is asked after a
 * burst and at the end, behind which no datagram may come. All functions return how many are news. */
typedef struct {
    uint32_t dropped; /* as far as counted; the kernel's figure, which wraps */
    uint32_t read;    /* since the socket was last found empty, up to a burst; bytes */
} aq_udp_losses;

/* Before the socket is set up. Of a new one everything counts; of one that was set up before, what comes from now on.
 */
void aq_udp_losses_begin(aq_udp_losses *losses, int fd);
/* After each aq_udp_receive_batch() that did not fail. */
uint32_t aq_udp_losses_read(aq_udp_losses *losses, int fd, const aq_udp_message *messages, int count, int most);
uint32_t aq_udp_losses_end(aq_udp_losses *losses, int fd); /* before it is closed or somebody else's */

/* Sends `length` bytes as datagrams of `segment` bytes each (the last may be shorter) to peer (NULL: connected socket),
 * from local (NULL or AF_UNSPEC: the kernel chooses), with this ECN. *gso is cleared when the device turns out not to
 * segment; then and on EMSGSIZE/EINVAL datagrams go one by one. Returns 0 sent, 1 the socket is full (nothing or only a
 * part is sent; *sent_bytes says how much: call again with the rest), or -errno for the last error when datagrams were
 * lost to it: that is weather, QUIC recovers. *sent_bytes counts lost datagrams too. -ECONNREFUSED may also be the
 * answer to an earlier datagram of a connected socket; the one in hand was then tried again. */
int aq_udp_send(int fd, const aq_sockaddr *peer, const aq_sockaddr *local, uint8_t ecn, const uint8_t *data,
                size_t length, size_t segment, int *gso, size_t *sent_bytes);

/* Collects datagrams for service sockets and sends runs of equal size to the same destination in one segmented send.
 * One thread. The payload is copied, so it may be gone after aq_udp_out_add. */
typedef struct aq_udp_out aq_udp_out;
aq_udp_out *aq_udp_out_new(void);
void aq_udp_out_free(aq_udp_out *out);
/* prefix + payload as one datagram to peer (NULL: connected) from local (NULL: the kernel chooses). Sends what is
 * collected when it doesn't fit the run. *dropped counts datagrams that the kernel refused, and those that found the
 * socket full. Flush before a collected datagram's descriptor is closed. */
void aq_udp_out_add(aq_udp_out *out, int fd, const aq_sockaddr *peer, const aq_sockaddr *local, const uint8_t *prefix,
                    size_t prefix_length, const uint8_t *payload, size_t length, uint64_t *dropped);
void aq_udp_out_flush(aq_udp_out *out, uint64_t *dropped);

#endif

/* Detects that the peer of a TCP socket is gone. While no data is in flight, TCP keepalive does that. While bytes wait
 * to be acknowledged, the kernel sends no keepalive probes and retransmits for a quarter of an hour or more. So the
 * owner of the socket then checks periodically when the kernel last received an acknowledgement.
 *
 * TCP_USER_TIMEOUT is unsuitable. Linux also applies it to a connection whose window has been closed for that long,
 * although every window probe is answered. And as its timer is not always restarted when the window opens, it can even
 * end a connection whose window closes only briefly, long after it was closed before.
 *
 * Not thread-safe: everything here belongs to the owner of the socket.
 */
#ifndef AQ_KEEPALIVE_H
#define AQ_KEEPALIVE_H

#include "aq.h"

/* Seconds: the maximum of TCP_KEEPIDLE on Linux. */
#define AQ_KEEPALIVE_MAX 32767U
/* Unanswered probes after which the peer is considered gone. */
#define AQ_KEEPALIVE_PROBES 3U
/* Nanoseconds of silence allowed to a peer that answered but acknowledged no new data. Window probes are up to 120 s
 * apart (TCP_RTO_MAX), so two of them have been lost by then. */
#define AQ_KEEPALIVE_LENIENCE (300 * AQ_NSEC_PER_SEC)

typedef struct {
    uint32_t idle;         /* seconds of silence before the first probe; 0: no keepalive, and nothing below is used */
    uint8_t waits;         /* 1: the last check found unacknowledged bytes */
    uint8_t takes_nothing; /* 1: the peer has answered since it last acknowledged new data */
    uint64_t checked;      /* aq_now() of the last check */
    uint64_t since;        /* aq_now() of the check since which bytes have waited and none was acknowledged */
    uint64_t written;      /* bytes written to the socket by the last check; UINT64_MAX before the first */
    uint64_t acknowledged; /* of those, bytes acknowledged by the peer's kernel */
} aq_keepalive;

enum aq_keepalive_state { AQ_PEER_GONE = -1, AQ_PEER_TOOK_ALL = 0, AQ_PEER_IS_WAITED_FOR = 1 };

void aq_keepalive_init(aq_keepalive *keepalive, uint32_t idle);

/* Sets the socket options. Call it before any other use of the socket. */
void aq_keepalive_begin(const aq_keepalive *keepalive, int fd);

/* Returns when the next check is due; UINT64_MAX while nothing waits. written: bytes written to the socket so far. */
uint64_t aq_keepalive_due(const aq_keepalive *keepalive, uint64_t written);

/* Returns the nanoseconds between two checks while bytes wait. */
uint64_t aq_keepalive_period(const aq_keepalive *keepalive);

/* Checks the socket. The peer is gone if bytes have waited and nothing was received from it for about twice `idle`, or
 * for at least AQ_KEEPALIVE_LENIENCE if it has answered without acknowledging new data. */
enum aq_keepalive_state aq_keepalive_check(aq_keepalive *keepalive, int fd, uint64_t written, uint64_t now);

#endif

/* Whether the far end of a TCP socket is still there: the kernel's keepalive while nothing is under way, and a look now
 * and then at what the kernel has heard while bytes wait to be acknowledged, for then it sends no keepalive probes and
 * goes on for a quarter of an hour or more.
 *
 * TCP_USER_TIMEOUT is not for this. Linux ends a connection by it whose window has been closed for so long, although
 * every window probe is answered; and as it does not always begin to count anew when the window opens, also one whose
 * window is closed for a moment long after it was closed before.
 *
 * Not thread-safe: all of it belongs to the owner of the socket.
 */
#ifndef AQ_KEEPALIVE_H
#define AQ_KEEPALIVE_H

#include "aq.h"

/* Seconds: what Linux takes as TCP_KEEPIDLE. */
#define AQ_KEEPALIVE_MOST 32767U
/* Probes without an answer after which the far end has gone. */
#define AQ_KEEPALIVE_PROBES 3U
/* Nanoseconds without a word from a far end that was alive and took nothing. Window probes are up to 120 s apart
 * (TCP_RTO_MAX), so two of them have been lost by then. */
#define AQ_KEEPALIVE_LENIENCE (300 * AQ_NSEC_PER_SEC)

typedef struct {
    uint32_t idle;         /* seconds of silence until the first probe; 0: no keepalive, and nothing below is used */
    uint8_t waits;         /* the last look found bytes that were not acknowledged */
    uint8_t takes_nothing; /* the far end has been heard since it last took something */
    uint64_t looked;       /* aq_now() of the last look */
    uint64_t since;        /* aq_now() of the look from which on no byte was acknowledged while some waited */
    uint64_t written;      /* bytes written to the socket until the last look; UINT64_MAX before the first */
    uint64_t acknowledged; /* and acknowledged by the far end's kernel */
} aq_keepalive;

enum aq_keepalive_state { AQ_PEER_GONE = -1, AQ_PEER_TOOK_ALL = 0, AQ_PEER_IS_WAITED_FOR = 1 };

void aq_keepalive_init(aq_keepalive *keepalive, uint32_t idle);

/* Before anything else with a socket. */
void aq_keepalive_begin(const aq_keepalive *keepalive, int fd);

/* When the next look is due: UINT64_MAX while nothing waits. written: bytes written to the socket, in all. */
uint64_t aq_keepalive_due(const aq_keepalive *keepalive, uint64_t written);

/* Nanoseconds between two looks while bytes wait. */
uint64_t aq_keepalive_period(const aq_keepalive *keepalive);

/* The far end has gone where nothing was heard of it for twice `idle` while bytes waited, or for AQ_KEEPALIVE_LENIENCE
 * where it takes nothing. */
enum aq_keepalive_state aq_keepalive_look(aq_keepalive *keepalive, int fd, uint64_t written, uint64_t now);

#endif

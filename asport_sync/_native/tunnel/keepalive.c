#include "tunnel/keepalive.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Number of checks within the time after which a silent peer is gone. This many guarantee an interval between two
 * checks that is silent if the peer is, and one that contains the answer to a retransmission or window probe if there
 * is one. */
#define CHECKS 4
/* Nanoseconds. The kernel's timestamp of the last acknowledgement has the resolution of its ticks, at most 10 ms. The
 * last check may have seen an acknowledgement that arrived this close to it. */
#define COARSE (20 * AQ_NSEC_PER_MSEC)

void aq_keepalive_init(aq_keepalive *keepalive, uint32_t idle)
{
    *keepalive = (aq_keepalive){.idle = idle, .checked = aq_now(), .written = UINT64_MAX};
}

/* Returns the seconds between two probes. */
static uint32_t interval(const aq_keepalive *keepalive)
{
    return keepalive->idle > AQ_KEEPALIVE_PROBES ? keepalive->idle / AQ_KEEPALIVE_PROBES : 1;
}

/* Returns the nanoseconds of silence after which the peer is gone. They include the wait for the last probe's answer.
 */
static uint64_t grace_period(const aq_keepalive *keepalive)
{
    return (keepalive->idle + AQ_KEEPALIVE_PROBES * interval(keepalive)) * AQ_NSEC_PER_SEC;
}

static void set(int fd, int level, int option, uint32_t value)
{
    int number = (int)value;
    /* Errors are ignored: the connection works without the option. */
    setsockopt(fd, level, option, &number, sizeof(number));
}

void aq_keepalive_begin(const aq_keepalive *keepalive, int fd)
{
    if (keepalive->idle == 0)
        return;
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, keepalive->idle);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval(keepalive));
    set(fd, IPPROTO_TCP, TCP_KEEPCNT, AQ_KEEPALIVE_PROBES);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}

uint64_t aq_keepalive_period(const aq_keepalive *keepalive)
{
    return grace_period(keepalive) / CHECKS;
}

uint64_t aq_keepalive_due(const aq_keepalive *keepalive, uint64_t written)
{
    if (keepalive->idle == 0 || (!keepalive->waits && written == keepalive->written))
        return UINT64_MAX;
    return keepalive->checked + aq_keepalive_period(keepalive);
}

/* Returns the nanoseconds since the last acknowledgement from the peer, new or duplicate; 0 for a unix socket, whose
 * peer cannot vanish unnoticed. */
static uint64_t silence(int fd)
{
    struct tcp_info info;
    socklen_t length = sizeof(info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0)
        return 0;
    return info.tcpi_last_ack_recv * AQ_NSEC_PER_MSEC;
}

static int is_gone(aq_keepalive *keepalive, int fd, uint64_t now)
{
    uint64_t silent = silence(fd), max = grace_period(keepalive);
    if (silent + COARSE < now - keepalive->checked)
        keepalive->takes_nothing = 1;
    if (keepalive->takes_nothing && max < AQ_KEEPALIVE_LENIENCE)
        max = AQ_KEEPALIVE_LENIENCE;
    /* When a check first found the bytes, they may already have waited for one period. */
    return silent >= max && now - keepalive->since + aq_keepalive_period(keepalive) >= max;
}

enum aq_keepalive_state aq_keepalive_check(aq_keepalive *keepalive, int fd, uint64_t written, uint64_t now)
{
    uint64_t acknowledged;
    int queued = 0, gone = 0;
    if (ioctl(fd, SIOCOUTQ, &queued) != 0 || queued < 0)
        queued = 0;
    acknowledged = written - (uint64_t)queued; /* only compared, so bytes that others wrote before do not matter */
    if (!keepalive->waits || acknowledged != keepalive->acknowledged) {
        keepalive->since = now;
        keepalive->takes_nothing = 0;
    } else if (queued > 0) {
        gone = is_gone(keepalive, fd, now);
    }
    keepalive->checked = now;
    keepalive->written = written;
    keepalive->acknowledged = acknowledged;
    keepalive->waits = queued > 0;
    if (gone)
        return AQ_PEER_GONE;
    return queued > 0 ? AQ_PEER_IS_WAITED_FOR : AQ_PEER_TOOK_ALL;
}

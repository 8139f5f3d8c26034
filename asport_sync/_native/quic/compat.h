/* All differences between ngtcp2 releases that matter to the engine. The minimum is 1.11, which distributions ship.
 * Features of newer releases are detected here by the macro or version that introduced them.
 */
#ifndef AQ_COMPAT_H
#define AQ_COMPAT_H

#include "aq.h"

#include <ngtcp2/ngtcp2.h>

#if NGTCP2_VERSION_NUM < 0x010b00
#error "ngtcp2 1.11 or newer is needed; run: python3 vendor/ngtcp2.py"
#endif

/* Returns whether the loaded library is at least as new as the headers; calls into an older one would abort. */
static inline int aq_compat_library_fits(void)
{
    return ngtcp2_version(NGTCP2_VERSION_NUM) != NULL;
}

/* Up to 1.11, a client that changes its port can abort a server that set no_pmtud = 1. So no_pmtud is always 0, and a
 * fixed payload size is set through max_tx_udp_payload_size: the path MTU search then has nothing to find, which has
 * the same effect. */
static inline void aq_compat_settings(ngtcp2_settings *settings, const uint16_t *probes, size_t probes_length)
{
    settings->no_pmtud = 0;
    settings->pmtud_probes = probes;
    settings->pmtud_probeslen = probes_length;
#ifdef NGTCP2_SETTINGS_V3
    /* The first release with this limiter closed legitimate connections; these are the defaults of later releases. */
    settings->glitch_ratelim_burst = 10000;
    settings->glitch_ratelim_rate = 330;
#endif
}

#ifdef NGTCP2_CALLBACKS_V4
#define AQ_HAVE_RECV_STOP_SENDING 1 /* older: STOP_SENDING only shows as NGTCP2_ERR_STREAM_SHUT_WR */
#else
#define AQ_HAVE_RECV_STOP_SENDING 0
#endif

/* Largest sequence number that a server accepts for connection IDs issued by a client. The library allows sixteen
 * unacknowledged RETIRE_CONNECTION_ID frames, and aborts if a change of path needs one more. Our build closes the
 * connection instead; vendor/adjustments.py marks it with AQ_NGTCP2_CHECKS_RETIRED_IDS in its header. With other
 * builds, a client may issue at most sixteen connection IDs to a server during the lifetime of a connection, including
 * that of the handshake. Each migration of a client uses up one of them, a NAT rebinding none. */
#ifdef AQ_NGTCP2_CHECKS_RETIRED_IDS
#define AQ_MAX_PEER_ID INT64_MAX
#else
#define AQ_MAX_PEER_ID 15 /* the first is 0 */
#endif

/* Packets received after which a connection is closed. A peer that skips as many packet numbers as it may reaches the
 * last ones after 2^31 packets. Builds of the library other than ours abort there, so with them the connection is
 * closed earlier. */
#ifdef AQ_NGTCP2_BEARS_LAST_NUMBERS
#define AQ_MAX_PACKETS_RECEIVED UINT64_MAX
#else
#define AQ_MAX_PACKETS_RECEIVED ((UINT64_C(1) << 31) - (UINT64_C(1) << 20))
#endif

/* Up to 1.21, a client aborts if the server has its connection ID retired before the client has sent Finished. */
#define AQ_SURVIVES_EARLY_RETIREMENT (NGTCP2_VERSION_NUM >= 0x011600)

/* Reads how many packets and bytes were declared lost so far; zeros if the library does not count them. */
static inline void aq_compat_losses(ngtcp2_conn *quic, ngtcp2_conn_info *info, uint64_t *packets, uint64_t *bytes)
{
    ngtcp2_conn_get_conn_info(quic, info);
#ifdef NGTCP2_CONN_INFO_V2
    *packets = info->pkt_lost;
    *bytes = info->bytes_lost;
#else
    *packets = *bytes = 0;
#endif
}

/* Returns how many bytes may be sent in one burst. From 1.17 on the library returns about 1 ms worth. Older releases
 * always return 64 KiB, which overruns slow links. For them it is computed here: 1 ms worth, at least ten packets. */
static inline size_t aq_compat_send_quantum(ngtcp2_conn *quic, size_t packet)
{
    size_t quantum = ngtcp2_conn_get_send_quantum(quic);
#if NGTCP2_VERSION_NUM < 0x011100
    ngtcp2_conn_info info;
    size_t min = 10 * packet;
    ngtcp2_conn_get_conn_info(quic, &info);
    if (info.smoothed_rtt > 0) {
        double millisecond = (double)info.cwnd / (double)info.smoothed_rtt * (double)AQ_NSEC_PER_MSEC;
        if (millisecond < (double)quantum)
            quantum = (size_t)millisecond;
    } else {
        quantum = min;
    }
    if (quantum < min)
        quantum = min;
#else
    AQ_UNUSED(packet);
#endif
    return quantum;
}

#endif

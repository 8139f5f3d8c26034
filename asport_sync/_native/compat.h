/* Every difference between ngtcp2 releases that the engine cares about, in one place. The floor is 1.11
 * (distributions); what a newer release can do better is asked for here by the macro or version that brought it.
 */
#ifndef AQ_COMPAT_H
#define AQ_COMPAT_H

#include "aq.h"

#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>

#if NGTCP2_VERSION_NUM < 0x010b00
#error "ngtcp2 1.11 or newer is needed; run: python3 vendor/ngtcp2.py"
#endif

/* A binary built against newer headers would abort inside an older library; the other way round is fine. */
static inline int aq_compat_library_fits(void)
{
    return ngtcp2_version(NGTCP2_VERSION_NUM) != NULL;
}

/* Up to 1.11 no_pmtud = 1 lets a client that changes its port abort a server; leaving discovery on with nothing to
 * discover is the same in effect. So no_pmtud stays 0 everywhere, and a fixed payload size is set through
 * max_tx_udp_payload_size. */
static inline void aq_compat_settings(ngtcp2_settings *settings, const uint16_t *probes, size_t probes_length)
{
    settings->no_pmtud = 0;
    settings->pmtud_probes = probes;
    settings->pmtud_probeslen = probes_length;
#ifdef NGTCP2_SETTINGS_V3
    /* The first release with this limiter closed honest connections; these are the later releases' defaults. */
    settings->glitch_ratelim_burst = 10000;
    settings->glitch_ratelim_rate = 330;
#endif
}

#ifdef NGTCP2_CALLBACKS_V4
#define AQ_HAVE_RECV_STOP_SENDING 1 /* before, STOP_SENDING shows only as NGTCP2_ERR_STREAM_SHUT_WR */
#else
#define AQ_HAVE_RECV_STOP_SENDING 0
#endif

/* Of the connection ids that a peer has given and the library has given back (RETIRE_CONNECTION_ID), sixteen may be
 * unacknowledged. One more, on a change of path, and the library aborts; ours ends the connection instead
 * (vendor/adjustments.py, which defines this in its header). With others a client may give a server no more than
 * sixteen, the one of the handshake included, in all the connection's life. A change of path by a client uses up one of
 * them, a new binding of a NAT none. */
#ifdef AQ_NGTCP2_CHECKS_RETIRED_IDS
#define AQ_MOST_PEER_ID INT64_MAX
#else
#define AQ_MOST_PEER_ID 15 /* sequence number; the first is 0 */
#endif

/* A peer that skips as many packet numbers as it may reaches the last of them with 2^31 packets, and libraries that are
 * not ours abort there. So with those a connection ends before. */
#ifdef AQ_NGTCP2_BEARS_LAST_NUMBERS
#define AQ_MOST_PACKETS_RECEIVED UINT64_MAX
#else
#define AQ_MOST_PACKETS_RECEIVED ((UINT64_C(1) << 31) - (UINT64_C(1) << 20))
#endif

/* Up to 1.21 a server that takes back its connection id before the client has Finished makes the client abort. */
#define AQ_SURVIVES_EARLY_RETIREMENT (NGTCP2_VERSION_NUM >= 0x011600)

/* Packets and bytes declared lost so far; zeros on libraries that don't count them. */
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

/* How many bytes may leave in one go. Newer releases size it to about a millisecond; older ones always say 64 KiB,
 * which overruns slow links, so there it is worked out here: 1 ms worth, at least ten packets. */
static inline size_t aq_compat_send_quantum(ngtcp2_conn *quic, size_t packet)
{
    size_t quantum = ngtcp2_conn_get_send_quantum(quic);
#if NGTCP2_VERSION_NUM < 0x011100
    ngtcp2_conn_info info;
    size_t least = 10 * packet;
    ngtcp2_conn_get_conn_info(quic, &info);
    if (info.smoothed_rtt > 0) {
        double millisecond = (double)info.cwnd / (double)info.smoothed_rtt * (double)AQ_NSEC_PER_MSEC;
        if (millisecond < (double)quantum)
            quantum = (size_t)millisecond;
    } else {
        quantum = least;
    }
    if (quantum < least)
        quantum = least;
#else
    AQ_UNUSED(packet);
#endif
    return quantum;
}

#endif

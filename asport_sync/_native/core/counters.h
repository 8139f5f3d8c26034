/* All counters of an engine. Any thread may add. Each value is read atomically, but not all of them at the same moment.
 * Every drop must have a counter: code that drops something adds a line here.
 */
#ifndef AQ_COUNTERS_H
#define AQ_COUNTERS_H

#include "aq.h"

#include <stdatomic.h>

#define AQ_COUNTERS(X)                                                                                                 \
    X(quic_datagrams_received) /* UDP datagrams on QUIC sockets */                                                     \
    X(quic_bytes_received)                                                                                             \
    X(quic_datagrams_sent)                                                                                             \
    X(quic_bytes_sent)                                                                                                 \
    X(quic_send_blocked) /* the socket buffer was full; nothing is lost */                                             \
    X(quic_send_errors)  /* the kernel refused datagrams; QUIC retransmits what matters */                             \
    X(quic_receive_errors)                                                                                             \
    X(quic_drop_short)       /* shorter than any QUIC packet with one of our connection IDs */                         \
    X(quic_drop_source_port) /* at a server: sent from a port below 1,024 */                                           \
    X(quic_drop_truncated)                                                                                             \
    X(quic_drop_kernel)             /* dropped by the kernel before being read: socket buffer full or bad checksum */  \
    X(quic_drop_unknown_connection) /* belongs to no connection and cannot begin one */                                \
    X(quic_drop_closing)            /* for a connection in the closing or draining state */                            \
    X(version_negotiations_sent)                                                                                       \
    X(retries_sent)                                                                                                    \
    X(retry_tokens_invalid)                                                                                            \
    X(stateless_resets_sent)                                                                                           \
    X(connections_accepted)                                                                                            \
    X(connections_opened)                                                                                              \
    X(connections_refused)        /* over a limit of the endpoint, or with an invalid Retry token */                   \
    X(connections_refused_source) /* too many unauthenticated clients of this source */                                \
    X(connections_flooding)       /* closed for too many packets before authentication */                              \
    X(initials_deferred)          /* dropped: handshakes have used up their share of the time */                       \
    X(initials_dropped)           /* the first packet of a new connection was not a valid one */                       \
    X(answers_suppressed) /* stateless answers over the rate limit, or not sent because the socket buffer was full */  \
    X(connections_closed)                                                                                              \
    X(connections_migrated) /* clients: moved to another local address */                                              \
    X(quic_handshakes_completed)                                                                                       \
    X(quic_handshakes_failed)                                                                                          \
    X(streams_opened)                                                                                                  \
    X(streams_accepted)                                                                                                \
    X(streams_reset_by_peer)                                                                                           \
    X(streams_stopped_by_peer)                                                                                         \
    X(streams_reset)                                                                                                   \
    X(streams_relayed)        /* ended in a worker */                                                                  \
    X(streams_attached)       /* ended in the engine */                                                                \
    X(streams_shared)         /* handed to a worker: large transfers, or from the beginning */                         \
    X(streams_without_worker) /* relayed by the engine because no worker was free at the beginning */                  \
    X(relays_finished)        /* orderly end both ways; this and the next five in the order of enum aq_stream_end */   \
    X(relays_peer_reset)                                                                                               \
    X(relays_socket_error)                                                                                             \
    X(relays_connection_lost)                                                                                          \
    X(relays_local_reset)                                                                                              \
    X(relays_stopped)                                                                                                  \
    X(tcp_accepted)                                                                                                    \
    X(tcp_accept_errors)                                                                                               \
    X(tcp_accept_deferred) /* the port has used its fair share of the descriptors; connections wait in the backlog */  \
    X(tcp_shed) /* reset, from a port above its fair share, for a port below its own or for a joining client */        \
    X(tcp_drop_stream_limit) /* too many streams already wait for the peer to grant one, or no memory */               \
    X(tcp_dialled)           /* connections to the local service opened by the engine */                               \
    X(tcp_dial_failures)     /* left to Python, which tries again and reports the reason */                            \
    X(relays_timed_out)      /* included in relays_socket_error: the TCP peer stopped responding */                    \
    X(relays_cut_short)      /* the remaining data made no progress for AQ_ENDING_GRACE_PERIOD */                      \
    X(stream_bytes_dropped)  /* read from a socket or the peer, but not passed on because the other side had ended */  \
    X(stream_bytes_sent)                                                                                               \
    X(stream_bytes_received)                                                                                           \
    X(commands_sent)                                                                                                   \
    X(command_drop_queue_full) /* the peer accepts none: it grants no streams or does not acknowledge */               \
    X(commands_received)                                                                                               \
    X(command_bytes_ignored)  /* bytes after a command on its stream */                                                \
    X(commands_late)          /* streams ended because their command was not complete in time */                       \
    X(violations)             /* data from a peer that breaks the framing rules */                                     \
    X(packets_sent)           /* whole UDP packets handed to QUIC */                                                   \
    X(packets_received)       /* whole UDP packets received through QUIC */                                            \
    X(packet_drop_queue_full) /* oldest dropped: more than datagram_queue bytes were waiting */                        \
    X(packet_drop_ring_full)  /* newest dropped: the engine was too slow to make room */                               \
    X(packet_drop_too_big)    /* more than 255 fragments, or the path MTU shrank meanwhile */                          \
    X(carrier_asked)          /* clients whose carrier was probed with a Packet sent without its payload */            \
    X(carrier_told_datagram)  /* of those, the ones that refused it on a stream */                                     \
    X(carrier_taken_stream)   /* of those, the ones that did not refuse it in time */                                  \
    X(packet_drop_carrier)    /* the peer accepts no DATAGRAM frames */                                                \
    X(packet_drop_not_joined) /* before authentication, or UDP not granted */                                          \
    X(packet_drop_unknown_association)                                                                                 \
    X(packet_drop_wrong_address)                                                                                       \
    X(packet_drop_association_refused) /* waited for an association that was refused */                                \
    X(packet_drop_waiting_full)        /* too much is waiting for associations already */                              \
    X(packet_drop_connection_closed)   /* still queued when the connection ended */                                    \
    X(packet_drop_socket)              /* the kernel refused to send it */                                             \
    X(fragment_drop_bad)                                                                                               \
    X(fragment_drop_duplicate)                                                                                         \
    X(fragment_drop_too_big)                                                                                           \
    X(fragment_drop_memory)                                                                                            \
    X(packet_drop_incomplete)  /* incomplete packets given up: too old, too large, or room was needed */               \
    X(udp_received)            /* datagrams read from public and local sockets */                                      \
    X(udp_drop_kernel)         /* like quic_drop_kernel, for public and local sockets */                               \
    X(udp_drop_no_association) /* the source was refused an association, or the socket closed first */                 \
    X(udp_shared)              /* sockets handed to the pump as large transfers */                                     \
    X(udp_service_refused)     /* errors from the kernel or ICMP: the local service does not take datagrams */         \
    X(udp_receive_errors)                                                                                              \
    X(watch_failures)      /* epoll refused a socket after a pause; tried again later */                               \
    X(memory_failures)     /* an allocation failed and something was given up for it */                                \
    X(memory_reserve_used) /* an allocation failed and the emergency reserve (reserve.h) was used instead */           \
    X(commands_waited)     /* a Python thread waited because too many commands were queued for the engine */           \
    X(events_dropped)      /* too many waiting, too many of an unauthenticated client, or over the rate limit */       \
    X(streams_shed)        /* with a slow reader, reset because receive_memory was used up */                          \
    X(connections_shed)    /* closed for using the most receive_memory, if resetting streams was not enough */         \
    X(events_lost)         /* no memory for an event */

enum aq_counter {
#define X(name) AQ_C_##name,
    AQ_COUNTERS(X)
#undef X
        AQ_COUNTER_COUNT
};

typedef struct {
    _Atomic uint64_t value[AQ_COUNTER_COUNT];
} aq_counters;

static inline void aq_count(aq_counters *counters, enum aq_counter which, uint64_t more)
{
    atomic_fetch_add_explicit(&counters->value[which], more, memory_order_relaxed);
}

/* Names, in the order of enum aq_counter. */
extern const char *const aq_counter_names[AQ_COUNTER_COUNT];

#endif

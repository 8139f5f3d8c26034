/* Every counter of an engine, in one list. Any thread adds; readers get each value atomically, not all at one moment. A
 * drop without a counter is a fault: whoever drops something adds a line here.
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
    X(quic_send_blocked) /* the socket was full; nothing lost */                                                       \
    X(quic_send_errors)  /* the kernel refused datagrams; QUIC sends again what matters */                             \
    X(quic_receive_errors)                                                                                             \
    X(quic_drop_short)       /* shorter than any QUIC packet with a connection id of ours */                           \
    X(quic_drop_source_port) /* to a server, from a port below 1,024 */                                                \
    X(quic_drop_truncated)                                                                                             \
    X(quic_drop_kernel) /* dropped before they could be read: no room in the socket's buffer, or a bad checksum */     \
    X(quic_drop_unknown_connection) /* no connection, and not the beginning of one */                                  \
    X(quic_drop_closing)            /* for a connection that is closing or draining */                                 \
    X(version_negotiations_sent)                                                                                       \
    X(retries_sent)                                                                                                    \
    X(retry_tokens_invalid)                                                                                            \
    X(stateless_resets_sent)                                                                                           \
    X(connections_accepted)                                                                                            \
    X(connections_opened)                                                                                              \
    X(connections_refused)        /* over a limit of the endpoint, or with a Retry token that is not good */           \
    X(connections_refused_source) /* too many clients of this source are not admitted yet */                           \
    X(connections_flooding)       /* closed for too many packets before admission */                                   \
    X(initials_put_off)           /* dropped, as handshakes have used their share of the time */                       \
    X(initials_dropped)           /* the first packet of a connection was none */                                      \
    X(answers_suppressed)         /* stateless answers over the limit of a second, or with the socket full */          \
    X(connections_closed)                                                                                              \
    X(connections_migrated) /* of a client, to another local address */                                                \
    X(handshakes_completed)                                                                                            \
    X(handshakes_failed)                                                                                               \
    X(streams_opened)                                                                                                  \
    X(streams_accepted)                                                                                                \
    X(streams_reset_by_peer)                                                                                           \
    X(streams_stopped_by_peer)                                                                                         \
    X(streams_reset)                                                                                                   \
    X(streams_relayed)  /* ended in a worker */                                                                        \
    X(streams_attached) /* ended in the engine */                                                                      \
    X(streams_shared)   /* handed to a worker because they move much */                                                \
    X(relays_finished)  /* both directions in order; this and the next five: in order of enum aq_stream_end */         \
    X(relays_peer_reset)                                                                                               \
    X(relays_socket_error)                                                                                             \
    X(relays_connection_lost)                                                                                          \
    X(relays_local_reset)                                                                                              \
    X(relays_stopped)                                                                                                  \
    X(tcp_accepted)                                                                                                    \
    X(tcp_accept_errors)                                                                                               \
    X(tcp_accept_put_off) /* a port has its share of the descriptors; the others wait in the backlog */                \
    X(tcp_taken_back) /* reset: of a port with more than its share, for one with less or for a client that joins */    \
    X(tcp_drop_stream_limit) /* too many streams wait for the peer's credit, or no memory for one */                   \
    X(tcp_dialled)           /* local service connected by the engine */                                               \
    X(tcp_dial_failures)     /* left to Python, which tries again and says why */                                      \
    X(relays_timed_out)      /* of relays_socket_error: the far end has gone without a word */                         \
    X(relays_cut_short)      /* what they still had to pass on was not taken in AQ_ENDING_PATIENCE */                  \
    X(stream_bytes_dropped)  /* came from a socket or the peer and reached nobody: the other side had gone */          \
    X(stream_bytes_sent)                                                                                               \
    X(stream_bytes_received)                                                                                           \
    X(commands_sent)                                                                                                   \
    X(command_drop_queue_full) /* the peer takes none: it grants no streams or does not acknowledge */                 \
    X(commands_received)                                                                                               \
    X(command_bytes_ignored)    /* bytes behind a command on its stream */                                             \
    X(commands_late)            /* streams ended because their command was not complete in time */                     \
    X(violations)               /* bytes from a peer that break the framing rules */                                   \
    X(packets_sent)             /* UDP packets handed to QUIC, whole */                                                \
    X(packets_received)         /* UDP packets that came out of QUIC, whole */                                         \
    X(packet_drop_queue_full)   /* oldest dropped: more than datagram_queue bytes waited */                            \
    X(packet_drop_ring_full)    /* newest dropped: the engine was too slow to make room */                             \
    X(packet_drop_too_big)      /* more than 255 fragments, or the path shrank in between */                           \
    X(carrier_asked)            /* clients that were asked which carrier they take, by a Packet without an end */      \
    X(carrier_told_datagram)    /* of those, that refused it on a stream */                                            \
    X(carrier_taken_stream)     /* of those, that did not */                                                           \
    X(packet_drop_carrier)      /* the peer takes no DATAGRAM frames */                                                \
    X(packet_drop_not_admitted) /* before authentication, or UDP not granted */                                        \
    X(packet_drop_unknown_association)                                                                                 \
    X(packet_drop_wrong_address)                                                                                       \
    X(packet_drop_association_refused) /* waited for an association that did not come about */                         \
    X(packet_drop_waiting_full)        /* too much waits for associations already */                                   \
    X(packet_drop_connection_closed)   /* still queued when the connection ended */                                    \
    X(packet_drop_socket)              /* the kernel refused it on the way out */                                      \
    X(fragment_drop_bad)                                                                                               \
    X(fragment_drop_duplicate)                                                                                         \
    X(fragment_drop_too_big)                                                                                           \
    X(fragment_drop_memory)                                                                                            \
    X(packet_drop_incomplete)  /* not all fragments came in time */                                                    \
    X(udp_received)            /* datagrams read from public and local sockets */                                      \
    X(udp_drop_kernel)         /* of public and local sockets: as quic_drop_kernel */                                  \
    X(udp_drop_no_association) /* their source was refused an association */                                           \
    X(udp_shared)              /* sockets left to the pump because much comes through them */                          \
    X(udp_service_refused)     /* answers of the kernel or ICMP that nobody took a datagram for the local service */   \
    X(udp_receive_errors)                                                                                              \
    X(watch_failures)      /* epoll would not take a socket back; tried again */                                       \
    X(memory_failures)     /* an allocation failed and something was given up for it */                                \
    X(memory_reserve_used) /* an allocation failed, and the reserve (reserve.h) made up for it */                      \
    X(commands_waited)     /* a thread of Python's waited because the engine had too many commands to carry out */     \
    X(events_dropped)      /* Python was too far behind with the commands of this peer */                              \
    X(streams_shed)        /* with a slow reader, reset because receive_memory was used up */                          \
    X(connections_shed)    /* closed for holding the most of it, when that was not enough */                           \
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

/* Names in the order of enum aq_counter. */
extern const char *const aq_counter_names[AQ_COUNTER_COUNT];

#endif

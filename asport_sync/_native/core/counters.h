/* All counters of an engine. Any thread may add. Each value is read atomically, but not all of them at the same moment.
 * Every drop must have a counter: code that drops something adds a line here.
 */
#ifndef AQ_COUNTERS_H
#define AQ_COUNTERS_H

#include "aq.h"

#include <stdatomic.h>

/* COUNT(name, unit, help) or, if it counts what was not passed on or was refused, DROP(name, unit, help). The unit is
 * empty for events and objects that the help names. This is the only place: Python has names, units and help from here,
 * and docs/counters.md is written from them (python -m tests.host.counters --write-docs). relays_finished and the five
 * after it have the order of enum aq_stream_end. */
#define AQ_COUNTERS(COUNT, DROP)                                                                                       \
    COUNT(quic_datagrams_received, "datagrams", "UDP datagrams received on QUIC sockets.")                             \
    COUNT(quic_bytes_received, "bytes", "Bytes of UDP payload received on QUIC sockets.")                              \
    COUNT(quic_datagrams_sent, "datagrams", "UDP datagrams sent on QUIC sockets.")                                     \
    COUNT(quic_bytes_sent, "bytes", "Bytes of UDP payload sent on QUIC sockets.")                                      \
    COUNT(quic_send_blocked, "", "Sends that found the buffer of a QUIC socket full; nothing is lost.")                \
    COUNT(quic_send_errors, "", "Sends that the kernel refused; QUIC retransmits what matters.")                       \
    COUNT(quic_receive_errors, "", "Errors reported when reading a QUIC socket.")                                      \
    DROP(quic_drop_short, "datagrams", "Datagrams shorter than any QUIC packet with one of our connection IDs.")       \
    DROP(quic_drop_source_port, "datagrams",                                                                           \
         "Datagrams that came to the server from ports below 1,024, which belong to services: spoofed addresses, "     \
         "or a NAT that uses such ports.")                                                                             \
    DROP(quic_drop_truncated, "datagrams", "Datagrams longer than the receive buffer.")                                \
    DROP(quic_drop_kernel, "datagrams",                                                                                \
         "Datagrams that the kernel dropped before they were read, because the buffer of the QUIC socket was full "    \
         "or the checksum was wrong; QUIC retransmits what matters.")                                                  \
    DROP(quic_drop_unknown_connection, "datagrams",                                                                    \
         "Datagrams that match no connection and cannot begin one: after restarts, or by probing.")                    \
    DROP(quic_drop_closing, "datagrams", "Datagrams for a connection in the closing or draining state.")               \
    COUNT(version_negotiations_sent, "", "Version Negotiation packets sent.")                                          \
    COUNT(retries_sent, "",                                                                                            \
          "Retry packets sent: many handshakes are half-open, and new clients have to validate their address.")        \
    COUNT(retry_tokens_invalid, "", "Initial packets with an invalid Retry token.")                                    \
    COUNT(stateless_resets_sent, "", "Stateless resets sent.")                                                         \
    COUNT(connections_accepted, "", "Connections accepted by a server, before their handshake.")                       \
    COUNT(connections_opened, "", "Connections opened by a client, before their handshake.")                           \
    DROP(connections_refused, "",                                                                                      \
         "Connections refused because a limit of the endpoint was reached, a Retry token was invalid, or Python "      \
         "is too far behind.")                                                                                         \
    DROP(connections_refused_source, "",                                                                               \
         "Connections refused because 200 clients of one address are, or recently were, unauthenticated (decays "      \
         "by ten per second).")                                                                                        \
    COUNT(connections_flooding, "", "Connections closed because a client sent 512 packets without having joined.")     \
    DROP(initials_deferred, "datagrams",                                                                               \
         "Initial packets dropped because handshakes have used up their share of the time; clients retransmit "        \
         "automatically.")                                                                                             \
    DROP(initials_dropped, "datagrams", "Initial packets that are not valid and begin no connection.")                 \
    DROP(answers_suppressed, "",                                                                                       \
         "Stateless answers not sent: over the limit of 1,000 per second, or because the buffer of the QUIC "          \
         "socket was full.")                                                                                           \
    COUNT(connections_closed, "", "Connections that have ended, for whatever reason.")                                 \
    COUNT(connections_migrated, "", "Connections of a client that moved to another local address.")                    \
    COUNT(quic_handshakes_completed, "", "QUIC handshakes completed.")                                                 \
    COUNT(quic_handshakes_failed, "", "Connections that ended before their handshake was complete.")                   \
    COUNT(streams_opened, "", "Bidirectional streams opened.")                                                         \
    COUNT(streams_accepted, "", "Bidirectional streams accepted from the peer.")                                       \
    COUNT(streams_reset_by_peer, "", "Streams that the peer reset (RESET_STREAM) before their end.")                   \
    COUNT(streams_stopped_by_peer, "", "Streams that the peer stopped reading (STOP_SENDING).")                        \
    COUNT(streams_reset, "", "Streams that this side reset.")                                                          \
    COUNT(streams_relayed, "", "Relays that ended in a worker.")                                                       \
    COUNT(streams_attached, "", "Relays that ended in the engine.")                                                    \
    COUNT(streams_shared, "", "Streams handed to a worker: large transfers, or all from the beginning.")               \
    COUNT(streams_without_worker, "", "Streams relayed by the engine because no worker was free at the beginning.")    \
    COUNT(relays_finished, "", "Relays that ended with an orderly end in both directions.")                            \
    COUNT(relays_peer_reset, "", "Relays that ended because the peer reset the stream.")                               \
    COUNT(relays_socket_error, "", "Relays that ended with an error of the TCP socket.")                               \
    COUNT(relays_connection_lost, "", "Relays that ended with their QUIC connection.")                                 \
    COUNT(relays_local_reset, "", "Relays that ended because this side reset the stream.")                             \
    COUNT(relays_stopped, "", "Relays that ended because the engine was stopped.")                                     \
    COUNT(tcp_accepted, "", "TCP connections accepted on public ports.")                                               \
    COUNT(tcp_accept_errors, "",                                                                                       \
          "Failures to accept on a public port, most likely for lack of descriptors; connections wait in the "         \
          "backlog.")                                                                                                  \
    COUNT(tcp_accept_deferred, "",                                                                                     \
          "Pauses of a public port that has used its fair share of the descriptors while few are free; "               \
          "connections wait in the backlog.")                                                                          \
    DROP(tcp_shed, "",                                                                                                 \
         "Connections, the newest of a port above its fair share, reset for a port below its own or for a joining "    \
         "client.")                                                                                                    \
    DROP(tcp_drop_stream_limit, "",                                                                                    \
         "Connections closed because thousands wait for the client's stream credit, or for lack of memory.")           \
    DROP(tcp_drop_not_permitted, "",                                                                                   \
         "TCP connections of visitors that allow_from or deny_from does not permit, reset before anything was "        \
         "forwarded, or when the rules changed.")                                                                      \
    DROP(tcp_drop_max_connections, "", "TCP connections reset because max_connections of their port were open.")       \
    COUNT(balance_passed_over, "",                                                                                     \
          "TCP connections and UDP sources given to another client of a group (balance), because the client whose "    \
          "turn it was did not answer, granted no stream credit or had its fair share of the descriptors.")            \
    DROP(tcp_drop_rate, "", "TCP connections reset because new_connections_per_second of their port was exceeded.")    \
    COUNT(tcp_dialled, "", "Connections to the local service opened by the engine.")                                   \
    COUNT(tcp_dial_failures, "",                                                                                       \
          "Connections to the local service that the engine could not open at once; a worker tries again and logs "    \
          "the reason.")                                                                                               \
    COUNT(relays_timed_out, "",                                                                                        \
          "Relays that ended because the remote end of the TCP connection disappeared (tcp_keepalive); also "          \
          "counted in relays_socket_error.")                                                                           \
    COUNT(relays_cut_short, "",                                                                                        \
          "Relays that were reset or lost, and given up because their remaining data made no progress for 30 s.")      \
    COUNT(bandwidth_waits, "", "Waits of a TCP connection for a bandwidth limit, in one direction.")                   \
    DROP(stream_bytes_dropped, "bytes",                                                                                \
         "Bytes read from a TCP connection or a stream whose other side had already ended.")                           \
    COUNT(stream_bytes_sent, "bytes", "Bytes sent on bidirectional streams, without retransmissions.")                 \
    COUNT(stream_bytes_received, "bytes", "Bytes received on bidirectional streams.")                                  \
    COUNT(commands_sent, "", "Commands accepted for sending.")                                                         \
    DROP(command_drop_queue_full, "",                                                                                  \
         "Commands not sent because the peer accepts none: it grants no streams or acknowledges nothing.")             \
    COUNT(commands_received, "", "Commands received.")                                                                 \
    DROP(command_bytes_ignored, "bytes", "Bytes that followed a command on its stream.")                               \
    COUNT(commands_late, "",                                                                                           \
          "Streams ended because their command was not complete within task_negotiation_timeout; time in which "       \
          "nothing arrives does not count.")                                                                           \
    COUNT(violations, "", "Data from a peer that breaks the framing rules of ASPORT.")                                 \
    COUNT(packets_sent, "packets", "Whole UDP packets handed to QUIC.")                                                \
    COUNT(packets_received, "packets", "Whole UDP packets received through QUIC.")                                     \
    DROP(packet_drop_queue_full, "packets",                                                                            \
         "UDP packets, the oldest, dropped because they arrive faster than the connection carries them.")              \
    DROP(packet_drop_ring_full, "packets",                                                                             \
         "UDP packets, the newest, dropped because the engine was too slow to make room.")                             \
    DROP(packet_drop_too_big, "packets",                                                                               \
         "UDP packets that need more than 255 fragments, or no longer fit because the path MTU shrank.")               \
    COUNT(carrier_asked, "", "Clients whose carrier was probed with a Packet sent without its payload.")               \
    COUNT(carrier_told_datagram, "", "Probed clients that refused the Packet on a stream.")                            \
    COUNT(carrier_taken_stream, "", "Probed clients that did not refuse the Packet on a stream in time.")              \
    DROP(packet_drop_carrier, "packets", "UDP packets dropped because the peer accepts no DATAGRAM frames.")           \
    DROP(packet_drop_not_joined, "packets",                                                                            \
         "UDP packets from a client before its authentication, or to which UDP was not granted.")                      \
    DROP(packet_drop_unknown_association, "packets", "UDP packets of an association that does not exist.")             \
    DROP(packet_drop_wrong_address, "packets",                                                                         \
         "UDP packets with which a client answered to an address that its association does not have.")                 \
    DROP(packet_drop_association_refused, "packets", "UDP packets of an association that was refused.")                \
    DROP(packet_drop_not_permitted, "packets",                                                                         \
         "UDP packets of visitors that allow_from or deny_from of a client's tunnel does not permit.")                 \
    DROP(packet_drop_waiting_full, "packets",                                                                          \
         "UDP packets and datagrams dropped because too many of them, or too many new sources, wait for a "            \
         "decision.")                                                                                                  \
    DROP(packet_drop_connection_closed, "packets", "UDP packets still queued when their connection ended.")            \
    DROP(packet_drop_socket, "packets", "UDP packets that the kernel refused to send.")                                \
    DROP(fragment_drop_bad, "fragments", "Fragments that are not valid.")                                              \
    DROP(fragment_drop_duplicate, "fragments", "Fragments that were received before.")                                 \
    DROP(fragment_drop_too_big, "fragments", "Fragments of UDP packets that would be too large.")                      \
    DROP(fragment_drop_memory, "fragments", "Fragments dropped for lack of memory.")                                   \
    DROP(packet_drop_incomplete, "packets",                                                                            \
         "Incomplete UDP packets given up because fragments were lost or late, or room was needed.")                   \
    COUNT(udp_received, "datagrams", "Datagrams read from public sockets and from sockets to the local service.")      \
    DROP(udp_drop_kernel, "datagrams",                                                                                 \
         "Datagrams on public sockets (server) and sockets to the local service (client) that the kernel dropped "     \
         "before they were read: buffer full or wrong checksum.")                                                      \
    DROP(udp_drop_no_association, "datagrams",                                                                         \
         "Datagrams of a source that was refused an association, or whose socket was closed first.")                   \
    DROP(udp_drop_bandwidth, "datagrams", "Datagrams, of visitors or of the local service, beyond a bandwidth limit.") \
    DROP(udp_drop_not_permitted, "datagrams",                                                                          \
         "Datagrams on public ports of visitors that allow_from or deny_from does not permit.")                        \
    COUNT(udp_shared, "", "UDP sockets handed to the pump as large transfers.")                                        \
    COUNT(udp_service_refused, "",                                                                                     \
          "Errors that say that the local UDP service, or the path to it, refused datagrams (ICMP).")                  \
    COUNT(udp_receive_errors, "", "Other errors when reading a UDP service socket.")                                   \
    COUNT(watch_failures, "",                                                                                          \
          "Failures of epoll to watch a socket again after its back-off; retried ten times a second.")                 \
    COUNT(memory_failures, "",                                                                                         \
          "Failures to allocate memory after which something new was refused, or something had to end.")               \
    COUNT(memory_reserve_used, "",                                                                                     \
          "Failures to allocate memory that the emergency reserve covered; existing connections go on.")               \
    COUNT(commands_waited, "", "Waits of a Python thread because too many commands were queued for the engine.")       \
    DROP(events_dropped, "",                                                                                           \
         "Events for Python not posted: too many waiting, too many of an unauthenticated client, or over the rate "    \
         "limit of log lines.")                                                                                        \
    COUNT(streams_shed, "", "Streams with a slow reader that were reset because receive_memory was used up.")          \
    COUNT(connections_shed, "",                                                                                        \
          "Connections closed for holding the most of receive_memory, when resetting streams was not enough.")         \
    DROP(events_lost, "", "Events for Python lost for lack of memory.")

enum aq_counter {
#define X(name, unit, help) AQ_C_##name,
    AQ_COUNTERS(X, X)
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

/* In the order of enum aq_counter. */
extern const aq_counter_description aq_counter_descriptions[AQ_COUNTER_COUNT];

#endif

/* A QUIC socket and the connections behind it: routing by connection id, new connections, Retry, version negotiation,
 * stateless reset. A server has one endpoint for all its clients; a client has one for each connection. Engine thread
 * only.
 */
#ifndef AQ_ENDPOINT_H
#define AQ_ENDPOINT_H

#include "aq.h"
#include "conn.h"
#include "map.h"
#include "rotation.h"
#include "source.h"

/* What strangers are answered without a connection. Each has its own limit, so that none can use up another's. */
enum aq_answer { AQ_ANSWER_VERSION, AQ_ANSWER_RESET, AQ_ANSWER_REFUSAL, AQ_ANSWERS };

typedef struct aq_endpoint {
    const aq_conn_host *host;
    aq_id id; /* 0 on a client */
    int is_server, accepting, closed;
    int fd;
    aq_sockaddr bound;               /* what the socket is bound to; the address part may be the wildcard */
    int receive_buffer, send_buffer; /* bytes that the kernel grants the socket */
    aq_udp_losses losses;            /* of that socket */
    int blocked;                     /* some connection waits for room in the socket */
    int waits_writable;              /* epoll was told so */
    uint32_t read_errors;            /* in a row, without a read that gave anything else; stays at its largest value */
    aq_credentials *credentials;
    aq_transport_options options;
    uint8_t reset_key[32];
    aq_rotating_key token_key; /* of Retry tokens */
    uint32_t retry_threshold, max_half_open, max_half_open_per_source, max_connections;
    uint32_t half_open; /* connections whose client is not admitted; also those that are closing without having been */
    uint32_t connections;
    aq_sources sources; /* of half-open connections with a validated address */
    aq_map routes;      /* connection id -> aq_conn */
    aq_conn *latest;    /* whose id the packet before had; NULL after any id went */
    uint8_t latest_id[AQ_SCID_LENGTH];
    aq_conn *first;
    int64_t handshake_credit;      /* nanoseconds that handshakes may take; below 0: they have taken too many */
    uint64_t credit_at, idle_seen; /* when it was last added to, and host->idle then */
    uint64_t answers_since;        /* when the second began in which these were counted */
    uint32_t answers[AQ_ANSWERS];
} aq_endpoint;

/* Takes over fd. NULL: *error, and fd is closed. remote: client, the socket is connected to it. */
aq_endpoint *aq_endpoint_new(const aq_conn_host *host, int fd, aq_credentials *credentials,
                             const aq_transport_options *options, const aq_sockaddr *remote, int64_t *error);
void aq_endpoint_free(aq_endpoint *endpoint); /* its connections are freed already; closes fd */

/* Reads at most `most` messages of the kernel, each of which may hold many packets. Returns their bytes. */
uint64_t aq_endpoint_read(aq_endpoint *endpoint, aq_udp_receiver *receiver, int most, uint64_t now);
void aq_endpoint_writable(aq_endpoint *endpoint, uint64_t now);

/* Engine time for a client that is not admitted is that of handshakes: begin, do it, and charge for it. */
uint64_t aq_endpoint_start_charge(const aq_conn *conn); /* 0: it is free */
void aq_endpoint_charge(aq_endpoint *endpoint, uint64_t began);

/* A client's way to another local address. aq_endpoint_route_socket() sets fd up and connects it to the peer: 1, *local
 * is the address that the kernel chose; 0, it is the one in use; or an error. fd stays the caller's.
 * aq_endpoint_swap_socket() takes such a socket over and returns the one before. */
int aq_endpoint_route_socket(aq_endpoint *endpoint, int fd, aq_sockaddr *local);
int aq_endpoint_swap_socket(aq_endpoint *endpoint, int fd, const aq_sockaddr *local);

/* A client's only connection. */
aq_conn *aq_endpoint_connect(aq_endpoint *endpoint, const aq_sockaddr *remote, const char *server_name, int send_sni,
                             uint64_t now, int64_t *error);
void aq_endpoint_remove(aq_endpoint *endpoint, aq_conn *conn); /* unlinks and frees */

/* aq_conn_host.route, unroute, validated, leave_half_open, transmit. */
int aq_endpoint_route(aq_endpoint *endpoint, const ngtcp2_cid *cid, aq_conn *conn);
void aq_endpoint_unroute(aq_endpoint *endpoint, const ngtcp2_cid *cid);
void aq_endpoint_validated(aq_conn *conn);
void aq_endpoint_leave_half_open(aq_conn *conn);
int aq_endpoint_transmit(aq_conn *conn, const aq_sockaddr *remote, const aq_sockaddr *local, uint8_t ecn,
                         const uint8_t *data, size_t length, size_t segment, size_t *sent);

#endif

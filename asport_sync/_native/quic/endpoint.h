/* A QUIC socket and its connections: routing by connection ID, new connections, Retry, Version Negotiation, stateless
 * reset. endpoint_admission.c limits what unauthenticated clients may use. A server has one endpoint for all its
 * clients; a client has one for each connection. Engine thread only. */
#ifndef AQ_ENDPOINT_H
#define AQ_ENDPOINT_H

#include "aq.h"
#include "core/map.h"
#include "core/rotation.h"
#include "quic/conn.h"
#include "quic/source.h"

/* Responses to packets without a connection. Each kind has its own rate limit, so that none can exhaust another's. */
enum aq_answer { AQ_ANSWER_VERSION, AQ_ANSWER_RESET, AQ_ANSWER_REFUSAL, AQ_ANSWERS };

typedef struct aq_endpoint {
    const aq_conn_host *host;
    aq_id id; /* 0 on a client */
    int is_server, accepting, closed;
    int fd;
    aq_sockaddr bound;               /* bound address; the IP address may be the wildcard */
    int receive_buffer, send_buffer; /* bytes that the kernel grants the socket */
    aq_udp_losses losses;            /* of the socket */
    int blocked;                     /* some connection waits for room in the socket */
    int waits_writable;              /* EPOLLOUT is enabled */
    uint32_t read_errors;            /* consecutive reads that returned only an error; saturates */
    aq_credentials *credentials;
    aq_transport_options options;
    uint8_t reset_key[AQ_TOKEN_KEY_LENGTH];
    aq_rotating_key token_key; /* for Retry tokens */
    uint32_t retry_threshold, max_half_open, max_half_open_per_source, max_connections;
    uint32_t half_open; /* connections whose client is unauthenticated; also while they are closing */
    uint32_t connections;
    aq_sources sources; /* of half-open connections with a validated address */
    aq_map routes;      /* connection ID -> aq_conn */
    aq_conn *latest;    /* connection of the previous packet, by latest_id; NULL after any ID is removed */
    uint8_t latest_id[AQ_SCID_LENGTH];
    aq_conn_list conns;
    int64_t handshake_credit;      /* admission budget in nanoseconds of engine time; < 0: overdrawn */
    uint64_t credit_at, idle_seen; /* time of its last update, and host->idle then */
    uint64_t answers_since;        /* start of the second in which answers are counted */
    uint32_t answers[AQ_ANSWERS];
} aq_endpoint;

/* Creates an endpoint and takes over fd. Returns NULL on failure, with *error set and fd closed. remote: on a client,
 * the address that the socket is connected to; NULL on a server. */
aq_endpoint *aq_endpoint_new(const aq_conn_host *host, int fd, aq_credentials *credentials,
                             const aq_transport_options *options, const aq_sockaddr *remote, int64_t *error);
void aq_endpoint_free(aq_endpoint *endpoint); /* also closes fd; its connections must be freed already */

/* Reads at most `max` recvmmsg() messages, each of which may hold many packets. Returns their bytes. */
uint64_t aq_endpoint_read(aq_endpoint *endpoint, aq_udp_receiver *receiver, int max, uint64_t now);
void aq_endpoint_writable(aq_endpoint *endpoint, uint64_t now);

/* Updates the admission budget. Returns whether it allows a new connection. */
int aq_endpoint_may_begin(aq_endpoint *endpoint, uint64_t now);
void aq_endpoint_enter_half_open(aq_endpoint *endpoint, aq_conn *conn); /* a new connection of a server */
/* Charge the engine time spent on an unauthenticated client to the admission budget: start, do the work, charge. */
uint64_t aq_endpoint_start_charge(const aq_conn *conn); /* 0: not charged */
void aq_endpoint_charge(aq_endpoint *endpoint, uint64_t began);

/* Move a client to another local address. aq_endpoint_route_socket() sets up fd and connects it to the peer. Returns 1
 * with *local set to the address that the kernel chose, 0 if that is the current one, or an error; fd stays the
 * caller's. aq_endpoint_swap_socket() takes over such a socket and returns the previous one. */
int aq_endpoint_route_socket(aq_endpoint *endpoint, int fd, aq_sockaddr *local);
int aq_endpoint_swap_socket(aq_endpoint *endpoint, int fd, const aq_sockaddr *local);

/* Creates a client's only connection. */
aq_conn *aq_endpoint_connect(aq_endpoint *endpoint, const aq_sockaddr *remote, const char *server_name, int send_sni,
                             uint64_t now, int64_t *error);
void aq_endpoint_remove(aq_endpoint *endpoint, aq_conn *conn); /* unlinks and frees */

/* Implement the functions of aq_conn_host with the same names. */
int aq_endpoint_route(aq_endpoint *endpoint, const ngtcp2_cid *cid, aq_conn *conn);
void aq_endpoint_unroute(aq_endpoint *endpoint, const ngtcp2_cid *cid);
void aq_endpoint_validated(aq_conn *conn);
void aq_endpoint_leave_half_open(aq_conn *conn);
int aq_endpoint_transmit(aq_conn *conn, const aq_sockaddr *remote, const aq_sockaddr *local, uint8_t ecn,
                         const uint8_t *data, size_t length, size_t segment, size_t *sent);

#endif

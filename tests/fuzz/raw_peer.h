/* A QUIC peer played by hand: it keeps no rules but those it is told to. One connection, one thread. Its packets are
 * either without encryption, for the engine with null_tls.c, or as RFC 9001 has them; raw_protection.h tells them
 * apart.
 */
#ifndef RAW_PEER_H
#define RAW_PEER_H

#include "sim.h"

enum raw_space { RAW_INITIAL, RAW_HANDSHAKE, RAW_APPLICATION, RAW_SPACES };

/* What it says of itself in the handshake. */
typedef struct {
    uint64_t connection_window, stream_window; /* bytes */
    uint64_t streams;                          /* of each kind */
    uint64_t datagram;                         /* bytes of the largest DATAGRAM frame; 0: none */
    uint8_t flags;                             /* of its message, see null_tls.c */
    uint16_t port;                             /* of a client; 0: SIM_CLIENT_PORT */
    const uint8_t *token;                      /* a client's, in its Initial packets; lent */
    size_t token_length;
} raw_options;

extern const raw_options RAW_GENEROUS;

extern uint64_t raw_packets; /* sent since the program began */

/* Begins anew. A server answers the engine's client; a client opens a connection to the engine's server. */
void raw_begin(int is_server, const raw_options *options);
/* What a peer does by itself: the next step of the handshake, and acknowledgements where `acknowledges`. */
void raw_turn(int acknowledges);
/* One packet with these frames. */
void raw_send(enum raw_space space, const uint8_t *frames, size_t length);
void raw_acknowledge(enum raw_space space);
/* Bytes of the handshake in a CRYPTO frame, behind those that went before in this space. */
void raw_crypto(enum raw_space space, const uint8_t *data, size_t length);
/* STREAM frame of this stream at the offset where the one before ended. */
void raw_stream(uint64_t id, const uint8_t *data, size_t length, int fin);
void raw_datagram(const uint8_t *data, size_t length);
/* RESET_STREAM at the offset reached, or STOP_SENDING. */
void raw_end_stream(uint64_t id, int stop, uint64_t code);
#define RAW_NO_STREAM UINT64_MAX
/* MAX_DATA, MAX_STREAM_DATA of this stream, MAX_STREAMS, of so much. */
void raw_credit(uint64_t id, uint64_t max);
/* A client's packets come from this port from now on. */
void raw_move(uint16_t port);
/* NEW_CONNECTION_ID, written to `at`: the end of it. RFC 9000 section 19.15. */
uint8_t *raw_new_cid(uint8_t *at, uint64_t sequence, uint64_t retire_prior_to);

#endif

/* What raw_peer.c needs to speak with an engine: packet protection and a handshake. raw_null.c has none worth the name,
 * raw_tls.c those of RFC 9001, with GnuTLS.
 */
#ifndef RAW_PROTECTION_H
#define RAW_PROTECTION_H

#include "raw_peer.h"

#define RAW_CID 8    /* bytes of the peer's own connection id */
#define RAW_NUMBER 4 /* bytes of a packet number that it sends */
#define RAW_TAG 16   /* bytes that protection adds */

/* Who the peer is; written by raw_peer.c. */
typedef struct {
    int is_server;
    raw_options options;
    uint8_t mine[RAW_CID], theirs[20], original[20]; /* connection ids; original: the client's first destination */
    size_t theirs_length, original_length;
} raw_identity;

extern raw_identity raw_self;

/* A packet without its protection. */
typedef struct {
    uint64_t number;
    const uint8_t *payload;
    size_t length;
} raw_opened;

uint8_t *raw_put_varint(uint8_t *out, uint64_t value);
uint64_t raw_get_varint(const uint8_t **at, const uint8_t *end);
uint64_t raw_whole_number(uint64_t number, size_t bytes, uint64_t expected);
/* Writes the peer's transport parameters, no more than 200 bytes; RFC 9000 section 18.2 has the numbers. */
size_t raw_parameters(uint8_t *out);

void raw_handshake_begin(void);
/* The payload of an Initial or Handshake packet of the engine's. */
void raw_handshake_receive(enum raw_space space, const uint8_t *payload, size_t length);
void raw_handshake_turn(void); /* the next step, if it is time */

int raw_has_keys(enum raw_space space); /* to send with */
/* packet: header, packet number of RAW_NUMBER bytes at number_at, `length` bytes of payload, room for RAW_TAG. */
void raw_seal(enum raw_space space, uint8_t *packet, size_t number_at, uint64_t number, size_t length);
/* Takes the protection off in place. 0: it can't be. */
int raw_open(enum raw_space space, uint8_t *packet, size_t number_at, size_t length, uint64_t expected,
             raw_opened *opened);

#endif

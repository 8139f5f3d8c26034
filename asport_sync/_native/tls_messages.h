/* Which TLS handshake messages a peer may send in CRYPTO frames, by encryption level (RFC 9001 section 4). GnuTLS
 * serves TLS over TCP as well and accepts more than QUIC allows; a KeyUpdate, for one, makes it hand out secrets that
 * ngtcp2 aborts on.
 */
#ifndef AQ_TLS_MESSAGES_H
#define AQ_TLS_MESSAGES_H

#include "aq.h"

enum aq_tls_level { AQ_TLS_INITIAL, AQ_TLS_HANDSHAKE, AQ_TLS_ONE_RTT, AQ_TLS_LEVELS };

enum aq_tls_verdict {
    AQ_TLS_PASS,       /* for the TLS library */
    AQ_TLS_DISCARD,    /* allowed, and of no use: nothing but NewSessionTicket */
    AQ_TLS_UNEXPECTED, /* alert unexpected_message: a type that does not belong to this level */
    AQ_TLS_VIOLATION   /* PROTOCOL_VIOLATION: authentication after the handshake, RFC 9001 section 4.4 */
};

/* The message under way at one level. */
typedef struct {
    uint8_t header[4];  /* type and length, RFC 8446 section 4 */
    uint8_t header_got; /* bytes of it; 4: the body follows */
    uint8_t ended;      /* Finished has been there, and nothing may follow */
    uint32_t body_left; /* bytes, below 2^24 */
} aq_tls_message;

/* Of one connection. [engine] only. Zeros are the beginning. */
typedef struct {
    aq_tls_message levels[AQ_TLS_LEVELS];
} aq_tls_messages;

/* Judges the next bytes of a level, in order, each byte once. After anything but PASS and DISCARD the connection has to
 * be closed: *messages is in no defined state. */
enum aq_tls_verdict aq_tls_messages_judge(aq_tls_messages *messages, int is_server, enum aq_tls_level level,
                                          const uint8_t *data, size_t length);

#endif

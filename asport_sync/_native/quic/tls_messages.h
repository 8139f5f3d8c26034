/* Which TLS handshake messages a peer may send in CRYPTO frames, by encryption level (RFC 9001 section 4). GnuTLS also
 * serves TLS over TCP and accepts more than QUIC allows; a KeyUpdate, for example, makes it hand out secrets that
 * ngtcp2 aborts on.
 */
#ifndef AQ_TLS_MESSAGES_H
#define AQ_TLS_MESSAGES_H

#include "aq.h"

enum aq_tls_level { AQ_TLS_INITIAL, AQ_TLS_HANDSHAKE, AQ_TLS_ONE_RTT, AQ_TLS_LEVELS };

enum aq_tls_verdict {
    AQ_TLS_PASS,       /* for the TLS library */
    AQ_TLS_DISCARD,    /* allowed but unused: only NewSessionTicket */
    AQ_TLS_UNEXPECTED, /* alert unexpected_message: a type that does not belong to this level */
    AQ_TLS_VIOLATION   /* PROTOCOL_VIOLATION: authentication after the handshake, RFC 9001 section 4.4 */
};

/* The current message at one level. */
typedef struct {
    uint8_t header[4];  /* type and length, RFC 8446 section 4 */
    uint8_t header_got; /* bytes of it received; 4: the body follows */
    uint8_t ended;      /* Finished was received, and nothing may follow */
    uint32_t body_left; /* bytes, below 2^24 */
} aq_tls_message;

/* State of one connection. [engine] only. Initialise with zeros. */
typedef struct {
    aq_tls_message levels[AQ_TLS_LEVELS];
} aq_tls_messages;

/* Judges the next bytes of a level, in order, each byte once. After any verdict but PASS and DISCARD the connection
 * must be closed: *messages is in an undefined state. */
enum aq_tls_verdict aq_tls_messages_judge(aq_tls_messages *messages, int is_server, enum aq_tls_level level,
                                          const uint8_t *data, size_t length);

#endif

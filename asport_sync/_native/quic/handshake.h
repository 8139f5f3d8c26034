/* The seam of the handshake layer: everything that the engine needs of a TLS library. The engine calls it only through
 * aq_handshake_ops, so that another library, or a fake in a test, can be added without a change to connections and
 * endpoints. tls.c has the implementation on GnuTLS; handshake.c selects one.
 *
 * ngtcp2 calls the cryptography of packets itself, through the callbacks that set_callbacks() fills in. Nothing else in
 * here is called for every packet.
 */
#ifndef AQ_HANDSHAKE_H
#define AQ_HANDSHAKE_H

#include "aq.h"

#include <sys/socket.h>

#include <ngtcp2/ngtcp2.h>

#define AQ_TOKEN_KEY_LENGTH 32 /* bytes of a key for Retry tokens or stateless reset tokens */

/* Certificates, key, trust, pins and ALPN of one side. Immutable after creation, shared by threads and sessions,
 * reference-counted. Each implementation defines the structure. */
typedef struct aq_credentials aq_credentials;

/* The TLS session of one connection. Each implementation defines the structure. */
typedef struct aq_tls_session aq_tls_session;

/* Immutable. Functions may be called by any thread unless they are marked [engine]. None is NULL. */
typedef struct aq_handshake_ops {
    /* ---- credentials ---- */

    /* Returns NULL on failure: *error is then AQ_ERR_INVALID, AQ_ERR_TLS, AQ_ERR_NO_TRUST, AQ_ERR_MEMORY or
     * AQ_ERR_SYSTEM - errno, and text says what is wrong, after "certificate: ", "private key: " or "certificate
     * authorities: " if one of these is the cause. On success text is empty. Without keylog_path nothing is logged,
     * whatever SSLKEYLOGFILE says. The caller owns one reference. */
    aq_credentials *(*credentials_new)(const aq_credentials_options *options, int64_t *error, char *text,
                                       size_t text_length);
    void (*credentials_ref)(aq_credentials *credentials);
    void (*credentials_unref)(aq_credentials *credentials); /* NULL: does nothing */

    /* ---- sessions; all [engine] ---- */

    /* Creates a session, which holds a reference to the credentials. Returns NULL on failure, with *error set.
     * server_name: NULL on a server; NULL on a client that verifies is AQ_ERR_INVALID. Copied. */
    aq_tls_session *(*session_new)(aq_credentials *credentials, const char *server_name, int send_sni, int64_t *error);
    /* Call after ngtcp2_conn_del(). NULL: does nothing. */
    void (*session_free)(aq_tls_session *session);
    /* Connects the session with ngtcp2's connection, which has the callbacks of set_callbacks(). Called once, before
     * the connection reads or writes. */
    void (*session_attach)(aq_tls_session *session, ngtcp2_conn *quic);
    /* Implements ngtcp2's callback recv_crypto_data: takes the next bytes of the peer's CRYPTO stream at a level, each
     * once and in order. Returns what ngtcp2 expects of the callback. */
    int (*session_receive)(aq_tls_session *session, ngtcp2_encryption_level level, uint64_t offset, const uint8_t *data,
                           size_t length);
    /* Checks the session after the handshake. Returns 0, or the TLS alert to close with: 120, no_application_protocol,
     * if no ALPN protocol was negotiated; 42, bad_certificate, with the problem set, if a certificate that had to be
     * checked was not. */
    int (*session_check)(aq_tls_session *session);
    /* Copies the negotiated ALPN protocol, at most `length` bytes. Returns how many; 0: none. */
    size_t (*session_alpn)(aq_tls_session *session, uint8_t *out, size_t length);
    /* Exports keying material, RFC 8446 section 7.5. Returns 0; AQ_ERR_STATE before the handshake is complete;
     * AQ_ERR_TLS, also for a label that is too long (GnuTLS: 63 bytes). */
    int (*session_export)(aq_tls_session *session, const uint8_t *label, size_t label_length, const uint8_t *context,
                          size_t context_length, uint8_t *out, size_t out_length);
    /* Copies the peer's certificates as DER, its own first. Returns the length of all, 0: none; if that is above
     * `length`, the copy is incomplete. */
    size_t (*session_peer_chain)(aq_tls_session *session, uint8_t *out, size_t length);
    /* Returns why the peer's certificate was refused, as text; empty if it was not. Valid as long as the session. */
    const char *(*session_certificate_problem)(aq_tls_session *session);

    /* ---- packets; all [engine] ---- */

    /* Sets ngtcp2's callbacks for keys and packet protection, and rand; leaves all others. decrypt must call
     * aq_reading_decrypted(). */
    void (*set_callbacks)(ngtcp2_callbacks *callbacks, int is_server);
    /* Fills `out` with unpredictable bytes for values that everyone may see, such as connection IDs. Cheaper than
     * aq_random(), because it need not make a system call each time. Never fails. */
    void (*random)(void *out, size_t length);
    /* Computes the stateless reset token of a connection ID, NGTCP2_STATELESS_RESET_TOKENLEN bytes: the same for the
     * same key of AQ_TOKEN_KEY_LENGTH bytes. Returns 0, or another value on failure. */
    int (*reset_token)(uint8_t *token, const uint8_t *key, const ngtcp2_cid *cid);
    /* Writes a Retry packet that answers an Initial packet with this header. Its token, made with a key of
     * AQ_TOKEN_KEY_LENGTH bytes, is bound to scid, the server's new connection ID, and to the client's address. now:
     * time of day, nanoseconds. Returns the length; <= 0: failure. */
    ngtcp2_ssize (*write_retry)(uint8_t *out, size_t room, const ngtcp2_pkt_hd *header, const ngtcp2_cid *scid,
                                const struct sockaddr *remote, socklen_t remote_length, const uint8_t *key,
                                uint64_t now);
    /* Checks the token of an Initial packet. Returns 1 if it is a Retry token that this key made within the last
     * `lifetime` nanoseconds, with *original set to the connection ID that the client chose first; 0 if it is no Retry
     * token; -1 if it is an invalid one. */
    int (*check_retry)(const ngtcp2_pkt_hd *header, const struct sockaddr *remote, socklen_t remote_length,
                       const uint8_t *key, uint64_t lifetime, uint64_t now, ngtcp2_cid *original);
    /* Writes an Initial packet with a CONNECTION_CLOSE, which refuses a client without a connection. Returns the
     * length; <= 0: failure. */
    ngtcp2_ssize (*write_refusal)(uint8_t *out, size_t room, const ngtcp2_pkt_hd *header, uint64_t code);

    /* ---- functions of the boundary with the same names (aq_api.h) ---- */

    const char *(*version)(void); /* see aq_gnutls_version() */
    int64_t (*certificate_pin)(const uint8_t *certificate, size_t length, uint8_t *out);
    int64_t (*certificates_read)(const uint8_t *data, size_t length, aq_certificate *out, uint32_t max, char *text,
                                 size_t text_length);
    int64_t (*derive_key)(const uint8_t *secret, size_t secret_length, const uint8_t *salt, size_t salt_length,
                          const uint8_t *info, size_t info_length, uint8_t *out);
    int32_t (*equal)(const uint8_t *first, const uint8_t *second, size_t length);
} aq_handshake_ops;

extern const aq_handshake_ops aq_handshake_gnutls; /* tls.c */

/* The implementation that engines and the boundary use. */
extern const aq_handshake_ops *const aq_handshake;

#endif

/* GnuTLS: credentials and sessions for QUIC. This module contains everything specific to TLS, so that another handshake
 * layer could be added next to it.
 */
#ifndef AQ_TLS_H
#define AQ_TLS_H

#include "aq.h"

#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>

#define AQ_PIN_LENGTH 32         /* bytes of a SHA-256 */
#define AQ_PIN_PREFIX "sha256//" /* as curl writes it in front of a pin's base64 */

/* See aq_certificate_pin(). */
int64_t aq_tls_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out);

/* See aq_certificates_read(). */
int64_t aq_tls_certificates_read(const uint8_t *data, size_t length, aq_certificate *out, uint32_t max, char *text,
                                 size_t text_length);

/* Certificates, key, trust, pins and ALPN of one side. Immutable after creation, shared by threads and sessions,
 * reference-counted. */
typedef struct aq_credentials aq_credentials;

/* Returns NULL on failure: *error is then AQ_ERR_INVALID, AQ_ERR_TLS, AQ_ERR_MEMORY or AQ_ERR_SYSTEM - errno, and text
 * says what is wrong, after "certificate: ", "private key: " or "certificate authorities: " if one of these is the
 * cause. On success text says how many authorities a verifying client trusts, and is empty otherwise. Without
 * keylog_path nothing is logged, whatever SSLKEYLOGFILE says. */
aq_credentials *aq_tls_credentials_new(const aq_credentials_options *options, int64_t *error, char *text,
                                       size_t text_length);
void aq_tls_credentials_ref(aq_credentials *credentials);
void aq_tls_credentials_unref(aq_credentials *credentials);

/* A session for one connection. [engine] only. reference must stay at its address until aq_tls_session_free(). */
typedef struct aq_tls_session aq_tls_session;

/* server_name: NULL on a server; NULL on a client that verifies is AQ_ERR_INVALID. Copied. */
aq_tls_session *aq_tls_session_new(aq_credentials *credentials, ngtcp2_crypto_conn_ref *reference,
                                   const char *server_name, int send_sni, int64_t *error);
void aq_tls_session_free(aq_tls_session *session);    /* call after ngtcp2_conn_del() */
void *aq_tls_session_native(aq_tls_session *session); /* for ngtcp2_conn_set_tls_native_handle() */

/* Implements the callback recv_crypto_data: takes the next bytes of the peer's CRYPTO stream at a level, each once and
 * in order. Only messages that belong to that level reach GnuTLS, see tls_messages.h. Returns what ngtcp2 expects of
 * the callback. */
int aq_tls_session_receive(aq_tls_session *session, ngtcp2_conn *quic, ngtcp2_encryption_level level, uint64_t offset,
                           const uint8_t *data, size_t length);
/* Checks the session after the handshake. Returns 0, or the TLS alert to close with: 120, no_application_protocol,
 * because GnuTLS lets a peer without ALPN pass; 42, bad_certificate, with the problem set, if a certificate that had to
 * be checked was not. */
int aq_tls_session_check(aq_tls_session *session);
/* Copies the negotiated ALPN protocol, at most `length` bytes. Returns how many; 0: none. */
size_t aq_tls_session_alpn(aq_tls_session *session, uint8_t *out, size_t length);
/* Exports keying material, RFC 8446 section 7.5. Returns 0, AQ_ERR_STATE or AQ_ERR_TLS (also for a label of more than
 * 63 bytes, GnuTLS's limit). */
int aq_tls_session_export(aq_tls_session *session, const uint8_t *label, size_t label_length, const uint8_t *context,
                          size_t context_length, uint8_t *out, size_t out_length);
/* Returns why the peer's certificate was refused, as text; empty if it was not. */
const char *aq_tls_session_certificate_problem(aq_tls_session *session);

#endif

/* The handshake layer on GnuTLS. For the files tls*.c only; all others use handshake.h. */
#ifndef AQ_TLS_H
#define AQ_TLS_H

#include "quic/handshake.h"

#include <stdatomic.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <ngtcp2/ngtcp2_crypto.h>

#define AQ_PIN_LENGTH 32         /* bytes of a SHA-256 */
#define AQ_PIN_PREFIX "sha256//" /* as curl writes it in front of a pin's base64 */

#define AQ_TLS_ALPN_MAX 8 /* GnuTLS silently ignores protocols after the eighth */

struct aq_credentials {
    _Atomic uint32_t references; /* any thread */

    /* Immutable after creation. */
    gnutls_certificate_credentials_t certificates;
    int server;
    int verify;
    int keylog;                                /* file descriptor; -1: no key log */
    gnutls_datum_t protocols[AQ_TLS_ALPN_MAX]; /* point into alpn */
    unsigned int protocol_count;
    const uint8_t *pins; /* AQ_PIN_LENGTH bytes each, after the list in alpn */
    size_t pin_count;    /* 0: any key is accepted */
    uint8_t alpn[];      /* as in the options */
};

/* The functions of handshake.h with the same names. */
aq_credentials *aq_tls_credentials_new(const aq_credentials_options *options, int64_t *error, char *text,
                                       size_t text_length);
void aq_tls_credentials_ref(aq_credentials *credentials);
void aq_tls_credentials_unref(aq_credentials *credentials);
int64_t aq_tls_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out);
int64_t aq_tls_certificates_read(const uint8_t *data, size_t length, aq_certificate *out, uint32_t max, char *text,
                                 size_t text_length);
aq_tls_session *aq_tls_session_new(aq_credentials *credentials, const char *server_name, int send_sni, int64_t *error);
void aq_tls_session_free(aq_tls_session *session);
void aq_tls_session_attach(aq_tls_session *session, ngtcp2_conn *quic);
int aq_tls_session_receive(aq_tls_session *session, ngtcp2_encryption_level level, uint64_t offset, const uint8_t *data,
                           size_t length);
int aq_tls_session_check(aq_tls_session *session);
size_t aq_tls_session_alpn(aq_tls_session *session, uint8_t *out, size_t length);
int aq_tls_session_export(aq_tls_session *session, const uint8_t *label, size_t label_length, const uint8_t *context,
                          size_t context_length, uint8_t *out, size_t out_length);
size_t aq_tls_session_peer_chain(aq_tls_session *session, uint8_t *out, size_t length);
const char *aq_tls_session_certificate_problem(aq_tls_session *session);

/* Computes the pin of RFC 7469 section 2.4, of AQ_PIN_LENGTH bytes. Returns GnuTLS's code. */
int aq_tls_pin_of(gnutls_x509_crt_t certificate, uint8_t *pin);
/* Returns 1 if the subjectAltName has a DNS name or an IP address, or one of the kind `wanted` unless that is 0; 0 if
 * not; or GnuTLS's code. */
int aq_tls_has_name(gnutls_x509_crt_t certificate, int wanted);

static inline int64_t aq_tls_error_of(int code)
{
    return code == GNUTLS_E_MEMORY_ERROR ? AQ_ERR_MEMORY : AQ_ERR_TLS;
}

/* GnuTLS's structure lacks const, but the functions that it is passed to only read. */
static inline gnutls_datum_t aq_tls_datum(const uint8_t *data, size_t length)
{
    gnutls_datum_t result = {.data = (uint8_t *)(uintptr_t)data, .size = (unsigned int)length};
    return result;
}

#endif

/* TLS sessions of connections: the handshake, the checks of the server's certificate, and the exporter. */
#include "quic/tls.h"

#include "quic/tls_messages.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <gnutls/crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

/* TLS 1.3 only, as RFC 9001 section 4.2 requires. AES-128-GCM first because it costs least with AES instructions,
 * X25519 first because it is the cheapest group; a server follows the client's order. %PROFILE_MEDIUM: no certificate
 * with less than 112 bits of security is accepted, such as RSA keys below 2048 bits; NORMAL alone accepts 1024.
 * %DISABLE_TLS13_COMPAT_MODE keeps the legacy session id empty (RFC 9001 section 8.4). */
#define PRIORITY                                                                                                       \
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:"                          \
    "-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1:+GROUP-SECP384R1:%PROFILE_MEDIUM:%DISABLE_TLS13_COMPAT_MODE"

#define ALERT_NO_ALPN 120 /* no_application_protocol, RFC 7301 section 3.2 */
#define ALERT_UNEXPECTED_MESSAGE 10
/* RFC 8446 section 6.2: alerts that tell a server why its certificate is refused. */
#define ALERT_BAD_CERTIFICATE 42
#define ALERT_UNSUPPORTED_CERTIFICATE 43
#define ALERT_CERTIFICATE_REVOKED 44
#define ALERT_CERTIFICATE_EXPIRED 45
#define ALERT_UNKNOWN_CA 48
#define EXPORTER_LABEL_MAX 63              /* bytes; GnuTLS refuses longer labels */
#define SERVER_NAME_MAX 253                /* characters of a DNS name, RFC 1035 section 2.3.4 */
#define RANDOM_SIZE 32                     /* bytes of a client random, RFC 8446 section 4.1.2 */
#define SECRET_MAX 64                      /* bytes of a traffic secret: the longest hash of TLS is SHA-512 */
#define KEYLOG_LABEL_MAX 64                /* characters; the longest label in use has 31 */
#define PROBLEM_LENGTH 512                 /* bytes kept of the reason for refusing a certificate */
#define LONGEST_CLIENT_MESSAGE (16 * 1024) /* bytes of a handshake message; a ClientHello may hold large key shares */

/* [engine] only. */
struct aq_tls_session {
    gnutls_session_t native;
    ngtcp2_conn *quic;                /* of the connection, once attached */
    ngtcp2_crypto_conn_ref reference; /* leads ngtcp2's helper from native to quic */
    aq_credentials *credentials;      /* one reference */

    /* What the peer's certificate must match; empty on a server. */
    char name[SERVER_NAME_MAX + 1]; /* a DNS name, or an IP address as text */
    uint8_t ip[16];                 /* the address, if name is one */
    unsigned int ip_length;         /* 4 or 16; 0: name is a DNS name */

    aq_tls_messages messages;
    unsigned int keys_installed; /* one bit for each encryption level and direction, see install_keys() */

    int accepted;                 /* check_certificate() has run and found no problem */
    char problem[PROBLEM_LENGTH]; /* written by check_certificate() during the handshake */
    uint8_t problem_alert;        /* alert that tells the server about the problem */
};

/* ---- callbacks from GnuTLS during a handshake --------------------------------------------------------------- */

/* The pointer of a GnuTLS session belongs to ngtcp2's helper: it is the ngtcp2_crypto_conn_ref. */
static aq_tls_session *session_of(gnutls_session_t native)
{
    const ngtcp2_crypto_conn_ref *reference = gnutls_session_get_ptr(native);
    return reference->user_data;
}

static ngtcp2_conn *quic_of(ngtcp2_crypto_conn_ref *reference)
{
    const aq_tls_session *session = reference->user_data;
    return session->quic;
}

static int must_be_checked(const aq_credentials *credentials)
{
    return credentials->verify || credentials->pin_count > 0;
}

/* Gets the server's own certificate, which the caller frees. Returns GnuTLS's code. */
static int certificate_of_peer(gnutls_session_t native, gnutls_x509_crt_t *certificate)
{
    unsigned int length = 0;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(native, &length);
    int code;

    if (chain == NULL || length == 0)
        return GNUTLS_E_NO_CERTIFICATE_FOUND;
    code = gnutls_x509_crt_init(certificate);
    if (code < 0)
        return code;
    code = gnutls_x509_crt_import(*certificate, &chain[0], GNUTLS_X509_FMT_DER);
    if (code < 0)
        gnutls_x509_crt_deinit(*certificate);
    return code;
}

/* Returns 1 if the server's certificate has a subjectAltName of the expected kind, 0 if not, or GnuTLS's code. If it
 * has no DNS name there, GnuTLS compares the common name, which RFC 9525 forbids: a common name need not be the name of
 * a host. */
static int has_alternative_name(const aq_tls_session *session)
{
    const int wanted = session->ip_length > 0 ? GNUTLS_SAN_IPADDRESS : GNUTLS_SAN_DNSNAME;
    gnutls_x509_crt_t certificate;
    int code = certificate_of_peer(session->native, &certificate);

    if (code < 0)
        return code;
    code = aq_tls_has_name(certificate, wanted);
    gnutls_x509_crt_deinit(certificate);
    return code;
}

/* Returns the alert of RFC 8446 section 6.2 for what GnuTLS found. */
static uint8_t alert_of(unsigned int status)
{
    if ((status & GNUTLS_CERT_REVOKED) != 0)
        return ALERT_CERTIFICATE_REVOKED;
    if ((status & (GNUTLS_CERT_EXPIRED | GNUTLS_CERT_NOT_ACTIVATED)) != 0)
        return ALERT_CERTIFICATE_EXPIRED;
    if ((status & (GNUTLS_CERT_SIGNER_NOT_FOUND | GNUTLS_CERT_SIGNER_NOT_CA)) != 0)
        return ALERT_UNKNOWN_CA;
    return (status & GNUTLS_CERT_PURPOSE_MISMATCH) != 0 ? ALERT_UNSUPPORTED_CERTIFICATE : ALERT_BAD_CERTIFICATE;
}

/* Checks chain, name, purpose and dates. Returns 0, or -1 with the problem recorded. */
static int check_chain(aq_tls_session *session)
{
    gnutls_typed_vdata_st expected[2] = {
        {.type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)session->name, .size = 0},
        {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_SERVER, .size = 0},
    };
    gnutls_datum_t reasons = {0};
    unsigned int status = 0;
    int code;

    if (session->ip_length > 0) {
        expected[0].type = GNUTLS_DT_IP_ADDRESS;
        expected[0].data = session->ip;
        expected[0].size = session->ip_length;
    }
    code = gnutls_certificate_verify_peers(session->native, expected, AQ_ARRAY_LENGTH(expected), &status);
    /* The names of a certificate with another fault do not matter. */
    if (code == 0 && (status & ~(unsigned int)(GNUTLS_CERT_INVALID | GNUTLS_CERT_UNEXPECTED_OWNER)) == 0) {
        code = has_alternative_name(session);
        if (code == 0) {
            snprintf(session->problem, sizeof(session->problem),
                     "The certificate has no %s in its subjectAltName, and its common name does not count (RFC 9525). "
                     "Expected: %s",
                     session->ip_length > 0 ? "IP address" : "DNS name", session->name);
            return -1;
        }
        if (code > 0 && status == 0)
            return 0;
        code = code > 0 ? 0 : code;
    }
    session->problem_alert = alert_of(code == 0 ? status : 0);
    if (code == 0)
        code = gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &reasons, 0);
    if (code == 0) {
        size_t length = reasons.size;
        while (length > 0 && (reasons.data[length - 1] == ' ' || reasons.data[length - 1] == 0))
            length--;
        snprintf(session->problem, sizeof(session->problem), "%.*s Expected: %s", (int)length, (char *)reasons.data,
                 session->name);
        gnutls_free(reasons.data);
    } else {
        snprintf(session->problem, sizeof(session->problem), "The certificate of %s could not be verified: %s",
                 session->name, gnutls_strerror(code));
    }
    return -1;
}

/* Computes the pin of the server's own certificate. Returns GnuTLS's code. */
static int pin_of_peer(gnutls_session_t native, uint8_t *pin)
{
    gnutls_x509_crt_t certificate;
    int code = certificate_of_peer(native, &certificate);

    if (code < 0)
        return code;
    code = aq_tls_pin_of(certificate, pin);
    gnutls_x509_crt_deinit(certificate);
    return code;
}

/* Returns 0, or -1 with the problem recorded. Pins are public: neither constant time nor secrecy is needed. */
static int check_pin(aq_tls_session *session)
{
    const aq_credentials *credentials = session->credentials;
    uint8_t pin[AQ_PIN_LENGTH];
    gnutls_datum_t raw = {.data = pin, .size = sizeof(pin)}, text = {0};
    int code = pin_of_peer(session->native, pin);

    for (size_t i = 0; code == 0 && i < credentials->pin_count; i++)
        if (memcmp(credentials->pins + i * AQ_PIN_LENGTH, pin, AQ_PIN_LENGTH) == 0)
            return 0;
    if (code == 0)
        code = gnutls_base64_encode2(&raw, &text);
    if (code == 0) {
        snprintf(session->problem, sizeof(session->problem),
                 "The key of the certificate is none of those pinned: %s%.*s", AQ_PIN_PREFIX, (int)text.size,
                 (char *)text.data);
        gnutls_free(text.data);
    } else {
        snprintf(session->problem, sizeof(session->problem), "The key of the certificate could not be compared: %s",
                 gnutls_strerror(code));
    }
    return -1;
}

/* Only for sessions for which must_be_checked() is true. Runs before the client's Finished, so a server that is not
 * accepted never gets a token. */
static int check_certificate(gnutls_session_t native)
{
    aq_tls_session *session = session_of(native);

    session->problem_alert = ALERT_BAD_CERTIFICATE;
    session->accepted = (!session->credentials->verify || check_chain(session) == 0) &&
                        (session->credentials->pin_count == 0 || check_pin(session) == 0);
    return session->accepted ? 0 : GNUTLS_E_CERTIFICATE_ERROR; /* becomes the alert bad_certificate */
}

static size_t put_hex(char *out, const uint8_t *data, size_t length)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < length; i++) {
        out[2 * i] = digits[data[i] >> 4];
        out[2 * i + 1] = digits[data[i] & 15];
    }
    return 2 * length;
}

/* Writes one line of the NSS key log format: label, client random, secret. Always returns success to GnuTLS, because a
 * full disk must not end the handshake. Replaces GnuTLS's own writer for SSLKEYLOGFILE in this TLS session, so no line
 * is written twice. */
static int write_keylog(gnutls_session_t native, const char *label, const gnutls_datum_t *secret)
{
    char line[KEYLOG_LABEL_MAX + 1 + 2 * RANDOM_SIZE + 1 + 2 * SECRET_MAX + 1];
    size_t length = strlen(label);
    gnutls_datum_t client_random = {0}, server_random = {0};
    ssize_t written;

    gnutls_session_get_random(native, &client_random, &server_random);
    if (length > KEYLOG_LABEL_MAX || client_random.size > RANDOM_SIZE || secret->size > SECRET_MAX)
        return 0;
    memcpy(line, label, length);
    line[length++] = ' ';
    length += put_hex(line + length, client_random.data, client_random.size);
    line[length++] = ' ';
    length += put_hex(line + length, secret->data, secret->size);
    line[length++] = '\n';
    do { /* a single write, so that O_APPEND keeps the lines of several processes apart */
        written = write(session_of(native)->credentials->keylog, line, length);
    } while (written < 0 && errno == EINTR);
    gnutls_memset(line, 0, sizeof(line));
    return 0;
}

/* Installs the secrets of an encryption level that GnuTLS hands out; replaces ngtcp2's own function. ngtcp2 asserts two
 * things that it leaves to TLS: that no level gets its keys twice, and that the peer's transport parameters are
 * present. GnuTLS requires neither, and the peer controls both. Returns GnuTLS's code, which becomes the alert. */
static int install_keys(gnutls_session_t native, gnutls_record_encryption_level_t gnutls_level, const void *rx_secret,
                        const void *tx_secret, size_t length)
{
    aq_tls_session *session = session_of(native);
    ngtcp2_conn *quic = session->quic;
    ngtcp2_encryption_level level;
    unsigned int keys;

    /* Neither side offers or accepts 0-RTT. */
    if (gnutls_level == GNUTLS_ENCRYPTION_LEVEL_HANDSHAKE)
        level = NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE;
    else if (gnutls_level == GNUTLS_ENCRYPTION_LEVEL_APPLICATION)
        level = NGTCP2_ENCRYPTION_LEVEL_1RTT;
    else
        return GNUTLS_E_UNEXPECTED_PACKET;
    keys = ((rx_secret != NULL ? 1U : 0U) | (tx_secret != NULL ? 2U : 0U)) << 2 * (unsigned int)level;
    if ((session->keys_installed & keys) != 0)
        return GNUTLS_E_UNEXPECTED_PACKET;
    /* The transport parameters are in ClientHello or in EncryptedExtensions, so a client has its Handshake keys before
     * it can know them. RFC 9001 section 8.2. */
    if ((session->credentials->server || level == NGTCP2_ENCRYPTION_LEVEL_1RTT) &&
        ngtcp2_conn_get_remote_transport_params(quic) == NULL)
        return GNUTLS_E_MISSING_EXTENSION;
    session->keys_installed |= keys;
    if (rx_secret != NULL &&
        ngtcp2_crypto_derive_and_install_rx_key(quic, NULL, NULL, NULL, level, rx_secret, length) != 0)
        return GNUTLS_E_INTERNAL_ERROR;
    if (tx_secret != NULL &&
        ngtcp2_crypto_derive_and_install_tx_key(quic, NULL, NULL, NULL, level, tx_secret, length) != 0)
        return GNUTLS_E_INTERNAL_ERROR;
    return 0;
}

/* ---- sessions ----------------------------------------------------------------------------------------------- */

static gnutls_priority_t priority; /* written once, by parse_priority() */
static int priority_code;
static pthread_once_t priority_once = PTHREAD_ONCE_INIT;

static void parse_priority(void)
{
    priority_code = gnutls_priority_init(&priority, PRIORITY, NULL);
}

/* Stores the name that the certificate must match, and detects whether it is an IP address. */
static int set_expected_name(aq_tls_session *session, const char *server_name)
{
    size_t length = strlen(server_name);

    if (length > 0 && server_name[length - 1] == '.')
        length--; /* the root's dot is in no certificate, and SNI forbids it (RFC 6066 section 3) */
    if (length == 0 || length > SERVER_NAME_MAX)
        return -1;
    memcpy(session->name, server_name, length); /* the rest is zero */
    if (inet_pton(AF_INET, session->name, session->ip) == 1)
        session->ip_length = 4;
    else if (inet_pton(AF_INET6, session->name, session->ip) == 1)
        session->ip_length = 16;
    return 0;
}

/* Applies the settings that both sides have in common. Returns GnuTLS's code. */
static int configure(aq_tls_session *session)
{
    const aq_credentials *credentials = session->credentials;
    int code = priority_code;

    session->reference.get_conn = quic_of;
    session->reference.user_data = session;
    gnutls_session_set_ptr(session->native, &session->reference);
    if (code == 0)
        code = gnutls_priority_set(session->native, priority);
    if (code == 0)
        code = gnutls_credentials_set(session->native, GNUTLS_CRD_CERTIFICATE, credentials->certificates);
    if (code == 0) {
        code = gnutls_alpn_set_protocols(session->native, credentials->protocols, credentials->protocol_count,
                                         GNUTLS_ALPN_MANDATORY);
    }
    if (code == 0) {
        code = credentials->server ? ngtcp2_crypto_gnutls_configure_server_session(session->native)
                                   : ngtcp2_crypto_gnutls_configure_client_session(session->native);
    }
    gnutls_handshake_set_secret_function(session->native, install_keys);
    /* No long message is expected from a client, and incomplete ones are kept in memory. */
    if (credentials->server)
        gnutls_handshake_set_max_packet_length(session->native, LONGEST_CLIENT_MESSAGE);
    /* GnuTLS's own writer would follow the environment's SSLKEYLOGFILE, into a file that everybody may read. */
    gnutls_session_set_keylog_function(session->native, credentials->keylog >= 0 ? write_keylog : NULL);
    return code;
}

aq_tls_session *aq_tls_session_new(aq_credentials *credentials, const char *server_name, int send_sni, int64_t *error)
{
    /* No resumption and no 0-RTT: a resumed session would skip the verification, and early commands could be replayed.
     */
    unsigned int flags = GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS | GNUTLS_NO_AUTO_SEND_TICKET |
                         GNUTLS_NO_END_OF_EARLY_DATA | (credentials->server ? GNUTLS_SERVER : GNUTLS_CLIENT);
    aq_tls_session *session = calloc(1, sizeof(*session));
    int code;

    if (session == NULL) {
        *error = AQ_ERR_MEMORY;
        return NULL;
    }
    session->credentials = credentials;
    aq_tls_credentials_ref(credentials);
    if (!credentials->server && (server_name != NULL || credentials->verify) &&
        (server_name == NULL || set_expected_name(session, server_name) != 0)) {
        *error = AQ_ERR_INVALID;
        goto failed;
    }
    pthread_once(&priority_once, parse_priority);
    code = gnutls_init(&session->native, flags);
    if (code < 0) {
        session->native = NULL;
        *error = aq_tls_error_of(code);
        goto failed;
    }
    code = configure(session);
    if (code == 0 && !credentials->server && send_sni && session->name[0] != 0 && session->ip_length == 0)
        code = gnutls_server_name_set(session->native, GNUTLS_NAME_DNS, session->name, strlen(session->name));
    if (code < 0) {
        *error = aq_tls_error_of(code);
        goto failed;
    }
    if (must_be_checked(credentials))
        gnutls_session_set_verify_function(session->native, check_certificate);
    *error = AQ_OK;
    return session;
failed:
    aq_tls_session_free(session);
    return NULL;
}

void aq_tls_session_free(aq_tls_session *session)
{
    if (session == NULL)
        return;
    if (session->native != NULL)
        gnutls_deinit(session->native);
    aq_tls_credentials_unref(session->credentials);
    free(session);
}

void aq_tls_session_attach(aq_tls_session *session, ngtcp2_conn *quic)
{
    session->quic = quic;
    ngtcp2_conn_set_tls_native_handle(quic, session->native);
}

/* Only messages that belong to the level reach GnuTLS, see tls_messages.h. */
int aq_tls_session_receive(aq_tls_session *session, ngtcp2_encryption_level level, uint64_t offset, const uint8_t *data,
                           size_t length)
{
    ngtcp2_conn *quic = session->quic;
    enum aq_tls_level which = level == NGTCP2_ENCRYPTION_LEVEL_INITIAL     ? AQ_TLS_INITIAL
                              : level == NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE ? AQ_TLS_HANDSHAKE
                                                                           : AQ_TLS_ONE_RTT;
    int result;

    switch (aq_tls_messages_judge(&session->messages, session->credentials->server, which, data, length)) {
    case AQ_TLS_PASS:
        result = ngtcp2_crypto_recv_crypto_data_cb(quic, level, offset, data, length, NULL);
        /* GnuTLS has one alert for all problems with a certificate; the server's log should say more. */
        if (result == NGTCP2_ERR_CRYPTO && session->problem[0] != '\0')
            ngtcp2_conn_set_tls_alert(quic, session->problem_alert);
        return result;
    case AQ_TLS_DISCARD:
        return 0;
    case AQ_TLS_VIOLATION:
        return NGTCP2_ERR_PROTO;
    default:
        ngtcp2_conn_set_tls_alert(quic, ALERT_UNEXPECTED_MESSAGE);
        return NGTCP2_ERR_CRYPTO;
    }
}

/* GnuTLS lets a peer without ALPN pass. */
int aq_tls_session_check(aq_tls_session *session)
{
    const aq_credentials *credentials = session->credentials;
    gnutls_datum_t chosen = {0};

    /* GnuTLS skips the check when it resumes a session. We give it none to resume; if another version resumes one
     * anyway, the unchecked server is rejected here. */
    if (must_be_checked(credentials) && !session->accepted) {
        snprintf(session->problem, sizeof(session->problem), "%s",
                 "The certificate was not checked during the handshake");
        return ALERT_BAD_CERTIFICATE;
    }
    if (gnutls_alpn_get_selected_protocol(session->native, &chosen) != 0)
        return ALERT_NO_ALPN;
    for (unsigned int i = 0; i < credentials->protocol_count; i++)
        if (credentials->protocols[i].size == chosen.size &&
            memcmp(credentials->protocols[i].data, chosen.data, chosen.size) == 0)
            return 0;
    return ALERT_NO_ALPN;
}

size_t aq_tls_session_alpn(aq_tls_session *session, uint8_t *out, size_t length)
{
    gnutls_datum_t chosen = {0};

    if (gnutls_alpn_get_selected_protocol(session->native, &chosen) != 0)
        return 0;
    if (chosen.size < length)
        length = chosen.size;
    memcpy(out, chosen.data, length);
    return length;
}

int aq_tls_session_export(aq_tls_session *session, const uint8_t *label, size_t label_length, const uint8_t *context,
                          size_t context_length, uint8_t *out, size_t out_length)
{
    int code;

    /* GnuTLS returns the same code for a label that is too long as for a call before the handshake. */
    if (label_length > EXPORTER_LABEL_MAX)
        return AQ_ERR_TLS;
    code = gnutls_prf_rfc5705(session->native, label_length, (const char *)label, context_length, (const char *)context,
                              out_length, (char *)out);
    if (code == GNUTLS_E_INVALID_REQUEST)
        return AQ_ERR_STATE;
    return code == 0 ? AQ_OK : AQ_ERR_TLS;
}

size_t aq_tls_session_peer_chain(aq_tls_session *session, uint8_t *out, size_t length)
{
    unsigned int count = 0;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(session->native, &count);
    size_t total = 0;

    for (unsigned int i = 0; chain != NULL && i < count; i++) {
        if (total + chain[i].size <= length)
            memcpy(out + total, chain[i].data, chain[i].size);
        total += chain[i].size;
    }
    return total;
}

const char *aq_tls_session_certificate_problem(aq_tls_session *session)
{
    return session->problem;
}

#include "tls.h"

#include "tls_messages.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <gnutls/crypto.h>
#include <gnutls/pkcs12.h>
#include <gnutls/x509.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

/* TLS 1.3 only, as RFC 9001 section 4.2 requires. AES-128-GCM first because it costs least with AES instructions,
 * X25519 first because it is the cheapest group; a server follows the client's order. %PROFILE_MEDIUM: no certificate
 * with less than 112 bits of security is accepted, such as RSA keys below 2048 bits; NORMAL alone accepts 1024.
 * %DISABLE_TLS13_COMPAT_MODE keeps the legacy session id empty (RFC 9001 section 8.4). */
#define PRIORITY                                                                                                       \
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:"                          \
    "-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1:+GROUP-SECP384R1:%PROFILE_MEDIUM:%DISABLE_TLS13_COMPAT_MODE"

#define ALPN_MAX 8        /* GnuTLS silently ignores protocols after the eighth */
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
#define CHAIN_MAX 16                       /* certificates that GnuTLS sorts: its DEFAULT_MAX_VERIFY_DEPTH */
#define INPUT_MAX (16 << 20)               /* bytes of one input: above any real one, within GnuTLS's unsigned int */

struct aq_credentials {
    _Atomic uint32_t references; /* any thread */

    /* Immutable after creation. */
    gnutls_certificate_credentials_t certificates;
    int server;
    int verify;
    int keylog;                         /* file descriptor; -1: no key log */
    gnutls_datum_t protocols[ALPN_MAX]; /* point into alpn */
    unsigned int protocol_count;
    const uint8_t *pins; /* AQ_PIN_LENGTH bytes each, after the list in alpn */
    size_t pin_count;    /* 0: any key is accepted */
    uint8_t alpn[];      /* as in the options */
};

/* [engine] only. */
struct aq_tls_session {
    gnutls_session_t native;
    aq_credentials *credentials; /* one reference */

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

/* ---- credentials -------------------------------------------------------------------------------------------- */

/* Destination of a function's error report. */
typedef struct {
    int64_t *error;
    char *text;
    size_t text_length;
} report;

__attribute__((format(printf, 3, 4))) static int fail(const report *to, int64_t error, const char *format, ...)
{
    va_list arguments;

    *to->error = error;
    va_start(arguments, format);
    vsnprintf(to->text, to->text_length, format, arguments);
    va_end(arguments);
    return -1;
}

static int64_t error_of(int code)
{
    return code == GNUTLS_E_MEMORY_ERROR ? AQ_ERR_MEMORY : AQ_ERR_TLS;
}

static int fail_gnutls(const report *to, int code, const char *what)
{
    return fail(to, error_of(code), "%s: %s", what, gnutls_strerror(code));
}

/* GnuTLS's structure lacks const, but the functions that it is passed to only read. */
static gnutls_datum_t datum(const uint8_t *data, size_t length)
{
    gnutls_datum_t result = {.data = (uint8_t *)(uintptr_t)data, .size = (unsigned int)length};
    return result;
}

static int has_text(const gnutls_datum_t *input, const char *text)
{
    return memmem(input->data, input->size, text, strlen(text)) != NULL;
}

static gnutls_x509_crt_fmt_t format_of(const gnutls_datum_t *input)
{
    return has_text(input, "-----BEGIN ") ? GNUTLS_X509_FMT_PEM : GNUTLS_X509_FMT_DER;
}

#define PEM_CERTIFICATE "-----BEGIN CERTIFICATE-----"
/* Names of contents in error texts. */
#define CONTENT_CERTIFICATE "a certificate"
#define CONTENT_KEY "a private key"
#define CONTENT_ENCRYPTED "an encrypted private key"
#define CONTENT_PKCS12 "PKCS#12"

/* Contents of PEM text, by the label of RFC 7468 section 4 and older ones; the first match counts. */
static const struct {
    const char *mark, *content;
} pem_contents[] = {
    {"-----BEGIN ENCRYPTED PRIVATE KEY-----", CONTENT_ENCRYPTED},
    {"Proc-Type: 4,ENCRYPTED", CONTENT_ENCRYPTED},
    {"-----BEGIN OPENSSH PRIVATE KEY-----", "a private key of OpenSSH"},
    {" PRIVATE KEY-----", CONTENT_KEY},
    {PEM_CERTIFICATE, CONTENT_CERTIFICATE},
    {"-----BEGIN X509 CERTIFICATE-----", CONTENT_CERTIFICATE},
    {"-----BEGIN TRUSTED CERTIFICATE-----", "a certificate in OpenSSL's own form (openssl x509 -in OLD -out NEW)"},
    {" CERTIFICATE REQUEST-----", "a certificate request"},
    {" PUBLIC KEY-----", "a public key"},
    {"-----BEGIN X509 CRL-----", "a revocation list"},
    {"-----BEGIN PKCS7-----", "PKCS#7 (openssl pkcs7 -print_certs -in OLD -out NEW)"},
};

static const char *content_of_der(const gnutls_datum_t *input)
{
    gnutls_x509_crt_t certificate;
    gnutls_x509_privkey_t key;
    gnutls_pkcs12_t bundle;
    const char *content = NULL;
    int code;

    if (gnutls_pkcs12_init(&bundle) == 0) {
        if (gnutls_pkcs12_import(bundle, input, GNUTLS_X509_FMT_DER, 0) == 0)
            content = CONTENT_PKCS12;
        gnutls_pkcs12_deinit(bundle);
    }
    if (content == NULL && gnutls_x509_crt_init(&certificate) == 0) {
        if (gnutls_x509_crt_import(certificate, input, GNUTLS_X509_FMT_DER) == 0)
            content = CONTENT_CERTIFICATE;
        gnutls_x509_crt_deinit(certificate);
    }
    if (content == NULL && gnutls_x509_privkey_init(&key) == 0) {
        code = gnutls_x509_privkey_import2(key, input, GNUTLS_X509_FMT_DER, NULL, 0);
        if (code == 0)
            content = CONTENT_KEY;
        else if (code == GNUTLS_E_DECRYPTION_FAILED)
            content = CONTENT_ENCRYPTED;
        gnutls_x509_privkey_deinit(key);
    }
    return content;
}

/* Returns what PEM text or DER contains, as a literal; NULL: unknown. */
static const char *content_of(const gnutls_datum_t *input)
{
    if (format_of(input) == GNUTLS_X509_FMT_DER)
        return content_of_der(input);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(pem_contents); i++)
        if (has_text(input, pem_contents[i].mark))
            return pem_contents[i].content;
    return NULL;
}

/* Reports what was found in place of certificates. `what` is the name of the input in the text. */
static int fail_certificate(const report *to, int code, const gnutls_datum_t *input, const char *what,
                            const char *expected)
{
    const char *content = NULL;

    /* A key next to certificates does no harm: then the certificates are damaged. */
    if (code != GNUTLS_E_MEMORY_ERROR && !has_text(input, PEM_CERTIFICATE))
        content = content_of(input);
    if (content != NULL && strcmp(content, CONTENT_PKCS12) == 0) {
        return fail(to, AQ_ERR_TLS, "%s: is " CONTENT_PKCS12 "; expected %s: openssl pkcs12 -in OLD -nokeys -out NEW",
                    what, expected);
    }
    if (content != NULL && strcmp(content, CONTENT_CERTIFICATE) != 0)
        return fail(to, AQ_ERR_TLS, "%s: holds %s; expected %s", what, content, expected);
    if (format_of(input) == GNUTLS_X509_FMT_DER) {
        return fail(to, error_of(code), "%s: neither PEM text nor one DER certificate (%s); expected %s", what,
                    gnutls_strerror(code), expected);
    }
    return fail(to, error_of(code), "%s: cannot be used (%s); expected %s", what, gnutls_strerror(code), expected);
}

#define EXPECTED_CHAIN "the server's certificate, then those of its issuers, as PEM text"
#define EXPECTED_KEY "an unencrypted private key, PEM or DER"

static int fail_key(const report *to, int code, const gnutls_datum_t *input)
{
    const char *content = code == GNUTLS_E_MEMORY_ERROR ? NULL : content_of(input);

    if (content != NULL && strcmp(content, CONTENT_PKCS12) == 0) {
        return fail(to, AQ_ERR_TLS,
                    "private key: is " CONTENT_PKCS12 "; expected " EXPECTED_KEY
                    ": openssl pkcs12 -in OLD -nocerts -nodes -out NEW");
    }
    if (code == GNUTLS_E_DECRYPTION_FAILED || (content != NULL && strcmp(content, CONTENT_ENCRYPTED) == 0)) {
        return fail(to, AQ_ERR_TLS,
                    "private key: is encrypted; expected " EXPECTED_KEY ": openssl pkey -in OLD -out NEW");
    }
    if (content != NULL && strcmp(content, CONTENT_KEY) != 0)
        return fail(to, AQ_ERR_TLS, "private key: holds %s; expected " EXPECTED_KEY, content);
    if (format_of(input) == GNUTLS_X509_FMT_DER) {
        return fail(to, error_of(code), "private key: neither PEM text nor DER (%s); expected " EXPECTED_KEY,
                    gnutls_strerror(code));
    }
    return fail(to, error_of(code), "private key: cannot be used (%s); expected " EXPECTED_KEY, gnutls_strerror(code));
}

/* RFC 8446 section 4.2.3: each of these curves has its own signature scheme, other curves have none. GnuTLS loads a key
 * of another curve, but refuses every handshake with it. */
static int check_curve(const report *to, gnutls_x509_privkey_t key)
{
    gnutls_ecc_curve_t curve = GNUTLS_ECC_CURVE_INVALID;
    int code = gnutls_x509_privkey_export_ecc_raw(key, &curve, NULL, NULL, NULL);

    if (code < 0)
        return fail_gnutls(to, code, "private key");
    switch (curve) {
    case GNUTLS_ECC_CURVE_SECP256R1:
    case GNUTLS_ECC_CURVE_SECP384R1:
    case GNUTLS_ECC_CURVE_SECP521R1:
        return 0;
    default:
        return fail(to, AQ_ERR_TLS,
                    "private key: TLS 1.3 has no signatures with keys of the curve %s; expected P-256, P-384 or P-521",
                    gnutls_ecc_curve_get_name(curve));
    }
}

/* The key exists in the caller's memory and in GnuTLS's, which wipes its own; there is no third copy. */
static int load_key(const report *to, const gnutls_datum_t *input, gnutls_x509_privkey_t key)
{
    gnutls_x509_crt_fmt_t format = format_of(input);
    int code = gnutls_x509_privkey_import2(key, input, format, NULL, 0);

    if (code < 0)
        return fail_key(to, code, input);
    switch (gnutls_x509_privkey_get_pk_algorithm(key)) {
    case GNUTLS_PK_RSA:
    case GNUTLS_PK_RSA_PSS:
    case GNUTLS_PK_EDDSA_ED25519:
    case GNUTLS_PK_EDDSA_ED448:
        return 0;
    case GNUTLS_PK_ECDSA:
        return check_curve(to, key);
    default:
        return fail(to, AQ_ERR_TLS, "private key: TLS 1.3 has no signatures with %s keys",
                    gnutls_pk_get_name((gnutls_pk_algorithm_t)gnutls_x509_privkey_get_pk_algorithm(key)));
    }
}

/* Returns the position of the key's certificate in the list as written: 1, 2 ... of *count; 0: not found. */
static unsigned int place_of_key(const gnutls_datum_t *input, gnutls_x509_privkey_t key, unsigned int *count)
{
    uint8_t wanted[AQ_PIN_LENGTH], found[AQ_PIN_LENGTH];
    size_t wanted_size = sizeof(wanted), size;
    gnutls_x509_crt_t *list = NULL;
    unsigned int place = 0;

    *count = 0;
    if (gnutls_x509_privkey_get_key_id(key, GNUTLS_KEYID_USE_SHA256, wanted, &wanted_size) < 0 ||
        gnutls_x509_crt_list_import2(&list, count, input, format_of(input), 0) < 0)
        return 0;
    for (unsigned int i = 0; i < *count; i++) {
        size = sizeof(found);
        if (place == 0 && gnutls_x509_crt_get_key_id(list[i], GNUTLS_KEYID_USE_SHA256, found, &size) == 0 &&
            memcmp(found, wanted, sizeof(found)) == 0)
            place = i + 1;
        gnutls_x509_crt_deinit(list[i]);
    }
    gnutls_free(list);
    return place;
}

static int load_identity(const report *to, const aq_credentials_options *options, aq_credentials *credentials)
{
    gnutls_datum_t chain_input = datum(options->certificate, options->certificate_length);
    gnutls_datum_t key_input = datum(options->private_key, options->private_key_length);
    gnutls_x509_crt_fmt_t format = format_of(&chain_input);
    gnutls_x509_crt_t *chain = NULL;
    gnutls_x509_privkey_t key = NULL;
    unsigned int count = 0, all, place;
    int result = -1, code;

    code = gnutls_x509_crt_list_import2(&chain, &count, &chain_input, format, GNUTLS_X509_CRT_LIST_SORT);
    if (code == GNUTLS_E_UNIMPLEMENTED_FEATURE) {
        return fail(to, AQ_ERR_TLS, "certificate: has more than %d certificates; expected " EXPECTED_CHAIN, CHAIN_MAX);
    }
    if (code < 0)
        return fail_certificate(to, code, &chain_input, "certificate", EXPECTED_CHAIN);
    code = gnutls_x509_privkey_init(&key);
    if (code < 0) {
        fail_gnutls(to, code, "private key");
        goto free_chain;
    }
    if (load_key(to, &key_input, key) != 0)
        goto free_key;
    /* Compares the public keys of the two. */
    code = gnutls_certificate_set_x509_key(credentials->certificates, chain, (int)count, key);
    if (code == GNUTLS_E_CERTIFICATE_KEY_MISMATCH) {
        place = place_of_key(&chain_input, key, &all);
        if (place > 1) {
            fail(
                to, AQ_ERR_TLS,
                "certificate: in the wrong order: that of the private key is number %u of %u; expected " EXPECTED_CHAIN,
                place, all);
        } else {
            fail(to, AQ_ERR_TLS, "private key: does not belong to the certificate; expected its key");
        }
    } else if (code < 0) {
        fail_gnutls(to, code, "certificate");
    } else {
        result = 0;
    }
free_key:
    gnutls_x509_privkey_deinit(key);
free_chain:
    for (unsigned int i = 0; i < count; i++)
        gnutls_x509_crt_deinit(chain[i]);
    gnutls_free(chain);
    return result;
}

static int load_trust(const report *to, const aq_credentials_options *options, aq_credentials *credentials)
{
    const char *why = "none was given, and the system's are not trusted";
    int from_system = 0, given = 0;

    if (options->system_trust) {
        from_system = gnutls_certificate_set_x509_system_trust(credentials->certificates);
        if (from_system == GNUTLS_E_MEMORY_ERROR)
            return fail_gnutls(to, from_system, "the system's certificate authorities");
        if (from_system <= 0) {
            why = from_system == 0 ? "the system has none" : gnutls_strerror(from_system);
            from_system = 0;
        }
    }
    if (options->trust_length > 0) {
        gnutls_datum_t input = datum(options->trust, options->trust_length);
        given = gnutls_certificate_set_x509_trust_mem(credentials->certificates, &input, format_of(&input));
        if (given <= 0) {
            return fail_certificate(to, given == 0 ? GNUTLS_E_NO_CERTIFICATE_FOUND : given, &input,
                                    "certificate authorities", "certificates as PEM text, or one DER certificate");
        }
    }
    if (from_system + given == 0)
        return fail(to, AQ_ERR_TLS, "no certificate authority to verify the server with: %s", why);
    snprintf(to->text, to->text_length, "certificate authorities: %d from the system, %d given", from_system, given);
    return 0;
}

static int load_alpn(const report *to, const aq_credentials_options *options, aq_credentials *credentials)
{
    gnutls_session_t trial = NULL;
    size_t at = 0;
    int code;

    if (options->alpn_length == 0)
        return fail(to, AQ_ERR_INVALID, "ALPN: QUIC needs at least one protocol (RFC 9001 section 8.1)");
    memcpy(credentials->alpn, options->alpn, options->alpn_length);
    while (at < options->alpn_length) {
        size_t length = credentials->alpn[at++];
        if (length == 0 || length > options->alpn_length - at)
            return fail(to, AQ_ERR_INVALID, "ALPN: protocol %u has an invalid length", credentials->protocol_count + 1);
        if (credentials->protocol_count == ALPN_MAX)
            return fail(to, AQ_ERR_INVALID, "ALPN: more than %d protocols", ALPN_MAX);
        credentials->protocols[credentials->protocol_count++] = datum(credentials->alpn + at, length);
        at += length;
    }
    /* GnuTLS has its own limit for the length of a name, 31 bytes in 3.7. An error now is better than one at the first
     * connection. */
    code = gnutls_init(&trial, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL);
    if (code < 0)
        return fail_gnutls(to, code, "ALPN");
    code = gnutls_alpn_set_protocols(trial, credentials->protocols, credentials->protocol_count, 0);
    gnutls_deinit(trial);
    if (code < 0)
        return fail(to, AQ_ERR_INVALID, "ALPN: a protocol's name is too long for GnuTLS");
    return 0;
}

static int check_options(const report *to, const aq_credentials_options *options)
{
    if (options->certificate_length > INPUT_MAX || options->private_key_length > INPUT_MAX ||
        options->trust_length > INPUT_MAX || options->alpn_length > UINT16_MAX || options->pins_length > INPUT_MAX)
        return fail(to, AQ_ERR_INVALID, "a certificate, key, ALPN list or list of pins is too long");
    if (options->pins_length % AQ_PIN_LENGTH != 0)
        return fail(to, AQ_ERR_INVALID, "pins: expected %d bytes each", AQ_PIN_LENGTH);
    if (options->server && options->pins_length > 0)
        return fail(to, AQ_ERR_INVALID, "pins: not allowed for a server, as clients present no certificate");
    if (options->server && options->certificate_length == 0)
        return fail(to, AQ_ERR_INVALID, "certificate: required for a server");
    if (options->server && options->private_key_length == 0)
        return fail(to, AQ_ERR_INVALID, "private key: required for a server");
    if (!options->server && (options->certificate_length > 0 || options->private_key_length > 0))
        return fail(to, AQ_ERR_INVALID, "certificate: not allowed for a client, which authenticates with a token");
    return 0;
}

static void load_pins(const aq_credentials_options *options, aq_credentials *credentials)
{
    uint8_t *copy = credentials->alpn + options->alpn_length;

    if (options->pins_length > 0)
        memcpy(copy, options->pins, options->pins_length);
    credentials->pins = copy;
    credentials->pin_count = options->pins_length / AQ_PIN_LENGTH;
}

static void credentials_delete(aq_credentials *credentials)
{
    if (credentials->certificates != NULL)
        gnutls_certificate_free_credentials(credentials->certificates);
    if (credentials->keylog >= 0)
        close(credentials->keylog);
    free(credentials);
}

aq_credentials *aq_tls_credentials_new(const aq_credentials_options *options, int64_t *error, char *text,
                                       size_t text_length)
{
    const report to = {.error = error, .text = text, .text_length = text_length};
    aq_credentials *credentials;
    int code;

    *error = AQ_OK;
    snprintf(text, text_length, "%s", "");
    if (check_options(&to, options) != 0)
        return NULL;
    credentials = calloc(1, sizeof(*credentials) + options->alpn_length + options->pins_length);
    if (credentials == NULL) {
        fail(&to, AQ_ERR_MEMORY, "out of memory");
        return NULL;
    }
    atomic_init(&credentials->references, 1);
    credentials->server = options->server != 0;
    credentials->verify = !options->server && options->verify;
    credentials->keylog = -1;
    code = gnutls_certificate_allocate_credentials(&credentials->certificates);
    if (code < 0) {
        credentials->certificates = NULL;
        fail_gnutls(&to, code, "credentials");
        goto failed;
    }
    if (load_alpn(&to, options, credentials) != 0)
        goto failed;
    load_pins(options, credentials);
    if (credentials->server && load_identity(&to, options, credentials) != 0)
        goto failed;
    if (credentials->verify && load_trust(&to, options, credentials) != 0)
        goto failed;
    if (options->keylog_path != NULL) {
        /* O_NONBLOCK: a named pipe without a reader is an error, and a full one loses lines. Without this flag, either
         * would block the program. */
        credentials->keylog = open(options->keylog_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
        if (credentials->keylog < 0) {
            fail(&to, AQ_ERR_SYSTEM - errno, "key log %s: %s", options->keylog_path, strerror(errno));
            goto failed;
        }
    }
    return credentials;
failed:
    credentials_delete(credentials);
    return NULL;
}

void aq_tls_credentials_ref(aq_credentials *credentials)
{
    /* The caller holds a reference, so no ordering is needed. */
    atomic_fetch_add_explicit(&credentials->references, 1, memory_order_relaxed);
}

void aq_tls_credentials_unref(aq_credentials *credentials)
{
    /* Release: this thread's accesses come before; acquire: the last thread sees the accesses of all others. */
    if (credentials != NULL && atomic_fetch_sub_explicit(&credentials->references, 1, memory_order_acq_rel) == 1)
        credentials_delete(credentials);
}

/* Computes the pin of RFC 7469 section 2.4. Returns GnuTLS's code. */
static int pin_of(gnutls_x509_crt_t certificate, uint8_t *pin)
{
    size_t size = AQ_PIN_LENGTH;

    return gnutls_x509_crt_get_key_id(certificate, GNUTLS_KEYID_USE_SHA256, pin, &size);
}

int64_t aq_tls_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out)
{
    gnutls_datum_t input = datum(certificate, length);
    gnutls_x509_crt_t *chain = NULL;
    unsigned int count = 0;
    int code;

    if (length == 0 || length > INPUT_MAX)
        return AQ_ERR_INVALID;
    code = gnutls_x509_crt_list_import2(&chain, &count, &input, format_of(&input), 0);
    if (code < 0)
        return error_of(code);
    code = count == 0 ? GNUTLS_E_NO_CERTIFICATE_FOUND : pin_of(chain[0], out);
    for (unsigned int i = 0; i < count; i++)
        gnutls_x509_crt_deinit(chain[i]);
    gnutls_free(chain);
    return code == 0 ? AQ_OK : error_of(code);
}

/* Returns 1 if the subjectAltName has a DNS name or an IP address, or one of the kind `wanted` unless that is 0; 0 if
 * not; or GnuTLS's code. */
static int has_name(gnutls_x509_crt_t certificate, int wanted)
{
    for (unsigned int i = 0;; i++) {
        unsigned int kind = 0;
        size_t size = 0;
        /* Only the kind is queried, so there is never room for the name. */
        int code = gnutls_x509_crt_get_subject_alt_name2(certificate, i, NULL, &size, &kind, NULL);
        if (code < 0 && code != GNUTLS_E_SHORT_MEMORY_BUFFER)
            return code == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE ? 0 : code;
        if (wanted == 0 ? kind == GNUTLS_SAN_DNSNAME || kind == GNUTLS_SAN_IPADDRESS : (int)kind == wanted)
            return 1;
    }
}

static void read_certificate(gnutls_x509_crt_t certificate, aq_certificate *out)
{
    unsigned int usage = 0, critical, bits = 0;
    int algorithm = gnutls_x509_crt_get_pk_algorithm(certificate, &bits);
    int signature = gnutls_x509_crt_get_signature_algorithm(certificate);
    int code = gnutls_x509_crt_get_key_usage(certificate, &usage, &critical);

    out->not_before = (int64_t)gnutls_x509_crt_get_activation_time(certificate);
    out->not_after = (int64_t)gnutls_x509_crt_get_expiration_time(certificate);
    out->names = has_name(certificate, 0) != 0;
    out->signs = code < 0 || (usage & GNUTLS_KEY_DIGITAL_SIGNATURE) != 0;
    out->serves = gnutls_x509_crt_check_key_purpose(certificate, GNUTLS_KP_TLS_WWW_SERVER, 0) != 0;
    out->strong = algorithm >= 0 && gnutls_pk_bits_to_sec_param((gnutls_pk_algorithm_t)algorithm, bits) >=
                                        GNUTLS_SEC_PARAM_MEDIUM; /* as %PROFILE_MEDIUM requires */
    /* A self-issued certificate is trusted directly: its signature is never verified. */
    out->sealed = gnutls_x509_crt_check_issuer(certificate, certificate) != 0 ||
                  (signature >= 0 &&
                   gnutls_sign_is_secure2((gnutls_sign_algorithm_t)signature, GNUTLS_SIGN_FLAG_SECURE_FOR_CERTS) != 0);
}

int64_t aq_tls_certificates_read(const uint8_t *data, size_t length, aq_certificate *out, uint32_t max, char *text,
                                 size_t text_length)
{
    int64_t error = AQ_OK;
    const report to = {.error = &error, .text = text, .text_length = text_length};
    gnutls_datum_t input = datum(data, length);
    gnutls_x509_crt_t *list = NULL;
    unsigned int count = 0;
    int code;

    snprintf(text, text_length, "%s", "");
    if (length == 0 || length > INPUT_MAX)
        return AQ_ERR_INVALID;
    code = gnutls_x509_crt_list_import2(&list, &count, &input, format_of(&input), 0);
    if (code < 0 || count == 0) {
        fail_certificate(&to, code < 0 ? code : GNUTLS_E_NO_CERTIFICATE_FOUND, &input, "certificate",
                         "certificates as PEM text, or one DER certificate");
        return error;
    }
    for (unsigned int i = 0; i < count; i++) {
        if (i < max)
            read_certificate(list[i], &out[i]);
        gnutls_x509_crt_deinit(list[i]);
    }
    gnutls_free(list);
    return (int64_t)count;
}

/* ---- callbacks from GnuTLS during a handshake --------------------------------------------------------------- */

/* ngtcp2 needs gnutls_session_get_ptr() for its ngtcp2_crypto_conn_ref. The pointer of the resumption database is free:
 * no session is ever resumed. */
static aq_tls_session *session_of(gnutls_session_t native)
{
    return gnutls_db_get_ptr(native);
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
    code = has_name(certificate, wanted);
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
    code = pin_of(certificate, pin);
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
    ngtcp2_crypto_conn_ref *reference = gnutls_session_get_ptr(native);
    ngtcp2_conn *quic = reference->get_conn(reference);
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
static int configure(aq_tls_session *session, ngtcp2_crypto_conn_ref *reference)
{
    const aq_credentials *credentials = session->credentials;
    int code = priority_code;

    gnutls_session_set_ptr(session->native, reference);
    gnutls_db_set_ptr(session->native, session);
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

aq_tls_session *aq_tls_session_new(aq_credentials *credentials, ngtcp2_crypto_conn_ref *reference,
                                   const char *server_name, int send_sni, int64_t *error)
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
        *error = error_of(code);
        goto failed;
    }
    code = configure(session, reference);
    if (code == 0 && !credentials->server && send_sni && session->name[0] != 0 && session->ip_length == 0)
        code = gnutls_server_name_set(session->native, GNUTLS_NAME_DNS, session->name, strlen(session->name));
    if (code < 0) {
        *error = error_of(code);
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

void *aq_tls_session_native(aq_tls_session *session)
{
    return session->native;
}

int aq_tls_session_receive(aq_tls_session *session, ngtcp2_conn *quic, ngtcp2_encryption_level level, uint64_t offset,
                           const uint8_t *data, size_t length)
{
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

const char *aq_tls_session_certificate_problem(aq_tls_session *session)
{
    return session->problem;
}

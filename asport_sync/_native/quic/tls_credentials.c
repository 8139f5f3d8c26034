/* Credentials: certificates, keys, trust, pins and ALPN as GnuTLS wants them, and error texts that say what is wrong.
 */
#include "quic/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <gnutls/pkcs12.h>

#define CHAIN_MAX 16         /* certificates that GnuTLS sorts: its DEFAULT_MAX_VERIFY_DEPTH */
#define INPUT_MAX (16 << 20) /* bytes of one input: above any real one, within GnuTLS's unsigned int */

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

static int fail_gnutls(const report *to, int code, const char *what)
{
    return fail(to, aq_tls_error_of(code), "%s: %s", what, gnutls_strerror(code));
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
        return fail(to, aq_tls_error_of(code), "%s: neither PEM text nor one DER certificate (%s); expected %s", what,
                    gnutls_strerror(code), expected);
    }
    return fail(to, aq_tls_error_of(code), "%s: cannot be used (%s); expected %s", what, gnutls_strerror(code),
                expected);
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
        return fail(to, aq_tls_error_of(code), "private key: neither PEM text nor DER (%s); expected " EXPECTED_KEY,
                    gnutls_strerror(code));
    }
    return fail(to, aq_tls_error_of(code), "private key: cannot be used (%s); expected " EXPECTED_KEY,
                gnutls_strerror(code));
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
    gnutls_datum_t chain_input = aq_tls_datum(options->certificate, options->certificate_length);
    gnutls_datum_t key_input = aq_tls_datum(options->private_key, options->private_key_length);
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
    gnutls_datum_t input = aq_tls_datum(options->trust, options->trust_length);
    int count;

    if (options->system_trust) {
        count = gnutls_certificate_set_x509_system_trust(credentials->certificates);
        if (count == GNUTLS_E_MEMORY_ERROR)
            return fail_gnutls(to, count, "the system's certificate authorities");
        if (count <= 0) {
            return fail(to, AQ_ERR_NO_TRUST, "GnuTLS's default trust store: %s",
                        count == 0 ? "no certificate authority" : gnutls_strerror(count));
        }
    }
    if (options->trust_length > 0) {
        count = gnutls_certificate_set_x509_trust_mem(credentials->certificates, &input, format_of(&input));
        if (count <= 0) {
            return fail_certificate(to, count == 0 ? GNUTLS_E_NO_CERTIFICATE_FOUND : count, &input,
                                    "certificate authorities", "certificates as PEM text, or one DER certificate");
        }
    } else if (!options->system_trust) {
        return fail(to, AQ_ERR_TLS, "no certificate authority to verify the server with");
    }
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
        if (credentials->protocol_count == AQ_TLS_ALPN_MAX)
            return fail(to, AQ_ERR_INVALID, "ALPN: more than %d protocols", AQ_TLS_ALPN_MAX);
        credentials->protocols[credentials->protocol_count++] = aq_tls_datum(credentials->alpn + at, length);
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

int aq_tls_pin_of(gnutls_x509_crt_t certificate, uint8_t *pin)
{
    size_t size = AQ_PIN_LENGTH;

    return gnutls_x509_crt_get_key_id(certificate, GNUTLS_KEYID_USE_SHA256, pin, &size);
}

int64_t aq_tls_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out)
{
    gnutls_datum_t input = aq_tls_datum(certificate, length);
    gnutls_x509_crt_t *chain = NULL;
    unsigned int count = 0;
    int code;

    if (length == 0 || length > INPUT_MAX)
        return AQ_ERR_INVALID;
    code = gnutls_x509_crt_list_import2(&chain, &count, &input, format_of(&input), 0);
    if (code < 0)
        return aq_tls_error_of(code);
    code = count == 0 ? GNUTLS_E_NO_CERTIFICATE_FOUND : aq_tls_pin_of(chain[0], out);
    for (unsigned int i = 0; i < count; i++)
        gnutls_x509_crt_deinit(chain[i]);
    gnutls_free(chain);
    return code == 0 ? AQ_OK : aq_tls_error_of(code);
}

int aq_tls_has_name(gnutls_x509_crt_t certificate, int wanted)
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
    out->names = aq_tls_has_name(certificate, 0) != 0;
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
    gnutls_datum_t input = aq_tls_datum(data, length);
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

/* Credentials for the engine target that runs against GnuTLS: a self-signed certificate, made when the program starts.
 */
#include "sim.h"

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

aq_id fuzz_credentials(aq_engine *engine, int is_server);
void fuzz_identity(gnutls_certificate_credentials_t credentials, int is_server);

static gnutls_datum_t certificate, private_key;

static void make(void)
{
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t crt;
    time_t now = time(NULL);

    MUST(gnutls_x509_privkey_init(&key) == 0 && gnutls_x509_crt_init(&crt) == 0);
    MUST(gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0) == 0);
    MUST(gnutls_x509_crt_set_key(crt, key) == 0 && gnutls_x509_crt_set_version(crt, 3) == 0);
    MUST(gnutls_x509_crt_set_serial(crt, "\1", 1) == 0);
    MUST(gnutls_x509_crt_set_dn(crt, "CN=localhost", NULL) == 0);
    MUST(gnutls_x509_crt_set_activation_time(crt, now - 3600) == 0);
    MUST(gnutls_x509_crt_set_expiration_time(crt, now + 7 * 24 * 3600) == 0);
    MUST(gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, "localhost", 9, GNUTLS_FSAN_SET) == 0);
    MUST(gnutls_x509_crt_set_basic_constraints(crt, 1, -1) == 0);
    MUST(gnutls_x509_crt_sign2(crt, crt, key, GNUTLS_DIG_SHA256, 0) == 0);
    MUST(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &certificate) == 0);
    MUST(gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &private_key) == 0);
    gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(key);
}

aq_id fuzz_credentials(aq_engine *engine, int is_server)
{
    aq_credentials_options options = {
        .server = is_server, .verify = !is_server, .alpn = (const uint8_t *)"\6asport", .alpn_length = 7};
    char text[256];

    if (certificate.data == NULL)
        make();
    if (is_server) {
        options.certificate = certificate.data;
        options.certificate_length = certificate.size;
        options.private_key = private_key.data;
        options.private_key_length = private_key.size;
    } else {
        options.trust = certificate.data;
        options.trust_length = certificate.size;
    }
    return aq_credentials_new(engine, &options, text, sizeof(text));
}

/* The same for a peer that is not the engine's: a server has the certificate, a client has none. */
void fuzz_identity(gnutls_certificate_credentials_t credentials, int is_server)
{
    if (certificate.data == NULL)
        make();
    if (is_server)
        MUST(gnutls_certificate_set_x509_key_mem(credentials, &certificate, &private_key, GNUTLS_X509_FMT_PEM) == 0);
}

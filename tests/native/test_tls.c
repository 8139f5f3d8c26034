/* tls.c and its parts: credentials of every kind and with every fault, and handshakes between two ngtcp2 connections
 * that hand each other their packets in memory. The only argument is the directory that tls_material.py has filled. */
#include "quic/tls.h"

#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/crypto.h>
#include <netinet/in.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>
#include <stdlib.h>
#include <sys/stat.h>

#define WATCHDOG_SECONDS 60
#define TEXT_LENGTH 400
#define FILE_MAX 65536
#define PACKET_MAX 1500
#define ROUNDS 20 /* exchanges of packets; a handshake takes three */
#define ALERT_BAD_CERTIFICATE 42
#define ALERT_UNEXPECTED_MESSAGE 10
#define CRYPTO_ERROR 0x100 /* what QUIC adds to a TLS alert, RFC 9001 section 4.8 */

static const char *material; /* directory of the files */

/* ---- credentials -------------------------------------------------------------------------------------------- */

typedef struct {
    uint8_t data[FILE_MAX];
    size_t length;
} content;

static void path_of(char *path, size_t length, const char *name)
{
    CHECK(snprintf(path, length, "%s/%s", material, name) < (int)length);
}

/* name NULL: nothing. */
static void load(content *into, const char *name)
{
    char path[512];
    FILE *file;

    into->length = 0;
    if (name == NULL)
        return;
    path_of(path, sizeof(path), name);
    file = fopen(path, "rb");
    CHECK(file != NULL);
    into->length = fread(into->data, 1, sizeof(into->data), file);
    CHECK(into->length > 0 && into->length < sizeof(into->data));
    fclose(file);
}

static const uint8_t asport[] = "\x06"
                                "asport";

/* What the next credentials get besides files. */
static struct {
    const uint8_t *alpn;
    size_t alpn_length;
    const char *keylog;
    int32_t system_trust;
    const char *pins[2]; /* files */
} extra;

static void extra_reset(void)
{
    memset(&extra, 0, sizeof(extra));
    extra.alpn = asport;
    extra.alpn_length = sizeof(asport) - 1;
}

static int64_t last_error;
static char last_text[TEXT_LENGTH];

static aq_credentials *server_credentials(const char *certificate, const char *key)
{
    static content files[2];
    aq_credentials_options options = {.server = 1};

    load(&files[0], certificate);
    load(&files[1], key);
    options.certificate = files[0].data;
    options.certificate_length = files[0].length;
    options.private_key = files[1].data;
    options.private_key_length = files[1].length;
    options.alpn = extra.alpn;
    options.alpn_length = extra.alpn_length;
    options.keylog_path = extra.keylog;
    memset(last_text, 'x', sizeof(last_text));
    return aq_tls_credentials_new(&options, &last_error, last_text, sizeof(last_text));
}

/* trust "": no verification. */
static aq_credentials *client_credentials(const char *trust)
{
    static content file, pin;
    uint8_t pins[2 * AQ_PIN_LENGTH];
    aq_credentials_options options = {.verify = trust == NULL || trust[0] != 0, .pins = pins};

    load(&file, options.verify ? trust : NULL);
    options.trust = file.data;
    options.trust_length = file.length;
    options.alpn = extra.alpn;
    options.alpn_length = extra.alpn_length;
    options.keylog_path = extra.keylog;
    options.system_trust = extra.system_trust;
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(extra.pins) && extra.pins[i] != NULL; i++) {
        load(&pin, extra.pins[i]);
        CHECK_INT(pin.length, AQ_PIN_LENGTH);
        memcpy(pins + options.pins_length, pin.data, AQ_PIN_LENGTH);
        options.pins_length += AQ_PIN_LENGTH;
    }
    memset(last_text, 'x', sizeof(last_text));
    return aq_tls_credentials_new(&options, &last_error, last_text, sizeof(last_text));
}

static void expect_text(const char *part)
{
    if (strstr(last_text, part) == NULL)
        fprintf(stderr, "text is \"%s\", expected something with \"%s\"\n", last_text, part);
    CHECK(strstr(last_text, part) != NULL);
}

static void expect_refused(aq_credentials *credentials, int64_t error, const char *part)
{
    CHECK(credentials == NULL);
    CHECK_INT(last_error, error);
    expect_text(part);
}

static void expect_accepted(aq_credentials *credentials)
{
    if (credentials == NULL)
        fprintf(stderr, "refused: %s\n", last_text);
    CHECK(credentials != NULL);
    CHECK_INT(last_error, AQ_OK);
    aq_tls_credentials_unref(credentials);
}

static void test_server_credentials(void)
{
    static const char *const good[][2] = {
        {"chain.pem", "key.pem"},         {"chain.pem", "key.der"},
        {"chain.pem", "key-sec1.pem"},    {"chain.pem", "key-sec1.der"},
        {"chain.pem", "both.pem"},        {"both.pem", "both.pem"},
        {"both.pem", "key.pem"},          {"shuffled.pem", "key.pem"},
        {"direct.der", "key.der"},        {"leaf.pem", "key-parameters.pem"},
        {"rsa.pem", "rsa-key.pem"},       {"rsa.pem", "rsa-key-pkcs1.pem"},
        {"rsa.pem", "rsa-key-pkcs1.der"}, {"ed.pem", "ed-key.pem"},
    };
    static const struct {
        const char *certificate, *key;
        int64_t error;
        const char *text;
    } bad[] = {
        {NULL, "key.pem", AQ_ERR_INVALID, "certificate: required for a server"},
        {"chain.pem", NULL, AQ_ERR_INVALID, "private key: required for a server"},
        {"key.pem", "key.pem", AQ_ERR_TLS, "certificate: holds a private key; expected the server's certificate"},
        {"key-locked.pem", "key.pem", AQ_ERR_TLS, "certificate: holds an encrypted private key"},
        {"key.der", "key.pem", AQ_ERR_TLS, "certificate: holds a private key"},
        {"bundle.p12", "key.pem", AQ_ERR_TLS, "certificate: is PKCS#12; expected the server's"},
        {"request.pem", "key.pem", AQ_ERR_TLS, "certificate: holds a certificate request"},
        {"public.pem", "key.pem", AQ_ERR_TLS, "certificate: holds a public key"},
        {"cut.pem", "key.pem", AQ_ERR_TLS, "certificate: cannot be used ("},
        {"cut-and-key.pem", "key.pem", AQ_ERR_TLS, "certificate: cannot be used ("},
        {"cut.der", "key.pem", AQ_ERR_TLS, "certificate: neither PEM text nor one DER certificate"},
        {"junk", "key.pem", AQ_ERR_TLS, "certificate: neither PEM text nor one DER certificate"},
        {"wrong-order.pem", "key.pem", AQ_ERR_TLS,
         "certificate: in the wrong order: that of the private key is number 3 of 3; expected the server's"},
        {"chain.pem", "chain.pem", AQ_ERR_TLS, "private key: holds a certificate; expected an unencrypted private key"},
        {"chain.pem", "direct.der", AQ_ERR_TLS, "private key: holds a certificate"},
        {"chain.pem", "public.pem", AQ_ERR_TLS, "private key: holds a public key"},
        {"chain.pem", "junk", AQ_ERR_TLS, "private key: neither PEM text nor DER"},
        {"chain.pem", "cut-key.pem", AQ_ERR_TLS, "private key: cannot be used ("},
        {"chain.pem", "key-locked.pem", AQ_ERR_TLS, "private key: is encrypted; expected an unencrypted private key"},
        {"chain.pem", "key-locked.der", AQ_ERR_TLS, "private key: is encrypted; expected"},
        {"chain.pem", "key-locked-sec1.pem", AQ_ERR_TLS, "openssl pkey -in OLD -out NEW"},
        {"chain.pem", "bundle.p12", AQ_ERR_TLS, "private key: is PKCS#12; expected an unencrypted private key"},
        {"chain.pem", "rsa-key.pem", AQ_ERR_TLS, "private key: does not belong to the certificate"},
        {"rsa.pem", "key.pem", AQ_ERR_TLS, "private key: does not belong to the certificate"},
        {"root.pem", "key.pem", AQ_ERR_TLS, "private key: does not belong to the certificate"},
        {"dsa.pem", "dsa-key.pem", AQ_ERR_TLS, "private key: TLS 1.3 has no signatures with DSA keys"},
    };

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(good); i++) {
        expect_accepted(server_credentials(good[i][0], good[i][1]));
        CHECK_INT(strlen(last_text), 0);
    }
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(bad); i++)
        expect_refused(server_credentials(bad[i].certificate, bad[i].key), bad[i].error, bad[i].text);
}

static void test_client_credentials(void)
{
    aq_credentials_options options = {0};
    aq_credentials *made;

    expect_accepted(client_credentials("root.pem"));
    CHECK_INT(strlen(last_text), 0);
    expect_accepted(client_credentials("root.der"));
    expect_accepted(client_credentials("authorities.pem"));
    expect_refused(client_credentials(NULL), AQ_ERR_TLS, "no certificate authority to verify the server with");
    expect_refused(client_credentials("key.pem"), AQ_ERR_TLS, "certificate authorities: holds a private key; expected");
    expect_refused(client_credentials("junk"), AQ_ERR_TLS, "certificate authorities: neither PEM text nor one DER");
    expect_refused(client_credentials("cut.pem"), AQ_ERR_TLS, "certificate authorities: ");
    expect_accepted(client_credentials(""));
    CHECK_INT(strlen(last_text), 0);
    /* GnuTLS's default store, where there is one: given certificates do not replace it. */
    extra.system_trust = 1;
    made = client_credentials(NULL);
    if (made != NULL) {
        expect_accepted(made);
        expect_accepted(client_credentials("root.pem"));
    } else {
        expect_refused(NULL, AQ_ERR_NO_TRUST, "GnuTLS's default trust store: ");
        expect_refused(client_credentials("root.pem"), AQ_ERR_NO_TRUST, "GnuTLS's default trust store: ");
    }
    /* A client has no certificate. */
    options.certificate = options.alpn = asport;
    options.certificate_length = options.alpn_length = sizeof(asport) - 1;
    CHECK(aq_tls_credentials_new(&options, &last_error, last_text, sizeof(last_text)) == NULL);
    CHECK_INT(last_error, AQ_ERR_INVALID);
    /* A caller without room for a text still gets the error. */
    CHECK(aq_tls_credentials_new(&options, &last_error, NULL, 0) == NULL);
    CHECK_INT(last_error, AQ_ERR_INVALID);
}

static void test_alpn_list(void)
{
    static const struct {
        const char *list;
        size_t length;
        const char *text; /* NULL: good */
    } lists[] = {
        {"", 0, "at least one protocol"},
        {"\0", 1, "protocol 1 has an invalid length"},
        {"\1", 1, "protocol 1 has an invalid length"},
        {"\1a\3bc", 5, "protocol 2 has an invalid length"},
        {"\1a\0", 3, "protocol 2 has an invalid length"},
        {"\1a\1b\1c\1d\1e\1f\1g\1h", 16, NULL},
        {"\37abcdefghijklmnopqrstuvwxyz01234", 32, NULL},
        {"\1a\1b\1c\1d\1e\1f\1g\1h\1i", 18, "more than 8 protocols"},
    };
    aq_credentials *credentials;
    uint8_t longest[256];

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(lists); i++) {
        extra.alpn = (const uint8_t *)lists[i].list;
        extra.alpn_length = lists[i].length;
        if (lists[i].text == NULL)
            expect_accepted(client_credentials(""));
        else
            expect_refused(client_credentials(""), AQ_ERR_INVALID, lists[i].text);
    }
    /* TLS allows 255 bytes; what GnuTLS doesn't take is refused here and not at the first connection. */
    memset(longest, 'a', sizeof(longest));
    longest[0] = 255;
    extra.alpn = longest;
    extra.alpn_length = sizeof(longest);
    credentials = client_credentials("");
    if (credentials != NULL)
        expect_accepted(credentials);
    else
        expect_refused(credentials, AQ_ERR_INVALID, "too long for GnuTLS");
}

static void test_keylog_path(void)
{
    extra.keylog = "/nonexistent/directory/keys";
    expect_refused(client_credentials(""), AQ_ERR_SYSTEM - ENOENT, "/nonexistent/directory/keys");
}

/* ---- a connection in memory --------------------------------------------------------------------------------- */

typedef struct {
    ngtcp2_conn *quic;
    ngtcp2_crypto_conn_ref reference; /* of a peer of another make */
    aq_tls_session *tls;              /* NULL: a peer of another make */
    int unfiltered;                   /* every message reaches GnuTLS, as with a peer of another make */
    gnutls_session_t native;          /* known from the start of the connection on */
    int completed;                    /* both handshake and aq_tls_session_check() */
    int error;                        /* what ngtcp2 answered to a packet, 0 so far */
    int alert;                        /* sent to the peer; 0: none */
    uint64_t peer_close;              /* error code in the peer's CONNECTION_CLOSE */
} side;

typedef struct {
    side client, server;
    ngtcp2_tstamp now;
    ngtcp2_path client_path, server_path;
    struct sockaddr_in client_address, server_address;
} pair;

static ngtcp2_conn *quic_of(ngtcp2_crypto_conn_ref *reference)
{
    return ((side *)reference->user_data)->quic;
}

static void random_bytes(uint8_t *out, size_t length, const ngtcp2_rand_ctx *context)
{
    (void)context;
    CHECK_INT(gnutls_rnd(GNUTLS_RND_NONCE, out, length), 0);
}

static int new_connection_id(ngtcp2_conn *quic, ngtcp2_cid *id, uint8_t *token, size_t length, void *user_data)
{
    (void)quic;
    (void)user_data;
    id->datalen = length;
    random_bytes(id->data, length, NULL);
    random_bytes(token, NGTCP2_STATELESS_RESET_TOKENLEN, NULL);
    return 0;
}

/* A side of another make has GnuTLS and ngtcp2 alone. */
static int on_crypto_data(ngtcp2_conn *quic, ngtcp2_encryption_level level, uint64_t offset, const uint8_t *data,
                          size_t length, void *user_data)
{
    const side *one = user_data;
    if (one->tls != NULL && !one->unfiltered)
        return aq_tls_session_receive(one->tls, level, offset, data, length);
    return ngtcp2_crypto_recv_crypto_data_cb(quic, level, offset, data, length, user_data);
}

static void set_callbacks(ngtcp2_callbacks *callbacks, int server)
{
    memset(callbacks, 0, sizeof(*callbacks));
    aq_handshake_gnutls.set_callbacks(callbacks, server);
    callbacks->recv_crypto_data = on_crypto_data;
    callbacks->get_new_connection_id = new_connection_id;
}

/* id: the server's, the destination that the client began with. */
static void start_quic(pair *both, side *one, int server, const ngtcp2_cid *destination, const ngtcp2_cid *id)
{
    ngtcp2_callbacks callbacks;
    ngtcp2_settings settings;
    ngtcp2_transport_params params;
    ngtcp2_cid source = {.datalen = 8};

    set_callbacks(&callbacks, server);
    ngtcp2_settings_default(&settings);
    settings.initial_ts = both->now;
    ngtcp2_transport_params_default(&params);
    params.initial_max_data = params.initial_max_stream_data_uni = 65536;
    params.initial_max_streams_uni = 4;
    random_bytes(source.data, source.datalen, NULL);
    if (server) {
        params.original_dcid = *id;
        params.original_dcid_present = 1;
        CHECK_INT(ngtcp2_conn_server_new(&one->quic, destination, &source, &both->server_path, NGTCP2_PROTO_VER_V1,
                                         &callbacks, &settings, &params, NULL, one),
                  0);
    } else {
        CHECK_INT(ngtcp2_conn_client_new(&one->quic, destination, &source, &both->client_path, NGTCP2_PROTO_VER_V1,
                                         &callbacks, &settings, &params, NULL, one),
                  0);
    }
    if (one->tls == NULL)
        ngtcp2_conn_set_tls_native_handle(one->quic, one->native);
    else
        aq_tls_session_attach(one->tls, one->quic);
    one->native = ngtcp2_conn_get_tls_native_handle(one->quic);
}

/* A peer of another make: its own certificates, no ALPN, tickets on the server. */
typedef struct {
    gnutls_certificate_credentials_t certificates;
    gnutls_datum_t ticket_key;
} foreign;

static void foreign_init(foreign *peer)
{
    char certificate[512], key[512];

    path_of(certificate, sizeof(certificate), "chain.pem");
    path_of(key, sizeof(key), "key.pem");
    CHECK_INT(gnutls_certificate_allocate_credentials(&peer->certificates), 0);
    CHECK(gnutls_certificate_set_x509_key_file(peer->certificates, certificate, key, GNUTLS_X509_FMT_PEM) >= 0);
    CHECK_INT(gnutls_session_ticket_key_generate(&peer->ticket_key), 0);
}

static void foreign_free(foreign *peer)
{
    gnutls_certificate_free_credentials(peer->certificates);
    gnutls_free(peer->ticket_key.data);
}

static gnutls_session_t foreign_session(foreign *peer, ngtcp2_crypto_conn_ref *reference, int server, const char *alpn)
{
    gnutls_session_t native;
    gnutls_datum_t protocol = {.data = (unsigned char *)(uintptr_t)alpn, .size = 6};

    CHECK_INT(gnutls_init(&native, server ? GNUTLS_SERVER | GNUTLS_NO_AUTO_SEND_TICKET : GNUTLS_CLIENT), 0);
    CHECK_INT(gnutls_priority_set_direct(native, "NORMAL:-VERS-ALL:+VERS-TLS1.3:%DISABLE_TLS13_COMPAT_MODE", NULL), 0);
    CHECK_INT(gnutls_credentials_set(native, GNUTLS_CRD_CERTIFICATE, peer->certificates), 0);
    gnutls_session_set_ptr(native, reference);
    if (server) {
        CHECK_INT(gnutls_session_ticket_enable_server(native, &peer->ticket_key), 0);
        CHECK_INT(ngtcp2_crypto_gnutls_configure_server_session(native), 0);
    } else {
        CHECK_INT(ngtcp2_crypto_gnutls_configure_client_session(native), 0);
    }
    if (alpn != NULL)
        CHECK_INT(gnutls_alpn_set_protocols(native, &protocol, 1, 0), 0);
    return native;
}

/* What the two sides are; credentials NULL: the side is foreign. */
typedef struct {
    aq_credentials *server, *client;
    foreign *other;
    const char *other_alpn;
    const char *name;
    int send_sni;
} roles;

static void start_tls(side *one, const roles *who, int server)
{
    aq_credentials *credentials = server ? who->server : who->client;

    one->reference.get_conn = quic_of;
    one->reference.user_data = one;
    if (credentials == NULL) {
        one->native = foreign_session(who->other, &one->reference, server, who->other_alpn);
        return;
    }
    one->tls = aq_tls_session_new(credentials, server ? NULL : who->name, who->send_sni, &last_error);
    CHECK(one->tls != NULL);
}

static void start_roles(pair *both, const roles *who)
{
    struct sockaddr *addresses[2];
    ngtcp2_cid destination = {.datalen = 16};

    memset(both, 0, sizeof(*both));
    both->now = 1;
    both->client_address.sin_family = both->server_address.sin_family = AF_INET;
    both->client_address.sin_port = htons(1000);
    both->server_address.sin_port = htons(2000);
    addresses[0] = (struct sockaddr *)&both->client_address;
    addresses[1] = (struct sockaddr *)&both->server_address;
    ngtcp2_addr_init(&both->client_path.local, addresses[0], sizeof(both->client_address));
    ngtcp2_addr_init(&both->client_path.remote, addresses[1], sizeof(both->server_address));
    ngtcp2_addr_init(&both->server_path.local, addresses[1], sizeof(both->server_address));
    ngtcp2_addr_init(&both->server_path.remote, addresses[0], sizeof(both->client_address));
    start_tls(&both->client, who, 0);
    start_tls(&both->server, who, 1);
    random_bytes(destination.data, destination.datalen, NULL);
    start_quic(both, &both->client, 0, &destination, NULL);
}

static void start(pair *both, aq_credentials *server, aq_credentials *client, const char *name, int sni)
{
    const roles who = {.server = server, .client = client, .name = name, .send_sni = sni};

    start_roles(both, &who);
}

static void finish(pair *both)
{
    ngtcp2_conn_del(both->client.quic);
    ngtcp2_conn_del(both->server.quic);
    for (int i = 0; i < 2; i++) {
        side *one = i == 0 ? &both->client : &both->server;
        if (one->tls == NULL)
            gnutls_deinit(one->native);
        aq_tls_session_free(one->tls);
    }
}

static void receive(pair *both, side *one, const uint8_t *packet, size_t length)
{
    ngtcp2_pkt_info information = {0};
    const ngtcp2_path *path = one == &both->client ? &both->client_path : &both->server_path;
    int error;

    if (one == &both->server && one->quic == NULL) {
        ngtcp2_pkt_hd header;
        CHECK_INT(ngtcp2_accept(&header, packet, length), 0);
        start_quic(both, one, 1, &header.scid, &header.dcid);
    }
    if (one->error != 0)
        return;
    error = ngtcp2_conn_read_pkt(one->quic, path, &information, packet, length, both->now);
    if (error == NGTCP2_ERR_DRAINING)
        one->peer_close = ngtcp2_conn_get_ccerr(one->quic)->error_code;
    else if (error == NGTCP2_ERR_CRYPTO)
        one->alert = ngtcp2_conn_get_tls_alert(one->quic);
    one->error = error;
}

/* One packet, or the CONNECTION_CLOSE that an alert asks for. */
static size_t produce(pair *both, side *one, uint8_t *packet)
{
    ngtcp2_pkt_info information;
    ngtcp2_ssize length;

    if (one->quic == NULL)
        return 0;
    if (one->alert != 0) {
        ngtcp2_ccerr error;
        ngtcp2_ccerr_default(&error);
        ngtcp2_ccerr_set_tls_alert(&error, (uint8_t)one->alert, NULL, 0);
        length =
            ngtcp2_conn_write_connection_close(one->quic, NULL, &information, packet, PACKET_MAX, &error, both->now);
    } else if (one->error == NGTCP2_ERR_PROTO) {
        ngtcp2_ccerr error;
        ngtcp2_ccerr_set_liberr(&error, one->error, NULL, 0);
        length =
            ngtcp2_conn_write_connection_close(one->quic, NULL, &information, packet, PACKET_MAX, &error, both->now);
    } else if (one->error != 0) {
        length = 0;
    } else {
        length = ngtcp2_conn_write_pkt(one->quic, NULL, &information, packet, PACKET_MAX, both->now);
    }
    CHECK(length >= 0);
    return (size_t)length;
}

static void transfer(pair *both, side *from, side *to)
{
    uint8_t packet[PACKET_MAX];
    size_t length;

    for (int i = 0; i < ROUNDS && (length = produce(both, from, packet)) > 0; i++) {
        receive(both, to, packet, length);
        if (from->alert != 0 || from->error == NGTCP2_ERR_PROTO)
            break;
    }
    /* What the engine does after every batch of packets. */
    if (!to->completed && to->error == 0 && to->quic != NULL && ngtcp2_conn_get_handshake_completed(to->quic)) {
        to->alert = to->tls == NULL ? 0 : aq_tls_session_check(to->tls);
        to->completed = to->alert == 0;
    }
}

static void run(pair *both)
{
    for (int i = 0; i < ROUNDS; i++) {
        both->now += AQ_NSEC_PER_MSEC;
        transfer(both, &both->client, &both->server);
        transfer(both, &both->server, &both->client);
    }
}

static void expect_connected(const pair *both)
{
    CHECK_INT(both->client.error, 0);
    CHECK_INT(both->server.error, 0);
    CHECK(both->client.completed && both->server.completed);
    CHECK_INT(strlen(aq_tls_session_certificate_problem(both->client.tls)), 0);
}

/* What RFC 8446 section 6.2 has for a certificate with this problem. */
static int alert_for(const char *problem)
{
    if (strcmp(problem, "issuer is unknown") == 0)
        return 48;
    if (strcmp(problem, "expired") == 0)
        return 45;
    return strcmp(problem, "purpose") == 0 ? 43 : ALERT_BAD_CERTIFICATE;
}

/* One handshake; the credentials are used up. problem NULL: it succeeds; else the client refuses the certificate, with
 * this in the text. */
static void shake(aq_credentials *server, aq_credentials *client, const char *name, const char *problem)
{
    pair both;

    CHECK(server != NULL && client != NULL);
    start(&both, server, client, name, 1);
    aq_tls_credentials_unref(server); /* the sessions keep them */
    aq_tls_credentials_unref(client);
    run(&both);
    if (problem == NULL) {
        expect_connected(&both);
    } else {
        const int alert = alert_for(problem);
        snprintf(last_text, sizeof(last_text), "%s", aq_tls_session_certificate_problem(both.client.tls));
        expect_text(problem);
        CHECK_INT(both.client.error, NGTCP2_ERR_CRYPTO);
        CHECK_INT(both.client.alert, alert);
        CHECK(!both.client.completed && !both.server.completed);
        CHECK_INT(both.server.peer_close, CRYPTO_ERROR + alert);
    }
    finish(&both);
}

/* ---- handshakes --------------------------------------------------------------------------------------------- */

static void test_verification(void)
{
    static const struct {
        const char *certificate, *key, *trust, *name, *problem;
    } cases[] = {
        {"chain.pem", "key.pem", "root.pem", "example.test", NULL},
        {"chain.pem", "key.pem", "root.pem", "Example.TEST.", NULL},
        {"chain.pem", "key.pem", "root.pem", "any.wild.test", NULL},
        {"chain.pem", "key.pem", "authorities.pem", "example.test", NULL},
        {"chain.pem", "key.pem", "root.der", "example.test", NULL},
        {"shuffled.pem", "key.pem", "root.pem", "example.test", NULL},
        {"direct.der", "key.der", "root.pem", "example.test", NULL},
        {"rsa.pem", "rsa-key-pkcs1.pem", "root.pem", "example.test", NULL},
        {"ed.pem", "ed-key.pem", "root.pem", "example.test", NULL},
        {"chain.pem", "key.pem", "root.pem", "192.0.2.7", NULL},
        {"chain.pem", "key.pem", "root.pem", "2001:DB8:0::7", NULL},
        {"self.pem", "key.pem", "self.pem", "example.test", NULL},
        {"chain.pem", "key.pem", "root.pem", "other.test", "does not match the expected. Expected: other.test"},
        {"chain.pem", "key.pem", "root.pem", "a.example.test", "does not match"},
        {"chain.pem", "key.pem", "root.pem", "too.deep.wild.test", "does not match"},
        {"chain.pem", "key.pem", "root.pem", "192.0.2.8", "does not match the expected. Expected: 192.0.2.8"},
        {"chain.pem", "key.pem", "root.pem", "2001:db8::8", "does not match"},
        {"self.pem", "key.pem", "self.pem", "other.test", "does not match"},
        {"chain.pem", "key.pem", "stranger.pem", "example.test", "issuer is unknown"},
        {"leaf.pem", "key.pem", "root.pem", "example.test", "issuer is unknown"},
        {"self.pem", "key.pem", "root.pem", "example.test", "issuer is unknown"},
        {"name-only.pem", "key.pem", "root.pem", "example.test", NULL},
        {"name-behind-others.pem", "key.pem", "root.pem", "example.test", NULL},
        {"common-name-and-address.pem", "key.pem", "root.pem", "192.0.2.7", NULL},
        {"common-name.pem", "key.pem", "root.pem", "example.test", "no DNS name in its subjectAltName"},
        {"common-name.pem", "key.pem", "root.pem", "other.test", "does not count (RFC 9525). Expected: other.test"},
        {"common-name-and-address.pem", "key.pem", "root.pem", "example.test", "no DNS name in its subjectAltName"},
        {"common-name-and-mail.pem", "key.pem", "root.pem", "example.test", "no DNS name in its subjectAltName"},
        {"common-name-address.pem", "key.pem", "root.pem", "192.0.2.7", "no IP address in its subjectAltName"},
        {"name-only.pem", "key.pem", "root.pem", "192.0.2.7", "no IP address in its subjectAltName"},
        {"common-name.pem", "key.pem", "stranger.pem", "example.test", "issuer is unknown"},
        {"common-name-expired.pem", "key.pem", "root.pem", "example.test", "expired"},
        {"expired.pem", "key.pem", "root.pem", "example.test", "expired"},
        {"client.pem", "key.pem", "root.pem", "example.test", "purpose"},
        {"weak.pem", "weak-key.pem", "root.pem", "example.test", "insecure"},
    };

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(cases); i++) {
        aq_credentials *server = server_credentials(cases[i].certificate, cases[i].key);
        shake(server, client_credentials(cases[i].trust), cases[i].name, cases[i].problem);
    }
}

static void test_without_verification(void)
{
    shake(server_credentials("self.pem", "key.pem"), client_credentials(""), "other.test", NULL);
    shake(server_credentials("expired.pem", "key.pem"), client_credentials(""), NULL, NULL);
    shake(server_credentials("client.pem", "key.pem"), client_credentials(""), "192.0.2.99", NULL);
}

/* The pins in the files come from another library. */
static void test_pin_of_a_certificate(void)
{
    static const char *const pairs[][2] = {
        {"leaf.pem", "server.pin"},   {"chain.pem", "server.pin"}, {"direct.der", "server.pin"},
        {"self.pem", "server.pin"},   {"both.pem", "server.pin"},  {"rsa.pem", "rsa.pin"},
        {"middle.pem", "middle.pin"}, {"ed.pem", "ed.pin"},
    };
    static const char *const bad[] = {"junk", "key.pem", "key.der", "cut.pem", "cut.der"};
    static content certificate, pin;
    uint8_t found[AQ_PIN_LENGTH];

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(pairs); i++) {
        load(&certificate, pairs[i][0]);
        load(&pin, pairs[i][1]);
        memset(found, 0, sizeof(found));
        CHECK_INT(aq_tls_certificate_pin(certificate.data, certificate.length, found), AQ_OK);
        CHECK_BYTES(found, pin.data, AQ_PIN_LENGTH);
    }
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(bad); i++) {
        load(&certificate, bad[i]);
        CHECK_INT(aq_tls_certificate_pin(certificate.data, certificate.length, found), AQ_ERR_TLS);
    }
    CHECK_INT(aq_tls_certificate_pin(certificate.data, 0, found), AQ_ERR_INVALID);
}

static void test_look_at_certificates(void)
{
    static const struct {
        const char *file;
        int count, at;
        int32_t names, signs, serves, strong;
    } cases[] = {
        {"chain.pem", 2, 0, 1, 1, 1, 1},       {"chain.pem", 2, 1, 0, 1, 1, 1}, {"direct.der", 1, 0, 1, 1, 1, 1},
        {"client.pem", 1, 0, 1, 1, 0, 1},      {"weak.pem", 1, 0, 1, 1, 1, 0},  {"rsa.pem", 1, 0, 1, 1, 1, 1},
        {"common-name.pem", 1, 0, 0, 1, 1, 1}, {"ed.pem", 1, 0, 1, 1, 1, 1},    {"signs-others.pem", 1, 0, 1, 0, 1, 1},
    };
    static const struct {
        const char *file, *text;
    } bad[] = {
        {"key.pem", "certificate: holds a private key"},
        {"bundle.p12", "certificate: is PKCS#12"},
        {"junk", "certificate: neither"},
    };
    static content input;
    aq_certificate found[2];
    int64_t now = (int64_t)time(NULL), day = 86400;

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(cases); i++) {
        const aq_certificate *one = &found[cases[i].at];
        load(&input, cases[i].file);
        memset(found, 0, sizeof(found));
        CHECK_INT(aq_tls_certificates_read(input.data, input.length, found, 2, last_text, sizeof(last_text)),
                  cases[i].count);
        CHECK_INT(one->names, cases[i].names);
        CHECK_INT(one->signs, cases[i].signs);
        CHECK_INT(one->serves, cases[i].serves);
        CHECK_INT(one->strong, cases[i].strong);
        CHECK(one->not_before > now - 4 * day && one->not_before < now - 2 * day);
        CHECK(one->not_after > now + 6 * day && one->not_after < now + 8 * day);
    }
    /* No more is written than there is room for. */
    load(&input, "chain.pem");
    memset(found, 0, sizeof(found));
    CHECK_INT(aq_tls_certificates_read(input.data, input.length, found, 1, last_text, sizeof(last_text)), 2);
    CHECK_INT(found[1].not_after, 0);
    CHECK_INT(aq_tls_certificates_read(input.data, 0, found, 2, last_text, sizeof(last_text)), AQ_ERR_INVALID);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(bad); i++) {
        load(&input, bad[i].file);
        CHECK_INT(aq_tls_certificates_read(input.data, input.length, found, 2, last_text, sizeof(last_text)),
                  AQ_ERR_TLS);
        expect_text(bad[i].text);
    }
}

/* A pin is asked for besides everything else; only where nothing else is verified does it decide alone. */
static void test_pins(void)
{
    static const struct {
        const char *certificate, *key, *trust, *name, *pins[2], *problem;
    } cases[] = {
        {"chain.pem", "key.pem", "root.pem", "example.test", {"server.pin"}, NULL},
        {"chain.pem", "key.pem", "root.pem", "example.test", {"rsa.pin", "server.pin"}, NULL},
        {"chain.pem", "key.pem", "root.pem", "example.test", {"server.pin", "rsa.pin"}, NULL},
        {"rsa.pem", "rsa-key.pem", "root.pem", "example.test", {"rsa.pin"}, NULL},
        {"ed.pem", "ed-key.pem", "root.pem", "192.0.2.7", {"ed.pin"}, NULL},
        {"chain.pem", "key.pem", "root.pem", "example.test", {"rsa.pin"}, "none of those pinned: sha256//"},
        {"chain.pem", "key.pem", "root.pem", "example.test", {"rsa.pin", "ed.pin"}, "none of those pinned: sha256//"},
        /* The key of an authority is not the server's. */
        {"chain.pem", "key.pem", "root.pem", "example.test", {"middle.pin"}, "none of those pinned: sha256//"},
        {"chain.pem", "key.pem", "root.pem", "other.test", {"server.pin"}, "does not match the expected"},
        {"chain.pem", "key.pem", "stranger.pem", "example.test", {"server.pin"}, "issuer is unknown"},
        {"expired.pem", "key.pem", "root.pem", "example.test", {"server.pin"}, "expired"},
        {"client.pem", "key.pem", "root.pem", "example.test", {"server.pin"}, "purpose"},
        /* Without any other verification. */
        {"self.pem", "key.pem", "", NULL, {"server.pin"}, NULL},
        {"expired.pem", "key.pem", "", "other.test", {"rsa.pin", "server.pin"}, NULL},
        {"self.pem", "key.pem", "", NULL, {"rsa.pin"}, "none of those pinned: sha256//"},
    };
    static content pin;
    aq_credentials_options options = {.alpn = asport, .alpn_length = sizeof(asport) - 1, .pins = asport};
    gnutls_datum_t raw, text;

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(cases); i++) {
        aq_credentials *server = server_credentials(cases[i].certificate, cases[i].key);
        memcpy(extra.pins, cases[i].pins, sizeof(extra.pins));
        shake(server, client_credentials(cases[i].trust), cases[i].name, cases[i].problem);
    }
    /* The text of the last one is still there, with the pin to copy. */
    load(&pin, "server.pin");
    raw.data = pin.data;
    raw.size = AQ_PIN_LENGTH;
    CHECK_INT(gnutls_base64_encode2(&raw, &text), 0);
    CHECK_INT(text.size, 44);
    CHECK(strncmp(strstr(last_text, "sha256//") + 8, (char *)text.data, 45) == 0); /* with the NUL */
    gnutls_free(text.data);
    options.pins_length = AQ_PIN_LENGTH - 1;
    expect_refused(aq_tls_credentials_new(&options, &last_error, last_text, sizeof(last_text)), AQ_ERR_INVALID, "pins");
    options.server = 1;
    options.pins_length = AQ_PIN_LENGTH;
    expect_refused(aq_tls_credentials_new(&options, &last_error, last_text, sizeof(last_text)), AQ_ERR_INVALID, "pins");
}

static int accept_anything(gnutls_session_t native)
{
    (void)native;
    return 0;
}

/* However a handshake came about: without the check it ends here. With GnuTLS that would be a session that it resumes.
 */
static void test_a_handshake_without_the_check(void)
{
    static const char *const trusts[] = {"root.pem", ""};

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(trusts); i++) {
        aq_credentials *server = server_credentials("chain.pem", "key.pem"), *client;
        pair both;

        extra.pins[0] = i == 0 ? NULL : "server.pin";
        client = client_credentials(trusts[i]);
        start(&both, server, client, "example.test", 1);
        gnutls_session_set_verify_function(both.client.native, accept_anything);
        run(&both);
        CHECK(!both.client.completed);
        CHECK_INT(both.client.alert, ALERT_BAD_CERTIFICATE);
        CHECK(strstr(aq_tls_session_certificate_problem(both.client.tls), "was not checked") != NULL);
        CHECK_INT(both.server.peer_close, CRYPTO_ERROR + ALERT_BAD_CERTIFICATE);
        finish(&both);
        aq_tls_credentials_unref(server);
        aq_tls_credentials_unref(client);
    }
}

static void test_names_of_a_session(void)
{
    aq_credentials *client = client_credentials("root.pem");
    char name[256];

    memset(name, 'a', sizeof(name));
    name[254] = 0;
    CHECK(aq_tls_session_new(client, name, 1, &last_error) == NULL);
    CHECK_INT(last_error, AQ_ERR_INVALID);
    CHECK(aq_tls_session_new(client, "", 1, &last_error) == NULL);
    CHECK_INT(last_error, AQ_ERR_INVALID);
    CHECK(aq_tls_session_new(client, NULL, 1, &last_error) == NULL);
    CHECK_INT(last_error, AQ_ERR_INVALID);
    aq_tls_session_free(NULL);
    aq_tls_credentials_unref(client);
    aq_tls_credentials_unref(NULL);
}

static void check_sni(const char *name, int send_sni, const char *expected)
{
    aq_credentials *server = server_credentials("chain.pem", "key.pem"), *client = client_credentials("");
    char seen[256] = "";
    size_t length = sizeof(seen);
    unsigned int type = 0;
    int code;
    pair both;

    start(&both, server, client, name, send_sni);
    run(&both);
    expect_connected(&both);
    code = gnutls_server_name_get(both.server.native, seen, &length, &type, 0);
    if (expected == NULL) {
        CHECK_INT(code, GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE);
    } else {
        CHECK_INT(code, 0);
        CHECK(strcmp(seen, expected) == 0);
    }
    finish(&both);
    aq_tls_credentials_unref(server);
    aq_tls_credentials_unref(client);
}

static void test_sni(void)
{
    check_sni("example.test", 1, "example.test");
    check_sni("example.test.", 1, "example.test");
    check_sni("example.test", 0, NULL);
    check_sni("192.0.2.7", 1, NULL);
    check_sni("2001:db8::7", 1, NULL);
    check_sni(NULL, 1, NULL);
}

static void test_parameters(void)
{
    aq_credentials *server = server_credentials("chain.pem", "key.pem"), *client = client_credentials("root.pem");
    pair both;
    gnutls_session_t sessions[2];

    start(&both, server, client, "example.test", 1);
    run(&both);
    expect_connected(&both);
    sessions[0] = both.client.native;
    sessions[1] = both.server.native;
    for (size_t i = 0; i < 2; i++) {
        CHECK_INT(gnutls_protocol_get_version(sessions[i]), GNUTLS_TLS1_3);
        CHECK_INT(gnutls_cipher_get(sessions[i]), GNUTLS_CIPHER_AES_128_GCM);
        CHECK_INT(gnutls_group_get(sessions[i]), GNUTLS_GROUP_X25519);
    }
    finish(&both);
    aq_tls_credentials_unref(server);
    aq_tls_credentials_unref(client);
}

static void test_exporter(void)
{
    static const uint8_t label[16] = {0, 1, 0, 0xff, 0x80, 7, 0, 0, 9, 10, 11, 0, 0xc3, 0x28, 0, 0};
    static const uint8_t token[] = {'t', 0, 'k', 'e', 'n'};
    aq_credentials *server = server_credentials("chain.pem", "key.pem"), *client = client_credentials("root.pem");
    uint8_t values[4][32], long_label[64] = {0};
    pair both;

    start(&both, server, client, "example.test", 1);
    CHECK_INT(aq_tls_session_export(both.client.tls, label, 16, token, 5, values[0], 32), AQ_ERR_STATE);
    CHECK_INT(aq_tls_session_export(both.server.tls, label, 16, token, 5, values[0], 32), AQ_ERR_STATE);
    transfer(&both, &both.client, &both.server);
    CHECK_INT(aq_tls_session_export(both.client.tls, label, 16, token, 5, values[0], 32), AQ_ERR_STATE);
    run(&both);
    expect_connected(&both);
    CHECK_INT(aq_tls_session_export(both.client.tls, label, 16, token, 5, values[0], 32), AQ_OK);
    CHECK_INT(aq_tls_session_export(both.server.tls, label, 16, token, 5, values[1], 32), AQ_OK);
    CHECK_BYTES(values[0], values[1], 32);
    /* Every byte of label and context counts, those behind a NUL too. */
    CHECK_INT(aq_tls_session_export(both.server.tls, label, 16, token, 4, values[1], 32), AQ_OK);
    CHECK(memcmp(values[0], values[1], 32) != 0);
    CHECK_INT(aq_tls_session_export(both.server.tls, label, 15, token, 5, values[2], 32), AQ_OK);
    CHECK(memcmp(values[0], values[2], 32) != 0 && memcmp(values[1], values[2], 32) != 0);
    CHECK_INT(aq_tls_session_export(both.server.tls, label, 16, NULL, 0, values[3], 32), AQ_OK);
    CHECK(memcmp(values[0], values[3], 32) != 0);
    CHECK_INT(aq_tls_session_export(both.server.tls, long_label, 63, NULL, 0, values[3], 32), AQ_OK);
    CHECK_INT(aq_tls_session_export(both.server.tls, long_label, 64, NULL, 0, values[3], 32), AQ_ERR_TLS);
    finish(&both);
    /* Another connection, another secret. */
    start(&both, server, client, "example.test", 1);
    run(&both);
    CHECK_INT(aq_tls_session_export(both.client.tls, label, 16, token, 5, values[1], 32), AQ_OK);
    CHECK(memcmp(values[0], values[1], 32) != 0);
    finish(&both);
    aq_tls_credentials_unref(server);
    aq_tls_credentials_unref(client);
}

static void test_alpn(void)
{
    aq_credentials *server, *client;
    uint8_t chosen[256] = {0};
    pair both;

    /* The client's first protocol that the server knows. */
    extra.alpn = (const uint8_t *)"\1a\2bb\3ccc";
    extra.alpn_length = 9;
    server = server_credentials("chain.pem", "key.pem");
    extra.alpn = (const uint8_t *)"\1x\3ccc\2bb";
    client = client_credentials("");
    start(&both, server, client, NULL, 0);
    CHECK_INT(aq_tls_session_alpn(both.client.tls, chosen, sizeof(chosen)), 0);
    run(&both);
    expect_connected(&both);
    CHECK_INT(aq_tls_session_alpn(both.client.tls, chosen, sizeof(chosen)), 3);
    CHECK_BYTES(chosen, "ccc", 3);
    CHECK_INT(aq_tls_session_alpn(both.server.tls, chosen, sizeof(chosen)), 3);
    CHECK_BYTES(chosen, "ccc", 3);
    CHECK_INT(aq_tls_session_alpn(both.server.tls, chosen, 2), 2); /* no more than there is room for */
    finish(&both);
    aq_tls_credentials_unref(client);
    /* Nothing in common: the server sends the alert. */
    extra.alpn = (const uint8_t *)"\1x\3ddd\2yy";
    client = client_credentials("");
    start(&both, server, client, NULL, 0);
    run(&both);
    CHECK_INT(both.server.error, NGTCP2_ERR_CRYPTO);
    CHECK_INT(both.server.alert, 120);
    CHECK_INT(both.client.peer_close, CRYPTO_ERROR + 120);
    CHECK(!both.client.completed && !both.server.completed);
    finish(&both);
    aq_tls_credentials_unref(server);
    aq_tls_credentials_unref(client);
}

/* GnuTLS lets a peer without ALPN pass; aq_tls_session_check() doesn't. */
static void test_no_alpn(void)
{
    aq_credentials *server = server_credentials("chain.pem", "key.pem"), *client = client_credentials("root.pem");
    foreign other;
    pair both;

    foreign_init(&other);
    start_roles(&both, &(roles){.server = server, .other = &other});
    run(&both);
    CHECK_INT(both.server.error, 0);
    CHECK_INT(both.server.alert, 120);
    CHECK_INT(both.client.peer_close, CRYPTO_ERROR + 120);
    CHECK(both.client.completed && !both.server.completed);
    finish(&both);
    start_roles(&both, &(roles){.client = client, .name = "example.test", .other = &other});
    run(&both);
    CHECK_INT(both.client.error, 0);
    CHECK_INT(both.client.alert, 120);
    CHECK_INT(both.server.peer_close, CRYPTO_ERROR + 120);
    CHECK(!both.client.completed);
    finish(&both);
    foreign_free(&other);
    aq_tls_credentials_unref(server);
    aq_tls_credentials_unref(client);
}

/* A server that sends a ticket unasked does no harm. Ours sends none to a client that would take one. */
static void test_tickets(void)
{
    aq_credentials *server = server_credentials("chain.pem", "key.pem"), *client = client_credentials("root.pem");
    foreign other;
    ngtcp2_conn_info info;
    pair both;

    foreign_init(&other);
    start_roles(&both, &(roles){.client = client, .name = "example.test", .other = &other, .other_alpn = "asport"});
    run(&both);
    CHECK(both.client.completed && both.server.completed);
    CHECK_INT(gnutls_session_ticket_send(both.server.native, 1, 0), 0);
    run(&both);
    CHECK_INT(both.client.error, 0);
    CHECK_INT(both.server.error, 0);
    ngtcp2_conn_get_conn_info(both.server.quic, &info);
    CHECK_INT(info.bytes_in_flight, 0);                                                        /* it has arrived, */
    CHECK((gnutls_session_get_flags(both.client.native) & GNUTLS_SFLAGS_SESSION_TICKET) == 0); /* and was ignored */
    finish(&both);
    start_roles(&both, &(roles){.server = server, .other = &other, .other_alpn = "asport"});
    run(&both);
    CHECK(both.client.completed && both.server.completed);
    CHECK((gnutls_session_get_flags(both.client.native) & GNUTLS_SFLAGS_SESSION_TICKET) == 0);
    finish(&both);
    foreign_free(&other);
    aq_tls_credentials_unref(server);
    aq_tls_credentials_unref(client);
}

static gnutls_datum_t ticket; /* what take_ticket() has found */

static int take_ticket(gnutls_session_t native, unsigned int type, unsigned int when, unsigned int incoming,
                       const gnutls_datum_t *message)
{
    (void)when;
    (void)message;
    if (type == GNUTLS_HANDSHAKE_NEW_SESSION_TICKET && incoming != 0)
        CHECK_INT(gnutls_session_get_data2(native, &ticket), 0);
    return 0;
}

/* A client that was accepted once, and had its session put into the next one by force, verifies all the same: the name
 * is another one now. */
/* One peer of another make sends a message in CRYPTO frames of 1-RTT packets, byte by byte or at once. */
static void send_after_handshake(const roles *who, const uint8_t *message, size_t length, size_t piece, int error,
                                 uint64_t close)
{
    pair both;
    side *ours, *theirs;

    start_roles(&both, who);
    ours = who->server != NULL ? &both.server : &both.client;
    theirs = who->server != NULL ? &both.client : &both.server;
    run(&both);
    CHECK(both.client.completed && both.server.completed);
    for (size_t at = 0; at < length; at += piece) {
        CHECK_INT(ngtcp2_conn_submit_crypto_data(theirs->quic, NGTCP2_ENCRYPTION_LEVEL_1RTT, message + at,
                                                 length - at < piece ? length - at : piece),
                  0);
        if (piece < length)
            run(&both);
    }
    run(&both);
    CHECK_INT(ours->error, error);
    CHECK_INT(ours->alert, error == NGTCP2_ERR_CRYPTO ? ALERT_UNEXPECTED_MESSAGE : 0);
    CHECK_INT(theirs->peer_close, close);
    finish(&both);
}

/* GnuTLS takes a KeyUpdate for a change of TLS's keys, and hands out secrets on which ngtcp2 aborts. RFC 9001
 * section 6.
 */
static void test_messages_after_the_handshake(void)
{
    static const uint8_t key_update[] = {24, 0, 0, 1, 0}, wants_another[] = {24, 0, 0, 1, 1},
                         finished[36] = {20, 0, 0, 32}, request[] = {13, 0, 0, 3, 0, 0, 0}, unknown[] = {255, 0, 0, 0},
                         hello[] = {1, 0xff, 0xff, 0xff};
    aq_credentials *server = server_credentials("chain.pem", "key.pem"), *client = client_credentials("root.pem");
    foreign other;

    foreign_init(&other);
    for (int is_server = 0; is_server < 2; is_server++) {
        roles who = {.other = &other, .other_alpn = "asport", .name = "example.test"};
        if (is_server)
            who.server = server;
        else
            who.client = client;
        for (size_t piece = 1; piece <= 64; piece += 63) {
            send_after_handshake(&who, key_update, sizeof(key_update), piece, NGTCP2_ERR_CRYPTO, CRYPTO_ERROR + 10);
            send_after_handshake(&who, wants_another, sizeof(wants_another), piece, NGTCP2_ERR_CRYPTO,
                                 CRYPTO_ERROR + 10);
            send_after_handshake(&who, finished, sizeof(finished), piece, NGTCP2_ERR_CRYPTO, CRYPTO_ERROR + 10);
            send_after_handshake(&who, unknown, sizeof(unknown), piece, NGTCP2_ERR_CRYPTO, CRYPTO_ERROR + 10);
            send_after_handshake(&who, hello, sizeof(hello), piece, NGTCP2_ERR_CRYPTO, CRYPTO_ERROR + 10);
            if (is_server)
                send_after_handshake(&who, request, sizeof(request), piece, NGTCP2_ERR_CRYPTO, CRYPTO_ERROR + 10);
            else
                send_after_handshake(&who, request, sizeof(request), piece, NGTCP2_ERR_PROTO,
                                     NGTCP2_PROTOCOL_VIOLATION);
        }
    }
    foreign_free(&other);
    aq_tls_credentials_unref(server);
    aq_tls_credentials_unref(client);
}

static void test_no_resumption(void)
{
    aq_credentials *client = client_credentials("root.pem");
    foreign other;
    roles who = {.client = client, .name = "example.test", .other = &other, .other_alpn = "asport"};
    pair both;

    foreign_init(&other);
    start_roles(&both, &who);
    both.client.unfiltered = 1;
    gnutls_handshake_set_hook_function(both.client.native, GNUTLS_HANDSHAKE_ANY, GNUTLS_HOOK_POST, take_ticket);
    run(&both);
    CHECK(both.client.completed && both.server.completed);
    CHECK_INT(gnutls_session_ticket_send(both.server.native, 1, 0), 0);
    run(&both);
    CHECK(ticket.size > 0);
    finish(&both);
    for (int wrong = 0; wrong < 2; wrong++) {
        who.name = wrong ? "other.test" : "example.test";
        start_roles(&both, &who);
        CHECK_INT(gnutls_session_set_data(both.client.native, ticket.data, ticket.size), 0);
        run(&both);
        CHECK(!gnutls_session_is_resumed(both.client.native));
        CHECK_INT(both.client.completed, !wrong);
        CHECK_INT(both.client.alert, wrong ? ALERT_BAD_CERTIFICATE : 0);
        finish(&both);
    }
    gnutls_free(ticket.data);
    foreign_free(&other);
    aq_tls_credentials_unref(client);
}

/* Both sides log into one file, which SSLKEYLOGFILE names as well: every secret comes once from each side. Without a
 * path of their own they log nothing, whatever the environment says. */
static void test_keylog(void)
{
    static const char *const labels[] = {"CLIENT_HANDSHAKE_TRAFFIC_SECRET ", "SERVER_HANDSHAKE_TRAFFIC_SECRET ",
                                         "CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 ", "EXPORTER_SECRET "};
    static content log;
    char path[512], *line, *rest;
    struct stat status;
    int seen[AQ_ARRAY_LENGTH(labels)] = {0}, lines = 0;

    path_of(path, sizeof(path), "keys.log");
    unlink(path);
    CHECK_INT(setenv("SSLKEYLOGFILE", path, 1), 0); /* read by GnuTLS at the first secret of the process */
    shake(server_credentials("chain.pem", "key.pem"), client_credentials("root.pem"), "example.test", NULL);
    CHECK(stat(path, &status) != 0 && errno == ENOENT);
    extra.keylog = path;
    shake(server_credentials("chain.pem", "key.pem"), client_credentials("root.pem"), "example.test", NULL);
    CHECK_INT(stat(path, &status), 0);
    CHECK_INT(status.st_mode & 0777, 0600);
    load(&log, "keys.log");
    log.data[log.length] = 0;
    for (line = strtok_r((char *)log.data, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        lines++;
        for (size_t i = 0; i < AQ_ARRAY_LENGTH(labels); i++) {
            size_t length = strlen(labels[i]);
            if (strncmp(line, labels[i], length) == 0) {
                seen[i]++;
                CHECK_INT(strspn(line + length, "0123456789abcdef"), 64);
                CHECK_INT(line[length + 64], ' ');
                CHECK_INT(strspn(line + length + 65, "0123456789abcdef"), 64); /* SHA-256 */
                CHECK_INT(strlen(line), length + 129);
            }
        }
    }
    CHECK_INT(lines, 10);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(labels); i++)
        CHECK_INT(seen[i], 2);
    CHECK_INT(unlink(path), 0);
    CHECK_INT(unsetenv("SSLKEYLOGFILE"), 0);
}

/* ---- packets without a connection --------------------------------------------------------------------------- */

#define LIFETIME (10 * AQ_NSEC_PER_SEC)
#define NOW (1000 * AQ_NSEC_PER_SEC)

/* The token of a Retry packet counts for its address, key and connection ID, while it lasts. */
static void test_retry(void)
{
    static const uint8_t key[AQ_TOKEN_KEY_LENGTH] = {1}, other_key[AQ_TOKEN_KEY_LENGTH] = {2};
    const aq_handshake_ops *tls = &aq_handshake_gnutls;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(4433)}, other = address;
    const struct sockaddr *remote = (struct sockaddr *)&address;
    const socklen_t length = sizeof(address);
    ngtcp2_pkt_hd header = {.version = NGTCP2_PROTO_VER_V1}, next;
    ngtcp2_cid scid, original = {0};
    uint8_t packet[PACKET_MAX], token[PACKET_MAX];
    ngtcp2_ssize written;
    size_t token_at;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ngtcp2_cid_init(&header.dcid, (const uint8_t *)"12345678", 8);
    ngtcp2_cid_init(&header.scid, (const uint8_t *)"abcd", 4);
    ngtcp2_cid_init(&scid, (const uint8_t *)"87654321", 8);
    CHECK_INT(tls->check_retry(&header, remote, length, key, LIFETIME, NOW, &original), 0); /* no token */
    written = tls->write_retry(packet, sizeof(packet), &header, &scid, remote, length, key, NOW);
    /* Flags, version, both connection IDs with their lengths; the token; the integrity tag (RFC 9000 section 17.2.5).
     */
    token_at = 1 + 4 + 1 + 4 + 1 + 8;
    CHECK(written > (ngtcp2_ssize)token_at + 16);
    next = header;
    next.dcid = scid;
    next.tokenlen = (size_t)written - token_at - 16;
    memcpy(token, packet + token_at, next.tokenlen);
    next.token = token;
    CHECK_INT(tls->check_retry(&next, remote, length, key, LIFETIME, NOW + LIFETIME / 2, &original), 1);
    CHECK(ngtcp2_cid_eq(&original, &header.dcid));
    CHECK_INT(tls->check_retry(&next, remote, length, other_key, LIFETIME, NOW, &original), -1);
    CHECK_INT(tls->check_retry(&next, remote, length, key, LIFETIME, NOW + 2 * LIFETIME, &original), -1);
    CHECK_INT(tls->check_retry(&next, (struct sockaddr *)&other, length, key, LIFETIME, NOW, &original), -1);
    next.dcid = header.dcid;
    CHECK_INT(tls->check_retry(&next, remote, length, key, LIFETIME, NOW, &original), -1);
    next.dcid = scid;
    token[0] ^= 1; /* the kind of token */
    CHECK_INT(tls->check_retry(&next, remote, length, key, LIFETIME, NOW, &original), 0);
}

static void test_reset_tokens(void)
{
    static const uint8_t key[AQ_TOKEN_KEY_LENGTH] = {1}, other_key[AQ_TOKEN_KEY_LENGTH] = {2};
    uint8_t tokens[4][NGTCP2_STATELESS_RESET_TOKENLEN];
    ngtcp2_cid one, other;

    ngtcp2_cid_init(&one, (const uint8_t *)"12345678", 8);
    ngtcp2_cid_init(&other, (const uint8_t *)"12345679", 8);
    CHECK_INT(aq_handshake_gnutls.reset_token(tokens[0], key, &one), 0);
    CHECK_INT(aq_handshake_gnutls.reset_token(tokens[1], key, &one), 0);
    CHECK_INT(aq_handshake_gnutls.reset_token(tokens[2], key, &other), 0);
    CHECK_INT(aq_handshake_gnutls.reset_token(tokens[3], other_key, &one), 0);
    CHECK_BYTES(tokens[0], tokens[1], sizeof(tokens[0]));
    CHECK(memcmp(tokens[0], tokens[2], sizeof(tokens[0])) != 0);
    CHECK(memcmp(tokens[0], tokens[3], sizeof(tokens[0])) != 0);
}

int main(int count, char **arguments)
{
    static void (*const tests[])(void) = {
        test_keylog, /* first, for SSLKEYLOGFILE */
        test_server_credentials,
        test_client_credentials,
        test_alpn_list,
        test_keylog_path,
        test_verification,
        test_without_verification,
        test_pin_of_a_certificate,
        test_look_at_certificates,
        test_pins,
        test_a_handshake_without_the_check,
        test_names_of_a_session,
        test_sni,
        test_parameters,
        test_exporter,
        test_alpn,
        test_no_alpn,
        test_tickets,
        test_messages_after_the_handshake,
        test_no_resumption,
        test_retry,
        test_reset_tokens,
    };

    if (count != 2) {
        fprintf(stderr, "usage: %s directory\n", arguments[0]);
        return 2;
    }
    material = arguments[1];
    check_watchdog(WATCHDOG_SECONDS);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(tests); i++) {
        extra_reset();
        tests[i]();
    }
    return check_done();
}

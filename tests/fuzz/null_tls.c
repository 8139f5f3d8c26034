/* A handshake layer without TLS (handshake.h): packets with a tag of zeros, no header protection, and a handshake of
 * two messages. So a fuzzer's bytes get as far as what is behind decryption, and a peer can be played by hand. It needs
 * neither GnuTLS nor ngtcp2's helper for it.
 *
 * A message of the handshake: flags (1 byte), length (2 bytes), transport parameters. The client's is in Initial
 * packets, the server's in Handshake packets behind one empty message in Initial ones; the client ends with an empty
 * message in a Handshake packet.
 */
#include "quic/handshake.h"
#include "quic/reading.h"

#include "fuzz.h"

#define TAG 16
#define IV 12
#define MESSAGE_MAX 2048
#define FLAG_NO_ALPN 1
#define FLAG_BAD_CERTIFICATE 2
#define RETRY_TOKEN 0xb7 /* first byte of a Retry token, as in the corpus */
#define FORGED 0xee      /* last byte of a tag that does not fit */

struct aq_credentials {
    int references;
};

struct aq_tls_session {
    aq_credentials *credentials;
    ngtcp2_conn *quic;
    uint8_t flags; /* of the peer's message */
    int done;
    size_t have[2]; /* bytes of the message in Initial and Handshake packets */
    uint8_t message[2][MESSAGE_MAX];
};

/* ---- credentials and sessions -------------------------------------------------------------------------------------
 */

static int64_t null_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out)
{
    (void)certificate, (void)length, (void)out;
    return AQ_ERR_INVALID; /* there are no certificates here */
}

static int64_t null_certificates_read(const uint8_t *data, size_t length, aq_certificate *out, uint32_t max, char *text,
                                      size_t text_length)
{
    (void)data, (void)length, (void)out, (void)max, (void)text, (void)text_length;
    return AQ_ERR_INVALID;
}

static aq_credentials *null_credentials_new(const aq_credentials_options *options, int64_t *error, char *text,
                                            size_t text_length)
{
    aq_credentials *credentials = malloc(sizeof(*credentials));
    (void)options, (void)text, (void)text_length;
    *error = AQ_ERR_MEMORY;
    if (credentials != NULL)
        credentials->references = 1;
    return credentials;
}

static void null_credentials_ref(aq_credentials *credentials)
{
    credentials->references++;
}

static void null_credentials_unref(aq_credentials *credentials)
{
    if (credentials == NULL)
        return;
    MUST(credentials->references > 0);
    if (--credentials->references == 0)
        free(credentials);
}

static aq_tls_session *null_session_new(aq_credentials *credentials, const char *server_name, int send_sni,
                                        int64_t *error)
{
    aq_tls_session *session = calloc(1, sizeof(*session));
    (void)server_name, (void)send_sni;
    *error = session != NULL ? AQ_OK : AQ_ERR_MEMORY;
    if (session != NULL) {
        session->credentials = credentials;
        null_credentials_ref(credentials);
    }
    return session;
}

static void null_session_free(aq_tls_session *session)
{
    if (session == NULL)
        return;
    null_credentials_unref(session->credentials);
    free(session);
}

static void null_session_attach(aq_tls_session *session, ngtcp2_conn *quic)
{
    session->quic = quic;
    ngtcp2_conn_set_tls_native_handle(quic, session);
}

static int null_session_check(aq_tls_session *session)
{
    return session->flags & FLAG_NO_ALPN ? 120 : 0;
}

static size_t null_session_alpn(aq_tls_session *session, uint8_t *out, size_t length)
{
    (void)session;
    MUST(length >= 6);
    memcpy(out, "asport", 6);
    return 6;
}

static int null_session_export(aq_tls_session *session, const uint8_t *label, size_t label_length,
                               const uint8_t *context, size_t context_length, uint8_t *out, size_t out_length)
{
    (void)label, (void)label_length, (void)context, (void)context_length;
    MUST(session != NULL && session->done);
    memset(out, 0, out_length);
    return 0;
}

static size_t null_session_peer_chain(aq_tls_session *session, uint8_t *out, size_t length)
{
    MUST(session != NULL && session->done);
    if (length >= 2)
        memcpy(out, "\x30\x00", 2); /* an empty SEQUENCE */
    return 2;
}

static const char *null_session_certificate_problem(aq_tls_session *session)
{
    return session->flags & FLAG_BAD_CERTIFICATE ? "the certificate is not good" : "";
}

/* ---- keys ---------------------------------------------------------------------------------------------------------
 */

static int key; /* contexts must not be NULL */
static const uint8_t zeros[64];

static const ngtcp2_crypto_aead AEAD = {.native_handle = &key, .max_overhead = TAG};
static const ngtcp2_crypto_aead_ctx AEAD_CONTEXT = {&key};
static const ngtcp2_crypto_cipher_ctx CIPHER_CONTEXT = {&key};

static ngtcp2_crypto_ctx context(void)
{
    ngtcp2_crypto_ctx all = {.aead = AEAD, .max_encryption = UINT64_MAX, .max_decryption_failure = UINT64_MAX};
    all.md.native_handle = &key;
    all.hp.native_handle = &key;
    return all;
}

static int install_initial(ngtcp2_conn *quic)
{
    ngtcp2_crypto_ctx all = context();
    ngtcp2_conn_set_initial_crypto_ctx(quic, &all);
    return ngtcp2_conn_install_initial_key(quic, &AEAD_CONTEXT, zeros, &CIPHER_CONTEXT, &AEAD_CONTEXT, zeros,
                                           &CIPHER_CONTEXT, IV);
}

static int install_handshake(ngtcp2_conn *quic)
{
    ngtcp2_crypto_ctx all = context();
    ngtcp2_conn_set_crypto_ctx(quic, &all);
    return ngtcp2_conn_install_rx_handshake_key(quic, &AEAD_CONTEXT, zeros, IV, &CIPHER_CONTEXT) != 0 ||
           ngtcp2_conn_install_tx_handshake_key(quic, &AEAD_CONTEXT, zeros, IV, &CIPHER_CONTEXT) != 0;
}

static int install_tx(ngtcp2_conn *quic)
{
    return ngtcp2_conn_install_tx_key(quic, zeros, 32, &AEAD_CONTEXT, zeros, IV, &CIPHER_CONTEXT);
}

static int install_rx(ngtcp2_conn *quic)
{
    return ngtcp2_conn_install_rx_key(quic, zeros, 32, &AEAD_CONTEXT, zeros, IV, &CIPHER_CONTEXT);
}

static int on_encrypt(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *aead_context,
                      const uint8_t *in, size_t length, const uint8_t *nonce, size_t nonce_length, const uint8_t *aad,
                      size_t aad_length)
{
    (void)aead, (void)aead_context, (void)nonce, (void)nonce_length, (void)aad, (void)aad_length;
    if (length > 0)
        memmove(out, in, length);
    memset(out + length, 0, TAG);
    return 0;
}

static int decrypt(int is_server, uint8_t *out, const uint8_t *in, size_t length)
{
    if (length < TAG || in[length - 1] == FORGED)
        return NGTCP2_ERR_DECRYPT;
    memmove(out, in, length - TAG);
    return aq_reading_decrypted(is_server, out, length - TAG);
}

static int on_decrypt_at_client(uint8_t *out, const ngtcp2_crypto_aead *aead,
                                const ngtcp2_crypto_aead_ctx *aead_context, const uint8_t *in, size_t length,
                                const uint8_t *nonce, size_t nonce_length, const uint8_t *aad, size_t aad_length)
{
    (void)aead, (void)aead_context, (void)nonce, (void)nonce_length, (void)aad, (void)aad_length;
    return decrypt(0, out, in, length);
}

static int on_decrypt_at_server(uint8_t *out, const ngtcp2_crypto_aead *aead,
                                const ngtcp2_crypto_aead_ctx *aead_context, const uint8_t *in, size_t length,
                                const uint8_t *nonce, size_t nonce_length, const uint8_t *aad, size_t aad_length)
{
    (void)aead, (void)aead_context, (void)nonce, (void)nonce_length, (void)aad, (void)aad_length;
    return decrypt(1, out, in, length);
}

static int on_hp_mask(uint8_t *out, const ngtcp2_crypto_cipher *hp, const ngtcp2_crypto_cipher_ctx *hp_context,
                      const uint8_t *sample)
{
    (void)hp, (void)hp_context, (void)sample;
    memset(out, 0, NGTCP2_HP_SAMPLELEN);
    return 0;
}

static int on_update_key(ngtcp2_conn *quic, uint8_t *rx_secret, uint8_t *tx_secret, ngtcp2_crypto_aead_ctx *rx_context,
                         uint8_t *rx_iv, ngtcp2_crypto_aead_ctx *tx_context, uint8_t *tx_iv, const uint8_t *current_rx,
                         const uint8_t *current_tx, size_t length, void *user)
{
    (void)quic, (void)current_rx, (void)current_tx, (void)user;
    memset(rx_secret, 0, length);
    memset(tx_secret, 0, length);
    memset(rx_iv, 0, IV);
    memset(tx_iv, 0, IV);
    *rx_context = *tx_context = AEAD_CONTEXT;
    return 0;
}

static void on_delete_aead(ngtcp2_conn *quic, ngtcp2_crypto_aead_ctx *aead_context, void *user)
{
    (void)quic, (void)aead_context, (void)user;
}

static void on_delete_cipher(ngtcp2_conn *quic, ngtcp2_crypto_cipher_ctx *cipher, void *user)
{
    (void)quic, (void)cipher, (void)user;
}

static int on_path_challenge(ngtcp2_conn *quic, uint8_t *data, void *user)
{
    (void)quic, (void)user;
    aq_random(data, NGTCP2_PATH_CHALLENGE_DATALEN);
    return 0;
}

static int on_version_negotiation(ngtcp2_conn *quic, uint32_t version, const ngtcp2_cid *dcid, void *user)
{
    (void)dcid, (void)user;
    return ngtcp2_conn_install_vneg_initial_key(quic, version, &AEAD_CONTEXT, zeros, &CIPHER_CONTEXT, &AEAD_CONTEXT,
                                                zeros, &CIPHER_CONTEXT, IV);
}

/* ---- handshake ----------------------------------------------------------------------------------------------------
 */

static int submit(ngtcp2_conn *quic, ngtcp2_encryption_level level, int with_parameters)
{
    uint8_t message[MESSAGE_MAX];
    ngtcp2_ssize length = 0;

    if (with_parameters)
        length = ngtcp2_conn_encode_local_transport_params(quic, message + 3, sizeof(message) - 3);
    if (length < 0)
        return NGTCP2_ERR_CRYPTO;
    message[0] = 0;
    message[1] = (uint8_t)(length >> 8);
    message[2] = (uint8_t)length;
    return ngtcp2_conn_submit_crypto_data(quic, level, message, (size_t)length + 3);
}

static int on_client_initial(ngtcp2_conn *quic, void *user)
{
    (void)user;
    if (install_initial(quic) != 0)
        return NGTCP2_ERR_CALLBACK_FAILURE;
    ngtcp2_conn_set_retry_aead(quic, &AEAD, &AEAD_CONTEXT);
    return submit(quic, NGTCP2_ENCRYPTION_LEVEL_INITIAL, 1) != 0 ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_recv_client_initial(ngtcp2_conn *quic, const ngtcp2_cid *dcid, void *user)
{
    (void)dcid, (void)user;
    return install_initial(quic) != 0 ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_recv_retry(ngtcp2_conn *quic, const ngtcp2_pkt_hd *header, void *user)
{
    (void)header, (void)user;
    return install_initial(quic) != 0 ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

/* The peer's transport parameters, once its message is complete. */
static int act(ngtcp2_conn *quic, aq_tls_session *session, ngtcp2_encryption_level level, const uint8_t *parameters,
               size_t length)
{
    int is_first = level == NGTCP2_ENCRYPTION_LEVEL_INITIAL, is_server = ngtcp2_conn_is_server(quic);

    if (is_server && is_first)
        return ngtcp2_conn_decode_and_set_remote_transport_params(quic, parameters, length) != 0 ||
               submit(quic, NGTCP2_ENCRYPTION_LEVEL_INITIAL, 0) != 0 || install_handshake(quic) != 0 ||
               submit(quic, NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE, 1) != 0 || install_tx(quic) != 0;
    if (is_first)
        return install_handshake(quic);
    if (!is_server && (ngtcp2_conn_decode_and_set_remote_transport_params(quic, parameters, length) != 0 ||
                       submit(quic, NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE, 0) != 0 || install_tx(quic) != 0))
        return -1;
    if (install_rx(quic) != 0)
        return -1;
    session->done = 1;
    ngtcp2_conn_tls_handshake_completed(quic);
    return 0;
}

static int null_session_receive(aq_tls_session *session, ngtcp2_encryption_level level, uint64_t offset,
                                const uint8_t *data, size_t length)
{
    ngtcp2_conn *quic = session->quic;
    int stage = level == NGTCP2_ENCRYPTION_LEVEL_INITIAL ? 0 : 1;
    uint8_t *message = session->message[stage];
    size_t whole;

    (void)offset;
    if (level == NGTCP2_ENCRYPTION_LEVEL_1RTT)
        return 0;
    if (length > MESSAGE_MAX - session->have[stage])
        return NGTCP2_ERR_CRYPTO;
    memcpy(message + session->have[stage], data, length);
    session->have[stage] += length;
    if (session->have[stage] < 3)
        return 0;
    whole = 3 + (size_t)(message[1] << 8 | message[2]);
    if (session->have[stage] < whole)
        return 0;
    if (session->have[stage] > whole)
        return NGTCP2_ERR_CRYPTO; /* no second message */
    session->flags |= message[0];
    if (!ngtcp2_conn_is_server(quic) && (session->flags & FLAG_BAD_CERTIFICATE)) {
        ngtcp2_conn_set_tls_alert(quic, 42);
        return NGTCP2_ERR_CRYPTO;
    }
    session->have[stage] = MESSAGE_MAX; /* what comes behind it is too much */
    return act(quic, session, level, message + 3, whole - 3) != 0 ? NGTCP2_ERR_CRYPTO : 0;
}

/* ---- packets without a connection ------------------------------------------------------------------------------- */

static void null_random(void *out, size_t length)
{
    aq_random(out, length);
}

static void on_random(uint8_t *out, size_t length, const ngtcp2_rand_ctx *random_context)
{
    (void)random_context;
    aq_random(out, length);
}

static int null_reset_token(uint8_t *token, const uint8_t *secret, const ngtcp2_cid *cid)
{
    (void)secret;
    memset(token, 0, NGTCP2_STATELESS_RESET_TOKENLEN);
    memcpy(token, cid->data, cid->datalen < NGTCP2_STATELESS_RESET_TOKENLEN ? cid->datalen : 16);
    return 0;
}

/* A token: RETRY_TOKEN, length of the original connection ID, the ID. */
static ngtcp2_ssize null_write_retry(uint8_t *out, size_t room, const ngtcp2_pkt_hd *header, const ngtcp2_cid *scid,
                                     const struct sockaddr *remote, socklen_t remote_length, const uint8_t *secret,
                                     uint64_t now)
{
    uint8_t token[2 + NGTCP2_MAX_CIDLEN] = {RETRY_TOKEN, (uint8_t)header->dcid.datalen};
    (void)remote, (void)remote_length, (void)secret, (void)now;
    memcpy(token + 2, header->dcid.data, header->dcid.datalen);
    return ngtcp2_pkt_write_retry(out, room, header->version, &header->scid, scid, &header->dcid, token,
                                  2 + header->dcid.datalen, on_encrypt, &AEAD, &AEAD_CONTEXT);
}

static int null_check_retry(const ngtcp2_pkt_hd *header, const struct sockaddr *remote, socklen_t remote_length,
                            const uint8_t *secret, uint64_t lifetime, uint64_t now, ngtcp2_cid *original)
{
    const uint8_t *token = header->token;
    (void)remote, (void)remote_length, (void)secret, (void)lifetime, (void)now;
    if (header->tokenlen == 0 || token[0] != RETRY_TOKEN)
        return 0;
    if (header->tokenlen < 2 || token[1] > NGTCP2_MAX_CIDLEN || header->tokenlen != 2U + token[1])
        return -1;
    ngtcp2_cid_init(original, token + 2, token[1]);
    return 1;
}

static ngtcp2_ssize null_write_refusal(uint8_t *out, size_t room, const ngtcp2_pkt_hd *header, uint64_t code)
{
    ngtcp2_crypto_cipher hp = {&key};
    return ngtcp2_pkt_write_connection_close(out, room, header->version, &header->scid, &header->dcid, code, NULL, 0,
                                             on_encrypt, &AEAD, &AEAD_CONTEXT, zeros, on_hp_mask, &hp, &CIPHER_CONTEXT);
}

static void null_set_callbacks(ngtcp2_callbacks *callbacks, int is_server)
{
    if (is_server) {
        callbacks->recv_client_initial = on_recv_client_initial;
    } else {
        callbacks->client_initial = on_client_initial;
        callbacks->recv_retry = on_recv_retry;
    }
    callbacks->encrypt = on_encrypt;
    callbacks->decrypt = is_server ? on_decrypt_at_server : on_decrypt_at_client;
    callbacks->hp_mask = on_hp_mask;
    callbacks->rand = on_random;
    callbacks->update_key = on_update_key;
    callbacks->delete_crypto_aead_ctx = on_delete_aead;
    callbacks->delete_crypto_cipher_ctx = on_delete_cipher;
    callbacks->get_path_challenge_data = on_path_challenge;
    callbacks->version_negotiation = on_version_negotiation;
}

/* ---- the boundary -------------------------------------------------------------------------------------------------
 */

static const char *null_version(void)
{
    return "none";
}

static int64_t null_derive_key(const uint8_t *secret, size_t secret_length, const uint8_t *salt, size_t salt_length,
                               const uint8_t *info, size_t info_length, uint8_t *out)
{
    (void)secret, (void)secret_length, (void)salt, (void)salt_length, (void)info, (void)info_length, (void)out;
    return AQ_ERR_TLS;
}

static int32_t null_equal(const uint8_t *first, const uint8_t *second, size_t length)
{
    return memcmp(first, second, length) == 0;
}

static const aq_handshake_ops NULL_HANDSHAKE = {
    .credentials_new = null_credentials_new,
    .credentials_ref = null_credentials_ref,
    .credentials_unref = null_credentials_unref,
    .session_new = null_session_new,
    .session_free = null_session_free,
    .session_attach = null_session_attach,
    .session_receive = null_session_receive,
    .session_check = null_session_check,
    .session_alpn = null_session_alpn,
    .session_export = null_session_export,
    .session_peer_chain = null_session_peer_chain,
    .session_certificate_problem = null_session_certificate_problem,
    .set_callbacks = null_set_callbacks,
    .random = null_random,
    .reset_token = null_reset_token,
    .write_retry = null_write_retry,
    .check_retry = null_check_retry,
    .write_refusal = null_write_refusal,
    .version = null_version,
    .certificate_pin = null_certificate_pin,
    .certificates_read = null_certificates_read,
    .derive_key = null_derive_key,
    .equal = null_equal,
};

const aq_handshake_ops *const aq_handshake = &NULL_HANDSHAKE; /* in place of handshake.c */

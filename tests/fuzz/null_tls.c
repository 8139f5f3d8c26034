/* Stands in for tls.c and ngtcp2's TLS helper: packets with a tag of zeros, no header protection, and a handshake of
 * two messages. So a fuzzer's bytes get as far as what is behind decryption, and a peer can be played by hand.
 *
 * A message of the handshake: flags (1 byte), length (2 bytes), transport parameters. The client's is in Initial
 * packets, the server's in Handshake packets behind one empty message in Initial ones; the client ends with an empty
 * message in a Handshake packet.
 */
#include "sim.h"

#include "tls.h"

#include <gnutls/crypto.h>

#define TAG 16
#define IV 12
#define MESSAGE_MAX 2048
#define FLAG_NO_ALPN 1
#define FLAG_BAD_CERTIFICATE 2
#define FORGED 0xee /* last byte of a tag that does not fit */

struct aq_credentials {
    int references;
};

struct aq_tls_session {
    aq_credentials *credentials;
    uint8_t flags; /* of the peer's message */
    int done;
    size_t have[2]; /* bytes of the message in Initial and Handshake packets */
    uint8_t message[2][MESSAGE_MAX];
};

int gnutls_rnd(gnutls_rnd_level_t level, void *data, size_t length)
{
    (void)level;
    aq_random(data, length);
    return 0;
}

/* ---- tls.h --------------------------------------------------------------------------------------------------------
 */

int64_t aq_tls_certificate_pin(const uint8_t *certificate, size_t length, uint8_t *out)
{
    (void)certificate, (void)length, (void)out;
    return AQ_ERR_INVALID; /* there are no certificates here */
}

int64_t aq_tls_certificates_read(const uint8_t *data, size_t length, aq_certificate *out, uint32_t max, char *text,
                                 size_t text_length)
{
    (void)data, (void)length, (void)out, (void)max, (void)text, (void)text_length;
    return AQ_ERR_INVALID;
}

aq_credentials *aq_tls_credentials_new(const aq_credentials_options *options, int64_t *error, char *text,
                                       size_t text_length)
{
    aq_credentials *credentials = malloc(sizeof(*credentials));
    (void)options, (void)text, (void)text_length;
    *error = AQ_ERR_MEMORY;
    if (credentials != NULL)
        credentials->references = 1;
    return credentials;
}

void aq_tls_credentials_ref(aq_credentials *credentials)
{
    credentials->references++;
}

void aq_tls_credentials_unref(aq_credentials *credentials)
{
    MUST(credentials->references > 0);
    if (--credentials->references == 0)
        free(credentials);
}

aq_tls_session *aq_tls_session_new(aq_credentials *credentials, ngtcp2_crypto_conn_ref *reference,
                                   const char *server_name, int send_sni, int64_t *error)
{
    aq_tls_session *session = calloc(1, sizeof(*session));
    (void)reference, (void)server_name, (void)send_sni;
    *error = session != NULL ? AQ_OK : AQ_ERR_MEMORY;
    if (session != NULL) {
        session->credentials = credentials;
        aq_tls_credentials_ref(credentials);
    }
    return session;
}

void aq_tls_session_free(aq_tls_session *session)
{
    aq_tls_credentials_unref(session->credentials);
    free(session);
}

void *aq_tls_session_native(aq_tls_session *session)
{
    return session;
}

int aq_tls_session_check(aq_tls_session *session)
{
    return session->flags & FLAG_NO_ALPN ? 120 : 0;
}

size_t aq_tls_session_alpn(aq_tls_session *session, uint8_t *out, size_t length)
{
    (void)session;
    MUST(length >= 6);
    memcpy(out, "asport", 6);
    return 6;
}

int aq_tls_session_export(aq_tls_session *session, const uint8_t *label, size_t label_length, const uint8_t *context,
                          size_t context_length, uint8_t *out, size_t out_length)
{
    (void)label, (void)label_length, (void)context, (void)context_length;
    MUST(session != NULL && session->done);
    memset(out, 0, out_length);
    return 0;
}

const char *aq_tls_session_certificate_problem(aq_tls_session *session)
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

int ngtcp2_crypto_encrypt_cb(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *aead_context,
                             const uint8_t *in, size_t length, const uint8_t *nonce, size_t nonce_length,
                             const uint8_t *aad, size_t aad_length)
{
    (void)aead, (void)aead_context, (void)nonce, (void)nonce_length, (void)aad, (void)aad_length;
    if (length > 0)
        memmove(out, in, length);
    memset(out + length, 0, TAG);
    return 0;
}

int ngtcp2_crypto_decrypt_cb(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *aead_context,
                             const uint8_t *in, size_t length, const uint8_t *nonce, size_t nonce_length,
                             const uint8_t *aad, size_t aad_length)
{
    (void)aead, (void)aead_context, (void)nonce, (void)nonce_length, (void)aad, (void)aad_length;
    if (length < TAG || in[length - 1] == FORGED)
        return NGTCP2_ERR_DECRYPT;
    memmove(out, in, length - TAG);
    return 0;
}

int ngtcp2_crypto_hp_mask_cb(uint8_t *out, const ngtcp2_crypto_cipher *hp, const ngtcp2_crypto_cipher_ctx *hp_context,
                             const uint8_t *sample)
{
    (void)hp, (void)hp_context, (void)sample;
    memset(out, 0, NGTCP2_HP_SAMPLELEN);
    return 0;
}

int ngtcp2_crypto_update_key_cb(ngtcp2_conn *quic, uint8_t *rx_secret, uint8_t *tx_secret,
                                ngtcp2_crypto_aead_ctx *rx_context, uint8_t *rx_iv, ngtcp2_crypto_aead_ctx *tx_context,
                                uint8_t *tx_iv, const uint8_t *current_rx, const uint8_t *current_tx, size_t length,
                                void *user)
{
    (void)quic, (void)current_rx, (void)current_tx, (void)user;
    memset(rx_secret, 0, length);
    memset(tx_secret, 0, length);
    memset(rx_iv, 0, IV);
    memset(tx_iv, 0, IV);
    *rx_context = *tx_context = AEAD_CONTEXT;
    return 0;
}

void ngtcp2_crypto_delete_crypto_aead_ctx_cb(ngtcp2_conn *quic, ngtcp2_crypto_aead_ctx *aead_context, void *user)
{
    (void)quic, (void)aead_context, (void)user;
}

void ngtcp2_crypto_delete_crypto_cipher_ctx_cb(ngtcp2_conn *quic, ngtcp2_crypto_cipher_ctx *cipher, void *user)
{
    (void)quic, (void)cipher, (void)user;
}

int ngtcp2_crypto_get_path_challenge_data_cb(ngtcp2_conn *quic, uint8_t *data, void *user)
{
    (void)quic, (void)user;
    aq_random(data, NGTCP2_PATH_CHALLENGE_DATALEN);
    return 0;
}

int ngtcp2_crypto_version_negotiation_cb(ngtcp2_conn *quic, uint32_t version, const ngtcp2_cid *dcid, void *user)
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

int ngtcp2_crypto_client_initial_cb(ngtcp2_conn *quic, void *user)
{
    (void)user;
    if (install_initial(quic) != 0)
        return NGTCP2_ERR_CALLBACK_FAILURE;
    ngtcp2_conn_set_retry_aead(quic, &AEAD, &AEAD_CONTEXT);
    return submit(quic, NGTCP2_ENCRYPTION_LEVEL_INITIAL, 1) != 0 ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

int ngtcp2_crypto_recv_client_initial_cb(ngtcp2_conn *quic, const ngtcp2_cid *dcid, void *user)
{
    (void)dcid, (void)user;
    return install_initial(quic) != 0 ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

int ngtcp2_crypto_recv_retry_cb(ngtcp2_conn *quic, const ngtcp2_pkt_hd *header, void *user)
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

int aq_tls_session_receive(aq_tls_session *session, ngtcp2_conn *quic, ngtcp2_encryption_level level, uint64_t offset,
                           const uint8_t *data, size_t length)
{
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

int ngtcp2_crypto_generate_stateless_reset_token(uint8_t *token, const uint8_t *secret, size_t secret_length,
                                                 const ngtcp2_cid *cid)
{
    (void)secret, (void)secret_length;
    memset(token, 0, NGTCP2_STATELESS_RESET_TOKENLEN);
    memcpy(token, cid->data, cid->datalen < NGTCP2_STATELESS_RESET_TOKENLEN ? cid->datalen : 16);
    return 0;
}

ngtcp2_ssize ngtcp2_crypto_generate_retry_token2(uint8_t *token, const uint8_t *secret, size_t secret_length,
                                                 uint32_t version, const ngtcp2_sockaddr *remote,
                                                 ngtcp2_socklen remote_length, const ngtcp2_cid *scid,
                                                 const ngtcp2_cid *original, ngtcp2_tstamp now)
{
    (void)secret, (void)secret_length, (void)version, (void)remote, (void)remote_length, (void)scid, (void)now;
    token[0] = NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY2;
    token[1] = (uint8_t)original->datalen;
    memcpy(token + 2, original->data, original->datalen);
    return 2 + (ngtcp2_ssize)original->datalen;
}

int ngtcp2_crypto_verify_retry_token2(ngtcp2_cid *original, const uint8_t *token, size_t length, const uint8_t *secret,
                                      size_t secret_length, uint32_t version, const ngtcp2_sockaddr *remote,
                                      ngtcp2_socklen remote_length, const ngtcp2_cid *dcid, ngtcp2_duration timeout,
                                      ngtcp2_tstamp now)
{
    (void)secret, (void)secret_length, (void)version, (void)remote, (void)remote_length, (void)dcid, (void)timeout;
    (void)now;
    if (length < 2 || token[1] > NGTCP2_MAX_CIDLEN || length != 2U + token[1])
        return NGTCP2_CRYPTO_ERR_UNREADABLE_TOKEN;
    ngtcp2_cid_init(original, token + 2, token[1]);
    return 0;
}

ngtcp2_ssize ngtcp2_crypto_write_retry(uint8_t *out, size_t room, uint32_t version, const ngtcp2_cid *dcid,
                                       const ngtcp2_cid *scid, const ngtcp2_cid *original, const uint8_t *token,
                                       size_t token_length)
{
    return ngtcp2_pkt_write_retry(out, room, version, dcid, scid, original, token, token_length,
                                  ngtcp2_crypto_encrypt_cb, &AEAD, &AEAD_CONTEXT);
}

ngtcp2_ssize ngtcp2_crypto_write_connection_close(uint8_t *out, size_t room, uint32_t version, const ngtcp2_cid *dcid,
                                                  const ngtcp2_cid *scid, uint64_t code, const uint8_t *reason,
                                                  size_t reason_length)
{
    ngtcp2_crypto_cipher hp = {&key};
    return ngtcp2_pkt_write_connection_close(out, room, version, dcid, scid, code, reason, reason_length,
                                             ngtcp2_crypto_encrypt_cb, &AEAD, &AEAD_CONTEXT, zeros,
                                             ngtcp2_crypto_hp_mask_cb, &hp, &CIPHER_CONTEXT);
}

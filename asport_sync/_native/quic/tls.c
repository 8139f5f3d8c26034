/* The handshake layer on GnuTLS: the functions that need neither credentials nor a session, and the table of all. */
#include "quic/tls.h"

#include "quic/reading.h"

#include <gnutls/crypto.h>

/* ---- packets ---------------------------------------------------------------------------------------------------- */

static void random_bytes(void *out, size_t length)
{
    if (gnutls_rnd(GNUTLS_RND_NONCE, out, length) != 0)
        aq_random(out, length);
}

static void on_random(uint8_t *out, size_t length, const ngtcp2_rand_ctx *context)
{
    AQ_UNUSED(context);
    random_bytes(out, length);
}

/* One callback for each side, because the callback gets no connection. */
static int on_decrypt_at_client(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *context,
                                const uint8_t *in, size_t length, const uint8_t *nonce, size_t nonce_length,
                                const uint8_t *aad, size_t aad_length)
{
    int result = ngtcp2_crypto_decrypt_cb(out, aead, context, in, length, nonce, nonce_length, aad, aad_length);
    return result == 0 ? aq_reading_decrypted(0, out, length - aead->max_overhead) : result;
}

static int on_decrypt_at_server(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *context,
                                const uint8_t *in, size_t length, const uint8_t *nonce, size_t nonce_length,
                                const uint8_t *aad, size_t aad_length)
{
    int result = ngtcp2_crypto_decrypt_cb(out, aead, context, in, length, nonce, nonce_length, aad, aad_length);
    return result == 0 ? aq_reading_decrypted(1, out, length - aead->max_overhead) : result;
}

static void set_callbacks(ngtcp2_callbacks *callbacks, int is_server)
{
    if (is_server) {
        callbacks->recv_client_initial = ngtcp2_crypto_recv_client_initial_cb;
    } else {
        callbacks->client_initial = ngtcp2_crypto_client_initial_cb;
        callbacks->recv_retry = ngtcp2_crypto_recv_retry_cb;
    }
    callbacks->encrypt = ngtcp2_crypto_encrypt_cb;
    callbacks->decrypt = is_server ? on_decrypt_at_server : on_decrypt_at_client;
    callbacks->hp_mask = ngtcp2_crypto_hp_mask_cb;
    callbacks->rand = on_random;
    callbacks->update_key = ngtcp2_crypto_update_key_cb;
    callbacks->delete_crypto_aead_ctx = ngtcp2_crypto_delete_crypto_aead_ctx_cb;
    callbacks->delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb;
    callbacks->get_path_challenge_data = ngtcp2_crypto_get_path_challenge_data_cb;
    callbacks->version_negotiation = ngtcp2_crypto_version_negotiation_cb;
}

static int reset_token(uint8_t *token, const uint8_t *key, const ngtcp2_cid *cid)
{
    return ngtcp2_crypto_generate_stateless_reset_token(token, key, AQ_TOKEN_KEY_LENGTH, cid);
}

static ngtcp2_ssize write_retry(uint8_t *out, size_t room, const ngtcp2_pkt_hd *header, const ngtcp2_cid *scid,
                                const struct sockaddr *remote, socklen_t remote_length, const uint8_t *key,
                                uint64_t now)
{
    uint8_t token[NGTCP2_CRYPTO_MAX_RETRY_TOKENLEN2];
    ngtcp2_ssize length = ngtcp2_crypto_generate_retry_token2(token, key, AQ_TOKEN_KEY_LENGTH, header->version, remote,
                                                              (ngtcp2_socklen)remote_length, scid, &header->dcid, now);
    if (length < 0)
        return length;
    return ngtcp2_crypto_write_retry(out, room, header->version, &header->scid, scid, &header->dcid, token,
                                     (size_t)length);
}

static int check_retry(const ngtcp2_pkt_hd *header, const struct sockaddr *remote, socklen_t remote_length,
                       const uint8_t *key, uint64_t lifetime, uint64_t now, ngtcp2_cid *original)
{
    if (header->tokenlen == 0 || header->token[0] != NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY2)
        return 0;
    return ngtcp2_crypto_verify_retry_token2(original, header->token, header->tokenlen, key, AQ_TOKEN_KEY_LENGTH,
                                             header->version, remote, (ngtcp2_socklen)remote_length, &header->dcid,
                                             lifetime, now) == 0
               ? 1
               : -1;
}

static ngtcp2_ssize write_refusal(uint8_t *out, size_t room, const ngtcp2_pkt_hd *header, uint64_t code)
{
    return ngtcp2_crypto_write_connection_close(out, room, header->version, &header->scid, &header->dcid, code, NULL,
                                                0);
}

/* ---- the boundary ----------------------------------------------------------------------------------------------- */

static const char *version(void)
{
    return gnutls_check_version(NULL);
}

static int64_t derive_key(const uint8_t *secret, size_t secret_length, const uint8_t *salt, size_t salt_length,
                          const uint8_t *info, size_t info_length, uint8_t *out)
{
    gnutls_datum_t key = aq_tls_datum(secret, secret_length);
    gnutls_datum_t with = aq_tls_datum(salt, salt_length);
    gnutls_datum_t what = aq_tls_datum(info, info_length);
    uint8_t extracted[32];
    gnutls_datum_t middle = {extracted, sizeof(extracted)};
    int failed = gnutls_hkdf_extract(GNUTLS_MAC_SHA256, &key, &with, extracted) != 0 ||
                 gnutls_hkdf_expand(GNUTLS_MAC_SHA256, &middle, &what, out, 32) != 0;
    gnutls_memset(extracted, 0, sizeof(extracted));
    return failed ? AQ_ERR_TLS : AQ_OK;
}

static int32_t equal(const uint8_t *first, const uint8_t *second, size_t length)
{
    return gnutls_memcmp(first, second, length) == 0;
}

const aq_handshake_ops aq_handshake_gnutls = {
    .credentials_new = aq_tls_credentials_new,
    .credentials_ref = aq_tls_credentials_ref,
    .credentials_unref = aq_tls_credentials_unref,
    .session_new = aq_tls_session_new,
    .session_free = aq_tls_session_free,
    .session_attach = aq_tls_session_attach,
    .session_receive = aq_tls_session_receive,
    .session_check = aq_tls_session_check,
    .session_alpn = aq_tls_session_alpn,
    .session_export = aq_tls_session_export,
    .session_peer_chain = aq_tls_session_peer_chain,
    .session_certificate_problem = aq_tls_session_certificate_problem,
    .set_callbacks = set_callbacks,
    .random = random_bytes,
    .reset_token = reset_token,
    .write_retry = write_retry,
    .check_retry = check_retry,
    .write_refusal = write_refusal,
    .version = version,
    .certificate_pin = aq_tls_certificate_pin,
    .certificates_read = aq_tls_certificates_read,
    .derive_key = derive_key,
    .equal = equal,
};

/* A raw peer's TLS 1.3, by GnuTLS, and its packet protection, by hand: AES-128-GCM with SHA-256 (RFC 9001 section 5).
 * The messages of its handshake pass through here on their way out, and the input may change, repeat, move or drop each
 * of them.
 */
#include "raw_tls.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

void fuzz_identity(gnutls_certificate_credentials_t credentials, int is_server);

#define KEY 16
#define IV 12
#define SECRET 32
#define SAMPLE 16
#define ROOM 16384 /* bytes of messages that wait at one level */
#define PIECE 1000 /* bytes of a CRYPTO frame */

raw_tls_plan raw_tls;

typedef struct {
    int there;
    uint8_t secret[SECRET], iv[IV];
    gnutls_aead_cipher_hd_t aead;
    gnutls_cipher_hd_t header;
} keys;

static struct {
    gnutls_session_t session;
    keys mine[RAW_SPACES], theirs[RAW_SPACES];
    int phase, their_phase; /* of the key updates, 0 or 1 */
    int due;                /* the first step */
    int done, over;
    uint8_t received[RAW_SPACES][ROOM]; /* the engine's CRYPTO frames */
    uint8_t is_there[RAW_SPACES][ROOM]; /* which bytes of it */
    size_t used[RAW_SPACES];            /* bytes of it that TLS has had */
    uint8_t waiting[RAW_SPACES][ROOM];
    size_t waiting_length[RAW_SPACES];
} tls;

static gnutls_certificate_credentials_t credentials[2]; /* of a client, of a server */
static gnutls_priority_t usual, retried[2];

/* ---- keys ---------------------------------------------------------------------------------------------------------
 */

static gnutls_datum_t datum(const void *data, size_t length)
{
    return (gnutls_datum_t){.data = (unsigned char *)(uintptr_t)data, .size = (unsigned int)length};
}

/* HKDF-Expand-Label without context, RFC 8446 section 7.1. */
static void expand(const uint8_t *secret, const char *label, uint8_t *out, size_t length)
{
    uint8_t info[64] = {(uint8_t)(length >> 8), (uint8_t)length, (uint8_t)(6 + strlen(label))};
    size_t used = 3;
    gnutls_datum_t from = datum(secret, SECRET), with;

    memcpy(info + used, "tls13 ", 6);
    memcpy(info + used + 6, label, strlen(label));
    used += 6 + strlen(label) + 1; /* the last byte: an empty context */
    with = datum(info, used);
    MUST(gnutls_hkdf_expand(GNUTLS_MAC_SHA256, &from, &with, out, length) == 0);
}

static void drop_keys(keys *old)
{
    if (old->aead != NULL)
        gnutls_aead_cipher_deinit(old->aead);
    if (old->header != NULL)
        gnutls_cipher_deinit(old->header);
    memset(old, 0, sizeof(*old));
}

/* The header protection key stays the same through key updates. */
static void set_keys(keys *to, const uint8_t *secret, int is_update)
{
    uint8_t key[KEY];
    gnutls_datum_t as = datum(key, KEY);

    if (to->aead != NULL)
        gnutls_aead_cipher_deinit(to->aead);
    memcpy(to->secret, secret, SECRET);
    expand(secret, "quic key", key, KEY);
    MUST(gnutls_aead_cipher_init(&to->aead, GNUTLS_CIPHER_AES_128_GCM, &as) == 0);
    expand(secret, "quic iv", to->iv, IV);
    if (!is_update) {
        expand(secret, "quic hp", key, KEY);
        MUST(gnutls_cipher_init(&to->header, GNUTLS_CIPHER_AES_128_CBC, &as, NULL) == 0);
    }
    to->there = 1;
}

/* RFC 9001 section 5.2. */
static void set_initial_keys(void)
{
    static const uint8_t SALT[] = {0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17,
                                   0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a};
    uint8_t common[SECRET], client[SECRET], server[SECRET];
    gnutls_datum_t id = datum(raw_self.original, raw_self.original_length), salt = datum(SALT, sizeof(SALT));

    MUST(gnutls_hkdf_extract(GNUTLS_MAC_SHA256, &id, &salt, common) == 0);
    expand(common, "client in", client, SECRET);
    expand(common, "server in", server, SECRET);
    set_keys(&tls.mine[RAW_INITIAL], raw_self.is_server ? server : client, 0);
    set_keys(&tls.theirs[RAW_INITIAL], raw_self.is_server ? client : server, 0);
}

int raw_has_keys(enum raw_space space)
{
    return tls.mine[space].there;
}

static void mask_header(const keys *with, uint8_t *packet, size_t number_at, uint8_t mask[SAMPLE])
{
    static const uint8_t zeros[SAMPLE];

    /* One block in CBC with zeros in front is what it is in ECB. */
    gnutls_cipher_set_iv(with->header, (void *)(uintptr_t)zeros, SAMPLE);
    MUST(gnutls_cipher_encrypt2(with->header, packet + number_at + 4, SAMPLE, mask, SAMPLE) == 0);
    packet[0] ^= (uint8_t)(mask[0] & ((packet[0] & 0x80) != 0 ? 0x0f : 0x1f));
}

static void nonce_of(const keys *with, uint64_t number, uint8_t nonce[IV])
{
    memcpy(nonce, with->iv, IV);
    for (int i = 0; i < 8; i++)
        nonce[IV - 1 - i] ^= (uint8_t)(number >> 8 * i);
}

void raw_seal(enum raw_space space, uint8_t *packet, size_t number_at, uint64_t number, size_t length)
{
    const keys *with = &tls.mine[space];
    uint8_t nonce[IV], mask[SAMPLE], *payload = packet + number_at + RAW_NUMBER;
    size_t sealed = length + RAW_TAG;

    if (space == RAW_APPLICATION && tls.phase)
        packet[0] |= 0x04;
    nonce_of(with, number, nonce);
    MUST(gnutls_aead_cipher_encrypt(with->aead, nonce, IV, packet, number_at + RAW_NUMBER, RAW_TAG, payload, length,
                                    payload, &sealed) == 0);
    mask_header(with, packet, number_at, mask);
    for (size_t i = 0; i < RAW_NUMBER; i++)
        packet[number_at + i] ^= mask[1 + i];
}

int raw_open(enum raw_space space, uint8_t *packet, size_t number_at, size_t length, uint64_t expected,
             raw_opened *opened)
{
    static uint8_t plain[65536];
    keys *with = &tls.theirs[space];
    uint8_t nonce[IV], mask[SAMPLE], next[SECRET];
    size_t bytes;

    if (space == RAW_INITIAL && raw_self.is_server && !with->there && raw_self.original_length > 0)
        set_initial_keys();
    if (!with->there || length < number_at + 4 + SAMPLE)
        return 0;
    mask_header(with, packet, number_at, mask);
    bytes = (size_t)(packet[0] & 3) + 1;
    opened->number = 0;
    for (size_t i = 0; i < bytes; i++) {
        packet[number_at + i] ^= mask[1 + i];
        opened->number = opened->number << 8 | packet[number_at + i];
    }
    opened->number = raw_whole_number(opened->number, bytes, expected);
    if (space == RAW_APPLICATION && (packet[0] & 0x04) >> 2 != tls.their_phase) {
        expand(with->secret, "quic ku", next, SECRET);
        set_keys(with, next, 1);
        tls.their_phase = !tls.their_phase;
    }
    nonce_of(with, opened->number, nonce);
    opened->length = sizeof(plain);
    opened->payload = plain;
    return gnutls_aead_cipher_decrypt(with->aead, nonce, IV, packet, number_at + bytes, RAW_TAG,
                                      packet + number_at + bytes, length - number_at - bytes, plain,
                                      &opened->length) == 0;
}

void raw_update_keys(void)
{
    uint8_t next[SECRET];

    if (!tls.mine[RAW_APPLICATION].there)
        return;
    expand(tls.mine[RAW_APPLICATION].secret, "quic ku", next, SECRET);
    set_keys(&tls.mine[RAW_APPLICATION], next, 1);
    tls.phase = !tls.phase;
}

/* ---- messages on their way out ------------------------------------------------------------------------------------
 */

static void flush(enum raw_space space)
{
    size_t at = 0;

    while (at < tls.waiting_length[space]) {
        size_t piece = tls.waiting_length[space] - at;
        if (!raw_tls.crowded && piece > PIECE)
            piece = PIECE;
        raw_crypto(space, tls.waiting[space] + at, piece);
        at += piece;
    }
    tls.waiting_length[space] = 0;
}

static void queue(enum raw_space space, const uint8_t *data, size_t length)
{
    if (length > ROOM - tls.waiting_length[space])
        return;
    memcpy(tls.waiting[space] + tls.waiting_length[space], data, length);
    tls.waiting_length[space] += length;
}

void raw_message(fuzz_input *input)
{
    /* Those of TLS 1.3 and their neighbours. */
    static const uint8_t TYPES[] = {1, 2, 4, 5, 8, 11, 13, 15, 20, 24, 25, 0, 3, 254, 255, 24};
    uint8_t what = fuzz_u8(input), message[4 + 256];
    size_t length, claimed;
    const uint8_t *body = fuzz_bytes(input, fuzz_u8(input) % 64, &length);

    claimed = what & 16 ? fuzz_u32(input) & 0xffffff : length;
    message[0] = TYPES[what % 16];
    message[1] = (uint8_t)(claimed >> 16);
    message[2] = (uint8_t)(claimed >> 8);
    message[3] = (uint8_t)claimed;
    if (length > 0)
        memcpy(message + 4, body, length);
    queue((enum raw_space)(what / 32 % RAW_SPACES), message, 4 + length);
    if ((what & 128) == 0) {
        for (int i = 0; i < RAW_SPACES; i++)
            flush((enum raw_space)i);
    }
}

/* One message of GnuTLS's, the whole of it. */
static void meddle(enum raw_space space, const uint8_t *data, size_t length)
{
    uint8_t changed[ROOM], what = fuzz_u8(raw_tls.input);
    size_t where;

    if (length > ROOM)
        return;
    memcpy(changed, data, length);
    switch (what % 16) {
    case 0: /* dropped */
        return;
    case 1:
        queue(space, data, length);
        break;
    case 2:
        where = fuzz_u16(raw_tls.input) % length;
        changed[where] = fuzz_u8(raw_tls.input);
        break;
    case 3:
        length = fuzz_u16(raw_tls.input) % length;
        break;
    case 4:
        raw_message(raw_tls.input);
        break;
    case 5:
        queue(space, data, length);
        raw_message(raw_tls.input);
        return;
    case 6: /* at another level, as far as there are keys */
        space = (enum raw_space)(what / 16 % RAW_SPACES);
        break;
    default:
        break;
    }
    queue(space, changed, length);
}

static int on_message(gnutls_session_t session, gnutls_record_encryption_level_t level,
                      gnutls_handshake_description_t type, const void *data, size_t length)
{
    enum raw_space space = level == GNUTLS_ENCRYPTION_LEVEL_INITIAL     ? RAW_INITIAL
                           : level == GNUTLS_ENCRYPTION_LEVEL_HANDSHAKE ? RAW_HANDSHAKE
                                                                        : RAW_APPLICATION;
    (void)session;
    if (type == GNUTLS_HANDSHAKE_CHANGE_CIPHER_SPEC || length == 0)
        return 0;
    if (raw_tls.meddles)
        meddle(space, data, length);
    else
        queue(space, data, length);
    return 0;
}

/* ---- the handshake ------------------------------------------------------------------------------------------------
 */

static int on_secret(gnutls_session_t session, gnutls_record_encryption_level_t level, const void *rx, const void *tx,
                     size_t length)
{
    enum raw_space space = level == GNUTLS_ENCRYPTION_LEVEL_HANDSHAKE ? RAW_HANDSHAKE : RAW_APPLICATION;

    (void)session;
    if (length != SECRET ||
        (level != GNUTLS_ENCRYPTION_LEVEL_HANDSHAKE && level != GNUTLS_ENCRYPTION_LEVEL_APPLICATION))
        return -1;
    if (rx != NULL)
        set_keys(&tls.theirs[space], rx, tls.theirs[space].there);
    if (tx != NULL)
        set_keys(&tls.mine[space], tx, tls.mine[space].there);
    return 0;
}

static int on_alert(gnutls_session_t session, gnutls_record_encryption_level_t level, gnutls_alert_level_t severity,
                    gnutls_alert_description_t alert)
{
    (void)session, (void)level, (void)severity, (void)alert;
    return 0;
}

static int take_parameters(gnutls_session_t session, const uint8_t *data, size_t length)
{
    (void)session, (void)data, (void)length;
    return 0;
}

static int give_parameters(gnutls_session_t session, gnutls_buffer_t out)
{
    uint8_t bytes[512];
    const uint8_t *own;
    size_t length = raw_parameters(bytes);

    (void)session;
    if (raw_tls.parameters == RAW_PARAMETERS_OWN) {
        own = fuzz_bytes(raw_tls.input, fuzz_u8(raw_tls.input), &length);
        return gnutls_buffer_append_data(out, own, length);
    }
    for (int changes = raw_tls.parameters == RAW_PARAMETERS_CHANGED ? 1 + fuzz_u8(raw_tls.input) % 3 : 0; changes > 0;
         changes--) {
        size_t where = fuzz_u8(raw_tls.input) % length;
        bytes[where] = fuzz_u8(raw_tls.input);
    }
    if (raw_tls.parameters == RAW_PARAMETERS_CHANGED && fuzz_u8(raw_tls.input) % 4 == 0) { /* one more, or one again */
        own = fuzz_bytes(raw_tls.input, fuzz_u8(raw_tls.input) % 64, &length);
        if (length > 0)
            memcpy(bytes + raw_parameters(bytes), own, length);
        length += raw_parameters(bytes);
    }
    return gnutls_buffer_append_data(out, bytes, length);
}

static void prepare(void)
{
    static const char COMMON[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:%DISABLE_TLS13_COMPAT_MODE";
    char text[300];

    for (int i = 0; i < 2; i++) {
        MUST(gnutls_certificate_allocate_credentials(&credentials[i]) == 0);
        fuzz_identity(credentials[i], i);
    }
    MUST(gnutls_priority_init(&usual, COMMON, NULL) == 0);
    /* A client that sends a share for a group that the engine does not have; a server that has only the engine's last.
     */
    snprintf(text, sizeof(text), "%s:-GROUP-ALL:+GROUP-SECP521R1:+GROUP-X25519", COMMON);
    MUST(gnutls_priority_init(&retried[0], text, NULL) == 0);
    snprintf(text, sizeof(text), "%s:-GROUP-ALL:+GROUP-SECP384R1", COMMON);
    MUST(gnutls_priority_init(&retried[1], text, NULL) == 0);
}

void raw_handshake_begin(void)
{
    unsigned int flags = GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS | GNUTLS_NO_AUTO_SEND_TICKET |
                         GNUTLS_NO_END_OF_EARLY_DATA | GNUTLS_KEY_SHARE_TOP;
    gnutls_datum_t protocol = datum("asport", 6);
    int is_server = raw_self.is_server;

    if (usual == NULL)
        prepare();
    for (int i = 0; i < RAW_SPACES; i++) {
        drop_keys(&tls.mine[i]);
        drop_keys(&tls.theirs[i]);
    }
    if (tls.session != NULL)
        gnutls_deinit(tls.session);
    memset(&tls, 0, sizeof(tls));
    MUST(gnutls_init(&tls.session, flags | (is_server ? GNUTLS_SERVER : GNUTLS_CLIENT)) == 0);
    MUST(gnutls_priority_set(tls.session, raw_tls.hello_retry ? retried[is_server] : usual) == 0);
    MUST(gnutls_credentials_set(tls.session, GNUTLS_CRD_CERTIFICATE, credentials[is_server]) == 0);
    MUST(gnutls_alpn_set_protocols(tls.session, &protocol, 1, 0) == 0);
    if (is_server && raw_tls.asks)
        gnutls_certificate_server_set_request(tls.session, GNUTLS_CERT_REQUEST);
    gnutls_handshake_set_secret_function(tls.session, on_secret);
    gnutls_handshake_set_read_function(tls.session, on_message);
    gnutls_alert_set_read_function(tls.session, on_alert);
    if (raw_tls.parameters != RAW_PARAMETERS_NONE)
        MUST(gnutls_session_ext_register(tls.session, "QUIC transport parameters", 0x39, GNUTLS_EXT_TLS,
                                         take_parameters, give_parameters, NULL, NULL, NULL,
                                         GNUTLS_EXT_FLAG_TLS | GNUTLS_EXT_FLAG_CLIENT_HELLO | GNUTLS_EXT_FLAG_EE) == 0);
    if (!is_server) {
        set_initial_keys();
        tls.due = 1;
    }
}

/* The next step, as soon as TLS has something to work on: the packet behind this one may need its keys. */
static void step(void)
{
    static const uint8_t HANDSHAKE_DONE = 0x1e;
    int code = gnutls_handshake(tls.session);

    if (code == 0)
        tls.done = 1;
    else if (gnutls_error_is_fatal(code))
        tls.over = 1;
    for (int i = 0; i < RAW_SPACES; i++)
        flush((enum raw_space)i);
    if (tls.done && raw_self.is_server)
        raw_send(RAW_APPLICATION, &HANDSHAKE_DONE, 1);
}

/* Frames come in any order: a ClientHello is cut and shuffled. */
static void take_crypto(enum raw_space space, uint64_t offset, const uint8_t *data, size_t length)
{
    static const gnutls_record_encryption_level_t LEVELS[RAW_SPACES] = {
        GNUTLS_ENCRYPTION_LEVEL_INITIAL, GNUTLS_ENCRYPTION_LEVEL_HANDSHAKE, GNUTLS_ENCRYPTION_LEVEL_APPLICATION};
    size_t from = tls.used[space], to = from;

    if (offset > ROOM || length > ROOM - offset)
        return;
    memcpy(tls.received[space] + offset, data, length);
    memset(tls.is_there[space] + offset, 1, length);
    while (to < ROOM && tls.is_there[space][to])
        to++;
    if (to == from || tls.done || tls.over)
        return;
    tls.used[space] = to;
    if (gnutls_handshake_write(tls.session, LEVELS[space], tls.received[space] + from, to - from) != 0)
        tls.over = 1;
    else
        step();
}

void raw_handshake_receive(enum raw_space space, const uint8_t *payload, size_t length)
{
    const uint8_t *at = payload, *end = payload + length;

    while (at < end) {
        uint64_t count, offset;
        uint8_t type = *at++;
        if (type == 0x00 || type == 0x01)
            continue;
        if (type == 0x06) {
            offset = raw_get_varint(&at, end);
            count = raw_get_varint(&at, end);
            if (count > (uint64_t)(end - at))
                return;
            take_crypto(space, offset, at, (size_t)count);
            at += count;
            continue;
        }
        if (type != 0x02)
            return;
        raw_get_varint(&at, end); /* largest, delay */
        raw_get_varint(&at, end);
        count = raw_get_varint(&at, end);
        raw_get_varint(&at, end);
        while (count-- > 0 && at < end) {
            raw_get_varint(&at, end);
            raw_get_varint(&at, end);
        }
    }
}

void raw_handshake_turn(void)
{
    if (tls.due) /* a client begins */
        step();
    tls.due = 0;
}

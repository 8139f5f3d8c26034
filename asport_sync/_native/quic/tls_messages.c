#include "quic/tls_messages.h"

/* RFC 8446 section 4. */
enum {
    CLIENT_HELLO = 1,
    SERVER_HELLO = 2,
    NEW_SESSION_TICKET = 4,
    ENCRYPTED_EXTENSIONS = 8,
    CERTIFICATE = 11,
    CERTIFICATE_REQUEST = 13,
    CERTIFICATE_VERIFY = 15,
    FINISHED = 20
};

#define BIT(type) (UINT32_C(1) << (type))

/* Types that each side may receive, one bit for each. A server requests no certificate, so a client sends none. */
static const uint32_t at_server[AQ_TLS_LEVELS] = {
    [AQ_TLS_INITIAL] = BIT(CLIENT_HELLO), [AQ_TLS_HANDSHAKE] = BIT(FINISHED), [AQ_TLS_ONE_RTT] = 0};
static const uint32_t at_client[AQ_TLS_LEVELS] = {[AQ_TLS_INITIAL] = BIT(SERVER_HELLO),
                                                  [AQ_TLS_HANDSHAKE] = BIT(ENCRYPTED_EXTENSIONS) |
                                                                       BIT(CERTIFICATE_REQUEST) | BIT(CERTIFICATE) |
                                                                       BIT(CERTIFICATE_VERIFY) | BIT(FINISHED),
                                                  [AQ_TLS_ONE_RTT] = BIT(NEW_SESSION_TICKET)};

static int is_allowed(int is_server, enum aq_tls_level level, uint8_t type)
{
    uint32_t allowed = is_server ? at_server[level] : at_client[level];
    return type < 32 && (allowed & BIT(type)) != 0;
}

enum aq_tls_verdict aq_tls_messages_judge(aq_tls_messages *messages, int is_server, enum aq_tls_level level,
                                          const uint8_t *data, size_t length)
{
    aq_tls_message *message = &messages->levels[level];
    const uint8_t *end = data + length;

    while (data < end) {
        if (message->header_got < 4) {
            uint8_t *header = message->header;
            header[message->header_got++] = *data++;
            /* The type is enough, whether or not the rest of the message ever arrives. */
            if (message->header_got == 1) {
                if (!is_server && level == AQ_TLS_ONE_RTT && header[0] == CERTIFICATE_REQUEST)
                    return AQ_TLS_VIOLATION;
                if (message->ended || !is_allowed(is_server, level, header[0]))
                    return AQ_TLS_UNEXPECTED;
            }
            if (message->header_got == 4)
                message->body_left = (uint32_t)header[1] << 16 | (uint32_t)header[2] << 8 | header[3];
        } else {
            size_t left = message->body_left, here = (size_t)(end - data);
            if (here > left)
                here = left;
            data += here;
            message->body_left = (uint32_t)(left - here);
        }
        if (message->header_got == 4 && message->body_left == 0) {
            message->ended = message->header[0] == FINISHED;
            message->header_got = 0;
        }
    }
    return level == AQ_TLS_ONE_RTT ? AQ_TLS_DISCARD : AQ_TLS_PASS;
}

/* What may be said at each encryption level, in every way of cutting it into pieces. */
#include "quic/tls_messages.h"

#include "check.h"

#define MAX_LENGTH 4096

/* A message with a body of so many bytes; returns its whole length. */
static size_t put(uint8_t *out, uint8_t type, size_t body)
{
    out[0] = type;
    out[1] = (uint8_t)(body >> 16);
    out[2] = (uint8_t)(body >> 8);
    out[3] = (uint8_t)body;
    memset(out + 4, type, body);
    return 4 + body;
}

/* Feeds it in pieces of `piece` bytes until something is wrong. */
static enum aq_tls_verdict judge(aq_tls_messages *messages, int is_server, enum aq_tls_level level, const uint8_t *data,
                                 size_t length, size_t piece)
{
    enum aq_tls_verdict verdict = AQ_TLS_PASS;
    for (size_t at = 0; at < length; at += piece) {
        verdict =
            aq_tls_messages_judge(messages, is_server, level, data + at, length - at < piece ? length - at : piece);
        if (verdict == AQ_TLS_UNEXPECTED || verdict == AQ_TLS_VIOLATION)
            break;
    }
    return verdict;
}

static const size_t pieces[] = {1, 2, 3, 4, 5, 7, 64, MAX_LENGTH};

static void test_handshakes(void)
{
    uint8_t data[MAX_LENGTH];
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(pieces); i++) {
        aq_tls_messages server = {0}, client = {0};
        size_t length = put(data, 1, 300);
        length += put(data + length, 1, 500); /* after HelloRetryRequest */
        CHECK_INT(judge(&server, 1, AQ_TLS_INITIAL, data, length, pieces[i]), AQ_TLS_PASS);
        CHECK_INT(judge(&server, 1, AQ_TLS_HANDSHAKE, data, put(data, 20, 32), pieces[i]), AQ_TLS_PASS);

        CHECK_INT(judge(&client, 0, AQ_TLS_INITIAL, data, put(data, 2, 118), pieces[i]), AQ_TLS_PASS);
        length = put(data, 8, 0); /* an empty body ends where the header does */
        length += put(data + length, 13, 70);
        length += put(data + length, 11, 900);
        length += put(data + length, 15, 256);
        length += put(data + length, 20, 48);
        CHECK_INT(judge(&client, 0, AQ_TLS_HANDSHAKE, data, length, pieces[i]), AQ_TLS_PASS);
        length = put(data, 4, 200);
        length += put(data + length, 4, 0);
        CHECK_INT(judge(&client, 0, AQ_TLS_ONE_RTT, data, length, pieces[i]), AQ_TLS_DISCARD);
    }
}

/* Every type at every level, first and behind a message that is allowed. */
static void test_types(void)
{
    static const uint8_t first[2][AQ_TLS_LEVELS] = {{2, 8, 4}, {1, 0, 0}};
    for (int is_server = 0; is_server < 2; is_server++) {
        for (int level = 0; level < AQ_TLS_LEVELS; level++) {
            for (int type = 0; type < 256; type++) {
                static const uint8_t at_client[AQ_TLS_LEVELS][5] = {{2}, {8, 11, 13, 15, 20}, {4}};
                static const uint8_t at_server[AQ_TLS_LEVELS][5] = {{1}, {20}, {0}};
                const uint8_t *good = is_server ? at_server[level] : at_client[level];
                int is_good = type != 0 && memchr(good, type, 5) != NULL;
                for (int behind = 0; behind < 2; behind++) {
                    aq_tls_messages messages = {0};
                    uint8_t data[64];
                    size_t length = 0;
                    enum aq_tls_verdict verdict;
                    if (behind && first[is_server][level] == 0)
                        continue;
                    if (behind)
                        length = put(data, first[is_server][level], 9);
                    data[length++] = (uint8_t)type; /* the type alone is enough */
                    verdict = judge(&messages, is_server, (enum aq_tls_level)level, data, length, 3);
                    if (is_good)
                        CHECK(verdict == AQ_TLS_PASS || (verdict == AQ_TLS_DISCARD && level == AQ_TLS_ONE_RTT));
                    else if (type == 13 && !is_server && level == AQ_TLS_ONE_RTT)
                        CHECK_INT(verdict, AQ_TLS_VIOLATION);
                    else
                        CHECK_INT(verdict, AQ_TLS_UNEXPECTED);
                }
            }
        }
    }
}

/* Finished is the last word of its level: a KeyUpdate in the same frame goes to nobody. */
static void test_behind_finished(void)
{
    static const uint8_t types[] = {20, 24, 1, 8};
    uint8_t data[128];
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(types); i++) {
        for (size_t j = 0; j < AQ_ARRAY_LENGTH(pieces); j++) {
            for (int is_server = 0; is_server < 2; is_server++) {
                aq_tls_messages messages = {0};
                size_t length = put(data, 20, 32);
                length += put(data + length, types[i], 1);
                CHECK_INT(judge(&messages, is_server, AQ_TLS_HANDSHAKE, data, length, pieces[j]), AQ_TLS_UNEXPECTED);
            }
        }
    }
}

/* The longest length that can be written, no more of which has to come. */
static void test_longest(void)
{
    static const uint8_t header[] = {4, 0xff, 0xff, 0xff};
    static uint8_t body[1 << 16];
    aq_tls_messages messages = {0};
    size_t left = 0xffffff;
    CHECK_INT(judge(&messages, 0, AQ_TLS_ONE_RTT, header, sizeof(header), MAX_LENGTH), AQ_TLS_DISCARD);
    memset(body, 24, sizeof(body)); /* would be a KeyUpdate if it began a message */
    while (left > 0) {
        size_t here = left < sizeof(body) ? left : sizeof(body);
        CHECK_INT(aq_tls_messages_judge(&messages, 0, AQ_TLS_ONE_RTT, body, here), AQ_TLS_DISCARD);
        left -= here;
    }
    CHECK_INT(aq_tls_messages_judge(&messages, 0, AQ_TLS_ONE_RTT, body, 1), AQ_TLS_UNEXPECTED);
}

int main(void)
{
    check_watchdog(60);
    test_handshakes();
    test_types();
    test_behind_finished();
    test_longest();
    return check_done();
}

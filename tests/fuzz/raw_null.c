/* The handshake of null_tls.c as its peer has it, and packets without encryption: a tag of zeros, no header protection.
 */
#include "raw_protection.h"

static struct {
    int step;
    int has_finished; /* the client's last message is here; or the server's first flight */
} handshake;

void raw_handshake_begin(void)
{
    memset(&handshake, 0, sizeof(handshake));
}

/* A message: flags, length, transport parameters. */
static void send_message(enum raw_space space, int with_parameters)
{
    uint8_t message[512];
    size_t length = with_parameters ? raw_parameters(message + 3) : 0;

    message[0] = raw_self.options.flags;
    message[1] = (uint8_t)(length >> 8);
    message[2] = (uint8_t)length;
    raw_crypto(space, message, length + 3);
}

/* Whether a packet of the handshake brings bytes of it, and not acknowledgements only. */
static int has_crypto(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint64_t count;
        uint8_t type = *at++;
        if (type == 0x06)
            return 1;
        if (type == 0x00 || type == 0x01)
            continue;
        if (type != 0x02)
            return 0;
        raw_get_varint(&at, end); /* largest, delay */
        raw_get_varint(&at, end);
        count = raw_get_varint(&at, end);
        raw_get_varint(&at, end);
        while (count-- > 0 && at < end) {
            raw_get_varint(&at, end);
            raw_get_varint(&at, end);
        }
    }
    return 0;
}

void raw_handshake_receive(enum raw_space space, const uint8_t *payload, size_t length)
{
    if (space == RAW_HANDSHAKE && has_crypto(payload, payload + length))
        handshake.has_finished = 1;
}

void raw_handshake_turn(void)
{
    static const uint8_t HANDSHAKE_DONE = 0x1e;
    if (!raw_self.is_server && handshake.step == 0) {
        send_message(RAW_INITIAL, 1);
        handshake.step++;
    } else if (!raw_self.is_server && handshake.step == 1 && handshake.has_finished) {
        send_message(RAW_HANDSHAKE, 0);
        handshake.step++;
    } else if (raw_self.is_server && handshake.step == 0 && raw_self.original_length > 0) {
        send_message(RAW_INITIAL, 0);
        send_message(RAW_HANDSHAKE, 1);
        handshake.step++;
    } else if (raw_self.is_server && handshake.step == 1 && handshake.has_finished) {
        raw_send(RAW_APPLICATION, &HANDSHAKE_DONE, 1);
        handshake.step++;
    }
}

/* ---- packets ------------------------------------------------------------------------------------------------------
 */

int raw_has_keys(enum raw_space space)
{
    (void)space;
    return 1;
}

void raw_seal(enum raw_space space, uint8_t *packet, size_t number_at, uint64_t number, size_t length)
{
    (void)space, (void)number;
    memset(packet + number_at + RAW_NUMBER + length, 0, RAW_TAG);
}

int raw_open(enum raw_space space, uint8_t *packet, size_t number_at, size_t length, uint64_t expected,
             raw_opened *opened)
{
    size_t bytes = (size_t)(packet[0] & 3) + 1;

    (void)space;
    opened->number = 0;
    for (size_t i = 0; i < bytes; i++)
        opened->number = opened->number << 8 | packet[number_at + i];
    opened->number = raw_whole_number(opened->number, bytes, expected);
    opened->payload = packet + number_at + bytes;
    opened->length = length - number_at - bytes - RAW_TAG;
    return 1;
}

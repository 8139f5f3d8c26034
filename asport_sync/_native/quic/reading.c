#include "quic/reading.h"

#include "quic/compat.h"
#include "quic/frames.h"

static _Thread_local int authentic;
static _Thread_local uint64_t fault;

void aq_reading_begin(void)
{
    authentic = 0;
    fault = 0;
}

int aq_reading_decrypted(int is_server, const uint8_t *payload, size_t length)
{
    authentic = 1;
    /* See AQ_MAX_PEER_ID. */
    if (is_server && AQ_MAX_PEER_ID != INT64_MAX && aq_frames_newest_id(payload, length) > AQ_MAX_PEER_ID)
        return aq_reading_stop(NGTCP2_CONNECTION_ID_LIMIT_ERROR);
    return 0;
}

int aq_reading_stop(uint64_t code)
{
    fault = code;
    return NGTCP2_ERR_CALLBACK_FAILURE;
}

int aq_reading_was_authentic(void)
{
    return authentic;
}

uint64_t aq_reading_take_fault(void)
{
    uint64_t result = fault;
    fault = 0;
    return result;
}

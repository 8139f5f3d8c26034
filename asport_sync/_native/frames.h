/* The frames of a decrypted QUIC packet, as far as the engine looks at them before ngtcp2 does. */
#ifndef AQ_FRAMES_H
#define AQ_FRAMES_H

#include "aq.h"

/* The largest sequence number of the NEW_CONNECTION_ID frames, or -1 where there are none. Where a frame is malformed
 * or unknown the look ends: ngtcp2 ends the connection there, and acts on nothing behind it. */
int64_t aq_frames_newest_id(const uint8_t *payload, size_t length);

#endif

/* Parses the frames of a decrypted QUIC packet as far as the engine inspects them before ngtcp2 does. */
#ifndef AQ_FRAMES_H
#define AQ_FRAMES_H

#include "aq.h"

/* Returns the largest sequence number of the NEW_CONNECTION_ID frames, or -1 if there are none. Stops at a malformed or
 * unknown frame: there ngtcp2 closes the connection, without processing what follows. */
int64_t aq_frames_newest_id(const uint8_t *payload, size_t length);

#endif

/* What callbacks note while ngtcp2 reads a packet. Some of them get no connection to note it in, but all run inside
 * ngtcp2_conn_read_pkt(), on its thread, so the notes are kept per thread. */
#ifndef AQ_READING_H
#define AQ_READING_H

#include "aq.h"

/* Discards what was noted. Call before ngtcp2_conn_read_pkt(). */
void aq_reading_begin(void);

/* The callback decrypt of a handshake layer calls this for each packet that is authentic, and returns the result: 0, or
 * an error if the packet must not be processed. ngtcp2 has processed none of its frames yet. payload: the frames. */
int aq_reading_decrypted(int is_server, const uint8_t *payload, size_t length);

/* Notes the QUIC error code for which a callback stops ngtcp2. Returns what the callback must return. */
int aq_reading_stop(uint64_t code);

/* Returns whether a packet was authentic since aq_reading_begin(). ngtcp2_conn_read_pkt() returns 0 also for packets
 * that it discards, which anyone can send. */
int aq_reading_was_authentic(void);

/* Returns the code of aq_reading_stop() and discards it; 0: none. */
uint64_t aq_reading_take_fault(void);

#endif

/* Messages on unidirectional streams, one stream each: outgoing commands and Packets, and incoming ones, which are
 * parsed as they arrive and limited to the size that their header announces. Engine thread only.
 */
#ifndef AQ_MESSAGE_H
#define AQ_MESSAGE_H

#include "aq.h"
#include "core/list.h"
#include "tunnel/packet.h"
#include "tunnel/stream.h"

#include <stdlib.h>

typedef struct aq_outgoing {
    enum aq_stream_tag tag;
    int is_command;                         /* a close with linger waits for its acknowledgement */
    int unfinished;                         /* 1: sent without FIN; the stream stays open until it is reset */
    int64_t quic_id;                        /* -1: waiting for the peer to grant a stream */
    AQ_LINK(struct aq_outgoing) conn_link;  /* list of all of the connection */
    AQ_LINK(struct aq_outgoing) queue_link; /* queue of those with something to send */
    size_t length, sent;
    int queued, fin_sent, blocked;
    uint8_t data[]; /* not moved or freed until the stream is closed */
} aq_outgoing;

typedef struct aq_incoming {
    enum aq_stream_tag tag;
    int64_t quic_id;
    AQ_LINK(struct aq_incoming) incomplete_link; /* list of those with an incomplete command, oldest first */
    AQ_LINK(struct aq_incoming) conn_link;       /* list of all of the connection */
    uint64_t deadline;                           /* time by which the command must be complete */
    int done;                                    /* 1: complete or given up; further bytes are ignored */
    size_t have, need; /* bytes in data; bytes of the command with its payload, 0: not known yet */
    size_t capacity;
    uint8_t *data;       /* `small` or heap memory */
    aq_account *account; /* the connection's, where heap memory is counted; NULL: nowhere */
    uint8_t small[AQ_COMMAND_MAX + 1];
} aq_incoming;

static inline void aq_incoming_init(aq_incoming *incoming)
{
    incoming->tag = AQ_TAG_INCOMING;
    incoming->quic_id = -1;
    incoming->data = incoming->small;
    incoming->capacity = sizeof(incoming->small);
    incoming->account = NULL;
}

static inline void aq_incoming_release(aq_incoming *incoming)
{
    if (incoming->data != incoming->small) {
        free(incoming->data);
        if (incoming->account != NULL)
            aq_account_remove(incoming->account, incoming->capacity);
    }
    incoming->data = incoming->small;
    incoming->capacity = sizeof(incoming->small);
    incoming->have = 0;
}

/* Adds stream bytes. Returns 1: the command is complete and *command points to its *command_length bytes, valid until
 * the next call or release; 0: more bytes needed; -1: malformed, *problem says why; -2: no memory. *used is the number
 * of bytes that belong to the command. In the usual case, a command in one piece, nothing is copied. */
int aq_incoming_feed(aq_incoming *incoming, const uint8_t *data, size_t length, const uint8_t **command,
                     size_t *command_length, size_t *used, const char **problem);

#endif

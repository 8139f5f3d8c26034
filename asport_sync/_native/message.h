/* What travels on unidirectional streams: outgoing commands and Packets, one stream each; incoming ones, parsed as they
 * arrive and bounded by what their own header announces. Engine thread only.
 */
#ifndef AQ_MESSAGE_H
#define AQ_MESSAGE_H

#include "aq.h"
#include "packet.h"
#include "stream.h"

#include <stdlib.h>

typedef struct aq_outgoing {
    enum aq_stream_tag tag;
    int is_command;                                  /* counts for the linger of a close */
    int unfinished;                                  /* no FIN follows: its stream stays open until it is reset */
    int64_t quic_id;                                 /* -1: waits for stream credit */
    struct aq_outgoing *previous, *next;             /* all of the connection */
    struct aq_outgoing *queue_previous, *queue_next; /* in the queue of those with something to send */
    size_t length, sent;
    int queued, fin_sent, blocked;
    uint8_t data[]; /* stays in place until the stream is closed */
} aq_outgoing;

typedef struct aq_incoming {
    enum aq_stream_tag tag;
    int64_t quic_id;
    struct aq_incoming *previous, *next;         /* those whose command is incomplete, oldest first */
    struct aq_incoming *all_previous, *all_next; /* all of the connection */
    uint64_t deadline;                           /* until the command must be complete */
    int done;                                    /* complete or given up: what follows is ignored */
    size_t have, need; /* bytes in data; bytes of the command with payload, 0: not known yet */
    size_t capacity;
    uint8_t *data;       /* small, or heap */
    aq_account *account; /* of its connection, where heap counts; NULL: nowhere */
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

/* Feeds stream bytes. Returns 1: the command is complete as *command (length *command_length), valid until the next
 * call or release; 0: more needed; -1: malformed, *problem says how; -2: no memory. *used is how many of the bytes
 * belong to the command. The usual case, everything in one piece, copies nothing. */
int aq_incoming_feed(aq_incoming *incoming, const uint8_t *data, size_t length, const uint8_t **command,
                     size_t *command_length, size_t *used, const char **problem);

#endif

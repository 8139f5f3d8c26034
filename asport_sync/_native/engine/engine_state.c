/* What all parts of the engine use: lists of what has work, arrays that grow, and whether someone waits for short
 * answers.
 */
#include "engine/engine.h"

#include <stdlib.h>

#define INTERACTIVE_TIME (20 * AQ_NSEC_PER_MSEC) /* how long turns stay short after a short message */

int aq_engine_make_room(void *array, size_t length, size_t *capacity, size_t element)
{
    void **pointer = array;
    size_t bigger = *capacity < 16 ? 16 : *capacity * 2;
    void *moved;
    if (length < *capacity)
        return AQ_OK;
    moved = realloc(*pointer, bigger * element);
    if (moved == NULL)
        return AQ_ERR_MEMORY;
    *pointer = moved;
    *capacity = bigger;
    return AQ_OK;
}

void aq_engine_touch(void *context, aq_conn *conn)
{
    aq_engine *engine = context;
    if (conn->touched)
        return;
    conn->touched = 1;
    AQ_LIST_ADD_LAST(&engine->touched, conn, touched_link);
}

int aq_engine_is_interactive(const aq_engine *engine)
{
    return engine->now - engine->interactive_at < INTERACTIVE_TIME;
}

void aq_engine_touch_stream(void *context, aq_stream *stream)
{
    aq_engine *engine = context;
    if (stream->in_touched)
        return;
    if (aq_slab_get(&engine->streams, stream->id) == NULL)
        return;
    stream->in_touched = 1;
    AQ_LIST_ADD_LAST(&engine->touched_streams, stream, touched_link);
}

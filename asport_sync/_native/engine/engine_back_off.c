/* Back-off. A descriptor that cannot be served now, and would be reported as ready all the time, leaves epoll for a
 * while. A stream that waits for something without notification (memory, an empty send queue of a socket) is checked
 * again a little later. Engine thread only. */
#include "engine/engine.h"

#include <sys/epoll.h>

#define BACK_OFF_UNWATCHED (100 * AQ_NSEC_PER_MSEC) /* back-off of a socket that epoll does not accept again */

/* A descriptor stays in epoll if there is no memory: being reported all the time is better than never. */
void aq_engine_back_off(aq_engine *engine, aq_id id, int fd, uint64_t duration)
{
    if (aq_engine_make_room(&engine->backed_off, engine->backed_off_length, &engine->backed_off_capacity,
                            sizeof(*engine->backed_off)) != AQ_OK) {
        aq_count(&engine->counters, AQ_C_memory_failures, 1);
        engine->faulty = 1;
        return;
    }
    epoll_ctl(engine->epoll, EPOLL_CTL_DEL, fd, NULL);
    engine->backed_off[engine->backed_off_length].id = id;
    engine->backed_off[engine->backed_off_length++].until = engine->now + duration;
}

/* Uses lists of streams instead of arrays, since there may be no memory. All pauses in a list are equally long, so the
 * first one ends first. A stream that is in a list already stays there: it is late by at most the longest pause. */
void aq_engine_pause_stream(aq_engine *engine, aq_stream *stream)
{
    aq_stream_list *list = &engine->pauses[stream->pause];
    if (stream->pausing || aq_slab_get(&engine->streams, stream->id) == NULL)
        return;
    stream->pausing = 1;
    stream->pause_until = engine->now + (AQ_PAUSE_MIN << stream->pause);
    AQ_LIST_ADD_LAST(list, stream, pause_link);
}

void aq_engine_run_pauses(aq_engine *engine, uint64_t until)
{
    for (size_t i = 0; i < AQ_PAUSES; i++) {
        aq_stream_list *list = &engine->pauses[i];
        while (list->first != NULL && list->first->pause_until <= until) {
            aq_stream *stream = list->first;
            AQ_LIST_REMOVE(list, stream, pause_link);
            stream->pausing = 0;
            aq_engine_touch_stream(engine, stream);
            aq_slab_put(&engine->streams, stream->id);
        }
    }
}

uint64_t aq_engine_next_pause(const aq_engine *engine)
{
    uint64_t expiry = UINT64_MAX;
    for (size_t i = 0; i < AQ_PAUSES; i++) {
        if (engine->pauses[i].first != NULL && engine->pauses[i].first->pause_until < expiry)
            expiry = engine->pauses[i].first->pause_until;
    }
    return expiry;
}

void aq_engine_run_back_offs(aq_engine *engine, int64_t (*watch_again)(aq_engine *engine, aq_id id))
{
    size_t kept = 0;
    for (size_t i = 0; i < engine->backed_off_length; i++) {
        if (engine->backed_off[i].until <= engine->now) {
            if (watch_again(engine, engine->backed_off[i].id) == AQ_OK)
                continue;
            aq_count(&engine->counters, AQ_C_watch_failures, 1);
            engine->backed_off[i].until = engine->now + BACK_OFF_UNWATCHED;
        }
        engine->backed_off[kept++] = engine->backed_off[i];
    }
    engine->backed_off_length = kept;
}

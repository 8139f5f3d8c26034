/* Back-off. A descriptor that cannot be served now, and would be reported as ready all the time, leaves epoll for a
 * while. A stream that waits for something without notification (memory, an empty send queue of a socket) is checked
 * again a little later. Engine thread only. */
#include "engine.h"

#include <sys/epoll.h>

#define REST_UNWATCHED (100 * AQ_NSEC_PER_MSEC) /* back-off of a socket that epoll does not accept again */

/* Adds the socket of this id to epoll again, unless it is gone. */
static int64_t watch_again(aq_engine *engine, aq_id id)
{
    int64_t result = AQ_OK;
    if (aq_id_kind((uint64_t)id) == AQ_KIND_LISTENER) {
        aq_listener *listener = aq_slab_get(&engine->listeners, id);
        if (listener != NULL) {
            if (!listener->over)
                result = aq_engine_listen_again(engine, listener);
            aq_slab_put(&engine->listeners, id);
        }
    } else {
        aq_udp *udp = aq_slab_get(&engine->udps, id);
        if (udp != NULL) {
            result = aq_engine_watch_udp(engine, udp);
            aq_slab_put(&engine->udps, id);
        }
    }
    return result;
}

/* A descriptor stays in epoll if there is no memory: being reported all the time is better than never. */
void aq_engine_rest(aq_engine *engine, aq_id id, int fd, uint64_t duration)
{
    if (aq_engine_make_room(&engine->resting, engine->resting_length, &engine->resting_capacity,
                            sizeof(*engine->resting)) != AQ_OK) {
        aq_count(&engine->counters, AQ_C_memory_failures, 1);
        engine->faulty = 1;
        return;
    }
    epoll_ctl(engine->epoll, EPOLL_CTL_DEL, fd, NULL);
    engine->resting[engine->resting_length].id = id;
    engine->resting[engine->resting_length++].until = engine->now + duration;
}

/* Uses lists of streams instead of arrays, since there may be no memory. All pauses in a list are equally long, so the
 * first one ends first. A stream that is in a list already stays there: it is late by at most the longest pause. */
void aq_engine_rest_stream(aq_engine *engine, aq_stream *stream)
{
    aq_pause_list *list = &engine->pauses[stream->pause];
    if (stream->resting || aq_slab_get(&engine->streams, stream->id) == NULL)
        return;
    stream->resting = 1;
    stream->rest_until = engine->now + (AQ_PAUSE_LEAST << stream->pause);
    stream->rest_next = NULL;
    if (list->first != NULL)
        list->last->rest_next = stream;
    else
        list->first = stream;
    list->last = stream;
}

void aq_engine_run_pauses(aq_engine *engine, uint64_t until)
{
    for (size_t i = 0; i < AQ_PAUSES; i++) {
        aq_pause_list *list = &engine->pauses[i];
        while (list->first != NULL && list->first->rest_until <= until) {
            aq_stream *stream = list->first;
            list->first = stream->rest_next;
            stream->resting = 0;
            aq_engine_touch_stream(engine, stream);
            aq_slab_put(&engine->streams, stream->id);
        }
    }
}

uint64_t aq_engine_next_pause(const aq_engine *engine)
{
    uint64_t expiry = UINT64_MAX;
    for (size_t i = 0; i < AQ_PAUSES; i++) {
        if (engine->pauses[i].first != NULL && engine->pauses[i].first->rest_until < expiry)
            expiry = engine->pauses[i].first->rest_until;
    }
    return expiry;
}

void aq_engine_run_resting(aq_engine *engine)
{
    size_t kept = 0;
    for (size_t i = 0; i < engine->resting_length; i++) {
        if (engine->resting[i].until <= engine->now) {
            if (watch_again(engine, engine->resting[i].id) == AQ_OK)
                continue;
            aq_count(&engine->counters, AQ_C_watch_failures, 1);
            engine->resting[i].until = engine->now + REST_UNWATCHED;
        }
        engine->resting[kept++] = engine->resting[i];
    }
    engine->resting_length = kept;
}

/* What rests: a descriptor that can't be served now, and would be reported as ready all the time, leaves epoll for a
 * while; a stream that finds no memory to read into is looked at again a little later. Engine thread only.
 */
#include "engine.h"

#include <sys/epoll.h>

#define REST_UNWATCHED (100 * AQ_NSEC_PER_MSEC) /* of any socket that epoll does not take back now */

/* Watches what the id names, unless it has gone meanwhile. */
static int64_t watch_again(aq_engine *engine, aq_id id)
{
    int64_t result = AQ_OK;
    if (aq_id_kind((uint64_t)id) == AQ_KIND_LISTENER) {
        aq_listener *listener = aq_slab_get(&engine->listeners, id);
        if (listener != NULL) {
            if (!listener->over)
                result = aq_engine_listen_tcp(engine, listener);
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

/* The descriptor is watched, and stays so where there is no memory: reported all the time is better than never. */
void aq_engine_rest(aq_engine *engine, aq_id id, int fd, uint64_t duration)
{
    if (aq_engine_make_room(&engine->resting, engine->resting_length, &engine->resting_capacity,
                            sizeof(*engine->resting)) != AQ_OK) {
        aq_count(&engine->counters, AQ_C_memory_failures, 1);
        return;
    }
    epoll_ctl(engine->epoll, EPOLL_CTL_DEL, fd, NULL);
    engine->resting[engine->resting_length].id = id;
    engine->resting[engine->resting_length++].until = engine->now + duration;
}

/* A list of streams and no array: there is no memory. */
void aq_engine_rest_stream(aq_engine *engine, aq_stream *stream)
{
    if (stream->resting || aq_slab_get(&engine->streams, stream->id) == NULL)
        return;
    stream->resting = 1;
    stream->rest_next = engine->starved_streams;
    if (engine->starved_streams == NULL)
        engine->starved_until = engine->now + AQ_MEMORY_PAUSE;
    engine->starved_streams = stream;
}

void aq_engine_run_starved(aq_engine *engine)
{
    aq_stream *stream = engine->starved_streams, *next;
    engine->starved_streams = NULL;
    for (; stream != NULL; stream = next) {
        next = stream->rest_next;
        stream->resting = 0;
        aq_engine_touch_stream(engine, stream);
        aq_slab_put(&engine->streams, stream->id);
    }
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

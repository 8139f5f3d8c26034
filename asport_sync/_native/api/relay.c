/* The blocking driver of aq_stream_transfer(): a worker that stays here until its stream is over. The other driver is
 * the engine's epoll (tcp.c, aq_tcp_serve); both move bytes with the same function.
 */
#include "engine/tcp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>

/* Bytes per direction before the other direction gets its turn. */
#define BUDGET (1024U * 1024U)

aq_wake *aq_engine_borrow_wake(aq_engine *engine)
{
    aq_wake *wake = NULL;
    pthread_mutex_lock(&engine->wakes_mutex);
    if (engine->wakes_idle > 0) {
        wake = engine->wakes[--engine->wakes_idle];
    } else if (engine->wakes_length < engine->wakes_all_capacity) {
        wake = malloc(sizeof(*wake));
        if (wake != NULL && aq_wake_init(wake) != 0) {
            free(wake);
            wake = NULL;
        }
        if (wake != NULL)
            engine->wakes_all[engine->wakes_length++] = wake;
    }
    pthread_mutex_unlock(&engine->wakes_mutex);
    return wake;
}

void aq_engine_return_wake(aq_engine *engine, aq_wake *wake)
{
    pthread_mutex_lock(&engine->wakes_mutex);
    engine->wakes[engine->wakes_idle++] = wake; /* has the capacity of wakes_all */
    pthread_mutex_unlock(&engine->wakes_mutex);
}

/* Returns the permanent state changes made by other threads. Read before aq_stream_transfer() and again before
 * sleeping. */
static unsigned endings(aq_stream *stream)
{
    return (unsigned)atomic_load(&stream->dead) | (atomic_load(&stream->rx_reset) ? 4U : 0U) |
           (atomic_load(&stream->rx_fin) ? 8U : 0U) | (atomic_load(&stream->tx_stopped) ? 16U : 0U) |
           (atomic_load(&stream->local_reset) ? 32U : 0U);
}

static int worth_a_check(aq_stream *stream, unsigned need)
{
    if ((need & AQ_NEED_DATA) && aq_pipe_readable(&stream->rx) > 0)
        return 1;
    if ((need & AQ_NEED_TOKENS) && aq_stream_has_grant(stream))
        return 1;
    return (need & AQ_NEED_SPACE) && aq_stream_may_read(stream);
}

static void wait_for(aq_stream *stream, int fd, unsigned need, unsigned seen, aq_wake *wake)
{
    struct pollfd fds[2] = {{.fd = fd}, {.fd = wake->fd, .events = POLLIN}};
    int timeout =
        need & (AQ_NEED_MEMORY | AQ_NEED_PAUSE) ? (int)((AQ_PAUSE_MIN << stream->pause) / AQ_NSEC_PER_MSEC) : -1;
    uint64_t check = aq_keepalive_due(&stream->keepalive, stream->result.received), now = aq_now();
    uint64_t until_check = check > now ? (check - now) / AQ_NSEC_PER_MSEC + 1 : 0; /* milliseconds */
    if (check != UINT64_MAX && (timeout < 0 || until_check < (uint64_t)timeout))
        timeout = (int)until_check; /* less than AQ_KEEPALIVE_MAX seconds */
    fds[0].events = (short)(((need & AQ_NEED_READ) ? POLLIN : 0) | ((need & AQ_NEED_WRITE) ? POLLOUT : 0));
    if (fds[0].events == 0 && stream->hung_up)
        fds[0].fd = -1; /* poll would keep reporting the hang-up; the remaining data is in the pipes */
    atomic_store(&stream->wants, (need & (AQ_NEED_SPACE | AQ_NEED_DATA | AQ_NEED_TOKENS)) | AQ_NEED_END);
    aq_wake_prepare(wake);
    if (endings(stream) == seen && !worth_a_check(stream, need)) {
        while (poll(fds, 2, timeout) < 0 && errno == EINTR)
            ;
    }
    atomic_store(&stream->wants, 0);
    aq_wake_cancel(wake);
    if (fds[0].revents & POLLIN)
        stream->can_read = 1;
    if (fds[0].revents & POLLOUT)
        stream->can_write = 1;
    if (fds[0].revents & (POLLERR | POLLHUP | POLLNVAL))
        aq_stream_socket_failed(stream, fd, 0);
}

int64_t aq_stream_relay(aq_engine *engine, aq_id id, int32_t fd, aq_stream_result *result)
{
    aq_stream *stream;
    aq_wake *wake;
    int flags = fcntl(fd, F_GETFL);
    int64_t outcome = AQ_OK;
    uint64_t now;

    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    stream = aq_slab_get(&engine->streams, id);
    if (stream == NULL) {
        aq_api_leave(engine);
        return AQ_ERR_GONE;
    }
    wake = aq_engine_borrow_wake(engine);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        outcome = AQ_ERR_SYSTEM - errno;
    else if (wake == NULL)
        outcome = AQ_ERR_SYSTEM - EMFILE;
    else if (atomic_exchange(&stream->owned, 1))
        outcome = AQ_ERR_STATE;
    if (outcome == AQ_OK) {
        atomic_store(&stream->wake, wake);
        aq_stream_begin(stream, fd);
        for (;;) {
            unsigned seen = endings(stream);
            unsigned need = aq_stream_transfer(stream, fd, BUDGET, BUDGET);
            if (need == 0)
                break;
            if (aq_keepalive_due(&stream->keepalive, stream->result.received) <= (now = aq_now()))
                need |= aq_stream_check_peer(stream, fd, now) ? AQ_NEED_TURN : 0;
            if ((need & AQ_NEED_TURN) == 0)
                wait_for(stream, fd, need, seen, wake);
        }
        *result = stream->result;
        atomic_store(&stream->wake, NULL);
        aq_count(&engine->counters, AQ_C_streams_relayed, 1);
        aq_tcp_count_end(engine, &stream->result);
        aq_stream_leave(stream);
    }
    if (wake != NULL)
        aq_engine_return_wake(engine, wake);
    aq_slab_put(&engine->streams, id);
    aq_api_leave(engine);
    return outcome;
}

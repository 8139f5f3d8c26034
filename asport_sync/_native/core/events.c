#include "core/events.h"

#include "core/descriptors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIRST_CAPACITY 256U /* events, 114 KiB; always available, even without memory to grow */

int aq_events_init(aq_events *events, aq_counters *counters)
{
    pthread_condattr_t attributes;
    memset(events, 0, sizeof(*events));
    events->ring = malloc(FIRST_CAPACITY * sizeof(aq_event));
    if (events->ring == NULL)
        return AQ_ERR_MEMORY;
    events->capacity = FIRST_CAPACITY;
    events->counters = counters;
    pthread_mutex_init(&events->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&events->filled, &attributes);
    pthread_condattr_destroy(&attributes);
    return AQ_OK;
}

/* Closes the descriptor that an undelivered event would have handed over. */
static void drop(const aq_event *event)
{
    if (event->type == AQ_EVENT_STREAM_LARGE_TRANSFER)
        aq_fd_close((int)event->value);
}

void aq_events_destroy(aq_events *events)
{
    for (uint32_t i = 0; i < events->length; i++)
        drop(&events->ring[(events->first + i) & (events->capacity - 1)]);
    pthread_cond_destroy(&events->filled);
    pthread_mutex_destroy(&events->mutex);
    free(events->ring);
    events->ring = NULL;
}

/* Doubles the ring. Mutex held. */
static int grow(aq_events *events)
{
    uint32_t capacity = events->capacity * 2;
    aq_event *ring = malloc((size_t)capacity * sizeof(aq_event));
    if (ring == NULL)
        return AQ_ERR_MEMORY;
    for (uint32_t i = 0; i < events->length; i++)
        ring[i] = events->ring[(events->first + i) & (events->capacity - 1)];
    free(events->ring);
    events->ring = ring;
    events->capacity = capacity;
    events->first = 0;
    return AQ_OK;
}

void aq_events_post(aq_events *events, const aq_event *event)
{
    pthread_mutex_lock(&events->mutex);
    if (events->closed) {
        drop(event);
    } else if (events->length == events->capacity && grow(events) != AQ_OK) {
        aq_count(events->counters, AQ_C_events_lost, 1);
        drop(event);
    } else {
        events->ring[(events->first + events->length) & (events->capacity - 1)] = *event;
        events->length++;
        if (events->waiting) {
            events->waiting = 0;
            pthread_cond_signal(&events->filled);
        }
    }
    pthread_mutex_unlock(&events->mutex);
}

uint32_t aq_events_backlog(aq_events *events)
{
    uint32_t length;
    pthread_mutex_lock(&events->mutex);
    length = events->length;
    pthread_mutex_unlock(&events->mutex);
    return length;
}

void aq_events_log_once(aq_events *events, unsigned *logged, unsigned bit, const char *what, int error)
{
    aq_event event = {.type = AQ_EVENT_LOG_RECORD, .code = 30}; /* WARNING in Python's logging */
    char words[128];
    int length;
    if (*logged & bit)
        return;
    *logged |= bit;
    length = snprintf((char *)event.data, sizeof(event.data), "%s: %s", what,
                      AQ_ERRNO_TEXT(strerror_r(error, words, sizeof(words)), words));
    event.length = (uint32_t)length < sizeof(event.data) ? (uint32_t)length : (uint32_t)sizeof(event.data) - 1;
    aq_events_post(events, &event);
}

void aq_events_wake_consumer(aq_events *events)
{
    pthread_mutex_lock(&events->mutex);
    events->woken = 1;
    if (events->waiting) {
        events->waiting = 0;
        pthread_cond_signal(&events->filled);
    }
    pthread_mutex_unlock(&events->mutex);
}

void aq_events_close(aq_events *events)
{
    pthread_mutex_lock(&events->mutex);
    events->closed = 1;
    pthread_cond_broadcast(&events->filled);
    pthread_mutex_unlock(&events->mutex);
}

int64_t aq_events_take(aq_events *events, aq_event *out, uint32_t max, int32_t timeout_ms)
{
    struct timespec deadline;
    int64_t result;
    if (timeout_ms > 0) {
        uint64_t at = aq_now() + (uint32_t)timeout_ms * AQ_NSEC_PER_MSEC;
        deadline.tv_sec = (time_t)(at / AQ_NSEC_PER_SEC);
        deadline.tv_nsec = (long)(at % AQ_NSEC_PER_SEC);
    }
    pthread_mutex_lock(&events->mutex);
    while (events->length == 0 && !events->closed && !events->woken && timeout_ms != 0) {
        events->waiting = 1;
        if (timeout_ms < 0)
            pthread_cond_wait(&events->filled, &events->mutex);
        else if (pthread_cond_timedwait(&events->filled, &events->mutex, &deadline) == ETIMEDOUT)
            break;
    }
    events->waiting = events->woken = 0;
    if (events->length == 0) {
        result = events->closed ? AQ_ERR_STOPPED : 0;
    } else {
        uint32_t count = events->length < max ? events->length : max;
        for (uint32_t i = 0; i < count; i++)
            out[i] = events->ring[(events->first + i) & (events->capacity - 1)];
        events->first = (events->first + count) & (events->capacity - 1);
        events->length -= count;
        result = count;
    }
    pthread_mutex_unlock(&events->mutex);
    return result;
}

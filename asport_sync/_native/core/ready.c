#include "core/ready.h"

void aq_ready_init(aq_ready *ready, aq_wake *wake)
{
    pthread_mutex_init(&ready->mutex, NULL);
    ready->nodes.first = ready->nodes.last = NULL;
    atomic_init(&ready->filled, 0);
    ready->wake = wake;
}

void aq_ready_destroy(aq_ready *ready)
{
    pthread_mutex_destroy(&ready->mutex);
}

int aq_ready_add(aq_ready *ready, aq_ready_node *node)
{
    /* seq_cst: what the caller published before is visible to the engine once it has cleared the flag. If the flag is
     * still set, the engine has not handled the object yet. */
    if (atomic_exchange(&node->queued, 1) != 0)
        return 0;
    pthread_mutex_lock(&ready->mutex);
    AQ_QUEUE_ADD(&ready->nodes, node);
    atomic_store(&ready->filled, 1);
    pthread_mutex_unlock(&ready->mutex);
    aq_wake_signal(ready->wake);
    return 1;
}

aq_ready_node *aq_ready_take(aq_ready *ready)
{
    aq_ready_node *list;
    if (!atomic_load(&ready->filled))
        return NULL;
    pthread_mutex_lock(&ready->mutex);
    list = ready->nodes.first;
    ready->nodes.first = ready->nodes.last = NULL;
    atomic_store(&ready->filled, 0);
    pthread_mutex_unlock(&ready->mutex);
    return list;
}

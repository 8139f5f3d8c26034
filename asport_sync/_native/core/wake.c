#include "core/wake.h"

#include <assert.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

int aq_wake_init(aq_wake *wake)
{
    wake->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (wake->fd < 0)
        return -errno;
    wake->owed = 0;
    atomic_init(&wake->waiting, 0);
    return 0;
}

void aq_wake_destroy(aq_wake *wake)
{
    if (wake->fd >= 0)
        close(wake->fd);
    wake->fd = -1;
}

void aq_wake_prepare(aq_wake *wake)
{
    assert(atomic_load_explicit(&wake->waiting, memory_order_relaxed) == 0);
    atomic_store_explicit(&wake->waiting, 1, memory_order_relaxed);
    /* Orders the store above before the sleeper's second check. */
    atomic_thread_fence(memory_order_seq_cst);
}

void aq_wake_cancel(aq_wake *wake)
{
    uint64_t writes;

    /* Acquire: what a signaller published before it claimed the wake-up is visible from here on. */
    if (atomic_exchange_explicit(&wake->waiting, 0, memory_order_acq_rel) == 0)
        wake->owed++;
    if (wake->owed == 0)
        return;
    /* The claiming signaller may not have written yet (EAGAIN). Its write then ends a later sleep without need. As it
     * is still owed, the cancel after that sleep reads it, so the descriptor does not stay readable. */
    if (read(wake->fd, &writes, sizeof(writes)) == (ssize_t)sizeof(writes))
        wake->owed -= writes;
}

void aq_wake_signal(aq_wake *wake)
{
    const uint64_t one = 1;
    ssize_t ignored;

    /* Orders the caller's publication before the check whether anybody sleeps. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&wake->waiting, memory_order_relaxed) == 0)
        return;
    if (atomic_exchange_explicit(&wake->waiting, 0, memory_order_acq_rel) == 0)
        return;                                   /* another signaller has claimed this wake-up and writes */
    ignored = write(wake->fd, &one, sizeof(one)); /* cannot fail: the counter holds 2^64 - 2 writes */
    AQ_UNUSED(ignored);
}

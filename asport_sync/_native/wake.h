/* A coalescing wake-up on an eventfd: many signals before the sleeper runs cost one write. A wake means "look", never
 * "one item".
 *
 * The protocol that loses no wake-up: the sleeper calls aq_wake_prepare(), looks once more at everything it waits for,
 * and only then blocks on the descriptor; a signaller first publishes its work, then calls aq_wake_signal(). Both sides
 * pass a seq_cst fence in between, so at least one of them sees the other.
 */
#ifndef AQ_WAKE_H
#define AQ_WAKE_H

#include "aq.h"

#include <stdatomic.h>

typedef struct aq_wake {
    int fd;              /* eventfd, non-blocking; immutable after init */
    uint64_t owed;       /* sleeper only: claimed wake-ups whose write to fd was not read yet */
    _Atomic int waiting; /* 1: asleep or about to be; set by the sleeper, cleared by the signaller that claims it */
} aq_wake;

int aq_wake_init(aq_wake *wake); /* 0 or -errno */

/* No signaller is inside or will come: one that has claimed the wake-up would write to a descriptor that may be
 * another's by then. */
void aq_wake_destroy(aq_wake *wake);

void aq_wake_prepare(aq_wake *wake); /* [sleeper] every call is followed by one of aq_wake_cancel(), slept or not */
void aq_wake_cancel(aq_wake *wake);  /* [sleeper] awake, for whatever reason; swallows a pending signal */
void aq_wake_signal(aq_wake *wake);  /* [any] a load and a fence when nobody sleeps */

#endif

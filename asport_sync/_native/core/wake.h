/* A coalescing wake-up on an eventfd: many signals before the sleeper runs cost one write. So a wake-up means "check
 * for work", not "one item".
 *
 * No wake-up is lost if both sides follow this protocol. The sleeper calls aq_wake_prepare(), checks once more
 * everything that it waits for, and only then blocks on the descriptor. A signaller publishes its work, then calls
 * aq_wake_signal(). Both execute a seq_cst fence in between, so at least one of them sees what the other has stored.
 */
#ifndef AQ_WAKE_H
#define AQ_WAKE_H

#include "aq.h"

#include <stdatomic.h>

typedef struct aq_wake {
    int fd;              /* eventfd, non-blocking; immutable after init */
    uint64_t owed;       /* sleeper only: claimed wake-ups whose write to fd is not read yet */
    _Atomic int waiting; /* 1: asleep or about to be; set by the sleeper, cleared by the signaller that claims it */
} aq_wake;

int aq_wake_init(aq_wake *wake); /* returns 0 or -errno */

/* Call only when no signaller is inside aq_wake_signal() or can call it again: one that has claimed the wake-up would
 * write to a descriptor number that may be reused by then. */
void aq_wake_destroy(aq_wake *wake);

void aq_wake_prepare(aq_wake *wake); /* [sleeper] aq_wake_cancel() must follow every call, even without sleeping */
void aq_wake_cancel(aq_wake *wake);  /* [sleeper] awake, for whatever reason; consumes a pending signal */
void aq_wake_signal(aq_wake *wake);  /* [any] costs a fence and a load if nobody sleeps */

#endif

/* Marks the descriptors of this process that belong to engines, so that a forked child can close its copies: while a
 * child holds them, ports stay open and peers do not see TCP connections end. A child must not touch an engine, because
 * another thread may have been modifying it at the time of the fork. These marks are single bits outside of any engine.
 *
 * Code that opens a descriptor does so with AQ_FD_OPEN, which marks it before any thread can fork. It clears the mark
 * before the number can be reused: with aq_fd_close(), or with aq_fd_release() if the descriptor has another owner. Any
 * thread; one owner for each descriptor.
 */
#ifndef AQ_DESCRIPTORS_H
#define AQ_DESCRIPTORS_H

#include "aq.h"

/* The value of `call`, an expression that opens a descriptor or fails with a negative number and errno; the descriptor
 * is marked. `call` must not block: a fork of another thread waits for it. */
#define AQ_FD_OPEN(call) (aq_fd_forbid_forks(), aq_fd_opened(call))

void aq_fd_forbid_forks(void); /* no thread can fork from here on; only for AQ_FD_OPEN */
int aq_fd_opened(int fd);      /* marks fd and lets threads fork again; returns fd, keeps errno; only for AQ_FD_OPEN */
int aq_fd_keep(int fd);        /* marks fd unless it is negative; returns fd */
int aq_fd_release(int fd);     /* clears the mark: fd has another owner now; returns fd */
void aq_fd_close(int fd);      /* clears the mark, if any, and closes fd */

#endif

/* Marks the descriptors of this process that belong to engines, so that a forked child can close its copies: while a
 * child holds them, ports stay open and peers do not see TCP connections end. A child must not touch an engine, because
 * another thread may have been modifying it at the time of the fork. These marks are single bits outside of any engine.
 *
 * Code that opens a descriptor marks it at once. It clears the mark before the number can be reused: with
 * aq_fd_close(), or with aq_fd_release() if Python takes over the descriptor. Any thread; one owner for each
 * descriptor.
 */
#ifndef AQ_DESCRIPTORS_H
#define AQ_DESCRIPTORS_H

#include "aq.h"

int aq_fd_keep(int fd);    /* marks fd unless it is negative; returns fd */
int aq_fd_release(int fd); /* clears the mark: fd has another owner now; returns fd */
void aq_fd_close(int fd);  /* clears the mark, if any, and closes fd */

#endif

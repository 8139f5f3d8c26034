/* Which descriptors of this process are the engines', so that a forked child can close its copies: as long as it has
 * them a port stays open, and the end of a connection does not reach the peer. Nothing of an engine may be touched in a
 * child, for another thread may have been in the middle of it; these marks are single bits that don't belong to any.
 *
 * Whoever opens a descriptor marks it at once, and clears the mark before anybody else may have the number: by
 * aq_fd_close(), or by aq_fd_release() where Python takes it over. Any thread; one owner for each descriptor.
 */
#ifndef AQ_DESCRIPTORS_H
#define AQ_DESCRIPTORS_H

#include "aq.h"

int aq_fd_keep(int fd);    /* it is ours from now on; returns it. Negative: nothing to mark */
int aq_fd_release(int fd); /* it is somebody else's from now on; returns it */
void aq_fd_close(int fd);  /* also one that was never marked */

#endif

#include "aq.h"

#include <errno.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

uint64_t aq_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail: clock and pointer are valid */
    return (uint64_t)now.tv_sec * AQ_NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

int64_t aq_clock_watch(void)
{
    /* Never expires; every kernel accepts the value. The timer is only needed for its cancellation. */
    struct itimerspec never = {.it_value = {.tv_sec = 1LL << 40}};
    int fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd >= 0 && timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL) == 0)
        return fd;
    int64_t result = AQ_ERR_SYSTEM - errno;
    if (fd >= 0)
        close(fd);
    return result;
}

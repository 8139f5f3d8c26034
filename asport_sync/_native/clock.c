#include "aq.h"

#include <time.h>

uint64_t aq_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail: the clock exists and the pointer is good */
    return (uint64_t)now.tv_sec * AQ_NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

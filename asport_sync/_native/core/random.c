#include "aq.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* For systems that refuse getrandom(), such as containers with a seccomp filter. Returns 0 on failure. */
static int read_device(uint8_t *out, size_t length)
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    ssize_t count = -1;
    if (fd >= 0) {
        count = read(fd, out, length); /* never short for up to 256 bytes */
        close(fd);
    }
    return count == (ssize_t)length;
}

void aq_random(void *out, size_t length)
{
    uint8_t *at = out;
    while (length > 0) {
        size_t step = length < 256 ? length : 256; /* maximum of getentropy() */
        if (getentropy(at, step) != 0 && !read_device(at, step)) {
            /* Connection IDs and reset tokens must be unpredictable, so there is no alternative. */
            fputs("asport-sync: the system provides no random numbers: neither getrandom() nor /dev/urandom works\n",
                  stderr);
            abort();
        }
        at += step;
        length -= step;
    }
}

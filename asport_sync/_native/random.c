#include "aq.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* For systems that refuse getrandom(), as a container's filter may. 0: this way there is nothing either. */
static int read_device(uint8_t *out, size_t length)
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    ssize_t count = -1;
    if (fd >= 0) {
        count = read(fd, out, length); /* never short for as few as these */
        close(fd);
    }
    return count == (ssize_t)length;
}

void aq_random(void *out, size_t length)
{
    uint8_t *at = out;
    while (length > 0) {
        size_t step = length < 256 ? length : 256; /* getentropy gives no more at once */
        if (getentropy(at, step) != 0 && !read_device(at, step)) {
            /* Connection ids and reset tokens must not be guessable; there is nothing sensible to do without. */
            fputs("asport-sync: the system has no random numbers: neither getrandom() nor /dev/urandom\n", stderr);
            abort();
        }
        at += step;
        length -= step;
    }
}

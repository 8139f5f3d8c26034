#include "aq.h"

#include <stdlib.h>
#include <unistd.h>

void aq_random(void *out, size_t length)
{
    uint8_t *at = out;
    while (length > 0) {
        size_t step = length < 256 ? length : 256; /* getentropy gives no more at once */
        if (getentropy(at, step) != 0)
            abort(); /* connection ids and reset tokens must not be guessable; there is nothing sensible to do without
                      */
        at += step;
        length -= step;
    }
}

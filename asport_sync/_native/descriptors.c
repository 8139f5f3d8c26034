#include "descriptors.h"

#include <stdatomic.h>
#include <unistd.h>

/* Number of descriptors that can be marked: the kernel's default maximum per process (fs.nr_open). The marks take 128
 * KiB, of which only written pages use memory. A descriptor with a higher number stays open in a child. */
#define MOST (1 << 20)
#define BITS 64

static _Atomic uint64_t marks[MOST / BITS];

int aq_fd_keep(int fd)
{
    if (fd >= 0 && fd < MOST)
        atomic_fetch_or_explicit(&marks[fd / BITS], 1ULL << (fd % BITS), memory_order_relaxed);
    return fd;
}

int aq_fd_release(int fd)
{
    if (fd >= 0 && fd < MOST)
        atomic_fetch_and_explicit(&marks[fd / BITS], ~(1ULL << (fd % BITS)), memory_order_relaxed);
    return fd;
}

void aq_fd_close(int fd)
{
    close(aq_fd_release(fd));
}

void aq_forked(void)
{
    for (int i = 0; i < MOST / BITS; i++) {
        uint64_t word = atomic_exchange_explicit(&marks[i], 0, memory_order_relaxed);
        for (int bit = 0; word != 0; bit++, word >>= 1) {
            if (word & 1)
                close(i * BITS + bit);
        }
    }
}

#include "core/descriptors.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

/* Number of descriptors that can be marked: the kernel's default maximum per process (fs.nr_open). The marks take 128
 * KiB, of which only written pages use memory. A descriptor with a higher number stays open in a child. */
#define MAX_DESCRIPTORS (1 << 20)
#define BITS 64

static _Atomic uint64_t marks[MAX_DESCRIPTORS / BITS];

/* Held while one of our descriptors is open without its mark, and during a fork. */
static pthread_mutex_t no_fork = PTHREAD_MUTEX_INITIALIZER;

void aq_fd_forbid_forks(void)
{
    pthread_mutex_lock(&no_fork);
}

static void allow_forks(void)
{
    pthread_mutex_unlock(&no_fork);
}

int aq_fd_opened(int fd)
{
    aq_fd_keep(fd);
    allow_forks();
    return fd;
}

/* When the library is loaded, so that no engine exists before. Fails only without memory; then a child may keep a copy
 * of a descriptor that another thread was opening. */
__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(aq_fd_forbid_forks, allow_forks, allow_forks);
}

int aq_fd_keep(int fd)
{
    if (fd >= 0 && fd < MAX_DESCRIPTORS)
        atomic_fetch_or_explicit(&marks[fd / BITS], 1ULL << (fd % BITS), memory_order_relaxed);
    return fd;
}

int aq_fd_release(int fd)
{
    if (fd >= 0 && fd < MAX_DESCRIPTORS)
        atomic_fetch_and_explicit(&marks[fd / BITS], ~(1ULL << (fd % BITS)), memory_order_relaxed);
    return fd;
}

void aq_fd_close(int fd)
{
    aq_fd_forbid_forks();
    close(aq_fd_release(fd));
    allow_forks();
}

void aq_descriptor_taken(int32_t fd)
{
    aq_fd_release(fd);
}

void aq_forked(void)
{
    for (int i = 0; i < MAX_DESCRIPTORS / BITS; i++) {
        uint64_t word = atomic_exchange_explicit(&marks[i], 0, memory_order_relaxed);
        for (int bit = 0; word != 0; bit++, word >>= 1) {
            if (word & 1)
                close(i * BITS + bit);
        }
    }
}

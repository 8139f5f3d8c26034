/* Preloaded by test_memory.py: an allocator that has nothing left for callers of one library, the engine's. glibc's own
 * names for its functions are behind it.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void watch_library(uintptr_t first, uintptr_t end);
void fail_all(int on);
void fail_one_after(long count);
long failures(void);

static _Atomic uintptr_t library_first, library_end;
static _Atomic int all;
static _Atomic long until_failure = -1; /* allocations until one fails; below 0: none does */
static _Atomic long failed;

/* Whose allocations are looked at: callers at these addresses. */
void watch_library(uintptr_t first, uintptr_t end)
{
    atomic_store(&library_first, first);
    atomic_store(&library_end, end);
}

/* From now on all of its allocations fail, or none. */
void fail_all(int on)
{
    atomic_store(&all, on);
}

/* The one after so many fails, and no other; below 0: none does. */
void fail_one_after(long count)
{
    atomic_store(&until_failure, count);
}

/* How many have failed since the last call. */
long failures(void)
{
    return atomic_exchange(&failed, 0);
}

static int fails(const void *caller)
{
    uintptr_t at = (uintptr_t)caller;
    if (at < atomic_load(&library_first) || at >= atomic_load(&library_end))
        return 0;
    if (!atomic_load(&all)) {
        if (atomic_load(&until_failure) < 0 || atomic_fetch_sub(&until_failure, 1) != 0)
            return 0;
    }
    atomic_fetch_add(&failed, 1);
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(memory, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, size);
}

#include "fuzz.h"

void *__real_malloc(size_t size); /* NOLINT: the linker's names */
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

uint32_t fuzz_allocations_left = FUZZ_NO_FAILURE;

static int fail_now(void)
{
    if (fuzz_allocations_left == FUZZ_NO_FAILURE)
        return 0;
    return fuzz_allocations_left-- == 0; /* wraps round to FUZZ_NO_FAILURE */
}

void *__wrap_malloc(size_t size)
{
    return fail_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fail_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fail_now() ? NULL : __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fail_now() ? NULL : __real_aligned_alloc(alignment, size);
}

/* What the fuzz targets share: reading a program of operations out of the fuzzer's bytes, checks that hold in every
 * build, and allocations that fail when the input says so.
 *
 * A target is one file with LLVMFuzzerTestOneInput(). Same bytes, same run: nothing in here depends on time or on what
 * ran before.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Ends the program, which the fuzzer takes for a finding, and says which rule was broken. */
#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                  \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* What is left of an input. Past its end everything reads as zero. */
typedef struct {
    const uint8_t *at;
    size_t left;
} fuzz_input;

static inline uint8_t fuzz_u8(fuzz_input *input)
{
    if (input->left == 0)
        return 0;
    input->left--;
    return *input->at++;
}

static inline uint16_t fuzz_u16(fuzz_input *input)
{
    uint8_t high = fuzz_u8(input);
    return (uint16_t)(high << 8 | fuzz_u8(input));
}

static inline uint32_t fuzz_u32(fuzz_input *input)
{
    uint32_t high = fuzz_u16(input);
    return high << 16 | fuzz_u16(input);
}

/* 0 .. below - 1 */
static inline uint32_t fuzz_below(fuzz_input *input, uint32_t below)
{
    return (below > 256 ? fuzz_u16(input) : fuzz_u8(input)) % below;
}

/* The next bytes themselves, at most `max` and no more than there are. */
static inline const uint8_t *fuzz_bytes(fuzz_input *input, size_t max, size_t *length)
{
    const uint8_t *bytes = input->at;
    *length = max < input->left ? max : input->left;
    input->at += *length;
    input->left -= *length;
    return bytes;
}

/* ---- allocations ------------------------------------------------------------------------------------------------
 *
 * The program is linked with --wrap for these, so the code under test allocates through here.
 */

#define FUZZ_NO_FAILURE UINT32_MAX

extern uint32_t fuzz_allocations_left; /* the one after so many fails, and no other; FUZZ_NO_FAILURE: none */

#endif

/* SPDX-License-Identifier: MIT
 *
 * The fuzzer's octets, read as a script: every step takes what it needs from the front; past the end everything is 0.
 */
#ifndef FUZZ_SCRIPT_H
#define FUZZ_SCRIPT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t *script;
static size_t script_left;

static inline uint8_t take8(void)
{
    if (!script_left)
        return 0;
    script_left--;
    return *script++;
}

static inline uint16_t take16(void)
{
    uint16_t low = take8();
    return (uint16_t)(low | take8() << 8);
}

static inline uint32_t take32(void)
{
    uint32_t low = take16();
    return low | (uint32_t)take16() << 16;
}

static inline uint64_t take64(void)
{
    uint64_t low = take32();
    return low | (uint64_t)take32() << 32;
}

/* A number of any size in few octets: one for its size, then those that matter. */
static inline uint64_t take_number(void)
{
    uint8_t size = take8();
    switch (size & 3) {
    case 0: return size >> 2;
    case 1: return take16();
    case 2: return take32();
    default: return take64();
    }
}

static inline void take_octets(void *to, size_t length)
{
    for (size_t i = 0; i < length; i++)
        ((uint8_t *)to)[i] = take8();
}

/* Of the harness, not of what is tested: not worth the fuzzer's attention. */
#define QUIET __attribute__((noinline, no_sanitize("coverage")))

/* What must hold whatever the peer does. */
#define MUST(condition)                                                                    \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: must hold: %s\n", __FILE__, __LINE__, #condition);     \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

#endif

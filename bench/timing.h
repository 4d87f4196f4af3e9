/* SPDX-License-Identifier: MIT
 *
 * How everything here is timed, floors and rows alike, so that their ratio is one of like with like.
 *
 * Two passes over the same operation. The first reads the clock around every operation, for the spread a caller sees
 * (median and 99th percentile; reading the clock is in them). The second reads it once a group of operations: the median
 * group is the figure that is judged, because it holds next to no clock and no visit of another process to our CPU.
 */
#ifndef TIMING_H
#define TIMING_H

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

struct timing {
    double op;   /* ns an operation, the median group */
    double mean; /* total / operations of the second pass */
    double p50;  /* of single operations, clock included */
    double p99;
    double count; /* of the single operations */
};

typedef int (*timed)(void *context, uint64_t turn); /* nonzero: failed */

static inline uint64_t timing_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline int timing_order(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static inline void timing_singles(uint64_t *took, unsigned count, struct timing *out)
{
    qsort(took, count, sizeof *took, timing_order);
    out->p50 = (double)took[count / 2];
    out->p99 = (double)took[count - count / 100 - 1];
    out->count = count;
}

/* `count` operations a pass, a multiple of `group`. Returns 0, or what the operation failed with, or -1. */
static inline int timing_run(timed operation, void *context, unsigned count, unsigned group, struct timing *out)
{
    uint64_t *took = malloc(count * sizeof *took);
    uint64_t turn = 0;
    int error = took ? 0 : -1;

    for (unsigned i = 0; i < count / 20 && !error; i++) /* warm up */
        error = operation(context, turn++);
    for (unsigned i = 0; i < count && !error; i++) {
        uint64_t start = timing_now();
        error = operation(context, turn++);
        took[i] = timing_now() - start;
    }
    if (!error)
        timing_singles(took, count, out);
    unsigned groups = count / group;
    uint64_t begin = timing_now(), last = begin;
    for (unsigned i = 0; i < groups && !error; i++) {
        for (unsigned j = 0; j < group && !error; j++)
            error = operation(context, turn++);
        uint64_t now = timing_now();
        took[i] = now - last;
        last = now;
    }
    if (!error) {
        out->mean = (double)(last - begin) / (groups * group);
        qsort(took, groups, sizeof *took, timing_order);
        out->op = (double)took[groups / 2] / group;
    }
    free(took);
    return error;
}

/* Single operations for `ns`, at most `most` of them: for what is timed beside others, where a group would be one of waiting.
 * `op` is the median single one. Returns 0, or what the operation failed with, or -1. */
static inline int timing_run_for(timed operation, void *context, uint64_t ns, unsigned most, struct timing *out)
{
    uint64_t *took = malloc(most * sizeof *took);
    uint64_t begin = timing_now(), now = begin;
    unsigned count = 0;
    int error = took ? 0 : -1;

    while (!error && count < most && (now - begin < ns || !count)) {
        error = operation(context, count);
        uint64_t after = timing_now();
        took[count++] = after - now;
        now = after;
    }
    if (!error) {
        out->mean = (double)(now - begin) / count;
        timing_singles(took, count, out);
        out->op = out->p50;
    }
    free(took);
    return error;
}

#endif

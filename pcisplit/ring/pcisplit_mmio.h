/* SPDX-License-Identifier: MIT
 *
 * Device registers: loads and stores of exactly the asked width, with the barriers that order them against DMA memory
 * [ORD-10, ORD-11]. Self-contained, freestanding. A Python slice of a mapping promises no width; memcpy neither.
 *
 * A store to a register begins with an I/O write barrier: what was written to DMA memory before is visible to the device
 * before the store. A load from a register ends with an I/O read barrier: what the device wrote to DMA memory before it
 * answered is visible after the load. x86 keeps both orders by itself (uncached accesses are not reordered with others);
 * there the barrier binds the compiler only. arm64: dmb oshst / dmb oshld; riscv: fence w,o / fence i,r - the barriers of
 * Linux's writel() and readl() (Documentation/memory-barriers.txt, "Kernel I/O barrier effects").
 */
#ifndef PCISPLIT_MMIO_H
#define PCISPLIT_MMIO_H

#include <stdint.h>

static inline void pcisplit_io_write_barrier(void)
{
#if defined(__aarch64__)
    __asm__ volatile("dmb oshst" ::: "memory");
#elif defined(__riscv)
    __asm__ volatile("fence w,o" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

static inline void pcisplit_io_read_barrier(void)
{
#if defined(__aarch64__)
    __asm__ volatile("dmb oshld" ::: "memory");
#elif defined(__riscv)
    __asm__ volatile("fence i,r" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

/* One load of `width` octets (1, 2, 4, 8) at `address`, which is a multiple of `width`. */
static inline uint64_t pcisplit_mmio_read(const volatile void *address, unsigned width)
{
    uint64_t value;
    switch (width) {
    case 1: value = *(const volatile uint8_t *)address; break;
    case 2: value = *(const volatile uint16_t *)address; break;
    case 4: value = *(const volatile uint32_t *)address; break;
    default: value = *(const volatile uint64_t *)address; break;
    }
    pcisplit_io_read_barrier();
    return value;
}

/* One store of the low `width` octets (1, 2, 4, 8) of `value` at `address`, which is a multiple of `width`. */
static inline void pcisplit_mmio_write(volatile void *address, unsigned width, uint64_t value)
{
    pcisplit_io_write_barrier();
    switch (width) {
    case 1: *(volatile uint8_t *)address = (uint8_t)value; break;
    case 2: *(volatile uint16_t *)address = (uint16_t)value; break;
    case 4: *(volatile uint32_t *)address = (uint32_t)value; break;
    default: *(volatile uint64_t *)address = value; break;
    }
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * Parts of BARs: finding one, whether it can be accessed, and one access of mapped memory. Inline, because they are most of
 * what a request costs.
 */
#ifndef PCS_AREA_H
#define PCS_AREA_H

#include "serve.h"

/* The area that holds octets [offset, offset + width) of a BAR, or NULL. */
static inline const struct pcs_area *pcs_find_area(const struct pcs_bar *bar, uint64_t offset, uint64_t width)
{
    for (unsigned i = 0; i < bar->areas; i++)
        if (offset >= bar->area[i].start && offset < bar->area[i].end)
            return offset + width <= bar->area[i].end ? &bar->area[i] : NULL;
    return NULL;
}

/* Whether `width` octets can be accessed in this area, here and now: 0 or why not; counts a refusal by rule. */
static inline int pcs_check_area(struct pcs_device *device, const struct pcs_area *area, unsigned width, uint32_t *rule)
{
    if (!area || area->kind == PCS_AREA_NONE)
        return PCISPLIT_ERROR_INVALID_OFFSET;
    if (area->kind == PCS_AREA_DENIED) {
        *rule = area->rule;
        pcs_config_count(&device->config, area->rule);
        return PCISPLIT_ERROR_DENIED;
    }
    return area->widths & width ? 0 : PCISPLIT_ERROR_BAD_SIZE;
}

/* Octets of a BAR, 0: none such. */
static inline uint64_t pcs_bar_size(const struct pcs_device *device, unsigned bar)
{
    return bar < PCISPLIT_BAR_COUNT ? device->bar[bar].size : 0;
}

/* Whether the decode of a BAR is on: MEM and IO are virtual and live in the table [CFG-6]. */
static inline int pcs_decoded(const struct pcs_device *device, const struct pcs_bar *bar)
{
    return device->config.value[4] & (bar->io ? 1 : 2);
}

/* One access of mapped memory, at the cost that its area has. */
static inline uint64_t pcs_area_load(const struct pcs_area *area, uint64_t offset, unsigned width)
{
    if (area->read_ns)
        pcs_spend(area->read_ns);
    return pcisplit_mmio_read(area->base + (offset - area->start), width);
}

static inline void pcs_area_store(const struct pcs_area *area, uint64_t offset, unsigned width, uint64_t value)
{
    if (area->write_ns)
        pcs_spend(area->write_ns);
    pcisplit_mmio_write(area->base + (offset - area->start), width, value);
}

#endif

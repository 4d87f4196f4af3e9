// SPDX-License-Identifier: MIT
// Configuration space as per-octet tables. Which octet gets which masks is decided in policy/compile.py; here they are
// only followed. An access is split byte-exact [CFG-2] and a refused write changes nothing at all [CFG-3].

#include "serve.h"

static uint8_t octet_of(uint32_t value, unsigned i)
{
    return (uint8_t)(value >> (8 * i));
}

int pcs_config_read(const struct pcs_config *config, uint32_t offset, unsigned width, uint32_t *value)
{
    *value = 0;
    for (unsigned i = 0; i < width; i++) {
        if (config->from_device[offset + i])
            return 0;
        *value |= (uint32_t)config->value[offset + i] << (8 * i);
    }
    return 1;
}

// Bits of `octet` that the rules of this place do not allow. What the device holds is not known here, so a locked bit of
// it can't be "unchanged": only places that are wholly open, ignored or zero-tolerant accept a write.
static uint8_t offence(const struct pcs_config *config, uint32_t at, uint8_t octet)
{
    uint8_t open = config->write[at] | config->quiet[at];

    if (!config->from_device[at])
        return (octet ^ config->value[at]) & (uint8_t)~open;
    if ((uint8_t)(open | config->zero[at]) != 0xff)
        return 0xff;
    return octet & config->zero[at] & (uint8_t)~open;
}

unsigned pcs_config_check_write(struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value,
                                uint32_t *octet)
{
    for (unsigned i = 0; i < width; i++) {
        if (offence(config, offset + i, octet_of(value, i))) {
            unsigned rule = config->rule[offset + i];
            *octet = offset + i;
            atomic_fetch_add_explicit(&config->hits[rule % PCS_RULES], 1, memory_order_relaxed);
            return rule;
        }
    }
    return 0;
}

int pcs_config_needs_device(const struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value)
{
    for (unsigned i = 0; i < width; i++)
        if ((octet_of(value, i) ^ config->value[offset + i]) & config->to_device[offset + i])
            return 1;
    return 0;
}

void pcs_config_apply(struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value)
{
    for (unsigned i = 0; i < width; i++) {
        uint32_t at = offset + i;
        config->value[at] = (uint8_t)((config->value[at] & ~config->write[at]) | (octet_of(value, i) & config->write[at]));
    }
}

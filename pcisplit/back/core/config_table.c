// SPDX-License-Identifier: MIT
// Configuration space as planes of bits. Which bit is in which plane is decided in policy/; here they are only followed. An
// access is split byte-exact [CFG-2] and a refused write changes nothing at all [CFG-3]. What reaches the device is written
// by the owner (Tables.device_value in policy/compile.py): the loop only finds out that it is the owner's.

#include "serve.h"

static uint8_t octet_of(uint32_t value, unsigned i)
{
    return (uint8_t)(value >> (8 * i));
}

int pcs_config_read(const struct pcs_config *config, uint32_t offset, unsigned width, uint32_t *value)
{
    *value = 0;
    for (unsigned i = 0; i < width; i++) {
        if (config->hardware[offset + i])
            return 0;
        *value |= (uint32_t)config->value[offset + i] << (8 * i);
    }
    return 1;
}

// Bits of `octet` that the rules of this place do not allow: ones where zero is demanded, and changes of locked bits. What
// the device holds is not known here, so a locked bit of it can't be "unchanged" [CFG-10].
static uint8_t offence(const struct pcs_config *config, uint32_t at, uint8_t octet)
{
    uint8_t open = config->virtual[at] | config->through[at] | config->clear[at] | config->ignore[at];
    uint8_t locked = (uint8_t)~(open | config->zero[at]);
    uint8_t changed = (uint8_t)((octet ^ config->value[at]) | config->hardware[at]);

    return (octet & config->zero[at]) | (changed & locked);
}

void pcs_config_count(struct pcs_config *config, unsigned rule)
{
    if (rule < config->rules)
        atomic_fetch_add_explicit(&config->hits[rule], 1, memory_order_relaxed);
}

unsigned pcs_config_check_write(struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value,
                                uint32_t *octet)
{
    for (unsigned i = 0; i < width; i++) {
        if (offence(config, offset + i, octet_of(value, i))) {
            unsigned rule = config->rule[offset + i];
            *octet = offset + i;
            pcs_config_count(config, rule);
            return rule;
        }
    }
    return 0;
}

int pcs_config_needs_owner(const struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value)
{
    for (unsigned i = 0; i < width; i++) {
        uint32_t at = offset + i;
        uint8_t octet = octet_of(value, i), mirrored = config->through[at] & config->virtual[at];
        if (((octet ^ config->value[at]) & mirrored) | (config->through[at] & ~mirrored) | (octet & config->clear[at]) |
            config->trap[at])
            return 1;
    }
    return 0;
}

void pcs_config_apply(struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value)
{
    for (unsigned i = 0; i < width; i++) {
        uint32_t at = offset + i;
        uint8_t mask = config->virtual[at];
        config->value[at] = (uint8_t)((config->value[at] & ~mask) | (octet_of(value, i) & mask));
    }
}

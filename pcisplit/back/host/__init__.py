# SPDX-License-Identifier: MIT
"""What sessions take of the host: descriptors, DMA memory and where its window lies, hardening of a process."""

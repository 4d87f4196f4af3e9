# SPDX-License-Identifier: MIT
"""The lab: a stock Debian kernel under QEMU's software emulation, with real VFIO behind an emulated Intel IOMMU."""

# SPDX-License-Identifier: MIT
"""One process per IOMMU group: opens, maps and puts in order its devices; no front reaches it."""

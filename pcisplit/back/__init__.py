# SPDX-License-Identifier: MIT
"""The backend: a supervisor with its zygote, a keeper per IOMMU group, a worker per session (docs/architecture.md)."""

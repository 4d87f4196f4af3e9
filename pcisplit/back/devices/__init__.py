# SPDX-License-Identifier: MIT
"""The device seam (device.py) and what is behind it: real functions (vfio/) and models (models/)."""

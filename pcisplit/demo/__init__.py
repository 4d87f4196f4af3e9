# SPDX-License-Identifier: MIT
"""``pcisplit demo``: a driver, a story that it plays through, and a screen that shows both sides of the split."""

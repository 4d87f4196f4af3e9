# SPDX-License-Identifier: MIT
"""What a front may do to configuration space: fields and rules (header), compiled to planes of bits (compile)."""

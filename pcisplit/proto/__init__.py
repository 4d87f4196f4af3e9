# SPDX-License-Identifier: MIT
"""The protocol without I/O: slots, meeting, boot-info, states, layout, errors; importable alone."""

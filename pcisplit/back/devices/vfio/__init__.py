# SPDX-License-Identifier: MIT
"""Real functions: a keeper's half (group, acquire, mapper, resets) and what it shares with a worker (function, describe)."""

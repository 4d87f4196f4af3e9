# SPDX-License-Identifier: MIT
"""One process per session, jailed: serves the front's requests; the only one that shares memory with it."""

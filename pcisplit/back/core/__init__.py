# SPDX-License-Identifier: MIT
"""What a worker does per request, in C without the GIL: loop, checks, accesses, owners; native.py is Python's side of it."""

# SPDX-License-Identifier: MIT
"""``python -m pcisplit``: the same as ``pcisplit``."""

from pcisplit.cli import main

main(prog_name="pcisplit")

# SPDX-License-Identifier: MIT
"""``python -m pcisplit.conformance``: the same as ``pcisplit conformance back``."""

from pcisplit.cli.conformance import back

back(prog_name="pcisplit conformance back")

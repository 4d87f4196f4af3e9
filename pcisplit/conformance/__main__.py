# SPDX-License-Identifier: MIT
"""``python -m pcisplit.conformance``: a socket path in, a report per clause out."""

from pcisplit.conformance.runner import main

main(prog_name="pcisplit conformance")

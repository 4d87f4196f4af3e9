# SPDX-License-Identifier: MIT
"""Configuration space in the form of ``lspci -xxxx``, which ``lspci -F FILE`` and ``--device x=dump:FILE`` read."""

from pcisplit.pci import CONFIG_SIZE, CONFIG_SIZE_EXTENDED, Bdf

_ROW = 16


def lspci_text(bdf: Bdf, title: str, octets: bytes) -> str:
    """The text, with an empty line at its end, as lspci has it. `title` is one printable line.

    Raises ValueError when `octets` are not 256 or 4096.
    """
    if len(octets) not in (CONFIG_SIZE, CONFIG_SIZE_EXTENDED):
        raise ValueError(f"{len(octets)} octets of configuration space, not {CONFIG_SIZE} or {CONFIG_SIZE_EXTENDED}")
    rows = (f"{at:02x}: {octets[at : at + _ROW].hex(' ')}" for at in range(0, len(octets), _ROW))
    return "\n".join([f"{bdf} {title}", *rows, "", ""])

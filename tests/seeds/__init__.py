# SPDX-License-Identifier: MIT
"""Seeds: violations of the specification, one line each, put into a copy of our peers; the kit must catch them.

A line of ``*.seeds``: ``file | old | new | clause | case``. `case` is the one that is expected to catch it; ``-`` one that
cannot be seen from outside, with the reason in place of the clause. ``#`` begins a comment.
"""

from pathlib import Path
from typing import NamedTuple


class Seed(NamedTuple):
    """`old` stands once in `file`, relative to the repository."""

    file: str
    old: str
    new: str
    clause: str
    case: str


def read(name: str) -> list[Seed]:
    """The seeds of ``NAME.seeds``."""
    lines = (Path(__file__).parent / f"{name}.seeds").read_text().splitlines()
    return [Seed(*(part.strip() for part in line.split(" | "))) for line in lines if line and not line.startswith("#")]

# SPDX-License-Identifier: MIT
"""``pcisplit demo``."""

import sys
from pathlib import Path

import click


@click.command(short_help="A backend, a driver, and what crosses between them.")
@click.option(
    "--socket", "path", type=click.Path(path_type=Path), help="Drive the edu device of this backend, not our own."
)
@click.option("--device", "name", default="edu0", show_default=True, help="Name of the device there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(path: Path | None, name: str, as_json: bool) -> None:
    """Start a backend with model:edu, drive it from this process, show each step and the messages that crossed.

    \b
    Examples
      pcisplit demo
      pcisplit demo --socket /run/pcisplit/demo --device edu0
    """
    from pcisplit.demo.show import run

    sys.exit(run(path, name, as_json))

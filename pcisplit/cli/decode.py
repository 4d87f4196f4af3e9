# SPDX-License-Identifier: MIT
"""``pcisplit decode``: octets of the protocol in words, and what is wrong in them with its clause."""

import json
import sys
from typing import TYPE_CHECKING, BinaryIO

import click

if TYPE_CHECKING:
    from pcisplit.proto.explain import Explanation

#: As in ``proto/explain.py``, which is imported when the command runs.
_KINDS = ("request", "response", "event", "hello", "reply", "late", "boot_info", "front_header", "back_header")


@click.command(short_help="Octets of the protocol in words, and what is wrong in them.")
@click.argument("octets", nargs=-1)
@click.option(
    "--file", "file", type=click.File("rb"), help="Read a file: hex as in spec/vectors, or raw octets; - is stdin."
)
@click.option(
    "--kind", type=click.Choice(_KINDS), help="What it is. Messages are known by their magic, slots are guessed."
)
@click.option(
    "--index",
    type=click.IntRange(0, 0xFFFFFFFF),
    help="Index of the (first) slot in the ring's life: checks sequences.",
)
@click.option("--raw", is_flag=True, help="The file has raw octets, even if they look like hex.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per message or slot.")
def decode(
    octets: tuple[str, ...], file: BinaryIO | None, kind: str | None, index: int | None, raw: bool, as_json: bool
) -> None:
    """Say in words what a slot, a hello, a reply, a late message, a boot-info block or a region's header says.

    OCTETS are hexadecimal; without them and without --file they come from stdin. Several slots may follow each other.
    Exits 1 if something is wrong in them, and says which clause of spec/ says so.

    \b
    Examples
      pcisplit decode --file spec/vectors/hello.gen.hex
      pcisplit decode 50435348 0100 0000
      xxd -p slots.bin | pcisplit decode --kind response --index 41
      pcisplit decode --file hello.bin --json | jq .problems
    """
    from pcisplit.proto.explain import explain_all

    if octets and file is not None:
        raise click.UsageError("give octets or --file, not both")
    data, named = _read(octets, file, raw)
    if not data:
        raise click.UsageError("no octets: give them in hexadecimal, with --file PATH, or on stdin")
    found = explain_all(data, kind or named, index)
    for each in found:
        if as_json:
            print(json.dumps(each.as_dict()), flush=True)
        else:
            _show(each)
    if any(each.problems for each in found):
        sys.exit(1)


def _read(octets: tuple[str, ...], file: BinaryIO | None, raw: bool) -> tuple[bytes, str]:
    """The octets, and the kind that a comment beside them names."""
    from pcisplit.proto.explain import octets_of

    if octets:
        try:
            return octets_of(" ".join(octets))
        except ValueError as problem:
            raise click.UsageError(f"these are no octets in hexadecimal, such as 20 00 or 2000: {problem}") from None
    data = (file or sys.stdin.buffer).read()
    if raw:
        return data, ""
    try:
        return octets_of(data.decode("ascii"))
    except ValueError:  # neither ASCII nor hexadecimal: the octets themselves
        return data, ""


def _show(each: "Explanation") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False, markup=False)
    guess = " (a guess: --kind says otherwise)" if each.guessed else ""
    console.print(Text.assemble((each.kind, "bold"), f"{guess}: {each.says}"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("at", justify="right")
    table.add_column("octets", no_wrap=True)
    for column in ("field", "value", "meaning"):
        table.add_column(column, overflow="fold")
    for part in each.parts:
        table.add_row("", "", Text(part.title, style="bold"), "", "")
        for line in part.lines:
            table.add_row(str(line.at), _hex(line.octets), line.field, Text(line.value), Text(line.meaning))
    console.print(table)
    for problem in each.problems:
        console.print(Text.assemble(("wrong ", "bold red"), f"[{problem.clause}] {problem.text}"), soft_wrap=True)
    if not each.problems:
        console.print(Text("nothing is wrong in it", style="green"))


def _hex(octets: bytes) -> str:
    """The first eight octets; the rest of a long field, which is seldom of interest, as a number."""
    return octets.hex(" ") if len(octets) <= 8 else f"{octets[:7].hex(' ')} +{len(octets) - 7}"

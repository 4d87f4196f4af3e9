# SPDX-License-Identifier: MIT
"""``pcisplit list``, ``dump``, ``stats``, ``detach``, ``attach``: what an operator asks of a running backend."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pcisplit.cli.client import ControlClient

_WATCH_SECONDS = 1.0


def _control(command: Callable[..., None]) -> Callable[..., None]:
    """The option that all of them take."""
    return click.option(
        "--control",
        "path",
        type=click.Path(path_type=Path),
        envvar="PCISPLIT_CONTROL",
        show_envvar=True,
        help="The control socket of the backend.",
    )(command)


def _json(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def _client(path: Path | None) -> "ControlClient":
    if path is None:
        text = "no --control: give the path that the backend was given (pcisplit serve ... --control PATH)"
        raise click.UsageError(f"{text}, here or in PCISPLIT_CONTROL")
    from pcisplit.cli.client import ControlClient

    return ControlClient(path)


def _print_json(result: dict[str, Any]) -> None:
    """One line, ASCII: a hostile text in it is no danger to a terminal."""
    print(json.dumps(result), flush=True)


@click.command("list", short_help="Devices and sessions: states, counters.")
@_control
@_json
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
def list_(path: Path | None, as_json: bool, watch: bool) -> None:
    """Devices and sessions of a backend, what state they are in and what they have done.

    \b
    Examples
      pcisplit list --control /run/pcisplit/control
      pcisplit list --watch
      pcisplit list --json | jq '.sessions[].driver'
    """
    if watch and not as_json and not sys.stdout.isatty():
        raise click.UsageError("--watch draws on a terminal, and this is none; use --json --watch, one object a line")
    with _client(path) as client:
        if watch:
            _watch(client, as_json)
        elif as_json:
            _print_json(client.ask("list"))
        else:
            from pcisplit.cli.control_screen import console, overview

            result, screen = client.ask("list"), console()
            screen.print(overview(result, time.time(), screen.width))


def _watch(client: "ControlClient", as_json: bool) -> None:
    """Ask each second, until Ctrl-C or the end of the backend. What is shown is never more than the last answer."""
    try:
        if as_json:
            while True:
                _print_json(client.ask("list"))
                time.sleep(_WATCH_SECONDS)
        from rich.live import Live

        from pcisplit.cli.control_screen import console, overview

        screen = console()
        with Live(console=screen, auto_refresh=False, screen=True, vertical_overflow="ellipsis") as live:
            while True:
                live.update(overview(client.ask("list"), time.time(), screen.width, watching=True), refresh=True)
                time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:  # how a watch ends
        return


@click.command(short_help="Configuration space of a device, as lspci -xxxx.")
@click.argument("name")
@_control
@_json
@click.option("--hardware", is_flag=True, help="What the device says, not what its front sees.")
def dump(name: str, path: Path | None, as_json: bool, hardware: bool) -> None:
    """Configuration space of device NAME, in the form of lspci -xxxx.

    \b
    Examples
      pcisplit dump nic0
      pcisplit dump nic0 > seen; pcisplit dump nic0 --hardware > true; diff seen true
      lspci -vv -F seen
    """
    with _client(path) as client:
        result = client.ask("dump", name=name, hardware=hardware)
    if as_json:
        _print_json(result)
        return
    from pcisplit.cli.lspci import lspci_text
    from pcisplit.pci import Bdf

    try:
        bdf, octets = Bdf.parse(str(result.get("bdf"))), bytes.fromhex(str(result.get("octets")))
        text = lspci_text(bdf, f"{name}, {'as the hardware says' if hardware else 'as its front sees it'}", octets)
    except ValueError as problem:
        from pcisplit.back.log import escape

        raise click.ClickException(f"the backend's answer is no configuration space: {escape(str(problem))}") from None
    print(text, end="")
    if result.get("note"):
        from pcisplit.back.log import escape

        click.echo(f"note: {escape(str(result['note']), 400)}", err=True)  # beside the dump, which lspci is to read


@click.command(short_help="Counters of supervisor, sessions, devices.")
@click.argument("name", required=False)
@_control
@_json
def stats(name: str | None, path: Path | None, as_json: bool) -> None:
    """Counters of the backend, its sessions and devices; with NAME, of that device and its session.

    \b
    Examples
      pcisplit stats
      pcisplit stats nic0 --json
    """
    with _client(path) as client:
        result = client.ask("stats", name=name)
    if as_json:
        _print_json(result)
        return
    from pcisplit.cli.control_screen import console, counters

    console().print(counters(result))


@click.command(short_help="End a device's session, withhold the device.")
@click.argument("name")
@_control
@_json
def detach(name: str, path: Path | None, as_json: bool) -> None:
    """End the session that has device NAME, in the safe order, and offer the device to nobody until attach.

    \b
    Examples
      pcisplit detach nic0
    """
    with _client(path) as client:
        try:
            result = client.ask("detach", name=name)
        except KeyboardInterrupt:
            raise click.ClickException(
                "not waiting any more; the backend goes on: pcisplit list tells how far"
            ) from None
    if as_json:
        _print_json(result)
        return
    from pcisplit.cli.control_screen import console, detached

    console().print(detached(name, result))


@click.command(short_help="Offer a detached device again.")
@click.argument("name")
@_control
@_json
def attach(name: str, path: Path | None, as_json: bool) -> None:
    """Offer device NAME again, which was detached.

    \b
    Examples
      pcisplit attach nic0
    """
    with _client(path) as client:
        result = client.ask("attach", name=name)
    if as_json:
        _print_json(result)
        return
    print(f"{name} is offered again; a front may have it")

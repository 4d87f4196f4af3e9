# SPDX-License-Identifier: MIT
"""The command line: ``pcisplit serve``, ``pcisplit demo``. Every option can come from the environment, PCISPLIT_SERVE_DMA."""

import sys
from pathlib import Path
from typing import Any

import click

from pcisplit import __version__
from pcisplit.errors import PcisplitError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Size(click.ParamType[int]):
    """Octets, with K, M or G for powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
        unit = text[-1:] if text[-1:] in _UNITS else ""
        try:
            return int(text.removesuffix(unit)) * _UNITS[unit]
        except ValueError:
            self.fail(f"{value!r} is not a size; write octets, or 64K, 16M, 1G", param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "PCISPLIT"})
@click.version_option(__version__, prog_name="pcisplit")
def main() -> None:
    """A PCI split driver without Xen.

    One process owns the device (serve), another drives it over shared-memory rings (pcisplit.front, or pcifront.h in C).
    """


@main.command()
@click.option(
    "--device",
    "devices",
    metavar="NAME=SPEC",
    multiple=True,
    required=True,
    help="Serve SPEC under NAME; repeat for more. See below.",
)
@click.option("--socket", "path", type=click.Path(path_type=Path), required=True, help="Where fronts meet us (a path).")
@click.option("--dma", type=Size(), default="16M", show_default=True, help="DMA memory a session may have.")
@click.option("--spin", type=float, default=50.0, show_default=True, help="Microseconds to spin before sleeping.")
@click.option("--allow-no-reset", is_flag=True, help="Offer devices again that could not be reset after a session.")
@click.option("--json", "as_json", is_flag=True, help="Log one JSON object a line.")
def serve(devices: tuple[str, ...], path: Path, dma: int, spin: float, allow_no_reset: bool, as_json: bool) -> None:
    """Own devices and serve them to fronts, until SIGTERM or Ctrl-C.

    \b
    SPEC is one of
      0000:03:00.0    a PCI device bound to vfio-pci (reset=flr|af|pm|bus|none)
      model:edu       QEMU's educational device, in this process (dma_ms=, reset=)
      model:ram       memory BARs (size=, read=NS, write=NS, reset=)
      dump:FILE       configuration space from lspci -xxxx
    followed by options, separated by commas:
      id=8086:10fb    refuse another device at this address
      uid=N, gid=N    who may have it (default: this user); repeat for more
      tender=UID      a tender trusted with direct interrupt vectors

    \b
    Examples
      pcisplit serve --device edu0=model:edu --socket /run/pcisplit/demo
      pcisplit serve --device nic0=0000:03:00.0,id=8086:10fb,uid=1000 --dma 32M --socket /run/pcisplit/nic
    """
    import trio

    from pcisplit.back import log
    from pcisplit.back.host.harden import harden
    from pcisplit.back.supervisor.server import serve_until_signal
    from pcisplit.back.supervisor.specs import make_server

    log.configure(json=as_json)
    try:
        harden()  # before any device is opened [THR-6]
        server, hosts = make_server(devices, path, dma, spin * 1e-6, allow_no_reset)
        try:
            trio.run(serve_until_signal, server)
        finally:
            hosts.shutdown()
    except (PcisplitError, OSError, ValueError) as problem:
        raise click.ClickException(str(problem)) from None


@main.command()
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

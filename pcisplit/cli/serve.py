# SPDX-License-Identifier: MIT
"""``pcisplit serve``."""

import sys
from pathlib import Path
from typing import Any

import click

from pcisplit.cli.params import Size, Spin, UidRange, User, WorkerUser


@click.command(short_help="Own devices and serve them to fronts.")
@click.option(
    "--device",
    "devices",
    metavar="NAME=SPEC",
    multiple=True,
    required=True,
    help="Serve SPEC under NAME; repeat for more. See below.",
)
@click.option("--socket", "path", type=click.Path(path_type=Path), required=True, help="Where fronts meet us (a path).")
@click.option(
    "--control", type=click.Path(path_type=Path), help="Where pcisplit list, dump, ... reach us; for this user alone."
)
@click.option("--dma", type=Size(), default="16M", show_default=True, help="DMA memory a session may have.")
@click.option("--spin", type=Spin(), default=50.0, show_default=True, help="Microseconds to spin before sleeping.")
@click.option("--worker-user", type=WorkerUser(), help="User (name or uid) that every worker becomes; needs root.")
@click.option(
    "--worker-uids", type=UidRange(), metavar="A-B", help="A uid of its own for each living worker; needs root."
)
@click.option(
    "--log-lines",
    type=click.IntRange(1, 100_000),
    default=10,
    show_default=True,
    help="Lines a second for each uid's doings.",
)
@click.option("--allow-no-reset", is_flag=True, help="Offer devices again that could not be reset after a session.")
@click.option("--json", "as_json", is_flag=True, help="Log one JSON object a line.")
def serve(
    devices: tuple[str, ...],
    path: Path,
    control: Path | None,
    dma: int,
    spin: float,
    worker_user: User | None,
    worker_uids: range | None,
    log_lines: int,
    allow_no_reset: bool,
    as_json: bool,
) -> None:
    """Own devices and serve them to fronts, until SIGTERM or Ctrl-C.

    \b
    SPEC is one of
      0000:03:00.0    a PCI device bound to vfio-pci (reset=flr|af|pm|bus|none)
      model:edu       QEMU's educational device, without hardware (dma_ms=, reset=, reset_ms=)
      model:ram       memory BARs (size=, read=NS, write=NS, reset=, reset_ms=)
      dump:FILE       configuration space from lspci -xxxx
    followed by options, separated by commas:
      id=8086:10fb    refuse another device at this address
      uid=N, gid=N    who may have it (default: this user); repeat for more
      tender=UID      a tender trusted with direct interrupt vectors

    \b
    Examples
      pcisplit serve --device edu0=model:edu --socket /run/pcisplit/demo
      pcisplit serve --device nic0=0000:03:00.0,id=8086:10fb,uid=1000 --dma 32M --socket /run/pcisplit/nic
      pcisplit serve --device nic0=0000:03:00.0 --socket /run/pcisplit/nic --control /run/pcisplit/control
    """
    if worker_user is not None and worker_uids is not None:
        raise click.UsageError(
            "--worker-user and --worker-uids are two answers to one question; --worker-uids is the safer"
        )
    if control is not None and control.absolute() == path.absolute():
        raise click.UsageError("--socket and --control need a path each: fronts and operators do not meet at one door")
    _serve(
        as_json,
        texts=devices,
        path=path,
        dma=dma,
        spin=spin * 1e-6,
        log_lines=log_lines,
        allow_no_reset=allow_no_reset,
        control=control,
        worker_user=worker_user,
        worker_uids=worker_uids,
    )


def _serve(as_json: bool, **options: Any) -> None:
    """Make the server of these options and run it to its end. Raises ClickException with what is wrong."""
    from pcisplit.back import log
    from pcisplit.back.host.harden import harden
    from pcisplit.back.patient import PatientStream
    from pcisplit.back.supervisor import zygote
    from pcisplit.proto.errors import PcisplitError

    stream = PatientStream(sys.stderr)
    try:
        harden()  # before any device is opened [THR-6]
        with zygote.start() as end:  # before there is a descriptor or a module that a worker is not to have
            log.configure(json=as_json, stream=stream)
            import trio

            from pcisplit.back.supervisor.server import serve_until_signal
            from pcisplit.back.supervisor.specs import make_server

            trio.run(serve_until_signal, make_server(zygote=end, **options))
    except (PcisplitError, OSError, ValueError) as problem:
        raise click.ClickException(str(problem)) from None
    finally:
        stream.drain(2.0)

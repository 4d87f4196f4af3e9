# SPDX-License-Identifier: MIT
"""The command line. Every option can come from the environment: PCISPLIT_SERVE_DMA, and PCISPLIT_CONTROL for ``--control``.

The modules of the commands import only click and the standard library before a command runs, so that ``--help`` is quick.
"""

import click

from pcisplit import __version__
from pcisplit.cli import conformance, control, decode, demo, serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "PCISPLIT"})
@click.version_option(__version__, prog_name="pcisplit")
def main() -> None:
    """A PCI split driver without Xen.

    One process owns the device (serve), another drives it over shared-memory rings (pcisplit.front, or pcifront.h in C).
    With serve --control PATH, list, dump, stats, detach and attach tell what it does.
    decode says in words what octets of the protocol mean; conformance proves a backend or a frontend of yours.
    """


_CONTROL = (control.list_, control.dump, control.stats, control.detach, control.attach)
for _command in (serve.serve, demo.demo, *_CONTROL, decode.decode, conformance.conformance):
    main.add_command(_command)

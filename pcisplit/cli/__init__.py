# SPDX-License-Identifier: MIT
"""The command line. Every option can come from the environment: PCISPLIT_SERVE_DMA, and PCISPLIT_CONTROL for ``--control``.

The modules of the commands import only click and the standard library before a command runs, so that ``--help`` is quick.
"""

import click

from pcisplit import __version__
from pcisplit.cli import control, demo, serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "PCISPLIT"})
@click.version_option(__version__, prog_name="pcisplit")
def main() -> None:
    """A PCI split driver without Xen.

    One process owns the device (serve), another drives it over shared-memory rings (pcisplit.front, or pcifront.h in C).
    With serve --control PATH, the other commands tell what it does.
    """


for _command in (serve.serve, demo.demo, control.list_, control.dump, control.stats, control.detach, control.attach):
    main.add_command(_command)

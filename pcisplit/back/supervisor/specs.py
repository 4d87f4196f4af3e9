# SPDX-License-Identifier: MIT
"""From ``NAME=SPEC,key=value,...`` to devices and a server."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pcisplit.back.devices.device import Device
from pcisplit.back.devices.models import DumpModel, make_model
from pcisplit.back.devices.vfio.function import VfioDevice
from pcisplit.back.devices.vfio.group import VfioHost
from pcisplit.back.supervisor.registry import Entry, Registry, check_entry_name
from pcisplit.back.supervisor.server import Server
from pcisplit.pci import Bdf

_ID = re.compile(r"([0-9a-fA-F]{4}):([0-9a-fA-F]{4})")


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """One ``--device``, taken apart. `rights` holds uid, gid and tender; `options` the rest."""

    name: str
    what: str
    expect_id: tuple[int, int] | None
    rights: dict[str, frozenset[int]]
    options: dict[str, str]


def parse_spec(text: str) -> Spec:
    """Take ``NAME=SPEC,key=value,...`` apart. Raises ValueError that says which part is wrong."""
    name, equals, rest = text.partition("=")
    if not equals or not rest:
        raise ValueError(f"--device {text!r} is not NAME=SPEC, such as edu0=model:edu or nic0=0000:03:00.0")
    check_entry_name(name)
    what, *parts = rest.split(",")
    expect_id, options = None, {}
    rights: dict[str, set[int]] = {"uid": set(), "gid": set(), "tender": set()}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"--device {name}: {part!r} is not key=value")
        if key == "id":
            match = _ID.fullmatch(value)
            if not match:
                raise ValueError(f"--device {name}: id={value} is not VENDOR:DEVICE, such as 8086:10fb")
            expect_id = (int(match[1], 16), int(match[2], 16))
        elif key in rights:
            if not value.isdecimal():
                raise ValueError(f"--device {name}: {key}={value} is not a number")
            rights[key].add(int(value))
        else:
            options[key] = value
    return Spec(name, what, expect_id, {key: frozenset(values) for key, values in rights.items()}, options)


def make_device(spec: Spec, host: VfioHost) -> Device:
    """The device behind a spec. Raises ValueError, OSError, DeviceError."""
    kind, colon, rest = spec.what.partition(":")
    if colon and kind == "model":
        return make_model(rest, spec.options)
    if spec.options:
        raise ValueError(
            f"--device {spec.name}: unknown option {next(iter(spec.options))!r}; there are id, uid, gid, tender"
        )
    if colon and kind == "dump":
        return DumpModel(rest)
    return VfioDevice(Bdf.parse(spec.what), spec.expect_id, host)


def make_server(
    texts: Sequence[str],
    path: Path,
    dma: int,
    spin: float,
    allow_no_reset: bool,
    *,
    control: Path | None = None,
    worker_user: tuple[int, int] | None = None,
    worker_uids: range | None = None,
) -> "tuple[Server, Devices]":
    """A server for these ``--device`` texts, and what to shut down after it. Raises ValueError, OSError, DeviceError."""
    if control is not None or worker_user is not None or worker_uids is not None:
        raise ValueError(
            "--control, --worker-user and --worker-uids wait for the supervisor with workers; leave them out"
        )
    host = VfioHost()
    entries: list[Entry] = []
    for text in texts:
        spec = parse_spec(text)
        if any(entry.name == spec.name for entry in entries):
            raise ValueError(f"--device {spec.name} is given twice")
        rights = spec.rights
        entries.append(Entry(spec.name, make_device(spec, host), rights["uid"], rights["gid"], rights["tender"]))
    registry = Registry(entries, dma, os.geteuid())
    return Server(registry, path, spin=spin, allow_no_reset=allow_no_reset), Devices(entries)


class Devices:
    """The devices of a server."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    def shutdown(self) -> None:
        """Let go of every device."""
        for entry in self._entries:
            entry.device.shutdown()

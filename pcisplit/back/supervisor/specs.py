# SPDX-License-Identifier: MIT
"""From the words of ``pcisplit serve`` to a server: ``NAME=SPEC,key=value,...`` and the rest."""

import dataclasses
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcisplit.back.devices.device import Device
from pcisplit.back.devices.models import DumpModel, make_model
from pcisplit.back.devices.models.base import ModelDevice
from pcisplit.back.devices.vfio.device import VfioDevice, VfioHost
from pcisplit.back.supervisor.registry import Entry, Registry, check_entry_name
from pcisplit.back.supervisor.server import Options, Server
from pcisplit.back.supervisor.uids import WorkerUids
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
    dump = colon and kind == "dump"
    for option in spec.options:
        if dump or option != "reset":
            known = "id, uid, gid, tender" + ("" if dump else ", reset")
            raise ValueError(f"--device {spec.name}: unknown option {option!r}; there are {known}")
    if dump:
        return DumpModel(rest)
    return VfioDevice(Bdf.parse(spec.what), spec.expect_id, host, spec.options.get("reset", ""))


def what_of(spec: Spec, device: Device) -> dict[str, Any]:
    """What a worker or a keeper is told to make of it: words, numbers and nothing else."""
    if isinstance(device, VfioDevice):
        return {"bdf": device.spec, "group": device.group_number, "id": device.expect_id, "reset": device.reset}
    kind, _, rest = spec.what.partition(":")
    if kind == "model":
        return {"model": rest, "options": dict(spec.options)}
    return {"dump": str(Path(rest).resolve())}


def make_registry(texts: Sequence[str], dma: int) -> Registry:
    """What these ``--device`` texts serve. Raises ValueError, OSError, DeviceError."""
    host = VfioHost()
    entries: list[Entry] = []
    for text in texts:
        spec = parse_spec(text)
        if any(entry.name == spec.name for entry in entries):
            raise ValueError(f"--device {spec.name} is given twice")
        rights = spec.rights
        device = make_device(spec, host)
        if isinstance(device, ModelDevice):
            device.group = f"model-{spec.name}"  # alone, under a name that people know
        entries.append(Entry(spec.name, device, rights["uid"], rights["gid"], rights["tender"], what_of(spec, device)))
    return Registry(entries, dma, os.geteuid())


def make_server(
    texts: Sequence[str],
    path: Path,
    dma: int,
    zygote: socket.socket,
    *,
    worker_user: tuple[int, int] | None = None,
    worker_uids: range | None = None,
    **options: Any,
) -> Server:
    """A server of these ``--device`` texts; `options` as in ``server.Options``. Raises ValueError, OSError, DeviceError."""
    if (worker_user or worker_uids) and os.geteuid() != 0:
        raise ValueError(
            "--worker-user and --worker-uids need root, which may change uid; serve as root or without them"
        )
    uids = WorkerUids(worker_uids, worker_user[0] if worker_user else None)
    registry = make_registry(texts, dma)
    fronts = {uid for entry in registry.entries.values() for uid in entry.uids | entry.tenders}
    if shared := sorted(fronts & (set(worker_uids or ()) | ({worker_user[0]} if worker_user else set()))):
        text = f"uid {shared[0]} is a front's (uid= or tender=) and a worker's: it could signal workers of other fronts"
        raise ValueError(f"{text}; give --worker-uids a range of its own")
    return Server(registry, path, zygote, Options(worker_uids=uids, **options))

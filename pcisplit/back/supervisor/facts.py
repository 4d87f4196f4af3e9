# SPDX-License-Identifier: MIT
"""What is known of a function before its session is opened, in the same words for hardware and models; and what follows."""

from collections.abc import Mapping, Sequence
from typing import Any

from pcisplit import wire
from pcisplit.back.devices.vfio.describe import Description
from pcisplit.back.supervisor.registry import Entry
from pcisplit.proto.errors import DeviceError
from pcisplit.proto.meeting import Need
from pcisplit.wire import Error


def hardware_facts(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a keeper found out of a function, in the same words as ``model_facts``."""
    known = Description.from_json(description)
    return {
        "vfio": description,
        "msi": known.interrupts.msi,
        "msix": known.interrupts.msix,
        "dma_bits": 64,  # a PCI function does not say how many it has
        "iova_ranges": known.iova_ranges,
        "resettable": bool(known.resets.methods),
    }


def model_facts(entry: Entry) -> dict[str, Any]:
    """What is known of a model before it is made."""
    model: Any = entry.device
    return {
        "msi": model.interrupts.msi,
        "msix": model.interrupts.msix,
        "dma_bits": model.dma_bits,
        "iova_ranges": model.iova_ranges,
        "resettable": bool(model.reset_methods),
    }


def vectors_of(entry: Entry, need: Need, function: Mapping[str, Any]) -> int:
    """How many vectors a device gets. Raises DeviceError (TOO_MANY_VECTORS) if it has fewer than it was asked for [MEET-17]."""
    has = min(function["msi"], 1)
    wanted = has if need.msi == wire.AS_MANY else need.msi
    for count, name in ((need.intx, "INTx"), (need.msix, "MSI-X")):
        if count not in (0, wire.AS_MANY):
            text = f"{entry.name} is asked for {count} {name}, which this back has not built; ask for MSI, or for none and poll"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)
    if wanted <= has:
        return wanted
    text = f"{entry.name} has {has} vectors, the front asks for {wanted}"
    if not has and (only := function["msix"]):
        text += f": it has MSI-X only ({only} vectors), which this back has not built; ask for none and poll"
    else:
        text += f"; ask for {has or 'none'}"
    raise DeviceError(Error.TOO_MANY_VECTORS, text)


def device_order(entry: Entry, need: Need, function: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    """What a worker is told of one device of its session, which has `entries`."""
    return {
        "name": entry.name,
        "vectors": vectors_of(entry, need, function),
        "mode": int(need.mode),
        "shared": any(other.device.group == entry.device.group for other in entries if other is not entry),
        "what": {"vfio": function["vfio"]} if "vfio" in function else dict(entry.what),
    }

# SPDX-License-Identifier: MIT
"""What is known of a function before its session is opened, in the same words whether a keeper or a model says it."""

from collections.abc import Mapping
from typing import Any

from pcisplit.back.devices.vfio.describe import Description
from pcisplit.back.supervisor.registry import Entry


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


def too_many(name: str, has: int, wanted: int, function: Mapping[str, Any]) -> str:
    """The sentence of a refusal for vectors [MEET-17]."""
    text = f"{name} has {has} vectors, the front asks for {wanted}"
    if not has and function["msix"]:
        return f"{text}: it has MSI-X only ({function['msix']} vectors), which this back has not built; ask for none and poll"
    return f"{text}; ask for {has or 'none'}"

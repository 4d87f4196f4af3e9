# SPDX-License-Identifier: MIT
"""Device models: devices that exist in their worker alone, and end with it, behind the same seam as real ones."""

from collections.abc import Mapping

from pcisplit.back.devices.device import Device
from pcisplit.back.devices.models.dump import DumpModel
from pcisplit.back.devices.models.edu import EduModel
from pcisplit.back.devices.models.ram import RamModel

MODELS = {"edu": EduModel, "ram": RamModel}

__all__ = ["MODELS", "DumpModel", "EduModel", "RamModel", "make_model"]


def make_model(name: str, options: Mapping[str, str]) -> Device:
    """The model ``model:NAME,key=value,...``. Raises ValueError with what it would have taken."""
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(sorted(MODELS))}")
    return MODELS[name](options)

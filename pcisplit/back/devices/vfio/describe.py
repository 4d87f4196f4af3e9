# SPDX-License-Identifier: MIT
"""What a keeper found out about a function that it acquired, in a form that crosses to a worker as JSON.

The worker has the device's descriptor and this; it asks the kernel nothing. Sans-IO.
"""

import dataclasses
import enum
import types
import typing
from typing import Any, NamedTuple

from pcisplit import pci
from pcisplit.back.devices.device import AreaKind, Interrupts, IovaRange
from pcisplit.wire import BarFlag, ResetMethod


class Place(NamedTuple):
    """A region of the device's file: `offset` into it, `size` in octets, both 0 for one that is not there."""

    offset: int
    size: int


class AreaPlan(NamedTuple):
    """Octets `start` to `end` (exclusive) of a BAR, whole pages if MAPPED."""

    start: int
    end: int
    kind: AreaKind


class BarPlan(NamedTuple):
    """One BAR: `areas` sorted, without gaps."""

    number: int
    place: Place
    flags: BarFlag
    areas: tuple[AreaPlan, ...]


class Resets(NamedTuple):
    """How a function may be reset: `kernel` by VFIO_DEVICE_RESET, in the kernel's order; `hot`: its bus by VFIO."""

    kernel: tuple[ResetMethod, ...]
    hot: bool

    @property
    def methods(self) -> tuple[ResetMethod, ...]:
        """In the order they are tried."""
        bus = (ResetMethod.BUS,) if self.hot and ResetMethod.BUS not in self.kernel else ()
        return self.kernel + bus


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """An acquired function. Raises ValueError when it contradicts itself."""

    spec: str
    identity: tuple[int, int]  #: vendor, device
    config: Place
    rom: Place
    bars: tuple[BarPlan, ...]
    command: int  #: COMMAND as just acquired
    interrupts: Interrupts
    events: tuple[str, ...]  #: which of ``vfio.function.EVENTS`` the device has
    resets: Resets
    iova_ranges: tuple[IovaRange, ...]

    def __post_init__(self) -> None:
        if self.config.size not in (pci.CONFIG_SIZE, pci.CONFIG_SIZE_EXTENDED):
            raise ValueError(f"{self.config.size} octets of configuration space are neither 256 nor 4096")
        if not 0 <= self.command <= 0xFFFF:
            raise ValueError(f"COMMAND {self.command:#x} has no 16 bits")
        numbers = [number for place in (self.config, self.rom, *(bar.place for bar in self.bars)) for number in place]
        if min((*numbers, *self.interrupts)) < 0 or max(numbers) >= 1 << 63:
            raise ValueError("an offset, a size or a count is out of range")
        if len({bar.number for bar in self.bars}) != len(self.bars):
            raise ValueError("a BAR stands twice")
        for bar in self.bars:
            ends = [0, *(area.end for area in bar.areas)]
            starts = [*(area.start for area in bar.areas), bar.place.size]
            if not 0 <= bar.number < pci.BAR_COUNT or ends != starts or sorted(set(ends)) != ends:
                raise ValueError(f"the areas of BAR {bar.number} do not cover its {bar.place.size} octets")

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: object) -> "Description":
        """The inverse of ``to_json``, after JSON. ValueError for anything that it does not make."""
        hints = typing.get_type_hints(cls)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise ValueError(f"a description has exactly the fields {', '.join(hints)}")
        return cls(**{name: _typed(hint, value[name], name) for name, hint in hints.items()})


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, enum.IntEnum | enum.IntFlag) else value


def _typed(kind: Any, value: object, where: str) -> Any:
    """`value`, which JSON made, as `kind`: int, bool, str, a number's enum, a NamedTuple, a tuple of one kind or of some."""
    if kind in (int, bool, str):
        if type(value) is not kind:
            raise ValueError(f"{where}: {value!r} is not of type {kind.__name__}")
        return value
    if isinstance(kind, type) and issubclass(kind, enum.IntEnum | enum.IntFlag):
        known = sum(kind) if issubclass(kind, enum.IntFlag) else 0
        if type(value) is not int or (value & ~known if known else value not in kind.__members__.values()):
            raise ValueError(f"{where}: {value!r} is no {kind.__name__}")
        return kind(value)
    if not isinstance(value, list):
        raise ValueError(f"{where}: {value!r} is no list")
    if isinstance(kind, types.GenericAlias):
        inner = typing.get_args(kind)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        make: Any = tuple
    else:
        hints = typing.get_type_hints(kind)
        kinds, make = list(hints.values()), kind._make
    if len(kinds) != len(value):
        raise ValueError(f"{where}: {len(value)} values and not {len(kinds)}")
    return make([_typed(one, each, f"{where}[{at}]") for at, (one, each) in enumerate(zip(kinds, value, strict=True))])

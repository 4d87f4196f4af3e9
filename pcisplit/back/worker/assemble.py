# SPDX-License-Identifier: MIT
"""From what a session is to be and what its functions are to the boot-info block. Pure: no descriptor, no clock, no C."""

import dataclasses
from collections.abc import Sequence

from pcisplit import bootinfo, pci, wire
from pcisplit.back import layout
from pcisplit.back.devices.device import Function
from pcisplit.back.policy.compile import Tables, compile_tables
from pcisplit.wire import DeviceFlag, Direction, DoorbellType, Feature, RegionIndex, RingIndex, VectorMode, VectorType


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceOrder:
    """One device as the meeting settled it: `vectors` of its eventfds, all of one mode."""

    name: str
    vectors: int
    mode: VectorMode = VectorMode.RELAYED
    kept: bool = False  #: by a keeper, which maps DMA memory for it and puts it in order afterwards
    shared: bool = False  #: with another device of the session in its IOMMU group, and perhaps its reset


@dataclasses.dataclass(frozen=True, slots=True)
class SessionOrder:
    """A session as the meeting settled it. `dma_size` octets at `dma_iova`, 0 for none; `spin` in seconds."""

    number: int
    features: Feature
    minor: int
    devices: tuple[DeviceOrder, ...]
    dma_size: int = 0
    dma_iova: int = 0
    spin: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Assembled:
    """What assembling gave: per device its configuration space as acquired and its tables; and the block."""

    configs: tuple[bytes, ...]
    tables: tuple[Tables, ...]
    boot_info: bytes


def assemble(order: SessionOrder, functions: Sequence[Function]) -> Assembled:
    """Everything that is settled before the first request. Raises DeviceError when a function does not answer."""
    configs = tuple(read_config(function) for function in functions)
    tables = tuple(compile_tables(config, function.bars) for config, function in zip(configs, functions, strict=True))
    places = _vector_places(order)
    devices = tuple(
        _describe(index, order.devices[index], function, configs[index], tables[index], places[index])
        for index, function in enumerate(functions)
    )
    return Assembled(configs, tables, _boot_info(order, devices).to_bytes())


def read_config(function: Function) -> bytes:
    """All of a function's configuration space, by reads of 4 octets."""
    return b"".join(function.config_read(at, 4).to_bytes(4, "little") for at in range(0, function.config_size, 4))


def _vector_places(order: SessionOrder) -> list[list[int]]:
    """Where each vector's descriptor is in the reply: after the common ones, if it is direct."""
    places, at = [], layout.FD_DMA + bool(order.dma_size)
    for device in order.devices:
        direct = device.mode is VectorMode.DIRECT
        places.append([at + vector if direct else wire.NO_FD for vector in range(device.vectors)])
        at += device.vectors if direct else 0
    return places


def _describe(
    index: int, order: DeviceOrder, function: Function, config: bytes, tables: Tables, places: Sequence[int]
) -> bootinfo.Device:
    word = [int.from_bytes(config[at : at + 2], "little") for at in (pci.VENDOR_ID, pci.DEVICE_ID)]
    state = layout.state_offset(index)
    return bootinfo.Device(
        index=index,
        name=order.name,
        vendor=word[0],
        device_id=word[1],
        class_code=int.from_bytes(config[9:12], "little"),
        state_offset=state,
        generation=1,
        config_size=len(config),
        flags=DeviceFlag.RESETTABLE if function.reset_methods else DeviceFlag(0),
        bars=tuple(bootinfo.Bar(bar.index, bar.size, bar.flags, tables.addresses[bar.index]) for bar in function.bars),
        vectors=tuple(
            bootinfo.Vector(vector, VectorType.MSI, order.mode, state + layout.COUNTERS + 8 * vector, fd)
            for vector, fd in enumerate(places)
        ),
    )


def _boot_info(order: SessionOrder, devices: tuple[bootinfo.Device, ...]) -> bootinfo.BootInfo:
    f2b, b2f, dma = RegionIndex.F2B, RegionIndex.B2F, RegionIndex.DMA
    regions = [
        bootinfo.Region(f2b, layout.FD_F2B, layout.F2B_SIZE, True),
        bootinfo.Region(b2f, layout.FD_B2F, layout.B2F_SIZE),
    ]
    if order.dma_size:
        regions.append(bootinfo.Region(dma, layout.FD_DMA, order.dma_size, True))
    return bootinfo.BootInfo(
        features=order.features,
        session=order.number,
        minor=order.minor,
        regions=tuple(regions),
        rings=(
            bootinfo.Ring(RingIndex.REQUEST, f2b, layout.REQUESTS, wire.REQUEST_SLOTS),
            bootinfo.Ring(RingIndex.RESPONSE, b2f, layout.RESPONSES, wire.RESPONSE_SLOTS),
            bootinfo.Ring(RingIndex.EVENT, b2f, layout.EVENTS, wire.EVENT_SLOTS),
        ),
        bulks=(
            bootinfo.Bulk(Direction.FRONT_TO_BACK, f2b, layout.BULK_IN, wire.BULK_SIZE),
            bootinfo.Bulk(Direction.BACK_TO_FRONT, b2f, layout.BULK_OUT, wire.BULK_SIZE),
        ),
        doorbells=(
            bootinfo.Doorbell(Direction.FRONT_TO_BACK, layout.FD_KICK, DoorbellType.EVENTFD),
            bootinfo.Doorbell(Direction.BACK_TO_FRONT, layout.FD_RUNG, DoorbellType.SOCKET),
        ),
        windows=(bootinfo.DmaWindow(0, 0, order.dma_size, order.dma_iova),) if order.dma_size else (),
        devices=devices,
    )

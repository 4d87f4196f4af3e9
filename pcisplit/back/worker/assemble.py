# SPDX-License-Identifier: MIT
"""From what a session is to be and what its functions are to the boot-info block. Pure: no descriptor, no clock, no C."""

import dataclasses
from collections.abc import Sequence

from pcisplit import pci, wire
from pcisplit.back.devices.device import Function
from pcisplit.back.policy.compile import Tables, compile_tables
from pcisplit.proto import bootinfo
from pcisplit.proto.layout import FD_B2F, FD_DMA, FD_F2B, FD_KICK, FD_RUNG, Layout, relayed
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

    @property
    def layout(self) -> Layout:
        """Where everything is in the regions; the same for whoever asks."""
        vectors, modes = [device.vectors for device in self.devices], [device.mode for device in self.devices]
        return Layout.of(relayed(vectors, modes), self.features)


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
    fds = _first_fds(order)
    devices = tuple(
        _describe(order, index, function, configs[index], tables[index], fds[index])
        for index, function in enumerate(functions)
    )
    return Assembled(configs, tables, _boot_info(order, devices).to_bytes())


def read_config(function: Function) -> bytes:
    """All of a function's configuration space, by reads of 4 octets."""
    return b"".join(function.config_read(at, 4).to_bytes(4, "little") for at in range(0, function.config_size, 4))


def _first_fds(order: SessionOrder) -> list[int]:
    """Where the first vector's descriptor of each device is in the reply: after the common ones, if it is direct [BOOT-7]."""
    places, at = [], FD_DMA + bool(order.dma_size)
    for device in order.devices:
        direct = device.mode is VectorMode.DIRECT and device.vectors
        places.append(at if direct else wire.NO_FD)
        at += device.vectors if direct else 0
    return places


def _run(order: SessionOrder, index: int, fd: int) -> tuple[bootinfo.Vectors, ...]:
    device = order.devices[index]
    if not device.vectors:
        return ()
    return (bootinfo.Vectors(0, VectorType.MSI, device.mode, device.vectors, 0, fd, *order.layout.runs[index]),)


def _describe(
    order: SessionOrder, index: int, function: Function, config: bytes, tables: Tables, fd: int
) -> bootinfo.Device:
    word = [int.from_bytes(config[at : at + 2], "little") for at in (pci.VENDOR_ID, pci.DEVICE_ID)]
    return bootinfo.Device(
        index=index,
        name=order.devices[index].name,
        vendor=word[0],
        device_id=word[1],
        class_code=int.from_bytes(config[9:12], "little"),
        state_offset=order.layout.states[index],
        generation=1,
        config_size=len(config),
        device_flags=DeviceFlag.RESETTABLE if function.reset_methods else DeviceFlag(0),
        bars=tuple(bootinfo.Bar(bar.index, bar.size, bar.flags, tables.addresses[bar.index]) for bar in function.bars),
        vectors=_run(order, index, fd),
    )


def _boot_info(order: SessionOrder, devices: tuple[bootinfo.Device, ...]) -> bootinfo.BootInfo:
    f2b, b2f, dma = RegionIndex.F2B, RegionIndex.B2F, RegionIndex.DMA
    at = order.layout.places
    regions = [
        bootinfo.Region(f2b, FD_F2B, order.layout.f2b_size, True),
        bootinfo.Region(b2f, FD_B2F, order.layout.b2f_size),
    ]
    if order.dma_size:
        regions.append(bootinfo.Region(dma, FD_DMA, order.dma_size, True))
    return bootinfo.BootInfo(
        features=order.features,
        session=order.number,
        minor=order.minor,
        regions=tuple(regions),
        rings=(
            bootinfo.Ring(RingIndex.REQUEST, f2b, at.requests, at.request_slots),
            bootinfo.Ring(RingIndex.RESPONSE, b2f, at.responses, at.response_slots),
            bootinfo.Ring(RingIndex.EVENT, b2f, at.events, at.event_slots),
        ),
        bulks=(
            bootinfo.Bulk(Direction.FRONT_TO_BACK, f2b, at.bulk_in, at.bulk_size),
            bootinfo.Bulk(Direction.BACK_TO_FRONT, b2f, at.bulk_out, at.bulk_size),
        )
        if at.bulk_size
        else (),
        doorbells=(
            bootinfo.Doorbell(Direction.FRONT_TO_BACK, FD_KICK, DoorbellType.EVENTFD),
            bootinfo.Doorbell(Direction.BACK_TO_FRONT, FD_RUNG, DoorbellType.SOCKET),
        ),
        windows=(bootinfo.DmaWindow(0, 0, order.dma_size, order.dma_iova),) if order.dma_size else (),
        devices=devices,
    )

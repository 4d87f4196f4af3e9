# SPDX-License-Identifier: MIT
"""What a keeper tells a worker of a function, and the choice of its reset; both without VFIO."""

import copy
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcisplit.back.devices.device import AreaKind, Interrupts, IovaRange
from pcisplit.back.devices.vfio.describe import AreaPlan, BarPlan, Description, Place, Resets
from pcisplit.back.devices.vfio.layout import plan_areas
from pcisplit.back.devices.vfio.mapper import map_by_child
from pcisplit.back.devices.vfio.resets import KernelResets, deduce_methods
from pcisplit.pci import Bdf
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import BarFlag, ResetMethod

PAGE = 4096
KERNEL = [method for method in ResetMethod if method is not ResetMethod.MODEL]


def _span(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


@st.composite
def bars(draw: st.DrawFn) -> tuple[BarPlan, ...]:
    made = []
    for number in draw(st.sets(st.integers(0, 5))):
        size = draw(st.sampled_from([16, 256, PAGE, 4 * PAGE, 1 << 20]))
        edges = st.lists(st.builds(_span, st.integers(0, size), st.integers(0, size)), max_size=3)
        plan = plan_areas(size, draw(edges), draw(edges), PAGE)
        flags = draw(st.sampled_from([BarFlag(0), BarFlag.IO, BarFlag.MEM64 | BarFlag.PREFETCHABLE]))
        made.append(BarPlan(number, Place(number << 40, size), flags, tuple(AreaPlan(*area) for area in plan)))
    return tuple(made)


descriptions = st.builds(
    Description,
    spec=st.text(max_size=20),
    identity=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    config=st.sampled_from([Place(7 << 40, 256), Place(7 << 40, 4096)]),
    rom=st.sampled_from([Place(0, 0), Place(6 << 40, 1 << 16)]),
    bars=bars(),
    command=st.integers(0, 0xFFFF),
    interrupts=st.builds(Interrupts, st.integers(0, 1), st.integers(0, 32), st.integers(0, 2048)),
    events=st.sampled_from([(), ("err",), ("err", "req")]),
    resets=st.builds(Resets, st.lists(st.sampled_from(KERNEL), unique=True).map(tuple), st.booleans()),
    iova_ranges=st.lists(st.builds(IovaRange, st.integers(0, 2**64), st.integers(0, 2**64))).map(tuple),
)


@given(descriptions)
def test_a_description_crosses_as_json(description: Description) -> None:
    again = Description.from_json(json.loads(json.dumps(description.to_json())))
    assert again == description
    assert all(type(area.kind) is AreaKind for bar in again.bars for area in bar.areas)
    assert type(again.resets) is Resets and type(again.interrupts) is Interrupts


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(descriptions, st.data())
def test_what_is_no_description_is_a_value_error(description: Description, data: st.DataObject) -> None:
    """One place of a good one is replaced: it is refused, or it is another good one."""
    value: Any = json.loads(json.dumps(description.to_json()))
    place, key = value, data.draw(st.sampled_from(sorted(value)))
    while isinstance(place[key], list) and place[key] and data.draw(st.booleans()):
        place, key = place[key], data.draw(st.integers(0, len(place[key]) - 1))
    place[key] = data.draw(junk)
    try:
        again = Description.from_json(copy.deepcopy(value))
    except ValueError:
        return
    assert again.to_json() == value


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("config", [0, 100], "neither 256 nor 4096"),
        ("command", 1 << 16, "no 16 bits"),
        ("rom", [0, -1], "out of range"),
        ("bars", [[0, [0, 8192], 0, [[0, 4096, 1]]]], "do not cover"),
        ("bars", [[6, [0, 4096], 0, [[0, 4096, 1]]]], "do not cover"),
        ("bars", [[0, [0, 4096], 0, [[0, 4096, 1]]]] * 2, "stands twice"),
        ("bars", [[0, [0, 4096], 8, [[0, 4096, 1]]]], "no BarFlag"),
        ("bars", [[0, [0, 4096], 0, [[0, 4096, 4]]]], "no AreaKind"),
        ("resets", [[99], True], "no ResetMethod"),
        ("resets", [[2], 1], "not of type bool"),
        ("identity", [1], "1 values and not 2"),
    ],
)
def test_a_description_that_contradicts_itself(name: str, value: object, text: str) -> None:
    good = Description("x", (1, 2), Place(0, 256), Place(0, 0), (), 0, Interrupts(), (), Resets((), False), ())
    assert Description.from_json(good.to_json()) == good
    with pytest.raises(ValueError, match=text):
        Description.from_json({**good.to_json(), name: value})
    broken: list[object] = [{}, [], {**good.to_json(), "more": 1}]
    for wrong in broken:
        with pytest.raises(ValueError, match="exactly the fields"):
            Description.from_json(wrong)


# -- resets --------------------------------------------------------------------------------------------------------

BDF = Bdf(0, 1, 0, 0)


def function(devices: Path, methods: str | None, *others: str) -> Path:
    path = devices / str(BDF)
    path.mkdir()
    if methods is not None:
        (path / "reset_method").write_text(f"{methods}\n")
    for name in others:
        (path / name).write_bytes(b"")
    return path / "reset_method"


def names(resets: KernelResets) -> list[str]:
    return [method.name for method in resets.methods]


@pytest.mark.clause("LIFE-26")
def test_the_kernels_methods_and_the_one_that_is_selected(tmp_path: Path) -> None:
    file = function(tmp_path, "device_specific flr af_flr pm bus cxl_bus frobnicate")
    resets = KernelResets(BDF, tmp_path)
    assert names(resets) == ["DEVICE_SPECIFIC", "FLR", "AF", "PM", "BUS"]
    resets.choose("")
    assert file.read_text() == "device_specific\n", "the kernel would go on to the next, and not say so"
    resets.select(ResetMethod.PM)
    assert file.read_text() == "pm\n"
    resets.restore()
    assert file.read_text().split() == ["device_specific", "flr", "af_flr", "pm", "bus", "cxl_bus", "frobnicate"]


@pytest.mark.clause("LIFE-26")
@pytest.mark.parametrize(
    "choice, left, written",
    [
        ("flr", ["FLR"], "flr"),
        ("pm", ["PM"], "pm"),
        ("bus", [], ""),  # which VFIO may have for all of a bus
        ("none", [], ""),
    ],
)
def test_a_choice_leaves_no_other(tmp_path: Path, choice: str, left: list[str], written: str) -> None:
    file = function(tmp_path, "flr pm")
    resets = KernelResets(BDF, tmp_path)
    resets.choose(choice)
    assert (names(resets), file.read_text()) == (left, f"{written}\n")
    for method in ResetMethod:
        if method.name not in left:
            with pytest.raises(DeviceError, match="has no reset by"):
                resets.select(method)
    resets.restore()
    assert file.read_text() == "flr pm\n"


def test_a_choice_that_is_not_to_be_had(tmp_path: Path) -> None:
    file = function(tmp_path, "flr pm")
    with pytest.raises(DeviceError, match="no reset by af; the kernel has: flr, pm"):
        KernelResets(BDF, tmp_path).choose("af")
    assert file.read_text() == "flr pm\n"


def test_a_choice_that_may_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to write it: the first method is taken, which a kernel does; another is refused with the command."""
    file = function(tmp_path, "flr pm")

    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", denied)
    resets = KernelResets(BDF, tmp_path)
    resets.choose("")
    assert names(resets) == ["FLR"]
    with pytest.raises(DeviceError, match=f"as root: echo 'pm' > {file}"):
        KernelResets(BDF, tmp_path).choose("pm")
    resets.restore()


def test_kernels_that_do_not_say(tmp_path: Path) -> None:
    """Without `reset_method` and `reset` there is none; with `reset` alone, before Linux 5.15, what its capabilities say."""
    function(tmp_path, None)
    resets = KernelResets(BDF, tmp_path)
    resets.choose("")
    resets.choose("none")
    assert not resets.methods
    config = bytearray(256)
    config[0x06], config[0x34], config[0x40:0x42], config[0x47] = 0x10, 0x40, bytes([0x10, 0x80]), 0x10
    (tmp_path / str(BDF) / "reset").write_text("")
    (tmp_path / str(BDF) / "config").write_bytes(config)
    old = KernelResets(BDF, tmp_path)
    old.choose("")
    old.choose("flr")
    assert names(old) == ["FLR"]
    with pytest.raises(DeviceError, match="no reset by pm"):
        old.choose("pm")


@pytest.mark.parametrize(
    "capability, alone, expected",
    [
        (b"", False, []),
        (b"", True, ["bus"]),
        (bytes([0x10, 0, 2, 0, 0, 0, 0, 0x10]), False, ["flr"]),
        (bytes([0x10, 0, 2, 0, 0, 0, 0, 0]), False, []),
        (bytes([0x13, 0, 6, 3, 0, 0]), True, ["af_flr", "bus"]),
        (bytes([0x13, 0, 6, 2, 0, 0]), False, []),  # it cannot say when its transactions have ended
        (bytes([0x01, 0, 3, 0, 0, 0]), False, ["pm"]),
        (bytes([0x01, 0, 3, 0, 8, 0]), False, []),  # No_Soft_Reset
    ],
)
def test_deduced_methods(capability: bytes, alone: bool, expected: list[str]) -> None:
    config = bytearray(256)
    config[0x06], config[0x34] = 0x10, 0x40
    config[0x40 : 0x40 + len(capability)] = capability
    assert deduce_methods(bytes(config), alone) == expected


@given(st.binary(min_size=256, max_size=256), st.booleans())
def test_deducing_believes_nothing(config: bytes, alone: bool) -> None:
    assert set(deduce_methods(config, alone)) <= {"flr", "af_flr", "pm", "bus"}


# -- the mapper ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, code", [(PAGE, errno.ENOTTY), (0, errno.EINVAL), (-1, errno.EINVAL)])
def test_the_mapper_says_what_the_kernel_said(size: int, code: int) -> None:
    """/dev/null is no container; the child's errors come back, and the child is gone."""
    before = Path("/proc/thread-self/children").read_text()
    with Path("/dev/zero").open("r+b", buffering=0) as memory, Path("/dev/null").open("r+b", buffering=0) as container:
        with pytest.raises(OSError) as caught:
            map_by_child(container.fileno(), memory.fileno(), size, 0x200000)
        assert caught.value.errno == code
    assert Path("/proc/thread-self/children").read_text() == before

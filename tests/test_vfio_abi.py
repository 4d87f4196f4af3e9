# SPDX-License-Identifier: MIT
"""What back/devices/vfio/abi.py says of <linux/vfio.h>, against the system's own header; and the parsers on top of it."""

import shutil
import subprocess
from ctypes import sizeof

import pytest

from pcisplit.back.devices.device import AreaKind
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.layout import bar_flags, msix_ranges, plan_areas
from pcisplit.pci import CAP_MSIX
from pcisplit.wire import BarFlag

CONSTANTS = {name: value for name, value in vars(abi).items() if name.startswith("VFIO_")}
MEMBERS = [(name, *field[:2]) for name, layout in sorted(abi.LAYOUTS.items()) for field in layout.structure._fields_]

# Newer headers name the padding at its end; the kernel takes either size.
GROWN = {"vfio_device_info"}

PAGE = 4096


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The values of C expressions, computed by a program that is compiled against the system's <linux/vfio.h>."""
    if not (compiler := shutil.which("gcc")):
        pytest.skip("no gcc: apt-get install gcc")
    directory = tmp_path_factory.mktemp("vfio_abi")
    expressions = [
        *CONSTANTS,
        *(f"sizeof(struct {name})" for name in abi.LAYOUTS),
        *(f"offsetof(struct {name}, {member})" for name, member, _ in MEMBERS),
        *(f"sizeof(((struct {name} *)0)->{member})" for name, member, _ in MEMBERS),
    ]
    lines = "".join(f'printf("%s=%llu\\n", "{one}", (unsigned long long)({one}));\n' for one in expressions)
    source = directory / "abi.c"
    source.write_text(
        f"#include <linux/vfio.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{lines}return 0;\n}}\n"
    )
    probe = subprocess.run([compiler, "-E", "-include", "linux/vfio.h", "-xc", "/dev/null"], capture_output=True)
    if probe.returncode:
        pytest.skip("no <linux/vfio.h>: apt-get install linux-libc-dev")
    subprocess.run([compiler, "-Wall", "-Werror", "-o", str(directory / "abi"), str(source)], check=True)
    output = subprocess.run([str(directory / "abi")], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, _, value in (line.rpartition("=") for line in output.splitlines())}


@pytest.mark.system
@pytest.mark.parametrize("name", CONSTANTS)
def test_constant(header: dict[str, int], name: str) -> None:
    assert header[name] == CONSTANTS[name]


@pytest.mark.system
@pytest.mark.parametrize("name", abi.LAYOUTS)
def test_size(header: dict[str, int], name: str) -> None:
    size = header[f"sizeof(struct {name})"]
    assert size >= abi.LAYOUTS[name].size
    assert size == abi.LAYOUTS[name].size or name in GROWN


@pytest.mark.system
@pytest.mark.parametrize(("name", "member"), [member[:2] for member in MEMBERS])
def test_member(header: dict[str, int], name: str, member: str) -> None:
    field = getattr(abi.LAYOUTS[name].structure, member)
    assert header[f"offsetof(struct {name}, {member})"] == field.offset
    assert header[f"sizeof(((struct {name} *)0)->{member})"] == field.size


def region(*capabilities: bytes, flags: int = abi.VFIO_REGION_INFO_FLAG_CAPS) -> tuple[abi.RegionInfo, bytes]:
    """A region info with these capabilities behind it, linked as the kernel links them."""
    size = sizeof(abi.RegionInfo)
    octets = bytes(abi.RegionInfo(flags=flags, cap_offset=size if capabilities else 0))
    for index, capability in enumerate(capabilities):
        follows = len(octets) + len(capability) if index + 1 < len(capabilities) else 0
        octets += capability[:4] + follows.to_bytes(4, "little") + capability[8:]
    return abi.RegionInfo.from_buffer_copy(octets), octets


def sparse(*areas: tuple[int, int], count: int | None = None) -> bytes:
    head = abi.SparseMmap(abi.InfoCapHeader(id=1, version=1), len(areas) if count is None else count)
    return bytes(head) + b"".join(bytes(abi.SparseMmapArea(*area)) for area in areas)


MSIX_MAPPABLE = bytes(abi.InfoCapHeader(id=3, version=1))


def test_sparse_areas_are_found_behind_other_capabilities() -> None:
    assert abi.sparse_areas(*region(MSIX_MAPPABLE, sparse((0, PAGE), (3 * PAGE, PAGE)))) == [
        (0, PAGE),
        (3 * PAGE, 4 * PAGE),
    ]


def test_no_sparse_capability_is_not_an_empty_one() -> None:
    assert abi.sparse_areas(*region(MSIX_MAPPABLE)) is None
    assert abi.sparse_areas(*region()) is None
    assert abi.sparse_areas(*region(sparse(), flags=0)) is None
    assert abi.sparse_areas(*region(sparse())) == []


def test_more_sparse_areas_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of SparseMmapArea"):
        abi.sparse_areas(*region(sparse((0, PAGE), count=2)))


@pytest.mark.parametrize("offset", [4, 32, 41, 1 << 31])
def test_a_chain_that_loops_or_leaves_the_structure_is_refused(offset: int) -> None:
    info, octets = region(MSIX_MAPPABLE, MSIX_MAPPABLE)
    broken = octets[:44] + offset.to_bytes(4, "little")
    with pytest.raises(ValueError, match="a capability of RegionInfo lies at octet"):
        abi.info_capabilities(info, broken)


def test_iova_ranges() -> None:
    head = abi.Type1IovaRanges(abi.InfoCapHeader(id=1, version=1), 2)
    ranges = bytes(abi.Type1IovaRange(0, 0xFEDFFFFF)) + bytes(abi.Type1IovaRange(0xFEF00000, (1 << 39) - 1))
    info = abi.Type1Info(flags=abi.VFIO_IOMMU_INFO_CAPS, cap_offset=24)
    octets = bytes(info) + bytes(head) + ranges
    assert abi.iova_ranges(info, octets) == [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1)]
    with pytest.raises(ValueError, match="do not fit"):
        abi.iova_ranges(info, octets[:-1])


def test_eventfds_follow_an_irq_set() -> None:
    octets = abi.with_fds(abi.IrqSet(flags=0x24, index=1, count=2), [5, -1])
    assert octets == b"\x1c\0\0\0" + b"\x24\0\0\0" + b"\1\0\0\0" + bytes(4) + b"\2\0\0\0" + b"\5\0\0\0" + b"\xff" * 4


M, L, D = AreaKind.MAPPED, AreaKind.OWNER, AreaKind.DENIED


@pytest.mark.parametrize(
    ("size", "mappable", "denied", "plan"),
    [
        (4 * PAGE, [(0, 4 * PAGE)], [], [(0, 4 * PAGE, M)]),
        (4 * PAGE, [], [], [(0, 4 * PAGE, L)]),
        (0x100, [(0, 0x100)], [], [(0, 0x100, L)]),
        # Sparse areas are mapped from their first whole page to their last, and end with the BAR.
        (4 * PAGE, [(1, 2 * PAGE + 1)], [], [(0, PAGE, L), (PAGE, 2 * PAGE, M), (2 * PAGE, 4 * PAGE, L)]),
        (4 * PAGE, [(3 * PAGE, 9 * PAGE)], [], [(0, 3 * PAGE, L), (3 * PAGE, 4 * PAGE, M)]),
        # The MSI-X table spoils its page, and is denied to the octet.
        (
            4 * PAGE,
            [(0, 4 * PAGE)],
            [(2 * PAGE, 2 * PAGE + 0x410), (3 * PAGE, 3 * PAGE + 16)],
            [
                (0, 2 * PAGE, M),
                (2 * PAGE, 2 * PAGE + 0x410, D),
                (2 * PAGE + 0x410, 3 * PAGE, L),
                (3 * PAGE, 3 * PAGE + 16, D),
                (3 * PAGE + 16, 4 * PAGE, L),
            ],
        ),
        # A table that the device claims to lie partly, or wholly, outside.
        (PAGE, [(0, PAGE)], [(PAGE - 16, PAGE + 16)], [(0, PAGE - 16, L), (PAGE - 16, PAGE, D)]),
        (PAGE, [(0, PAGE)], [(0xFFFFFFF8, 0x100000008)], [(0, PAGE, M)]),
    ],
)
def test_plan_areas(
    size: int,
    mappable: list[tuple[int, int]],
    denied: list[tuple[int, int]],
    plan: list[tuple[int, int, AreaKind]],
) -> None:
    assert plan_areas(size, mappable, denied, PAGE) == plan


def config(*octets: tuple[int, bytes]) -> bytes:
    """Configuration space with a capability list, an MSI-X capability at 0x40, and these octets."""
    image = bytearray(256)
    for at, value in ((0x06, b"\x10\0"), (0x34, b"\x40"), (0x40, bytes([CAP_MSIX, 0])), *octets):
        image[at : at + len(value)] = value
    return bytes(image)


def test_msix_table_and_pending_bits() -> None:
    image = config((0x42, b"\x40\x80"), (0x44, b"\x00\x20\0\0"), (0x48, b"\x03\x30\0\0"))
    assert msix_ranges(image) == {0: [(0x2000, 0x2000 + 65 * 16)], 3: [(0x3000, 0x3000 + 2 * 8)]}
    assert msix_ranges(bytes(256)) == {}


def test_msix_capability_at_the_edge_is_refused() -> None:
    with pytest.raises(ValueError, match="MSI-X capability at 0xf8"):
        msix_ranges(config((0x34, b"\xf8"), (0xF8, bytes([CAP_MSIX, 0]))))


@pytest.mark.parametrize(
    ("register", "flags"),
    [
        (0x0, BarFlag(0)),
        (0x1, BarFlag.IO),
        (0xD, BarFlag.IO),  # bits 2 and 3 of an I/O BAR are address bits
        (0x4, BarFlag.MEM64),
        (0xC, BarFlag.MEM64 | BarFlag.PREFETCHABLE),
        (0x8, BarFlag.PREFETCHABLE),
    ],
)
def test_bar_flags(register: int, flags: BarFlag) -> None:
    assert bar_flags(config((0x14, bytes([register]))), 1) == flags

# SPDX-License-Identifier: MIT
"""A back whose boot-info block or regions are not what they must be: the front refuses, and does not crash."""

import contextlib
import dataclasses
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcisplit import wire
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.errors import PcisplitError, RemoteProtocolError
from pcisplit.proto.vectors import BOOT
from pcisplit.ring.region import B2F_SEALS, F2B_SEALS, check_seals, create_region
from pcisplit.wire import RegionIndex
from tests.liar import B2F, F2B, Liar

F_SEAL_FUTURE_WRITE = 0x10


@pytest.mark.clause("THR-31")
@pytest.mark.parametrize("index", list(RegionIndex))
def test_a_region_that_the_wrong_side_may_write(index: RegionIndex) -> None:
    """`f2b` mapped for reading, then written: that was the end of the front (SIGSEGV)."""
    regions = tuple(
        dataclasses.replace(region, writable=region.writable is not (region.index is index)) for region in BOOT.regions
    )
    with pytest.raises(RemoteProtocolError, match=f"write region {index.name.lower()}"):
        parse_boot_info_untrusted(dataclasses.replace(BOOT, regions=regions).to_bytes())


@pytest.mark.clause("REG-5")
def test_a_region_that_is_no_memfd(tmp_path: Path) -> None:
    with Liar() as liar:
        path = tmp_path / "file"
        path.write_bytes(bytes(os.fstat(liar.fds[F2B]).st_size))
        liar.swap(F2B, os.open(path, os.O_RDWR))
        with pytest.raises(RemoteProtocolError, match="region f2b is not a memfd"):
            liar.connect()


@pytest.mark.clause("REG-5")
def test_a_region_that_is_sealed_against_the_front() -> None:
    with Liar() as liar:
        fd = create_region("sealed", os.fstat(liar.fds[F2B]).st_size)
        os.pwrite(fd, wire.F2B_MAGIC.to_bytes(4, "little"), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F2B_SEALS | F_SEAL_FUTURE_WRITE)
        liar.swap(F2B, fd)
        with pytest.raises(RemoteProtocolError, match="region f2b is sealed against us"):
            liar.connect()


@pytest.mark.clause("REG-5")
def test_one_memfd_for_both_regions() -> None:
    with Liar() as liar:
        liar.swap(F2B, os.dup(liar.fds[B2F]))
        with pytest.raises(RemoteProtocolError):
            liar.connect()


@pytest.mark.clause("REG-5")
def test_regions_of_huge_pages_are_refused() -> None:
    """None is reserved for them: the first access would be the end of the front (SIGBUS)."""
    size = 2 << 20
    try:
        fd = os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError as problem:
        pytest.skip(f"no huge pages here: {problem}")
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, B2F_SEALS)
        with pytest.raises(RemoteProtocolError, match="huge pages"):
            check_seals(fd, B2F_SEALS, size, "b2f")
    finally:
        os.close(fd)


@pytest.mark.clause("BOOT-4", "THR-8")
@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_octets_of_the_block_changed(changes: list[tuple[int, int]]) -> None:
    """A session or an error, with the same regions behind the block."""
    with Liar() as liar:
        block = bytearray(liar.boot_info)
        for at, value in changes:
            block[at % len(block)] = value
        liar.boot_info = bytes(block)
        with contextlib.suppress(PcisplitError), liar.connect(timeout=0.001) as session:
            for name in session.devices:
                device = session.acquire(name)
                for call in (
                    device.nop,
                    lambda device=device: device.irq(0).poll(),
                    lambda device=device: device.refused,
                ):
                    with contextlib.suppress(PcisplitError):
                        call()
            with contextlib.suppress(PcisplitError):
                session.dma.alloc(64).memory[0] = 1

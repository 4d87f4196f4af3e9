# SPDX-License-Identifier: MIT
"""Which resets a keeper does for its worker: those that the operator left and the device has, and no other [LIFE-26].

The keeper is real; its function has no device behind it, and a `Host` that would do whatever it is asked.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcisplit.back.channel import Channel, ChannelClosed, make_pair, request
from pcisplit.back.devices.device import Interrupts
from pcisplit.back.devices.vfio.acquire import GroupHost
from pcisplit.back.devices.vfio.describe import Description, Place, Resets
from pcisplit.back.devices.vfio.function import Host, VfioFunction
from pcisplit.back.devices.vfio.resets import KernelResets
from pcisplit.back.keeper.main import Keeper
from pcisplit.pci import Bdf
from pcisplit.wire import Error, ResetMethod

BDF = Bdf(0, 1, 0, 0)
FLR, AF, PM, BUS = ResetMethod.FLR, ResetMethod.AF, ResetMethod.PM, ResetMethod.BUS
SECONDS = 20.0


class Obliging(Host):
    """Does nothing, and remembers what."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def hot_reset(self) -> None:
        self.did.append("hot_reset")

    def select_reset(self, method: ResetMethod) -> None:
        self.did.append(method.name)

    def map_dma(self, fd: int, size: int, iova: int) -> None:
        raise AssertionError

    def unmap_dma(self) -> int:
        raise AssertionError


def function(resets: Resets, host: Host) -> VfioFunction:
    config, none = Place(0, 256), Place(0, 0)
    what = Description(str(BDF), (0x8086, 0x10D3), config, none, (), 0, Interrupts(), (), resets, ())
    return VfioFunction(os.open(os.devnull, os.O_RDWR), what, host)


class Asked:
    """A keeper that has one function, and a supervisor that passes on what a worker asks."""

    def __init__(self, resets: Resets, host: Host) -> None:
        theirs, ours = make_pair()
        self._channel, self._function = Channel(ours), function(resets, host)
        keeper = Keeper(Channel(theirs))
        keeper._functions[str(BDF)] = self._function
        self._thread = threading.Thread(target=self._run, args=(keeper, theirs.close))
        self._thread.start()

    def _run(self, keeper: Keeper, close: Callable[[], None]) -> None:
        try:
            with contextlib.suppress(ChannelClosed):
                keeper.run()
        finally:
            close()

    def ask(self, do: str, bdf: str = str(BDF), method: int = 0) -> Error:
        self._channel.send(request(1, do, bdf=bdf, method=method))
        said, _ = self._channel.recv()
        return Error(said.get("error", 0))

    def close(self) -> None:
        self._channel.close()
        self._thread.join(SECONDS)
        os.close(self._function.fileno())
        assert not self._thread.is_alive()


@pytest.fixture
def asked() -> Iterator[Callable[..., Asked]]:
    made: list[Asked] = []

    def make(*words: Any) -> Asked:
        made.append(Asked(*words))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.clause("LIFE-26", "THR-16")
@pytest.mark.parametrize(
    ("resets", "may"),
    [
        (Resets((PM,), False), {PM}),  # reset=pm, or all that there is
        (Resets((PM, BUS), False), {PM, BUS}),  # no choice; both are the kernel's
        (Resets((FLR,), True), {FLR, BUS}),  # no choice; the bus is VFIO's
        (Resets((), True), {BUS}),  # reset=bus, where only VFIO has it
        (Resets((), False), set()),  # reset=none, or a device that has none
    ],
)
def test_a_worker_gets_the_resets_that_were_left_and_no_other(
    asked: Callable[..., Asked], resets: Resets, may: set[ResetMethod]
) -> None:
    host = Obliging()
    keeper = asked(resets, host)
    for method in ResetMethod:
        expected = Error.SUCCESS if method in may else Error.NO_RESET
        assert keeper.ask("select_reset", method=method) is expected, method.name
    assert host.did == [method.name for method in ResetMethod if method in may]
    host.did.clear()
    assert keeper.ask("hot_reset") is (Error.SUCCESS if BUS in may else Error.NO_RESET)
    assert host.did == (["hot_reset"] if BUS in may else [])


@pytest.mark.clause("LIFE-26")
@pytest.mark.parametrize("choice", ["", "flr", "pm", "bus", "none"])
def test_what_was_not_chosen_is_never_selected_in_the_kernel(
    asked: Callable[..., Asked], tmp_path: Path, choice: str
) -> None:
    """With the keeper's own host: a device that VFIO cannot reset has methods in sysfs all the same."""
    folder = tmp_path / str(BDF)
    folder.mkdir()
    file = folder / "reset_method"
    file.write_text("flr pm\n")
    resets = KernelResets(BDF, tmp_path)
    resets.choose(choice)
    before = file.read_text()
    host = GroupHost(None, -1, BDF, resets)  # type: ignore[arg-type]
    keeper = asked(Resets((), False), host)
    assert {keeper.ask("select_reset", method=method) for method in ResetMethod} == {Error.NO_RESET}
    assert keeper.ask("hot_reset") is Error.NO_RESET
    assert file.read_text() == before
    may = Resets(resets.methods, False)
    keeper = asked(may, host)
    for method in ResetMethod:
        refused = keeper.ask("select_reset", method=method) is Error.NO_RESET
        assert refused == (method not in may.methods)
        assert set(file.read_text().split()) <= {method.name.lower() for method in may.methods}


@given(st.integers(-(1 << 70), 1 << 70))
def test_a_number_that_is_no_method(number: int) -> None:
    host = Obliging()
    keeper = Asked(Resets((FLR,), False), host)
    try:
        answer = keeper.ask("select_reset", method=number)
        assert (answer is Error.SUCCESS) == (number == FLR) == bool(host.did)
        assert answer in (Error.SUCCESS, Error.NO_RESET, Error.DEVICE_FAILED)
    finally:
        keeper.close()


@pytest.mark.parametrize("do", ["hot_reset", "select_reset"])
def test_a_function_of_another_session(asked: Callable[..., Asked], do: str) -> None:
    host = Obliging()
    assert asked(Resets((PM,), True), host).ask(do, bdf="0000:02:00.0", method=PM) is Error.GONE
    assert host.did == []

# SPDX-License-Identifier: MIT
"""Who takes part beside the backend: the floor program, and the frontend in C (rows.c) or Python."""

import array
import ctypes
import dataclasses
import os
import socket
import statistics
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from backend import DEADLINE, HERE, BenchError
from machine import PACKAGE

from pcisplit import wire
from pcisplit.front import Session
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.errors import error_name
from pcisplit.proto.meeting import Hello, Need, parse_reply_untrusted
from pcisplit.wire import Direction, RegionIndex

FLAGS = ("-O2", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds an operation. `op`: the median group, which is judged; see timing.h."""

    op: float
    mean: float
    p50: float
    p99: float
    count: float = 0.0  #: of single operations


class CTiming(ctypes.Structure):
    """``struct timing``."""

    _fields_ = [(name, ctypes.c_double) for name in ("op", "mean", "p50", "p99", "count")]

    def timing(self) -> Timing:
        return Timing(self.op, self.mean, self.p50, self.p99, self.count)


# -- what is compiled --------------------------------------------------------------------------------------------------


class Tools:
    """The compiled parts: `floor` (a program) and `rows` (a library), in `folder`."""

    def __init__(self, folder: Path, compiler: str) -> None:
        self.floor_path, rows_path = folder / "floor", folder / "rows.so"
        sources = sorted((PACKAGE / "front").glob("pcifront*.c"))
        includes = [f"-I{PACKAGE / 'ring'}", f"-I{PACKAGE / 'front'}"]
        _compile(compiler, *includes, "-o", self.floor_path, HERE / "floor.c")
        _compile(compiler, "-shared", "-fPIC", *includes, "-o", rows_path, HERE / "rows.c", *sources)
        self.rows = ctypes.CDLL(str(rows_path))
        self.rows.rows_open.restype = ctypes.c_void_p

    def burn(self) -> None:
        """Use a CPU for ever."""
        self.rows.rows_burn()

    def floor(self, kind: str, cpus: tuple[int, int], count: int, group: int) -> Timing:
        """A kind of floor.c between two CPUs; the median of three runs."""
        command = [str(self.floor_path), kind, *map(str, (*cpus, count, group))]
        runs = []
        for _ in range(3):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
            if done.returncode:
                raise BenchError(f"the floor {kind!r} failed: {done.stderr.strip()}")
            runs.append([float(word) for word in done.stdout.split()])
        return Timing(*(statistics.median(column) for column in zip(*runs, strict=True)))


def _compile(compiler: str, *args: str | Path) -> None:
    try:
        done = subprocess.run([compiler, *FLAGS, *map(str, args)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchError(f"{compiler} is not installed; apt-get install gcc, or set CC") from None
    if done.returncode:
        raise BenchError(f"{compiler} failed:\n{done.stderr}")


# -- the front in C ------------------------------------------------------------------------------------------------------


class CFront:
    """A session of rows.c with one device. Python does the meeting only."""

    def __init__(self, tools: Tools, path: Path, device: str = "ram0") -> None:
        self._rows = tools.rows
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fds: list[int] = []
        self._raw: ctypes.c_void_p | None = None
        try:
            self._open(path, device)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, device: str) -> None:
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(path))
        self._socket.send(Hello("bench", (Need(device),)).to_bytes())
        data, self._fds, _, _ = socket.recv_fds(self._socket, 1 << 18, wire.MAX_FDS)
        reply = parse_reply_untrusted(data)
        if reply.error:
            raise BenchError(f"the backend refused: {reply.text}")
        info = parse_boot_info_untrusted(reply.boot_info)
        self._socket.setblocking(False)
        regions = [info.region(index) for index in (RegionIndex.F2B, RegionIndex.B2F)]
        bells = {bell.index: self._fds[bell.fd] for bell in info.doorbells}
        kick, bell = bells[Direction.FRONT_TO_BACK], bells[Direction.BACK_TO_FRONT]
        fds = [*(self._fds[region.fd] for region in regions), kick, bell, self._socket.fileno()]
        sizes = (ctypes.c_uint64 * 2)(*(region.size for region in regions))
        error = ctypes.c_int(0)
        raw = self._rows.rows_open(
            reply.boot_info,
            ctypes.c_size_t(len(reply.boot_info)),
            (ctypes.c_int * len(fds))(*fds),
            sizes,
            ctypes.byref(error),
        )
        _check(error.value, "opening the C front")
        self._raw = ctypes.c_void_p(raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session. Idempotent."""
        if self._raw is not None:
            self._rows.rows_close(self._raw)
            self._raw = None
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._socket.close()

    def spin(self, turns: int) -> None:
        self._rows.rows_spin(self._raw, ctypes.c_uint32(turns))

    def run(self, row: int, count: int, group: int) -> Timing:
        """Time a row of rows.c once."""
        timing = CTiming()
        error = self._rows.rows_run(
            self._raw, ctypes.c_uint(row), ctypes.c_uint(count), ctypes.c_uint(group), ctypes.byref(timing)
        )
        _check(error, f"row {row} of rows.c")
        return timing.timing()

    def run_for(self, row: int, seconds: float) -> Timing:
        """Time single operations of a row of rows.c for so long."""
        timing = CTiming()
        error = self._rows.rows_run_for(
            self._raw, ctypes.c_uint(row), ctypes.c_uint64(int(seconds * 1e9)), ctypes.byref(timing)
        )
        _check(error, f"row {row} of rows.c")
        return timing.timing()

    def flood(self, blocks: bool) -> None:
        """Ask without end, see rows.c. Returns by a BenchError alone."""
        _check(self._rows.rows_flood(self._raw, int(blocks)), "flooding")


def _check(error: int, what: str) -> None:
    if error:
        raise BenchError(f"{what}: {'a wrong value came back' if error == 1 else error_name(error)}")


# -- the front in Python -------------------------------------------------------------------------------------------------

REGISTERS, STEP = 64, 64


def open_python(session: Session) -> None:
    """Turn decode on and fill the registers that are read."""
    device = session.acquire("ram1")
    device.config.write16(0x04, 0x02)
    for register in range(REGISTERS):
        device.bar(0).write32(register * STEP, 0xA5000000 | register)


def run_python(session: Session, count: int, group: int) -> Timing:
    """Time ``bar.read32`` once, as timing.h does it."""
    bar = session.acquire("ram1").bar(0)
    read, now = bar.read32, time.perf_counter_ns
    offsets = [turn % REGISTERS * STEP for turn in range(group)]
    single, groups = [], []
    for turn in range(count):
        start = now()
        value = read(turn % REGISTERS * STEP)
        single.append(now() - start)
        if value != 0xA5000000 | turn % REGISTERS:
            raise BenchError("row 3: a wrong value came back")
    begin = last = now()
    for _ in range(count // group):
        for offset in offsets:
            read(offset)
        end = now()
        groups.append(end - last)
        last = end
    single.sort()
    total = (last - begin) / (len(groups) * group)
    return Timing(statistics.median(groups) / group, total, single[count // 2], single[count - count // 100 - 1])


def run_python_many(session: Session, count: int, group: int) -> Timing:
    """Time ``bar.read_many`` of all registers at once; per read."""
    bar = session.acquire("ram1").bar(0)
    read, now = bar.read_many, time.perf_counter_ns
    offsets = array.array("I", range(0, REGISTERS * STEP, STEP))
    expected = array.array("Q", (0xA5000000 | register for register in range(REGISTERS)))
    turns, turns_a_group = max(count // REGISTERS, 1), max(group // REGISTERS, 1)
    single, groups = [], []
    for _ in range(turns):
        start = now()
        values = read(offsets)
        single.append((now() - start) / REGISTERS)
        if values != expected:
            raise BenchError("row 10: a wrong value came back")
    begin = last = now()
    for _ in range(turns // turns_a_group):
        for _ in range(turns_a_group):
            read(offsets)
        end = now()
        groups.append(end - last)
        last = end
    single.sort()
    part = turns_a_group * REGISTERS
    total = (last - begin) / (len(groups) * part)
    return Timing(statistics.median(groups) / part, total, single[turns // 2], single[turns - turns // 100 - 1])

# SPDX-License-Identifier: MIT
"""Who takes part: the floor program, a backend process, and the frontend in C (rows.c) or Python."""

import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from machine import PACKAGE

from pcisplit import wire
from pcisplit.bootinfo import parse_boot_info_untrusted
from pcisplit.errors import error_name
from pcisplit.front import Session
from pcisplit.messages import Hello, Need, parse_reply_untrusted
from pcisplit.wire import Direction, RegionIndex

HERE = Path(__file__).resolve().parent
DEADLINE = 20.0
FLAGS = ("-O2", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")


class BenchError(Exception):
    """The benchmark cannot go on; says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds an operation. `op`: the median group, which is judged; see timing.h."""

    op: float
    mean: float
    p50: float
    p99: float


class CTiming(ctypes.Structure):
    """``struct timing``."""

    _fields_ = [(name, ctypes.c_double) for name in ("op", "mean", "p50", "p99")]


@contextlib.contextmanager
def on_cpu(cpu: int | None) -> Iterator[None]:
    """Run the block, and every process started in it, on one CPU."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_for(what: str, ready: Callable[[], bool]) -> None:
    """Look every millisecond. Raises BenchError after the deadline."""
    end = time.monotonic() + DEADLINE
    while not ready():
        if time.monotonic() > end:
            raise BenchError(f"waited {DEADLINE:.0f} s for {what}")
        time.sleep(0.001)


# -- what is compiled --------------------------------------------------------------------------------------------------


class Tools:
    """The compiled parts: `floor` (a program) and `rows` (a library), in `folder`."""

    def __init__(self, folder: Path, compiler: str) -> None:
        self.floor_path, rows_path = folder / "floor", folder / "rows.so"
        sources = sorted((PACKAGE / "front").glob("pcifront*.c"))
        includes = [f"-I{PACKAGE / 'ring'}", f"-I{PACKAGE / 'front'}"]
        _compile(compiler, "-o", self.floor_path, HERE / "floor.c")
        _compile(compiler, "-shared", "-fPIC", *includes, "-o", rows_path, HERE / "rows.c", *sources)
        self.rows = ctypes.CDLL(str(rows_path))
        self.rows.rows_open.restype = ctypes.c_void_p

    def floor(self, kind: str, cpus: tuple[int, int], count: int, group: int) -> Timing:
        """``line``, ``eventfd`` or ``socket`` between two CPUs; the median of three runs."""
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


# -- the backend -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Thread:
    """What the kernel says of a thread: `ticks` of CPU it has used, `sleeps` that it began by itself."""

    runs: bool
    ticks: int
    sleeps: int


class Backend:
    """``pcisplit serve`` with the devices ram0 and ram1, on one CPU; `spin` in microseconds."""

    def __init__(self, spin: float, cpu: int | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pcisplit-bench-")
        folder = Path(self._folder.name)
        self.path, self._log = folder / "socket", folder / "log"
        devices = ["--device", "ram0=model:ram", "--device", "ram1=model:ram"]
        options = ["--socket", str(self.path), "--spin", str(spin), "--dma", "2M", "--json"]
        with on_cpu(cpu), self._log.open("w") as log:
            command = [sys.executable, "-m", "pcisplit", "serve", *devices, *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for("the backend to listen", self._listens)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _listens(self) -> bool:
        if self.process.poll() is not None:
            raise BenchError(f"the backend ended:\n{self._log.read_text()}")
        return '"serving"' in self._log.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        text = self._log.read_text()
        self._folder.cleanup()
        if kind is None and (code or "Traceback" in text):
            raise BenchError(f"the backend ended with {code}:\n{text}")

    def threads(self) -> dict[int, Thread]:
        """Its threads by number, now."""
        found = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile
                fields = task.joinpath("stat").read_text().rpartition(")")[2].split()
                status = task.joinpath("status").read_text()
                sleeps = int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
                found[int(task.name)] = Thread(fields[0] == "R", int(fields[11]) + int(fields[12]), sleeps)
        return found

    def wait_asleep(self) -> None:
        """Until none of its threads runs: only then is its CPU free for a floor."""
        wait_for("the backend to sleep", lambda: not any(thread.runs for thread in self.threads().values()))


# -- the front in C ------------------------------------------------------------------------------------------------------


class CFront:
    """A session of rows.c with device ram0. Python does the meeting only."""

    def __init__(self, tools: Tools, backend: Backend) -> None:
        self._rows = tools.rows
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._fds: list[int] = []
        self._raw: ctypes.c_void_p | None = None
        try:
            self._open(backend)
        except BaseException:
            self.close()
            raise

    def _open(self, backend: Backend) -> None:
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(backend.path))
        self._socket.send(Hello("bench", (Need("ram0"),)).to_bytes())
        data, self._fds, _, _ = socket.recv_fds(self._socket, 1 << 18, wire.MAX_FDS)
        reply = parse_reply_untrusted(data)
        if reply.error:
            raise BenchError(f"the backend refused: {reply.text}")
        info = parse_boot_info_untrusted(reply.boot_info)
        self._socket.setblocking(False)
        regions = [info.region(index) for index in (RegionIndex.F2B, RegionIndex.B2F)]
        bells = {bell.index: self._fds[bell.fd] for bell in info.doorbells}
        kick, pipe = bells[Direction.FRONT_TO_BACK], bells[Direction.BACK_TO_FRONT]
        fds = [*(self._fds[region.fd] for region in regions), kick, pipe, self._socket.fileno()]
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
        return Timing(timing.op, timing.mean, timing.p50, timing.p99)


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

# SPDX-License-Identifier: MIT
"""Latency and throughput against the floor of this machine. ``make bench``, or ``python bench/bench.py --help``."""

import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import click
import crowd
import sessions
from backend import HERE, Backend, BenchError, Thread, on_cpus
from machine import Machine, describe, two_cpus
from peers import CFront, Timing, Tools, open_python, run_python, run_python_many
from report import Floor, Result, as_json, show

from pcisplit import front

REPETITIONS = 11
ATTEMPTS = 5
MOVED = 0.20  #: a floor that moved by more between before and after spoils the row
SPIN_US = 5000.0  #: of the spinning backend: it never sleeps within a row, and soon after it
TURNS = 1_000_000  #: that a spinning front spins, 20 ms or more


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """A row: what is timed, against which floor, how much of it is allowed. No target: printed, not judged.

    `above`: another row; the target is what that one took in this run and so many ns more. `bound`: a floor, see BOUNDS.
    """

    row: str
    name: str
    which: int  #: in rows.c
    count: int
    group: int
    target: float | None = None
    goal: float | None = None
    floor: str = "P"
    bound: str = ""
    above: tuple[str, float] | None = None


BAR_READ, CONFIG_READ, BAR_WRITE, POSTED, POSTED_MANY, POSTED_EACH, FLIGHT, WINDOW, PACKED, OWNER_READ = range(10)
PYTHON, PYTHON_MANY = 10, 11  #: not in rows.c

SPINNING = (
    Spec("1", "BAR read, C", BAR_READ, 20000, 64, 1.7, 1.4, bound="slot"),
    Spec("", "BAR write, answered, C", BAR_WRITE, 20000, 64, bound="slot"),
    Spec("2", "config read from the table, C", CONFIG_READ, 20000, 64, 1.8, 1.4, bound="slot"),
    Spec("3", "BAR read, Python", PYTHON, 10000, 64, goal=2.5, bound="slot", above=("1", 200.0)),
    Spec("4", "posted write, C, 64 and a read", POSTED, 64000, 640, 1 / 7, 1 / 10, bound="batch"),
    Spec("", "  by post_many", POSTED_MANY, 64000, 640, bound="batch"),
    Spec("", "  each published, not packed", POSTED_EACH, 64000, 640),
    Spec("5", "BAR read, C, 16 in flight", FLIGHT, 32000, 320, 0.6, 0.4, bound="slots"),
    Spec("", "  a new one for each answer", WINDOW, 32000, 320, bound="slots"),
    Spec("5b", "16 BAR reads packed, C", PACKED, 32000, 320, 1 / 6, 1 / 8, bound="packed"),
    Spec("10", "read_many of 64, Python", PYTHON_MANY, 64000, 640, 1 / 3, 1 / 5, bound="many"),
)
ASLEEP = (Spec("8", "BAR read, C, both asleep", BAR_READ, 1000, 10, 1.2, 1.0, floor="E"),)

FLOORS = {
    "P": ("line", 50000, 64, "cache-line ping-pong, two CPUs, both spin"),
    "E": ("eventfd", 1000, 10, "eventfd ping-pong, two CPUs, both sleep"),
    "S": ("socket", 5000, 16, "UNIX socket echo of 64 octets, two CPUs, both spin"),
}

#: What rows would cost with no protocol: see floor.c.
BOUNDS = {
    "slot": ("slot", 50000, 64, "bound of rows 1 to 3: a slot there and one back, nothing done"),
    "batch": ("batch", 64000, 640, "bound of row 4: the slots of 64 writes and a read, one back, / 64"),
    "slots": ("slots", 64000, 320, "bound of row 5: 16 slots there, 16 back, / 16"),
    "packed": ("packed", 64000, 320, "bound of row 5b: 16 reads in packs, / 16"),
    "many": ("many", 64000, 640, "bound of row 10: 64 reads in packs, / 64"),
}
ALL = {**FLOORS, **BOUNDS}


class Bench:
    """One run. ``results`` and ``floors`` fill up as it goes."""

    def __init__(self, tools: Tools, cpus: tuple[int, int] | None, scale: float, rows: frozenset[str]) -> None:
        self.tools, self.cpus, self.scale, self.rows = tools, cpus, scale, rows
        self.results: list[Result] = []
        self.floors: dict[str, list[float]] = {name: [] for name in ALL}

    def wants(self, row: str) -> bool:
        """Whether a row was asked for: by its name, by its number without the letter, or as one of all."""
        return not self.rows or bool({row, row.rstrip("abcdefghijklmnopqrstuvwxyz")} & self.rows)

    def _wanted(self, specs: Sequence[Spec]) -> list[Spec]:
        """The rows asked for, each with those without a number that follow it."""
        found, wants = [], False
        for spec in specs:
            wants = self.wants(spec.row) if spec.row else wants
            found += [spec] if wants else []
        return found

    def floor(self, name: str) -> float:
        """Measure a floor or a bound now."""
        assert self.cpus is not None
        kind, count, group, _ = ALL[name]
        op = self.tools.floor(kind, self.cpus, self._count(count, group), group).op
        self.floors[name].append(op)
        return op

    def _count(self, count: int, group: int) -> int:
        return max(int(count * self.scale) // group, 8) * group

    def measure(self, spec: Spec, run: Callable[[int, int], Timing], backend: Backend) -> None:
        """Time a row between two floors; again, if the floor moved meanwhile."""
        attempts, steady = 0, False
        while not steady and attempts < ATTEMPTS:
            attempts += 1
            backend.wait_asleep()
            before = self.floor(spec.floor)
            with on_cpus(self.cpus[1:] if self.cpus else None):
                runs = [run(self._count(spec.count, spec.group), spec.group) for _ in range(REPETITIONS)]
            backend.wait_asleep()
            after = self.floor(spec.floor)
            steady = abs(after - before) <= MOVED * min(before, after)
        bound = self.floor(spec.bound) if spec.bound else 0.0
        result = _summary(spec, runs, (before, after), attempts, steady)
        self.results.append(dataclasses.replace(self._with_target(spec, result), bound=bound))

    def _with_target(self, spec: Spec, result: Result) -> Result:
        """A target that hangs on another row, if that was measured in this run."""
        if spec.above is None:
            return result
        row, more = spec.above
        rule = f"row {row} + {more:g} ns"
        for other in self.results:
            if other.row == row and not other.skipped:
                return dataclasses.replace(result, rule=rule, target=other.ratio + more / result.floor_mean)
        return dataclasses.replace(result, rule=rule)

    # -- the rows ---------------------------------------------------------------------------------------------

    def spinning(self) -> None:
        """Rows 1 to 5 and 10: both sides spin; then row 9 on the same backend."""
        specs = self._wanted(SPINNING)
        if not specs and not self.wants("9"):
            return
        with Backend(SPIN_US, self._back_cpu()) as backend, self._c_front(backend) as c:
            ran_before = backend.threads()
            self._work_a_little(c)
            if self.cpus is None:
                self._skip(specs)
            elif specs:
                with front.connect(backend.path, devices=["ram1"], driver="bench", dma=0) as session:
                    session.set_spin(TURNS)
                    open_python(session)
                    for spec in specs:
                        self.measure(spec, self._python(session, spec.which) or self._c(c, spec.which), backend)
            if self.wants("9"):
                self._idle(backend, ran_before)

    def asleep(self) -> None:
        """Row 8: neither side spins."""
        specs = self._wanted(ASLEEP)
        if self.cpus is None:
            self._skip(specs)
        elif specs:
            with Backend(0.0, self._back_cpu()) as backend, self._c_front(backend) as c:
                c.spin(0)
                for spec in specs:
                    self.measure(spec, self._c(c, spec.which), backend)

    def crowd(self) -> None:
        """Row 11: a polite session beside flooding ones."""
        chosen = [kind for kind in crowd.kinds(BAR_READ, OWNER_READ) if self.wants(kind.row)]
        if self.cpus is None:
            self._skip_rows((kind.row, f"{kind.reads} beside flooding ({kind.floods})") for kind in chosen)
        elif chosen:
            self.results += crowd.measure(self.tools, self.cpus, self.scale, chosen)

    def sessions(self) -> None:
        """Rows 12 to 14: opening, closing and the weight of sessions."""
        if self.wants("12"):
            self.results += sessions.opening(self.scale)
        if self.wants("13"):
            self.results += sessions.workers()
        if self.wants("14"):
            self.results += sessions.supervisor()

    def socket(self) -> None:
        """The floor that is only printed."""
        if self.cpus is not None and not self.rows:
            self.floor("S")

    def _back_cpu(self) -> tuple[int, ...] | None:
        """The CPU of the backend; its zygote and its workers inherit it."""
        return self.cpus[:1] if self.cpus else None

    @contextlib.contextmanager
    def _c_front(self, backend: Backend) -> Iterator[CFront]:
        with CFront(self.tools, backend.path) as c:
            c.spin(TURNS if self.cpus else 0)
            yield c

    @staticmethod
    def _c(c: CFront, which: int) -> Callable[[int, int], Timing]:
        return lambda count, group: c.run(which, count, group)

    @staticmethod
    def _python(session: front.Session, which: int) -> Callable[[int, int], Timing] | None:
        timed = {PYTHON: run_python, PYTHON_MANY: run_python_many}.get(which)
        return (lambda count, group: timed(session, count, group)) if timed else None

    def _skip(self, specs: Sequence[Spec]) -> None:
        self._skip_rows((spec.row, spec.name) for spec in specs if spec.row)

    def _skip_rows(self, rows: Iterable[tuple[str, str]]) -> None:
        why = "needs two CPUs, this machine lets us use one"
        self.results += [Result(row, name, skipped=why) for row, name in rows]

    @staticmethod
    def _work_a_little(c: CFront) -> None:
        c.run(BAR_READ, 20000, 64)

    def _idle(self, backend: Backend, ran_before: dict[int, Thread]) -> None:
        """Row 9: the serve thread, the one that worked for us, is not woken while nobody asks anything of it."""
        backend.wait_asleep()
        before = backend.threads()
        none = Thread(False, 0, 0)
        serve = max(before, key=lambda number: before[number].ticks - ran_before.get(number, none).ticks)
        seconds = max(2.0 * self.scale, 0.25)
        time.sleep(seconds)
        woken = backend.threads()[serve].sleeps - before[serve].sleeps
        name = f"wake-ups in {seconds:g} s of idling"
        self.results.append(Result("9", name, target=0.0, unit="", median=woken, least=woken, most=woken, ratio=woken))


def _summary(spec: Spec, runs: Sequence[Timing], floors: tuple[float, float], attempts: int, steady: bool) -> Result:
    ops = [timing.op for timing in runs]
    ns = statistics.median(ops)
    return Result(
        row=spec.row,
        name=spec.name,
        floor=spec.floor,
        target=spec.target,
        goal=spec.goal,
        median=ns,
        least=min(ops),
        most=max(ops),
        p50=statistics.median(timing.p50 for timing in runs),
        p99=statistics.median(timing.p99 for timing in runs),
        before=floors[0],
        after=floors[1],
        ratio=ns / statistics.mean(floors),
        attempts=attempts,
        steady=steady,
    )


def run(quick: bool, rows: frozenset[str], show_progress: Callable[[str], None]) -> tuple[Machine, Bench]:
    """Measure everything, or the rows named. Raises BenchError."""
    compiler = os.environ.get("CC", "gcc")
    machine = describe(compiler)
    with tempfile.TemporaryDirectory(prefix="pcisplit-bench-") as folder:
        show_progress("compiling")
        bench = Bench(Tools(Path(folder), compiler), two_cpus(), 0.05 if quick else 1.0, rows)
        for part in (bench.socket, bench.spinning, bench.asleep, bench.crowd, bench.sessions):
            show_progress(part.__name__)
            part()
    return machine, bench


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_only", is_flag=True, help="Print one JSON object.")
@click.option("--quick", is_flag=True, help="A look in a few seconds; for tests, not for quoting.")
@click.option("--rows", default="", metavar="ROW,ROW", help="Only these, for example 1,5b,11; 11 is all of 11a to 11d.")
@click.option("--save", is_flag=True, help="Write bench/last.json too.")
def main(json_only: bool, quick: bool, rows: str, save: bool) -> None:
    """Time each row of the table against the floor of this machine, measured before and after it."""
    wanted = frozenset(row.strip() for row in rows.split(",") if row.strip())
    try:
        machine, bench = run(quick, wanted, lambda text: None if json_only else click.echo(f"bench: {text}", err=True))
    except BenchError as problem:
        raise click.ClickException(str(problem)) from None
    if not bench.results:
        raise click.ClickException(f"there is no row {rows}; see bench/README.md")
    floors = [Floor(name, ALL[name][3], values) for name, values in bench.floors.items() if values]
    text = as_json(machine, floors, bench.results)
    if save:
        (HERE / "last.json").write_text(text + "\n")
    if json_only:
        click.echo(text)
    else:
        show(machine, floors, bench.results, quick)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: MIT
"""Building and running the fuzz harnesses: clang, libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer.

A run starts from the committed corpus (read, never written) and keeps what it finds in ``.cache/fuzz/NAME/corpus``, so that
a later run goes on from there. A crash leaves its reproducer in ``.cache/fuzz/NAME``.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pcisplit.proto.layout import Layout

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "fuzz"
CORE = ROOT / "pcisplit"
FLAGS = [
    *("-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"),
    *(
        "-fsanitize=fuzzer,address,undefined",
        "-fno-sanitize-coverage=trace-cmp",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
    ),
    *(f"-I{folder}" for folder in (HERE, CORE / "ring", CORE / "front", CORE / "back" / "core")),
]
#: Octets of the longest input; what needs more can be said in less.
LONGEST = 512
#: Seconds after which one input is a hang.
HANG = 20

_PULSE = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/\S+.*exec/s: (\d+)", re.M)


@dataclass(frozen=True)
class Harness:
    """One program: what is fuzzed, and what of it is redirected into the harness."""

    name: str
    sources: tuple[Path, ...]
    hooks: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its program, its findings and its grown corpus are."""
        return CACHE / self.name

    @property
    def seeds(self) -> Path:
        return HERE / "corpus" / self.name


HARNESSES = {
    harness.name: harness
    for harness in (
        Harness(
            "back",
            (HERE / "fuzz_back.c", *sorted((CORE / "back" / "core").glob("*.c")), CORE / "ring" / "guard.c"),
            ("-include", str(HERE / "hooks.h")),
        ),
        Harness(
            "front",
            (
                HERE / "fuzz_front.c",
                *(CORE / "front" / f"pcifront{part}.c" for part in ("", "_wait", "_pack", "_attach", "_device")),
            ),
        ),
    )
}


def missing(folder: Path) -> str | None:
    """Why nothing can be fuzzed here, or None; found out by linking a harness of nothing in `folder`."""
    source = folder / "nothing.c"
    source.write_text("int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return (void)d, (void)n, 0; }\n")
    try:
        done = subprocess.run(
            ["clang", "-fsanitize=fuzzer,address,undefined", "-o", str(folder / "nothing"), str(source)],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return "clang is not installed: tools/system-packages test"
    return f"clang cannot link libFuzzer: tools/system-packages test\n{done.stderr[-500:]}" if done.returncode else None


def layout_header() -> str:
    """The regions of a session as the back lays them out, for devices of as many vectors as the harnesses have."""
    layout = Layout.of([8] * 3)
    numbers = {
        f"{name}_at" if name in ("requests", "responses", "events", "bulk_in", "bulk_out") else name: value
        for name, value in layout.places._asdict().items()
    }
    numbers |= {"f2b_size": layout.f2b_size, "b2f_size": layout.b2f_size}
    runs = ", ".join("{" + ", ".join(map(str, run)) + "}" for run in layout.runs)
    return (
        "enum { " + ", ".join(f"{name.upper()} = {value}" for name, value in numbers.items()) + " };\n"
        f"static const uint32_t states_at[] = {{{', '.join(map(str, layout.states))}}};\n"
        f"static const struct run {{ uint64_t counters, totals, pending, masks; }} runs[] = {{{runs}}};\n"
    )


def build(harness: Harness) -> Path:
    """Compile; the program's path. AssertionError with the compiler's words."""
    harness.folder.mkdir(parents=True, exist_ok=True)
    program = harness.folder / "fuzz"
    (harness.folder / "layout.h").write_text(layout_header())
    command = ["clang", *FLAGS, f"-I{harness.folder}", *harness.hooks, *map(str, harness.sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    assert not done.stderr, done.stderr
    return program


@dataclass(frozen=True)
class Pulse:
    """How far a run is: inputs run, edges and features seen, inputs worth keeping, inputs a second."""

    runs: int
    edges: int
    features: int
    corpus: int
    rate: int


class Run:
    """A fuzzer at work. `pulse` and `crash` read what it has said; ``wait`` is for its end."""

    def __init__(self, harness: Harness, program: Path, seconds: int, *, runs: int = -1) -> None:
        self.harness = harness
        grown = harness.folder / "corpus"
        grown.mkdir(parents=True, exist_ok=True)
        self._log = harness.folder / "log"
        limits = [f"-max_total_time={seconds}", f"-runs={runs}", f"-max_len={LONGEST}", f"-timeout={HANG}"]
        places = [f"-artifact_prefix={harness.folder}/", str(grown), str(harness.seeds)]
        self.command = [str(program), *limits, "-print_final_stats=1", *places]
        environment = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=32:detect_leaks=1"}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pulse(self) -> Pulse:
        found = _PULSE.findall(self.output)
        return Pulse(*map(int, found[-1])) if found else Pulse(0, 0, 0, 0, 0)

    def wait(self, timeout: float) -> None:
        self.process.wait(timeout)

    def crash(self) -> str | None:
        """What ended the run before its time, with the reproducer and the command that shows it again; None if nothing did."""
        if self.process.returncode == 0:
            return None
        text = self.output
        artifact = re.search(r"Test unit written to (\S+)", text)
        again = f"rerun: {self.command[0]} {artifact[1]}" if artifact else f"rerun: {' '.join(self.command)}"
        lines = text.splitlines()
        start = next(
            (n for n, line in enumerate(lines) if re.search(r"ERROR:|must hold|runtime error", line)), len(lines) - 40
        )
        return "\n".join(
            [f"fuzz {self.harness.name}: exit {self.process.returncode}", *lines[start : start + 40], again]
        )


def run_all(seconds: int, every: float = 10.0) -> Iterator[str]:
    """Run every harness for `seconds`, all at once; says lines of progress, then how it ended. The last one may be long."""
    runs = [Run(harness, build(harness), seconds) for harness in HARNESSES.values()]
    started = time.monotonic()
    while any(run.process.poll() is None for run in runs):
        for run in runs:
            try:
                run.wait(every / len(runs))
            except subprocess.TimeoutExpired:
                p = run.pulse
                yield (
                    f"{time.monotonic() - started:5.0f} s  {run.harness.name:5}  {p.runs:>9,} runs  {p.rate:>6,}/s  "
                    f"{p.edges:>4} edges  {p.features:>5} features  {p.corpus:>4} inputs kept"
                )
    for run in runs:
        p = run.pulse
        yield run.crash() or f"{run.harness.name}: {p.runs:,} runs, {p.edges} edges, nothing found"
    if any(run.process.returncode for run in runs):
        raise SystemExit(1)

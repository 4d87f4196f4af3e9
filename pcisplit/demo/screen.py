# SPDX-License-Identifier: MIT
"""What a person sees of the demo: the two processes, every step with what crossed between them, a closing table."""

import dataclasses
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pcisplit.demo import edu_driver
from pcisplit.demo.backend import Backend
from pcisplit.demo.steps import Crossed, Step
from pcisplit.proto.errors import error_name
from pcisplit.proto.slots import Event, Request, Response, op_name
from pcisplit.wire import OPERATIONS, Op, RequestFlag, Uses

_FRONT, _BACK, _GOOD, _BAD = "cyan", "magenta", "green", "bold red"
_WIDEST = 100  # columns; longer lines are hard to read
_FIRST, _LAST = 6, 3  # exchanges shown of many
_REQUEST = 40  # columns of a request, so that the border between the processes is one line from step to step

_REGISTERS = {
    value: name
    for name, value in vars(edu_driver).items()
    if name in ("IDENTITY", "LIVENESS", "FACTORIAL", "STATUS") or name.startswith(("INTERRUPT_", "DMA_"))
    if name not in ("DMA_RUN", "DMA_TO_MEMORY", "DMA_INTERRUPT", "DMA_BITS")
}


@dataclasses.dataclass
class Exchange:
    """A request with its answer, if it has one."""

    request: Request
    response: Response | None = None


class Screen:
    """Prints to a terminal or a file; it never asks for anything."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # an arrow that cannot be written is no reason to stop
        self.console = Console(highlight=False)
        self.console.width = min(self.console.width, _WIDEST)
        self._number = 0

    def opening(self, path: object, name: str, back: Backend | None) -> None:
        """Who is there and what lies between them."""
        front = _box(
            "front", _FRONT, f"this process, pid {os.getpid()}", "edu driver on pcisplit.front", "opens no device"
        )
        what = f"owns {name} = model:edu" if back else f"owns {name}"
        who = f"pcisplit serve, pid {back.pid}" if back else str(path)
        owner = _box("back", _BACK, who, what, "checks every request first")
        between = Text.assemble(
            ("requests\n", _FRONT), ("───────────▶\n", _FRONT), ("◀───────────\n", _BACK), ("answers, IRQs", _BACK)
        )
        row = Table.grid(expand=True)
        row.add_column(ratio=1)
        row.add_column(justify="center", width=15, vertical="middle")
        row.add_column(ratio=1)
        row.add_row(front, between, owner)
        memory = "╰─ DMA memory: the driver and the device share it, the back never looks ─╯"
        self.console.print(row)
        self.console.print(Text(memory[: self.console.width], style="dim"), justify="center")

    def step(self, step: Step) -> None:
        """One finished step."""
        self._number += 1
        exchanges = pair(step.crossed)
        mark, style = ("✓", _GOOD) if step.ok else ("✗", _BAD)
        took = Text.assemble((f"{duration(step.microseconds)}", "bold"), (f", {crossing(step)}", "dim"))
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(Text(f"{self._number:>2}  {step.title}", style="bold"), took)
        self.console.print()
        self.console.print(head)
        body: list[RenderableType] = [Text(step.did, style="italic")]
        if step.facts:
            body.append(_facts(step.facts))
        if exchanges:
            body.append(_exchanges(exchanges))
        body += [_logged(line) for line in step.logged]
        body.append(Text.assemble((f"{mark} ", style), (step.result, style)))
        self.console.print(Padding(Group(*body), (0, 0, 0, 4)))

    def closing(self, steps: Sequence[Step], ok: bool) -> None:
        """All steps in one table, and what it comes to."""
        table = Table(expand=True, border_style="dim", header_style="bold", pad_edge=False, box=None)
        table.add_column("#", justify="right", style="dim")
        table.add_column("step", no_wrap=True)
        table.add_column("", width=1)
        table.add_column("result", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("messages", justify="right", no_wrap=True)
        table.add_column("µs", justify="right", no_wrap=True)
        for number, step in enumerate(steps, 1):
            mark = Text("✓", style=_GOOD) if step.ok else Text("✗", style=_BAD)
            crossed = str(len(step.crossed) or "")
            table.add_row(str(number), step.title, mark, step.result, crossed, f"{step.microseconds:,.0f}")
        self.console.print()
        self.console.print(Rule(style="dim"))
        self.console.print(table)
        messages = sum(len(step.crossed) for step in steps)
        failed = [step.title for step in steps if not step.ok]
        self.console.print()
        if ok:
            said = f"{len(steps)} steps, all as they must be; {messages} messages crossed shared memory."
            self.console.print(Text(said, style=_GOOD))
        else:
            self.console.print(Text(f"not as it must be: {', '.join(failed) or 'there were no steps'}", style=_BAD))

    def problem(self, text: str) -> None:
        self.console.print(Text(text, style=_BAD))


def pair(crossed: Sequence[Crossed]) -> list[Exchange | Event]:
    """Requests with their answers, in the order of the requests; events where they came."""
    found: list[Exchange | Event] = []
    waiting: dict[int, Exchange] = {}
    for slot in crossed:
        if isinstance(slot, Request):
            exchange = Exchange(slot)
            waiting[slot.id] = exchange
            found.append(exchange)
        elif isinstance(slot, Response):
            if slot.id in waiting:
                waiting.pop(slot.id).response = slot
        else:
            found.append(slot)
    return found


def crossing(step: Step) -> str:
    """What crossed: ``14 messages, 1 interrupt``. An interrupt is a counter in shared memory and a wake-up, no message."""
    if step.crossing:
        return step.crossing
    interrupts = f", {plural(step.interrupts, 'interrupt')}" if step.interrupts else ""
    return plural(len(step.crossed), "message") + interrupts


def plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(microseconds: float) -> str:
    """``17 µs``, ``3.4 ms``, ``1.20 s``."""
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1000:.1f} ms" if microseconds < 1e6 else f"{microseconds / 1e6:.2f} s"


def _box(title: str, style: str, *lines: str) -> Panel:
    return Panel(
        Text("\n".join(lines), overflow="ellipsis", no_wrap=True), title=f"[bold]{title}[/]", border_style=style
    )


def _facts(facts: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in facts:
        table.add_row(name, value)
    return table


def _exchanges(exchanges: Sequence[Exchange | Event]) -> Table:
    """The front on the left, the back on the right, the border between the processes in the middle."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style=_FRONT, no_wrap=True, min_width=_REQUEST)
    table.add_column(style="dim", no_wrap=True, width=8)
    table.add_column(no_wrap=True)
    left_out = len(exchanges) - _FIRST - _LAST
    shown = exchanges if left_out <= 1 else [*exchanges[:_FIRST], *exchanges[-_LAST:]]
    for at, exchange in enumerate(shown):
        if left_out > 1 and at == _FIRST:
            table.add_row(Text(f"… and {left_out} more", style="dim"), "   ┊", "")
        if isinstance(exchange, Event):
            table.add_row("", "   ┊ ◀─", Text(str(exchange), style=_BACK))
            continue
        answer = exchange.response
        arrows = "─▶ ┊ ◀─" if answer else "─▶ ┊"
        table.add_row(_request(exchange.request), arrows, _answer(exchange.request, answer))
    return table


def _request(request: Request) -> str:
    """``bar_write LIVENESS = 0xc0ffee42``: registers by the driver's names, configuration space as offset/width."""
    row = OPERATIONS.get(request.op)  # type: ignore[call-overload]
    uses = row.uses if row else Uses(0)
    words = [op_name(request.op)]
    if uses & Uses.REGION:
        words.append(_REGISTERS.get(request.offset) or f"bar{request.region}+{request.offset:#x}/{request.width}")
    elif uses & Uses.OFFSET:
        words.append(f"{request.offset:#x}/{request.width}")
    if uses & Uses.VALUE:
        words.append(f"= {request.value:#x}")
    if uses & Uses.VECTORS:
        words.append(f"vector {request.first}")
    return " ".join(words)


def _answer(request: Request, answer: Response | None) -> Text:
    if answer is None:
        posted = request.flags & RequestFlag.POSTED
        return Text("posted: no answer" if posted else "no answer", style="dim")
    if answer.error:
        rule = f" by rule {answer.rule}" if answer.rule else ""
        return Text(f"{error_name(answer.error)}{rule}", style=_BAD)
    return Text(f"{answer.value:#x}" if answer.op in (Op.CONF_READ, Op.BAR_READ) else "ok", style=_BACK)


def _logged(line: dict[str, Any]) -> Text:
    """A line of the back's log; the fields that tell nothing here are left out."""
    fields = [f"{key}={value}" for key, value in line.items() if key not in ("event", "level", "timestamp")]
    return Text.assemble(("back logs  ", "dim"), (f"{line['event']}  {' '.join(fields)}", _BACK))

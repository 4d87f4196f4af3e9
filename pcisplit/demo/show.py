# SPDX-License-Identifier: MIT
"""``pcisplit demo``: the story of steps.py, on the screen or as one JSON object."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pcisplit.demo.backend import Backend
from pcisplit.demo.steps import Step, Story
from pcisplit.proto.errors import PcisplitError

if TYPE_CHECKING:
    from pcisplit.demo.screen import Screen

INTERRUPTED = 130  #: exit code after Ctrl-C, as shells have it: 128 + SIGINT
_JSON_TRACE = 64  #: messages of a step that ``--json`` gives in full


def run(path: Path | None, name: str, as_json: bool) -> int:
    """Play the demo against the backend at `path`, or against one of our own. Returns the exit code.

    0 if every step's check held and our own backend ended with 0; 1 if not; 130 after Ctrl-C.
    """
    screen = None if as_json else _screen()
    back: Backend | None = None
    story: Story | None = None
    ok, problem = False, ""
    with _terminated_as_interrupted():
        try:
            if path is None:
                back = Backend(name)
                path = back.path
                back.wait_log("serving")
            if screen:
                screen.opening(path, name, back)
            story = Story(path, name, back, screen.step if screen else lambda step: None)
            ok = story.play()
        except KeyboardInterrupt:
            problem = "interrupted"
        except (PcisplitError, OSError) as failure:
            problem = str(failure)
        finally:
            code = back.stop() if back else 0
    ok = ok and code == 0 and not problem
    steps = story.steps if story else []
    if screen:
        if problem:
            screen.problem(problem)
        else:
            screen.closing(steps, ok)
    else:
        print(json.dumps(_as_object(ok, name, story, code if back else None, problem)))
    return INTERRUPTED if problem == "interrupted" else int(not ok)


def _screen() -> "Screen":
    from pcisplit.demo.screen import Screen  # rich takes a while to import, and --json does without

    return Screen()


def _as_object(ok: bool, name: str, story: Story | None, code: int | None, problem: str) -> dict[str, Any]:
    return {
        "ok": ok,
        "problem": problem,
        "device": name,
        "id": story.device if story else "",
        "backend_exit": code,
        "steps": [_step_object(step) for step in story.steps] if story else [],
    }


def _step_object(step: Step) -> dict[str, Any]:
    return {
        "step": step.title,
        "did": step.did,
        "ok": step.ok,
        "result": step.result,
        "microseconds": round(step.microseconds, 1),
        "messages": len(step.crossed),
        "interrupts": step.interrupts,
        "trace": [str(slot) for slot in step.crossed[:_JSON_TRACE]],
        "facts": dict(step.facts),
        "logged": step.logged,
    }


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that the backend does not outlive it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

# SPDX-License-Identifier: MIT
"""The README's examples, as somebody would paste them: every shell block of "Use", in order, as one script."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE = 20.0
ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def chapter(title: str) -> str:
    """The text below ``## title``, up to the next of its kind."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)


def ended(group: int) -> bool:
    """Whether no process of the group is left, within the deadline."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        os.sched_yield()
    return False


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the blocks say when they run as one script, which then has ended all that it started."""
    folder = tmp_path_factory.mktemp("readme")
    script = "".join(blocks(chapter("Use"))).replace("/tmp/pcisplit-", f"{folder}/")
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    log = folder / "log"
    with log.open("w") as out:
        shell = subprocess.Popen(
            ["bash", "-e", "-u", "-c", script], stdout=out, stderr=out, cwd=ROOT, start_new_session=True
        )
    try:
        code = shell.wait(120)
        assert code == 0, log.read_text()
        assert ended(shell.pid), f"something is left running:\n{log.read_text()}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    return log.read_text()


def test_nothing_is_slept_for() -> None:
    """A block that needs what the one before has started waits for it by itself."""
    assert not re.search(r"^\s*(sleep|wait)\b|; *(sleep|wait)\b", "".join(blocks(chapter("Use"))), re.M)


@pytest.mark.parametrize(
    "line",
    [
        r"^0x10000ed$",
        r"^1 interrupt, 3628800$",
        r"rule \d+|denied",
        r"^edu0 +model:edu +\S+ +in session +1",
        r"^edu0 is detached",
        r"^the session is gone",
        r"^[1-9]\d* passed, 0 not run, 0 failed$",
    ],
    ids=["identification", "interrupt", "refusal", "list", "detach", "front", "kit"],
)
def test_the_examples_say_what_they_should(output: str, line: str) -> None:
    assert re.search(line, output, re.M), output


def test_what_is_pasted_is_what_is_said(output: str) -> None:
    """But for numbers, which differ from run to run, and with them the width of columns."""

    def lines(text: str) -> list[str]:
        text = re.sub(r"/\S*[/-]try/", "/try/", text)
        return [" ".join(re.sub(r"[\d.]+", "0", line).split()) for line in text.splitlines()]

    model = chapter("Use").split("The same on real VFIO")[0]
    pasted = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", model, re.M | re.S) if not kind]
    said = lines(output)
    assert [line for text in pasted for line in lines(text) if line not in said] == []


def test_no_example_ends_in_a_traceback(output: str) -> None:
    assert "Traceback" not in output


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets

# SPDX-License-Identifier: MIT
"""The front under test: a process that is told what to do by lines, and a back of our own for it (spec/conformance.md)."""

import contextlib
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pcisplit.conformance.case import DEADLINE, Violation, expect, fail
from pcisplit.conformance.front.back import NAME, Back, Script
from pcisplit.proto.errors import error_name
from pcisplit.wire import Op

#: Milliseconds that a call of the front under test has, in most cases.
PATIENCE = 400


class Bench:
    """One front under test and one scripted back; a case gets both."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._folder = tempfile.TemporaryDirectory(prefix="pcisplit-")
        self.back = Back(self._folder.name)
        self._rest, self._said = b"", ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self.back.__exit__(kind, error, trace)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # the end of its input ends it
        try:
            code: int | None = self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = None
        finally:
            self._process.stdout.close()
            self._folder.cleanup()
        if error is None:
            expect(code == 0, "a front that ends well when its input does", f"exit {code}")

    # --- lines -------------------------------------------------------------------------------------------------------------

    def start(self, line: str) -> None:
        """Tell the front to do something; what it says is asked for by :meth:`end`."""
        assert self._process.stdin
        self._said = line
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._dead()

    def end(self, timeout: float = DEADLINE) -> list[int]:
        """What the front says of the line: numbers. Raises Told when it says an error."""
        words = self._line(timeout).split()
        try:
            numbers = [int(word, 0) for word in words[1:]]
        except ValueError:
            numbers, words = [], []
        if words[:1] == ["ok"]:
            return numbers
        if words[:1] == ["error"] and len(numbers) == 1:
            raise Told(numbers[0])
        raise Violation(f"ok or error, and numbers, for {self._said!r}", repr(words))

    def say(self, line: str) -> list[int]:
        """A line that needs nothing of the back."""
        self.start(line)
        return self.end()

    def fails(self, *errors: int, what: str, timeout: float = DEADLINE) -> None:
        """The line that was started ends with one of `errors`, any of them if there is none."""
        names = " or ".join(error_name(error) for error in errors) or "an error"
        try:
            came = self.end(timeout)
        except Told as told:
            expect(not errors or told.error in errors, f"{names} of {what}", error_name(told.error))
            return
        fail(f"{names} of {what}", f"ok {came}")

    def spoke(self) -> bool:
        """Whether the front has said something that was not heard yet."""
        assert self._process.stdout
        return b"\n" in self._rest or bool(select.select([self._process.stdout], [], [], 0)[0])

    def _line(self, timeout: float) -> str:
        assert self._process.stdout
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if not select.select([self._process.stdout], [], [], max(left, 0))[0]:
                fail(f"an answer to {self._said!r} within {timeout:g} s", "nothing")
            octets = os.read(self._process.stdout.fileno(), 65536)
            if not octets:
                self._dead()
            self._rest += octets
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("ascii", "replace")

    def _dead(self) -> None:
        code = self._process.wait(DEADLINE)
        fail(f"a front that answers {self._said!r}", f"its end, exit {code}")

    # --- what most cases do ---------------------------------------------------------------------------------------------------

    def begin(self, script: Script | None = None) -> None:
        """A connected session."""
        self.say(f"deadline {PATIENCE}")
        self.start(f"connect {self.back.path} {NAME}")
        self.back.connect(script)
        self.end()

    def refuses(self, script: Script, *errors: int, what: str) -> None:
        """The front takes no session of this back, and closes the connection [BOOT-4]."""
        self.say(f"deadline {PATIENCE}")
        self.start(f"connect {self.back.path} {NAME}")
        self.back.meet(script)
        self.fails(*errors, what=f"a connect to {what}")
        self.back.hung_up(f"that refuses {what}")

    def lives(self, value: int = 0x5A5A) -> None:
        """The session still works: a read gets its own answer."""
        self.start("bar-read 0 0x40 4")
        asked = self.back.take()
        expect(asked.op == Op.BAR_READ and asked.fields["offset"] == 0x40, "the read that was told", str(asked))
        self.back.answer(asked, value=value)
        came = self.end()
        expect(came == [value], f"the value {value:#x} of the read", str(came))


class Told(Exception):
    """The front said an error."""

    def __init__(self, error: int) -> None:
        super().__init__(error_name(error))
        self.error = error

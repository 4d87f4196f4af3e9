# SPDX-License-Identifier: MIT
"""The front under test that Python's frontend makes: ``python -m pcisplit.conformance.front.python``.

The one module of the kit that knows a side: what it drives is what is tested.
"""

import sys
from collections.abc import Callable

import pcisplit.front
from pcisplit.front import RemoteDevice, Session
from pcisplit.proto.errors import PcisplitError
from pcisplit.wire import Error

_session: Session | None = None
_device: RemoteDevice | None = None
_patience = 1.0


def connect(path: str, name: str) -> list[int]:
    global _session, _device
    _session = pcisplit.front.connect(path, devices=[name], dma=0, timeout=_patience)
    _device = _session.acquire(name)
    return []


def deadline(milliseconds: str) -> list[int]:
    global _patience
    _patience = int(milliseconds, 0) / 1000
    if _session:
        _session.set_timeout(_patience)
    return []


def device() -> RemoteDevice:
    if _device is None:
        raise ValueError("not connected")
    return _device


def close() -> list[int]:
    if _session:
        _session.close()
    return []


def number(word: str) -> int:
    return int(word, 0)


def done(call: Callable[..., None], *words: str) -> list[int]:
    """A call that gives nothing."""
    call(*map(number, words))
    return []


COMMANDS: dict[str, Callable[..., list[int]]] = {
    "connect": connect,
    "deadline": deadline,
    "config-read": lambda at, width: [device().config.read(number(at), number(width))],
    "config-write": lambda *words: done(device().config.write, *words),
    "bar-read": lambda bar, at, width: [device().bar(number(bar)).read(number(at), number(width))],
    "bar-write": lambda bar, *words: done(device().bar(number(bar)).write, *words),
    "bar-post": lambda bar, *words: done(device().bar(number(bar)).post, *words),
    "read-many": lambda bar, width, *at: list(device().bar(number(bar)).read_many(map(number, at), number(width))),
    "irq-enable": lambda: done(device().irq(0).enable),
    "irq-wait": lambda ms: [device().irq(0).wait(timeout=number(ms) / 1000)],
    "reset": lambda: done(device().reset),
    "close": close,
}


def answer(line: str) -> str:
    """What is said of one line."""
    command, *words = line.split()
    try:
        return " ".join(["ok", *(str(number) for number in COMMANDS[command](*words))])
    except PcisplitError as problem:
        return f"error {int(getattr(problem, 'code', None) or getattr(problem, 'reason', None) or Error.BUSY)}"
    except OSError:
        return f"error {int(Error.OP_FAILED)}"


def main() -> None:
    """Lines in, lines out, to the end of the input."""
    for line in sys.stdin:
        print(answer(line), flush=True)
    close()


if __name__ == "__main__":
    main()

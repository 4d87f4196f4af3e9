# SPDX-License-Identifier: MIT
"""Whatever a worker says on its channel, the supervisor's handlers take it: the line ends or goes on, and nothing is raised."""

import errno
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcisplit.back.channel import MESSAGE_MAX, Channel, make_pair, request
from pcisplit.back.supervisor.house import House
from pcisplit.back.supervisor.processes import Line
from pcisplit.back.supervisor.registry import Peer
from pcisplit.back.supervisor.session import Session
from pcisplit.back.supervisor.specs import make_registry
from pcisplit.back.supervisor.uids import WorkerUids
from pcisplit.proto.errors import DeviceError
from pcisplit.proto.meeting import Hello, Need
from pcisplit.wire import Error

DEADLINE = 20.0

PEER = Peer(1, 1000, 1000)
REGISTRY = make_registry(["edu0=model:edu", "ram0=model:ram"], 1 << 20)


class NoZygote:
    """A zygote that has nothing left to fork with."""

    def __init__(self, problem: Exception) -> None:
        self.problem = problem

    async def fork(self, nursery: trio.Nursery, kind: str, name: str) -> Any:
        raise self.problem


class Worker:
    """A worker process as a session has it, which is dead already."""

    ended = True
    status = 9

    def __init__(self, line: Line) -> None:
        self.line, self.reaped, self.killed = line, trio.Event(), 0
        self.reaped.set()

    async def wait_ended(self, seconds: float) -> bool:
        return True

    def fate(self) -> str:
        return self.line.problem or "died"

    def kill(self) -> None:
        self.killed += 1

    def forget(self) -> None:
        self.line.close()


Logged = list[tuple[str, str, dict[str, Any]]]


def make_session(zygote: Any) -> tuple[Session, Logged]:
    lines: Logged = []

    def log(uid: int, event: str, level: str = "info", **fields: Any) -> None:
        lines.append((event, level, fields))

    hello = Hello("driver", (Need("edu0", 1), Need("ram0", 1)), 0, 64)
    house: Any = House(zygote, None, WorkerUids(), log, 1 << 20, 0.0, False)  # type: ignore[arg-type]
    return Session(1, hello, PEER, list(REGISTRY.entries.values()), hello.devices, house), lines


@pytest.fixture(autouse=True)
def no_leak() -> Any:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def live(said: list[bytes], zygote: Any = None) -> tuple[Session, Logged, str, dict[str, str]]:
    """A session whose worker says these messages and is gone: the session, its log, the line's problem, what is lost."""
    session, lines = make_session(zygote or NoZygote(OSError(errno.EMFILE, "no descriptor")))
    session._f2b = os.memfd_create("f2b")
    session._held = [session._f2b]
    ours, theirs = make_pair()
    theirs.setblocking(False)
    line = Line(ours, "the worker")
    session.hear(line)
    session.worker = Worker(line)  # type: ignore[assignment]
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            sock = trio.socket.from_stdlib_socket(theirs)
            for message in said:
                try:
                    await sock.send(message)
                except OSError:  # the line has ended; or the message is longer than sockets carry
                    break
            await trio.testing.wait_all_tasks_blocked()
            sock.close()
            await line.gone.wait()
            lost = await session.close()
            await session.processes_dead()
    return session, lines, line.problem, lost


def check(session: Session, lines: Logged, lost: dict[str, str]) -> None:
    """What may come of anything: short, printable texts, and devices by their names."""
    assert set(lost) <= {"edu0", "ram0"} and all(len(why) <= 240 for why in lost.values())
    assert isinstance(session.reason, Error)
    texts = [str(part) for step in session.steps for part in step]
    for event, level, fields in lines:
        assert level in ("info", "warning", "error")
        assert len(fields) <= 13
        texts += [event, *fields, *(str(value) for value in fields.values())]
    assert all(text.isascii() and text.isprintable() and len(text) <= 2000 for text in texts)


# -- anything ---------------------------------------------------------------------------------------------------

text = st.text(max_size=20) | st.sampled_from(["", "\ud800", "info", "edu0", "\x1b[2J", "x" * 3000])
number = st.integers(-3, 3) | st.integers() | st.sampled_from([1 << 64, 1 << 53, 10**4000, 1e999, -1e999, float("nan")])
value = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=8,
)
OVER = {"tell": "over", "reason": 0, "steps": [["reset", "edu", "", ""]], "refusals": {"edu0": {"rule": 1}}}
OVER["unreset"] = {"edu0": "because"}
GOOD: list[dict[str, Any]] = [
    OVER,
    {"tell": "log", "level": "info", "event": "what happened", "fields": {"a": 1, "b": "text"}},
    {"tell": "connected"},
    {"do": "initialised", "id": 1},
    {"do": "hot_reset", "id": 2, "device": 0},
    {"do": "select_reset", "id": 3, "device": 0, "method": 1},
    {"id": 1, "ok": {}},
    {"id": 1, "error": 5, "text": "no"},
]


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message that a worker may send, with one thing wrong with it; or no message at all."""
    message: Any = json.loads(json.dumps(draw(st.sampled_from(GOOD))))
    place, key = message, draw(st.sampled_from(sorted(message)))
    while isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
        place = place[key]
        key = draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
    if draw(st.integers(0, 9)) == 0:
        place[key] = "DEEP"
        return json.dumps(message).replace('"DEEP"', deep(draw(st.sampled_from([400, 800, 900, 950, 60000])))).encode()
    place[key] = draw(value)
    data = json.dumps(message).encode()
    return draw(st.sampled_from([data, data, data, data[:-1], data + b"\0"]))


anything = messages() | st.binary(max_size=40).filter(bool) | value.map(lambda v: json.dumps(v).encode())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(anything, max_size=6))
def test_whatever_a_worker_says_the_supervisor_goes_on(said: list[bytes]) -> None:
    session, lines, _, lost = trio.run(live, said)
    check(session, lines, lost)


@pytest.mark.parametrize("depth", [*range(850, 1000, 5), 60000])
@pytest.mark.parametrize("place", ["level", "event", "fields", "fields.a", "steps", "reason", "refusals", "unreset"])
def test_nested_as_deep_as_the_parser_allows(place: str, depth: int) -> None:
    """What json.loads just takes is too deep for str(): RecursionError, which is no ValueError."""
    message = json.loads(json.dumps(GOOD[1] if place in ("level", "event", "fields", "fields.a") else OVER))
    where = message
    *path, last = place.split(".")
    for key in path:
        where = where[key]
    where[last] = ["DEEP"]
    said = json.dumps(message).replace('"DEEP"', deep(depth)).encode()
    session, lines, _, lost = trio.run(live, [said])
    check(session, lines, lost)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"garbage", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "neither a request"),
        (b'{"do": "initialised", "id": 1, "tell": "over"}', "neither a request"),
        (b'{"do": "initialised", "id": -1}', "neither a request"),
        (b'{"do": "initialised", "id": true}', "neither a request"),
        (b'{"tell": 1}', "wrong type"),
        (b'{"tell": "log"}', "level"),
        (b'{"tell": "log", "level": "info", "event": "x", "fields": []}', "items"),
        (b"[" * 100_000, "not JSON"),
        (b'{"tell": "' + b"x" * MESSAGE_MAX + b'"}', "longer than"),
    ],
)
def test_what_is_no_message_ends_the_line_and_says_why(message: bytes, why: str) -> None:
    session, _, problem, _ = trio.run(live, [message])
    assert why in problem
    assert any(why in step.problem for step in session.steps)


@pytest.mark.parametrize(
    "over",
    [
        {**OVER, "reason": 1e999},
        {**OVER, "refusals": {"edu0": {"rule": -1e999}}},
        {**OVER, "unreset": {"model:edu": [[]]}},
        {**OVER, "steps": [["reset", "edu", ""]]},
        {**OVER, "steps": [["reset", "edu", "", "", ""]]},
        {"tell": "over"},
    ],
)
def test_a_report_that_is_none_is_told(over: dict[str, Any]) -> None:
    """The end of a session must come to its end: with int() of infinity, which is no ValueError, the devices stayed taken."""
    session, _, _, lost = trio.run(live, [json.dumps(over).encode()])
    assert any("its report is none" in step.problem for step in session.steps)
    assert lost == {}


def test_the_first_last_word_counts() -> None:
    """A second one came while the first was in use, and was taken as it was: ``over`` twice kept the devices for ever."""
    second = {**OVER, "reason": 3, "unreset": 7}
    session, _, problem, lost = trio.run(live, [json.dumps(OVER).encode(), json.dumps(second).encode()])
    assert problem == "" and session.reason is Error.SUCCESS
    assert [str(step) for step in session.steps] == ["reset edu: done"]
    assert lost == {"edu0": "because"}


# -- requests ---------------------------------------------------------------------------------------------------


async def ask(said: list[dict[str, Any]], zygote: Any) -> list[dict[str, Any]]:
    """The answers to these requests of a worker."""
    session, _ = make_session(zygote)
    session._f2b = os.memfd_create("f2b")
    session._held = [session._f2b]
    ours, theirs = make_pair()
    line = Line(ours, "the worker")
    session.hear(line)
    session.worker = Worker(line)  # type: ignore[assignment]
    channel = Channel(theirs)
    answers: list[dict[str, Any]] = []
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            session._sealer.start(nursery)
            for message in said:
                channel.send(message)
                await trio.lowlevel.wait_readable(channel.fileno())
                answers.append(channel.recv()[0])
            channel.close()
            await line.gone.wait()
            await session.close()
            await session.processes_dead()
    return answers


@pytest.mark.parametrize("problem", [OSError(errno.EMFILE, "none left"), DeviceError(Error.QUOTA, "none left")])
def test_sealing_without_descriptors_is_a_refusal(problem: Exception) -> None:
    """It was an exception out of the reader of the line, which ended the backend with all its sessions."""
    (answer,) = trio.run(ask, [request(1, "initialised")], NoZygote(problem))
    assert answer["error"] == Error.QUOTA and "none left" in answer["text"]


def test_initialised_a_hundred_times() -> None:
    zygote = NoZygote(DeviceError(Error.QUOTA, "none left"))
    answers = trio.run(ask, [request(n, "initialised") for n in range(100)], zygote)
    assert [answer["error"] for answer in answers] == [Error.QUOTA] + [Error.BUSY] * 99


@pytest.mark.parametrize("device", [2, -1, 10**6, 1.0, True, None, "0", [], {}])
@pytest.mark.parametrize("do", ["hot_reset", "select_reset"])
def test_a_device_of_somebody_else(do: str, device: object) -> None:
    (answer,) = trio.run(ask, [request(1, do, device=device, method=1)], NoZygote(OSError()))
    assert answer["error"] == Error.BAD_REQUEST


def test_what_the_supervisor_does_not_do() -> None:
    (answer,) = trio.run(ask, [request(1, "open")], NoZygote(OSError()))
    assert answer["error"] == Error.NOT_IMPLEMENTED


async def flood(message: Callable[[int], dict[str, Any]], never: bool) -> str:
    """Why the line ended that was sent this message for ever."""
    ours, theirs = make_pair()
    line = Line(ours, "the worker")
    heard: list[dict[str, Any]] = []
    line.listeners["log"] = heard.append

    async def forever(message: dict[str, Any]) -> dict[str, Any]:
        await trio.sleep_forever()
        raise AssertionError

    line.handlers["hot_reset"] = forever
    theirs.setblocking(False)
    sock = trio.socket.from_stdlib_socket(theirs)
    with trio.fail_after(DEADLINE), sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            sent = 0
            while not line.gone.is_set():
                with trio.move_on_after(0.1):
                    await sock.send(json.dumps(message(sent)).encode())
                    sent += 1
    line.close()
    assert len(heard) <= 3 * Line.MOST_PER_SECOND
    return line.problem


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (lambda n: {"tell": "log", "level": "info", "event": "x", "fields": {}}, "a second that nobody asked for"),
        (lambda n: {"tell": "nothing"}, "a second that nobody asked for"),
        (lambda n: {"id": n, "ok": {}}, "a second that nobody asked for"),
        (lambda n: {"do": "hot_reset", "id": n}, "requests at once"),
        (lambda n: {"do": "nothing", "id": n}, "a second that nobody asked for"),
    ],
)
def test_a_flood_ends_the_line(message: Callable[[int], dict[str, Any]], why: str) -> None:
    problem = trio.run(flood, message, True)
    assert why in problem or "took no message" in problem


# -- answers ----------------------------------------------------------------------------------------------------


class Answering:
    """A worker whose line answers everything with the same."""

    def __init__(self, said: Any) -> None:
        self.line, self._said = self, said

    async def ask(self, *args: Any, **arguments: Any) -> tuple[Any, list[int]]:
        return self._said, []


counters = {"counters": {"requests": 1}, "refused": {"rule": 1}}
STATS: dict[str, Any] = {"state": "connected", "session": {"kicks": 1}, "devices": [counters, counters]}


@st.composite
def stats(draw: st.DrawFn) -> Any:
    message: Any = json.loads(json.dumps(STATS))
    place, key = message, draw(st.sampled_from(sorted(message)))
    while isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
        place = place[key]
        key = draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
    place[key] = draw(value)
    return message


@settings(max_examples=300, deadline=None)
@given(stats() | st.dictionaries(text, value, max_size=3))
def test_counters_are_whole_numbers_or_nothing(said: Any) -> None:
    session, _ = make_session(None)
    session.worker = Answering(said)  # type: ignore[assignment]
    found = trio.run(session.stats, 1.0)
    if found:
        assert found["state"].isascii()
        tables = [found["session"], found["refused"]]
        tables += [device[table] for device in found["devices"] for table in ("counters", "refused")]
        assert all(
            type(count) is int and 0 <= count < 1 << 64 for table in tables[:1] + tables[2:] for count in table.values()
        )


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.just("octets") | text, value | st.just("0" * 512), max_size=2))
def test_configuration_space_or_a_sentence(said: Any) -> None:
    session, _ = make_session(None)
    session.worker = Answering(said)  # type: ignore[assignment]
    try:
        octets = trio.run(session.dump, "edu0", False, 1.0)
    except DeviceError as problem:
        assert problem.code is Error.OP_FAILED
    else:
        assert bytes.fromhex(octets) and len(octets) in (512, 8192)


def test_an_error_that_is_success_is_none() -> None:
    """A refusal with the code of success would be taken for a session without descriptors."""
    from pcisplit.back.channel import result_of

    with pytest.raises(DeviceError) as raised:
        result_of({"id": 1, "error": 0, "text": "fine"})
    assert raised.value.code is Error.OP_FAILED

# SPDX-License-Identifier: MIT
"""``pcisplit decode``: any octets give an explanation, what is wrong is named with its clause, and what is right is not."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pcisplit import wire
from pcisplit.cli import main
from pcisplit.cli.decode import _KINDS
from pcisplit.proto.errors import RemoteProtocolError
from pcisplit.proto.explain import KINDS, explain, explain_all, octets_of
from pcisplit.proto.meeting import parse_hello_untrusted
from pcisplit.proto.slots import Request, Response, check_request_untrusted
from pcisplit.proto.states import Role, may_step
from pcisplit.proto.vectors import BOOT, HELLO, VECTORS, Vector, request
from pcisplit.wire import OPERATIONS, Error, Op, State

SPEC = Path(__file__).resolve().parent.parent / "spec"
CLAUSES = set(re.findall(r"\*\*\[([A-Z]+-\d+) ", "".join(path.read_text() for path in SPEC.glob("*.md"))))
WHOLE = [vector.octets for vector in VECTORS]

#: Octets near to sound ones: a vector with some of them changed, cut off or continued.
damaged = st.builds(
    lambda whole, at, new, end: (whole[: at % len(whole)] + new + whole[at % len(whole) + len(new) :])[: end or None],
    st.sampled_from(WHOLE),
    st.integers(0, 1 << 16),
    st.binary(max_size=12),
    st.integers(-20, 100),
)


def check_it_is_an_explanation(octets: bytes, kind: str) -> None:
    for each in explain_all(octets, kind, 3):
        assert each.kind in KINDS and each.says.isprintable()
        assert {problem.clause for problem in each.problems} <= CLAUSES
        for part in each.parts:
            for line in part.lines:
                assert line.value.isprintable() and line.meaning.isprintable()
        json.dumps(each.as_dict())


@given(st.binary(max_size=600), st.sampled_from(["", *KINDS]))
def test_any_octets_give_an_explanation(octets: bytes, kind: str) -> None:
    check_it_is_an_explanation(octets, kind)


@given(damaged, st.sampled_from(["", *KINDS]))
def test_damaged_octets_give_an_explanation(octets: bytes, kind: str) -> None:
    check_it_is_an_explanation(octets, kind)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_a_vector_is_right_or_wrong_as_it_says(vector: Vector) -> None:
    found = explain(vector.octets, vector.kind)
    assert bool(found.problems) is (vector.error is not None)
    for line in (line for part in found.parts for line in part.lines):
        assert vector.octets[line.at : line.at + len(line.octets)] == line.octets


@pytest.mark.parametrize("vector", [v for v in VECTORS if not v.error], ids=lambda vector: vector.name)
def test_what_it_is_is_found_out(vector: Vector) -> None:
    """All but three slots whose octets are those of a request, too."""
    found = explain(vector.octets)
    twofold = vector.name in ("response-nop", "event-aer", "event-late")
    assert found.kind == ("request" if twofold else vector.kind)
    assert found.guessed is (vector.kind in ("request", "response", "event"))


@given(
    st.builds(
        lambda op, tail: op.to_bytes(2, "little") + tail, st.sampled_from(Op), st.binary(min_size=62, max_size=62)
    )
)
def test_what_the_back_refuses_is_said_to_be_wrong(octets: bytes) -> None:
    verdict = check_request_untrusted(octets)
    if verdict is Error.BAD_REQUEST:
        assert explain(octets, "request").problems


@given(st.sampled_from([op for op in Op if OPERATIONS[op].built]), st.integers(0, 59), st.integers(0, 255))
def test_one_octet_changed_is_wrong_where_a_back_says_so(op: Op, at: int, octet: int) -> None:
    octets = bytearray(request(op).to_bytes())
    octets[at] = octet
    if check_request_untrusted(bytes(octets)) is not Error.SUCCESS and octets[:2] == request(op).to_bytes()[:2]:
        assert explain(bytes(octets), "request").problems


@given(damaged)
def test_a_hello_is_wrong_if_the_parser_refuses_it(octets: bytes) -> None:
    try:
        parse_hello_untrusted(octets)
    except RemoteProtocolError:
        assert explain(octets, "hello").problems
    else:
        assert not explain(octets, "hello").problems


@pytest.mark.parametrize(
    "octets, kind, clause, text",
    [
        (Request(Op.BAR_READ, 1, width=3).to_bytes(), "request", "BAR-1", "width 3"),
        (Request(Op.BAR_READ, 1, width=4, offset=2).to_bytes(), "request", "BAR-1", "not a multiple"),
        (Request(Op.CONF_READ, 1, width=8).to_bytes(), "request", "CFG-1", "width 8"),
        (Request(Op.BAR_READS, 1, width=4, count=11).to_bytes(), "request", "BAR-41", "count 11"),
        (Request(Op.BAR_READ_BLOCK, 1, width=4, length=6).to_bytes(), "request", "BAR-20", "length 6"),
        (b"\x20\0" + b"\1\0" + bytes(60), "response", "ERR-1", "error 1 is not of the table"),
        (b"\x21\0" + bytes(61) + b"\1" + b"", "request", "BAR-1", "width 0"),
        (bytes(10), "request", "RING-16", "64 octets long, not 10"),
    ],
)
def test_what_is_wrong_has_its_clause(octets: bytes, kind: str, clause: str, text: str) -> None:
    problems = explain(octets, kind).problems
    assert any(problem.clause == clause and text in problem.text for problem in problems), problems


def test_a_place_outside_of_its_region_is_named() -> None:
    ring = dataclasses.replace(BOOT.rings[1], offset=BOOT.regions[1].size)
    boot = dataclasses.replace(BOOT, rings=(BOOT.rings[0], ring, BOOT.rings[2]))
    (problem,) = explain(boot.to_bytes()).problems
    assert problem.clause == "BOOT-2" and "boot_ring" in problem.text and "b2f" in problem.text


def test_sequences_of_slots_are_followed() -> None:
    slots = b"".join(Request(Op.NOP, n, sequence=n + 1).to_bytes() for n in (7, 8, 10))
    found = explain_all(slots, "request", 7)
    assert [len(each.problems) for each in found] == [0, 0, 1]
    assert found[2].problems[0].clause == "RING-16" and "slot 9" in found[2].problems[0].text


def test_hex_has_comments_and_a_kind() -> None:
    text = (SPEC / "vectors" / "response-nop.gen.hex").read_text()
    assert octets_of(text)[1] == "response"
    assert octets_of("0x20, 00  # and so on\n00") == (bytes([32, 0, 0]), "")


# --- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_has_the_kinds_of_the_library() -> None:
    assert _KINDS == KINDS


def decode(*args: str, stdin: bytes = b"") -> tuple[int, str]:
    done = CliRunner().invoke(main, ["decode", *args], input=stdin)
    assert "Traceback" not in done.output
    return done.exit_code, done.output


def test_a_file_a_line_and_stdin_say_the_same(tmp_path: Path) -> None:
    file, octets = SPEC / "vectors" / "hello.gen.hex", HELLO.to_bytes()
    (tmp_path / "raw").write_bytes(octets)
    said = [
        decode("--file", str(file)),
        decode("--file", str(tmp_path / "raw")),
        decode(octets.hex(" ")),
        decode(*octets.hex(" ").split()),
        decode(stdin=octets),
        decode(stdin=file.read_bytes()),
    ]
    assert said == [said[0]] * 6
    assert (
        said[0][0] == 0 and "hello of driver 'edu' with 2 x device" in said[0][1] and "nothing is wrong" in said[0][1]
    )


def test_what_is_wrong_makes_it_fail() -> None:
    code, text = decode("--file", str(SPEC / "vectors" / "bad-boot-info-ring.gen.hex"))
    assert code == 1 and "[BOOT-2]" in text


def test_json_is_one_object_a_slot() -> None:
    slots = 2 * Request(Op.NOP, 1, sequence=1).to_bytes()
    code, text = decode("--json", "--kind", "request", "--index", "0", slots.hex())
    first, second = map(json.loads, text.splitlines())
    assert code == 1 and not first["problems"] and second["problems"][0]["clause"] == "RING-16"
    assert first["parts"][0]["fields"][0] == {
        "at": 0,
        "octets": "2000",
        "field": "op",
        "value": "32 (0x20)",
        "meaning": "nop",
    }


@pytest.mark.parametrize("args", [["zz"], ["20", "--file", __file__], []])
def test_what_are_no_octets_get_a_sentence(args: list[str]) -> None:
    code, text = decode(*args)
    assert code == 2 and "octets" in text


def test_a_hostile_text_reaches_no_terminal() -> None:
    hello = dataclasses.replace(HELLO, driver="\x1b[2J[bold]")
    code, text = decode(hello.to_bytes().hex())
    assert code == 0 and "\x1b[2J" not in text and "[bold]" in text


def test_it_needs_nothing_of_the_core() -> None:
    script = (
        "import sys; from pcisplit.cli import main; from pcisplit.proto import explain\n"
        "assert not [m for m in sys.modules if m.startswith(('pcisplit._core', 'pcisplit.back', 'trio', 'rich'))]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_record_is_explained() -> None:
    """Each field of a header has a line when it is not zero."""
    octets = wire.BACK_HEADER.build({"magic": wire.B2F_MAGIC, "state": 4, "requests": 12})
    found = explain(octets)
    assert found.kind == "back_header" and found.says == "back header, connected"
    assert {line.field for line in found.parts[0].lines} >= {"state", "req_cons", "requests"}


# --- the worked session ------------------------------------------------------------------------------------------------------

SESSION = (SPEC / "session.gen.md").read_text()


@pytest.mark.clause("ORD-1", "RING-16")
def test_the_worked_session_is_sound() -> None:
    """Every message of it, in its order: nothing is wrong, slots have the sequences of their places, answers their requests."""
    blocks = [octets_of(text) for text in re.findall(r"```\n(# message: .*?)```", SESSION, re.S)]
    found = [explain(octets, kind) for octets, kind in blocks]
    assert not [each.problems for each in found if each.problems]
    kinds = [kind for _, kind in blocks]
    assert kinds[:2] == ["hello", "reply"] and kinds.count("event") == 1
    for kind in ("request", "response", "event"):
        of_kind = [octets for octets, each in blocks if each == kind]
        assert not [each.problems for each in explain_all(b"".join(of_kind), kind, 0) if each.problems]
    asked = [Request.from_bytes_untrusted(octets) for octets, kind in blocks if kind == "request"]
    answered = [Response.from_bytes_untrusted(octets) for octets, kind in blocks if kind == "response"]
    assert [(a.op, a.id) for a in asked if not a.flags] == [(a.op, a.id) for a in answered]


@pytest.mark.clause("LIFE-1")
def test_the_states_of_the_worked_session_may_follow_each_other() -> None:
    own = {Role.FRONT: State.UNKNOWN, Role.BACK: State.INIT_WAIT}
    steps = re.findall(r"\| (f2b|b2f) \| \+0x4 \| `state` \| (\d+) \(", SESSION)
    assert len(steps) == 8
    for region, number in steps:
        role, peer = (Role.FRONT, Role.BACK) if region == "f2b" else (Role.BACK, Role.FRONT)
        assert may_step(role, own[role], own[peer], State(int(number)))
        own[role] = State(int(number))

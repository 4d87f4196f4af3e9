# SPDX-License-Identifier: MIT
"""The Wireshark dissector: it is Lua, and tshark reads with it every golden vector as the parsers do."""

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcisplit import wire
from pcisplit.gen.dissector import LINK_HEAD, LINK_KINDS, LINK_TYPE
from pcisplit.proto.explain import explain
from pcisplit.proto.vectors import VECTORS, Vector

LUA = Path(__file__).resolve().parent.parent / "spec" / "pcisplit.gen.lua"


def write_pcap(path: Path, vectors: list[Vector]) -> None:
    """A trace with one packet per vector, as the top of the dissector says."""
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, LINK_TYPE)
    for second, vector in enumerate(vectors):
        kind = LINK_KINDS.get(vector.kind, LINK_KINDS["message"])
        packet = bytes([kind]).ljust(LINK_HEAD, b"\0") + vector.octets
        data += struct.pack("<IIII", second, 0, len(packet), len(packet)) + packet
    path.write_bytes(data)


def layers(node: Any) -> dict[str, list[str]]:
    """Each ``pcisplit.`` field of a packet with its values, wherever it is in the tree."""
    found: dict[str, list[str]] = {}
    if isinstance(node, dict):
        for name, value in node.items():
            if name.startswith("pcisplit.") and isinstance(value, (str, list)):
                found.setdefault(name, []).extend([value] if isinstance(value, str) else map(str, value))
            if isinstance(value, (dict, list)):
                for inner, values in layers(value).items():
                    found.setdefault(inner, []).extend(values)
    elif isinstance(node, list):
        for each in node:
            for inner, values in layers(each).items():
                found.setdefault(inner, []).extend(values)
    return found


@pytest.mark.system
def test_it_is_lua(tool: Callable[[str], str]) -> None:
    done = subprocess.run([tool("luac5.4"), "-p", str(LUA)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.system
def test_tshark_reads_every_vector(tool: Callable[[str], str], tmp_path: Path) -> None:
    """Numbers of all fields are those of ``explain``; what has a reserved octet is marked, and nothing else is."""
    write_pcap(tmp_path / "trace.pcap", VECTORS)
    command = [
        tool("tshark"),
        "-X",
        f"lua_script:{LUA}",
        "-r",
        str(tmp_path / "trace.pcap"),
        "-T",
        "json",
        "--no-duplicate-keys",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Lua" not in done.stderr, done.stderr
    packets = json.loads(done.stdout)
    assert len(packets) == len(VECTORS)
    for vector, packet in zip(VECTORS, packets, strict=True):
        assert "Lua Error" not in str(packet), vector.name
        found = layers(packet["_source"]["layers"])
        if vector.name in ("bad-hello-magic", "bad-boot-info-magic", "bad-late-magic"):
            continue
        said = explain(vector.octets, vector.kind)
        for part in said.parts:
            record = wire.RECORDS.get(part.title)
            for line in part.lines if record else ():
                assert record is not None
                field = record.field(line.field)
                values = found.get(f"pcisplit.{part.title}.{line.field}", [])
                if field.role == "" and not field.count and len(line.octets) == field.size:
                    number = int.from_bytes(line.octets, "little", signed=field.code in "hi")
                    assert number in [int(value, 0) for value in values], (vector.name, line)
        assert ("must be zero" in str(packet)) is any(
            "must be zero" in problem.text and problem.text.startswith("octets") for problem in said.problems
        ), vector.name


@pytest.mark.system
def test_tshark_names_operations_and_errors(tool: Callable[[str], str], tmp_path: Path) -> None:
    names = ("request-bar-writes", "response-denied", "event-interrupt", "hello", "reply-refusal")
    write_pcap(tmp_path / "trace.pcap", [next(v for v in VECTORS if v.name == name) for name in names])
    command = [
        tool("tshark"),
        "-X",
        f"lua_script:{LUA}",
        "-r",
        str(tmp_path / "trace.pcap"),
        "-T",
        "fields",
        "-e",
        "_ws.col.Info",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [
        "request bar_writes",
        "response conf_write: denied",
        "event interrupt",
        "hello",
        "reply",
    ]

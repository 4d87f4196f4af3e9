# SPDX-License-Identifier: MIT
"""Who may import whom (DESIGN section 2), and the rules that a reader checks with grep."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pcisplit"
SANS_IO = ("wire", "states", "messages", "bootinfo", "errors", "pci", "vectors", "back/control_protocol")
NATIVE = {"ring/words.py", "front", "back/core/native.py", "back/host/dma.py"}
IO_MODULES = {"trio", "os", "socket", "mmap", "threading", "time", "select"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def starts(names: set[str], prefix: str) -> set[str]:
    return {name for name in names if name == prefix or name.startswith(prefix + ".")}


@pytest.mark.parametrize("name", SANS_IO)
def test_the_core_is_sans_io(name: str) -> None:
    names = imports(PACKAGE / f"{name}.py")
    for forbidden in IO_MODULES | {"pcisplit.ring", "pcisplit.front", "pcisplit.back", "pcisplit._core"}:
        assert not starts(names, forbidden), f"{name}.py imports {forbidden}"


@pytest.mark.parametrize("side, other", [("front", "back"), ("back", "front"), ("ring", "front"), ("ring", "back")])
def test_the_sides_do_not_know_each_other(side: str, other: str) -> None:
    for path in (PACKAGE / side).rglob("*.py"):
        assert not starts(imports(path), f"pcisplit.{other}"), f"{path.name} imports pcisplit.{other}"


def test_the_conformance_kit_knows_neither_side() -> None:
    for path in (PACKAGE / "conformance").rglob("*.py"):
        for side in ("front", "back", "_core"):
            assert not starts(imports(path), f"pcisplit.{side}"), f"{path.name} imports pcisplit.{side}"


def test_only_wire_knows_construct() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") if starts(imports(path), "construct")}
    assert users == {"wire.py"}


def test_raw_cdata_stays_near_the_core() -> None:
    users = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if starts(imports(path), "pcisplit._core")
    }
    strangers = {user for user in users if not any(user == n or user.startswith(n + "/") for n in NATIVE)}
    assert not strangers


def test_only_vfio_opens_dev_vfio() -> None:
    openers = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"open\([^)]*/dev/vfio", path.read_text())}
    assert openers <= {"function.py", "group.py"}


def test_the_core_is_importable_alone_and_the_front_without_trio() -> None:
    script = (
        "import sys, pcisplit.messages, pcisplit.bootinfo, pcisplit.states\n"
        "assert not [m for m in sys.modules if m.startswith(('pcisplit.ring', 'pcisplit._core', 'trio'))]\n"
        "import pcisplit.front\n"
        "assert 'trio' not in sys.modules and 'pcisplit.back' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_functions_that_take_peer_octets_are_named_untrusted() -> None:
    """Who parses a peer's octets says so in its name, so that a reviewer can find them all."""
    pattern = re.compile(r"\.RECORD|wire\.(HELLO|REPLY|BOOT_INFO|REQUEST|RESPONSE|EVENT)\b.*\.parse\(")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and pattern.search(ast.unparse(node)) and "parse" in ast.unparse(node):
                assert "untrusted" in node.name or node.name == "to_bytes", f"{path.name}: {node.name}"


def test_no_file_is_long() -> None:
    long = {
        path.name: len(path.read_text().splitlines())
        for pattern in ("*.py", "*.c", "*.h")
        for path in PACKAGE.rglob(pattern)
        if ".gen." not in path.name and path.name != "wire.py"
    }
    assert max(long.values()) <= 420, {name: lines for name, lines in long.items() if lines > 420}

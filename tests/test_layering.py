# SPDX-License-Identifier: MIT
"""Who may import whom (docs/architecture.md), in Python and in C, and the rules that a reader would check with grep."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pcisplit"
_PROTO = (
    "bootinfo",
    "errors",
    "explain",
    "layout",
    "meeting",
    "octets",
    "slot_faults",
    "slots",
    "states",
    "vectors",
    "words",
)
SANS_IO = (
    *(f"wire/{name}" for name in ("__init__", "limits", "numbers", "ops", "record", "records", "rules")),
    *(f"proto/{name}" for name in _PROTO),
    *("pci/__init__", "pci/bdf", "pci/capabilities", "pci/header", "back/control_protocol", "back/core/abi"),
)
NATIVE = {"ring/words.py", "front", "back/core/native.py"}
IO_MODULES = {"trio", "os", "socket", "mmap", "threading", "time", "select"}

#: The rooms of back/, and the modules between them, with what of back/ each may import. An arrow that is not here is none.
ROOMS: dict[str, set[str]] = {
    "supervisor": {"devices", "host", "channel", "control_protocol", "log", "teardown"},
    "worker": {"core", "devices", "host", "policy", "channel", "log", "teardown"},
    "keeper": {"devices", "channel", "log", "teardown"},
    "core": {"devices", "policy"},
    "policy": {"devices"},
    "devices": {"core", "log"},
    "host": {"devices", "channel"},
    "teardown": {"devices"},
    "log": {"channel", "patient"},
    "patient": set(),
    "channel": set(),
    "control_protocol": set(),
}
#: Of those arrows, the ones that one module alone may use, or that may lead to one module alone.
NARROW = {
    ("devices", "core"): ("devices/models/iommu.py", "pcisplit.back.core.native"),  # guarded copies of DMA memory
    ("core", "devices"): ("core/native.py", "pcisplit.back.devices.device"),
    ("policy", "devices"): ("policy/compile.py", "pcisplit.back.devices.device"),
}
#: What the zygote's process becomes: it imports them once, in a function, for all that it forks.
FORKED = ("supervisor/zygote.py", {"worker", "keeper"})

#: Files longer than they should be, and how long they may be until they are split.
LONG: dict[str, int] = {}


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
    """But for the front under test that is made of Python's frontend: what it drives is what is tested."""
    for path in (PACKAGE / "conformance").rglob("*.py"):
        under_test = path == PACKAGE / "conformance/front/python.py"
        for side in ("back", "_core") if under_test else ("front", "back", "_core"):
            assert not starts(imports(path), f"pcisplit.{side}"), f"{path.name} imports pcisplit.{side}"


def room_of(name: str) -> str:
    """``worker`` for ``pcisplit.back.worker.owner``; empty for what is not of back/."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["pcisplit", "back"] and len(parts) > 2 else ""


def back_imports() -> list[tuple[str, str, str]]:
    """(file relative to back/, its room, module) for each import of back/ by back/."""
    back, found = PACKAGE / "back", []
    for path in sorted(back.rglob("*.py")):
        file = path.relative_to(back).as_posix()
        room = file.partition("/")[0].removesuffix(".py")
        found += [(file, room, name) for name in imports(path) if room_of(name) not in ("", room)]
    return found


def test_every_room_of_the_back_is_in_the_table() -> None:
    back = PACKAGE / "back"
    rooms = {p.name for p in back.iterdir() if (p / "__init__.py").exists()} | {p.stem for p in back.glob("*.py")}
    assert rooms - {"__init__"} == set(ROOMS)


def test_rooms_of_the_back_import_along_the_arrows() -> None:
    wrong = [
        f"{file} imports {name}"
        for file, room, name in back_imports()
        if room_of(name) not in ROOMS[room] and not (file == FORKED[0] and room_of(name) in FORKED[1])
    ]
    assert not wrong


def test_narrow_arrows_are_used_by_who_may() -> None:
    wrong = [
        f"{file} imports {name}"
        for file, room, name in back_imports()
        if (narrow := NARROW.get((room, room_of(name))))
        and (file != narrow[0] or (not starts({name}, narrow[1]) and name != narrow[1].rpartition(".")[0]))
    ]
    assert not wrong


def test_a_folder_says_what_it_is() -> None:
    """One line each, so that a listing of back/ reads like the architecture."""
    for path in (PACKAGE / "back").rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(path.read_text()))
        assert said and "\n" not in said, path


def test_trio_is_the_supervisors() -> None:
    """Workers and keepers block, with deadlines; the front has trio only for who waits in a task of his own."""
    users = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if starts(imports(path), "trio")}
    assert {user for user in users if not user.startswith("back/supervisor/")} == {"front/irq.py", "cli/serve.py"}


@pytest.mark.parametrize("room", ["supervisor", "keeper", "host"])
def test_memory_of_a_session_is_not_mapped_here(room: str) -> None:
    """What maps no memory of a front cannot be hurt by it."""
    for path in (PACKAGE / "back" / room).rglob("*.py"):
        assert not starts(imports(path), "mmap"), path.name


@pytest.mark.parametrize("side, own", [("ring", {"ring"}), ("front", {"ring", "front"}), ("back", {"ring", "back"})])
def test_includes_of_c_point_the_same_way(side: str, own: set[str]) -> None:
    homes: dict[str, str] = {path.name: path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.h")}
    for path in [p for pattern in ("*.c", "*.h") for p in (PACKAGE / side).rglob(pattern)]:
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
            assert homes.get(Path(name).name) in own, f"{path.name} includes {name}"


def test_construct_is_gone() -> None:
    """The wire describes itself; what described it before is neither imported nor installed."""
    assert not [path.name for path in PACKAGE.rglob("*.py") if starts(imports(path), "construct")]
    assert "construct" not in (PACKAGE.parent / "pyproject.toml").read_text()


def test_the_wire_imports_nothing_of_ours() -> None:
    """Declarations, which a tool can read alone; and the PCI facts likewise."""
    for room in ("wire", "pci"):
        for path in (PACKAGE / room).rglob("*.py"):
            ours = {name for name in starts(imports(path), "pcisplit") if not starts({name}, f"pcisplit.{room}")}
            assert not ours, f"{room}/{path.name} imports {ours}"


def test_proto_imports_wire_and_pci_alone() -> None:
    for path in (PACKAGE / "proto").rglob("*.py"):
        ours = {name.split(".")[1] for name in starts(imports(path), "pcisplit") if "." in name}
        assert ours <= {"wire", "pci", "proto"}, f"proto/{path.name} imports {ours}"


def test_raw_cdata_stays_near_the_core() -> None:
    users = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if starts(imports(path), "pcisplit._core")
    }
    strangers = {user for user in users if not any(user == n or user.startswith(n + "/") for n in NATIVE)}
    assert not strangers


def test_only_the_group_opens_dev_vfio() -> None:
    openers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"open\([^)]*/dev/vfio", path.read_text())
    }
    assert openers == {"back/devices/vfio/group.py"}


def test_the_core_is_importable_alone_and_the_front_without_trio() -> None:
    script = (
        "import sys, pcisplit.proto.meeting, pcisplit.proto.slots, pcisplit.proto.bootinfo\n"
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
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines())
        for pattern in ("*.py", "*.c", "*.h")
        for path in PACKAGE.rglob(pattern)
        if ".gen." not in path.name
    }
    assert not {name: lines for name, lines in lengths.items() if lines > LONG.get(name, 400)}
    assert not {name for name in LONG if lengths.get(name, 0) <= 400}, "no exception any more"

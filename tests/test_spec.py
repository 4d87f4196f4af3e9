# SPDX-License-Identifier: MIT
"""The specification against tests and generated files: nothing stale, nothing unproved, no citation of what is not there."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_CLAUSE = re.compile(r"\*\*\[([A-Z]+-\d+) (front|back|both)(, planned)?\]\*\*")
_CITED = re.compile(r"\[((?:[A-Z]+-\d+(?:, | to )?)+)\]")
_ID = re.compile(r"[A-Z]+-\d+")
#: Decorators that name the clauses a test, a lab check or a conformance case proves.
_DECORATORS = {"clause", "case"}


def clauses() -> dict[str, bool]:
    """Every clause of the specification; True if it is planned."""
    found: dict[str, bool] = {}
    for chapter in sorted(set((ROOT / "spec").glob("*.md")) - {ROOT / "spec" / "README.md"}):  # which shows an example
        for ident, _, planned in _CLAUSE.findall(chapter.read_text()):
            assert ident not in found, f"{ident} stands twice"
            found[ident] = bool(planned)
    return found


def cited_by_tests() -> dict[str, set[str]]:
    """Clause ids and the test files that cite them in a decorator or in a list of clauses."""
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "pcisplit" / "conformance").glob("cases_*.py")]:
        for ident in _cited_in(ast.parse(path.read_text())):
            found.setdefault(ident, set()).add(path.name)
    return found


def _cited_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        strings: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            strings = node.args if name in _DECORATORS else []
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CLAUSES":
            strings = getattr(node.value, "elts", [])
        for part in strings:
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and _ID.fullmatch(part.value):
                yield part.value


def test_every_clause_that_is_built_is_proved() -> None:
    cited = cited_by_tests()
    unproved = sorted(ident for ident, planned in clauses().items() if not planned and ident not in cited)
    assert not unproved, f"clauses without a test: {', '.join(unproved)}"


def test_every_clause_that_is_cited_exists() -> None:
    known = clauses()
    strangers = {ident: sorted(files) for ident, files in cited_by_tests().items() if ident not in known}
    assert not strangers, f"tests cite clauses that do not exist: {strangers}"


def test_clauses_cited_in_code_and_prose_exist() -> None:
    known = set(clauses())
    sources = [
        p for pattern in ("*.py", "*.c", "*.h") for p in (ROOT / "pcisplit").rglob(pattern) if ".gen." not in p.name
    ]
    for path in [*sources, *(ROOT / "spec").glob("*.md")]:
        for group in _CITED.findall(path.read_text()):
            strangers = set(_ID.findall(group)) - known
            assert not strangers, f"{path.relative_to(ROOT)} cites {strangers}"


def test_generated_files_are_fresh() -> None:
    done = subprocess.run([sys.executable, "-m", "pcisplit.gen", "--check"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_a_swapped_field_makes_the_generated_files_stale(tmp_path: Path) -> None:
    """The staleness check can fail: two fields of REQUEST swapped in a copy of wire.py."""
    copy = tmp_path / "pcisplit"
    subprocess.run(["cp", "-r", str(ROOT / "pcisplit"), str(copy)], check=True)
    subprocess.run(["cp", "-r", str(ROOT / "spec"), str(tmp_path / "spec")], check=True)
    wire = copy / "wire.py"
    text = wire.read_text()
    first, second = re.findall(r'^    "(?:offset|value)" / Int64ul .*\n', text, re.M)[:2]
    wire.write_text(text.replace(first + second, second + first))
    assert wire.read_text() != text
    done = subprocess.run(
        [sys.executable, "-m", "pcisplit.gen", "--check"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "pcisplit_wire.gen.h" in done.stdout


@pytest.mark.system
@pytest.mark.parametrize("compiler, flags", [("gcc", ["-std=c11"]), ("g++", ["-std=c++17", "-x", "c++"])])
def test_headers_compile_alone(tool: Callable[[str], str], tmp_path: Path, compiler: str, flags: list[str]) -> None:
    """Each public C header is self-contained; as C++ the wire header, after a macro for its assertions."""
    names = ["ring/pcisplit_wire.gen.h"]
    if compiler == "gcc":
        names += [
            "ring/pcisplit_ring.h",
            "ring/pcisplit_mmio.h",
            "front/pcifront.h",
            "ring/guard.h",
            "back/core/serve.h",
        ]
    for name in names:
        source = tmp_path / "one.c"
        source.write_text(f'#define _Static_assert static_assert\n#include "{ROOT}/pcisplit/{name}"\n')
        if compiler == "gcc":
            source.write_text(f'#define _GNU_SOURCE\n#include "{ROOT}/pcisplit/{name}"\n')
        include = f"-I{ROOT}/pcisplit/ring"
        command = [tool(compiler), *flags, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", include, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.system
@pytest.mark.clause("VER-4", "VER-3")
def test_numbers_are_xens(tool: Callable[[str], str], tmp_path: Path) -> None:
    """Operations 0-10 and errors 0 to -5 against Xen's own public header."""
    from pcisplit.wire import Error, Op

    if not Path("/usr/include/xen/io/pciif.h").exists():
        pytest.skip("xen/io/pciif.h is not installed: apt-get install libxen-dev")
    names = {f"XEN_PCI_OP_{op.name.lower()}": int(op) for op in Op if op <= Op.ENABLE_MULTI_MSI}
    names |= {f"XEN_PCI_ERR_{error.name.lower()}": int(error) for error in Error if error >= Error.OP_FAILED}
    assert len(names) == 11 + 6
    asserts = [f'_Static_assert({name} == {value}, "{name}");' for name, value in names.items()]
    source = tmp_path / "xen.c"
    source.write_text("#include <stdint.h>\n#include <xen/io/pciif.h>\n" + "\n".join(asserts) + "\n")
    done = subprocess.run([tool("gcc"), "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

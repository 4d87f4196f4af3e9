# SPDX-License-Identifier: MIT
"""Generator: ``wire/`` and ``proto/`` become the C header, the tables of the specification, the vectors and the dissector.

``python -m pcisplit.gen`` writes the files, ``python -m pcisplit.gen --check`` exits 1 and names the stale ones.
Generated files are committed and named ``*.gen.*``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from pcisplit.gen import c_header, dissector, spec_tables, worked_session
from pcisplit.proto.vectors import VECTORS, Vector

PACKAGE = Path(__file__).resolve().parent.parent
SPEC = PACKAGE.parent / "spec"


def core_source() -> str:
    """The cffi module's C source, from _core.cdef.txt and _core.csrc.c."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "core.c"
        inputs = [str(PACKAGE / "_core.cdef.txt"), str(PACKAGE / "_core.csrc.c")]
        command = [sys.executable, "-m", "cffi.gen_src", "read-sources", "pcisplit._core", *inputs, str(target)]
        subprocess.run(command, check=True)
        return target.read_text()


def vector_text(vector: Vector) -> str:
    lines = [f"# {vector.text}", f"# message: {vector.kind}"]
    if vector.error is not None:
        lines.append(f"# error: {vector.error.name.lower()}")
    lines += [vector.octets[at : at + 16].hex(" ") for at in range(0, len(vector.octets), 16)]
    return "\n".join(lines) + "\n"


def outputs() -> dict[Path, str]:
    """Every generated file and its text."""
    files = {
        PACKAGE / "ring" / "pcisplit_wire.gen.h": c_header.wire_header(),
        PACKAGE / "back" / "core" / "pcs_abi.gen.h": c_header.abi_header(),
        PACKAGE / "_core.gen.c": core_source(),
        SPEC / "tables.gen.md": spec_tables.text(),
        SPEC / "pcisplit.gen.lua": dissector.text(),
        SPEC / "session.gen.md": worked_session.text(),
    }
    for vector in VECTORS:
        files[SPEC / "vectors" / f"{vector.name}.gen.hex"] = vector_text(vector)
    return files


def stale() -> list[Path]:
    """Generated files that differ from what would be written, or should not be there."""
    wanted = outputs()
    differ = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return differ + [path for path in sorted((SPEC / "vectors").glob("*")) if path not in wanted]


def main() -> int:
    old = stale()
    if "--check" in sys.argv[1:]:
        for path in old:
            print(f"stale: {path.relative_to(PACKAGE.parent)}; run `python -m pcisplit.gen`")
        return 1 if old else 0
    wanted = outputs()
    for path in old:
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
        else:
            path.unlink()
        print(f"{'wrote' if path in wanted else 'removed'} {path.relative_to(PACKAGE.parent)}")
    return 0

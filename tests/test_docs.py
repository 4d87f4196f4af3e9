# SPDX-License-Identifier: MIT
"""docs/ against the code: every place that a page names is there, and every number beside a constant is its value."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pcisplit"
PAGES = sorted((ROOT / "docs").glob("*.md"))
_PLACE = re.compile(r"`([\w/]+\.(?:py|c|h))(?::(\w+))?`(?: \(([\d.]+) s\))?")


def find(path: str) -> Path | None:
    """A file as pages name it: from the repository, from pcisplit/ or from pcisplit/back/."""
    places = (ROOT / path, PACKAGE / path, PACKAGE / "back" / path)
    return next((place for place in places if place.exists()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    named = _PLACE.findall(page.read_text())
    assert named
    for path, name, seconds in named:
        file = find(path)
        assert file is not None, f"{page.name} names {path}"
        text = file.read_text()
        if name:
            made = rf"^\s*(?:async )?(?:def|class) {name}\b|^\s*(?:self\.)?{name}\b.* = |^#define {name}\b"
            pattern = rf"{made}|^[\w*. ]*\b{name}\b *[({{{{]"
            assert re.search(pattern, text, re.M), f"{page.name} names {path}:{name}"
        if seconds:
            value = re.search(rf"^{name} = ([\d.]+)", text, re.M)
            assert value and float(value[1]) == float(seconds), f"{page.name}: {path}:{name} is not {seconds} s"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_clauses_that_a_page_cites_exist(page: Path) -> None:
    known = set(re.findall(r"\*\*\[([A-Z]+-\d+) ", "".join(p.read_text() for p in (ROOT / "spec").glob("*.md"))))
    cited = set(re.findall(r"\b(?:THR|MEET|BOOT|REG|RING|ORD|LIFE|CFG|BAR|DMA|IRQ|ERR|VER)-\d+\b", page.read_text()))
    assert cited <= known

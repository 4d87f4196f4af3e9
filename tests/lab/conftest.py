# SPDX-License-Identifier: MIT
"""The fixture that boots each group once, and the line that sums the boots up."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from .boot import Boot, boot
from .check import Group
from .kernel import missing

_BOOTS = pytest.StashKey[dict[str, Boot]]()


@pytest.fixture(scope="session")
def boot_of(request: pytest.FixtureRequest) -> Callable[[Group], Boot]:
    """Boots a group, or returns its earlier boot. Skips if the lab cannot run here; fails if PCISPLIT_REQUIRE_LAB=1."""
    if sentences := missing():
        reason = "no lab: " + "; ".join(sentences)
        if os.environ.get("PCISPLIT_REQUIRE_LAB") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    boots = request.config.stash.setdefault(_BOOTS, {})

    def boot_once(group: Group) -> Boot:
        if group.name not in boots:
            boots[group.name] = boot(group)
        return boots[group.name]

    return boot_once


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many checks reported from how many boots, and how long the boots took."""
    if boots := list(config.stash.get(_BOOTS, {}).values()):
        checks = sum(len(boot.results) for boot in boots)
        seconds = sum(boot.seconds for boot in boots)
        kernel = next((boot.kernel for boot in boots if boot.kernel), "unknown")
        ready = max(boot.ready for boot in boots)
        terminalreporter.line(
            f"lab: {checks} checks in {len(boots)} boots, {seconds:.0f} s, ready after {ready:.1f} s, kernel {kernel}"
        )

# SPDX-License-Identifier: MIT
"""Every check of every group, as a test: the first test of a group boots the guest, which runs the whole group."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .boot import Boot
from .check import Group, clauses, group_names, load_group

#: Seconds beside those of the guest: the first boot may make the kernel and its files.
_PREPARING = 300.0

CHECKS = [
    pytest.param(
        group,
        check.__name__,
        id=f"{group.name}-{check.__name__}",
        marks=[
            pytest.mark.timeout(group.timeout + _PREPARING),
            *([pytest.mark.clause(*clauses(check))] if clauses(check) else []),
        ],
    )
    for group in map(load_group, group_names())
    for check in group.checks
]


@pytest.mark.lab
@pytest.mark.parametrize(("group", "name"), CHECKS)
def test_check(group: Group, name: str, boot_of: Callable[[Group], Boot]) -> None:
    """The guest reported that the check passed."""
    result = boot_of(group).result(name)
    print(result.output, end="")
    if result.outcome == "skipped":
        pytest.skip(result.error)
    if result.outcome == "failed":
        pytest.fail(result.error, pytrace=False)

# SPDX-License-Identifier: MIT
"""CONTRIBUTING.md: its model is a model, and what it names exists."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from pcisplit.wire import VectorType
from tests.device_contract import check_device

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def example() -> dict[str, Any]:
    """The names that the example's module defines."""
    code = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)[0]
    names: dict[str, Any] = {"__name__": "counter"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    return names


def test_the_example_is_a_device(example: dict[str, Any]) -> None:
    check_device(lambda: example["CounterModel"]({}))


def test_the_example_counts_and_interrupts(example: dict[str, Any]) -> None:
    device = example["CounterModel"]({"limit": "10"}).acquire()
    eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        device.irq_set(VectorType.MSI, 0, [eventfd])
        device.bar_write(0, 0, 4, 9)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(eventfd)
        device.bar_write(0, 0, 4, 1)
        assert os.eventfd_read(eventfd) == 1
        assert device.bar_read(0, 0, 4) == 10
        device.reset()
        assert device.bar_read(0, 0, 4) == 0
    finally:
        device.close()
        os.close(eventfd)


def test_what_it_names_exists() -> None:
    """Makefile targets, and paths of the tree (but for the module that is the example)."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", TEXT)) <= targets
    paths = set(re.findall(r"`((?:pcisplit|tests|tools|spec)/[\w./-]*)`", TEXT))
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing == {"pcisplit/back/devices/models/counter.py"}

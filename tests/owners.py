# SPDX-License-Identifier: MIT
"""What tests of owners share: the device as the front has it, waiting, answers in the order they came."""

import os
import time
from collections.abc import Callable

from pcisplit import pci
from pcisplit.front.device import RemoteDevice
from pcisplit.proto.slots import Request, Response
from tests.pair import Pair

DEADLINE = 20.0


def device_of(pair: Pair, index: int = 0) -> RemoteDevice:
    """Device `index` as the front has it, with decode and bus master on."""
    remote = pair.front.acquire(f"dev{index}")
    remote.config.write16(pci.COMMAND, pci.COMMAND_MEM | pci.COMMAND_MASTER)
    return remote


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        os.sched_yield()


def answers_to(pair: Pair, requests: list[Request]) -> list[Response]:
    """All answers, in the order they came."""
    pair.front._handle.submit(requests)
    answers: list[Response] = []
    while len(answers) < len(requests):
        answers += pair.front._handle.poll_or_wait()
    return answers

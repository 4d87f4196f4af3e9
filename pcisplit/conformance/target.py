# SPDX-License-Identifier: MIT
"""The backend under test: its socket, its devices, and what each can show.

The protocol does not say what a device's registers do, so what a case needs of a device is a *trait*, and some traits
come from knowing the register model behind the ids:

any       every device
reset     the boot-info block says that it can be reset; ``no-reset`` that it cannot
msi       it has an interrupt vector; ``trigger``: a register that raises it is known
memory    a BAR with 1 MiB of plain memory (1af4:10ff)
scratch   a register that a reset clears (1af4:10ff)
edu       QEMU's edu register model (1234:11e8)
io        an I/O BAR
msix      an MSI-X capability
dma       the backend gives DMA memory
root      this process may change its uid
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from pcisplit import pci, wire
from pcisplit.conformance.case import DEADLINE, Case, NotRun, expect
from pcisplit.conformance.meeting import Want, hello
from pcisplit.conformance.peer import Peer, Refused
from pcisplit.proto.errors import error_name
from pcisplit.wire import BarFlag, DeviceFlag, Error, Op

MEM = pci.COMMAND_MEM
MASTER = pci.COMMAND_MASTER
ALL_ON = pci.COMMAND_IO | MEM | MASTER
#: Address bits of edu's DMA engine.
EDU_DMA_BITS = 28
DMA_SIZE = 2 << 20


class Place(NamedTuple):
    """A register: BAR and offset."""

    bar: int
    offset: int


class Model(NamedTuple):
    """What is known of a device's registers from its ids."""

    traits: frozenset[str] = frozenset()
    trigger: Place | None = None  #: a write of 1, 4 octets wide, raises vector 0
    scratch: Place | None = None  #: 4 octets that keep a value, and that a reset clears


MODELS = {
    (0x1234, 0x11E8): Model(frozenset({"edu"}), trigger=Place(0, 0x60)),
    (0x1AF4, 0x10FF): Model(frozenset({"memory"}), trigger=Place(2, 8), scratch=Place(2, 0)),
}


class Offered(NamedTuple):
    """A device of the backend, as a first meeting showed it."""

    name: str
    traits: frozenset[str]
    vectors: int
    model: Model


class Target:
    """A socket and the devices behind it; ``device`` is the one that the running case shall use."""

    def __init__(self, path: str, names: list[str] | None = None, *, wait: float = 0) -> None:
        """Meet each device once. A backend that does not listen yet is waited for `wait` seconds; then OSError."""
        self.path = path
        self._patience = time.monotonic() + wait
        self.traits = frozenset({"root"} if os.geteuid() == 0 else ())
        self.devices = [self._probe(name) for name in names or self._names()]
        self.device = self.devices[0]
        self._turn = 0
        self._patience = 0.0

    def fit(self, case: Case) -> None:
        """Choose a device for `case`, each fitting one in turn. Raises NotRun with what is missing."""
        missing = case.needs - self.traits
        fitting = [device for device in self.devices if missing <= device.traits]
        if not fitting:
            raise NotRun(f"no device here has: {', '.join(sorted(missing))}")
        if len(self.devices) < case.devices:
            raise NotRun(f"needs {case.devices} devices, this backend has {len(self.devices)}")
        self._turn += 1
        self.device = fitting[self._turn % len(fitting)]

    def others(self) -> list[Offered]:
        """The devices that the case was not given."""
        return [device for device in self.devices if device is not self.device]

    def dial(self) -> Peer:
        """A connection on which nothing was said yet. A socket that is not there, or that nobody listens at, may be one of a
        backend that is just starting, until it was met once.
        """
        while True:
            try:
                return Peer(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() >= self._patience:
                    raise
                time.sleep(0.005)

    def want(self, device: Offered | None = None) -> Want:
        """The device record that asks for `device` (or the case's own) with its vectors."""
        chosen = device or self.device
        return Want(chosen.name.encode(), chosen.vectors)

    def meet(self, *wants: Want | bytes, everything: bool = False, **fields: Any) -> Peer:
        """A session that has met and is not connected. The teardown of a session whose front died is waited for."""
        octets = hello(**fields) if everything else hello(*(wants or (self.want(),)), **fields)
        deadline = time.monotonic() + DEADLINE
        while True:
            peer = self.dial()
            try:
                return peer.meet(octets)
            except Refused as refusal:
                peer.close()
                if refusal.error not in (Error.DEVICE_TAKEN, Error.TOO_MANY_SESSIONS) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            except BaseException:
                peer.close()
                raise

    @contextlib.contextmanager
    def session(self, *wants: Want | bytes, command: int = ALL_ON, **fields: Any) -> Iterator[Peer]:
        """A connected session on the case's device (or `wants`), with `command` in the COMMAND register of each."""
        with self.meet(*wants, **fields) as peer:
            peer.connect()
            for index in range(len(peer.info.devices)):
                if command:
                    peer.conf_write(pci.COMMAND, 2, command, index)
            yield peer

    def dma_session(self) -> contextlib.AbstractContextManager[Peer]:
        """A connected session with DMA memory that edu can reach."""
        return self.session(dma_bytes=DMA_SIZE, dma_bits=EDU_DMA_BITS)

    def refuses(self, octets: bytes, error: Error, what: str) -> None:
        """`octets` said on a new connection are refused with `error`."""
        self.refuses_on(self.dial(), octets, error, what)

    def refuses_on(self, connection: Peer, octets: bytes, error: Error, what: str) -> None:
        """A refusal has a sentence and no descriptor, and is the last that is heard [MEET-9, MEET-15]."""
        with connection as peer:
            with contextlib.suppress(BrokenPipeError):  # it may refuse before it has read
                peer.say(octets)
            reply = peer.hear()
            expect(reply.error == error, f"{error_name(error)} for {what}", error_name(reply.error))
            expect(len(reply.text.split()) > 1, f"a sentence with the refusal of {what}", repr(reply.text))
            expect(
                not peer.fds and not reply.boot_info, f"no session with the refusal of {what}", f"{len(peer.fds)} fds"
            )
            expect(peer.hung_up(DEADLINE), f"the connection closed after the refusal of {what}", "an open connection")

    @property
    def trigger(self) -> Place:
        """The register that raises vector 0 of the case's device."""
        assert self.device.model.trigger is not None
        return self.device.model.trigger

    @property
    def scratch(self) -> Place:
        """The register of the case's device that a reset clears."""
        assert self.device.model.scratch is not None
        return self.device.model.scratch

    def check_alive(self) -> None:
        """A fresh session on the case's device works."""
        with self.session(command=0) as peer:
            peer.nop()
            peer.part()

    def _names(self) -> list[str]:
        """The devices that a hello without any asks for [MEET-18]."""
        with self.meet(everything=True) as peer:
            return [device.name for device in peer.info.devices]

    def _probe(self, name: str) -> Offered:
        """Meet once and look."""
        with self.session(Want(name.encode(), wire.AS_MANY), command=0) as peer:
            device = peer.info.devices[0]
            slots = [peer.slot(Op.CONF_READ, offset=at, width=4) for at in range(0, pci.CONFIG_SIZE, 4)]
            config = b"".join((answer.value & 0xFFFFFFFF).to_bytes(4, "little") for answer in peer.ask_all(slots))
            peer.part()
        model = MODELS.get((device.vendor, device.device_id), Model())
        traits = {"any", "reset" if device.flags & DeviceFlag.RESETTABLE else "no-reset", *model.traits}
        traits |= {"io" for bar in device.bars if bar.flags & BarFlag.IO}
        traits |= {"msix"} if pci.find_capability(config, pci.CAP_MSIX) else set()
        traits |= {"msi"} if device.vectors else set()
        traits |= {"trigger"} if device.vectors and model.trigger else set()
        traits |= {"scratch"} if model.scratch else set()
        if "dma" not in self.traits and self._gives_dma(name):
            self.traits |= {"dma"}
        return Offered(name, frozenset(traits), device.vectors, model)

    def _gives_dma(self, name: str) -> bool:
        try:
            with self.meet(Want(name.encode()), dma_bytes=wire.PAGE_SIZE):
                return True
        except Refused:
            return False

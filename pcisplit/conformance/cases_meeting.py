# SPDX-License-Identifier: MIT
"""Cases of ``spec/meeting.md``: the socket, the hello, the reply."""

import contextlib
import os
import select
import socket
import stat
import time

from pcisplit import wire
from pcisplit.conformance.case import DEADLINE, NotRun, case, expect
from pcisplit.conformance.meeting import Want, hello
from pcisplit.conformance.peer import Peer
from pcisplit.conformance.target import Target
from pcisplit.conformance.watch import until
from pcisplit.proto.errors import error_name
from pcisplit.wire import Error, State

TIMEOUT = wire.HELLO_TIMEOUT_MS / 1000
CONNECTIONS = 16


def answered(target: Target) -> int:
    """What a hello for the case's device is answered with now."""
    with target.dial() as peer:
        with contextlib.suppress(BrokenPipeError):
            peer.say(hello(target.want()))
        return peer.hear().error


@case("MEET-1")
def case_socket_directory(target: Target) -> None:
    """The socket's directory is closed to others."""
    mode = stat.S_IMODE(os.stat(os.path.dirname(os.path.abspath(target.path))).st_mode)
    expect(not mode & 0o027, "a directory of mode 0750 or stricter", f"{mode:04o}")


@case("MEET-8", "MEET-11")
def case_session(target: Target) -> None:
    """A hello for one device gets a session: boot-info, descriptors, the back in InitWait."""
    with target.meet() as peer:
        expect(0 < len(peer.fds) <= wire.MAX_FDS, f"1 to {wire.MAX_FDS} descriptors", str(len(peer.fds)))
        expect(
            [d.name for d in peer.info.devices] == [target.device.name], "the device asked for", str(peer.info.devices)
        )
        expect(
            peer.back("state") == State.INIT_WAIT, "the back in InitWait with the reply", f"state {peer.back('state')}"
        )
        expect(peer.back("devices") == 1, "one device in the back header", str(peer.back("devices")))
        expect(peer.back("session") == peer.info.session, "one session number", f"{peer.back('session')} in the header")


@case("MEET-3")
def case_no_hello(target: Target) -> None:
    """A connection that says nothing is refused with timeout after a second, and closed."""
    with target.dial() as peer:
        begin = time.monotonic()
        error = peer.hear(TIMEOUT + 2).error
        waited = time.monotonic() - begin
        expect(error == Error.TIMEOUT, "timeout", error_name(error))
        expect(waited > TIMEOUT * 0.9, "a full second to say hello", f"the refusal after {waited:.2f} s")
        expect(peer.hung_up(DEADLINE), "the connection closed", "an open one")


@case("MEET-3")
def case_slow_hello(target: Target) -> None:
    """A hello that comes within the second is served."""
    with target.dial() as peer:
        peer.quiet(TIMEOUT / 2)
        peer.meet(hello(target.want()))


@case("MEET-3", "MEET-15")
def case_late_hello(target: Target) -> None:
    """A hello after the second gets no session."""
    with target.dial() as peer:
        error = peer.hear(TIMEOUT + 2).error
        expect(error == Error.TIMEOUT, "timeout", error_name(error))
        with contextlib.suppress(OSError):  # it has closed, or is about to
            peer.say(hello(target.want()))
        expect(peer.hung_up(DEADLINE), "the connection closed, whatever is said then", "an open one")


def free(target: Target) -> int:
    """How many devices a hello for all of them gets: those of a session that has just died are on their way."""
    with target.meet(everything=True) as peer:
        count = len(peer.info.devices)
        peer.connect().part()
        expect(peer.hung_up(DEADLINE), "the socket closed by the back", "an open one")
    return count


@case("MEET-18", "BOOT-5", "MEET-7")
def case_hello_for_all(target: Target) -> None:
    """A hello without devices asks for all that are free, with every vector they have; none free is device_taken."""
    until(lambda: free(target) >= min(len(target.devices), wire.MAX_DEVICES), "every device free")
    with target.meet(everything=True) as peer:
        offered = {device.name: device.vectors for device in target.devices}
        came = {device.name: device.vectors for device in peer.info.devices}
        expect(all(offered.get(name, n) == n for name, n in came.items()), f"the vectors of {offered}", str(came))
        expect([device.index for device in peer.info.devices] == list(range(len(came))), "indices from 0", str(came))
        if len(came) < wire.MAX_DEVICES:
            target.refuses(hello(), Error.DEVICE_TAKEN, "all devices while none is free")


@case("MEET-18", devices=2)
def case_hello_for_the_rest(target: Target) -> None:
    """A device that is taken is not among those that are free."""
    with target.session() as first, target.meet(everything=True) as second:
        names = {device.name for device in second.info.devices}
        expect(target.device.name not in names and bool(names), f"others than {target.device.name}", str(names))
        first.nop()


@case("MEET-17")
def case_all_vectors(target: Target) -> None:
    """0xffff vectors are as many as the device has."""
    with target.meet(target.want()._replace(msi=wire.AS_MANY)) as peer:
        came = peer.info.devices[0].vectors
        expect(came == target.device.vectors, f"{target.device.vectors} vectors", str(came))


@case("MEET-19", needs="dma")
def case_dma_rounded(target: Target) -> None:
    """DMA memory comes in whole pages and one window, and all ones ask for all there is."""
    for asked in (1, wire.PAGE_SIZE, wire.PAGE_SIZE + 1, wire.DMA_ALL):
        with target.meet(dma_bytes=asked) as peer:
            sizes = [window.size for window in peer.info.windows]
            expect(len(sizes) == 1, "one window", str(sizes))
            wanted = -(-asked // wire.PAGE_SIZE) * wire.PAGE_SIZE if asked != wire.DMA_ALL else sizes[0]
            expect(sizes[0] == wanted, f"{wanted:#x} octets for {asked:#x}", f"{sizes[0]:#x}")


@case("MEET-7", "MEET-9")
def case_unknown_device(target: Target) -> None:
    """A name that is not served is refused as such."""
    target.refuses(hello(Want(b"nosuchdevice")), Error.UNKNOWN_DEVICE, "an unknown name")
    target.refuses(hello(Want(b"z" * wire.NAME_MAX)), Error.UNKNOWN_DEVICE, "an unknown name of 67 letters")


@case("MEET-7", "MEET-15")
def case_device_taken(target: Target) -> None:
    """A second session on a device is refused, harms nobody, and is served when the first has closed."""
    with target.session() as peer:
        target.refuses(hello(target.want()), Error.DEVICE_TAKEN, "a device in use")
        peer.nop()
        peer.part()
    target.check_alive()


@case("MEET-8", "MEET-15")
def case_all_or_nothing(target: Target) -> None:
    """A hello of which one device is not to be had gets nothing and holds nothing."""
    own = target.want()
    target.refuses(hello(own, Want(b"nosuchdevice")), Error.UNKNOWN_DEVICE, "a known and an unknown name")
    with target.dial() as peer:
        peer.meet(hello(own))  # at once: the refusal above holds nothing of the device


@case("MEET-8", "BOOT-5", devices=wire.MAX_DEVICES)
def case_sixteen_devices(target: Target) -> None:
    """One session can have 16 devices with their vectors, numbered as the hello asked."""
    chosen = target.devices[wire.MAX_DEVICES - 1 :: -1]
    with target.session(*(target.want(device) for device in chosen)) as peer:
        expect(
            [d.name for d in peer.info.devices] == [d.name for d in chosen],
            "the order of the hello",
            str(peer.info.devices),
        )
        for index in range(len(chosen)):
            peer.nop(index)


@case("MEET-17")
def case_too_many_vectors(target: Target) -> None:
    """More vectors than the device has are refused."""
    target.refuses(hello(target.want()._replace(msi=0xFFFE)), Error.TOO_MANY_VECTORS, "65534 vectors")
    target.refuses(
        hello(target.want()._replace(msi=wire.MAX_VECTORS + 1)),
        Error.TOO_MANY_VECTORS,
        f"{wire.MAX_VECTORS + 1} vectors",
    )


@case("MEET-16", needs="dma")
def case_dma_too_large(target: Target) -> None:
    """More DMA memory than the back was given is refused."""
    for size in (1 << 50, 1 << 63, (1 << 64) - 4096, (1 << 64) - 2):
        target.refuses(hello(target.want(), dma_bytes=size), Error.DMA_TOO_LARGE, f"{size:#x} octets of DMA memory")


@case("MEET-16", "DMA-2", needs="dma")
def case_dma_unreachable(target: Target) -> None:
    """A driver whose addresses end where no window can lie is refused: the first is at 2 MiB."""
    for bits in (12, 20, 21):
        octets = hello(target.want(), dma_bytes=wire.PAGE_SIZE, dma_bits=bits)
        target.refuses(octets, Error.DMA_UNREACHABLE, f"{bits} address bits")


@case("MEET-12")
def case_descriptors_with_hello(target: Target) -> None:
    """Descriptors sent with the hello are not received: nobody holds them, and the hello is served."""
    read, write = os.pipe()
    try:
        with target.dial() as peer:
            try:
                peer.say(hello(target.want()), [write] * 200)
            finally:
                os.close(write)
            error = peer.hear().error
            expect(not error, "a session as if none had come", error_name(error))
            expect(
                bool(select.select([read], [], [], DEADLINE)[0]), "a descriptor that nobody holds", "it is still held"
            )
    finally:
        os.close(read)


@case("MEET-13", "LIFE-5")
def case_second_message(target: Target) -> None:
    """Anything said after the hello ends the session."""
    for octets in (b"x", hello(target.want()), bytes(wire.HELLO_MAX)):
        with target.session() as peer:
            peer.say(octets)
            peer.ended(Error.BAD_REQUEST, by=f"a message of {len(octets)} octets")


@case("MEET-13", "LIFE-4")
def case_half_closed(target: Target) -> None:
    """A socket shut down for writing is a front that has gone."""
    with target.session() as peer:
        peer.sock.shutdown(socket.SHUT_WR)
        expect(peer.hung_up(DEADLINE), "the end of the session", "nothing")
    target.check_alive()


@case("MEET-14", "MEET-21", "MEET-3", "THR-3")
def case_too_many_connections(target: Target) -> None:
    """Sixteen connections of one uid, in a session or before one, and not one more until one has gone."""
    with contextlib.ExitStack() as held:
        peer = held.enter_context(target.session())
        silent = [held.enter_context(target.dial()) for _ in range(CONNECTIONS - 1)]
        target.refuses(hello(target.want()), Error.TOO_MANY_SESSIONS, "the 17th connection")
        peer.nop()
        silent.pop().close()
        until(lambda: answered(target) == Error.DEVICE_TAKEN, "room for a connection when one has gone")
        expect(all(one.hear(TIMEOUT + 2).error == Error.TIMEOUT for one in silent), "timeout for the silent", "another")
        peer.nop()


@case("MEET-10", "MEET-21", needs="root")
def case_nobody(target: Target) -> None:
    """uid 65534 is refused, if it comes as far as the socket."""
    os.seteuid(65534)
    try:
        peer = target.dial()
    except PermissionError:
        raise NotRun("uid 65534 cannot reach the socket") from None
    finally:
        os.seteuid(0)
    target.refuses_on(peer, hello(target.want()), Error.ACCESS_DENIED, "uid 65534")


@case("THR-3", "MEET-14")
def case_crowd(target: Target) -> None:
    """Five hundred connections that say nothing are all ended, and harm no session."""
    with target.session() as peer, contextlib.ExitStack() as held:
        crowd: list[Peer] = []
        with contextlib.suppress(BlockingIOError):  # the queue of the listener may be full: also an answer
            for _ in range(500):
                crowd.append(held.enter_context(target.dial()))
                peer.nop()
        for one in crowd:
            error = one.hear(TIMEOUT + 2).error
            expect(error in (Error.TIMEOUT, Error.TOO_MANY_SESSIONS), "timeout or too_many_sessions", error_name(error))
        peer.nop()

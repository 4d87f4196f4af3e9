# SPDX-License-Identifier: MIT
"""The supervisor's side of the other processes: ask, be asked, hear news, kill, know that one has ended."""

import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
import trio

from pcisplit.back.channel import (
    FDS_MAX,
    MESSAGE_MAX,
    ChannelClosed,
    ChannelError,
    Message,
    answer,
    close_all,
    failure,
    make_pair,
    pack,
    received_fds,
    request,
    result_of,
    rights,
    unpack_untrusted,
)
from pcisplit.back.log import Allowance, escape
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

_log = structlog.get_logger("pcisplit")

#: What a handler or listener raises over a message whose fields are not what they should be.
_NO_MESSAGE = (
    *(ChannelError, KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(OverflowError, RecursionError),  # int() of 1e999; str() of what is nested deeper than json.loads minds
)

#: Answers one request of the other process. Raises DeviceError with what it is told.
Handler = Callable[[Message], Awaitable[dict[str, Any]]]
#: Hears one piece of news of the other process.
Listener = Callable[[Message], None]


class Line:
    """Our end of the channel to one process. ``run`` reads it; the other side may lie, stall, flood and die.

    With `ours` it is of a process that no front can take over: how much it says depends on what fronts do, and is no offence.
    """

    SEND_SECONDS = 2.0
    MOST_REQUESTS = 32  #: being answered at once: 16 devices' owners ask for one thing each, and the session
    MOST_PER_SECOND = 200  #: messages that nobody asked for; a worker's log lines are fewer

    def __init__(self, end: socket.socket, name: str, ours: bool = False) -> None:
        end.setblocking(False)
        self._ours = ours
        self._end = trio.socket.from_stdlib_socket(end)
        self.name = name
        self.handlers: dict[str, Handler] = {}
        self.listeners: dict[str, Listener] = {}
        self.gone = trio.Event()
        self.problem = ""  #: why it ended, if the other side broke the rules
        self._waiting: dict[int, trio.MemorySendChannel[tuple[Message, list[int]]]] = {}
        self._last = 0
        self._sending = trio.Lock()
        self._answering = 0
        self._unasked = Allowance(self.MOST_PER_SECOND)

    async def ask(
        self, do: str, seconds: float, fds: Sequence[int] = (), **arguments: Any
    ) -> tuple[dict[str, Any], list[int]]:
        """Ask and wait for the answer: what it says, and descriptors that are the caller's to close.

        Raises DeviceError: the other side's own, TIMEOUT after `seconds`, GONE when it has ended, QUOTA when the kernel had
        something against this message (descriptors in flight, memory).
        """
        if self.gone.is_set():  # nobody would read the answer
            raise DeviceError(Error.GONE, f"{self.name} ended{self._because()} before it was asked to {do}")
        self._last += 1
        ident = self._last
        send, receive = trio.open_memory_channel[tuple[Message, list[int]]](1)
        self._waiting[ident] = send
        try:
            with trio.fail_after(seconds):
                await self._send(request(ident, do, **arguments), fds)
                message, brought = await receive.receive()
        except trio.TooSlowError:
            raise DeviceError(Error.TIMEOUT, f"{self.name} did not {do} within {seconds:g} s") from None
        except (trio.EndOfChannel, ChannelClosed):
            raise DeviceError(Error.GONE, f"{self.name} ended{self._because()} when asked to {do}") from None
        except OSError as problem:
            raise DeviceError(Error.QUOTA, f"{self.name} cannot be asked to {do}: {problem.strerror}") from None
        finally:
            self._waiting.pop(ident, None)
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                close_all(receive.receive_nowait()[1])
            receive.close()
        try:
            return result_of(message), brought
        except DeviceError:
            close_all(brought)
            raise

    def _because(self) -> str:
        return f" ({self.problem})" if self.problem else ""

    async def tell(self, what: str, **arguments: Any) -> None:
        """News for the other side. Nothing happens if it is gone."""
        with contextlib.suppress(ChannelClosed, OSError):
            await self._send({"tell": what, **arguments})

    async def _send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Raises ChannelClosed; OSError for what is against this message and not against the channel."""
        data = pack(message)
        async with self._sending:
            try:
                with trio.fail_after(self.SEND_SECONDS):
                    await self._end.sendmsg([data], rights(fds))
            except trio.TooSlowError:
                if self._ours:  # it is busy
                    raise OSError(errno.EAGAIN, f"it takes no message for {self.SEND_SECONDS:g} s") from None
                self._break(f"took no message for {self.SEND_SECONDS:g} s")
                raise ChannelClosed(self.name) from None
            except trio.ClosedResourceError:
                raise ChannelClosed(self.name) from None
            except OSError as problem:
                if problem.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF):
                    raise
                self._break("")
                raise ChannelClosed(self.name) from None

    async def run(self) -> None:
        """Read until the other side is gone or says what is no message. ``gone`` is set then."""
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    data, ancillary, _, _ = await self._end.recvmsg(
                        MESSAGE_MAX + 1, socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC
                    )
                    fds = received_fds(ancillary)
                    if not data:
                        close_all(fds)
                        break
                    self._take_untrusted(nursery, data, fds)
            except ChannelError as problem:
                self._break(f"broke the rules of its channel: {problem}")
            except (OSError, trio.ClosedResourceError):
                pass
            finally:
                self._break("")
            nursery.cancel_scope.cancel()

    def _take_untrusted(self, nursery: trio.Nursery, data: bytes, fds: list[int]) -> None:
        try:
            message = unpack_untrusted(data)
        except ChannelError:
            close_all(fds)
            raise
        try:
            if "ok" in message or "error" in message:
                waiting = self._waiting.pop(message["id"], None)
                if waiting is not None:
                    waiting.send_nowait((message, fds))
                    return
            close_all(fds)  # late, or never asked for; and only answers bring any
            if not self._ours and not self._unasked.take()[0]:
                raise ChannelError(f"more than {self.MOST_PER_SECOND} messages a second that nobody asked for")
            if "tell" in message:
                if (listener := self.listeners.get(message["tell"])) is not None:
                    listener(message)
            elif "do" in message:
                if self._answering == self.MOST_REQUESTS:
                    raise ChannelError(f"more than {self.MOST_REQUESTS} requests at once")
                self._answering += 1
                nursery.start_soon(self._answer, message)
        except _NO_MESSAGE as problem:
            raise ChannelError(escape(str(problem), 240)) from None

    async def _answer(self, message: Message) -> None:
        try:
            reply = await self._reply(message)
        finally:
            self._answering -= 1
        with contextlib.suppress(ChannelClosed, OSError):
            await self._send(reply)

    async def _reply(self, message: Message) -> Message:
        handler = self.handlers.get(message["do"])
        try:
            if handler is None:
                raise DeviceError(Error.NOT_IMPLEMENTED, "the supervisor does nothing of that name")
            return answer(message["id"], **await handler(message))
        except DeviceError as problem:
            return failure(message["id"], problem.code, str(problem))
        except OSError as problem:  # we ran out of something, which fronts can cause
            return failure(message["id"], Error.QUOTA, str(problem))
        except _NO_MESSAGE as problem:
            return failure(message["id"], Error.BAD_REQUEST, repr(problem))

    def _break(self, why: str) -> None:
        if why and not self.problem:
            self.problem = why
        for waiting in self._waiting.values():
            waiting.close()
        self._waiting.clear()
        self.gone.set()

    def close(self) -> None:
        self._end.close()
        self._break("")


class Process:
    """One process that the zygote forked for us."""

    def __init__(self, line: Line, pid: int, pidfd: int) -> None:
        self.line, self.pid, self.pidfd = line, pid, pidfd
        self.status: int | None = None  #: as of waitpid, when the zygote has told us
        self.reaped = trio.Event()  #: it has

    def reap(self, status: int) -> None:
        self.status = status
        self.reaped.set()

    @property
    def ended(self) -> bool:
        """Whether it is dead, as the kernel says; also when it was forgotten."""
        if self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> None:
        if self.pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    async def wait_ended(self, seconds: float) -> bool:
        """Whether it is dead within so many seconds. One in uninterruptible sleep is not, even after SIGKILL."""
        with trio.move_on_after(seconds):
            while not self.ended:
                await trio.lowlevel.wait_readable(self.pidfd)
        return self.ended

    def fate(self) -> str:
        """What became of it, if anything did."""
        if self.line.problem:
            return self.line.problem
        if not self.ended:
            return ""
        return "died" if self.status is None else f"died: {describe_status(self.status)}"

    def forget(self) -> None:
        """Let go of it; whether it is dead is no longer our business."""
        self.line.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Zygote:
    """Asks the zygote for processes. ``run`` must be at work; when it returns no process can be had any more."""

    FORK_SECONDS = 5.0

    def __init__(self, end: socket.socket) -> None:
        self.line = Line(end, "the zygote", ours=True)
        self.line.listeners["exited"] = self._exited
        self._living: dict[int, Process] = {}
        self._forking = 0
        self._early: dict[int, int] = {}  # of those that ended before the task that asked for them ran on

    def _exited(self, message: Message) -> None:
        if (process := self._living.pop(message["pid"], None)) is not None:
            process.reap(message["status"])
        elif self._forking:
            self._early[message["pid"]] = message["status"]

    async def fork(self, nursery: trio.Nursery, kind: str, name: str) -> Process:
        """A new process of `kind`; its line is read in `nursery`. Raises DeviceError, OSError (no descriptor left)."""
        ours, theirs = make_pair()
        pidfds: list[int] = []
        self._forking += 1
        try:
            with theirs:
                said, pidfds = await self.line.ask("fork", self.FORK_SECONDS, [theirs.fileno()], kind=kind)
            if len(pidfds) != 1:  # the kernel drops what does not fit into our table
                raise DeviceError(Error.QUOTA, f"no descriptor is left for {name}")
            process = Process(Line(ours, name, ours=kind != "worker"), said["pid"], pidfds[0])
            if (status := self._early.pop(process.pid, None)) is not None:
                process.reap(status)
            else:
                self._living[process.pid] = process
        except BaseException:
            close_all(pidfds)
            ours.close()
            raise
        finally:
            self._forking -= 1
            if not self._forking:
                self._early.clear()
        nursery.start_soon(process.line.run)
        return process


async def first_of(*events: trio.Event) -> None:
    """Wait until one of them is set."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)


def describe_status(status: int) -> str:
    """A status of waitpid, in words."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.WEXITSTATUS(status)}"

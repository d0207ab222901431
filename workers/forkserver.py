"""A warm process that job processes are forked from: torch is imported once, a job starts in milliseconds.

Run as `python -m workers.forkserver FD ENTRY MODULE…`; FD is one end of a socket pair, the other is the supervisor's
(workers/warm.py). ENTRY is the module whose `run(order, reports)` does a job, and whose `warm_up()` returns what keeps
it from doing so, if anything. One thread, no CUDA, no database.

Why not multiprocessing's: this one tells how a child ended and how much memory it had, puts each child into a session
of its own, and takes the children with it when the supervisor dies.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LENGTH = struct.Struct("!I")


class Server:
    """Forks on demand, reaps, and kills on demand."""

    def __init__(self, channel: socket.socket, entry: str) -> None:
        self._channel = channel
        self._entry = entry
        self._children: set[int] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only the wake-up counts

    def serve(self) -> None:
        """Serve until the supervisor is gone, then end with all children."""
        while True:
            ready = self._wait()
            self._reap()
            if self._channel.fileno() in ready and not self._answer():
                break
        for pid in self._children:
            _kill_group(pid)

    def _wait(self) -> list[int]:
        """Return the descriptors that can be read, once there is one; a child that ended wakes us too."""
        ready, _, _ = select.select([self._channel.fileno(), self._wake_read], [], [])
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        return ready

    def _answer(self) -> bool:
        """Do what one message asks for; False when the supervisor is gone."""
        message, descriptors = receive(self._channel)
        if message is None:
            return False
        if "kill" in message:
            if message["kill"] in self._children:
                _kill_group(message["kill"])
            return True
        try:
            if _is_heard(descriptors[0]):
                self._fork(message, descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, message: dict[str, object], reports: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._become_child(parent)
                limit = message["memory_limit_bytes"]
                if isinstance(limit, int):
                    _limit_memory(limit)
                importlib.import_module(self._entry).run(Path(str(message["order"])), reports)
                status = 0
            except BaseException:  # noqa: BLE001 (the last line of a process: whatever it is goes to the log)
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        self._children.add(pid)
        self._send({"started": message["ticket"], "pid": pid})

    def _become_child(self, parent: int) -> None:
        os.setsid()
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._channel.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        with contextlib.suppress(OSError):  # if memory runs out, this process goes before its supervisor
            Path("/proc/self/oom_score_adj").write_text("500")

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._children.discard(pid)
            ended = {"ended": pid, "exit_code": os.waitstatus_to_exitcode(status)}
            self._send({**ended, "max_rss_bytes": usage.ru_maxrss * 1024})

    def _send(self, message: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone; the next read says so
            send(self._channel, message)


def send(channel: socket.socket, message: dict[str, object], descriptors: tuple[int, ...] = ()) -> None:
    """Send one message, with file descriptors."""
    data = json.dumps(message).encode()
    framed = LENGTH.pack(len(data)) + data
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = channel.sendmsg([framed], ancillary)
    if sent < len(framed):
        channel.sendall(framed[sent:])


def receive(channel: socket.socket) -> tuple[dict[str, object] | None, list[int]]:
    """Receive one message and its file descriptors; None when the other end is gone."""
    try:
        head, descriptors, _, _ = socket.recv_fds(channel, LENGTH.size, 1)
    except ConnectionResetError:
        return None, []
    data = head
    while data and len(data) < LENGTH.size:
        data += channel.recv(LENGTH.size - len(data))
    if not data:
        return None, []
    (length,) = LENGTH.unpack(data)
    body = b""
    while len(body) < length:
        part = channel.recv(length - len(body))
        if not part:
            return None, []
        body += part
    message: dict[str, object] = json.loads(body)
    return message, descriptors


def _is_heard(reports: int) -> bool:
    """Tell whether anybody reads a pipe still: a job stopped while this process warmed up is not begun."""
    poll = select.poll()
    poll.register(reports, 0)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, however it dies (Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _limit_memory(limit_bytes: int) -> None:
    """Limit private memory (heap and anonymous mappings); mapped files do not count."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # it may not have made its session yet
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Import what jobs need, then serve."""
    descriptor, entry, *modules = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the supervisor decides
    # Not bound to its parent as its own children are: the kernel means the parent's thread, which may end long before.
    # When the supervisor dies, the channel says so.
    channel = socket.socket(fileno=int(descriptor))
    gc.disable()  # what is imported stays; to look through it for garbage takes time here, and memory in every child
    for module in (entry, *modules):
        importlib.import_module(module)
    problem = importlib.import_module(entry).warm_up()
    if problem is not None:
        sys.exit(f"{problem}")
    gc.freeze()
    gc.enable()
    send(channel, {"warm": True})
    Server(channel, entry).serve()


if __name__ == "__main__":
    main()

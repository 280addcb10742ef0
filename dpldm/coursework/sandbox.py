"""A process that runs a stranger's notebook: what it may see, use and say, and who watches it.

Two walls. Namespaces of Linux (`walls.py`) take away the network, other processes and all files but the libraries,
read-only. Limits on memory, processes, time and output hold everywhere; where namespaces can't be had, only these.
The watch is kept in the same loop that waits for an answer, so there is no thread that could fall behind.
"""

import contextlib
import json
import os
import resource
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import psutil

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent
NAMESPACES = ("--user", "--map-root-user", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
WATCH_SECONDS = 0.1


class Stopped(Exception):
    """The process had to be ended, or ended itself: it has to be started again. The text says why."""


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    cell_seconds: wall time of one cell, or of one call
    all_seconds: wall time of the whole submission, restarts included
    resident_bytes: memory of all its processes
    address_bytes: address space of one process; PyTorch alone asks for 3.4 GB and uses a fifth of it
    processes: at one time, the sandbox's own included
    file_bytes: size of one file
    scratch_bytes: size of its scratch folder
    answer_bytes: size of one answer
    """

    cell_seconds: float = 20.0
    all_seconds: float = 180.0
    resident_bytes: int = 2 << 30
    address_bytes: int = 8 << 30
    processes: int = 32
    file_bytes: int = 32 << 20
    scratch_bytes: int = 64 << 20
    answer_bytes: int = 16 << 20


SCRATCH = "/tmp/scratch"  # in the root that the walls build, which is not this machine's


def _visible() -> list[str]:
    """The files of Python, of its packages and of this library, but neither masters nor checks nor data."""
    prefixes = (sys.base_prefix, sys.prefix)  # either may be a link, which needs what it points to
    return sorted({*prefixes, *map(os.path.realpath, prefixes), str(PACKAGE)})


def _command(walls: bool, root: str) -> list[str]:
    worker = [sys.executable, "-P", str(HERE / "worker.py")]
    if not walls:
        return worker
    asked = {"root": root, "visible": _visible(), "scratch": SCRATCH, "scratch_bytes": Limits.scratch_bytes}
    first = [sys.executable, "-P", str(HERE / "walls.py"), json.dumps({**asked, "command": worker})]
    return ["unshare", *NAMESPACES, "--", *first]


@cache
def why_no_walls() -> str:
    """The reason why namespaces can't be had on this machine; empty where they can."""
    missing = [name for name in ("unshare", "setpriv") if not shutil.which(name)]
    if missing:
        return f"no program {missing[0]} (Linux, package util-linux)"
    sandbox = Sandbox(walls=True)
    try:
        sandbox.ask({"run": "", "where": "a first cell"}, seconds=30)
        return ""
    except Stopped:
        return sandbox.last_words() or "the namespaces could not be made"
    finally:
        sandbox.close()


def protections(walls: bool) -> str:
    """What holds, in words, for the screen and the table of grades."""
    limits = "limits of time, memory, processes, file size and output"
    if walls:
        return f"no network, own processes, only libraries visible and read-only, scratch folder in memory; {limits}"
    return f"WITHOUT a sandbox, only {limits}"


class Sandbox:
    """One process with a worker in it. Use as a context, or `close` it."""

    def __init__(self, walls: bool, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._folder = tempfile.mkdtemp(prefix="dpldm-")
        self._errors = open(Path(self._folder, "errors"), "w+b")  # noqa: SIM115 - open as long as the process
        root, scratch = Path(self._folder, "root"), Path(self._folder, "scratch")
        root.mkdir()
        scratch.mkdir()
        self._process = subprocess.Popen(
            _command(walls, str(root)),
            cwd=scratch,
            env=self._environment(SCRATCH if walls else str(scratch)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            preexec_fn=self._set_limits,
            bufsize=0,
        )
        self._commands, self._replies = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        for pipe in (self._commands, self._replies):
            os.set_blocking(pipe.fileno(), False)
        self._heard = bytearray()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def ask(self, command: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send a command of `worker.py` and wait for its reply.

        Raises:
            Stopped: the process took too long or too much, ended, or said something else than a reply. It is gone then.
        """
        ticket = secrets.token_hex(8)  # a reply written in advance does not know it
        line = json.dumps({"ticket": ticket, **command}).encode() + b"\n"
        try:
            said = self._exchange(line, time.monotonic() + (seconds or self.limits.cell_seconds))
            try:
                reply = json.loads(said)
            except (ValueError, RecursionError):
                raise Stopped("it answered something that is no answer") from None
            if not isinstance(reply, dict) or reply.get("ticket") != ticket:
                raise Stopped("it answered what was not asked")
            return reply
        except Stopped:
            self._kill()
            raise

    def last_words(self) -> str:
        """The last line on standard error from before the worker started, such as what `unshare` says."""
        self._errors.seek(0)
        lines = self._errors.read(10_000).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """End all its processes and remove its scratch folder."""
        self._kill()
        for pipe in (self._commands, self._replies, self._errors):
            pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        """Write and read without ever waiting for the other side to read or write; watch meanwhile."""
        commands, replies = self._commands.fileno(), self._replies.fileno()
        with selectors.DefaultSelector() as waiting:
            waiting.register(replies, selectors.EVENT_READ)
            waiting.register(commands, selectors.EVENT_WRITE)
            watched = time.monotonic()
            while b"\n" not in self._heard:
                for key, _ in waiting.select(WATCH_SECONDS):
                    if key.fd == replies:
                        self._hear()
                    else:
                        line = self._say(line)
                        if not line:
                            waiting.unregister(commands)
                if time.monotonic() - watched > WATCH_SECONDS:
                    self._watch(deadline)
                    watched = time.monotonic()
        said, _, rest = bytes(self._heard).partition(b"\n")
        self._heard = bytearray(rest)
        return said

    def _say(self, line: bytes) -> bytes:
        try:
            return line[os.write(self._commands.fileno(), line) :]
        except BlockingIOError:
            return line
        except BrokenPipeError:
            raise Stopped("its process ended") from None

    def _hear(self) -> None:
        part = os.read(self._replies.fileno(), 1 << 16)
        if not part:
            raise Stopped("its process ended")
        self._heard += part
        if len(self._heard) > self.limits.answer_bytes:
            raise Stopped(f"its answer was longer than {self.limits.answer_bytes >> 20} MB")

    def _watch(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise Stopped("it took too long")
        processes = self._processes()
        if len(processes) > self.limits.processes:
            raise Stopped(f"it started more than {self.limits.processes} processes")
        if sum(map(_resident, processes)) > self.limits.resident_bytes:
            raise Stopped(f"it used more than {self.limits.resident_bytes >> 30} GB of memory")

    def _processes(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.Error:
            return []

    def _kill(self) -> None:
        for process in reversed(self._processes()):  # in a process namespace, the first one takes all with it
            try:
                process.kill()
            except psutil.Error:
                continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _environment(self, scratch: str) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        return threads | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "HOME": scratch,
            "TMPDIR": scratch,
            "MPLBACKEND": "agg",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(PACKAGE.parent),
            "LANG": "C.UTF-8",
        }

    def _set_limits(self) -> None:
        os.nice(5)  # the watch goes first
        seconds = int(self.limits.all_seconds)
        for kind, value in (
            (resource.RLIMIT_AS, self.limits.address_bytes),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_FSIZE, self.limits.file_bytes),
            (resource.RLIMIT_CORE, 0),
        ):
            try:
                resource.setrlimit(kind, (value, value))
            except (ValueError, OSError):
                continue  # macOS refuses some; the watch has time and memory


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0

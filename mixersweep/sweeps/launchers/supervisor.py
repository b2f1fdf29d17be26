"""The supervisor process, which starts runs on request and waits for them (``python -m ... SWEEP [--warm]``).

A line of JSON on stdin starts a pack of runs, often a single one (``pack``, ``cores``, ``environment``), or sends a
signal to all (``signal``). A line on stdout reports that a pack began (``pack``, ``pid``) or ended (``pack``, ``code``,
negative for a signal). A pack's output goes to the log of its first run; the logs of the others refer to it. When stdin
ends, as it does when the launching process dies, the runs are asked to stop and waited for. If the supervisor itself is
killed, the operating system sends them SIGTERM.

With ``--warm``, the supervisor imports torch once and forks for each pack, which saves the seconds of that import. It
computes nothing itself, so a fork is as good as a new process: it has its own pid, threads, signals and CUDA context.
Otherwise each pack is a new ``python -m mixersweep train run_dir=DIR ...``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import runpy
import selectors
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from mixersweep.sweeps.launchers import LOG
from mixersweep.title import process_title

_PR_SET_PDEATHSIG = 1
_DEFAULT_IN_RUNS = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_STOP_SIGNALS = (signal.SIGINT, *_DEFAULT_IN_RUNS)


def main() -> int:
    """Serve requests until stdin has ended and all runs have too."""
    sweep, warm = sys.argv[1], "--warm" in sys.argv[2:] and sys.platform == "linux"
    output = os.dup(1)
    os.dup2(2, 1)  # so that stray prints go to stderr, not into the protocol
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # only the launching process decides about stopping
    if warm:
        import mixersweep.training.trainer  # noqa: F401

        gc.collect()
        gc.freeze()  # forks share these memory pages until one writes to them
    with process_title(f"supervisor of {sweep}"):
        Server(output, warm).serve()
    return 0


class Server:
    """The packs that are running, and the two pipes to the launching process."""

    def __init__(self, output: int, warm: bool) -> None:
        self._output = output
        self._warm = warm
        self._running: dict[int, list[str]] = {}
        self._unread = b""
        self._wakeup_read, self._wakeup_write = os.pipe()
        for descriptor in (self._wakeup_read, self._wakeup_write):
            os.set_blocking(descriptor, False)
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def serve(self) -> None:
        """Start packs, pass signals on and report ends, until stdin has ended and no pack is running."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._wakeup_read, selectors.EVENT_READ)
            is_open = True
            while is_open or self._running:
                ready = [key.fd for key, _ in selector.select()]
                if self._wakeup_read in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup_read, 4096)
                if 0 in ready:
                    received = os.read(0, 65536)
                    is_open = bool(received)
                    if not is_open:
                        selector.unregister(0)
                        self._signal(signal.SIGTERM)
                    self._handle_requests(received)
                self._reap()

    def _handle_requests(self, received: bytes) -> None:
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "signal" in message:
                self._signal(message["signal"])
            else:
                self._start(message)

    def _signal(self, number: int) -> None:
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _start(self, message: dict[str, Any]) -> None:
        parent = os.getpid()
        # Otherwise the fork would ignore a signal that is sent to it at once.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._run_child(message, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._running[pid] = message["pack"]
        self._send({"pack": message["pack"], "pid": pid})

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self._send({"pack": self._running.pop(pid), "code": code})

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._output, json.dumps(message).encode() + b"\n")

    def _run_child(self, message: dict[str, Any], parent: int) -> NoReturn:
        """Train the pack in this forked process, and exit with its code."""
        code = 1
        try:
            self._set_up_child(message, parent)
            arguments = ["train", *(f"run_dir={run_dir}" for run_dir in message["pack"])]
            if not self._warm:
                os.execv(sys.executable, [sys.executable, "-m", "mixersweep", *arguments])
            sys.argv = ["mixersweep", *arguments]
            runpy.run_module("mixersweep", run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _set_up_child(self, message: dict[str, Any], parent: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_DEFAULT_IN_RUNS):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Stop signals stay pending until the trainer unblocks them. All others are unblocked: Ray's workers block some.
        signal.pthread_sigmask(signal.SIG_SETMASK, _STOP_SIGNALS)
        if self._libc is not None:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)
        for descriptor in (self._output, self._wakeup_read, self._wakeup_write):
            os.close(descriptor)
        first, *others = (Path(run_dir, LOG) for run_dir in message["pack"])
        for other in others:
            with other.open("a") as log_of_other:
                log_of_other.write(f"trained in one process with {first.parent.name}: see {first}\n")
        with first.open("ab") as log, Path(os.devnull).open("rb") as null:
            os.dup2(null.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ.update(message["environment"])
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, message["cores"])


if __name__ == "__main__":
    sys.exit(main())

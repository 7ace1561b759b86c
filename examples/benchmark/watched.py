"""A command run as a process of its own and watched: time, memory, and how it ended.

Processor seconds and peak memory are what the kernel says of the process when it has ended
(``wait4``).  The kernel counts the memory of the process that started it as its first, so whoever
calls this must stay small: no PyTorch in it.  While it runs its memory is looked at five times a
second, to end it at a limit and to tell the part that is its own from mapped files.  Linux only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.2  # seconds from look to look
TAIL = 400  # characters of what a failed command said last
PAGE = os.sysconf("SC_PAGE_SIZE")
DONE = "done"


@dataclass(frozen=True)
class Ran:
    """What became of a command.  Figures of one that did not end by itself are those until then."""

    outcome: str  # done, failed, killed (by the limit on memory) or timed out
    code: int  # exit code, negative for a signal
    cpu: float  # seconds, user and system
    wall: float  # seconds
    peak: int  # bytes of the largest process, mapped files included
    peak_own: int  # bytes of all its processes together, as seen; without mapped files
    said: str  # the end of stderr, if it is not done

    @property
    def done(self) -> bool:
        return self.outcome == DONE


@dataclass(frozen=True)
class Limits:
    """When to end a command; None: never."""

    memory: int | None = None  # bytes, all its processes together
    seconds: float | None = None


def run(
    command: Sequence[object],
    *,
    folder: Path,
    name: str,
    environment: Mapping[str, str],
    limits: Limits,
) -> Ran:
    """Runs ``command`` in ``folder``; its streams become ``name.out`` and ``name.err`` there."""
    if not Path("/proc/self/statm").exists():
        raise SystemExit("memory is read from /proc: this needs Linux")
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        begin = time.perf_counter()
        child = subprocess.Popen(
            [str(a) for a in command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        watch = Watch(child.pid, limits)
        try:
            _, status, usage = os.wait4(child.pid, 0)
            wall = time.perf_counter() - begin
        except BaseException:
            _end(child.pid)
            child.wait()
            raise
        finally:
            watch.stop()
    child.returncode = code = os.waitstatus_to_exitcode(status)
    outcome = watch.ended or (DONE if code == 0 else "failed")
    return Ran(
        outcome=outcome,
        code=code,
        cpu=usage.ru_utime + usage.ru_stime,
        wall=wall,
        peak=usage.ru_maxrss * 1024,
        peak_own=watch.peak_own,
        said="" if outcome == DONE else err.read_text(errors="replace")[-TAIL:].strip(),
    )


class Watch:
    """A thread that looks at a process and its children, and ends them at a limit."""

    def __init__(self, pid: int, limits: Limits) -> None:
        self.pid, self.limits = pid, limits
        self.ended: str | None = None  # why, if it was ended
        self.peak_own = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        begin = time.perf_counter()
        while True:
            total, own = memory_of(self.pid)
            self.peak_own = max(self.peak_own, own)
            limit, seconds = self.limits.memory, self.limits.seconds
            if limit is not None and total > limit:
                self.ended = "killed"
            elif seconds is not None and time.perf_counter() - begin > seconds:
                self.ended = "timed out"
            if self.ended:
                _end(self.pid)
                return
            if self._over.wait(INTERVAL):
                return


def memory_of(session: int) -> tuple[int, int]:
    """Bytes that the processes of a session hold now: all, and all but mapped files."""
    total = own = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # it may have ended meanwhile
                # after the name, which may hold anything: state, parent, group, session
                if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                    _, resident, shared, *_ = map(int, (folder / "statm").read_text().split())
                    total += resident * PAGE
                    own += (resident - shared) * PAGE
    return total, own


def _end(session: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)

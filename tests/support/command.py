"""Running the real command and looking at all it leaves behind."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-m", "pnc_cli"]
_COLOURS = {"GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "NO_COLOR", "PNC_TRACEBACK"}
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in _COLOURS}
ENVIRONMENT.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny, and the machine may be busy


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def pnc(*args, cwd, env=(), stdin=b"", preexec=None):
    """Runs ``python -m pnc_cli ARGS`` in the folder ``cwd``."""
    ran = subprocess.run(
        [*COMMAND, *map(str, args)],
        cwd=cwd,
        env={**ENVIRONMENT, **dict(env)},
        input=stdin,
        capture_output=True,
        preexec_fn=preexec,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


_WATCHED = """
import os, subprocess, sys

child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss)
"""


def pnc_peak(*args, cwd):
    """Runs the command and returns its peak memory in bytes.

    The kernel counts the memory of the process that starts another as the other's first, so a small
    one starts it.
    """
    ran = subprocess.run(
        [sys.executable, "-c", _WATCHED, *COMMAND, *map(str, args)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    code, kilobytes = map(int, ran.stdout.split())
    assert code == 0, ran.stderr
    return kilobytes * 1024


_MEASURED = """
import os, subprocess, sys

out, err, *command = sys.argv[1:]
child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=open(out, "w"), stderr=open(err, "w"))
_, status, used = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss)
"""


def pnc_within(seconds, *args, cwd):
    """Runs the command, which is killed after so many ``seconds``; what came of it, and its peak memory
    in bytes (as :func:`pnc_peak`)."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, "out"), Path(folder, "err")]
        ran = subprocess.run(
            [sys.executable, "-c", _MEASURED, *map(str, streams), "timeout", "-s", "KILL"]
            + [str(seconds), *COMMAND, *map(str, args)],
            cwd=cwd,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        code, kilobytes = map(int, ran.stdout.split())
        return Ran(code, *(s.read_text("utf-8") for s in streams)), kilobytes * 1024


def pnc_forked(*args, cwd):
    """The same from ``main()`` on, in a process forked off one that has imported torch already.

    That spares each command its seconds of importing; streams and exit code are real.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pnc_cli.evaluation", "pnc_cli.branch.make", "torchvision"])
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, "out"), Path(folder, "err")]
        process = context.Process(target=_main, args=([str(a) for a in args], str(cwd), streams))
        process.start()
        process.join()
        return Ran(process.exitcode, *(s.read_text("utf-8") for s in streams))


def clone_forked(made, *more, cwd):
    """``pnc clone`` of the classes that ``made`` is about, into ``c.safetensors``."""
    files = (made.source, made.target, "--data", made.train)
    return pnc_forked("clone", *files, "-o", "c.safetensors", *more, cwd=cwd)


def _main(argv, cwd, streams):
    os.chdir(cwd)
    for fd, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
    sys.argv = ["pnc", *argv]
    import torch

    from pnc_cli.cli import main

    torch.set_num_threads(1)

    main()


def give_up_root():
    """For ``preexec``: root loses its right to ignore the modes of files and folders."""
    if os.geteuid() == 0:
        import ctypes

        drop, override, read_search = 24, 1, 2  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, _READ_SEARCH
        for capability in (override, read_search):
            ctypes.CDLL(None).prctl(drop, capability, 0, 0, 0)

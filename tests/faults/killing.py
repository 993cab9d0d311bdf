"""A process of ours that dies by SIGKILL at a named point of what it does: before or after one of
its own functions."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.processes import ROOT, server_environment

# Waits for a point a line; for each a child of its own dies there. It has no connection itself, so
# that none is shared. imports: lines; places: a dict of point → (where, name, before or after);
# work: the call that dies midway.
_PROCESS: Final = """
import os, signal, sys
import django; django.setup()
{imports}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(act):
    def doomed(*args, **kwargs):
        die()
    return doomed

def after(act):
    def doomed(*args, **kwargs):
        act(*args, **kwargs)
        die()
    return doomed

PLACES = {places}
print("ready", flush=True)
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        place, name, when = PLACES[line.strip()]
        setattr(place, name, when(getattr(place, name)))
        {work}
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Doomed:
    process: "subprocess.Popen[str]"

    def killed_at(self, point: str) -> None:
        """Have a child do the work until it is killed there; nothing else may have ended it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{point}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == str(-signal.SIGKILL)


@contextmanager
def doomed(*, imports: str, places: str, work: str) -> Iterator[Doomed]:
    code = _PROCESS.format(imports=imports, places=places, work=work)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **server_environment()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield Doomed(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

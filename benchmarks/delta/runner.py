"""Run programs from a small process of its own, and tell what each took.

A child begins with the memory of the process that starts it as its peak: started from here, with gigabytes
of data, every program would seem to need gigabytes. `Runner` is this side; run as a script, this file is the
other.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Used:
    """What a program took."""

    cpu_s: float
    peak_bytes: int


class Runner:
    """Starts programs one after the other, and adds up their processor time."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.worker = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> Used:
        """Run a program to its end.

        Raises:
            RuntimeError: It failed.
        """
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        print(json.dumps([list(command), dict(environment)]), file=self.worker.stdin, flush=True)
        code, cpu_s, peak_bytes = json.loads(self.worker.stdout.readline())
        if code:
            raise RuntimeError(f"{command[0]} gave {code}: {' '.join(command)}")
        self.cpu_s += cpu_s
        return Used(cpu_s, peak_bytes)


@cache
def runner() -> Runner:
    """The one runner of this process."""
    return Runner()


def serve() -> None:
    """Read commands, one a line, and answer with exit code, processor seconds and peak bytes."""
    for line in sys.stdin:
        command, environment = json.loads(line)
        nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        child = os.posix_spawnp(command[0], command, environment, file_actions=nowhere)
        _, status, used = os.wait4(child, 0)
        told = [os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    serve()

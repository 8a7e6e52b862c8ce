"""Programs of tests that run in several processes at once."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from typing import Any

from tests.conftest import ROOT


class Program:
    """A Python program that runs beside the test, which reads what it prints, on either stream, meanwhile."""

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        self.process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, **pipe)
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, pattern: str, timeout: float = 240) -> re.Match:
        """The first match of a pattern in the output; fails if the program ends or takes too long without one."""

        def found_or_ended() -> re.Match | bool:
            return re.search(pattern, self.output, re.MULTILINE) or not self._reader.is_alive()

        with self._news:
            self._news.wait_for(found_or_ended, timeout)
        match = re.search(pattern, self.output, re.MULTILINE)
        assert match, f"never printed {pattern!r}:\n{self.output[-3000:]}"
        return match

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def end(self, timeout: float = 240) -> int:
        """The exit status; everything printed is in `output` then."""
        try:
            status = self.process.wait(timeout)
        finally:
            self.process.kill()
        self._reader.join()
        return status


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def run_together(module: str, count: int, *arguments: str, timeout: int) -> list[Any]:
    """What each of `count` processes of `python -m MODULE RANK *arguments PORT` printed after "RESULT ", from JSON."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [[sys.executable, "-m", module, str(rank), *arguments, port] for rank in range(count)]
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for command in commands]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    errors = "".join(error[-2000:] for _, error in outputs)
    assert [process.returncode for process in processes] == [0] * count, errors
    results = []
    for output, _ in outputs:
        (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
        results.append(json.loads(line.removeprefix("RESULT ")))
    return results

"""Programs of tests that run in several processes at once."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

from tests.conftest import ROOT


def run_together(module: str, count: int, *arguments: str, timeout: int) -> list[Any]:
    """What each of `count` processes of `python -m MODULE RANK *arguments PORT` printed after "RESULT ", from JSON."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
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

"""A process that does what another asks of it and may die: the asker goes on."""

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any


class Failure(Exception):
    """Why there is no answer, in one line.

    Attributes:
        lost: whether the process has ended, and with it all that it had prepared.
    """

    def __init__(self, reason: str, lost: bool = False):
        super().__init__(reason)
        self.lost = lost


class Worker:
    """An object in a process of its own, whose methods are called from here.

    The process starts at the first call, and anew at the first after it ended.

    Args:
        make: makes the object; defined in a module. If it raises, so does every call.
    """

    def __init__(self, make: Callable[[], Any]):
        self._make, self._process, self._pipe = make, None, None

    def send(self, method: str, *arguments: Any) -> None:
        """Asks without waiting; each is followed by a `receive`."""
        if self._process is None:
            spawn = multiprocessing.get_context("spawn")  # a copy of this process would have its threads and devices
            self._pipe, theirs = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(self._make, theirs), daemon=False)
            self._process.start()
            theirs.close()
        self._pipe.send((method, arguments))

    def receive(self, seconds: float) -> Any:
        """The answer.

        Raises:
            Failure: if the method raised, if the process died, or after that time; the process is then killed.
        """
        if not self._pipe.poll(max(0.0, seconds)):
            self.stop()
            raise Failure(f"no answer in {seconds:.0f} s; its process was killed", lost=True)
        try:
            problem, answer = self._pipe.recv()
        except EOFError:
            process = self._process
            process.join()
            self.stop()
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
            raise Failure(f"its process ended with {how}, probably because memory ran out", lost=True) from None
        if problem:
            raise Failure(problem)
        return answer

    def call(self, method: str, *arguments: Any, seconds: float) -> Any:
        self.send(method, *arguments)
        return self.receive(seconds)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None


def told(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
    short = (
        isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    )
    return f"out of memory: {text}"[:200] if short else text


def _serve(make: Callable[[], Any], pipe: Any) -> None:
    made, problem = None, None
    try:
        made = make()
    except Exception as error:
        problem = told(error)
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        if problem:
            pipe.send((problem, None))
            continue
        try:
            pipe.send((None, getattr(made, method)(*arguments)))
        except Exception as error:
            traceback.print_exc()  # in full, beside the row that has one line of it
            pipe.send((told(error), None))

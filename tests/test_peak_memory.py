"""Measurements of memory end even if their process does not survive."""

import os
import signal
import sys

import pytest

from benchmarks.memory import peak_alone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def allocating(mebibytes):
    return lambda: len(b"x" * (mebibytes << 20))


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_peak_is_what_a_run_allocates():
    assert peak_alone(allocating, 64) * 1024 == pytest.approx(64, abs=16)


def test_a_killed_process_is_an_error():
    with pytest.raises(MemoryError, match="measured killed was killed"):
        peak_alone(killed)

"""The benchmark for accelerators measures rows of a tiny model, and goes on when some fail."""

import json

import pytest

from benchmarks import accelerator
from benchmarks.accelerator_ours import FACTS as MEASURED_FACTS
from benchmarks.accelerator_ours import Bench
from benchmarks.accelerator_rows import COMPILED, EAGER, NETWORK, OURS, SCIPY, Row, Subject
from benchmarks.worker import Failure, Worker, told
from tests.mortal import Mortal

TINY = Subject(
    "EoMT, 1 block",
    "shapes:eomt",
    32,
    None,
    segments=2,
    room=4,
    changes=(
        ("model.backbone.depth", 1),
        ("model.backbone.dim", 24),
        ("model.backbone.image_size", 32),
        ("model.num_blocks", 1),
        ("model.mask_annealing", ((0.0, 1.0),)),
        ("model.num_queries", 6),
        ("loss.match_at.num_points", 32),
        ("loss.compare_at.num_points", 32),
        ("inference.size_divisor", 32),
    ),
)


class Here:
    """What `worker.Worker` does, without a process."""

    def __init__(self, bench):
        self.bench, self.asked = bench, []

    def send(self, method, *arguments):
        self.asked.append((method, arguments))

    def receive(self, seconds):
        method, arguments = self.asked.pop()
        try:
            return getattr(self.bench, method)(*arguments)
        except Failure:
            raise
        except Exception as error:
            raise Failure(told(error)) from error

    def call(self, method, *arguments, seconds):
        self.send(method, *arguments)
        return self.receive(seconds)

    def stop(self):
        pass


class Scripted:
    """A bench whose rows take 2 ms, but for those that fail.

    Args:
        failing: (row) -> an error, or None.
    """

    def __init__(self, failing=lambda row: None, ms=2.0):
        self.failing, self.ms, self.prepared = failing, ms, []

    def device(self):
        return {"kind": "NVIDIA H100 80GB HBM3"}

    def fact(self, what, side):
        if what == "copy to the host":
            raise MemoryError("no room")
        return {"value": 3.0, "unit": "GB/s"}

    def write(self, subject, folder):
        pass

    def open(self, subject, folder, *rest):
        return 0.5

    def prepare(self, rows, seconds):
        self.prepared.append(list(rows))
        return {}

    def measure(self, row, seconds):
        if error := self.failing(row):
            raise error
        return {"ms": self.ms, "images_per_s": 1000 * row.batch / self.ms, "flops": 1.978e12, "matcher_share": 0.25}

    def trace(self, row):
        return {"ms": 2.0, "busy_ms": 1.5, "parts": {"backbone, forward": 1.5}, "kinds": {"dot": 1.5}}


def run(path, ours, theirs, *flags):
    flags = ["--small", "--seconds=0.01", f"--out={path}", *flags]
    return accelerator.main(flags, Here(ours), Here(theirs))


@pytest.mark.slow
def test_a_tiny_model_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "SMALL", (TINY,))
    flags = ("--dtypes", "float32", "--batch-sizes", "1", "--matchers", "scipy", "--peers")
    found = run(tmp_path / "rows.jsonl", Bench(), None, *flags)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == found
    assert not [row for row in found if "problem" in row]
    facts = [row for row in found if row["part"] == "device"][1:]
    assert [row["what"] for row in facts] == list(accelerator.FACTS) == list(MEASURED_FACTS)
    assert all(row["value"] > 0 for row in facts)
    whole, network, scipy, trace = (row for row in found if row["part"] != "device")
    assert min(row["ms"] for row in (whole, network, scipy, trace)) > 0
    assert 0 < network["flops"] < scipy["flops"]
    assert 0 < network["mfu"] < 1
    assert network["peak_gib"] > 0
    assert scipy["matcher_share"] > 0
    assert {"backbone, forward", "backbone, backward"} <= trace["parts"].keys()
    assert trace["busy_ms"] == pytest.approx(sum(trace["kinds"].values()))
    assert "| EoMT, 1 block | network | float32 | 1 | maskformer_jax |" in capsys.readouterr().out


def test_rows_that_fail_say_why_and_the_rest_goes_on(tmp_path, capsys):
    def failing(row):
        if row.what == NETWORK and row.batch == 2:
            return RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes\nmore")
        return None

    theirs = Scripted(lambda row: ValueError("no compiler") if row.library == COMPILED else None, ms=3.0)
    found = run(tmp_path / "rows.jsonl", Scripted(failing), theirs, "--models", "EoMT", "--dtypes", "bfloat16")
    assert len(found) == 1 + len(accelerator.FACTS) + 2 * 2 * 3 + 2 * 4 + 1
    problems = {row.get("problem") for row in found} - {None}
    assert problems == {
        "out of memory: MemoryError: no room",
        "out of memory: RuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes",
        "ValueError: no compiler",
    }
    eager = [row for row in found if row["library"] == EAGER and row["batch"] == 1]
    assert [row["ratio"] for row in eager] == [1.5, 1.5, 1.5]
    ours = next(row for row in found if row["what"] == SCIPY)
    assert ours["mfu"] == pytest.approx(1.978e12 / 2e-3 / 989e12)  # of the data sheet
    said = capsys.readouterr().out
    assert "| step, scipy | bfloat16 | 1 | transformers | 3.00 | 333.3 | 1.50 |" in said
    assert "| part: backbone, forward | | | | 1.50 | | | 75.0% of it |" in said


class Missing:
    def __getattr__(self, name):
        raise ModuleNotFoundError("No module named 'torch'")


def test_without_pytorch_the_own_rows_are_measured(tmp_path):
    found = run(tmp_path / "rows.jsonl", Scripted(), Missing(), "--parts", "training", "--models", "EoMT")
    assert all("ms" in row for row in found if row["library"] == OURS)
    theirs = [row for row in found if row["library"] != OURS]
    assert len(theirs) == 8
    assert {row["problem"] for row in theirs} == {"ModuleNotFoundError: No module named 'torch'"}


def test_what_a_lost_process_had_prepared_is_prepared_again(tmp_path):
    ours = Scripted(lambda row: Failure("its process ended with signal 9", lost=True) if row.batch == 2 else None)
    flags = ("--parts", "inference", "--models", "EoMT", "--dtypes", "float32", "--peers")
    found = run(tmp_path / "rows.jsonl", ours, None, *flags)
    assert [row.get("problem", "") != "" for row in found] == [True, True, False, False]
    assert [len(rows) for rows in ours.prepared] == [4, 3, 2]


def test_no_row_is_begun_after_the_time(tmp_path):
    ours = Scripted()
    found = run(tmp_path / "rows.jsonl", ours, None, "--parts", "inference", "--peers", "--minutes", "0")
    assert ours.prepared == []
    assert {row["problem"] for row in found} == {"no time was left; give more --minutes"}


def test_a_process_that_dies_starts_again():
    worker = Worker(Mortal)
    try:
        with pytest.raises(Failure, match="ended with status 3") as caught:
            worker.call("die", seconds=60)
        assert caught.value.lost
        with pytest.raises(Failure, match="TypeError: unsupported operand") as caught:
            worker.call("double", None, seconds=60)
        assert not caught.value.lost
        assert worker.call("double", 2, seconds=60) == 4
        with pytest.raises(Failure, match="no answer in 0 s"):
            worker.call("wait", seconds=0.01)
        assert worker.call("double", 3, seconds=60) == 6
    finally:
        worker.stop()


def test_the_rows_of_a_model_come_in_the_order_of_worth():
    options = accelerator.parse([])
    (subject, planned), *others = accelerator.plan(options, "inference")
    assert (subject.label, len(others)) == ("MaskFormer R50", 4)
    assert planned[0] == Row("inference", subject.label, "end to end", "bfloat16", 8, OURS)
    assert len(planned) == len(set(planned)) == 2 * 2 * 2 * 3

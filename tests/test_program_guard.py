"""The guard of compiled programs (benchmarks/guard.py) notices what costs more, and nothing else."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import guard
from maskformer_jax.sharding import make_mesh


def compiled(times):
    """A program of two devices with a matrix product, repeated."""
    mesh = make_mesh(jax.devices()[:2])
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def step(x, weights):
        for _ in range(times):
            x = jnp.tanh(x @ weights)
        return x.sum(0)

    arguments = jax.ShapeDtypeStruct((4, 32), "float32", sharding=split), jax.ShapeDtypeStruct((32, 32), "float32")
    return jax.jit(step, out_shardings=whole).lower(*arguments).compile()


@pytest.fixture(scope="module")
def programs():
    return {times: guard.needs(compiled(times)) for times in (1, 2)}


def test_a_slower_program_fails_and_the_same_passes(programs, tmp_path, capsys):
    table = tmp_path / "table.json"
    guard.write(table, ["step"], lambda name: programs[1])
    assert guard.check(table, ["step"], lambda name: guard.needs(compiled(1))) == 0
    assert capsys.readouterr().out == "step: ok\n"
    assert guard.check(table, ["step"], lambda name: programs[2]) == 1
    said = capsys.readouterr().out
    flops = programs[1]["FLOPs"], programs[2]["FLOPs"]
    assert flops[1] - flops[0] == 2 * (4 // 2) * 32 * 32
    assert f"  step: FLOPs {flops[0]:,.0f} -> {flops[1]:,.0f} (+" in said
    assert "step: instructions" in said
    assert "run with --update" in said
    assert "all-reduce" not in said
    # A program that became faster is no failure, and asks for a better table.
    guard.write(table, ["step"], lambda name: programs[2])
    assert guard.check(table, ["step"], lambda name: programs[1]) == 0
    assert "smaller: step: FLOPs" in capsys.readouterr().out


def test_what_devices_exchange_is_compared(programs):
    assert programs[1]["all-reduce, number"] == 1
    assert programs[1]["all-reduce, bytes"] == 32 * 4
    more = {**programs[1], "all-gather, number": 1, "all-reduce, bytes": 32 * 4 * 2}
    grown, _ = guard.compare("step", programs[1], more)
    assert grown == ["step: all-gather, number 0 -> 1", "step: all-reduce, bytes 128 -> 256 (+100.0%)"]


@pytest.mark.parametrize(("now", "grown", "smaller"), [(103, 0, 0), (104, 1, 0), (97, 0, 0), (96, 0, 1)])
def test_a_few_percent_are_allowed(now, grown, smaller):
    found = guard.compare("step", {"FLOPs": 100}, {"FLOPs": now})
    assert tuple(map(len, found)) == (grown, smaller)


def test_tables_of_other_versions_and_programs_fail(programs, tmp_path, capsys, monkeypatch):
    table = tmp_path / "table.json"
    guard.write(table, ["step", "gone"], lambda name: programs[1])
    assert guard.check(table, ["step", "new"], lambda name: programs[1]) == 1
    said = capsys.readouterr().out
    assert "new: not in table.json" in said
    assert "gone: in table.json, and no program" in said
    monkeypatch.setattr(guard, "versions", lambda: {"jax": "0.0"})
    assert guard.check(table, ["step"], lambda name: programs[1]) == 1
    assert "table.json is of {'jax': '0." in capsys.readouterr().out


def test_the_table_has_all_programs():
    stored = json.loads(guard.TABLE.read_text())["programs"]
    assert stored.keys() == guard.PROGRAMS.keys()
    for name, found in stored.items():
        assert {"FLOPs", "bytes accessed", "bytes of temporary arrays", "instructions"} <= found.keys()
        assert found["FLOPs"] > 1e8
        assert ("all-reduce, number" in found) == name.endswith("training")

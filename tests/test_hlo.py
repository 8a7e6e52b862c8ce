"""Reading the collectives out of a compiled program."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.hlo import collectives
from maskformer_jax.sharding import make_mesh

COMBINED = """
ENTRY %main (a: bf16[4,8], b: f32[3]) -> f32[3] {
  %all-reduce.1 = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[3]{0:T(128)}) all-reduce(%a, %b), to_apply=%add
}
"""
PAIRED = """
ENTRY %main (a: f32[2]) -> f32[16] {
  %a = f32[2]{0} parameter(0)
  %start = (f32[2]{0}, f32[16]{0}) all-gather-start(f32[2]{0} %a), dimensions={0}
  ROOT %done = f32[16]{0} all-gather-done((f32[2]{0}, f32[16]{0}) %start)
}
"""
WRAPPED = """
%async_computation (p: bf16[64]) -> bf16[8] {
  %p = bf16[64]{0} parameter(0)
  ROOT %reduce-scatter.1 = bf16[8]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

ENTRY %main (a: bf16[64]) -> bf16[8] {
  %a = bf16[64]{0} parameter(0)
  %async-start = ((bf16[64]{0}), bf16[8]{0}, u32[]) async-start(%a), calls=%async_computation
  ROOT %async-done = bf16[8]{0} async-done(%async-start), calls=%async_computation
}
"""
LOOP = """
%body (arg: (s32[], f32[5])) -> (s32[], f32[5]) {
  %sum = f32[5]{0} all-reduce(%x), to_apply=%add
}

ENTRY %main (a: f32[5]) -> f32[5] {
  %loop = (s32[], f32[5]{0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %gathered = pred[10]{0} all-gather(%mask), dimensions={0}
}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (COMBINED, {"all-reduce": (1, 64 + 12)}),
        (PAIRED, {"all-gather": (1, 64)}),
        (WRAPPED, {"reduce-scatter": (1, 128)}),
        (LOOP, {"all-reduce": (4, 80), "all-gather": (1, 10)}),
        ("ENTRY %main (a: f32[]) -> f32[] {\n  %all-reduce-like = f32[] negate(%a)\n}\n", {}),
    ],
)
def test_written_programs(text, expected):
    assert collectives(text) == expected


def compile_text(function, inputs, outputs, shape):
    mesh = make_mesh()
    place = [NamedSharding(mesh, spec) for spec in (inputs, outputs)]
    argument = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.jit(function, in_shardings=place[0], out_shardings=place[1]).lower(argument).compile().as_text()


def test_compiled_programs():
    split, whole = P("data"), P()
    assert collectives(compile_text(lambda x: x.sum(0), split, whole, (8, 50))) == {"all-reduce": (1, 200)}
    assert collectives(compile_text(lambda x: x, split, whole, (8, 50))) == {"all-gather": (1, 1600)}
    assert collectives(compile_text(lambda x: x + 1, split, split, (8, 50))) == {}


def test_a_loop_counts_as_often_as_it_runs():
    @functools.partial(jax.shard_map, mesh=make_mesh(), in_specs=P("data"), out_specs=P())
    def total(x):
        return jax.lax.fori_loop(0, 5, lambda _, so_far: so_far + jax.lax.psum(x[0] * so_far, "data"), jnp.ones(50))

    text = jax.jit(total).lower(jax.ShapeDtypeStruct((8, 50), jnp.float32)).compile().as_text()
    assert collectives(text) == {"all-reduce": (5, 1000)}

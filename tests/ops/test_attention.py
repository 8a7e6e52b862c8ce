"""Attention: its forms, their gradients, what chooses among them, and queries of which some are masked."""

import contextlib
import functools
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from benchmarks.absent import ENVIRONMENT, make_absent_mesh, missing_compiler
from maskformer_jax.ops import attention, platforms
from maskformer_jax.ops.attention import attention_with_masked_rows, multi_head_attention
from maskformer_jax.sharding import make_mesh

HEADS = 2
KERNELS = {"v5e:2x2": "tpu_custom_call", "h100:1x1x1": "__cudnn$fmha"}
ALL = {"cpu", "cuda", "tpu"}

absent = [
    pytest.param(name, marks=[pytest.mark.aot, pytest.mark.skipif(bool(problem), reason=problem)])
    for name in KERNELS
    for problem in [missing_compiler(name)]
]


def draw(batch, queries, keys, dim, dtype="float32"):
    """Queries, keys, values, and a gradient of the result."""
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=(batch, length, dim)), dtype) for length in (queries, keys, keys, queries)]


def by_head(x):
    return x.reshape(*x.shape[:-1], HEADS, -1)


def plain(query, key, value):
    """The plain form in float32, on its own."""
    wide = [by_head(x).astype(jnp.float32) for x in (query, key, value)]
    return attention._plain(*wide, None, None, 0.0, None).reshape(query.shape)


def splash(query, key, value):
    return attention.splash_attention(by_head(query), by_head(key), by_head(value)).reshape(query.shape)


def attend(query, key, value):
    return multi_head_attention(query, key, value, HEADS)


def with_gradient(form, query, key, value, gradient):
    """The result, and the gradients of queries, keys and values."""
    output, transpose = jax.vjp(form, query, key, value)
    return output, *transpose(gradient.astype(output.dtype))


def assert_close(found, expected, tolerance):
    """Relative to the largest value of each array."""
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.fixture
def cudnn(monkeypatch):
    """JAX traces calls of cuDNN, installed or not."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 90700)


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("queries", "keys"), [(100, 140), (384, 260)])
def test_the_kernel_for_tpus_equals_the_plain_form(monkeypatch, queries, keys, dtype, tolerance):
    monkeypatch.setattr(attention, "_BLOCKS", (128,))  # short sequences have several, too
    inputs = draw(2, queries, keys, HEADS * 8, dtype)
    expected = with_gradient(plain, *inputs)
    with pltpu.force_tpu_interpret_mode():
        found = jax.jit(functools.partial(with_gradient, splash))(*inputs)
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_on_a_cpu_long_sequences_equal_the_plain_form(cudnn, dtype, tolerance):
    inputs = draw(1, 1030, 1025, HEADS * 8, dtype)
    expected = with_gradient(plain, *inputs)
    assert_close(jax.jit(functools.partial(with_gradient, attend))(*inputs), expected, tolerance)


def test_on_a_cpu_no_array_holds_the_scores_of_a_long_sequence():
    inputs = draw(1, 1030, 1025, HEADS * 8)

    def largest():
        text = jax.jit(lambda *x: with_gradient(attend, *x)).lower(*inputs).compile().as_text()
        return "1030,1025]" in text

    assert not largest()
    with platforms.without_kernels():
        assert largest()


def kernels(query, key, value, **options):
    """The platforms for which a call has a kernel."""
    found = set()

    def record(*arrays, default, **forms):
        found.update(forms)
        return default(*arrays)

    with mock.patch.object(jax.lax, "platform_dependent", record):
        jax.eval_shape(lambda *x: multi_head_attention(*x, HEADS, **options), query, key, value)
    return found


def test_long_sequences_in_half_precision_have_kernels(cudnn):
    inputs = draw(1, 1025, 1024, 16, "bfloat16")[:3]
    assert kernels(*inputs) == ALL
    assert kernels(*inputs, dropout_rate=0.1) == ALL
    assert kernels(*(x.astype(jnp.float16) for x in inputs)) == {"cpu", "cuda"}
    assert kernels(*draw(1, 1023, 1024, 16, "bfloat16")[:3]) == {"cpu", "cuda"}
    assert kernels(*draw(1, 400, 1024, 16, "bfloat16")[:3]) == {"cuda"}


def test_what_kernels_do_not_take_has_the_plain_form(cudnn):
    inputs = draw(1, 1025, 1024, 16, "bfloat16")[:3]
    assert kernels(*(x.astype(jnp.float32) for x in inputs)) == {"cpu"}
    assert not kernels(*draw(1, 100, 4096, 16, "bfloat16")[:3])
    assert kernels(*draw(1, 1024, 1024, 12, "bfloat16")[:3]) == {"cpu"}
    assert not kernels(*(x[:, None] for x in inputs))
    assert not kernels(*inputs, mask=jnp.ones((1, 1, 1, 1024), bool))
    assert not kernels(*inputs, bias=jnp.zeros((2, 1025, 1024)))
    assert not kernels(*inputs, dropout_rate=0.1, dropout_key=jax.random.split(jax.random.key(0), 1))
    with platforms.without_kernels():
        assert not kernels(*inputs)


def test_without_cudnn_there_is_no_call_of_it(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", mock.Mock(side_effect=RuntimeError))
    assert kernels(*draw(1, 1024, 1024, 16, "bfloat16")[:3]) == {"cpu", "tpu"}


@pytest.mark.parametrize(
    ("kind", "capability", "expected"),
    [
        ("TPU v3", None, {"cpu"}),
        ("TPU v5 lite", None, ALL),
        ("Tesla T4", "7.5", {"cpu"}),
        ("NVIDIA H100", "9.0", ALL),
        ("NVIDIA B200", "10.0", ALL),
        ("AMD Instinct MI250", "gfx90a", ALL),
    ],
)
def test_old_devices_have_no_kernels(cudnn, kind, capability, expected):
    device = mock.Mock(spec=["device_kind"], device_kind=kind)
    if capability:
        device.compute_capability = capability
    with mock.patch.object(jax, "devices", return_value=[device]):
        assert kernels(*draw(1, 1024, 1024, 16, "bfloat16")[:3]) == expected


@pytest.mark.parametrize("batch", [2, "b"])
def test_files_for_all_platforms_have_the_plain_form(cudnn, batch):
    """JAX exports no calls of cuDNN; a number of images that is a symbol has the plain form in any case."""
    inputs = draw(2, 1024, 1025, 16, "bfloat16")[:3]
    sizes = jax.export.symbolic_shape(batch) if batch == "b" else (batch,)
    shapes = [jax.ShapeDtypeStruct((*sizes, *x.shape[1:]), x.dtype) for x in inputs]
    with platforms.without_kernels() if batch == 2 else contextlib.nullcontext():
        exported = jax.export.export(jax.jit(lambda *x: attend(*x)), platforms=("cpu", "cuda", "tpu"))(*shapes)
    assert_close([exported.call(*inputs)], [plain(*inputs)], 2e-2)


@pytest.mark.parametrize("checked", [False, True])
def test_kernels_work_under_transformations(cudnn, checked):
    """Of the arrays of both devices: in a loop of rematerialized steps, alone and for one image after another."""
    *inputs, gradient = draw(2, 1025, 1025, HEADS * 8, "bfloat16")

    def plain_rounded(*inputs):
        return plain(*inputs).astype(jnp.bfloat16)

    def loop(form, query, key, value):
        step = jax.checkpoint(lambda x, _: (x + form(x, key, value), None))
        return jax.lax.scan(step, query, length=2)[0]

    def one_by_one(*inputs):
        return jax.vmap(lambda *x: attend(*(each[None] for each in x))[0])(*inputs)

    expected = with_gradient(functools.partial(loop, plain_rounded), *inputs, gradient)
    for form in (attend, one_by_one):
        run = functools.partial(with_gradient, functools.partial(loop, form))
        mesh = make_mesh(jax.devices()[:2])
        mapped = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=checked)
        assert_close(jax.jit(mapped)(*inputs, gradient), expected, 3e-2)


@pytest.mark.parametrize(("queries", "keys"), [(1024, 1024), (1025, 1031)])
@pytest.mark.parametrize("topology", absent)
def test_programs_for_accelerators_have_kernels(environment, topology, queries, keys):
    device = jax.sharding.SingleDeviceSharding(make_absent_mesh(topology).devices.flat[0])
    inputs = draw(1, queries, keys, HEADS * 64)

    def program(function, dtype="bfloat16"):
        shapes = [jax.ShapeDtypeStruct(x.shape, dtype, sharding=device) for x in inputs]
        return jax.jit(function).lower(*shapes).compile().as_text()

    def calls(text):
        return [line for line in text.splitlines() if "custom-call(" in line and KERNELS[topology] in line]

    def forward(*inputs):
        return attend(*inputs[:3])

    text = program(forward)
    assert len(calls(text)) == 1
    assert f"{queries},{keys}]" not in text
    assert len(calls(program(functools.partial(with_gradient, attend)))) > 1
    assert not calls(program(forward, "float32"))


@pytest.mark.parametrize("masked", [0, 3, 9])
def test_masked_rows_are_those_of_one_mask_of_all_rows(masked):
    inputs = draw(2, 9, 9, 8)
    mask = np.random.default_rng(1).random((2, masked, 9)) < 0.5
    mask[..., 0] = True
    whole = jnp.ones((2, 1, 9, 9), bool).at[:, 0, :masked].set(mask)

    def apart(*inputs):
        return attention_with_masked_rows(*inputs, HEADS, jnp.asarray(mask))

    def together(*inputs):
        return multi_head_attention(*inputs, HEADS, mask=whole)

    assert_close(with_gradient(apart, *inputs), with_gradient(together, *inputs), 1e-6)


def test_only_queries_without_a_mask_have_kernels(cudnn):
    """And no program holds a mask of all queries."""
    query, key, value, _ = draw(1, 1124, 1124, 16, "bfloat16")
    mask = jnp.ones((1, 100, 1124), bool)
    program = jax.make_jaxpr(lambda *x: attention_with_masked_rows(*x, HEADS, mask))(query, key, value)
    assert str(program).count("platform_index") == 1
    assert "bool[1,100,1124]" in str(program)
    assert "bool[1,1124,1124]" not in str(program)

"""The rows of this package in `benchmarks/accelerator.py`."""

import dataclasses
import functools
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import maskformer_jax
from benchmarks import accelerator_rows as rows
from benchmarks.accelerator_rows import Row, Subject, images_of, median_ms
from benchmarks.profile_step import self_times, spent
from benchmarks.subjects import draw_batch, settings_of
from benchmarks.throughput import write_model
from maskformer_jax import catalog
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.files import processes
from maskformer_jax.losses import Matcher
from maskformer_jax.ops import masks, platforms
from maskformer_jax.ops.image import normalize
from maskformer_jax.segmenter.tasks import request
from maskformer_jax.sharding import make_mesh, shard_batch
from maskformer_jax.types import Batch

GIB = 2**30
CANDIDATES = 20  # queries above the threshold of the panoptic result, of the first image
TRACED_STEPS = 3


def product(side: int, dtype: str, precision: str | None) -> dict:
    """TFLOP/s of a matrix product."""
    square = jnp.ones((side, side), dtype)
    multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
    return {"value": 2 * side**3 / _seconds(lambda: multiply(square, square)) / 1e12, "unit": "TFLOP/s"}


def copy(side: int) -> dict:
    """GB/s read and written by adding 1."""
    array = jnp.zeros((side, side, 4), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return {"value": 2 * array.nbytes / _seconds(lambda: add(array)) / 1e9, "unit": "GB/s"}


def upload(side: int) -> dict:
    array = np.zeros((side, side), np.float32)
    return {"value": array.nbytes / _seconds(lambda: jax.device_put(array)) / 1e9, "unit": "GB/s"}


def download(side: int) -> dict:
    add, array = jax.jit(lambda x: x + 1), jnp.zeros((side, side), jnp.float32)
    seconds = []
    for _ in range(4):
        fresh = jax.block_until_ready(add(array))  # an array keeps the copy that it made
        started = time.perf_counter()
        jax.device_get(fresh)
        seconds.append(time.perf_counter() - started)
    return {"value": array.nbytes / min(seconds) / 1e9, "unit": "GB/s"}


def launch(side: int) -> dict:
    """From calling a compiled function of one number to its result."""
    add, number = jax.jit(lambda x: x + 1), jnp.zeros(())
    return {"value": 1e6 * _seconds(lambda: add(number), calls=100), "unit": "us"}


def memory(side: int) -> dict:
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return {"value": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, "unit": "GiB of the host"}
    return {"value": stats["bytes_limit"] / GIB, "unit": "GiB that JAX may allocate"}


FACTS: dict[str, Callable[[int], dict]] = {
    "memory": memory,
    "matmul bfloat16": lambda side: product(side, "bfloat16", None),
    "matmul float32": lambda side: product(side, "float32", None),
    "matmul float32, highest precision": lambda side: product(side, "float32", "highest"),
    "copy on the device": copy,
    "copy to the device": upload,
    "copy to the host": download,
    "launch and wait": launch,
}


def _seconds(run: Callable[[], Any], calls: int = 10) -> float:
    """Of a call, the least of five times that many without waiting in between."""
    jax.block_until_ready(run())
    found = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(calls):
            last = run()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - started) / calls)
    return min(found)


class Bench(rows.Bench):
    """This package on the first device."""

    threads = processes.worker_threads()  # XLA compiles programs at the same time

    def device(self) -> dict:
        device = jax.devices()[0]
        return {"kind": device.device_kind, "platform": device.platform, "jax": jax.__version__}

    def fact(self, what: str, side: int) -> dict:
        return FACTS[what](side)

    def open(self, subject: Subject, folder: str, written: bool) -> float:
        """Loads the weights of a folder, or makes some, and returns the threshold that all libraries use."""
        self._made, self._steps, self._state = {}, {}, None
        if not written:
            write_model(pathlib.Path(folder), subject.recipe, (subject.side, subject.side), subject.changes)
        self.subject = subject
        self.segmenters = {"float32": maskformer_jax.load(folder)}
        one = self.segmenters["float32"]
        self._bfloat16 = functools.partial(maskformer_jax.load, folder, dtype="bfloat16")
        self.arrays = jax.device_get({**one.params, **one.frozen})
        self._counted: dict[tuple, float] = {}
        self._one = threading.Lock()  # for what threads would do twice, and for switching fused attention off
        pixels = normalize(images_of(subject, 1), np.array([[subject.side] * 2]))
        scores = np.sort(np.asarray(jax.nn.softmax(one.logits(pixels)[0][0])[:, :-1].max(axis=-1)))
        self.threshold = float(scores[-min(CANDIDATES, len(scores) // 2) - 1 :][:2].mean())
        return self.threshold

    def segmenter(self, dtype: str) -> maskformer_jax.Segmenter:
        with self._one:
            if dtype not in self.segmenters:
                self.segmenters[dtype] = self._bfloat16()
            return self.segmenters[dtype]

    def make(self, row: Row) -> Callable[[float], dict]:
        kind = {rows.END_TO_END: self._end_to_end, rows.NETWORK: self._network}
        return kind.get(row.what, self._step)(row)

    def _end_to_end(self, row: Row) -> Callable[[float], dict]:
        segmenter, images = self.segmenter(row.dtype), images_of(self.subject, row.batch)
        asked = request("panoptic", segmenter.inference, self.threshold, 0.0, None, None)

        def answer() -> None:
            inputs = [segmenter.prepare(image) for image in images]
            segmenter.read(segmenter.run(inputs, asked), inputs, asked)

        answer()  # compiles
        return functools.partial(_timed, answer, row.batch, {})

    def _network(self, row: Row) -> Callable[[float], dict]:
        segmenter = self.segmenter(row.dtype)
        network, images = segmenter.network, images_of(self.subject, row.batch)
        sizes = np.array([[self.subject.side] * 2] * row.batch)
        pixels = jax.block_until_ready(normalize(images, sizes, network.black_padding))

        def forward(params: Mapping, frozen: Mapping, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
            last = network.apply(params, frozen, pixels).last()
            return last.class_logits[-1], masks.logits(last)[-1]

        arguments = *segmenter.weights, pixels
        # Functions of their own: JAX would take the trace of the other, with or without fused attention.
        run = jax.jit(functools.partial(forward)).lower(*arguments).compile()
        flops = self._flops((row.part, row.batch), lambda: jax.jit(functools.partial(forward)).lower(*arguments))
        extra = {"flops": flops, "peak_gib": _held(run)}
        return functools.partial(_timed, lambda: jax.block_until_ready(run(*arguments)), row.batch, extra)

    def trainer(self, row: Row) -> tuple[Trainer, int]:
        """The trainer of the recipe, and the number of its classes; the model is that of the weights."""
        side, recipe = self.subject.side, self.subject.recipe
        changes = {
            **dict(self.subject.changes),
            "data.crop": (side, side),
            "train.batch_size": row.batch,
            "model.dtype": row.dtype,
            "loss.images_per_gpu": 0,
            "loss.matcher": rows.MATCHERS[row.what],
        }
        settings = settings_of(recipe, changes)
        model = {**_merged(settings.model, self.segmenters["float32"].model), "dtype": row.dtype}
        num_classes = len(catalog.load(settings.data.name))
        settings = dataclasses.replace(settings, model=model)
        return Trainer(settings, num_classes, make_mesh(jax.devices()[:1])), num_classes

    def _step(self, row: Row) -> Callable[[float], dict]:
        trainer, num_classes = self.trainer(row)
        side, segments, room = self.subject.side, self.subject.segments, self.subject.room
        batch = draw_batch(row.batch, (side, side), num_classes, segments, room)

        def lower() -> jax.stages.Lowered:
            return trainer.train_step().lower(trainer.abstract_state(), trainer.abstract_batch(room))

        step = lower().compile()
        flops = self._flops((row.part, row.batch), lower)
        with self._one:
            if self._state is None:
                self._state = trainer.initial_state().with_arrays(self.arrays)
        shapes = jax.eval_shape(
            trainer.network.apply,
            *trainer.network.shapes,
            jax.ShapeDtypeStruct((row.batch, side, side, 3), "float32"),
        ).class_logits.shape
        cost = jax.random.uniform(jax.random.key(0), (*shapes[:3], room))
        matching = jax.jit(Matcher(rows.MATCHERS[row.what])).lower(cost, batch.targets).compile()
        self._steps[row] = start = functools.partial(self._start, step, shard_batch(batch, trainer.mesh))

        def measure(seconds: float) -> dict:
            found = _timed(start()[0], row.batch, {"flops": flops, "peak_gib": _held(step)}, seconds)
            alone, _ = median_ms(lambda: jax.block_until_ready(matching(cost, batch.targets)), seconds / 4)
            return {**found, "matcher_ms": alone, "matcher_share": alone / found["ms"]}

        return measure

    def _start(self, compiled: jax.stages.Compiled, batch: Batch) -> tuple[Callable[[], None], jax.stages.Compiled]:
        """A function that takes one step from where it was, with a state of its own, and its program."""
        state = [jax.tree.map(jnp.copy, self._state)]

        def step() -> None:
            state[0], scalars = compiled(state[0], batch)
            jax.block_until_ready(scalars)

        step()
        return step, compiled

    def _flops(self, key: tuple, lower: Callable[[], jax.stages.Lowered]) -> float:
        """FLOPs of the plain form: XLA counts none inside of fused attention, and those of loops once."""
        with self._one:
            if key not in self._counted:
                with platforms.without_kernels():
                    self._counted[key] = lower().cost_analysis()["flops"]
            return self._counted[key]

    def trace(self, row: Row) -> dict:
        """Milliseconds of a step by part of the model, and by kind of operation."""
        step, compiled = self._steps[row]()
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a step calls thousands of Python functions while it is traced
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                started = time.perf_counter()
                for _ in range(TRACED_STEPS):
                    step()
                whole = 1000 * (time.perf_counter() - started) / TRACED_STEPS
            found = spent(self_times(pathlib.Path(folder)), compiled.as_text(), TRACED_STEPS)
        sums = {"parts": {}, "kinds": {}}
        for each in found:
            for name, key in (("parts", f"{each.part}, {each.direction}"), ("kinds", each.kind)):
                sums[name][key] = sums[name].get(key, 0.0) + each.milliseconds
        largest = [[each.instruction.name, each.part, each.milliseconds] for each in found[:10]]
        return {"ms": whole, "busy_ms": sum(each.milliseconds for each in found), **sums, "largest": largest}


def _timed(run: Callable[[], Any], batch: int, extra: dict, seconds: float) -> dict:
    ms, calls = median_ms(run, seconds)
    return {"ms": ms, "images_per_s": 1000 * batch / ms, "calls": calls, **extra}


def _held(compiled: jax.stages.Compiled) -> float:
    """GiB that a program holds at most, with its arguments and results."""
    need = compiled.memory_analysis()
    parts = need.argument_size_in_bytes, need.output_size_in_bytes, need.temp_size_in_bytes
    return (sum(parts) - need.alias_size_in_bytes) / GIB


def _merged(settings: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The model of some weights, with what only training knows of the settings, such as dropout."""
    found = dict(settings)
    for name, value in model.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = _merged(found[name], value) if both else value
    return found

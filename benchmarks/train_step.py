"""One training step compared with transformers: same weights, images and targets, from pixels to updated parameters.

    PYTHONPATH=. python benchmarks/train_step.py
    PYTHONPATH=. python benchmarks/train_step.py --batch 1 --size 256 --repeats 5
    PYTHONPATH=. python benchmarks/train_step.py --model mask2former --variants eager --repeats 3
    PYTHONPATH=. python benchmarks/train_step.py --model eomt --batch 1 --size 640 --variants eager --repeats 3
    XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONPATH=. \\
        python benchmarks/train_step.py --batch 16 --dtype bfloat16 --repeats 20      # on a GPU

MaskFormer or Mask2Former for ADE20K's 150 classes, or EoMT for COCO's 133, with the settings of its recipe and random
weights. Each step
normalizes the images, runs the network with dropout and stochastic depth, matches the queries of each decoder layer
with scipy, sums mask, dice and class losses of all layers (Mask2Former: at 12544 points), runs the backward pass, clips
the gradient to 0.01 and updates with AdamW. Steps are interleaved, so that other load on the machine affects all; a
ratio is the median over rounds of their time by ours. Data are on the device before the clock starts. On a GPU, JAX
also needs its CPU backend for the matcher (if set, JAX_PLATFORMS must be "cuda,cpu"), and the variable above leaves
memory to PyTorch.

First, both compute the losses of two images without dropout in float32, which must agree. Those of Mask2Former agree
only to 3 %, since both draw points of their own.

"eager" and "compiled" correct differences of transformers (5.23) where that is possible without rewriting it:

- With `use_auxiliary_loss` its MaskFormer supervises seven states, not six: also the zero queries before the first
  layer, and the others without the decoder's last norm. Here it supervises the six of the original. "shipped" is its
  unchanged forward pass, which for MaskFormer raises unless `output_hidden_states` is given.
- The batch norms of its ResNet are trainable; here they are frozen, as in the recipe.

Remaining differences: transformers has stochastic depth only in the attention branch of Swin blocks, and no dropout of
attention weights and inside feed-forward layers, which is less work. It takes float masks per image, while this package
unfolds them from a map; and it matches each image and layer with its own transfer to the host, while this package
matches all at once. In its Mask2Former each layer draws points of its own; here all layers share them. "compiled" runs
the network under torch.compile; matching breaks the graph, so losses stay eager. With `--dtype bfloat16` theirs runs
under autocast, ours with model.dtype; costs and losses are float32.

On a CPU the process keeps memory that it frees, as `main.py` does: PyTorch's arrays, too, then need no cleared pages.

The fraction of the peak is computed from the FLOPs of our step, as XLA counts them before optimization (loops count
once; on a CPU, where `ops/convolution.py` loops over large kernels, a sixth is missing for ResNet-50). The peak is the
maker's dense figure for known GPUs (TF32 for float32, which both use there), else what one large matrix product reaches
now. Memory is the peak of each library's allocator on a GPU; on a CPU the peak in a process of its own, in addition to
its imports.

On a CPU, measure on an idle machine: PyTorch's threads spin while they wait for each other, and its times grow tenfold
if other work occupies one of its cores. On a shared machine use one core: `OMP_NUM_THREADS=1 taskset -c 0 python ...`.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import maskformer_jax
from benchmarks.memory import peak_alone
from benchmarks.peaks import promised
from benchmarks.subjects import draw_batch, trainer_of
from benchmarks.theirs import BACKBONES, MODELS, default_backbone, write_model
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.memory import keep_freed
from maskformer_jax.ops.image import PIXEL_MEAN, PIXEL_STD
from maskformer_jax.sharding import shard_batch
from maskformer_jax.training.state import TrainState
from maskformer_jax.types import Batch, Targets

OURS = "maskformer_jax"
VARIANTS = ("eager", "compiled", "shipped")
CHECKED = 2  # images whose losses are compared


def make_trainer(model: str, backbone: str, *, batch: int, size: int, dtype: str, dropout: bool = True) -> Trainer:
    """The trainer of a model's recipe, on one device."""
    # One average over the batch, as in transformers.
    changes = {"loss.images_per_gpu": 0, **MODELS[model].changes}
    if not dropout:
        changes |= MODELS[model].without_dropout(backbone)
    recipe = MODELS[model].recipe.format(backbone)
    return trainer_of(recipe, batch=batch, side=size, dtype=dtype, changes=changes)[0]


def their_targets(targets: Targets, device: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks [N, H, W] and labels [N] of each image, without padding."""
    masks, labels = [], []
    for ids, label, valid in zip(targets.segment_ids, targets.labels, targets.valid, strict=True):
        numbers = np.flatnonzero(valid)
        masks.append(torch.from_numpy((ids[0] == numbers[:, None, None]).astype(np.float32)).to(device))
        labels.append(torch.from_numpy(label[numbers]).long().to(device))
    return masks, labels


class Theirs:
    """The transformers model, which all its variants train.

    Args:
        name: one of MODELS.
        batch: on the host.
        dtype: of autocast.
    """

    def __init__(self, name: str, folder: pathlib.Path, batch: Batch, device: str, dtype: str, learning_rate: float):
        self.layers = MODELS[name].layers
        config = transformers.AutoConfig.from_pretrained(folder)
        config.use_auxiliary_loss = True
        self.model = MODELS[name].network.from_pretrained(folder, config=config).to(device).train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, learning_rate, fused=True)
        self.image = torch.from_numpy(batch.image).to(device)
        self.masks, self.labels = their_targets(batch.targets, device)
        self.mean, self.std = (torch.tensor(values, device=device) for values in (PIXEL_MEAN, PIXEL_STD))
        self.device, self.dtype = device, dtype

    def pixels(self) -> torch.Tensor:
        return ((self.image.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def network(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of all layers that our loss supervises."""
        return self.layers(self.model, pixels)

    def losses(self, network: Callable) -> dict[str, torch.Tensor]:
        """Weighted terms: those of the last layer, and with "_0", "_1", ... of the others."""
        classes, masks = network(self.pixels())
        others = [
            {"masks_queries_logits": mask, "class_queries_logits": label}
            for mask, label in zip(masks[:-1], classes[:-1], strict=True)
        ]
        return self.model.get_loss_dict(masks[-1], classes[-1], self.masks, self.labels, others)

    def shipped_loss(self) -> torch.Tensor:
        labels = {"mask_labels": self.masks, "class_labels": self.labels}
        return self.model(self.pixels(), output_hidden_states=True, **labels).loss

    def step(self, variant: str) -> Callable[[], None]:
        """One update, finished when it returns."""
        network = torch.compile(self.network) if variant == "compiled" else self.network

        def step() -> None:
            self.optimizer.zero_grad()
            with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                loss = self.shipped_loss() if variant == "shipped" else sum(self.losses(network).values())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 0.01)
            self.optimizer.step()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return step


class Ours:
    """A compiled step of this package, from the given weights.

    Attributes:
        flops: of one step.
    """

    def __init__(self, trainer: Trainer, arrays: dict[str, np.ndarray], batch: Batch):
        self.state: TrainState = trainer.initial_state().with_arrays(arrays)
        self.batch = shard_batch(batch, trainer.mesh)
        lowered = trainer.train_step().lower(self.state, self.batch)
        self.flops = lowered.cost_analysis()["flops"]
        self._run = lowered.compile()

    def step(self) -> dict[str, jax.Array]:
        """One update, finished when it returns; returns its scalars."""
        self.state, scalars = self._run(self.state, self.batch)
        return jax.block_until_ready(scalars)


def arrays_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The weights of a model of transformers, by our names."""
    segmenter = maskformer_jax.load(str(folder))
    return jax.device_get({**segmenter.params, **segmenter.frozen})


def step_alone(name: str, folder: pathlib.Path, arguments: argparse.Namespace, drawn: dict) -> Callable[[], object]:
    """The step of one library, for a process that has no other.

    Args:
        name: OURS, or one of VARIANTS.
    """
    batch = draw_batch(arguments.batch, **drawn)
    if name != OURS:
        return Theirs(arguments.model, folder, batch, "cpu", arguments.dtype, 1e-4).step(name)
    options = {"batch": arguments.batch, "size": arguments.size, "dtype": arguments.dtype}
    return Ours(make_trainer(arguments.model, arguments.backbone, **options), arrays_of(folder), batch).step


def check(
    model: str, folder: pathlib.Path, arrays: dict[str, np.ndarray], backbone: str, drawn: dict, device: str
) -> None:
    """Prints the losses of both; raises AssertionError if they differ by more than rounding."""
    batch = draw_batch(CHECKED, **drawn)
    theirs = Theirs(model, folder, batch, device, "float32", learning_rate=0.0)
    theirs.model.eval()
    with torch.no_grad():
        expected = {name: float(value) for name, value in theirs.losses(theirs.network).items()}
    with jax.default_matmul_precision("float32"):
        trainer = make_trainer(model, backbone, batch=CHECKED, size=drawn["size"][0], dtype="float32", dropout=False)
        found = {name: float(value) for name, value in Ours(trainer, arrays, batch).step().items()}
    criterion, tolerance = trainer.criterion, MODELS[model].tolerance
    for term, name, weight in (
        ("class", "cross_entropy", criterion.class_weight),
        ("mask", "mask", criterion.mask_weight),
        ("dice", "dice", criterion.dice_weight),
    ):
        own, other = weight * found[f"loss_{term}"], expected[f"loss_{name}"]
        print(f"last layer, {term:5s}  {OURS} {own:9.5f}  transformers {other:9.5f}  ratio {own / other:.6f}")
        np.testing.assert_allclose(own, other, rtol=tolerance)
    own, other = found["loss"], sum(expected.values())
    print(f"all layers         {OURS} {own:9.5f}  transformers {other:9.5f}  ratio {own / other:.6f}")
    np.testing.assert_allclose(own, other, rtol=tolerance)


def allow_tf32(allowed: bool) -> None:
    """Sets whether PyTorch may round the factors of float32 products on a GPU, as JAX does by default."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def peak_of(device: jax.Device, dtype: str) -> tuple[float, str]:
    """TFLOP/s, and their source."""
    if known := promised(device.device_kind, dtype):
        return known
    side = 2048
    square = jnp.ones((side, side), dtype)
    multiply = jax.jit(jnp.matmul).lower(square, square).compile()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        multiply(square, square).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds) / 1e12, f"measured with {side} x {side} matrices"


def gibibytes(name: str, device: str) -> float | None:
    """The peak memory of a library since PyTorch's count was last reset, where known."""
    if device == "cpu":
        return None
    if name == OURS:
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    return torch.cuda.max_memory_allocated() / 2**30


def measure(steps: dict[str, Callable], repeats: int, device: str) -> tuple[dict[str, list], dict[str, float | None]]:
    """Seconds of each round, and GiB."""
    seconds = {name: [] for name in steps}
    memory = dict.fromkeys(steps)
    for step in steps.values():
        for _ in range(2):
            step()  # compiles, and makes the optimiser's moments
    for _ in range(repeats):
        for name, step in steps.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
            memory[name] = gibibytes(name, device)
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="maskformer", choices=MODELS)
    parser.add_argument("--backbone", choices=BACKBONES)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--segments", type=int, default=10, help="of each image")
    parser.add_argument("--padded", type=int, default=40, help="to how many segments our targets are padded")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--variants", nargs="*", default=["eager", "compiled"], choices=VARIANTS)
    parser.add_argument("--no-memory", action="store_true", help="on a CPU: measures times alone")
    arguments = parser.parse_args()
    keep_freed()
    arguments.backbone = arguments.backbone or default_backbone(arguments.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, segments = (arguments.size, arguments.size), arguments.segments
    drawn = {
        "size": size,
        "num_classes": MODELS[arguments.model].num_classes,
        "segments": segments,
        "room": arguments.padded,
    }
    batch = draw_batch(arguments.batch, **drawn)
    trainer = make_trainer(
        arguments.model, arguments.backbone, batch=arguments.batch, size=arguments.size, dtype=arguments.dtype
    )
    labels = {f"transformers {name}": name for name in arguments.variants}
    alone = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_model(folder, arguments.model, arguments.backbone, arguments.size)
        if device == "cpu" and not arguments.no_memory:
            for label, library in {OURS: OURS, **labels}.items():
                alone[label] = peak_alone(step_alone, library, folder, arguments, drawn)
        arrays = arrays_of(folder)
        allow_tf32(False)
        check(arguments.model, folder, arrays, arguments.backbone, drawn, device)
        allow_tf32(True)
        learning_rate = trainer.settings.optimizer.learning_rate
        theirs = Theirs(arguments.model, folder, batch, device, arguments.dtype, learning_rate)
    ours = Ours(trainer, arrays, batch)
    steps = {OURS: ours.step, **{label: theirs.step(name) for label, name in labels.items()}}
    seconds, memory = measure(steps, arguments.repeats, device)
    memory.update(alone)
    peak, source = peak_of(jax.devices()[0], arguments.dtype)

    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU cores"
    images = f"{arguments.batch} x {arguments.size} x {arguments.size} pixels"
    targets = f"{segments} segments padded to {arguments.padded}"
    print(f"{arguments.model}, {arguments.backbone}, {images}, {targets}, {arguments.dtype}, on {where}")
    print(f"{ours.flops / 1e12:.3f} TFLOP a step; peak {peak:.3g} TFLOP/s, {source}")
    print(f"{'':24s}{'ms/step':>10s}{'ratio':>8s}{'images/s':>10s}{'of peak':>9s}{'GiB':>7s}")
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio = statistics.median(value / own for value, own in zip(values, seconds[OURS], strict=True))
        share = ours.flops / median / peak / 1e12
        held = "-" if memory[name] is None else f"{memory[name]:.2f}"
        print(
            f"{name:24s}{1000 * median:10.1f}{ratio:8.2f}{arguments.batch / median:10.2f}{100 * share:8.1f}%{held:>7s}"
        )


if __name__ == "__main__":
    main()

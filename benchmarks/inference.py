"""Whole-image inference compared with transformers: from a uint8 image to an id map of its size, same weights.

    PYTHONPATH=. python benchmarks/inference.py
    PYTHONPATH=. python benchmarks/inference.py --size 683 512 --repeats 20
    PYTHONPATH=. python benchmarks/inference.py --variants eager compiled --dtype bfloat16

MaskFormer with Swin-T for ADE20K's 150 classes and random weights. Each library does its own resizing, normalization,
network and postprocessing, as `Segmenter` and `MaskFormerImageProcessor` do. Runs are interleaved, so that other load
on the machine affects all; a ratio is the ratio of medians. The panoptic threshold is chosen such that all libraries
have the same number of candidate queries.

By default, on a GPU transformers' model is compiled by torch.compile and all compute in bfloat16; on a CPU it is not
compiled and all compute in float32. Compiling for a CPU requires a C++ compiler. On a GPU set
XLA_PYTHON_CLIENT_PREALLOCATE=false, or JAX allocates most of the memory before PyTorch starts.

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
import numpy as np
import torch
import transformers

import maskformer_jax
from maskformer_jax.ops.image import normalize

CLASSES = 150
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
BACKBONES = {
    "swin_tiny": lambda: transformers.SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, drop_path_rate=0.3, **STAGES
    ),
    "resnet50": lambda: transformers.ResNetConfig(**STAGES),
}
LABELS = {"eager": "transformers", "compiled": "transformers compiled"}


def write_model(folder: pathlib.Path, backbone: str = "swin_tiny") -> None:
    """Writes a transformers model with random weights, and its processor for 512 pixels."""
    torch.manual_seed(0)
    names = {label: f"class {label}" for label in range(CLASSES)}
    config = transformers.MaskFormerConfig(backbone_config=BACKBONES[backbone](), id2label=names)
    transformers.MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    size = {"shortest_edge": 512, "longest_edge": 2048}
    transformers.MaskFormerImageProcessor(size=size, size_divisor=32, ignore_index=255).save_pretrained(folder)


def theirs(folder: pathlib.Path, device: str, dtype: str, variant: str) -> Callable[..., np.ndarray]:
    """(image, task, threshold) -> id map, with transformers; variant is "eager" or "compiled"."""
    model = transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder).eval()
    processor = transformers.MaskFormerImageProcessor.from_pretrained(folder)
    model = model.to(device, getattr(torch, dtype))
    network = torch.compile(model) if variant == "compiled" else model

    @torch.inference_mode()
    def answer(image: np.ndarray, task: str, threshold: float) -> np.ndarray:
        inputs = processor(images=image, return_tensors="pt")
        output = network(pixel_values=inputs["pixel_values"].to(device, model.dtype))
        options = {"target_sizes": [image.shape[:2]]}
        if task == "semantic":
            return processor.post_process_semantic_segmentation(output, **options)[0].cpu().numpy()
        options.update(threshold=threshold, overlap_mask_area_threshold=0.0, label_ids_to_fuse=set())
        return processor.post_process_panoptic_segmentation(output, **options)[0]["segmentation"].cpu().numpy()

    return answer


def ours(segmenter: maskformer_jax.Segmenter) -> Callable[..., np.ndarray]:
    """As `theirs`, with this package."""

    def answer(image: np.ndarray, task: str, threshold: float) -> np.ndarray:
        options = {} if task == "semantic" else {"threshold": threshold, "overlap": 0.0}
        return segmenter.segment(image, task, **options).id_map

    return answer


def threshold_of(segmenter: maskformer_jax.Segmenter, image: np.ndarray, candidates: int) -> float:
    """The score that a number of queries exceed."""
    pixels = normalize(image[None], np.array([image.shape[:2]]))
    probs = jax.nn.softmax(segmenter.logits(pixels)[0][0])
    scores = np.sort(np.asarray(probs[:, :-1].max(axis=-1)))
    return float(scores[-candidates - 1 :][:2].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--candidates", type=int, default=20, help="of the panoptic answer, among 100 queries")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all networks")
    parser.add_argument("--variants", nargs="+", choices=LABELS, help="of transformers")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    variants = arguments.variants or (["compiled"] if on_gpu else ["eager"])
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_model(folder)
        segmenter = maskformer_jax.load(str(folder), dtype=dtype)
        libraries = {LABELS[variant]: theirs(folder, device, dtype, variant) for variant in variants}
    libraries["maskformer_jax"] = ours(segmenter)
    image = np.random.default_rng(0).integers(0, 256, (*arguments.size, 3), dtype=np.uint8)
    threshold = threshold_of(segmenter, image, arguments.candidates)
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU cores"
    precision = "" if dtype == "float32" else f", {dtype}"
    print(f"Swin-T, {CLASSES} classes, {arguments.size[0]} x {arguments.size[1]}, on {where}{precision}")
    for task in ("semantic", "panoptic"):
        seconds = {name: [] for name in libraries}
        for answer in libraries.values():
            answer(image, task, threshold)  # compiles
        for _ in range(arguments.repeats):
            for name, answer in libraries.items():
                started = time.perf_counter()
                answer(image, task, threshold)
                seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        told = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in medians.items())
        own = medians.pop("maskformer_jax")
        print(f"{task:9s} {told}: ratio {', '.join(f'{value / own:.2f}' for value in medians.values())}")


if __name__ == "__main__":
    main()

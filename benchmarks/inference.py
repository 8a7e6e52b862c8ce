"""Whole-image inference compared with transformers: from a uint8 image to an id map of its size, same weights.

    PYTHONPATH=. python benchmarks/inference.py
    PYTHONPATH=. python benchmarks/inference.py --backbone resnet50 --size 683 512 --repeats 20
    PYTHONPATH=. python benchmarks/inference.py --model mask2former --size 800 1066 --repeats 5
    PYTHONPATH=. python benchmarks/inference.py --model eomt --size 640 640 --tasks panoptic --repeats 5
    PYTHONPATH=. python benchmarks/inference.py --variants eager compiled --dtype bfloat16

By default Swin-T for ADE20K's 150 classes, for EoMT DINOv2-S for COCO's 133 and square images, with random weights.
Each library does its own resizing (to a shorter side that is the image's, unless another is given), normalization,
network and postprocessing, as `Segmenter` and transformers' image processors do; that of Mask2Former resizes all masks
to 384 x 384 pixels on the way to the image's size, this package to the network's input. Runs are interleaved, so that
other load on the machine affects all; a ratio is the ratio of medians. The panoptic threshold is chosen such that all
libraries have the same number of candidate queries. On a CPU, memory is the peak of each library in a process of its
own, in addition to its imports.

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
from benchmarks.memory import peak_alone
from benchmarks.theirs import MODELS, default_backbone, write_model
from maskformer_jax.ops.image import normalize

OURS = "maskformer_jax"
LABELS = {"eager": "transformers", "compiled": "transformers compiled"}


def theirs(name: str, folder: pathlib.Path, device: str, dtype: str, variant: str) -> Callable[..., np.ndarray]:
    """(image, task, threshold) -> id map, with transformers; variant is "eager" or "compiled"."""
    model = MODELS[name].network.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = model.to(device, getattr(torch, dtype))
    network = torch.compile(model) if variant == "compiled" else model

    @torch.inference_mode()
    def answer(image: np.ndarray, task: str, threshold: float) -> np.ndarray:
        inputs = processor(images=image, return_tensors="pt")
        output = network(pixel_values=inputs["pixel_values"].to(device, model.dtype))
        options = {"target_sizes": [image.shape[:2]]}
        if task == "semantic":
            return processor.post_process_semantic_segmentation(output, **options)[0].cpu().numpy()
        options.update(threshold=threshold, overlap_mask_area_threshold=0.0, **MODELS[name].no_merging)
        return processor.post_process_panoptic_segmentation(output, **options)[0]["segmentation"].cpu().numpy()

    return answer


def ours(segmenter: maskformer_jax.Segmenter) -> Callable[..., np.ndarray]:
    """As `theirs`, with this package."""

    def answer(image: np.ndarray, task: str, threshold: float) -> np.ndarray:
        options = {} if task == "semantic" else {"threshold": threshold, "overlap": 0.0}
        return segmenter.segment(image, task, **options).id_map

    return answer


def library_of(label: str, name: str, folder: pathlib.Path, device: str, dtype: str) -> Callable[..., np.ndarray]:
    """As `theirs`, of the library with that label."""
    if label == OURS:
        return ours(maskformer_jax.load(str(folder), dtype=dtype))
    variant = next(variant for variant, known in LABELS.items() if known == label)
    return theirs(name, folder, device, dtype, variant)


def run_of(library: tuple, asked: tuple) -> Callable[[], np.ndarray]:
    """A run of `library_of` some arguments with some arguments."""
    answer = library_of(*library)
    return lambda: answer(*asked)


def threshold_of(segmenter: maskformer_jax.Segmenter, image: np.ndarray, candidates: int) -> float:
    """The score that a number of queries exceed."""
    pixels = normalize(image[None], np.array([image.shape[:2]]))
    probs = jax.nn.softmax(segmenter.logits(pixels)[0][0])
    scores = np.sort(np.asarray(probs[:, :-1].max(axis=-1)))
    return float(scores[-candidates - 1 :][:2].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="maskformer")
    parser.add_argument("--backbone", help="of these, as in benchmarks/theirs.py")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--short-edge", type=int, help="to which images are resized")
    parser.add_argument("--tasks", nargs="+", choices=("semantic", "panoptic"), default=("semantic", "panoptic"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--candidates", type=int, default=20, help="of the panoptic result, among all queries")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all networks")
    parser.add_argument("--variants", nargs="+", choices=LABELS, help="of transformers")
    parser.add_argument("--no-memory", action="store_true", help="measures times alone")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    labels = [LABELS[variant] for variant in arguments.variants or (["compiled"] if on_gpu else ["eager"])]
    image = np.random.default_rng(0).integers(0, 256, (*arguments.size, 3), dtype=np.uint8)
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU cores"
    precision = "" if dtype == "float32" else f", {dtype}"
    size = " x ".join(map(str, arguments.size))
    backbone = arguments.backbone or default_backbone(arguments.model)
    num_classes = MODELS[arguments.model].num_classes
    print(f"{arguments.model}, {backbone}, {num_classes} classes, {size}, on {where}{precision}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_model(folder, arguments.model, backbone, arguments.short_edge or min(arguments.size))
        threshold = threshold_of(maskformer_jax.load(str(folder), dtype=dtype), image, arguments.candidates)
        made = {label: (label, arguments.model, folder, device, dtype) for label in (*labels, OURS)}
        if not on_gpu and not arguments.no_memory:
            for task in arguments.tasks:
                held = {label: peak_alone(run_of, one, (image, task, threshold)) for label, one in made.items()}
                print(f"{task:9s} " + ", ".join(f"{label} {value:.2f} GiB" for label, value in held.items()))
        libraries = {label: library_of(*one) for label, one in made.items()}
    for task in arguments.tasks:
        seconds = {label: [] for label in libraries}
        for answer in libraries.values():
            answer(image, task, threshold)  # compiles
        for _ in range(arguments.repeats):
            for label, answer in libraries.items():
                started = time.perf_counter()
                answer(image, task, threshold)
                seconds[label].append(time.perf_counter() - started)
        medians = {label: statistics.median(values) for label, values in seconds.items()}
        told = ", ".join(f"{label} {1000 * value:.0f} ms" for label, value in medians.items())
        own = medians.pop(OURS)
        print(f"{task:9s} {told}: ratio {', '.join(f'{value / own:.2f}' for value in medians.values())}")


if __name__ == "__main__":
    main()

"""The rows of transformers in `benchmarks/accelerator.py`. The only one of its files that needs PyTorch."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import torch
import transformers

from benchmarks import accelerator_rows as rows
from benchmarks.accelerator_rows import Row, Subject, images_of, median_ms
from benchmarks.subjects import draw_batch, settings_of
from benchmarks.theirs import MODELS, write_model
from benchmarks.train_step import Theirs, allow_tf32
from maskformer_jax import catalog


class Bench(rows.Bench):
    """The models of transformers on the first GPU, or the CPU."""

    def __init__(self):
        super().__init__()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        allow_tf32(True)

    def write(self, subject: Subject, folder: str) -> None:
        """Writes a model with random weights, and its processor."""
        name, backbone = subject.peer
        self.num_classes = len(catalog.load(settings_of(subject.recipe, {}).data.name))
        write_model(pathlib.Path(folder), name, backbone, subject.side, self.num_classes)

    def open(self, subject: Subject, folder: str, threshold: float) -> None:
        self._made, self.subject, self.folder, self.threshold = {}, subject, pathlib.Path(folder), threshold
        self.num_classes = len(catalog.load(settings_of(subject.recipe, {}).data.name))
        torch.compiler.reset()  # it stops compiling a function anew after eight shapes
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def prepare(self, wanted: Sequence[Row], seconds: float) -> dict[Row, str]:
        # On one thread: what has nothing to compile waits for nothing.
        return super().prepare(sorted(wanted, key=lambda row: row.library == rows.COMPILED), seconds)

    def make(self, row: Row) -> Callable[[float], dict]:
        torch.set_num_threads(torch.get_num_threads())  # of a new thread
        make = self._step if row.part == "training" else self._inference
        if row.part == "training" and row.library == rows.EAGER:  # nothing compiles, and its model is large
            return lambda seconds: self._timed(make(row), row.batch, seconds)
        run = make(row)
        run()  # compiles
        return functools.partial(self._timed, run, row.batch)

    def _timed(self, run: Callable[[], None], batch: int, seconds: float) -> dict:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        ms, calls = median_ms(run, seconds)
        peak = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if self.device == "cuda" else {}
        return {"ms": ms, "images_per_s": 1000 * batch / ms, "calls": calls, **peak}

    def _inference(self, row: Row) -> Callable[[], None]:
        name, _ = self.subject.peer
        network, processor = self._network(row.dtype, row.library)
        images = list(images_of(self.subject, row.batch))
        prepared = processor(images=images, return_tensors="pt")["pixel_values"].to(
            self.device, getattr(torch, row.dtype)
        )

        @torch.inference_mode()
        def forward() -> None:
            network(pixel_values=prepared)
            self._wait()

        @torch.inference_mode()
        def answer() -> None:
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            output = network(pixel_values=pixels.to(self.device, getattr(torch, row.dtype)))
            options = {"target_sizes": [image.shape[:2] for image in images], "threshold": self.threshold}
            options.update(overlap_mask_area_threshold=0.0, **MODELS[name].no_merging)
            for result in processor.post_process_panoptic_segmentation(output, **options):
                result["segmentation"].cpu().numpy()

        return answer if row.what == rows.END_TO_END else forward

    def _network(self, dtype: str, library: str) -> tuple:
        """A model, and its processor; rows of one dtype share what is compiled."""
        key = "_networks", str(self.folder)
        if getattr(self, "_key", None) != key:
            self._key, self._kept = key, {}
        if (dtype, library) not in self._kept:
            model = MODELS[self.subject.peer[0]].network.from_pretrained(self.folder).eval()
            model = model.to(self.device, getattr(torch, dtype))
            self._kept[dtype, library] = torch.compile(model) if library == rows.COMPILED else model
        return self._kept[dtype, library], transformers.AutoImageProcessor.from_pretrained(self.folder)

    def _step(self, row: Row) -> Callable[[], None]:
        size = (self.subject.side,) * 2
        batch = draw_batch(row.batch, size, self.num_classes, self.subject.segments, self.subject.room)
        theirs = Theirs(self.subject.peer[0], self.folder, batch, self.device, row.dtype, 1e-4)
        return theirs.step("compiled" if row.library == rows.COMPILED else "eager")

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

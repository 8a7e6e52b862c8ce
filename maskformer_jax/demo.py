"""Serves a local web page on which a model segments images.

python -m maskformer_jax.demo
python -m maskformer_jax.demo --model=WORKDIR --examples photos
"""

import argparse
import contextlib
import html
import io
import os
import signal
import sys
import tempfile
import time
import types
from base64 import b64encode
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from maskformer_jax import bundled, visualize
from maskformer_jax.engine.start import enable_compilation_cache
from maskformer_jax.errors import UserError
from maskformer_jax.files import limits, paths
from maskformer_jax.guard import Guard, listen
from maskformer_jax.predict import find_images
from maskformer_jax.programs import reporting
from maskformer_jax.segmenter.images import read_image
from maskformer_jax.segmenter.results import InstanceSegmentation, Segmentation
from maskformer_jax.segmenter.segmenter import INSTANCE_THRESHOLD, Segmenter, load

# Sides of the displayed image, in pixels; results always have the original size.
SHORTEST, LONGEST = visualize.LEGIBLE, 1600
HINT = "Drop an image to see its segments here."
WAIT = "Segmenting. The first image of each size takes longer, because the model is compiled for it."
TITLE = "maskformer_jax"
KEPT = 24 * 3600  # seconds that uploaded files are kept
ORDER = ("panoptic", "instance", "semantic")

# A hovered segment is highlighted in the image and in the list: `_link` sets --lit on all its elements.
# Named colors come from the theme, so that the page works in light and dark mode.
STYLE = """
.found { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.found .figure { position: relative; flex: 1 1 380px; min-width: 0; max-width: 85vh; line-height: 0; }
.found .figure svg { width: 100%; height: auto; border-radius: 8px; }
.found path { fill: #fff; fill-opacity: calc(0.3 * var(--lit, 0)); fill-rule: evenodd; pointer-events: all;
  stroke: #fff; stroke-opacity: var(--lit, 0); stroke-width: 2px; vector-effect: non-scaling-stroke; }
.found .name { position: absolute; transform: translate(-50%, -115%); opacity: var(--lit, 0); pointer-events: none;
  padding: 5px 10px; border-radius: 6px; background: #18181be6; color: #fff; font-size: 14px; line-height: 1.3;
  white-space: nowrap; }
.found .list { flex: 0 1 auto; min-width: 0; overflow-x: auto; }
.found .list p { margin: 10px 8px; }
.found table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
.found th { padding: 4px 8px; text-align: left; font-weight: 500; color: var(--body-text-color-subdued); }
.found td { padding: 7px 8px; border-top: 1px solid var(--border-color-primary); white-space: nowrap;
  color: var(--body-text-color); background: rgb(120 120 130 / calc(0.2 * var(--lit, 0))); }
.found .number { text-align: right; }
.found .color { display: inline-block; width: 22px; height: 14px; border-radius: 3px; vertical-align: -2px; }
.found .subdued { color: var(--body-text-color-subdued); }
.found .message { flex: 1 1 100%; margin: 0; padding: 12px 16px; border-radius: 8px; overflow-wrap: anywhere;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color); }
.found .wait { animation: appear 0.2s 0.3s backwards; }
@keyframes appear { from { opacity: 0; } }
.found .hint { padding: 200px 16px; border-style: dashed; text-align: center; color: var(--body-text-color-subdued); }
.found .error { border-color: var(--error-border-color); background: var(--error-background-fill); }
.task label { padding: 6px 8px; }
.task .wrap { gap: 6px; }
.head { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; }
.head h1 { margin: 0; font-size: 22px; font-weight: 600; }
"""


@reporting
def main(argv: list[str] | None = None) -> int:
    """Serves the page until it is interrupted. On an error, exits with a message that starts with "error:"."""
    options = _parser().parse_args(argv)
    enable_compilation_cache()
    gradio = _gradio()
    _check_port(options.host, options.port)
    examples = _examples(options.examples or bundled.examples(options.model))
    segmenter = load(options.model)
    with _uploads() as uploads:
        page = build_page(gradio, segmenter, examples)
        try:
            serve(gradio, page, options.host, options.port, uploads)
            print(f"{paths.printable(segmenter.origin)}: {page.local_url} (press Ctrl-C to stop)", flush=True)
            page.block_thread()
        finally:
            page.close(verbose=False)
    return 0


@contextlib.contextmanager
def _uploads() -> Iterator[str]:
    """A folder for uploaded files, removed on every way out: also on SIGTERM, and when the terminal closes."""

    def leave(number: int, frame: types.FrameType | None) -> None:
        raise SystemExit(128 + number)

    ends = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # nohup has the end of the terminal ignored.
    ends = [number for number in ends if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, leave) for number in ends}
    handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    try:
        with tempfile.TemporaryDirectory(prefix="maskformer_jax_", ignore_cleanup_errors=True) as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            try:
                yield folder
            finally:
                for number in handlers:  # a second signal must not end the removal
                    signal.signal(number, signal.SIG_IGN)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.demo")
    parser.add_argument(
        "--model",
        default=next(iter(bundled.MODELS)),
        help=f"{bundled.SOURCES} (default: %(default)s)",
    )
    parser.add_argument(
        "--examples",
        nargs="+",
        metavar="PATH",
        help="example images: files, folders, quoted patterns (default: those of the model, if it has some)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 gives other machines access, without a password")
    parser.add_argument("--port", type=int, default=7860)
    return parser


def _gradio() -> ModuleType:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError(f'the demo needs gradio ({error}): pip install "maskformer-jax[demo]"') from None
    return gradio


def _check_port(host: str, port: int) -> None:
    """Raises UserError if the page cannot be served at this address, before the model is loaded."""
    listen(host, port).close()


def _examples(paths: list[str]) -> list[str]:
    images, failed = find_images(paths)
    failed += [f"{image.path}: no such file" for image in images if not os.path.isfile(image.path)]
    if failed:
        raise UserError(f"--examples: {'; '.join(failed)}")
    return [image.path for image in images]


def thresholds_of(segmenter: Segmenter) -> dict[str, dict[str, float]]:
    """The default thresholds of each task, as keyword arguments of `Segmenter.segment`."""
    inference = segmenter.inference
    panoptic = {"threshold": inference.score_threshold, "overlap": inference.overlap_threshold}
    return {"panoptic": panoptic, "instance": {"threshold": INSTANCE_THRESHOLD}, "semantic": {}}


def segment_to_html(segmenter: Segmenter, path: str | None, task: str, thresholds: dict[str, float]) -> str:
    """Segments an image file and returns HTML. An unreadable file gives a message instead.

    Args:
        path: None if there is no image yet.
        thresholds: keyword arguments of `Segmenter.segment`.
    """
    if path is None:
        return _found(_message(HINT, "hint"))
    try:
        image = read_image(path)
        start = time.perf_counter()
        result = segmenter.segment(image, task, **thresholds)
    except UserError as error:
        # The folder of uploads means nothing to the user.
        return _found(_message(str(error).replace(path, os.path.basename(path)), "error"))
    return result_to_html(image, result, time.perf_counter() - start)


def result_to_html(image: np.ndarray, result: Segmentation | InstanceSegmentation, seconds: float) -> str:
    """HTML of the overlay and of the list of segments with their colors. Hovering either shows the name of the segment.

    Args:
        image: [H, W, 3] uint8.
        seconds: the time that segmentation took.
    """
    records = result.segments()
    step = -(-max(image.shape[:2]) // LONGEST)
    smaller = np.asarray(Image.fromarray(image).reduce(step))
    shown, id_map = visualize.enlarge(smaller, result.id_map[::step, ::step], SHORTEST, LONGEST)
    overlay = visualize.overlay(shown, id_map, result.labels, result.classes)
    outlines = [_outlines(_mask(result, id_map, record["id"])) for record in records]
    seen = [pair for pair in zip(records, outlines, strict=True) if pair[1]]
    # The last one is on top. Smaller instances hide larger ones, as in the overlay.
    seen.sort(key=lambda pair: -pair[0]["area"])
    height, width = id_map.shape
    figure = (
        f'<div class="figure"><svg viewBox="0 0 {width} {height}" role="img">'
        f'<image href="{_data_uri(overlay)}" width="{width}" height="{height}"/>'
        f"{''.join(_path(*pair) for pair in seen)}</svg>{''.join(_name(*pair, id_map.shape) for pair in seen)}</div>"
    )
    caption = f"{image.shape[1]} x {image.shape[0]} pixels, {seconds:.2f} s"
    if not records:
        return _found(_message(f"No segments: {result.why_empty()}."), figure, f'<p class="subdued">{caption}</p>')
    colors = visualize.segment_colors(result.labels, result.classes).round().astype(int).tolist()
    return _found(_link(len(records)), figure, _list(records, colors, image.shape[:2], caption))


def _found(*parts: str) -> str:
    return f'<div class="found">{"".join(parts)}</div>'


def _message(text: str, kind: str = "") -> str:
    return f'<p class="message {kind}">{html.escape(text)}</p>'


def _link(count: int) -> str:
    selectors = [f'.found:has([data-id="{value}"]:hover) [data-id="{value}"]' for value in range(1, count + 1)]
    return f"<style>{','.join(selectors)} {{ --lit: 1; }}</style>"


def _mask(result: Segmentation | InstanceSegmentation, id_map: np.ndarray, value: int) -> np.ndarray:
    """[H, W] uint8 mask of a segment, including the hidden parts of an instance, at the size of `id_map`."""
    if isinstance(result, InstanceSegmentation):
        mask = result.masks[value - 1].astype(np.uint8)
        return cv2.resize(mask, id_map.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return (id_map == value).astype(np.uint8)


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The contours of a mask and of its holes: [N, 2] x and y of each."""
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.reshape(-1, 2) for contour in contours]


def _path(record: dict[str, Any], outlines: list[np.ndarray]) -> str:
    lines = (f"M{' '.join(map(str, outline.ravel().tolist()))}Z" for outline in outlines)
    return f'<path data-id="{record["id"]}" d="{"".join(lines)}"/>'


def _name(record: dict[str, Any], outlines: list[np.ndarray], size: tuple[int, int]) -> str:
    """The name of a segment, placed above its largest part, but inside the image."""
    left, top, width, _ = cv2.boundingRect(max(outlines, key=cv2.contourArea))
    x, y = 100 * (left + width / 2) / size[1], 100 * top / size[0]
    place = f"left: clamp(60px, {x:.1f}%, 100% - 60px); top: max(40px, {y:.1f}%)"
    text = f"{html.escape(record['name'])} {record['score']:.2f}"
    return f'<div class="name" data-id="{record["id"]}" style="{place}">{text}</div>'


def _list(records: list[dict[str, Any]], colors: list[list[int]], size: tuple[int, int], caption: str) -> str:
    rows = "".join(_row(record, color, size) for record, color in zip(records, colors, strict=True))
    heads = '<th class="number">id</th><th></th><th>name</th><th></th><th class="number">score</th>'
    heads += '<th class="number">area</th><th></th><th>box</th>'
    segments = "1 segment" if len(records) == 1 else f"{len(records)} segments"
    return (
        f'<div class="list"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="subdued">{segments}, {caption}</p></div>'
    )


def _row(record: dict[str, Any], color: list[int], size: tuple[int, int]) -> str:
    cells: Iterable[tuple[str, str]] = (
        ("number", str(record["id"])),
        ("", f'<span class="color" style="background: rgb({" ".join(map(str, color))})"></span>'),
        ("", html.escape(record["name"])),
        ("subdued", "thing" if record["is_thing"] else "stuff"),
        ("number", f"{record['score']:.2f}"),
        ("number", f"{record['area']:,}"),
        ("number subdued", f"{100 * record['area'] / (size[0] * size[1]):.1f} %"),
        ("subdued", ", ".join(map(str, record["box"]))),
    )
    drawn = "".join(f'<td class="{kind}">{text}</td>' for kind, text in cells)
    return f'<tr data-id="{record["id"]}">{drawn}</tr>'


def _data_uri(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=92)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"


def build_page(gradio: ModuleType, segmenter: Segmenter, examples: list[str]) -> Any:
    """The page for a model, a `gradio.Blocks`.

    Args:
        gradio: the imported module.
        examples: example image files on the page.
    """
    tasks, defaults = [task for task in ORDER if task in segmenter.tasks], thresholds_of(segmenter)
    head = f"<h1>{TITLE}</h1><span>{html.escape(segmenter.origin)}, {len(segmenter.classes)} classes</span>"
    # Files are deleted when they are KEPT seconds old.
    options = {"analytics_enabled": False, "fill_width": True, "delete_cache": (KEPT // 10, KEPT)}
    with gradio.Blocks(title=TITLE, **options) as page:
        gradio.HTML(f'<div class="head">{head}</div>', apply_default_css=False, js_on_load=None)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=350):
                image = gradio.Image(
                    label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260
                )
                if examples:
                    gradio.Examples(examples, image, label="Examples")
                task = gradio.Radio(tasks, value=tasks[0], label="Task", visible=len(tasks) > 1, elem_classes="task")
                sliders = {name: _sliders(gradio, defaults[name], name == tasks[0]) for name in tasks}
            with gradio.Column(scale=4, min_width=400):
                shown = gradio.HTML(_found(_message(HINT, "hint")), apply_default_css=False, js_on_load=None)

        flat = [slider for group in sliders.values() for slider in group.values()]

        def respond(file, chosen, *values):
            by_slider = dict(zip(flat, values, strict=True))
            thresholds = {name: by_slider[slider] for name, slider in sliders[chosen].items()}
            return segment_to_html(segmenter, file and file["path"], chosen, thresholds)

        def begin(file, *others):
            if file:
                yield _found(_message(WAIT, "hint wait"))
            yield respond(file, *others)

        # Uploads arrive unprocessed: `segment_to_html` reports files that are not images.
        common = {"inputs": [image, task, *flat], "outputs": shown, "preprocess": False}
        common |= {"api_visibility": "private", "trigger_mode": "always_last"}
        gradio.on([image.change, task.change], begin, show_progress="minimal", **common)
        if flat:
            gradio.on([slider.change for slider in flat], respond, show_progress="hidden", **common)

            def show_sliders(chosen):
                return [gradio.update(visible=slider in sliders[chosen].values()) for slider in flat]

            task.change(show_sliders, task, flat, api_visibility="private", show_progress="hidden")
    return page


def _sliders(gradio: ModuleType, thresholds: dict[str, float], visible: bool) -> dict[str, Any]:
    """A slider for each threshold of a task, by the name of the threshold."""
    labels = {"threshold": ("Score", "segments score above it"), "overlap": ("Overlap", "visible fraction of a mask")}
    return {
        name: gradio.Slider(0, 1, value, step=0.01, label=labels[name][0], info=labels[name][1], visible=visible)
        for name, value in thresholds.items()
    }


def serve(gradio: ModuleType, page: Any, host: str, port: int, uploads: str) -> None:
    """Starts to serve a page and returns. The page loads everything from this machine.

    Args:
        uploads: the folder of uploaded files.
    """
    from starlette.middleware import Middleware

    theme = gradio.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    # gradio requests its own server to see whether it is up. The request must not go through a proxy.
    exceptions = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = ",".join(filter(None, [exceptions, "localhost", host]))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            max_file_size=limits.UPLOAD_BYTES.value,
            ssr_mode=False,  # another server, in front of the guard
            app_kwargs={"middleware": [Middleware(Guard, host=host, uploads=uploads)]},
            theme=theme,
            css=STYLE,
        )
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: cannot serve the page at this address: {error}") from error


if __name__ == "__main__":
    sys.exit(main())

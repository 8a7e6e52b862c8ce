"""A page in the browser, on this machine, where a model segments images.

python -m maskformer_jax.demo --model=WORKDIR --examples photos
"""

import argparse
import html
import io
import os
import socket
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from maskformer_jax import visualize
from maskformer_jax.engine.start import enable_compilation_cache
from maskformer_jax.errors import UserError
from maskformer_jax.predict import find_images
from maskformer_jax.segmenter.images import read_image
from maskformer_jax.segmenter.results import InstanceSegmentation, Segmentation
from maskformer_jax.segmenter.segmenter import INSTANCE_THRESHOLD, Segmenter, load

SHORTEST, LONGEST = 640, 1600  # sides of the picture on the page, in pixels; answers are always at the image's own size
HINT = "Drop an image: what the model finds in it appears here."
WAIT = "Segmenting. The first image of a new size takes longer: the model is compiled for it."
TITLE = "maskformer_jax"
ORDER = ("panoptic", "instance", "semantic")

# Segments light up in the picture and in the list together: `_link` sets --lit on all that belong to the one hovered.
# Colours with a name are those of the theme, light and dark.
STYLE = """
.found { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.found .picture { position: relative; flex: 1 1 380px; min-width: 0; max-width: 85vh; line-height: 0; }
.found .picture svg { width: 100%; height: auto; border-radius: 8px; }
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


def main(argv: list[str] | None = None) -> int:
    """Serves the page until it is interrupted; ends the program with a line that starts with "error:" otherwise."""
    options = _parser().parse_args(argv)
    enable_compilation_cache()
    try:
        gradio = _gradio()
        _check_port(options.host, options.port)
        examples = _examples(options.examples)
        segmenter = load(options.model)
        with tempfile.TemporaryDirectory(prefix="maskformer_jax_") as uploads:
            os.environ["GRADIO_TEMP_DIR"] = uploads
            page = build_page(gradio, segmenter, examples)
            serve(gradio, page, options.host, options.port)
            print(f"{segmenter.origin}: {page.local_url} (Ctrl-C ends it)", flush=True)
            page.block_thread()
    except UserError as error:
        sys.exit(f"error: {error}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.demo")
    parser.add_argument("--model", required=True, help="what maskformer_jax.load takes: a --workdir, file or hub id")
    parser.add_argument(
        "--examples", nargs="+", default=[], metavar="PATH", help="images to pick from: files, folders, quoted patterns"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in, without a password")
    parser.add_argument("--port", type=int, default=7860)
    return parser


def _gradio() -> ModuleType:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError(f'the page needs gradio ({error}): pip install "maskformer-jax[demo]"') from None
    return gradio


def _check_port(host: str, port: int) -> None:
    """Before the model is read, which may take long."""
    if not 0 < port < 65536:
        raise UserError(f"--port={port}: it must lie in 1..65535")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(
            f"--host={host} --port={port}: cannot listen there ({error}). Another program may: use another --port."
        ) from error


def _examples(paths: list[str]) -> list[str]:
    images, failed = find_images(paths)
    failed += [f"{image.path}: no such file" for image in images if not os.path.isfile(image.path)]
    if failed:
        raise UserError(f"--examples: {'; '.join(failed)}")
    return [image.path for image in images]


def thresholds_of(segmenter: Segmenter) -> dict[str, dict[str, float]]:
    """The thresholds of each task by the names that `Segmenter.segment` has for them, with their defaults."""
    inference = segmenter.inference
    of_panoptic = {"threshold": inference.score_threshold, "overlap": inference.overlap_threshold}
    return {"panoptic": of_panoptic, "instance": {"threshold": INSTANCE_THRESHOLD}, "semantic": {}}


def answer(segmenter: Segmenter, path: str | None, task: str, thresholds: dict[str, float]) -> str:
    """What is found in an image file, as HTML; what is wrong with the file if it is no image.

    Args:
        path: None if there is no image yet.
        thresholds: as `Segmenter.segment` takes them.
    """
    if path is None:
        return _found(_message(HINT, "hint"))
    try:
        image = read_image(path)
        start = time.perf_counter()
        found = segmenter.segment(image, task, **thresholds)
    except UserError as error:
        # The page keeps uploads in a folder that says nothing to anyone.
        return _found(_message(str(error).replace(path, os.path.basename(path)), "error"))
    return show(image, found, time.perf_counter() - start)


def show(image: np.ndarray, found: Segmentation | InstanceSegmentation, seconds: float) -> str:
    """HTML: the overlay, the list of segments with their colours, and names that show when either is hovered.

    Args:
        image: [H, W, 3] uint8.
        seconds: that it took.
    """
    records = found.segments()
    step = -(-max(image.shape[:2]) // LONGEST)
    smaller = np.asarray(Image.fromarray(image).reduce(step))
    shown, id_map = visualize.enlarge(smaller, found.id_map[::step, ::step], SHORTEST, LONGEST)
    overlay = visualize.overlay(shown, id_map, found.labels, found.classes)
    outlines = [_outlines(_mask(found, id_map, record["id"])) for record in records]
    seen = [pair for pair in zip(records, outlines, strict=True) if pair[1]]
    # The last is on top: of overlapping instances the smallest, as in the overlay.
    seen.sort(key=lambda pair: -pair[0]["area"])
    height, width = id_map.shape
    picture = (
        f'<div class="picture"><svg viewBox="0 0 {width} {height}" role="img">'
        f'<image href="{_data_uri(overlay)}" width="{width}" height="{height}"/>'
        f"{''.join(_path(*pair) for pair in seen)}</svg>{''.join(_name(*pair, id_map.shape) for pair in seen)}</div>"
    )
    said = f"{image.shape[1]} x {image.shape[0]} pixels, {seconds:.2f} s"
    if not records:
        return _found(_message(f"Nothing found: {found.why_empty()}."), picture, f'<p class="subdued">{said}</p>')
    colors = visualize.segment_colors(found.labels, found.classes).round().astype(int).tolist()
    return _found(_link(len(records)), picture, _list(records, colors, image.shape[:2], said))


def _found(*parts: str) -> str:
    return f'<div class="found">{"".join(parts)}</div>'


def _message(text: str, kind: str = "") -> str:
    return f'<p class="message {kind}">{html.escape(text)}</p>'


def _link(count: int) -> str:
    selectors = [f'.found:has([data-id="{value}"]:hover) [data-id="{value}"]' for value in range(1, count + 1)]
    return f"<style>{','.join(selectors)} {{ --lit: 1; }}</style>"


def _mask(found: Segmentation | InstanceSegmentation, id_map: np.ndarray, value: int) -> np.ndarray:
    """[H, W] uint8 of a segment, hidden parts included, in the size of a map of what is seen."""
    if isinstance(found, InstanceSegmentation):
        mask = found.masks[value - 1].astype(np.uint8)
        return cv2.resize(mask, id_map.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return (id_map == value).astype(np.uint8)


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """[N, 2] x and y of each closed line around a mask and its holes."""
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.reshape(-1, 2) for contour in contours]


def _path(record: dict[str, Any], outlines: list[np.ndarray]) -> str:
    lines = (f"M{' '.join(map(str, outline.ravel().tolist()))}Z" for outline in outlines)
    return f'<path data-id="{record["id"]}" d="{"".join(lines)}"/>'


def _name(record: dict[str, Any], outlines: list[np.ndarray], size: tuple[int, int]) -> str:
    """The name of a segment above its largest part; further inside near the picture's border."""
    left, top, width, _ = cv2.boundingRect(max(outlines, key=cv2.contourArea))
    x, y = 100 * (left + width / 2) / size[1], 100 * top / size[0]
    place = f"left: clamp(60px, {x:.1f}%, 100% - 60px); top: max(40px, {y:.1f}%)"
    text = f"{html.escape(record['name'])} {record['score']:.2f}"
    return f'<div class="name" data-id="{record["id"]}" style="{place}">{text}</div>'


def _list(records: list[dict[str, Any]], colors: list[list[int]], size: tuple[int, int], said: str) -> str:
    rows = "".join(_row(record, color, size) for record, color in zip(records, colors, strict=True))
    heads = '<th class="number">id</th><th></th><th>name</th><th></th><th class="number">score</th>'
    heads += '<th class="number">area</th><th></th><th>box</th>'
    segments = "1 segment" if len(records) == 1 else f"{len(records)} segments"
    return (
        f'<div class="list"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="subdued">{segments}, {said}</p></div>'
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


def _data_uri(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=92)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"


def build_page(gradio: ModuleType, segmenter: Segmenter, examples: list[str]) -> Any:
    """The page of a model, a `gradio.Blocks`.

    Args:
        gradio: the module, which only this page needs.
        examples: image files to pick from.
    """
    tasks, defaults = [task for task in ORDER if task in segmenter.tasks], thresholds_of(segmenter)
    head = f"<h1>{TITLE}</h1><span>{html.escape(segmenter.origin)}, {len(segmenter.classes)} classes</span>"
    with gradio.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
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
            return answer(segmenter, file and file["path"], chosen, thresholds)

        def begin(file, *others):
            if file:
                yield _found(_message(WAIT, "hint wait"))
            yield respond(file, *others)

        # Files come as they were uploaded: whether they are images is `answer`'s to say.
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
    """A slider for each threshold of a task, by its name."""
    labels = {"threshold": ("Score", "segments are above it"), "overlap": ("Overlap", "of a mask stays visible")}
    return {
        name: gradio.Slider(0, 1, value, step=0.01, label=labels[name][0], info=labels[name][1], visible=visible)
        for name, value in thresholds.items()
    }


def serve(gradio: ModuleType, page: Any, host: str, port: int) -> None:
    """Starts to serve a page and returns; all that it loads comes from this machine."""
    theme = gradio.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    # gradio asks its own server whether it is up, and would ask the proxy of a network that has one.
    spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = ",".join(filter(None, [spared, "localhost", host]))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            theme=theme,
            css=STYLE,
        )
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: the page cannot be served there: {error}") from error


if __name__ == "__main__":
    sys.exit(main())

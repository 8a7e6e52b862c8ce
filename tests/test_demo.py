"""The demo page: results, error messages, and its behavior in a browser."""

import base64
import dataclasses
import http.client
import io
import os
import pathlib
import shutil
import signal
import socket
import sys
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest
from PIL import Image

import maskformer_jax
from maskformer_jax import bundled, demo, visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.segmenter.results import InstanceSegmentation, Segmentation
from tests.segmenter.test_segmenter import CLASSES, photo, write_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ours"
    write_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def segmenter(model):
    return maskformer_jax.load(model)


@pytest.fixture
def photo_file(tmp_path):
    path = tmp_path / "<scene>.png"
    Image.fromarray(photo(40, 48)).save(path)
    return str(path)


def parse(fragment):
    """The parts of a well-formed fragment: root, rows of the list, paths and names by id."""
    root = ET.fromstring(fragment)
    rows = {row.get("data-id"): ["".join(cell.itertext()) for cell in row] for row in root.iter("tr")}
    rows.pop(None, None)  # the heads
    paths = {path.get("data-id"): path.get("d") for path in root.iter("path")}
    names = {each.get("data-id"): each for each in root.iter("div") if each.get("class") == "name"}
    return root, rows, paths, names


def filled(path, shape):
    """The mask [H, W] inside an outline."""
    lines = [line.removeprefix("M") for line in path.split("Z") if line]
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.array(line.split(), np.int32).reshape(-1, 2) for line in lines], 1)
    return mask.astype(bool)


def blocks(seed=0, size=24, values=4):
    """An id map [size, 2 * size] of 8-pixel blocks, some of them void, so that segments have parts and holes."""
    drawn = np.random.default_rng(seed).integers(0, values, (size // 8, size // 4))
    return drawn.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint16)


def image_of(root):
    (image,) = root.iter("image")
    data = base64.b64decode(image.get("href").removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def test_the_list_has_the_values_of_the_records():
    found = Segmentation(blocks(), np.array([3, 0, 0]), np.array([0.5, 0.91, 0.25]), CLASSES)
    _, rows, _, names = parse(demo.result_to_html(photo(24, 48), found, 0.1))
    assert list(rows) == ["1", "2", "3"]
    for record, row in zip(found.segments(), rows.values(), strict=True):
        kind, score, area = "thing" if record["is_thing"] else "stuff", f"{record['score']:.2f}", record["area"]
        percentage, box = f"{100 * area / (24 * 48):.1f} %", ", ".join(map(str, record["box"]))
        assert row == [str(record["id"]), "", record["name"], kind, score, str(area), percentage, box]
        assert names[str(record["id"])].text == f"{record['name']} {score}"


def test_the_list_and_the_image_have_the_colors_of_the_overlay():
    found = Segmentation(blocks(), np.array([3, 0, 0]), np.array([0.5, 0.9, 0.2]), CLASSES)
    root, *_ = parse(demo.result_to_html(photo(24, 48), found, 0.1))
    colors = visualize.segment_colors(found.labels, CLASSES).round().astype(int)
    styles = [each.get("style") for each in root.iter("span")]
    assert styles == [f"background: rgb({r} {g} {b})" for r, g, b in colors]
    expected = visualize.overlay(
        *visualize.enlarge(photo(24, 48), found.id_map, demo.SHORTEST, demo.LONGEST), found.labels, CLASSES
    )
    shown = image_of(root)
    assert shown.shape == expected.shape
    # Lossy compression changes values by less than this, other colors by far more.
    assert np.abs(shown.astype(float) - expected).mean() < 2


def test_outlines_follow_masks_with_parts_and_holes():
    found = Segmentation(blocks(), np.array([3, 0, 0]), np.array([0.5, 0.9, 0.2]), CLASSES)
    root, _, paths, _ = parse(demo.result_to_html(photo(24, 48), found, 0.1))
    shape = image_of(root).shape[:2]
    factor = shape[0] // 24
    larger = found.id_map.repeat(factor, axis=0).repeat(factor, axis=1)
    assert factor > 1
    for value, path in paths.items():
        np.testing.assert_array_equal(filled(path, shape), larger == int(value))


def test_outlines_of_instances_include_hidden_parts_and_the_smallest_is_on_top():
    masks = np.zeros((2, 40, 40), bool)
    masks[0, 10:20, 10:20] = masks[1, 5:35, 5:35] = True
    found = InstanceSegmentation(masks, np.array([1, 0]), np.array([0.9, 0.8]), CLASSES)
    root, rows, paths, _ = parse(demo.result_to_html(photo(40, 40), found, 0.1))
    assert list(rows) == ["1", "2"]
    assert list(paths) == ["2", "1"]
    shape = image_of(root).shape[:2]
    for value, path in paths.items():
        expected = masks[int(value) - 1].repeat(shape[0] // 40, axis=0).repeat(shape[1] // 40, axis=1)
        np.testing.assert_array_equal(filled(path, shape), expected)


def test_large_images_are_shown_smaller_and_measured_as_they_are():
    id_map = np.ones((30, 2 * demo.LONGEST + 1), np.uint16)
    id_map[:, 1000:] = 2
    found = Segmentation(id_map, np.array([0, 3]), np.array([0.5, 0.5]), CLASSES)
    root, rows, paths, _ = parse(demo.result_to_html(photo(*id_map.shape), found, 0.1))
    shown = image_of(root).shape[:2]
    assert max(shown) <= demo.LONGEST
    assert len(paths) == 2
    assert rows["1"][5] == "30,000"


def test_a_segment_too_small_to_display_is_in_the_list():
    id_map = np.ones((10, 2 * demo.LONGEST), np.uint16)
    id_map[5, 101] = 2
    found = Segmentation(id_map, np.array([0, 3]), np.array([0.5, 0.5]), CLASSES)
    _, rows, paths, names = parse(demo.result_to_html(photo(*id_map.shape), found, 0.1))
    assert list(rows) == ["1", "2"]
    assert list(paths) == list(names) == ["1"]


def test_names_are_escaped():
    classes = Classes.from_dict({"names": ['<script>"&', "b"]}, "test")
    found = Segmentation(np.ones((8, 8), np.uint16), np.array([0]), np.array([0.5]), classes)
    root, rows, _, _ = parse(demo.result_to_html(photo(8, 8), found, 0.1))
    assert rows["1"][2] == '<script>"&'
    assert not list(root.iter("script"))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2000, 1)])
def test_images_of_every_shape_are_shown(size):
    found = Segmentation(np.ones(size, np.uint16), np.array([0]), np.array([0.5]), CLASSES)
    root, rows, paths, _ = parse(demo.result_to_html(photo(*size), found, 0.1))
    assert rows["1"][6] == "100.0 %"
    assert filled(paths["1"], image_of(root).shape[:2]).all()


def test_every_task_takes_its_thresholds(segmenter, photo_file):
    thresholds = demo.thresholds_of(segmenter)
    assert set(segmenter.tasks) == set(thresholds) == {"panoptic", "instance", "semantic"}
    for task, values in thresholds.items():
        plain = segmenter.segment(photo(40, 48), task)
        assert plain.segments() == segmenter.segment(photo(40, 48), task, **values).segments()
        _, rows, _, _ = parse(demo.segment_to_html(segmenter, photo_file, task, values))
        assert len(rows) == len(plain.labels)
    _, rows, _, _ = parse(demo.segment_to_html(segmenter, photo_file, "instance", {"threshold": 0.0}))
    assert rows


def test_only_tasks_of_the_model_are_offered(segmenter, monkeypatch):
    monkeypatch.setattr(segmenter, "classes", Classes.from_dict({"names": list("abcde")}, "test"))
    assert set(segmenter.tasks) == {"panoptic", "semantic"}
    of_pixels = dataclasses.replace(segmenter.network, num_queries=None)
    monkeypatch.setattr(segmenter, "network", of_pixels)
    assert segmenter.tasks == ("semantic",)


def test_the_reason_for_no_segments_is_shown(segmenter, photo_file):
    thresholds = {"threshold": 1.0, "overlap": 0.5}
    root, rows, paths, _ = parse(demo.segment_to_html(segmenter, photo_file, "panoptic", thresholds))
    assert not rows
    assert not paths
    why = segmenter.panoptic(photo(40, 48), **thresholds).why_empty()
    assert f"No segments: {why}." in "".join(root.itertext())


def test_errors_name_the_file(segmenter, photo_file, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pathlib.Path(photo_file).read_bytes()[:100])
    for path, message in (
        (str(broken), "broken.png: not a readable image (image file is truncated)"),
        (str(tmp_path / "no.png"), "no.png: not a readable"),
    ):
        root, _, _, _ = parse(demo.segment_to_html(segmenter, path, "panoptic", {}))
        text = "".join(root.itertext())
        assert text.startswith(message)
        assert str(tmp_path) not in text
    root, _, _, _ = parse(demo.segment_to_html(segmenter, photo_file, "panoptic", {"threshold": 7}))
    assert "threshold is 7; it must lie in 0..1" in "".join(root.itertext())
    assert demo.HINT in demo.segment_to_html(segmenter, None, "panoptic", {})


def test_without_gradio_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r'error: the demo needs gradio .* pip install "maskformer-jax\[demo\]"'):
        demo.main(["--model=nowhere"])


def test_without_arguments_it_shows_a_model_of_the_package_and_its_examples(monkeypatch):
    loaded, shown = [], []
    monkeypatch.setitem(sys.modules, "gradio", object())
    monkeypatch.setattr(demo, "load", loaded.append)
    monkeypatch.setattr(demo, "build_page", lambda gradio, segmenter, examples: shown.extend(examples) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo.main([f"--port={free_port()}"])
    assert loaded == ["shapes"]
    assert shown == bundled.examples("shapes") != []


def test_an_unusable_port_is_reported_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", object())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"--host=127.0.0.1 --port={port}: cannot listen .*\(.*in use"):
            demo.main(["--model=nowhere", f"--port={port}"])
    for port in (0, -1, 65536):
        with pytest.raises(SystemExit, match=rf"error: --port={port}: it must lie in 1\.\.65535"):
            demo.main(["--model=nowhere", f"--port={port}"])


def test_missing_examples_are_reported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", object())
    with pytest.raises(SystemExit, match=r"--examples: .*no images in this folder.*; x\.png: no such file"):
        demo.main(["--model=nowhere", f"--port={free_port()}", "--examples", str(tmp_path), "x.png"])


@pytest.fixture
def usual_signals():
    """Signals as a terminal has them: programs in the background, and under nohup, ignore some."""
    handlers = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.usefixtures("usual_signals")
def test_uploads_are_removed_on_every_way_out(number):
    def leave():
        with demo._uploads() as folder:
            folders.append(folder)
            assert os.environ["GRADIO_TEMP_DIR"] == folder
            (pathlib.Path(folder) / "photo.png").write_bytes(b"private")
            signal.raise_signal(number)

    folders, before = [], signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        leave()
    assert number == signal.SIGINT or caught.value.code == 128 + number
    assert not os.path.exists(folders[0])
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("usual_signals")
def test_a_second_signal_does_not_end_the_removal(monkeypatch):
    removed, rmtree = [], shutil.rmtree

    def slowly(folder, *args, **options):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        removed.append(folder)
        rmtree(folder, *args, **options)

    monkeypatch.setattr("tempfile.TemporaryDirectory._rmtree", classmethod(lambda cls, name, **_: slowly(name)))
    with demo._uploads() as folder:
        pass
    assert removed == [folder]


def request(address, path, headers=(), body=None):
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=60)
    connection.request("POST" if body is not None else "GET", path, body, dict(headers))
    return connection.getresponse()


def test_the_served_page_refuses_other_addresses_other_pages_and_large_uploads(served, tmp_path, monkeypatch):
    own = served.removeprefix("http://").rstrip("/")
    assert request(served, "/").status == 200
    assert request(served, "/config").status == 200
    for path in ("/", "/config", "/gradio_api/info"):
        assert request(served, path, {"Host": "evil.example"}).status == 421
        assert request(served, path, {"Host": own, "Origin": "http://evil.example"}).status == 403
    boundary = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n%s\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Origin": f"http://{own}"}
    assert request(served, "/gradio_api/upload", headers, boundary % b"small").status == 200
    assert [path.read_bytes() for path in (tmp_path / "uploads").rglob("a.png")] == [b"small"]
    monkeypatch.setenv("MASKFORMER_MAX_UPLOAD_BYTES", "1000")
    assert request(served, "/gradio_api/upload", headers, boundary % bytes(1000)).status == 413
    assert len(list((tmp_path / "uploads").rglob("a.png"))) == 1


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def served(segmenter, photo_file, tmp_path, monkeypatch):
    """The address of a served page."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    # The page must not use the proxy of the environment.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", os.environ.get("no_proxy", ""))
    gradio = pytest.importorskip("gradio")
    page = demo.build_page(gradio, segmenter, [photo_file])
    demo.serve(gradio, page, "127.0.0.1", free_port(), str(tmp_path / "uploads"))
    yield page.local_url
    page.close()


@pytest.fixture
def tab(served):
    """A browser tab with the page, and the addresses that it requested."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        requested = []
        tab.on("request", lambda request: requested.append(request.url))
        tab.goto(served)
        yield tab, requested
        browser.close()


def test_the_page_in_a_browser(tab, served, segmenter, tmp_path):
    page, requested = tab
    page.get_by_text(demo.HINT).wait_for()

    # An example is segmented as soon as it is picked.
    page.locator("button.gallery-item").first.click()
    page.locator(".found svg").wait_for()
    expected = segmenter.panoptic(photo(40, 48)).segments()
    assert page.locator(".found tr[data-id]").count() == len(expected) > 0

    # Hovering a row highlights its segment and name; so does hovering the segment in the image.
    def lit():
        by_id = "Object.fromEntries(all.map(e => [e.dataset.id, +getComputedStyle(e).opacity]))"
        opacity = page.locator(".found .name").evaluate_all(f"all => {by_id}")
        return [int(value) for value, shown in opacity.items() if shown]

    page.mouse.move(0, 0)
    assert lit() == []
    page.locator('.found tr[data-id="1"]').hover()
    assert lit() == [1]
    image = page.locator(".found svg").bounding_box()
    id_map = segmenter.panoptic(photo(40, 48)).id_map
    for y, x in ((10, 12), (20, 24), (35, 40)):
        page.mouse.move(image["x"] + (x + 0.5) / 48 * image["width"], image["y"] + (y + 0.5) / 40 * image["height"])
        assert lit() == [id_map[y, x]] * bool(id_map[y, x])

    # A threshold changes the result. The sliders are those of the task.
    score = page.get_by_label("number input for Score").first
    score.fill("1")
    score.press("Enter")
    page.get_by_text("No segments: the best score").wait_for()
    page.get_by_label("semantic").check()
    page.locator(".found tr[data-id]").first.wait_for()
    page.locator("input[type=range]:visible").first.wait_for(state="hidden")
    assert page.locator(".found tr[data-id]").count() == len(segmenter.semantic(photo(40, 48)).segments())

    # The page reports a file that is not an image, and shows the hint when there is no file.
    page.locator("button[aria-label*=Clear], button[aria-label*=Remove]").first.click()
    page.get_by_text(demo.HINT).wait_for()
    (tmp_path / "notes.png").write_text("no image")
    page.set_input_files("input[type=file]", tmp_path / "notes.png")
    page.get_by_text("notes.png: not a readable image").wait_for()

    # Everything comes from this machine.
    outside = [address for address in requested if not address.startswith((served, "data:", "blob:"))]
    assert outside == []
    assert len(requested) > 10

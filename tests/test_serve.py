"""The HTTP service, on a server of the loopback: answers, batches, limits, bad input, metrics, and how it ends."""

import contextlib
import http.client
import io
import json
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

import maskformer_jax
from maskformer_jax import bundled, serve
from maskformer_jax.errors import UserError
from maskformer_jax.segmenter import results
from maskformer_jax.segmenter.images import read_image
from maskformer_jax.segmenter.live import Live
from maskformer_jax.segmenter.tasks import request
from tests.conftest import ROOT

BATCH, QUEUE = 4, 6
OTHERS = ("instance", "semantic")  # tasks, besides the default


@pytest.fixture(scope="module")
def segmenter():
    """A model on one of the devices: a batch over all of them takes much longer to compile."""
    with pytest.MonkeyPatch.context() as patch:
        first = jax.local_devices()[:1]
        patch.setattr(jax, "local_devices", lambda: first)
        yield maskformer_jax.load("shapes")


@contextlib.contextmanager
def busy(segmenter):
    """As if the device computed something all the time: batches begin after it."""
    with segmenter._one_compiles:
        yield


def wait_until(is_so) -> None:
    for _ in range(1000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 10 s")


def photo(height=72, width=96):
    return read_image(bundled.examples("shapes")[0])[-height:, -width:]


def images(count):
    return [np.roll(photo(), 5 * number, axis=1) for number in range(count)]


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# Images that arrive, without HTTP.


def test_images_that_wait_are_batches_and_have_the_results_of_each_alone(segmenter):
    sizes = []
    live = Live(segmenter, BATCH, sizes.append)
    asked = request("panoptic", segmenter.inference)
    given = images(6)
    with busy(segmenter):
        first = live.submit(given[0], asked)
        wait_until(lambda: sizes == [1])
        later = [live.submit(image, asked) for image in given[1:]]
        other = live.submit(given[0], request("panoptic", segmenter.inference, threshold=0.9))
        cancelled = live.submit(given[0], asked)
        assert cancelled.cancel()
    found = [answer.result() for answer in (first, *later)]
    assert other.result().segments() == segmenter.panoptic(given[0], 0.9).segments()
    live.close()
    assert sorted(sizes) == [1, 1, 1, 4]
    assert not live.is_alive
    for image, result in zip(given, found, strict=True):
        alone = segmenter.panoptic(image)
        np.testing.assert_array_equal(result.id_map, alone.id_map)
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-5)
    assert np.diff(np.sort([result.scores[0] for result in found])).min() > 5e-5  # no two images have one answer
    with pytest.raises(RuntimeError, match="no images are taken after close"):
        live.submit(given[0], asked)


def test_warming_up_runs_an_image_alone_and_a_whole_batch(segmenter, monkeypatch):
    numbers = []
    live, run = Live(segmenter, BATCH), segmenter.run
    monkeypatch.setattr(
        segmenter, "run", lambda *given, **options: numbers.append(options["number"]) or run(*given, **options)
    )
    live.warm_up(np.zeros((72, 96, 3), np.uint8), request("panoptic", segmenter.inference))
    live.close()
    assert numbers == [1, BATCH]


def test_an_image_larger_than_a_tile_is_segmented_by_tiles(segmenter, monkeypatch):
    live = Live(segmenter)
    monkeypatch.setattr(segmenter, "segment_tiles", lambda rgb, grid, asked: (rgb.shape, len(grid), asked))
    asked = request("panoptic", segmenter.inference, tile=64, tile_overlap=8)
    assert live.submit(photo(), asked).result() == ((72, 96, 3), 4, asked)
    live.close()


@pytest.mark.parametrize("step", ["run", "read"])
def test_a_batch_that_fails_does_not_end_the_others(segmenter, monkeypatch, step):
    live = Live(segmenter)
    asked = request("panoptic", segmenter.inference)

    def fail(*arguments, **options):
        raise MemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr(segmenter, step, fail)
        for _ in range(3):  # more than there is room for
            with pytest.raises(MemoryError, match="of the device"):
                live.submit(photo(), asked).result()
    assert live.submit(photo(), asked).result().segments() == segmenter.panoptic(photo()).segments()
    live.close()


def test_instances_of_a_model_without_things_are_refused(segmenter, monkeypatch):
    monkeypatch.setattr(type(segmenter), "tasks", ("semantic",))
    live = Live(segmenter)
    with pytest.raises(UserError, match="does not separate instances"):
        live.submit(photo(), request("instance", segmenter.inference))
    live.close()


# The service.


class Served:
    """A service on the loopback."""

    def __init__(self, segmenter, **options):
        pytest.importorskip("starlette", reason="needs the extra serve")
        uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
        from maskformer_jax.service import Service

        self.service = Service(segmenter, **options)
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(self.service.app(), log_level="error"))
        self.thread = threading.Thread(target=self.server.run, args=([listening],))
        self.thread.start()

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def segment(self, image, query="", headers=None):
        body = image if isinstance(image, bytes) else png(image)
        status, _, content = self.request("POST", f"/segment?{query}", body, headers)
        return status, json.loads(content)

    def metrics(self):
        parser = pytest.importorskip("prometheus_client.parser")
        text = self.request("GET", "/metrics")[2].decode()
        found = {}
        for family in parser.text_string_to_metric_families(text):
            for sample in family.samples:
                found[(sample.name, *sample.labels.values())] = sample.value
        return found

    def stop(self):
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def served(segmenter):
    served = Served(segmenter, batch_size=BATCH, queue=QUEUE)
    yield served
    served.stop()


@pytest.mark.parametrize("task", ["panoptic", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_the_json_has_the_segments_and_their_masks(served, segmenter, task):
    image = photo()
    status, found = served.segment(image, f"task={task}")
    expected = segmenter.segment(image, task)
    assert (status, found["task"], found["height"], found["width"]) == (200, task, 72, 96)
    masks = [rle.decode(segment.pop("segmentation")).astype(bool) for segment in found["segments"]]
    plain = [{key: value for key, value in each.items() if key != "segmentation"} for each in expected.segments()]
    assert found["segments"] == plain
    own = expected.masks if task == "instance" else [expected.id_map == each["id"] for each in plain]
    assert len(masks) == len(own) > 0
    assert all(np.array_equal(*pair) for pair in zip(masks, own, strict=True))


def test_no_segments_have_their_reason(served, segmenter):
    status, found = served.segment(photo(), "threshold=1&overlap=0.5")
    assert (status, found["segments"]) == (200, [])
    assert found["why_empty"] == segmenter.panoptic(photo(), 1.0, 0.5).why_empty()


def test_pictures_are_those_of_predict(served, segmenter):
    image = photo()
    expected = results.encode_result(image, segmenter.panoptic(image))
    for query, accept, content in (
        ("", "image/png", expected[0]),
        ("", "image/webp, image/png;q=0.8, application/json;q=0.1", expected[0]),
        ("output=overlay", "application/json", expected[0]),
        ("output=ids", "image/png", expected[1]),
    ):
        status, headers, found = served.request("POST", f"/segment?{query}", png(image), {"Accept": accept})
        assert (status, headers["content-type"]) == (200, "image/png")
        assert found == content
    status, headers, _ = served.request("POST", "/segment", png(image), {"Accept": "application/json, image/png"})
    assert headers["content-type"] == "application/json"


def test_requests_at_once_have_their_own_answers_and_those_over_the_limit_are_refused(served, segmenter):
    given, before = images(QUEUE), served.metrics()
    with ThreadPoolExecutor(QUEUE) as clients:
        with busy(segmenter):
            answers = [clients.submit(served.segment, image) for image in given]
            wait_until(lambda: json.loads(served.request("GET", "/health")[2])["under_way"] == QUEUE)
            status, headers, content = served.request("POST", "/segment", png(given[0]))
            assert (status, served.metrics()[("maskformer_requests_under_way",)]) == (503, QUEUE)
            assert 1 <= int(headers["Retry-After"]) <= 60
            assert json.loads(content) == {
                "error": f"{QUEUE} requests are under way, which is the limit. Try again later."
            }
        found = [answer.result() for answer in answers]
    for image, (status, record) in zip(given, found, strict=True):
        expected = segmenter.panoptic(image).segments()
        for segment in record["segments"]:
            segment.pop("segmentation")
        assert (status, record["task"]) == (200, "panoptic")
        assert [each.pop("score") for each in record["segments"]] == pytest.approx(
            [each.pop("score") for each in expected], abs=2e-4
        )
        assert record["segments"] == expected
    after = served.metrics()

    def more(*name):
        return after.get(name, 0) - before.get(name, 0)

    assert more("maskformer_requests_total", "200") == QUEUE == more("maskformer_request_seconds_count")
    assert more("maskformer_requests_total", "503") == 1
    assert more("maskformer_batch_images_sum") == QUEUE
    assert more("maskformer_batch_images_count") < QUEUE
    assert after[("maskformer_requests_under_way",)] == 0
    assert after[("maskformer_queue_limit",)] == QUEUE


GOOD = png(photo())


@pytest.mark.parametrize(
    ("query", "body", "headers", "status", "message"),
    [
        ("", b"", {}, 422, "has no image"),
        ("", b"%PDF-1.4 text", {}, 422, "the body of the request: not a readable image (it is a PDF document)"),
        ("", GOOD[:100], {}, 422, "the body of the request: not a readable image (image file is truncated"),
        ("threshold=7", GOOD, {}, 422, "threshold is 7.0; it must lie in 0..1"),
        ("threshold=nan", GOOD, {}, 422, "threshold is nan; it must lie in 0..1"),
        ("threshold=x", GOOD, {}, 422, "threshold is 'x'; expected a number"),
        ("tile=1.5", GOOD, {}, 422, "tile is '1.5'; expected a whole number"),
        ("tile=1&tile=2", GOOD, {}, 422, "the parameter tile is given twice"),
        ("tile=-1", GOOD, {}, 422, "tile"),
        ("task=boxes", GOOD, {}, 422, "task is 'boxes'; it must be one of"),
        ("task=semantic&threshold=0.5", GOOD, {}, 422, "has no thresholds"),
        ("output=gif", GOOD, {}, 422, "output is 'gif'; it must be one of json, overlay, ids"),
        ("taks=semantic", GOOD, {}, 422, "there is no parameter 'taks'; there are task, output"),
        ("", GOOD, {"Content-Type": "multipart/form-data; boundary=x"}, 415, "curl --data-binary @FILE"),
    ],
)
def test_bad_requests_have_the_reason(served, query, body, headers, status, message):
    found = served.segment(body, query, headers)
    assert found[0] == status
    assert message in found[1]["error"]


def test_other_addresses_and_methods_are_named(served):
    for method, path, status in (("GET", "/", 404), ("GET", "/segment", 405), ("POST", "/health", 405)):
        found, headers, content = served.request(method, path)
        assert (found, headers["content-type"]) == (status, "application/json")
        assert "POST /segment" in json.loads(content)["error"]


def test_sizes_are_limited(served, monkeypatch):
    monkeypatch.setenv("MASKFORMER_MAX_IMAGE_PIXELS", "1000")
    status, found = served.segment(GOOD)
    assert status == 413
    assert "6,912 pixels in an image; the limit is 1,000." in found["error"]
    monkeypatch.setenv("MASKFORMER_MAX_UPLOAD_BYTES", "500")
    for body in (GOOD, iter([GOOD])):  # with its length, and in chunks
        status, _, content = served.request("POST", "/segment", body)
        assert status == 413
        assert "bytes in an upload; the limit is 500." in json.loads(content)["error"]


def test_warming_up_computes_all_tasks(served, segmenter, monkeypatch):
    seen = []
    monkeypatch.setattr(served.service._live, "warm_up", lambda rgb, asked: seen.append((rgb.shape, asked.task)))
    served.service.warm_up((72, 96))
    assert seen == [((72, 96, 3), task) for task in ("panoptic", "instance", "semantic")]


def test_health_describes_the_model(served, segmenter):
    status, _, content = served.request("GET", "/health")
    found = json.loads(content)
    assert (status, found["status"], found["queue"]) == (200, "ok", QUEUE)
    assert found["tasks"] == ["panoptic", "instance", "semantic"]
    assert found["classes"] == list(segmenter.classes.names)


def test_what_a_client_does_not_wait_for_is_not_computed(served, segmenter):
    before = served.metrics()
    with ThreadPoolExecutor(1) as clients:
        with busy(segmenter):
            first = clients.submit(served.segment, photo())
            started = ("maskformer_batch_images_count",)
            wait_until(lambda: served.metrics()[started] > before.get(started, 0))
            with socket.create_connection(("127.0.0.1", served.port)) as impatient:
                impatient.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD)
                wait_until(lambda: len(served.service._live._waiting) == 1)
            wait_until(lambda: served.metrics().get(("maskformer_requests_total", "499"), 0) >= 1)
        assert first.result()[0] == 200
    assert served.segment(photo())[0] == 200
    after = served.metrics()
    assert after[("maskformer_batch_images_sum",)] - before.get(("maskformer_batch_images_sum",), 0) == 2


def test_faults_of_the_model_are_errors_of_the_server(served, segmenter, monkeypatch):
    def read(*arguments):
        raise UserError("the model's scores are not finite")

    monkeypatch.setattr(segmenter, "read", read)
    assert served.segment(GOOD) == (500, {"error": "the model's scores are not finite"})


def test_time_is_limited_and_the_end_is_graceful(segmenter):
    served = Served(segmenter, timeout=0.2)
    with busy(segmenter):
        status, headers, content = served.request("POST", "/segment", GOOD)
        assert (status, json.loads(content)["error"][:37]) == (503, "there was no result within 0.2 s. Try")
        assert headers["Retry-After"]
    with socket.create_connection(("127.0.0.1", served.port)) as slow:
        slow.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nbegin")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
    served.service._timeout = 60.0
    with ThreadPoolExecutor(1) as clients:
        with busy(segmenter):
            answer = clients.submit(served.segment, photo())
            wait_until(lambda: served.service._under_way == 1)
            served.server.should_exit = True
            wait_until(lambda: not served.server.servers or not served.server.servers[0].is_serving())
            with pytest.raises(OSError, match="refused"):
                served.request("GET", "/health")
        assert answer.result()[0] == 200
    served.stop()
    assert not served.service._live.is_alive


@pytest.mark.parametrize(
    ("option", "value"), [("queue", 0), ("timeout", 0.0), ("timeout", float("nan")), ("batch_size", 0)]
)
def test_options_that_cannot_be_are_named(segmenter, option, value):
    pytest.importorskip("starlette", reason="needs the extra serve")
    from maskformer_jax.service import Service

    with pytest.raises(UserError, match=f"{option} is {value}"):
        Service(segmenter, **{option: value})


# The program.


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r'error: the service needs .* pip install "maskformer-jax\[serve\]"'):
        serve.main(["--model=nowhere"])


def test_an_unusable_port_is_reported_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(serve, "_libraries", lambda: (None, None))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"--host=127.0.0.1 --port={port}: cannot listen"):
            serve.main(["--model=nowhere", f"--port={port}"])


@pytest.mark.slow
def test_the_program_serves_a_model_of_the_package_and_ends_by_sigterm():
    pytest.importorskip("starlette", reason="needs the extra serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "maskformer_jax.serve", f"--port={port}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout.readline() == f"shapes: http://127.0.0.1:{port}/segment (press Ctrl-C to stop)\n"
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/segment", pathlib.Path(bundled.examples("shapes")[0]).read_bytes())
            found = json.loads(connection.getresponse().read())
            assert found["segments"]
        finally:
            program.send_signal(signal.SIGTERM)
        assert program.wait(60) in (0, -signal.SIGTERM)

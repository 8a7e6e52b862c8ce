"""The HTTP application of `maskformer_jax.serve`: needs the extra `serve`. An ASGI application, made by Service.app."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maskformer_jax.errors import UserError
from maskformer_jax.files import images, limits, paths, processes
from maskformer_jax.inference.tiles import Box
from maskformer_jax.segmenter import results, tasks
from maskformer_jax.segmenter.images import to_rgb
from maskformer_jax.segmenter.live import Live
from maskformer_jax.segmenter.results import AnySegmentation
from maskformer_jax.segmenter.segmenter import Segmenter

# Of the parameters of a request, and the types of their values.
PARAMETERS: Mapping[str, type] = {
    **{"task": str, "output": str, "threshold": float, "overlap": float},
    **{"tile": int, "tile_overlap": int},
}
_LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds, bounds of the histogram
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_GONE = 499  # the status that proxies record for a client that did not wait; nobody receives it
_JSON = "application/json"


def _json(data: bytes, result: AnySegmentation, size: tuple[int, int], task: str) -> bytes:
    record = results.record_of(result, size)
    for position, segment in enumerate(record["segments"]):
        if "segmentation" not in segment and segment["area"]:
            left, top, right, bottom = segment["box"]
            crop = result.crop(position, Box(top, left, bottom, right))
            segment["segmentation"] = results.run_lengths_of_crop(crop, size)
    return json.dumps({"task": task, **record}).encode()


def _overlay(data: bytes, result: AnySegmentation, size: tuple[int, int], task: str) -> bytes:
    return results.encode_overlay(_decode(data), result)


def _ids(data: bytes, result: AnySegmentation, size: tuple[int, int], task: str) -> bytes:
    return results.encode_ids(result)


# What an answer can be: its media type, and what makes it. The first of a media type is what `Accept` means.
OUTPUTS: Mapping[str, tuple[str, Callable[[bytes, AnySegmentation, tuple[int, int], str], bytes]]] = {
    "json": (_JSON, _json),
    "overlay": ("image/png", _overlay),
    "ids": ("image/png", _ids),
}


def answer_of(output: str, data: bytes, result: AnySegmentation, size: tuple[int, int], task: str) -> bytes:
    """The body of an answer.

    Args:
        output: of OUTPUTS.
        data: the image file.
        size: height and width of the image.
        task: that the result is of.
    """
    return OUTPUTS[output][1](data, result, size, task)


class Refused(Exception):
    """A request that gets no result: the HTTP status, a message for a person, and headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Service:
    """A model that is served over HTTP.

    Images are decoded on threads and computed by `Live`. Memory is bounded by the number of requests under way: each
    holds the bytes of its image and its resized pixels, and only as many as there are threads are decoded at once.

    Args:
        batch_size: as of `Live`.
        queue: requests under way, at most; others are refused.
        timeout: seconds that a client has to send an image, and that the service has to answer.

    Raises:
        UserError: for arguments that cannot be.
    """

    def __init__(self, segmenter: Segmenter, *, batch_size: int | None = None, queue: int = 64, timeout: float = 60.0):
        if queue < 1:
            raise UserError(f"queue is {queue}; it must be at least 1")
        if not 0 < timeout < math.inf:
            raise UserError(f"timeout is {timeout}; expected a positive number of seconds")
        self.segmenter, self._queue, self._timeout = segmenter, queue, timeout
        self._under_way = 0  # on the thread of the event loop alone
        self._seconds = 1.0  # that answers take, a running mean
        self._tasks = tuple(task for task in ("panoptic", "instance", "semantic") if task in segmenter.tasks)
        self._measure()
        self._live = Live(segmenter, batch_size, self._batches.observe)
        self._threads = ThreadPoolExecutor(processes.worker_threads(), "image")

    def _measure(self) -> None:
        registry = self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)  # CPU seconds and memory, on Linux
        self._requests = prometheus_client.Counter(
            "maskformer_requests", "Requests to /segment that ended, by status.", ["status"], registry=registry
        )
        self._latency = prometheus_client.Histogram(
            "maskformer_request_seconds",
            "Time from a request to /segment to its answer, of those answered with 200.",
            buckets=_LATENCIES,
            registry=registry,
        )
        self._batches = prometheus_client.Histogram(
            "maskformer_batch_images", "Images in a batch.", buckets=_BATCHES, registry=registry
        )
        under_way = prometheus_client.Gauge(
            "maskformer_requests_under_way", "Requests to /segment that have no answer yet.", registry=registry
        )
        under_way.set_function(lambda: self._under_way)
        most = prometheus_client.Gauge("maskformer_queue_limit", "The most requests under way.", registry=registry)
        most.set(self._queue)

    def warm_up(self, size: tuple[int, int]) -> None:
        """Compiles what images of this height and width need, for all tasks of the model."""
        black = np.zeros((*size, 3), np.uint8)
        for task in self._tasks:
            asked = tasks.request(task, self.segmenter.inference)
            self._live.warm_up(black, asked)

    def close(self) -> None:
        """Waits for all images that were taken."""
        self._threads.shutdown()
        self._live.close()

    def app(self) -> Starlette:
        """The ASGI application. It closes the service when it ends."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self.close)

        routes = [
            Route("/segment", self._segment, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_route})

    async def _health(self, request: Request) -> Response:
        well = self._live.is_alive
        about = {
            "status": "ok" if well else "the device's thread has ended: restart the service",
            "model": paths.printable(self.segmenter.origin),
            "tasks": self._tasks,
            "classes": self.segmenter.classes.names,
            "under_way": self._under_way,
            "queue": self._queue,
        }
        return JSONResponse(about, 200 if well else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(
            prometheus_client.generate_latest(self._registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
        )

    async def _segment(self, request: Request) -> Response:
        start = time.perf_counter()
        status = 500  # of what nobody expects
        try:
            response = await self._answered(request)
            seconds = time.perf_counter() - start
            self._latency.observe(seconds)
            self._seconds += 0.1 * (seconds - self._seconds)
            status = response.status_code
        except Refused as refused:
            status = refused.status
            response = _error(refused.status, refused.message, refused.headers)
        finally:
            self._requests.labels(status).inc()
        return response

    async def _answered(self, request: Request) -> Response:
        asked, output = self._asked(request)
        with self._place():
            data = await self._body(request)
            loop = asyncio.get_running_loop()
            with _refusing():
                size, computing = await loop.run_in_executor(self._threads, self._start, data, asked)
            with _failing():
                result = await self._unless_gone(request, asyncio.wrap_future(computing))
            content = await loop.run_in_executor(self._threads, answer_of, output, data, result, size, asked.task)
        return Response(content, media_type=OUTPUTS[output][0])

    def _asked(self, request: Request) -> tuple[tasks.Request, str]:
        """The request of a model, and the output."""
        given: dict[str, Any] = {}
        for name, text in request.query_params.multi_items():
            if name not in PARAMETERS:
                raise Refused(422, f"there is no parameter {name!r:.100}; there are {', '.join(PARAMETERS)}")
            if name in given:
                raise Refused(422, f"the parameter {name} is given twice")
            try:
                given[name] = PARAMETERS[name](text)
            except ValueError:
                kind = {int: "a whole number", float: "a number"}[PARAMETERS[name]]
                raise Refused(422, f"{name} is {text!r:.100}; expected {kind}") from None
        output = given.pop("output", None) or _accepted(request.headers.get("accept", ""))
        if output not in OUTPUTS:
            raise Refused(422, f"output is {output!r:.100}; it must be one of {', '.join(OUTPUTS)}")
        with _refusing():
            asked = tasks.request(given.pop("task", self._tasks[0]), self.segmenter.inference, **given)
            if asked.task == "instance":
                self.segmenter.check_instances()
        return asked, output

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """A place in the queue, taken before the image is: what is refused costs nothing."""
        if self._under_way >= self._queue:
            message = f"{self._under_way} requests are under way, which is the limit. Try again later."
            raise Refused(503, message, self._later())
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _later(self) -> dict[str, str]:
        """When there is room again: those under way are answered in about the time that answers take."""
        return {"Retry-After": str(max(1, min(60, math.ceil(self._seconds))))}

    async def _body(self, request: Request) -> bytes:
        """The image file in a request."""
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):
            raise Refused(415, "send the bytes of the image file as the body: curl --data-binary @FILE, without a form")
        most, parts, length = limits.UPLOAD_BYTES, [], 0
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated[:20]) > most.value:  # before any of it is read
            raise Refused(413, str(most.exceeded(stated[:20], "this request")))
        try:
            async with asyncio.timeout(self._timeout):
                async for part in request.stream():
                    length += len(part)
                    if length > most.value:
                        raise Refused(413, str(most.exceeded(f"more than {most.value:,}", "this request")))
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, f"the image did not arrive within {self._timeout:g} s") from None
        except ClientDisconnect:
            raise Refused(_GONE, "the client is gone") from None
        if not length:
            raise Refused(422, "the request has no image: send the bytes of an image file as its body")
        return b"".join(parts)

    def _start(self, data: bytes, asked: tasks.Request) -> tuple[tuple[int, int], Any]:
        """On a thread: the size of an image, and its future result."""
        rgb = _decode(data)
        return rgb.shape[:2], self._live.submit(rgb, asked)

    async def _unless_gone(self, request: Request, computing: asyncio.Future) -> AnySegmentation:
        """The result, unless the client disconnects or the time is over. It is not computed then, if it waits still."""
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({computing, gone}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
            if computing.done():
                return computing.result()
            if gone.done():
                raise Refused(_GONE, "the client is gone")
            raise Refused(503, f"there was no result within {self._timeout:g} s. Try again later.", self._later())
        finally:
            gone.cancel()
            computing.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _decode(data: bytes) -> Any:
    """[H, W, 3] uint8 of an image file; raises UserError if it is none."""
    return to_rgb(images.decode(data, "the body of the request"))


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Faults of a request, which its sender can mend."""
    try:
        yield
    except limits.LimitError as error:
        raise Refused(413, str(error)) from error
    except UserError as error:
        raise Refused(422, str(error)) from error


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Faults of the model, such as scores that are not finite. Anything else is a defect and is logged."""
    try:
        yield
    except UserError as error:
        raise Refused(500, str(error)) from error


def _accepted(accept: str) -> str:
    """The output of the first media type in a header Accept that there is; JSON for all others."""
    for kind in accept.split(","):
        for output, (media_type, _) in OUTPUTS.items():
            if kind.partition(";")[0].strip().lower() == media_type:
                return output
    return "json"


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


def _no_route(request: Request, error: HTTPException) -> Response:
    message = (
        f"{request.method} {request.url.path:.100}: {error.detail}; there are POST /segment, GET /health, GET /metrics"
    )
    return _error(error.status_code, message, error.headers)

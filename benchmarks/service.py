"""Requests per second of `maskformer-serve` beside `Segmenter.batch`, its latencies, and what happens over the limit.

    PYTHONPATH=. python benchmarks/service.py
    PYTHONPATH=. python benchmarks/service.py --model W --clients 1 8 32 --batch-size 8 --size 480x640

Requires the extra `serve`. The service is a process of its own on the loopback, started by its command. Clients are
threads of this process, each with a connection that it keeps: a client sends its next image when it has its answer. The
images are PNG files of the size, drawn from an example. Answers are JSON with the masks.

- batch: `Segmenter.batch` over the same files, in this process; each result becomes the same JSON.
  It is measured first and last: other load on the machine changes.
- clients: requests per second that are answered with 200, and the median and the 99th percentile of their latency.
- over the limit: as many clients at once as are given, for a queue of --queue; after a 503
  a client waits 0.1 s, which is less than the service asks for.

CPU seconds are those of the process that computes, `batch`'s or the service's, without the clients: on a machine that
other programs use, too, they are the steadier measure.
"""

import argparse
import collections
import contextlib
import http.client
import io
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from PIL import Image

from maskformer_jax import bundled
from maskformer_jax.programs import size_of
from maskformer_jax.segmenter.images import read_image
from maskformer_jax.segmenter.segmenter import Segmenter, load
from maskformer_jax.service import answer_of

TASK = "panoptic"
PAUSE = 0.1  # seconds after a 503: a tenth of what the service asks for


def files(size: tuple[int, int], count: int) -> list[bytes]:
    """Different images of a size."""
    scene = Image.fromarray(read_image(bundled.examples("shapes")[0])).resize(size[::-1], Image.Resampling.BILINEAR)
    made = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(np.roll(np.asarray(scene), 7 * number, axis=1)).save(file, "PNG")
        made.append(file.getvalue())
    return made


def batch_rate(
    segmenter: Segmenter, contents: list[bytes], batch_size: int | None, seconds: float
) -> tuple[float, float]:
    """Images per second of `Segmenter.batch`, from files to JSON, and CPU seconds per image."""
    with tempfile.TemporaryDirectory() as name:
        paths = [pathlib.Path(name) / f"{number}.png" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        size = read_image(str(paths[0])).shape[:2]

        def run() -> int:
            found = segmenter.batch(map(str, paths), TASK, batch_size=batch_size)
            return len([answer_of("json", b"", result, size, TASK) for result in found])

        run()  # compiles
        done, start, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            done += run()
        return done / (time.perf_counter() - start), (time.process_time() - cpu) / done


@contextlib.contextmanager
def service(model: str, size: tuple[int, int], queue: int, batch_size: int | None) -> Iterator[int]:
    """A service that is ready, until the end of the block; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "maskformer_jax.serve", f"--model={model}", f"--port={port}", f"--queue={queue}"]
    command += [f"--warm-up={size[0]}x{size[1]}"]
    command += [] if batch_size is None else [f"--batch-size={batch_size}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            if not program.stdout.readline():
                sys.exit("error: the service did not start")
            yield port
        finally:
            program.terminate()


def load_with(port: int, contents: list[bytes], clients: int, seconds: float) -> tuple[dict[int, list[float]], float]:
    """Latencies by status of all requests of some clients, and the seconds until all were answered."""
    found: dict[int, list[float]] = collections.defaultdict(list)
    start = time.perf_counter()

    def run(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.perf_counter() - start < seconds:
            sent = time.perf_counter()
            connection.request("POST", f"/segment?task={TASK}", contents[number % len(contents)])
            response = connection.getresponse()
            response.read()
            found[response.status].append(time.perf_counter() - sent)
            if response.status == 503:
                time.sleep(PAUSE)
            number += 1
        connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(found), time.perf_counter() - start


def cpu_seconds(port: int) -> float:
    """That the service has used."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return float(re.search(r"^process_cpu_seconds_total (.*)$", text, re.M)[1])


def row(port: int, contents: list[bytes], clients: int, seconds: float, of_batch: float) -> str:
    """A row of the table, after its name."""
    cpu = cpu_seconds(port)
    found, seconds = load_with(port, contents, clients, seconds)
    cpu = cpu_seconds(port) - cpu
    good, refused = found.get(200, []), len(found.get(503, []))
    others = sum(len(each) for status, each in found.items() if status not in (200, 503))
    rate = len(good) / seconds
    middle, late = (f"{1000 * np.percentile(good, part):.0f} ms" if good else "" for part in (50, 99))
    quick = f"{1000 * statistics.median(found[503]):.1f} ms" if refused else ""
    per_image = f"{1000 * cpu / len(good):.0f} ms" if good else ""
    parts = (
        f"{rate:.1f}",
        f"{rate / of_batch:.2f}",
        per_image,
        middle,
        late,
        f"{refused / seconds:.1f}",
        quick,
        others,
    )
    return f"{' | '.join(map(str, parts))} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--size", type=size_of, default=(96, 128), metavar="HxW")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--queue", type=int, default=8, help="of the part over the limit")
    parser.add_argument("--over", type=int, default=32, help="clients of the part over the limit")
    parser.add_argument("--images", type=int, default=16, help="different images")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row")
    options = parser.parse_args(argv)
    contents = files(options.size, options.images)
    device = f"{len(jax.local_devices())} x {jax.local_devices()[0].device_kind}, {os.cpu_count()} cores"
    print(f"{options.model}, {options.size[0]} x {options.size[1]}, {TASK}, {device}", flush=True)
    segmenter = load(options.model)
    of_batch, cpu = batch_rate(segmenter, contents, options.batch_size, options.seconds)
    print("| | 200 per s | of batch's | CPU per image | p50 | p99 | 503 per s | p50 of 503 | others |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(f"| `batch` | {of_batch:.1f} | 1.00 | {1000 * cpu:.0f} ms | | | | | |", flush=True)
    with service(options.model, options.size, max(options.clients), options.batch_size) as port:
        for clients in options.clients:
            print(f"| clients: {clients} | {row(port, contents, clients, options.seconds, of_batch)}", flush=True)
    with service(options.model, options.size, options.queue, options.batch_size) as port:
        made = row(port, contents, options.over, options.seconds, of_batch)
        print(f"| clients: {options.over}, queue of {options.queue} | {made}", flush=True)
    again, cpu = batch_rate(segmenter, contents, options.batch_size, options.seconds)
    print(f"| `batch` again | {again:.1f} | {again / of_batch:.2f} | {1000 * cpu:.0f} ms | | | | | |", flush=True)


if __name__ == "__main__":
    main()

"""Serves a model over HTTP: images in, segments out.

python -m maskformer_jax.serve
python -m maskformer_jax.serve --model=WORKDIR --port=8000 --warm-up=480x640
curl --data-binary @photo.jpg 'http://127.0.0.1:8000/segment?task=panoptic'
"""

import argparse
import sys
from types import ModuleType

from maskformer_jax import bundled
from maskformer_jax.engine.start import enable_compilation_cache
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths
from maskformer_jax.guard import listen
from maskformer_jax.programs import reporting, size_of
from maskformer_jax.segmenter.segmenter import load


@reporting
def main(argv: list[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM; requests under way are answered then, and no others taken. On an error, exits
    with a message that starts with "error:"."""
    options = _parser().parse_args(argv)
    enable_compilation_cache()
    uvicorn, service = _libraries()
    with listen(options.host, options.port) as address:
        segmenter = load(options.model)
        served = service.Service(segmenter, batch_size=options.batch_size, queue=options.queue, timeout=options.timeout)
        for size in options.warm_up:
            served.warm_up(size)
        print(
            f"{paths.printable(segmenter.origin)}: http://{options.host}:{options.port}/segment (press Ctrl-C to stop)",
            flush=True,
        )
        # What is slower than the time for an answer is cut off.
        stop = {"timeout_graceful_shutdown": int(options.timeout) + 1}
        config = uvicorn.Config(served.app(), log_level="warning", access_log=False, server_header=False, **stop)
        uvicorn.Server(config).run(sockets=[address])
    return 0


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import uvicorn

        from maskformer_jax import service
    except ImportError as error:
        raise UserError(
            f'the service needs starlette, uvicorn and prometheus-client ({error}): pip install "maskformer-jax[serve]"'
        ) from None
    return uvicorn, service


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.serve")
    parser.add_argument(
        "--model",
        default=next(iter(bundled.MODELS)),
        help=f"{bundled.SOURCES} (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 gives other machines access, without a password")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--batch-size",
        type=int,
        help="images that are computed at once, at most (default: 8 for each accelerator; 1 on a CPU, where larger "
        "batches are not faster)",
    )
    parser.add_argument(
        "--queue", type=int, default=64, help="requests under way, at most; others get 503 (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        help="seconds for sending an image, and for its result (default: %(default)s)",
    )
    parser.add_argument(
        "--warm-up",
        type=size_of,
        nargs="+",
        default=[],
        metavar="HxW",
        help="sizes of images whose functions are compiled before the first request",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

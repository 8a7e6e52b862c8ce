"""Plots loss and scores of runs.

python benchmarks/plot_runs.py WORKDIR... --scores panoptic/pq semantic/miou --out curves.png
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(workdir: str) -> list[dict]:
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def draw(axis: plt.Axes, runs: dict[str, list[dict]], name: str) -> None:
    for label, lines in runs.items():
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        axis.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 40 else None, markersize=3)
    axis.set(xlabel="step", title=name)
    axis.grid(alpha=0.3)
    axis.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--scores", nargs="+", default=["panoptic/pq", "semantic/miou"])
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    runs = {pathlib.Path(workdir).name: read(workdir) for workdir in options.workdirs}
    names = ["train/loss", *options.scores]
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.4), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        draw(axis, runs, name)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()

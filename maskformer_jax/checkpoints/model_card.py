"""The page of a model on the Hugging Face hub: its README.md, with what the hub reads of it in front."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from maskformer_jax.checkpoints.published import Description
from maskformer_jax.files import json_file

_SCORES = {
    "panoptic/pq": "PQ",
    "panoptic/pq_things": "PQ of things",
    "panoptic/pq_stuff": "PQ of stuff",
    "semantic/miou": "mIoU",
    "instance/AP": "mask AP",
    "instance/AP50": "mask AP50",
}


def model_card(
    repo: str,
    described: Description,
    parameters: int,
    license: str,
    data: str = "",
    run: str = "",
    step: int = 0,
) -> str:
    """A model card with scores, data, licence and the code to load the model.

    Args:
        repo: "name/model" on the hub.
        parameters: their number.
        license: as the hub abbreviates it, such as "apache-2.0"; "" for none stated.
        data: what the model was trained on, in words; "" for what the run has recorded.
        run: the workdir of the training, whose eval.json and dataset.json are read; "" for none.
        step: of the run's checkpoint that the model is; scores of another one are not those of the model.
    """
    from huggingface_hub import EvalResult, ModelCardData

    scores, trained = _read(run, "eval.json"), _read(run, "dataset.json")
    if scores.get("step") != step:
        scores = {}
    found = {name: scores[name] for name in _SCORES if isinstance(scores.get(name), int | float)}
    dataset = str(trained.get("validation", {}).get("name") or data or "own data")
    split = str(scores.get("split", "validation"))
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=split,
            metric_type=name.split("/")[1].lower(),
            metric_name=_SCORES[name],
            metric_value=round(value, 2),
        )
        for name, value in found.items()
    ]
    front = ModelCardData(
        license=license or None,
        library_name="maskformer_jax",
        pipeline_tag="image-segmentation",
        tags=["jax", "flax", described.model["name"]],
        model_name=repo.split("/")[-1],
        eval_results=results or None,
    )
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {repo.split('/')[-1]}",
        f"A `{described.model['name']}` of {parameters:,} parameters for {len(described.classes)} classes: "
        f"{', '.join(described.classes.names[:50])}{', ...' if len(described.classes) > 50 else ''}.",
        "## Use\n\n```python\nimport maskformer_jax\n\n"
        f'segmenter = maskformer_jax.load("{repo}")\n'
        "result = segmenter.panoptic(image)  # a PIL image or uint8 [H, W, 3]\n```",
        f"## Scores\n\n{_score_table(found, scores, split)}",
        f"## Data\n\n{_data(data, trained)}",
        f"## Licence\n\n{license or 'None stated.'}",
    ]
    return "\n\n".join(parts) + "\n"


def _score_table(found: Mapping[str, float], scores: Mapping[str, Any], split: str) -> str:
    if not found:
        return "None recorded. `maskformer-train --mode=eval` scores the best checkpoint of a run."
    rows = "\n".join(f"| {_SCORES[name]} | {value:.2f} |" for name, value in found.items())
    return f"Checkpoint {scores['step']}, split `{split}`, {scores['how']}, in percent:\n\n| | |\n|---|---|\n{rows}"


def _data(data: str, trained: Mapping[str, Any]) -> str:
    lines = [data] if data else []
    lines += [
        f"{role.capitalize()}: {entry['images']} images of {entry['name']}, split `{entry['split']}`."
        for role, entry in trained.items()
        if isinstance(entry, dict)
    ]
    return "\n\n".join(lines) or "Not stated."


def _read(run: str, name: str) -> dict[str, Any]:
    path = epath.Path(run) / name
    return json_file.read(path) if run and path.exists() else {}

"""`predict` in several processes, and started again: no image is lost, none is done twice, results are those of one.

The processes of most tests run one after another in this one, with a stand-in for the model.
"""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import predict_processes, throughput
from maskformer_jax import predict
from maskformer_jax.engine import job
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, processes, writing
from maskformer_jax.segmenter import journal
from maskformer_jax.segmenter.journal import Part
from maskformer_jax.segmenter.writers import WRITERS
from tests.test_predict_files import StandIn, draw

NAMES = ("ant", "bee", "sub/cat", "dog", "sub/eel", "fox", "gnu")


class Counting(StandIn):
    """Notes what it segments. The number of objects differs from image to image."""

    def __init__(self):
        self.seen: list[str] = []

    def answers(self, items, read, task, **options):
        for answer in super().answers(items, read, task, **options):
            if answer.pixels is not None:
                self.seen.append(answer.item.name)
            yield answer

    def segment(self, image, task, **options):
        result = super().segment(image, task, **options)
        if image[0, 0, 0] % 3 == 0 and task != "instance":
            half = np.where(np.arange(image.shape[1]) < 5, 2, 1) * np.ones(image.shape[:2], int)
            return type(result)(half.astype(np.uint16), np.array([0, 1]), np.array([0.9, 0.7]), result.classes)
        return result


@pytest.fixture(autouse=True)
def model(monkeypatch):
    model = Counting()
    monkeypatch.setattr(predict, "load", lambda source: model)
    return model


@pytest.fixture
def photos(tmp_path):
    """Seven images, and one that cannot be read."""
    for number, name in enumerate(NAMES):
        draw(tmp_path / "photos" / f"{name}.png", (10 * number, 0, 0))
    (tmp_path / "photos" / "zoo.png").write_bytes(b"no image")
    return tmp_path / "photos"


def run(*arguments, part: tuple[int, int] | None = None) -> int | str:
    flags = [] if part is None else [f"--process-id={part[0]}", f"--num-processes={part[1]}"]
    try:
        return predict.main([*map(str, arguments), "--model=x", *flags])
    except SystemExit as stopped:
        return stopped.code


def results(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones, too, but for those in which processes say what they have done."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(journal.FOLDER)}


def journals(out: pathlib.Path) -> list[pathlib.Path]:
    return sorted((out / journal.FOLDER).iterdir(), key=lambda path: path.stat().st_mtime_ns)


def kill(path: pathlib.Path, lines: int, partials: str = "") -> None:
    """Makes a journal what a kill leaves of it: its first lines, and a part of the next."""
    head, *text = path.read_bytes().splitlines(keepends=True)
    values = json.loads(head)
    values["process"]["started"] = "long ago"  # another process had its number
    values["partials"] = partials
    kept = [json.dumps(values).encode() + b"\n", *text[:lines], text[lines][: len(text[lines]) // 2]]
    path.write_bytes(b"".join(kept))


@pytest.mark.parametrize("form", WRITERS)
def test_several_processes_make_what_one_makes(model, photos, tmp_path, capsys, form):
    one, several = tmp_path / "one", tmp_path / "several"
    assert run(photos, f"--out={one}", f"--format={form}") == 1
    counted = capsys.readouterr()
    whole = counted.out.splitlines()[-1].partition(" s per image")[0].rpartition(", ")[0]
    model.seen.clear()
    for number, index in enumerate((1, 2, 0)):
        status = run(photos, f"--out={several}", f"--format={form}", part=(index, 3))
        printed = capsys.readouterr()
        assert status == (0 if index == 1 else 1)  # the error is of process 2, and process 0 says all
        assert f"process {index} of 3: " in printed.out
        if number < 2:
            assert "of 8 images are not finished: 3 of process 0, which has not begun" in printed.out
            assert "all 3 processes" not in printed.out
    assert sorted(model.seen) == sorted(NAMES)
    assert f"all 3 processes: {whole} -> {several}" in printed.out
    assert printed.err.count("zoo.png") == 1  # said again by the process that says all
    assert results(several) == results(one)
    assert not (one / journal.FOLDER).exists()
    assert [path.name.endswith(".jsonl") for path in journals(several)] == [True]
    # A process that is started when all is done has nothing to do.
    model.seen.clear()
    for index in range(3):
        status = run(photos, f"--out={several}", f"--format={form}", part=(index, 3))
    printed = capsys.readouterr()
    assert (status, model.seen) == (1, [])
    assert "were finished already: same model, task, settings and file" in printed.out
    assert f"{whole} -> {several}" in printed.out
    assert results(several) == results(one)


@pytest.mark.parametrize("form", ["overlay", "coco", "coco_panoptic", "yolo"])
def test_a_process_that_was_killed_loses_nothing_and_nothing_is_done_twice(model, photos, tmp_path, capsys, form):
    one, out = tmp_path / "one", tmp_path / "out"
    flags = [photos, f"--format={form}"]
    run(*flags, f"--out={one}")
    run(*flags, f"--out={out}", part=(0, 2))
    capsys.readouterr()
    kill(journals(out)[0], lines=2)
    assert run(*flags, f"--out={out}", part=(1, 2)) == 1
    # For all that this process knows, it is started again just now.
    assert "2 of 8 images are not finished: 2 of process 0, which has not begun. The last" in capsys.readouterr().out
    model.seen.clear()
    assert run(*flags, f"--out={out}", part=(0, 2)) == 1
    # The files of an overlay are known without a journal; those of a dataset need it.
    assert len(model.seen) == (0 if form == "overlay" else 2)
    printed = capsys.readouterr().out
    assert f"{4 - len(model.seen)} of 4 images were finished already" in printed
    assert "all 2 processes: 7 images" in printed
    assert results(out) == results(one)


def test_processes_that_were_killed_meanwhile_are_named(photos, tmp_path, capsys, monkeypatch):
    """There is nobody left who could do their images, which the exit status says."""
    out, answers = tmp_path / "out", Counting.answers
    monkeypatch.setattr(processes, "has_ended", lambda process: False)
    run(photos, f"--out={out}", part=(0, 2))
    kill(journals(out)[0], lines=2)

    def meanwhile(self, items, read, task, **options):
        yield from answers(self, items, read, task, **options)
        monkeypatch.undo()
        monkeypatch.setattr(predict, "load", lambda source: self)

    (photos / "zoo.png").unlink()
    monkeypatch.setattr(Counting, "answers", meanwhile)
    assert run(photos, f"--out={out}", part=(1, 2)) == 1
    printed = capsys.readouterr().out
    assert "2 of 7 images are not finished: 2 of process 0, which was killed. Start the command again" in printed


@pytest.mark.parametrize("form", ["coco", "png"])
def test_any_number_of_processes_goes_on_where_others_have_ended(model, photos, tmp_path, form):
    run(photos, f"--format={form}", f"--out={tmp_path / 'one'}")
    for index in (0, 3):
        run(photos, f"--format={form}", f"--out={tmp_path / 'out'}", part=(index, 4))
    model.seen.clear()
    assert run(photos, f"--format={form}", f"--out={tmp_path / 'out'}") == 1
    assert len(model.seen) == 4 - 1  # processes 1 and 2 have four images, one of which cannot be read
    assert results(tmp_path / "out") == results(tmp_path / "one")
    assert not (tmp_path / "out" / journal.FOLDER).exists()


def test_an_image_is_segmented_again_if_anything_differs(model, photos, tmp_path, capsys):
    flags = [photos / "ant.png", photos / "bee.png", f"--out={tmp_path / 'out'}"]

    def segmented(*more):
        model.seen.clear()
        assert run(*flags, *more) == 0
        return list(model.seen)

    assert segmented() == ["ant", "bee"]
    assert segmented() == []
    assert "2 of 2 images were finished already" in capsys.readouterr().out
    for more in (["--threshold=0.25"], ["--overlap=0.25"], ["--task=semantic"], ["--task=instance"], ["--tile=16"]):
        assert (segmented(*more), segmented(*more)) == (["ant", "bee"], [])
    assert segmented("--tile=16", "--overwrite") == ["ant", "bee"]
    model.fingerprint = "trained longer"
    assert (segmented("--tile=16"), segmented("--tile=16")) == (["ant", "bee"], [])
    draw(photos / "bee.png", (9, 9, 9))
    assert (segmented("--tile=16"), segmented("--tile=16")) == (["bee"], [])
    (tmp_path / "out" / "ant.json").unlink()
    for suffix in ("ids", "overlay"):
        (tmp_path / "out" / f"ant_{suffix}.png").unlink()
    assert (segmented("--tile=16"), segmented("--tile=16")) == (["ant"], [])


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("renamed", [1, 2])
def test_a_kill_between_the_files_of_a_result_is_no_file_of_another_origin(photos, tmp_path, before, renamed, model):
    """Where the images are, too: what is half there is no image."""
    if before:
        assert run(photos / "ant.png", f"--out={photos}", "--threshold=0.25") == 0
    old = {suffix: (photos / f"ant{suffix}").read_bytes() for suffix in ("_ids.png", ".json") if before}
    draw(photos / "ant.png", (3, 3, 3))  # so that the id map has two segments
    assert run(photos / "ant.png", f"--out={photos}") == 0
    for number, suffix in enumerate(("_overlay.png", "_ids.png", ".json")):
        if number >= renamed:
            (photos / f"ant{suffix}").rename(photos / f".partial-abcdef-0000000{number}")
            if before:
                (photos / f"ant{suffix}").write_bytes(old[suffix])
    model.seen.clear()
    (photos / "zoo.png").unlink()
    assert run(photos, f"--out={photos}") == 0
    assert sorted(model.seen) == sorted(NAMES)


def test_what_killed_processes_leave_is_removed(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, f"--out={out}", part=(0, 2))
    kill(journals(out)[0], lines=3, partials=".partial-abcdef-")
    for name in (".partial-abcdef-1", "sub/.partial-abcdef-2", ".partial-123456-3"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    run(photos, f"--out={out}", part=(1, 2))
    assert [name for name in results(out) if "partial" in name] == [".partial-123456-3"]


def test_a_dataset_goes_on_only_as_it_was_begun(model, photos, tmp_path):
    out = tmp_path / "out"
    flags = [f"--out={out}", "--format=coco"]
    run(photos, *flags, part=(0, 2))
    before = results(out)
    for more, words in (
        ([photos, "--threshold=0.25"], "exists. Nothing was changed"),
        ([photos, "--polygon-tolerance=1"], "exists. Nothing was changed"),
        ([photos / "sub"], "with images that are not among those of this call, such as ant"),
    ):
        assert words in run(*more, *flags, part=(1, 2))
        assert results(out) == before
    model.fingerprint = "another"
    assert "exists. Nothing was changed" in run(photos, *flags, part=(1, 2))
    assert results(out) == before


def test_a_dataset_that_was_interrupted_goes_on_unless_it_was_edited(model, photos, tmp_path, monkeypatch):
    out, flags = tmp_path / "out", [photos, "--format=coco"]
    run(*flags, f"--out={tmp_path / 'one'}")
    answers = Counting.answers

    def interrupted(self, items, read, task, **options):
        for number, answer in enumerate(answers(self, items, read, task, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(Counting, "answers", interrupted)
    assert run(*flags, f"--out={out}") == 130
    monkeypatch.setattr(Counting, "answers", answers)
    path = out / "annotations" / "instances_train.json"
    unfinished = path.read_bytes()
    assert 1 <= len(json.loads(unfinished)["images"]) <= 3
    path.write_bytes(unfinished + b"\n")  # a correction
    assert "was changed since this dataset was begun" in run(*flags, f"--out={out}")
    assert path.read_bytes() == unfinished + b"\n"
    path.write_bytes(unfinished)
    model.seen.clear()
    assert run(*flags, f"--out={out}") == 1
    assert model.seen == []  # the call before has done all but this file
    assert results(out) == results(tmp_path / "one")
    assert "exists. Nothing was changed" in run(*flags, f"--out={out}")


def test_results_of_other_processes_are_no_images(model, photos, tmp_path):
    """Where the results are in the folder that is searched, all processes see the same images."""
    for form in ("overlay", "yolo"):
        for index in range(3):
            model.seen.clear()
            run(photos, f"--out={photos}", f"--format={form}", part=(index, 3))
            assert len(model.seen) == (3, 3, 1)[index]
        for name in list(results(photos)):
            if name.endswith((".json", "_overlay.png", "_ids.png")):
                (photos / name).unlink()


def test_names_that_meet_in_a_dataset_are_an_error_whoever_has_the_images(photos, tmp_path, capsys):
    for name in ("images/ant.png", "images_/ant.png"):
        draw(photos / name)
    for index in (0, 1):
        run(photos, f"--out={tmp_path / 'out'}", "--format=yolo", part=(index, 2))
    assert "images_/ant.png: an image of the name images_/ant was already written" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == len(NAMES) + 1


def test_a_full_disk_is_an_error_of_all(photos, tmp_path, capsys, monkeypatch):
    note = journal.Journal.note

    def full(self, name, *rest):
        if name == "dog":
            raise writing.WriteError("the disk is full", disk=True)
        note(self, name, *rest)

    monkeypatch.setattr(journal.Journal, "note", full)
    out = tmp_path / "out"
    assert run(photos, f"--out={out}", part=(1, 2)) == 1
    assert run(photos, f"--out={out}", part=(0, 2)) == 1
    printed = capsys.readouterr()
    assert "which has ended without them. Start the command again: it does what is missing." in printed.out
    assert "all 2 processes" not in printed.out
    monkeypatch.setattr(journal.Journal, "note", note)
    assert run(photos, f"--out={out}", part=(0, 2)) == 1  # process 1 has an image that cannot be read
    assert "all 2 processes: 7 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "part", "gpu"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, Part(5, 8), "1"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}, Part(5, 8), "all"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "CUDA_VISIBLE_DEVICES": "3"}, Part(5, 8), "all"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Part(5, 8), "1"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "JAX_LOCAL_DEVICE_IDS": "2,3"}, Part(5, 8), "2,3"),
    ],
)
def test_slurm_says_which_process_this_is(monkeypatch, environment, part, gpu):
    of_slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "8", "SLURM_PROCID": "5"}
    for name, value in {**of_slurm, "SLURM_LOCALID": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    changed = {}
    monkeypatch.setattr(job.jax.config, "update", changed.__setitem__)
    assert job.part_of_job(True, None, None) == part
    assert changed.get("jax_cuda_visible_devices", "all") == gpu


def test_the_flag_of_training_divides_the_images(model, photos, tmp_path, monkeypatch):
    of_slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    for name, value in {**of_slurm, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}.items():
        monkeypatch.setenv(name, value)
    for index in (0, 1):
        monkeypatch.setenv("SLURM_PROCID", str(index))
        run(photos, f"--out={tmp_path / 'out'}", "--distributed")
    assert sorted(model.seen) == sorted(NAMES)
    assert run(photos / "ant.png", f"--out={tmp_path / 'out'}", "--num_processes=2", "--process_id=0") == 0


def test_mpirun_says_which_process_this_is(monkeypatch):
    of_mpi = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    of_mpi |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    for name, value in of_mpi.items():
        monkeypatch.setenv(name, value)
    assert job.part_of_job(True, None, None) == Part(1, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((True, None, None), "this is no process of a Slurm job"),
        ((True, 2, 0), "give it alone"),
        ((False, 2, None), "go together"),
        ((False, None, 0), "go together"),
        ((False, 2, 2), "they count from 0, so that the last is 1"),
        ((False, 2, -1), "is none of --num-processes=2"),
    ],
)
def test_numbers_that_cannot_be(arguments, words):
    with pytest.raises(UserError, match=words):
        job.part_of_job(*arguments)
    assert job.part_of_job(False, None, None) == Part(0, 1)


def test_the_cluster_interface_of_jax_is_as_it_was(monkeypatch):
    """It is not public: a version of JAX without it must be noticed here, and say what to do."""
    from jax._src import clusters

    assert {"is_env_present", "get_process_id", "get_process_count", "get_local_process_id"} <= set(
        dir(clusters.ClusterEnv)
    )
    monkeypatch.delattr(clusters, "ClusterEnv")
    with pytest.raises(UserError, match=r"cannot tell which process this is: .* Give each process --num-processes"):
        job.part_of_job(True, None, None)


@pytest.mark.parametrize("form", ["overlay", "coco"])
def test_in_cloud_storage_a_journal_is_several_objects(model, photos, tmp_path, capsys, monkeypatch, form):
    """With files in their place, which are written at once and never grow."""
    run(photos, f"--format={form}", f"--out={tmp_path / 'one'}")
    monkeypatch.setattr(paths, "is_local", lambda path: False)
    monkeypatch.setattr(journal.lines, "_AT_ONCE", 1)
    out = tmp_path / "out"
    run(photos, f"--format={form}", f"--out={out}", part=(0, 2))
    assert len(journals(out)) > 2
    assert all(path.read_bytes().count(b"\n") <= 3 for path in journals(out))
    if form == "coco":
        journals(out)[1].unlink()  # what a kill may lose
    model.seen.clear()
    for index in (0, 1):
        run(photos, f"--format={form}", f"--out={out}", part=(index, 2))
    assert "all 2 processes: 7 images" in capsys.readouterr().out
    assert len(model.seen) == (3 if form == "overlay" else 4)
    assert results(out) == results(tmp_path / "one")
    assert len(journals(out)) == 1


def write_photos(folder: pathlib.Path, count: int) -> pathlib.Path:
    folder.mkdir()
    for number in range(count):
        throughput.write_photo(folder / f"{number:02}.png", (100 + number, 120), number)
    return folder


@pytest.mark.slow
def test_two_real_processes_make_what_one_makes(tmp_path):
    photos = write_photos(tmp_path / "photos", 12)
    for count in (1, 2):
        call = predict_processes.Processes("shapes", photos, tmp_path / str(count), "overlay", count).run()
        assert call.statuses == [0] * count, call.outputs
    assert predict_processes.contents(tmp_path / "2") == predict_processes.contents(tmp_path / "1")
    assert sum("all 2 processes: 12 images" in output for output in call.outputs) in (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["overlay", "coco"])
def test_one_of_four_real_processes_is_killed(tmp_path, form):
    photos = write_photos(tmp_path / "photos", 40)
    call = predict_processes.Processes("shapes", photos, tmp_path / "one", form, 1).run()
    assert call.statuses == [0], call.outputs
    out = tmp_path / "four"
    call, done, twice = predict_processes.kill_one(predict_processes.Processes("shapes", photos, out, form, 4), out)
    assert call.statuses == [0] * 4, call.outputs
    assert 30 <= done < 40
    assert twice <= (0 if form == "overlay" else 4)  # images that the victim had written, and not yet noted
    assert predict_processes.contents(out) == predict_processes.contents(tmp_path / "one")
    assert "all 4 processes: 40 images" in "".join(call.outputs)

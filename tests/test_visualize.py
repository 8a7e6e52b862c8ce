"""Drawings: colors of classes, borders between segments, darkness for void."""

import numpy as np
import pytest
from PIL import ImageDraw

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.visualize import confusion, layout, legends

CLASSES = Classes(("sky", "car"), (False, True), ((0, 0, 255), (255, 0, 0)))


@pytest.fixture
def scene():
    image = np.full((40, 60, 3), 100, np.uint8)
    id_map = np.ones((40, 60), int)
    id_map[20:, :20] = 2
    id_map[20:, 20:40] = 3
    id_map[:, 55:] = 0
    return image, id_map, np.array([0, 1, 1])


def test_overlay_shows_classes_borders_and_void(scene):
    image, id_map, labels = scene
    before = image.copy()
    drawn = visualize.overlay(image, id_map, labels, CLASSES)
    np.testing.assert_array_equal(image, before)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert drawn[2, 2].argmax() == 2
    assert drawn[35, 2].argmax() == 0
    assert (drawn[35, 58] < 50).all()
    assert (drawn[19, 5] == 255).all()


def test_instances_of_a_class_differ_and_stuff_does_not(scene):
    colors = visualize.segment_colors(np.array([1, 1, 0, 0]), CLASSES)
    assert np.abs(colors[0] - colors[1]).max() > 20
    np.testing.assert_array_equal(colors[2], colors[3])
    assert colors.min() >= 0
    assert colors.max() <= 255


def test_an_image_without_segments_is_dark(scene):
    image, id_map, _ = scene
    drawn = visualize.overlay(image, np.zeros_like(id_map), np.zeros(0, int), CLASSES)
    assert (drawn == 35).all()


def test_the_picture_of_a_very_large_image_is_smaller(monkeypatch):
    monkeypatch.setattr(layout, "_LARGEST", 1000)
    monkeypatch.setattr(layout, "_REDUCED", 30)
    monkeypatch.setattr(layout, "_ROWS", 8)
    image, id_map = np.zeros((50, 100, 3), np.uint8), np.zeros((50, 100), np.uint16)
    image[20:, 30:], id_map[20:, 30:] = 200, 1
    smaller, smaller_map = visualize.shown_size(image, id_map)
    assert smaller.shape == (13, 25, 3)
    np.testing.assert_array_equal(smaller_map, np.pad(np.ones((8, 18)), ((5, 0), (7, 0))))
    assert set(smaller[smaller_map == 1][:, 0]) == {100, 200}  # half of a column of pixels is not of the segment


def test_borders_lie_between_segments():
    edge = visualize.borders(np.array([[1, 1, 2], [1, 1, 2]]))
    np.testing.assert_array_equal(edge, [[False, True, False]] * 2)


def test_enlarging_keeps_segments(scene):
    image, id_map, _ = scene
    larger, larger_map = visualize.enlarge(image, id_map, shortest=80)
    assert larger.shape == (80, 120, 3)
    np.testing.assert_array_equal(larger_map[::2, ::2], id_map)


def test_images_are_put_side_by_side(scene):
    row = visualize.side_by_side([scene[0]] * 3, gap=4)
    assert row.shape == (40, 188, 3)
    assert (row[:, 60:64] == 255).all()


def test_a_sheet_is_a_grid(scene):
    grid = visualize.sheet([scene[0]] * 3, columns=2, gap=5)
    assert grid.shape == (85, 140, 3)
    assert (grid[45:, 80:] == 255).all()


def test_names_do_not_overlap():
    """Two tall strips side by side, narrower than their names: only the larger one is named."""
    classes = Classes(("a" * 20, "b" * 20), (False, False), ((0, 0, 255), (255, 0, 0)))
    id_map = np.ones((400, 130), int)
    id_map[:, 70:] = 2
    image = np.full((400, 130, 3), 100, np.uint8)
    both = visualize.overlay(image, id_map, np.array([0, 1]), classes)
    black = (both == 0).all(axis=-1)
    # The stroke of two names is about twice that of one.
    alone = visualize.overlay(image, np.where(id_map == 1, 1, 0), np.array([0]), classes)
    assert 0 < black.sum() <= (alone == 0).all(axis=-1).sum()


def swatches(drawn):
    """The colors of each swatch, from top to bottom."""
    found = []
    for row in drawn:
        colors = {tuple(map(int, color)) for color in row if color.max() - color.min() > 20}
        if colors and (not found or found[-1] != colors):
            found.append(colors)
    return found


def test_a_legend_lists_classes_by_area():
    labels, areas = np.array([0, 1]), np.array([10, 500])
    assert swatches(visualize.legend(labels, CLASSES, areas)) == [{(255, 0, 0)}, {(0, 0, 255)}]
    assert swatches(visualize.legend(labels, CLASSES, areas[::-1])) == [{(0, 0, 255)}, {(255, 0, 0)}]
    assert swatches(visualize.legend(labels, CLASSES)) == [{(0, 0, 255)}, {(255, 0, 0)}]
    # The segments of a class count together.
    together = visualize.legend(np.array([0, 1, 1]), CLASSES, np.array([10, 6, 6]))
    assert swatches(together)[1] == {(0, 0, 255)}


def test_a_legend_shows_instances_in_the_colors_of_the_overlay():
    labels = np.array([1, 0, 1])
    expected = {tuple(map(int, color)) for color in visualize.segment_colors(labels, CLASSES)[[0, 2]]}
    assert len(expected) == 2
    assert swatches(visualize.legend(labels, CLASSES))[0] == expected
    many = visualize.legend(np.full(9, 1), CLASSES)
    assert len(swatches(many)[0]) == legends.MAX_SHADES


def test_a_legend_has_names_next_to_its_colors(monkeypatch):
    texts = []
    draw = ImageDraw.ImageDraw.text

    def text(self, place, words, **options):
        texts.append(words)
        return draw(self, place, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    classes = Classes(("sky", "car", "x" * 50), (False, True, False), ((0, 0, 255), (255, 0, 0), (0, 255, 0)))
    drawn = visualize.legend(np.array([1, 0, 1, 2]), classes, np.array([1, 3, 1, 9]))
    assert texts == ["x" * 29 + "...", "sky", "car (2)"]
    letters = drawn[:, 40:]
    assert (letters.max(axis=-1) < 100).sum() > 50  # they show


def test_a_legend_that_is_too_high_continues_in_another_column():
    labels = np.array([0, 1])
    high = visualize.legend(labels, CLASSES, size=10)
    wide = visualize.legend(labels, CLASSES, size=10, height=high.shape[0] - 1)
    assert wide.shape[0] == high.shape[0] // 2
    assert wide.shape[1] > high.shape[1]
    assert visualize.legend(labels, CLASSES, size=10, height=1).shape == wide.shape


def test_a_legend_is_to_the_right_of_the_image(scene):
    image, id_map, labels = scene
    drawn = visualize.with_legend(image, labels, CLASSES, np.bincount(id_map.ravel())[1:])
    np.testing.assert_array_equal(drawn[:40, :60], image)
    assert drawn.shape[1] > 60
    assert swatches(drawn[:, 60:])[0] == {(0, 0, 255)}
    assert visualize.with_legend(image, np.zeros(0, int), CLASSES) is image


def test_ground_truth_and_prediction_are_in_a_row(scene):
    image, id_map, labels = scene
    nothing = (np.zeros_like(id_map), np.zeros(0, int))
    drawn = visualize.truth_and_prediction(image, (id_map, labels), nothing, CLASSES)
    larger, larger_map = visualize.enlarge(image, id_map)
    width = larger.shape[1]
    assert drawn.shape == (larger.shape[0], 3 * width + 12, 3)
    np.testing.assert_array_equal(drawn[:, :width], larger)
    truth = visualize.overlay(larger, larger_map, labels, CLASSES)
    np.testing.assert_array_equal(drawn[:, width + 6 : 2 * width + 6], truth)
    assert (drawn[:, 2 * width + 12 :] == 35).all()


def test_a_strip_is_not_enlarged_beyond_bounds():
    larger, larger_map = visualize.enlarge(np.zeros((1, 1000, 3), np.uint8), np.ones((1, 1000), int))
    assert larger.shape == (4, 4000, 3)
    assert larger_map.shape == (4, 4000)
    image, id_map = np.zeros((2, 5000, 3), np.uint8), np.ones((2, 5000), int)
    assert visualize.enlarge(image, id_map)[0] is image


def numbered(count):
    return Classes(tuple(f"c{number}" for number in range(count)), (True,) * count, ((0, 0, 0),) * count)


@pytest.fixture
def tables(monkeypatch):
    """The content of the drawn tables: (fractions, rows, columns, note) of each."""
    seen = []
    draw = confusion._draw
    monkeypatch.setattr(confusion, "_draw", lambda *given: seen.append(given) or draw(*given))
    return seen


def test_a_confusion_matrix_has_fractions_of_the_ground_truth(tables):
    counts = np.array([[90, 10, 0, 0], [0, 0, 0, 0], [0, 3, 1, 0]])
    drawn = visualize.confusion_matrix(counts, numbered(3))
    assert drawn.dtype == np.uint8
    assert drawn.ndim == drawn.shape[2] == 3
    ((fractions, rows, columns, note),) = tables
    # Class 1 is only predicted, so it has no fractions; nothing is void, so void has no column.
    np.testing.assert_array_equal(fractions, [[0.9, 0.1, 0], [np.nan] * 3, [0, 0.75, 0.25]])
    assert rows == columns == ["c0", "c1", "c2"]
    assert note == ""


def test_a_confusion_matrix_leaves_out_absent_classes_and_shows_void(tables):
    visualize.confusion_matrix(np.array([[6, 0, 2, 2], [0, 0, 0, 0], [0, 0, 5, 0]]), numbered(3))
    ((fractions, rows, columns, _),) = tables
    assert rows == ["c0", "c2"]
    assert columns == ["c0", "c2", "void"]
    np.testing.assert_allclose(fractions, [[0.6, 0.2, 0.2], [0, 1, 0]])


def test_of_many_classes_the_strongest_confusions_show(tables):
    """Confusions among classes 50, 51 and 60, 61, an absent class, and a little of everything else."""
    count = 100
    counts = np.diag(np.full(count, 1000.0))
    counts[60, 61], counts[51, 50] = 800, 900
    counts += np.random.default_rng(0).uniform(0, 1, counts.shape)
    counts[7], counts[:, 7] = 0, 0
    counts = np.column_stack([counts, np.zeros(count)])
    visualize.confusion_matrix(counts, numbered(count))
    ((fractions, rows, columns, note),) = tables
    assert rows[:4] == ["c51", "c50", "c60", "c61"]
    assert len(rows) == len(set(rows)) == confusion.MAX_CLASSES
    assert columns == [*rows, "others"]
    assert "c7" not in rows
    assert note == f"and {count - 1 - len(rows)} more classes"
    np.testing.assert_allclose(fractions.sum(axis=1), 1)


def test_classes_predicted_as_void_count_as_confused(tables):
    counts = np.column_stack([np.diag(np.full(40, 10)), np.zeros(40, int)])
    counts[35, -1] = 5
    visualize.confusion_matrix(counts, numbered(40))
    ((_, rows, columns, _),) = tables
    assert rows[0] == "c35"
    assert columns[-1] == "void"


def test_correct_and_confused_pixels_differ_in_color():
    cells = confusion._cells(np.array([[0.99, 0.01], [np.nan, np.nan]]), 30, 13)
    right, wrong, missing = (cells[y, x].astype(int) for y, x in [(3, 3), (3, 33), (33, 33)])
    assert right[2] > right[0] + 50
    assert wrong[0] > wrong[2] + 30  # 1 % can be seen
    assert tuple(missing) == confusion.NO_TRUTH
    # The darker the more.
    tints = confusion._tint(np.linspace(0, 1, 50), confusion.CONFUSED).astype(int).sum(axis=-1)
    assert (np.diff(tints) < 0).all()


def test_values_are_written_where_there_is_room():
    def colors(count):
        cells = confusion._cells(np.full((count, count), 0.3), 24, 12)
        return len(np.unique(cells.reshape(-1, 3), axis=0))

    # Without values there are three colors: correct, confused, and the lines.
    assert colors(confusion.MAX_VALUES) > 3
    assert colors(confusion.MAX_VALUES + 1) == 3


@pytest.mark.parametrize("count", [1, 2, 19, 40, 300])
def test_confusion_matrices_of_any_number_of_classes(count):
    counts = np.random.default_rng(0).integers(0, 9, (count, count + 1))
    counts[0, 0] = 1
    drawn = visualize.confusion_matrix(counts, numbered(count))
    assert 100 < min(drawn.shape[:2]) <= max(drawn.shape[:2]) < 1500


def test_a_confusion_matrix_without_pixels_is_an_image():
    assert visualize.confusion_matrix(np.zeros((3, 4), int), numbered(3)).ndim == 3

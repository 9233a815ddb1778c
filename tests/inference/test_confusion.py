"""Pictures of confusions: a matrix, or the most frequent confusions of many classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from flt.inference.confusion import confusion_figure, labels, short, write_picture
from flt.inference.metrics import ClassScore, Scores


def scores(classes: int) -> Scores:
    matrix = np.eye(classes, dtype=int) * 9
    matrix[0, 1] = 7
    rows = [ClassScore(f"class ${number}", 1.0, 1.0, 1.0, int(matrix[number].sum())) for number in range(classes)]
    return Scores({}, int(matrix.sum()), rows, matrix.tolist())


def test_a_small_matrix_has_its_numbers_and_names_in_it(tmp_path: Path) -> None:
    figure = confusion_figure(scores(3), "reviews.csv, test")
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["7", "9", "9", "9"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"class \$0", r"class \$1", r"class \$2"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    shares = np.asarray(axes.images[0].get_array())
    assert shares.tolist() == [[9 / 16, 7 / 16, 0], [0, 1, 0], [0, 0, 1]]
    path = write_picture(figure, tmp_path, "re/views", "test", "")
    assert path.name == "confusion_re_views_test.png"
    with PIL.Image.open(path) as image:
        assert min(image.size) > 300


def test_of_many_classes_the_most_frequent_confusions_are_shown() -> None:
    axes = confusion_figure(scores(60), "all").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"class \$0 as class \$1"]
    assert [bar.get_width() for bar in axes.patches] == [7]


def test_long_names_are_cut_and_control_characters_are_replaced() -> None:
    assert short("x" * 40) == "x" * 21 + "..."
    assert short("a\x1b[2J") == "a?[2J"


def test_names_that_a_reader_could_not_tell_apart_are_numbered(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    assert labels(["a", "ä"]) == ["a", "ä"]
    assert labels(["x" * 40, "x" * 41]) == [f"{number}: {'x' * 21}..." for number in (1, 2)]
    assert labels(["中文", "a"]) == ["1: 中文", "2: a"]
    one = ClassScore("中文", 1.0, 1.0, 1.0, 1)
    write_picture(confusion_figure(Scores({}, 1, [one], [[1]]), "中"), tmp_path, "x")
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]

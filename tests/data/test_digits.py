from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from flt.core.errors import InputError
from flt.data.digits import digits


def test_digits_equal_scikit_learn_with_labels_in_the_order_given() -> None:
    source = load_digits()
    images, labels = digits([7, 3])
    kept = np.isin(source.target, [7, 3])
    np.testing.assert_array_equal(images[:, 0], (source.images[kept] / 16).astype(np.float32))
    np.testing.assert_array_equal(labels, np.where(source.target[kept] == 7, 0, 1))
    assert images.dtype == np.float32
    assert images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("classes", [[], [1, 1], [3, 10], [-1]])
def test_digits_refuse_what_is_no_digit(classes: list[int]) -> None:
    with pytest.raises(InputError, match=r"data\.classes="):
        digits(classes)

"""What no training can use is refused before it starts, with the place where it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.data import check_dataset, synthetic_ecg, synthetic_ptbxl
from hesplit_native.training import RunConfig, train, train_together


@pytest.fixture(scope="module")
def good():
    return dataclasses.replace(synthetic_ecg(train=6000, test=20), train_patient=np.arange(6000) // 3)


def test_good_data_passes(good):
    check_dataset(good)
    check_dataset(synthetic_ptbxl(train=5, test=5))
    check_dataset(dataclasses.replace(good, train_patient=None))


@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [[0], [19], [3, 7, 11]])
def test_values_that_are_not_finite_are_counted_and_the_first_named(good, side, value, rows):
    x = getattr(good, f"{side}_x").copy()
    rows = [len(x) - 20 + row for row in rows]
    x[rows, 0, 100] = value
    words = rf"{side}_x: {len(rows)} of {len(x)} rows .* first {value} in row {rows[0]}, channel 0, sample 100"
    with pytest.raises(hn.DataError, match=words):
        check_dataset(dataclasses.replace(good, **{f"{side}_x": x}))


def labels(at, value):
    y = np.zeros(20, np.int64)
    y[at] = value
    return y


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_x": np.zeros((6000, 1, 128))}, "train_x: expected float32"),
        ({"train_x": np.zeros((6000, 128), np.float32)}, "train_x: expected float32"),
        ({"train_x": [[1.0]]}, "got list"),
        ({"test_x": np.zeros((20, 1, 0), np.float32)}, "test_x: expected float32"),
        ({"test_x": np.zeros((0, 1, 128), np.float32), "test_y": np.zeros(0, np.int64)}, "n > 0"),
        ({"test_x": np.zeros((20, 2, 128), np.float32)}, "those of test_x"),
        ({"test_x": np.zeros((20, 1, 127), np.float32)}, "those of test_x"),
        ({"train_y": np.zeros(5999, np.int64)}, "train_y: expected int64 [6000]"),
        ({"test_y": np.zeros(20, np.int32)}, "test_y: expected int64 [20]"),
        ({"test_y": np.zeros((20, 1), np.int64)}, "test_y: expected int64 [20]"),
        ({"test_y": labels(7, 5)}, "label 5 of row 7 is not in 0..4"),
        ({"test_y": labels(3, -1)}, "label -1 of row 3"),
        ({"train_patient": np.zeros(10, np.int64)}, "train_patient"),
        ({"train_patient": np.zeros(6000)}, "train_patient"),
        ({"classes": ("N",)}, "two classes"),
        ({"classes": ("N", "N", "A", "B", "C")}, "different names"),
    ],
)
def test_other_arrays_are_refused(good, changes, words):
    with pytest.raises(hn.DataError) as caught:
        check_dataset(dataclasses.replace(good, **changes))
    assert words in str(caught.value)


@pytest.mark.parametrize("protocol", ["local", "vanilla", "plain", "splitways", "hesplit", "sealed"])
@pytest.mark.parametrize(("side", "row"), [("train", 5), ("test", 19)])
def test_training_refuses_before_it_starts(protocol, side, row):
    data = synthetic_ecg(train=20, test=20)
    getattr(data, f"{side}_x")[row, 0, 17] = -np.inf
    config = RunConfig(protocol=protocol, epochs=1, batch_size=5)
    for start in (train, lambda *given: train_together(*given, participants=2)):
        with pytest.raises(hn.DataError, match=rf"{side}_x: 1 of 20 rows .* row {row}, channel 0, sample 17"):
            start(config, data)

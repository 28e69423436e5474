"""Tables of series: no cell, date or scale is used that is not a number, and nothing is windowed across gaps."""

import numpy as np
import pandas
import pytest
import torch

from fusible.data.sequences.forecasting import Forecasts, load_arrays


def table(rows=60, frequency="h", values=None):
    dates = pandas.date_range("2020-01-30 20:00", periods=rows, freq=frequency)
    values = np.sin(np.arange(rows)) if values is None else values
    return pandas.DataFrame({"date": dates.astype(str), "OT": [str(value) for value in values]})


def read(folder, frame, rows=(0, 60), num_train=40):
    frame.to_csv(folder / "x.csv", index=False)
    return Forecasts(folder / "x.csv", ["OT"], 6, 2, rows, num_train)


@pytest.mark.parametrize("cell", ["", "NA", "nan", "?", "inf", "1,5"])
def test_cells_without_a_number_are_refused(tmp_path, cell):
    frame = table(80)
    frame.loc[7, "OT"] = cell
    with pytest.raises(ValueError, match=r"1 cells of .*x\.csv .* is .* of 'OT' in row 8\. Fill them"):
        read(tmp_path, frame)
    frame.loc[7, "OT"], frame.loc[70, "OT"] = "0.5", cell  # in no window
    assert len(read(tmp_path, frame)) == 53


def test_constant_columns(tmp_path):
    """Their deviation counts as 1, as in scikit-learn, also where rounding makes it a little larger than 0."""
    values = np.array([0.1] * 40 + [2.1] * 20)
    series = read(tmp_path, table(values=values)).values[:, 0]
    np.testing.assert_allclose(series, values - 0.1, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",1.5\n", ",1,5\n"), "Expected 2 fields in line 4, saw 3"),
        (lambda text: text.replace("date,OT", "date,OT,OT").replace("\n2", ",0\n2"), "more than one column OT"),
        (lambda text: text.replace(",1.5\n", ",1e300\n"), r"Numbers of .*x\.csv are too large"),
    ],
    ids=["decimal comma", "column twice", "huge"],
)
def test_numbers_that_would_become_others_are_refused(tmp_path, change, message):
    """A number cut at its comma, the first of two columns of one name, and zeros by an infinite deviation."""
    frame = table(values=[0.5 * (i + 1) for i in range(60)])
    text = frame.to_csv(index=False)
    (tmp_path / "x.csv").write_text(text)
    assert len(Forecasts(tmp_path / "x.csv", ["OT"], 6, 2, (0, 60), 40)) == 53
    (tmp_path / "x.csv").write_text(change(text))
    with pytest.raises(ValueError, match=message):
        Forecasts(tmp_path / "x.csv", ["OT"], 6, 2, (0, 60), 40)


CHANGES = {
    "shuffled": lambda frame: frame.sample(frac=1, random_state=0),
    "newest first": lambda frame: frame[::-1],
    "repeated": lambda frame: pandas.concat([frame[:30], frame[29:]]),
    "gap": lambda frame: pandas.concat([frame[:30], frame[31:]]),
    "no date": lambda frame: frame.assign(date=["" if i == 3 else date for i, date in enumerate(frame.date)]),
    "no dates": lambda frame: frame.assign(date="yesterday"),
    "too few": lambda frame: frame[:55],
    "unclosed quote": lambda frame: frame.assign(OT=['"1' if i == 3 else cell for i, cell in enumerate(frame.OT)]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_are_no_series_are_refused(tmp_path, change):
    frame = CHANGES[change](table(80))
    if change == "unclosed quote":
        (tmp_path / "x.csv").write_text("date,OT\n" + "".join(f"{a},{b}\n" for a, b in frame.to_numpy()))
        with pytest.raises(ValueError, match=r"x\.csv"):
            Forecasts(tmp_path / "x.csv", ["OT"], 6, 2, (0, 60), 40)
    else:
        message = {"gap": r"row 31 .* follows 2020-02-01 01:00:00", "too few": "has 55 rows, but 60 are wanted"}
        with pytest.raises(ValueError, match=r"x\.csv.*" + message.get(change, "")):
            read(tmp_path, frame)


@pytest.mark.parametrize("frequency", ["D", "MS", "B", "15min"])
def test_steps_of_the_calendar_are_equal(tmp_path, frequency):
    frame = table(frequency=frequency)
    found = read(tmp_path, frame).times[:, 3]
    assert found.tolist() == [int(date[5:7]) for date in frame.date]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_arrays_of_numbers_only(tmp_path, wrong):
    values = np.ones((3, 4, 1))
    np.savez(tmp_path / "train.npz", values=values, targets=np.ones(3))
    assert torch.equal(load_arrays(tmp_path, "train")[2]["input_values"], torch.ones(4, 1))
    values[1, 2] = wrong
    np.savez(tmp_path / "train.npz", values=values, targets=np.ones(3))
    with pytest.raises(ValueError, match=r"values of .*train\.npz are not all finite"):
        load_arrays(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("values", np.ones((3, 4))),
        ("values", np.ones((3, 4, 1), complex)),
        ("targets", np.ones((3, 2))),
        ("targets", np.ones(3, bool)),
    ],
)
def test_arrays_of_another_shape_or_type(tmp_path, name, array):
    np.savez(tmp_path / "train.npz", **({"values": np.ones((3, 4, 1)), "targets": np.ones(3)} | {name: array}))
    with pytest.raises(ValueError, match=rf"The {name} of .*train\.npz are {array.dtype} of shape .* must be real"):
        load_arrays(tmp_path, "train")

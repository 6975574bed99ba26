import matplotlib.figure
import numpy as np
import pytest

from keras_bert_lib.training import plot_training

HEADER = "epoch,step,loss,learning_rate,gradient_norm,tokens_per_second,padding_share,val_loss\n"
ROWS = """\
1,10,0.9,0.001,3.0,900,0.5,
1,20,0.7,0.002,inf,1000,0.4,0.8
2,30,0.6,0.001,1.0,1100,0.5,
2,40,0.5,0.0,2.0,,,0.6
"""


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a text as a CSV; returns the axes by their titles."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, *args, **kw: (figures.append(figure), save(figure, *args, **kw)),
    )

    def run(text):
        (tmp_path / "run.csv").write_text(text)
        plot_training(tmp_path / "run.csv", tmp_path / "run.png")
        assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
        return {ax.get_title(): ax for ax in figures[-1].axes}

    return run


def points(line):
    return [(x, y) for x, y in zip(*line.get_data(), strict=True) if np.isfinite(x)]


def test_each_column_has_its_panel_with_training_and_validation(draw):
    axes = draw(HEADER + ROWS)
    assert list(axes) == [
        "Loss",
        "Learning rate",
        "Gradient norm, before clipping",
        "Real tokens per second",
        "Share of padding",
    ]
    training, validation = axes["Loss"].get_lines()[:2]
    assert points(training) == [(10, 0.9), (20, 0.7), (30, 0.6), (40, 0.5)]
    assert points(validation) == [(20, 0.8), (40, 0.6)]
    assert [text.get_text() for text in axes["Loss"].get_legend().get_texts()] == ["training", "validation"]
    assert points(axes["Gradient norm, before clipping"].get_lines()[0]) == [(10, 3.0), (30, 1.0), (40, 2.0)]
    assert axes["Gradient norm, before clipping"].get_yscale() == "log"
    assert axes["Real tokens per second"].get_ylim()[0] == 0


def test_training_curve_is_parted_between_epochs(draw):
    training, validation = draw(HEADER + ROWS)["Loss"].get_lines()[:2]
    assert np.isnan(training.get_xdata()).tolist() == [False, False, True, False, False]
    assert not np.isnan(validation.get_xdata()).any()


def test_one_point_an_epoch_makes_one_line(draw):
    training = draw("epoch,step,loss\n1,5,0.5\n2,10,0.4\n3,15,0.3\n")["Loss"].get_lines()[0]
    assert points(training) == [(5, 0.5), (10, 0.4), (15, 0.3)]
    assert not np.isnan(training.get_xdata()).any()
    assert training.get_marker() == "o"


def test_columns_without_values_have_no_panel(draw):
    assert list(draw("epoch,step,loss,padding_share,my_metric\n1,5,0.5,,0.1\n")) == ["Loss", "My metric"]


def test_other_files_are_refused(draw):
    with pytest.raises(ValueError, match=r"must be a file that kbl.training.Monitor wrote.*with the columns: a, b"):
        draw("a,b\n1,2\n")
    with pytest.raises(ValueError, match="with the columns: none"):
        draw("")
    with pytest.raises(ValueError, match=r"run.csv' has no rows yet. The first comes after `every` steps"):
        draw(HEADER)

"""Plots of the installed package: what is drawn, where it is drawn, and that nothing else changes."""
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from fer_nb.audit import audit
from fer_nb.core import EMOTIONS, ConfigError, DataError, LabelError
from fer_nb.models import HyFER, HyFERConfig
from fer_nb.plots import (EMOTION_COLORS, gradcam_panel, plot_confusion, plot_counts, plot_history, plot_issues,
                          plot_robust, plot_twins, plot_weights)
from fer_nb.synth import make_faces


@pytest.fixture(scope="module")
def ds():
    return make_faces(140, seed=0, defects={"exact": .1, "multilabel": .1, "leak": .1})[0]


@pytest.fixture(scope="module")
def report(ds):
    return audit(ds)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return HyFER(in_chans=1, variant=HyFERConfig(8, ((8, 2, 2), (8, 2, 2)), 16, 1, 1, 16, True, "relu", 48)).eval()


@pytest.fixture(autouse=True)
def nothing_stays():
    style = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == style
    plt.close("all")


def curves(n=30, models=("a", "b")):
    return pd.DataFrame([(m, s, k, e, t, "accuracy", max(0, .8 - 9 * e), n) for m in models for s in ("valid", "test")
                         for k, t in (("fgsm", 1), ("pgd", 10)) for e in (.02, 0, .01)],
                        columns=["model", "split", "attack", "eps", "steps", "metric", "value", "n"])


HISTORY = pd.DataFrame({"phase": ["one", "two", "two"], "epoch": [1, 1, 2], "train_loss": [2., 1., .5],
                        "valid_loss": [2., np.nan, 1.], "accuracy": [.1, .5, .6]})
MATRIX = pd.DataFrame(np.diag([3, 0, 5]), index=list("abc"), columns=list("abc"))
ON_AX = {
    "confusion": lambda ds, report, ax: plot_confusion(MATRIX, ax),
    "counts": lambda ds, report, ax: plot_counts(ds, ds.where(split="train"), ax),
    "issues": lambda ds, report, ax: plot_issues(report, ax),
    "robust": lambda ds, report, ax: plot_robust(curves(), ax),
    "history": lambda ds, report, ax: plot_history(HISTORY, ax),
}


@pytest.mark.parametrize("name", ON_AX)
def test_draws_into_the_given_axes_and_renders(name, ds, report):
    figure = Figure()  # not known to pyplot
    ax = figure.add_subplot()
    assert ON_AX[name](ds, report, ax) is ax and not plt.get_fignums()
    figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize("name", ON_AX)
def test_makes_axes_of_its_own(name, ds, report):
    ax = ON_AX[name](ds, report, None)
    assert plt.get_fignums() == [ax.figure.number]


def test_every_emotion_has_a_colour():
    assert set(EMOTIONS) < set(EMOTION_COLORS) and len(set(EMOTION_COLORS.values())) == len(EMOTION_COLORS)


def test_confusion_counts_and_options():
    ax = plot_confusion(MATRIX, normalize=False, cmap="Greys", vmax=10)
    assert ax.images[0].get_clim() == (0, 10) and ax.images[0].get_cmap().name == "Greys"
    assert [t.get_text() for t in ax.texts] == list("300000005")


def test_counts_of_one_dataset_and_of_unknown_labels():
    table = pd.DataFrame({"train": [2, 1], "test": [1, 0]}, index=["happy", "bored"])
    ax = plot_counts(table)
    assert [b.get_width() for b in ax.containers[0]] == [3, 1]
    after = plot_counts(table, table.drop("bored"))
    assert [b.get_width() for b in after.containers[1]] == [3, 0]


def test_counts_after_nothing():
    assert len(plot_counts(make_faces(20, defects=None)[0]).containers) == 1


def test_robust_lines_are_told_apart_without_colour():
    ax = plot_robust(curves())
    looks = {(line.get_marker(), line.get_linestyle()) for line in ax.lines}
    assert len(ax.lines) == len(looks) == 8
    assert all((np.diff(line.get_xdata()) > 0).all() for line in ax.lines)
    assert ax.get_legend().get_texts()[0].get_text() == "a, valid, fgsm (1 step)"


def test_robust_without_a_model_column_and_with_many_sizes():
    table = curves(models=["a"]).drop(columns="model").query("split == 'test'")
    assert plot_robust(table).get_legend().get_texts()[1].get_text() == "pgd (10 steps)"
    assert plot_robust(pd.concat([curves(30), curves(1200)])).get_ylabel() == "accuracy (30 to 1,200 images)"


def test_history_of_one_epoch():
    ax = plot_history(HISTORY[:1])
    assert [t.get_text() for t in ax.texts] == ["one"] and len(ax.figure.axes) == 2


def test_weights_into_given_axes():
    rows = [(0, t, e, .5) for t in "ab" for e in ("happy", "sad")]
    table = pd.DataFrame(rows, columns=["epoch", "teacher", "emotion", "weight"])
    _, axes = plt.subplots(1, 3)
    drawn = plot_weights(table.astype({"emotion": "category", "teacher": "category"}), axes)
    assert [len(ax.lines) for ax in drawn] == [2, 2, 0]


def test_twins_are_the_pairs_of_the_table(ds, report):
    axes = plot_twins(ds, report.twins, n=5)
    images = [ax.images[0].get_array() for ax in axes if ax.images]
    assert len(images) == 10
    for a, b, ax in zip(images[::2], images[1::2], axes[::2]):
        if ax.get_title().startswith("exact"):
            np.testing.assert_array_equal(a, b)
    assert any(ax.get_title().startswith("≠") for ax in plot_twins(ds, report.twins, n=99))


class TestGradCAM:
    def test_model_comes_out_unchanged_even_after_an_error(self, student, ds):
        for layer, error in ((None, None), (student.fc, ConfigError)):
            student.train()
            student.stem.eval()
            weights, modes = [p.clone() for p in student.parameters()], [m.training for m in student.modules()]
            if error is None:
                gradcam_panel(student, ds, [0, 1])
            else:
                with pytest.raises(error):
                    gradcam_panel(student, ds, [0, 1], layer)
            assert [m.training for m in student.modules()] == modes
            assert all(p.grad is None and torch.equal(p, w) for p, w in zip(student.parameters(), weights))
            assert not any(m._forward_hooks or m._backward_hooks for m in student.modules())
        student.eval()

    def test_given_axes_titles_and_heat(self, student, ds):
        axes = Figure().subplots(1, 3)
        drawn = gradcam_panel(student, ds, [5, 6], axes=axes)
        assert drawn[0] is axes[0] and not plt.get_fignums() and not axes[2].images
        image, heat = (i.get_array() for i in drawn[0].images[-2:])
        np.testing.assert_array_equal(image, ds.image(5))
        assert heat.shape == (48, 48) and 0 <= heat.min() <= heat.max() <= 1
        assert drawn[0].get_title().startswith(ds.df.label[5])

    def test_frozen_model_inside_inference_mode(self, student, ds):
        student.requires_grad_(False)
        with torch.inference_mode():
            axes = gradcam_panel(student, ds, [0])
        assert len(axes) == 1 and not any(p.requires_grad for p in student.parameters())
        student.requires_grad_(True)

    def test_more_images_than_a_batch(self, student, ds):
        heat = [ax.images[-1].get_array() for ax in gradcam_panel(student, ds, range(20))[:20]]
        alone = gradcam_panel(student, ds, [18])[0].images[-1].get_array()
        np.testing.assert_allclose(heat[18], alone, atol=1e-4)

    def test_bad_input(self, student, ds):
        with pytest.raises(DataError, match="1 axes for 2"):
            gradcam_panel(student, ds, [0, 1], axes=[Figure().add_subplot()])
        with pytest.raises(ConfigError, match="needed for Sequential"):
            gradcam_panel(nn.Sequential(nn.Conv2d(1, 2, 3)), ds, [0])
        with pytest.raises(LabelError):
            gradcam_panel(HyFER(3, 1, student.config), ds, [0])
        assert not plt.get_fignums()

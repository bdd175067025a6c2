"""Plots of the installed package: what is drawn, where it is drawn, and that nothing else changes."""
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from matplotlib.figure import Figure
from torch import nn

from fer_nb.audit import audit
from fer_nb.core import EMOTIONS, ConfigError, DataError, LabelError
from fer_nb.metrics import ece, reliability
from fer_nb.models import HyFER, HyFERConfig, Teacher
from fer_nb.plots import (EMOTION_COLORS, EMOTION_MARKERS, CamLayer, cam_layer, caption, gradcam, gradcam_grid,
                          gradcam_panel, pareto_front, plot_confusion, plot_corruptions, plot_counts, plot_duplicates,
                          plot_embedding, plot_history, plot_pareto, plot_reliability, plot_robust, plot_tradeoff,
                          plot_weights)
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
rng = np.random.default_rng(0)
LOGITS, TRUE = rng.normal(size=(60, 7)) * 2, rng.integers(0, 7, 60)
PRICE = pd.DataFrame([(m, e, c, c - e, 50) for m, c in (("a", .8), ("b", .7)) for e in (.1, .2)],
                     columns=["model", "eps", "clean", "robust", "n"])
ZOO = pd.DataFrame({"model": ["a", "b", "c"], "latency_ms": [1., 2., 3.], "accuracy": [.5, .7, .6]})
ON_AX = {
    "reliability": lambda ds, report, ax: plot_reliability(reliability(LOGITS, TRUE), ax),
    "tradeoff": lambda ds, report, ax: plot_tradeoff(PRICE, ax),
    "pareto": lambda ds, report, ax: plot_pareto(ZOO, ax),
    "embedding": lambda ds, report, ax: plot_embedding(LOGITS, np.array(EMOTIONS)[TRUE], ax),
    "confusion": lambda ds, report, ax: plot_confusion(MATRIX, ax),
    "counts": lambda ds, report, ax: plot_counts(ds, ds.where(split="train"), ax),
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
    assert list(EMOTION_MARKERS) == list(EMOTION_COLORS) and len(set(EMOTION_MARKERS.values())) == len(EMOTION_MARKERS)


def test_confusion_counts_and_options():
    ax = plot_confusion(MATRIX, normalize=False, cmap="Greys", vmax=10)
    assert ax.collections[0].get_clim() == (0, 10) and ax.collections[0].get_cmap().name == "Greys"
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
    assert plot_robust(pd.concat([curves(30, ["a"]), curves(1200, ["b"])])).get_ylabel() == "accuracy (30 to 1,200 images)"


def test_robust_rows_of_a_point_are_one():
    with pytest.raises(DataError, match="rows more than one a cell, the first of a"):
        plot_robust(pd.concat([curves().assign(seed=k) for k in (0, 1)]))
    both = pd.concat([curves(1000, ["a"]).assign(subset="sample"), curves(3589, ["a"]).assign(subset="all")])
    assert len(plot_robust(both[both.split == "valid"]).lines) == 4
    assert plot_robust(curves(models=["a"]).drop(columns="steps").query("attack == 'pgd'")).get_legend().get_texts()[0].get_text() == "a, valid, pgd"
    efforts = pd.concat([curves(models=["a"]).query("attack == 'pgd' and split == 'test'").assign(steps=k) for k in range(1, 11)])
    lines = plot_robust(efforts).lines
    assert len({(line.get_marker(), line.get_linestyle(), line.get_color()) for line in lines}) == len(lines) == 10
    with pytest.raises(DataError, match="no column 'eps'"):
        plot_robust(curves().drop(columns="eps"))


def test_tables_of_several_seeds_are_not_drawn_as_one():
    with pytest.raises(DataError, match="more than one a cell"):
        plot_tradeoff(pd.concat([PRICE, PRICE]))
    curve = pd.DataFrame({"kind": "blur", "severity": [1, 1], "metric": "accuracy", "value": [.5, .6], "n": 9})
    with pytest.raises(DataError, match="more than one a cell, the first of blur, 1"):
        plot_corruptions(curve)
    with pytest.raises(DataError, match="no column 'phase'"):
        plot_history(HISTORY.drop(columns="phase"))


def test_every_class_is_counted_and_has_a_look_of_its_own():
    before, after = (pd.DataFrame({"all": n}, index=labels) for n, labels in (([5, 4], ["happy", "sad"]), ([5, 30], ["happy", "neutral"])))
    ax = plot_counts(before, after)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["happy", "sad", "neutral"]
    assert [b.get_width() for b in ax.containers[0]] == [5, 4, 0] and [b.get_width() for b in ax.containers[1]] == [5, 0, 30]
    own = [f"class {k}" for k in range(12)]
    ax = plot_embedding(rng.normal(size=(60, 4)), np.resize(own, 60))
    dots, shown = ax.collections[0], ax.get_legend().legend_handles
    looks = {(tuple(c), p.vertices.tobytes()) for c, p in zip(dots.get_facecolors(), dots.get_paths())}
    assert len(looks) == len({(h.get_color(), h.get_marker()) for h in shown}) == len(shown) == 12


ODD = ["_b", "$\\bad$", "a $x$ b $y$", "ok"]


def test_names_are_drawn_as_they_are():
    "No formula, no error, no hidden entry for names with dollars and underscores; a matrix of twenty classes has room."
    table = pd.DataFrame({"attack": "pgd", "steps": 5, "eps": [.01, .02] * 4, "metric": "accuracy", "value": .5, "n": 9, "model": np.repeat(ODD, 2)})
    axes = [plot_robust(table), plot_embedding(rng.normal(size=(40, 4)), np.resize(ODD, 40)), plot_confusion(pd.DataFrame(np.eye(4), ODD, ODD)),
            plot_counts(pd.DataFrame({"all": 5}, index=ODD))]
    for ax in axes:
        ax.figure.draw_without_rendering()
    for ax in axes[:2]:
        assert [t.get_text().strip("\u200b").replace("\\$", "$").partition(", pgd")[0] for t in ax.get_legend().get_texts()] == \
            (ODD if ax is axes[0] else sorted(ODD, key=lambda name: name.replace("$", "\\$").replace("_", "\u200b_")))
    many = [f"class {k}" for k in range(20)]
    ax = plot_confusion(pd.DataFrame(np.full((20, 20), 5), many, many))
    ax.figure.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.texts]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:]))


def test_history_of_one_epoch():
    ax = plot_history(HISTORY[:1])
    assert [t.get_text() for t in ax.texts] == ["one"] and len(ax.figure.axes) == 2


def test_names_of_many_phases_do_not_run_into_one_another():
    names = [f"{who}, with a long name" for who in ("teacher efficientnet_lite0", "teacher resnet18", "HyFER, EADD", "HyFER + adversarial")]
    table = pd.DataFrame([(name, 1, 2., 1., .5) for name in names], columns=list(HISTORY[["phase", "epoch", "train_loss", "valid_loss", "accuracy"]]))
    for size in (10, 13):
        with mpl.rc_context({"font.size": size}):
            ax = plot_history(table)
            ax.figure.draw_without_rendering()
        boxes = [t.get_window_extent() for t in ax.texts]
        assert len(boxes) == 4 and all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))
        key = ax.figure.axes[1].get_legend()
        assert [t.get_text() for t in key.get_texts()] == [f"{k}  {name}" for k, name in enumerate(names, 1)]
        parts = [key.get_window_extent(), ax.get_legend().get_window_extent(), ax.xaxis.label.get_window_extent(), *boxes]
        assert not any(a.overlaps(b) for k, a in enumerate(parts) for b in parts[k + 1:])


def test_shares_are_in_per_cent_and_losses_are_not():
    ax = plot_robust(curves())
    ax.figure.draw_without_rendering()
    assert [t.get_text() for t in ax.get_yticklabels()][0::5] == ["0 %", "100 %"]
    ax = plot_robust(curves().assign(metric="loss"), metric="loss")
    ax.figure.draw_without_rendering()
    assert not any("%" in t.get_text() for t in ax.get_yticklabels())


def test_weights_into_given_axes():
    rows = [(0, t, e, .5) for t in "ab" for e in ("happy", "sad")]
    table = pd.DataFrame(rows, columns=["epoch", "teacher", "emotion", "weight"])
    _, axes = plt.subplots(1, 3)
    drawn = plot_weights(table.astype({"emotion": "category", "teacher": "category"}), axes)
    assert [len(ax.lines) for ax in drawn] == [2, 2, 0]


def test_duplicates_are_the_pairs_of_the_table(ds, report):
    axes = plot_duplicates(ds, report.duplicates, n=5)
    images = [ax.images[0].get_array() for ax in axes if ax.images]
    assert len(images) == 10
    for a, b, ax in zip(images[::2], images[1::2], axes[::2]):
        if ax.get_title().startswith("exact"):
            np.testing.assert_array_equal(a, b)
    assert any(ax.get_title().startswith("≠") for ax in plot_duplicates(ds, report.duplicates, n=99))
    pair = report.duplicates.sort_values("score", ascending=False, kind="stable").iloc[0]
    long = ds.assign(id=["folder/of/a/long/name/" + name for name in ds.df.id])
    titles = [ax.get_title() for ax in plot_duplicates(long, report.duplicates[report.duplicates.how == pair.how], n=1)]
    assert [title.split("\n")[1] for title in titles[:2]] == [f"…{('name/' + ds.df.id[k])[-13:]}" for k in (pair.i, pair.j)]


class TestGradCAM:
    def test_model_comes_out_unchanged_even_after_an_error(self, student, ds):
        for layer, error in ((None, None), (student.fc, ValueError)):
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
        heat = gradcam(student, ds.take(range(20)))
        np.testing.assert_allclose(heat[18], gradcam(student, ds.take([18]))[0], atol=1e-3)
        np.testing.assert_array_equal(heat[0], gradcam_panel(student, ds, range(20))[0].images[-1].get_array())

    def test_bad_input(self, student, ds):
        with pytest.raises(DataError, match="1 axes for 2"):
            gradcam_panel(student, ds, [0, 1], axes=[Figure().add_subplot()])
        flat = nn.Sequential(nn.Flatten(), nn.Linear(48 * 48, 7))
        flat.labels, flat.in_chans = EMOTIONS, 1
        with pytest.raises(ConfigError, match="no layer with a map.*target_layer"):
            gradcam_panel(flat, ds, [0])
        with pytest.raises(DataError, match="1 axes for 2"):
            plot_weights(pd.DataFrame([(0, "a", e, 1.) for e in ("happy", "sad")], columns=["epoch", "teacher", "emotion", "weight"]),
                         [Figure().add_subplot()])
        with pytest.raises(LabelError):
            gradcam_panel(HyFER(3, 1, student.config), ds, [0])
        assert not plt.get_fignums()


    @pytest.mark.parametrize(("name", "args", "where"), [
        ("vit_tiny_patch16_224", dict(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2), "net.blocks.1.norm1"),
        ("vit_tiny_patch16_224", dict(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, class_token=False,
                                      global_pool="avg"), "net."),
        ("deit_tiny_distilled_patch16_224", dict(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2), "net.blocks.1.norm1"),
        ("test_resnet", {}, "net.layer4"), ("test_efficientnet", {}, "net."), ("test_vit", dict(img_size=64), "net."),
        ("swin_tiny_patch4_window7_224", dict(img_size=64, window_size=2, embed_dim=24, depths=[1, 1], num_heads=[2, 2]), "net."),
    ])
    def test_any_timm_model_has_a_layer(self, ds, name, args, where):
        torch.manual_seed(0)
        net = Teacher(timm.create_model(name, num_classes=7, **args), 64)
        modes = [m.training for m in net.modules()]
        layer = cam_layer(net)
        found = next(n for n, m in net.named_modules() if m is layer.module)
        assert found.startswith(where), found
        assert modes == [m.training for m in net.modules()] and not any(m._forward_hooks for m in net.modules())
        axes = gradcam_panel(net, ds, [0])
        heat = axes[0].images[-1].get_array()
        assert heat.shape == (48, 48) and np.isfinite(heat).all()

    def test_a_layer_with_tokens_by_hand(self, ds):
        torch.manual_seed(0)
        net = Teacher(timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=64, patch_size=16, embed_dim=32, depth=2,
                                        num_heads=2), 64).eval()
        by_hand = CamLayer(net.net.blocks[1].norm1, lambda out: out[:, 1:].transpose(1, 2).reshape(-1, 32, 4, 4))
        heats = [gradcam_panel(net, ds, [0], layer)[0].images[-1].get_array() for layer in (None, by_hand)]
        np.testing.assert_allclose(*heats, atol=1e-6)

    def test_grid(self, student, ds):
        axes = gradcam_grid({"one": student, "two": student}, ds, [3, 5, 8])
        assert axes.shape == (3, 3) and axes[0, 1].get_title().startswith("one\n") and axes[1, 0].get_title() == ds.df.label[5]
        np.testing.assert_array_equal(axes[2, 0].images[0].get_array(), ds.image(8))
        assert len(gradcam_grid({"one": student}, ds)) == ds.df.label.nunique()
        with pytest.raises(ConfigError, match=r"axes.shape=\(3, 1\); \(3, 2\) expected"):
            gradcam_grid({"one": student}, ds, [0, 1, 2], axes[:, :1])


def test_robust_norms_restarts_and_unlimited_rows():
    table = pd.concat([curves(models=["a"]).assign(norm="linf", restarts=r) for r in (1, 5)])
    table = pd.concat([table, table.assign(norm="l2"), table.assign(eps=np.inf), table.assign(attack="none", norm="none")])
    ax = plot_robust(table[table.split == "test"])
    assert len(ax.lines) == 4 and len({(line.get_marker(), line.get_linestyle()) for line in ax.lines}) == 4
    assert "pgd (10 steps × 5 restarts)" in ax.get_legend().get_texts()[3].get_text()
    assert "Euclidean" in plot_robust(table, norm="l2").get_xlabel()
    clean = pd.DataFrame([("a", "test", "none", 0.0, 0, "accuracy", .9, 30, "none")],
                         columns=["model", "split", "attack", "eps", "steps", "metric", "value", "n", "norm"])
    only = curves(models=["a"]).query("split == 'test' and eps > 0").assign(norm="linf")
    assert all(line.get_ydata()[0] == .9 and line.get_xdata()[0] == 0 for line in plot_robust(pd.concat([clean, only])).lines)
    with pytest.raises(DataError, match="l2"):
        plot_robust(curves(), norm="l2")


def test_reliability_marks_overconfidence():
    ax = plot_reliability(reliability(LOGITS, TRUE, 5))
    assert f"ECE {100 * ece(LOGITS, TRUE, 5):.1f} %" in ax.texts[0].get_text() and "60 images" in ax.texts[0].get_text()
    assert any(bar.get_hatch() == "////" for c in ax.containers for bar in c)
    assert plot_reliability(reliability(LOGITS, TRUE, 5, adaptive=True)).get_xlim() == (0, 1)


def test_pareto_front_against_a_loop():
    rng = np.random.default_rng(3)
    cost, worth = rng.integers(0, 6, 40), rng.integers(0, 6, 40)
    beaten = [any((c <= a and w >= b) and (c < a or w > b) for c, w in zip(cost, worth)) for a, b in zip(cost, worth)]
    np.testing.assert_array_equal(pareto_front(cost, worth), ~np.array(beaten))
    ax = plot_pareto(ZOO.assign(params=[1, 2, 3]))
    assert {t.get_text() for t in ax.texts} == set("abc") and ax.lines[0].get_xdata().tolist() == [1, 2]
    with pytest.raises(DataError, match="no model with both"):
        plot_pareto(ZOO.assign(accuracy=np.nan))


def test_corruptions_leave_spare_axes_alone_and_want_one_split():
    rows = pd.DataFrame([("test", k, s, "accuracy", .5, 9) for k in ("noise", "blur") for s in (0, 3)],
                        columns=["split", "kind", "severity", "metric", "value", "n"])
    axes = Figure().subplots(1, 3)
    drawn = plot_corruptions(rows, axes)
    assert [len(ax.lines) for ax in drawn] == [1, 1, 0] and not plt.get_fignums()
    with pytest.raises(DataError, match="one split"):
        plot_corruptions(pd.concat([rows, rows.assign(split="valid")]))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_embeddings_replay_and_are_thinned(method):
    labels = np.array([*EMOTIONS, "bored"])[np.arange(60) % 8]
    spots = [np.concatenate([c.get_offsets() for c in plot_embedding(LOGITS, labels, method=method, n=40).collections]) for _ in "ab"]
    np.testing.assert_array_equal(*spots)
    assert len(spots[0]) == 40
    for bad in (LOGITS[:, 0], LOGITS[:2], LOGITS * np.nan, LOGITS[:, :1]):
        with pytest.raises(DataError):
            plot_embedding(bad, labels[:len(bad)], method=method)
    for n in (0, 1, 2, 9.5):
        with pytest.raises(ConfigError, match=f"n={n}; a whole number of at least 3 points"):
            plot_embedding(LOGITS, labels, method=method, n=n)


def test_a_caption_is_below_the_figure():
    ax = Figure().add_subplot()
    assert caption(ax, "word " * 40, 50) is ax and "\n" in ax.figure._supxlabel.get_text()


def test_networks_of_unknown_size_are_drawn_too():
    zoo = pd.DataFrame({"model": ["a", "b"], "latency_ms": [1.0, 2.0], "accuracy": [0.6, 0.7]})
    sizes = [np.concatenate([c.get_sizes() for c in plot_pareto(zoo.assign(params=params)).collections]) for params in ([np.nan] * 2, [5.0, np.nan], [5.0, 2.0])]
    assert all(len(s) == 2 and np.isfinite(s).all() and (s > 10).all() for s in sizes)


def test_splits_are_not_drawn_through_each_other():
    with pytest.raises(DataError, match="one split expected"):
        plot_tradeoff(pd.concat([PRICE.assign(split="train"), PRICE.assign(split="test")]))
    attacked = curves()[lambda t: t.split == "test"].assign(norm="linf")
    row = attacked.iloc[:1].assign(attack="none", eps=0.0, norm="none")
    both = pd.concat([row.assign(split="train", value=0.95), row.assign(split="test", value=0.8), attacked], ignore_index=True)
    starts = [line.get_ydata()[0] for line in plot_robust(both).lines]
    assert starts and 0.95 not in starts


def test_weights_of_a_second_fit_go_on():
    history = pd.DataFrame([(e, "t", "sad", .5) for e in (0, 0, 1, 2)], columns=["epoch", "teacher", "emotion", "weight"])
    assert plot_weights(history)[0].lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    with pytest.raises(DataError, match="several of seed"):
        plot_weights(pd.concat([history.assign(seed=k) for k in (0, 1)]))


def test_a_history_is_of_one_run_and_all_its_epochs_are_drawn():
    with pytest.raises(DataError, match="the history has several of fold"):
        plot_history(pd.concat([HISTORY.assign(fold=k) for k in (0, 1)], ignore_index=True))
    first = HISTORY.assign(phase=[None, *HISTORY.phase[1:]])
    assert plot_history(first).lines[0].get_xdata()[0] == 1


def test_what_has_no_cost_is_on_no_front():
    assert pareto_front([1, np.nan, 3], [.5, .2, .9]).tolist() == [True, False, True]
    assert pareto_front([1, 2], [np.nan, .1]).tolist() == [False, True]


def test_each_model_is_named_once_in_a_table_put_together():
    halves = [PRICE[PRICE.model == m].reset_index(drop=True) for m in PRICE.model.unique()]
    texts = [t.get_text() for t in plot_tradeoff(pd.concat(halves)).texts]
    assert sorted(texts) == sorted(PRICE.model.unique())


def test_a_matrix_takes_seaborns_options():
    ax = plot_confusion(pd.DataFrame(np.eye(3)), annot_kws={"fontsize": 4}, mask=np.eye(3, dtype=bool), square=True)
    assert len(ax.texts) == 6 and {t.get_fontsize() for t in ax.texts} == {4}

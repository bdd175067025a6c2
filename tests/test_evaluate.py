"""Evaluation of the installed package: invariants of the model, edge cases of splits and datasets, determinism."""
import random

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics
from torch import nn

from fer_nb.attacks import deepfool
from fer_nb.compare import paired_t
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, LabelError
from fer_nb.data import FERData, read_folder
from fer_nb.evaluate import (TTA, by_group, calibration, compare, confusion, cross_dataset, cross_validate, evaluate, fold_logits,
                             headline_of, leaked_images, out_of_fold, predict_logits, robust_curve, shared_labels, tta_views)
from fer_nb.metrics import MACRO
from fer_nb.store import StoreError

COLUMNS = ["split", "subset", "tta", "attack", "eps", "steps", "metric", "value", "n", "labels"]


def net(chans=1, side=12, labels=EMOTIONS):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(chans, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
                          nn.Linear(2 * side * side, len(labels)))
    model.labels = labels
    return model


def faces(n=60, shape=(12, 12), seed=0, splits=("train", "valid", "test")):
    rng = np.random.default_rng(seed)
    ids = [f"i{k}" for k in range(n)]
    df = pd.DataFrame({"id": ids, "label": rng.choice(EMOTIONS, n), "split": rng.choice(splits, n)})
    return FERData(df, rng.integers(0, 256, (n, *shape), dtype=np.uint8))


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()], \
        [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same(a, b):
    return (all(torch.equal(v, b[0][k]) for k, v in a[0].items()) and a[1] == b[1]
            and all(g is h is None or torch.equal(g, h) for g, h in zip(a[2], b[2])))


CALLS = {
    "logits": lambda m, ds: predict_logits(m, ds, tta="flip"),
    "evaluate": lambda m, ds: evaluate(m, ds, duplicates=["i3"]),
    "confusion": confusion,
    "by_group": lambda m, ds: by_group(m, ds, "split", times=5),
    "fgsm": lambda m, ds: robust_curve(m, ds, "fgsm", eps=(0, 0.1)),
    "pgd": lambda m, ds: robust_curve(m, ds, eps=(0.1,), steps=2, restarts=2),
    "pgd l2": lambda m, ds: robust_curve(m, ds, eps=(0.5,), steps=(1, 2), restarts=(1, 2), norm="l2"),
    "deepfool": lambda m, ds: robust_curve(m, ds, "deepfool", eps=(0, 0.1), steps=3),
}


@pytest.mark.parametrize("name", CALLS)
def test_model_and_global_randomness_are_untouched(name):
    model, ds = net(), faces()
    model(torch.rand(4, 1, 12, 12)).sum().backward()
    model[1].eval()
    before, draws = state(model), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    CALLS[name](model, ds)
    assert same(before, state(model))
    assert torch.equal(draws[0], torch.get_rng_state()) and (draws[1] == np.random.get_state()[1]).all()
    assert draws[2] == random.getstate()


@pytest.mark.parametrize("name", CALLS)
def test_model_is_restored_after_an_error(name):
    class Broken(nn.Sequential):
        def forward(self, x): raise RuntimeError("out of memory")

    model = Broken(nn.BatchNorm2d(1))
    model.labels = EMOTIONS
    before = state(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        CALLS[name](model, faces())
    assert same(before, state(model))


@pytest.mark.parametrize("name", CALLS)
def test_labels_must_agree(name):
    with pytest.raises(LabelError, match="another order"):
        CALLS[name](net(labels=EMOTIONS[::-1]), faces())
    with pytest.raises(LabelError, match="other names"):
        CALLS[name](net(labels=EMOTIONS[:6]), faces())


@pytest.mark.parametrize("name", CALLS)
def test_works_inside_no_grad_and_inference_mode(name):
    model, ds = net(), faces()
    out = CALLS[name](model, ds)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            again = CALLS[name](model, ds)
        assert out.equals(again) if isinstance(out, pd.DataFrame) else np.array_equal(out, again)


def test_colour_images_keep_their_channels():
    model, ds = net(3), faces(shape=(12, 12, 3))
    x = torch.tensor(ds.array() / 255, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    np.testing.assert_allclose(predict_logits(model, ds, bs=7), expected, atol=1e-5)


def test_image_files_are_decoded_batch_by_batch(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(10):
        folder = tmp_path / "test" / EMOTIONS[k % 7]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).save(folder / f"{k}.png")
    ds = read_folder(tmp_path, EMOTIONS)
    files = FERData(ds.df, [tmp_path / i for i in ds.df.id])
    np.testing.assert_array_equal(predict_logits(net(), files, bs=4), predict_logits(net(), ds, bs=4))


def test_every_split_has_its_rows_and_columns():
    ds = faces()
    table = evaluate(net(), ds)
    assert list(table) == COLUMNS and table.split.unique().tolist() == ["train", "valid", "test"]
    assert set(table.subset) == {"all"} and set(table.attack) == {"none"}
    assert not table.duplicated(["split", "subset", "metric"]).any()
    accuracy = table[table.metric == "accuracy"].set_index("split")
    assert accuracy.n.to_dict() == ds.df.split.value_counts().to_dict()
    assert accuracy.value["test"] == evaluate(net(), ds.where(split="test")).query("metric == 'accuracy'").value.item()
    assert list(robust_curve(net(), ds, "fgsm", eps=(0,))) == [*COLUMNS, "norm", "restarts"]


def test_all_images_may_be_duplicates():
    ds = faces(splits=("test",))
    table = evaluate(net(), ds, duplicates=ds.df.id).query("subset == 'without_duplicates'")
    assert table.value.isna().all() and (table.n == 0).all()
    none = evaluate(net(), ds, duplicates=())
    assert none[none.metric == "duplicates_in_training"].value.item() == 0
    assert none.query("subset == 'without_duplicates'").n.iloc[0] == len(ds)


def test_the_headline_takes_ids_and_refuses_what_would_match_nothing():
    """A mask or a table would leave every image in, and call the figure one without duplicates."""
    ds, model = faces(70, splits=("test",)), net()
    ids = ds.df.id[:30]
    for several in (ids, ids.tolist(), set(ids), ids.to_numpy(), dict.fromkeys(ids)):
        table = headline_of(model, ds, several, times=2).set_index("measure")
        assert table.n["single, no duplicates"] == 40 and table.n["single"] == 70
        assert leaked_images(ds, several).tolist() == [True] * 30 + [False] * 40
    assert "single, no duplicates" not in set(headline_of(model, ds, times=2).measure) and leaked_images(ds, None) is None
    model.register_forward_hook(lambda *_: pytest.fail("the network was asked first"))
    for wrong in (ids.to_frame(), np.arange(70) < 30, (np.arange(70) < 30).tolist(), np.arange(30), "i3", 3, b"i3"):
        for judge in (headline_of, evaluate):
            with pytest.raises(ConfigError, match="duplicates is a .*; a collection of ids expected"):
                judge(model, ds, duplicates=wrong)


def test_duplicates_that_nobody_looked_for_are_not_known():
    ds = faces(splits=("test",))
    unknown = evaluate(net(), ds)
    assert np.isnan(unknown[unknown.metric == "duplicates_in_training"].value.item()) and set(unknown.subset) == {"all"}


def test_intervals_are_two_more_columns_and_change_nothing_else():
    ds, model = faces(120), net()
    plain, wide = evaluate(model, ds, duplicates=["i3"]), evaluate(model, ds, duplicates=["i3"], intervals=50)
    pd.testing.assert_frame_equal(plain, wide[list(plain)])
    assert list(wide) == [*COLUMNS, "low", "high"]
    known = wide[wide.metric == "accuracy"]
    assert (known.low <= known.value).all() and (known.value <= known.high).all()
    pd.testing.assert_frame_equal(wide, evaluate(model, ds, duplicates=["i3"], intervals=50))
    assert not wide.low.equals(evaluate(model, ds, duplicates=["i3"], intervals=50, seed=1).low)
    empty = evaluate(model, ds, duplicates=ds.df.id, intervals=50).query("subset == 'without_duplicates'")
    assert empty.low.isna().all() and empty.high.isna().all()


def test_logits_are_evaluated_like_their_model():
    ds, model = faces(), net()
    pd.testing.assert_frame_equal(evaluate(model, ds, duplicates=["i3"]), evaluate(predict_logits(model, ds), ds, duplicates=["i3"]))
    with pytest.raises(ConfigError, match=r"\(5, 7\)"):
        evaluate(np.zeros((5, 7)), ds)


# ---------------------------------------------------------------- folds

def thirds(n):
    return [(np.flatnonzero(np.arange(n) % 3 != k), np.flatnonzero(np.arange(n) % 3 == k)) for k in range(3)]


def counting_fit(calls, broken_at=None):
    def fit(part, k):
        calls.append(k)
        if k == broken_at:
            raise KeyboardInterrupt
        model = net()
        torch.nn.init.constant_(model[-1].bias, float(k))
        return model
    return fit


def test_a_broken_run_goes_on_where_it_stopped(tmp_path):
    ds, calls = faces(30), []
    with pytest.raises(KeyboardInterrupt):
        fold_logits(counting_fit(calls, broken_at=2), ds, thirds(30), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fold-0.npz", "fold-1.npz", "identity.json"]
    resumed = fold_logits(counting_fit(calls), ds, thirds(30), tmp_path)
    assert calls == [0, 1, 2, 2]
    np.testing.assert_array_equal(resumed, fold_logits(counting_fit([]), ds, thirds(30)))


def test_folds_of_other_data_or_another_split_are_refused(tmp_path):
    ds = faces(30)
    fold_logits(counting_fit([]), ds, thirds(30), tmp_path)
    with pytest.raises(DataError, match="results of something else: data is"):
        fold_logits(counting_fit([]), faces(30, seed=1), thirds(30), tmp_path)
    with pytest.raises(DataError, match="fold-0.npz: of something else: split is"):
        fold_logits(counting_fit([]), ds, thirds(30)[::-1], tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "array", "flipped", "folder"])
def test_a_damaged_fold_is_named(tmp_path, damage):
    ds, path = faces(30), tmp_path / "fold-1.npz"
    fold_logits(counting_fit([]), ds, thirds(30), tmp_path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "array":
        with open(path, "wb") as f:
            np.savez(f, logits=np.zeros((30, 7)))
    else:
        middle = len(whole) // 4
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1:]
        path.write_bytes({"cut": whole[:len(whole) // 2], "text": b"logits", "empty": b"", "flipped": flipped}[damage])
    with pytest.raises(DataError, match="fold-1.npz: cannot be read"):
        fold_logits(counting_fit([]), ds, thirds(30), tmp_path)


def test_every_image_is_judged_by_the_model_that_did_not_see_it():
    ds, splits = faces(30), thirds(30)
    logits = fold_logits(counting_fit([]), ds, splits)
    oof = out_of_fold(logits, splits)
    for k, (_, test) in enumerate(splits):
        np.testing.assert_array_equal(oof[test], logits[k, test])
    table = cross_validate(logits, ds, splits)
    assert list(table) == ["fold", "metric", "value", "n", "labels"] and set(table.fold) == {0, 1, 2}
    one = evaluate(logits[1, splits[1][1]], FERData(ds.df.iloc[splits[1][1]].assign(split="test"), ds.array()[splits[1][1]]))
    both = table[table.fold == 1].merge(one, on="metric")
    np.testing.assert_allclose(both.value_x, both.value_y)
    assert compare(table, table).p.eq(1).all()
    with pytest.raises(DataError, match="3 test folds"):
        out_of_fold(logits, [splits[0]] * 3)


def test_rounds_of_a_repeated_cross_validation_are_told_apart():
    ds, rng = faces(60), np.random.default_rng(0)
    rounds = [[(np.setdiff1d(order, t), t) for t in np.split(order, 4)] for order in (rng.permutation(60), rng.permutation(60))]
    splits, z = rounds[0] + rounds[1], rng.normal(size=(8, 60, 7))
    better = z + np.eye(7)[ds.targets()]
    a, b = cross_validate(better, ds, splits), cross_validate(z, ds, splits)
    assert list(a)[:2] == ["repeat", "fold"] and a.groupby("repeat").fold.unique().map(list).tolist() == [[0, 1, 2, 3]] * 2
    one, two = (t[t.metric == "accuracy"].value.to_numpy() for t in (a, b))
    found = compare(a, b).set_index("test")
    assert found.p["corrected t"] == pytest.approx(paired_t(one, two, 1 / 3).p) and found.n["corrected t"] == 8
    for call, match in [(lambda: cross_validate(z, ds, splits[:3]), "8 folds, 3 splits"), (lambda: cross_validate(z[:3], ds, splits), "3 folds, 8"),
                        (lambda: out_of_fold(z, splits[:3]), "8 folds, 3 splits"), (lambda: out_of_fold(z, splits), "in 2 test folds"),
                        (lambda: cross_validate(z[:6], ds, splits[:6]), "4, 2 folds"),
                        (lambda: cross_validate(z[:2], ds, [splits[0], (np.arange(30), np.r_[splits[0][1][:3], splits[1][1]])]), "tested 0, others 1")]:
        with pytest.raises(DataError, match=match):
            call()


# ---------------------------------------------------------------- groups, and other datasets

def test_groups_are_scored_apart_and_unknown_ones_kept():
    ds = faces(90, splits=("valid", "test"))
    sex = np.where(np.arange(90) % 3 == 0, "female", np.where(np.arange(90) % 3 == 1, "male", ""))
    ds, z = FERData(ds.df.assign(sex=sex), ds.array()), predict_logits(net(), ds)
    table = by_group(z, ds, "sex", times=50)
    assert set(table.group) == {"female", "male", "not known"} and set(table.column) == {"sex"}
    assert table[table.metric == "accuracy"].n.sum() == 90
    mine = ((sex == "male") & (ds.df.split == "test")).to_numpy()
    other = ((sex != "male") & (ds.df.split == "test")).to_numpy()
    right = z.argmax(1) == ds.targets()
    row = table.query("group == 'male' and split == 'test' and metric == 'accuracy'").iloc[0]
    assert row.value == pytest.approx(right[mine].mean()) and row.gap == pytest.approx(right[mine].mean() - right[other].mean())
    assert row.low <= row.value <= row.high and row.gap_low <= row.gap <= row.gap_high
    pd.testing.assert_frame_equal(table, by_group(z, ds, "sex", times=50))


def test_a_group_that_is_all_right_has_an_interval_with_a_width_or_none():
    ds = faces(splits=("test",))
    table = by_group(8.0 * np.eye(len(ds.labels))[ds.targets()], ds, np.arange(60) % 2, times=20)
    assert not (table.low == table.high).any() and not (table.gap_low == table.gap_high).any()
    assert (table[table.metric == "accuracy"].low.between(.8, .99)).all()


def test_a_group_that_is_everyone_has_no_gap():
    table = by_group(net(), faces(splits=("test",)), np.zeros(60, int), times=10)
    assert table.gap.isna().all() and table.gap_low.isna().all() and table.group.unique().tolist() == ["0"]


def test_mixed_values_are_groups_too():
    values = np.array(["a", 1, None, ""] * 15, dtype=object)
    table = by_group(net(), faces(splits=("test",)), values, times=10)
    assert table.group.unique().tolist() == ["1", "a", "not known"]


def test_numbers_are_cut_at_quantiles_or_given_edges():
    ds, size = faces(splits=("test",)), pd.Series([24, 24, 48, 96] * 15, name="side")
    quarters = by_group(net(), ds, size, bins=2, times=10).query("metric == 'accuracy'")
    assert quarters.n.sum() == 60 and set(quarters.column) == {"side"}
    steps = by_group(net(), ds, np.arange(60) * 5, bins=4, times=10).group.unique()
    assert [float(g.strip("([").split(",")[0]) for g in steps] == sorted(float(g.strip("([").split(",")[0]) for g in steps)
    given = by_group(net(), ds, size.where(size < 90), bins=[0, 30, 60], times=10).query("metric == 'accuracy'").set_index("group")
    assert given.n.sort_index().tolist() == [30, 15, 15] and "not known" in given.index
    with pytest.raises(ConfigError, match="side: 15 of 60 values, such as 96, outside the edges 0 to 60"):
        by_group(net(), ds, size, bins=[0, 30, 60], times=10)
    open_ended = by_group(net(), ds, size, bins=[-np.inf, 30, np.inf], times=10).query("metric == 'accuracy'")
    assert open_ended.n.tolist() == [30, 30]
    days = pd.Series(pd.to_datetime(["2020-01-01", "2021-01-01", None] * 20))
    with pytest.raises(ConfigError, match="2020-01-01.* is no number"):   # of which one that is not known is a very early one
        by_group(net(), ds, days, bins=2, times=10)
    assert by_group(net(), ds, days, times=10).group.unique().tolist() == ["2020-01-01", "2021-01-01", "not known"]


def test_categories_keep_their_order():
    ages = pd.cut(pd.Series([5, 30, 1, np.nan] * 15), [0, 2, 10, 100])
    found = by_group(net(), faces(splits=("test",)), ages, times=10).query("metric == 'accuracy'")
    assert found.group.tolist() == ["(0, 2]", "(2, 10]", "(10, 100]", "not known"] and found.n.tolist() == [15] * 4
    bare = by_group(net(), faces(splits=("test",)), pd.cut(np.array([5, 30, 1, np.nan] * 15), [0, 2, 10, 100]), times=10)
    assert bare.query("metric == 'accuracy'").group.tolist() == found.group.tolist()


@pytest.mark.parametrize(("values", "made", "said"), [
    (np.full(60, 7.0), [60], "1 of 4 groups, for 60 of 60 values are 7"),
    (np.r_[np.zeros(48), np.arange(1, 13)], [60], "1 of 4 groups, for 48 of 60 values are 0"),
    (np.r_[np.zeros(30), np.arange(1, 31)], [30, 15, 15], "3 of 4 groups, for 30 of 60 values are 0")])
def test_numbers_that_make_fewer_groups_are_said_and_none_is_lost(values, made, said):
    with pytest.warns(UserWarning, match=said):
        found = by_group(net(), faces(splits=("test",)), values, bins=4, times=10).query("metric == 'accuracy'")
    assert sorted(found.n, reverse=True) == made and "not known" not in set(found.group)


def _labelled(targets):
    "A data set of one split with these labels, as positions."
    df = pd.DataFrame({"id": [f"i{k}" for k in range(len(targets))], "label": np.array(EMOTIONS)[targets], "split": "test"})
    return FERData(df, np.zeros((len(df), 4, 4), np.uint8))


@pytest.mark.parametrize("n", [1, 3, 10])
def test_a_handful_of_images_has_no_gap_by_itself(n):
    "Images of all classes, a network that is right in seven of ten: how often does the interval leave out zero?"
    rng, beyond = np.random.default_rng(0), []
    for _ in range(60):
        y = rng.integers(0, 7, 150)
        z = rng.normal(size=(150, 7)) + 3 * np.eye(7)[np.where(rng.random(150) < .7, y, rng.integers(0, 7, 150))]
        table = by_group(z, _labelled(y), np.where(np.arange(150) < n, "few", "many"), times=100).set_index(["group", "metric"])
        row = table.loc[("few", "accuracy")]
        assert row.gap_low <= row.gap <= row.gap_high
        assert table.loc["few"].gap_low[["loss", "macro_f1"]].isna().all()
        beyond.append(row.gap_low > 0 or row.gap_high < 0)
    assert np.mean(beyond) <= .12


def test_means_over_classes_are_compared_where_both_sides_have_the_same():
    y = np.repeat([3, 3, 1], 40)
    z = 4.0 * np.eye(7)[np.where(np.arange(120) % 10 == 0, 0, y)]
    both = by_group(z, _labelled(y), np.repeat(["a", "b", "b"], 40), times=50).set_index(["group", "metric"])
    for metric in MACRO:
        assert np.isnan(both.loc[("a", metric)][["gap", "gap_low", "gap_high"]].astype(float)).all(), metric
    assert abs(both.gap["a", "recall:happy"]) < 1e-9 and not np.isnan(both.gap_low["a", "accuracy"])
    same = by_group(z, _labelled(y), np.tile(["a", "b"], 60), times=50).set_index(["group", "metric"])
    assert same.loc["a"].gap_low[["balanced_accuracy", "macro_f1"]].notna().all()


def test_a_fault_of_the_network_is_no_missing_temperature():
    class Broken(torch.nn.Module):
        labels = EMOTIONS

        def __init__(self, how):
            super().__init__()
            self.how = how

        def forward(self, x):
            return self.how(torch.randn(len(x), 7, generator=torch.Generator().manual_seed(0)))

    ds = _labelled(np.arange(70) % 7)
    assert calibration(Broken(lambda z: 0 * z), ds) == {}
    for how, said in ((lambda z: z / 0, "NaN or infinity"), (lambda z: z.softmax(1), "probabilities"),
                      (lambda z: z.softmax(1).half(), "probabilities"), (lambda z: 100 * z.softmax(1), "probabilities")):
        with pytest.raises(ConfigError, match=said):
            calibration(Broken(how), ds)


@pytest.mark.parametrize(("column", "bins", "error", "match"), [
    ("sex", None, DataError, "no column 'sex'"), (np.zeros(5), None, ConfigError, "5 values for 60 images"),
    ("id", None, ConfigError, "60 different values"), ("label", 3, ConfigError, "is no number that bins can cut"),
    (np.r_[np.inf, np.arange(59)], 4, ConfigError, "'inf' .1 such values. is no number"),
    (np.arange(60), 0, ValueError, "positive integer"), (np.arange(60), [5, 1], ValueError, "must increase")])
def test_bad_groups_are_named(column, bins, error, match):
    with pytest.raises(error, match=match):
        by_group(net(), faces(), column, bins)


@settings(max_examples=15, deadline=None)
@given(st.permutations(EMOTIONS), st.integers(2, 7), st.integers(0, 99))
def test_shared_labels_go_by_name(order, k, seed):
    names, model = (*order[:k], "contempt"), net(labels=EMOTIONS)
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"id": [f"i{n}" for n in range(40)], "label": rng.choice(names, 40), "split": "test"})
    df.loc[0, "label"] = names[0]
    ds = FERData(df, rng.integers(0, 256, (40, 12, 12), dtype=np.uint8), names)
    shared = shared_labels(model, ds)
    assert shared.ds.labels == tuple(order[:k]) and "contempt" not in set(shared.ds.df.label)
    full = predict_logits(model, FERData(shared.ds.df, shared.ds.array(), EMOTIONS))
    for column, label in enumerate(shared.ds.labels):
        np.testing.assert_allclose(shared.logits[:, column], full[:, EMOTIONS.index(label)], atol=1e-5)
    dropped = shared.dropped.query("what == 'images'").n.sum()
    assert dropped == (df.label == "contempt").sum() and dropped + len(shared.ds) == 40
    assert set(shared.dropped.query("what == 'outputs'").label) == set(EMOTIONS) - set(names)
    table = cross_dataset(model, ds).set_index("metric")
    assert table.value["dropped_images"] == dropped and table.n["dropped_images"] == 40
    assert set(table.labels) == {", ".join(order[:k])} and table.n["accuracy"] == 40 - dropped


def test_cross_dataset_with_the_same_labels_is_evaluate():
    ds, model = faces(), net()
    table = cross_dataset(model, ds, duplicates=["i3"], tta="flip")
    same = evaluate(model, ds, "flip", ["i3"])
    pd.testing.assert_frame_equal(table[table.metric != "dropped_images"].reset_index(drop=True), same)
    assert (table[table.metric == "dropped_images"].value == 0).all()


def test_a_split_without_shared_labels_is_stated():
    df = pd.DataFrame({"id": list("abcd"), "label": ["happy", "sad", "contempt", "contempt"], "split": ["valid", "valid", "test", "test"]})
    table = cross_dataset(net(), FERData(df, np.zeros((4, 12, 12), np.uint8), ("sad", "happy", "contempt")))
    assert set(table.query("metric == 'accuracy'").split) == {"valid"}
    assert table.query("metric == 'dropped_images' and split == 'test'").value.item() == 2
    with pytest.raises(LabelError, match="two or more labels in common"):
        cross_dataset(net(), FERData(df.assign(label="contempt"), np.zeros((4, 12, 12), np.uint8), ("contempt", "sad")))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(0, 10**6))
def test_samples_are_stratified(n, seed):
    ds = faces(150, (2, 2), seed % 7)
    drawn = ds.sample(n, seed)
    rows = ds.df.id[ds.df.id.isin(drawn.df.id)].index.to_numpy()
    assert drawn.df.id.tolist() == ds.df.id[rows].tolist()                                 # in the order of the dataset
    assert len(rows) == len(set(rows)) == min(n, 150) and (np.diff(rows) > 0).all()
    quota = ds.df.label.value_counts() * min(n, 150) / 150
    assert (ds.df.label[rows].value_counts().reindex(quota.index, fill_value=0) - quota).abs().max() < 1.5


def test_curve_says_sample_and_restarts():
    ds = faces(splits=("test",))
    table = robust_curve(net(), ds, eps=(0.1,), steps=2, restarts=3, n=20)
    assert set(table.subset) == {"sample"} and set(table.attack) == {"pgd"} and set(table.steps) == {2}
    assert set(table.restarts) == {3} and set(table["norm"]) == {"linf"}
    assert table.n[0] == 20 and set(robust_curve(net(), ds, "fgsm", eps=(0,), n=999).subset) == {"all"}


def test_seed_decides_the_random_starts():
    ds, model = faces(splits=("test",)), net()
    curve = lambda seed: robust_curve(model, ds, eps=(0.05,), steps=1, seed=seed).set_index("metric").value["loss"]
    assert curve(0) == curve(0) != curve(1)


def test_more_budget_never_helps_a_linear_model():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(144, 7))
    linear.labels = EMOTIONS
    loss = robust_curve(linear, faces(), "fgsm", eps=(0, 0.01, 0.02, 0.05)).query("metric == 'loss'")
    assert loss.groupby("split").value.apply(lambda v: v.is_monotonic_increasing).all()


@pytest.mark.parametrize(("call", "error", "match"), [
    (lambda m, ds: evaluate(m, ds.take([])), DataError, "no images"),
    (lambda m, ds: robust_curve(m, ds.take([]), "fgsm"), DataError, "no images"),
    (lambda m, ds: evaluate(m, ds, tta="tencrop"), ConfigError, "tencrop"),
    (lambda m, ds: evaluate(m, ds, bs=-1), ConfigError, "bs=-1"),
    (lambda m, ds: robust_curve(m, ds, "square"), ConfigError, "square"),
    (lambda m, ds: robust_curve(m, ds, norm="l1"), ConfigError, "l1"),
    (lambda m, ds: robust_curve(m, ds, "fgsm", norm="l2"), ConfigError, "norm='l2'; 'linf' expected"),
    (lambda m, ds: robust_curve(m, ds, "deepfool", eps=(-0.1,)), ConfigError, "eps"),
    (lambda m, ds: robust_curve(m, ds, eps=()), ConfigError, "eps"),
    (lambda m, ds: robust_curve(m, ds, eps=[[0.1]]), ConfigError, "eps"), (lambda m, ds: robust_curve(m, ds, eps="0.1"), ConfigError, "eps"),
    (lambda m, ds: robust_curve(m, ds, eps=(float("inf"),)), ConfigError, "eps"),
    (lambda m, ds: robust_curve(m, ds, steps=(2, 2.5)), ConfigError, "steps"),
    (lambda m, ds: robust_curve(m, ds, restarts=[]), ConfigError, "restarts"),
    (lambda m, ds: robust_curve(m, ds, steps=0), ConfigError, "steps"),
    (lambda m, ds: robust_curve(m, ds, n=2.5), ConfigError, "n=2.5"),
    (lambda m, ds: confusion(np.zeros((3, 7)), ds), ConfigError, r"\(3, 7\)"),
    (lambda m, ds: confusion(np.full((60, 7), np.nan), ds), ConfigError, "'i0'"),
])
def test_bad_input_is_named(call, error, match):
    assert issubclass(error, FERError)
    with pytest.raises(error, match=match):
        call(net(), faces())


def test_no_images_give_no_logits():
    assert predict_logits(net(), faces().take([])).shape == (0, 7)


def test_every_effort_is_the_curve_of_that_effort_alone():
    ds, model = faces(), net()
    table = robust_curve(model, ds, eps=(0.02, 0.05), steps=(1, 3), restarts=(1, 2), n=20)
    keys = ["split", "attack", "norm", "eps", "steps", "restarts", "metric"]
    assert not table.duplicated(keys).any() and set(zip(table.steps, table.restarts)) == {(1, 1), (1, 2), (3, 1), (3, 2)}
    alone = robust_curve(model, ds, eps=0.05, steps=3, restarts=2, n=20)
    some = table[(table.eps == 0.05) & (table.steps == 3) & (table.restarts == 2)].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, alone)
    assert list(table)[:10] == COLUMNS


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_counts_what_it_finds_within_the_budget(norm):
    ds, model = faces(splits=("test",)), net().eval()
    budgets = (0.0, 0.002, 0.01, 0.05)
    table = robust_curve(model, ds, "deepfool", budgets, norm=norm)
    x, y = torch.tensor(ds.array())[:, None].float() / 255, torch.tensor(ds.targets())
    far = deepfool(model, x, y, norm=norm)
    with torch.no_grad():
        right, held = model(x).argmax(1) == y, model(far).argmax(1) == y
    d = (far - x).flatten(1)
    size = d.abs().amax(1) if norm == "linf" else d.norm(dim=1)
    accuracy = table[table.metric == "accuracy"].set_index("eps").value
    for e in budgets:
        want = (right & (held | (size > e))).float().mean().item()
        assert accuracy[e] == pytest.approx(want, abs=1e-6)
    assert accuracy.is_monotonic_decreasing and accuracy[np.inf] <= accuracy[budgets[-1]]
    row = table[table.metric == "median_size"]
    assert len(row) == 1 and row.n.item() == right.sum() and np.isinf(row.eps.item())


def test_a_linear_model_falls_under_deepfool_and_pgd_at_the_same_budget():
    torch.manual_seed(1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(144, 7))
    linear.labels, ds = EMOTIONS, faces(300, splits=("test",))
    grey = FERData(ds.df, (ds.array() // 4 + 96).astype(np.uint8))  # the range of pixels does not interfere
    eps = (0.002, 0.01, 0.03)
    fool, climb = (robust_curve(linear, grey, a, eps, steps=s, restarts=r).query("metric == 'accuracy'").set_index("eps").value
                   for a, s, r in (("deepfool", 50, 1), ("pgd", 20, 2)))
    assert (fool.loc[list(eps)] - climb).abs().max() <= 0.02


def test_folds_of_another_setting_are_refused_and_the_difference_named(tmp_path):
    ds, splits = faces(30), thirds(30)
    fold_logits(counting_fit([]), ds, splits, tmp_path, setting={"epochs": 8, "lr": 1e-3})
    calls = []
    fold_logits(counting_fit(calls), ds, splits, tmp_path, setting={"lr": 0.001, "epochs": 8})
    assert not calls
    for other, match in (({"epochs": 3, "lr": 1e-3}, "setting.epochs is 8 there and 3 here"),
                         ({"epochs": 8}, "setting.lr is 0.001 there and 'absent' here"),
                         ({"epochs": 8, "lr": 1e-3, "seed": 1}, "setting.seed is 'absent' there and 1 here"),
                         ("eight epochs", "setting is"), ("", "setting is")):
        with pytest.raises(DataError, match=match):
            fold_logits(counting_fit(calls), ds, splits, tmp_path, setting=other)
    assert not calls


def test_folds_of_an_older_version_are_refused_with_what_to_do(tmp_path):
    ds, splits = faces(30), thirds(30)
    np.savez(tmp_path / "fold-0.npz", logits=np.zeros((30, 7)), train=splits[0][0], test=splits[0][1], data=ds.fingerprint())
    with pytest.raises(StoreError, match="fold-0.npz: cannot be read.*delete it, and it is made again"):
        fold_logits(counting_fit([]), ds, splits, tmp_path)


# ---------------------------------------------------------------- test-time augmentation

@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 3), (12, 16)])
@pytest.mark.parametrize("tta", TTA)
def test_views_are_averaged_and_cost_one_pass_each(shape, tta):
    ds, passes = faces(9, shape), []
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 7), nn.Tanh())
    model.labels = EMOTIONS
    model.register_forward_hook(lambda *_: passes.append(1))
    z = predict_logits(model, ds, bs=9, tta=tta)
    assert len(passes) == TTA[tta]
    x = torch.from_numpy(ds.array()).float().div(255)
    x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
    with torch.no_grad():
        loop = sum(model(view) for view in tta_views(x, tta)) / TTA[tta]
        logp = sum(model(view).log_softmax(1) for view in tta_views(x, tta)) / TTA[tta]
    assert np.allclose(z, loop.numpy(), atol=1e-6)
    assert torch.allclose(torch.from_numpy(z).softmax(1), logp.softmax(1), atol=1e-6)  # the mean of log-probabilities


def test_five_views_begin_with_none_and_flip_stay_in_range_and_repeat():
    x = torch.rand(4, 3, 20, 20)
    five = list(tta_views(x))
    assert len(five) == 5 and five[0] is x and torch.equal(five[1], x.flip(3))
    assert all(v.shape == x.shape and v.min() >= 0 and v.max() <= 1 for v in five)
    assert all(torch.equal(a, b) for a, b in zip(five, tta_views(x)))
    assert len({v.sum().item() for v in five[1:]}) == 4
    flat = torch.full((1, 1, 9, 9), 0.3)
    assert all(torch.allclose(v, flat) for v in tta_views(flat))


def test_a_result_names_its_test_time_augmentation():
    ds = faces(30)
    table = evaluate(net(), ds, tta="five")
    assert set(table.tta) == {"five"} and table.equals(evaluate(predict_logits(net(), ds, tta="five"), ds, tta="five"))
    with pytest.raises(ConfigError, match="tta='ten'"):
        evaluate(net(), ds, tta="ten")


def test_deepfool_counts_right_images_that_no_gradient_moves():
    "Four of ten images can be attacked; the other six are right, and their gradient is zero: the median resists."
    class Dead(nn.Module):
        labels = ("a", "b")

        def forward(self, x):
            m = x.mean((1, 2, 3))
            return torch.stack([10 * torch.relu(m - .5), .1 + 0 * m], 1)

    im = np.concatenate([np.full((6, 8, 8), 20, np.uint8), np.full((4, 8, 8), 140, np.uint8)])
    df = pd.DataFrame({"id": [f"i{k}" for k in range(10)], "label": ["b"] * 6 + ["a"] * 4, "split": "test"})
    row = robust_curve(Dead(), FERData(df, im, labels=("a", "b")), "deepfool", eps=(8 / 255,)).query("metric == 'median_size'").iloc[0]
    assert np.isinf(row.value) and row.n == 10


def test_logits_in_a_table_go_by_the_names_of_its_columns():
    ds = faces(splits=("test",))
    z = np.random.default_rng(0).normal(size=(len(ds), 7))
    table = pd.DataFrame(z, columns=ds.labels)
    pd.testing.assert_frame_equal(evaluate(table, ds), evaluate(z, ds))
    pd.testing.assert_frame_equal(evaluate(pd.DataFrame(z), ds), evaluate(z, ds))
    with pytest.raises(LabelError, match="in another order"):
        evaluate(table[sorted(ds.labels, reverse=True)], ds)
    with pytest.raises(ConfigError, match="a list with a list; tensors"):
        evaluate(z.tolist(), ds)
    with pytest.raises(ConfigError, match="tta='fiev'"):
        evaluate(z, ds, tta="fiev")


@pytest.mark.parametrize("scale", [1e-5, 1e-4, 1e-3])
def test_a_small_temperature_is_not_rounded_away(scale):
    ds = _labelled(np.arange(700) % 7)
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(700, 7)) + 1.5 * np.eye(7)[ds.targets()]).float()

    class Kept(nn.Module):
        labels = ds.labels

        def __init__(self, k):
            super().__init__()
            self.k, self.at = k, 0

        def forward(self, x):
            self.at += len(x)
            return self.k * z[self.at - len(x):self.at]

    one, small = (calibration(Kept(k), ds)["temperature"] for k in (1, scale))
    assert small == pytest.approx(one * scale, rel=2e-3) and small > 0


class Answers(nn.Module):
    "What `form` makes of the logits of a linear network."
    labels = EMOTIONS

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.last, self.form = nn.Linear(144, 7), form

    def forward(self, x):
        return self.form(3 * self.last(x.flatten(1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 5, 20])
def test_probabilities_in_half_precision_are_no_logits(dtype, n):
    ds = faces(n, splits=("test",))
    for tta in TTA:
        with pytest.raises(ConfigError, match="probabilities"):
            predict_logits(Answers(lambda z: z.softmax(1).to(dtype)), ds, tta=tta)
    p = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(7), n)).to(dtype)
    given = [p, [p]] + ([p.numpy(), pd.DataFrame(p.numpy())] if dtype == torch.float16 else [])
    for z in given:
        with pytest.raises(ConfigError, match="probabilities"):
            evaluate(z, ds)
    assert len(evaluate(Answers(lambda z: z.to(dtype)), ds))


@pytest.mark.parametrize("tta", ["flip", "five"])
def test_views_in_half_precision_are_averaged_in_single(tta):
    ds = faces(20)
    x = torch.from_numpy(ds.array()[:, None] / 255).float()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        net = Answers(lambda z: (z + 1).to(dtype))
        with torch.no_grad():
            mean = sum(net(view).float() for view in tta_views(x, tta)) / TTA[tta]
        np.testing.assert_allclose(predict_logits(net, ds, tta=tta), mean, atol=1e-6 if dtype == torch.float32 else 0.002)
    large = predict_logits(Answers(lambda z: (z + 20000).half()), ds, tta=tta)
    assert np.isfinite(large).all()


def test_a_group_is_one_value_an_image():
    with pytest.raises(ConfigError, match=r"group: an array \(60, 2\); \(60,\), one value an image"):
        by_group(net(), faces(), np.zeros((60, 2)))


# ---- tables of pandas ----

def test_a_table_of_logits_goes_by_its_ids():
    ds = faces()
    z = 3.0 * np.eye(7)[ds.targets()] + np.random.default_rng(0).normal(size=(60, 7))
    table, expected = pd.DataFrame(z, index=ds.df.id, columns=ds.labels), evaluate(z, ds)
    for given in (table, table.sample(frac=1, random_state=0), table.reset_index(), table.sample(frac=1, random_state=1).reset_index(),
                  pd.DataFrame(z).sample(frac=1, random_state=0)):
        pd.testing.assert_frame_equal(evaluate(given, ds), expected)
        pd.testing.assert_frame_equal(confusion(given, ds), confusion(z, ds))
    part = ds.take(np.arange(20, 40))
    pd.testing.assert_frame_equal(evaluate(table, part), evaluate(z[20:40], part))
    for odd in (table.rename(lambda i: f"x{i}"), table.iloc[[0, *range(59)]], table.set_axis(range(60, 0, -1))):
        with pytest.raises(DataError, match="a table of logits with the index"):
            evaluate(odd, ds)


def test_ids_that_were_read_as_numbers_are_ids():
    """`pandas.read_csv` makes numbers of them; a table that is called by ids and has none of these is refused, whatever its order."""
    ds = faces()
    ds = ds.assign(id=[str(i) for i in np.random.default_rng(3).permutation(1000)[:60]])
    table = pd.DataFrame(3.0 * np.eye(7)[ds.targets()], index=ds.df.id.astype(int), columns=ds.labels).sort_index()
    for given in (table, table.rename_axis(None), table.reset_index(names="id"), table.sample(frac=1, random_state=0)):
        assert evaluate(given, ds).query("metric == 'accuracy'").value.eq(1).all()
    for odd in (table.set_axis(pd.Index(range(2000, 2060), name="id")), table.set_axis(pd.RangeIndex(60, name="id"))):
        if not {*odd.index.astype(str)} & {*ds.df.id}:
            with pytest.raises(DataError, match="a table of logits with the index"):
                evaluate(odd, ds)


def test_groups_go_by_their_index():
    ds = faces()
    z = np.random.default_rng(0).normal(size=(60, 7))
    values = pd.Series(np.where(ds.targets() == 3, "happy", "other"), name="g")
    named, expected = values.set_axis(ds.df.id), by_group(z, ds, values.to_numpy(), times=10).drop(columns="column")
    for given in (named, named.sample(frac=1, random_state=0), values.sample(frac=1, random_state=0)):
        pd.testing.assert_frame_equal(by_group(z, ds, given, times=10).drop(columns="column"), expected)
    with pytest.raises(DataError, match="g: groups with the index"):
        by_group(z, ds, named.rename(lambda i: f"x{i}"), times=10)


def test_given_logits_keep_their_digits():
    from fer_nb.metrics import scores
    ds = faces(splits=("test",))
    z = 1e-3 * (np.eye(7)[ds.targets()] + np.random.default_rng(0).normal(size=(60, 7))) + 1e5
    expected = scores(z, ds.targets(), ds.labels).value.tolist()
    for given in (z, torch.from_numpy(z), [torch.from_numpy(z)], pd.DataFrame(z), z[::-1].copy()[::-1]):
        assert evaluate(given, ds).value[:len(expected)].tolist() == expected
    assert confusion(z.astype(np.float32), ds).to_numpy().trace() < confusion(z, ds).to_numpy().trace()


def test_folds_that_are_read_back_without_a_setting_are_told(tmp_path, recwarn):
    ds = faces(30)
    fold_logits(counting_fit([]), ds, thirds(30), tmp_path)
    fold_logits(counting_fit([]), ds, thirds(30), tmp_path / "named", setting="one")
    fold_logits(counting_fit([]), ds, thirds(30), tmp_path / "named", setting="one")
    assert not [w for w in recwarn if "read back" in str(w.message)]
    with pytest.warns(UserWarning, match="3 of 3 folds were read back, whatever made them"):
        fold_logits(counting_fit([]), ds, thirds(30), tmp_path)

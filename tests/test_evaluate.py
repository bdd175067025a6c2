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

from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, LabelError
from fer_nb.data import FERData, read_folder
from fer_nb.evaluate import _scores, _stratified, confusion, evaluate, predict_logits, robust_curve

COLUMNS = ["split", "subset", "tta", "attack", "eps", "steps", "metric", "value", "n"]


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
    "evaluate": lambda m, ds: evaluate(m, ds, twins=["i3"]),
    "confusion": confusion,
    "fgsm": lambda m, ds: robust_curve(m, ds, "fgsm", eps=(0, 0.1)),
    "pgd": lambda m, ds: robust_curve(m, ds, eps=(0.1,), steps=2, restarts=2),
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
    assert list(robust_curve(net(), ds, "fgsm", eps=(0,))) == COLUMNS


def test_all_images_may_be_twins():
    ds = faces(splits=("test",))
    table = evaluate(net(), ds, twins=ds.df.id).query("subset == 'without_twins'")
    assert table.value.isna().all() and (table.n == 0).all()
    none = evaluate(net(), ds, twins=())
    assert none[none.metric == "twins_in_training"].value.item() == 0
    assert none.query("subset == 'without_twins'").n.iloc[0] == len(ds)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(2, 8))
def test_scores_agree_with_sklearn(n, seed, classes):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(n, classes)), rng.integers(0, classes, n)
    table, present = _scores(z, y, [f"c{k}" for k in range(classes)]).set_index("metric"), np.unique(y)
    pred = z.argmax(1)
    expected = {"accuracy": metrics.accuracy_score(y, pred), "macro_recall": metrics.recall_score(
                    y, pred, labels=present, average="macro", zero_division=0),
                "macro_f1": metrics.f1_score(y, pred, labels=present, average="macro", zero_division=0),
                "macro_precision": metrics.precision_score(y, pred, labels=present, average="macro", zero_division=0),
                "weighted_f1": metrics.f1_score(y, pred, average="weighted", zero_division=0)}
    for name, value in expected.items():
        assert table.value[name] == pytest.approx(value), name
    assert table.value[[f"recall:c{k}" for k in range(classes)]].isna().sum() == classes - len(present)


def test_huge_logits_give_a_finite_loss():
    z = np.array([[1e4, -1e4], [-1e4, 1e4]])
    assert _scores(z, np.array([0, 0]), ("a", "b")).set_index("metric").value["loss"] == pytest.approx(1e4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(0, 10**6))
def test_samples_are_stratified(n, seed):
    ds = faces(150, (2, 2), seed % 7)
    rows = _stratified(ds, n, seed)
    assert len(rows) == len(set(rows)) == min(n, 150) and (np.diff(rows) > 0).all()
    quota = ds.df.label.value_counts() * min(n, 150) / 150
    assert (ds.df.label[rows].value_counts().reindex(quota.index, fill_value=0) - quota).abs().max() < 1.5


def test_curve_says_sample_and_restarts():
    ds = faces(splits=("test",))
    table = robust_curve(net(), ds, eps=(0.1,), steps=2, restarts=3, n=20)
    assert set(table.subset) == {"sample"} and set(table.attack) == {"pgd x3"} and set(table.steps) == {2}
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
    (lambda m, ds: robust_curve(m, ds, "deepfool"), ConfigError, "deepfool"),
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

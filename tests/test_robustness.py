"""Robustness of the installed package: corruptions replay, planted gradient masking is found, AutoAttack through its package."""
import importlib.util
import itertools
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, ImageError, LabelError
from fer_nb.data import FERData
from fer_nb.evaluate import evaluate, robust_curve
from fer_nb.models import HyFER, weights_digest
from fer_nb.robustness import (PAPER_TABLE5, _attacks_of, auto_attack, corrupt, corruption_curve, corruption_gains, corruption_hits,
                               corruption_kinds, noise_keys, paper_epsilon, robust_study, sanity_checklist, square_search, strongest_study, table5, tradeoff)
from fer_nb.store import StoreError

needs_autoattack = pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None,
                                      reason="needs the extra `robust`: pip install pyautoattack")
SIDE = 14


def patterns(n=140, seed=0, splits=("train", "test"), chans=1):
    "Seven classes: noise with a bright bar at one of seven heights."
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 7
    x = rng.integers(40, 160, (n, SIDE, SIDE, chans))
    for i, k in enumerate(y):
        x[i, 2 * k:2 * k + 2] += 60
    df = pd.DataFrame({"id": [f"p{seed}-{i}" for i in range(n)], "label": np.array(EMOTIONS)[y],
                       "split": rng.choice(splits, n)})
    return FERData(df, x.astype(np.uint8).squeeze(-1) if chans == 1 else x.astype(np.uint8), name="patterns")


def net(chans=1, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(chans, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
                          nn.Dropout(0.1), nn.Linear(8 * (SIDE // 2) ** 2, 7))
    model.labels = EMOTIONS
    return model


def trained(seed):
    ds, model = patterns(700, seed=9), net(seed=seed)
    x, y = torch.tensor(ds.array()).float()[:, None] / 255, torch.tensor(ds.targets())
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    for i in range(40):
        rows = torch.arange(64 * i, 64 * i + 64) % 700
        opt.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    model.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained(0)


@pytest.fixture(scope="module")
def ds():
    return patterns()


def state(m):
    return {k: v.clone() for k, v in m.state_dict().items()}, [k.training for k in m.modules()], \
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in m.parameters()]


def same(a, b):
    return (all(torch.equal(v, b[0][k]) for k, v in a[0].items()) and a[1] == b[1]
            and all(r == s and (g is h is None or torch.equal(g, h)) for (r, g), (s, h) in zip(a[2], b[2])))


QUICK = dict(eps=4/255, steps=5, queries=20, n=70)
CALLS = {
    "corruptions": lambda m, ds: corruption_curve(m, ds, severities=(0, 2), n=30),
    "checklist": lambda m, ds: sanity_checklist(m, ds, **QUICK),
    "autoattack": lambda m, ds: auto_attack(m, ds, n=20, steps=5, queries=10),
}
CALLS_MARKED = [pytest.param(k, marks=needs_autoattack if k == "autoattack" else ()) for k in CALLS]


# ---------------------------------------------------------------- corruptions

@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(corruption_kinds()), severity=st.floats(0, 5), b=st.integers(0, 3), c=st.sampled_from([1, 3]),
       h=st.integers(5, 40), w=st.integers(5, 40), seed=st.integers(-5, 99))
def test_corrupt_keeps_shape_range_and_input(kind, severity, b, c, h, w, seed):
    x = (torch.rand(b, c, h, w, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    keep = x.clone()
    got = corrupt(x, kind, severity, seed=seed)
    assert got.shape == x.shape and got.dtype == x.dtype and got.isfinite().all() and torch.equal(x, keep)
    assert not b or (got.min() >= 0 and got.max() <= 1)
    assert torch.allclose((got * 255).round(), got * 255, atol=1e-4)
    assert torch.equal(got, corrupt(x, kind, severity, seed=seed))
    if severity == 0:
        assert torch.equal(got, x)


@pytest.mark.parametrize("kind", corruption_kinds())
def test_each_degree_goes_further(kind):
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 48), indexing="ij")
    face = (0.5 + 0.2 * torch.sin(25 * x) * torch.cos(31 * y) + 0.1 * torch.sin(90 * x)).clamp(0, 1)[None, None]
    far = [(corrupt(face, kind, s) - face).square().mean().item() for s in range(6)]
    assert far[0] == 0 and all(b > a for a, b in zip(far, far[1:])), far


def test_each_corruption_is_what_it_says():
    x = torch.full((1, 1, 48, 48), 0.4)
    x[..., ::2] = 0.6
    assert torch.allclose(corrupt(x, "bright", 2), (x + 0.2), atol=1/255)
    assert torch.allclose(corrupt(x, "dark", 2), (x - 0.2), atol=1/255)
    assert torch.allclose(corrupt(x, "contrast", 2), 0.5 + 0.5 * (x - 0.5), atol=1/255)
    assert abs((corrupt(x, "noise", 2) - x).std().item() - 0.08) < 0.005
    for zone, row, other in (("eyes", 17, 38), ("mouth", 37, 17)):
        hidden = corrupt(x, zone, 5)
        assert (hidden[0, 0, row, 12:36] - 0.5).abs().max() <= 1/255
        assert torch.allclose(hidden[0, 0, other], x[0, 0, other], atol=1/255)
    assert corrupt(x, "low_resolution", 2).std() < 0.01 < x.std()  # the stripes are gone
    assert corrupt(x, "blur", 5).std() < corrupt(x, "blur", 1).std() < x.std()


def test_noise_belongs_to_the_image_and_the_seed():
    x, ids = torch.full((4, 1, 9, 9), 0.5), np.array([3, 1, 4, 1])
    got = corrupt(x, "noise", 3, ids)
    assert torch.equal(got[1], got[3]) and not torch.equal(got[0], got[1])
    assert torch.equal(corrupt(x[:1], "noise", 3, ids[2:3])[0], got[2])
    assert not torch.equal(corrupt(x, "noise", 3, ids, seed=1), got)


def test_curve_does_not_depend_on_batches_order_or_company(model, ds):
    want = corruption_curve(model, ds, ["noise", "jpeg"], (1, 4), seed=3)
    shuffled = ds.take(np.random.default_rng(0).permutation(len(ds)))
    for other in (corruption_curve(model, ds, ["noise", "jpeg"], (1, 4), seed=3, bs=7),
                  corruption_curve(model, shuffled, ["noise", "jpeg"], (1, 4), seed=3)):
        pd.testing.assert_frame_equal(want, other, rtol=1e-4)
    again = corruption_curve(model, ds, ["noise"], (4,), seed=4).query("metric == 'loss'").value
    first = want.query("metric == 'loss' and kind == 'noise' and severity == 4").value
    assert not np.allclose(again, first)


def test_curve_agrees_with_evaluate_and_by_hand(model, ds):
    table = corruption_curve(model, ds, ["dark"], (0, 2))
    clean = evaluate(model, ds).query("metric == 'accuracy'").set_index("split").value
    found = table.query("metric == 'accuracy'").set_index(["split", "severity"]).value
    for split in ("train", "test"):
        part = ds.where(split=split)
        x = torch.tensor(part.array()).float()[:, None] / 255
        with torch.no_grad():
            hit = model(((x - 0.2).clamp(0, 1) * 255).round() / 255).argmax(1).numpy() == part.targets()
        assert found[split, 0.0] == clean[split] and np.isclose(found[split, 2.0], hit.mean())
    assert list(table)[:7] == ["split", "subset", "kind", "severity", "metric", "value", "n"]
    sample = corruption_curve(model, ds, ["dark"], (2,), n=14)
    assert set(sample.subset) == {"sample"} and sample.n[0] == 14
    assert corruption_curve(model, ds, []).empty


def test_colour():
    ds, model = patterns(chans=3), net(3)
    table = corruption_curve(model, ds, severities=(3,), n=20)
    assert set(table.kind) == set(corruption_kinds()) and table.query("metric == 'loss'").value.notna().all()


# ---------------------------------------------------------------- the black box

def test_square_search_stays_in_the_ball_and_climbs(model, ds):
    x, y = torch.tensor(ds.array()).float()[:, None] / 255, torch.tensor(ds.targets())
    keep, before = x.clone(), state(model)

    def margin(a):
        with torch.no_grad():
            z = model(a)
        return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -1e9).amax(1)
    few, many = (square_search(model, x, y, 0.03, q) for q in (5, 80))
    for adv in (few, many):
        assert (adv - x).abs().max() <= 0.03 + 1e-6 and adv.min() >= 0 and adv.max() <= 1
    assert margin(many).mean() < margin(few).mean() < margin(x).mean()
    assert torch.equal(many, square_search(model, x, y, 0.03, 80)) and torch.equal(x, keep)
    assert same(before, state(model))
    for bad, error in [((model, x * 255, y), ImageError), ((model, x, y + 7), LabelError), ((net().train(), x, y), ConfigError)]:
        with pytest.raises(error):
            square_search(*bad)
    with pytest.raises(ConfigError, match="queries=0"):
        square_search(model, x, y, queries=0)


# ---------------------------------------------------------------- the checklist

class Changed(nn.Module):
    labels = EMOTIONS

    def __init__(self, model, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def failed(table):
    return set(table.check[~table.passed])


def test_an_honest_model_passes(model, ds):
    for eps in (1/255, 4/255, 16/255):
        table = sanity_checklist(model, ds, eps=eps, steps=10, queries=60, n=140, surrogate=trained(1))
        assert list(table) == ["check", "passed", "value", "expected"] and len(table) == 8
        assert failed(table) == set(), table
    pd.testing.assert_frame_equal(table, sanity_checklist(model, ds, eps=eps, steps=10, queries=60, n=140,
                                                          surrogate=trained(1)))


PLANTED = {
    "rounded input": (lambda m: Changed(m, lambda x: (x * 12).round() / 12),
                      {"every image has a gradient", "black box never beats white box", "a large eps succeeds"}),
    "huge logits": (lambda m: Changed(m, after=lambda z: 1e5 * z), {"every image has a gradient"}),
    "rounded logits": (lambda m: Changed(m, after=lambda z: z.round()), {"every image has a gradient"}),
    "random input": (lambda m: Changed(m, lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1)),
                     {"a second look gives the same"}),
    "gradient of the wrong sign": (lambda m: Changed(m, lambda x: 2 * x.detach() - x),
                                   {"a large eps succeeds", "black box never beats white box"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_masking_is_found(model, ds, name):
    make, wanted = PLANTED[name]
    torch.manual_seed(0)
    table = sanity_checklist(make(model).eval(), ds, eps=16/255, steps=10, queries=80, n=140)
    assert failed(table) >= wanted, table


class Toy(nn.Module):
    "Two classes; the lead of the first is a function of the image in grey levels, from the middle grey."

    labels = ("a", "b")

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, x):
        m = self.margin((x - 128 / 255) * 255)
        return torch.stack([m, -m], 1)


def mean(d):
    return d.mean((1, 2, 3))


def hill(d):
    "One step jumps over a hill of the loss that many small steps climb and stay on."
    t = mean(d)
    return torch.where(t < 5, 0.5 + 0.1 * (t - 2.5) ** 2, -1 - 0 * t)


def fooled_by_roughness_alone(d):
    "Random noise is rough enough to be misread; the gradient points the wrong way."
    d = 2 * d.detach() - d
    return 3 - mean((d[..., 1:] - d[..., :-1]).abs())


def small_pocket(d):
    "One long step jumps over the pocket in which the model is wrong."
    return (mean(d) - 4).abs() - 2.5


@pytest.mark.parametrize("margin, steps, check", [(hill, 20, "many steps >= one step"),
                                                  (fooled_by_roughness_alone, 10, "noise is weaker than the attack"),
                                                  (small_pocket, 1, "more steps do not keep helping")])
def test_each_of_the_other_checks_can_fail(margin, steps, check):
    df = pd.DataFrame({"id": [f"{i}" for i in range(20)], "label": "a", "split": "test"})
    grey = FERData(df, np.full((20, 8, 8), 128, np.uint8), labels=("a", "b"))
    table = sanity_checklist(Toy(margin), grey, eps=8/255, steps=steps, n=20)
    assert check in failed(table), table


@pytest.mark.parametrize("call, error, why", [
    (lambda m, ds: sanity_checklist(m, ds, eps=-1), ConfigError, "eps=-1"),
    (lambda m, ds: sanity_checklist(m, ds, tol=2), ConfigError, "tol=2"),
    (lambda m, ds: sanity_checklist(m, ds, steps=0), ConfigError, "steps=0"),
    (lambda m, ds: sanity_checklist(m, ds, n=0), ConfigError, "n=0"),
    (lambda m, ds: sanity_checklist(m, ds.take([])), DataError, "no images"),
    (lambda m, ds: sanity_checklist(Changed(m, after=lambda z: -9 * z), ds), DataError, "reads none"),
    (lambda m, ds: sanity_checklist(Changed(m, after=lambda z: z.softmax(1)), ds), ConfigError, "probabilities"),
    (lambda m, ds: sanity_checklist(nn.Flatten(), ds), LabelError, "labels"),
    (lambda m, ds: sanity_checklist(m, ds, surrogate=nn.Flatten()), LabelError, "labels"),
    (lambda m, ds: corruption_curve(m, ds, ["rain"]), ConfigError, "rain"),
    (lambda m, ds: corruption_curve(m, ds, severities=(1, 7)), ConfigError, "severity=7"),
    (lambda m, ds: corruption_curve(m, ds, severities=("1",)), ConfigError, "severity='1'"),
    (lambda m, ds: corruption_curve(m, ds.take([])), DataError, "no images"),
])
def test_bad_input_is_refused(model, ds, call, error, why):
    with pytest.raises(error, match=why):
        call(model, ds)
    assert issubclass(error, FERError)


# ---------------------------------------------------------------- what all of them leave alone

@pytest.mark.parametrize("name", CALLS_MARKED)
def test_model_and_global_randomness_are_untouched(ds, name):
    m = net()
    m(torch.rand(4, 1, SIDE, SIDE)).sum().backward()
    m[1].eval()
    next(m.parameters()).requires_grad_(False)
    before = state(m)
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    CALLS[name](m, ds)
    assert same(before, state(m))
    assert torch.equal(draws[0], torch.get_rng_state()) and (draws[1] == np.random.get_state()[1]).all()
    assert draws[2] == random.getstate()


@pytest.mark.parametrize("name", CALLS_MARKED)
def test_model_is_restored_after_an_error(ds, name):
    class Broken(nn.Sequential):
        labels = EMOTIONS

        def forward(self, x):
            raise RuntimeError("out of memory")

    m = Broken(nn.BatchNorm2d(1))
    before = state(m)
    with pytest.raises(RuntimeError, match="out of memory"):
        CALLS[name](m, ds)
    assert same(before, state(m))


# ---------------------------------------------------------------- AutoAttack

def test_without_the_package(model, ds, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack", None)
    with pytest.raises(ConfigError, match=r"fer-nb\[robust\]"):
        auto_attack(model, ds)


@needs_autoattack
def test_autoattack_of_a_network_that_answers_in_bfloat16(model, ds):
    class Short(nn.Module):
        labels = model.labels

        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x).bfloat16()
    table = auto_attack(Short().eval(), ds.take(range(7)), n=None, steps=2, queries=3)
    assert table.query("metric == 'accuracy'").value.between(0, 1).all()


@needs_autoattack
def test_autoattack_for_seven_classes(model, ds, monkeypatch):
    import pyautoattack
    made = []
    real = pyautoattack.AutoAttack

    def make(*args, **kwargs):
        made.append(real(*args, **kwargs))
        return made[-1]
    monkeypatch.setattr(pyautoattack, "AutoAttack", make)
    table = auto_attack(model, ds, eps=4/255, n=35, steps=10, queries=50, bs=20)
    assert {e.apgd_targeted.n_target_classes for e in made} == {e.fab.n_target_classes for e in made} == {6}
    plain = robust_curve(model, ds, eps=(4/255,), steps=10, n=35)
    assert list(table) == list(plain) and set(table.attack) == {"autoattack"} and set(table.subset) == {"sample"}
    strong, weak = (t.query("metric == 'accuracy'").set_index("split").value for t in (table, plain))
    assert (strong <= weak + 1/35 + 1e-6).all()
    pd.testing.assert_frame_equal(table, auto_attack(model, ds, eps=4/255, n=35, steps=10, queries=50, bs=20))


@needs_autoattack
def test_autoattack_in_colour_and_l2(ds):
    colour = patterns(42, chans=3, splits=("test",))
    table = auto_attack(net(3), colour, eps=0.5, norm="L2", n=21, attacks=("apgd-ce", "square"), steps=5, queries=10)
    assert set(table.attack) == {"autoattack"} and table.n[0] == 21


@needs_autoattack
@pytest.mark.parametrize("kwargs, why", [(dict(norm="L1"), "norm='L1'"), (dict(eps=0), "eps=0"), (dict(attacks=()), "attacks"),
                                         (dict(attacks=("pgd",)), "attacks"), (dict(attacks="square"), "attacks")])
def test_autoattack_bad_settings(model, ds, kwargs, why):
    with pytest.raises(ConfigError, match=why):
        auto_attack(model, ds, **kwargs)


@needs_autoattack
@pytest.mark.parametrize("change, why", [(lambda m: m.double(), "one type"), (lambda m: m.append(nn.Softmax(1)), "softmax"),
                                         (lambda m: m.register_forward_hook(lambda m, x, z: (z, z)), "a tuple")])
def test_autoattack_says_what_it_cannot_work_with(ds, change, why):
    change(model := net())
    with pytest.raises(ConfigError, match=why):
        auto_attack(model, ds, n=7)


@needs_autoattack
@pytest.mark.parametrize("names, run", [("xy", ["apgd-ce", "fab-t", "square"]), ("xyz", ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
                                        ("wxyz", ["apgd-ce", "apgd-t", "fab-t", "square"])])
def test_few_classes_get_what_their_number_allows(names, run, monkeypatch):
    import pyautoattack
    made, real = [], pyautoattack.AutoAttack

    def make(*args, **kwargs):
        made.append(kwargs["attacks"])
        return real(*args, **kwargs)
    monkeypatch.setattr(pyautoattack, "AutoAttack", make)
    df = pd.DataFrame({"id": list("abcdefghijkl"), "label": list(names) * (12 // len(names)), "split": "test"})
    few = FERData(df, np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE), dtype=np.uint8), labels=tuple(names))
    m = nn.Sequential(nn.Flatten(), nn.Linear(SIDE ** 2, len(names)))
    m.labels = tuple(names)
    with pytest.warns(UserWarning, match="below its standard effort"):
        table = auto_attack(m, few, steps=5, queries=5)
    assert made == [run] and set(table.attack) == {"autoattack"}
    for attack, least in (("apgd-dlr", 3), ("apgd-t", 4)):
        if len(names) < least:
            with pytest.raises(ConfigError, match=f"for {len(names)} classes"):
                auto_attack(m, few, attacks=("apgd-ce", attack))
        else:
            with pytest.warns(UserWarning, match="without"):
                assert len(auto_attack(m, few, attacks=(attack,), steps=5, queries=5))


@needs_autoattack
@pytest.mark.parametrize("kwargs, says", [(dict(steps=99), "steps=99 of 100"), (dict(queries=4999), "queries=4999 of 5000"),
                                          (dict(attacks=("apgd-ce", "square")), "without apgd-t, fab-t"),
                                          (dict(attacks=("square", "apgd-t", "fab-t", "apgd-ce", "apgd-dlr")), ""), (dict(), "")])
def test_less_than_the_standard_says_so(kwargs, says):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _attacks_of(**{"attacks": None, "classes": 7, "steps": 100, "queries": 5000} | kwargs)
    assert [says in str(w.message) for w in said] == [True] * bool(says)


# ---------------------------------------------------------------- Table 5 and the study

FEW = dict(eps=(0.01, 0.05), steps=2, n=35)


def test_table5_is_the_curves_side_by_side(model, ds, tmp_path):
    ds = ds.where(split="test")
    table = table5({"a": model, "b": trained(1)}, ds, l2=(0.2,), out=tmp_path, **FEW)
    pairs = {(m, a, k) for m, a, k in zip(table.model, table.attack, table["norm"])}
    assert pairs == {(m, a, k) for m in "ab" for a, k in (("none", "none"), ("fgsm", "linf"), ("pgd", "linf"), ("pgd", "l2"),
                                                          ("deepfool", "linf"), ("deepfool", "l2"))}
    one = table[(table.model == "a") & (table.attack == "pgd") & (table["norm"] == "linf")]
    want = robust_curve(model, ds, "pgd", (0.01, 0.05), 2, n=35, bs=128)
    np.testing.assert_allclose(one.value, want.value)
    assert {"accuracy", "loss", "macro_precision", "macro_recall", "macro_f1"} <= set(table.metric)
    clean = table[table.attack == "none"]
    assert set(clean.eps) == {0} and set(clean.steps) == {0} and set(clean.n[clean.metric == "accuracy"]) == {35}


def test_table5_goes_on_where_it_stopped(model, ds, tmp_path, monkeypatch):
    ds, made = ds.where(split="test"), []
    whole = table5({"a": model}, ds, **FEW)
    table5({"a": model}, ds, out=tmp_path, say=made.append, **FEW)
    (tmp_path / "a-pgd.csv").unlink()
    again = table5({"a": model}, ds, out=tmp_path, say=made.append, **FEW)
    assert made == ["a: clean", "a: fgsm", "a: pgd", "a: deepfool", "a: pgd"]
    pd.testing.assert_frame_equal(whole, again)


@pytest.mark.parametrize(("change", "match"), [
    (dict(models={"a": trained(1)}), "weights is"), (dict(steps=3), "steps is 2 there and 3 here"),
    (dict(eps=(0.01,)), "eps.1 is 0.05 there and 'absent' here"), (dict(seed=1), "seed is 0 there and 1 here"), (dict(n=20), "n is 35 there"),
    (dict(ds=patterns(seed=3).where(split="test")), "data is")])
def test_parts_of_something_else_are_refused(model, ds, tmp_path, change, match):
    call = dict(models={"a": model}, ds=ds.where(split="test"), out=tmp_path) | FEW
    table5(**call)
    with pytest.raises(DataError, match=match):
        table5(**call | change)


@pytest.mark.parametrize("damage", ["", "# {", "eps,value\n1,2\n", "\x00"])
def test_a_damaged_part_is_named(model, ds, tmp_path, damage):
    call = dict(models={"a": model}, ds=ds.where(split="test"), out=tmp_path) | FEW
    table5(**call)
    (tmp_path / "a-fgsm.csv").write_text(damage)
    with pytest.raises(DataError, match="a-fgsm.csv"):
        table5(**call)


def accuracies(name, clean, falls, split="test"):
    rows = [(name, split, "none", "none", 0.0, clean)]
    rows += [(name, split, attack, "linf", e / 255, v) for attack, line in falls.items() for e, v in line]
    return pd.DataFrame(rows, columns=["model", "split", "attack", "norm", "eps", "value"]).assign(metric="accuracy", n=100)


def test_the_papers_epsilon_is_read_off_the_curve():
    falls = {a: [(1, .70), (2, .50), (np.inf, 0)] for a in ("fgsm", "pgd", "deepfool")}
    table = paper_epsilon(pd.concat([accuracies("good", .80, falls), accuracies("poor", .60, {"fgsm": [(1, .599)]})]))
    one = table.set_index(["model", "attack"])
    pgd_row = one.loc[("good", "pgd")]
    assert pgd_row.eps_drop == pytest.approx((79.39 - 78.41) / 10) and pgd_row.eps_level == pytest.approx((80 - 78.41) / 10)
    assert np.isnan(one.eps_level[("poor", "fgsm")])            # begins below the paper's accuracy
    assert np.isnan(one.eps_drop[("poor", "fgsm")])             # never loses that many points
    assert np.isnan(one.eps_drop[("poor", "pgd")])              # was not attacked so
    with pytest.raises(DataError, match="valid"):
        paper_epsilon(pd.concat([accuracies("a", .8, falls), accuracies("a", .8, falls, "valid")]))


def test_the_papers_figures_are_those_of_its_table():
    assert len(PAPER_TABLE5) == 6 and set(PAPER_TABLE5.attack) == {"fgsm", "pgd", "deepfool"}
    fer = PAPER_TABLE5[PAPER_TABLE5.dataset == "FER2013"].set_index("attack")
    assert fer.accuracy.to_dict() == {"fgsm": 78.83, "pgd": 78.41, "deepfool": 78.56} and set(fer.clean) == {79.39}


def test_tradeoff_pairs_clean_with_robust():
    both = pd.concat([accuracies("a", .8, {"pgd": [(1, .3), (2, .1)]}), accuracies("b", .7, {"pgd": [(1, .5), (2, .4)]})])
    table = tradeoff(both).set_index(["model", "eps"])
    assert table.clean.to_dict() == {("a", 1/255): .8, ("a", 2/255): .8, ("b", 1/255): .7, ("b", 2/255): .7}
    assert table.robust[("b", 2/255)] == .4
    for bad in (both[both.attack == "none"], both[both.attack != "none"]):
        with pytest.raises(DataError, match="table5 gives such rows"):
            tradeoff(bad)


def test_the_study_writes_every_table_and_goes_on(model, ds, tmp_path):
    ds, made = ds.where(split="test"), []
    call = dict(models={"a": model, "b": trained(1)}, ds=ds, out=tmp_path, eps=(0.02,), l2=(0.2,), steps=2, n=14, strong=7,
                strong_eps=0.02, corrupted=21, say=made.append)
    tables = robust_study(**call)
    first = len(made)
    again = robust_study(**call)
    names = {"table5", "paper_epsilon", "tradeoff", "corruptions", "corruption_gains", "checklist", "effort"}
    assert set(tables) == names == {p.stem for p in tmp_path.glob("*.csv")} and (tmp_path / "about.json").is_file()
    for name in names:
        pd.testing.assert_frame_equal(tables[name], again[name], check_dtype=False)
        assert set(tables[name].model) == {"a", "b"} - ({"a"} if name == "corruption_gains" else set())
    assert first == len(made) == 2 * (6 + 4) and "a: clean" in made
    many = {name: tables[name].n.max() for name in ("corruptions", "corruption_gains", "table5")}
    assert many == {"corruptions": 21, "corruption_gains": 21, "table5": 14}
    (alone := tmp_path / "alone").mkdir()
    assert "corruption_gains" not in robust_study(**call | {"models": {"a": model}, "out": alone, "strong": 0})


def _one_image_at_a_time(net, ds, kind, degrees):
    "The share of the degrees at which each image is read right, by plain loops."
    keys, y, right = noise_keys(ds), ds.targets(), np.zeros((len(ds), len(degrees)))
    for i, j in itertools.product(range(len(ds)), range(len(degrees))):
        x = corrupt(torch.tensor(ds.image(i))[None, None].float() / 255, kind, degrees[j], keys[i:i + 1])
        with torch.no_grad():
            right[i, j] = net(x).argmax().item() == y[i]
    return right.mean(1)


def test_what_a_training_changes_is_the_mean_over_images_of_the_difference(model, ds):
    ds, other = ds.where(split="test"), net(seed=3).eval()
    hits = {"a": corruption_hits(model, ds, ("noise", "blur"), (2, 4)), "b": corruption_hits(other, ds, ("noise", "blur"), (2, 4))}
    gains = corruption_gains(hits).set_index("kind")
    for kind in ("noise", "blur"):
        a, b = (_one_image_at_a_time(net, ds, kind, (2, 4)) for net in (model, other))
        np.testing.assert_allclose(hits["a"][kind], a)
        np.testing.assert_allclose(gains.loc[kind, ["before", "after", "difference"]].tolist(),
                                   [100 * a.mean(), 100 * b.mean(), 100 * (b - a).mean()], atol=1e-9)
        within = pd.Series(b - a).groupby(ds.df.label.to_numpy()).agg(["var", "count"])     # images are exchanged within an emotion
        half = 196 * ((within["var"] * (within["count"] - 1)).sum() / len(ds) ** 2) ** 0.5
        assert gains.low[kind] < gains.difference[kind] < gains.high[kind]
        assert abs((gains.high[kind] - gains.low[kind]) / 2 - half) < 0.15 * half + 0.3
    both = corruption_gains({"a": hits["a"], "b": hits["b"], "c": hits["a"]}).set_index(["model", "kind"])
    assert not both.difference["c"].any() and list(both.index.unique(0)) == ["b", "c"]
    np.testing.assert_allclose(gains.difference["all kinds"], gains.difference[["noise", "blur"]].mean(), atol=1e-9)


def test_changes_of_other_images_or_kinds_are_refused(model, ds):
    ds = ds.where(split="test").take(range(14))
    hits = corruption_hits(model, ds, ("dark",), (1,))
    for other in (hits.iloc[::-1].reset_index(drop=True), hits.rename(columns={"dark": "blur"}), hits.iloc[:7]):
        with pytest.raises(DataError, match="b: other images or kinds than a"):
            corruption_gains({"a": hits, "b": other})
    for few, said in (({"a": hits}, "a alone"), ({}, "no network alone")):
        with pytest.raises(ConfigError, match=f"{said}; two networks or more"):
            corruption_gains(few)
    pd.testing.assert_frame_equal(hits, corruption_hits(model, ds, ("dark",), 1))     # one severity is one
    with pytest.raises(ConfigError, match="kind='fog'"):
        corruption_hits(model, ds, ("fog",))


def test_splits_are_judged_each_for_itself(model, ds):
    hits = {"a": corruption_hits(model, ds, ("dark",), (3,)), "b": corruption_hits(trained(1), ds, ("dark",), (3,))}
    table = corruption_gains(hits).set_index(["split", "kind"])
    alone = {k: corruption_hits(m, ds.where(split="test"), ("dark",), (3,)) for k, m in (("a", model), ("b", trained(1)))}
    pd.testing.assert_series_equal(table.difference["test"], corruption_gains(alone).set_index("kind").difference)
    assert table.n["train"].eq((ds.df.split == "train").sum()).all()


@needs_autoattack
@pytest.mark.filterwarnings("ignore:AutoAttack below")
def test_more_images_for_pgd_are_a_run_of_their_own(model, ds, tmp_path):
    said = []
    with pytest.raises(ConfigError, match="pgd=-5"):      # before the first hour is spent
        strongest_study({"a": model}, ds.where(split="test"), tmp_path, pgd=-5, say=said.append)
    assert not said
    ds, call = ds.where(split="test"), dict(n=7, eps=0.02, steps=2, queries=5)
    table = strongest_study({"a": model}, ds, tmp_path, pgd=21, **call).query("metric == 'accuracy'")
    assert table.groupby(["attack", "n"]).size().to_dict() == {("autoattack", 7): 1, ("pgd", 7): 2, ("pgd", 21): 2}
    whole = strongest_study({"a": model}, ds, tmp_path / "all", pgd=None, **call)
    assert set(whole[(whole.subset == "all") & (whole.metric == "accuracy")].n) == {len(ds)}


@needs_autoattack
@pytest.mark.filterwarnings("ignore:AutoAttack below")
def test_the_strongest_study_goes_on_behind_its_last_batch(model, ds, tmp_path):
    ds, said = ds.where(split="test"), []
    call = dict(models={"a": model, "b": trained(1)}, ds=ds, out=tmp_path, n=21, eps=0.02, steps=2, queries=5, bs=7, say=said.append)
    table = strongest_study(**call)
    assert [s for s in said if s.startswith("AutoAttack")] == [f"AutoAttack: images {i} to {i + 6} of 21" for i in (0, 7, 14)] * 2
    found = table[table.metric == "accuracy"].set_index(["model", "attack", "eps"])
    assert set(found.n) == {21} and set(found.index.get_level_values("attack")) == {"autoattack", "pgd"}
    clean = robust_curve(trained(1), ds, eps=(0,), n=21)
    np.testing.assert_allclose(found.value["b", "pgd", 0.0], clean.value[clean.metric == "accuracy"], atol=1e-9)
    (batch,) = tmp_path.glob(f"parts/batches-{weights_digest(model)[:12]}/*-7.npz")      # broken off in the second batch
    for file in (batch, tmp_path / "parts/a-autoattack.csv", *tmp_path.glob("parts/b-*.csv")):
        file.unlink()
    before = len(said)
    pd.testing.assert_frame_equal(strongest_study(**call), table, check_dtype=False)
    assert [s for s in said[before:] if s.startswith("AutoAttack")] == ["AutoAttack: images 7 to 13 of 21"]
    with pytest.raises(DataError, match="steps is 2 there and 3 here"):
        strongest_study(**call | {"steps": 3})


def test_the_study_wants_one_split(model, ds, tmp_path):
    with pytest.raises(DataError, match="train, test; rows of one"):
        robust_study({"a": model}, ds, tmp_path)


@pytest.mark.parametrize("how", [lambda x: 255 * x, lambda x: (255 * x).byte(), lambda x: (x - 0.5) / 0.25])
@pytest.mark.parametrize("kind", ["blur", "noise", "contrast", "jpeg", "eyes"])
def test_images_of_another_range_are_not_corrupted(how, kind):
    with pytest.raises(ImageError):
        corrupt(how(torch.rand(2, 1, SIDE, SIDE)), kind, 3)


def test_each_row_is_set_beside_its_own_clean_one():
    falls = {a: [(1, .3)] for a in ("fgsm", "pgd", "deepfool")}
    one = accuracies("a", .8, falls).assign(subset="all")
    two = pd.concat([one, accuracies("a", .7, {"pgd": [(1, .2)]}).assign(subset="sample", n=20)])
    table = tradeoff(two)
    assert table[["clean", "robust", "n"]].values.tolist() == [[.8, .3, 100], [.7, .2, 20]]
    with pytest.raises(DataError, match="a has two clean rows .*of one model"):
        paper_epsilon(two)
    for twice in (pd.concat([one, one.assign(n=20)]), pd.concat([one, one]).drop(columns="subset")):
        with pytest.raises(DataError, match="a/test.* has two clean rows"):
            tradeoff(twice)
    bare = pd.concat([one[one.attack != "none"].assign(model="b"), one])
    with pytest.raises(DataError, match="b/test/all has no clean row"):
        tradeoff(bare)
    with pytest.raises(DataError, match="b has no clean row"):
        paper_epsilon(bare)


def test_images_and_keys_that_cannot_be_corrupted_so():
    for channels in (2, 4):
        with pytest.raises(ConfigError, match=f"channels of a JPEG file={channels}; 1 or 3 expected"):
            corrupt(torch.rand(2, channels, 8, 8), "jpeg", 3)
    with pytest.raises(ConfigError, match="len.ids.=3; 2 expected"):
        corrupt(torch.rand(2, 1, 8, 8), "noise", 3, ids=np.arange(3))


@pytest.mark.parametrize("kind", ["table5", pytest.param("autoattack", marks=needs_autoattack)])
def test_parts_of_a_network_that_got_images_of_another_size_are_not_taken_up(kind, tmp_path):
    """Weights do not tell to which size a HyFER resizes."""
    ds, model = patterns(14, splits=("test",)), HyFER(7, 1, "light", labels=EMOTIONS).eval()
    call = {"table5": lambda: table5({"a": model}, ds, (4/255,), (), 1, 1, None, 0, tmp_path / kind),
            "autoattack": lambda: auto_attack(model, ds, attacks=["square"], queries=2, out=tmp_path / kind)}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(), call()
        model.adapt.size = model.input_size   # as `load_teacher` sets it
        with pytest.raises(StoreError, match="resized"):
            call()

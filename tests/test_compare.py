"""Comparison of the installed package: against SciPy, exact enumeration and simulation; what may not be compared is refused."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fer_nb.compare import Outcome, compare, holm, mcnemar, paired_bootstrap, paired_t
from fer_nb.core import EMOTIONS, ConfigError
from fer_nb.data import FERData


def images(n=200, splits=("test",), seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "label": rng.choice(EMOTIONS, n), "split": rng.choice(splits, n)})
    return FERData(df, np.zeros((n, 2, 2), np.uint8))


def logits(ds, skill, seed):
    return np.random.default_rng(seed).normal(size=(len(ds), 7)) + skill * np.eye(7)[ds.targets()]


def runs(values, by="fold", metric="accuracy"):
    return pd.DataFrame({by: range(len(values)), "metric": metric, "value": values})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_monotone_and_between_p_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all() and (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    if p:
        assert adjusted.min() == min(1, len(p) * min(p))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test_and_symmetric(only_a, only_b, same):
    if not only_a + only_b + same:
        return
    a = np.repeat([True, False, True], [only_a, only_b, same])
    b = np.repeat([False, True, True], [only_a, only_b, same])
    one, other, mid = mcnemar(a, b), mcnemar(b, a), mcnemar(a, b, mid_p=True)
    n = only_a + only_b
    assert one.p == pytest.approx(stats.binomtest(only_a, n).pvalue if n else 1)
    assert one.p == pytest.approx(other.p) and one.difference == -other.difference and mid.p <= one.p
    assert [one.low, one.high] == pytest.approx([-other.high, -other.low]) == [mid.low, mid.high]
    assert -1 <= one.low <= one.difference <= one.high <= 1


def test_mid_p_keeps_the_level_better_than_exact():
    n, rate = 20, {}
    for mid in (False, True):
        reject = [stats.binom.pmf(k, n, .5) for k in range(n + 1)
                  if mcnemar(np.arange(n) < k, np.arange(n) >= k, mid).p < .05]
        rate[mid] = sum(reject)
    assert rate[False] <= .05 and rate[False] <= rate[True] <= .06


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(100, 4000), st.integers(-5, 5), st.integers(0, 10**6))
def test_the_same_difference_in_all_runs_has_no_p(runs, n, more, seed):
    "Shares of n images: the difference of two is the same number only but for rounding."
    right = np.random.default_rng(seed).integers(10, n - 10, runs)
    for scale in (1, 100):
        found = paired_t(scale * (right + more) / n, scale * right / n)
        assert np.isnan(found.p) if more else found.p == 1
        assert found.low == found.high == pytest.approx(scale * more / n)


def test_small_spreads_stay_what_they_are():
    found = paired_t([0.5, 0.5 + 2e-9, 0.5 + 4e-9], [0.4, 0.4, 0.4])
    assert found.p < 1e-12 and found.low < found.high


def test_a_handful_of_images_has_no_bootstrap():
    y = np.repeat(np.arange(7), 2)
    good, bad = 5.0 * np.eye(7)[y], 5.0 * np.eye(7)[(y + 1) % 7]
    found = paired_bootstrap(good, bad, y, EMOTIONS, "accuracy", 100)
    assert found.difference == 1 and np.isnan([found.low, found.high, found.p]).all()
    y = np.r_[np.repeat(0, 40), [1, 1]]
    z = [np.random.default_rng(k).normal(size=(42, 7)) + 2 * np.eye(7)[y] for k in (0, 1)]
    overall, rare = (paired_bootstrap(*z, y, EMOTIONS, m, 100) for m in ("accuracy", f"recall:{EMOTIONS[1]}"))
    assert np.isfinite([overall.low, overall.high, overall.p]).all() and np.isnan([rare.low, rare.high, rare.p]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6))
def test_paired_t_is_scipys(n, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, n))
    expected, found = stats.ttest_rel(a, b), paired_t(a, b)
    assert found.p == pytest.approx(expected.pvalue) and found.n == n
    assert [found.low, found.high] == pytest.approx([*expected.confidence_interval()])
    corrected = paired_t(a, b, rho=1 / n)
    assert corrected.p >= found.p and corrected.test == "corrected t"
    d, t = a - b, (a - b).mean() / np.sqrt((1 / n + 1 / n) * (a - b).var(ddof=1))
    assert corrected.p == pytest.approx(2 * stats.t.sf(abs(t), n - 1)) and corrected.difference == pytest.approx(d.mean())


def test_differences_without_spread():
    assert paired_t([1, 2], [1, 2]).p == 1 and np.isnan(paired_t([2, 3], [1, 2]).p)


def test_bootstrap_is_paired():
    ds = images()
    z = logits(ds, 2, 0)
    nearly = z + np.random.default_rng(1).normal(0, 1e-3, z.shape)
    close = paired_bootstrap(z, nearly, ds.targets(), EMOTIONS, "loss", 200)
    far = paired_bootstrap(z, logits(ds, 2, 5), ds.targets(), EMOTIONS, "loss", 200)
    assert close.high - close.low < .05 * (far.high - far.low)


def test_bootstrap_finds_nothing_where_there_is_nothing():
    p = []
    for seed in range(40):
        ds = images(150, seed=seed)
        p.append(paired_bootstrap(logits(ds, 1.5, 2 * seed + 1), logits(ds, 1.5, 2 * seed + 2), ds.targets(), EMOTIONS, times=100).p)
    assert np.mean(np.array(p) < .05) < .15 and np.mean(np.array(p) < .5) > .3


def test_images_get_bootstrap_and_mcnemar_and_a_family_is_corrected():
    ds = images()
    a, rivals = logits(ds, 2.5, 0), {"b": logits(ds, 2, 1), "c": logits(ds, 1, 2)}
    table = compare(a, rivals, ds, times=200)
    assert list(table) == ["rival", "metric", *Outcome._fields, "p_holm"]
    assert table.groupby("rival").test.apply(list).tolist() == [["paired bootstrap", "McNemar exact", "McNemar mid-p"]] * 2
    for _, family in table.groupby("test"):
        np.testing.assert_allclose(family.p_holm, holm(family.p))
    assert table.groupby("rival").difference.nunique().eq(1).all() or np.allclose(table.groupby("rival").difference.std(), 0)
    assert compare(a, rivals, ds, "roc_auc", times=50).test.tolist() == ["paired bootstrap"] * 2
    assert compare(a, rivals["b"], ds, times=50).p_holm.equals(compare(a, rivals["b"], ds, times=50).p.rename("p_holm"))


def test_folds_get_the_corrected_test_with_their_own_ratio():
    a, b = runs([.7, .72, .71, .74, .69]), runs([.68, .71, .70, .71, .69])
    table = compare(a, b).set_index("test")
    assert table.p["corrected t"] == pytest.approx(paired_t(a.value, b.value, 1 / 4).p) and set(table.over) == {"folds"}
    assert compare(a, b, rho=1.0).set_index("test").p["corrected t"] == pytest.approx(paired_t(a.value, b.value, 1.0).p)
    shuffled = b.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(compare(a, b), compare(a, shuffled))
    repeated = [pd.concat([t.assign(repeat=r, value=t.value + .01 * r * s) for r in (0, 1)]) for s, t in ((1, a), (-1, b))]
    assert compare(*repeated).n.tolist() == [10, 10]


@pytest.mark.parametrize(("a", "b", "match"), [
    (runs([.7, .8]), 0.7221, "from a paper"), (0.7, 0.71, "from a paper"), (runs([.7, .8]), {"paper": 0.7221}, "paper"),
    (runs([.7, .8]), np.zeros((5, 7)), "two tables over runs"),
    (runs([.7, .8]), runs([.7, .8], "epoch"), "single results"),
    (runs([.7, .8]), runs([.7, .8, .9]), r"fold: \[2\] in one table only"),
    (runs([.7, np.nan]), runs([.7, .8]), "1 of them NaN"),
    (pd.concat([runs([.7, .8])] * 2), runs([.7, .8]), "4 rows of 'accuracy' for 2 runs"),
    (runs([.7, .8]).assign(n=100), runs([.7, .8]).assign(n=[100, 90]), r"fold: \[1\] not with the same number"),
    (runs([.7]), runs([.6]), "two or more pairs"),
])
def test_runs_that_cannot_be_paired_are_refused(a, b, match):
    with pytest.raises(ConfigError, match=match):
        compare(a, b)


def test_images_that_cannot_be_paired_are_refused():
    ds, both = images(), images(splits=("valid", "test"))
    z = logits(ds, 1, 0)
    for call, match in [
        (lambda: compare(z, z), "images of one split"), (lambda: compare(z, z, both), "images of one split"),
        (lambda: compare(z, z[:5], ds), r"\(5, 7\)"), (lambda: compare(z, z, ds, "kappa"), "metric='kappa'"),
        (lambda: compare(z.argmax(1), z.argmax(1), ds, "ece"), "needs logits"),
        (lambda: compare(z.argmax(1) + 3, z.argmax(1), ds), "positions of labels"),
        (lambda: compare(z.argmax(1)[:5], z.argmax(1), ds), r"\(5,\)"),
        (lambda: mcnemar([True], [True, False]), r"bool \(1,\) and bool \(2,\)"),
        (lambda: mcnemar([], []), r"\(0,\)"),
    ]:
        with pytest.raises(ConfigError, match=match):
            call()


@pytest.mark.parametrize(("column", "one", "other", "match"), [
    ("split", "valid", "test", "split valid against test"), ("subset", "all", "without_duplicates", "subset all against without_duplicates"),
    ("labels", "a, b", "a, b, c", "labels a, b against a, b, c"),
    ("attack", "none", "pgd", "attack none against pgd"), ("eps", 8 / 255, 4 / 255, "eps 0.0313725 against 0.0156863"),
    ("norm", "linf", "l2", "norm linf against l2"), ("steps", 10, 20.0, "steps 10 against 20"), ("restarts", 1, 5, "restarts 1 against 5"),
])
def test_tables_of_other_images_or_labels_are_not_paired(column, one, other, match):
    "FER2013's validation and test parts have the same number of images."
    a, b = (runs(v, "seed").assign(n=3589, tta=t) for v, t in (([.66, .67, .68], "none"), ([.61, .63, .62], "flip")))
    with pytest.raises(ConfigError, match=match):
        compare(a.assign(**{column: one}), b.assign(**{column: other}))
    assert len(compare(a.assign(**{column: one}), b.assign(**{column: one}))) == 1
    assert len(compare(a.assign(labels="a, b"), b.assign(labels="b, a"))) == 1      # accuracy knows no order
    assert len(compare(a.assign(steps=10, eps=0), b.assign(steps=10.0, eps=0.0))) == 1 == len(compare(a.assign(norm=np.nan), b.assign(norm="linf")))


def test_a_bootstrap_without_width_has_neither_interval_nor_p():
    "Of five images, or of ten, one model has all right and the other none: no resample says anything else."
    for n in (5, 10):
        y = np.zeros(n, int)
        one = paired_bootstrap(np.eye(2)[y], np.eye(2)[1 - y], y, ("a", "b"), times=50)
        assert one.difference == 1 and np.isnan([one.low, one.high, one.p]).all()
    same = paired_bootstrap(np.eye(2)[y], np.eye(2)[y], y, ("a", "b"), times=50)
    assert same.difference == 0 and np.isnan([same.low, same.high]).all() and same.p == 1


def test_two_series_go_together_by_their_index():
    s = pd.Series([.7, .6, .5], [3, 1, 2])
    assert paired_t(s, (s + .01)[::-1]).difference == pytest.approx(-.01) and np.isnan(paired_t(s, (s + .01)[::-1]).p)
    rows = pd.Series([.7, .6, .5, .69, .58, .5])   # of one table: rows 3 to 5 are those of the other model
    assert paired_t(rows[:3], rows[3:]) == paired_t(rows[:3].tolist(), rows[3:].tolist()) == paired_t(rows[:3], rows[3:].to_numpy())
    assert paired_t(rows[:3][::-1], rows[:3] + [0, .01, .03]) == paired_t(rows[:3][::-1].tolist(), (rows[:3] + [0, .01, .03])[::-1].tolist())
    for odd in (s.set_axis([1, 2, 4]), s.set_axis([6, 5, 4]), s.set_axis([0, 2, 1]), s.set_axis(list("abc"))):
        with pytest.raises(ConfigError, match="b with the index"):
            paired_t(s, odd)
    right = pd.Series([True, True, False, False], list("abcd"))
    assert mcnemar(right, right[::-1]).difference == 0 and mcnemar(right, right[::-1]).p == 1
    with pytest.raises(ConfigError, match="right_b with the index"):
        mcnemar(right, right.rename(str.upper))


def test_seeds_on_one_fold_are_seeds():
    a, b = (runs(v, "seed").assign(fold=0) for v in ([.7, .72, .71], [.69, .7, .7]))
    table = compare(a, b)
    assert table.over.tolist() == ["seeds"] and table.test.tolist() == ["paired t"]
    assert set(compare(*(pd.concat([t, t.assign(fold=1)]) for t in (a, b))).over) == {"folds"}


def test_rows_cut_from_different_places_are_not_paired():
    right = pd.Series(np.random.default_rng(0).random(400) < .7)
    with pytest.raises(ConfigError, match="two tables"):
        mcnemar(right[100:200], right[200:300])
    with pytest.raises(ConfigError, match="two tables"):
        paired_t(pd.Series([.6, .7, .8], [1, 2, 3]), pd.Series([.6, .7, .9], [4, 5, 6]))
    assert mcnemar(right[100:200], right[100:200][::-1]).p == 1

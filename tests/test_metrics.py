"""Metrics of the installed package: against scikit-learn and plain loops on random data, edge cases, failure paths."""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from sklearn import metrics

from fer_nb.compare import paired_bootstrap
from fer_nb.core import EMOTIONS, LABEL_ORDERS, ConfigError, FERError, LabelError
from fer_nb.metrics import (MEASURES, agreement, bootstrap_scores, ece, fit_temperature, headline, headline_text, mean_intervals, percentile_interval,
                            reliability, resample_counts, score_intervals, scores, share_interval)

def proportion(k, n):
    "Wilson's interval by SciPy."
    return list(stats.binomtest(k, n).proportion_ci(method="wilson"))


CASES = given(st.integers(1, 40), st.integers(0, 10**6), st.integers(2, 8))


def draw(n, seed, classes, coarse=False):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(n, classes)), rng.integers(0, classes, n)
    return (z.round() if coarse else z), y, [f"c{k}" for k in range(classes)]


@settings(max_examples=25, deadline=None)
@CASES
def test_scores_agree_with_sklearn(n, seed, classes):
    z, y, labels = draw(n, seed, classes)
    table, present, pred = scores(z, y, labels).set_index("metric"), np.unique(y), z.argmax(1)
    p, over = softmax(z, axis=1), {"labels": present, "zero_division": 0}
    expected = {"accuracy": metrics.accuracy_score(y, pred), "loss": metrics.log_loss(y, p, labels=range(classes)),
                "brier": ((p - np.eye(classes)[y]) ** 2).sum() / n}
    for kind in ("macro", "weighted"):
        for name in ("recall", "f1", "precision"):
            expected[f"{kind}_{name}"] = getattr(metrics, f"{name}_score")(y, pred, average=kind, **over)
    f1 = metrics.f1_score(y, pred, average=None, **over)
    expected["f1_range"] = f1.max() - f1.min()
    if len(present) > 1:
        expected["roc_auc"] = np.mean([metrics.roc_auc_score(y == c, p[:, c]) for c in present])
    for name, value in expected.items():
        assert table.value[name] == pytest.approx(value), name
    assert table.value[[f"recall:c{k}" for k in range(classes)]].isna().sum() == classes - len(present)
    assert np.isnan(table.value["roc_auc"]) == (len(present) == 1)


@settings(max_examples=25, deadline=None)
@CASES
def test_a_resample_scores_like_the_images_it_repeats(n, seed, classes):
    z, y, labels = draw(n, seed, classes, coarse=True)       # ties among the scores
    draws = bootstrap_scores(z, y, 3, seed)
    for k, w in enumerate(np.concatenate([*resample_counts(y, 3, seed)])):
        rows = np.repeat(np.arange(n), w)
        np.testing.assert_allclose(draws[k], scores(z[rows], y[rows], labels).value, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.integers(1, 20))
def test_ece_is_that_of_a_plain_loop(n, seed, bins):
    z, y, _ = draw(n, seed, 4)
    p, total = softmax(3 * z, axis=1), 0
    edges = np.linspace(0, 1, bins + 1)
    for low, high in zip(edges, edges[1:]):
        here = [i for i in range(n) if low < p[i].max() <= high]
        total += abs(sum(float(p[i].argmax() == y[i]) - p[i].max() for i in here)) / n
    assert ece(3 * z, y, bins) == pytest.approx(total, abs=1e-9)
    table = reliability(3 * z, y, bins)
    assert table.n.sum() == n and len(table) == bins and (table.accuracy.isna() == (table.n == 0)).all()
    even = reliability(3 * z, y, bins, adaptive=True)
    assert even.n.sum() == n and even.n.max() - even.n.min() <= 1


def test_ece_in_scores_is_the_default_one():
    z, y, labels = draw(300, 0, 7)
    assert scores(z, y, labels).set_index("metric").value["ece"] == ece(z, y) == ece(z, y, 15)


def test_huge_logits_give_a_finite_loss():
    z = np.array([[1e4, -1e4], [-1e4, 1e4]])
    assert scores(z, np.array([0, 0]), ("a", "b")).set_index("metric").value["loss"] == pytest.approx(1e4)


def test_resamples_keep_the_strata_and_do_not_depend_on_the_block():
    strata = np.array(list("aabbbbc") * 400)
    counts = np.concatenate([*resample_counts(strata, 500, 3)])       # several blocks
    assert counts.shape == (500, 2800) and (counts[:, strata == "c"].sum(1) == 400).all() and (counts[:, strata == "a"].sum(1) == 800).all()
    np.testing.assert_array_equal(counts[:7], next(resample_counts(strata, 7, 3)))
    assert (counts[0] != next(resample_counts(strata, 1, 4))[0]).any()


def test_a_constant_metric_has_wilsons_interval_or_none():
    z, y = 9 * np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 2, 2])
    table = score_intervals(z, y, "abc", times=20).set_index("metric")
    assert table.loc["accuracy", ["low", "high"]].tolist() == pytest.approx(proportion(4, 4)) and np.isnan(table.high["macro_f1"])


def test_wider_levels_hold_narrower_ones():
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    (low, high), (lower, higher) = percentile_interval(draws, .8), percentile_interval(draws, .95)
    assert (lower < low).all() and (high < higher).all()
    np.testing.assert_allclose(percentile_interval(draws), [[-1.96] * 3, [1.96] * 3], atol=.15)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(.05, 20))
def test_temperature_undoes_a_scale_and_is_a_minimum(seed, scale):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, 200)
    z = rng.normal(size=(200, 5)) + 1.5 * np.eye(5)[y]
    T = fit_temperature(z, y)
    assert fit_temperature(scale * z, y) == pytest.approx(scale * T, rel=1e-6)
    loss = lambda t: scores(z / t, y, "abcde").set_index("metric").value["loss"]
    assert loss(T) <= min(loss(T * 1.02), loss(T / 1.02))
    assert fit_temperature(z + rng.normal(size=(200, 1)), y) == pytest.approx(T, rel=1e-6)       # softmax knows no offset


@pytest.mark.parametrize(("call", "error", "match"), [
    (lambda z, y: scores(z, y, "ab"), ConfigError, "2 labels"),
    (lambda z, y: scores(z[:3], y, "abc"), ConfigError, r"logits \(3, 3\), targets \(6,\)"),
    (lambda z, y: scores(z, y + 0.5, "abc"), LabelError, "float64"),
    (lambda z, y: scores(z, y - 1, "abc"), LabelError, "from -1"),
    (lambda z, y: ece(np.where(z == 0, np.nan, z), y), ConfigError, "image 0: NaN"),
    (lambda z, y: reliability(z, y, 1.5), ConfigError, "bins=1.5"),
    (lambda z, y: bootstrap_scores(z, y, -1), ConfigError, "times=-1; a whole number of at least 1 resamples"),
    (lambda z, y: percentile_interval(z, 1), ConfigError, "level=1"),
    (lambda z, y: percentile_interval(z, None), ConfigError, "level=None"),
    (lambda z, y: fit_temperature(z[:0], y[:0]), ConfigError, "0 of 0 images"),
    (lambda z, y: fit_temperature(-z, y), ConfigError, "above the average"),
])
def test_bad_input_is_named(call, error, match):
    assert issubclass(error, FERError)
    with pytest.raises(error, match=match):
        call(np.eye(3)[[0, 1, 2, 0, 1, 2]], np.array([0, 1, 2, 0, 1, 2]))


# ---- the headline ----

def voted(n, seed):
    "Logits, labels and ten votes an image in FER+'s order; one image in nine shows no face, says everybody."
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(n, 7)), rng.integers(0, 7, n)
    votes = np.array([rng.multinomial(10, rng.dirichlet(np.full(10, 0.4))) for _ in range(n)])
    votes[::9] = [0] * 9 + [10]
    return z, y, votes


@settings(max_examples=15, deadline=None)
@given(st.integers(10, 60), st.integers(0, 10**6))
def test_each_judge_says_what_a_plain_loop_says(n, seed):
    z, y, votes = voted(n, seed)
    leaked, answers, own = np.arange(n) % 4 == 0, z.argmax(1), [LABEL_ORDERS["ferplus"].index(e) for e in EMOTIONS]
    table = headline(z, y, EMOTIONS, -z, leaked, votes, times=5).set_index("measure")
    said = {name: [] for name in MEASURES}
    for i in range(n):
        v, k, right = votes[i], own[answers[i]], float(answers[i] == y[i])
        said["single"].append(right)
        said["mirror"].append(float(z[i].argmin() == y[i]))
        if not leaked[i]:
            said["single, no duplicates"].append(right)
            said["mirror, no duplicates"].append(float(z[i].argmin() == y[i]))
        if v[9] < 10:  # somebody saw a face
            said["expected"].append(v[k] / 10)
            said["label"].append(v[own[y[i]]] / 10)
            said["best"].append(max(v[j] for j in own) / 10)
            said["one voter"].append(sum(v[j] * (v[j] - 1) for j in range(10)) / 90)
        left = np.where(v > 1, v, 0)  # FER+: a single vote is an outlier
        if left.max() * 2 > left.sum() and left.argmax() < 8:
            said["majority"].append(float(k == left.argmax()))
        if v[own[y[i]]] > 5:
            said["both agree"].append(right)
    for name, values in said.items():
        if name != "ece":
            assert table.n[name] == len(values)
            assert table.value[name] == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True), name
    assert table.value["ece"] == pytest.approx(ece(z, y))


def test_intervals_of_the_headline_are_those_of_the_scores():
    z, y, votes = voted(300, 3)
    table, other = headline(z, y, EMOTIONS, votes=votes, temperature=0.5).set_index("measure"), score_intervals(2 * z, y, EMOTIONS).set_index("metric")
    for mine, theirs in {"single": "accuracy", "ece": "ece"}.items():
        np.testing.assert_allclose(table.loc[mine, ["value", "low", "high"]].astype(float), other.loc[theirs, ["value", "low", "high"]].astype(float))
    assert "mirror" not in table.index and len(headline_text(table.reset_index())) == len(table)


def test_an_interval_has_a_width_or_is_none():
    """Of 3 right answers of 3 every resample says the same; Wilson's interval says how little that is."""
    z, y = np.eye(3)[[0, 0, 0, 1, 2]] * 9.0, np.array([0, 0, 0, 1, 1])
    table = score_intervals(z, y, ("sad", "happy", "fear"), 200).set_index("metric")
    assert table.loc["recall:sad", ["low", "high"]].tolist() == pytest.approx(proportion(3, 3)) and not (table.low == table.high).any()
    assert table.low["accuracy"] < table.value["accuracy"] < table.high["accuracy"] and np.isnan(table.low["f1:sad"])
    found = headline(z, y, ("sad", "happy", "fear"), times=50).set_index("measure")
    assert found.low["single"] < found.value["single"] < found.high["single"]
    right = np.arange(9) % 3                    # all answers are right, and alike
    found = headline(np.eye(3)[right] * 9.0, right, ("sad", "happy", "fear"), times=50)
    assert not (found.low == found.high).any() and found.set_index("measure").loc["ece", ["low", "high"]].isna().all()


def test_a_network_that_names_all_eight_is_judged_by_name():
    _, y, votes = voted(80, 5)
    z = np.log(votes[:, :8] + 0.5)[:, ::-1]     # answers what most voters say, in another order
    labels = LABEL_ORDERS["ferplus"][::-1]
    table = headline(z, y, labels, votes=votes, times=5).set_index("measure").value
    assert table["majority"] == 1 and table["expected"] == pytest.approx(table["best"])


@pytest.mark.parametrize("votes, labels, error", [(np.ones((9, 8)), EMOTIONS, ConfigError), (np.ones((8, 10)), EMOTIONS, ConfigError),
                                                  (np.ones((9, 10), int), ("bored", *EMOTIONS[1:]), LabelError)])
def test_votes_that_are_not_of_these_images_or_labels_are_refused(votes, labels, error):
    with pytest.raises(error):
        headline(np.eye(9, 7), np.zeros(9, int), labels, votes=votes, times=5)


@pytest.mark.parametrize("how", [np.float16, np.float32, lambda p: p.round(4), lambda p: p.round(3), lambda p: (100 * p).round(1)])
def test_probabilities_in_any_precision_are_no_logits(how):
    p = np.random.default_rng(0).dirichlet(np.ones(7), 50)
    with pytest.raises(ConfigError, match="logits expected"):
        ece(how(p) if callable(how) and not isinstance(how, type) else p.astype(how), np.arange(50) % 7)


def test_logits_that_lie_between_0_and_1_are_logits():
    z = np.random.default_rng(0).random((50, 7))
    assert ece(z, np.arange(50) % 7) >= 0 and ece(np.array([[.7, .31]]), np.array([0])) >= 0


def test_means_are_of_shares_and_every_count_has_an_interval():
    for bad in (np.array([0, -1.0]), np.array([0, 2.0])):
        with pytest.raises(ConfigError, match="from 0 to 1 expected"):
            mean_intervals({"apart": bad}, np.zeros(2))
    right = np.r_[np.ones(6), np.full(994, np.nan)]
    table = mean_intervals({k: np.where(np.arange(1000) < k, right, np.nan) for k in (1, 3, 6)}, np.arange(1000) % 7, 300)
    for k in (1, 3, 6):
        assert table.loc[k, ["low", "high"]].tolist() == pytest.approx(share_interval(1.0, k).tolist())
    mixed = mean_intervals({"m": np.r_[np.tile([0, 1.0], 4), np.full(300, np.nan)]}, np.zeros(308), 300).loc["m"]
    assert mixed.low < 0.5 < mixed.high


@pytest.mark.parametrize("a_class", [1, 2, 3])
def test_intervals_hold_the_accuracy_of_few_images(a_class):
    "Eight classes of one to three images each, right in seven of ten: how often is .7 within?"
    rng, y, held = np.random.default_rng(0), np.repeat(np.arange(8), a_class), []
    y = np.r_[y, 0]
    for _ in range(200):
        z = 5.0 * np.eye(8)[np.where(rng.random(len(y)) < .7, y, (y + 1) % 8)]
        row = score_intervals(z, y, tuple("abcdefgh"), 20).set_index("metric").loc["accuracy"]
        held.append(row.low <= .7 <= row.high)
    assert np.mean(held) >= .9


def test_one_accuracy_has_one_interval():
    "Classes of few images: the headline goes by the rule of the scores, and holds the truth as often."
    y, rng, held = np.repeat(np.arange(7), 2), np.random.default_rng(0), []
    for _ in range(60):
        z = 5 * np.eye(7)[np.where(rng.random(14) < .7, y, (y + 1) % 7)]
        top, other = headline(z, y, EMOTIONS, times=30).set_index("measure"), score_intervals(z, y, EMOTIONS, 30).set_index("metric")
        assert top.loc["single", ["low", "high"]].tolist() == pytest.approx(other.loc["accuracy", ["low", "high"]].tolist())
        assert np.isnan(top.low["ece"]) and np.isnan(other.low["ece"])
        held.append(top.low["single"] <= .7 <= top.high["single"])
    assert np.mean(held) > .85


def test_the_auc_of_a_class_needs_images_of_others():
    z, y = np.random.default_rng(0).normal(size=(103, 2)), np.repeat([0, 1], [100, 3])
    table = score_intervals(z, y, ("a", "b"), 50).set_index("metric")
    assert table.low[["roc_auc:a", "roc_auc:b", "roc_auc"]].isna().all() and np.isfinite(table.low[["recall:a", "accuracy"]]).all()


def test_rounding_is_no_width():
    z, y = np.tile(np.random.default_rng(0).normal(size=7), (200, 1)), np.arange(200) % 7   # the same of every image
    table = score_intervals(z, y, EMOTIONS, 50).set_index("metric")
    assert table.low[["loss", "brier", "ece"]].isna().all()
    assert not np.isclose(table.low, table.high, rtol=1e-9, atol=1e-12).any()


@pytest.mark.parametrize(("how", "match"), [
    ({"temperature": -1}, "temperature=-1"), ({"temperature": 0}, "temperature=0"), ({"temperature": np.nan}, "temperature=nan"),
    ({"temperature": "2"}, "temperature='2'"), ({"leaked": ["a"]}, "leaked"), ({"leaked": np.zeros(5, bool)}, r"bool \(20,\)")])
def test_what_a_headline_cannot_use_is_refused(how, match):
    with pytest.raises(ConfigError, match=match):
        headline(np.random.default_rng(0).normal(size=(20, 7)), np.arange(20) % 7, EMOTIONS, times=5, **how)


def test_what_cannot_be_drawn_or_read_is_refused():
    with pytest.raises(ConfigError, match="no images"):
        bootstrap_scores(np.zeros((0, 7)), np.zeros(0, int), 5)
    with pytest.raises(ConfigError, match=r"strata \(3,\) for 2 images"):
        mean_intervals({"a": np.array([0, 1.0])}, np.zeros(3))
    p = np.random.default_rng(3).dirichlet(np.ones(7), 5).astype(np.float16)
    with pytest.raises(ConfigError, match="probabilities"):
        ece(p, np.arange(5))
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 7)), columns=EMOTIONS[::-1])
    with pytest.raises(LabelError, match="in this order"):
        scores(table, np.arange(9) % 7, EMOTIONS)
    assert len(scores(table[[*EMOTIONS]], np.arange(9) % 7, EMOTIONS))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_votes_in_8_bits_are_the_votes(dtype):
    z, y, _ = voted(60, 0)
    votes = np.random.default_rng(1).multinomial(120, [.6, .2, .05, .05, .03, .02, .02, .01, .01, .01], size=60)
    one, other = (headline(z, y, EMOTIONS, votes=v, times=5) for v in (votes, votes.astype(dtype)))
    pd.testing.assert_frame_equal(one, other)


EIGHT = {"scores": scores, "score_intervals": lambda z, y, k: score_intervals(z, y, k, 20), "bootstrap": lambda z, y, k: bootstrap_scores(z, y, 20),
         "reliability": lambda z, y, k: reliability(z, y), "ece": lambda z, y, k: ece(z, y), "temperature": lambda z, y, k: fit_temperature(z, y),
         "paired": lambda z, y, k: paired_bootstrap(z, z + 1, y, k, times=20), "headline": lambda z, y, k: headline(z, y, k, times=20)}


@pytest.mark.parametrize("name", EIGHT)
def test_tensors_are_taken_and_text_is_named(name):
    z, y, _ = voted(40, 3)
    t = torch.tensor(z, requires_grad=True)
    half = t.bfloat16()
    for tensor, array, targets in ((t, z, y), (half, half.detach().double().numpy(), torch.tensor(y))):
        one, other = (pd.DataFrame(np.atleast_1d(EIGHT[name](x, targets, EMOTIONS))) for x in (tensor, array))
        pd.testing.assert_frame_equal(one, other)
    for text in (np.array(EMOTIONS)[y], [EMOTIONS[k] for k in y], np.array(EMOTIONS, object)[y]):
        with pytest.raises(LabelError, match=f"such as '{EMOTIONS[y[0]]}'; whole numbers from 0 to 6 expected"):
            EIGHT[name](z, text, EMOTIONS)


def test_what_is_no_share_has_no_interval():
    for value in (71.2, -.1, [.5, 1.2]):
        with pytest.raises(ConfigError, match="a share of .*from 0 to 1 expected"):
            share_interval(value, 3589)
    low, high = share_interval([1 + 1e-12, -1e-12, np.nan], 10)
    assert np.isfinite(low[:2]).all() and np.isnan(high[2])
    with pytest.raises(ConfigError, match="no values"):
        mean_intervals({}, np.empty(0))
    with pytest.raises(ConfigError, match="strata of several types"):
        mean_intervals({"a": np.ones(3)}, np.array(["x", "y", None], object))


def test_equal_confidences_share_a_bin_whatever_their_order():
    conf = np.full(1000, 0.6)
    z, y = np.log(np.stack([conf, 1 - conf], 1)), np.repeat([0, 1], [600, 400])
    rng = np.random.default_rng(0)
    for order in (np.arange(1000), rng.permutation(1000)):
        assert ece(z[order], y[order], adaptive=True) == pytest.approx(0, abs=1e-9)
    conf = rng.choice([.55, .6, .7, .8, .9], 900)
    z, y = np.log(np.stack([conf, 1 - conf], 1)), (rng.random(900) > conf).astype(int)
    swapped = z.copy()
    swapped[::2], flipped = z[::2, ::-1], y.copy()   # the other class, as sure, as right
    flipped[::2] = 1 - y[::2]
    by_label = np.argsort(y, kind="stable")
    found = [ece(*data, adaptive=True) for data in ((z, y), (z[by_label], y[by_label]), (swapped, flipped))]
    assert found == pytest.approx([found[0]] * 3, abs=1e-12) and found[0] < 0.05
    table = reliability(z, y, 15, adaptive=True)
    assert len(table) == 15 and table.n.sum() == 900 and (table.n > 0).sum() == 5


def test_what_is_of_pandas_goes_together_by_its_index():
    z, y, labels = draw(40, 0, 3)
    z[:20] += 3 * np.eye(3)[y[:20]]
    names = [f"i{k}" for k in range(40)]
    table, targets = pd.DataFrame(z, names, labels), pd.Series(y, names)
    expected = scores(z, y, labels)
    pd.testing.assert_frame_equal(scores(table.sample(frac=1, random_state=1), targets, labels), expected)
    mixed = scores(table, targets.sample(frac=1, random_state=1), labels)
    np.testing.assert_allclose(mixed.value, expected.value)
    with pytest.raises(ConfigError, match="logits with the index"):
        scores(table.rename(lambda i: f"x{i}"), targets, labels)
    other = pd.DataFrame(z + np.random.default_rng(2).normal(size=z.shape), names, labels)
    assert paired_bootstrap(table, other.sample(frac=1, random_state=2), targets, labels, times=50) == \
        paired_bootstrap(z, other.to_numpy(), y, labels, times=50)


def test_the_headline_goes_by_the_index_of_what_is_leaked():
    z, y, labels = draw(60, 0, 3)
    leak = pd.Series(np.arange(60) < 20)
    expected = headline(z, y, labels, mirror=z + 1, leaked=leak.to_numpy(), times=20)
    names = [f"i{k}" for k in range(60)]
    pd.testing.assert_frame_equal(headline(z, y, labels, z + 1, leak.sample(frac=1, random_state=0), times=20), expected)
    named = leak.set_axis(names).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(headline(z, pd.Series(y, names), labels, z + 1, named, times=20), expected)
    mirror = pd.DataFrame(z + 1, names).sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(headline(pd.DataFrame(z, names), y, labels, mirror, named, times=20), expected)
    with pytest.raises(ConfigError, match="leaked with the index"):
        headline(z, y, labels, leaked=named, times=20)
    for first in (0, 20, 60, 1000):   # rows cut from a longer table, beside arrays: in their order, wherever they stood
        rows = leak.set_axis(range(first, first + 60))
        pd.testing.assert_frame_equal(headline(z, y, labels, z + 1, rows, times=20), expected)
    with pytest.raises(ConfigError, match="leaked with the index"):   # of other rows than the labels are
        headline(z, pd.Series(y, range(20, 80)), labels, leaked=leak.set_axis(range(40, 100)), times=20)


def test_voters_and_labels_go_together_by_their_index():
    rng, ids = np.random.default_rng(0), [f"i{k}" for k in range(40)]
    votes, y, answers = rng.integers(0, 4, (40, 10)), rng.integers(0, 7, 40), rng.integers(0, 7, 40)
    expected = agreement(votes, answers, y, EMOTIONS)
    shuffled = pd.DataFrame(votes, ids).sample(frac=1, random_state=0)
    for name, values in agreement(shuffled, answers, pd.Series(y, ids), EMOTIONS).items():
        np.testing.assert_array_equal(values, expected[name])
    turned = pd.Series(answers, ids)[::-1]
    for name, values in agreement(shuffled, turned, pd.Series(y, ids), EMOTIONS).items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize(("odd", "said"), [(-1, "answers: int64 .4,. from -1 to 3; 4 whole numbers from 0 to 6"), (7, "from 0 to 7"), (.5, "float64")])
def test_an_answer_that_is_no_position_is_not_taken_for_the_last_label(odd, said):
    with pytest.raises(ConfigError, match=said):
        agreement(np.ones((4, 10)), np.array([0, odd, 1, 3]), np.zeros(4, int), EMOTIONS)
    assert not agreement(np.ones((0, 10)), np.zeros(0), np.zeros(0, int), EMOTIONS)["label"].size

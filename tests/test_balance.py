"""The exported balancing: targets, who is copied, that copies stay tied to their source, and refusals."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from fer_nb.augment import Augment
from fer_nb.balance import PAPER_TARGETS, balance, target_counts
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, ImageError
from fer_nb.data import FER2013_COUNTS, FERData
from fer_nb.loaders import folds, leak_groups

STILL = Augment(hflip=0, rotate=0, translate=0, scale=(1, 1))
COUNTS = st.dictionaries(st.sampled_from(EMOTIONS), st.integers(0, 9), min_size=1).filter(lambda c: any(c.values()))


def dataset(labels, seed=0, shape=(16, 16), **columns):
    rng = np.random.default_rng(seed)
    ids = [f"im{k}" for k in range(len(labels))]
    df = pd.DataFrame({"id": ids, "label": list(labels), "split": "train", **columns})
    return FERData(df, rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), name="toy")


def of(counts, **kwargs):
    return dataset([label for label, n in counts.items() for _ in range(n)], **kwargs)


# ---- targets ----

@given(COUNTS, st.one_of(st.sampled_from(["max", "median"]), st.integers(1, 30)))
def test_nobody_loses_and_nobody_appears(counts, targets):
    wanted = target_counts(counts, targets)
    present = [n for n in counts.values() if n]
    goal = {"max": max(present), "median": int(np.median(present))}.get(targets, targets)
    assert wanted == {label: max(n, goal) if n else 0 for label, n in counts.items()}


def test_the_papers_targets_fit_the_published_counts():
    counts = dict(zip(EMOTIONS, FER2013_COUNTS["train"]))
    wanted = target_counts(counts, "paper")
    assert wanted == {**PAPER_TARGETS, "happy": 7215} and set(wanted) == set(EMOTIONS)


@pytest.mark.parametrize("targets", [0, -3, True, 2.5, None, "MAX", [3], {"sad": "5"}, {"sad": -1}, {"fear": 1},
                                     {"sad": 3.5}])
def test_targets_that_make_no_sense_are_refused(targets):
    with pytest.raises(ConfigError, match="targets"):
        target_counts({"happy": 4, "sad": 2, "fear": 0}, targets)


# ---- copies ----

@settings(max_examples=25, deadline=None)
@given(COUNTS, st.one_of(st.sampled_from(["max", "median"]), st.integers(1, 12)), st.booleans(), st.integers(0, 5))
def test_the_counts_are_met_and_every_copy_knows_its_source(counts, targets, colour, seed):
    ds = of(counts, shape=(8, 8, 3) if colour else (8, 8))
    even = balance(ds, targets, seed=seed)
    present = {label: counts.get(label, 0) for label in EMOTIONS}
    assert even.counts()["train"].to_dict() == target_counts(present, targets)
    assert even.array().shape[1:] == ds.array().shape[1:] and even.array().dtype == np.uint8
    assert even.df.id.is_unique and set(even.df.split) == {"train"} and even.labels == ds.labels
    original = ds.df.set_index("id")
    assert (original.label[even.df.source].to_numpy() == even.df.label.to_numpy()).all()
    assert (even.df.id[:len(ds)] == even.df.source[:len(ds)]).all() and (even.array()[:len(ds)] == ds.array()).all()
    assert "source" not in ds.df, "the given dataset changed"


def test_copies_show_their_source():
    even = balance(of({"happy": 30, "sad": 7, "fear": 1}), "max", STILL)
    row = dict(zip(even.df.id, range(len(even))))
    for k, source in enumerate(even.df.source):
        assert (even.image(k) == even.image(row[source])).all()


def test_an_image_has_another_view_in_every_copy():
    even = balance(of({"happy": 12, "sad": 1}), "max")
    views = even.where(label="sad").array()
    assert len({view.tobytes() for view in views}) == 12


@pytest.mark.parametrize("n", [511, 512, 513, 1200])
def test_large_balances_do_not_depend_on_their_batches(n):
    ds = dataset(["happy"] * n + ["sad"], shape=(4, 4))
    even = balance(ds, 2 * n, seed=3)                                 # more copies in one turn than a batch holds
    small = balance(ds.take([0, 1, n - 1]), {"happy": 6}, seed=3)
    happy = even.where(label="happy").array()
    assert (happy[n:n + 2] == small.where(label="happy").array()[3:5]).all()


def test_columns_travel_with_the_copies():
    ds = dataset(["happy", "happy", "happy", "sad"], subject=["a", "a", "b", "c"], group=[0, 1, 2, 3])
    even = balance(ds, "max")
    copies = even.df[even.df.id != even.df.source]
    assert set(copies.subject) == {"c"} and set(copies.group) == {3} and len(copies) == 2


def test_a_single_class_needs_no_copies_but_can_have_them():
    ds = dataset(["happy"] * 3)
    assert len(balance(ds)) == 3 and balance(ds).df.source.tolist() == ds.df.id.tolist()
    assert len(balance(ds, 7)) == 7


def test_colour_keeps_its_channels_in_place():
    pure = np.zeros((4, 16, 16, 3), np.uint8)
    pure[..., 1] = 200
    ds = FERData(dataset(["happy"] * 3 + ["sad"]).df, pure)
    copies = balance(ds, "max", Augment(rotate=30)).array()[4:]
    assert (copies[..., 0] == 0).all() and (copies[..., 2] == 0).all() and (copies[..., 1] > 198).all()


def test_a_copy_is_the_augmentation_of_its_source_and_of_nothing_else():
    ds = dataset(["happy"] * 9 + ["sad"] * 2)
    changed = FERData(ds.df, np.where(np.arange(11)[:, None, None] == 9, ds.array(), 255 - ds.array()))
    one, two = (balance(d, "max", seed=4) for d in (ds, changed))
    same = (one.array() == two.array()).all((1, 2))
    assert same.tolist() == (one.df.source == "im9").tolist()


# ---- leakage ----

@settings(max_examples=15, deadline=None)
@given(st.integers(3, 8), st.integers(3, 8), st.integers(0, 9))
def test_no_source_straddles_folds(happy, sad, seed):
    even = balance(of({"happy": happy, "sad": sad}, shape=(4, 4)), 20, seed=seed)
    source = even.df.source.to_numpy()
    for train, test in folds(even, 3, seed):
        assert not set(source[train]) & set(source[test])


@pytest.mark.parametrize("second", ["max", 12])
def test_balancing_twice_never_loses_the_first_source(second):
    ds = of({"happy": 8, "sad": 2})
    once = balance(ds, "max")
    try:
        twice = balance(once, second)
    except FERError:
        return                                                        # a plain refusal is as good
    assert set(twice.df.source) <= set(ds.df.id)
    groups = pd.Series(leak_groups(twice))
    assert (groups.groupby(twice.df.source).nunique() == 1).all()
    assert groups.nunique() == len(ds)


# ---- refusals ----

@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("targets", ["max", 1])
def test_one_evaluation_image_is_one_too_many(split, targets):
    ds = dataset(["happy", "happy", "sad"])
    mixed = FERData(ds.df.assign(split=["train", "train", split]), ds.array())
    with pytest.raises(DataError, match=split):
        balance(mixed, targets)


def test_images_of_several_sizes_are_refused(tmp_path):
    from PIL import Image
    for k in range(2):
        Image.new("L", (20 + k, 20)).save(tmp_path / f"{k}.png")
    ds = FERData(dataset(["happy", "sad"]).df, [tmp_path / "0.png", tmp_path / "1.png"])
    with pytest.raises(ImageError, match="1.png"):
        balance(ds, 3)


def test_an_empty_dataset_is_refused_or_stays_empty():
    try:
        assert len(balance(dataset(["happy"]).take([]))) == 0
    except FERError as e:
        assert str(e)

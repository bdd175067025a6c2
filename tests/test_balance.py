"""The exported balancing: targets, who is copied, that copies stay tied to their source, and refusals."""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fer_nb.augment import Augment
from fer_nb.balance import PAPER_TARGETS, ClassAugment, balance, minority_classes, target_counts
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, ImageError
from fer_nb.data import FER2013_COUNTS, FERData
from fer_nb.loaders import ReplayLoader, as_split, dataloaders, folds, leak_groups, leakage_table, official_split
from fer_nb.teachers import teacher_logits

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
    assert wanted == {**PAPER_TARGETS["fer2013"], "happy": 7215} and set(wanted) == set(EMOTIONS)


def test_the_papers_targets_follow_the_name_of_the_dataset():
    kdef = balance(FERData(of(dict.fromkeys(EMOTIONS, 2), shape=(2, 2)).df, np.zeros((14, 2, 2), np.uint8), name="KDEF"), "paper")
    assert kdef.counts()["train"].to_dict() == {**PAPER_TARGETS["kdef"], "sad": 2}


@pytest.mark.parametrize("targets", [0, -3, True, 2.5, None, "MAX", [3], {"sad": "5"}, {"sad": -1}, {"fear": 1},
                                     {"sad": 3.5}, {"sad": True}])
def test_targets_that_make_no_sense_are_refused(targets):
    with pytest.raises(ConfigError, match="targets"):
        target_counts({"happy": 4, "sad": 2, "fear": 0}, targets)


# ---- copies ----

@settings(max_examples=15, deadline=None)
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


# ---- roles ----

@given(COUNTS)
def test_minorities_are_rarer_than_the_median_of_what_there_is(counts):
    minor = minority_classes(counts)
    present = sorted(n for n in counts.values() if n)
    assert all((label in minor) == (0 < n < np.median(present)) for label, n in counts.items())
    assert len(minor) <= len(present) / 2


def test_colour_and_texture_are_for_minorities_alone():
    flat = FERData(of({"happy": 5, "sad": 4, "disgust": 2}, shape=(8, 8)).df, np.full((11, 8, 8), 100, np.uint8))
    even = balance(flat, 9)                                           # geometry leaves a flat image as it is
    copies = (even.df.id != even.df.source).to_numpy()
    changed = (even.array() != 100).any((1, 2))
    minor = (even.df.label == "disgust").to_numpy()
    assert (changed[copies & minor]).all() and not changed[~minor].any() and not changed[~copies].any()
    assert ((even.df.role == "minority") == minor).all()
    named = balance(flat, 9, minority=["happy"])
    assert set(named.df.label[(named.array() != 100).any((1, 2))]) == {"happy"}
    assert (balance(flat, 9, STILL).array() == 100).all()


def test_a_role_is_that_of_the_originals():
    ds = of({"happy": 6, "sad": 4, "disgust": 2})
    twice = balance(balance(ds, "max"), 9)
    assert set(twice.df.label[twice.df.role == "minority"]) == {"disgust"}


def test_two_augmentations_in_one_batch_do_not_disturb_each_other():
    bright, minor = Augment(brightness=0.5, noise=0.1), (0, 2)
    x, ids, view = torch.rand(5, 3, 6, 6), np.array([0, 1, 2, 7, -1]), np.array([0, 1, 2, 3, 4])
    y = ClassAugment(STILL, bright, minor)(x, ids, view, 3)
    own = (bright, STILL, bright, STILL, STILL)                       # keys without a role are not of a minority
    for k in range(5):
        torch.testing.assert_close(y[k:k + 1], own[k](x[k:k + 1], ids[k:k + 1], view[k], 3), atol=1e-6, rtol=0)


# ---- leakage ----

@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, ""], ids=["None", "nan", "NA", "empty"])
def test_an_image_without_a_source_is_its_own(missing):
    ds = of({"happy": 9, "sad": 3}, shape=(4, 4))
    unsaid = FERData(ds.df.assign(source=pd.Series([missing] * len(ds), dtype=object)), ds.array())
    assert balance(unsaid).fingerprint() == balance(ds).fingerprint()
    assert balance(unsaid).df.source.tolist() == balance(ds).df.source.tolist()
    even = balance(ds)                                                # only the copies say where they come from
    own = even.df.source.to_numpy(object)
    half = FERData(even.df.assign(source=np.where(own == even.df.id, missing, own)), even.array())
    assert balance(half, 20).df.source.tolist() == balance(even, 20).df.source.tolist()
    for train, test in folds(half, 3):
        assert not set(own[train]) & set(own[test])
        assert set(as_split(half, (train, test)).where(split="test").df.id) == set(own[test])



@settings(max_examples=15, deadline=None)
@given(st.integers(3, 8), st.integers(3, 8), st.integers(0, 9))
def test_no_source_straddles_folds(happy, sad, seed):
    even = balance(of({"happy": happy, "sad": sad}, shape=(4, 4)), 20, seed=seed)
    source = even.df.source.to_numpy()
    for train, test in folds(even, 3, seed):
        assert not set(source[train]) & set(source[test])


@st.composite
def tied(draw):
    "Images of two classes with duplicate groups and subjects, some of them missing, all in one split or in official ones."
    n = draw(st.integers(12, 30))
    def column(top):
        return draw(st.lists(st.one_of(st.none(), st.integers(0, top).map("v{}".format)), min_size=n, max_size=n))
    split = draw(st.sampled_from([["train"], ["train", "valid", "test"]]))
    return dataset(["happy" if k % 3 else "sad" for k in range(n)], shape=(4, 4), group=column(3 * n), subject=column(3 * n),
                   split=[split[k % len(split)] for k in range(n)])


@settings(max_examples=12, deadline=None)
@given(tied(), st.integers(0, 3), st.sampled_from(["max", 25]))
def test_split_first_nothing_straddles_and_nothing_but_training_is_copied(ds, seed, targets):
    try:
        parts = folds(ds, 3, seed)
    except DataError:
        return                                                        # tied too tightly: said, not leaked
    assert (leakage_table(ds, parts).leaked.dropna() == 0).all()
    for fold in parts:
        part = as_split(ds, fold)
        with pytest.raises(DataError, match="only training images"):
            balance(part, targets)
        even = balance(part.where(split="train"), targets)
        test = part.where(split="test")
        assert set(even.df.source) == set(ds.df.id.iloc[fold[0]]) and set(test.df.id) == set(ds.df.id.iloc[fold[1]])
        for column in ("group", "subject"):
            assert not set(even.df[column].dropna()) & set(test.df[column].dropna())


@settings(max_examples=12, deadline=None)
@given(tied(), st.integers(0, 3), st.sampled_from(["honest", "paper"]))
def test_balanced_first_copies_stay_on_the_side_of_their_source(ds, seed, protocol):
    even = balance(FERData(ds.df.assign(split="train"), ds.array()), 25, seed=seed)
    if protocol == "paper":
        with pytest.warns(UserWarning, match="source: "):
            parts = folds(even, 3, seed, protocol="paper")
        with pytest.raises(DataError, match="or a copy of it"):
            as_split(even, parts[0])
        return
    try:
        parts = folds(even, 3, seed)
    except DataError:
        return
    for fold in parts:
        part = as_split(even, fold)
        train, test = (part.where(split=side).df for side in ("train", "test"))
        assert not set(train.source) & set(test.source) and (test.id == test.source).all()
        assert set(test.id) == set(even.df.source.iloc[fold[1]])


def test_official_evaluation_images_are_never_balanced():
    ds = dataset(["happy", "sad"] * 6, split=["train", "train", "valid", "valid", "test", "test"] * 2)
    part = as_split(ds, official_split(ds)[0])
    assert set(balance(part.where(split="train"), 9).df.source) == set(ds.df.id[ds.df.split == "train"])


@settings(max_examples=10, deadline=None)
@given(COUNTS, st.integers(1, 9), st.integers(10, 14))
def test_balancing_in_two_steps_makes_the_copies_of_one(counts, first, second):
    def pixels(ds):
        return dict(zip(ds.df.id, (im.tobytes() for im in ds.array())))
    ds = of(counts, shape=(4, 4))
    minority = minority_classes(counts)
    assert pixels(balance(balance(ds, first), second)) == pixels(balance(ds, second, minority=minority))


def test_a_copy_whose_original_is_gone_can_still_be_copied():
    even = balance(of({"happy": 6, "sad": 2}), "max")
    orphans = even.take((even.df.id != "im6").to_numpy())
    more = balance(orphans, 12)
    assert more.df.id.is_unique and set(more.df.source) == set(even.df.source) and set(more.counts()["train"]) == {0, 12}


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


# ---- repeats within an epoch ----

def test_the_repeats_of_an_epoch_differ_and_can_be_replayed():
    ds = of({"happy": 12, "sad": 5, "disgust": 1}, shape=(8, 8))
    rows = np.r_[np.arange(18), np.full(6, 17)]                       # the one image of disgust seven times
    augment = ClassAugment(Augment(), Augment(brightness=0.1), tuple(np.flatnonzero(rows == 17)))
    loader = ReplayLoader(ds, 6, True, augment, seed=2, rows=rows)
    batches = [(rows[loader.ids], x, y) for x, y in loader]
    source, x, y = np.concatenate([s for s, _, _ in batches]), *(torch.cat([b[k] for b in batches]) for k in (1, 2))
    assert (np.bincount(source) == [1] * 17 + [7]).all() and (ds.targets()[source] == y.numpy()).all()
    assert len({im.numpy().tobytes() for im in x[source == 17]}) == 7
    assert not torch.equal(x, torch.cat([x for x, _ in loader]))      # new views in the next epoch
    loader.epoch = 0
    assert torch.equal(x, torch.cat([x for x, _ in loader]))          # and the old ones on request
    assert len(loader.new(shuffle=False)) == 3                                     # predictions are for the 18 images, once each


def test_cached_logits_are_those_of_the_images_that_the_student_sees():
    ds = of({"happy": 6, "sad": 2}, shape=(8, 8))
    rows = np.r_[np.arange(8), 6, 7, 6, 7]
    augment = ClassAugment(Augment(), Augment(brightness=0.4, noise=0.1), tuple(np.flatnonzero(rows > 5)))
    dls = dataloaders(ds, ds.assign(id="v" + ds.df.id), 4, augment, views=2, device="cpu", rows=rows)

    class Mean(torch.nn.Module):
        labels = ds.labels

        def forward(self, x):
            return x.mean((1, 2, 3))[:, None].expand(-1, 7)

    cached = teacher_logits(Mean(), dls.train, dls.valid)
    assert cached.train.shape == (2, 12, 7) and cached.valid.shape == (2, 8, 7)
    for _ in range(2):
        for x, _ in dls.train:
            logits = cached.train[dls.train.view][dls.train.ids][:, 0]
            np.testing.assert_allclose(x.mean((1, 2, 3)), logits, atol=1e-3)


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


@pytest.mark.parametrize("labels", [["happy"] * 7 + ["sad"] * 3, ["happy", "sad"]])
def test_a_source_of_two_labels_is_refused_and_named(labels):
    "Copies carry the label of their source; of two labels one class would never reach its target."
    ds = dataset(labels, source=[f"q{k % 4}" for k in range(len(labels) - 1)] + ["q0"])
    with pytest.raises(DataError, match="toy: images of source 'q[0-3]' have the labels 'happy', 'sad'"):
        balance(ds, "max")

"""The exported folds and loaders: nothing that belongs together is parted, and every epoch can be replayed."""
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

import fer_nb.audit
import fer_nb.loaders
from fer_nb.audit import audit
from fer_nb.augment import Augment
from fer_nb.balance import balance
from fer_nb.config import Data
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError
from fer_nb.data import FERData, read_fer2013, resized
from fer_nb.duplicates import DuplicateSearch
from fer_nb.loaders import (_GroupFolds, _of_size, Originals, ReplayLoader, as_split, balanced, clean_test, dataloaders, folds, holdout, is_audited, leak_groups,
                            leakage_table, listed_holdout, make_splits, official_split)
from fer_nb.studies import grouped, protocol_parts
from fer_nb.synth import fer2013_folder, make_faces

MISSING = [None, np.nan, pd.NA, pd.NaT, ""]


def dataset(n, labels=None, seed=0, shape=(8, 8), prefix="im", **columns):
    rng = np.random.default_rng(seed)
    labels = labels if labels is not None else [EMOTIONS[k % 2] for k in range(n)]
    df = pd.DataFrame({"id": [f"{prefix}{k}" for k in range(n)], "label": labels, "split": "train", **columns})
    return FERData(df, rng.integers(0, 256, (n, *shape), dtype=np.uint8))


def components(columns, n):
    "Connected components by plain flooding."
    group = list(range(n))
    changed = True
    while changed:
        changed = False
        for values in columns:
            for i in range(n):
                for j in range(n):
                    if values[i] is not None and values[i] == values[j] and group[i] != group[j]:
                        group[i] = group[j] = min(group[i], group[j])
                        changed = True
    return np.array(group)


# ---- groups ----

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.lists(
    st.lists(st.one_of(st.none(), st.integers(0, 6)), min_size=n, max_size=n), min_size=0, max_size=3)))
def test_groups_agree_with_plain_flooding(columns):
    n = len(columns[0]) if columns else 4
    named = dict(zip(("group", "source", "subject"), ([None if v is None else f"v{v}" for v in c] for c in columns)))
    found, slow = leak_groups(dataset(n, **named)), components(columns, n)
    assert ((found[:, None] == found[None]) == (slow[:, None] == slow[None])).all()


@pytest.mark.parametrize("missing", MISSING, ids=["None", "nan", "NA", "NaT", "empty"])
@pytest.mark.parametrize("column", ["group", "source", "subject"])
def test_missing_values_tie_nothing(missing, column):
    values = pd.Series([missing, missing, "a", missing, "a"], dtype=object)
    found = leak_groups(dataset(5, **{column: values}))
    assert len(set(found)) == 4 and found[2] == found[4]


@pytest.mark.parametrize("values", [pd.array([1, None, None, 1], dtype="Int64"), pd.Categorical(["x", None, None, "x"]),
                                    pd.array(["x", None, None, "x"], dtype="string"),
                                    np.array([1., np.nan, np.nan, 1.])])
def test_every_kind_of_column_is_understood(values):
    found = leak_groups(dataset(4, group=values))
    assert found[0] == found[3] and len(set(found)) == 3


@pytest.mark.parametrize("kind", ["object", "category", "str"])
@pytest.mark.parametrize("missing", [None, ""])
def test_a_copy_belongs_to_an_original_that_names_no_source(kind, missing):
    found = leak_groups(dataset(4, source=pd.Series([missing, missing, "im0", missing], dtype=object).astype(kind)))
    assert found[0] == found[2] and len(set(found)) == 3


def test_synthetic_images_without_a_face_have_no_subject_in_common():
    ds, truth = make_faces(120, seed=0, defects={"no_face": .1, "blank": .1}, balance="uniform")
    faceless = ds.df.id.isin(truth.id[truth.kind == "no_face"]).to_numpy()
    assert faceless.sum() == 24 and len(set(leak_groups(ds)[faceless])) == 24


def test_other_columns_on_request():
    ds = dataset(4, video=["a", "a", "b", None], group=[0, 1, 1, 2])
    assert len(set(leak_groups(ds))) == 3
    assert len(set(leak_groups(ds, ("video",)))) == 3 and len(set(leak_groups(ds, ("video", "group")))) == 2
    assert len(set(leak_groups(ds, ()))) == 4


def test_identical_images_are_tied_whatever_an_audit_has_said():
    ds = dataset(6)
    images = ds.array().copy()
    images[4] = images[1]
    same_pixels = FERData(ds.df, images)
    found = leak_groups(same_pixels)
    assert found[4] == found[1] and len(set(found)) == 5
    clips = FERData(ds.df.assign(group=range(6)), images)
    assert leak_groups(clips)[4] == leak_groups(clips)[1] and len(set(leak_groups(clips))) == 5      # clips, which no audit has named
    assert len(set(leak_groups(clips.assign(photo=range(6))))) == 5                       # two audits may be joined
    assert len(set(leak_groups(same_pixels, identical=False))) == 6
    partly = leak_groups(FERData(ds.df.assign(photo=[0, 1, 2, 3, None, 5]), images))      # two datasets, one of them audited
    assert partly[4] == partly[1] and len(set(partly)) == 5
    for train, test in folds(FERData(ds.df.assign(label="happy"), images), 2):
        assert not {1, 4} & set(test) or {1, 4} <= set(test)


def test_the_groups_of_the_data_are_no_audit():
    faces = make_faces(60, seed=1, defects=None, balance="uniform")[0]
    again = faces.df.assign(id=faces.df.id + "-again")
    df = pd.concat([faces.df, again], ignore_index=True)[["id", "label"]].assign(split="train", group=[f"clip{k}" for k in range(120)])
    ds = FERData(df, np.concatenate([faces.array()] * 2), faces.labels, "twice")
    held = holdout(ds, 0.2)
    for parts in (folds(ds, 3), [held]):
        assert leakage_table(ds, parts).query("what == 'pixels'").leaked.sum() == 0
    halves = ds.assign(split=["train"] * 60 + ["test"] * 60)
    with pytest.raises(DataError, match="none of 60 others"):
        clean_test(halves)
    mirrored = FERData(df, np.concatenate([faces.array(), faces.array()[..., ::-1]]), faces.labels, "twice")
    with pytest.warns(UserWarning, match="pairs of duplicates are in training and in test"):
        folds(mirrored, 3)
    assert "photo" in grouped(ds).df and not is_audited(ds)
    train, test = protocol_parts(grouped(ds), "honest")
    assert not {im.tobytes() for im in train.array()} & {im.tobytes() for im in test.array()}


def test_an_audits_photos_stay_together_under_groups_of_ones_own():
    "Films written over the audit's groups say nothing of copies; what the audit found still counts."
    ds = dataset(60, photo=np.arange(60) // 4, group=[f"film {k}" for k in range(60)])
    whole = ds.assign(group=np.arange(60) // 12)
    assert not is_audited(ds) and is_audited(whole)
    for parts in (folds(ds, 5), [holdout(ds, 0.2)]):
        assert all(not {*ds.df.photo[train]} & {*ds.df.photo[test]} for train, test in parts)
    apart = [(np.arange(0, 60, 2), np.arange(1, 60, 2))]
    told = leakage_table(ds, apart).set_index("what").leaked
    assert told["photo"] == 15 and told["group"] == 0 and "photo" not in {*leakage_table(whole, apart).what}


# ---- folds ----

@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.lists(st.tuples(st.integers(0, 14), st.integers(0, 1)), min_size=8, max_size=40),
       st.integers(0, 5))
def test_groups_never_straddle_folds(k, rows, seed):
    group, label = np.array(rows).T
    ds = dataset(len(rows), [EMOTIONS[e] for e in label], group=group)
    enough = all(len(set(group[label == e])) >= k for e in set(label))
    if not enough:
        with pytest.raises(DataError, match=f"fewer than {k} folds"):
            folds(ds, k, seed)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            parts = folds(ds, k, seed)
        except DataError as e:                                        # the groups of a class hang together with others
            assert "take fewer folds" in str(e)
            return
    assert len(parts) == k and sorted(np.concatenate([test for _, test in parts])) == list(range(len(rows)))
    for train, test in parts:
        assert len(test) and sorted([*train, *test]) == list(range(len(rows)))
        assert not set(group[train]) & set(group[test])
        assert set(label[test]) == set(label[train]) == set(label)


def test_duplicates_copies_and_subjects_stay_together_through_the_whole_chain():
    faces = make_faces(210, seed=1, balance="uniform", defects={"exact": .06, "mirror": .04, "multilabel": .03})[0]
    train = faces.where(split="train")
    ds = balance(audit(train).clean(splits=()), "max")                # nothing dropped: every duplicate is still there
    found = leak_groups(ds)
    for column in ("group", "source", "subject"):
        assert (pd.Series(found).groupby(ds.df[column].to_numpy()).nunique() == 1).all(), column
    for fit, held in [*folds(ds, 3), holdout(ds, 0.2)]:
        for column in ("group", "source", "subject"):
            assert not set(ds.df[column].iloc[fit]) & set(ds.df[column].iloc[held]), column


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=4, deadline=None)
def test_folds_replay_and_another_seed_gives_others(seed):
    ds = dataset(60)
    one, two = folds(ds, 3, seed), folds(ds, 3, seed)
    assert all((a == b).all() for p, q in zip(one, two) for a, b in zip(p, q))
    assert any(set(a[1]) != set(b[1]) for a, b in zip(one, folds(ds, 3, (seed + 1) % 2**32)))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 8), st.integers(20, 90), st.integers(0, 99))
def test_the_folds_are_scikit_learns(k, classes, n, seed):
    rng = np.random.default_rng(seed)
    labels, groups = np.array(EMOTIONS + ("contempt",))[rng.integers(0, classes, n)], rng.integers(0, n, n)
    def split(splitter):
        try:
            return [test.tolist() for _, test in splitter(k, shuffle=True, random_state=seed).split(labels, labels, groups)]
        except ValueError as e:
            return str(e)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)                  # a class with fewer images than folds
        assert split(_GroupFolds) == split(StratifiedGroupKFold)


def test_scikit_learn_still_asks_for_the_best_fold_where_we_answer():
    asked = []
    class Asked(_GroupFolds):
        def _find_best_fold(self, **kwargs):
            asked.append(super()._find_best_fold(**kwargs))
            return asked[-1]
    list(Asked(2).split(np.zeros(6), [0, 1] * 3, range(6)))
    assert len(asked) == 6


def test_folds_are_stratified():
    ds = dataset(300, ["happy"] * 240 + ["disgust"] * 60)
    for _, test in folds(ds, 5):
        assert (ds.df.label.iloc[test] == "disgust").sum() == 12


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 3), st.sampled_from(["honest", "subject", "paper"]))
def test_folds_are_those_of_the_images_whatever_their_order(random, seed, protocol):
    ds = dataset(40, [EMOTIONS[k % 3] for k in range(40)], subject=[f"s{k // 3}" for k in range(40)], group=[k % 37 for k in range(40)])
    order = random.sample(range(40), 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one, two = folds(ds, 3, seed, protocol=protocol), folds(ds.take(order), 3, seed, protocol=protocol)
    for (_, a), (_, b) in zip(one, two):
        assert set(a) == {order[k] for k in b}


def test_subject_folds_keep_duplicates_given_by_hand_together_too():
    ds = dataset(40, ["happy"] * 40, subject=[f"s{k // 2}" for k in range(40)])
    duplicates = np.arange(40)
    duplicates[[0, 39]] = 99
    for train, test in folds(ds, 4, groups=duplicates, protocol="subject"):
        assert not set(ds.df.subject.iloc[train]) & set(ds.df.subject.iloc[test])
        assert not {0, 1, 38, 39} & set(test) or {0, 1, 38, 39} <= set(test)


@pytest.mark.parametrize("missing", MISSING[:3] + [""], ids=["None", "nan", "NA", "empty"])
def test_subject_folds_need_a_subject_for_every_image(missing):
    with pytest.raises(DataError, match="FER2013, FER\\+, RAF-DB and AffectNet"):
        folds(dataset(20), 2, protocol="subject")
    subject = pd.Series([f"s{k}" for k in range(20)], dtype=object)
    subject[7] = missing
    with pytest.raises(DataError, match="1 of 20 images have no subject, among them 'im7'"):
        folds(dataset(20, subject=subject), 2, protocol="subject")


def test_the_papers_folds_warn_of_what_leaks_and_of_nothing_else():
    ds = dataset(60, group=[k // 2 for k in range(60)], subject=[f"s{k}" for k in range(60)])
    with pytest.warns(UserWarning, match="group: [1-9]") as caught:
        parts = folds(ds, 3, protocol="paper")
    assert "subject" not in str(caught[0].message) and "pixels" not in str(caught[0].message)
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(60))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds(dataset(60), 3, protocol="paper")
    with pytest.raises(ConfigError, match="protocol for groups='paper'"):
        folds(ds, 3, groups=np.arange(60), protocol="paper")


@pytest.mark.parametrize("protocol", ["honest", "subject", "paper"])
def test_a_class_that_cannot_be_in_every_fold_is_named(protocol):
    ds = dataset(22, ["happy"] * 20 + ["disgust"] * 2, subject=[f"s{k}" for k in range(22)])
    with pytest.raises(DataError, match="'disgust' has 2"):
        folds(ds, 3, protocol=protocol)


def test_classes_that_hang_together_are_refused_rather_than_left_out_of_a_fold():
    ds = dataset(8, ["happy", "sad", "fear", "happy"] + ["happy", "sad", "fear", "sad"], group=[0, 0, 1, 1, 2, 2, 3, 3])
    for seed in range(5):                                             # happy is in 0, 1, 2; sad in 0, 2, 3; fear in 1, 3
        try:
            for train, test in folds(ds, 2, seed):
                assert set(ds.df.label.iloc[train]) == set(ds.df.label.iloc[test]) == {"happy", "sad", "fear"}
        except DataError as e:
            assert "take fewer folds" in str(e)
    chain = dataset(6, ["happy", "sad"] * 2 + ["fear"] * 2, group=[0, 0, 1, 1, 0, 2])     # three groups: 1 has no fear
    with pytest.raises(DataError, match="no 3 folds|fewer than 3"):
        folds(chain, 3)


# ---- leakage ----

@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*3 * [st.one_of(st.none(), st.integers(0, 5))], st.booleans()), min_size=2, max_size=14))
def test_leakage_agrees_with_counting_by_hand(rows):
    *columns, side = zip(*rows)
    ds = dataset(len(rows), **{c: [None if v is None else f"im{v}" for v in values]
                               for c, values in zip(("source", "group", "subject"), columns)})
    train, test = (np.flatnonzero(np.array(side) == s) for s in (True, False))
    table = leakage_table(ds, [(train, test)]).set_index("what")
    ds.df["source"] = [i if pd.isna(v) else v for i, v in zip(ds.df.id, ds.df.source)]
    for what in ("id", "source", "group", "subject"):
        values = ds.df[what].astype(object)
        both = {v for v in values.iloc[train] if not pd.isna(v)} & set(values.iloc[test])
        assert table.leaked[what] == len(both) and table.test_images[what] == values.iloc[test].isin(both).sum()
    assert table.leaked["pixels"] == 0


def test_what_is_not_recorded_is_not_zero():
    table = leakage_table(dataset(4), [([0, 1], [2, 3]), ([2, 3], [0, 1])])
    unknown = table.set_index("what").leaked.isna()
    assert unknown[["source", "group", "subject"]].all() and not unknown[["id", "pixels"]].any()
    assert table.fold.tolist() == 5 * [0] + 5 * [1] and leakage_table(dataset(4), []).empty


@pytest.mark.parametrize("fold", [([0], [4]), ([-1], [2]), ([True, False, False, False], [1]), ([0.5], [2])])
@pytest.mark.parametrize("call", [lambda ds, f: leakage_table(ds, [f]), as_split])
def test_positions_that_are_not_there_are_refused(call, fold):
    with pytest.raises(DataError, match="4 images"):
        call(dataset(4), fold)


# ---- official splits ----

def official(duplicates=True):
    ds = dataset(12, split=["train"] * 6 + ["valid"] * 3 + ["test"] * 3)
    images = ds.array().copy()
    if duplicates:
        images[7], images[11] = images[2], images[8]                  # valid shows a training image, test a valid one
    return FERData(ds.df, images, name="official")


def test_the_official_split_is_one_fold():
    ds = official()
    (train, test), = official_split(ds)
    assert train.tolist() == list(range(6)) and test.tolist() == [9, 10, 11]
    (train, test), = official_split(ds, ["train", "valid"])
    assert train.tolist() == list(range(9)) and test.tolist() == [9, 10, 11]
    assert set(as_split(ds, official_split(ds)[0]).df.split) == {"train", "test"} and len(as_split(ds, official_split(ds)[0])) == 9


@pytest.mark.parametrize("sides", [{"test": "testing"}, {"train": ["train", "extra"]}])
def test_a_split_that_is_not_there_is_named(sides):
    with pytest.raises(DataError, match="testing|extra"):
        official_split(official(), **sides)


def test_the_clean_test_leaves_out_duplicates_of_what_was_trained_on_and_only_those():
    ds = official()
    assert clean_test(ds).df.id.tolist() == ["im6", "im8", "im9", "im10", "im11"]
    assert clean_test(ds, reference=["train", "valid"]).df.id.tolist() == ["im9", "im10"]
    assert len(clean_test(official(duplicates=False))) == 6
    assert clean_test(ds, np.r_[:11, 0]).df.id.tolist() == ["im6", "im7", "im8", "im9", "im10"]
    with pytest.raises(DataError, match="3 groups for 12"):
        clean_test(ds, np.arange(3))
    with pytest.raises(DataError, match="none of 6 others"):
        clean_test(ds, np.zeros(12))


def test_a_duplicate_of_a_duplicate_of_a_training_image_is_one():
    """a (train) ~ b (test) ~ c (test) are one photograph, whether a and c look alike enough or not."""
    from fer_nb import loaders
    ds = make_faces(200, seed=0, defects=None, balance="uniform")[0]
    test = ds.df.index[ds.df.split == "test"][:2]
    a = ds.df.index[ds.df.split == "train"][0]
    real = loaders.audit

    def chained(given, **how):
        found = real(given, **how)
        found.photos[[a, *test]] = found.photos[a]
        return found
    loaders.audit = chained
    try:
        assert set(ds.df.id[test]) <= make_splits(ds, Data(targets=None, near_duplicates=False)).duplicates
    finally:
        loaders.audit = real


def test_similar_images_stay_together_in_folds_and_are_no_duplicates_of_the_test():
    "Images 2k and 2k + 1 are two photographs of one sitting; the last two are one photograph."
    ds = dataset(24, ["sad", "happy"] * 12, split=["train", "test"] * 12)
    pairs = pd.DataFrame({"i": range(0, 24, 2), "j": range(1, 24, 2), "score": 0.8, "how": ["similar"] * 11 + ["near"]})
    with pytest.MonkeyPatch.context() as patch:
        for room in (fer_nb.audit, fer_nb.loaders):
            patch.setattr(room, "find_duplicates", lambda *_, **__: pairs)
        report = audit(ds)
        for grouped, groups in ((ds, report.groups), (report.grouped(), None)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                parts = [*folds(grouped, 3, groups=groups), holdout(grouped, 0.2, groups=groups)]
            assert all({i ^ 1 for i in test} == set(test) for _, test in parts)
        with pytest.warns(UserWarning, match=r"pairs of duplicates are in training and in test \(.*similar.*near"):
            folds(ds, 3, groups=np.arange(24) // 2 * 2 + np.arange(24) % 2)
        with pytest.warns(UserWarning, match=r"pairs of similar images are in training and in test"):
            folds(ds, 3, groups=report.photos)
    for clean in (clean_test(ds, report.photos), clean_test(report.grouped())):
        assert clean.df.id.tolist() == [f"im{k}" for k in range(1, 23, 2)]


def test_a_subject_on_both_sides_is_no_duplicate():
    ds = official(duplicates=False)
    assert len(clean_test(FERData(ds.df.assign(subject="one"), ds.array()))) == 6


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["train", "valid", "test"])), min_size=3, max_size=20))
def test_clean_test_has_no_group_of_training(rows):
    group, split = zip(*rows)
    ds = dataset(len(rows), group=group, split=split)
    expected = [k for k, (g, s) in enumerate(rows) if s != "train" and (g, "train") not in rows]
    if not expected or "train" not in split:
        with pytest.raises(DataError):
            clean_test(ds)
    else:
        assert clean_test(ds).df.id.tolist() == [f"im{k}" for k in expected]


@pytest.mark.realdata
def test_fer2013_has_280_public_test_images_with_a_byte_identical_duplicate_in_training(fer2013_npz):
    pixels, emotion, usage = fer2013_npz
    split = np.where(np.asarray(usage) == "Training", "train", "valid")
    df = pd.DataFrame({"id": [f"row{k}" for k in range(len(pixels))], "label": np.array(EMOTIONS)[emotion], "split": split})
    ds = FERData(df, pixels)
    clean = clean_test(ds)
    table = leakage_table(ds, official_split(ds, test="valid")).set_index("what")
    assert (split == "valid").sum() - len(clean) == table.test_images["pixels"]
    shown = pixels[split == "valid"]
    train = {im.tobytes() for im in pixels[split == "train"]}
    tainted = np.array([im.tobytes() in train for im in shown])
    assert tainted.sum() == table.test_images["pixels"] and (tainted & (shown.std((1, 2)) > 0)).sum() == 279


@pytest.mark.realdata
def test_random_folds_of_fer2013_test_2348_images_with_a_byte_identical_duplicate_in_training(monkeypatch):
    monkeypatch.setattr("fer_nb.loaders._warn_of_twins", lambda *args: None)   # minutes where nothing is cached
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = read_fer2013(fer2013_folder() / "fer2013.csv").where(split=["train", "valid"])
        if len(ds) != 32_298:
            pytest.skip("real data: no fer2013.csv; set FER_NB_DATA to the folder that holds it")
        folds(ds, 5, seed=0, protocol="paper")
    assert any("2348 test images" in str(w.message) for w in caught)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.15, 0.2])
def test_the_held_out_share_is_about_what_was_asked_for(fraction):
    inner, held = holdout(dataset(600), fraction)
    assert abs(len(held) / 600 - fraction) < 0.02 and sorted([*inner, *held]) == list(range(600))


@pytest.mark.parametrize("rare", [5, 7, 12])
def test_a_rare_class_makes_the_held_out_share_larger_but_not_above_a_fifth(rare):
    ds = dataset(400 + rare, ["happy"] * 400 + ["disgust"] * rare)
    _, held = holdout(ds, 0.05)
    share = (ds.df.label.iloc[held] == "disgust").sum() / rare
    assert 0 < share <= 2 / rare + 0.2 and 0.05 < len(held) / len(ds) <= 0.21


def test_few_persons_have_a_holdout_wherever_a_fold_has_every_class():
    for k in range(20):   # a person has some emotions alone
        rng = np.random.default_rng(k)
        subject = np.repeat([f"p{n}" for n in range(12)], rng.poisson(8, 12).clip(1))
        ds = FERData(pd.DataFrame({"id": [f"i{n}" for n in range(len(subject))], "split": "train", "subject": subject,
                                   "label": [EMOTIONS[n] for n in rng.integers(0, 5, len(subject))]}), rng.integers(0, 256, (len(subject), 8, 8), np.uint8))
        train, held = holdout(ds, 0.1, 0)
        sides = [ds.df.iloc[rows] for rows in (train, held)]
        assert not set(sides[0].subject) & set(sides[1].subject) and len(train) + len(held) == len(ds)
        assert all(side.label.nunique() == ds.df.label.nunique() for side in sides) and len(held) < 0.34 * len(ds)


def test_a_class_too_rare_to_hold_out_is_named():
    with pytest.raises(DataError, match="'disgust' has 4"):
        holdout(dataset(44, ["happy"] * 40 + ["disgust"] * 4), 0.1)


@pytest.mark.parametrize("fraction", [0, 0.21, -0.1, 1, float("nan")])
def test_shares_that_make_no_sense_are_refused(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        holdout(dataset(20), fraction)


def test_groups_by_hand_override_the_columns_and_must_fit():
    ds = dataset(12, group=[0] * 12)
    with pytest.raises(DataError, match="fewer than 2"):
        folds(ds, 2)
    assert len(folds(ds, 2, groups=np.arange(12))) == 2
    with pytest.raises(FERError):
        folds(ds, 2, groups=np.arange(5))


def test_nothing_cannot_be_split():
    for split in (lambda ds: folds(ds, 2), holdout):
        with pytest.raises(FERError):
            split(dataset(4).take([]))


# ---- the parts of a run ----

PLAIN = Data(near_duplicates=False)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("near", [False, True])
def test_train_valid_and_test_share_no_image_source_or_duplicate_group(seed, near):
    defects = {"leak": 0.05, "exact": 0.05, "multilabel": 0.03, "shift": 0.02}
    ds = make_faces(700, seed=seed, defects=defects, balance="uniform")[0]
    splits = make_splits(ds, Data(near_duplicates=near), seed)
    assert set(splits.train.df.split) == {"train"}
    assert not set(splits.train.df.source) & set(splits.valid.df.id)
    assert not set(splits.train.df.group) & set(splits.valid.df.group)
    originals = splits.train.take(splits.train.df.id == splits.train.df.source)
    parts = {"train": originals, "valid": splits.valid, "test": splits.test}
    everything = FERData(pd.concat([part.df.assign(split=name) for name, part in parts.items()]),
                         np.concatenate([part.array() for part in parts.values()]), ds.labels)
    assert not (audit(everything, ("leak",), None).issues.kind == "leak").any()
    assert splits.test.df.id.tolist() == ds.df.id[ds.df.split != "train"].tolist()


def test_a_split_that_is_made_keeps_a_person_on_one_side():
    ds = make_faces(300, seed=0, splits=(1, 0, 0), defects=None, balance="uniform")[0]
    splits = make_splits(ds.assign(subject=[f"s{k % 40}" for k in range(len(ds))]), PLAIN)
    train, valid, test = (set(part.df.subject) for part in (splits.train, splits.valid, splits.test))
    assert train and valid and test and not train & test and not valid & test and not train & valid


@pytest.mark.parametrize("clean", [True, "leaks", False])
def test_what_the_data_call_a_copy_of_a_test_image_is_not_trained_on(clean):
    "Copies that no search finds: the data themselves say what they were made of."
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    test, train = (ds.df.id[ds.df.split == split].tolist() for split in ("test", "train"))
    made = dict(zip(train[:9], test))
    told = ds.assign(source=ds.df.id.map(made).fillna(""))
    splits = make_splits(told, Data(clean=clean, near_duplicates=False, targets=None))
    used = {*splits.train.df.id, *splits.valid.df.id}
    assert bool(used & set(made)) == (clean is False)
    assert splits.duplicates == set(made.values()) and splits.test.df.id.tolist() == ds.df.id[ds.df.split != "train"].tolist()
    assert set(splits.test.df.id) - set(clean_test(told.assign(photo=range(300), group=range(300))).df.id) >= splits.duplicates
    assert {*make_splits(ds, Data(clean=clean, near_duplicates=False, targets=None)).duplicates} == set()


def test_copies_of_data_that_were_balanced_before_are_trained_on_and_not_measured():
    ds = make_faces(300, seed=2, splits=(1, 0, 0), defects=None, balance="uniform")[0]
    before = balance(ds, 90)
    splits = make_splits(before, Data(near_duplicates=False, targets=None, clean=False))
    copies = [(part.df.source != part.df.id).sum() for part in (splits.train, splits.valid, splits.test)]
    assert copies[0] > 50 and copies[1:] == [0, 0] and len(splits.valid) and len(splits.test)
    sources = [set(part.df.source) for part in (splits.train, splits.valid, splits.test)]
    assert not sources[0] & sources[1] and not sources[0] & sources[2] and not sources[1] & sources[2]


def test_people_in_two_official_splits_are_warned_of():
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    shared = ds.assign(subject=[f"s{k % 20}" for k in range(300)])
    with pytest.warns(UserWarning, match="show 20 people who are in the training split too"):
        make_splits(shared, PLAIN)
    own = ds.replace(df=ds.df.drop(columns="subject", errors="ignore"))
    films = own.assign(group=[f"film{k % 150}" for k in range(300)])
    with pytest.warns(UserWarning, match="are of .* films or clips that are in the training split too .*they measure known films or clips"):
        make_splits(films, PLAIN)
    for apart in (ds.assign(subject=""), ds.assign(subject=[f"{split}{k % 20}" for k, split in enumerate(ds.df.split)]),
                  own.assign(group=[f"{split}{k % 150}" for k, split in enumerate(ds.df.split)])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make_splits(apart, PLAIN)


def test_balance_happens_after_the_holdout():
    splits = make_splits(make_faces(400, seed=0)[0], Data(near_duplicates=False, targets="max"))
    assert "source" not in splits.valid.df or (splits.valid.df.source == splits.valid.df.id).all()
    assert splits.train.counts()["train"].nunique() == 1


def test_data_that_are_not_cleaned_are_split_whole():
    ds = make_faces(600, seed=1)[0]
    as_it_came = make_splits(ds, Data(clean=False, near_duplicates=False, targets=None))
    cleaned = make_splits(ds, PLAIN)
    training = set(ds.df.id[ds.df.split == "train"])
    assert set(as_it_came.train.df.id) | set(as_it_came.valid.df.id) == training
    assert set(cleaned.train.df.source) | set(cleaned.valid.df.id) < training


@pytest.mark.parametrize("near", [False, True])
def test_a_copy_in_another_reported_split_is_no_duplicate_in_training(near):
    """A copy between validation and test is a leak of the audit, but nothing that training saw."""
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    train, valid, test = (np.flatnonzero(ds.df.split == s) for s in ("train", "valid", "test"))
    x = ds.array().copy()
    for original, copy in ((valid[0], test[0]), (train[0], test[1]), (train[1], valid[1])):
        x[copy] = x[original]
    ds = ds.replace(images=x)
    splits, ids = make_splits(ds, Data(near_duplicates=near, targets=None)), ds.df.id
    assert {ids[test[1]], ids[valid[1]]} <= splits.duplicates and not {ids[test[0]], ids[valid[0]]} & splits.duplicates
    assert ids[test[0]] in set(splits.audit.issues.query("kind == 'leak'").id)
    alone = ds.take(ds.df.split != "valid")     # as when one split is measured by itself
    again = set(audit(alone, ("leak",), DuplicateSearch() if near else None).issues.id)
    assert again == splits.duplicates & set(alone.df.id)


def test_splits_keep_the_data_as_they_came():
    ds = make_faces(300, seed=0)[0]
    whole = ds.assign(split="train")
    assert make_splits(ds, PLAIN).came.fingerprint() == ds.fingerprint()
    splits = make_splits(whole, PLAIN)
    assert splits.came.fingerprint() == whole.fingerprint() != splits.audit.ds.fingerprint()


def test_no_training_images_cannot_be_split():
    for ds in (dataset(4).take([]), dataset(4, split="test")):
        with pytest.raises(DataError, match="no images of split .train."):
            make_splits(ds)


@pytest.mark.parametrize("there", ["copies", "none"])
def test_a_class_of_which_nothing_is_left_to_train_on_is_refused(there):
    """With 1 to 4 images of a class it was refused all along; with none the class was measured and never learnt."""
    ds = make_faces(300, seed=5, defects=None)[0].where(label=[e for e in EMOTIONS if e != "disgust"])
    fear, train = (ds.df.label == "fear").to_numpy(), (ds.df.split == "train").to_numpy()
    if there == "copies":  # each is that of a reported image
        x, own, other = ds.array().copy(), np.flatnonzero(fear & train), np.flatnonzero(fear & ~train)
        x[own] = x[np.resize(other, len(own))]
        ds, said = ds.replace(images=x), rf"no training images left of fear of {len(own)} \(leak {len(own)}"
    else:
        ds, said = ds.take(~(fear & train)), "no training images left of fear of 0; "
    with pytest.raises(DataError, match=said):
        make_splits(ds, PLAIN)
    make_splits(ds.take(ds.df.label != "fear"), PLAIN)  # a label that no image has is nobody's loss


# ---- batches ----

def epoch(loader):
    "All batches of one pass: positions, images, labels."
    return [(loader.ids.copy(), x.clone(), y.clone()) for x, y in loader]


def same(a, b):
    return len(a) == len(b) and all((i == j).all() and torch.equal(x, u) and torch.equal(y, v)
                                    for (i, x, y), (j, u, v) in zip(a, b))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(-2**31, 2**31), st.integers(0, 50))
def test_an_epoch_is_a_permutation_cut_into_full_batches(n, bs, seed, number):
    ds = dataset(n)
    loader = ReplayLoader(ds, bs, train=True, seed=seed)
    loader.epoch = number
    order = loader.get_idxs()
    assert sorted(order) == list(range(n)) and order == loader.get_idxs()
    batches = epoch(loader)
    size = min(bs, n)
    assert len(batches) == len(loader) == n // size and all(len(i) == size for i, _, _ in batches)
    assert np.concatenate([i for i, _, _ in batches]).tolist() == order[:n // size * size]
    for i, x, y in batches:
        assert (y.numpy() == ds.targets()[i]).all()
        assert torch.equal((x[:, 0] * 255).round().byte(), torch.from_numpy(ds.array()[i]))
        assert 0 <= x.min() and x.max() <= 1 and x.dtype == torch.float32


def test_any_epoch_can_be_replayed_by_setting_it():
    ds = dataset(20)
    loader = ReplayLoader(ds, 6, True, Augment(noise=.1), seed=4)
    passes = [epoch(loader) for _ in range(3)]
    assert loader.epoch == 3
    fresh = ReplayLoader(ds, 6, True, Augment(noise=.1), seed=4)
    for number in (2, 0, 1):
        fresh.epoch = number
        assert same(epoch(fresh), passes[number])
    assert not any(same(passes[a], passes[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert not same(epoch(ReplayLoader(ds, 6, True, Augment(noise=.1), seed=5)), passes[0])


def test_global_seeds_do_not_matter():
    ds = dataset(20)
    torch.manual_seed(1)
    one = epoch(ReplayLoader(ds, 6, True, Augment()))
    torch.manual_seed(2), np.random.seed(2)
    assert same(one, epoch(ReplayLoader(ds, 6, True, Augment())))


def test_a_pass_that_is_broken_off_is_begun_again():
    loader = ReplayLoader(dataset(20), 5, True)
    whole = epoch(loader)
    loader.epoch = 0
    for _ in loader:
        break
    assert loader.epoch == 0 and same(epoch(loader), whole)


def test_views_cycle_while_the_order_goes_on():
    ds = dataset(12)
    loader = ReplayLoader(ds, 4, True, Augment(), views=2)
    passes = [epoch(loader) for _ in range(4)]
    shown = [torch.cat([x for _, x, _ in p])[np.argsort(np.concatenate([i for i, _, _ in p]))] for p in passes]
    for a, b in ((0, 2), (1, 3)):
        torch.testing.assert_close(shown[a], shown[b], atol=1e-6, rtol=0)
        assert [i.tolist() for i, _, _ in passes[a]] != [i.tolist() for i, _, _ in passes[b]]
    assert not torch.allclose(shown[0], shown[1])


def test_validation_keeps_everything_in_order_and_unchanged():
    ds = dataset(11)
    loader = ReplayLoader(ds, 4, augment=Augment(noise=1))
    batches = epoch(loader)
    assert np.concatenate([i for i, _, _ in batches]).tolist() == list(range(11))
    assert [len(y) for _, _, y in batches] == [4, 4, 3]
    assert same(batches, epoch(loader)) and loader.epoch == 0


def test_a_set_smaller_than_a_batch_is_one_batch():
    for train in (False, True):
        assert [len(y) for _, y in ReplayLoader(dataset(3), 128, train)] == [3]


def test_colour_comes_channels_first_and_channels_last_in_memory():
    ds = dataset(4, shape=(6, 5, 3))
    x, _ = next(iter(ReplayLoader(ds, 4)))
    assert x.shape == (4, 3, 6, 5) and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal((x * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(ds.array()))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 6), st.integers(0, 5))
def test_rows_make_the_epoch_and_nothing_is_stored_for_them(rows, bs, seed):
    ds = dataset(6)
    rows = np.array(rows)
    loader = ReplayLoader(ds, bs, True, seed=seed, rows=rows)
    order = loader.get_idxs()
    assert sorted(order) == list(range(len(rows))) and len(loader) == len(rows) // min(bs, len(rows))
    for i, x, y in epoch(loader):
        assert torch.equal((x[:, 0] * 255).round().byte(), torch.from_numpy(ds.array()[rows[i]]))
        assert (y.numpy() == ds.targets()[rows[i]]).all()
    assert loader.x.x.data_ptr() == torch.from_numpy(ds.array()).data_ptr() and len(loader.new(shuffle=False).x) == 6


@pytest.mark.parametrize("rows", [[], [0, 4], [-1], [0.5], [True, False, True, True], [[0, 1]], "ab"])
def test_rows_that_are_no_positions_are_refused(rows):
    with pytest.raises(DataError, match="rows: .*positions from 0 to 3|no images to load"):
        ReplayLoader(dataset(4), train=True, rows=rows)


@pytest.mark.parametrize("settings_", [{"bs": 0}, {"bs": -1}, {"views": 0}, {"views": -2}])
def test_loader_settings_that_make_no_sense_are_refused(settings_):
    with pytest.raises(FERError, match=next(iter(settings_))):
        ReplayLoader(dataset(4), train=True, **settings_)


def test_an_empty_set_is_refused():
    with pytest.raises(FERError):
        ReplayLoader(dataset(4).take([]))


# ---- DataLoaders ----

def tiny_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.BatchNorm1d(7))


def learner(n=20, **kwargs):
    from fastai.callback.progress import ProgressCallback  # noqa: F401  (brings Learner.no_bar)
    from fastai.learner import Learner
    dls = dataloaders(dataset(n), dataset(7, prefix="v"), bs=4, device="cpu", **kwargs)
    return Learner(dls, tiny_net(), loss_func=nn.CrossEntropyLoss())


def test_fastai_predicts_with_these_loaders():
    learn = learner()
    with learn.no_bar():
        for given in ({"ds_idx": 1}, {"dl": learn.dls.valid}):
            logits, targets = learn.get_preds(**given)
            assert logits.shape == (7, 7) and torch.equal(targets, learn.dls.valid.y)


def test_fastai_predicts_every_training_image_unchanged_and_in_order():
    learn = learner()
    with learn.no_bar():
        logits, targets = learn.get_preds(ds_idx=0)
    assert torch.equal(targets, learn.dls.train.y) and learn.dls.train.epoch == 0
    with torch.no_grad():
        torch.testing.assert_close(logits, learn.model.eval()(learn.dls.train.x.float() / 255))


def test_training_twice_from_one_seed_gives_the_same_weights():
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        learn = learner(seed=3)
        with learn.no_bar(), learn.no_logging():
            learn.fit(2)
        weights.append(learn.model[1].weight.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("columns", [{}, {"source": ["v0", *map(str, range(9))]}])
def test_an_image_or_a_copys_source_on_both_sides_is_refused(columns):
    train = dataset(10, **columns) if columns else dataset(10, prefix="v")
    with pytest.raises(DataError, match="'v0'"):
        dataloaders(train, dataset(3, prefix="v"))


@pytest.mark.parametrize("missing", [None, ""])
def test_images_that_name_no_source_have_none_in_common(missing):
    train, valid = (dataset(n, prefix=p, source=[missing] * n) for n, p in ((10, "im"), (3, "v")))
    assert len(dataloaders(train, valid, device="cpu").valid_ds) == 3


def test_a_copy_in_validation_is_refused_for_its_source():
    valid = dataset(3, prefix="v", source=["im4", "v1", "v2"])
    with pytest.raises(DataError, match="'im4'"):
        dataloaders(dataset(10), valid)


def test_no_augmentation_can_be_asked_for():
    still = Augment(hflip=0, rotate=0, translate=0, scale=(1, 1))
    dls = dataloaders(dataset(8), dataset(3, prefix="v"), bs=8, augment=still, device="cpu")
    x, _ = next(iter(dls.train))
    torch.testing.assert_close(x, dls.train.x[dls.train.ids].float() / 255, atol=1e-5, rtol=0)
    assert dls.vocab == list(EMOTIONS)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(faces, device):
    with pytest.raises(ConfigError, match=f"device='{device}' cannot be used here"):
        dataloaders(faces.where(split="train"), faces.where(split="valid"), device=device)


def test_cleaning_of_leaks_alone_keeps_every_other_training_image():
    ds, _ = make_faces(420, seed=1, balance="uniform")
    none, leaks, all_ = (make_splits(ds, Data(clean=how, targets=None, near_duplicates=False)) for how in (False, "leaks", True))
    ids = [set(s.train.df.id) | set(s.valid.df.id) for s in (none, leaks, all_)]
    assert ids[2] < ids[1] < ids[0]
    found = leaks.audit.issues
    photos = dict(zip(leaks.audit.ds.df.id, leaks.audit.photos))
    reported = {photos[i] for i in leaks.test.df.id}
    assert ids[0] - ids[1] == {i for i in ids[0] if photos[i] in reported} and (found.kind == "leak").any()
    groups = dict(zip(leaks.audit.ds.df.id, leaks.audit.groups))  # duplicates never stand on both sides of the hold-out
    assert not {groups[i] for i in leaks.train.df.id} & {groups[i] for i in leaks.valid.df.id}


def test_only_leaks_is_a_word_for_cleaning():
    with pytest.raises(ConfigError, match="clean='leak'"):
        Data(clean="leak")


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_large_group_is_not_what_is_held_out_if_it_can_be_helped(share):
    rng, held = np.random.default_rng(0), []
    subject = np.where(np.arange(400) < 400 * share, "one", rng.permutation(400).astype(str))
    ds = FERData(pd.DataFrame({"id": [f"i{k}" for k in range(400)], "label": np.array(EMOTIONS)[np.arange(400) % 7], "split": "train",
                               "subject": subject}), rng.integers(0, 255, (400, 8, 8)).astype(np.uint8))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*near and mirrored")
        for seed in range(8):
            keep, part = holdout(ds, 0.1, seed)
            held.append(len(part) / 400)
            assert not set(ds.df.subject[keep]) & set(ds.df.subject[part]) and set(ds.df.label[part]) == set(EMOTIONS)
    assert max(held) < 0.25


def test_what_cannot_be_helped_is_said():
    subject = np.repeat(["a", "b", "c", "d", "e"], [200, 50, 50, 50, 50])
    ds = FERData(pd.DataFrame({"id": [f"i{k}" for k in range(400)], "label": np.array(EMOTIONS[:2])[np.arange(400) % 2], "split": "train",
                               "subject": subject}), np.zeros((400, 4, 4), np.uint8))
    groups = pd.factorize(subject)[0]
    part = [(np.flatnonzero(groups != g), np.flatnonzero(groups == g)) for g in range(5)]
    assert len(_of_size(part, ds.df.label.to_numpy(), 0.1)[1]) == 50 and len(_of_size(part[1:], ds.df.label.to_numpy(), 0.1)[1]) == 50
    assert len(_of_size(part[:1], ds.df.label.to_numpy(), 0.1)[1]) == 200


# ---- values of images, by id ----

def test_a_series_of_groups_or_weights_goes_by_its_index():
    ds, other = dataset(40, seed=1), dataset(4, seed=2, prefix="val")
    pairs = pd.Series(np.arange(40) // 4, index=ds.df.id)
    shuffled = pairs.sample(frac=1, random_state=0)
    for given in (pairs, shuffled, pairs.reset_index(drop=True), pairs.to_numpy()):
        assert all((a == b).all() for a, b in zip(holdout(ds, 0.2, groups=given), holdout(ds, 0.2, groups=pairs.tolist())))
        weights = given if isinstance(given, np.ndarray) else given.astype(float)
        assert dataloaders(ds, other, 4, weights=weights, device="cpu").train.weights.tolist() == pairs.astype(float).tolist()
    for odd in (pairs.rename(lambda i: "x" + i), pd.Series(np.arange(40), index=np.arange(100, 140)), pairs.iloc[:39], pairs.iloc[[0, *range(39)]]):
        with pytest.raises(DataError, match="groups with the index.*ids of all 40 images"):
            holdout(ds, 0.2, groups=odd)
        with pytest.raises(DataError, match="weights with the index"):
            ReplayLoader(ds, 4, True, weights=odd)


def test_weights_of_any_magnitude_draw_and_text_is_refused():
    ds, other = dataset(30, seed=1), dataset(4, seed=2, prefix="val")
    plain = np.r_[np.ones(20), np.full(10, 2.0)]
    drawn = [ReplayLoader(ds, 5, True, weights=plain * w).get_idxs() for w in (1, 2.0**-1000, 2.0**1000, 0.5)]
    assert all(d == drawn[0] for d in drawn)
    for huge in (np.full(30, 1e308), np.full(30, 1e-320)):
        assert sorted(ReplayLoader(ds, 5, True, weights=huge).get_idxs()) == list(range(30))
    for text in ({"happy": "a", "sad": 1}, dict.fromkeys(EMOTIONS, "a"), ["a"] * 30):
        with pytest.raises(ConfigError, match="weights"):
            dataloaders(ds, other, 5, weights=text, device="cpu")


def test_a_class_that_is_never_drawn_is_none_of_training():
    ds, other = dataset(30, seed=1), dataset(4, seed=2, prefix="val")
    one, two = sorted(set(ds.df.label))
    with pytest.warns(UserWarning, match=f"validation has images of {one}, training none"):
        dataloaders(ds, other, 5, weights={one: 0, two: 1}, device="cpu")


def test_images_of_another_size_have_the_labels_of_today():
    ds = make_faces(80, seed=1, defects=None, size=64)[0].where(split="train")
    data = Data(targets=dict.fromkeys(ds.labels, 20))
    whole = Originals(ds, data, 0)
    part = balanced(resized(ds.assign(original=whole.mark), 32), data, 0)
    again = part.assign(subject=["x"] * len(part))
    assert whole.like(part, 48).df.id.tolist() == part.df.id.tolist()
    assert set(whole.like(again, 48).df.subject) == {"x"}


@pytest.mark.parametrize("split", [["train"] * 300, ["train"] * 240 + ["test"] * 60])
def test_a_source_that_is_no_image_makes_no_copies(split):
    ds = make_faces(300, seed=0, defects=None, balance="uniform")[0]
    ds = ds.replace(df=ds.df[["id", "label"]].assign(split=split, source=[f"clip{k // 3}" for k in range(300)]))
    splits = make_splits(ds, Data(near_duplicates=False, targets=None))
    assert len(splits.test) >= 55 and len(splits.valid) > 15 and not set(splits.train.df.source) & set(splits.valid.df.source)


def test_training_images_that_are_all_of_other_splits_are_told():
    ds = make_faces(120, seed=0, defects=None, balance="uniform")[0]
    ds = ds.assign(split=["train"] * 90 + ["test"] * 30, source=["web"] * 120)
    with pytest.raises(DataError, match="every training image is of a photo or a `source` of another split"):
        make_splits(ds, Data(near_duplicates=False))


# ---- missing groups, odd arguments, an earlier hold-out, colours

@pytest.mark.parametrize("missing", MISSING, ids=["None", "nan", "NA", "NaT", "empty"])
def test_missing_groups_tie_nothing(missing):
    ds = dataset(80, [EMOTIONS[k % 2] for k in range(80)])
    groups = np.array([f"g{k // 8}" if k % 4 < 2 else missing for k in range(80)], object)
    parts = folds(ds, 4, groups=groups)
    assert max(len(test) for _, test in parts) <= 30
    for train, test in parts:
        known = [{g for g in groups[side] if isinstance(g, str) and g} for side in (train, test)]
        assert not known[0] & known[1]
    assert len(folds(ds, 4, groups=[missing] * 80)) == 4


def test_groups_subjects_seeds_and_shares_that_are_none_are_refused():
    ds = dataset(20)
    for groups, words in ((np.zeros((20, 1)), "20 groups for 20 images, in the shape"), ([[k] for k in range(20)], "20 groups|groups: unhashable"),
                          (pd.Series([[k] for k in range(20)]), "groups: unhashable")):
        with pytest.raises(DataError, match=words):
            folds(ds, 2, groups=groups)
    with pytest.raises(DataError, match="column 'subject': unhashable.*a text or a number"):
        leak_groups(ds.assign(subject=[[k] for k in range(20)]))
    for fraction in ("0.1", None, float("nan"), 0.3):
        with pytest.raises(ConfigError, match="fraction: "):
            holdout(ds, fraction)
    with pytest.raises(ConfigError, match="seed: 1.5; a whole number"):
        folds(ds, 2, seed=1.5)


def test_a_list_of_held_out_images_that_is_not_there_is_refused_before_the_audit(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_nb.loaders.audit", lambda *a, **k: pytest.fail("audited"))
    with pytest.raises(DataError, match="none.csv: no such file; what an earlier fit held out"):
        make_splits(dataset(60, [EMOTIONS[k % 3] for k in range(60)]), Data(held=str(tmp_path / "none.csv")))


def test_what_a_fit_on_other_images_held_out_is_refused(tmp_path):
    ds = dataset(60, [EMOTIONS[k % 3] for k in range(60)], prefix="row")

    def table(*rows):
        pd.DataFrame({"id": [f"row{k}" for k in rows], "part": "held out"}).to_csv(tmp_path / "parts.csv", index=False)
        return tmp_path / "parts.csv"
    with pytest.raises(DataError, match="18 of 21 images that it holds out are not in the training split"):
        listed_holdout(ds, table(*range(57, 78)))
    with pytest.warns(UserWarning, match=r"2 of 8 images that it holds out are not in .* \(row60, row61\)"):
        assert len(listed_holdout(ds, table(*range(54, 62)))[1]) == 6
    with pytest.warns(UserWarning, match="no image of disgust is held out"):
        listed_holdout(ds, table(0, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed_holdout(ds, table(*range(54, 62)), came=[f"row{k}" for k in range(90)])


def test_training_and_validation_have_one_size_and_as_many_channels():
    grey, colour, large = dataset(8), dataset(8, prefix="c", shape=(8, 8, 3)), dataset(8, prefix="l", shape=(9, 9))
    for other in (colour, large):
        with pytest.raises(DataError, match=r"training images are \[\(8, 8\)\], validation images .*resized"):
            dataloaders(grey, other, 4, device="cpu")

"""The exported audit: what duplicates mean; what cleaning keeps; golden numbers."""
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

import fer_nb.audit
from fer_nb.audit import KINDS, QualityLimits, audit, duplicate_issues, error_ratio, label_quality
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError
from fer_nb.data import FERData
from fer_nb.duplicates import BLANK_STD, DuplicateSearch
from fer_nb.config import Data
from fer_nb.loaders import clean_test, is_audited, leak_groups, make_splits
from fer_nb.review import review_changes
from fer_nb.synth import make_faces, render_faces, sample_aus
from test_duplicates import dataset, noise, noisy, smooth

RANK = {"train": 0, "valid": 1, "test": 2}


def drawn(which, labels=None, splits=None, seed=0):
    "A dataset whose image k is picture `which[k]`: equal numbers are exact duplicates."
    which = np.asarray(which)
    return dataset(noise(max(which, default=0) + 1, seed)[which], labels or "happy", splits or "train")


def issue(report, kind):
    return report.issues[report.issues.kind == kind]


# ---- exact duplicates ----

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=16), st.booleans())
def test_planted_copies_are_found_and_nothing_else(which, near_too):
    report = audit(drawn(which), search=DuplicateSearch() if near_too else None)
    which = np.array(which)
    same = report.groups[:, None] == report.groups[None]
    assert (same == (which[:, None] == which[None])).all()
    assert set(report.duplicates.how) <= {"exact"} and (report.duplicates.score == 1).all()
    assert (report.duplicates.i < report.duplicates.j).all()
    assert len(report.duplicates) == len(which) - len(set(which))
    assert sorted(issue(report, "duplicate").id) == [f"im{k:03}" for k in range(len(which)) if which[k] in which[:k]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["sad", "happy", "fear"]), st.sampled_from(list(RANK))),
                min_size=1, max_size=14))
def test_issues_follow_their_definitions(rows):
    which, labels, splits = (list(c) for c in zip(*rows))
    report = audit(drawn(which, labels, splits), search=None)
    n = range(len(rows))
    expected = {
        "duplicate": {i for i in n for j in range(i) if rows[i] == rows[j]},
        "multilabel": {i for i in n for j in n if which[i] == which[j] and labels[i] != labels[j]},
        "leak": {i for i in n for j in n if which[i] == which[j] and RANK[splits[j]] < RANK[splits[i]]},
        "similar": set(), "label_error": set(), "no_face": set(), "low_quality": set()}
    for kind in KINDS:
        found = issue(report, kind)
        assert found.id.is_unique and {int(name[2:]) for name in found.id} == expected[kind], kind
        for name, partner in zip(found.id, found.partner):
            assert which[int(name[2:])] == which[int(partner[2:])] and name != partner
    summary = report.summary()
    assert list(summary.index) == list(report.kinds) == [k for k in KINDS if k != "label_error"]
    assert summary["all"].to_dict() == {kind: len(expected[kind]) for kind in report.kinds}
    assert set(summary.columns) == {*splits, "all"}, "the columns are the splits of the dataset, with or without issues"


def test_the_triplet():
    "A train sad, B train happy, C test happy, one picture; D train sad, E train sad, another; F alone."
    report = audit(drawn([0, 0, 0, 1, 1, 2], ["sad", "happy", "happy", "sad", "sad", "fear"],
                         ["train", "train", "test", "train", "train", "train"]), search=None)
    assert set(issue(report, "multilabel").id) == {"im000", "im001", "im002"}
    leak = issue(report, "leak")
    assert leak.id.tolist() == ["im002"] and leak.partner.iloc[0] in ("im000", "im001")
    assert issue(report, "duplicate").id.tolist() == ["im004"]
    assert report.clean().df.id.tolist() == ["im002", "im003", "im005"]
    actions = report.actions()
    assert actions.id.is_unique and set(actions.action) == {"drop"}


def test_a_duplicate_of_another_kind_does_not_hide_a_leak():
    report = audit(drawn([0, 0, 0], "sad", ["test", "train", "valid"]), search=None)
    assert set(issue(report, "leak").id) == {"im000", "im002"} and len(issue(report, "duplicate")) == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.randoms())
def test_the_order_of_the_images_changes_nothing_but_their_names(which, random):
    order = list(range(len(which)))
    random.shuffle(order)
    labels = ["sad" if k % 3 else "happy" for k in range(len(which))]
    splits = ["test" if k % 4 == 0 else "train" for k in range(len(which))]
    ds = drawn(which, labels, splits)
    one, two = audit(ds, search=None), audit(ds.take(order), search=None)
    for kind in ("multilabel", "leak"):
        assert set(issue(one, kind).id) == set(issue(two, kind).id)
    assert len(issue(one, "duplicate")) == len(issue(two, "duplicate"))
    assert set(one.clean().where(split="test").df.id) == set(two.clean().where(split="test").df.id)


# ---- near duplicates ----

def test_a_chain_is_one_group_and_an_exact_copy_shares_its_firsts_duplicates():
    base = smooth(3, seed=8)
    near = noisy(base[0])
    ds = dataset(np.stack([base[0], base[1], near, base[0], near]), ["sad", "sad", "fear", "sad", "sad"],
                 ["train", "train", "train", "test", "valid"])
    report = audit(ds)
    assert len(set(report.groups[[0, 2, 3, 4]])) == 1 and report.groups[1] != report.groups[0]
    assert set(issue(report, "multilabel").id) == {"im000", "im002", "im003", "im004"}
    assert set(issue(report, "leak").id) == {"im003", "im004"}
    assert report.clean().df.id.tolist() == ["im001", "im003", "im004"]


@pytest.mark.parametrize("odd", [lambda t: t.astype(float), lambda t: t - 1, lambda t: t.astype(str)])
def test_labels_that_are_no_positions_are_told(odd):
    targets = np.arange(30) % 3
    probs = np.full((30, 3), .1) + .7 * np.eye(3)[targets]
    assert not label_quality(targets, probs).error.any() and not len(label_quality([], np.empty((0, 3))))
    with pytest.raises(DataError, match="labels: .*whole numbers from 0"):
        label_quality(odd(targets), probs)


def test_an_identical_copy_is_a_better_partner_than_a_near_one(monkeypatch):
    found = pd.DataFrame({"i": [1, 0], "j": [2, 1], "score": 1.0, "how": ["exact", "near"]})
    monkeypatch.setattr(fer_nb.audit, "find_duplicates", lambda ds, search, **how: found)
    duplicates = issue(audit(drawn([0, 1, 2])), "duplicate").set_index("id")
    assert duplicates.how["im002"] == "exact" and duplicates.partner["im002"] == "im001"


# ---- similar images, which are no duplicates ----

def pairs_of(*rows):
    "A table as the search gives it, of rows i, j, score, how and change."
    table = pd.DataFrame(rows, columns=["i", "j", "score", "how", "change"])
    return table.assign(chance=table.how.map({"exact": 0.0, "near": 1e-9, "mirror": 1e-8, "similar": 1e-3}))


def told(monkeypatch, ds, pairs, **settings):
    "The audit of a dataset of which the search says what `pairs` holds."
    monkeypatch.setattr(fer_nb.audit, "find_duplicates", lambda part, search, **how: pairs)
    return audit(ds, **settings)


SERIES = drawn([0, 1, 2, 0, 4, 5], ["sad", "happy", "sad", "sad", "fear", "happy"],
               ["train", "train", "test", "train", "train", "train"])
SEEN = pairs_of((0, 1, 0.8, "similar", "turned"), (0, 2, 0.7, "similar", "turned"), (0, 3, 1.0, "exact", ""),
                (1, 4, 0.99, "near", "shifted by 2 px"))


def test_similar_images_are_no_duplicates_and_stay_together(monkeypatch):
    "0 and 3 are one photograph, 1 and 4 another, 2 a third of the same person; 5 is somebody else."
    report = told(monkeypatch, SERIES, SEEN)
    found = report.issues.groupby("kind").id.agg(lambda ids: {int(i[2:]) for i in ids}).to_dict()
    assert found == {"duplicate": {3}, "multilabel": {1, 4}, "similar": {0, 1, 2, 3}}
    assert report.photos.tolist() == [0, 1, 2, 0, 1, 3]
    assert len(set(report.groups[:5])) == 1 and report.groups[5] != report.groups[0]
    assert report.summary().loc["similar"].to_dict() == {"train": 3, "test": 1, "all": 4}
    assert report.table1()["multilabel"].sum() == 1
    assert [note[:10] for note in report.notes()] == ["duplicates", "multilabel", "similar: 4"]
    clean = report.clean()
    assert clean.df.id.tolist() == ["im000", "im002", "im005"], "similar images stay, whatever their splits and labels"
    assert clean.df.group.nunique() == 2 and clean.df.photo.nunique() == 3
    with pytest.raises(FERError, match="kind to drop.*'similar'"):
        report.clean(drop=("similar",))


def test_what_explains_a_pair_and_how_likely_it_is_by_chance_stands_in_the_table(monkeypatch):
    rows = told(monkeypatch, SERIES, SEEN).issues.set_index(["kind", "id"])
    assert rows.loc[("multilabel", "im001"), ["partner", "change", "chance"]].tolist() == ["im004", "shifted by 2 px", 1e-9]
    assert rows.loc[("similar", "im002"), ["partner", "change", "chance"]].tolist() == ["im000", "turned", 1e-3]
    assert rows.loc[("duplicate", "im003"), ["partner", "change", "chance"]].tolist() == ["im000", "identical", 0]
    bare = told(monkeypatch, SERIES, SEEN.drop(columns=["chance", "change"])).issues.set_index(["kind", "id"])
    assert bare.change["similar", "im002"] == "" and np.isnan(bare.chance["multilabel", "im001"])
    other = audit(SERIES, ("low_quality",), limits=QualityLimits(sharpness=1e9)).issues
    assert len(other) and other.change.eq("").all() and other.chance.isna().all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_table_of_pairs_gives_what_plain_loops_give(data):
    n = data.draw(st.integers(2, 9))
    which = [data.draw(st.integers(0, k)) for k in range(n)]
    which = [w if which[w] == w else k for k, w in enumerate(which)]                     # an image, or a copy of a first
    firsts = sorted(set(which))
    rows = [(which[k], k, 1.0, "exact", "") for k in range(n) if which[k] != k]
    rows += [(i, j, data.draw(st.sampled_from([0.5, 0.9])), how, "") for i in firsts for j in firsts if i < j
             and (how := data.draw(st.sampled_from(["", "", "near", "mirror", "similar"])))]
    labels = data.draw(st.lists(st.sampled_from(["sad", "happy"]), min_size=n, max_size=n))
    splits = data.draw(st.lists(st.sampled_from(list(RANK)), min_size=n, max_size=n))
    ds = drawn(list(range(n)), labels, splits)
    found = duplicate_issues(ds.df, pairs_of(*rows))

    def reached(hows):
        groups = [{k} for k in range(n)]
        for i, j, _, how, _ in rows:
            if how in hows:
                both = groups[i] | groups[j]
                for k in both:
                    groups[k] = both
        return groups

    same, linked = reached({"exact"}), lambda hows: {(a, b) for i, j, _, how, _ in rows if how in hows
                                                     for p, q in ((i, j), (j, i)) for a in same[p] for b in same[q] if a != b}
    twins = linked({"near", "mirror", "exact"}) | {(a, b) for g in same for a in g for b in g if a != b}
    photo = reached({"exact", "near", "mirror"})
    expected = {"duplicate": {i for i, j in twins if j < i and labels[i] == labels[j] and splits[i] == splits[j]},
                "multilabel": {i for i, j in twins if labels[i] != labels[j]},
                "leak": {i for i, j in twins if RANK[splits[j]] < RANK[splits[i]]},
                "similar": {i for i, j in linked({"similar"}) if j not in photo[i]}}
    assert {kind: set(found.i[found.kind == kind]) for kind in expected} == expected
    assert not found.duplicated(["i", "kind"]).any()


def test_a_group_that_the_dataset_brings_is_kept(monkeypatch):
    "The frames of a film stay together after an audit that found nothing in them."
    film = drawn(range(5)).assign(group=["film", "", "film", None, "other"])
    assert audit(film.take([])).groups.tolist() == []
    report = told(monkeypatch, film, pairs_of((1, 4, 0.9, "near", "")))
    assert report.groups.tolist() == [0, 1, 0, 2, 1] and report.photos.tolist() == [0, 1, 2, 3, 1]


MOMENTS = pairs_of((0, 1, .99, "near", "shifted 1 px"), (0, 2, 1.0, "exact", ""), (3, 4, .99, "mirror", "mirrored"),
                   (5, 6, .99, "near", ""), (7, 8, 1.0, "exact", ""))


@pytest.mark.parametrize("column", ["subject", "group"])
def test_two_moments_of_a_person_or_film_are_no_duplicates(monkeypatch, column):
    "A neutral face and its apex; 5 and 6 are of nobody that is known; 7 and 8 are identical, so one photograph."
    ds = drawn(range(9), ["neutral", "happy", "neutral", "sad", "fear", "sad", "happy", "sad", "fear"])
    ds = ds.assign(**{column: ["a", "a", "a", "b", "b", "", None, "c", "c"]})
    report = told(monkeypatch, ds, MOMENTS)
    found = report.issues.groupby("kind").id.agg(lambda ids: {int(i[2:]) for i in ids}).to_dict()
    assert found == {"duplicate": {2}, "similar": {0, 1, 2, 3, 4}, "multilabel": {5, 6, 7, 8}}
    assert report.photos.tolist() == [0, 1, 0, 2, 3, 4, 4, 5, 5] and report.groups[0] == report.groups[1]
    assert {"im000", "im001", "im003", "im004"} <= set(report.clean().df.id)
    assert not [note for note in report.notes() if note.startswith("multilabel")], "the columns say what they can"
    again = told(monkeypatch, report.grouped(), MOMENTS)
    assert again.photos.tolist() == report.photos.tolist()


def test_a_copy_with_the_label_of_one_of_the_copies_is_a_duplicate(monkeypatch):
    ds = drawn(range(3), ["sad", "happy", "happy"]).assign(subject="a")
    report = told(monkeypatch, ds, pairs_of((0, 1, 1.0, "exact", ""), (0, 2, .99, "near", "")))
    assert set(issue(report, "multilabel").id) == {"im000", "im001", "im002"} and report.photos.tolist() == [0, 0, 0]


def test_an_audits_own_groups_are_no_films(monkeypatch):
    "Otherwise an audit of what was audited would find no contradiction any more."
    ds, seen = drawn(range(3), ["sad", "happy", "happy"]), pairs_of((0, 1, .99, "near", ""))
    report = told(monkeypatch, ds, seen)
    again = told(monkeypatch, report.grouped(), seen)
    for one in (report, again):
        assert set(issue(one, "multilabel").id) == {"im000", "im001"}
        assert [note for note in one.notes() if note.startswith("multilabel: 1 of the pairs")]


def test_the_neutral_face_and_the_apex_of_a_shot_stay(monkeypatch):
    n = 12
    aus, _ = sample_aus(["happy"] * n, range(n), 0)
    images = np.concatenate([render_faces(a, range(n), range(n), 0, 48) for a in (np.zeros((n, 16)), aus)])
    ds = dataset(images, ["neutral"] * n + ["happy"] * n)
    assert len(issue(audit(ds), "multilabel")) >= n, "the pixels alone"
    report = audit(ds.assign(subject=[f"s{k % n}" for k in range(2 * n)]))
    assert len(issue(report, "similar")) >= n and len(report.clean()) == 2 * n


def test_one_kind_split_or_label_may_be_given_as_a_text():
    ds = drawn([0, 0, 1], ["sad", "happy", "sad"])
    assert audit(ds, "multilabel", None).issues.equals(audit(ds, ("multilabel",), None).issues)
    report = audit(ds, search=None)
    assert report.clean(drop="multilabel", splits="train").df.id.tolist() == ["im002"]
    assert report.labels_after({"im000": "fear"}, "train").tolist() == ["fear", "fear", "sad"]
    with pytest.raises(FERError, match="'duplicates'"):
        audit(ds, "duplicates")


def test_an_audit_that_looked_for_no_pairs_is_none_of_duplicates():
    ds = drawn([0, 1, 0, 1, 2])
    for kinds in (("low_quality",), ("no_face", "low_quality")):
        report = audit(ds, kinds)
        for after in (report.clean(drop=()), report.grouped()):
            assert not {"photo", "group"} & {*after.df} and not is_audited(after)
            assert leak_groups(after).tolist() == [0, 1, 0, 1, 2]
    assert is_audited(audit(ds, ("similar",)).grouped())


def test_audits_of_two_datasets_share_no_number():
    "Numbers from 0 on would tie the first image of one to the first of the other, and hide what both have."
    one = drawn([0, 0, 1, 2])
    two = dataset(np.concatenate([noise(3, 9), one.array()[3:]]), splits="test").assign(id=[f"other{k}" for k in range(4)])
    a, b = (audit(ds, search=None).grouped() for ds in (one, two))
    both = FERData(pd.concat([a.df, b.df], ignore_index=True), np.concatenate([a.array(), b.array()]))
    for column in ("group", "photo"):
        assert both.df[column].dtype == np.int64 and both.df[column].between(0, 2**52).all()
        assert both.df[column].nunique() == 7 and (a.df[column] == audit(one, search=None).grouped().df[column]).all()
    assert leak_groups(both).tolist() == [0, 0, 1, 2, 3, 4, 5, 2]                # what both have is tied by its pixels
    assert clean_test(both).df.id.tolist() == ["other0", "other1", "other2"]
    assert audit(one.take([]), search=None).grouped().df.photo.tolist() == []


@pytest.mark.parametrize("table, message", [
    (lambda ids: pd.DataFrame({"id": [*ids, ids[0]], "status": "ok", "evidence": 1.0}), "image 'im000' more than once"),
    (lambda ids: pd.DataFrame({"id": ids}), "no column 'status'"),
    (lambda ids: pd.DataFrame({"status": ["ok"] * len(ids)}), "no column 'id'")])
def test_a_table_of_faces_that_is_none_is_refused(table, message):
    ds = drawn(range(4))
    with pytest.raises(DataError, match=message):
        audit(ds, ("no_face",), faces=table(ds.df.id.tolist()))


@pytest.mark.parametrize("decisions", [pd.Series({"im000": "drop"}), ["im000"], {"im000"}, "im000"])
def test_decisions_that_are_no_mapping_are_refused(decisions):
    with pytest.raises(DataError, match="a mapping of ids"):
        audit(drawn(range(3)), search=None).clean(decisions)


def test_probabilities_may_carry_a_gradient():
    ds = drawn(range(20), ["happy"] * 10 + ["sad"] * 10)
    probs = np.random.default_rng(0).dirichlet(np.ones(7), 20)
    issues = [audit(ds, ("label_error",), None, p).issues for p in (probs, torch.tensor(probs, requires_grad=True))]
    pd.testing.assert_frame_equal(*issues)


@pytest.mark.parametrize("alike, text", [(dict(shared=.6, scale=.5), "agree in 60% .*scale 0.50"), (dict(shared=0, scale=.01), "`similar` here"),
                                         (dict(shared=0, scale=1), None), ({}, None)])
def test_what_all_images_share_is_told(monkeypatch, alike, text):
    pairs = pairs_of((0, 1, 0.99, "similar", ""))
    pairs.attrs.update(alike)
    said = [note for note in told(monkeypatch, dataset(smooth(3)), pairs).notes() if note.startswith("duplicates")]
    assert (len(said) == 1 and __import__("re").search(text, said[0])) if text else not said


def test_the_estimate_of_wrong_pairs_is_not_promised_for_overexposed_images(monkeypatch):
    def said(ds, kinds=None):
        return next(t for t in told(monkeypatch, ds, pairs_of((0, 1, 0.99, "near", "")), kinds=kinds).notes() if t.startswith("duplicates"))

    plain = dataset(smooth(3))
    flat = dataset(np.concatenate([smooth(2), (118 + smooth(1) // 16).astype(np.uint8)]))
    assert said(plain).endswith("are wrong.")
    assert "does not hold for the 1 images" in said(flat)
    assert "if none of the images is overexposed" in said(flat, ("duplicate",))


# ---- cleaning ----

@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["sad", "happy"]), st.sampled_from(list(RANK))),
                min_size=1, max_size=14), st.booleans())
def test_cleaning_leaves_no_duplicate_of_an_evaluation_image_and_touches_no_evaluation_image(rows, near):
    which, labels, splits = (list(c) for c in zip(*rows))
    images = smooth(6)[which]
    if near:
        images = np.stack([noisy(im) if k % 2 else im for k, im in enumerate(images)])
    ds = dataset(images, labels, splits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean = audit(ds).clean()
    for split in ("valid", "test"):
        before, after = ds.where(split=split), clean.where(split=split)
        assert before.fingerprint() == after.fingerprint()
    kept = clean.df.merge(ds.df.assign(which=which)[["id", "which"]], on="id")
    train, rest = kept[kept.split == "train"], kept[kept.split != "train"]
    assert not set(train.which) & set(rest.which) and train.which.is_unique
    for w in set(which):                                              # a picture is lost only where a rule says so
        rows_of = [r for r in rows if r[0] == w]
        if all(s == "train" for _, _, s in rows_of) and len({lab for _, lab, _ in rows_of}) == 1:
            assert (train.which == w).sum() == 1
    assert len(train) == 0 or (clean.df.set_index("id").group[train.id].is_unique)


def test_other_splits_are_cleaned_on_request_only():
    ds = drawn([0, 0, 1, 1, 2], "sad", ["test", "test", "train", "train", "train"])
    report = audit(ds, search=None)
    assert report.clean().df.id.tolist() == ["im000", "im001", "im002", "im004"]
    assert report.clean(splits=("train", "test")).df.id.tolist() == ["im000", "im002", "im004"]
    assert len(report.clean(splits=())) == 5


def test_decisions_stand_above_the_rules_in_every_split():
    ds = drawn([0, 0, 0, 1, 2], ["sad", "happy", "sad", "fear", "fear"], ["train", "train", "test", "test", "train"])
    report = audit(ds, search=None)
    clean = report.clean({"im000": "keep", "im002": "drop", "im003": "neutral", "im004": "drop"})
    assert dict(zip(clean.df.id, clean.df.label)) == {"im000": "sad", "im003": "neutral"}
    assert report.ds.df.label.tolist() == ds.df.label.tolist() and "group" not in ds.df, "the audited dataset changed"


def test_kinds_that_were_not_asked_for_are_not_cleaned():
    ds = drawn([0, 0, 1, 1], ["sad", "happy", "fear", "fear"])
    assert set(audit(ds, kinds=("duplicate",), search=None).clean().df.id) == {"im000", "im001", "im002"}
    assert set(audit(ds, kinds=("multilabel",), search=None).clean().df.id) == {"im002", "im003"}


def test_only_blanks_can_be_asked_for():
    images = noise(4)
    images[2] = 9
    report = audit(dataset(images), kinds=("no_face",))
    assert report.issues.id.tolist() == ["im002"] and set(report.issues.kind) == {"no_face"}
    assert len(set(report.groups)) == 4


# ---- blanks, sizes, colour, tiny sets ----

@pytest.mark.parametrize("level", [0, 255, "all levels", "faint noise"])
@pytest.mark.parametrize("faces", [0, 6])
def test_blank_images_are_reported_and_are_nobodys_near_duplicate(level, faces):
    rng = np.random.default_rng(0)
    blanks = {0: np.zeros((5, 48, 48)), 255: np.full((5, 48, 48), 255),
              "all levels": np.ones((5, 48, 48)) * np.arange(0, 250, 50)[:, None, None],
              "faint noise": 100 + rng.integers(0, 3, (5, 48, 48))}[level].astype(np.uint8)
    report = audit(dataset(np.concatenate([smooth(faces), blanks])))
    blank = issue(report, "no_face")
    assert sorted(blank.id) == [f"im{k:03}" for k in range(faces, faces + 5)]
    assert (blank.partner == "").all() and blank.score.between(0.9, 1).all()
    assert set(report.duplicates.how) <= {"exact"}
    assert len(report.clean()) == faces


def test_the_border_of_blankness_is_the_public_constant():
    image = np.zeros((1, 48, 48), np.uint8)
    image[0, ::2] = 2 * round(BLANK_STD)                              # standard deviation exactly BLANK_STD
    assert len(audit(dataset(image), ("no_face",)).issues) == 1
    image[0, ::2] += 1
    assert len(audit(dataset(image), ("no_face",)).issues) == 0


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("search", [DuplicateSearch(), None])
def test_tiny_datasets(n, search):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = audit(dataset(noise(n)), search=search)
        assert len(report.issues) == len(report.duplicates) == 0 and len(report.groups) == n
        assert report.summary().to_numpy().sum() == 0 and len(report.clean()) == n
        assert report.table1()[["duplicated", "multilabel"]].to_numpy().sum() == 0
        assert list(report.issues.columns) == ["id", "kind", "score", "partner", "how", "suggested", "chance", "change"]


def test_one_picture_in_many_sizes_kinds_and_files_is_one_group(tmp_path):
    big, other = smooth(1, side=96)[0], smooth(2, seed=50, side=70)[1]
    variants = {"a.png": Image.fromarray(big), "b.png": Image.fromarray(big).resize((48, 48), Image.BILINEAR),
                "c.png": Image.fromarray(big).convert("RGB"), "d.jpg": Image.fromarray(big),
                "e.bmp": Image.fromarray(big), "f.png": Image.fromarray(other)}
    for name, image in variants.items():
        image.save(tmp_path / name)
    df = pd.DataFrame({"id": list(variants), "label": "sad", "split": "train"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = audit(FERData(df, [tmp_path / name for name in variants]))
    assert len(set(report.groups[:5])) == 1 and report.groups[5] != report.groups[0]
    exact = report.duplicates[report.duplicates.how == "exact"]
    assert list(zip(exact.i, exact.j)) == [(0, 4)]                    # PNG and BMP hold the same pixels
    assert report.clean().df.id.tolist() == ["a.png", "f.png"]


def test_table1_counts_a_contradiction_once_per_picture_and_foots():
    ds = drawn([0, 0, 0, 1, 1, 2], ["sad", "happy", "happy", "fear", "fear", "fear"])
    table = audit(ds, search=None).table1()
    assert table["multilabel"].sum() == 1
    assert table["duplicated"].to_dict() == {**dict.fromkeys(EMOTIONS, 0), "happy": 1, "fear": 1}
    assert table.original.sum() == 6
    assert table.error_ratio["fear"] == pytest.approx(100 / 3)


def test_error_ratio_takes_missing_counts_as_none():
    table = pd.DataFrame({"duplicated": [1, np.nan], "multilabel": [1, 2], "label_error": [np.nan, np.nan],
                          "original": [4, 8]})
    assert error_ratio(table).error_ratio.tolist() == [50, 25]


@pytest.mark.parametrize("bad", [{"nobody": "drop"}, {"im000": "Sad"}, {"im000": ""}, {"im000": None}])
def test_decisions_that_make_no_sense_are_refused(bad):
    with pytest.raises(FERError, match=repr(next(iter(bad)))):
        audit(dataset(noise(2)), search=None).clean(bad)


# ---- the real FER2013 ----

@pytest.fixture(scope="module")
def real(fer2013_npz):
    pixels, emotion, usage = fer2013_npz
    split = np.where(usage == "Training", "train", "valid")
    df = pd.DataFrame({"id": np.arange(len(pixels)).astype(str), "label": np.array(EMOTIONS)[emotion], "split": split})
    return audit(FERData(df, pixels, name="fer2013"), search=None)


@pytest.mark.realdata
def test_golden_numbers_of_identical_pictures(real):
    sizes = np.bincount(real.groups)
    assert (sizes > 1).sum() == 1274 and (sizes[sizes > 1] - 1).sum() == len(real.duplicates) == 1532
    labels = real.ds.df.label.groupby(real.groups).nunique()
    assert (labels > 1).sum() == 50
    leak = issue(real, "leak").merge(real.ds.df, on="id")
    train = {image.tobytes() for image in real.ds.where(split="train").array()}
    plain = sum(image.tobytes() in train for image in real.ds.where(split="valid").array())
    assert len(leak) == plain == 280 and set(leak.split) == {"valid"}


@pytest.mark.realdata
def test_cleaning_the_real_data(real):
    clean = real.clean()
    assert clean.where(split="valid").df.id.tolist() == real.ds.where(split="valid").df.id.tolist()
    again = audit(clean, search=None)
    train = clean.df.split.eq("train").to_numpy()
    assert not set(again.groups[train]) & set(again.groups[~train])
    assert again.summary().loc[["duplicate", "multilabel"], "train"].sum() == 0 if "train" in again.summary() else True


# ---- decisions on one of several copies of a photo ----

def test_a_copy_takes_the_place_of_one_that_a_decision_drops():
    ds = drawn([0, 0, 0, 1, 2], "sad")
    report = audit(ds, search=None)
    left = lambda decisions, **how: report.clean(decisions, **how).df.id.tolist()
    assert left({}) == ["im000", "im003", "im004"]
    assert left({"im000": "drop"}) == ["im001", "im003", "im004"]
    assert left({"im000": "drop", "im001": "drop"}) == ["im002", "im003", "im004"]
    assert left({"im001": "drop"}) == ["im000", "im003", "im004"]
    assert left({"im000": "drop", "im001": "drop", "im002": "drop"}) == ["im003", "im004"]
    assert left({"im000": "drop", "im002": "keep"}) == ["im002", "im003", "im004"]
    assert left({"im000": "drop"}, drop=()) == ["im001", "im002", "im003", "im004"]
    told = review_changes(report, {"im000": "drop"}).set_index("id")
    assert told.action.to_dict() == {"im000": "drop", "im001": "keep", "im002": "drop"} and told.rule["im001"] == "drop"


@pytest.mark.parametrize("who, left", [("im000", ["im000"]), ("im001", ["im001"]), ("im002", ["im002"])])
def test_a_new_label_is_that_of_the_whole_photo(who, left):
    report = audit(drawn([0, 0, 0, 1], "sad"), search=None)
    clean = report.clean({who: "angry"})
    assert clean.df.id.tolist() == [*left, "im003"] and clean.df.label.tolist() == ["angry", "sad"]
    every = report.clean({who: "angry"}, drop=())
    assert every.df.label.tolist() == ["angry"] * 3 + ["sad"]
    both = report.clean({who: "angry", "im003": "fear"})
    assert dict(zip(both.df.id, both.df.label)) == {left[0]: "angry", "im003": "fear"}


def test_each_copy_may_have_a_decision_of_its_own_and_test_stays_as_it_is():
    report = audit(drawn([0, 0, 1, 1], "sad"), search=None)
    own = report.clean({"im000": "keep", "im001": "angry"})
    assert dict(zip(own.df.id, own.df.label)) == {"im000": "sad", "im001": "angry", "im002": "sad"}
    report = audit(drawn([0, 0, 0], "sad", ["train", "test", "test"]), search=None)
    assert report.clean({"im000": "angry"}).df.label.tolist() == ["angry", "sad", "sad"]
    assert report.clean({"im001": "angry"}).df.label.tolist() == ["angry", "angry"]  # the copy in train is a leak
    assert report.clean({"im001": "angry"}, drop=()).df.label.tolist() == ["angry"] * 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "keep", "drop", "angry", "fear"])), min_size=1, max_size=10))
def test_no_photo_is_lost_or_has_two_labels_but_by_decisions_on_each_copy(rows):
    ds = drawn([w for w, _ in rows], "sad")
    decisions = {i: d for i, (_, d) in zip(ds.df.id, rows) if d}
    clean = audit(ds, search=None).clean(decisions)
    kept = clean.df.assign(which=[rows[int(i[2:])][0] for i in clean.df.id])
    for w in {w for w, _ in rows}:
        said = [d for v, d in rows if v == w]
        labels = {{"keep": "sad"}.get(d, d) for d in said if d not in ("", "drop")}
        mine = kept[kept.which == w]
        assert len(mine) > 0 or set(said) == {"drop"}
        if len(labels) <= 1:
            assert set(mine.label) <= (labels or {"sad"})


# ---- the search of many images is kept ----

def test_a_second_audit_of_many_images_reads_what_was_found_and_other_images_are_searched(monkeypatch, tmp_path):
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path))
    images = np.concatenate([smooth(30), noisy(smooth(30)[:8]), smooth(30)[8:12]])
    ds = dataset(images)
    plain = audit(ds)
    assert not [*tmp_path.rglob("*")]                                        # too few to be kept
    searched, search = [], DuplicateSearch.near
    monkeypatch.setattr(DuplicateSearch, "near", lambda *a: searched.append(1) or search(*a))
    monkeypatch.setattr(fer_nb.audit, "_MANY", 30)
    for _ in range(3):
        again = audit(ds)
        pd.testing.assert_frame_equal(again.issues, plain.issues)
        pd.testing.assert_frame_equal(again.duplicates, plain.duplicates)
        assert (again.groups == plain.groups).all() and searched == [1]
    audit(dataset(255 - images))
    audit(ds, search=DuplicateSearch(similar=0))
    assert searched == [1, 1, 1] and len(plain.duplicates) >= 12
    audit(ds, cache=False)
    assert searched == [1, 1, 1, 1]
    audit(ds, search=None)
    assert searched == [1, 1, 1, 1]


def test_audits_of_datasets_with_the_same_ids_share_no_number():
    from fer_nb.audit import audit
    from fer_nb.synth import make_faces
    parts = [make_faces(40, seed=k, defects=None)[0] for k in (0, 1)]
    first, second = (audit(p.assign(id=[f"{n}.png" for n in range(40)]), ("duplicate",), None).grouped().df for p in parts)
    assert not set(first.photo) & set(second.photo) and not set(first.group) & set(second.group)


def test_what_a_decision_keeps_stays_when_the_data_are_cleaned_again():
    "Copies in one class, copies in two, and copies across splits: the last go, whatever was decided; nothing without decisions changes."
    ds = make_faces(210, seed=2, defects=None, balance="uniform")[0]
    images, train = ds.array().copy(), np.flatnonzero(ds.df.split == "train")
    test, label = np.flatnonzero(ds.df.split == "test"), ds.df.label
    same = [k for k in train if label[k] == label[train[0]]][:2]
    two = [train[0] + 1, next(k for k in train if k > train[0] + 1 and label[k] != label[train[0] + 1] and k not in same)]
    leak = [test[0], next(k for k in train if label[k] == label[test[0]] and k not in (*same, *two))]
    for first, second in (same, two, leak):
        images[second] = images[first]
    ds = ds.replace(images=images)
    plain = audit(ds, search=None).clean()
    assert "decided" not in plain.df and not {*ds.df.id[[*two, leak[1]]]} & {*plain.df.id}
    decisions = dict.fromkeys(ds.df.id[[*same, *two, leak[1]]], "keep")
    kept = audit(ds, search=None).clean(decisions)
    assert {*decisions} <= {*kept.df.id[kept.df.decided]}
    splits = make_splits(kept, Data(near_duplicates=False, targets=None))
    there = {*splits.train.df.id, *splits.valid.df.id}
    assert there & {*decisions} == {*ds.df.id[[*same, *two]]}               # the duplicate of a test image goes
    assert {*ds.df.id[same]} <= {*splits.train.df.id} or {*ds.df.id[same]} <= {*splits.valid.df.id}
    assert not {*make_splits(ds, Data(near_duplicates=False, targets=None)).train.df.id} & {*ds.df.id[two]}
    assert kept.identity() != kept.replace(df=kept.df.drop(columns="decided")).identity()


@pytest.mark.parametrize("column", ["subject", "group"])
def test_a_copy_of_a_test_image_under_another_label_is_a_leak_whoever_it_shows(monkeypatch, column):
    "Within a split two labels of one person are two moments; across splits the picture is known. 0 and 1 hang on 2, which is tested."
    ds = drawn(range(5), ["happy", "sad", "sad", "happy", "sad"], ["train", "train", "test", "train", "train"]).assign(**{column: "a"})
    report = told(monkeypatch, ds, pairs_of((0, 1, .99, "near", ""), (0, 2, .99, "near", ""), (1, 2, .99, "near", ""), (3, 4, .99, "near", "")))
    assert set(issue(report, "leak").id) == {"im002"} == report.leaked() and set(report.clean().df.id) == {"im002", "im003", "im004"}
    assert [note for note in report.notes() if note.startswith("similar: 2 of the pairs have two labels")]


def test_what_was_decided_is_known_when_it_was_read_as_text(monkeypatch):
    ds = drawn(range(2), "sad").assign(decided=["True", "False"])
    report = told(monkeypatch, ds, pairs_of((0, 1, .99, "near", "")))
    assert set(report.clean().df.id) == {"im000"}
    assert set(told(monkeypatch, ds.assign(decided=["False", "True"]), pairs_of((0, 1, .99, "near", ""))).clean().df.id) == {"im000", "im001"}


def test_probabilities_in_a_table_without_ids_are_taken_in_its_order():
    ds = make_faces(140, seed=0, defects=None)[0]
    right = np.eye(7)[ds.targets()] * .8 + .2 / 7
    for table in (pd.DataFrame(right, columns=ds.labels), pd.DataFrame(right[:, ::-1], columns=ds.labels[::-1]), pd.DataFrame(right)):
        assert not len(issue(audit(ds, search=None, probs=table), "label_error"))


def test_what_was_not_looked_for_is_neither_counted_nor_called_absent():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 48, 48), dtype=np.uint8)[[0, 0, 0, 3, 4, 5]]
    ds = FERData(pd.DataFrame({"id": list("abcdef"), "label": ["happy", "happy", "sad", "sad", "sad", "happy"],
                               "split": ["train", "train", "test", "train", "test", "train"]}), pixels, ("happy", "sad"))
    table = audit(ds, ("multilabel",), None).table1()
    assert table["duplicated"].isna().all() and table.multilabel.sum() == 1 and table.error_ratio.notna().all()
    assert audit(ds, None, None).table1()["duplicated"].sum() == 1
    assert audit(ds, ("multilabel",), None).leaked() == {"c"}
    with pytest.raises(ConfigError, match="audited for low_quality"):
        audit(ds, ("low_quality",), None).leaked()

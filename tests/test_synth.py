"""The exported synth module: properties over settings, edges of the settings, and refusals."""
import warnings

import numpy as np
import pandas as pd
import pytest

from fer_nb.core import EMOTIONS, ConfigError, FERError
from fer_nb.data import FER2013_COUNTS
from fer_nb.synth import AUS, DEFECTS, au_table, make_faces, render_faces, sample_aus

NEAR = ("shift", "recrop", "brightness", "jpeg", "mirror")


@pytest.fixture(scope="module")
def planted():
    return make_faces(600, seed=3, defects={kind: .04 for kind in DEFECTS}, balance="uniform")


def images_of(ds, ids):
    row = {name: i for i, name in enumerate(ds.df.id)}
    return ds.array()[[row[i] for i in ids]].astype(float)


@pytest.mark.parametrize("seed", [0, 1, -5, 2**40])
def test_same_seed_same_bytes(seed):
    (a, ta), (b, tb) = make_faces(60, seed=seed, defects={"exact": .1}), make_faces(60, seed=seed, defects={"exact": .1})
    assert a.fingerprint() == b.fingerprint()
    pd.testing.assert_frame_equal(ta, tb)


@pytest.mark.parametrize("n", [7, 31, 32, 33, 65])
def test_clean_prefix_across_batch_borders(n):
    small, large = make_faces(n, seed=2, defects={})[0], make_faces(80, seed=2, defects={})[0]
    assert (small.array() == large.array()[:n]).all()
    pd.testing.assert_frame_equal(small.df, large.df[:n])


@pytest.mark.parametrize("size", [32, 33, 128])
def test_sizes(size):
    ds, truth = make_faces(40, size=size, defects={"recrop": .1, "no_face": .2, "blank": .1})
    assert ds.array().shape == (40, size, size) and ds.array().dtype == np.uint8
    assert len(truth) == 16


def test_the_same_face_at_two_sizes_is_the_same_face():
    aus, _ = sample_aus(EMOTIONS, range(7))
    small, large = (render_faces(aus, range(7), range(7), size=s).astype(float) for s in (48, 96))
    halved = large.reshape(7, 48, 2, 48, 2).mean((2, 4))
    for a, b in zip(small, halved):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > .97


def test_class_shares_follow_fer2013():
    share = make_faces(2000, defects=None)[0].df.label.value_counts(normalize=True)
    total = np.sum(list(FER2013_COUNTS.values()), axis=0)
    assert np.abs(share[list(EMOTIONS)].to_numpy() - total / total.sum()).max() < .003


def test_balance_by_hand_leaves_out_what_it_does_not_name():
    ds, truth = make_faces(120, balance={"happy": 3, "sad": 1}, defects={"wrong_label": .1, "no_face": .1, "multilabel": .1})
    assert set(ds.df.label) == {"happy", "sad"} and ds.labels == EMOTIONS
    counts = make_faces(120, balance={"happy": 3, "sad": 1}, defects=None)[0].df.label.value_counts()
    assert abs(counts["happy"] - 90) <= 2


@pytest.mark.parametrize("splits", [(1, 0, 0), (.5, 0, .5), (7, 2, 1)])
def test_splits(splits):
    ds, _ = make_faces(400, defects=None, splits=splits, balance="uniform")
    share = ds.df.split.value_counts(normalize=True).reindex(["train", "valid", "test"], fill_value=0)
    assert np.abs(share - np.array(splits) / sum(splits)).max() < .02


def test_subjects_have_several_images_and_emotions():
    df = make_faces(500, defects=None, balance="uniform")[0].df
    assert df.groupby("subject").size().mean() > 4
    assert df.groupby("subject").label.nunique().mean() > 2


def test_subject_is_recognisable():
    aus = np.zeros((200, len(AUS)))
    faces = render_faces(aus, np.arange(200) // 2, np.arange(200)).reshape(200, -1).astype(float)
    r = np.corrcoef(faces)
    same, other = r[np.arange(0, 200, 2), np.arange(1, 200, 2)], r[np.arange(0, 198, 2), np.arange(2, 200, 2)]
    assert same.mean() > other.mean() + .05


def test_intensity_is_distance_from_the_neutral_face():
    peak = au_table().xs(2, level="variant").to_numpy()[:6]
    for row in peak:
        faces = render_faces(row * np.array([[0], [.3], [.6], [1]]), [5] * 4, [9] * 4).astype(float)
        change = np.abs(faces - faces[0]).mean((1, 2))
        assert (np.diff(change) > 0).all()


def test_every_kind_is_planted_as_often_as_asked(planted):
    ds, truth = planted
    assert len(ds) == 600 and len(truth) == 11 * 24
    assert truth.kind.value_counts().to_dict() == {"duplicate": 144, "no_face": 48, "leak": 24, "multilabel": 24, "label_error": 24}
    assert truth[truth.kind == "duplicate"].detail.value_counts().to_dict() == {k: 24 for k in ("exact",) + NEAR}
    assert set(truth.id) <= set(ds.df.id) and set(truth.partner) - {""} <= set(ds.df.id)


def test_near_copies_resemble_and_differ(planted):
    ds, truth = planted
    near = truth[truth.detail.isin(NEAR)]
    a, b = images_of(ds, near.id), images_of(ds, near.partner)
    assert (a != b).any((1, 2)).all()
    a[near.detail == "mirror"] = a[near.detail == "mirror"][:, :, ::-1]
    r = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b)]
    assert min(r) > .5 and np.mean(r) > .85


def test_leaks_come_exact_and_altered(planted):
    ds, truth = planted
    details = set(truth[truth.kind == "leak"].detail)
    assert "exact" in details and details & set(NEAR)


def test_planted_rows_are_spread_over_the_table(planted):
    ds, truth = planted
    where = np.flatnonzero(ds.df.id.isin(truth.id)) / len(ds)
    assert .4 < where.mean() < .6 and where.min() < .1 and where.max() > .9


def test_wrong_labels_name_the_emotion_that_is_shown(planted):
    ds, truth = planted
    wrong = truth[truth.kind == "label_error"]
    assert (wrong.partner == "").all() and set(wrong.detail) <= set(EMOTIONS)
    assert (ds.df.set_index("id").label[wrong.id].to_numpy() != wrong.detail.to_numpy()).all()


def test_half_of_a_small_set_may_be_defects():
    for n in (7, 8, 12, 25):
        ds, truth = make_faces(n, defects={"exact": .25, "leak": .25})
        assert len(ds) == n and len(truth) == 2 * int(n * .25)


def test_blanks_are_all_different():
    ds, truth = make_faces(400, defects={"blank": .5})
    levels = images_of(ds, truth.id)[:, 0, 0]
    assert len(set(levels)) == 200


def test_no_warnings_and_defaults_unchanged():
    before = dict(DEFECTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_faces(200)
    assert DEFECTS == before


@pytest.mark.parametrize("settings, named", [
    (dict(n=0), "n=0"), (dict(n=50, defects={"exact": .51}), "0.51"), (dict(n=50, defects={"exact": float("nan")}), "nan"),
    (dict(n=50, size=129), "129"), (dict(n=50, size=31), "31"), (dict(n=50, balance={}), "{}"),
    (dict(n=50, balance={"happy": -1, "sad": 2}), "-1"), (dict(n=50, balance={"happy": 0}), "0"), (dict(n=50, balance=None), "None"),
    (dict(n=50, splits=(0, 0, 0)), "'train': 0, 'valid': 0, 'test': 0"), (dict(n=50, splits=(1.2, -.2, 0)), "-0.2"),
    (dict(n=50, defects={"Exact": .1}), "Exact")])
def test_refusals_name_the_value(settings, named):
    with pytest.raises(FERError, match="(?s).*" + named.replace("(", r"\(").replace(")", r"\)").replace("{", r"\{")):
        make_faces(**settings)


@pytest.mark.parametrize("wrong", [
    {"balance": {"happy": float("nan"), "sad": 1}}, {"balance": {"happy": float("inf"), "sad": 1}}, {"balance": {"happy": "1"}},
    {"splits": (.8, float("nan"), .1)}, {"splits": None}, {"splits": 3}, {"defects": ["exact"]}, {"n": 100.5}, {"seed": .9}, {"seed": "1"}])
def test_shares_numbers_and_seeds_that_are_none_are_refused(wrong):
    [name] = wrong
    with pytest.raises(ConfigError, match=rf"^{name}="):
        make_faces(**{"n": 20, "defects": None} | wrong)


def test_splits_by_name_seeds_of_any_size_and_one_number_an_image():
    by_name = make_faces(20, 3, None, splits={"train": .5, "test": .2, "valid": .3})[0]
    assert by_name.fingerprint() == make_faces(20, 3, None, splits=(.5, .3, .2))[0].fingerprint()
    assert make_faces(7, 2**63, None)[0].fingerprint() == make_faces(7, -2**63, None)[0].fingerprint() != make_faces(7, 0, None)[0].fingerprint()
    aus, _ = sample_aus(["happy", "sad", "sad"], range(3))
    for call in (lambda: sample_aus(["happy", "sad", "sad"], [0]), lambda: render_faces(aus, [0], range(3))):
        with pytest.raises(ConfigError, match="one an image expected"):
            call()

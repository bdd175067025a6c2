"""What the audit is told by others, or measures itself: votes, models, the face finder, picture quality."""
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_nb.audit import (DROPPED, FACELESS, KINDS, PAPER_TABLE1, QualityLimits, audit, beside_paper, label_quality,
                          image_quality)
from fer_nb.core import EMOTIONS, ConfigError, DataError
from fer_nb.data import VOTE_COLUMNS, FERData, add_votes
from fer_nb.duplicates import grey_thumbs
from fer_nb.synth import make_faces


def voted(votes, labels, majority):
    "A dataset of noise images with the given votes: one dict an image."
    rng = np.random.default_rng(0)
    df = pd.DataFrame([{c: float(v.get(c.removeprefix("vote_"), 0)) for c in VOTE_COLUMNS} for v in votes])
    df = df.assign(id=[f"im{k}" for k in range(len(votes))], label=labels, split="train", vote_label=majority)
    return FERData(df, rng.integers(0, 256, (len(votes), 48, 48), dtype=np.uint8))


VOTED = voted([{"happy": 10}, {"sad": 8, "neutral": 2}, {"no_face": 9, "unknown": 1}, {"angry": 4, "fear": 4, "sad": 2},
               {"contempt": 7, "angry": 3}], ["happy", "happy", "sad", "sad", "angry"], ["happy", "sad", "", "", "contempt"])


def test_votes_name_the_wrong_labels_and_the_faceless():
    found = audit(VOTED).issues.set_index(["kind", "id"])
    assert set(found.loc["label_error"].index) == {"im1", "im4"}
    assert found.how["label_error", "im1"] == "votes" and found.suggested["label_error", "im1"] == "sad"
    assert found.score["label_error", "im1"] == 1 and found.score["label_error", "im4"] == pytest.approx(0.7)
    assert found.suggested["label_error", "im4"] == "", "contempt is none of the seven labels"
    assert set(found.loc["no_face"].index) == {"im2"} and found.score["no_face", "im2"] < FACELESS, "noise has many greys"


def test_a_majority_without_votes_is_refused():
    ds = FERData(VOTED.df.drop(columns="vote_sad"), VOTED.array())
    with pytest.raises(DataError, match="no column 'vote_sad'"):
        audit(ds, ("label_error",))


@pytest.mark.parametrize("kind", [("label_error",), ("no_face",)])
def test_columns_of_votes_that_are_none_are_refused(kind):
    def of(**columns):
        return VOTED.replace(df=VOTED.df.assign(**columns))

    lacking = VOTED.replace(df=VOTED.df.drop(columns=[c for c in VOTE_COLUMNS if c not in ("vote_no_face", "vote_sad")]))
    with pytest.raises(DataError, match="no column 'vote_neutral'"):
        audit(lacking, kind)
    for bad in ("many", -1.0, np.inf):
        with pytest.raises(DataError, match="vote_no_face of image 'im2' is .*a number of votes, 0 or more"):
            audit(of(vote_no_face=[0, 0, bad, 0, 0]), kind)
    text = of(vote_no_face=VOTED.df.vote_no_face.astype(int).astype(str))
    assert audit(text, kind).issues.equals(audit(VOTED, kind).issues)


@pytest.mark.parametrize("nothing", [np.nan, None, pd.NA])
def test_a_majority_that_is_missing_is_none(nothing):
    "As pandas reads an empty field."
    majority = VOTED.df.vote_label.astype(object).replace("", nothing)
    assert audit(VOTED.replace(df=VOTED.df.assign(vote_label=majority)), ("label_error",)).issues.equals(
        audit(VOTED, ("label_error",)).issues)


def test_a_majority_of_no_votes_is_refused():
    nobody = VOTED.df.assign(**{c: [*VOTED.df[c][:1], 0.0, *VOTED.df[c][2:]] for c in VOTE_COLUMNS})
    with pytest.raises(DataError, match="image 'im1' has a majority, 'sad', and no votes"):
        audit(VOTED.replace(df=nobody), ("label_error",))


def judged(n=140):
    "Images of seven labels, and a witness that is right about all but image 5, as a table by id."
    rng = np.random.default_rng(0)
    ds = FERData(pd.DataFrame({"id": [f"im{k:03}" for k in range(n)], "label": np.tile(EMOTIONS, n // 7), "split": "train"}),
                 rng.integers(0, 256, (n, 48, 48), dtype=np.uint8), name="judged")
    probs = np.eye(7)[ds.targets()] * .86 + .02
    probs[5] = np.roll(probs[5], 1)
    return ds, pd.DataFrame(probs, ds.df.id, list(ds.labels))


def errors(ds, probs):
    return audit(ds, ("label_error",), None, probs).issues


def test_a_table_of_probabilities_goes_by_id_and_name():
    ds, table = judged()
    expected = errors(ds, table.to_numpy())
    assert expected.id.tolist() == ["im005"]
    for other in (table[sorted(table)], table[::-1], table.sample(frac=1, random_state=0).reset_index()):
        assert errors(ds, other).equals(expected)
    with pytest.warns(UserWarning, match="1 images without a row: im005"):
        assert errors(ds, table.drop("im005")).empty
    with pytest.raises(DataError, match="no column 'fear'"):
        errors(ds, table.drop(columns="fear"))
    with pytest.raises(DataError, match="probs: none of its ids is in judged"):
        errors(ds, table.reset_index(drop=True).set_axis(ds.df.id + "x"))


def test_probabilities_of_other_rows_are_told():
    ds, table = judged()
    with pytest.warns(UserWarning, match="probs contradicts .*are its rows those of judged"):
        errors(ds, np.roll(table.to_numpy(), 1, axis=0))


@pytest.mark.parametrize("columns", [6, 8])
def test_probabilities_of_other_classes_are_refused(columns):
    ds, table = judged()
    ds = ds.where(label=EMOTIONS[:6])
    probs = np.full((len(ds), columns), 1 / columns)
    with pytest.raises(DataError, match=rf"shape \(120, {columns}\); \(120, 7\), a row an image.*in the order angry, "):
        errors(ds, probs)


def test_models_are_heard_where_the_votes_are_silent():
    probs = np.full((5, 7), 0.01)
    for row, emotion in enumerate(("sad", "fear", "sad", "fear", "angry")):  # im0 contradicts its votes and its label
        probs[row, EMOTIONS.index(emotion)] = 0.94
    both, model = audit(VOTED, probs=probs).issues, label_quality(VOTED.targets(), probs)
    errors = both[both.kind == "label_error"].set_index("id")
    assert "im0" not in errors.index, "the voters said happy, as the label does"
    silent = set(np.flatnonzero(model.error)) & {2, 3}
    assert set(errors.index[errors.how == "out-of-fold"]) == {f"im{k}" for k in silent}
    assert set(errors.index[errors.how == "votes"]) == {"im1", "im4"}


def test_label_quality_does_not_depend_on_the_order_or_on_images_that_nobody_judged():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 300)
    probs = rng.dirichlet(np.ones(4), 300) * 0.5
    probs[np.arange(300), y] += 0.5
    probs[:20] = np.roll(probs[:20], 1, axis=1)
    one, order = label_quality(y, probs), rng.permutation(300)
    two = label_quality(y[order], probs[order])
    np.testing.assert_allclose(one.quality.to_numpy()[order], two.quality)
    assert (one.error.to_numpy()[order] == two.error).all() and 10 <= one.error.sum() <= 40
    longer = label_quality(np.append(y, 0), np.vstack([probs, np.full(4, np.nan)]))
    np.testing.assert_allclose(longer.quality[:300], one.quality)
    assert np.isnan(longer.quality[300]) and not longer.error[300] and longer.suggested[300] == 0


@pytest.mark.parametrize("y", [[0, 0, 0], [2]])
def test_one_class_alone_has_no_label_errors(y):
    probs = np.tile([0.1, 0.8, 0.1], (len(y), 1))
    assert not label_quality(np.array(y), probs).error.any()


def test_a_class_that_never_occurs_is_no_obstacle():
    y = np.array([0] * 20 + [2] * 20)
    probs = np.where(np.arange(3) == y[:, None], 0.9, 0.05)
    probs[3] = [0.05, 0.05, 0.9]
    assert np.flatnonzero(label_quality(y, probs).error).tolist() == [3]


@pytest.mark.parametrize("probs, text", [(np.ones((4, 7)), "add up to 1"), (np.ones((5, 3)) / 3, "column a label"),
                                         (np.ones(5), "column a label"), (-np.eye(7)[:5], "add up to 1")])
def test_probabilities_that_are_none_are_refused(probs, text):
    y = np.array([0, 1, 2, 3, 4])
    with pytest.raises(DataError, match=text):
        label_quality(y[:len(probs)] if text == "add up to 1" else y, probs)


def card(seed=0):
    "A placeholder: a bright ground, and a few words of one grey."
    image = np.full((48, 48), 250, np.uint8)
    image[10:38:6, 6:42:2] = 40 + seed
    return image


def faceless_cases(votes=None):
    "Two placeholders, two textures that stand for photographs, and a blank; with votes for the first and third or without."
    texture = np.random.default_rng(0).normal(128, 40, (2, 48, 48)).clip(0, 255).astype(np.uint8)
    images = np.stack([card(), card(9), *texture, np.full((48, 48), 7, np.uint8)])
    ds = FERData(pd.DataFrame({"id": list("abcde"), "label": "sad", "split": "train"}), images)
    table = pd.DataFrame({"id": list("abcde"), "status": ["no_face", "ok", "no_face", "ok", "ok"],
                          "evidence": [0.15, np.nan, 0.6, np.nan, np.nan]})
    share = votes and pd.DataFrame(0.0, index=range(5), columns=list(VOTE_COLUMNS)).assign(vote_no_face=votes, vote_sad=[
        10 - v for v in votes], vote_label="sad")
    return (ds if votes is None else ds.replace(df=pd.concat([ds.df, share], axis=1))), table


def test_no_witness_of_a_missing_face_is_believed_alone():
    ds, table = faceless_cases()
    found = audit(ds, ("no_face",), faces=table).issues.set_index("id")
    assert found.how.to_dict() == {"a": "face finder", "c": "face finder", "e": "blank"}
    assert found.score["e"] == 1 and found.score["a"] > 0.9 and found.score["c"] < 0.1
    alone = audit(ds, ("no_face",), faces=table.drop(columns="evidence")).issues.set_index("id")
    assert alone.score["a"] < FACELESS and alone.index[0] == "e" and set(alone.index) == {"a", "c", "e"}
    assert audit(ds, ("no_face",)).issues.id.tolist() == ["e"], "without a witness blanks alone"
    with pytest.raises(DataError, match="'e' is not in the table"):
        audit(ds, ("no_face",), faces=table.iloc[:4])


def test_voters_and_finder_contradict_or_support_each_other():
    ds, table = faceless_cases(votes=[10, 10, 10, 10, 0])
    both = audit(ds, ("no_face",), faces=table).issues.set_index("id")
    votes = audit(ds, ("no_face",)).issues.set_index("id")
    assert both.how.to_dict() == {"a": "votes, face finder", "b": "votes", "c": "votes, face finder", "d": "votes", "e": "blank"}
    assert votes.how.to_dict() == {k: "votes" for k in "abcd"} | {"e": "blank"}
    assert both.score["a"] > votes.score["a"] > FACELESS > both.score["d"], "a texture with a face is one, whatever is voted"
    against = audit(faceless_cases(votes=[0] * 5)[0], ("no_face",), faces=table).issues.set_index("id")
    assert against.score["a"] < both.score["a"] and set(against.index) == {"a", "c", "e"}


def test_what_is_only_doubted_is_not_dropped_and_the_counts_say_so():
    ds, table = faceless_cases()
    report = audit(ds, ("no_face",), faces=table)
    assert set(report.clean().df.id) == {"b", "c", "d"}
    assert set(report.clean({"c": "drop", "a": "keep"}).df.id) == {"a", "b", "d"}
    rates = report.no_face_rates()
    assert rates.loc["sad", ["images", "listed", "faceless"]].tolist() == [5, 3, 2] == rates.loc["all", ["images", "listed", "faceless"]].tolist()
    assert rates.listed_percent["sad"] == 60 and rates.share_without["sad"] == 100 and rates.images["happy"] == 0
    note, = report.notes()
    assert note.startswith("no_face: 3 images are listed, 2 of them") and "60.0 % of sad" in note
    assert audit(ds.take([3]), ("no_face",)).notes() == [] == audit(ds.take([]), ("no_face",)).notes()


@pytest.mark.parametrize("shape", [(1, 1), (48, 1), (300, 200), (64, 64, 3)])
def test_the_entropy_of_any_image_is_that_of_its_thumbnail(shape):
    image = np.random.default_rng(1).integers(0, 256, (1, *shape), dtype=np.uint8)
    ds = FERData(pd.DataFrame({"id": ["a"], "label": "sad", "split": "train"}), image)
    counts = np.bincount(grey_thumbs(ds).numpy().ravel(), minlength=256) / 48**2
    expected = -sum(p * np.log2(p) for p in counts if p)
    assert image_quality(ds).entropy[0] == pytest.approx(expected, abs=1e-4)


def test_what_was_not_looked_for_is_unknown_not_zero():
    ds, _ = make_faces(60, seed=1)
    assert audit(ds).table1().label_error.isna().all()
    assert audit(ds).kinds == tuple(k for k in KINDS if k != "label_error")
    assert audit(VOTED).table1().label_error.sum() == 2
    with pytest.raises(ConfigError, match="needs a witness"):
        audit(ds, ("label_error",))


def test_doubt_is_not_deleted_unless_asked_for():
    report = audit(VOTED)
    assert set(report.clean().df.id) == {"im0", "im1", "im2", "im3", "im4"}
    assert set(report.clean(drop=(*DROPPED, "label_error")).df.id) == {"im0", "im2", "im3"}
    assert set(report.clean({"im1": "sad"}).df.set_index("id").label["im1"].split()) == {"sad"}
    with pytest.raises(ConfigError, match="'doubt'"):
        report.clean(drop=("doubt",))


def test_quality_of_many_sizes_and_files(tmp_path):
    face = make_faces(7, seed=2, defects=None, size=96)[0].array()[0]
    images = {"a": face, "b": face[::4, ::4], "c": np.repeat(face[..., None], 3, -1)}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    df = pd.DataFrame({"id": list(images), "label": "sad", "split": "train"})
    quality = image_quality(FERData(df, [tmp_path / f"{n}.png" for n in images])).set_index("id")
    assert quality.side.to_dict() == {"a": 96, "b": 24, "c": 96}
    assert quality.sharpness["a"] == pytest.approx(quality.sharpness["c"], rel=0.02)
    found = audit(FERData(df, [tmp_path / f"{n}.png" for n in images]), ("low_quality",)).issues
    assert found.id.tolist() == ["b"] and found.how.tolist() == ["size"] and found.score.tolist() == [0.25]


def test_limits_are_the_callers():
    ds, _ = make_faces(40, seed=3, defects=None)
    everything = QualityLimits(sharpness=1e9)
    assert set(audit(ds, ("low_quality",), limits=everything).issues.how) == {"blur"}
    assert len(audit(ds, ("low_quality",), limits=everything).issues) == 40
    nothing = QualityLimits(0, 0, 1 - 1e-9, 1 - 1e-9, 0)
    assert audit(ds, ("low_quality",), limits=nothing).issues.empty


def test_thousands_of_identical_pictures_cost_little():
    images = np.repeat(np.random.default_rng(0).integers(0, 256, (2, 48, 48), dtype=np.uint8), 3000, axis=0)
    df = pd.DataFrame({"id": [str(k) for k in range(6000)], "label": np.tile(["sad", "happy", "fear"], 2000),
                       "split": np.tile(["train", "test"], 3000)})
    tracemalloc.start()
    report = audit(FERData(df, images), ("duplicate", "multilabel", "leak"), search=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(report.issues) == 5988 + 6000 + 3000 and peak < 100e6


def test_the_papers_table_stands_beside_ours():
    table = beside_paper(audit(make_faces(60, seed=1)[0]).table1())
    assert list(table.index) == [*EMOTIONS, "all"]
    assert table["original", "paper"]["all"] == 35887 == PAPER_TABLE1.original.sum()
    assert table["original", "here"]["all"] == 60
    assert table["error_ratio", "here"].notna().all()


@pytest.mark.realdata
def test_ferplus_judges_fer2013(real_votes):
    ds = add_votes(*real_votes)
    report = audit(ds, ("label_error", "no_face"), search=None)
    judged = ds.df[ds.df.vote_label != ""]
    errors = report.issues[report.issues.kind == "label_error"]
    assert set(errors.id) == set(judged.id[judged.vote_label != judged.label])
    assert len(judged) == 25060 + 3199

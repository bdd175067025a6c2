"""The readers of FER+, KDEF, RAF-DB and AffectNet: tiny trees of each layout with the traps of the real ones."""
import csv
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from fer_nb import data
from fer_nb.core import EMOTIONS, LABEL_ORDERS, ConfigError, DataError, FERError, ImageError, LabelError
from fer_nb.data import (AFFECTNET_COUNTS, FERPLUS_COUNTS, FERPLUS_MODES, KDEF_ANGLES, KDEF_COUNTS, RAFDB_COUNTS,
                         VOTE_COLUMNS, Crop, FERData, read_votes, add_votes, read_affectnet, read_fer2013,
                         read_ferplus, read_folder, read_image, read_images, read_kdef, read_rafdb, resized,
                         vote_targets)
from fer_nb.formats import read

PICTURE = np.random.default_rng(5).integers(0, 256, (48, 48), dtype=np.uint8)
FERPLUS = LABEL_ORDERS["ferplus"]
NAMES = (*FERPLUS, "unknown", "no_face")
HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def save(path, pixels=PICTURE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(error, *needles, read):
    "The message of `read()`, which must raise exactly `error` and name every needle."
    with pytest.raises(FERError) as e:
        read()
    assert type(e.value) is error, repr(e.value)
    for needle in needles:
        assert str(needle) in str(e.value), (needle, str(e.value))
    return str(e.value)


def quiet(read, *args, **kwargs):
    "The result of `read`, which must not warn."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(*args, **kwargs)


# ---- FER+: the rules, written a second time from their text, one row at a time ----

def slow_rule(votes, mode):
    "(name -> share) of the kept emotions, or None."
    count = {name: v if v > 1 else 0 for name, v in zip(NAMES, votes)}
    S = sum(count.values())
    if mode == "majority":
        kept = {n: v for n, v in count.items() if v == max(count.values()) and v > 0.5 * S}
    elif mode == "multi_target":
        kept = {n: v for n, v in count.items() if v and v >= 0.3 * S}
    else:
        kept, left, reached = {}, dict(count), 0
        while reached < 0.75 * S and len(kept) < 3:
            top = max(left.values())
            stop = False
            for n in NAMES:
                if left[n] != top:
                    continue
                left[n], reached = 0, reached + top
                if n in ("unknown", "no_face"):
                    stop = True
                    if not kept:
                        kept[n] = top
                    break
                kept[n] = top
            if stop:
                break
        if len(kept) > 3:
            return None
    if sum(kept.values()) <= 0.5 * S:
        return None
    best = next(n for n in NAMES if kept.get(n) == max(kept.values()))
    if best in ("unknown", "no_face"):
        return None
    kept = {n: v for n, v in kept.items() if n in FERPLUS}
    return {n: v / sum(kept.values()) for n, v in kept.items()}


def agree(votes, mode):
    got = vote_targets(votes, mode)
    for row, shares in zip(votes, got):
        expected = slow_rule(row.tolist(), mode) or {}
        assert np.allclose(shares, [expected.get(n, 0) for n in FERPLUS], atol=1e-12), (mode, row, shares, expected)


@pytest.mark.parametrize("mode", FERPLUS_MODES)
def test_the_rules_agree_with_a_slow_loop(mode):
    rng = np.random.default_rng(1)
    concentrated = [rng.multinomial(10, rng.dirichlet(np.full(10, a))) for a in (.1, .3, 1) for _ in range(500)]
    agree(np.array(concentrated), mode)


@given(st.lists(st.lists(st.integers(0, 5), min_size=10, max_size=10), min_size=1, max_size=5), st.sampled_from(FERPLUS_MODES))
@settings(max_examples=150, deadline=None)
def test_the_rules_agree_on_any_votes(rows, mode):
    agree(np.array(rows), mode)


@pytest.mark.parametrize("votes, kept", [
    ([4, 0, 0, 4, 0, 0, 0, 0, 2, 0], {"majority": 0, "crossentropy": 2, "multi_target": 2}),
    ([5, 0, 0, 0, 0, 0, 0, 0, 5, 0], {"majority": 0, "crossentropy": 0, "multi_target": 1}),     # half is not more than half
    ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], {"majority": 0, "crossentropy": 0, "multi_target": 0}),     # five at once are too many
    ([3, 3, 3, 1, 0, 0, 0, 0, 0, 0], {"majority": 0, "crossentropy": 3, "multi_target": 3}),
    ([1] * 10, dict.fromkeys(("majority", "crossentropy", "multi_target"), 0)),                  # nothing but slips
    ([0] * 10, dict.fromkeys(("majority", "crossentropy", "multi_target"), 0))])
def test_corners_of_the_rules(votes, kept):
    assert {m: int((vote_targets(np.array([votes]), m) > 0).sum()) for m in kept} == kept


# ---- FER+: files ----

def ferplus_files(tmp_path, n=30, seed=0, header=HEADER, blank=(3,)):
    rng = np.random.default_rng(seed)
    usage = ["Training"] * (n - 8) + ["PublicTest"] * 4 + ["PrivateTest"] * 4
    votes = np.array([rng.multinomial(10, rng.dirichlet(np.full(10, .2))) for _ in range(n)])
    votes[list(blank)] = [0] * 9 + [10]
    pixels = rng.integers(0, 256, (n, 48, 48))
    write(tmp_path / "fer2013.csv", "emotion,pixels,Usage",
          *[f"{rng.integers(7)},{' '.join(map(str, p.ravel()))},{u}" for p, u in zip(pixels, usage)])
    names = ["" if k in blank else f"fer{k * 3 + 1:07}.png" for k in range(n)]                  # never the row's number
    write(tmp_path / "fer2013new.csv", header, *[",".join([u, i, *map(str, v)]) for u, i, v in zip(usage, names, votes)])
    return tmp_path / "fer2013new.csv", tmp_path / "fer2013.csv", votes, pixels, np.array(usage)


@pytest.mark.parametrize("num_classes", [7, 8])
@pytest.mark.parametrize("mode", FERPLUS_MODES)
def test_ferplus_is_joined_by_row_and_valid_and_test_go_by_majority(tmp_path, mode, num_classes):
    new, old, votes, pixels, usage = ferplus_files(tmp_path, 120, blank=(3, 60, 117))
    ds = quiet(read_ferplus, new, old, mode, num_classes)
    expected = {}
    for k, row in enumerate(votes):
        shares = None if k in (3, 60, 117) else slow_rule(row.tolist(), mode if usage[k] == "Training" else "majority")
        label = shares and next(n for n in FERPLUS if shares.get(n) == max(shares.values()))
        if label and not (label == "contempt" and num_classes == 7):
            expected[f"row{k + 2}"] = k, label, shares
    assert ds.df.id.tolist() == list(expected) and ds.df.label.tolist() == [e[1] for e in expected.values()]
    assert (ds.array() == pixels[[e[0] for e in expected.values()]]).all()
    assert ds.labels == FERPLUS[:num_classes]
    soft = ds.soft_labels()
    for row, (_, _, shares) in zip(soft, expected.values()):
        kept = {n: s for n, s in shares.items() if n in ds.labels}
        assert np.allclose(row, [kept.get(n, 0) / sum(kept.values()) for n in ds.labels])
    assert set(ds.dropped.id) == {f"row{k + 2}" for k in range(120)} - set(expected)
    assert set(ds.dropped.why) <= {"blank_name", "no_face", "unknown", "contempt"}
    assert ds.dropped.why[ds.dropped.id.isin(["row5", "row62", "row119"])].tolist() == ["blank_name"] * 3
    assert ("contempt" in set(ds.dropped.why)) == (num_classes == 7)
    assert (ds.df.fer2013_label == read_fer2013(old).df.set_index("id").label[ds.df.id].to_numpy()).all()


def test_spaces_in_the_header_other_column_order_and_a_byte_order_mark(tmp_path):
    new, old, *_ = ferplus_files(tmp_path)
    plain = read_ferplus(new, old)
    table = pd.read_csv(new, keep_default_na=False)
    table = table[list(table)[::-1]]
    table.columns = [f" {c}" for c in table]
    table.to_csv(new, index=False, encoding="utf-8-sig")
    again = read_ferplus(new, read_fer2013(old))
    assert again.fingerprint() == plain.fingerprint() and again.df.equals(plain.df)


def test_what_does_not_belong_together_is_refused(tmp_path):
    new, old, *_ = ferplus_files(tmp_path)
    whole = read_fer2013(old)
    lines = new.read_text().splitlines()
    short = write(tmp_path / "short.csv", *lines[:-1])
    refused(DataError, short, old, "29", "30", read=lambda: read_ferplus(short, old))
    refused(DataError, new, "fer2013 3", read=lambda: read_ferplus(new, whole.take([0, 1, 2])))
    swapped = write(tmp_path / "swapped.csv", lines[0], *lines[1:22], lines[23], lines[22], *lines[24:])
    assert lines[22].startswith("Training") and lines[23].startswith("PublicTest")
    refused(DataError, f"{swapped}, row 23", "row23", "valid", "train", read=lambda: add_votes(whole, swapped))
    refused(DataError, "not in the order", read=lambda: add_votes(whole.take([1, 0, *range(2, 30)]), new))
    mirror = FERData(whole.df.assign(id=[f"train/{k}" for k in range(30)]), whole.array())
    refused(DataError, "not in the order", read=lambda: add_votes(mirror, new))
    refused(ConfigError, new, "votes only", read=lambda: read_ferplus(new))
    refused(DataError, "missing.csv", read=lambda: read_ferplus(tmp_path / "missing.csv", old))
    refused(ConfigError, "'most'", read=lambda: read_ferplus(new, old, "most"))
    refused(ConfigError, "6", "7 or 8", read=lambda: read_ferplus(new, old, num_classes=6))


def test_ferplus_asks_of_fer2013_what_it_is_asked_for(tmp_path, monkeypatch):
    new, old, *_ = ferplus_files(tmp_path)
    monkeypatch.setattr(data, "FER2013_COUNTS", {s: n.tolist() for s, n in read_fer2013(old).counts().drop(columns="all").items()})
    for path in (new, old):
        path.write_text("\n".join(path.read_text().splitlines()[:-4]) + "\n")                # without PrivateTest
    with pytest.warns(UserWarning, match="fer2013: no test images; 4 were published"):
        read_ferplus(new, old)
    quiet(read_ferplus, new, old, splits=("train", "valid"))


@pytest.mark.parametrize("row, error, needle", [
    ("Training,x.png,4,0,0,1,3,2,0,0,0", DataError, "11 fields"), ("Testing,x.png,4,0,0,1,3,2,0,0,0,0", DataError, "'Testing'"),
    ("Training,x.png,4,0,0,1,3,2,0,0,0,-1", DataError, "'-1'"), ("Training,x.png,4,0,0,one,3,2,0,0,0,0", DataError, "'one'"),
    ("Training,x.png,4,0,0,1.5,3,2,0,0,0,0", DataError, "'1.5'"), ("Training,x.png,9,9,0,0,0,0,0,0,0,0", DataError, "18 votes")])
def test_a_bad_row_of_votes_is_named(tmp_path, row, error, needle):
    path = write(tmp_path / "new.csv", HEADER, "Training,y.png,10,0,0,0,0,0,0,0,0,0", row)
    refused(error, f"{path}, row 3", needle, read=lambda: read_votes(path))


def test_a_table_of_votes_without_rows_or_columns_is_refused(tmp_path):
    refused(DataError, "empty", read=lambda: read_votes(write(tmp_path / "a.csv")))
    refused(DataError, "no rows", read=lambda: read_votes(write(tmp_path / "b.csv", HEADER)))
    refused(DataError, "'NF'", read=lambda: read_votes(write(tmp_path / "c.csv", HEADER[:-3])))


def test_add_votes_keeps_labels_rows_and_order(tmp_path):
    new, old, votes, _, _ = ferplus_files(tmp_path)
    plain = read_fer2013(old)
    ds = add_votes(plain, new)
    assert ds.labels == EMOTIONS and ds.fingerprint() == plain.fingerprint()
    assert (ds.df[list(VOTE_COLUMNS)].to_numpy() == votes).all()
    rules = [slow_rule(v.tolist(), "majority") for v in votes]
    assert ds.df.vote_label.tolist() == [next(iter(r)) if r else "" for r in rules]
    soft = ds.soft_labels()                                                       # plain shares of the seven emotions
    order = [FERPLUS.index(e) for e in EMOTIONS]
    for row, v in zip(soft, votes):
        own = v[order]
        assert np.allclose(row, own / own.sum()) if own.sum() else np.isnan(row).all()
    assert np.isnan(ds.soft_labels("majority")).any(1).sum() == (~ds.df.vote_label.isin(EMOTIONS)).sum()
    refused(LabelError, "'bored'", read=FERData(ds.df.assign(label="bored"), ds.array(), ["bored"]).soft_labels)


def label_folder(root, box, splits=("Train", "Valid", "Test"), prefix=""):
    votes = {"a.png": [8, 0, 0, 2, 0, 0, 0, 0, 0, 0], "b.png": [0, 0, 0, 0, 0, 0, 0, 10, 0, 0], "c.png": [0] * 8 + [10, 0]}
    for s in splits:
        folder = root / f"{prefix}FER2013{s}"
        write(folder / "label.csv", *[",".join([n, *(['"(0, 0, 48, 48)"'] if box else []), *map(str, v)]) for n, v in votes.items()])
        for k, n in enumerate(votes):
            save(folder / n, PICTURE + np.uint8(k))


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("prefix", ["", "data/"])
def test_both_forms_of_label_csv(tmp_path, box, prefix):
    label_folder(tmp_path, box, prefix=prefix)
    ds = quiet(read_ferplus, tmp_path)
    assert ds.df.label.tolist() == ["neutral", "contempt"] * 3
    assert ds.df.split.tolist() == ["train"] * 2 + ["valid"] * 2 + ["test"] * 2
    assert ds.df.id.tolist()[:3] == ["FER2013Train/a.png", "FER2013Train/b.png", "FER2013Valid/a.png"]   # names recur
    assert (ds.image(1) == PICTURE + np.uint8(1)).all()
    assert set(read_ferplus(tmp_path, num_classes=7).dropped.why) == {"unknown", "contempt"}


def test_label_folders_that_contradict_themselves(tmp_path):
    label_folder(tmp_path, True)
    refused(ConfigError, tmp_path, read=lambda: read_ferplus(tmp_path, tmp_path / "fer2013.csv"))
    source = tmp_path / "FER2013Valid/label.csv"
    text = source.read_text()
    for change, needles in [(lambda t: t.replace("48)", "40)", 1), ["row 1", "40"]), (lambda t: t + "a.png," + "1," * 9 + "1\n", ["a.png", "row 4"]),
                            (lambda t: "../" + t, ["row 1", "'../a.png'"]), (lambda t: t.replace("a.png", "d.png"), ["a.png", "no label"]),
                            (lambda t: t + "d.png," + "1," * 9 + "1\n", ["d.png", "row 4"]), (lambda t: t.replace(",0", ""), ["fields"])]:
        source.write_text(change(text))
        refused(DataError, source.parent, *needles, read=lambda: read_ferplus(tmp_path))
    source.unlink()
    refused(DataError, source, read=lambda: read_ferplus(tmp_path))
    refused(DataError, "FER2013Train", read=lambda: read_ferplus(save(tmp_path / "other/x.png").parent))


@pytest.mark.realdata
@pytest.mark.parametrize("mode, train, blank, refused_rows", [
    ("majority", 25060, 148, 3501), ("crossentropy", 27956, 148, 605), ("multi_target", 27671, 148, 890)])
def test_real_ferplus_has_the_published_counts(real_votes, mode, train, blank, refused_rows):
    fer2013, path = real_votes
    ds = read_ferplus(path, fer2013, mode, strict=True, splits=("train", "valid"))
    assert (ds.df.split == "train").sum() == train and (ds.df.split == "valid").sum() == 3199
    why = ds.dropped[ds.dropped.split == "train"].why.value_counts()
    assert why.pop("blank_name") == blank and why.sum() == refused_rows
    if mode == "majority":
        assert tuple(ds.counts().train) == FERPLUS_COUNTS["train"]
        seven = read_ferplus(path, fer2013, num_classes=7, strict=True, splits=("train", "valid"))
        assert len(seven) == len(ds) - 119 - 13
    sample = np.random.default_rng(0).choice(len(fer2013), 2000, replace=False)
    agree(read_votes(path)[list(VOTE_COLUMNS)].to_numpy()[sample], mode)
    with pytest.raises(DataError, match="no test images; 3153 were published"):
        read_ferplus(path, fer2013, mode, strict=True)


# ---- counts, and FER2013's mirror ----

def test_published_totals():
    assert {s: sum(c) for s, c in FERPLUS_COUNTS.items()} == {"train": 25060, "valid": 3199, "test": 3153}
    assert sum(KDEF_COUNTS["train"]) * len(KDEF_ANGLES) == 4900 and sum(map(sum, RAFDB_COUNTS.values())) == 15339
    assert all(len(c) == 8 for c in AFFECTNET_COUNTS.values())


def test_absent_splits_are_named_unless_they_are_not_expected():
    df = pd.DataFrame({"id": ["a", "b"], "label": "sad", "split": "train"})
    ds, published = FERData(df, np.zeros((2, 4, 4), np.uint8), name="mine"), {"train": (0, 0, 0, 0, 2, 0, 0), "test": (3,) * 7}
    with pytest.warns(UserWarning, match="mine: no test images; 21 were published") as caught:
        assert ds.check_counts(published).attrs["absent"] == ["test"]
    assert len(caught) == 1
    refused(DataError, "no test images", read=lambda: ds.check_counts(published, strict=True))
    assert quiet(ds.check_counts, published, True, ["train"]).attrs["absent"] == []
    refused(ConfigError, "expected split='exam'", read=lambda: ds.check_counts(published, expected=["exam"]))


@pytest.mark.parametrize("shape", [(64, 64), (48, 48, 3)])
@pytest.mark.parametrize("rest", [0, 2])
def test_a_mirror_with_other_images_is_named(tmp_path, shape, rest):
    for k in range(rest):
        save(tmp_path / f"train/sad/Training_{k}.png")
    save(tmp_path / "test/happy/PublicTest_9.png", np.zeros(shape, np.uint8))
    with pytest.warns(UserWarning, match="images are not 48 × 48 grey") as caught:
        read_fer2013(tmp_path)
    assert " × ".join(map(str, shape)) in str(caught[0].message) and caught[0].filename == __file__
    refused(ImageError, tmp_path, read=lambda: read_fer2013(tmp_path, strict=True))


def test_a_mirror_of_several_sizes_is_counted_as_it_is_from_its_headers(tmp_path, monkeypatch):
    for k, shape in enumerate([(48, 48), (48, 48), (64, 64)]):
        save(tmp_path / f"train/sad/Training_{k}.png", np.zeros(shape, np.uint8))
    looked = []
    monkeypatch.setattr(data, "read_image", lambda path, f=read_image: looked.append(path) or f(path))
    with pytest.warns(UserWarning, match=r"1 of 3 images are not 48 × 48 grey as FER2013's are: 64 × 64 \(1\)"):
        read_fer2013(tmp_path)
    assert not looked, "decoded to learn its size"
    save(tmp_path / "train/sad/Training_2.png", np.zeros((48, 48, 3), np.uint8))     # one in colour: not all of them
    with pytest.warns(UserWarning, match=r"1 of 3 images .*: 48 × 48 × 3 \(1\)"):
        assert read_fer2013(tmp_path).array().shape == (3, 48, 48, 3)


# ---- crops ----

@given(st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 99), st.integers(1, 99))
@settings(max_examples=100, deadline=None)
def test_a_crop_is_the_part_inside(x, y, w, h):
    canvas = np.full((300, 300), -1)
    canvas[100:148, 100:148] = PICTURE
    part = canvas[100 + y:100 + y + h, 100 + x:100 + x + w]
    part = part[(part >= 0).any(1)][:, (part >= 0).any(0)] if (part >= 0).any() else None
    if part is None:
        refused(ImageError, "here.png", (x, y, w, h), read=lambda: Crop(Path("here.png"), (x, y, w, h)).cut(PICTURE))
    else:
        assert (Crop(Path("here.png"), (x, y, w, h)).cut(PICTURE) == part).all()


def test_crops_go_through_a_dataset(tmp_path):
    path = save(tmp_path / "a.png")
    crops = [Crop(path, (0, 0, 10, 20)), Crop(path, (5, 5, 30, 30)), Crop(path, (90, 90, 9, 9))]
    df = pd.DataFrame({"id": ["a", "b", "c"], "label": "sad", "split": "train"})
    ds = FERData(df, crops).take([1, 0])
    assert ds.image(0).shape == (30, 30) and ds.image(1).shape == (20, 10) and resized(ds, 16).array().shape == (2, 16, 16)
    refused(ImageError, "(20, 10)", path, read=ds.array)
    refused(ImageError, "1 of 3", "(90, 90, 9, 9)", read=lambda: read_images(crops))


def test_a_selection_without_images_is_an_empty_array(tmp_path):
    ds = FERData(pd.DataFrame({"id": ["a"], "label": "sad", "split": "train"}), [save(tmp_path / "a.png")])
    none = ds.where(split="valid")
    assert len(none.array()) == 0 and resized(none, 24).array().shape == (0, 24, 24)


# ---- KDEF ----

def kdef_tree(root, people=("AF01", "BF01", "AM35"), angles=("S", "FL")):
    for person in people:
        for code in ("AF", "AN", "DI", "HA", "NE", "SA", "SU"):
            for angle in angles:
                save(root / f"KDEF_and_AKDEF/KDEF/{person}/{person}{code}{angle}.JPG")


def test_kdef_reads_its_names(tmp_path):
    kdef_tree(tmp_path)
    ds = quiet(read_kdef, tmp_path)
    assert len(ds) == 21 and set(ds.df.angle) == {"S"} and set(ds.df.split) == {"train"} and ds.labels == EMOTIONS
    row = ds.df.set_index("id")
    assert row.loc["AF01AFS", ["label", "series", "sex", "subject"]].tolist() == ["fear", "A", "F", "F01"]
    assert row.loc["BF01SAS", ["label", "series", "subject"]].tolist() == ["sad", "B", "F01"]
    assert row.loc["AM35SUS", ["label", "sex", "subject"]].tolist() == ["surprise", "M", "M35"]
    assert ds.image(0).shape == (48, 48) and not isinstance(ds._images, np.ndarray)
    assert len(quiet(read_kdef, tmp_path, "all")) == 42 and set(read_kdef(tmp_path, "FL").df.angle) == {"FL"}
    assert read_kdef(tmp_path, ["S", "FL"]).df.id.nunique() == 42


def test_kdef_leaves_out_akdef_and_lists_it(tmp_path):
    kdef_tree(tmp_path)
    for stem in ("FAFS", "FAFFL", "MSUHR"):
        save(tmp_path / f"KDEF_and_AKDEF/AKDEF/{stem}.JPG")
    ds = quiet(read_kdef, tmp_path, "all")
    assert len(ds) == 42 and ds.dropped.why.tolist() == ["akdef"] * 3


@pytest.mark.parametrize("name", ["AF01/AF01XXS.JPG", "AF01/AF36ANS.JPG", "AF00/AF00ANS.JPG", "CF01/CF01ANS.JPG", "AF01/AF01AN.JPG",
                                  "AF01/AF01ANS2.JPG", "AF01/AF02ANS.JPG", "AF01/copy of AF01ANS.JPG", "AF01/AF01ANSFL.JPG"])
def test_a_kdef_file_with_another_name_is_never_skipped_in_silence(tmp_path, name):
    kdef_tree(tmp_path)
    save(tmp_path / "KDEF_and_AKDEF/KDEF" / name)
    with pytest.warns(UserWarning, match="left out") as caught:
        ds = read_kdef(tmp_path)
    assert name in str(caught[0].message) and caught[0].filename == __file__
    assert len(ds) == 21 and len(ds.dropped) == 1 and ds.dropped.id[0].endswith(name)
    refused(DataError, name, read=lambda: read_kdef(tmp_path, strict=True))


def test_kdef_in_small_letters_flat_and_with_other_endings(tmp_path):
    for name in ("af01ans.jpg", "BF01SUS.Jpeg", "AM02NES.JPG"):
        save(tmp_path / name)
    save(tmp_path / "__MACOSX/._AF01ANS.png")
    assert quiet(read_kdef, tmp_path).df.id.tolist() == ["AM02NES", "BF01SUS", "AF01ANS"]
    save(tmp_path / "copy/AF01ANS.JPG")
    refused(DataError, "AF01ANS", "copy", "af01ans.jpg", read=lambda: read_kdef(tmp_path))


def test_broken_kdef_images_are_found(tmp_path):
    kdef_tree(tmp_path)
    home = tmp_path / "KDEF_and_AKDEF/KDEF/AF01"
    save(home / "AF01AFS.JPG", np.zeros((48, 48), np.uint8))
    save(home / "AF01ANS.JPG", np.full((48, 48), 250, np.uint8))
    save(home / "AF01DIS.JPG", PICTURE[:40])
    (home / "AF01HAS.JPG").write_bytes((home / "AF01HAS.JPG").read_bytes()[:700])
    (home / "AF01NES.JPG").write_bytes(b"")
    save(home / "AF01SAFL.JPG", np.zeros((48, 48), np.uint8))                    # another angle: not looked at
    why = ["blank", "blank", "48 × 40 pixels", "not decodable", "not decodable"]
    with pytest.warns(UserWarning, match="5 broken images: AF01AFS \\(blank\\)") as caught:
        ds = read_kdef(tmp_path, broken="any")
    assert len(ds) == 16 and ds.dropped.why.tolist() == why and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="5 broken"):
        every = read_kdef(tmp_path, broken="keep")
    assert len(every) == 21 and every.df.broken[every.df.broken != ""].tolist() == why and len(every.dropped) == 0
    refused(ImageError, "AF01HAS (not decodable)", read=lambda: read_kdef(tmp_path, broken="raise"))


def test_a_kdef_image_of_a_few_pixels_is_broken_and_no_more(tmp_path):
    kdef_tree(tmp_path)
    save(tmp_path / "KDEF_and_AKDEF/KDEF/AF01/AF01AFS.JPG", PICTURE[:5, :5])
    with pytest.warns(UserWarning, match=r"AF01AFS \((blank|5 × 5 pixels)\)"):
        assert len(read_kdef(tmp_path)) == 20


def test_kdef_refuses_what_it_cannot_do(tmp_path):
    kdef_tree(tmp_path)
    for angles in ("X", (), ["S", "front"]):
        refused(ConfigError, "angles", read=lambda: read_kdef(tmp_path, angles))
    refused(ConfigError, "'ignore'", read=lambda: read_kdef(tmp_path, broken="ignore"))
    refused(DataError, "angles HR", read=lambda: read_kdef(tmp_path, "HR"))
    refused(DataError, "no such", read=lambda: read_kdef(tmp_path / "none"))
    refused(DataError, "140", "read", read=lambda: read_kdef(tmp_path, strict=True))


# ---- RAF-DB ----

ROWS = [("train_00001.jpg", 5), ("train_00002.jpg", 4), ("test_0001.jpg", 7), ("test_0002.jpg", 1)]


def rafdb(root, rows=ROWS, kind="aligned", codes=()):
    for name, _ in rows:
        stem = Path(name).stem + ("_aligned" if kind == "aligned" else "")
        save(root / f"basic/Image/{kind}/{stem}.jpg", PICTURE if kind == "aligned" else np.zeros((60, 80, 3), np.uint8))
    for name in codes:
        write(root / f"basic/Annotation/manual/{name}_manu_attri.txt", *["1.0\t2.0"] * 5, "1", "0", "3")
    write(root / "basic/EmoLabel/list_patition_label.txt", *[f"{n} {k}" for n, k in rows])
    return root


@pytest.mark.parametrize("inner", ["", "basic"])
def test_rafdb_official(tmp_path, inner):
    rafdb(tmp_path, codes=[Path(n).stem for n, _ in ROWS])
    rafdb(tmp_path, kind="original")
    ds = quiet(read_rafdb, tmp_path / inner)
    assert ds.df.id.tolist() == ["train_00001", "train_00002", "test_0001", "test_0002"]
    assert ds.df.label.tolist() == ["sad", "happy", "neutral", "surprise"] and ds.labels == LABEL_ORDERS["rafdb"]
    assert ds.df.split.tolist() == ["train", "train", "test", "test"] and ds.targets().tolist() == [4, 3, 6, 0]
    assert ds.df[["gender", "race", "age"]].to_numpy().tolist() == [[1, 0, 3]] * 4
    assert ds.image(0).shape == (48, 48) and read_rafdb(tmp_path, aligned=False).image(0).shape == (60, 80, 3)


@pytest.mark.parametrize("line, error, needle", [
    ("train_00003.jpg 0", LabelError, "'0'"), ("train_00003.jpg 8", LabelError, "'8'"), ("train_00003.jpg sad", LabelError, "'sad'"),
    ("train_00003.jpg", DataError, "1 fields"), ("train_00003.jpg 3 1", DataError, "3 fields"), ("../train_00003.jpg 3", DataError, "../train"),
    ("valid_00003.jpg 3", DataError, "valid_00003"), ("train_00001.jpg 5", DataError, "row 1"), ("train_00003.jpg 3", DataError, "no image")])
def test_a_bad_line_of_rafdbs_list_is_named(tmp_path, line, error, needle):
    rafdb(tmp_path)
    path = tmp_path / "basic/EmoLabel/list_patition_label.txt"
    path.write_text(path.read_text() + line + "\n")
    refused(error, f"{path}, row 5", needle, read=lambda: read_rafdb(tmp_path))


def test_rafdb_files_that_do_not_match(tmp_path):
    rafdb(tmp_path, codes=["train_00001", "train_00002", "test_0001"])
    refused(DataError, "test_0002_manu_attri.txt", read=lambda: read_rafdb(tmp_path))
    code = write(tmp_path / "basic/Annotation/manual/test_0002_manu_attri.txt", "1 2", "1")
    refused(DataError, code, read=lambda: read_rafdb(tmp_path))
    write(code, *["1 2"] * 5, "1", "x", "3")
    refused(DataError, f"{code}, row 7", "race", read=lambda: read_rafdb(tmp_path))
    shutil.rmtree(tmp_path / "basic/Annotation")
    extra = save(tmp_path / "basic/Image/aligned/test_0009_aligned.jpg")
    refused(DataError, extra, "no label", read=lambda: read_rafdb(tmp_path))
    extra.rename(extra.with_name("face.jpg"))
    refused(DataError, "'face.jpg'", read=lambda: read_rafdb(tmp_path))
    refused(DataError, "original", read=lambda: read_rafdb(tmp_path, aligned=False))
    refused(DataError, "EmoLabel", read=lambda: read_rafdb(tmp_path / "nowhere"))


def mirror(root, csvs="", rows=ROWS):
    for name, k in rows:
        save(root / f"DATASET/{name.partition('_')[0]}/{k}/{Path(name).stem}_aligned.jpg")
    for s in ("train", "test") if csvs is not None else ():
        write(root / csvs / f"{s}_labels.csv", "image,label", *[f"{Path(n).stem}_aligned.jpg,{k}" for n, k in rows if n.startswith(s)])
    return root


@pytest.mark.parametrize("csvs", ["", "DATASET", None])
@pytest.mark.parametrize("inner", ["", "DATASET"])
def test_rafdb_mirror(tmp_path, csvs, inner):
    official = read_rafdb(rafdb(tmp_path / "official"))
    ds = quiet(read_rafdb, mirror(tmp_path / "mirror", csvs) / inner)
    assert ds.df.set_index("id").sort_index().equals(official.df.set_index("id").sort_index())
    refused(ConfigError, "aligned", read=lambda: read_rafdb(tmp_path / "mirror", aligned=False))


def test_an_altered_mirror_is_refused(tmp_path):
    def case(name, change):
        root = mirror(tmp_path / name)
        change(root)
        return lambda: read_rafdb(root)

    refused(DataError, "test_0001_aligned.jpg", "altered",
            read=case("leak", lambda r: save(r / "DATASET/train/7/test_0001_aligned.jpg")))
    refused(LabelError, "'0'", read=case("zero", lambda r: save(r / "DATASET/train/0/train_00009_aligned.jpg")))
    refused(DataError, "train_00001", "/4/", "/5/", read=case("twice", lambda r: save(r / "DATASET/train/4/train_00001_aligned.jpg")))
    refused(LabelError, "train_labels.csv, row 2", "sad", read=case("moved", lambda r: write(
        r / "train_labels.csv", "image,label", "train_00001_aligned.jpg,6", "train_00002_aligned.jpg,4")))
    refused(DataError, "train_00002", "no label", read=case("fewer", lambda r: write(
        r / "train_labels.csv", "image,label", "train_00001_aligned.jpg,5")))
    refused(DataError, "row 4", "no image", read=case("more", lambda r: write(
        r / "train_labels.csv", " image , label", "train_00001_aligned.jpg,5", "train_00002_aligned.jpg,4", "train_00003_aligned.jpg,4")))
    refused(DataError, "'label'", read=case("column", lambda r: write(r / "train_labels.csv", "image,id", "train_00001_aligned.jpg,5")))


def test_counts_of_another_order_are_refused_when_strict_and_said_when_whole(tmp_path, monkeypatch):
    rafdb(tmp_path)
    monkeypatch.setattr(data, "RAFDB_COUNTS", {"train": (1, 0, 0, 0, 1, 0, 0), "test": (1, 0, 0, 0, 0, 0, 1)})
    with pytest.warns(UserWarning, match="rafdb: counts differ"):
        read_rafdb(tmp_path)
    refused(DataError, "happy", "surprise", read=lambda: read_rafdb(tmp_path, strict=True))
    monkeypatch.setattr(data, "RAFDB_COUNTS", {"train": (0, 0, 0, 1, 1, 0, 0), "test": (1, 0, 0, 0, 0, 0, 1)})
    quiet(read_rafdb, tmp_path, strict=True)


# ---- AffectNet, layout A ----

A_HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
TRAIN = ["1/a.jpg,10,5,20,30,1.5;2,0,0.1,0.2", "1/B.JPG,0,0,48,48,1;2,7,-1,1", "2/c.png,NULL,NULL,NULL,NULL,,10,-2,-2",
         "2/d.PNG,-9,40,20,30,1;2,3,-2,-2", "2/e.jpg,1,2,3,4,1;2,8,0,0"]


def layout_a(root, train=TRAIN, header=A_HEADER, valid_header=None, nested="", lists="Manually_Annotated_file_lists"):
    for name in ("1/a.jpg", "1/b.jpg", "2/c.png", "2/d.png", "2/e.jpg", "3/f.jpg"):
        save(root / nested / "Manually_Annotated_Images" / name)
    write(root / lists / "training.csv", *([header] if header else []), *train)
    write(root / lists / "validation.csv", *([valid_header] if valid_header else []), "3/f.jpg,4,4,9,9,1;2,5,0.5,0.5")
    return root


@pytest.mark.parametrize("nested", ["", "Manually_Annotated", "Manually_Annotated_Images"])
@pytest.mark.parametrize("valid_header", [None, A_HEADER, A_HEADER.replace(",", ", ")])
def test_affectnet_lists(tmp_path, nested, valid_header):
    root = layout_a(tmp_path / "net", nested=nested, valid_header=valid_header)
    ds = quiet(read_affectnet, root, cache=False)
    assert ds.df.id.tolist() == ["train/1/a.jpg", "train/1/B.JPG", "train/2/d.PNG", "valid/3/f.jpg"]
    assert ds.df.label.tolist() == ["neutral", "contempt", "surprise", "disgust"] and ds.labels == LABEL_ORDERS["affectnet"]
    assert [ds.image(k).shape for k in range(4)] == [(30, 20), (48, 48), (8, 11), (9, 9)]
    whole = read_image(next(root.rglob("a.jpg")))
    assert (ds.image(0) == whole[5:35, 10:30]).all()
    assert ds.df.valence.tolist()[:2] == [.1, -1] and np.isnan(ds.df.valence[2]) and np.isnan(ds.df.arousal[2])
    assert ds.dropped.to_dict("list") == {"id": ["train/2/c.png", "train/2/e.jpg"], "split": ["train"] * 2, "why": ["no_face", "none"]}
    seven = read_affectnet(root, 7, crop=False, cache=False)
    assert len(seven) == 3 and seven.image(0).shape == (48, 48) and "contempt" in set(seven.dropped.why) and len(seven.labels) == 7


def test_affectnet_lists_beside_the_images_and_columns_in_another_order(tmp_path):
    order = [8, 7, 6, 5, 4, 3, 2, 1, 0]
    swapped = [",".join(line.split(",")[k] for k in order) for line in (A_HEADER, *TRAIN)]
    a = read_affectnet(layout_a(tmp_path / "a"), cache=False)
    b = read_affectnet(layout_a(tmp_path / "b", swapped[1:], swapped[0], lists="."), cache=False)
    assert a.fingerprint() == b.fingerprint() and a.df.equals(b.df)


@pytest.mark.parametrize("row, error, needle", [
    ("1/a.jpg,1,1,9,9,1;2,0,0", DataError, "8 fields"), ("9/z.jpg,1,1,9,9,1;2,0,0,0", DataError, "9/z.jpg"),
    ("../1/a.jpg,1,1,9,9,1;2,0,0,0", DataError, "inside"), (".,1,1,9,9,1;2,0,0,0", DataError, "inside"), ("/1/a.jpg,1,1,9,9,1;2,0,0,0", DataError, "inside"),
    ("2/e.jpg,1,1,9,9,1;2,11,0,0", LabelError, "'11'"), ("2/e.jpg,1,1,9,9,1;2,-1,0,0", LabelError, "'-1'"),
    ("2/e.jpg,1,1,9,9,1;2,1.5,0,0", LabelError, "'1.5'"), ("2/e.jpg,1,1,9,9,1;2,1,3,0", DataError, "valence '3'"),
    ("2/e.jpg,1,1,9,9,1;2,1,0,x", DataError, "arousal 'x'"), ("1/a.jpg,1,1,9,9,1;2,0,0,0", DataError, "row 2")])
def test_a_bad_row_of_affectnet_is_named(tmp_path, row, error, needle):
    root = layout_a(tmp_path, [TRAIN[0], row])
    refused(error, "training.csv, row 3", needle, read=lambda: read_affectnet(root, cache=False))


@pytest.mark.parametrize("box", ["NULL,NULL,NULL,NULL", "x,5,20,30", "5,,20,30", "5,5,inf,30", "5,5,0,30"])
def test_a_face_without_a_box_is_refused_only_where_it_matters(tmp_path, box):
    root = layout_a(tmp_path, [f"1/a.jpg,{box},,0,0,0"])
    refused(DataError, "train/1/a.jpg", "crop=False", read=lambda: read_affectnet(root, cache=False))
    assert len(read_affectnet(root, crop=False, cache=False)) == 2
    root = layout_a(tmp_path, ["1/a.jpg,90,90,9,9,,0,0,0"])
    refused(ImageError, "a.jpg", "(90, 90, 9, 9)", read=lambda: read_affectnet(root, cache=False).image(0))


def test_automatic_annotations_are_added_when_asked_for(tmp_path):
    root = layout_a(tmp_path)
    refused(DataError, "automatic", read=lambda: read_affectnet(root, automatic=True, cache=False))
    save(root / "Automatically_Annotated_Images/1/a.jpg")
    write(root / "Automatically_Annotated_file_lists/automatically_annotated.csv", A_HEADER, "1/a.jpg,0,0,9,9,,4,0,0")
    assert len(read_affectnet(root, cache=False)) == 4
    refused(DataError, "train/1/a.jpg", "row 2", read=lambda: read_affectnet(root, automatic=True, cache=False))
    (root / "Automatically_Annotated_Images/1/a.jpg").rename(root / "Automatically_Annotated_Images/1/q.jpg")
    write(root / "Automatically_Annotated_file_lists/automatically_annotated.csv", "1/q.jpg,0,0,9,9,,4,0,0")
    ds = read_affectnet(root, automatic=True, cache=False)
    assert ds.df.annotated.tolist() == ["manual"] * 4 + ["automatic"] and ds.df.split.tolist()[-1] == "train"


# ---- AffectNet, layout B ----

def label(root, number, exp=1, val=0.5, aro=-0.5, image=True):
    if image:
        save(root / f"images/{number}.jpg", PICTURE + np.uint8(number))
    for what, value in (("exp", exp), ("val", val), ("aro", aro)):
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        np.save(root / f"annotations/{number}_{what}.npy", value)


def layout_b(root):
    label(root / "train_set", 7, np.array("3"), np.array("0.25"), np.array("-2"))         # 0-d text
    label(root / "train_set", 12, np.array(b"1"), np.float64(-2), np.array([0.5]))
    label(root / "train_set", 3, np.int64(7), np.float32(0.5), np.array("-0.5"))
    label(root / "train_set", 4, np.array(9.0))
    label(root / "val_set", 7, np.array("6"))
    np.save(root / "train_set/annotations/7_lnd.npy", np.zeros(136))
    return root


def test_affectnet_arrays(tmp_path):
    ds = quiet(read_affectnet, layout_b(tmp_path), cache=False)
    assert ds.df.id.tolist() == ["train/3", "train/7", "train/12", "valid/7"]
    assert ds.df.label.tolist() == ["contempt", "surprise", "happy", "angry"]
    assert np.array_equal(ds.df.valence, [.5, .25, np.nan, .5], equal_nan=True)
    assert np.array_equal(ds.df.arousal, [-.5, np.nan, .5, -.5], equal_nan=True)
    assert ds.dropped.to_dict("records") == [{"id": "train/4", "split": "train", "why": "uncertain"}]
    assert "box_x" not in ds.df and ds.image(0).shape == (48, 48)
    assert read_affectnet(tmp_path, 7, cache=False).df.id.tolist() == ["train/7", "train/12", "valid/7"]


@pytest.mark.parametrize("change, error, needle", [
    (lambda r: (r / "annotations/7_exp.npy").unlink(), DataError, "7.jpg"), (lambda r: (r / "annotations/7_aro.npy").unlink(), DataError, "7_aro"),
    (lambda r: label(r, 99, image=False), DataError, "99_exp.npy"), (lambda r: label(r, 7, exp=11), LabelError, "7_exp.npy"),
    (lambda r: label(r, 7, exp=np.array("sad")), LabelError, "'sad'"), (lambda r: label(r, 7, exp=np.nan), LabelError, "nan"),
    (lambda r: label(r, 7, val=5.0), DataError, "7_val.npy"), (lambda r: label(r, 7, aro=np.zeros(2)), DataError, "7_aro.npy"),
    (lambda r: (r / "annotations/7_exp.npy").write_bytes(b"1"), DataError, "7_exp.npy"),
    (lambda r: (r / "annotations/7_exp.npy").write_bytes(b""), DataError, "7_exp.npy"),
    (lambda r: save(r / "images/7.png"), DataError, "7.png"), (lambda r: shutil.rmtree(r / "annotations"), DataError, "annotations"),
    (lambda r: shutil.rmtree(r / "images"), DataError, "images")])
def test_bad_arrays_are_named(tmp_path, change, error, needle):
    layout_b(tmp_path)
    change(tmp_path / "train_set")
    refused(error, needle, tmp_path, read=lambda: read_affectnet(tmp_path, cache=False))


def test_pickled_objects_are_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    layout_b(tmp_path)
    np.save(tmp_path / "train_set/annotations/7_exp.npy", np.array(Trap(), dtype=object), allow_pickle=True)
    refused(DataError, "7_exp.npy", read=lambda: read_affectnet(tmp_path, cache=False))
    assert not (tmp_path / "ran").exists()


def test_affectnet_refuses_what_is_no_affectnet(tmp_path):
    refused(DataError, "training.csv", read=lambda: read_affectnet(tmp_path))
    refused(DataError, "no such folder", read=lambda: read_affectnet(tmp_path / "none"))
    refused(ConfigError, "5", read=lambda: read_affectnet(layout_b(tmp_path), 5))
    refused(DataError, "published", read=lambda: read_affectnet(tmp_path, cache=False, strict=True))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/training.csv").write_text(A_HEADER)
    (tmp_path / "empty/Manually_Annotated_Images").mkdir()
    refused(DataError, "no rows", read=lambda: read_affectnet(tmp_path / "empty", cache=False))


# ---- the index ----

@pytest.fixture(params=[layout_a, layout_b])
def indexed(request, tmp_path, monkeypatch):
    "A tree, the folder of its cached index, and how often it was made."
    made = []
    for name in ("_index_lists", "_index_arrays"):
        monkeypatch.setattr(data, name, lambda *a, f=getattr(data, name): made.append(1) or f(*a))
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "cache"))
    return request.param(tmp_path / "net"), tmp_path / "cache", made


def same(a, b):
    return a.df.equals(b.df) and a.fingerprint() == b.fingerprint() and a.dropped.equals(b.dropped)


def test_the_second_reading_uses_the_index(indexed):
    root, folder, made = indexed
    fresh = read_affectnet(root, cache=False)
    first, second = quiet(read_affectnet, root), quiet(read_affectnet, root)
    assert len(made) == 2 and same(first, fresh) and same(second, fresh)
    assert [p.suffix for p in folder.iterdir()] == [".npz"]
    assert len(quiet(read_affectnet, root, 7)) < len(first) and len(made) == 2      # one index serves both


@pytest.mark.parametrize("change", ["label", "delete", "add"])
def test_a_stale_index_is_made_again(indexed, change):
    root, folder, made = indexed
    before = read_affectnet(root)
    arrays = (root / "train_set").is_dir()
    if change == "label" and arrays:
        np.save(root / "train_set/annotations/7_exp.npy", np.array("5"))            # as long as before
        os.utime(root / "train_set/annotations/7_exp.npy", ns=(1, 1))
    elif change == "label":
        path = root / "Manually_Annotated_file_lists/training.csv"
        path.write_text(path.read_text().replace("1;2,3,-2", "1;2,5,-2"))
        os.utime(path, ns=(1, 1))
    elif change == "delete":
        next(root.rglob("7.jpg" if arrays else "a.jpg")).unlink()
        refused(DataError, "no image", read=lambda: read_affectnet(root))
        return
    else:
        label(root / "val_set", 50, 2) if arrays else save(root / "Manually_Annotated_Images/3/new.jpg")
    after = quiet(read_affectnet, root)
    assert len(made) == 2 and len(list(folder.iterdir())) == 1
    assert same(after, before) == (change == "add" and not arrays)
    if change == "label":
        assert "disgust" in set(after.df.label[after.df.split == "train"])


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"no archive", lambda b: b[:300] + b"\xff" * 40 + b[340:],
                                    lambda b: b"\x93NUMPY" + b[6:]])
def test_a_damaged_index_is_made_again_with_a_warning(indexed, damage):
    root, folder, made = indexed
    before = read_affectnet(root)
    path = next(folder.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="cannot be read .* and is made again"):
        assert same(read_affectnet(root), before)
    assert len(made) == 2
    assert same(quiet(read_affectnet, root), before) and len(made) == 2 and len(list(folder.iterdir())) == 1


def test_an_index_that_cannot_be_cached_does_not_stop_the_reading(indexed):
    root, folder, made = indexed
    folder.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be cached"):
        assert len(read_affectnet(root)) == 4


def test_a_reading_that_fails_caches_no_index(indexed):
    root, folder, _ = indexed
    next(root.rglob("7.jpg" if (root / "val_set").is_dir() else "a.jpg")).unlink()
    refused(DataError, "no image", read=lambda: read_affectnet(root))
    assert not folder.exists()


# ---- every reader ----

def test_every_reader_gives_the_same_kind_of_dataset(tmp_path):
    new, old, *_ = ferplus_files(tmp_path / "plus")
    kdef_tree(tmp_path / "kdef")
    every = [read_ferplus(new, old), read_kdef(tmp_path / "kdef"), read_rafdb(rafdb(tmp_path / "raf")),
             read_rafdb(mirror(tmp_path / "mirror")), read_affectnet(layout_a(tmp_path / "a"), cache=False),
             read_affectnet(layout_b(tmp_path / "b"), cache=False)]
    for ds in every:
        assert set(ds.df.label) <= set(ds.labels) and set(ds.labels) <= {*EMOTIONS, "contempt"} and ds.name
        assert list(ds.dropped) == ["id", "split", "why"] and not set(ds.dropped.id) & set(ds.df.id)
        assert ds.counts().to_numpy().sum() == 2 * len(ds) and len(ds.fingerprint()) == 16
        assert resized(ds, 24).array().shape[:3] == (len(ds), 24, 24) and len(ds.where(split="train").dropped) == 0


# ---- a path of unknown kind ----

def test_read_chooses_the_reader_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "cache"))
    new, old, *_ = ferplus_files(tmp_path / "plus")
    for name in ("train/sad/Training_1", "test/happy/PublicTest_2"):
        save(tmp_path / f"mirror/{name}.png")
    kdef_tree(tmp_path / "kdef")
    for name in ("AF01ANS.JPG", "AF02ANS.JPG"):
        save(tmp_path / "flat" / name)
    rafdb(tmp_path / "raf")
    mirror(tmp_path / "rafmirror")
    layout_a(tmp_path / "a")
    layout_b(tmp_path / "b")
    save(tmp_path / "own/train/proud/1.png")
    save(tmp_path / "own/test/shy/2.png")
    refused(LabelError, "'proud', 'shy'", "--labels", read=lambda: read(tmp_path / "own"))
    for path, reader in [(old, read_fer2013), (tmp_path / "mirror", read_fer2013), (tmp_path / "kdef/KDEF_and_AKDEF", read_kdef),
                         (tmp_path / "flat", read_kdef), (tmp_path / "raf", read_rafdb), (tmp_path / "raf/basic", read_rafdb),
                         (tmp_path / "rafmirror", read_rafdb), (tmp_path / "a", read_affectnet), (tmp_path / "b", read_affectnet),
                         (tmp_path / "own", read_folder)]:
        labels = ["proud", "shy"] if path.name == "own" else None
        ds = read(str(path), labels=labels)
        assert same(ds, reader(path)) and ds.name == reader(path).name and ds.provenance.splits == dict(ds.df.split.value_counts()), path
    assert same(read(old, new), add_votes(read_fer2013(old), new))


def test_read_refuses_what_no_reader_takes(tmp_path):
    assert data.read is read and data.READERS is __import__("fer_nb.formats").formats.FORMATS
    with pytest.raises(AttributeError, match="reed"):
        data.reed
    refused(DataError, tmp_path / "none", "no such file or folder", read=lambda: read(tmp_path / "none"))
    refused(DataError, "notes.txt", ".csv file or a folder", read=lambda: read(write(tmp_path / "notes.txt", "hello")))
    refused(DataError, "row by row", read=lambda: read(tmp_path, "votes.csv"))
    (tmp_path / "empty").mkdir()
    refused(DataError, "no image files", read=lambda: read(tmp_path / "empty"))


def test_rows_are_those_of_the_csv_module(tmp_path):
    "With quotes, line breaks in them, any end of lines, blank lines and fields: the same fields and the same numbers of rows."
    path = tmp_path / "a.csv"

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.lists(st.text('ab ,"\'\n\r;', max_size=5), min_size=2, max_size=4), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
    def same(rows, end, quote):
        with open(path, "w", newline="", encoding="utf-8") as f:
            f.write(f"x,y{end}")
            csv.writer(f, lineterminator=end, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL).writerows(rows)
        expected = []
        with open(path, newline="", encoding="utf-8") as f:
            reader, number = csv.reader(f), 1
            for fields in reader:
                fields = [x.strip() for x in fields]
                expected += [(f"{path}, row {number}", fields)] * any(fields)
                number = reader.line_num + 1
        assert list(data.table_rows(path)) == expected

    same()


def test_parts_of_affectnet_have_the_colours_of_the_whole(tmp_path):
    for split in ("train_set", "val_set"):
        for k in range(3):
            label(tmp_path / split, k, k)
    save(tmp_path / "train_set/images/0.jpg", np.repeat(PICTURE[..., None], 3, -1))
    ds = quiet(read_affectnet, tmp_path, cache=False)
    assert ds.where(split="train").shape() == ds.where(split="valid").shape() == (3, 48, 48, 3)

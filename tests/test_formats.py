"""One door for every data set: detection, what a read says, suspicion, broken items, lists, the small sets, witnesses.

Each tree is built here, small, with the traps of the real layouts.
"""
import gzip
import io
import json
import os
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_nb.cli import main
from fer_nb.core import EMOTIONS, LABEL_ORDERS, ConfigError, DataError, FERError, ImageError, LabelError, canonical_label
from fer_nb.data import FER2013_COUNTS, FERData, LeftOut, Tree, check_witness, need_ids, read_fer2013, read_folder, read_kdef, read_rafdb
from fer_nb.formats import FORMATS, detect, label_order, read, read_list, read_names, shared_splits

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (40, 48, 48), dtype=np.uint8)
ROW = [" ".join(map(str, p.ravel())) for p in PIXELS[:6]]


def save(path, k=0, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[k % len(PIXELS)]).save(path, **how)
    return path


def write(path, *lines, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def faces(root, *names):
    for k, name in enumerate(names):
        save(root / name, k)
    return root


def got(path, **how):
    "The dataset, and the texts of the warnings."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ds = read(path, **how)
    return ds, [str(w.message) for w in said]


def refused(error, *needles, read, lines=3):
    with pytest.raises(FERError) as e:
        read()
    text = str(e.value)
    assert type(e.value) is error, repr(e.value)
    assert all(str(n) in text for n in needles), text
    assert text.count("\n") < lines and all(c.isprintable() or c == "\n" for c in text), repr(text)
    return text


def labels_of(ds):
    return dict(zip(ds.df.id, ds.df.label))


# ---- FER2013's CSV in every dress

LINES = ["emotion,pixels,Usage", f"0,{ROW[0]},Training", f"3,{ROW[1]},PublicTest", f"6,{ROW[2]},PrivateTest"]
PLAIN = "\n".join(LINES) + "\n"
DRESSES = {
    "capitals.CSV": PLAIN.replace("emotion,pixels,Usage", "Emotion,PIXELS,usage").encode(),
    "utf16.csv": PLAIN.encode("utf-16"), "utf16le.csv": PLAIN.encode("utf-16-le"), "bom.csv": PLAIN.encode("utf-8-sig"),
    "semicolons.csv": PLAIN.replace(",", ";").encode(), "tabs.tsv": PLAIN.replace(",", "\t").encode(),
    "spreadsheet.csv": ("sep=;\n" + PLAIN.replace(",", ";")).encode(),
    "floats.csv": PLAIN.replace("\n0,", "\n0.0,").replace("\n3,", "\n3.0,").encode(),
    "names.csv": PLAIN.replace("\n0,", "\nAnger,").replace("\n3,", "\nhappiness,").replace("\n6,", "\nNeutral,").encode(),
    "words.csv": PLAIN.replace("Training", "train").replace("PublicTest", "val").replace("PrivateTest", "test").encode(),
    "small.csv": PLAIN.lower().replace("emotion", "label").encode(), "bare.csv": "\n".join(LINES[1:]).encode(),
    "order.csv": "\n".join(",".join(reversed(line.split(","))) for line in LINES[1:]).encode(),
    "lists.csv": "\n".join([LINES[0], *(f'{a},"[{b.replace(" ", ", ")}]",{c}' for a, b, c in (x.split(",") for x in LINES[1:]))]).encode(),
    "index.csv": "\n".join(f"{k or ''},{line},," for k, line in enumerate(LINES)).encode(),
    "text.txt": PLAIN.encode(), "no_ending": PLAIN.encode(), "fer.csv.gz": gzip.compress(PLAIN.encode()),
}


@pytest.mark.parametrize("name", DRESSES)
def test_the_csv_in_every_dress_gives_the_same_data(tmp_path, name):
    (tmp_path / name).write_bytes(DRESSES[name])
    ds, _ = got(tmp_path / name)
    assert ds.df.label.tolist() == ["angry", "happy", "neutral"] and ds.df.split.tolist() == ["train", "valid", "test"]
    assert (ds.array() == PIXELS[:3]).all() and ds.labels == EMOTIONS and ds.provenance.format == "fer2013"


@pytest.mark.parametrize("mode", ["w:gz", "w", "w:bz2", "zip"])
def test_archives_are_looked_into_whatever_they_are_called(tmp_path, mode):
    path = tmp_path / "fer2013.csv"
    names = {"fer2013/README": b"hello", "fer2013/._fer2013.csv": b"fork", "fer2013/fer2013.csv": PLAIN.encode()}
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as z:
            for name, raw in names.items():
                z.writestr(name, raw)
    else:
        with tarfile.open(path, mode) as t:
            for name, raw in names.items():
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                t.addfile(info, io.BytesIO(raw))
    assert (got(path)[0].array() == PIXELS[:3]).all()


def test_an_archive_without_a_table_and_other_files_are_named_for_what_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as z:
        for k in range(30):
            z.writestr(f"train/happy/{k}.jpg", b"x")
    refused(DataError, "a zip archive of 30 files, 0 of them tables", "unpacked", read=lambda: read(tmp_path / "archive.zip"))
    for name, raw, what in (("a.csv", b"\x89HDF\r\n", "an HDF5 file"), ("b.csv", b"<!DOCTYPE html><html>", "an HTML page"),
                            ("c.csv", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), ("d.csv", b"", "empty"),
                            ("e.csv", b"PK\x03\x04broken", "not a table"), ("f.csv", b"\x1f\x8bbroken", "not a table"),
                            ("g.csv", bytes(range(256)), "g.csv")):
        (tmp_path / name).write_bytes(raw)
        refused(DataError, name, what, read=lambda: read(tmp_path / name))
    refused(DataError, "an image", read=lambda: read(save(tmp_path / "face.png")))


def test_train_csv_is_training_data_and_test_csv_has_no_labels(tmp_path):
    write(tmp_path / "train.csv", "emotion,pixels", f"0,{ROW[0]}", f"3,{ROW[1]}")
    ds, said = got(tmp_path / "train.csv")
    assert set(ds.df.split) == {"train"} and any("no column Usage" in s for s in said)
    write(tmp_path / "test.csv", "pixels", ROW[2])
    assert len(got(tmp_path)[0]) == 2
    refused(DataError, "test.csv", "pixels without labels", read=lambda: read(tmp_path / "test.csv"))
    write(tmp_path / "icml_face_data.csv", "emotion, Usage, pixels", f"0, Training, {ROW[0]}", f"3, PrivateTest, {ROW[1]}", f"1, PublicTest, {ROW[2]}")
    assert got(tmp_path)[0].provenance.splits == {"train": 1, "valid": 1, "test": 1}
    (tmp_path / "mine.csv").write_text(PLAIN)
    refused(DataError, "can be read in", "icml_face_data.csv", read=lambda: read(tmp_path))


def test_readings_of_one_format_are_told_apart_by_their_paths(tmp_path):
    """Where all readings have one `--as`, following it would give the same refusal."""
    for name in ("train.csv", "test.csv"):
        write(tmp_path / name, "emotion,pixels", f"0,{ROW[0]}", f"3,{ROW[1]}")
    with pytest.raises(DataError, match="can be read in 2 ways: .* the path of one of them, such as") as e:
        read(tmp_path)
    assert "--as" not in str(e.value) and "train.csv" in str(e.value) and "test.csv" in str(e.value)


def test_seven_is_contempt_in_cks_file_alone(tmp_path):
    lines = [LINES[0], f"0,{ROW[0]},Training", f"7,{ROW[1]},Training"]
    refused(LabelError, "row 3", "'7'", "--as ckextended", read=lambda: read(write(tmp_path / "a.csv", *lines)))
    assert got(tmp_path / "a.csv", as_="ckextended")[0].df.label.tolist() == ["angry", "contempt"]
    assert got(write(tmp_path / "b/ckextended.csv", *lines).parent)[0].provenance.format == "ckextended"


def test_a_long_strange_header_is_cut_and_printable(tmp_path):
    text = refused(DataError, "'emotion'", read=lambda: read_fer2013(write(tmp_path / "a.csv", "\0\x1b[31m" + "x," * 5000 + "pixels")))
    assert len(text) < 500


# ---- mirrors and class folders

@pytest.mark.parametrize("above", ["", "archive/", "a/b/"])
@pytest.mark.parametrize("train, test", [("train", "test"), ("Train", "Test"), ("TRAINING", "Testing")])
def test_the_mirror_is_known_by_its_names_however_deep(tmp_path, above, train, test):
    faces(tmp_path, *(above + f for f in (f"{train}/happy/Training_1.jpg", f"{train}/Anger/Training_2.jpg", f"{test}/happy/PublicTest_3.jpg",
                                          f"{test}/Anger/PrivateTest_4.jpg")))
    ds, _ = got(tmp_path)
    assert ds.provenance.title == "FER2013 mirror" and ds.provenance.splits == {"train": 2, "valid": 1, "test": 1}


def test_usage_folders_are_splits(tmp_path):
    faces(tmp_path, *(f"x/{u}/{c}/{k}.jpg" for k, (u, c) in enumerate([(u, c) for u in ("Training", "PublicTest", "PrivateTest") for c in ("happy", "normal")])))
    ds, _ = got(tmp_path)
    assert ds.provenance.splits == {"train": 2, "valid": 2, "test": 2} and set(ds.df.label) == {"happy", "neutral"}


def test_counts_as_published_are_said(tmp_path, monkeypatch):
    path = tmp_path / "fer2013.csv"
    path.write_text(PLAIN)
    own = {s: [int((e, s) in (("angry", "train"), ("happy", "valid"), ("neutral", "test"))) for e in EMOTIONS] for s in FER2013_COUNTS}
    monkeypatch.setattr("fer_nb.data.FER2013_COUNTS", own)
    from dataclasses import replace
    monkeypatch.setitem(FORMATS, "fer2013", replace(FORMATS["fer2013"], counts=own))
    assert str(got(path)[0].provenance) == "read as FER2013: train 1, valid 1, test 1; 7 labels; counts as published"


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    faces(tmp_path, "happy/1.png", "sad/2.png", "sad/@eaDir/2.png", "__MACOSX/happy/1.png")
    (tmp_path / "happy/film.mp4").touch(), (tmp_path / "happy/photo.heic").write_bytes(b"....ftypheic"), (tmp_path / "sad/Thumbs.db").touch()
    (tmp_path / "fear").mkdir(), write(tmp_path / "README.md", "hello")
    ds, _ = got(tmp_path)
    assert ds.provenance.left_out == {"file (.mp4)": 1, "file (.heic)": 1, "file (.md)": 1, "empty class (fear)": 1, "litter": 3}
    assert len(ds) == 2 and "left out: " in str(ds.provenance)
    facts = json.loads(json.dumps(ds.provenance.facts()))
    assert facts["format"] == "folder" and facts["splits"] == {"train": 2}


@pytest.mark.parametrize("name, kind", [("a.jfif", "JPEG"), ("b.jpg?w=300&h=200", "JPEG"), ("c.gif", "GIF"), ("d.pgm", "PPM"), ("e.jpe", "JPEG"),
                                        ("f", "PNG"), ("g.JPG_large", "JPEG"), ("h.ppm", "PPM"), ("i.jp2", "JPEG2000"), ("j.webp", "WEBP"), ("k.avif", "AVIF")])
def test_images_are_known_by_their_bytes(tmp_path, name, kind):
    faces(tmp_path, "happy/1.png")
    (tmp_path / "sad").mkdir()
    try:
        with open(tmp_path / "sad" / name, "wb") as f:
            Image.fromarray(PIXELS[1]).save(f, kind)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow has no {kind}")
    assert got(tmp_path)[0].df.id.tolist() == ["happy/1.png", f"sad/{name}"]


def test_linked_folders_are_entered_once_and_loops_end(tmp_path):
    faces(tmp_path / "store", "a/1.png", "b/2.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/happy").symlink_to(tmp_path / "store/a")
    (tmp_path / "data/sad").symlink_to(tmp_path / "store/b")
    (tmp_path / "store/a/loop").symlink_to(tmp_path / "data")
    (tmp_path / "store/b/self").symlink_to(tmp_path / "store/b/self")
    ds, _ = got(tmp_path / "data")
    assert labels_of(ds) == {"happy/1.png": "happy", "sad/2.png": "sad"}
    assert ds.provenance.left_out["link to a folder that is entered already"] == 1


def test_numbers_need_an_order(tmp_path):
    faces(tmp_path, *(f"train/{k}/{k}.png" for k in range(1, 8)))
    refused(LabelError, "numbers, 1 to 7", "--labels", "rafdb", read=lambda: read(tmp_path))
    assert labels_of(got(tmp_path, labels="rafdb")[0])["train/1/1.png"] == "surprise"
    assert labels_of(got(tmp_path, labels="1=joy,2=sad,3=fear,4=anger,5=calm,6=disgust,7=surprise")[0])["train/1/1.png"] == "happy"
    refused(LabelError, "1 to 7 for 8 labels", read=lambda: read(tmp_path, labels="affectnet"))
    save(tmp_path / "train/0/0.png")
    assert labels_of(got(tmp_path, labels="affectnet")[0])["train/7/7.png"] == "contempt"
    refused(LabelError, "0 to 7 for 7 labels", read=lambda: read(tmp_path, labels=list(EMOTIONS)))


def test_pairs_that_name_nothing_and_numbers_beside_names_are_refused(tmp_path):
    faces(tmp_path / "a", "angry/1.png", "happy/2.png", "foo/3.png")
    refused(LabelError, "no class fooo", read=lambda: read(tmp_path / "a", labels="fooo=sad"))
    assert got(tmp_path / "a", labels="Foo=sad")[0].labels == ("angry", "happy", "sad")
    for odd in ("5", "-1", "nan", "None", "3.0"):
        refused(LabelError, odd, "beside names", read=lambda: read(faces(tmp_path / odd, "angry/1.png", "happy/2.png", f"{odd}/3.png")))
    assert got(tmp_path / "5", labels="5=sad")[0].labels == ("angry", "happy", "sad")
    assert got(tmp_path / "3.0", labels="3=sad")[0].labels == ("angry", "happy", "sad")
    refused(LabelError, "1 beside names", read=lambda: read(faces(tmp_path / "b", "0/1.png", "1/2.png"), labels="0=happy"))


def test_the_numbers_of_a_table_of_pixels_mean_what_is_said(tmp_path):
    path = write(tmp_path / "mine.csv", "emotion,pixels", *(f"{k},{ROW[k]}" for k in range(3)))
    for order in ("rafdb", "neutral,happy,surprise"):
        refused(ConfigError, "labels of its own", "pairs", read=lambda: read(path, labels=order))
    assert got(path, labels="fer2013")[0].df.label.tolist() == ["angry", "disgust", "fear"]
    assert got(path, labels="0=neutral,1=happy,2=surprise")[0].df.label.tolist() == ["neutral", "happy", "surprise"]
    refused(LabelError, "2 beside names", read=lambda: read(path, labels="0=neutral,1=happy"))


@pytest.mark.parametrize("folders, words", [
    (("images/1.png", "images/2.png"), "one class alone: 'images'"), (("a/FER2013Train/1.png", "a/FER2013Test/2.png"), "outside any class folder"),
    (("train_set/1.png", "val_set/2.png"), "outside any class folder"), (("cats/1.png", "dogs/2.png"), "none is an emotion"), (("happy/1.png",), "one class alone")])
def test_what_cannot_be_classes_is_refused_before_any_work(tmp_path, folders, words, capsys):
    faces(tmp_path / "data", *folders)
    with pytest.raises(FERError, match=words):
        read(tmp_path / "data")
    assert main(["run", "--data", str(tmp_path / "data"), "--preset", "tiny", "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_labels_that_are_named_are_taken_as_they_are(tmp_path):
    faces(tmp_path, "cats/1.png", "dogs/2.png")
    assert got(tmp_path, labels=["dogs", "cats"])[0].labels == ("dogs", "cats")
    assert set(got(tmp_path, labels={"cats": "happy", "dogs": "sad"})[0].df.label) == {"happy", "sad"}
    refused(LabelError, "dogs", read=lambda: read(tmp_path, labels=["cats"]))
    for bad in ("a=happy,sad", "happy,happy", ","):
        refused(ConfigError, "labels: ", read=lambda: read(tmp_path, labels=bad))


def test_slips_and_classes_of_one_split_are_asked_about(tmp_path):
    faces(tmp_path, "train/suprise/1.png", "train/neural/2.png", "test/neutral/3.png", "train/happy/4.png", "test/happy/5.png", "test/Traurig/6.png")
    ds, said = got(tmp_path)
    text = " ".join(said)
    assert "'suprise' is no known emotion; is it 'surprise'?" in text and "is it 'neutral'?" in text
    assert "'neutral' (test)" in text and ds.provenance.renamed == {"Traurig": "sad"} and len(ds.provenance.notes) == 3


def test_copies_of_folders_and_opposites_get_no_wrong_hint(tmp_path):
    """A hint that is followed changes labels: `angry - Copy` is no `fear - Copy`, and `not_happy` no `unhappy`."""
    for k, name in enumerate(("happy", "not_happy", "sad", "sad - Copy", "fear - Copy (2)", "angry.old", "happy_medium", "angry_medium", "proud", "prouds")):
        faces(tmp_path, f"{name}/{k}.png")
    said = [s.partition(": ")[2] for s in got(tmp_path)[1]]
    hints = {s.split("'")[1]: s.partition("is it ")[2].partition("?")[0] for s in said if "no known emotion" in s}
    assert hints == {"not_happy": "", "sad - copy": "'sad'", "fear - copy (2)": "'fear'", "angry.old": "'angry'", "happy_medium": "",
                     "angry_medium": "", "proud": "'prouds'", "prouds": "'proud'"}


@pytest.mark.parametrize("name", ["unsurprised", "unafraid", "un_happy", "disangry", "not_sad"])
def test_an_opposite_is_no_slip(name):
    from fer_nb.formats import _near
    assert _near(name, ["happy", "sad", "angry", "surprise", "surprised", "afraid", "fear"]) == ""
    assert _near("surprize", ["surprise", "sad"]) == "surprise"


def test_a_label_that_no_image_has_is_told(tmp_path):
    faces(tmp_path, "happy/1.png", "sad/2.png")
    ds, said = got(tmp_path, labels="happy,sad,fear")
    assert ds.labels == ("happy", "sad", "fear") and any("no image is fear (--labels)" in note for note in ds.provenance.notes)
    assert not any("no image is" in s for s in got(tmp_path)[1] + got(tmp_path, labels="happy,sad")[1])


def test_a_list_whose_classes_are_splits_is_refused(tmp_path):
    faces(tmp_path, "a.png", "b.png")
    refused(LabelError, "named after splits", read=lambda: read(write(tmp_path / "l.csv", "image,label", "a.png,train", "b.png,test")))


def test_a_split_that_is_another_one_again_is_named(tmp_path):
    names = [f"{c}/{k}.png" for k in range(12) for c in (("happy", "sad")[k % 2],)]
    for split in ("train", "valid"):
        faces(tmp_path / split, *names)
    assert any("100% of train are images of valid" in s or "100% of valid are images of train" in s for s in got(tmp_path)[1])
    apart = FERData(pd.DataFrame({"id": map(str, range(20)), "label": "sad", "split": ["train"] * 10 + ["test"] * 10}), PIXELS[:20])
    assert shared_splits(apart) == []


# ---- two readings

def test_a_tie_is_refused_with_both_names_and_as_decides(tmp_path):
    write(tmp_path / "fer2013.csv", *LINES)
    votes = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    write(tmp_path / "fer2013new.csv", f"Usage,Image name,{votes}", "Training,a.png,10,0,0,0,0,0,0,0,0,0", "PublicTest,b.png,0,10,0,0,0,0,0,0,0,0",
          "PrivateTest,c.png,0,0,10,0,0,0,0,0,0,0")
    refused(DataError, "--as fer2013", "--as ferplus", read=lambda: read(tmp_path))
    assert got(tmp_path, as_="fer2013")[0].df.label.tolist() == ["angry", "happy", "neutral"]
    assert got(tmp_path, as_="ferplus")[0].df.label.tolist() == ["neutral", "happy", "surprise"]
    refused(ConfigError, "as='fer'", read=lambda: read(tmp_path, as_="fer"))
    assert detect(tmp_path, "kdef").certainty == 0


def test_ferplus_images_beside_the_table_are_joined_by_name(tmp_path):
    votes = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    write(tmp_path / "fer2013new.csv", f"Usage,Image name,{votes}", "Training,fer1.png,10,0,0,0,0,0,0,0,0,0", "Training,fer2.png,0,10,0,0,0,0,0,0,0,0",
          "PublicTest,fer3.png,0,0,0,10,0,0,0,0,0,0", "PrivateTest,,0,0,0,0,0,0,0,0,0,10")
    faces(tmp_path / "images", "FER2013Train/fer2.png", "FER2013Train/fer1.png", "FER2013Valid/fer3.png")
    ds, _ = got(tmp_path)
    assert labels_of(ds) == {"images/FER2013Train/fer1.png": "neutral", "images/FER2013Train/fer2.png": "happy", "images/FER2013Valid/fer3.png": "sad"}
    os.rename(tmp_path / "images/FER2013Valid/fer3.png", tmp_path / "images/FER2013Train/fer3.png")
    refused(DataError, "fer3.png", "valid", read=lambda: read(tmp_path))


def test_a_list_named_train_labels_makes_no_rafdb(tmp_path):
    faces(tmp_path, "train/happy/0.png", "train/angry/1.png")
    write(tmp_path / "train_labels.csv", "image,label", "0.png,happy", "1.png,angry")
    ds, _ = got(tmp_path)
    assert ds.provenance.format == "folder" and ds.provenance.left_out == {"file (.csv)": 1}


# ---- RAF-DB as it goes round

def test_rafdbs_valid_folder_holds_its_test_images(tmp_path):
    faces(tmp_path, "train/1/train_00001_aligned.jpg", "train/7/train_00002_aligned.jpg", "valid/4/test_0001_aligned.jpg", "valid/5/test_0002_aligned.jpg")
    ds, _ = got(tmp_path)
    assert ds.provenance.splits == {"train": 2, "test": 2} and ds.df.label.tolist() == ["surprise", "neutral", "happy", "sad"]


@pytest.mark.parametrize("list_, image", [("labels.txt", "images/{}_aligned.jpg"), ("EmoLabel/list_partition_label.txt", "Image/aligned/aligned/{}_aligned.jpg"),
                                          ("x/basic/EmoLabel/list_patition_label.txt", "x/basic/Image/aligned/{}_aligned.jpg")])
def test_rafdbs_list_under_its_several_names(tmp_path, list_, image):
    faces(tmp_path, *(image.format(i) for i in ("train_00001", "test_0001")))
    (write(tmp_path / list_)).write_bytes(b"train_00001.jpg 5\r\ntest_0001.jpg 7\r\n")
    ds, _ = got(tmp_path)
    assert labels_of(ds) == {"train_00001": "sad", "test_0001": "neutral"} and ds.provenance.format == "rafdb"


# ---- the small sets

def test_ckplus_reads_the_peak_of_each_labelled_sequence(tmp_path):
    for person, take, label in ((5, 1, 3), (5, 2, 7), (10, 1, None)):
        at = f"S{person:03}/{take:03}"
        for frame in (1, 2, 11):
            save(tmp_path / f"CK+/cohn-kanade-images/{at}/S{person:03}_{take:03}_{frame:08}.png", person + take + frame)
        if label:
            write(tmp_path / f"CK+/Emotion/{at}/S{person:03}_{take:03}_{11:08}_emotion.txt", f"   {label}.0000000e+00")
    ds, _ = got(tmp_path)
    assert labels_of(ds) == {"S005_001": "disgust", "S005_002": "surprise"} and set(ds.df.subject) == {"S005"}
    assert (ds.image(0) == PIXELS[17]).all() and ds.provenance.left_out == {"images that it does not name": 7}


def test_ck48_has_persons_and_sequences(tmp_path):
    faces(tmp_path, *(f"CK+48/{c}/S0{p}_00{t}_0000001{f}.png" for c, p, t in (("anger", 10, 4), ("happy", 11, 6)) for f in range(3)))
    ds, _ = got(tmp_path)
    assert ds.provenance.format == "ck48" and set(ds.df.subject) == {"S010", "S011"} and set(ds.df.group) == {"S010_004", "S011_006"}


def test_jaffe_by_its_names_at_any_depth(tmp_path):
    faces(tmp_path, "x/jaffe/KA.AN1.39.tiff", "x/jaffe/KA.HA2.40.tiff", "x/jaffe/YM.NE1.41.tiff")
    write(tmp_path / "x/jaffe/README", "hello")
    ds, _ = got(tmp_path / "x")
    assert ds.df.label.tolist() == ["angry", "happy", "neutral"] and ds.df.subject.tolist() == ["KA", "KA", "YM"]


def test_expws_boxes_are_top_left_right_bottom(tmp_path):
    faces(tmp_path, "image/origin/a.jpg", "image/origin/b.jpg")
    write(tmp_path / "label/label.lst", "a.jpg 0 4 8 38 44 50.1 3", "a.jpg 1 0 0 10 10 20 6", "b.jpg 0 0 0 48 48 99 0")
    ds, _ = got(tmp_path)
    assert ds.df.label.tolist() == ["happy", "neutral", "angry"] and ds.df.group.tolist() == ["a.jpg", "a.jpg", "b.jpg"]
    assert (ds.image(0) == np.asarray(Image.open(tmp_path / "image/origin/a.jpg"))[4:44, 8:38]).all()
    write(tmp_path / "label/label.lst", "a.jpg 0 4 8 38 44 50.1 3", "a.jpg 0 4 8 38 44 50.1 3", "c.jpg 0 0 0 9 9 9 0", "b.jpg 0 0 0 48 48 99 9")
    refused(DataError, "row 2", read=lambda: read(tmp_path))
    assert len(got(tmp_path, broken="any")[0].dropped) == 3


def test_sfew_and_caers(tmp_path):
    faces(tmp_path / "SFEW", *(f"{s}/{c}/Film{k}_012345678_0000001{k}.png" for k, (s, c) in enumerate((s, c) for s in ("Train", "Val") for c in ("Angry", "Happy"))))
    ds, _ = got(tmp_path / "SFEW")
    assert ds.provenance.format == "sfew" and ds.df.group[0].startswith("Film") and ds.provenance.splits == {"train": 2, "valid": 2}
    faces(tmp_path / "CAER-S", *(f"{s}/{c}/000{k}.png" for k, (s, c) in enumerate((s, c) for s in ("train", "test") for c in ("Anger", "Happy"))))
    assert got(tmp_path / "CAER-S")[0].provenance.format == "caers"


@pytest.mark.parametrize("names", ["names: ['Anger', 'Happy']", "nc: 2\nnames:\n  0: Anger\n  1: Happy\n", "names:\n- Anger\n- 'Happy'\n", "names: {1: Happy, 0: Anger}", "names:\n  - Anger  # 0\n  - Happy\n", None])
def test_yolo_takes_its_names_from_the_yaml(tmp_path, names):
    faces(tmp_path, "train/images/a.png", "train/images/b.png", "valid/images/c.png")
    write(tmp_path / "train/labels/a.txt", "0 0.5 0.5 1 1"), write(tmp_path / "train/labels/b.txt", "1 0.5 0.5 0.5 0.25")
    write(tmp_path / "valid/labels/c.txt", "1 0.5 0.5 1 1")
    if names is None:
        refused(LabelError, "numbers, 0 to 1", read=lambda: read(tmp_path))
        ds, _ = got(tmp_path, labels="angry,happy")
    else:
        write(tmp_path / "data.yaml", "path: .", names)
        ds, _ = got(tmp_path)
    assert ds.df.label.tolist() == ["angry", "happy", "happy"] and ds.image(1).shape == (12, 24) and ds.provenance.splits == {"train": 2, "valid": 1}


def test_yolo_says_which_faces_it_leaves_out_and_refuses_other_labels(tmp_path):
    faces(tmp_path, "images/a.png", "images/b.png")
    write(tmp_path / "data.yaml", "names: [angry, happy]"), write(tmp_path / "labels/a.txt", "0 .5 .5 .5 .5", "1 .2 .2 .1 .1", "1 .8 .8 .1 .1")
    write(tmp_path / "labels/b.txt", "1 .5 .5 .5 .5 .9")
    ds, _ = got(tmp_path)
    assert ds.provenance.left_out == {"faces beside the first": 2} and ds.dropped.id.tolist() == ["images/a.png#2", "images/a.png#3"]
    for bad, text in (("0 .5 .5 -2 .5", "-2"), ("0 .5 .5 -.5 .5", "-.5"), ("0 .5 .5 0 .5", " 0 "), ("0 .1 .1 .9 .1 .5 .9", "6 numbers"), ("0 nan .5 .5 .5", "nan")):
        write(tmp_path / "labels/a.txt", bad)
        refused(DataError, "a.png", text, read=lambda: read(tmp_path))
    for bad in ("names: {0: angry, 2: happy}", "names: [", "names: 5"):
        write(tmp_path / "labels/a.txt", "0 .5 .5 .5 .5"), write(tmp_path / "data.yaml", bad)
        refused(DataError, "data.yaml", read=lambda: read(tmp_path))


def test_affectnets_inner_folder_and_its_litter(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "cache"))
    for k, exp in enumerate((1, 2, 1)):
        save(tmp_path / f"A/val_set/images/{k}.jpg", k)
        (tmp_path / "A/val_set/annotations").mkdir(exist_ok=True)
        for what, value in (("exp", str(exp)), ("val", "0.1"), ("aro", "0.2")):
            np.save(tmp_path / f"A/val_set/annotations/{k}_{what}.npy", np.array(value))
    (tmp_path / "A/val_set/annotations/._3_exp.npy").write_bytes(b"fork")
    for path in (tmp_path / "A", tmp_path / "A/val_set", tmp_path):
        ds, _ = got(path)
        assert ds.df.label.tolist() == ["happy", "sad", "happy"] and ds.provenance.splits == {"valid": 3}, path
    (tmp_path / "A/val_set/images/1.jpg").unlink()
    refused(DataError, "1_exp.npy", "--broken drop", read=lambda: read(tmp_path / "A"))
    ds, _ = got(tmp_path / "A", broken="any")
    assert len(ds) == 2 and ds.dropped.id.tolist() == ["1"] and ds.provenance.left_out["broken"] == 1


# ---- lists

LISTS = {
    "labels.csv": ["image,label,split,subject", "images/0.png,happy,train,p1", "images/1.png,Wut,test,p2"],
    "labels.tsv": ["path\temotion\tset", "images/0.png\thappiness\ttraining", "images\\1.png\tanger\tTEST"],
    "labels.txt": ["images/0.png happy", "images/1.png angry"],
    "bare.csv": ["images/0.png,happy,train", "1.png,angry,test"],
    "spread.csv": ["Label;File Name;Usage", "joy;./images/0.png;Training", "rage;images/1.png;PrivateTest"],
    "list.jsonl": ['{"file_name": "images/0.png", "label": "happy", "split": "train"}', "", '{"file_name": "images/1.png", "label": "angry", "split": "test"}'],
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("whole", [True, False])
def test_lists_of_every_kind(tmp_path, name, whole):
    faces(tmp_path, "images/0.png", "images/1.png")
    path = write(tmp_path / name, *LISTS[name])
    ds, _ = got(tmp_path if whole else path)
    assert labels_of(ds) == {"images/0.png": "happy", "images/1.png": "angry"} and ds.provenance.format == "list"
    assert ds.df.split.tolist() == (["train", "train"] if name == "labels.txt" else ["train", "test"])
    assert name != "labels.csv" or ds.df.subject.tolist() == ["p1", "p2"]


def test_lists_named_after_splits_are_one(tmp_path):
    faces(tmp_path, "train/a.png", "train/b.png", "val/c.png", "test/d.png")
    for split, rows in (("train", ["a.png,6", "b.png,3"]), ("val", ["c.png,3"]), ("test", ["d.png,0"])):
        write(tmp_path / f"{split}_labels.csv", *rows)
    refused(LabelError, "--labels", read=lambda: read(tmp_path))
    ds, _ = got(tmp_path, labels="fer2013")
    assert ds.df.label.tolist() == ["angry", "neutral", "happy", "happy"] or set(ds.df.label) == {"angry", "neutral", "happy"}
    assert ds.provenance.splits == {"train": 2, "valid": 1, "test": 1}


@pytest.mark.parametrize("row, words", [
    ("../a.png,happy", "inside"), ("/etc/passwd,happy", "inside"), ("none.png,happy", "no such image"), ("images/0.png,sad", "again"),
    ("images/1.png,", "no image or no label"), ("images/1.png,happy,x,y,z", "5 fields, 2 in the header"), ("images/1.png,happy,,,", "")])
def test_a_bad_row_of_a_list_is_named_or_left_out(tmp_path, row, words):
    faces(tmp_path, "images/0.png", "images/1.png", "images/2.png")
    path = write(tmp_path / "list.csv", "image,label", "images/0.png,happy", "images/2.png,sad", row)
    if not words:
        assert len(got(path)[0]) == 3
        return
    refused(DataError, "list.csv, row 4", words, read=lambda: read(path))
    ds, _ = got(path, broken="any")
    assert len(ds) == 2 and len(ds.dropped) == 1 and "row 4" in ds.dropped.why[0]


def test_the_same_bare_name_twice_is_not_guessed(tmp_path):
    faces(tmp_path, "x/a.png", "y/a.png", "x/b.png")
    refused(DataError, "2 such images", read=lambda: read(write(tmp_path / "l.csv", "b.png,happy", "a.png,sad")))


def test_labels_and_persons_from_file_names(tmp_path, capsys):
    faces(tmp_path / "data", "p1_happy_1.png", "p1_sad_2.png", "p2_happy_3.png")
    how = {"label_pattern": r"_([a-z]+)_", "subject_pattern": r"^(p\d)"}
    ds, _ = got(tmp_path / "data", **how)
    assert ds.df.label.tolist() == ["happy", "sad", "happy"] and ds.df.subject.tolist() == ["p1", "p1", "p2"]
    assert main(["audit", "--data", str(tmp_path / "data"), "--label-pattern", how["label_pattern"], "--subject-pattern", how["subject_pattern"],
                 "--exact", "--out", str(tmp_path / "out")]) == 0
    assert "fer-nb: read as images with labels in their names: train 3" in capsys.readouterr().err
    refused(DataError, "no label by the pattern", read=lambda: read(tmp_path / "data", label_pattern="_(x)_"))
    refused(ConfigError, "label_pattern", read=lambda: read(tmp_path / "data", label_pattern="_(x"))
    refused(DataError, "3 ids without a subject", read=lambda: read(tmp_path / "data", **how | {"subject_pattern": "(q)"}))
    coded, _ = got(tmp_path / "data", label_pattern=r"_\w+_(?P<label>\d)", labels="1=happy,2=sad,3=fear")
    assert coded.df.label.tolist() == ["happy", "sad", "fear"]
    with pytest.raises(TypeError):   # `read` translates; here there is nothing to say what a name means
        read_names(tmp_path / "data", how["label_pattern"], labels="happy=sad")


# ---- going on without what is broken

def half_broken(root, good=40):
    faces(root, *(f"{('happy', 'sad')[k % 2]}/{k}.png" for k in range(good)))
    (root / "happy/cut.jpg").write_bytes(save(root / "x.jpg", 3).read_bytes()[:300])
    (root / "x.jpg").unlink()
    (root / "sad/page.jpg").write_bytes(b"<!DOCTYPE html><html><body>no</body></html>")
    return root


def test_broken_images_are_left_out_and_listed(tmp_path, capsys):
    root = half_broken(tmp_path / "data")
    refused(ImageError, "2 of 42", "cut.jpg", "an HTML page", read=lambda: read(root), lines=5)
    ds, _ = got(root, broken="drop")
    assert len(ds) == 40 and set(ds.dropped.id) == {"happy/cut.jpg", "sad/page.jpg"} and ds.provenance.left_out == {"broken": 2}
    assert main(["audit", "--data", str(root), "--exact", "--out", str(tmp_path / "a")]) == 2
    assert "--broken drop" in capsys.readouterr().err
    assert main(["audit", "--data", str(root), "--exact", "--broken", "drop", "--out", str(tmp_path / "a")]) == 0
    left = pd.read_csv(tmp_path / "a/left_out.csv")
    assert set(left.id) == {"happy/cut.jpg", "sad/page.jpg"} and json.loads((tmp_path / "a/record.json").read_text())
    (root / "sad/empty.png").touch()
    refused(DataError, "3 of 43 items are broken", "--broken any", read=lambda: read(root, broken="drop"))
    assert len(read(root, broken="any")) == 40


def test_broken_rows_of_the_csv_are_left_out(tmp_path):
    rows = [f"{k % 7},{ROW[k % 6]},Training" for k in range(60)]
    bad = [f"3,{ROW[0]}", f"9,{ROW[0]},Training", f"3,{ROW[0]} 7,Training"]
    path = write(tmp_path / "fer2013.csv", LINES[0], *rows[:30], *bad, *rows[30:])
    refused(DataError, "row 32", "2 fields", read=lambda: read(path))
    ds = read(path, broken="drop")
    assert len(ds) == 60 and ds.dropped.id.tolist() == ["row 32", "row 33", "row 34"]
    assert (ds.array()[30] == PIXELS[0]).all() and ds.df.id[30] == "row35"


@pytest.mark.parametrize("make, reader", [
    (lambda r: (faces(r, "Image/aligned/train_00001_aligned.jpg", "Image/aligned/test_0001_aligned.jpg", "Image/aligned/train_00009_aligned.jpg"),
                write(r / "EmoLabel/list_patition_label.txt", "train_00001.jpg 5", "test_0001.jpg 7", "train_00003.jpg 9", "test_0004.jpg 1")), read_rafdb),
    (lambda r: (faces(r, "happy/a.png", "sad/b.png", "stray.png"),), read_folder)])
def test_items_without_partner_are_left_out(tmp_path, make, reader):
    make(tmp_path)
    with pytest.raises(FERError):
        reader(tmp_path)
    ds = reader(tmp_path, broken="any")
    assert len(ds) == 2 and len(ds.dropped) == (3 if reader is read_rafdb else 1)


def test_one_word_for_broken_everywhere():
    refused(ConfigError, "broken='skip'", read=lambda: LeftOut("skip"))
    refused(ConfigError, "broken='skip'", read=lambda: read(".", broken="skip"))


# ---- what the command says

def test_the_command_says_what_it_read_first(tmp_path, capsys):
    faces(tmp_path / "data", "train/Traurig/1.png", "train/happy/2.png", "test/happy/3.png")
    assert main(["audit", "--data", str(tmp_path / "data"), "--exact", "--out", str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == "fer-nb: read as class folders: train 2, test 1; 2 labels; names: Traurig = sad"
    assert err[0].startswith("fer-nb: warning: ") and "'sad' (train)" in err[0]
    assert json.loads((tmp_path / "out/record.json").read_text())


def test_the_formats_are_shown(capsys):
    assert main(["formats"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: {f.title}" in out and f.tree.splitlines()[0] in out for name, f in FORMATS.items())
    assert main(["formats", "jafe"]) == 2 and "format='jafe'" in capsys.readouterr().err


@pytest.mark.parametrize("name", FORMATS)
def test_every_declaration_is_whole(name):
    f = FORMATS[name]
    assert f.title and f.tree and callable(f.find) and (f.labels or name in ("folder", "list", "yolo"))
    assert not f.counts or all(len(row) == len(f.labels) for row in f.counts.values())
    assert f.source or name in ("folder", "list", "yolo")


def test_parts_keep_where_they_come_from(tmp_path):
    ds, _ = got(faces(tmp_path, "happy/1.png", "sad/2.png"))
    parts = [ds.take([0]), ds.where(label="sad"), ds.assign(split="test"), ds.replace(name="x")]
    assert all(p.provenance is ds.provenance for p in parts)


@pytest.mark.slow
def test_a_big_tree_is_detected_in_seconds(tmp_path):
    for c in EMOTIONS:
        (tmp_path / "a/train" / c).mkdir(parents=True)
        for k in range(64_286):
            os.close(os.open(tmp_path / "a/train" / c / f"image{k:07}.jpg", os.O_CREAT))
    start = time.monotonic()
    assert detect(Tree(tmp_path)).format.name == "folder"
    assert time.monotonic() - start < 10


# ---- witnesses

def witness(n=200, seed=0):
    rng = np.random.default_rng(seed)
    ds = FERData(pd.DataFrame({"id": [f"im{k}" for k in range(n)], "label": rng.choice(EMOTIONS, n), "split": ["train"] * (n - n // 3) + ["test"] * (n // 3)}),
                 np.zeros((n, 2, 2), np.uint8), name="faces")
    return ds, np.eye(7)[ds.targets()] * .8 + .2 / 7, rng


def test_a_good_witness_is_believed_and_a_moved_or_shuffled_one_is_not():
    ds, good, rng = witness()
    weak = good.copy()
    weak[::3] = np.roll(good[::3], 1, 1)                                              # wrong in a third of all
    for fine in (good, weak, np.where(np.arange(200)[:, None] < 100, np.nan, good), good[:, ::1] * 10):
        assert check_witness(ds, fine, "w") == ""
    for moved in (-4, -1, 2, 5):
        assert f"moved by {abs(moved)} rows" in check_witness(ds, np.roll(good, moved, 0), "w")
    assert "w contradicts" in check_witness(ds, good[rng.permutation(200)], "w")
    part = good.copy()
    part[:134] = part[:134][rng.permutation(134)]                                     # shuffled in one split alone
    assert "w contradicts" in check_witness(ds, part, "w")
    assert check_witness(ds.take(range(10)), good[::-1][:10], "w") == ""              # too few to say


def test_ids_of_a_witness():
    ds, *_ = witness(30)
    refused(DataError, "1 ids more than once: im3", read=lambda: need_ids([*ds.df.id, "im3"], ds, "p.csv"))
    refused(DataError, "none of its ids", "row2", "im0", read=lambda: need_ids(["row2"], ds, "p.csv"))
    with pytest.warns(UserWarning) as said:
        need_ids(["im1", "other"], ds, "p.csv")
    assert "1 ids that are not in faces: other" in str(said[0].message) and "29 images without a row: im0" in str(said[1].message)


def test_votes_of_other_rows_are_doubted(tmp_path):
    rng = np.random.default_rng(3)
    emotion = rng.integers(0, 7, 80)
    names = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    order = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
    path = write(tmp_path / "fer2013.csv", LINES[0], *(f"{e},{ROW[k % 6]},Training" for k, e in enumerate(emotion)))
    def table(name, rows):
        return write(tmp_path / name, f"Usage,Image name,{','.join(order)}", *(
            f"Training,f{k}.png,{','.join('10' if names[e] == o else '0' for o in order)}" for k, e in enumerate(rows)))
    assert not any("contradicts" in s for s in got(path, votes=table("good.csv", emotion))[1])
    assert any("moved by 1 rows" in s for s in got(path, votes=table("moved.csv", np.roll(emotion, 1)))[1])
    assert any("contradicts" in s for s in got(path, votes=table("shuffled.csv", rng.permutation(emotion)))[1])


# ---- Parquet ----

def parquet(path, labels, struct=True, names=(), images=None):
    "A file as hubs store it: encoded images, as bytes or in a struct with a path, and labels."
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    encoded = []
    for k in range(len(labels)):
        Image.fromarray(PIXELS[k]).save(data := io.BytesIO(), "png")
        encoded.append(data.getvalue())
    encoded = [{"bytes": b, "path": None} for b in encoded] if struct else encoded
    table = pa.table({"image": encoded if images is None else images, "label": labels})
    features = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()}) if names else table, path)
    return path


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_as_hubs_store_it(tmp_path, struct):
    names = ["Happiness", "Sadness", "Anger"]
    for split, labels in (("train", [0, 1, 2, 2]), ("validation", [1, 0]), ("test", [2, 1, 0])):
        parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", labels, struct, names)
    for path in (tmp_path, tmp_path / "data"):
        ds, _ = got(path)
        assert ds.counts()["all"].to_dict() == {"angry": 3, "happy": 3, "sad": 3} and set(ds.df.split) == {"train", "valid", "test"}
        assert ds.where(split="test").df.label.tolist() == ["angry", "sad", "happy"]
        assert (ds.where(split="train").array() == PIXELS[:4]).all()


def test_parquet_of_numbers_and_of_file_names(tmp_path):
    file = parquet(tmp_path / "faces.parquet", [0, 3, 4])
    refused(LabelError, "--labels", "numbers", read=lambda: read(file))
    assert read(file, labels="fer2013").df.label.tolist() == ["angry", "happy", "sad"]
    faces(tmp_path / "own", *(f"im/{k}.png" for k in range(3)))
    listed = parquet(tmp_path / "own/list.parquet", ["happy", "sad", "happy"], images=[f"im/{k}.png" for k in range(3)])
    assert read(listed).df.id.tolist() == ["im/0.png", "im/1.png", "im/2.png"]
    listed.write_bytes(b"PAR1" + bytes(60))
    refused(DataError, listed, "not a Parquet file", read=lambda: read(listed))


def test_what_a_reader_moves_or_merges_is_said_and_kept(tmp_path):
    faces(tmp_path / "fer", "train/angry/Training_1.jpg", "test/happy/Training_2.jpg", "train/sad/PrivateTest_3.jpg", "test/sad/PublicTest_4.jpg", "valid/sad/PublicTest_5.jpg")
    ds, said = got(tmp_path / "fer")
    assert any("1 of train in a folder of test, 1 of test in a folder of train" in w for w in said)
    assert any("names count" in note for note in ds.provenance.facts()["notes"])
    faces(tmp_path / "raf", "train/1/train_00001_aligned.jpg", "valid/2/test_0001_aligned.jpg")
    ds, said = got(tmp_path / "raf")
    assert ds.provenance.splits == {"train": 1, "test": 1} and any("read as test" in note for note in ds.provenance.notes)
    for folders, word in ((("fold1", "fold2"), "fold1"), (("train_aug", "train_own"), "train_aug"), (("p1", "p2", "p3"), "p1")):
        root = faces(tmp_path / word, *(f"{f}/{c}/1.png" for f in folders for c in ("happy", "sad")))
        assert any(word in note and "read as train" in note for note in got(root)[0].provenance.notes)
    root = faces(tmp_path / "dev", *(f"{f}/{c}/1.png" for f in ("train", "dev") for c in ("happy", "sad")))
    assert got(root)[0].provenance.splits == {"train": 2, "valid": 2}


def test_two_labelled_tables_are_not_one_and_a_table_that_is_not_read_is_counted(tmp_path):
    rows = [f"{k},{ROW[k]}" for k in range(3)]
    for name in ("train.csv", "test.csv"):
        write(tmp_path / "two" / name, "emotion,pixels", *rows)
    refused(DataError, "2 ways", "train.csv", "test.csv", read=lambda: read(tmp_path / "two"))
    write(tmp_path / "kaggle/train.csv", "emotion,pixels", *rows), write(tmp_path / "kaggle/test.csv", "pixels", *ROW)
    ds, _ = got(tmp_path / "kaggle")
    assert len(ds) == 3 and ds.provenance.left_out == {"file (.csv)": 1}


def test_only_formats_with_numbers_lend_their_order(tmp_path):
    faces(tmp_path, "0/1.png", "1/2.png")
    for name in ("sfew", "caers", "kdef", "jaffe"):  # a name like any other, and no order
        refused(LabelError, "0 to 1 for 1 labels", read=lambda: read(tmp_path, labels=name))
    assert label_order("ckplus")[0][1] == "contempt" and label_order("expw")[0] == EMOTIONS


def test_the_split_of_a_list_is_never_guessed_where_it_has_a_column(tmp_path):
    faces(tmp_path, "train/0.png", "train/1.png", "train/2.png")
    path = write(tmp_path / "list.csv", "image,label,split", "train/0.png,happy,Testing", "train/1.png,sad,dev", "train/2.png,sad,train")
    assert got(path)[0].provenance.splits == {"train": 1, "valid": 1, "test": 1}
    for odd in ("", "fold3"):
        write(path, "image,label,split", "train/0.png,happy,train", f"train/1.png,sad,{odd}")
        refused(DataError, "row 3", f"split {odd!r}", read=lambda: read(path))


def test_a_kdef_of_which_much_is_broken_is_refused(tmp_path):
    faces(tmp_path, *(f"AF{p:02}/AF{p:02}{e}S.JPG" for p in range(1, 6) for e in ("HA", "SA")))
    for name in ("AF01/AF01HAS.JPG", "AF01/AF01SAS.JPG"):
        (tmp_path / name).write_bytes(b"no image")
    refused(DataError, "2 of 10 items are broken", "--broken any", read=lambda: got(tmp_path, broken="drop"))
    assert len(got(tmp_path, broken="any")[0]) == 8


@pytest.mark.parametrize("n", [30, 20_100])
def test_shared_splits_of_files_are_found_in_any_number(tmp_path, n):
    files = [save(tmp_path / f"{k}.png", k) for k in range(12)]
    table = pd.DataFrame({"id": [f"{k}" for k in range(n)], "label": "happy", "split": ["test"] * 10 + ["train"] * (n - 10)})
    same = [files[k % 10] for k in range(n)]
    assert "100% of test are images of train" in shared_splits(FERData(table, same, ["happy"]))[0]
    apart = files[:10] + [files[10 + k % 2] for k in range(n - 10)]
    assert shared_splits(FERData(table, apart, ["happy"])) == []


def test_votes_without_an_image_of_their_own_are_listed(tmp_path):
    head = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    faces(tmp_path, *(f"images/FER2013Train/fer{k:07}.png" for k in range(4)))
    rows = [f"Training,fer{k:07}.png,0,10,0,0,0,0,0,0,0,0" for k in range(4)]
    write(tmp_path / "fer2013new.csv", head, *rows, "Training,,0,0,0,0,0,0,0,0,0,10", "Training,fer0000003.png,10,0,0,0,0,0,0,0,0,0")
    ds, _ = got(tmp_path)
    assert ds.df.label.tolist() == ["happy"] * 3 + ["neutral"] and ds.provenance.left_out == {"blank name": 1, "identical to a later row": 1}
    assert dict(zip(ds.dropped.id, ds.dropped.why)) == {"row5": "identical_to_a_later_row", "row6": "blank_name"}


def test_persons_and_sequences_in_several_splits_are_said(tmp_path):
    faces(tmp_path / "ck", *(f"{'train' if k % 2 else 'test'}/{e}/S{10 + k // 4:03}_001_{k:08}.png" for k in range(8) for e in ("anger", "happy")))
    notes = got(tmp_path / "ck")[0].provenance.notes
    assert any("2 of 2 subjects are in several splits (S010, S011)" in n for n in notes) and any("groups" in n for n in notes)
    faces(tmp_path / "list", *(f"{k}.png" for k in range(8)))
    for split, word in ((lambda k: k % 2, "4 of 4 subjects"), (lambda k: k // 4, "")):
        path = write(tmp_path / "list/list.csv", "image,label,split,subject", *(f"{k}.png,{('happy', 'sad')[k // 2 % 2]},{('train', 'test')[split(k)]},p{k // 2}" for k in range(8)))
        assert [n for n in got(path)[0].provenance.notes if "several" in n] == [] if not word else any(word in n for n in got(path)[0].provenance.notes)


def test_columns_of_a_list_that_are_not_read_are_said(tmp_path):
    faces(tmp_path, "0.png", "1.png")
    path = write(tmp_path / "list.csv", ",image,x1,x2,label,emotion", "0,0.png,1,2,happy,fear", "1,1.png,1,2,sad,fear")
    assert any(n.endswith("columns that are not read: x1, x2, emotion") for n in got(path)[0].provenance.notes)
    path = write(tmp_path / "list.csv", "0.png,happy,extra", "1.png,sad,extra")
    assert any("extra" in n for n in got(path)[0].provenance.notes)


# ---- names of splits, words for emotions, litter, tables

@pytest.mark.parametrize("train, other, split", [("1_train", "2_test", "test"), ("train2017", "val2017", "valid"), ("train_images", "test_images", "test"),
                         ("TrainData", "DevData", "valid"), ("entrenamiento", "validación", "valid"), ("训练集", "测试集", "test"), ("fer_train", "fer_test", "test")])
def test_splits_under_other_names(tmp_path, train, other, split):
    ds, _ = got(faces(tmp_path, f"{train}/happy/1.png", f"{train}/sad/2.png", f"{other}/happy/3.png", f"{other}/sad/4.png"))
    assert ds.counts()[["train", split]].to_numpy().tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("name", ["my_val", "eval", "test v", "holdout"])
def test_folders_that_seem_to_be_splits_are_not_taken_for_training_images(tmp_path, name):
    with pytest.raises(DataError, match="seem to be splits"):
        read(faces(tmp_path, "a/happy/1.png", "a/sad/2.png", f"{name}/happy/3.png", f"{name}/sad/4.png"))


def test_words_of_more_languages():
    words = {"boos": "angry", "złość": "angry", "غضب": "angry", "गुस्सा": "angry", "avsky": "disgust", "strach": "fear", "senang": "happy", "Glück": "happy",
             "smutek": "sad", "दुखी": "sad", "förvånad": "surprise", "مفاجأة": "surprise", "netral": "neutral", "minachting": "contempt"}
    assert {w: canonical_label(w) for w in words} == words


def test_halves_of_downloads_and_backups_are_litter(tmp_path):
    faces(tmp_path, "happy/1.png", "sad/2.png")
    for name in ("happy/3.png.crdownload", "happy/4.jpg.part", "sad/2.png~", "sad/5.tmp"):
        (tmp_path / name).write_bytes((tmp_path / "happy/1.png").read_bytes())
    ds, said = got(tmp_path)
    assert len(ds) == 2 and ds.provenance.left_out["litter"] == 4


def test_fastais_column_is_valid_is_the_split(tmp_path):
    for k in range(4):
        faces(tmp_path, f"{k}.png")
    (tmp_path / "list.csv").write_text("image,label,is_valid\n0.png,happy,True\n1.png,sad,False\n2.png,sad,1\n3.png,happy,0\n")
    assert got(tmp_path)[0].df.split.tolist() == ["valid", "train", "valid", "train"]
    (tmp_path / "list.csv").write_text("image,label,is_valid\n0.png,happy,perhaps\n")
    with pytest.raises(DataError, match="row 2: split 'perhaps'; one of true, 1, false, 0 expected"):
        read(tmp_path / "list.csv")


def test_a_csv_in_either_half_of_utf16_two_columns_of_a_name_and_numbers_from_one(tmp_path):
    pixels = " ".join(["7"] * 2304)
    table = "emotion,pixels,Usage\n" + "".join(f"{k},{pixels},Training\n" for k in range(7))
    for code in ("utf-16-le", "utf-16-be", "utf-16"):
        (tmp_path / "a.csv").write_bytes(table.encode(code))
        assert read(tmp_path / "a.csv").df.label.tolist() == list(EMOTIONS)
    (tmp_path / "a.csv").write_text(table.replace("Usage", "emotion"))
    with pytest.raises(DataError, match="several columns emotion; one of each expected"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(table.replace(f"0,{pixels},Training\n", ""))
    with pytest.warns(UserWarning, match="no row has the emotion 0, angry: do its numbers begin with 1"):
        read(tmp_path / "a.csv")
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    with pytest.raises(DataError, match="an empty zip archive"):
        read(tmp_path / "none.zip")


@pytest.mark.parametrize("broken", ["drop", "any"])
def test_nothing_left_is_no_data_set(tmp_path, broken, monkeypatch):
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "cache"))
    faces(tmp_path, "set/train_set/images/7.png")
    (tmp_path / "set/train_set/annotations").mkdir()
    for what in ("exp", "val", "aro"):
        (tmp_path / f"set/train_set/annotations/7_{what}.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match="of 1 items are broken|none of 1 images can be used"):
        read(tmp_path / "set", broken=broken)


def test_messages_can_be_printed_and_are_short(tmp_path):
    "Whatever bytes a name holds: no control characters, three lines at most."
    for k, name in enumerate([b"\x1b[31mred.jpg", b"a\nb\nc\nd.jpg", b"\xff\xfe.jpg"]):
        folder = os.path.join(os.fsencode(tmp_path), b"happy")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "wb") as f:
            f.write(b"<html>")
    faces(tmp_path, "sad/1.png")
    with pytest.raises(ImageError) as e:
        read(tmp_path)
    text = str(e.value)
    assert text.count("\n") == 2 and text.replace("\n", "").isprintable() and len(e.value.failures) == 3
    with pytest.raises(DataError) as e:
        read(tmp_path / "no\x1b\n\n\nwhere")
    assert str(e.value).isprintable()


# ---- splits: of columns, folders, names of lists and of images

def encoded(k):
    Image.fromarray(PIXELS[k % len(PIXELS)]).save(data := io.BytesIO(), "png")
    return {"bytes": data.getvalue(), "path": None}


def table_as(path, table, kind):
    "A table as CSV, JSONL or Parquet."
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_suffix(f".{kind}")
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        pytest.importorskip("pyarrow")
        table.to_parquet(path)
    return path


COLUMNS = [{"split": ["train"] * 3 + ["test"] * 2 + ["validation"], "person": list("aabbcc"), "clip": list("uuvwxy")},
           {"Usage": ["Training"] * 2 + ["PublicTest"] * 2 + ["PrivateTest"] * 2, "subject_id": [1, 1, 2, 2, 3, 3]},
           {"is_valid": [True, False, False, True, False, False], "identity": ["p", None, "q", None, None, "r"]}]


@pytest.mark.parametrize("more", COLUMNS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_says_the_same_whatever_file_it_is_in(tmp_path, more, kind):
    "The columns of a list have one meaning in CSV, JSONL, Parquet of file names and Parquet of encoded images."
    table = pd.DataFrame({"image": [f"im/{k}.png" for k in range(6)], "label": ["happy", "sad"] * 3} | more)
    faces(tmp_path, *table.image)
    ds, said = got(table_as(tmp_path / "own", table, kind))
    want = {"split": [{"Training": "train", "validation": "valid", "PublicTest": "valid", "PrivateTest": "test", True: "valid", False: "train"}.get(x, x)
                      for x in next(iter(more.values()))]}
    assert ds.df.split.tolist() == want["split"] and not any("not read" in s for s in said)
    if kind == "parquet":
        other, _ = got(table_as(tmp_path / "inside" / "faces", table.assign(image=[encoded(k) for k in range(6)]), kind))
        assert other.df.drop(columns="id").equals(ds.df.drop(columns="id")) and (other.array() == PIXELS[:6]).all()
    who = next(c for c in more if c in ("person", "subject_id", "identity"))
    expected = [None if x is None else str(x) for x in more[who]]
    assert [x if isinstance(x, str) else None for x in ds.df.subject] == expected
    assert "clip" not in more or ds.df.group.tolist() == list("uuvwxy")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "packed"])
def test_columns_that_are_not_read_are_said_of_every_list(tmp_path, kind):
    table = pd.DataFrame({"image": [f"{k}.png" for k in range(4)], "emotion": ["happy", "sad"] * 2, "phase": ["train", "test"] * 2})
    faces(tmp_path, *table.image)
    table = table.assign(image=[encoded(k) for k in range(4)]) if kind == "packed" else table
    ds, said = got(table_as(tmp_path / "own", table, kind.replace("packed", "parquet")))
    assert [s.rpartition("/")[2].partition(".")[2].partition(": ")[2] for s in said] == ["columns that are not read: phase"]


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA, "NaN", "None"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_missing_person_is_nobody(tmp_path, nothing, kind):
    table = pd.DataFrame({"image": [f"{k}.png" for k in range(4)], "label": ["happy", "sad"] * 2, "split": ["train", "test"] * 2})
    table["subject"] = pd.Series([nothing, nothing, "p", "q"], dtype=object)
    faces(tmp_path, *table.image)
    ds, said = got(table_as(tmp_path / "own", table, kind))
    assert ds.df.subject.isna().tolist() == [True, True, False, False] and not any("several splits" in s for s in said)


def test_a_split_that_a_row_lacks_is_not_guessed_in_parquet_either(tmp_path):
    table = pd.DataFrame({"image": [encoded(k) for k in range(3)], "label": ["happy", "sad", "sad"], "split": ["train", None, "test"]})
    file = table_as(tmp_path / "faces", table, "parquet")
    refused(DataError, "row 1", "split ''", read=lambda: read(file))
    assert read(file, broken="any").df.split.tolist() == ["train", "test"]


def test_a_split_that_a_line_lacks_is_not_guessed(tmp_path):
    faces(tmp_path, "0.png", "1.png")
    for lines in (['{"image": "0.png", "label": "sad"}', '{"image": "1.png", "label": "happy", "split": "test"}'],
                  ['{"image": "0.png", "label": "sad", "is_valid": true}', '{"emotion": "happy", "image": "1.png"}']):
        for order in (lines, lines[::-1]):
            refused(DataError, "split ''", read=lambda: read(write(tmp_path / "own.jsonl", *order)))


def test_two_columns_of_splits_that_contradict_are_refused(tmp_path):
    faces(tmp_path, "0.png", "1.png", "2.png")
    rows = ["image,label,split,is_valid", "0.png,happy,train,False", "1.png,sad,test,0"]
    assert read(write(tmp_path / "own.csv", *rows)).df.split.tolist() == ["train", "test"]
    for row in ("2.png,sad,train,True", "2.png,sad,valid,0", "2.png,sad,test,1"):
        refused(DataError, "row 4", "is_valid", "agree", read=lambda: read(write(tmp_path / "own.csv", *rows, row)))


@pytest.mark.parametrize("above, both", [(("Training/train", "Training/val"), "train and valid"), (("test/a/train", "test/b/train"), "test and train"),
                                         (("val_set/x/PrivateTest", "val_set/dev"), "test and valid")])
def test_folders_that_name_two_splits_are_refused_by_every_reader(tmp_path, above, both):
    names = [f"{above[k % 2]}/{k}_{('happy', 'sad')[k // 2 % 2]}.png" for k in range(8)]
    faces(tmp_path / "names", *names)
    bad = next(n for n in names if both in refused_words(n))
    refused(DataError, Path(bad).name, both, read=lambda: read(tmp_path / "names", label_pattern=r"_([a-z]+)\."))
    faces(tmp_path / "list", *names)
    path = write(tmp_path / "list/own.csv", *(f"{n},{n.rpartition('_')[2][:-4]}" for n in names))
    refused(DataError, Path(bad).name, both, read=lambda: read(path))
    rows = [f"{n},{n.rpartition('_')[2][:-4]},{('train', 'test')[k % 2]}" for k, n in enumerate(names)]
    assert set(read(write(tmp_path / "list/own.csv", "image,label,split", *rows)).df.split) == {"train", "test"}
    for n in names:
        folder, _, file = n.rpartition("/")
        save(tmp_path / f"yolo/{folder}/images/{file}")
        write((tmp_path / f"yolo/{folder}/labels/{file}").with_suffix(".txt"), f"{int('sad' in n)} .5 .5 1 1")
    write(tmp_path / "yolo/data.yaml", "names: [happy, sad]")
    from fer_nb.formats import read_yolo
    refused(DataError, Path(bad).name, both, read=lambda: read_yolo(tmp_path / "yolo"))


def refused_words(path):
    "The splits that the folders of a path name, by a plain loop."
    words = {"Training": "train", "train": "train", "val": "valid", "val_set": "valid", "dev": "valid", "PrivateTest": "test", "test": "test"}
    return " and ".join(sorted({words[part] for part in path.split("/")[:-1] if part in words}))


def test_one_split_named_twice_is_one(tmp_path):
    faces(tmp_path, "Training/train/0_happy.png", "Training/train/1_sad.png", "a/test/2_sad.png")
    ds = read(tmp_path, label_pattern=r"_([a-z]+)\.")
    assert dict(zip(ds.df.id, ds.df.split)) == {"Training/train/0_happy.png": "train", "Training/train/1_sad.png": "train", "a/test/2_sad.png": "test"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("above", ["", "default/", "v1/data/"])
def test_lists_in_split_folders_are_one_and_each_alone_is_its_split(tmp_path, kind, above):
    for split, rows in (("train", range(4)), ("validation", range(4, 6)), ("test", range(6, 8))):
        faces(tmp_path / f"{above}{split}", *(f"{k}.png" for k in rows))
        table = pd.DataFrame({"file_name": [f"{k}.png" for k in rows], "label": [("happy", "sad")[k % 2] for k in rows]})
        file = table_as(tmp_path / f"{above}{split}/metadata", table, kind)
    ds, _ = got(tmp_path)
    assert ds.provenance.splits == {"train": 4, "valid": 2, "test": 2} and not ds.provenance.left_out
    assert dict(zip(ds.df.id, ds.df.split)) == {f"{s}/{k}.png": {"validation": "valid"}.get(s, s) for s, ks in (
        ("train", range(4)), ("validation", (4, 5)), ("test", (6, 7))) for k in ks}
    for path in (file, file.parent):
        assert set(read(path).df.split) == {"test"} and len(read(path)) == 2


def test_parquet_files_of_split_folders_keep_their_ids_apart(tmp_path):
    for split, shards in (("train", 2), ("test", 1)):
        for n in range(shards):
            parquet(tmp_path / f"default/{split}/{n:04}.parquet", ["happy", "sad", "fear"])
    ds, _ = got(tmp_path)
    assert ds.provenance.splits == {"train": 6, "test": 3} and ds.df.id.is_unique and "test/0000/2" in set(ds.df.id)
    assert set(read(tmp_path / "default/test/0000.parquet").df.split) == {"test"} == set(read(tmp_path / "default/test").df.split)
    write(tmp_path / "default/validation/own.csv", "image,label", "0.png,happy")
    refused(DataError, "two kinds", "own.csv", read=lambda: read(tmp_path))


@pytest.mark.parametrize("name, split", [("fer_test_labels", "test"), ("my_val_list_2", "valid"), ("testLabels", "test"), ("trainlabels", "train"), ("2_PublicTest_x", "valid"),
                                         ("train_or_test", "train"), ("contest", "train"), ("latest", "train")])
def test_any_word_of_a_lists_name_may_be_its_split(tmp_path, name, split):
    faces(tmp_path, "0.png", "1.png")
    assert set(read(write(tmp_path / f"{name}.csv", "image,label", "0.png,happy", "1.png,sad")).df.split) == {split}


def test_the_folders_of_an_image_come_before_that_of_the_dataset(tmp_path):
    faces(tmp_path / "test", "train/0.png", "val/1.png", "2.png")
    path = write(tmp_path / "test/own.csv", "image,label", "0.png,happy", "val/1.png,sad", "2.png,sad")
    assert read(path).df.split.tolist() == ["train", "valid", "test"]


def test_a_list_that_contradicts_the_folders_of_its_images_is_doubted(tmp_path):
    names = [f"images/{c}/{k}.png" for k, c in enumerate(["happy", "Sadness", "anger", "joy", "misc", "fear"])]
    faces(tmp_path, *names)
    for labels, how in ((["happy", "sad", "sad", "fear", "sad", "afraid"], {}), ([3, 4, 4, 2, 0, 2], {"labels": "fer2013"})):
        path = write(tmp_path / "own.csv", "image,label", *(f"{n},{x}" for n, x in zip(names, labels)))
        notes = [n for n in got(path, **how)[0].provenance.notes if "another class" in n]
        assert notes == ["2 of 5 images lie in a folder of another class (first: images/anger/2.png: sad)"]
    path = write(tmp_path / "own.csv", "image,label", *(f"{n},{x}" for n, x in zip(names, ["happy", "sad", "anger", "happy", "sad", "fear"])))
    assert not any("another class" in n for n in got(path)[0].provenance.notes)
    faces(tmp_path / "named", "happy/1_sad.png", "sad/2_sad.png", "sad/3_happy.png")
    assert any("2 of 3 images" in n for n in got(tmp_path / "named", label_pattern=r"_([a-z]+)\.")[0].provenance.notes)


@pytest.mark.parametrize("form", ["{split}_{k:04}.png", "img-{k}-{split}.png", "p{k}_{split}_7.png", "{split}{k}.png"])
def test_splits_in_the_names_of_images_are_noticed(tmp_path, form):
    names = [form.format(k=k, split=("train", "test")[k > 7]) for k in range(12)]
    faces(tmp_path / "flat", *names)
    flat = table_as(tmp_path / "flat/own", pd.DataFrame({"image": names, "label": ["happy", "sad"] * 6}), "csv")
    for path in (faces(tmp_path / "classes", *(f"{('happy', 'sad')[k % 2]}/{n}" for k, n in enumerate(names))), flat):
        said = got(path)[1]
        assert any("file names name splits (" in s and "test 4" in s and "4 images are read as another" in s for s in said), said
    table = pd.DataFrame({"image": names, "label": ["happy", "sad"] * 6, "split": ["train"] * 8 + ["test"] * 4})
    assert not any("file names" in s for s in got(table_as(tmp_path / "flat/own", table, "csv"))[1])


def test_names_of_one_split_or_of_none_are_no_splits(tmp_path):
    for k, names in enumerate((["train_1", "train_2", "train_3"], ["happy_1", "test_2", "a_3"])):
        assert not any("file names" in s for s in got(faces(tmp_path / f"{k}", *(f"{('happy', 'sad')[j % 2]}/{n}.png" for j, n in enumerate(names))))[1])


def test_named_groups_of_a_pattern_mean_what_they_say(tmp_path):
    faces(tmp_path, "train_p1_happy.png", "val_p2_sad.png", "TEST_p3_sad.png")
    ds = read(tmp_path, label_pattern=r"(?P<split>[A-Za-z]+)_(?P<person>p\d)_(?P<label>[a-z]+)")
    assert dict(zip(ds.df.subject, ds.df.split)) == {"p1": "train", "p2": "valid", "p3": "test"}
    assert set(read(tmp_path, label_pattern=r"(?P<Usage>[A-Za-z]+)_p\d_(?P<label>[a-z]+)").df.split) == {"train", "valid", "test"}
    refused(DataError, "split 'p'", read=lambda: read(tmp_path, label_pattern=r"_(?P<split>p)\d_(?P<label>[a-z]+)"))
    for own in ("id", "found"):
        refused(ConfigError, f"a group {own}", read=lambda: read(tmp_path, label_pattern=rf"_(?P<{own}>p\d)_(?P<label>[a-z]+)"))
    both = r"_(?P<subject>p\d)_(?P<label>[a-z]+)"
    for pattern in (both, r"_(?P<subject>p\d)_([a-z]+)", r"_(?P<person>p\d)_(?P<emotion>[a-z]+)"):
        ds = read(tmp_path, label_pattern=pattern, subject_pattern=pattern)
        assert sorted(zip(ds.df.subject, ds.df.label)) == [("p1", "happy"), ("p2", "sad"), ("p3", "sad")]
    ds = read(tmp_path, label_pattern=r"_(?P<label>[a-z]+)\.", subject_pattern=r"(?P<label>[A-Za-z]+)_(?P<subject>p\d)")
    assert sorted(ds.df.subject) == ["p1", "p2", "p3"]


# ---- lists without a header, without UTF-8, without names for their numbers

@pytest.mark.parametrize("rows, label", [
    (["0.png,p1,happy", "1.png,p1,sad"], ["happy", "sad"]), (["0.png,7,sad,0.4,-0.2", "1.png,8,Wut,0.1,0.2"], ["sad", "angry"]),
    (["0.png,1,3", "1.png,0,4"], None), (["0.png,happy,sad", "1.png,sad,fear"], None), (["0.png,3,0.5", "1.png,4,0.1"], None),
    (["0.png joy 3", "1.png anna 4"], None)])
def test_the_label_of_a_list_without_a_header_is_not_the_first_that_comes(tmp_path, rows, label):
    faces(tmp_path, "0.png", "1.png")
    path = write(tmp_path / "own.csv", *rows)
    if label:
        assert read(path).df.label.tolist() == label
    else:
        refused(DataError, "no header", "first row", read=lambda: read(path, labels="fer2013"))


def test_a_pixel_table_in_windows_1252_is_read_with_a_note_too(tmp_path):
    """Its persons are those of a list in UTF-8."""
    rows = ["emotion,pixels,Usage,subject"] + [f"{e},{' '.join([str(k)] * 2304)},Training,{who}" for k, (e, who) in enumerate(
        (("traurig", "Ann"), ("glücklich", "Jörg"), ("Wut", "Zoë")))]
    ds, said = got(write(tmp_path / "own.csv", *rows, encoding="cp1252"))
    assert ds.df.label.tolist() == ["sad", "happy", "angry"] and ds.df.subject.tolist() == ["Ann", "Jörg", "Zoë"]
    assert [s for s in said if "1252" in s] == [f"{tmp_path}/own.csv, row 3: not UTF-8; read as Windows-1252 ('glücklich')"]
    again, said = got(write(tmp_path / "own.csv", *rows))
    assert again.df.equals(ds.df) and not any("1252" in s for s in said)


@pytest.mark.parametrize("listed, there", [("im0", "im0.png"), ("im0.png", "IM0.PNG"), ("a/im0.jpg", "a/im0.png"), ("b\u00fc0.png", "bu\u03080.png")])
def test_an_image_that_is_spelt_otherwise_is_named(tmp_path, listed, there):
    """A missing ending, capitals, and accents as a Mac writes them."""
    faces(tmp_path, there, "1.png")
    path = write(tmp_path / "own.csv", "image,label", f"{listed},happy", "1.png,sad")
    refused(DataError, "no such image", f"but {there}, spelt otherwise", read=lambda: read(path))


def test_rafdb_names_in_folders_that_count_from_0_are_class_folders(tmp_path):
    for k in range(7):
        faces(tmp_path, f"train/{k}/train_{k:05}_aligned.png", f"test/{k}/test_{k:04}_aligned.png")
    ds = read(tmp_path, labels="rafdb")
    assert ds.provenance.format == "folder" and ds.labels == LABEL_ORDERS["rafdb"]
    assert all(ds.labels[int(i.split("/")[1])] == label for i, label in zip(ds.df.id, ds.df.label))
    refused(LabelError, "0 to 6", read=lambda: read(tmp_path))


def test_a_pixel_table_in_utf_32_is_read_and_one_that_was_shortened_is_told(tmp_path):
    rows = ["emotion,pixels,Usage", f"3,{' '.join(['7'] * 2304)},Training", f"4,{' '.join(['9'] * 2304)},Training"]
    assert read(write(tmp_path / "own.csv", *rows, encoding="utf-32")).df.label.tolist() == ["happy", "sad"]
    short = str(np.arange(2304).reshape(48, 48) % 256).replace("\n", "")
    refused(DataError, "left out as '...'", "2304", read=lambda: read(write(tmp_path / "own.csv", *rows[:2], f"4,{short},Training")))


def test_a_list_in_windows_1252_is_read_with_a_note(tmp_path):
    faces(tmp_path, "müde/0.png", "1.png", "2.png")
    rows = ["image;label", "müde/0.png;Überraschung", "1.png;fröhlich", "2.png;Wut"]
    ds, said = got(write(tmp_path / "own.csv", *rows, encoding="cp1252"))
    assert ds.df.label.tolist() == ["surprise", "happy", "angry"] and ds.df.id[0] == "müde/0.png"
    assert [s for s in said if "1252" in s] == [f"{tmp_path}/own.csv, row 2: not UTF-8; read as Windows-1252 ('Überraschung')"]
    assert not any("1252" in s for s in got(write(tmp_path / "own.csv", *rows))[1])
    raw = os.fsencode(tmp_path) + b"/\xe9.png"
    with open(raw, "wb") as f:
        f.write((tmp_path / "1.png").read_bytes())
    (tmp_path / "own.csv").write_bytes(b"image,label\n\xe9.png,happy\n1.png,sad\n")  # a name as its bytes are
    assert len(read(tmp_path / "own.csv")) == 2


@pytest.mark.parametrize("none", [None, -1])
@pytest.mark.parametrize("packed", [True, False])
def test_numbers_of_a_parquet_file_keep_their_names_beside_one_that_is_missing(tmp_path, none, packed):
    images = None if packed else [f"{k}.png" for k in range(4)]
    faces(tmp_path, *(images or ["x/0.png"]))
    file = parquet(tmp_path / "faces.parquet", [2, none, 0, 1], names=["Happiness", "Sadness", "Anger"], images=images)
    refused(DataError, file, "label", read=lambda: read(file))
    ds = read(file, broken="any")
    assert ds.df.label.tolist() == ["angry", "happy", "sad"] and len(ds.dropped) == 1
    refused(LabelError, "classes 9 beside names", read=lambda: read(parquet(tmp_path / "faces.parquet", [2, 9, 0, 1], names=["Happiness", "Sadness", "Anger"], images=images)))


def test_every_numbered_column_of_a_parquet_file_has_its_names(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [encoded(k) for k in range(3)], "label": [0.0, 1.0, 1.0], "split": [0, 1, 1]})
    features = {"info": {"features": {"label": {"names": ["happy", "sad"]}, "split": {"names": ["train", "test"]}, "image": {"_type": "Image"}}}}
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()}), tmp_path / "own.parquet")
    ds = read(tmp_path / "own.parquet")
    assert ds.df.label.tolist() == ["happy", "sad", "sad"] and ds.df.split.tolist() == ["train", "test", "test"]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_yolo_box_is_of_the_image_as_it_is_shown(tmp_path, turn):
    "The same picture, stored turned or not, and one line of the label: the same pixels."
    shown = np.zeros((200, 100, 3), np.uint8)
    shown[120:160, 20:60] = 255
    stored = {1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.transpose(1, 0, 2), 6: np.rot90(shown, 1),
              7: shown[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(shown, -1)}[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    (tmp_path / "images").mkdir()
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "images/a.png", exif=exif)
    Image.fromarray(shown).save(tmp_path / "images/b.png")
    write(tmp_path / "labels/a.txt", "0 0.4 0.7 0.4 0.2"), write(tmp_path / "labels/b.txt", "1 0.4 0.7 0.4 0.2")
    ds, _ = got(tmp_path, labels="angry,happy")
    for k in range(2):
        assert ds.image(k).shape[:2] == (40, 40) and ds.image(k).min() == 255


def test_a_list_beside_class_folders_is_not_passed_over_in_silence(tmp_path):
    faces(tmp_path, *[f"{c}/{k}.png" for c in ("happy", "sad") for k in range(4)])
    write(tmp_path / "metadata.csv", "image,label,split,subject", *[f"{c}/{k}.png,{c},{'test' if k == 3 else 'train'},p{k}" for c in ("happy", "sad") for k in range(4)])
    ds, said = got(tmp_path)
    assert any("metadata.csv lists images too and is not read" in s for s in said) and len(ds) == 8
    listed, _ = got(tmp_path / "metadata.csv")
    assert (listed.df.split == "test").sum() == 2 and "subject" in listed.df
    (tmp_path / "metadata.csv").unlink()
    write(tmp_path / "notes.txt", "nothing of interest")
    assert not any("lists images" in s for s in got(tmp_path)[1])


@pytest.mark.parametrize(("link", "to"), [("b/joy", "happy"), ("a/current", "v1")])
def test_images_read_twice_through_links_are_said(tmp_path, link, to):
    root = faces(tmp_path / "x", *([f"b/{c}/{k}.png" for c in ("happy", "sad") for k in range(3)] if link[0] == "b" else
                                   [f"a/v1/{c}/{k}.png" for c in ("happy", "sad") for k in range(3)]))
    here = root / link.split("/")[0]
    assert not any("more than once" in s for s in got(here)[1])
    (root / link).symlink_to(to, target_is_directory=True)
    ds, said = got(here)
    twice = len(ds) - 6
    assert twice > 0 and any(f"{twice} images are read more than once, through links" in s for s in said)


@pytest.mark.parametrize("name", ["id", "found", "source", "photo", "role", "original", "rule", "face_status"])
def test_columns_of_the_package_are_no_groups_of_a_pattern(tmp_path, name):
    faces(tmp_path, "happy_v1.png", "sad_v2.png")
    refused(ConfigError, name, "which the package gives itself", read=lambda: read(tmp_path, label_pattern=rf"(?P<label>[a-z]+)_(?P<{name}>v\d)"))


# ---- whose an image is, and which class

def test_names_of_classes_are_those_of_the_datasets_own_yaml(tmp_path):
    for d in "ab":
        for k in range(3):
            save(tmp_path / d / f"images/train/{k}.png", k)
            write(tmp_path / d / f"labels/train/{k}.txt", f"{k} 0.5 0.5 1 1")
    write(tmp_path / "a.yaml", "path: a", "names: [happy, sad, angry]")
    write(tmp_path / "b.yaml", "path: ../b", "names: [angry, happy, sad]")
    ds, said = got(tmp_path / "b")
    assert ds.df.label.tolist() == ["angry", "happy", "sad"] and ds.df.split.tolist() == ["train"] * 3
    assert any("are those of" in s and "b.yaml" in s for s in said)
    (tmp_path / "b.yaml").unlink()
    refused(LabelError, "--labels", read=lambda: read(tmp_path / "b"))
    write(tmp_path / "b/one.yaml", "names: [angry, happy, sad]")
    assert got(tmp_path / "b")[0].df.label.tolist() == ["angry", "happy", "sad"]
    write(tmp_path / "b/two.yaml", "names: [happy, angry, sad]")
    refused(DataError, "one.yaml, two.yaml", read=lambda: read(tmp_path / "b"))


def test_one_person_is_one_however_a_table_writes_the_number(tmp_path):
    faces(tmp_path, *[f"{k}.png" for k in range(10)])
    write(tmp_path / "train.csv", "image,label,subject,video", *[f"{k}.png,{('happy', 'sad')[k % 2]},{k % 2},{k}.00" for k in range(5)])
    write(tmp_path / "valid.csv", "image,label,subject", *[f"{k}.png,{('happy', 'sad')[k % 2]},{k % 2}.0" for k in range(5, 9)], "9.png,sad,NA")
    ds, said = got(tmp_path)
    assert set(ds.df.subject.dropna()) == {"0", "1"} and ds.df.subject.isna().sum() == 1
    assert ds.df.group.dropna().tolist() == ["0", "1", "2", "3", "4"]
    assert any("2 of 2 subjects are in several splits" in s for s in said)


@pytest.mark.parametrize("group, column", [("person", "subject"), ("Subject", "subject"), ("participant", "subject"), ("video", "group")])
def test_groups_of_a_pattern_mean_what_columns_of_a_list_mean(tmp_path, group, column):
    faces(tmp_path, *[f"{('train', 'valid')[k // 4]}/p{k % 2}_{('happy', 'sad')[k % 2]}_{k}.png" for k in range(8)])
    ds, said = got(tmp_path, label_pattern=rf"(?P<{group}>p\d)_(?P<label>[a-z]+)_")
    assert ds.df[column].tolist() == ["p0", "p0", "p1", "p1"] * 2 and any("are in several splits" in s for s in said)
    refused(ConfigError, "mean the same", read=lambda: read(tmp_path, label_pattern=rf"(?P<{group}>p)(?P<{column}_id>\d)_(?P<label>[a-z]+)_"))


def test_two_classes_that_become_one_are_said_and_can_be_kept_apart(tmp_path):
    names = ["neutral", "calm", "happy", "0_Happy", "fearful"]
    faces(tmp_path, *[f"{name}/{k}.png" for k, name in enumerate(names)])
    ds, said = got(tmp_path)
    [merged] = [s for s in said if "are read as" in s]
    assert "2 classes (calm, neutral) are read as neutral" in merged and "--labels calm=calm" in merged and merged in ds.provenance.notes[0]
    pairs, said = got(tmp_path, labels={"calm": "calm"})
    listed, more = got(tmp_path, labels=np.array(["neutral", "calm", "happy", "fearful"]))
    for one in (pairs, listed):
        assert labels_of(one) == labels_of(ds) | {"calm/1.png": "calm"} and {"calm", "neutral"} < set(one.labels)
    assert listed.labels == ("neutral", "calm", "happy", "fear") and not any("are read as" in s or "folder of another" in s for s in said + more)
    refused(ConfigError, "each label once", read=lambda: read(tmp_path, labels=["neutral", "calm", "happy", "joy", "fear"]))


def test_changed_frames_keep_their_person_and_others_are_counted(tmp_path):
    names = ["S010_004_00000017.png", "S010_004_00000017_flip.png", "S011_001_00000002.png", "S011_001_00000003 (2).png", "other.png"]
    faces(tmp_path, *[f"{('anger', 'happy')[k // 2 % 2]}/{name}" for k, name in enumerate(names)])
    ds, said = got(tmp_path, as_="ck48")
    assert dict(zip(ds.df.id.str.split("/").str[1], ds.df.group.fillna(""))) == dict(zip(names, ["S010_004"] * 2 + ["S011_001"] * 2 + [""]))
    assert any("1 images without a group and a subject" in s and "other.png" in s for s in said)


def test_a_row_with_a_comma_too_many_is_refused(tmp_path):
    faces(tmp_path, "0.png", "1.png")
    path = write(tmp_path / "l.csv", "image,subject,label,confidence", "0.png,Bob,happy,0.9", "1.png,Ann, angry,sad,0.9")
    refused(DataError, "l.csv, row 3", "5 fields, 4 in the header", read=lambda: read(path))
    write(path, "image,subject,label,confidence", "0.png,Bob,happy,0.9", '1.png,"Ann, angry",sad,0.9,')
    assert got(path)[0].df.subject.tolist() == ["Bob", "Ann, angry"]


# ---- twins of one name, many lists, one image in two spellings, persons

def test_two_images_of_one_name_are_refused_where_names_join(tmp_path):
    votes = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    write(tmp_path / "plus/fer2013new.csv", f"Usage,Image name,{votes}", "Training,fer1.png,10,0,0,0,0,0,0,0,0,0", "Training,fer2.png,0,10,0,0,0,0,0,0,0,0")
    faces(tmp_path / "plus", *(f"{top}/FER2013Train/fer{k}.png" for top in ("images", "images_old") for k in (1, 2)))
    refused(DataError, "fer1.png is there already", "images_old", read=lambda: read(tmp_path / "plus"))
    for top in ("cohn-kanade-images", "cohn-kanade-images-cropped"):
        faces(tmp_path / "ck", *(f"{top}/S00{s}/001/S00{s}_001_{k:08}.png" for s in (1, 2) for k in (1, 2)))
    for s in (1, 2):
        write(tmp_path / f"ck/Emotion/S00{s}/001/S00{s}_001_{2:08}_emotion.txt", f"   {s}.0000000e+00")
    refused(DataError, "S001_001_00000002 is there already", "cropped", read=lambda: read(tmp_path / "ck"))


def test_ckplus_takes_no_other_frame_for_a_missing_peak(tmp_path):
    faces(tmp_path, *(f"cohn-kanade-images/S00{s}/001/S00{s}_001_{k:08}.png" for s in (1, 2) for k in (1, 2)))
    for s in (1, 2):
        write(tmp_path / f"Emotion/S00{s}/001/S00{s}_001_{s + 1:08}_emotion.txt", f"   {s}.0000000e+00")
    refused(DataError, "without its image S002_001_00000003", read=lambda: read(tmp_path))
    assert read(tmp_path, broken="any").df.id.tolist() == ["S001_001"]


def test_every_one_of_many_lists_is_read(tmp_path):
    faces(tmp_path, *(f"train/{k}.png" for k in range(70)), "valid/v.png")
    for k in range(70):
        write(tmp_path / f"train/p{k:02}.csv", "image,label", f"{k}.png,{('happy', 'sad')[k % 2]}")
    write(tmp_path / "valid/own.csv", "image,label", "v.png,happy")
    ds, _ = got(tmp_path)
    assert ds.provenance.splits == {"train": 70, "valid": 1}


@pytest.mark.parametrize("again", ["im//1.png", "im/./1.png", ".//im/1.png"])
def test_one_image_in_two_spellings_is_one(tmp_path, again):
    faces(tmp_path, "im/0.png", "im/1.png")
    write(tmp_path / "train.csv", "image,label", "im/0.png,happy", "im/1.png,sad")
    write(tmp_path / "test.csv", "image,label", f"{again},happy")
    refused(DataError, "im/1.png again", "each image once", read=lambda: read(tmp_path))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_blank_behind_a_person_makes_no_other_and_na_is_said(tmp_path, kind):
    table = pd.DataFrame({"image": [f"{k}.png" for k in range(6)], "label": ["happy", "sad"] * 3, "split": ["train", "test"] * 3})
    table["subject"] = ["p1", "p1 ", "7.0 ", "7", "NA", " NA"]
    faces(tmp_path, *table.image)
    ds, said = got(table_as(tmp_path / "own", table, kind))
    assert ds.df.subject.fillna("").tolist() == ["p1", "p1", "7", "7", "", ""]
    assert any("2 of 2 subjects are in several splits" in s for s in said)
    assert any("2 rows with the subject 'NA': read as none" in s for s in said)


def test_a_blank_before_quotes_belongs_to_no_field(tmp_path):
    faces(tmp_path, "im/0.png", "im/1.png")
    path = write(tmp_path / "own.csv", '"image", "label"', '"im/0.png", "happy"', 'im/1.png, "sad"')
    assert labels_of(read(path)) == {"im/0.png": "happy", "im/1.png": "sad"}
    path = write(tmp_path / "pixels.csv", "emotion, pixels, Usage", f'"0", "{ROW[0]}", "Training"', f'"3", "{ROW[1]}", "PrivateTest"')
    assert read(path).df.split.tolist() == ["train", "test"]


def test_a_kdef_that_was_sorted_into_splits_keeps_them_and_its_folders_are_compared_with_its_names(tmp_path):
    for k, (split, n, emotion, code) in enumerate((s, n, *e) for s, n in (("train", 1), ("test", 2)) for e in (
            ("happy", "HA"), ("sad", "SA"), ("fear", "AN"))):
        save(tmp_path / f"{split}/{emotion}/AF0{n}{code}S.JPG", k)
    ds, said = got(tmp_path)
    assert ds.provenance.format == "kdef" and dict(zip(ds.df.id, ds.df.split)) == {
        f"AF0{n}{code}S": s for s, n in (("train", 1), ("test", 2)) for code in ("HA", "SA", "AN")}
    assert any("2 of 6 images lie in a folder of another class" in s for s in said)
    (tmp_path / "test/train").mkdir()
    (tmp_path / "test/happy").rename(tmp_path / "test/train/happy")
    ds, _ = got(tmp_path)                                              # the nearest folder says it
    assert ds.df.split[ds.df.id == "AF02HAS"].tolist() == ["train"]


def test_a_bare_name_of_a_list_is_looked_for_in_the_folders_of_its_split(tmp_path):
    faces(tmp_path, *(f"train/{k}.png" for k in range(4)), *(f"test/{k}.png" for k in range(6)))
    for split, n in (("train", 4), ("test", 4)):
        write(tmp_path / f"{split}_labels.csv", "image,label", *(f"{k}.png,{EMOTIONS[k % 2]}" for k in range(n)))
    assert got(tmp_path)[0].df.id.tolist() == [f"{s}/{k}.png" for s in ("test", "train") for k in range(4)]
    write(tmp_path / "train_labels.csv", "image,label", *(f"{k}.png,{EMOTIONS[k % 2]}" for k in range(6)))
    refused(DataError, "train_labels.csv, row 6: 4.png: no such image", "in the folders of train, but test/4.png", read=lambda: read(tmp_path))
    both = ["image,label,split", *(f"{k}.png,{EMOTIONS[k % 2]},{s}" for s in ("train", "test") for k in range(4))]
    for s in ("train", "test"):
        (tmp_path / f"{s}_labels.csv").unlink()
    assert got(write(tmp_path / "all.csv", *both))[0].counts().to_numpy().tolist() == [[2, 2, 4], [2, 2, 4]]
    write(tmp_path / "all.csv", "image,label,split", *(f"{k}.png,{EMOTIONS[k % 2]},valid" for k in (4, 5)), *both[1:])
    assert got(tmp_path / "all.csv")[0].df.id[0] == "test/4.png"   # no folder is called valid: taken out of another
    write(tmp_path / "all.csv", "image,label,split", *(f"{k}.png,{EMOTIONS[k % 2]},train" for k in (4, 5)))
    ds, _ = got(tmp_path / "all.csv")                                  # a row's own word divides anew
    assert ds.df.id.tolist() == ["test/4.png", "test/5.png"] and set(ds.df.split) == {"train"}


def test_a_list_may_name_its_images_from_above(tmp_path):
    home = tmp_path / "my faces"
    faces(home, *(f"a/{k}.png" for k in range(4)))
    for above in (f"{home.absolute()}/", "my faces/", f"{tmp_path.name}/my faces/", str(home.absolute()).replace("/", "\\") + "\\"):
        file = write(home / "list.csv", "image,label", *(f"{above}a/{k}.png,{EMOTIONS[k % 2]}" for k in range(4)))
        assert got(file)[0].df.id.tolist() == [f"a/{k}.png" for k in range(4)], above
    for outside in ("/elsewhere/a/0.png", f"{tmp_path.absolute()}/a/0.png", f"{home.absolute()}/../x.png"):
        write(home / "list.csv", "image,label", f"{outside},sad")
        refused(DataError, "a path inside the dataset's folder", read=lambda: read(file))
    faces(home, "my faces/a/0.png")
    write(home / "list.csv", "image,label", "my faces/a/0.png,sad", "a/0.png,happy")
    assert got(file)[0].df.id.tolist() == ["my faces/a/0.png", "a/0.png"]


@pytest.mark.parametrize("numbers, needle", [((0, 1, 2, 3), "its emotions are 0 to 3 alone, read as angry, disgust, fear, happy"),
                                             ((1, 2, 3), "do its numbers begin with 1"), ((0, 3, 4), ""), (range(7), ""),
                                             (("angry", "disgust"), ""), (("disgust", "fear", "happy", "sad", "surprise"), "")])
def test_a_table_of_some_numbers_is_asked_about(tmp_path, numbers, needle):
    pixels = " ".join(["7"] * 2304)
    said = got(write(tmp_path / "own.csv", "emotion,pixels", *(f"{k},{pixels}" for k in [*numbers] * 2)))[1]
    about = [s for s in said if "begin with" in s or "alone" in s]
    assert needle in "".join(about) if needle else not about


def test_a_refusal_names_the_table_that_was_not_understood(tmp_path):
    faces(tmp_path, "im/0.png", "im/1.png")
    for name, text in (("labels.csv", "filename,happy,sad\nim/0.png,1,0\n"), ("labels.json", '{"im/0.png": "sad"}')):
        (tmp_path / name).write_text(text)
        refused(LabelError, "one class alone: 'im'", f"{name}", "is no list that is known", read=lambda: read(tmp_path))
        (tmp_path / name).unlink()
    faces(tmp_path / "flat", "0.png")
    write(tmp_path / "flat/own.csv", "one,two", "0.png,sad")
    refused(DataError, "own.csv (its first row is one, two)", "--label-pattern", read=lambda: read(tmp_path / "flat"))
    for header in ("File Name,Class_Name", "img_path,Emotion Label", "Image Path;Facial Expression"):
        sep = ";" if ";" in header else ","
        write(tmp_path / "own.csv", header, *(f"im/{k}.png{sep}{e}" for k, e in enumerate(("sad", "happy"))))
        assert got(tmp_path)[0].df.label.tolist() == ["sad", "happy"]


def test_a_parquet_file_of_another_name_is_named(tmp_path):
    table_as(tmp_path / "own", pd.DataFrame({"image": ["a.png"], "label": ["sad"]}), "parquet").rename(tmp_path / "own.csv")
    refused(DataError, "own.csv: a Parquet file; a table of text", read=lambda: read(tmp_path / "own.csv"))


def test_a_class_of_which_nothing_is_left_is_named(tmp_path):
    faces(tmp_path, *(f"{e}/{k}.png" for e in ("happy", "sad") for k in range(3)))
    (tmp_path / "fear").mkdir()
    (tmp_path / "fear/0.png").write_bytes(b"")
    ds, said = got(tmp_path, broken="any")
    assert len(ds.labels) == 2 and any("of the class folders fear no image can be used" in s for s in said)


def test_a_hint_that_could_be_two_emotions_is_none_and_none_is_a_class(tmp_path):
    for k, name in enumerate(("ang", "hap", "sad", "happy")):
        faces(tmp_path / "own", f"{name}/{k}.png")
    said = got(tmp_path / "own")[1]
    assert any(s.endswith("class 'ang' is no known emotion") for s in said) and any("'hap' is no known emotion; is it 'happy'" in s for s in said)
    faces(tmp_path / "more", "none/0.png", "sad/1.png")
    refused(LabelError, "--labels none=none,", read=lambda: read(tmp_path / "more"))
    assert got(tmp_path / "more", labels="none=none")[0].labels == ("sad", "none")


def test_a_data_set_that_is_read_from_inside_has_its_folders_name(tmp_path, monkeypatch):
    faces(tmp_path / "own", *(f"{s}/images/{k}.png" for s in ("train", "test") for k in range(2)))
    for s in ("train", "test"):
        for k in range(2):
            write(tmp_path / f"own/{s}/labels/{k}.txt", f"{k} 0.5 0.5 0.5 0.5")
    faces(tmp_path / "named", "0_sad.png", "1_happy.png")
    faces(tmp_path / "classes", "sad/0.png", "happy/1.png")
    for name, how in (("own", {"labels": "sad,happy"}), ("named", {"label_pattern": r"_(\w+)\.png"}), ("classes", {})):
        monkeypatch.chdir(tmp_path / name)
        assert read(".", **how).name == name
    assert read_folder(".").name == "classes"

"""Files of strangers: whatever their bytes, they are read or refused with one of our errors, and nothing of them is run.

Which of these tests concern which room is listed in tests/README.md.

Damaged images are in test_data.py, weights in test_models.py, checkpoints in test_train.py, pages in test_report.py,
test_review.py and test_explore.py. Here: tables, lists, annotations, caches, run folders, and names that lead elsewhere.
"""
import gzip
import io
import json
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from fer_nb.core import DataError, FERError, ImageError, file_sha256
from fer_nb.data import FERData, read_votes, read_affectnet, read_fer2013, read_ferplus, read_folder, read_image, read_kdef, read_rafdb
from fer_nb.formats import read as read_path
from fer_nb.models import HyFER, HyFERConfig, load_hyfer, load_teacher, save_hyfer
from fer_nb.predict import Network, Recogniser, as_image
from fer_nb.report import Section, write_report
from fer_nb.review import read_decisions
from fer_nb.store import Store, read_state

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
PICTURE = np.random.default_rng(5).integers(0, 256, (48, 48), dtype=np.uint8)
ROW = " ".join(map(str, PICTURE.ravel()))
SPICE = [b"\0", b"\xff\xfe", b'"', b"'", b",", b"\n", b"\r", b" ", b"-1", b"nan", b"inf", b"1e999", b"9" * 5000, b"../", b"..\\", b"/etc/passwd",
         b"C:", b"\xef\xbb\xbf", b"%s", b"=1+1", "٣".encode(), b"1_0", b"0x1", b"1.5", b"(", b"{", b"<script>", b"\xed\xa0\x80"]


def survives(read, path):
    "Read, or refuse with one of our errors; anything else is a crash."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(path)
        except FERError as e:
            assert str(e)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PICTURE).save(path)


def fer2013(root):
    return text(root / "fer2013.csv", "emotion,pixels,Usage", f"0,{ROW},Training", f"3,{ROW},PrivateTest"), read_fer2013


def votes(root):
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    return text(root / "fer2013new.csv", header, "Training,a.png,10,0,0,0,0,0,0,0,0,0", "PublicTest,,0,0,0,0,0,0,0,0,0,10"), read_votes


def ferplus(root):
    for name in "ab":
        save_image(root / f"FER2013Train/{name}.png")
    return text(root / "FER2013Train/label.csv", 'a.png,"(0, 0, 48, 48)",8,0,0,2,0,0,0,0,0,0', 'b.png,"(0, 0, 48, 48)",0,9,0,0,0,0,0,0,1,0'), \
        lambda path: read_ferplus(path.parents[1])


def rafdb(root):
    for name in ("train_00001", "test_0001"):
        save_image(root / f"Image/aligned/{name}_aligned.jpg")
        text(root / f"Annotation/manual/{name}_manu_attri.txt", *["1.0\t2.0"] * 5, "1", "0", "3")
    return text(root / "EmoLabel/list_patition_label.txt", "train_00001.jpg 5", "test_0001.jpg 7"), lambda path: read_rafdb(path.parents[1])


def rafdb_codes(root):
    rafdb(root)
    return root / "Annotation/manual/test_0001_manu_attri.txt", lambda path: read_rafdb(path.parents[2])


def rafdb_mirror(root):
    save_image(root / "train/5/train_00001_aligned.jpg")
    return text(root / "train_labels.csv", "image,label", "train_00001_aligned.jpg,5"), lambda path: read_rafdb(path.parent)


def affectnet(root):
    save_image(root / "Manually_Annotated_Images/1/a.jpg")
    save_image(root / "Manually_Annotated_Images/2/b.jpg")
    head = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    return text(root / "training.csv", head, "1/a.jpg,1,2,20,30,1.5;2,0,0.1,0.2", "2/b.jpg,0,0,48,48,1;2,7,-1,-2"), \
        lambda path: read_affectnet(path.parent, cache=path.parent / "cache")


def affectnet_arrays(root):
    save_image(root / "train_set/images/7.jpg")
    (root / "train_set/annotations").mkdir(parents=True)
    for what, value in (("exp", "3"), ("val", "0.25"), ("aro", "-2")):
        np.save(root / f"train_set/annotations/7_{what}.npy", np.array(value))
    return root / "train_set/annotations/7_exp.npy", lambda path: read_affectnet(path.parents[2], cache=False)


def affectnet_index(root):
    path, read = affectnet(root)
    read(path)
    return next((root / "cache").iterdir()), lambda path: read_affectnet(path.parents[1], cache=path.parent)


def kdef(root):
    for name in ("AF01ANS", "AF01HAS", "BM02SUS"):
        save_image(root / f"{name[:4]}/{name}.JPG")
    return root / "AF01/AF01HAS.JPG", lambda path: read_kdef(path.parents[1])


def packed(root):
    path, read = fer2013(root)
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path, read


def listed(root):
    for name in "ab":
        save_image(root / f"images/{name}.png")
    return text(root / "list.csv", "image;label;split", "images/a.png;happy;train", "b.png;Wut;test"), read_path


def listed_json(root):
    save_image(root / "a.png"), save_image(root / "b.png")
    return text(root / "list.jsonl", '{"file_name": "a.png", "label": "happy"}', '{"file_name": "b.png", "label": "sad"}'), read_path


def boxes(root):
    save_image(root / "image/origin/a.jpg")
    return text(root / "label/label.lst", "a.jpg 0 4 8 38 44 50.1 3", "a.jpg 1 0 0 10 10 20 6"), lambda path: read_path(path.parents[1])


def yolo(root):
    save_image(root / "images/a.png"), save_image(root / "images/b.png"), text(root / "labels/b.txt", "1 0.5 0.5 1 1")
    text(root / "data.yaml", "names: [angry, happy]")
    return text(root / "labels/a.txt", "0 0.5 0.5 0.5 0.5"), lambda path: read_path(path.parents[1])


def yaml_names(root):
    yolo(root)
    return root / "data.yaml", lambda path: read_path(path.parent)


def peaks(root):
    for frame in ("01", "11"):
        save_image(root / f"cohn-kanade-images/S005/001/S005_001_000000{frame}.png")
    return text(root / "Emotion/S005/001/S005_001_00000011_emotion.txt", "   3.0000000e+00"), lambda path: read_path(path.parents[3])


def probabilities(root):
    from fer_nb.cli import VERBS
    import pandas as pd
    ds = FERData(pd.DataFrame({"id": ["a", "b"], "label": ["sad", "happy"], "split": "train"}), np.stack([PICTURE] * 2), ["sad", "happy"])
    return text(root / "probs.csv", "id,sad,happy", "a,0.9,0.1", "b,0.2,0.8"), lambda path: VERBS["audit"].read_probabilities(path, ds)


def decisions(root):
    line = {k: "x" for k in ("time", "reviewer", "id", "kind", "action", "dataset")}
    return text(root / "log", *[json.dumps(line | {"id": f"im{k}"}) for k in range(4)]), read_decisions


def weights(root):
    model = HyFER(in_chans=1, variant=HyFERConfig(8, ((12, 2, 2),), 16, 1, 1, 32, True, "relu", 24))
    return save_hyfer(model, root / "m.safetensors"), load_teacher


KINDS = [fer2013, packed, listed, listed_json, boxes, yolo, yaml_names, peaks, probabilities, votes, ferplus, rafdb, rafdb_codes, rafdb_mirror, affectnet, affectnet_arrays, affectnet_index, kdef, decisions,
         weights]


def damaged(raw, data, most):
    "`raw` cut, changed, repeated or spiced in its first `most` bytes."
    raw, most = bytearray(raw), min(most, len(raw))
    for _ in range(data.draw(st.integers(1, 4))):
        at, what = data.draw(st.integers(0, most)), data.draw(st.sampled_from(["cut", "byte", "spice", "spice over", "twice", "gone"]))
        if what == "cut":
            del raw[at:]
        elif what == "byte":
            raw[at:at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif what.startswith("spice"):
            spice = data.draw(st.sampled_from(SPICE))
            raw[at:at + (len(spice) if what == "spice over" else 0)] = spice
        else:
            length = data.draw(st.integers(1, 40))
            raw[at:at + (0 if what == "twice" else length)] = raw[at:at + length] if what == "twice" else b""
    return bytes(raw)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_read_or_refused_with_our_error(kind, tmp_path):
    path, read = kind(tmp_path)
    raw = path.read_bytes()
    read(path)

    @FUZZ
    @given(data=st.data())
    def fuzz(data):
        path.write_bytes(damaged(raw, data, 400 if data.draw(st.booleans()) else len(raw)))
        survives(read, path)

    fuzz()


@pytest.mark.parametrize("kind", [fer2013, packed, listed, listed_json, boxes, yolo, peaks, probabilities, votes, affectnet, affectnet_arrays, decisions, weights])
def test_any_bytes_at_all(kind, tmp_path):
    path, read = kind(tmp_path)

    @settings(FUZZ, max_examples=40)
    @given(raw=st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
    def fuzz(raw):
        path.write_bytes(raw)
        survives(read, path)

    fuzz()


# ---------------------------------------------------------------- annotations that are no numbers

def npy(descr, shape="()", body=bytes(16)):
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body


@pytest.mark.parametrize("raw", [
    npy("'<f8'", "(1000000000000,)"), npy("'<f8'", "(999999999999999999999,)"), npy("[('a', '<f8')]"), npy("'<M8[s]'"), npy("'<c16'"),
    npy("'O'"), npy("'<U100000000'"), npy("'<f8'", "(" * 300 + ")" * 300), b"PK\x05\x06" + bytes(18)],
    ids=["terabytes", "beyond", "record", "date", "complex", "object", "long text", "nested", "archive"])
def test_annotations_of_another_kind(raw, tmp_path):
    """A header of a hundred bytes can ask for terabytes."""
    path, read = affectnet_arrays(tmp_path)
    path.write_bytes(raw)
    with pytest.raises(DataError, match="7_exp.npy.*not one number"):
        read(path)


def test_a_pixel_of_a_million_digits(tmp_path):
    path, read = fer2013(tmp_path)
    path.write_text(path.read_text().replace(ROW, ROW.rpartition(" ")[0] + " " + "9" * 10**6, 1))
    with pytest.raises(DataError, match=r"row 2: pixel '9{40}'; a whole number in 0-255"):
        read(path)


def test_a_box_larger_than_any_image(tmp_path):
    """It is no box: with a cache or without."""
    path, read = affectnet(tmp_path)
    path.write_text(path.read_text().replace("20,30", "1e300,30"))
    with pytest.raises(DataError, match="1 faces have no box: train/1/a.jpg"):
        read(path)
    assert len(read_affectnet(tmp_path, crop=False, cache=tmp_path / "cache")) == 2


# ---------------------------------------------------------------- nothing is run

class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(path):
    return pickle.dumps(Trap(path))


def npz_of_objects(path):
    np.savez(buffer := io.BytesIO(), digest=np.array([Trap(path)], dtype=object), images=np.array([Trap(path)], dtype=object))
    return buffer.getvalue()


def npy_of_objects(path):
    np.save(buffer := io.BytesIO(), np.array([Trap(path)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("bait", [pickled, npz_of_objects, npy_of_objects])
def test_no_strangers_pickle_is_opened(bait, tmp_path):
    """As weights, checkpoint, stored array, annotation, index: refused or passed over, never run."""
    ran = tmp_path / "ran"
    raw = bait(ran)
    for n, kind in enumerate((affectnet_arrays, affectnet_index, weights)):
        (home := tmp_path / f"{n}").mkdir()
        path, read = kind(home)
        path.write_bytes(raw)
        survives(read, path)
    for name in ("x.ckpt", "x.safetensors", "x.png", "x.npz"):
        (tmp_path / name).write_bytes(raw)
    for read in (lambda: read_state(tmp_path / "x.ckpt"), lambda: Network.read(tmp_path / "x.safetensors"),
                 lambda: read_image(tmp_path / "x.png"), lambda: load_hyfer(tmp_path / "x.safetensors"),
                 lambda: Store(tmp_path, {}).array("x", dict)):
        with pytest.raises(FERError):
            read()
    assert not ran.exists()


def test_the_sources_open_no_pickle():
    """Whatever reads arrays or tensors says that it opens no pickle; and nothing else could."""
    for path in Path(file_sha256.__code__.co_filename).parent.glob("*.py"):
        code = path.read_text(encoding="utf-8")
        for call in re.findall(r"np\.load\([^\n]*", code):
            assert "allow_pickle=False" in call, (path.name, call)
        for call in re.findall(r"torch\.load\([^\n]*", code):
            assert "weights_only=True" in call, (path.name, call)
        assert not re.search(r"^\s*(import|from) (pickle|marshal|shelve|joblib|dill)|read_pickle|(?<![.\w])(eval|exec)\(", code, re.M), path.name
        for call in re.findall(r"yaml\.\w*load\w*\([^\n]*", code):
            assert re.search(r"yaml\.(BaseLoader|SafeLoader|safe_load)\b", call), (path.name, call)


def test_postscript_is_not_run(tmp_path):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    path = tmp_path / "face.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n")
    for read in (read_image, as_image):
        with pytest.raises(ImageError, match="cannot identify"):
            read(path)
    (tmp_path / "KDEF/AF01").mkdir(parents=True)
    for stem in ("AF01ANS", "AF01HAS"):
        save_image(tmp_path / f"KDEF/AF01/{stem}.JPG")
    (tmp_path / "KDEF/AF01/AF01SUS.JPG").write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="AF01SUS .not decodable."):
        assert len(read_kdef(tmp_path / "KDEF", broken="any")) == 2


# ---------------------------------------------------------------- sizes

@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("share", [0.9, 1.1, 2.2])
def test_an_image_above_the_limit_is_not_decoded_by_any_reader(tmp_path, monkeypatch, share):
    """Pillow itself only warns until twice its limit."""
    save_image(tmp_path / "KDEF/AF01/AF01ANS.JPG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(48 * 48 / share))
    path = tmp_path / "KDEF/AF01/AF01ANS.JPG"
    if share < 1:
        assert len(read_kdef(tmp_path)) == 1 and read_image(path).shape == (48, 48)
        return
    for read in (read_image, as_image, lambda p: read_folder(tmp_path / "KDEF")):
        with pytest.raises(ImageError, match="AF01ANS.JPG"):
            read(path)
    with pytest.raises(ImageError, match="not decodable"):
        read_kdef(tmp_path, broken="raise")


# ---------------------------------------------------------------- names that lead elsewhere

@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "..", "a/../../secret.png", "..\\secret.png", "C:/secret.png", "C:secret.png"])
def test_no_list_leads_out_of_its_folder(name, tmp_path):
    save_image(tmp_path / "secret.png")
    path, read = ferplus(tmp_path / "ferplus")
    path.write_text(path.read_text().replace("a.png", name))
    with pytest.raises(DataError, match="a path inside"):
        read(path)
    path, read = affectnet(tmp_path / "affectnet")
    path.write_text(path.read_text().replace("1/a.jpg", name))
    with pytest.raises(DataError, match="a path inside"):
        read(path)


# ---------------------------------------------------------------- pages and runs

def test_a_report_of_hostile_names_holds_no_markup(tmp_path):
    import pandas as pd
    from matplotlib.figure import Figure
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"
    table = pd.DataFrame({evil: [evil]}, index=pd.Index([evil], name=evil))
    section = Section(evil, evil, [(evil, table)], [(evil, Figure())])
    page = write_report(tmp_path / "r.html", evil, [section], {evil: {evil: [evil]}}).read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page and "onerror=alert" in page.replace("&#39;", "") and "49" not in page.split("alert(1)")[1][:80]
    assert page.count("<img ") == 1 and "Content-Security-Policy" in page


def test_a_run_folder_of_another_version_says_why(tmp_path):
    """Missing weights, a setting that this version does not know, another kind of network: a sentence with the file's name."""
    with pytest.raises(DataError, match="student.safetensors: no such file"):
        Recogniser(tmp_path)
    path, _ = weights(tmp_path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8:8 + length])
    kind, facts = next((k, json.loads(v)) for k, v in head["__metadata__"].items())

    def written(kind, facts):
        text = json.dumps(head | {"__metadata__": {kind: json.dumps(facts)}}).encode()
        (tmp_path / "student.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length:])
        return tmp_path

    assert Network.read(written(kind, facts)).size == 24
    for other, says in [((kind, facts | {"config": facts["config"] | {"gates": 3}}), "gates"), ((kind, {}), "config"),
                        (("fer_nb.HyFER2", facts), "student.safetensors"), ((kind, facts | {"labels": ["a", "b"]}), "size mismatch")]:
        with pytest.raises(DataError, match=f"(?s)student.safetensors: not the weights of.*{says}|{says}: not the weights of"):
            Network.read(written(*other))


def test_a_link_to_elsewhere_is_only_ever_read_as_an_image(tmp_path):
    """A folder of a stranger can hold a link; what it leads to is decoded as an image or refused, and not shown."""
    (tmp_path / "secret").write_text("a secret")
    save_image(tmp_path / "set/happy/a.png")
    os.symlink(tmp_path / "secret", tmp_path / "set/happy/b.png")
    with pytest.raises(ImageError, match="b.png") as e:
        read_folder(tmp_path / "set")
    assert "a secret" not in str(e.value)


def test_datasets_from_hostile_names_are_datasets(tmp_path):
    """Class folders called like formulas, tags and commands."""
    for name in ("$x^{$", "<b>", "=cmd()", "a&b", "né"):
        save_image(tmp_path / name / "a.png")
    ds = read_folder(tmp_path)
    assert isinstance(ds, FERData) and len(ds) == 5 and len(ds.fingerprint()) == 16

"""`fer_nb.predict` on whatever people point it at: formats, damage, folders, videos, networks of every kind."""
import json
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, ImageError, LabelError
from fer_nb.faces import FaceFinder, FoundFace, face_square
from fer_nb.models import GeometryTeacher, HyFER, create_teacher, save_hyfer, save_teacher
from fer_nb.predict import (FaceTracker, Live, Network, Recogniser, Result, _and_notes, annotate, as_image, format_of, is_video, need_spare, reasons_against, signs,
                            structure, track_summary, write_annotated, write_results)

PHOTO = astronaut()[:360, 60:420]


def brightness(x):
    "Logits that say how bright an image is."
    light = x.mean((1, 2, 3))
    return np.stack([np.zeros_like(light), 20 * (light - .5)], 1)


@pytest.fixture
def toy():
    return Recogniser(Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy"), batch=4)


@pytest.fixture(scope="module")
def portrait(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "portrait.png"
    Image.fromarray(PHOTO).save(path)
    return path


# ---- images ----

def one_face(recogniser, image):
    (face,) = recogniser(image)
    x, y, w, h = face.box
    return (x + w / 2, y + h / 2), face


def test_the_same_face_whatever_the_image_comes_as(toy, tmp_path):
    at, _ = one_face(toy, PHOTO)
    im = Image.fromarray(PHOTO)
    forms = {"grey.png": im.convert("L"), "palette.png": im.convert("P"), "alpha.png": im.convert("RGBA"), "cmyk.jpg": im.convert("CMYK"),
             "web.webp": im, "x.bmp": im, "x.tiff": im, "la.png": im.convert("LA"), "x.gif": im.convert("P")}
    for name, form in forms.items():
        form.save(tmp_path / name)
        assert one_face(toy, tmp_path / name)[0] == pytest.approx(at, abs=12), name
    cv2.imwrite(str(tmp_path / "16.png"), np.asarray(im.convert("L")).astype(np.uint16) * 257)
    assert one_face(toy, tmp_path / "16.png")[0] == pytest.approx(at, abs=12)
    for array in (PHOTO / 255, (PHOTO / 255).astype(np.float32), PHOTO.astype(np.uint16) * 257, PHOTO[..., :1],
                  np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])):
        assert one_face(toy, array)[0] == pytest.approx(at, abs=12), (array.dtype, array.shape)


@pytest.mark.parametrize("orientation, turns", [(3, 2), (6, 1), (8, 3)])
def test_exif_turns_are_applied(toy, tmp_path, orientation, turns):
    at, face = one_face(toy, PHOTO)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(PHOTO, turns).copy()).save(tmp_path / "phone.jpg", exif=exif)
    got, turned = one_face(toy, tmp_path / "phone.jpg")
    assert got == pytest.approx(at, abs=12) and abs(turned.roll - face.roll) < 15


def test_images_that_cannot_be_used_are_named(toy, portrait, tmp_path):
    whole = portrait.read_bytes()
    bad = {"cut.png": whole[:len(whole) // 2], "empty.jpg": b"", "text.jpg": b"not an image"}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            toy(tmp_path / name)
    with pytest.raises(ImageError, match="gone.png: no such file"):
        toy(tmp_path / "gone.png")
    for junk in (None, 3, [[1]], {}, np.zeros(5), np.zeros((2, 3, 4, 5)), np.full((4, 4), 2.0), np.zeros((4, 4), np.int32)):
        with pytest.raises(ImageError):
            toy(junk)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_images_are_refused_before_they_are_decoded(toy, tmp_path):
    for side in (20_000, 10_000):
        Image.new("1", (side, side)).save(tmp_path / "huge.png")
        with pytest.raises(ImageError, match="huge.png"):
            toy(tmp_path / "huge.png")


def test_an_animation_gives_its_first_frame_and_says_so(toy, tmp_path):
    frames = [Image.fromarray(PHOTO)] + [Image.new("RGB", (360, 360), c) for c in ("red", "blue")]
    for name in ("moving.gif", "moving.webp", "moving.png", "pages.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.warns(UserWarning, match="3 frames; the first"):
            assert len(toy(tmp_path / name)) == 1
    table = toy.folder(tmp_path)
    assert (table.status == "ok").all() and table.note.str.contains("3 frames").all()


def former_structure(grey, points):
    "As it was measured from the whole image in grey."
    half = max(2, .12 * np.hypot(*(points[1] - points[0])))
    lows, highs = ((points[[0, 1, 3]] + shift).clip(0).astype(int) for shift in (-half, half))
    parts = [grey[y:v, x:u] for (x, y), (u, v) in zip(lows, highs)]
    return np.array([part.std() if part.size else np.inf for part in parts])


@pytest.mark.parametrize("image", [PHOTO, PHOTO[..., 1].copy(), PHOTO[:60, :70].copy()], ids=["colour", "grey", "cut"])
def test_structure_of_a_face_is_that_of_the_whole_image_in_grey(image):
    rng = np.random.default_rng(0)
    for k in range(200):
        points = rng.uniform(-20, 380, (6, 2)) if k % 2 else rng.uniform(80, 220, (1, 2)) + rng.uniform(-30, 30, (6, 2))
        whole = (image if image.ndim == 2 else image @ np.array([.299, .587, .114])).astype(float)
        np.testing.assert_allclose(structure(image, points), former_structure(whole, points), rtol=1e-12)


def test_a_face_costs_no_copy_of_its_photo():
    photo = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    points = np.array([[1000., 1000], [1060, 1000], [1030, 1030], [1030, 1060], [980, 1010], [1080, 1010]])
    face = FoundFace(np.array([970., 960, 120, 120]), .9, points)
    tracemalloc.start()
    measured = signs(photo, face, photo[960:1008, 970:1018])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert measured["eyes"] > .5 and peak < 5e6, peak


def test_thin_and_tiny_images_have_no_face(toy):
    for shape in ((1, 1), (1, 5000), (5000, 1), (2, 2, 3), (48, 48), (7, 3000, 3)):
        assert toy(np.full(shape, 100, np.uint8)) == []


# ---- the finder, seen from here ----

def test_small_faces_many_faces_and_faces_upside_down():
    canvas = np.full((480, 640, 3), 120, np.uint8)
    for x, side in ((10, 220), (260, 110), (400, 80), (500, 64)):
        canvas[30:30 + side, x:x + side] = np.asarray(Image.fromarray(astronaut()[:260, 90:350]).resize((side, side)))
    assert len(Recogniser(Network(("a",), 48, 1, 1., lambda x: x[:, 0, 0, :1], "t"), finder=FaceFinder(.04))(canvas)) == 4
    for turns in (1, 2, 3):
        (face,) = FaceFinder()(np.rot90(PHOTO, turns).copy())
        upright = face_square(np.rot90(PHOTO, turns).copy(), face, 96)
        (straight,) = FaceFinder()(PHOTO)
        assert np.corrcoef(upright.ravel(), face_square(PHOTO, straight, 96).ravel())[0, 1] > .75


def test_a_crop_at_the_border_and_one_larger_than_the_image():
    face = FoundFace(np.array([-10., -10, 400, 400]), 1., np.array([[100., 100], [250, 100]] + [[150, 200]] * 4))
    for image in (PHOTO, PHOTO[..., 0], PHOTO[:40, :30]):
        assert face_square(image, face, 48).shape == (48, 48, 3)[:image.ndim]


# ---- networks ----

def test_every_kind_of_weights(tmp_path, portrait):
    torch.manual_seed(0)
    student = HyFER(7, 1, "light")
    save_hyfer(student, tmp_path / "student.safetensors", temperature=2.0)
    teacher = create_teacher("efficientnet_lite0", 7, False, 64)
    save_teacher(teacher, tmp_path / "teacher.safetensors")
    by_file, by_run, by_module = (Recogniser(w)(portrait)[0] for w in (tmp_path / "student.safetensors", tmp_path, student))
    assert by_file.probs == by_run.probs and list(by_file.probs) == list(EMOTIONS)
    hot, cold = (np.log([f.probs[e] for e in EMOTIONS]) for f in (by_file, by_module))   # the module records no temperature
    np.testing.assert_allclose(np.diff(cold), 2 * np.diff(hot), atol=1e-3)
    assert student.training                                                            # a copy was folded
    save_hyfer(HyFER(7, 1, "light"), tmp_path / "student_phase1.safetensors")          # as a run leaves beside it
    first, second = (Recogniser(tmp_path, robust=robust)(portrait)[0] for robust in (False, True))
    assert second.probs == by_run.probs != first.probs
    assert Recogniser(tmp_path / "teacher.safetensors").network.size == 64
    with pytest.raises(ConfigError, match="landmarks"):
        Recogniser(GeometryTeacher(10))


def test_names_and_folders_say_which_network_is_meant(tmp_path):
    from fer_nb.predict import SHIPPED, weights_file
    assert [weights_file(*given).stem for given in ((), ("accurate",), ("robust",), (None, True))] == ["hyfer", "hyfer", "hyfer_robust", "hyfer_robust"]
    assert all(weights_file(name).is_file() for name in SHIPPED)
    (tmp_path / "student.safetensors").touch()                                         # a run of an older version
    assert weights_file(tmp_path) == tmp_path / "student.safetensors"
    (tmp_path / "student_phase1.safetensors").touch()
    assert weights_file(tmp_path).name == "student.safetensors"                        # the same one under two names
    with pytest.raises(ConfigError, match="no network trained under attack"):
        weights_file(tmp_path, True)
    (tmp_path / "student_phase1.safetensors").write_text("another")
    assert weights_file(tmp_path).name == "student_phase1.safetensors" and weights_file(tmp_path, True).name == "student.safetensors"
    for weights in ("accurate", tmp_path / "student.safetensors"):
        with pytest.raises(ConfigError, match="robust=True with"):
            weights_file(weights, True)
    with pytest.raises(DataError, match="fragile: no such file; accurate, robust"):
        weights_file("fragile")


@pytest.mark.parametrize("files, chosen, robust", [
    (("student_no_teacher", "student_phase1", "student"), "student_no_teacher", True), (("student_no_teacher", "student_phase1", "student"), "student", True),
    (("student_no_teacher", "student"), "student", False), (("student_no_teacher", "student"), "student_no_teacher", False)])
def test_a_run_stands_for_the_student_that_its_hold_out_chose(tmp_path, files, chosen, robust):
    "As `pipeline.run` writes it: without adversarial training `student` and `student_phase1` are one, listed once."
    from fer_nb.predict import weights_file
    for name in {*files, "student_phase1"}:
        (tmp_path / f"{name}.safetensors").touch()
    names = [f"{name}.safetensors" for name in files]
    pd.DataFrame({"model": files, "file": names, "chosen": [name == chosen for name in files]}).to_csv(tmp_path / "students.csv", index=False)
    assert weights_file(tmp_path).stem == chosen
    if robust:
        assert weights_file(tmp_path, True).stem == "student"
    else:
        with pytest.raises(ConfigError, match=f"robust=True with {tmp_path}: no network trained under attack is there"):
            weights_file(tmp_path, True)
    (tmp_path / "students.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="students.csv: no column 'file', 'chosen'"):
        weights_file(tmp_path)


def drawn_copies(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_annotated_copies_of_different_files_have_different_names(tmp_path):
    "The name that counts is the one on the disk: a.png and a.png.jpg would both be a.png.jpg."
    photos = [tmp_path / "in" / name for name in ("a.png", "a.png.jpg", "b/a.png.jpg", "b/a.png")]
    write_annotated([Result(str(p), "no_face", image=np.zeros((9, 9), np.uint8)) for p in photos], tmp_path / "out", [*photos])
    assert len(drawn_copies(tmp_path / "out")) == 4


def test_annotated_copies_stay_out_of_the_folders_that_are_searched(tmp_path):
    (tmp_path / "in/more").mkdir(parents=True)
    for to in ("in/drawn", "in/more/drawn", "in/more"):
        with pytest.raises(DataError, match="lies in a folder that is searched"):
            write_annotated([], tmp_path / to, [tmp_path / "in"], overwrite=True)
    assert drawn_copies(tmp_path) == [] and not (tmp_path / "in/drawn").exists()
    for name in ("out/b/x.jpg", "a/x.jpg", "b/x.jpg"):  # the second x.jpg would be drawn as out/b/x.jpg, which is an input
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    given = [tmp_path / name for name in ("a/x.jpg", "b/x.jpg", "out/b/x.jpg")]
    write_annotated([Result(str(p), "no_face", image=np.zeros((9, 9), np.uint8)) for p in given], tmp_path / "out", given, overwrite=True)
    assert all(p.read_text() == "mine" for p in given) and len(drawn_copies(tmp_path / "out")) == 4


def test_annotated_copies_never_replace_their_originals(tmp_path):
    from PIL import Image as Pillow
    Pillow.new("L", (9, 9)).save(photo := tmp_path / "a.jpg")
    before = photo.read_bytes()
    for roots in ([tmp_path], [photo]):
        with pytest.raises(DataError, match="holds the originals"):
            write_annotated([Result(str(photo), "no_face", image=np.zeros((9, 9), np.uint8))], tmp_path, roots, overwrite=True)
    assert photo.read_bytes() == before


def test_wrong_weights_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    (tmp_path / "empty").mkdir()
    for path in ("noise.safetensors", "noise.onnx", "empty", "nowhere.onnx"):
        with pytest.raises(DataError, match=path):
            Recogniser(tmp_path / path)
    with pytest.raises(ConfigError, match="without .labels"):
        Recogniser(torch.nn.Linear(1, 1))
    wrong = HyFER(7, 1, "light")
    wrong.labels = ("a", "b")
    with pytest.raises(DataError, match=r"logits of shape \(2, 7\)"):
        Recogniser(wrong, crop=False)(PHOTO)
    with torch.no_grad():
        wrong.fc.bias.fill_(torch.nan)
    with pytest.raises(DataError, match="not all finite"):
        Recogniser(wrong, crop=False)(PHOTO)


def test_without_shipped_weights_the_message_says_which(monkeypatch, tmp_path):
    import fer_nb.models
    monkeypatch.setattr(fer_nb.models, "files", lambda package: tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)                 # it cannot be imported
    with pytest.raises(DataError, match="no weights 'hyfer' in .*weights"):
        Recogniser()


def onnx_model(path, without=()):
    "A linear network as `fer_nb.export.to_onnx` would write it."
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    weight = np.random.default_rng(0).normal(0, .01, (48 * 48, len(EMOTIONS))).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])], "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 48, 48])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(EMOTIONS)])],
        [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    facts = {"labels": json.dumps(EMOTIONS), "input_size": "48", "in_chans": "1", "temperature": "1.5"}
    for k in facts.keys() - set(without):
        entry = model.metadata_props.add()
        entry.key, entry.value = k, facts[k]
    onnx.save(model, path)
    return weight


def test_an_onnx_file_without_torch(tmp_path, portrait):
    pytest.importorskip("onnxruntime")
    weight = onnx_model(tmp_path / "toy.onnx")
    code = (f"import sys; from fer_nb.predict import Recogniser; r = Recogniser({str(tmp_path / 'toy.onnx')!r}); (f,) = r({str(portrait)!r}); "
            f"import json; print(json.dumps([f.probs, f.crop.ravel().tolist(), r.network.temperature])); assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    probs, crop, temperature = json.loads(done.stdout)
    grey = np.asarray(Image.fromarray(np.array(crop, np.uint8).reshape(48, 48, 3)).convert("L"), np.float32) / 255
    z = grey.ravel() @ weight / temperature
    np.testing.assert_allclose(list(probs.values()), np.exp(z) / np.exp(z).sum(), atol=1e-4)
    assert not re.search("warn|exception", without_native_log(done.stderr), re.I), done.stderr


def without_native_log(stderr):
    "Leave out the lines that MediaPipe's compiled code logs; some depend on where memory happens to lie."
    return re.sub(r"^(WARNING: (Logging before InitGoogle|All log messages before).*|[IWE]\d{4} \d\d:\d\d:.*)$", "", stderr, flags=re.M)


def test_only_native_lines_count_as_log():
    log = ("WARNING: Logging before InitGoogle() is written to STDERR\n"
           "W0000 00:00:1795857731.125014   30264 inference_runner_litert.cc:1418] Input tensor memory is not aligned; a warning\n")
    ours = "UserWarning: something\nWARNING: ours\n"
    assert without_native_log(log + ours).strip() == ours.strip()


@pytest.mark.parametrize("record, said", [
    ({"faces": {"margin": 0}, "temperature": 1.5}, 1), ({}, 0), (None, 0), ([1], 0), ("no record", 0)])
def test_an_onnx_file_says_too_that_its_faces_were_cut_out(tmp_path, record, said):
    onnx = pytest.importorskip("onnx")
    onnx_model(tmp_path / "toy.onnx")
    model = onnx.load(tmp_path / "toy.onnx")
    entry = model.metadata_props.add()
    entry.key, entry.value = "record", record if isinstance(record, str) else json.dumps(record)
    onnx.save(model, tmp_path / "toy.onnx")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Network.read(tmp_path / "toy.onnx")
    found = [w for w in caught if "toy.onnx: trained on faces cut out along their outline" in str(w.message)]
    assert len(found) == len(caught) == said and {w.filename for w in found} <= {__file__}


@pytest.mark.parametrize("fact", ["labels", "input_size", "in_chans"])
def test_an_onnx_file_without_its_metadata_is_refused(tmp_path, fact):
    pytest.importorskip("onnxruntime")
    onnx_model(tmp_path / "toy.onnx", without=[fact])
    with pytest.raises(DataError, match=fact):
        Recogniser(tmp_path / "toy.onnx")


@pytest.mark.parametrize("labels", [dict.fromkeys("abcdefg", 1), "abcdefg", [0, 1, 2, 3, 4, 5, 6], 7])
def test_an_onnx_file_whose_labels_are_no_list_of_texts_is_refused(tmp_path, labels):
    import onnx
    onnx_model(tmp_path / "odd.onnx", ["labels"])
    model = onnx.load(tmp_path / "odd.onnx")
    entry = model.metadata_props.add()
    entry.key, entry.value = "labels", json.dumps(labels)
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(DataError, match="odd.onnx: labels"):
        Recogniser(tmp_path / "odd.onnx")


def test_the_import_is_light():
    code = ("import sys, fer_nb.predict; "
            "print([m for m in ('torch', 'mediapipe', 'matplotlib', 'IPython', 'ipywidgets', 'cv2', 'onnxruntime') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# ---- without a finder ----

def test_faces_that_are_cut_out_already_go_straight_to_the_network():
    batches = []
    spy = Network(("a", "b"), 48, 1, 1., lambda x: batches.append(x) or np.zeros((len(x), 2)), "spy")
    faces = np.random.default_rng(0).integers(0, 256, (5, 48, 48), dtype=np.uint8)
    found = Recogniser(spy, crop=False).batch([*faces, np.zeros((100, 60, 3), np.uint8)])
    assert len(batches) == 1 and batches[0].shape == (6, 1, 48, 48)                                # one batch
    np.testing.assert_array_equal((batches[0][:5, 0] * 255).round(), faces)                     # to the byte
    assert [len(f) for f in found] == [1] * 6 and found[5][0].box.tolist() == [0, 0, 60, 100]
    assert found[0][0].landmarks is None


# ---- folders ----

def test_a_folder_of_everything(toy, portrait, tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for k in range(6):
        (tmp_path / f"deep/er/{k}.png").write_bytes(portrait.read_bytes())
    (tmp_path / ".hidden/x.png").write_bytes(portrait.read_bytes())
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "broken.jpg").write_bytes(b"x")
    (tmp_path / "video.mp4").write_bytes(b"x" * 300)
    (tmp_path / "notes.txt").write_text("x")
    Image.new("L", (64, 64)).save(tmp_path / "wall.png")
    with pytest.warns(UserWarning, match="2 files could not be read, the first .*broken.jpg"):
        table = toy.folder(tmp_path)
    status = {Path(f).name: s for f, s in zip(table.file, table.status)}
    assert status == {**{f"{k}.png": "ok" for k in range(6)}, "broken.jpg": "error", "video.mp4": "error", "notes.txt": "skipped", "wall.png": "no_face"}
    assert table.note[table.status == "error"].str.len().min() > 5 and table[table.status == "ok"][["dark", "bright"]].sum(axis=1).round(3).eq(1).all()
    assert list(toy.results([tmp_path / "gone"]))[0].status == "error"


def test_what_is_read_with_a_doubt_is_noted_wherever_it_comes_from(plain, tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray((np.add.outer(np.arange(60), np.arange(60)) * 34).astype(np.uint16)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")     # the note says it
        notes = [r.note for r in (*plain.results(path), *plain.results(tmp_path), *plain.many([path]))]
        assert plain.folder(tmp_path).note.tolist() == notes[:1]
    assert len(set(notes)) == 1 and notes[0].endswith("values up to 4012: read as 12 bits"), notes


def test_damage_behind_the_first_page_costs_that_page_only(toy, portrait, tmp_path):
    im = Image.fromarray(PHOTO)
    im.save(tmp_path / "a.tiff", save_all=True, append_images=[im])
    content = (tmp_path / "a.tiff").read_bytes()
    at = int.from_bytes(content[4:8], "little")                       # the first directory: tags, and where the next one is
    end = at + 2 + 12 * int.from_bytes(content[at:at + 2], "little")
    (tmp_path / "a.tiff").write_bytes(content[:end] + (len(content) + 900).to_bytes(4, "little") + content[end + 4:])
    (tmp_path / "b.png").write_bytes(portrait.read_bytes())
    table = toy.folder(tmp_path)
    assert table.status.tolist() == ["ok", "ok"]
    assert "damaged after the first frame" in table.note[0] and not table.note[1]
    with pytest.warns(UserWarning, match="a.tiff: damaged after the first frame"):
        assert len(toy(tmp_path / "a.tiff")) == 1


@pytest.mark.parametrize("error", [MemoryError("too much"), RuntimeError("no graph")])
def test_one_image_that_is_too_much_costs_itself_alone(toy, monkeypatch, tmp_path, error):
    for k in range(6):
        Image.fromarray(np.full((48, 48), 40 * k, np.uint8)).save(tmp_path / f"{k}.png")
    toy.crop, found = False, toy._found

    def fails(image):
        if image.raw[0, 0] == 80:
            raise error
        return found(image)
    monkeypatch.setattr(toy, "_found", fails)
    with pytest.warns(UserWarning, match="1 files could not be read"):
        table = toy.folder(tmp_path)
    assert table.status.tolist() == ["ok", "ok", "error", "ok", "ok", "ok"]
    assert table.note[2] == f"{type(error).__name__}: {error}" and table.emotion.tolist()[4:] == ["bright"] * 2
    assert [s.image is None for s in toy.results(tmp_path)] == [False, False, True, False, False, False]   # nothing to draw


def test_a_video_that_is_too_much_costs_itself_alone(toy, portrait, monkeypatch, tmp_path):
    make_video(tmp_path / "a.avi")
    (tmp_path / "b.png").write_bytes(portrait.read_bytes())
    recognise = toy._recognise

    def fails(images):
        if len(images[0].raw) == 180:
            raise MemoryError("too much")
        return recognise(images)
    monkeypatch.setattr(toy, "_recognise", fails)
    assert [(s.status, s.note) for s in toy.results(tmp_path)] == [("error", "MemoryError: too much"), ("ok", "")]


def test_large_images_are_held_in_smaller_batches(toy, monkeypatch, tmp_path):
    for k in range(5):
        Image.new("L", (300, 200)).save(tmp_path / f"{k}.png")
    sizes, recognise = [], toy._recognise
    monkeypatch.setattr("fer_nb.predict._BATCH_PIXELS", 100_000)
    monkeypatch.setattr(toy, "_recognise", lambda images: sizes.append(len(images)) or recognise(images))
    assert len(list(toy.results(tmp_path))) == 5 and sizes == [2, 2, 1]


def test_very_many_faces_go_through_the_network_in_parts():
    batches = []
    spy = Network(("dark", "bright"), 48, 1, 1.0, lambda x: batches.append(len(x)) or brightness(x), "spy")
    images = [np.full((48, 48), k, np.uint8) for k in range(150)]
    together = spy(images)
    assert batches == [64, 64, 22]
    np.testing.assert_allclose(together, np.concatenate([spy([p]) for p in images]), rtol=1e-6)


def test_a_file_that_somebody_names_is_tried_whatever_its_ending(toy, portrait, tmp_path):
    (tmp_path / "IMG_0001").write_bytes(portrait.read_bytes())
    (tmp_path / "notes.txt").write_text("x")
    assert [s.status for s in toy.results([tmp_path / "IMG_0001", tmp_path / "notes.txt"])] == ["ok", "error"]
    assert [s.status for s in toy.results(tmp_path)] == ["ok", "skipped"]       # found in a folder, the first bytes count where there is no ending


def test_a_folder_that_cannot_be_searched_is_an_error(toy, portrait, monkeypatch, tmp_path):
    import os
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes(portrait.read_bytes())
    scan = os.scandir

    def scandir(path):
        if str(path).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)
    monkeypatch.setattr(os, "scandir", scandir)
    shut = list(toy.results(tmp_path))[-1]
    assert (shut.file, shut.status) == (str(tmp_path / "closed"), "error") and "Permission denied" in shut.note


def test_settings_that_make_no_sense_are_refused_before_anything_is_opened(toy, tmp_path):
    for wrong in ({"every": 0}, {"every": 1.5}, {"smooth": -1}):
        with pytest.raises(ConfigError):
            toy.results(tmp_path, **wrong)                               # not at the first image


@pytest.mark.slow
def test_ten_thousand_files_in_bounded_memory(toy, monkeypatch, tmp_path):
    "Nothing but the rows outlives its batch."
    import gc
    import weakref
    import fer_nb.predict as p

    class Loaded(np.ndarray):
        pass

    def read(path):
        image = np.zeros((48, 48), np.uint8).view(Loaded)
        refs.append(weakref.ref(image))
        if path.name.endswith("7.png"):
            raise ImageError(f"{path}: broken")
        return image, ""
    refs = []
    monkeypatch.setattr(p, "_read", read)
    monkeypatch.setattr(p, "_files", lambda paths: (Path(f"{k}.png") for k in range(10_000)))
    toy.crop, most = False, 0
    counts = {"ok": 0, "error": 0}
    for k, s in enumerate(toy.results(tmp_path)):
        counts[s.status] += 1
        if k % 1000 == 0:
            gc.collect()
            most = max(most, sum(r() is not None for r in refs))
    assert counts == {"ok": 9000, "error": 1000} and most <= 2 * toy.batch_size


def test_what_was_done_before_an_interruption_is_there(toy, portrait, tmp_path):
    for k in range(9):
        (tmp_path / f"{k}.png").write_bytes(portrait.read_bytes())
    stream = toy.results(tmp_path)
    assert [next(stream).status for _ in range(5)] == ["ok"] * 5       # they come as they are done
    stream.close()


# ---- videos ----

def make_video(path, frames=24, fps=12, step=4):
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v")), fps, (320, 180))
    for k in range(frames):
        out.write(_frame(k * step))
    out.release()
    return path


def _frame(x):
    canvas = np.full((180, 320, 3), 90, np.uint8)
    canvas[:, x:x + 180] = np.asarray(Image.fromarray(PHOTO).resize((180, 180)))[:, :max(0, 320 - x)]
    return canvas[..., ::-1]


@pytest.mark.parametrize("ending", [".avi", ".mp4"])
def test_a_video(toy, tmp_path, ending):
    table = toy.video(make_video(tmp_path / f"video{ending}"), every=3)
    assert table.frame.tolist() == list(range(0, 24, 3)) and set(table.track) == {0}
    assert table.time.tolist() == pytest.approx([k / 12 for k in range(0, 24, 3)])
    assert table.x.iloc[-1] - table.x.iloc[0] == pytest.approx(84, abs=12)
    assert len(toy.video(tmp_path / f"video{ending}", seconds=1)) == 12
    assert len(toy.folder(tmp_path, every=12)) == 2


def test_a_video_that_ends_early_gives_what_could_be_read(toy, tmp_path):
    content = make_video(tmp_path / "video.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[:int(len(content) * .6)])
    with pytest.warns(UserWarning, match=r"cut.avi: ended at frame \d+ of 24"):
        table = toy.video(tmp_path / "cut.avi")
    assert 8 < len(table) < 22 and (table.status == "ok").all()
    assert [s.status for s in toy.results(tmp_path / "cut.avi")][-1] == "error"


def test_videos_and_cameras_that_cannot_be_opened(toy, tmp_path, capfd):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    for source, why in ((tmp_path / "empty.mp4", "empty file"), (tmp_path / "noise.mp4", "not a video"), (tmp_path / "no.mp4", "no such video"),
                        (77, "camera 77: cannot be opened")):
        with pytest.raises(DataError, match=why):
            toy.video(source, seconds=1)
    assert "WARN" not in capfd.readouterr().err
    for wrong in ({"every": 0}, {"every": 1.5}, {"smooth": -1}):
        with pytest.raises(ConfigError):
            toy.video(tmp_path / "noise.mp4", **wrong)
    with pytest.raises(ConfigError, match="seconds="):
        toy.video(0)


def test_without_opencv_the_message_says_what_to_install(toy, portrait, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match="pip install opencv"):
        toy.video(portrait)


def test_smoothing_does_not_depend_on_the_frame_rate(toy):
    (face,) = toy(PHOTO)

    def after(fps, seconds=1.0):
        tracker = FaceTracker(smooth=.4)
        for k in range(int(seconds * fps) + 1):
            face.probs = {"dark": float(k == 0), "bright": float(k > 0)}
            (got,) = tracker([face], k / fps)
        return got.probs["bright"]
    assert after(10) == pytest.approx(after(50), abs=1e-6) == pytest.approx(1 - np.exp(-1 / .4), abs=1e-6)
    assert sum(FaceTracker(.4)([face], 0.)[0].probs.values()) == pytest.approx(1)


def test_a_face_keeps_its_number_where_frames_are_further_apart_than_a_second(toy, tmp_path):
    table = toy.video(make_video(tmp_path / "video.avi", frames=60, fps=12, step=0), every=15, smooth=1)
    assert table.time.tolist() == [0, 1.25, 2.5, 3.75] and set(table.track) == {0}
    (face,) = toy(PHOTO)
    tracker = FaceTracker()
    assert [t[0].track if t else None for t in (tracker(f, at) for at, f in ((0, [face]), (2, [face]), (4, []), (6, [face])))] == [0, 0, None, 1]


class Camcorder:
    "A video as OpenCV hands it out, its frames at the given times."

    def __init__(self, stamps, fps, counted):
        self.stamps, self.facts, self.k = stamps, {5: fps, 7: counted}, -1

    def get(self, what):
        return self.facts[what] if what in self.facts else 1000 * self.stamps[self.k]

    def grab(self):
        self.k += 1
        return self.k < len(self.stamps)

    def retrieve(self):
        return True, PHOTO

    def release(self):
        pass


@pytest.mark.parametrize("stamps, fps, counted, times, early", [
    ([0, .1, .5, .6, 1.9], 2.5, 5, [0, .1, .5, .6, 1.9], False),        # a telephone's variable rate
    ([0, .1, .2, .3], 1000., 400, [0, .1, .2, .3], False),            # a browser's recording, its count an estimate
    ([0, 0, 0, 0], 10., 4, [0, .1, .2, .3], False),                   # no times at all
    (list(np.arange(300) / 30), 30., 18_000, None, True),
    (list(np.arange(17_000) / 30), 30., 18_000, None, True),          # half a minute of ten is missing
    (list(np.arange(17_900) / 30), 30., 18_000, None, False),         # three seconds: its sound may be that much longer
])
def test_times_are_those_of_the_video(monkeypatch, stamps, fps, counted, times, early):
    from fer_nb import predict
    monkeypatch.setattr(predict._Video, "opened", lambda self: Camcorder(stamps, fps, counted))
    video = predict._Video("video.mp4", every=1 if times else 1000)
    at = [a for _, a, _ in video]
    if times:
        assert at == pytest.approx(times)
    assert bool(video.end) == early
    assert not early or video.end == f"ended at frame {len(stamps)} of 18000"


# ---- images of the result, and the widget ----

def test_annotate_wherever_the_face_is(toy):
    (face,) = toy(PHOTO)
    for box in ([0, 0, 40, 40], [330, 330, 60, 60], [0, 0, 360, 360], [-20, -20, 500, 500]):
        face.box = np.array(box, float)
        named, drawn = annotate(PHOTO[..., 0], [face], bars=False), annotate(PHOTO[..., 0], [face])
        assert named.shape == drawn.shape == PHOTO.shape
        green = named[..., 1].astype(int) - named[..., 0] > 60            # the image itself is grey
        x, y, w, h = np.clip(box, 0, 359)
        green[[min(y, 359), min(y + h, 359)]] = green[:, [min(x, 359), min(x + w, 359)]] = False  # the frame
        assert green.sum() > 30                                       # the name can be read
        assert (named != drawn).any(2).sum() > 1000                   # and so can the bars


def test_the_widget_plays_stops_and_says_what_is_wrong(toy, tmp_path):
    live = Live(toy, make_video(tmp_path / "video.avi")).start()
    live.wait(120)
    assert live.shown == 24 and not live.running and not live.error and live.button.description == "Start"
    assert sum(bar.value for bar in live.bars.values()) == pytest.approx(1, abs=1e-4)
    live = Live(toy, make_video(tmp_path / "long.avi", frames=200, step=0)).start()
    while not live.shown and live.running:
        time.sleep(.05)
    live.stop(60)
    assert not live.running and 0 < live.shown < 200
    camera = Live(toy, 77).start()
    camera.wait(30)
    assert "camera 77: cannot be opened" in camera.message.value and not camera.running


def test_an_empty_table_has_its_columns(toy):
    table = toy.table([])
    assert list(table.columns[-4:]) == ["dark", "bright", "status", "note"] and not len(table)
    assert isinstance(table, pd.DataFrame) and issubclass(ImageError, FERError)


# ---- files of results ----

DARK_OR_BRIGHT = Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy")


def results(tmp_path):
    "A face without a detector's numbers, a frame without a face, and a file that cannot be read."
    face = Recogniser(DARK_OR_BRIGHT, crop=False)(PHOTO)[0]
    assert np.isnan(face.score) and np.isnan(face.roll)
    return [Result(str(tmp_path / "a.png"), "ok", [face], image=PHOTO), Result("v.mp4", "no_face", image=PHOTO, frame=3, time=.5),
            Result("broken.jpg", "error", note="cannot be decoded")]


def test_results_are_written_one_by_one(tmp_path, capsys):
    done = []
    write_results(results(tmp_path), "csv", tmp_path / "new/r.csv", ("dark", "bright"), each=done.append)
    table = pd.read_csv(tmp_path / "new/r.csv")
    assert len(done) == 3 and table.status.tolist() == ["ok", "no_face", "error"] and table.score.isna().all()
    assert list(table.columns) == list(Recogniser(DARK_OR_BRIGHT).table(done).columns)
    write_results(results(tmp_path), "json")
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["faces"][0]["score"] is None and first["faces"][0]["box"] == [0, 0, 360, 360]
    assert (second["frame"], second["time"], second["faces"]) == (3, .5, []) and third["note"] == "cannot be decoded"


def test_what_was_written_before_an_interruption_stays(tmp_path):
    def interrupted():
        yield from results(tmp_path)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(interrupted(), "csv", tmp_path / "r.csv", ("dark", "bright"))
    assert len(pd.read_csv(tmp_path / "r.csv")) == 2
    with pytest.raises(KeyboardInterrupt):
        write_annotated(interrupted(), tmp_path / "drawn")
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["a.png.jpg", "v.mp4.000003.jpg"]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_one_file_is_written_by_one_command_at_a_time(tmp_path, kind):
    (path := tmp_path / "r").write_text("x" * 9999)
    refused = []

    def meanwhile():
        yield Result("a.png", "no_face")
        for overwrite, error in ((True, DataError), (False, FileExistsError)):
            with pytest.raises(error) as said:
                write_results([Result("b.png", "no_face")], kind, path, ("a", "b"), overwrite)
            refused.append(str(said.value))
        yield Result("c.png", "no_face")

    write_results(meanwhile(), kind, path, ("a", "b"), overwrite=True)
    assert "r: another command is writing it" in refused[0] and path.read_text().count("png") == 2 and "xx" not in path.read_text()
    for k in range(2):                                                          # devices take any number
        write_results((write_results([r], kind, "/dev/null", ("a", "b")) or r for r in [Result("d.png", "no_face")]), kind, "/dev/null", ("a", "b"))
    write_results([Result("e.png", "no_face")], kind, path, ("a", "b"), overwrite=True)
    assert path.read_text().count("png") == 1


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_full_disk_leaves_whole_rows_and_is_named(tmp_path, kind):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    done, rows = [], [Result("v.mp4", "no_face", frame=k, time=k / 7) for k in range(500)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError, match="r.x") as error:
            write_results(rows, kind, tmp_path / "r.x", ("a", "b"), each=done.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    table = pd.read_csv(tmp_path / "r.x") if kind == "csv" else pd.read_json(tmp_path / "r.x", lines=True)
    assert table.frame.tolist() == [r.frame for r in done] and 10 < len(done) < 500
    assert error.value.filename == str(tmp_path / "r.x") and (tmp_path / "r.x").read_text().endswith("\n")


def test_results_do_not_replace_what_is_there_unasked(tmp_path):
    (tmp_path / "r.csv").write_text("precious")
    for write in (lambda **k: write_results([], "csv", tmp_path / "r.csv", **k), lambda **k: write_annotated([], tmp_path, **k)):
        with pytest.raises(FileExistsError, match="exists"):
            write()
    assert (tmp_path / "r.csv").read_text() == "precious"
    with pytest.raises(ConfigError, match="kind='xml'; 'csv', 'json' or 'parquet' expected"):
        write_results([], "xml", tmp_path / "r.csv", overwrite=True)
    write_results([Result("a.png", "no_face")], "csv", tmp_path / "r.csv", overwrite=True)
    assert (tmp_path / "r.csv").read_text().startswith("file,frame")


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
@pytest.mark.parametrize("labels", [(), ("a", "b")])
def test_what_could_not_be_read_replaces_no_table(tmp_path, kind, labels):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    (path := tmp_path / "r").write_text("precious")
    unread, done = [Result("notes.txt", "skipped"), Result("b.jpg", "error")], []
    for given in ([], unread):
        write_results(given, kind, path, labels, overwrite=True, each=done.append)
        assert path.read_text() == "precious" and [r.file for r in done] == [r.file for r in given]   # its notes are shown all the same

    def interrupted():
        yield unread[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(interrupted(), kind, path, labels, overwrite=True)
    assert path.read_text() == "precious"
    write_results([*unread, Result("c.png", "no_face"), Result("d.jpg", "error")], kind, path, labels, overwrite=True)
    table = {"csv": pd.read_csv, "parquet": pd.read_parquet}.get(kind, lambda p: pd.read_json(p, lines=True))(path)
    assert table.file.tolist() == ["notes.txt", "b.jpg", "c.png", "d.jpg"]   # those before, too
    for given in ([], unread):   # where nothing is there, all of it is a table
        write_results(given, kind, tmp_path / f"new{len(given)}", labels, overwrite=True)
        assert (tmp_path / f"new{len(given)}").is_file()


def test_a_name_that_is_no_utf8_costs_no_table(tmp_path):
    pytest.importorskip("pyarrow")
    name = os.fsdecode(b"b\xe9.png")
    given = [*results(tmp_path), Result(name, "error", note=f"{name}: no image")]
    write_results(given, "parquet", tmp_path / "r.parquet", ("dark", "bright"))
    write_results(given, "csv", tmp_path / "r.csv", ("dark", "bright"))
    tables = pd.read_parquet(tmp_path / "r.parquet"), pd.read_csv(tmp_path / "r.csv")
    for table in tables:
        assert table.file.tolist()[-1] == "b\\udce9.png" and table.note.tolist()[-1] == "b\\udce9.png: no image"
    assert tables[0].file.tolist() == tables[1].file.tolist() and len(tables[0]) == 4


# ---- what is read is never written over, and what is odd costs itself alone ----

@pytest.fixture
def plain():
    "Without a finder: each image is one face."
    return Recogniser(Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy"), crop=False, batch=4)


def jpeg(path, shade=200, size=(60, 40)):
    Image.new("RGB", size, (shade,) * 3).save(path)
    return path


@pytest.mark.parametrize("read, to", [("a.jpg", "a.jpg"), ("a.jpg", "linked"), ("a.jpg", "again"), ("b.jpg", "a.jpg"), ("list.txt", "list.txt")])
def test_a_table_never_replaces_an_input_or_a_photo(plain, tmp_path, read, to):
    photo = jpeg(tmp_path / "a.jpg")
    jpeg(tmp_path / "b.jpg")
    (tmp_path / "list.txt").write_text("a.jpg")
    (tmp_path / "linked").symlink_to(photo)
    (tmp_path / "again").hardlink_to(photo)
    before = (tmp_path / to).read_bytes()
    for kind in ("csv", "json", "parquet"):
        with pytest.raises(DataError, match=f"{to}: "):
            write_results(plain.results(tmp_path / read), kind, tmp_path / to, overwrite=True)
    assert (tmp_path / to).read_bytes() == before
    with pytest.raises(DataError, match="cannot be written too"):
        need_spare(tmp_path / "new.csv", [None, tmp_path / "x", tmp_path / "." / "new.csv"])   # of two results, too
    need_spare(tmp_path / "new.csv", [tmp_path])


@pytest.mark.parametrize("name", ["t.csv.gz", "t.xlsx", "t.jpg", "t.mp4"])
def test_a_table_has_no_ending_of_something_else(name):
    with pytest.raises(ConfigError, match=name):
        format_of(name, "csv")
    assert format_of("t.txt", "csv") == format_of("/dev/null") == "csv"


def test_what_is_no_file_is_written_to_and_never_replaced(plain, tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    for kind in ("csv", "json", "parquet"):
        write_results(plain.results(jpeg(tmp_path / "a.jpg")), kind, tmp_path / "null", ("dark", "bright"))
    assert (tmp_path / "null").is_symlink() and not Path("/dev/null").is_file()


def test_no_results_are_an_empty_table(plain, tmp_path):
    (tmp_path / "empty").mkdir()
    write_results(plain.results(tmp_path / "empty"), "parquet", tmp_path / "r.parquet", ("dark", "bright"))
    table = pd.read_parquet(tmp_path / "r.parquet")
    assert len(table) == 0 and list(table.columns) == list(plain.table([]).columns)


class Reads:
    "A file object of a library whose errors are its own."
    def __init__(self, gives):
        self.gives = gives

    def read(self):
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_in_memory_are_checked_as_files_are(plain, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    noise[-40:] = 128
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    whole = (tmp_path / "a.jpg").read_bytes()
    Image.new("1", (10_400, 10_400)).save(tmp_path / "huge.png")
    Image.fromarray(noise).save(tmp_path / "a.eps")
    Image.fromarray(noise).save(tmp_path / "a.tif")
    bad = {"cut.jpg": whole[:len(whole) // 2] + b"\xff\xd9", "huge.png": None, "a.eps": None, "zip.jpg": b"PK\3\4" + bytes(50)}
    for name, content in bad.items():
        if content:
            (tmp_path / name).write_bytes(content)
        content = (tmp_path / name).read_bytes()
        for form in (tmp_path / name, content, bytearray(content), BytesIO(content), np.frombuffer(content, np.uint8)):
            with pytest.raises(ImageError):
                as_image(form)
    np.testing.assert_array_equal(as_image(whole), as_image(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(as_image(Reads(bytearray(whole))), as_image(whole))
    tiff, rng = (tmp_path / "a.tif").read_bytes(), np.random.default_rng(1)
    for _ in range(150):                                                   # whatever the damage is, the error is ours
        damaged = bytearray(tiff)
        for k in rng.integers(len(tiff) - 250, len(tiff), 4):
            damaged[k] = rng.integers(256)
        with suppress(ImageError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            as_image(bytes(damaged))
    odd = [BadZipFile("no"), RuntimeError("closed"), KeyError("x"), None, "text", 3]
    found = plain.many([*map(Reads, odd), whole])
    assert [r.status for r in found] == ["error"] * 6 + ["ok"]
    assert "gives text" in found[4].note and "gives int" in found[5].note


def test_heic_is_read_from_the_first_file_on(monkeypatch, plain, tmp_path):
    "A stand-in for pillow-heif: what it registers is an ending of Pillow from then on."
    import fer_nb.predict as p
    saved = dict(Image.EXTENSION)

    class Heif:
        @staticmethod
        def register_heif_opener():
            Image.register_extension("PNG", ".heic")
    for read in (lambda: [r.status for r in plain.results(tmp_path / "in")], lambda: [Result.read(tmp_path / "in/a.heic", False).status]):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / "in/a.heic", format="png")
        monkeypatch.setitem(sys.modules, "pillow_heif", Heif)
        p._with_heif.cache_clear()
        assert read() == ["ok"]
        Image.EXTENSION.clear()
        Image.EXTENSION.update(saved)
    p._with_heif.cache_clear()


def test_an_animated_avif_is_a_still_with_a_note(plain, tmp_path):
    im = Image.new("RGB", (64, 64), "red")
    im.save(tmp_path / "a.avif", save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")])
    assert (tmp_path / "a.avif").read_bytes()[8:12] == b"avis" and not is_video(tmp_path / "a.avif")
    (result,) = plain.results(tmp_path)
    assert (result.status, result.note) == ("ok", "2 frames; the first one is used")
    np.testing.assert_allclose(result.image[0, 0], [255, 0, 0], atol=9)


def test_folders_are_followed_through_links_once(plain, tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "far/more").mkdir(parents=True)
    jpeg(tmp_path / "in/a.jpg")
    jpeg(tmp_path / "far/more/b.jpg")
    (tmp_path / "in/deep/link").symlink_to(tmp_path / "far")
    (tmp_path / "far/more/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.jpg").symlink_to(tmp_path / "nowhere")
    found = {r.file: r.status for r in plain.results(tmp_path / "in")}
    assert found == {str(tmp_path / "in/a.jpg"): "ok", str(tmp_path / "in/gone.jpg"): "error", str(tmp_path / "in/deep/link/more/b.jpg"): "ok"}
    write_annotated(plain.results(tmp_path / "in"), tmp_path / "drawn", [tmp_path / "in"])
    assert drawn_copies(tmp_path / "drawn") == ["a.jpg", "deep/link/more/b.jpg"]
    for to in ("far", "far/more"):
        with pytest.raises(DataError, match="folder that is searched"):
            write_annotated(plain.results(tmp_path / "in"), tmp_path / to, [tmp_path / "in"], overwrite=True)


def test_what_a_file_in_a_folder_is_its_ending_says_or_else_its_first_bytes(plain, tmp_path):
    photo = jpeg(tmp_path / "a.jpg").read_bytes()
    for name in ("NA", "b.jpg_large", "notes.txt"):
        (tmp_path / name).write_bytes(photo)
    Image.new("RGB", (9, 9)).save(tmp_path / "raw.nef", format="tiff")         # as raw photos begin
    for name, head in {"memo.m4a": b"\0\0\0\x1cftypM4A ", "memo": b"\0\0\0\x1cftypM4B ", "voice.m4a": b"\0\0\0\x1cftypmp42", "song.opus": b"OggS",
                       "IMG.CR3": b"\0\0\0\x18ftypcrx ", "data.h5": b"h", "m.grib": b"g", "b.bufr": b"b", "x.eps": b"%!PS"}.items():
        (tmp_path / name).write_bytes(head + bytes(400))
    (tmp_path / "README").symlink_to(tmp_path / "nowhere")
    found = {os.path.basename(r.file): r for r in plain.results(tmp_path)}
    assert {name for name, r in found.items() if r.status == "ok"} == {"a.jpg", "NA", "b.jpg_large"}
    rest = [r for r in found.values() if r.status != "ok"]
    assert len(rest) == 12 and {r.status for r in rest} == {"skipped"} and all("no image or video that can be read" in r.note for r in rest)
    assert [r.status for r in plain.results([tmp_path / "README", tmp_path / "IMG.CR3", tmp_path / "data.h5"])] == ["error"] * 3


def test_a_name_that_begins_with_a_tilde_is_no_home(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jpeg(tmp_path / "~x.jpg")
    assert len(plain("~x.jpg")) == 1 and [r.status for r in plain.many(["~x.jpg", "~y.jpg", "~x.jpg"])] == ["ok", "error", "ok"]
    with pytest.raises(DataError, match="~x: no such file"):
        Recogniser("~x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(plain("~/~x.jpg")) == 1


def test_a_progressive_jpeg_that_is_not_all_there_is_refused(plain, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", progressive=True)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(cut := data[:len(data) // 3] + b"\xff\xd9")
    assert len(plain(tmp_path / "a.jpg")) == len(plain(data)) == len(plain(Image.open(BytesIO(data)))) == 1
    for form in (tmp_path / "cut.jpg", cut, Image.open(BytesIO(cut))):
        with pytest.raises(ImageError, match="cut short: its end is missing"):
            plain(form)
    assert [r.status for r in plain.results(tmp_path)] == ["ok", "error"]


def test_pipes_and_names_that_no_disk_takes_cost_themselves_alone(plain, monkeypatch, tmp_path):
    jpeg(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert [r.status for r in plain.results(tmp_path)] == ["ok", "skipped", "skipped"]
    assert [r.note for r in plain.results([tmp_path / "pipe.jpg"])] == ["no regular file"] and is_video(tmp_path / "pipe.mp4")
    with pytest.raises(ImageError, match="no regular file"):
        plain(tmp_path / "pipe.jpg")
    long = tmp_path / ("x" * 300 + ".jpg")
    assert [r.status for r in plain.results([long, tmp_path / "a.jpg", long.with_suffix(".mp4")])] == ["error", "ok", "error"]
    assert [r.status for r in plain.many([long, tmp_path / "a.jpg"])] == ["error", "ok"]
    with pytest.raises(ImageError, match="xxx"):
        plain(long)
    with pytest.raises(DataError, match="xxx"):
        Recogniser("x" * 300)
    opened = open

    def closed(file, *args, **kwargs):
        if str(file).endswith("a.jpg"):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *args, **kwargs)
    monkeypatch.setattr("builtins.open", closed)
    jpeg(tmp_path / "b.jpg")
    found = {Path(r.file).name: (r.status, r.note) for r in plain.results(tmp_path)}
    assert found["a.jpg"][0] == "error" and "Permission denied" in found["a.jpg"][1] and found["b.jpg"][0] == "ok"


def test_typescript_is_no_film(plain, tmp_path):
    (tmp_path / "index.ts").write_text("export const grüße = 1;\n" * 30)
    (tmp_path / "short.mts").write_text("export {}")
    (tmp_path / "torn.ts").write_bytes(np.random.default_rng(0).bytes(900))
    assert {Path(r.file).name: r.status for r in plain.results(tmp_path)} == {"index.ts": "skipped", "short.mts": "skipped", "torn.ts": "error"}


def test_an_empty_name_is_no_folder(plain, monkeypatch, tmp_path):
    jpeg(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    for call in (plain.folder, plain.results, lambda p: plain.results([p, "a.jpg"]), lambda p: plain.results([b""])):
        with pytest.raises(ConfigError, match="an empty name"):
            call("")
    with pytest.raises(DataError, match="an empty name"):
        Recogniser("")
    assert len(plain.folder(".")) == 1


@pytest.mark.parametrize("name", ["x", "status", "reliable", "seconds"])
def test_a_label_has_no_name_of_a_column(name):
    with pytest.raises(LabelError, match=f"label {name}: the name of a column"):
        Recogniser(DARK_OR_BRIGHT, merge={name: "dark"})
    assert Recogniser(DARK_OR_BRIGHT, merge={f"my {name}": "dark"}).network.labels == (f"my {name}", "bright")


@pytest.mark.parametrize("labels", [{0: "a", 1: "b"}, "ab", (0, 1), ("a", ""), ("a", None), {"a", "b"}, (), None, 2, ("a", "a")])
def test_labels_are_a_list_of_texts(labels):
    with pytest.raises(DataError, match="labels"):
        Network(labels, 48, 1, 1.0, brightness, "toy")


@pytest.mark.parametrize("labels", [np.array(["a", "b"]), pd.Series(["a", "b"]), ["a", "b"], dict(a=0, b=1).keys()])
def test_labels_of_every_kind_of_list(labels):
    if isinstance(labels, type({}.keys())):
        labels = list(labels)
    network = Network(labels, 48, 1, 1.0, brightness, "toy")
    assert network.labels == ("a", "b") and all(type(e) is str for e in network.labels)


class Module(torch.nn.Module):
    "A network of two labels that gives its logits in some form."
    labels, in_chans = ("a", "b"), 3

    def __init__(self, form=lambda z: z, **facts):
        super().__init__()
        self.line, self.form = torch.nn.Linear(3 * 48 * 48, 2), form
        for name, value in facts.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.form(self.line(x.flatten(1)))


@pytest.mark.parametrize("module, why", [
    (Module(lambda z: (z,)), "in a tuple"), (Module(lambda z: {"logits": z}), "in a dict"), (Module(lambda z: z[0]), "shape"),
    (Module(lambda z: z * np.nan), "not all finite"), (Module(lambda z: z.sum()), "shape"), (Module(lambda z: None), "in a NoneType"),
    (Module(input_size="48"), "size '48'"), (Module(input_size=(3, 48, 48)), "size"), (Module(input_size=64), "64 × 64"),
    (Module(in_chans=1), "1 × 48 × 48"), (Module(in_chans=4), "4 channels"), (Module(labels={0: "a", 1: "b"}), "labels"),
    (Module(labels="ab"), "labels"), (Module(labels=("a", "b", "c")), "3 finite numbers"), (Module(record={"temperature": "hot"}), "'hot'")])
def test_modules_that_cannot_be_used_are_refused_before_any_image(module, why):
    with pytest.raises(DataError, match=re.escape(why)):
        Recogniser(module, crop=False)


def test_modules_of_every_kind():
    for facts in ({"record": None}, {"labels": np.array(["a", "b"])}, {"labels": ["a", "b"], "record": {"temperature": 2}}):
        (face,) = Recogniser(Module(**facts), crop=False)(np.zeros((60, 60), np.uint8))
        assert list(face.probs) == ["a", "b"] and sum(face.probs.values()) == pytest.approx(1)


def test_a_finder_of_your_own(tmp_path):
    face = FoundFace(np.array([10., 10, 40, 40]), 1., np.full((6, 2), np.nan))
    network = Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy")
    own = Recogniser(network, finder=lambda image: [face] if image.mean() > 9 else [replace(face, box=np.array([0, 0, np.nan, 9]))])
    assert len(own(np.full((90, 90), 200, np.uint8))) == 1
    jpeg(tmp_path / "a.jpg", 0)
    jpeg(tmp_path / "b.jpg")
    assert [(r.status, len(r.faces)) for r in own.results(tmp_path)] == [("error", 0), ("ok", 1)]
    for wrong in (lambda image: None, lambda image: [(1, 2, 3, 4)], lambda image: face):
        with pytest.raises(ConfigError, match="a list of FoundFace"):
            Recogniser(network, finder=wrong)(np.zeros((90, 90), np.uint8))
    for facts in ({"finder": lambda image: [face], "measure": "pose"}, {"finder": FaceFinder}, {"finder": 3}):
        with pytest.raises(ConfigError, match="a FaceFinder expected"):
            Recogniser(network, **facts)


def test_a_copy_that_cannot_be_drawn_costs_itself_alone(plain, tmp_path):
    images = {"a.png": (66_000, 3), "b.png": (60, 40)}
    for name, size in images.items():
        Image.new("L", size, 200).save(tmp_path / name)
    done = []
    write_annotated(plain.results([tmp_path / name for name in images]), tmp_path / "drawn", each=done.append)
    assert [(r.status, len(r.faces)) for r in done] == [("error", 0), ("ok", 1)] and "drawn as a JPEG" in done[0].note
    assert drawn_copies(tmp_path / "drawn") == ["b.png.jpg"]


class Named:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_columns_of_paths_and_paths_of_other_libraries(plain, tmp_path):
    paths = [str(jpeg(tmp_path / f"{k}.jpg", 100 * k)) for k in range(2)]
    for several in (pd.Series(paths), pd.Series(paths, dtype="string"), np.array(paths), np.array(paths, object), pd.Index(paths), paths,
                    list(map(Named, paths)), pd.Series(list(map(Path, paths)))):
        for found in (list(plain.results(several)), plain.many(several)):
            assert [(r.status, len(r.faces)) for r in found] == [("ok", 1)] * 2
    assert [r.status for r in plain.many(pd.Series([paths[0], np.nan]))] == ["ok", "error"]
    np.testing.assert_array_equal(as_image(Named(paths[1])), as_image(paths[1]))
    for call, way in ((plain.folder, "results()"), (plain, "many()")):
        for several in (paths, pd.Series(paths), np.array(paths)):
            with pytest.raises(FERError, match=re.escape(way)):
                call(several)
    for numbers in (np.zeros(3), pd.Series([1, 2]), pd.DataFrame({"file": paths})):
        with pytest.raises(ConfigError, match="paths of files and folders expected"):
            plain.results(numbers)
        with pytest.raises(ImageError):
            plain.many(numbers)


@pytest.mark.parametrize("threads", ["2,1", " 1 ", "", "all"])
def test_threads_of_onnx_are_those_of_openmp(monkeypatch, tmp_path, threads):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert len(Recogniser(crop=False)(np.zeros((48, 48), np.uint8))) == 1


@pytest.mark.parametrize(("points", "whole"), [
    ([(40, 40), (60, 40), (50, 55), (50, 70), (30, 45), (70, 45)], True), ([(40, 40), (60, 40), (50, 55), (50, 101), (30, 45), (70, 45)], False),
    ([(-3, 40), (60, 40), (50, 55), (50, 70), (30, 45), (70, 45)], False), ([(40, 40), (60, 40), (50, 55), (50, 70), (-9, 45), (120, 45)], True)])
def test_a_face_whose_eyes_or_mouth_are_outside_is_cut_off(points, whole):
    image = np.random.default_rng(0).integers(0, 255, (100, 100)).astype(np.uint8)
    face = FoundFace(np.array([20, 20, 60, 80]), 0.99, np.array(points, float))
    assert ("cut off" in reasons_against(signs(image, face, image[20:100, 20:80]), [0.9, 0.05, 0.05])) is not whole


def test_smoothed_probabilities_are_judged_as_they_are_shown(toy):
    (face,), tracker = toy(PHOTO), FaceTracker(smooth=1)
    (first,) = tracker([replace(face, probs={"dark": 0.98, "bright": 0.02}, reasons=())], 0.0)
    (second,) = tracker([replace(face, probs={"dark": 0.02, "bright": 0.98}, reasons=("small",))], 0.69)
    assert first.reliable and abs(second.probs["dark"] - 0.5) < 0.02 and second.reasons == ("small", "emotions level")
    (third,) = tracker([replace(face, probs={"dark": 0.02, "bright": 0.98}, reasons=("emotions level",))], 60.0)
    assert third.reliable


# ---- what is computed, and what is written ----

@pytest.mark.parametrize("kind, low, high", [("int8", -100, 100), ("uint8", 1, 5), ("int16", -30000, 30000), ("int64", -9, 9), ("bool", 0, 1),
                                             ("float16", -5, 5), ("float32", -5, 5), ("float64", -5, 5)])
def test_logits_of_every_type_are_the_same_numbers(kind, low, high):
    network = Network(("a", "b"), 8, 1, 10.0, lambda x: np.array([[low, high], [high, high]]).astype(kind), "toy")
    p = network([np.zeros((8, 8), np.uint8)] * 2)
    assert p.dtype == np.float32
    low = 1 / (1 + np.exp(min(700, (high - low) / 10)))
    np.testing.assert_allclose(p, [[low, 1 - low], [.5, .5]], atol=1e-6)


class Soft(torch.nn.Sequential):
    "Ends in a softmax."
    labels, in_chans = ("a", "b", "c"), 1

    def __init__(self, scale=1.0):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(48 * 48, 3), torch.nn.Softmax(1))
        self.scale = scale

    def forward(self, x):
        return super().forward(x) * self.scale


def test_probabilities_are_no_logits():
    with pytest.raises(DataError, match=r"weights: gives probabilities; logits expected \(remove its softmax\)"):
        Recogniser(Soft(), crop=False)
    by_hand = Network(("a", "b", "c"), 48, 1, 1.0, lambda x: np.full((len(x), 3), 100 / 3, np.float32), "toy")
    with pytest.raises(DataError, match="toy: gives probabilities"):            # percent, which few images may be by chance
        by_hand([np.zeros((48, 48), np.uint8)] * 8)
    assert by_hand([np.zeros((48, 48), np.uint8)] * 2).shape == (2, 3)
    from fer_nb.checks import check_logits
    rng = np.random.default_rng(0)
    for n in (2, 7, 8, 50):                                                     # one rule in two places
        for kind in (np.float32, np.float16):
            for z in (rng.dirichlet(np.ones(7), n), rng.dirichlet(np.ones(7), n) * 100, rng.normal(size=(n, 7)), np.eye(7)[rng.integers(7, size=n)],
                      np.abs(rng.normal(size=(n, 7))), rng.dirichlet(np.ones(7), n) * 1.03, rng.dirichlet(np.ones(7), n).round(3)):
                said = ""
                with suppress(ConfigError):
                    check_logits(torch.from_numpy(z.astype(kind)), n)
                    said = "fine"
                with suppress(DataError):
                    Network(tuple("abcdefg"), 8, 1, 1.0, None, "toy").checked(z.astype(kind), n)
                    said += " fine"
                assert said in ("", "fine fine"), (n, kind)


def test_an_image_of_another_size_is_read_as_in_training(tmp_path):
    "Recogniser, `load_teacher` and what `data.resized` makes of it agree; another filter does not."
    from fer_nb.data import resized
    from fer_nb.evaluate import predict_logits
    from fer_nb.models import load_teacher
    from fer_nb.synth import make_faces
    torch.manual_seed(0)
    net = HyFER(7, 1, "light").eval()
    with torch.no_grad():
        net.fc.weight.mul_(20)                                                  # logits that differ
    save_hyfer(net, tmp_path / "net.safetensors")
    rng = np.random.default_rng(0)
    faces, _ = make_faces(24, defects=None)
    large = faces.replace(images=rng.integers(0, 256, (24, 100, 100), dtype=np.uint8))
    ours = [list(f.probs.values()) for (f,) in Recogniser(tmp_path / "net.safetensors", crop=False).batch(list(large.array()))]
    for ds, near in ((large, .003), (resized(large, 48), 1e-4)):
        z = torch.from_numpy(predict_logits(load_teacher(tmp_path / "net.safetensors"), ds))
        np.testing.assert_allclose(ours, z.softmax(1), atol=near)
    bicubic = [np.asarray(Image.fromarray(im).resize((48, 48), Image.Resampling.BICUBIC)) for im in large.array()]
    z = torch.from_numpy(predict_logits(net, large.replace(images=np.stack(bicubic))))
    assert np.abs(np.array(ours) - z.softmax(1).numpy()).max() > .004


@pytest.mark.parametrize("facts", [{"batch": 3}, {"kind": "FLOAT16"}, {"input_size": "64"}, {"in_chans": "3"}])
def test_an_onnx_file_is_tried_when_it_is_read(tmp_path, facts):
    import onnx
    pytest.importorskip("onnxruntime")
    onnx_model(tmp_path / "toy.onnx")
    model = onnx.load(tmp_path / "toy.onnx")
    for entry in model.metadata_props:
        entry.value = facts.get(entry.key, entry.value)
    if "batch" in facts:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    if "kind" in facts:
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        model.graph.node.insert(0, onnx.helper.make_node("Cast", ["images"], ["wide"], to=onnx.TensorProto.FLOAT))
        model.graph.node[1].input[0] = "wide"
    onnx.save(model, tmp_path / "toy.onnx")
    with pytest.raises(DataError, match="toy.onnx: fails on two images of .* float32 in batches of any size"):
        Network.read(tmp_path / "toy.onnx")


@pytest.mark.parametrize("given, temperature", [(None, 1), (2, 2), (1.5, 1.5), (np.float32(1.5), 1.5), (torch.tensor(1.5), 1.5), (torch.tensor([1.5]), 1.5),
                                                (np.array(1.5), 1.5)])
def test_temperatures_of_every_kind(given, temperature):
    network = Network.read(Module(record={"temperature": given}))
    assert network.temperature == temperature and isinstance(network.temperature, (int, float))


class Found:
    "A finder of one's own, of whatever types."

    def __init__(self, box, score=.9, points=((np.nan,) * 2,) * 6):
        self.face = FoundFace(box, score, np.array(points, np.float32) if isinstance(points, tuple) else points)

    def __call__(self, image):
        return [self.face]


@pytest.mark.parametrize("finder, box, landmarks", [
    (Found([1, 2, 30, 30]), [1, 2, 30, 30], None), (Found(np.array([1, 2, 30, 30.25], np.float32), np.float32(.9)), [1, 2, 30, 30.2], None),
    (Found((1., 2, 30, 30), np.float64(.9), ((9., 9), (20, 9), (15, 15), (15, 20), (5, 9), (25, np.nan))), [1, 2, 30, 30],
     [[9, 9], [20, 9], [15, 15], [15, 20], [5, 9], [25, None]])])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_faces_of_any_finder_are_written_in_every_format(tmp_path, finder, box, landmarks):
    own = Recogniser(Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy"), finder=finder)
    results = own.many([np.full((60, 60), 200, np.uint8)])
    assert [(r.status, r.note) for r in results] == [("ok", "")]
    for ending in ("csv", "json", "parquet"):
        write_results(results, ending, tmp_path / f"r.{ending}")
    (face,) = json.loads((tmp_path / "r.json").read_text())["faces"]
    assert face["box"] == box and face["score"] == .9 and face["landmarks"] == landmarks
    assert pd.read_csv(tmp_path / "r.csv")[["x", "y", "width", "height"]].values.tolist() == [box]


@pytest.mark.parametrize("finder", [Found([1, 2, 3]), Found("abcd"), Found([1, 2, 3, 4], None), Found([1, 2, 3, 4], .9, np.zeros((5, 2)))])
def test_a_face_that_is_none_is_the_finders_fault(finder):
    own = Recogniser(Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy"), finder=finder)
    with pytest.raises(ConfigError, match="finder: a face with the box"):
        own(np.full((60, 60), 200, np.uint8))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_without_labels_the_columns_are_those_of_the_first_face(plain, tmp_path, kind):
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    found = plain.many([np.zeros((48, 48), np.uint8)] * 2)
    seen = []
    write_results([Result("none.png", "no_face"), *found, Result("gone.png", "error", note="why")], kind, tmp_path / f"r.{kind}", each=seen.append)
    table = read(tmp_path / f"r.{kind}")
    assert list(table.columns[-4:]) == [*plain.network.labels, "status", "note"] and len(seen) == len(table) == 4
    assert table[list(plain.network.labels)].sum(axis=1, min_count=1).round(3).tolist()[1:3] == [1, 1] and np.isnan(table.dark[0])
    write_results([Result("none.png", "no_face")] * 3, kind, tmp_path / f"none.{kind}")
    assert len(read(tmp_path / f"none.{kind}")) == 3


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_faces_of_other_labels_are_refused_before_a_file_is_there(plain, tmp_path, kind):
    with pytest.raises(LabelError, match="item 0: a face with the label 'dark'; .* expected: happy, sad"):
        write_results(plain.many([np.zeros((48, 48), np.uint8)]), kind, tmp_path / f"r.{kind}", ("happy", "sad"))
    assert not list(tmp_path.iterdir())


def test_a_pillow_image_that_is_not_loaded_is_checked_as_its_file(plain, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", quality=90)
    content = (tmp_path / "a.jpg").read_bytes()
    cut = content[:len(content) // 3] + b"\xff\xd9"                             # ends as it should; Pillow fills it up with grey
    (tmp_path / "cut.jpg").write_bytes(cut)
    for image in (tmp_path / "cut.jpg", cut, Image.open(tmp_path / "cut.jpg"), Image.open(BytesIO(cut))):
        with pytest.raises(ImageError, match="cut short"):
            as_image(image)
    for image in (Image.open(tmp_path / "a.jpg"), Image.open(BytesIO(content))):
        assert np.array_equal(as_image(image), as_image(tmp_path / "a.jpg"))
    (draft := Image.open(tmp_path / "a.jpg")).draft("L", (90, 90))
    assert as_image(draft).shape == (90, 90)
    (loaded := Image.open(tmp_path / "cut.jpg")).load()
    assert as_image(loaded).shape == PHOTO.shape                                # its pixels are all that is known
    cv2.imwrite(str(tmp_path / "dark.png"), np.full((40, 40, 3), 12 * 256, np.uint16))
    for image in (tmp_path / "dark.png", Image.open(tmp_path / "dark.png")):
        with pytest.warns(UserWarning, match="colours of 16 bits that use 12"):
            as_image(image)


@pytest.mark.parametrize("ending", ["gif", "webp", "tiff"])
def test_the_frame_that_is_used_is_named(plain, tmp_path, ending):
    frames = [Image.new("RGB", (40, 40), (grey,) * 3) for grey in (0, 100, 200)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    for k, note in ((0, "3 frames; the first one is used"), (2, "3 frames; number 3 is used")):
        (opened := Image.open(tmp_path / f"a.{ending}")).seek(k)
        (result,) = plain.many([opened])
        assert result.note == note and abs(int(result.image.mean()) - 100 * k) < 3


def test_tracks_without_probabilities_are_refused():
    table = pd.DataFrame({"file": "v", "track": [0, 0], "time": [0, .1], "emotion": ["a", "b"], "a": [1, 0], "b": [0, 0], "status": "ok"})
    (row,) = track_summary(table).to_dict("records")                            # columns of whole numbers
    assert (row["a"], row["b"], row["emotion"]) == (.5, 0, "a")
    for bad in (table.drop(columns=["a", "b"]), table.assign(a=np.nan, b=np.nan), table.assign(a=[.1, np.nan], b=[.9, np.nan])):
        with pytest.raises(DataError, match=r"row [01] has a track and no probability; a column of numbers for each label"):
            track_summary(bad)
    assert track_summary(table.assign(track=np.nan)).empty


def test_a_table_without_labels_holds_no_pixels_and_keeps_what_came(tmp_path):
    from fer_nb.predict import Result, write_results
    def source(n):
        for k in range(n):
            yield Result(f"{k}.png", "no_face", image=np.zeros((4, 4, 3), np.uint8))
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        write_results(source(5), "csv", tmp_path / "w.csv")
    assert len(pd.read_csv(tmp_path / "w.csv")) == 5
    seen = []
    with pytest.raises(FileExistsError):
        write_results((seen.append(r) or r for r in source(5)), "csv", tmp_path / "w.csv")
    assert not seen


def test_an_onnx_file_for_one_image_takes_several(tmp_path):
    import onnx
    pytest.importorskip("onnxruntime")
    onnx_model(tmp_path / "any.onnx")
    model = onnx.load(tmp_path / "any.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "one.onnx")
    one, several = (Network.read(tmp_path / f"{name}.onnx") for name in ("one", "any"))
    x = [np.full((one.size, one.size), v, np.uint8) for v in (10, 90, 200)]
    np.testing.assert_allclose(one(x), several(x), atol=1e-6)


# ---- what was dropped without a word ----

def test_in_threads_each_result_has_its_own_note(tmp_path):
    frames = [Image.fromarray(PHOTO[:64, :64]), Image.fromarray(PHOTO[:64, 63::-1])]
    frames[0].save(tmp_path / "anim.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "plain.png")
    Image.fromarray(np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)).save(tmp_path / "deep.png")
    plain = Recogniser(Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy"), crop=False)

    def wrong(name):
        note = plain.many([tmp_path / name])[0].note
        return ("2 frames" in note, "read as 12 bits" in note) != (name == "anim.gif", name == "deep.png")

    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(pool.map(wrong, ["anim.gif", "plain.png", "deep.png"] * 100)) == 0


def test_while_one_thread_notes_the_warnings_of_another_stay_warnings():
    def read(source):
        def other():
            warnings.warn("of another", stacklevel=1)
        (thread := threading.Thread(target=other)).start()
        thread.join()
        warnings.warn("its own", stacklevel=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert _and_notes(read, None) == (None, ["its own"])
    assert [str(w.message) for w in said] == ["of another"]


def test_robust_and_device_are_refused_for_one_network(toy):
    module = HyFER(7, 1, "light")
    for one in (module, toy.network):
        with pytest.raises(ConfigError, match=f"robust=True with a {type(one).__name__}: no network trained under attack"):
            Recogniser(one, robust=True)
    with pytest.raises(ConfigError, match="device of a Network.*'cuda'.*'cpu' expected"):
        Network.read(toy.network, device="cuda")
    assert Network.read(toy.network, device="cpu") is toy.network and Network.read(Network.read(module), device=torch.device("cpu")).size == 48


def test_what_several_paths_lead_to_comes_once(tmp_path, monkeypatch):
    plain = Recogniser(Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy"), crop=False)
    Image.fromarray(PHOTO[:64, :64]).save(tmp_path / "a.png")
    (tmp_path / "odd.xyz").write_bytes((tmp_path / "a.png").read_bytes())
    out = cv2.VideoWriter(str(tmp_path / "one.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    for k in range(3):
        out.write(np.roll(PHOTO[:64, :64], k, 1))
    out.release()
    monkeypatch.chdir(tmp_path)
    table = plain.table(plain.results([tmp_path, tmp_path / "one.avi", "a.png", tmp_path / "a.png", "odd.xyz"]))
    assert table.status.tolist() == ["ok"] * 5 and table.frame.dropna().tolist() == [0, 1, 2]
    assert track_summary(table).frames.tolist() == [3]
    with pytest.raises(DataError, match="row 2 has track 0 in frame 0 of .*one.avi a second time"):
        track_summary(pd.concat([table, table]))


def test_a_finder_derived_from_the_own_one_gets_pixels(toy):
    class Biggest(FaceFinder):
        def __call__(self, image):
            return [f for f in super().__call__(image) if f.box[2] > image.shape[1] / 10]

        def not_looked_for(self, image):
            return f"small faces in {image.shape[1]} pixels"

    with pytest.warns(UserWarning, match="small faces in 360 pixels"):
        (face,) = Recogniser(toy.network, finder=Biggest())(PHOTO)
    assert face.box.tolist() == toy(PHOTO)[0].box.tolist()


@pytest.mark.parametrize("box, kind", [([200, 100, 150, 150], np.uint8), ([250, 250, 150, 150], np.uint16), ([90, 40, 100, 100], np.int8)])
@pytest.mark.parametrize("quarters", [0, 1])
def test_boxes_of_small_integers_are_numbers_like_others(toy, box, kind, quarters):
    points = np.array([[120., 90], [180, 90], [150, 130], [150, 150], [100, 100], [200, 100]])
    points = points[:, ::-1] if quarters else points

    def faces(box):
        own = Recogniser(toy.network, finder=lambda image: [FoundFace(box, .9, points)])(PHOTO)
        return annotate(PHOTO, own), own[0].crop

    for of_integers, of_floats in zip(faces(np.array(box, kind)), faces(np.array(box, float))):
        assert (of_integers == of_floats).all()


def test_no_labels_and_what_is_no_list_of_them(toy):
    assert Recogniser(toy.network, keep=None).network.labels == ("dark", "bright") == toy.network.relabelled(keep=None).labels
    with pytest.raises(LabelError, match="3 cannot be kept"):
        Recogniser(toy.network, keep=3)


def test_one_parquet_is_made_by_one_command_at_a_time(tmp_path):
    path, old = tmp_path / "new/r.parquet", tmp_path / "old.parquet"
    old.write_bytes(b"precious")

    def meanwhile(to):
        yield Result("a.png", "no_face")
        for overwrite, error in ((True, DataError), (False, (DataError, FileExistsError))):
            with pytest.raises(error, match="another command is writing it|File exists"):
                write_results([Result("b.png", "no_face")], "parquet", to, ("a", "b"), overwrite)

    for to, overwrite in ((path, False), (old, True)):
        write_results(meanwhile(to), "parquet", to, ("a", "b"), overwrite)
        assert pd.read_parquet(to).file.tolist() == ["a.png"]

    def broken():
        yield from ()
        raise OSError(5, "gone")

    with pytest.raises(OSError, match="gone"):                                  # nothing came: the name is free again
        write_results(broken(), "parquet", tmp_path / "none.parquet", ("a", "b"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old.parquet"]
    (tmp_path / "killed.parquet").touch()                                       # as a process that was killed leaves it
    (tmp_path / "link.parquet").symlink_to(tmp_path / "nothing")
    for name in ("killed", "link"):
        write_results([Result("c.png", "no_face")], "parquet", to := tmp_path / f"{name}.parquet", ("a", "b"))
        assert pd.read_parquet(to).file.tolist() == ["c.png"]
    with pytest.raises(FileExistsError):
        write_results([Result("d.png", "no_face")], "parquet", to, ("a", "b"))


def test_a_photo_with_the_ending_of_a_video_is_read_in_a_folder_too(toy, portrait, tmp_path):
    Image.open(portrait).convert("RGB").save(tmp_path / "photo.mp4", "JPEG")
    (tmp_path / "code.ts").write_text("export const a = 1;")
    status = {Path(r.file).name: r.status for r in toy.results(tmp_path)}
    assert status == {"photo.mp4": "ok", "code.ts": "skipped"} and toy.many([tmp_path / "photo.mp4"])[0].status == "ok"


def test_a_stream_at_its_end_says_so(portrait):
    Image.open(portrait).save(made := BytesIO(), "PNG")
    with pytest.raises(ImageError, match=r"nothing to read; .* seek\(0\)"):
        as_image(made)


def test_parquet_needs_a_file():
    with pytest.raises(ConfigError, match="parquet needs a file"):
        write_results([], "parquet")


def test_a_gif_of_which_opencv_gives_less_says_so(toy, tmp_path):
    frames = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[:, ::-1])]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "slow.gif", save_all=True, append_images=[*frames[1:], *frames], duration=100)
    *came, last = toy.frames(tmp_path / "two.gif")
    assert last.note == "" if last.image is not None else last.note.startswith(f"{len(came)} of 2 frames: OpenCV gives no more")
    assert [r.status for r in toy.frames(tmp_path / "slow.gif")] == ["ok"] * 4


def test_a_text_that_begins_as_an_image_does_is_passed_over(toy, portrait, tmp_path):
    (tmp_path / "README").write_text("BMW is a car")
    (tmp_path / "notes").write_text("P1 \nnotes")
    (tmp_path / "IMG_0001").write_bytes(portrait.read_bytes())
    assert {s.file.rpartition("/")[2]: s.status for s in toy.results(tmp_path)} == {"README": "skipped", "notes": "skipped", "IMG_0001": "ok"}


def test_each_frame_of_a_film_is_shown_for_as_long_as_it_was():
    from types import SimpleNamespace
    from fer_nb.predict import _Film
    shown = []
    film = _Film(SimpleNamespace(write=lambda x: shown.append(int(x[0, 0, 0]))), (8, 8), 10.0)
    for k in range(5):
        film(np.full((8, 8, 3), k, np.uint8), float(k))
    film.end()
    assert shown == [k for k in range(5) for _ in range(10)]


@pytest.mark.parametrize("every, shown", [(1, 20), (3, 20), (15, 20), (19, 20)])
def test_a_film_of_some_frames_is_as_long_as_its_video(toy, tmp_path, every, shown):
    """The last frame stands as long as the one before, but not beyond the end of the video; a header that errs cuts nothing off."""
    from fer_nb.predict import _Film, film
    source = make_video(tmp_path / "v.mp4", frames=20, fps=10, step=0)
    assert len(list(film(toy.frames(source, every=every), tmp_path / "out.mp4"))) == len(range(0, 20, every))
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert (capture.get(7), capture.get(5)) == (shown, 10)
    if every == 1:
        from types import SimpleNamespace
        out = []
        errs = _Film(SimpleNamespace(write=out.append), (8, 8), 10.0, length=1.5)
        for at in (0., 1., 2.):
            errs(np.zeros((8, 8, 3), np.uint8), at)
        errs.end()
        assert len(out) == 30


def test_an_open_file_can_be_read_twice(toy, portrait):
    import io
    from fer_nb.predict import as_image
    file = io.BytesIO(b"head" + portrait.read_bytes())
    file.seek(4)
    assert np.array_equal(as_image(file), as_image(file)) and file.tell() == 4
    with open(portrait, "rb") as file:
        assert [f.emotion for f in toy(file)] == [f.emotion for f in toy(file)]

    class Once(io.RawIOBase):
        "A stream that cannot go back."
        def seekable(self): return False
        def read(self, n=-1): return portrait.read_bytes()

    assert np.array_equal(as_image(Once()), as_image(portrait))


def test_times_of_a_table_and_addresses_are_written_as_one_writes_them(toy):
    from fer_nb.predict import Result, as_image
    (row,) = Result("a.mp4", "no_face", time=.1 + .2, frame=3).rows(toy.network.labels)
    assert str(row["time"]) == "0.3" and Result("a.jpg", "no_face").rows(toy.network.labels)[0]["time"] is None
    for address in ("https://a/b.jpg", "http://a/b.jpg", "ftp://a/b.jpg"):
        with pytest.raises(ImageError, match=f"^{address}: an address; download it"):
            as_image(address)
        (result,) = toy.results([address])
        assert (result.file, result.note) == (address, "an address; download it, then pass its bytes")

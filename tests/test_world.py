"""The recogniser in the world: turned, dark, noisy and crowded photographs; films as people have them; inputs and processes of every kind."""
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFilter
from skimage.data import astronaut, clock, coffee, colorwheel, grass

from fer_nb import faces
from fer_nb.cli import main
from fer_nb.core import ConfigError, ImageError
from fer_nb.faces import FaceFinder, brightness_and_noise, brought_into_range
from fer_nb.models import HyFER
from fer_nb.predict import (SHIPPED, Network, Recogniser, as_image, cut_off, film, format_of, is_video, only_reliable,
                            track_summary, write_results)

PHOTO = astronaut()[:260, 90:350]


def pasted(sides, canvas=None):
    "The portrait at several sizes beside each other in a photograph."
    canvas = np.asarray(Image.fromarray(coffee()).resize((640, 480))).copy() if canvas is None else canvas
    x = 10
    for side in sides:
        canvas[40:40 + side, x:x + side] = np.asarray(Image.fromarray(PHOTO).resize((side, side), Image.Resampling.LANCZOS))
        x += side + 10
    return canvas


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_scene_gives_the_faces_of_the_upright_one(quarters):
    scene, finder = pasted((240, 160)), FaceFinder()
    upright, turned = finder(scene), finder(np.rot90(scene, quarters).copy())
    back = sorted((f.turned_back(quarters, *scene.shape[:2]) for f in turned), key=lambda f: f.box[0])
    assert len(upright) == len(back) == 2
    for f, g in zip(upright, back):
        np.testing.assert_allclose(f.box, g.box, atol=3)
        assert abs((g.roll - f.roll + 180) % 360 - 180) < 5


@pytest.mark.parametrize("angle", [30, 60, 120, 135, 150, 200, 225, 300])
def test_any_angle(angle):
    turned = np.asarray(Image.fromarray(pasted((200,))).rotate(angle, Image.Resampling.BICUBIC, expand=True))
    (face,) = FaceFinder()(turned)
    own = FaceFinder()(pasted((200,)))[0].roll
    assert abs((face.roll - own + angle + 180) % 360 - 180) < 20


def test_dark_and_noisy_scenes_are_brought_into_range_first():
    scene, finder = pasted((200,)), FaceFinder()
    (bright,) = finder(scene)
    rng = np.random.default_rng(0)
    for changed in (scene * .1, scene * .05, scene + rng.normal(0, 40, scene.shape), scene * .1 + rng.normal(0, 2, scene.shape)):
        (face,) = finder(changed.clip(0, 255).round().astype(np.uint8))
        np.testing.assert_allclose(face.box, bright.box, atol=20)
    assert brought_into_range(scene) is scene and brightness_and_noise(scene)[1] < 5
    assert 36 < brightness_and_noise((128 + rng.normal(0, 40, (200, 300))).clip(0, 255).astype(np.uint8))[1] < 44


def test_all_of_a_crowd_and_small_faces_beside_large_ones():
    crowd, small = np.full((960, 1280, 3), 120, np.uint8), Image.fromarray(PHOTO).resize((190, 190), Image.Resampling.LANCZOS)
    for k in range(30):
        x, y = 8 + k % 6 * 212, k // 6 * 191
        crowd[y:y + 190, x:x + 190] = small
    assert len(FaceFinder()(crowd)) >= 27
    assert len(FaceFinder()(pasted((300, 140, 110)))) == 3


@pytest.mark.parametrize("picture", [coffee, clock, colorwheel, grass])
def test_pictures_without_people_have_no_face(picture):
    image = picture()
    stretched = np.asarray(Image.fromarray(image).resize((640, 480)))
    assert FaceFinder()(image) == [] and FaceFinder()(stretched) == []


# ---- films ----

def logits(x):
    "Of a toy network that says how bright an image is; at the top level, so that it can be pickled."
    light = x.mean((1, 2, 3))
    return np.stack([0 * light, 20 * (light - .5)], 1)


@pytest.fixture
def toy():
    return Recogniser(Network(("dark", "bright"), 48, 1, 1.0, logits, "toy"), batch=8)


def write_film(path, frames, fps=10, code="mp4v"):
    h, w = frames[0].shape[:2]
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (w, h))
    for frame in frames:
        out.write(np.ascontiguousarray(frame[..., ::-1]))
    out.release()
    return path


def walk(frames=20, step=3):
    "The portrait, moving to the right."
    small = np.asarray(Image.fromarray(PHOTO).resize((220, 220)))
    return [np.roll(np.pad(small, ((10, 10), (10, 130), (0, 0)), constant_values=90), k * step, 1) for k in range(frames)]


@pytest.mark.parametrize("name", ["film", "film.jpg", "film.dat"])
def test_a_film_is_known_by_its_content(toy, tmp_path, name):
    write_film(tmp_path / "film.mp4", walk(6)).rename(tmp_path / name)
    assert is_video(tmp_path / name) and toy.folder(tmp_path / name).frame.tolist() == list(range(6))
    Image.fromarray(PHOTO).save(tmp_path / "still.mp4", format="jpeg")
    assert not is_video(tmp_path / "still.mp4") and toy.folder(tmp_path / "still.mp4").status.tolist() == ["ok"]


@pytest.mark.parametrize("ending, code", [("mp4", "mp4v"), ("avi", "MJPG"), ("mkv", "MJPG")])
def test_only_a_file_that_was_cut_off_says_so(tmp_path, ending, code):
    whole = write_film(tmp_path / f"film.{ending}", walk(12), code=code)
    data = whole.read_bytes()
    (tmp_path / f"cut.{ending}").write_bytes(data[:int(.6 * len(data))])
    assert (cut_off(whole), cut_off(tmp_path / f"cut.{ending}")) == (False, True)


def test_a_header_that_counts_too_many_frames_is_no_damage(toy, tmp_path, monkeypatch):
    path = write_film(tmp_path / "film.avi", walk(12), code="MJPG")
    data = bytearray(path.read_bytes())
    at = data.index(b"avih") + 8 + 16                          # dwTotalFrames, and dwLength of the stream
    data[at:at + 4] = (900).to_bytes(4, "little")
    at = data.index(b"strh") + 8 + 32
    data[at:at + 4] = (900).to_bytes(4, "little")
    path.write_bytes(data)
    assert {r.status for r in toy.results(path)} == {"ok"}


def test_a_track_survives_a_gap_and_ends_at_a_cut(toy, tmp_path):
    frames = walk(20, 0)
    frames[6:9] = [np.full_like(frames[0], 90)] * 3            # the face is hidden for three frames
    table = toy.video(write_film(tmp_path / "gap.avi", frames, code="MJPG"))
    assert set(table.track.dropna()) == {0}
    other = walk(6, 0)                                          # the same person there, in another place
    for frame in other:
        frame[:, 200:] = np.linspace(255, 160, 160)[None, :, None]
        frame[170:] = 0
    cut = toy.video(write_film(tmp_path / "cut.avi", walk(6, 0) + other, code="MJPG"))
    assert cut.track.dropna().nunique() == 2
    summary = track_summary(cut)
    assert summary.frames.tolist() == [6, 6] and summary.columns[-2:].tolist() == ["dark", "bright"]
    np.testing.assert_allclose(summary[["dark", "bright"]].sum(axis=1), 1, atol=1e-3)


def test_the_annotated_film_lasts_as_long_as_the_original(toy, tmp_path):
    path = write_film(tmp_path / "in.avi", walk(20), fps=10, code="MJPG")
    results = list(film(toy.frames(path, every=4), tmp_path / "out.mp4", fps=20))
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert len(results) == 5 and capture.get(7) / capture.get(5) == 2


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_the_ending_says_the_format(toy, tmp_path, ending):
    path = write_film(tmp_path / "in.avi", walk(4), code="MJPG")
    kind = format_of(tmp_path / f"x.{ending}")
    write_results(toy.results(path), kind, tmp_path / f"x.{ending}", toy.network.labels)
    table = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": lambda p: pd.read_json(p, lines=True)}[kind](tmp_path / f"x.{ending}")
    assert table.frame.tolist() == [0, 1, 2, 3]
    with pytest.raises(FileExistsError):
        write_results(toy.results(path), kind, tmp_path / f"x.{ending}", toy.network.labels)
    for wrong in (("x.xls", None), ("x.json", "csv"), (None, "parquet"), ("x.csv", "parquet")):
        with pytest.raises(ConfigError):
            format_of(*wrong)


def test_parquet_keeps_what_there_was_before_an_interruption(toy, tmp_path):
    def broken():
        yield from toy.many([PHOTO, PHOTO])
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        write_results(broken(), "parquet", tmp_path / "x.parquet", toy.network.labels)
    assert len(pd.read_parquet(tmp_path / "x.parquet")) == 2


def test_large_frames_are_taken_one_by_one(toy, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(Recogniser, "_recognise", lambda self, images: sizes.append(len(images)) or [[] for _ in images])
    list(toy.frames(write_film(tmp_path / "4k.avi", [np.zeros((2160, 3840, 3), np.uint8)] * 3, code="MJPG")))
    list(toy.frames(write_film(tmp_path / "small.avi", walk(9), code="MJPG")))
    assert sizes == [1, 1, 1, 8, 1]


# ---- inputs ----

def test_inputs_as_people_hold_them(toy, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "png")
    data, tensor = buffer.getvalue(), torch.tensor(PHOTO / 255).permute(2, 0, 1)
    Path(tmp_path / "a.png").write_bytes(data)
    forms = [data, bytearray(data), memoryview(data), io.BytesIO(data), open(tmp_path / "a.png", "rb"), np.frombuffer(data, np.uint8),
             tensor, tensor[None], tensor.clone().requires_grad_(), PHOTO.transpose(2, 0, 1), PHOTO[None], PHOTO / 255 * 1.0000001,
             str(tmp_path / "a.png"), PHOTO.astype(np.uint16) * 257]
    for form in forms:
        assert np.abs(as_image(form).astype(int) - PHOTO).max() <= 1, type(form)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_sixteen_are_brought_into_range(toy, tmp_path, bits):
    deep = (PHOTO.astype(float) * ((1 << bits) - 1) / 255).round().astype(np.uint16)
    with pytest.warns(UserWarning, match=f"read as {bits} bits"):
        assert np.abs(as_image(deep).astype(int) - PHOTO).max() <= 1
    if bits > 8:
        cv2.imwrite(str(tmp_path / "deep.png"), deep[..., 0])
        with pytest.warns(UserWarning, match=f"read as {bits} bits"):
            assert np.abs(as_image(tmp_path / "deep.png").astype(int) - PHOTO[..., 0]).max() <= 1


@pytest.mark.parametrize("wrong, way", [
    (b"no image", "8 bytes"), ("https://example.org/a.jpg", "an address"), ("/9j/" + "A" * 120_000, "base64.b64decode"), (".", "folder()"),
    (np.zeros((2, 9, 9, 3), np.uint8), "many()"), (PHOTO.astype(float), "from 0 to 255"), (None, "a path, bytes"),
    (b"\0\0\0\x18ftypheic" + bytes(40), "pillow-heif"), (io.BytesIO(b""), "0 bytes")])
def test_wrong_inputs_name_the_way_on_in_one_line(toy, wrong, way):
    with pytest.raises(ImageError) as caught:
        toy(wrong)
    assert way in str(caught.value) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_many_gives_one_result_an_item(toy):
    results = toy.many([PHOTO, "no.jpg", None, b"", Image.fromarray(PHOTO), np.zeros((9, 9, 3), np.uint8), (PHOTO.astype(np.uint16) * 16)])
    assert [r.status for r in results] == ["ok", "error", "error", "error", "ok", "no_face", "ok"]
    assert results[1].file == "no.jpg" and results[2].file == "item 2" and "12 bits" in results[6].note
    for one in (PHOTO, PHOTO[..., 0], PHOTO.transpose(2, 0, 1), torch.tensor(PHOTO), Image.fromarray(PHOTO), b"abc", 3):
        with pytest.raises(ImageError, match="one image; a list of images expected"):
            toy.many(one)


# ---- processes and threads ----

def test_pickle_spawn_and_fork_give_the_same_answer(toy):
    expected = [repr(f) for f in toy(PHOTO)]
    assert [repr(f) for f in pickle.loads(pickle.dumps(toy))(PHOTO)] == expected
    for how in ("spawn",) if os.name == "nt" else ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(how)) as pool:
            assert [repr(f) for f in pool.submit(toy, PHOTO).result(timeout=120)] == expected, how


def test_a_shipped_network_can_be_pickled():
    network = Network.read()
    crop = np.asarray(Image.fromarray(PHOTO).convert("L").resize((48, 48)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(network))([crop]), network([crop]))


def test_threads_share_one_detector(toy):
    faces._build.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(toy, [PHOTO] * 8))
    assert faces._build.cache_info().misses == 1 and len({repr(a) for a in answers}) == 1


# ---- what can be relied on ----

def test_every_face_says_whether_and_why_not(toy):
    (face,) = FaceFinder()(PHOTO)
    (x, y), apart = face.points[3].astype(int), int(np.hypot(*(face.points[1] - face.points[0])))
    hidden, small = PHOTO.copy(), np.full((400, 400, 3), 90, np.uint8)
    hidden[y - apart // 2:y + apart // 2, x - apart:x + apart] = 120
    small[100:150, 100:150] = np.asarray(Image.fromarray(PHOTO).resize((50, 50), Image.Resampling.LANCZOS))
    blurred = np.asarray(Image.fromarray(PHOTO).filter(ImageFilter.GaussianBlur(2.5)))
    for image, why in ((hidden, "partly hidden"), ((PHOTO * .02).astype(np.uint8), "dark"), (blurred, "blurred"), (small, "small")):
        assert any(why in f.reasons for f in toy(image)), why
    level = Recogniser(Network(("dark", "bright"), 48, 1, 1.0, lambda x: np.zeros((len(x), 2)), "level"))
    assert level(PHOTO)[0].reasons == ("emotions level",) and not level(PHOTO)[0].reliable
    shipped = Recogniser()
    assert shipped(PHOTO)[0].reliable
    table = shipped.table(shipped.many([PHOTO, hidden, "no.jpg"]))
    assert table.reliable.tolist()[:2] == [True, False] and "partly hidden" in table.reasons[1] and table.reliable.isna()[2]
    left = list(only_reliable(shipped.many([PHOTO, hidden])))
    assert [len(r.faces) for r in left] == [1, 0] and left[1].status == "no_face" and "1 faces left out (partly hidden" in left[1].note
    assert json.loads(left[0].to_json())["faces"][0]["reliable"] is True


# ---- light start ----

@pytest.mark.parametrize("name", ["accurate", "robust"])
def test_the_shipped_onnx_files_are_the_shipped_networks(name):
    light, full = Network.read(name), Network.read(HyFER.from_pretrained(SHIPPED[name]))
    crops = list(np.random.default_rng(0).integers(0, 256, (8, 48, 48), np.uint8))
    assert type(light.logits).__name__ == "_OnnxLogits" and light.labels == full.labels
    np.testing.assert_allclose(light(crops), full(crops), atol=1e-4)


def test_the_first_answer_needs_no_pytorch(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    code = (f"import sys; from fer_nb.predict import Recogniser; print(len(Recogniser()({str(tmp_path / 'a.png')!r})), "
            "[m for m in ('torch', 'timm', 'fastai', 'scipy') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")[0] == "1 []"


def test_without_onnx_runtime_and_pytorch_the_message_says_what_to_install(tmp_path):
    code = ("import sys; sys.modules['torch'] = sys.modules['onnxruntime'] = None\nfrom fer_nb.predict import Recogniser\n"
            "try: Recogniser()\nexcept Exception as e: print(type(e).__name__, e)")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("ConfigError") and "pip install onnxruntime" in said


def test_the_command_writes_the_table_and_the_film(tmp_path, capsys):
    write_film(tmp_path / "in.avi", walk(8), code="MJPG")
    assert main(["predict", str(tmp_path / "in.avi"), "--every", "4", "--to", str(tmp_path / "x.parquet"), "--annotate", str(tmp_path / "x.mp4")]) == 0
    assert pd.read_parquet(tmp_path / "x.parquet").frame.tolist() == [0, 4] and is_video(tmp_path / "x.mp4")
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    for wrong, way in ((["a.png", "--annotate", "y.mp4"], "--out annotated"), (["a.png", "--to", "x.xls"], "Endings are"),
                       (["rtsp://example.org/a"], "--camera rtsp://example.org/a"), (["in.avi", "--annotate", "x.mp4"], "exists")):
        wrong = [str(tmp_path / w) if w[0] != "-" and "://" not in w else w for w in wrong]
        assert main(["predict", *wrong]) == 2
        assert way in capsys.readouterr().err, wrong

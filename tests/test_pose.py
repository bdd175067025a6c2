"""Head pose, blendshapes and proxies of action units: their signs, their columns; what noise hides; memory over a long film."""
import json
import os
import warnings

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut, grass, lfw_subset

from fer_nb.cli import main
from fer_nb.core import ConfigError
from fer_nb.faces import (ACTION_UNITS, BLENDSHAPES, MEASURES, NOISY, FaceFinder, action_unit_proxies, brightness_and_noise,
                          gain_and_noise, pose_angles, smoothed)
from fer_nb.predict import TURNED, Network, Recogniser, only_reliable, track_summary, write_results

PHOTO = astronaut()[:260, 90:350]


def logits(x):
    "Of a toy network that says how bright an image is."
    light = x.mean((1, 2, 3))
    return np.stack([0 * light, 20 * (light - .5)], 1)


@pytest.fixture
def toy():
    return Recogniser(Network(("dark", "bright"), 48, 1, 1.0, logits, "toy"), batch=8, measure=["pose", "blendshapes"])


def noisy(image, sigma=40):
    return (image + np.random.default_rng(3).normal(0, sigma, image.shape)).clip(0, 255).astype(np.uint8)


def pose(image):
    finder = FaceFinder()
    (face,) = finder(image)
    return np.array(list(finder.measures(image, face, ["pose"]).values()))


@pytest.mark.parametrize("angle", [-150, -60, -25, 10, 45, 90, 180])
def test_turning_the_picture_changes_the_roll_alone(angle):
    before = pose(PHOTO)
    after = pose(np.asarray(Image.fromarray(np.pad(PHOTO, ((60, 60), (60, 60), (0, 0)), mode="edge")).rotate(angle)))
    np.testing.assert_allclose(after[:2], before[:2], atol=6)
    assert abs((after[2] - before[2] + angle + 180) % 360 - 180) < 6      # Pillow turns against the clock


def test_mirrored_yaw_and_roll_change_sign_and_left_and_right_change_places():
    before, after = pose(PHOTO), pose(PHOTO[:, ::-1].copy())
    np.testing.assert_allclose(after * [-1, 1, -1], before, atol=4)
    finder, mirrored = FaceFinder(), PHOTO[:, ::-1].copy()
    one, other = (finder.measures(im, finder(im)[0], ["blendshapes"]) for im in (PHOTO, mirrored))
    for name, value in one.items():
        swapped = name.replace("Left", "?").replace("Right", "Left").replace("?", "Right")
        assert abs(other[swapped] - value) < .3, name


def test_yaw_is_positive_where_the_nose_is_to_the_right_of_the_eyes():
    finder, yaws, noses = FaceFinder(smallest=.5, turn=False), [], []
    for small in lfw_subset()[:60]:
        im = np.asarray(Image.fromarray((small * 255).astype(np.uint8)).resize((200, 200), Image.Resampling.BICUBIC))
        for face in finder(im)[:1]:
            eyes, apart = face.points[:2].mean(0), face.points[1] - face.points[0]
            noses.append((face.points[2] - eyes) @ apart / (apart @ apart))
            yaws.append(finder.measures(im, face, ["pose"])["pose_yaw"])
    known = np.isfinite(yaws)
    assert known.sum() >= 15
    assert np.corrcoef(np.array(yaws)[known], np.array(noses)[known])[0, 1] > .7


def test_angles_of_rotations_by_opencv():
    "About the camera's axes: x to the right, y up, z to the camera."
    for axis, angle, expected in (([0, 1, 0], 30, (30, 0, 0)), ([1, 0, 0], 20, (0, -20, 0)), ([0, 0, 1], 15, (0, 0, -15))):
        rotation = cv2.Rodrigues(np.radians(angle) * np.array(axis, float))[0]
        np.testing.assert_allclose(pose_angles(rotation), expected, atol=1e-6)
        np.testing.assert_allclose(pose_angles(7 * rotation), expected, atol=1e-6)        # whatever its scale


def test_proxies_are_named_so_and_use_known_blendshapes_once():
    used = [name for names in ACTION_UNITS.values() for name in names]
    assert set(used) < set(BLENDSHAPES) and len(used) == len(set(used))
    assert all(name.endswith("_proxy") for name in MEASURES["action units"])
    values = dict(zip(BLENDSHAPES, np.random.default_rng(0).random(52)))
    proxies = action_unit_proxies(values)
    assert proxies["AU12"] == pytest.approx((values["mouthSmileLeft"] + values["mouthSmileRight"]) / 2)
    assert proxies["AU30"] == pytest.approx(max(values["jawLeft"], values["jawRight"]))


def test_tables_files_and_json_carry_the_columns(toy, tmp_path):
    results = toy.many([PHOTO, np.zeros((60, 60), np.uint8), b"x"])
    table = toy.table(results)
    columns = [*MEASURES["pose"], *MEASURES["blendshapes"]]
    assert list(table)[list(table).index("bright") + 1:-2] == columns == list(toy.more)
    assert table.status.tolist() == ["ok", "no_face", "error"] and table[columns].notna().all(axis=1).tolist() == [True, False, False]
    for ending in ("csv", "parquet"):
        write_results(results, ending, tmp_path / f"x.{ending}", toy.network.labels, more=toy.more)
    for back in (pd.read_csv(tmp_path / "x.csv"), pd.read_parquet(tmp_path / "x.parquet")):
        np.testing.assert_allclose(back[columns].to_numpy(float), table[columns].to_numpy(float))
    assert list(json.loads(results[0].to_json())["faces"][0]["more"]) == columns
    plain = Recogniser(toy.network).many([PHOTO])[0]
    assert "more" not in json.loads(plain.to_json())["faces"][0] and list(plain.rows(toy.network.labels)[0])[-3] == "bright"


def test_where_the_landmarker_sees_nothing_the_numbers_are_missing(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(FaceFinder, "measures", lambda self, image, face, kinds: dict.fromkeys(toy.more, np.nan))
    (result,) = toy.many([PHOTO])
    assert set(json.loads(result.to_json())["faces"][0]["more"].values()) == {None}
    write_results([result], "csv", tmp_path / "x.csv", toy.network.labels, more=toy.more)
    assert pd.read_csv(tmp_path / "x.csv")[list(toy.more)].isna().all(axis=None)


@pytest.mark.parametrize("yaw, away", [(TURNED + 1, True), (-TURNED - 1, True), (TURNED - 1, False), (np.nan, False)])
def test_a_head_turned_far_is_turned_away(toy, monkeypatch, yaw, away):
    monkeypatch.setattr(FaceFinder, "measures", lambda self, image, face, kinds: {"pose_yaw": yaw})
    (result,) = toy.many([PHOTO])
    assert ("turned away" in result.faces[0].reasons) == away
    assert not away or not list(only_reliable([result]))[0].faces


def test_the_command_adds_the_columns(tmp_path, capsys):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "a.png"), "--pose", "--action-units", "--to", str(tmp_path / "x.csv")]) == 0
    table = pd.read_csv(tmp_path / "x.csv")
    assert table.AU12_proxy[0] > .5 and abs(table.pose_yaw[0]) < 15 and "blendshape_jawOpen" not in table
    assert main(["predict", str(tmp_path / "a.png"), "--pose", "--no-crop"]) == 2
    assert "--no-crop" in capsys.readouterr().err
    for wrong in ({"measure": "age"}, {"measure": ["pose"], "crop": False}):
        with pytest.raises(ConfigError, match="measure"):
            Recogniser(**wrong)


# ---- noise ----

@pytest.mark.parametrize("sigma", [25, 40, 55])
def test_noise_is_taken_out_and_what_it_hides_is_said(toy, sigma):
    image = noisy(PHOTO, sigma)
    assert len(FaceFinder()(image)) == 1
    (result,) = toy.many([image])
    assert "noise of" in result.note and "26 pixels" in result.note
    with pytest.warns(UserWarning, match="noise of"):
        toy(image)
    assert toy.many([PHOTO])[0].note == "" and toy.missing(PHOTO) == ""
    clean = np.asarray(Image.fromarray(grass()).resize((64, 64))) // 4
    assert Recogniser(toy.network, crop=False).missing(noisy(clean)) == ""      # nothing is looked for


@pytest.mark.parametrize("shape", [(200, 240), (200, 240, 3), (1300, 1300)])
def test_smoothing_keeps_the_shape_and_lowers_the_noise(shape):
    flat = noisy(np.full(shape, 120, np.uint8), 30)
    out = smoothed(flat, 30)
    assert out.shape == shape and out.dtype == np.uint8 and abs(out.mean() - 120) < 3 and out.std() < 15


def test_a_dark_image_is_as_noisy_as_it_is_when_it_is_bright():
    dark = (noisy(PHOTO, 25) * .1).round().astype(np.uint8)
    gain, noise = gain_and_noise(dark)
    assert gain > 5 and noise > NOISY > brightness_and_noise(dark)[1]


# ---- long films ----

def resident():
    "Megabytes of this process."
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def film(path, frames, size=(160, 120)):
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, size)
    small = cv2.resize(PHOTO, (min(size), min(size)))[..., ::-1]
    for k in range(frames):
        canvas = np.full((size[1], size[0], 3), 90, np.uint8)
        left = abs((k + 20) % 40 - 20)   # to and fro
        canvas[:min(size), left:left + min(size)] = small
        out.write(canvas)
    out.release()
    return path


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("frames", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_memory_is_flat_over_a_long_film(toy, tmp_path, frames):
    toy.measure, before, after, tracks = [], [], [], set()
    for result in toy.frames(film(tmp_path / "long.avi", frames)):
        (before if result.frame < frames // 2 else after).append(resident())
        tracks |= {f.track for f in result.faces}
    assert len(before) + len(after) == frames and tracks == {0}
    assert max(after) - max(before[frames // 10:]) < 12


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_large_frames_need_little_more_than_one_of_them(toy, tmp_path):
    path, sizes, start = film(tmp_path / "4k.avi", 6, (3840, 2160)), [], resident()
    for result in toy.frames(path):
        sizes.append(resident() - start)
        assert len(result.faces) == 1
    frame = 3840 * 2160 * 3 / 1e6
    assert len(sizes) == 6 and max(sizes) < 16 * frame and max(sizes[3:]) < max(sizes[:3]) + frame


def test_a_film_carries_the_pose_and_its_summary_the_emotions_alone(toy, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = toy.video(film(tmp_path / "a.avi", 12), every=4)
    assert table.pose_yaw.notna().all() and len(table) == 3
    assert list(track_summary(table))[-2:] == ["dark", "bright"]

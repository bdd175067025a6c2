"""What people hand the recogniser: wrong inputs answered in one line, mixtures in a list, folders of everything, films whose times are exact."""
import io
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from fer_nb.cli import main
from fer_nb.core import FERError
from fer_nb.predict import FaceTracker, Network, Recogniser, _Video, as_image, track_summary

PHOTO = astronaut()[:260, 90:350]


def brightness(x):
    light = x.mean((1, 2, 3))
    return np.stack([0 * light, 20 * (light - .5)], 1)


@pytest.fixture
def toy():
    return Recogniser(Network(("dark", "bright"), 48, 1, 1.0, brightness, "toy"), batch=8)


def closed():
    stream = io.BytesIO(b"x")
    stream.close()
    return stream


@pytest.mark.parametrize("wrong, way", [
    (closed(), 'mode "rb"'), (io.StringIO("x"), 'mode "rb"'), ("", "an empty name"), ("a\0b", "no name of a file"),
    ("data:image/png;base64,iVBO", "base64.b64decode"), (np.array([PHOTO, None], dtype=object), "array"), (PHOTO.astype(int), "uint8"),
    (torch.zeros(3, 9, 9, dtype=torch.complex64), "uint8"), ({"a": 1}, "a path, bytes"), (True, "a path, bytes"), (PHOTO / 255 - .5, "floats from 0 to 1")])
def test_a_wrong_image_is_answered_in_one_line(toy, wrong, way):
    with pytest.raises(FERError) as caught:
        toy(wrong)
    assert way in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (result,) = toy.many([wrong])
    assert result.status == "error" and way in result.note


@pytest.mark.parametrize("call, way", [
    (lambda r: r.results(None), "many()"), (lambda r: r.results([PHOTO]), "many()"), (lambda r: r.results(3), "paths"), (lambda r: r.folder(3), "paths"),
    (lambda r: r.video(None), "a video file"), (lambda r: r.video(1.5), "a video file"), (lambda r: r.video(PHOTO), "many()"),
    (lambda r: r.video("a.mp4", seconds=-1), "seconds=-1"), (lambda r: r.video("a.mp4", seconds=np.nan), "seconds=nan"),
    (lambda r: r.video("a.mp4", smooth=np.nan), "smooth=nan"), (lambda r: r.video("a.mp4", every=1.5), "every=1.5"),
    (lambda r: Recogniser(r.network, finder=.1), "FaceFinder(0.05)"), (lambda r: r.many(io.BytesIO(b"x")), "one image"), (lambda r: r.many(memoryview(b"x")), "one image")])
def test_a_wrong_call_is_answered_in_one_line(toy, call, way):
    with pytest.raises(FERError) as caught:
        call(toy)
    assert way in str(caught.value) and "\n" not in str(caught.value)


def test_half_precision_and_numpy_paths_are_read(toy, tmp_path):
    for kind in (torch.bfloat16, torch.float16):
        assert np.abs(as_image(torch.tensor(PHOTO / 255).to(kind)).astype(int) - PHOTO).max() <= 2
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    assert len(toy.folder(str(tmp_path).encode())) == 1


@pytest.mark.parametrize("seed", range(4))
def test_many_gives_one_result_an_item_whatever_the_mixture(toy, tmp_path, seed):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    kinds = {"ok": [PHOTO, PHOTO / 255, tmp_path / "a.png", str(tmp_path / "a.png"), content, Image.fromarray(PHOTO), torch.tensor(PHOTO).permute(2, 0, 1)],
             "no_face": [np.zeros((40, 60), np.uint8), np.zeros((1, 1, 3), np.uint8), Image.new("L", (9, 9))],
             "error": [None, 3, "no.jpg", b"", b"none", closed(), np.zeros((0, 3), np.uint8), np.full((9, 9), np.nan), [1, 2], object(), tmp_path, "a\0b"]}
    rng = np.random.default_rng(seed)
    drawn = [(status, kinds[status][rng.integers(len(kinds[status]))]) for status in rng.choice(list(kinds), 20)]
    results = toy.many(item for _, item in drawn)
    assert [r.status for r in results] == [status for status, _ in drawn]
    assert all(bool(r.note) == (r.status == "error") for r in results)


# ---- folders ----

def fill(folder, n):
    "Small files of every kind; how many there are of each status, by the way they were made."
    rng, face = np.random.default_rng(0), Image.fromarray(PHOTO).resize((96, 96))
    blank, buffer = Image.new("RGB", (32, 24), "teal"), io.BytesIO()
    face.save(buffer, "jpeg")
    whole, counts = buffer.getvalue(), dict.fromkeys(("ok", "no_face", "error", "skipped"), 0)
    for k in range(n):
        path, kind = folder / f"{k % 37:02}" / f"{k:05}", int(rng.integers(8))
        path.parent.mkdir(exist_ok=True)
        if kind == 0:
            path.with_suffix(".jpg").write_bytes(whole)
        elif kind < 4:
            blank.save(path.with_suffix((".png", ".bmp", ".jpg")[kind - 1]))
        elif kind == 4:
            path.with_suffix(".jpg").write_bytes(whole[:int(rng.integers(0, 600))])
        elif kind == 5:
            path.with_suffix(".png").write_bytes(rng.bytes(64))
        elif kind == 6:
            path.with_suffix(".txt").write_text("note")
        else:
            path.with_suffix(".mp4").write_bytes(rng.bytes(40))
        counts["ok" if kind == 0 else "no_face" if kind < 4 else "skipped" if kind == 6 else "error"] += 1
    return counts


def every_failure_is_listed(toy, folder, n, held):
    "Numbers and notes of a whole folder; what is held after a third of it is held at its end."
    counts, seen, peaks = fill(folder, n), dict.fromkeys(("ok", "no_face", "error", "skipped"), 0), []
    for k, result in enumerate(toy.results(folder)):
        seen[result.status] += 1
        assert bool(result.note) == (result.status in ("error", "skipped")), result
        if k % max(1, n // 10) == 0 and k:
            peaks.append(held())
    assert seen == counts and sum(seen.values()) == n
    return peaks[len(peaks) // 3], peaks[-1]


def test_a_folder_of_a_hundred_mixed_files(toy, tmp_path):
    tracemalloc.start()
    third, end = every_failure_is_listed(toy, tmp_path, 100, lambda: tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert end < third + 2e6   # bytes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from /proc")
def test_a_folder_of_ten_thousand_mixed_files(toy, tmp_path):
    third, end = every_failure_is_listed(toy, tmp_path, 10_000, lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    print(f"{third / 2**20:.0f} MB after a third, {end / 2**20:.0f} MB at the end")
    assert end < third + 20e6   # bytes


def test_the_command_names_each_failure_and_keeps_the_rest(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    counts = fill(tmp_path / "in", 40)
    assert main(["predict", str(tmp_path / "in"), "--to", str(tmp_path / "a.csv")]) == 1
    said = capsys.readouterr()
    assert said.err.count("fer-nb: ") == counts["error"] + counts["skipped"] and f"{counts['error']} could not be read" in said.out
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 41


# ---- films ----

VARYING = [0, 20, 60, 190, 223, 290, 310, 350, 480, 513, 580, 600]


@pytest.mark.parametrize("name, times, offset", [
    ("a.mp4", range(0, 480, 40), 0), ("varying.mp4", VARYING, 0), ("varying.mkv", VARYING, 0), ("late.mkv", VARYING, 60_000), ("late.mp4", VARYING, 5_000),
    ("late.ts", VARYING, 7_000), ("slow.mp4", range(0, 8400, 700), 0)])
def test_times_are_those_of_an_independent_reader(tmp_path, name, times, offset):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream("mpeg4" if name.endswith("ts") else "libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 64, 48, "yuv420p", Fraction(1, 1000)
        for k, at in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), k * 9, np.uint8), "rgb24")
            frame.pts, frame.time_base = at + offset, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with av.open(str(tmp_path / name)) as film:
        expected = np.array([float(frame.time) for frame in film.decode(video=0)])
    video = _Video(tmp_path / name)
    np.testing.assert_allclose([at for _, at, _ in video], expected - expected[0], atol=1e-3)
    assert len(expected) == len(times) and not video.end


def test_the_lag_of_smoothing_is_its_time_constant(toy):
    (face,), tracker = toy(PHOTO), FaceTracker(smooth=.4)
    from dataclasses import replace
    shown = [tracker([replace(face, probs={"a": k / 900, "b": 1 - k / 900})], k / 100)[0].probs["a"] * 9 for k in range(900)]
    assert 8.99 - shown[-1] == pytest.approx(.4, abs=.02)       # a steady rise, seconds behind


def test_a_track_in_one_row_is_the_mean_of_its_frames(toy, tmp_path):
    import cv2
    out = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (260, 260))
    for k in range(12):
        out.write(np.ascontiguousarray((PHOTO * (1 - .05 * k)).astype(np.uint8)[..., ::-1]))
    out.release()
    table = toy.video(tmp_path / "a.avi")
    (row,) = track_summary(table).to_dict("records")
    assert (row["frames"], row["start"], row["end"]) == (12, 0, pytest.approx(1.1)) and row["bright"] == pytest.approx(table.bright.mean(), abs=1e-4)
    assert Path(row["file"]).name == "a.avi" and row["emotion"] == max(("dark", "bright"), key=lambda e: row[e])

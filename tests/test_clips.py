"""Films with the tricks of their containers: rotation, edit lists, offsets, varying rates, sound that lasts longer than the picture."""
import json
import os
import struct
import subprocess
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image

from fer_nb.cli import main
from fer_nb.core import ConfigError, DataError
from fer_nb.predict import Network, Recogniser, Result, _shown_seconds, cut_off, damaged, film

W, H, RATE = 96, 64, 25
TURNS = {90: ((0, 1, -1, 0), (H, 0)), 180: ((-1, 0, 0, -1), (W, H)), 270: ((0, -1, 1, 0), (0, W))}   # of a track header; shift


def picture(k):
    "Frame k: its grey says which it is, a red corner at the top left how it lies."
    frame = np.full((H, W, 3), 20 + 7 * k, np.uint8)
    frame[:24, :24] = 250, 10, 10
    return frame


def written(path, n=20):
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), RATE, (W, H))
    for k in range(n):
        out.write(np.ascontiguousarray(picture(k)[..., ::-1]))
    out.release()
    return path


def boxes(data):
    at = 0
    while at < len(data):
        n = int.from_bytes(data[at:at + 4], "big")
        yield data[at + 4:at + 8], data[at + 8:at + n]
        at += n


def box(kind, body):
    return struct.pack(">I4s", 8 + len(body), kind) + body


def changed(data, way, change):
    "MP4 in which the content of the box at the end of `way` is changed, or, where there is none, added; its moov is last."
    done, out = False, b""
    for kind, body in boxes(data):
        if kind == way[0]:
            body, done = change(body) if len(way) == 1 else changed(body, way[1:], change), True
        out += box(kind, body)
    return out if done else out + box(way[0], change(b""))


def turned(data, degrees):
    (a, b, c, d), (x, y) = TURNS[degrees]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30)
    return changed(data, [b"moov", b"trak", b"tkhd"], lambda body: body[:40] + matrix + body[76:])


def edited(data, *edits):
    "With an edit list: of each part its length and its start in the film, seconds; the start -1 is an empty part."
    scale = {kind: int.from_bytes(body[12:16], "big") for kind, body in headers(data)}
    rows = [struct.pack(">Iihh", round(long * scale[b"mvhd"]), -1 if at < 0 else round(at * scale[b"mdhd"]), 1, 0) for long, at in edits]
    body = struct.pack(">II", 0, len(rows)) + b"".join(rows)
    return changed(data, [b"moov", b"trak", b"edts"], lambda _: box(b"elst", body))


def headers(data):
    for kind, body in boxes(data):
        if kind in (b"moov", b"trak", b"mdia"):
            yield from headers(body)
        elif kind in (b"mvhd", b"mdhd"):
            yield kind, body


def spaced(data, steps):
    "With a time step of its own after each frame, seconds."
    scale = dict(headers(data))[b"mdhd"][12:16]
    rows = [struct.pack(">II", 1, round(step * int.from_bytes(scale, "big"))) for step in steps]
    return changed(data, [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"],
                   lambda _: struct.pack(">II", 0, len(rows)) + b"".join(rows))


@pytest.fixture
def whole():
    return Recogniser(Network(("a", "b"), 48, 1, 1.0, lambda x: np.zeros((len(x), 2)), "toy"), crop=False, batch=8)


def seen(recognise, path):
    "Seconds, number by the grey, and where the red corner is, of every frame."
    results = list(recognise.results(path))
    assert {(r.status, r.note) for r in results} == {("ok", "")}
    out = []
    for r in results:
        h, w = r.image.shape[:2]
        corners = {"top left": r.image[8, 8], "top right": r.image[8, -9], "bottom left": r.image[-9, 8], "bottom right": r.image[-9, -9]}
        red = [name for name, (a, b, _) in corners.items() if a > 180 and b < 90]
        out.append((r.time, round((float(r.image[h // 2, w // 2].mean()) - 20) / 7), *red))
    return out


@pytest.mark.parametrize("degrees, corner", [(90, "top right"), (180, "bottom right"), (270, "bottom left")])
def test_a_film_is_turned_as_its_header_says(whole, tmp_path, degrees, corner):
    path = written(tmp_path / "film.mp4", 6)
    path.write_bytes(turned(path.read_bytes(), degrees))
    assert [(number, where) for _, number, where in seen(whole, path)] == [(k, corner) for k in range(6)]


@pytest.mark.parametrize("edits, numbers, times", [
    ([(.5, .2)], range(5, 18), [k / RATE for k in range(13)]),                                 # its start and end are cut
    ([(1, -1), (.8, 0)], range(20), [k / RATE for k in range(20)]),                            # starts late
    ([(.2, 0), (.2, .4)], [*range(5), *range(10, 15)], [k / RATE for k in range(10)])])        # two parts
def test_an_edit_list_is_followed(whole, tmp_path, edits, numbers, times):
    path = written(tmp_path / "film.mp4")
    path.write_bytes(edited(path.read_bytes(), *edits))
    at, number, _ = zip(*seen(whole, path))
    assert list(number) == list(numbers)
    np.testing.assert_allclose(at, times, atol=1e-6)


def test_a_rate_that_varies(whole, tmp_path):
    steps = [.04, .16, .04, .66, .04, .56, .02, .08, .9, .04, .46, .04]
    path = written(tmp_path / "film.mp4", len(steps))
    path.write_bytes(edited(spaced(path.read_bytes(), steps), (sum(steps), 0)))
    at, number, _ = zip(*seen(whole, path))
    np.testing.assert_allclose(at, np.cumsum([0, *steps[:-1]]), atol=1e-6)
    assert list(number) == list(range(len(steps)))


def test_of_a_transport_stream_only_a_broken_packet_is_damage(tmp_path):
    packet = b"\x47" + bytes(187)
    for n, said in ((9 * 188, False), (9 * 188 - 60, True)):
        (tmp_path / "film.ts").write_bytes((packet * 9)[:n])
        assert cut_off(tmp_path / "film.ts") is said


# ---- against PyAV, where it is installed ----

EVEN, VARIED = [k / 25 for k in range(20)], [0, .04, .2, .24, .9, .94, 1.5, 1.52, 1.6, 2.5, 2.54, 3.0]
KINDS = {   # ending, times of the frames, seconds of sound, B-frames
    "even": ("mp4", EVEN, 0, 0), "B-frames": ("mp4", EVEN, 0, 3), "varied": ("mp4", VARIED, 0, 2), "varied, Matroska": ("mkv", VARIED, 0, 0),
    "varied, WebM": ("webm", VARIED, 0, 0), "varied, stream": ("ts", VARIED, 0, 0), "slow": ("mp4", [2. * k for k in range(8)], 0, 0),
    "quick": ("mp4", [k / 240 for k in range(20)], 0, 0), "late": ("mp4", [5 + t for t in EVEN], 0, 0), "late, MOV": ("mov", [5 + t for t in EVEN], 0, 0),
    "late, Matroska": ("mkv", [5 + t for t in EVEN], 0, 0), "late, WebM": ("webm", [5 + t for t in EVEN], 0, 0), "late, stream": ("ts", [5 + t for t in EVEN], 0, 0),
    "longer sound": ("mp4", EVEN, 5, 0), "longer sound, Matroska": ("mkv", EVEN, 5, 0), "longer sound, WebM": ("webm", EVEN, 5, 0),
    "longer sound, stream": ("ts", EVEN, 5, 0), "late with sound": ("mkv", [2 + t for t in EVEN], 5, 0), "late with sound, MP4": ("mp4", [2 + t for t in EVEN], 5, 2)}


def encoded(av, path, times, sound, b_frames):
    with av.open(str(path), "w") as film:
        video = film.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=25)
        video.width, video.height, video.pix_fmt = W, H, "yuv420p"
        video.options = {} if path.suffix == ".webm" else {"bf": str(b_frames)}
        video.codec_context.time_base = video.time_base = base = Fraction(1, 90000)
        audio = film.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000, layout="mono") if sound else None
        for k, t in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(k), "rgb24")
            frame.pts, frame.time_base = round(t / base), base
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        for n in range(0, int(sound * 48000), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, n, Fraction(1, 48000)
            film.mux(audio.encode(frame))
        if sound:
            film.mux(audio.encode(None))
    return path


def trimmed(av, path, start):
    "Without its first seconds, not encoded again: the packets before the start keep negative times, as `ffmpeg -ss -c copy` has it."
    short = path.with_stem("short")
    with av.open(str(path)) as film, av.open(str(short), "w") as out:
        stream = film.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in film.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - round(start / packet.time_base), packet.dts - round(start / packet.time_base)
                packet.stream = copy
                out.mux(packet)
    return short


def by_pyav(av, path):
    "Seconds since the first frame, and number by the grey, of every frame: a plain loop."
    with av.open(str(path)) as film:
        frames = [(float(f.pts * f.time_base), round((float(f.to_ndarray(format="rgb24")[H // 2, W // 2].mean()) - 20) / 7)) for f in film.decode(video=0)]
    return [(t - frames[0][0], k) for t, k in frames]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, .2])
def test_times_and_frames_are_those_of_pyav(whole, tmp_path, kind, start):
    av = pytest.importorskip("av")
    ending, times, sound, b_frames = KINDS[kind]
    if start and (sound or ending in ("webm", "ts") or kind in ("slow", "quick")):
        pytest.skip("trimmed in MP4, MOV and Matroska, without sound")
    path = encoded(av, tmp_path / f"film.{ending}", times, sound, b_frames)
    path = trimmed(av, path, times[0] + start) if start else path
    expected, found = by_pyav(av, path), seen(whole, path)
    assert [k for _, k, _ in found] == [k for _, k in expected] and {c for *_, c in found} == {"top left"}
    np.testing.assert_allclose([t for t, *_ in found], [t for t, _ in expected], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", TURNS)
@pytest.mark.parametrize("edits", [[], [(.5, .2)], [(1, -1), (.5, .12)], [(.2, .4), (.4, 0)]])
def test_turned_and_edited_films_are_those_of_pyav(whole, tmp_path, degrees, edits):
    av = pytest.importorskip("av")
    path = written(tmp_path / "film.mp4")
    data = turned(path.read_bytes(), degrees)
    path.write_bytes(edited(data, *edits) if edits else data)
    expected, found = by_pyav(av, path), seen(whole, path)
    assert [k for _, k, _ in found] == [k for _, k in expected] and len({c for *_, c in found}) == 1
    np.testing.assert_allclose([t for t, *_ in found], [t for t, _ in expected], atol=2e-3)


# ---- films that are written ----

def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    n = 0
    while capture.grab():
        n += 1
    capture.release()
    return n


def some_results(times, shape=(H, W, 3)):
    return [Result("x.mp4", "no_face", image=np.full(shape, 90, np.uint8), frame=k, time=t) for k, t in enumerate(times)]


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_film_is_never_drawn_over_its_original(whole, tmp_path):
    path = written(tmp_path / "a.mp4")
    (tmp_path / "linked.mp4").symlink_to(path)
    (tmp_path / "again.mp4").hardlink_to(path)
    before = path.read_bytes()
    for to in ("a.mp4", "linked.mp4", "again.mp4"):
        with pytest.raises(DataError, match=f"{to}: is read; it cannot be written too"):
            list(film(whole.frames(path), tmp_path / to, overwrite=True))
        assert main(["predict", str(path), "--annotate", str(tmp_path / to), "--overwrite"]) == 2
    assert path.read_bytes() == before and left_in(tmp_path) == ["a.mp4", "again.mp4", "linked.mp4"]
    assert len(list(film(whole.frames(path), tmp_path / "new.mp4"))) == frames_of(tmp_path / "new.mp4") == 20


@pytest.mark.parametrize("words, why", [
    ("{mp4} --to {mp4} --out csv --overwrite", "written as csv?"), ("{jpg} --to {jpg} --out csv --overwrite", "written as csv?"),
    ("{jpg} --to {bare} --out csv --overwrite", "a photo or video"), ("{bare} --to {bare} --overwrite", "it cannot be written too"),
    ("{mp4} --weights {txt} --to {txt} --out csv --overwrite", "it cannot be written too"), ("{mp4} --annotate {dir}", "a folder is there"),
    ("{mp4} --annotate /proc/x.mp4", "takes no files"), ("{mp4} --annotate {dir}/new.mp4 --to {dir}/new.mp4 --out json", "written as json?"),
    ("{mp4} --annotate {dir}/new.avi", "the ending of --annotate"), ("{jpg} --annotate {dir}/new.mp4", "goes with one film"),
    ("{mp4} --annotate=", "the ending of --annotate"), ("{empty}", "an empty name"), ("{jpg} {empty}", "an empty name"),
    ("{pipe} --annotate {dir}/new.mp4", "goes with one film"), ("{long}", "no such file or folder"), ("{jpg} --weights {empty}", "an empty name")])
def test_the_command_refuses_before_any_work(tmp_path, capsys, words, why):
    places = {"mp4": written(tmp_path / "a.mp4", 3), "jpg": tmp_path / "a.jpg", "bare": tmp_path / "IMG", "txt": tmp_path / "w.txt",
              "dir": tmp_path / "dir.mp4", "pipe": tmp_path / "pipe", "long": "x" * 300, "empty": ""}
    Image.new("RGB", (30, 20)).save(places["jpg"])
    places["bare"].write_bytes(places["jpg"].read_bytes())
    places["txt"].write_text("weights")
    places["dir"].mkdir()
    os.mkfifo(places["pipe"])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert main(["predict", *(word.format_map(places) for word in words.split())]) == 2
    assert why in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before and left_in(places["dir"]) == []


def test_one_film_is_made_by_one_command_at_a_time(tmp_path):
    def meanwhile():
        yield from some_results([0, .04])
        for overwrite, error in ((True, DataError), (False, DataError)):
            with pytest.raises(error, match="another command is writing it"):
                list(film(some_results([0]), tmp_path / "a.mp4", overwrite))

    assert len(list(film(meanwhile(), tmp_path / "a.mp4"))) == frames_of(tmp_path / "a.mp4") == 2 and left_in(tmp_path) == ["a.mp4"]


def test_a_film_appears_whole_or_as_far_as_the_user_let_it(tmp_path):
    def broken(error):
        yield from some_results([0, .04, .08])
        raise error
    (old := tmp_path / "old.mp4").write_bytes(b"precious")
    with pytest.raises(OSError, match="full"):
        list(film(broken(OSError(28, "full")), old, overwrite=True))
    with pytest.raises(DataError, match="can be written there"):
        list(film(some_results([0]), "/proc/x.mp4"))
    for to in (tmp_path, old):
        with pytest.raises((FileExistsError, ConfigError)):
            list(film(some_results([0]), to))
    (tmp_path / "dir.mp4").mkdir()
    with pytest.raises(FileExistsError):
        list(film(some_results([0]), tmp_path / "dir.mp4", overwrite=True))
    assert old.read_bytes() == b"precious" and left_in(tmp_path) == ["dir.mp4", "old.mp4"]
    with pytest.raises(KeyboardInterrupt):
        list(film(broken(KeyboardInterrupt()), tmp_path / "hand.mp4"))
    (frames := film(iter(some_results([0, .04, .08])), tmp_path / "closed.mp4")).__next__()
    frames.close()
    assert frames_of(tmp_path / "hand.mp4") == 3 and frames_of(tmp_path / "closed.mp4") == 1
    assert list(film([Result("x.mp4", "error")], tmp_path / "none.mp4"))[0].status == "error" and not (tmp_path / "none.mp4").exists()
    for nothing in ([], [Result("p.png", "ok", image=picture(0))]):
        with pytest.raises(DataError, match="none.mp4: not written, as no frame of a video came"):
            list(film(nothing, tmp_path / "none.mp4"))
    assert len(left_in(tmp_path)) == 4


def test_a_long_pause_is_left_out_of_a_film_and_noted(tmp_path):
    shown = list(film(some_results([0, 30, 630, 631]), tmp_path / "a.mp4", fps=2))
    assert [r.note for r in shown] == ["", "", "a pause of which the video leaves out 540 seconds", ""]
    assert frames_of(tmp_path / "a.mp4") == 1 + 60 + 120 + 2 + 1             # the last is held as long as the one before
    list(film(some_results([0, 600]), tmp_path / "b.mp4", fps=2))
    assert frames_of(tmp_path / "b.mp4") == 1 + 120                            # but not for a pause
    with pytest.raises(ConfigError, match="fps=0"):
        list(film(some_results([0]), tmp_path / "c.mp4", fps=0))


@pytest.mark.parametrize("fps, frames, rate, shown, left_out", [(60, 30, 60, 30, 0), (120, 24, 60, 12, 1), (1, 3, 1, 3, 0), (29.97, 10, 29.97, 10, 0)])
def test_a_film_has_the_rate_of_its_original(whole, tmp_path, fps, frames, rate, shown, left_out):
    out = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), fps, (W, H))
    for k in range(frames):
        out.write(picture(k % 20))
    out.release()
    notes = [r.note for r in film(whole.frames(tmp_path / "in.mp4"), tmp_path / "out.mp4")]
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert abs(capture.get(5) - rate) < .01 and abs(frames_of(tmp_path / "out.mp4") - shown) <= left_out
    assert sum("the first frame that the video leaves out, of 60 a second" in note for note in notes) == left_out and len(notes) == frames


@pytest.fixture
def small_disk():
    "No file grows beyond 20 kB, as on a disk that is full."
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_film_that_the_disk_does_not_hold_is_an_error(tmp_path, small_disk):
    (old := tmp_path / "old.mp4").write_bytes(b"precious")
    noise = np.random.default_rng(0).integers(0, 256, (60, 120, 160, 3), np.uint8)
    frames = [Result("x.mp4", "no_face", image=image, frame=k, time=k / 25) for k, image in enumerate(noise)]
    with pytest.raises(DataError, match="old.mp4: not all 60 frames could be written, so there is no new film"):
        list(film(frames, old, overwrite=True))
    assert old.read_bytes() == b"precious" and left_in(tmp_path) == ["old.mp4"]


@pytest.mark.parametrize("shape", [(1, 40, 3), (40, 1), (1, 1), (41, 33, 3)])
def test_a_film_of_thin_frames(tmp_path, shape):
    assert len(list(film(some_results([0, .04], shape), tmp_path / "a.mp4"))) == frames_of(tmp_path / "a.mp4") == 2


# ---- names that are no UTF-8, of which OpenCV alone would die ----

NO_UTF8 = os.fsdecode(b"f\xe9")


@pytest.fixture
def odd_folder(tmp_path):
    "A folder whose name is no UTF-8."
    try:
        (folder := tmp_path / NO_UTF8).mkdir()
    except OSError:
        pytest.skip("this disk takes no such name")
    return folder


def test_a_folder_with_a_film_whose_name_is_no_utf8_is_done_to_its_end(odd_folder):
    for name in ("a.png", "z.png"):
        Image.fromarray(picture(1)).save(odd_folder / name)
    written(odd_folder.parent / "film.mp4", 3).rename(odd_folder / f"{NO_UTF8}.mp4")
    code = ("import json, sys, numpy as np; from fer_nb.predict import Network, Recogniser; "
            "toy = Recogniser(Network(('a', 'b'), 48, 1, 1.0, lambda x: np.zeros((len(x), 2)), 'toy'), crop=False); "
            "print(json.dumps([(r.status, r.frame, r.note) for r in toy.results(sys.argv[1])]))")
    done = subprocess.run([sys.executable, "-c", code, odd_folder], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert json.loads(done.stdout) == [["ok", None, ""], *(["ok", k, ""] for k in range(3)), ["ok", None, ""]]


def test_a_film_is_written_whatever_the_bytes_of_its_name(odd_folder):
    code = ("import sys, numpy as np; from fer_nb.predict import Result, film; "
            "image = np.full((64, 96, 3), 90, np.uint8); "
            "print(len(list(film([Result('x.mp4', 'no_face', image=image, frame=0, time=0.)] * 2, sys.argv[1]))))")
    to = odd_folder / f"{NO_UTF8}.mp4"
    done = subprocess.run([sys.executable, "-c", code, to], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2\n"), (done.returncode, done.stderr)
    assert left_in(odd_folder) == [to.name] and frames_of(to.rename(odd_folder.parent / "plain.mp4")) == 1


def test_where_no_link_can_be_made_the_message_names_the_film(whole, odd_folder, monkeypatch):
    def refused(self, target):
        raise OSError(1, "Operation not permitted")
    path = odd_folder / "film.mp4"
    path.write_bytes(written(odd_folder.parent / "film.mp4", 3).read_bytes())
    monkeypatch.setattr("pathlib.Path.symlink_to", refused)
    (result,) = whole.results(path)
    assert result.status == "error" and "rename it" in result.note and result.note.isascii()
    with pytest.raises(DataError, match="new.mp4: .*rename it"):
        list(film(some_results([0]), odd_folder / "new.mp4"))
    assert left_in(odd_folder) == ["film.mp4"]
    monkeypatch.undo()
    with pytest.raises(DataError, match="not a video that OpenCV can read"):
        list(whole.frames(f"http://127.0.0.1:9/{NO_UTF8}"))


def test_the_end_of_a_film_is_at_the_frame_that_its_note_says(whole, tmp_path):
    path = tmp_path / "half.avi"
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, (W, H))
    for k in range(100):
        out.write(picture(k % 30))
    out.release()
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    for every in (1, 10):
        last = list(whole.frames(path, every))[-1]
        assert last.status == "error" and last.note == f"ended at frame {last.frame} of 100" and last.frame > 41


def test_a_header_may_end_anywhere(tmp_path):
    matroska = b"\x1aE\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1B\xf2\x81\4B\xf3\x81\x08B\x82\x84webmB\x87\x81\4B\x85\x81\2\x18S\x80g\1\0\0\0\0\0\1\0" + bytes(256)
    for whole_file in (matroska, written(tmp_path / "a.mp4", 3).read_bytes()[:80], b"RIFF\x50\0\0\0AVI " + bytes(80)):
        for k in range(len(whole_file)):
            (tmp_path / "x").write_bytes(whole_file[:k])
            assert cut_off(tmp_path / "x") in (True, False, None)
    (tmp_path / "x").write_bytes(matroska)
    assert cut_off(tmp_path / "x") is False
    (tmp_path / "x").write_bytes(matroska[:-9])
    assert cut_off(tmp_path / "x") is True


KINDS = {"mp4": ("film.mp4", "mp4v"), "motion jpeg": ("film.avi", "MJPG"), "xvid": ("film.avi", "XVID"), "matroska": ("film.mkv", "mp4v"),
         "webm": ("film.webm", "VP80")}


def noisy(path, code, n=60):
    "Noise that moves: of it a film has many bytes, wherever one looks."
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), RATE, (160, 120))
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    for k in range(n):
        out.write(np.roll(noise, 3 * k, 1))
    out.release()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_film_of_which_a_part_cannot_be_decoded_says_so(whole, tmp_path, monkeypatch, kind):
    "Its length in bytes is right, so that it was not cut off; a whole one stays silent."
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")
    name, code = KINDS[kind]
    content = noisy(tmp_path / name, code).read_bytes()
    results = list(whole.frames(tmp_path / name))
    assert (len(results), {r.note for r in results}, damaged(tmp_path / name, results[-1].time, False)) == (60, {""}, False)
    size, moov = len(content), content.rfind(b"moov") - 4 if name.endswith("mp4") else len(content)
    for low, high in ((.4, .6), (.5, 1)):
        low, high = int(low * size), min(int(high * size), moov)
        (bad := tmp_path / f"bad-{name}").write_bytes(content[:low] + bytes(high - low) + content[high:])
        *frames, last = whole.frames(bad)
        assert cut_off(bad) is not True and last.status == "error" and 5 < len(frames) < 60
        assert last.note.startswith(f"damaged: {len(frames)} of 60 frames could be decoded; after the damage")
        with pytest.warns(UserWarning, match=f"bad-{name}: damaged: "):
            assert len(whole.video(bad)) == len(frames)


@pytest.mark.parametrize("edits", [[(1, .4)], [(.8, 0), (.4, 2)], [(.5, -1), (1, 1)]])
def test_a_trimmed_film_is_no_damaged_one(whole, tmp_path, edits):
    "It holds more frames than its edit list shows; half of what it shows is damage."
    path = noisy(tmp_path / "film.mp4", "mp4v", 75)
    path.write_bytes(edited(path.read_bytes(), *edits))
    shown = sum(long for long, at in edits if at >= 0)
    assert _shown_seconds(path) == pytest.approx(shown, abs=1e-3)
    results = list(whole.frames(path))
    assert {r.note for r in results} == {""} and len(results) == round(RATE * shown)
    assert not damaged(path, results[-1].time, True) and damaged(path, results[-1].time - .6, True)


def header(version, times):
    "The header box of a movie, of a track or of an edit list, with times of 32 or 64 bits."
    return bytes([version, 0, 0, 0]) + b"".join(t.to_bytes(8 if version else 4, "big", signed=True) if long else t.to_bytes(4, "big", signed=True)
                                               for t, long in times)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("edits, seconds", [([], 8.), ([(2000, 0)], 2.), ([(500, -1), (2000, 0), (1000, 9)], 3.)])
def test_the_length_that_a_header_shows(tmp_path, version, edits, seconds):
    movie = header(version, [(0, True), (0, True), (1000, False), (9000, True)]) + bytes(80)
    head = header(version, [(0, True), (0, True), (1, False), (0, False), (8000, True)]) + bytes(60)
    rows = b"".join(header(version, [(long, True), (at, True), (1 << 16, False)])[4:] for long, at in edits)
    edts = box(b"edts", box(b"elst", bytes([version, 0, 0, 0]) + len(edits).to_bytes(4, "big") + rows)) if edits else b""
    tracks = [box(b"trak", box(b"tkhd", head) + part + box(b"mdia", box(b"hdlr", bytes(8) + kind + bytes(12))))
              for kind, part in ((b"soun", b""), (b"vide", edts))]
    path = tmp_path / "film.mp4"
    path.write_bytes(box(b"ftyp", b"isom" + bytes(8)) + box(b"mdat", bytes(99)) + box(b"moov", box(b"mvhd", movie) + b"".join(tracks)))
    assert _shown_seconds(path) == seconds and not damaged(path, seconds - .1, True) and damaged(path, seconds - .6, True)
    for k in range(path.stat().st_size):
        (tmp_path / "cut").write_bytes(path.read_bytes()[:k])
        assert _shown_seconds(tmp_path / "cut") >= 0                     # whatever is left of it


def test_a_film_is_of_one_video(tmp_path):
    frames = [Result(f"{name}.mp4", "no_face", image=np.zeros((48, 64, 3), np.uint8), frame=k, time=k / 25) for name in "ab" for k in range(3)]
    with pytest.raises(DataError, match="frames of b.mp4 after those of a.mp4"):
        list(film(frames, tmp_path / "both.mp4"))
    assert not list(tmp_path.iterdir())


def test_what_comes_behind_a_matroska_film_is_no_damage(tmp_path):
    from fer_nb.predict import _Video
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path := tmp_path / "a.mkv"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 64))
    for k in range(20):
        writer.write(np.full((64, 64, 3), 8 * k, np.uint8))
    writer.release()
    whole = path.read_bytes()
    for tail in (b"\n", bytes(4096), b"TAG" + bytes(125)):
        path.write_bytes(whole + tail)
        video = _Video(path)
        assert len(list(video)) == 20 and not video.end

"""Images that stay on disk: headers against pixels, files against arrays bit for bit, memory that does not grow with them."""
from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, PngImagePlugin

import fer_nb.data as data
import fer_nb.loaders as loaders
from fer_nb.audit import audit, image_quality
from fer_nb.augment import Augment
from fer_nb.balance import balance
from fer_nb.cli import main
from fer_nb.core import ConfigError, ImageError
from fer_nb.data import Crop, FERData, ImageFiles, KeptPixels, image_shapes, read_folder, read_image, resized
from fer_nb.duplicates import across_summary, duplicates_across, find_duplicates
from fer_nb.evaluate import image_batches
from fer_nb.formats import read_list
from fer_nb.loaders import dataloaders
from fer_nb.store import as_text, from_text, read_table, write_table
from fer_nb.synth import make_faces


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    "A cache folder of the test's own."
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FER_NB_CACHE_GB", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def drawn() -> FERData:
    "Ninety drawn faces with planted defects, in memory."
    return make_faces(90, seed=5)[0]


def as_folder(
    ds: FERData,     # grey images in memory
    root: Path,      # where
    end: str = "png",  # lossless
) -> FERData:        # read from a folder, in the order of the original
    "The same dataset as class folders."
    for i, label, split, image in zip(ds.df.id, ds.df.label, ds.df.split, ds.array()):
        path = root / split / label / f"{i}.{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    found = read_folder(root)
    at = {Path(i).stem: k for k, i in enumerate(found.df.id)}
    files = found.take([at[i] for i in ds.df.id])
    return files.replace(df=ds.df, labels=ds.labels, name=ds.name)


# ---- headers ----

MODES = [("L", "png"), ("LA", "png"), ("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("I;16", "png"), ("L", "jpg"),
         ("RGB", "jpg"), ("CMYK", "jpg"), ("L", "bmp"), ("RGB", "webp"), ("P", "gif"), ("L", "tif"), ("F", "tif"), ("RGB", "jp2")]


@pytest.mark.parametrize("turned", [1, 3, 6, 8])
@pytest.mark.parametrize("mode, end", MODES)
def test_a_header_says_what_the_pixels_are(tmp_path, mode, end, turned):
    grey = np.arange(240, dtype=np.uint8).reshape(10, 24)
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else \
        Image.fromarray(grey.astype(np.float32) / 255) if mode == "F" else Image.fromarray(grey).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turned
    path = tmp_path / f"x.{end}"
    picture.save(path, **({"exif": exif} if turned > 1 and end in ("jpg", "png", "webp") else {}))
    assert image_shapes([path, Crop(path, (-3, 2, 9, 50))]) == [read_image(path).shape, read_image(Crop(path, (-3, 2, 9, 50))).shape]


def test_a_grey_png_with_a_transparent_level_is_colour_in_the_header_too(tmp_path):
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "x.png", transparency=0)
    assert image_shapes([tmp_path / "x.png"]) == [read_image(tmp_path / "x.png").shape] == [(9, 9, 3)]


def test_orientation_behind_the_pixels_and_in_xmp_is_seen(tmp_path):
    Image.fromarray(np.zeros((10, 24), np.uint8)).save(buffer := io.BytesIO(), "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    late = io.BytesIO()
    PngImagePlugin.putchunk(late, b"eXIf", exif.tobytes()[6:] if exif.tobytes().startswith(b"Exif") else exif.tobytes())
    raw = buffer.getvalue()
    (tmp_path / "late.png").write_bytes(raw[:-12] + late.getvalue() + raw[-12:])
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    Image.fromarray(np.zeros((10, 24), np.uint8)).save(tmp_path / "xmp.png", pnginfo=info)
    files = sorted(tmp_path.glob("*.png"))
    assert image_shapes(files) == [read_image(f).shape for f in files]


DAMAGE = {"cut": lambda raw: raw[:len(raw) * 2 // 3], "empty": lambda raw: b"", "page": lambda raw: b"<!DOCTYPE html><title>404</title>",
          "header only": lambda raw: raw[:40]}


@pytest.mark.parametrize("end", ["png", "jpg", "bmp", "webp", "tif"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_while_headers_are_read(tmp_path, end, damage):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    for k in range(3):
        (tmp_path / "sad").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / f"sad/{k}.{end}")
    bad = tmp_path / f"sad/1.{end}"
    bad.write_bytes(DAMAGE[damage](bad.read_bytes()))
    good, found, other = image_shapes(sorted((tmp_path / "sad").iterdir()))
    assert good == other and len(good) >= 2 and isinstance(found, ImageError) and str(bad) in str(found)
    with pytest.raises(ImageError, match="1 of 3 images cannot be used"):
        read_folder(tmp_path)


def cut_jpeg(path: Path, share: float, side: int = 96, mode: str = "RGB", **how) -> bytes:
    "A JPEG that lost its end but has the two bytes that say it is whole; its bytes before that are handed back."
    coarse = np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side - 5)).convert(mode).save(raw := io.BytesIO(), "JPEG", quality=85, **how)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw.getvalue()[:int(len(raw.getvalue()) * share)] + b"\xff\xd9")
    return raw.getvalue()


@pytest.mark.parametrize("how", [{}, {"mode": "L"}, {"mode": "CMYK"}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"progressive": True}],
                         ids=["colour", "grey", "cmyk", "full colour", "restarts", "progressive"])
@pytest.mark.parametrize("share", [.4, .5, .7, .95])
def test_a_jpeg_without_its_end_is_found_though_it_ends_as_it_should(tmp_path, how, share):
    "Pillow fills it with grey and says nothing; whole files, with bytes behind the end too, are read as before."
    path = tmp_path / "a.jpg"
    raw = cut_jpeg(path, share, **how)
    with Image.open(path) as im:
        im.load()
    with pytest.raises(ImageError, match="a.jpg: cannot be decoded as an image .cut short: its end is missing"):
        read_image(path, whole=True)
    if "progressive" in how:
        assert isinstance(image_shapes([path])[0], ImageError)
    else:
        with pytest.raises(ImageError, match="cut short"):
            read_image(path)
    for behind in (b"", b"\0" * 9, b"more"):
        path.write_bytes(raw + behind)
        with Image.open(io.BytesIO(raw)) as im:
            assert (read_image(path, whole=True) == data.to_array(im)).all()


def test_a_whole_picture_with_a_grey_corner_is_no_cut_one(tmp_path):
    a = np.full((64, 64, 3), 128, np.uint8)
    a[:20] = np.random.default_rng(0).integers(0, 256, (20, 64, 3))
    for k, how in enumerate(({}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1})):
        Image.fromarray(a).save(tmp_path / f"{k}.jpg", **how)
        assert (read_image(tmp_path / f"{k}.jpg", whole=True)[-1, -1] == 128).all()


def test_such_files_are_listed_and_left_out_never_read(tmp_path, capsys):
    for k in range(60):
        cut_jpeg(tmp_path / f"set/{'happy' if k % 2 else 'sad'}/{k}.jpg", .5 if k in (4, 31, 40) else 1, 48)
    command = ["audit", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--exact"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "3 of 60 images cannot be used (broken=\"drop\", --broken drop, leaves them out)" in said and not (tmp_path / "out").exists()
    error = said[said.index("ImageError"):].strip()
    assert error.count("\n") == 2 and "4.jpg" in error and "cut short" in error
    listed = Path(error.partition("all of them: ")[2].partition(":\n")[0]).read_text()
    assert [f"{k}.jpg: cannot be decoded" in listed for k in (4, 31, 40, 41)] == [True, True, True, False]
    assert main([*command, "--broken", "drop"]) == 0
    assert "train 57; 2 labels; left out: 3 broken" in capsys.readouterr().err
    assert len(read_table(tmp_path / "out/left_out.csv")) == 3


def test_a_png_with_a_flipped_bit_is_found_without_decoding(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    raw = bytearray((tmp_path / "a.png").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(raw)
    assert isinstance(image_shapes([tmp_path / "a.png"])[0], ImageError)


def test_a_file_that_breaks_after_reading_is_named_and_does_not_hide_others(tmp_path, drawn):
    files = as_folder(drawn, tmp_path / "d")
    for k in (3, 70):
        files._images[k].write_bytes(b"gone")
    for look in (lambda: find_duplicates(files), files.fingerprint, lambda: files.keep()):
        with pytest.raises(ImageError) as e:
            look()
        assert "2 of" in str(e.value) and all(str(files._images[k]) in str(e.value) for k in (3, 70))
    assert len(find_duplicates(files.take([0, 1, 2]))) >= 0, "those that are whole can be used"


# ---- the same as in memory ----

def test_files_are_the_same_dataset_as_the_array(tmp_path, drawn):
    files = as_folder(drawn, tmp_path / "d")
    assert not files.in_memory() and files.shape() == drawn.array().shape
    pd.testing.assert_frame_equal(find_duplicates(files), find_duplicates(drawn))
    pd.testing.assert_frame_equal(image_quality(files), image_quality(drawn))
    one, other = audit(files), audit(drawn)
    pd.testing.assert_frame_equal(one.issues, other.issues)
    assert (one.groups == other.groups).all()
    assert files.fingerprint() == drawn.fingerprint()
    assert one.clean().fingerprint() == other.clean().fingerprint()
    assert files.take([5, 3]).fingerprint() == drawn.take([5, 3]).fingerprint()
    rows = np.array([80, 0, 7])
    assert (files.batch(rows) == drawn.array()[rows]).all()
    for a, b in zip(image_batches(files, 32, "cpu"), image_batches(drawn, 32, "cpu")):
        assert a[0] == b[0] and (a[1] == b[1]).all() and (a[2] == b[2]).all()
    assert (files.array() == drawn.array()).all() and files.fingerprint() == drawn.fingerprint()


@pytest.mark.parametrize("keep", [False, True])
def test_resized_files_are_resized_arrays(tmp_path, drawn, keep):
    small, files = resized(drawn, 20), resized(as_folder(drawn, tmp_path / "d"), 20)
    assert not files.in_memory() and files.shape() == (90, 20, 20)
    files = files.keep() if keep else files
    assert (files.batch(range(90)) == small.array()).all() and files.fingerprint() == small.fingerprint()
    assert (files.image(4) == small.image(4)).all() and set(files.sizes()) == {(20, 20)}


def test_sizes_that_differ_become_one_when_they_are_resized_and_grey_becomes_colour(tmp_path):
    rng, paths = np.random.default_rng(1), []
    for k, shape in enumerate([(30, 40), (20, 20, 3), (50, 24)]):
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    df = pd.DataFrame({"id": list("abc"), "label": "sad", "split": "train"})
    files = resized(FERData(df, paths), 16)
    plain = [np.asarray(Image.open(p).resize((16, 16), Image.Resampling.BILINEAR).convert("RGB")) for p in paths]
    assert (files.array() == np.stack(plain)).all()
    assert files.take([0]).array().shape == (1, 16, 16, 3), "a part keeps the colour of the whole"
    with pytest.raises(ImageError, match=r"\(20, 20\) differs from \(30, 40\)"):
        FERData(df, paths).shape()


def test_every_file_is_decoded_once_by_an_audit_and_its_fingerprint(tmp_path, drawn, monkeypatch):
    decoded = []
    monkeypatch.setattr(data, "read_image", lambda p: decoded.append(p) or read_image(p))
    files = as_folder(drawn, tmp_path / "d")
    assert not decoded, "reading a folder decodes nothing"
    found = audit(files)
    files.fingerprint()
    find_duplicates(files.take(range(30)), None)
    image_quality(found.clean())
    assert sorted(decoded) == sorted(files._images)


def test_the_fingerprint_of_changed_files_is_another(tmp_path, drawn):
    files = as_folder(drawn, tmp_path / "d")
    before = files.fingerprint()
    Image.fromarray(255 - drawn.image(0)).save(files._images[0])
    os.utime(files._images[0], ns=(1, 1))
    assert files.fingerprint() != before and files.assign(label="sad").fingerprint() != files.fingerprint()


# ---- pixels that are kept ----

def on_disk(folder: Path, drawn: FERData, monkeypatch) -> FERData:
    "A dataset whose pixels count as too many for memory."
    monkeypatch.setattr(data, "IN_MEMORY", 1000)
    return as_folder(drawn, folder)


def test_kept_pixels_are_found_again_and_not_believed_when_stale_or_unfinished(tmp_path, drawn, monkeypatch, cache, capsys):
    files = on_disk(tmp_path / "d", drawn, monkeypatch)
    train = files.where(split="train").keep()
    [kept] = cache.rglob("*.pixels")
    said = capsys.readouterr().err
    assert "GB of pixels are kept in" in said and str(kept) in said and "FER_NB_CACHE" in said
    has = np.load(kept.with_suffix(".npy"))
    assert has.sum() == len(train), "only what was asked for is decoded"

    decoded = []
    monkeypatch.setattr(data, "read_image", lambda p: decoded.append(p) or read_image(p))
    again = read_folder(tmp_path / "d")
    part = again.where(split="train").keep()
    assert "kept from before" in capsys.readouterr().err and not decoded
    rows = [drawn.df.id.tolist().index(Path(i).stem) for i in part.df.id]
    assert (part.batch(range(len(part))) == drawn.array()[rows]).all() and not decoded

    np.save(kept.with_suffix(".npy"), np.zeros(3, bool))                       # of something else: nothing is believed
    part = read_folder(tmp_path / "d").where(split="train").keep()
    assert len(decoded) == len(part) and (part.batch(range(len(part))) == drawn.array()[rows]).all()
    decoded.clear()
    kept.with_suffix(".npy").write_bytes(b"cut")
    assert read_folder(tmp_path / "d").where(split="train").keep() and len(decoded) == len(part)

    changed = part._images[0]
    Image.fromarray(255 - read_image(changed)).save(changed)
    os.utime(changed, ns=(5, 5))
    fresh = read_folder(tmp_path / "d").where(split="train").keep()
    assert (fresh.image(0) == 255 - drawn.array()[rows[0]]).all() and (fresh.batch([0])[0] == fresh.image(0)).all()
    assert len(list(cache.rglob("*.pixels"))) == 2


def test_what_does_not_fit_is_not_kept_and_the_oldest_make_room(tmp_path, drawn, monkeypatch, cache, capsys):
    files = on_disk(tmp_path / "d", drawn, monkeypatch)
    monkeypatch.setenv("FER_NB_CACHE_GB", "0")
    files.keep()
    assert not list(cache.rglob("*.pixels")) and "are not kept" in capsys.readouterr().err
    assert (files.batch([1, 2]) == drawn.array()[1:3]).all()
    one = drawn.array().nbytes
    for limit, left in ((2.5 * one, 2), (1.9 * one, 1)):
        monkeypatch.setenv("FER_NB_CACHE_GB", str(limit / 2**30))
        for side in (48, 47):
            part = resized(read_folder(tmp_path / "d"), side).keep()
            assert part.batch([0]).shape == (1, side, side)
        assert len(list(cache.rglob("*.pixels"))) == left
    assert "older pixels removed" in capsys.readouterr().err
    monkeypatch.setenv("FER_NB_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="FER_NB_CACHE_GB='much'"):
        read_folder(tmp_path / "d").keep()


def test_pixels_are_marked_only_after_they_are_written(tmp_path):
    kept = KeptPixels((9, 4, 4), tmp_path / "x.pixels")

    def broken():
        yield np.ones((4, 4), np.uint8)
        raise ImageError("b.png")

    with pytest.raises(ImageError):
        kept.put(np.array([2, 3]), broken())
    assert not kept.has.any() and not KeptPixels((9, 4, 4), kept.path).has.any()
    assert (tmp_path / "x.pixels").stat().st_size == 144 + 16


def test_parts_share_what_is_known_and_deleted_pixels_are_decoded_again(tmp_path, drawn, monkeypatch, cache):
    files = on_disk(tmp_path / "d", drawn, monkeypatch)
    a, b = files.take(range(0, 60)), files.take(range(30, 90))
    a.keep()
    assert b.take(range(30)).batch(range(30)).shape == (30, 48, 48)
    decoded = []
    monkeypatch.setattr(data, "read_image", lambda p: decoded.append(p) or read_image(p))
    b.keep()
    assert len(decoded) == 30
    next(cache.rglob("*.pixels")).unlink()
    assert (b.batch([0, 59]) == drawn.array()[[30, 89]]).all(), "pixels that somebody deleted"


@pytest.mark.parametrize("limit", [10**9, 0])
def test_a_loader_of_files_gives_what_a_loader_of_the_array_gives(tmp_path, drawn, monkeypatch, limit):
    for module in (data, loaders):
        monkeypatch.setattr(module, "IN_MEMORY", limit)
    files = as_folder(drawn, tmp_path / "d")
    make = lambda ds: dataloaders(ds.where(split="train"), ds.where(split="valid"), 16, Augment(), seed=3,  # noqa: E731
                                  rows=np.arange(72)[::-1].repeat(2))
    one, other = make(files), make(drawn)
    assert isinstance(one.train.x.x, torch.Tensor) == bool(limit)
    assert one.train.dataset[5][0].shape == other.train.dataset[5][0].shape == (1, 48, 48)
    decoded = []
    monkeypatch.setattr(data, "read_image", lambda p: decoded.append(p) or read_image(p))
    for side in ("train", "valid"):
        for _ in range(2):
            for (x, y), (u, v) in zip(one[side == "valid"], other[side == "valid"], strict=True):
                assert torch.equal(x, u) and torch.equal(y, v)
    assert not decoded, "before the first batch all are decoded"
    assert one.train.ds.fingerprint() == other.train.ds.fingerprint() and not decoded


def test_a_broken_image_is_refused_before_the_first_batch(tmp_path, drawn):
    files = as_folder(drawn, tmp_path / "d")
    raw = files._images[30].read_bytes()
    files._images[30].write_bytes(raw[:len(raw) // 2])
    with pytest.raises(ImageError, match=Path(files._images[30]).name):
        loaders.ReplayLoader(files, 16, True)


# ---- memory ----

MEMORY = """
import sys, re
from pathlib import Path
import fer_nb.data
from fer_nb.data import read_folder
from fer_nb.audit import audit
fer_nb.data.IN_MEMORY = 0
fer_nb.data._in_turn.__defaults__ = (8,)  # begun ahead: how many of 64 there are at once, the clock decides

def work(folder):
    ds = read_folder(folder)
    audit(ds, search=None)  # a search looks at thumbnails, which are made here as well, and needs room of its own
    ds.where(split="train").keep().batch(range(8))
    return ds.fingerprint()

def now(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

for folder in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")
    start = now("VmRSS")
    work(folder)
    print(now("VmHWM") - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says what a process took at most")
def test_memory_does_not_grow_with_the_images(tmp_path):
    base, counts = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8), (10, 66, 200)
    for n in counts:
        for k in range(n):
            path = tmp_path / f"{n}/train/{('happy', 'sad')[k % 2]}/{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(base, (k, k // 24), (0, 1))).resize((480, 480)).save(path, quality=60)
    env = os.environ | {"FER_NB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
                        "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back, so what counts is what is held
    done = subprocess.run([sys.executable, "-c", MEMORY, *(str(tmp_path / str(n)) for n in counts)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    _, few, many = map(int, done.stdout.split())
    kb = (many - few) / (counts[2] - counts[1])
    assert kb < 480 * 480 * 3 / 1024 / 4, f"{kb:.0f} kB an image, whose pixels are {480 * 480 * 3 // 1024} kB"


# ---- names of any bytes ----

NAMES = [b"caf\xe9.png", b"\xff\xfe.png", b"\\xe9.png", b"\\x5cudce9.png", b"\\udce9.png", b"a,b;\"c\"'.png", b"new\nline.png", b"\r.png", b"-rf.png", b"=1+1.png",
         b" space .png", b"#.png", b"x" * 250 + b".png", "日本é.png".encode(), b"<b>&amp;.png", b"$\\frac{1}$.png", b"NA.png", b"\x1b[31m.png"]


def odd_folder(drawn: FERData, root: Path) -> Path:
    "Class folders whose files have names of all kinds."
    for k, (label, split, image) in enumerate(zip(drawn.df.label, drawn.df.split, drawn.array())):
        folder = os.fsencode(root / split / label)
        os.makedirs(folder, exist_ok=True)
        stem, end = os.path.splitext(NAMES[k % len(NAMES)])
        with open(folder + b"/" + stem[:250 - 3] + b"%03d" % k + end, "wb") as f:
            Image.fromarray(image).save(f, "PNG")
    return root


def test_names_become_text_and_back():
    names = [os.fsdecode(n) for n in NAMES] + ["\ud800", "\\ud800", "\\", "\\x", "\\x5", "\\xE9"]
    for name in names:
        assert from_text(as_text(name)) == name and as_text(name).encode()
    assert len({as_text(n) for n in names}) == len(names)
    assert all(as_text(n) == n for n in ("a.png", "é 日本", "C:\\xyz", "\\x41"))


def test_tables_hold_names_of_any_bytes(tmp_path):
    table = pd.DataFrame({"id": [os.fsdecode(n) for n in NAMES], "score": np.arange(len(NAMES)) / 2, os.fsdecode(b"\xe9"): 1})
    for identity in (None, {"of": "something"}):
        write_table(table, tmp_path / "t.csv", identity)
        pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), table)
    (tmp_path / "t.csv").read_text(encoding="utf-8")


def test_a_folder_of_such_names_is_audited_and_the_ids_come_back(tmp_path, drawn, capsys):
    root = odd_folder(drawn, tmp_path / "data")
    ds = read_folder(root)
    assert len(ds) == len(drawn) and len(ds.fingerprint()) == 16
    assert main(["audit", "--data", str(root), "--against", str(root), "--out", str(tmp_path / "out")]) == 0
    expected = audit(ds).issues
    issues = read_table(tmp_path / "out/issues.csv")
    assert issues.id.tolist() == expected.id.tolist() and set(issues.id) <= set(ds.df.id)
    assert sorted(read_table(tmp_path / "out/against.csv").id.unique()) == sorted(ds.df.id)
    said = capsys.readouterr()
    assert "0 of data's 72 training images are in the other data's test split of 10" in said.out
    assert said.err.count("read as class folders: train 72") == 2  # both say what they are


def test_the_other_data_set_is_read_as_openly_as_the_first(tmp_path, capsys):
    """Broken images of it are left out with --broken, one class is fine, the record holds both provenances, and what its
    classes are is said by options of its own, which its errors name."""
    for k in range(30):
        for name in (f"a/happy/{k}.png", f"a/sad/{k + 30}.png", f"b/happy/{k}.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(k).integers(0, 256, (48, 48), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "b/happy/0.png").write_bytes(b"<html>")
    command = ["audit", "--data", str(tmp_path / "a"), "--against", str(tmp_path / "b"), "--out", str(tmp_path / "out"), "--exact"]
    assert main(command) == 2 and "0.png" in capsys.readouterr().err
    assert main([*command, "--broken", "drop"]) == 0
    assert "read as class folders: train 29; 1 labels; left out: 1 broken" in capsys.readouterr().err
    facts = next((tmp_path / "out").glob("*.json")).read_text()
    assert "train 29" in facts and "against_read" in facts
    os.rename(tmp_path / "b/happy", tmp_path / "b/3")
    (tmp_path / "b/3/0.png").unlink()
    for k in (0, 1, 2, 4):
        (tmp_path / f"b/{k}").mkdir()
        os.rename(tmp_path / f"b/3/{k + 1}.png", tmp_path / f"b/{k}/1.png")
    assert main([*command, "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "--against: " in said and "labels (--against-labels) in their order" in said
    assert main([*command, "--overwrite", "--against-labels", "fer2013", "--against-as", "folder"]) == 0
    assert "names: 0 = angry, 1 = disgust, 2 = fear, 3 = happy, 4 = sad" in capsys.readouterr().err
    assert main([*command[:3], "--against-labels", "fer2013"]) == 2 and "--against expected" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_such_names_goes_the_whole_way(tmp_path, drawn, capsys):
    root = odd_folder(make_faces(240, seed=0)[0], tmp_path / "data")
    assert main(["run", "--data", str(root), "--preset", "tiny", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    ids = set(read_folder(root).df.id)
    assert set(read_table(tmp_path / "run/issues.csv").id) <= ids
    (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert main(["evaluate", "--data", str(root), "--model", str(tmp_path / "run"), "--out", str(tmp_path / "e.csv")]) == 0
    assert main(["predict", str(root / "test"), "--no-crop", "--to", str(tmp_path / "p.csv")]) == 0
    files = read_table(tmp_path / "p.csv").file
    assert {Path(f).name for f in files} == {p.name for p in (root / "test").rglob("*.png")}
    assert main(["predict", str(root / "test"), "--no-crop", "--out", "annotated", "--to", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").rglob("*.jpg"))) == len(files)
    assert "Traceback" not in capsys.readouterr().err


# ---- copies ----

@pytest.mark.parametrize("limit", ["0", "20"])
@pytest.mark.parametrize("side", [None, 30])
@pytest.mark.parametrize("mode", ["L", "RGB", "both"])
def test_copies_of_files_are_those_of_the_array(tmp_path, drawn, monkeypatch, mode, side, limit):
    "Bit for bit, in any order, kept or not, resized or not; a broken original is named."
    monkeypatch.setenv("FER_NB_CACHE_GB", limit)
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    files = as_folder(drawn, tmp_path / "d").where(split="train")
    for k, path in enumerate(files._images):
        Image.open(path).convert("RGB" if mode == "both" and k % 3 == 0 else "RGB" if mode == "RGB" else "L").save(path)
    files = FERData(files.df, list(files._images), files.labels, files.name)
    files = files if side is None else resized(files, side)
    array = files.replace(images=files._images.batch(range(len(files))))
    lazy, plain = balance(files, "max", seed=3), balance(array, "max", seed=3)
    assert not lazy.in_memory() and plain.in_memory() and lazy.df.equals(plain.df) and len(lazy) > len(files)
    assert lazy.shape() == plain.shape()
    some = np.random.default_rng(0).permutation(len(lazy))[:70]
    assert (lazy.batch(some) == plain.array()[some]).all()
    assert lazy.where(role="minority").fingerprint() == balance(files, "max", seed=3).where(role="minority").fingerprint()
    assert lazy.fingerprint() != balance(files, "max", seed=4).fingerprint()
    held = plain.take(range(3))
    held = held.replace(df=held.df.assign(id=["x", "y", "z"], source=["x", "y", "z"]))
    loaders_of = [dataloaders(d, held, 16, Augment(), seed=1) for d in (lazy, plain)]
    for (x, y), (a, b) in zip(*(dls.train for dls in loaders_of)):
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(a)) and torch.equal(torch.as_tensor(y), torch.as_tensor(b))
    if limit == "0":
        copy = next(k for k in range(len(lazy)) if lazy.df.id[k] != lazy.df.source[k])
        lazy._images[copy].path.write_bytes(b"gone")
        with pytest.raises(ImageError, match=lazy._images[copy].path.name):
            lazy.batch([copy])


def test_balancing_holds_no_pixels(tmp_path, monkeypatch):
    "Neither of the originals nor of the copies, and a copy of a copy is one too."
    monkeypatch.setattr(FERData, "array", lambda self: pytest.fail("all pixels at once"))
    ds = make_faces(60, seed=1, defects=None)[0].where(split="train")
    paths = [tmp_path / f"{k}.png" for k in range(len(ds))]
    for path, image in zip(paths, ds._images):
        Image.fromarray(image).save(path)
    once = balance(ds.replace(images=paths), "max")
    assert sum(map(len, [once.known for once in [once._images]])) < 9 and len(balance(once, 40)) == 40 * 7
    assert balance(once, 40).batch([200]).shape == (1, 48, 48)


# ---- one dataset against another ----

KINDS = {"same": lambda im: im, "colour": lambda im: im.convert("RGB"), "larger": lambda im: im.resize((130, 130), Image.Resampling.BICUBIC),
         "mirrored": lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "darker": lambda im: im.point(lambda v: v * .8),
         "mirrored, larger, colour": lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((96, 96)).convert("RGB")}


@pytest.mark.parametrize("end", ["png", "jpg"])
@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_are_found_across_datasets_and_nothing_else(tmp_path, kind, end):
    mine, others = (make_faces(60, seed=s, defects=None)[0] for s in (21, 22))
    planted = mine.where(split="train").take(range(12))
    rows = [(f"n{k}", label, im) for k, (label, im) in enumerate(zip(others.df.label, others.array()))]
    rows += [(f"c{k}", label, im) for k, (label, im) in enumerate(zip(planted.df.label, planted.array()))]
    paths = []
    for name, _, image in rows:
        picture = Image.fromarray(image) if name[0] == "n" else KINDS[kind](Image.fromarray(image))
        paths.append(tmp_path / f"{name}.{end}")
        picture.save(paths[-1], **({"quality": 85} if end == "jpg" else {}))
    df = pd.DataFrame({"id": [r[0] for r in rows], "label": [r[1] for r in rows], "split": ["test"] * 60 + ["test", "valid"] * 6})
    theirs = FERData(df, paths, name="theirs")
    found = duplicates_across(mine, theirs)
    assert dict(zip(found.id, found.other)) == dict(zip(planted.df.id, df.id[60:]))
    assert (found.label == found.other_label).all() and set(found.split) == {"train"}
    exact = kind == "same" and end == "png"
    assert (found.how == ("exact" if exact else "mirror" if "mirror" in kind else "near")).mean() > .9
    assert len(duplicates_across(mine, theirs, None)) == 12 * exact
    table, line = across_summary(found, mine.replace(name="mine"), theirs)
    assert table.loc["train"].to_dict() == {"valid": 6, "test": 6, "any": 12, "images": (mine.df.split == "train").sum()}
    assert line == f"6 of mine's {(mine.df.split == 'train').sum()} training images are in theirs's test split of 66"


def test_across_agrees_with_one_search_over_both(drawn):
    a, b = drawn.take(range(50)), drawn.take(range(50, 90))
    pairs = find_duplicates(drawn)
    expected = {(drawn.df.id[i], drawn.df.split[j]) for i, j in zip(pairs.i, pairs.j) if i < 50 <= j}
    found = duplicates_across(a, b)
    assert expected <= set(zip(found.id, found.other_split))
    reverse = duplicates_across(b, a)
    assert set(found.other) <= set(reverse.id) and set(reverse.other) <= set(found.id)
    assert not len(duplicates_across(a.take([]), b)) and not len(duplicates_across(a, b.take([])))


def test_copies_of_copies_are_all_counted(drawn):
    one = drawn.take([0]).array()
    df = pd.DataFrame({"id": list("pqrs"), "label": drawn.df.label[0], "split": ["train", "train", "valid", "test"]})
    a = FERData(df, np.concatenate([one, one, one, 255 - one]), drawn.labels, "a")
    table, line = across_summary(duplicates_across(a, drawn.take([0]).assign(split="test")), a, drawn.take([0]).assign(split="test"))
    assert table["test"].to_dict() == {"train": 2, "valid": 1, "test": 0} and line.startswith("2 of a's 2 training images")


def test_image_files_are_a_sequence_of_paths(tmp_path):
    files = ImageFiles([tmp_path / f"{k}.png" for k in range(5)])
    assert len(files) == 5 and files[1:3] == files.pool[1:3] and list(files.part(np.array([4, 0]))) == [files[4], files[0]]


def test_pixels_of_a_file_that_was_removed_or_begun_anew_are_never_black(tmp_path, drawn, monkeypatch, cache):
    on_disk(tmp_path / "d", drawn, monkeypatch)
    want = {s: as_folder(drawn, tmp_path / "d").where(split=s).array() for s in ("train", "valid")}
    whole = read_folder(tmp_path / "d")
    parts = {s: whole.where(split=s) for s in want}
    want = {s: np.stack([read_image(f) for f in part._images]) for s, part in parts.items()}
    parts["train"].keep()
    next(cache.rglob("*.pixels")).unlink()                              # somebody deletes it, or another dataset makes room
    parts["valid"].keep()
    for ds in (whole, read_folder(tmp_path / "d")):                     # this reading, and that of another process
        for split, pixels in want.items():
            assert (ds.where(split=split).keep().batch(range(len(pixels))) == pixels).all()

    next(cache.rglob("*.pixels")).unlink()
    read_folder(tmp_path / "d").where(split="valid").keep()             # another process begins it anew
    for split, pixels in want.items():
        assert (parts[split].batch(range(len(pixels))) == pixels).all(), "a file of the same name is not the same file"
    parts["train"].keep()
    stream = parts["train"].stream()
    first = next(stream)
    next(cache.rglob("*.pixels")).unlink()
    assert (np.stack([first, *stream]) == want["train"]).all(), "removed while somebody reads"


@pytest.mark.parametrize("put", ["in_the_way", "at_the_file"])
def test_a_cache_folder_that_cannot_be_written_stops_nothing(tmp_path, drawn, monkeypatch, capsys, put):
    files = on_disk(tmp_path / "d", drawn, monkeypatch)
    if put == "in_the_way":
        (tmp_path / "file").touch()
        monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "file"))
    else:
        monkeypatch.setattr(data, "atomic_file", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    files.keep()
    assert "are not kept" in capsys.readouterr().err
    assert (files.batch([1, 2]) == drawn.array()[1:3]).all() and files.keep() is files


def test_copies_are_resized_as_their_originals_are(tmp_path, drawn):
    files = as_folder(drawn, tmp_path / "d").where(split="train")
    mine, theirs = (resized(balance(ds, 30), 32) for ds in (files, drawn.where(split="train")))
    assert {im.shape for im in mine.stream()} == {(32, 32)} and mine.fingerprint() == theirs.fingerprint()
    assert (mine.keep().array() == theirs.array()).all()


def test_rows_of_files_are_those_of_an_array(tmp_path, drawn):
    files, mask = as_folder(drawn, tmp_path / "d"), (drawn.df.label == "happy").to_numpy()
    for rows in (mask, [], [-1, 3], pd.Series([3, 4], index=[9, 8])):
        assert np.array_equal(files.batch(rows), drawn.batch(rows))
    assert len(drawn.batch(mask)) == mask.sum() > 2
    for ds in (files, drawn):
        for rows in ([0.7, 1.2], mask[1:], 3, [len(drawn)]):
            with pytest.raises(IndexError):
                ds.batch(rows)


def test_one_colour_image_makes_every_part_of_a_list_colour(tmp_path, drawn):
    for k in range(20):
        (tmp_path / "i").mkdir(exist_ok=True)
        Image.fromarray(drawn.image(k)).convert("RGB" if k == 3 else "L").save(tmp_path / f"i/{k}.png")
    rows = [f"i/{k}.png,{('happy', 'sad')[k % 2]},{('train', 'valid')[k // 10]}" for k in range(20)]
    (tmp_path / "list.csv").write_text("\n".join(["image,label,split", *rows]))
    ds, _ = read_list(tmp_path / "list.csv")
    assert ds.where(split="valid").shape() == (10, 48, 48, 3) == ds.where(split="train").shape()
    found = ds.fingerprint()
    ds.array()
    assert ds.fingerprint() == found

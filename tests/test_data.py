"""The exported data readers: every kind of bad input, round trips, and properties of `FERData`."""
import json
import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from fer_nb import data
from fer_nb.core import EMOTIONS, ConfigError, DataError, FERError, ImageError, LabelError
from fer_nb.data import (FER2013_COUNTS, FERPLUS_MODES, VOTE_COLUMNS, Crop, FERData, read_fer2013, read_folder, read_image,
                         read_images, resized, show_faces, vote_targets)

USAGES = {"train": "Training", "valid": "PublicTest", "test": "PrivateTest"}
ROW = " ".join(["7"] * 2304)


def random_data(n, seed=0, shape=(48, 48)):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"id": [f"im{k}" for k in range(n)], "label": rng.choice(EMOTIONS, n),
                       "split": rng.choice(["train", "valid", "test"], n), "subject": rng.integers(0, 3, n)})
    return FERData(df, rng.integers(0, 256, (n, *shape), dtype=np.uint8), name="random")


def as_csv(path, ds, header="emotion,pixels,Usage", end="\n"):
    lines = [header] + [f"{EMOTIONS.index(label)},{' '.join(map(str, ds.image(k).ravel()))},{USAGES[split]}"
                        for k, (label, split) in enumerate(zip(ds.df.label, ds.df.split))]
    path.write_bytes((end.join(lines) + end).encode())
    return path


def csv_of(path, *rows, header="emotion,pixels,Usage"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def save(path, image, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **kwargs)
    return path


def refused(error, *needles, read, path):
    "The error, after checking its exact type and that it names the file and each of `needles`."
    with pytest.raises(FERError) as e:
        read(path)
    assert type(e.value) is error, e.value
    for needle in map(str, (path, *needles)):
        assert needle in str(e.value), (needle, str(e.value)[:300])
    return str(e.value)


# ---- FER2013's CSV ----

@pytest.mark.parametrize("header, end", [("emotion,pixels,Usage", "\n"), ("emotion, Usage, pixels", "\r\n"),
                                         ("\ufeffemotion,pixels,Usage", "\n"), ('"emotion","pixels","Usage"', "\r\n")])
def test_random_pixels_come_back_identical(tmp_path, header, end):
    ds = random_data(60, seed=len(header))
    path = as_csv(tmp_path / "fer2013.csv", ds, "emotion,pixels,Usage", end)
    if "Usage, pixels" in header:                                     # icml_face_data.csv's order
        lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
        path.write_bytes(end.join([header, *(f"{e},{u},{p}" for e, p, u in lines), ""]).encode())
    else:
        path.write_bytes(path.read_bytes().replace(b"emotion,pixels,Usage", header.encode(), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = read_fer2013(path)
    assert (back.array() == ds.array()).all() and back.array().dtype == np.uint8
    assert back.df.label.tolist() == ds.df.label.tolist() and back.df.split.tolist() == ds.df.split.tolist()
    assert back.df.id.tolist() == [f"row{k}" for k in range(2, 62)] and back.labels == EMOTIONS


def with_pixel(value, at=2303):
    words = ROW.split()
    words[at] = value
    return " ".join(words)


BAD_ROWS = {
    "too few pixels": (f"3,{ROW[:-2]},Training", DataError, ["2303 pixels", "2304 expected"]),
    "too many pixels": (f"3,{ROW} 7,Training", DataError, ["2305 pixels", "2304 expected"]),
    "no pixels": ("3,,Training", DataError, ["0 pixels"]),
    "a word": (f"3,{with_pixel('seven', 100)},Training", DataError, ["'seven'"]),
    "a decimal": (f"3,{with_pixel('5.0')},Training", DataError, ["'5.0'"]),
    "hexadecimal": (f"3,{with_pixel('0x1')},Training", DataError, ["'0x1'"]),
    "a power": (f"3,{with_pixel('2²')},Training", DataError, ["'2²'"]),
    "two signs": (f"3,{with_pixel('--5', 0)},Training", DataError, ["'--5'"]),
    "a dot": (f"3,{with_pixel('.', 5)},Training", DataError, ["'.'"]),
    "above the range": (f"3,{with_pixel('256')},Training", DataError, ["256", "0-255"]),
    "below the range": (f"3,{with_pixel('-1', 0)},Training", DataError, ["-1", "0-255"]),
    "far above the range": (f"3,{with_pixel('1' + '0' * 30)},Training", DataError, ["1" + "0" * 30, "0-255"]),
    "label above": (f"7,{ROW},Training", LabelError, ["'7'", "0, 1, 2, 3, 4, 5, 6"]),
    "label below": (f"-1,{ROW},Training", LabelError, ["'-1'", "0, 1, 2, 3, 4, 5, 6"]),
    "label with a fraction": (f"3.5,{ROW},Training", LabelError, ["'3.5'"]),
    "label of another name": (f"bored,{ROW},Training", LabelError, ["'bored'"]),
    "no label": (f",{ROW},Training", LabelError, ["''"]),
    "label nan": (f"nan,{ROW},Training", LabelError, ["'nan'"]),
    "unknown usage": (f"3,{ROW},Testing", DataError, ["'Testing'", "PublicTest"]),
    "no usage": (f"3,{ROW},", DataError, ["''"]),
    "usage with a slip": (f"3,{ROW},trainin", DataError, ["'trainin'"]),
    "a short row": (f"3,{ROW}", DataError, ["2 fields", "3 expected"]),
    "a lone word": ("Training", DataError, ["1 fields"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
@pytest.mark.parametrize("before", [0, 3])
def test_a_bad_row_is_named_with_its_value(tmp_path, case, before):
    row, error, needles = BAD_ROWS[case]
    path = csv_of(tmp_path / "fer2013.csv", *[f"0,{ROW},Training"] * before, row, f"0,{ROW},Training")
    refused(error, f"row {before + 2}:", *needles, read=read_fer2013, path=path)


@pytest.mark.parametrize("bad", [2, 1024, 1025, 1026, 2048, 2049, 2051])
def test_the_row_number_is_the_line_of_the_file_in_later_blocks_too(tmp_path, bad):
    good = f"0,{ROW},Training"
    rows = [good] * 2060
    rows[bad - 2] = f"0,{with_pixel('999')},Training"
    refused(DataError, f"row {bad}: pixel '999'", read=read_fer2013, path=csv_of(tmp_path / "fer2013.csv", *rows))


def test_two_wrong_rows_do_not_cancel_out(tmp_path):
    long, short = ROW + "\t9", " ".join(["7"] * 2302) + "  7"         # 2305 and 2303 pixels, 2303 blanks each
    path = csv_of(tmp_path / "fer2013.csv", f"3,{long},Training", f"3,{short},Training")
    refused(DataError, "row 2: 2305 pixels", read=read_fer2013, path=path)


@pytest.mark.parametrize("column", ["emotion", "pixels"])
def test_a_missing_column_is_named(tmp_path, column):
    header = "emotion,pixels,Usage".replace(column, "other")
    path = csv_of(tmp_path / "fer2013.csv", f"3,{ROW},Training", header=header)
    refused(DataError, repr(column), "other", read=read_fer2013, path=path)


@pytest.mark.parametrize("content, needle", [(b"", "empty"), (b"emotion,pixels,Usage\n", "no rows"),
                                             (b"emotion,pixels,Usage", "no rows"), (b"\n", "empty"),
                                             (b"PK\x03\x04\x14\x00\xff\xfe\x9c", ""),
                                             (b"emotion,pixels,Usage\n3,\xff\xfe,", "")])
def test_a_file_that_is_no_table_is_refused(tmp_path, content, needle):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    refused(DataError, needle, read=read_fer2013, path=path)


@pytest.mark.parametrize("read", [read_fer2013, read_folder])
def test_what_is_not_there_is_refused(tmp_path, read):
    refused(DataError, "o such file", read=read, path=tmp_path / "missing")


@pytest.mark.parametrize("read", [read_fer2013, read_folder])
def test_a_folder_without_images_is_refused(tmp_path, read):
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy/notes.txt").write_text("none")
    (tmp_path / "happy/.a.png").write_text("hidden")
    refused(DataError, "no image files", read=read, path=tmp_path)


def test_a_file_is_no_folder(tmp_path):
    refused(DataError, "x.csv: a file;", read=read_folder, path=csv_of(tmp_path / "x.csv"))


# ---- counts ----

def test_strict_counts(tmp_path):
    path = as_csv(tmp_path / "fer2013.csv", random_data(20))
    read_fer2013(path)                                                # a small file is somebody's own: no complaint
    with pytest.raises(DataError) as e:
        read_fer2013(path, strict=True)
    assert all(name in str(e.value) for name in EMOTIONS) and "7215" in str(e.value)


def test_differences_warn_where_the_caller_is_and_equal_counts_say_nothing():
    ds = random_data(50)
    own = {s: tuple(ds.counts()[s][list(EMOTIONS)]) for s in ("train", "valid", "test")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ds.check_counts(own)) == 0 and len(ds.check_counts(own, strict=True)) == 0
    own["test"] = (own["test"][0] + 2, *own["test"][1:])
    with pytest.warns(UserWarning, match="random: counts differ"):
        table = ds.check_counts(own)
    assert table.to_dict("records") == [{"split": "test", "label": "angry", "read": own["test"][0] - 2,
                                         "published": own["test"][0], "difference": -2}]


@pytest.mark.realdata
def test_the_real_data_differ_from_the_published_counts_by_two_at_most_and_that_is_reported(fer2013_npz):
    pixels, emotion, usage = fer2013_npz
    split = {"Training": "train", "PublicTest": "valid"}
    df = pd.DataFrame({"id": np.arange(len(pixels)).astype(str), "label": np.array(EMOTIONS)[emotion],
                       "split": [split[u] for u in usage]})
    with pytest.warns(UserWarning, match="counts differ"):
        table = FERData(df, pixels).check_counts(FER2013_COUNTS)
    assert 0 < len(table) < 14 and table.difference.abs().max() <= 2 and table.difference.sum() == 0


@pytest.mark.realdata
def test_real_images_survive_the_csv(tmp_path, fer2013_npz):
    pixels, emotion, usage = (part[::20] for part in fer2013_npz)
    rows = [f"{e},{' '.join(map(str, p.ravel()))},{u}" for p, e, u in zip(pixels, emotion, usage)]
    back = read_fer2013(csv_of(tmp_path / "fer2013.csv", *rows))
    assert (back.array() == pixels).all() and (back.targets() == emotion).all()


def test_a_split_that_the_csv_lacks_is_named(tmp_path, monkeypatch):
    ds = random_data(30)
    monkeypatch.setattr(data, "FER2013_COUNTS", {s: ds.counts()[s].tolist() for s in USAGES})
    path = as_csv(tmp_path / "a.csv", ds.where(split=["train", "valid"]))
    with pytest.warns(UserWarning, match="fer2013: no test images"):
        read_fer2013(path)
    with pytest.raises(DataError, match="fer2013: no test images"):
        read_fer2013(path, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_fer2013(path, strict=True, splits=("train", "valid"))) == (ds.df.split != "test").sum()


def test_a_quote_that_never_closes_is_named(tmp_path):
    path = csv_of(tmp_path / "q.csv", f'3,"{ROW},Training', *[f"3,{ROW},Training"] * 4000)
    refused(DataError, "row", "not a table", read=read_fer2013, path=path)


# ---- folders ----

PICTURE = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)


def mirror(root, n=3):
    "FER2013's class-folder mirror: PublicTest and PrivateTest share test/."
    ds = random_data(n * 3, seed=9)
    for k, split in enumerate(["train", "valid", "test"] * n):
        folder = "train" if split == "train" else "test"
        label = ds.df.label[k]
        save(root / folder / label / f"{USAGES[split]}_{k}.png", ds.image(k))
    return ds


def test_the_mirror_finds_its_three_splits(tmp_path):
    ds = mirror(tmp_path)
    back = read_fer2013(tmp_path)
    number = back.df.id.str.extract(r"_(\d+)\.png")[0].astype(int)
    assert back.df.split.tolist() == [["train", "valid", "test"][k % 3] for k in number]
    assert back.df.label.tolist() == ds.df.label[number].tolist()
    assert (back.array() == ds.array()[number]).all()


def test_a_mirror_image_without_usage_is_refused(tmp_path):
    mirror(tmp_path)
    path = save(tmp_path / "test/sad/17.png", PICTURE)
    with pytest.raises(DataError) as e:
        read_fer2013(tmp_path)
    assert str(path) in str(e.value) and "PrivateTest_" in str(e.value)


def test_a_mirror_with_a_foreign_class_is_refused(tmp_path):
    mirror(tmp_path)
    save(tmp_path / "train/contempt/Training_99.png", PICTURE)
    with pytest.raises(LabelError, match="'contempt'"):
        read_fer2013(tmp_path)


def broken_files(root):
    "Files that no decoder takes, by name."
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(jpeg, "JPEG")
    contents = {"truncated.jpg": jpeg.getvalue()[:len(jpeg.getvalue()) // 2], "empty.png": b"", "text.png": b"no image",
                "header.png": b"\x89PNG\r\n\x1a\n", "half.bmp": b"BM" + struct.pack("<I", 999) + bytes(20)}
    for name, content in contents.items():
        (root / "happy").mkdir(parents=True, exist_ok=True)
        (root / "happy" / name).write_bytes(content)
    return contents


@pytest.mark.parametrize("good", [0, 2])
def test_all_undecodable_images_are_reported_together(tmp_path, good):
    names = broken_files(tmp_path)
    for k in range(good):
        save(tmp_path / f"happy/good{k}.png", PICTURE)
    with pytest.raises(ImageError) as e:
        read_folder(tmp_path)
    message = str(e.value)
    assert f"{len(names)} of {len(names) + good} images" in message and "good" not in message and message.count("\n") == 2
    for text in (the_list(message), "\n".join(map(str, e.value.failures))):
        assert all(str(tmp_path / "happy" / name) in text for name in names) and "good" not in text


def the_list(message: str) -> str:
    "The file that a message about several broken images names, in which all of them stand."
    return Path(message.partition("all of them: ")[2].partition(":\n")[0]).read_text(encoding="utf-8")


def test_of_many_broken_images_two_are_shown_and_a_file_names_all(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for k in range(30):
        (tmp_path / f"images/{k:02}.png").write_bytes(b"x")
    with pytest.raises(ImageError) as e:
        read_images(sorted((tmp_path / "images").iterdir()))
    message = str(e.value)
    assert message.startswith("30 of 30 images cannot be used (") and message.count("\n") == 2 and "02.png" not in message
    assert [name in message for name in ("00.png", "01.png", "--broken drop")] == [True] * 3
    assert [f"{k:02}.png: cannot be decoded" in line for k, line in enumerate(the_list(message).splitlines())] == [True] * 30
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "no folder"))  # a list that cannot be written hides no error
    with pytest.raises(ImageError, match=r"30 of 30 images cannot be used \(.*out\):\n.*00.png.*\n.*01.png"):
        read_images(sorted((tmp_path / "images").iterdir()))


FORMATS = {"PNG": {}, "JPEG": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused_with_an_image_error(tmp_path, kind, data):
    buffer = io.BytesIO()
    colour = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    pixels = rng.integers(0, 256, (12, 12, 3) if colour else (12, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **FORMATS[kind])
    raw = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):
        raw = raw[:data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            assert read_image(path).dtype == np.uint8
        except ImageError as e:
            assert str(path) in str(e)


def test_endings_in_capitals_are_read_and_hidden_files_and_folders_are_not(tmp_path):
    save(tmp_path / "Happy/A.PNG", PICTURE)
    save(tmp_path / "Happy/b.Jpeg", PICTURE, format="JPEG")
    save(tmp_path / "SADNESS/c.BMP", PICTURE)
    (tmp_path / "Happy/._A.PNG").write_bytes(b"resource fork")
    (tmp_path / "Happy/Thumbs.db").write_bytes(b"x")
    save(tmp_path / ".ipynb_checkpoints/A-checkpoint.png", PICTURE)
    save(tmp_path / "Happy/.thumbnails/A.png", PICTURE)
    ds = read_folder(tmp_path)
    assert ds.df.id.tolist() == ["Happy/A.PNG", "Happy/b.Jpeg", "SADNESS/c.BMP"]
    assert ds.labels == ("happy", "sad") and ds.targets().tolist() == [0, 0, 1]


@pytest.mark.parametrize("above", ["", "archive", "fer/data"])
def test_splits_are_found_at_any_depth(tmp_path, above):
    for name in ("train/happy/a.png", "Validation/happy/b.png", "test/sad/c.png"):
        save(tmp_path / above / name, PICTURE)
    found = read_folder(tmp_path).df
    assert dict(zip(found.id.str[-5], found.split)) == {"a": "train", "b": "valid", "c": "test"}


@pytest.mark.parametrize("name, needle", [
    ("eval/happy/x.png", "none of the split folders"), ("happy/x.png", "none of the split folders"),
    ("test/x.png", "outside any class folder"), ("x.png", "outside any class folder"),
    ("test/train/happy/x.png", "test and train")])
def test_an_image_of_unknown_split_is_refused(tmp_path, name, needle):
    save(tmp_path / "train/happy/a.png", PICTURE)
    odd = save(tmp_path / name, PICTURE)
    refused(DataError, odd, needle, read=read_folder, path=tmp_path)


def test_images_of_several_sizes_stay_files_and_refuse_to_become_one_array(tmp_path):
    save(tmp_path / "happy/a.png", PICTURE)
    save(tmp_path / "happy/b.png", PICTURE[:40, :30])
    ds = read_folder(tmp_path)
    assert [ds.image(k).shape for k in range(2)] == [(48, 48), (40, 30)]
    assert len(ds.fingerprint()) == 16
    with pytest.raises(ImageError) as e:
        ds.array()
    assert "b.png" in str(e.value) and "(40, 30)" in str(e.value) and "(48, 48)" in str(e.value)
    assert ds.take([1]).array().shape == (1, 40, 30)


def test_grey_and_colour_together_become_colour_and_stay_the_same_data(tmp_path):
    colour = np.stack([PICTURE, PICTURE.T, PICTURE[::-1]], -1)
    save(tmp_path / "happy/a.png", PICTURE)
    save(tmp_path / "happy/b.png", colour)
    ds = read_folder(tmp_path)
    before = ds.fingerprint()
    assert ds.array().shape == (2, 48, 48, 3)
    assert (ds.array()[0] == PICTURE[..., None]).all() and (ds.array()[1] == colour).all()
    assert ds.fingerprint() == before, "looking at the pixels changed the fingerprint"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_grey_or_rgb_bytes(tmp_path, mode):
    if mode == "I;16":
        picture = Image.fromarray((np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8))
    else:
        picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture.save(path)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.shape == ((8, 8) if mode in ("1", "L", "LA", "I;16") else (8, 8, 3))
    assert image.min() < 10 and image.max() > 240


def test_exif_orientation_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                                  # rotate by 90 degrees to show it upright
    picture = Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (48, 1)))
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (24, 48)


def test_read_images_keeps_the_order_of_many_files(tmp_path):
    paths = [save(tmp_path / f"{k}.png", np.full((4, 4), k, np.uint8)) for k in range(60)]
    assert [im[0, 0] for im in read_images(paths[::-1])] == list(range(60))[::-1]
    assert read_images([]) == []


# ---- FERData ----

@settings(max_examples=60)
@given(st.lists(st.integers(-12, 11), max_size=12, unique_by=lambda k: k % 12))
def test_take_picks_rows_and_images_together(rows):
    ds = random_data(12)
    part = ds.take(rows)
    assert len(part) == len(rows) and part.labels == ds.labels and part.name == ds.name
    assert part.df.id.tolist() == ds.df.id.to_numpy()[np.array(rows, int)].tolist()
    assert list(part.df.index) == list(range(len(rows)))
    assert all((part.image(k) == ds.image(r % 12)).all() for k, r in enumerate(rows))
    assert part.targets().tolist() == ds.targets()[np.array(rows, int)].tolist()


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_mask_its_positions_and_a_series_take_the_same(mask):
    ds = random_data(12)
    expected = ds.take(np.flatnonzero(mask)).fingerprint()
    assert ds.take(np.array(mask)).fingerprint() == ds.take(pd.Series(mask)).fingerprint() == expected


@pytest.mark.parametrize("rows", [[True, False], [True] * 13, [12], [-13], [0, 0], [0.5]])
def test_rows_that_do_not_exist_are_refused(rows):
    with pytest.raises((FERError, IndexError, TypeError)):
        random_data(12).take(rows)


def test_where_agrees_with_pandas_and_combines_conditions():
    ds = random_data(80)
    both = ds.where(split=["train", "test"], label="sad")
    assert both.df.id.tolist() == ds.df.query("split != 'valid' and label == 'sad'").id.tolist()
    assert ds.where(subject=2).df.id.tolist() == ds.df.id[ds.df.subject == 2].tolist()
    assert ds.where(subject=np.array([0, 1, 2])).fingerprint() == ds.where().fingerprint() == ds.fingerprint()
    assert len(ds.where(label="contempt")) == 0


@given(st.integers(0, 40), st.integers(0, 5))
@settings(max_examples=30)
def test_counts_add_up(n, seed):
    ds = random_data(n, seed, (2, 2))
    table = ds.counts()
    assert tuple(table.index) == EMOTIONS and table["all"].sum() == n
    assert (table.drop(columns="all").sum(axis=1) == table["all"]).all()
    for split in set(ds.df.split):
        assert table[split].tolist() == np.bincount(ds.where(split=split).targets(), minlength=7).tolist()
    assert [c for c in table][:-1] == [s for s in ("train", "valid", "test") if s in set(ds.df.split)]


def test_an_empty_dataset_is_a_dataset():
    ds = random_data(3).take([])
    assert len(ds) == 0 and ds.targets().dtype == np.int64 and "empty" in repr(ds)
    assert ds.array().shape == (0, 48, 48) and ds.fingerprint() != random_data(1).fingerprint()


CHANGES = {
    "pixel": lambda ds: FERData(ds.df, np.where(np.arange(ds.array().size).reshape(ds.array().shape) == 777,
                                                255 - ds.array(), ds.array()), ds.labels),
    "id": lambda ds: FERData(ds.df.assign(id=ds.df.id.replace("im3", "im33")), ds.array(), ds.labels),
    "label": lambda ds: FERData(ds.df.assign(label="sad"), ds.array(), ds.labels),
    "split": lambda ds: FERData(ds.df.assign(split="test"), ds.array(), ds.labels),
    "order": lambda ds: ds.take([1, 0, *range(2, len(ds))]),
    "fewer": lambda ds: ds.take(range(len(ds) - 1)),
    "label order": lambda ds: FERData(ds.df, ds.array(), ds.labels[::-1]),
    "shape": lambda ds: FERData(ds.df, ds.array().reshape(len(ds), 24, 96), ds.labels),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_changes_the_fingerprint(change):
    ds = random_data(10)
    assert CHANGES[change](ds).fingerprint() != ds.fingerprint()


def test_the_fingerprint_ignores_where_the_pixels_are(tmp_path):
    ds = random_data(6)
    paths = [save(tmp_path / f"{k}.png", ds.image(k)) for k in range(6)]
    files = FERData(ds.df, paths)
    assert files.fingerprint() == ds.fingerprint()
    assert (files.array() == ds.array()).all() and files.fingerprint() == ds.fingerprint()
    shuffled = FERData(ds.df.set_index(np.arange(6)[::-1]), ds.array()[:, ::-1][:, ::-1])
    assert shuffled.fingerprint() == ds.fingerprint()


def test_missing_files_are_named_when_they_are_looked_at(tmp_path):
    ds = FERData(random_data(2).df, [tmp_path / "a.png", tmp_path / "b.png"])
    for look in (lambda: ds.image(1), ds.array, ds.fingerprint):
        with pytest.raises(ImageError, match="no such file"):
            look()


TABLES = {
    "no split": (lambda df: df.drop(columns="split"), DataError, "split"),
    "no id or label": (lambda df: df[["split"]], DataError, "'id', 'label'"),
    "label nan": (lambda df: df.assign(label=["sad", np.nan, "sad"]), LabelError, "'im1'"),
    "label id": (lambda df: df.assign(label=[0, 1, 2]), LabelError, "'im0'"),
    "split Training": (lambda df: df.assign(split="Training"), LabelError, "'Training'"),
    "too short": (lambda df: df[:2], DataError, "2 rows but 3 images"),
    "ids are numbers": (lambda df: df.assign(id=[1, 2, 3]), DataError, "id"),
    "id nan": (lambda df: df.assign(id=["a", np.nan, "b"]), DataError, "id"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_contradicts_itself_is_refused(case):
    ds = random_data(3)
    change, error, needle = TABLES[case]
    with pytest.raises(error, match=needle):
        FERData(change(ds.df), ds.array())


@pytest.mark.parametrize("images", [np.zeros((3, 4, 4)), np.zeros((3, 4, 4), np.int64), np.zeros((3, 16), np.uint8),
                                    np.zeros((3, 4, 4, 4), np.uint8), np.zeros((3, 4, 4, 1), np.uint8)])
def test_arrays_that_are_no_pictures_are_refused(images):
    with pytest.raises(ImageError):
        FERData(random_data(3).df, images)


def test_a_dataset_does_not_share_its_targets():
    ds = random_data(5)
    ds.targets()[:] = 0
    assert ds.targets().tolist() == [EMOTIONS.index(label) for label in ds.df.label]


@pytest.mark.parametrize("n, ncols, cells", [(1, 8, 1), (5, 3, 6), (0, 4, 1)])
def test_show_faces_draws_the_pixels(n, ncols, cells):
    import matplotlib.pyplot as plt
    ds = random_data(6)
    axes = show_faces(ds, range(n), ncols=ncols)
    assert len(axes) == cells
    assert all((ax.images[0].get_array() == ds.image(k)).all() for k, ax in enumerate(axes[:n]))
    assert not any(ax.images for ax in axes[n:])
    plt.close(axes[0].figure)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_white_is_zero_is_read_as_it_looks(tmp_path, bits):
    tifffile = pytest.importorskip("tifffile")
    grey = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    deep = grey.astype(np.uint16) * 257 if bits == 16 else grey
    for photometric in (0, 1):
        tifffile.imwrite(tmp_path / "a.tif", ~deep if photometric == 0 else deep, photometric=("miniswhite", "minisblack")[photometric])
        with Image.open(tmp_path / "a.tif") as again:
            assert again.tag_v2[262] == photometric
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), grey)


@pytest.mark.parametrize("column", ["subject", "group", "source"])
def test_what_must_stay_together_is_part_of_the_identity(column):
    ds = FERData(pd.DataFrame({"id": ["a", "b", "c"], "label": "happy", "split": "train"}), np.zeros((3, 4, 4), np.uint8))
    tied, otherwise = ds.assign(**{column: ["x", "x", "y"]}), ds.assign(**{column: ["x", "y", "y"]})
    assert len({json.dumps(d.identity()) for d in (ds, tied, otherwise)}) == 3
    assert ds.identity() == {"data": ds.fingerprint()} and ds.assign(note=["n"] * 3).identity() == ds.identity()


# ---- columns, types, tables of pixels

def test_a_series_goes_to_its_images(tmp_path):
    ds = random_data(12)
    ds = ds.assign(split=["train"] * 5 + ["valid"] * 7)
    who = pd.Series([f"p{k}" for k in range(12)])
    valid = ds.where(split="valid")
    assert valid.assign(subject=who[5:]).df.subject.tolist() == who[5:].tolist(), "cut from the whole"
    shuffled = pd.Series(who.to_numpy(), index=ds.df.id).sample(frac=1, random_state=0)
    assert ds.assign(subject=shuffled).df.subject.tolist() == who.tolist(), "by id"
    assert valid.assign(subject=shuffled).df.subject.tolist() == who[5:].tolist()
    assert ds.assign(subject=who.sample(frac=1, random_state=1)).df.subject.tolist() == who.tolist(), "by row"
    for lacking in (who[:4], shuffled[:7]):
        with pytest.raises(DataError, match="'subject'.*one for each id"):
            ds.assign(subject=lacking)


def test_categories_are_texts_and_numbers_are_no_labels():
    ds = random_data(9)
    same = FERData(ds.df.astype({"label": "category", "split": "category"}), ds.array(), ds.labels)
    assert same.fingerprint() == ds.fingerprint() and same.identity()
    with pytest.raises(LabelError, match="label 0 is not a string"):
        FERData(ds.df.assign(label=0), ds.array(), [0, 1])


def test_a_box_of_floats_is_rounded_and_a_side_is_a_number_of_pixels(tmp_path):
    path, ds = save(tmp_path / "a.png", random_data(1).image(0)), random_data(2)
    assert (read_image(Crop(path, (0.0, 1.6, 10.0, 9.9))) == read_image(Crop(path, (0, 2, 10, 10)))).all()
    with pytest.raises(ImageError, match="four numbers of pixels"):
        read_image(Crop(path, (0, 0, float("nan"), 10)))
    for side in (0, 32.5, "32"):
        with pytest.raises(ConfigError, match="side="):
            resized(ds, side)


@pytest.mark.parametrize("header, fields, splits", [
    ("emotion,pixels,subset", ("train", "test"), ["train", "test"]), ("emotion,pixels,Partition", ("train", "val"), ["train", "valid"]),
    ("emotion,pixels,is_valid", ("False", "1"), ["train", "valid"]), ("emotion,pixels,Usage", ("Training", "PrivateTest"), ["train", "test"])])
def test_the_split_column_of_a_table_of_pixels(tmp_path, header, fields, splits):
    path = csv_of(tmp_path / "own.csv", *(f"3,{ROW},{x}" for x in fields), header=header)
    assert data.fer2013_csv(path).df.split.tolist() == splits


def test_a_table_of_pixels_says_what_it_does_not_read_and_reads_persons(tmp_path):
    rows = [f"3,{ROW},Training,1.0,test,7", f"4,{ROW},PublicTest,1,test,8", f"4,{ROW},PublicTest,NA,test,8"]
    path = csv_of(tmp_path / "own.csv", *rows, header="emotion,pixels,Usage,person,split,age")
    with pytest.warns(UserWarning, match="columns that are not read: split, age"):
        ds = data.fer2013_csv(path)
    assert ds.df.subject.fillna("").tolist() == ["1", "1", ""] and ds.df.split.tolist() == ["train", "valid", "valid"]
    for name, split in (("valid", "valid"), ("train", "train"), ("fer2013", "train")):
        path = csv_of(tmp_path / f"{name}.csv", f"3,{ROW}", header="emotion,pixels")
        with pytest.warns(UserWarning, match=f"read as {split}"):
            assert data.fer2013_csv(path).df.split.tolist() == [split]


# ---- tables in another order, dicts, full disks

def test_a_sorted_table_takes_its_images_along(tmp_path):
    ds = random_data(9, shape=(4, 4))
    files = [save(tmp_path / f"{k}.png", ds.image(k)) for k in range(9)]
    for whole in (ds, FERData(ds.df, files)):
        for df in (whole.df.sort_values("label"), pd.concat([whole.df.iloc[4:], whole.df.iloc[:4]])):
            moved = whole.replace(df=df)
            assert moved.df.id.tolist() == df.id.tolist()
            assert [moved.image(k).tolist() for k in range(9)] == [ds.image(int(i[2:])).tolist() for i in df.id]
        with pytest.raises(DataError, match="rows in another order.*ds.take"):
            whole.replace(df=whole.df.iloc[::-1].reset_index(drop=True))
        with pytest.raises(DataError, match="rows in another order"):
            whole.replace(df=whole.df.iloc[::-1].assign(id=[f"new{k}" for k in range(9)]))
        assert whole.replace(df=whole.df.assign(id=[f"new{k}" for k in range(9)])).image(3).tolist() == ds.image(3).tolist()


def test_a_dict_goes_to_its_images_and_a_list_has_one_value_each():
    ds = random_data(12)
    people = {f"im{k}": f"p{k // 4}" for k in reversed(range(12))}
    assert ds.assign(subject=people).df.subject.tolist() == [f"p{k // 4}" for k in range(12)]
    for values in ({"im1": "p"}, [1, 2], np.arange(13)):
        with pytest.raises(DataError, match=f"'x': {len(values)} values for 12 images"):
            ds.assign(x=values)
    assert ds.assign(x="a", y=3, z=list(range(12))).df.z.tolist() == list(range(12))


def test_two_columns_of_one_name_are_refused():
    ds = random_data(3)
    with pytest.raises(DataError, match="several columns label"):
        FERData(pd.concat([ds.df, ds.df[["label"]]], axis=1), ds.array())


def test_a_full_disk_is_an_error_and_nothing_is_said_to_be_there(tmp_path, monkeypatch):
    kept = data.KeptPixels((3, 4, 4), tmp_path / "p.pixels")
    images = random_data(3, shape=(4, 4)).array()

    def full(file):
        raise OSError(28, "No space left on device")
    kept.put(np.arange(1), images[:1])
    with monkeypatch.context() as m:
        m.setattr(data.os, "fsync", full)   # pixels were once written through a map, where a full disk is SIGBUS
        with pytest.raises(OSError, match="No space"):
            kept.put(np.arange(1, 3), images[1:])
    assert kept.there().tolist() == [True, False, False]
    kept.put(np.array([2, 0, 1]), images[[2, 0, 1]])
    assert (kept.take(np.arange(3)) == images).all()
    colour = data.KeptPixels((1, 4, 4, 3), tmp_path / "c.pixels")
    colour.put(np.arange(1), images[:1])
    assert (colour.take(np.arange(1))[0] == images[0][..., None]).all()


@pytest.mark.parametrize("row, shown", [("{e},{p},Training,{s}", "0, 0"), ("{o},{p},Usage", "1, 0"), ("{e},{s},{p},Training", "0, 0")])
def test_the_emotion_of_a_table_without_a_header_is_not_guessed(tmp_path, row, shown):
    rows = [row.format(e=k % 7, s=k // 4, p=ROW, o=",".join(str(int(j == k % 7)) for j in range(7))) for k in range(28)]
    path = csv_of(tmp_path / "own.csv", *rows[1:], header=rows[0])
    with pytest.raises(DataError, match=f"no header, and the emotion could be any of {shown}.*a first row"):
        data.fer2013_csv(path)


def test_numbered_rows_of_a_table_without_a_header_are_no_emotions(tmp_path):
    rows = [f"{k + 3},{k % 7},{ROW},Training" for k in range(9)]
    path = csv_of(tmp_path / "own.csv", *rows[1:], header=rows[0])
    assert data.fer2013_csv(path).df.label.tolist() == [EMOTIONS[k % 7] for k in range(9)]


def test_a_person_called_na_is_said_with_the_count(tmp_path):
    path = csv_of(tmp_path / "own.csv", *(f"3,{ROW},Training,{who}" for who in ("NA", "KA", "NA", "", "NM ")), header="emotion,pixels,Usage,subject")
    with pytest.warns(UserWarning, match="2 rows with the subject 'NA': read as none"):
        assert data.fer2013_csv(path).df.subject.fillna("").tolist() == ["", "KA", "", "", "NM"]


def test_votes_in_8_bits_are_counted_as_any_others():
    votes = np.random.default_rng(0).multinomial(40, [.5, .2, .05, .05, .05, .05, .05, .03, .01, .01], size=50)
    small = votes.astype(np.uint8)
    for mode in FERPLUS_MODES:
        np.testing.assert_array_equal(vote_targets(votes, mode), vote_targets(small, mode))
    df = pd.DataFrame({"id": [f"i{k}" for k in range(50)], "label": "happy", "split": "train"}).assign(**dict(zip(VOTE_COLUMNS, small.T)))
    ds = FERData(df, np.zeros((50, 4, 4), np.uint8))
    assert ds.votes().dtype == np.int64 and ds.votes(float).dtype == float and ds.df.vote_happy.dtype == np.uint8


def test_ids_are_made_anew_without_moving_an_image():
    ds = random_data(6, shape=(4, 4))
    mixed = ds.take([3, 0, 5, 1, 4, 2])
    again = mixed.assign(id=[str(k) for k in range(6)])
    assert (again.array() == mixed.array()).all() and again.df.id.tolist() == [*"012345"]
    with pytest.raises(DataError, match="not a string"):
        ds.replace(df=ds.df.assign(id=range(6)))
    for odd in (np.zeros((6, 2)), {1, 2}, iter(range(6))):
        with pytest.raises(DataError, match="column 'x': a .*one value an image"):
            ds.assign(x=odd)


def test_a_name_of_a_file_is_no_emotion(tmp_path):
    rows = [f"im{k}.png,{k % 7},{ROW}" for k in range(9)]
    path = csv_of(tmp_path / "own.csv", *rows[1:], header=rows[0])
    assert data.fer2013_csv(path).df.label.tolist() == [EMOTIONS[k % 7] for k in range(9)]


# ---- one rule for what is of pandas ----

def test_a_mask_goes_by_its_index():
    ds = random_data(12)
    mask = pd.Series(np.arange(12) < 5)
    expected = ds.df.id[:5].tolist()
    named = mask.set_axis(ds.df.id)
    for given in (mask, named, mask.sample(frac=1, random_state=0), named.sample(frac=1, random_state=0), mask.set_axis(range(40, 52)),
                  pd.concat([pd.Series([True], ["elsewhere"]), named])):
        assert ds.take(given).df.id.tolist() == expected
        assert len(ds.batch(given)) == 5
    assert ds.take(pd.Series([3, 1], [1, 0])).df.id.tolist() == ds.df.id[[3, 1]].tolist(), "positions have an order of their own"
    for odd in (mask.set_axis(range(12, 0, -1)), named.rename(lambda i: f"x{i}"), named.iloc[[0, *range(11)]]):
        with pytest.raises(DataError, match="a mask with the index .* one for each id"):
            ds.take(odd)
    with pytest.raises(IndexError):
        ds.take(mask[:4])


def test_a_column_of_another_index_is_refused():
    ds = random_data(6)
    who = pd.Series(list("abcdef"))
    for odd in (who.set_axis([30, 20, 10, 40, 50, 60]), who.set_axis(list("uvwxyz")), who.set_axis([0, 1, 2, 0, 1, 2])):
        with pytest.raises(DataError, match="column 'subject': 6 values for 6 images with the index"):
            ds.assign(subject=odd)

"""Coverage-guided fuzzing of the readers with atheris, by hand: python tests/fuzz.py GROUP [--minutes 10]

GROUP is a key of `GROUPS`: valid files that one reader shares, one of which is replaced by what atheris makes of it; then
the whole data set goes through `formats.read`, and its images are decoded. A fault is an error that is none of ours, a
message of more than three lines or with characters that cannot be printed, more than 10 seconds, or 2 GB. Each kind of
fault is printed once, and its input is left in the working folder; the minutes are those of the processor. Atheris is no
dependency (`pip install atheris`, which has wheels for some versions of Python only). The ordinary tests mutate the same
files with hypothesis.
"""
import argparse
import bz2
import gzip
import io
import json
import lzma
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fer_nb.data", "fer_nb.formats", "csv"]):
    import test_hostile as kinds
from PIL import Image

from fer_nb.core import FERError
from fer_nb.formats import read

warnings.simplefilter("ignore")


def door(make, up=None, **how):
    "A kind of test_hostile.py, read as a whole: its file, or the folder `up` levels above it."
    def kind(root):
        path = make(root)[0]
        return path, lambda broken: [*read(path if up is None else path.parents[up], broken=broken, single=True, **how).stream()]
    return kind


def alone(make):
    "A kind whose file is no data set."
    def kind(root):
        path, reader = make(root)
        return path, lambda broken: reader(path)
    return kind


def table(name, *lines):
    "A table of pixels of another form."
    return lambda root: (kinds.text(root / name, *lines), None)


def beside(make):
    "A list with the images that it names."
    def with_images(root):
        kinds.save_image(root / "a.png"), kinds.save_image(root / "b.png")
        return make(root)
    return with_images


def packed(pack):
    "FER2013's CSV, packed."
    def make(root):
        path = kinds.fer2013(root)[0]
        path.write_bytes(pack(path.read_bytes()))
        return path, None
    return make


def repacked(pack):
    "What is made is not the archive but its member: its name, a line feed, its content."
    def make(root):
        path = kinds.fer2013(root)[0]
        path.write_bytes(b"a/fer2013.csv\n" + path.read_bytes())

        def reader(broken):
            name, _, content = path.read_bytes().partition(b"\n")
            path.write_bytes(pack(content, name.decode("utf-8", "surrogateescape")))
            read(path, broken=broken)
        return path, reader
    return make


def zipped(content, name="fer2013.csv"):
    with zipfile.ZipFile(raw := io.BytesIO(), "w") as f:
        info = zipfile.ZipInfo("x")
        info.filename = name.encode("utf-8", "replace").decode() or "x"
        f.writestr(info, content), f.writestr("b.txt", "no table")
    return raw.getvalue()


def tarred(content, name="fer2013.csv"):
    with tarfile.open(fileobj=(raw := io.BytesIO()), mode="w:gz", compresslevel=1) as f:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        f.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def parquet(root):
    import pyarrow as pa
    import pyarrow.parquet as pq
    Image.fromarray(kinds.PICTURE[:8, :8]).save(raw := io.BytesIO(), "png")
    about = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["sad", "happy"]}}}}).encode()}
    rows = pa.table({"image": [{"bytes": raw.getvalue(), "path": "a"}] * 2, "label": [0, 1]}).replace_schema_metadata(about)
    root.mkdir()
    pq.write_table(rows, root / "train-00000-of-00001.parquet")
    return root / "train-00000-of-00001.parquet", None


def picture(ending, **how):
    def make(root):
        kinds.save_image(root / "happy/a.png"), kinds.save_image(root / "sad/b.png")
        path = root / f"happy/a{ending}"
        Image.fromarray(kinds.PICTURE).convert(how.pop("mode", "L")).save(path, **how)
        return path, None
    return make


def names(root):
    "What is made is the paths of five images, a line each."
    Image.fromarray(kinds.PICTURE[:8, :8]).save(raw := io.BytesIO(), "bmp")
    path = kinds.text(root / "paths", "train/happy/a.png", "train/sad/b.jpg", "val/Glück/c", "test/0/d.gif", "S005_001_00000011.png")

    def reader(broken):
        home = os.fsencode(root / "tree")
        shutil.rmtree(home, ignore_errors=True)
        for name in path.read_bytes().split(b"\n")[:8]:
            parts = [p[:200] for p in name.replace(b"\0", b"").split(b"/") if p not in (b"", b".", b"..")][:5]
            try:
                os.makedirs(os.path.join(home, *parts[:-1]), exist_ok=True)
                if parts:
                    with open(os.path.join(home, *parts), "wb") as f:
                        f.write(raw.getvalue())
            except OSError:  # a folder of that name is there
                pass
        read(root / "tree", broken=broken)
    return path, reader


FER, ROW = "emotion,pixels,Usage", kinds.ROW
GROUPS = {
    "pixels": [door(kinds.fer2013), door(kinds.fer2013, 0), door(table("train.csv", "emotion,pixels", f"3,{ROW}", f"6.0,{ROW}")),
               door(table("ckextended.csv", FER, f"7,{ROW}, Training", f"3,{ROW},PublicTest")), door(table("x.csv", f"3,{ROW},Training")),
               door(kinds.fer2013, labels="0=happy,3=sad")],
    "votes": [door(kinds.ferplus, 1), alone(kinds.votes), alone(kinds.probabilities), alone(kinds.decisions)],
    "lists": [door(kinds.listed), door(kinds.listed, 0), door(kinds.listed_json), door(beside(table("list.txt", "a.png happy", "b.png sad")))],
    "packed": [door(packed(gzip.compress)), door(packed(zipped)), door(packed(tarred)), door(packed(bz2.compress)), door(packed(lzma.compress)),
               repacked(zipped), repacked(tarred), door(parquet)],
    "large": [door(kinds.affectnet_arrays, 2), door(kinds.affectnet, 0), door(kinds.rafdb, 1), door(kinds.rafdb_codes, 2),
              door(kinds.rafdb_mirror, 0)],
    "boxes": [door(kinds.boxes, 1), door(kinds.yolo, 1), door(kinds.yaml_names, 0), door(kinds.peaks, 3)],
    "images": [door(picture(".png"), 1), door(picture(".png", mode="P"), 1), door(picture(".jpg"), 1), door(picture(".jpg", mode="RGB"), 1),
               door(picture(".gif"), 1), door(picture(".tif"), 1), door(picture(".webp", mode="RGB"), 1), door(picture(".bmp"), 1),
               door(picture(".pgm"), 1), door(kinds.kdef, 1)],
    "names": [names],
}


def fault(e):
    "What is wrong with an error or its message; an empty text: nothing."
    if not isinstance(e, FERError):
        where = traceback.extract_tb(e.__traceback__)
        own = [f for f in where if "fer_nb" in f.filename] or where
        return f"{type(e).__name__} at {Path(own[-1].filename).name}:{own[-1].name}:{own[-1].lineno}: {str(e)[:200]!r}"
    text = str(e)
    odd = "unprintable" * (not text.replace("\n", "").isprintable()) + f" {text.count(chr(10)) + 1} lines" * (text.count("\n") > 2)
    tb = [f for f in traceback.extract_tb(e.__traceback__) if "fer_nb" in f.filename]
    return odd and f"message: {odd} from {tb[-1].name}, {tb[-2].name if len(tb) > 1 else ''}"


def main():
    "Fuzz one group, and say what was found."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    os.environ["FER_NB_CACHE"] = str(folder / "cache")
    (folder / "corpus").mkdir()
    made = [make(folder / f"kind{k}") for k, make in enumerate(GROUPS[options.group])]
    for k, (path, reader) in enumerate(made):
        (folder / f"corpus/valid{k}").write_bytes(bytes([k]) + path.read_bytes())
        try:
            reader("error")
        except FERError as e:
            print(f"valid {k}: {e}", flush=True)
    sys.stderr = open(os.devnull, "w")  # warnings of the command
    runs, found, began = [0, 0, 0.0], {}, time.process_time()

    def one(data):
        "Read these bytes in the place of a valid file; the first says which, and how."
        runs[0] += 1
        k = data[0] if data else 0
        path, reader = made[k % len(made)]
        path.write_bytes(data[1:])
        what, cpu = "", time.process_time()
        try:
            reader(("error", "drop", "any")[k // 64 % 3])
            runs[1] += 1
        except Exception as e:
            what = fault(e)
        took = time.process_time() - cpu
        runs[2] = max(runs[2], took)
        what = what or f"{took:.0f} s" * (took > 10)
        key = what.partition(": '")[0]
        if what and key not in found:
            found[key] = what
            (folder / f"fault{len(found)}").write_bytes(data)
            print(f"FAULT {what}\n  {folder}/fault{len(found)} (kind {k % len(made)})", flush=True)
        if (minutes := (time.process_time() - began) / 60) > options.minutes:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{options.group}: {minutes:.1f} minutes, {runs[0]:,} inputs, {runs[1]:,} of them read, {len(found)} faults, "
                  f"the slowest {runs[2]:.2f} s, {peak:.2f} GB", flush=True)
            os._exit(bool(found))

    atheris.Setup([sys.argv[0], "-rss_limit_mb=2560", "-timeout=60", "-max_len=40000", f"-artifact_prefix={folder}/",
                   "-verbosity=0", str(folder / "corpus")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""FER2013 in a fifth of its size, for a rented card to which files have to be carried.

    python benchmarks/card_folder.py pack fer2013.csv fer2013new.csv FOLDER     # here
    python benchmarks/card_folder.py unpack FOLDER DATA                         # there: the two files again, to the byte
    python benchmarks/card_folder.py search DATA FOLDER/cache                   # here, minutes: what `audit` finds, to be read there

The images go into PNG files of 4,096, which is four fifths of what NumPy's compressed files take. What `search` finds is read by the
same code alone; there, `FER_NB_CACHE=FOLDER/cache`, and `FER_NB_COMMIT` for the records of a copy without `.git`.
"""
from __future__ import annotations

import argparse
import gzip
import os
import sys
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

from fer_nb.core import file_sha256

SIDE, ACROSS, MANY = 48, 64, 4096
WORDS = [str(k) for k in range(256)]


def pack(
    csv: Path,      # emotion,pixels,Usage
    votes: Path,    # FER+'s, a row an image
    folder: Path,   # gets the files
) -> None:
    "Pixels as pictures, the other columns as they are."
    folder.mkdir(parents=True, exist_ok=True)
    images, rest = [], []
    with open(csv, encoding="ascii", newline="") as file:
        head = next(file)
        for line in file:
            emotion, pixels, usage = line.split(",")
            images.append(np.array(pixels.split(), np.uint8))
            rest.append(f"{emotion},{usage}")
    for k in range(0, len(images), MANY):
        part = np.zeros((MANY, SIDE, SIDE), np.uint8)
        part[:len(images[k:k + MANY])] = np.reshape(images[k:k + MANY], (-1, SIDE, SIDE))
        whole = part.reshape(-1, ACROSS, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(-1, ACROSS * SIDE)
        Image.fromarray(whole).save(folder / f"faces-{k:06}.png", optimize=True)
    for name, data in (("rows.gz", (head + "".join(rest)).encode()), ("votes.gz", votes.read_bytes())):
        (folder / name).write_bytes(gzip.compress(data, 9, mtime=0))
    (folder / "sums.txt").write_text("".join(f"{file_sha256(path)}\n" for path in (csv, votes)))


def lines_of(
    path: Path,       # one of the pictures
) -> list[str]:       # of each image its pixels as they stand in the CSV
    "Pictures as text."
    whole = np.asarray(Image.open(path)).reshape(-1, SIDE, ACROSS, SIDE).transpose(0, 2, 1, 3)
    return [" ".join(map(WORDS.__getitem__, row)) for row in whole.reshape(-1, SIDE * SIDE).tolist()]


def unpack(
    folder: Path,   # from `pack`
    data: Path,     # gets fer2013.csv and fer2013new.csv
) -> None:
    "The two files again."
    data.mkdir(parents=True, exist_ok=True)
    head, *rest = gzip.decompress((folder / "rows.gz").read_bytes()).decode().splitlines(keepends=True)
    pictures = [folder / f"faces-{k:06}.png" for k in range(0, len(rest), MANY)]
    with Pool(os.cpu_count()) as pool, open(data / "fer2013.csv", "w", encoding="ascii", newline="") as file:
        file.write(head)
        texts = (text for part in pool.imap(lines_of, pictures) for text in part)
        for row, text in zip(rest, texts):
            emotion, usage = row.split(",")
            file.write(f"{emotion},{text},{usage}")
    (data / "fer2013new.csv").write_bytes(gzip.decompress((folder / "votes.gz").read_bytes()))
    for name, expected in zip(("fer2013.csv", "fer2013new.csv"), (folder / "sums.txt").read_text().split()):
        if file_sha256(data / name) != expected:
            sys.exit(f"{data / name}: not the file that was packed (SHA-256 {expected} expected); its rows are written otherwise, or "
                     "a file of the folder is another's")


def search(
    data: Path,     # with the two files
    cache: Path,    # gets what was found
) -> None:
    "The duplicates among FER2013's images, and among those that FER+ keeps."
    os.environ["FER_NB_CACHE"] = str(cache.absolute())
    from fer_nb.audit import audit
    from fer_nb.data import read_ferplus
    from fer_nb.formats import read
    ds = read(data / "fer2013.csv", data / "fer2013new.csv")
    for images in (ds, read_ferplus(data / "fer2013new.csv", ds)):
        print(images, len(audit(images).duplicates), "pairs", flush=True)


def main() -> None:
    "One of the three."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("pack", "unpack", "search"))
    p.add_argument("paths", type=Path, nargs="+")
    o = p.parse_args()
    if len(o.paths) != 2 + (o.what == "pack"):
        sys.exit(f"{o.what}: {len(o.paths)} paths; see --help")
    {"pack": pack, "unpack": unpack, "search": search}[o.what](*o.paths)


if __name__ == "__main__":
    main()

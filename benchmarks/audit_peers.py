"""How many copies that people make are found, change by change, by this package and by others, at as many wrong pairs.

The changes are those of `fer_nb.copies`; the pictures FER2013's Training images that no search pairs, and drawn faces."""
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import arguments, fer2013, machine, save, sheet
from PIL import Image

from fer_nb.copies import CHANGES, Recall, planted_sets, recall
from fer_nb.data import FERData
from fer_nb.duplicates import find_duplicates
from fer_nb.metrics import share_interval
from fer_nb.synth import make_faces

Search = Callable[[FERData], pd.DataFrame]
HASHES = {"imagededup PHash": "PHash", "imagededup DHash": "DHash", "imagededup AHash": "AHash", "imagededup WHash": "WHash"}
CNN = "imagededup CNN (EfficientNet-Lite0)"
SLOW = (CNN, "imagededup WHash")
DEFAULTS = {**dict.fromkeys(HASHES, 10), CNN: .90}  # thresholds of imagededup
BEFORE = """
import sys, warnings, numpy as np, pandas as pd
warnings.simplefilter("ignore")
from fer_nb.data import FERData
from fer_nb.duplicates import find_duplicates
x = np.load(sys.argv[1])
df = pd.DataFrame({"id": np.arange(len(x)).astype(str), "label": "happy", "split": "train"})
find_duplicates(FERData(df, x)).to_csv(sys.argv[2], index=False)
"""


TARGETS = {**dict.fromkeys(("JPEG 10", "half size", "blur 1", "noise 10", "brightness 1.5", "equalise",
                            "mirror, brightness 1.4", "stretch 110 %", "shift 3 px", "shift 4 px"), .98),
           **dict.fromkeys(("rotation 3°", "rotation 5°", "crop 15 %", "corner crop 10 %"), .97),
           **dict.fromkeys(("rotation 10°", "shift 6 px"), .93), "crop 20 %": .85, "turn, mirror or border": .95,
           **dict.fromkeys(("blur 2", "noise 25", "text across", "frame 3 px"), .90)}


def before(
    folder: Path,  # another version of the package
) -> Search:
    "That version's search with its default settings, in a process of its own."
    def search(ds: FERData) -> pd.DataFrame:
        with tempfile.TemporaryDirectory() as place:
            images, pairs = Path(place, "images.npy"), Path(place, "pairs.csv")
            np.save(images, ds.array())
            subprocess.run([sys.executable, "-c", BEFORE, images, pairs], check=True, cwd=place,
                           env=os.environ | {"PYTHONPATH": str(folder.resolve())})
            return pd.read_csv(pairs)
    return search


def pairs_below(
    codes: np.ndarray,  # uint8 (N, bytes)
    distance: int,      # bits that may differ
) -> pd.DataFrame:      # i, j, how, score (bits that differ, negative)
    "All pairs of codes that differ in few bits, a band of rows at a time."
    words, found = codes.view(np.uint64).reshape(len(codes), -1), []
    for top in range(0, len(words), 512):
        apart = np.bitwise_count(words[top:top + 512, None] ^ words[None, top:]).sum(2)
        i, j = np.nonzero(apart <= distance)
        found.append(np.stack([i + top, j + top, -apart[i, j].astype(int)], 1)[i < j])
    return pd.DataFrame(np.concatenate(found), columns=["i", "j", "score"]).assign(how="near")


def hashed(
    method: str,             # PHash, DHash, AHash or WHash of imagededup
) -> Callable[[int], Search]:  # distance -> search
    "imagededup's own codes; what its `find_duplicates` does with them, for all pairs."
    import imagededup.methods
    encode = getattr(imagededup.methods, method)(verbose=False).encode_image
    known = {}

    def codes(ds: FERData) -> np.ndarray:
        for image in ds.array():
            key = image.tobytes()
            if key not in known:
                known[key] = np.frombuffer(bytes.fromhex(encode(image_array=image)), np.uint8)
        return np.stack([known[image.tobytes()] for image in ds.array()])
    return lambda distance: lambda ds: pairs_below(codes(ds), distance)


def plain_phash() -> Callable[[int], Search]:  # distance -> search
    "The 64-bit perceptual hash of the library imagehash."
    from imagehash import phash
    return lambda distance: lambda ds: pairs_below(np.packbits(np.stack(
        [phash(Image.fromarray(image)).hash.ravel() for image in ds.array()]), axis=1), distance)


def cnn() -> Callable[[float], Search]:  # least cosine -> search
    "imagededup's CNN method on EfficientNet-Lite0's ImageNet features: its own weights need a download."
    from fer_nb.models import create_teacher
    net = create_teacher("efficientnet_lite0").net.eval().to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(net.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    known = {}

    @torch.inference_mode()
    def features(ds: FERData) -> torch.Tensor:
        new = {image.tobytes(): image for image in ds.array() if image.tobytes() not in known}
        for k in range(0, len(new), 64):
            part = dict(list(new.items())[k:k + 64])
            x = torch.stack([torch.from_numpy(np.array(Image.fromarray(i).convert("RGB").resize((224, 224)))) for i in part.values()])
            x = ((x.permute(0, 3, 1, 2) / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            known.update(zip(part, torch.nn.functional.normalize(net.forward_head(net.forward_features(x), pre_logits=True))))
        return torch.stack([known[image.tobytes()] for image in ds.array()])

    def search(ds: FERData, least: float) -> pd.DataFrame:
        v = features(ds)
        found = []
        for top in range(0, len(v), 1024):
            cosine = v[top:top + 1024] @ v[top:].T
            i, j = (cosine >= least).nonzero(as_tuple=True)
            keep = i < j
            found.append(pd.DataFrame({"i": (i + top)[keep], "j": (j + top)[keep], "score": cosine[i, j][keep]}))
        return pd.concat(found, ignore_index=True).assign(how="near")
    return lambda least: lambda ds: search(ds, least)


def cleanvision(
    ds: FERData,        # grey pictures
) -> pd.DataFrame:      # i, j, how
    "cleanvision's exact and near duplicates with its default settings, from PNG files."
    from cleanvision import Imagelab
    with tempfile.TemporaryDirectory() as folder:
        for k, image in enumerate(ds.array()):
            Image.fromarray(image).save(Path(folder, f"{k:06}.png"))
        lab = Imagelab(data_path=folder, verbose=False)
        lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
        sets = [s for kind in ("exact_duplicates", "near_duplicates") for s in lab.info[kind]["sets"]]
    groups = [sorted(int(Path(path).stem) for path in group) for group in sets]
    pairs = sorted({(i, j) for g in groups for a, i in enumerate(g) for j in g[a + 1:]})
    return pd.DataFrame(pairs, columns=["i", "j"]).assign(how="near")


def as_wrong(
    search_at: Callable[[float], Search],  # threshold -> search
    singles: FERData,                      # different pictures
    allowed: int,                          # wrong pairs
    loose: float,                          # a threshold with more
) -> tuple[float, int]:                    # threshold, its wrong pairs
    "The loosest threshold that reports at most `allowed` pairs of different pictures."
    scores = np.sort(search_at(loose)(singles).score.to_numpy())[::-1]
    first = scores[allowed] if len(scores) > allowed else -np.inf   # the first score that is one too many
    kept = scores[scores > first]
    if loose >= 1:                                                  # bits: whole numbers
        return int(-first - 1 if np.isfinite(first) else loose), len(kept)
    return float(np.nextafter(np.float32(first), np.float32(2)) if np.isfinite(first) else loose), len(kept)


def contestants(
    wanted: list[str],         # names or beginnings; empty: all
    old: Path | None,          # another version of the package
) -> dict[str, object]:        # name -> a search, or (threshold -> search, a loose threshold)
    "Everybody that is installed; the others are named."
    makers = {"fer_nb": lambda: find_duplicates,
              "fer_nb before": lambda: before(old) if old else None,
              "pHash, 64 bits (imagehash)": lambda: (plain_phash(), 14),
              **{name: lambda m=m: (hashed(m), 14) for name, m in HASHES.items()},
              CNN: lambda: (cnn(), .90), "cleanvision (default)": lambda: import_module("cleanvision") and cleanvision}
    run = {}
    for name, make in makers.items():
        if wanted and name not in wanted:
            continue
        try:
            run[name] = make()
        except ImportError as e:
            print(f"left out: {name}: {e}")
    return {name: what for name, what in run.items() if what is not None}


@cache
def pool(
    data: str,              # "FER2013" or "drawn"
    singles: Path | None,   # positions of FER2013's Training images that no search pairs, as a .npy file
    old: Path | None,       # another version of the package, which must call them single too
) -> FERData:               # different pictures
    "Pictures of which no two are the same photograph, as far as the searches say."
    if data == "drawn":
        return make_faces(15_000, seed=5, defects=None)[0]
    real = fer2013(0).where(split="train")
    if singles is None or not singles.exists():
        searches = [find_duplicates] + [before(old)] * bool(old)
        paired = set(np.concatenate([s(real)[["i", "j"]].to_numpy().ravel() for s in searches]).tolist())
        rows = np.array([k for k in range(len(real)) if k not in paired])
        if singles:
            np.save(singles, rows)
    rows = np.load(singles) if singles else rows
    return real.take(rows)


SIZES = {  # list: copies of a change, other images
    "targets": (200, 4000), "test": (40, 2000), "scripts": (40, 1000), "development": (20, 1000)}
SMALL = {"targets": (40, 1000), "test": (20, 1000), "scripts": (40, 1000)}   # for what takes long


def cpu() -> float:  # seconds
    "Processor time of this process and of those that it has waited for."
    return sum(os.times()[:4])


def set_up(
    name: str,         # a contestant
    what: object,      # see `contestants`
    ds: FERData,       # different pictures
    allowed: float,    # wrong pairs in 10,000 images
    apart: int,        # how many of the pictures to set it on
) -> tuple[Search, dict]:  # as it runs; how it was set, and what it reports of different pictures
    "The search of a contestant at its threshold for as many wrong pairs; those without a threshold as they are."
    apart, setting, start = min(len(ds), 3000 if name in SLOW else apart), {}, cpu()
    singles = ds.take(np.linspace(0, len(ds) - 1, apart).astype(int))
    if isinstance(what, tuple):
        search_at, loose = what
        threshold, _ = as_wrong(search_at, singles, round(allowed * apart / 10_000), loose)
        what, setting = search_at(threshold), {"threshold": round(threshold, 5)}
        if name in DEFAULTS:
            default = DEFAULTS[name]
            setting |= {"default": default, "pairs_of_different_images_by_default": len(search_at(default)(singles))}
    alone = what(singles)
    reported = {"different_images": apart, "pairs_of_different_images": int((alone.how != "similar").sum()),
                "similar_pairs_of_different_images": int((alone.how == "similar").sum())}
    return what, setting | reported | {"cpu_seconds": round(cpu() - start, 1)}


def runs(
    part: str,     # a list of `CHANGES`
    small: bool,   # for what takes long
    half: bool,    # half as many
) -> Iterator[tuple[dict, int, int]]:  # changes, copies of each, other images
    "The searches of a list; the first script as a leak: 3,000 training images and 300 copies of 300 test images."
    each, others = (n // (1 + half) for n in (SMALL if small else SIZES)[part])
    changes = dict(CHANGES[part])
    if part == "scripts" and not small:
        first = next(iter(changes))
        yield {first: changes.pop(first)}, 300, 3000
    yield changes, each, others


@cache
def planted_lists(
    ds: FERData,    # different pictures
    data: str,      # their name in the result
    part: str,      # a list of `CHANGES`
    small: bool,    # for what takes long
) -> list[list]:    # see `copies.planted_sets`
    "The planted copies of a list, made once for all contestants."
    return [planted_sets(ds, changes, each, others, at_once=60, seed=list(CHANGES).index(part))
            for changes, each, others in runs(part, small, data == "drawn")]


def drawn(
    found: Recall,   # of a contestant
    sets: list,      # that it searched
    folder: Path,    # where to put it
    name: str,       # of the files
) -> None:
    "Other pairs than the planted ones, for reading by eye."
    wrong = found.wrong[found.wrong.how != "similar"].reset_index(drop=True)
    both = np.concatenate([sets[row.search][0].array()[[row.i, row.j]] for row in wrong.itertuples()] or [np.zeros((0, 48, 48))])
    wrong = wrong.assign(number=wrong.index, at=wrong.i.astype(str) + " " + wrong.j.astype(str), i=2 * wrong.index, j=2 * wrong.index + 1)
    wrong.to_csv(folder / f"{name}.csv", index=False)
    for k in range(0, len(wrong), 49):
        sheet(both, wrong[k:k + 49], folder / f"{name} {k // 49}.png")


def measure(
    name: str,      # a contestant
    what: Search,   # as it was set
    ds: FERData,    # different pictures
    data: str,      # their name in the result
    part: str,      # a list of `CHANGES`
    small: bool,    # for what takes long
    sheets: Path | None = None,  # folder for contact sheets of pairs that were not planted
) -> tuple[list[dict], dict]:  # rows; pairs that were not planted
    "One contestant on one list."
    rows, wrong, images, start = [], 0, 0, cpu()
    for sets in planted_lists(ds, data, part, small):
        found = recall(what, sets)
        interval = share_interval(found.table.recall, found.table.made)
        for row, low, high in zip(found.table.to_dict("records"), *interval):
            rows.append({"what": name, "data": data, "list": part, **row, "low": low, "high": high})
        if sheets:
            drawn(found, sets, sheets, f"{name} {data} {part} {len(sets[0][1])}")
        wrong, images = wrong + int((found.wrong.how != "similar").sum()), images + found.images
    mean = np.mean([row["recall"] for row in rows])
    print(f"{name}, {data}, {part}: {mean:.3f}; {wrong} other pairs in {images:,} images", flush=True)
    return rows, {"list": part, "images": images, "other_pairs": wrong, "cpu_seconds": round(cpu() - start, 1)}


def whole(
    name: str,      # a contestant
    what: Search,   # as it was set
) -> dict[str, object]:
    "What a contestant reports on all of FER2013 that there is, and how long it takes."
    ds, start = fer2013(0), cpu()
    found = what(ds)
    seconds = cpu() - start
    return {"what": name, "images": len(ds), "cpu_seconds": round(seconds, 1), "pairs": found.how.value_counts().to_dict()}


def main() -> None:
    "Run the benchmark; contestants that are not run now keep their rows."
    parser = arguments("audit_peers", __doc__, 0, 1)
    parser.add_argument("--only", nargs="*", default=[], help="contestants, by name (default all)")
    parser.add_argument("--lists", nargs="*", default=list(SIZES), help="lists of changes")
    parser.add_argument("--data", nargs="*", default=["FER2013", "drawn"])
    parser.add_argument("--before", type=Path, help="folder with an earlier version of the package")
    parser.add_argument("--singles", type=Path, help="file that keeps which images are single")
    parser.add_argument("--wrong", type=float, default=1, help="wrong pairs allowed in 10,000 images")
    parser.add_argument("--small", action="store_true", help="few copies for every contestant")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets of pairs that were not planted")
    parser.add_argument("--apart", type=int, default=10_000, help="different pictures without a copy")
    parser.add_argument("--whole", action="store_true", help="all of FER2013 too")
    options = parser.parse_args()
    there = json.loads(options.out.read_text()) if options.out.exists() else {}
    settings, rows, real = (there.get(k, [] if k != "settings" else {}) for k in ("settings", "changes", "whole"))
    for data, (name, what) in itertools.product(options.data, contestants(options.only, options.before).items()):
        ds = pool(data, options.singles, options.before)
        search, setting = set_up(name, what, ds, options.wrong, options.apart)
        package = {"imagededup": "imagededup", "cleanvision": "cleanvision", "pHash": "imagehash"}.get(name.split()[0].strip(","))
        settings[f"{name}; {data}"] = setting | ({"version": version(package)} if package else {})
        print(name, data, setting, flush=True)
        for part in [p for p in options.lists if p in (SMALL if options.small or name in SLOW else SIZES)]:
            new, cost = measure(name, search, ds, data, part, options.small or name in SLOW, options.sheets)
            new = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in new]
            rows = [r for r in rows if (r["what"], r["data"], r["list"]) != (name, data, part)] + new
            settings[f"{name}; {data}"].setdefault("lists", []).append(cost)
            settings["targets"] = TARGETS
            save(options.out, {"settings": settings, "machine": machine(), "changes": rows, "whole": real})
        if options.whole and data == "FER2013" and name not in SLOW:
            real = [r for r in real if r["what"] != name] + [whole(name, search)]
        save(options.out, {"settings": settings, "machine": machine(), "changes": rows, "whole": real})
    table = pd.DataFrame(rows).pivot_table(index=["data", "list"], columns="what", values="recall", sort=False)
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()

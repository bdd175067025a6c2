"""The search for duplicates beside imagededup and cleanvision, on the same files: images a second, and what each finds."""
import importlib
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import arguments, fer2013, machine
from PIL import Image

from fer_nb.data import FERData
from fer_nb.models import create_teacher
from fer_nb.synth import make_faces
from fer_nb.duplicates import find_duplicates

PEERS = {"imagededup": "0.3.3.post2", "cleanvision": "0.3.7"}
ADVICE = "pip install imagededup==0.3.3.post2 cleanvision==0.3.7, best in an environment of its own that also sees fer_nb"
Pairs = set[tuple[int, int]]
Contestant = Callable[[FERData, Path], tuple[Pairs, float]]


def as_files(
    ds: FERData,   # grey pictures
    folder: Path,  # where to write them
) -> FERData:      # the same pictures as PNG files named by position
    "The dataset as files, which is what the peers read."
    paths = [folder / f"{k:06}.png" for k in range(len(ds))]
    for path, image in zip(paths, ds.array()):
        Image.fromarray(image).save(path)
    return FERData(ds.df, paths, ds.labels, ds.name)


def within(
    groups: Iterable[Iterable[int]],  # positions
) -> Pairs:                           # all pairs of each group
    "Pairs i < j."
    return {pair for group in groups for pair in itertools.combinations(sorted(set(group)), 2)}


def ours(
    ds: FERData,   # files
) -> tuple[Pairs, float]:  # every pair, not each copy with its first only; seconds spent earlier
    "fer_nb: default settings; what holds for a picture holds for its identical copies."
    duplicates = find_duplicates(ds)
    exact = duplicates[duplicates.how == "exact"]
    copies = {i: [i, *group] for i, group in exact.groupby("i").j}
    pairs = within(copies.values())
    for i, j in duplicates.loc[duplicates.how != "exact", ["i", "j"]].to_numpy().tolist():
        pairs |= {(min(p), max(p)) for p in itertools.product(copies.get(i, [i]), copies.get(j, [j]))}
    return pairs, 0.


def named(
    found: dict[str, list[str]],  # file name -> names of its duplicates
) -> Pairs:                       # the same by position
    "imagededup's answer as pairs."
    at = {name: int(Path(name).stem) for name in found}
    return {(min(p), max(p)) for name, others in found.items() for p in ((at[name], at[o]) for o in others)}


def encoded(
    folder: Path,                        # files
    name: str,                           # of the method, to encode once for several thresholds
    encode: Callable[[], dict],          # does it
    cache: dict = {},                    # (folder, name) -> encodings, seconds
) -> tuple[dict, float]:                 # encodings; seconds that they took if they were there already, else 0
    "The encodings of a folder, computed once."
    if (folder, name) in cache:
        return cache[folder, name]
    start = time.perf_counter()
    encodings = encode()
    cache[folder, name] = encodings, time.perf_counter() - start
    return encodings, 0.


def phash(
    folder: Path,   # files
    distance: int,  # bits that may differ
) -> tuple[Pairs, float]:  # found; seconds spent earlier
    "imagededup's perceptual hash."
    from imagededup.methods import PHash
    method, workers = PHash(verbose=False), torch.get_num_threads()
    hashes, earlier = encoded(folder, "PHash", lambda: method.encode_images(str(folder), num_enc_workers=workers))
    found = method.find_duplicates(encoding_map=hashes, max_distance_threshold=distance, num_dist_workers=workers)
    return named(found), earlier


def cnn(
    folder: Path,       # files
    similarity: float,  # least cosine
) -> tuple[Pairs, float]:  # found; seconds spent earlier
    "imagededup's CNN method on EfficientNet-Lite0's ImageNet features (its own weights need a download)."
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel
    from torchvision import transforms as T
    net = create_teacher("efficientnet_lite0").net.eval().to(memory_format=torch.channels_last)
    cfg = net.pretrained_cfg
    transform = T.Compose([T.Resize((224, 224)), T.ToTensor(), T.Normalize(cfg["mean"], cfg["std"])])

    class Features(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.contiguous(memory_format=torch.channels_last)
            return net.forward_head(net.forward_features(x), pre_logits=True)

    method = CNN(verbose=False, model_config=CustomModel("efficientnet_lite0", Features(), transform))
    features, earlier = encoded(folder, "CNN", lambda: method.encode_images(str(folder)))
    found = method.find_duplicates(encoding_map=features, min_similarity_threshold=similarity, num_sim_workers=0)
    return named(found), earlier


def cleanvision(
    folder: Path,  # files
) -> tuple[Pairs, float]:  # found; seconds spent earlier
    "cleanvision's exact and near duplicates, default settings."
    from cleanvision import Imagelab
    lab = Imagelab(data_path=str(folder), verbose=False)
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=torch.get_num_threads(), verbose=False)
    sets = [s for kind in ("exact_duplicates", "near_duplicates") for s in lab.info[kind]["sets"]]
    return within([[int(Path(path).stem) for path in group] for group in sets]), 0.


def contestants() -> dict[str, tuple[str, Contestant]]:  # name -> package, what to run
    "Everybody, installed or not."
    return {"fer_nb": ("fer_nb", lambda ds, folder: ours(ds)),
            "imagededup PHash, 10 bits (default)": ("imagededup", lambda ds, folder: phash(folder, 10)),
            "imagededup PHash, 4 bits": ("imagededup", lambda ds, folder: phash(folder, 4)),
            "imagededup CNN, 0.90 (default)": ("imagededup", lambda ds, folder: cnn(folder, .90)),
            "imagededup CNN, 0.97": ("imagededup", lambda ds, folder: cnn(folder, .97)),
            "cleanvision (default)": ("cleanvision", lambda ds, folder: cleanvision(folder))}


def usable() -> dict[str, Contestant]:  # name -> what to run
    "The contestants that are installed; the others are named."
    run, missing = {}, {}
    for name, (package, what) in contestants().items():
        try:
            importlib.import_module(package if package != "imagededup" else "imagededup.methods")
            run[name] = what
        except ImportError as e:
            missing[name] = str(e)
    if missing:
        print(f"left out: {missing}\n{ADVICE}")
    logging.disable(logging.INFO)
    return run


def timed(
    what: Contestant,  # a contestant
    ds: FERData,                             # files
) -> tuple[Pairs, float]:                    # what it found, seconds
    "Run one contestant on the files."
    start = time.perf_counter()
    pairs, earlier = what(ds, Path(ds._images[0]).parent)
    return pairs, earlier + time.perf_counter() - start


def planted(
    ds: FERData,          # from `make_faces`
    truth: pd.DataFrame,  # what was planted in it
) -> tuple[Pairs, set[int]]:  # pairs that show the same picture; positions without a face, which do not count
    "The copies of one face are one group."
    from scipy.cluster.hierarchy import DisjointSet
    at = {id: k for k, id in enumerate(ds.df.id)}
    groups = DisjointSet(range(len(ds)))
    copies = truth[truth.kind.isin(["duplicate", "leak", "multilabel"])]
    for a, b in zip(copies.id, copies.partner):
        groups.merge(at[a], at[b])
    return within(groups.subsets()), {at[id] for id in truth.id[truth.kind == "no_face"]}


def score(
    found: Pairs,    # by a contestant
    true: Pairs,     # planted
    ignore: set[int],  # positions that do not count
) -> dict[str, float]:  # recall and precision of pairs and of images
    "Compare."
    found = {p for p in found if not ignore & set(p)}
    images, those = set(itertools.chain(*found)), set(itertools.chain(*true))
    return {"pair_recall": len(found & true) / len(true), "pair_precision": len(found & true) / max(1, len(found)),
            "image_recall": len(images & those) / len(those),
            "image_precision": len(images & those) / max(1, len(images))}


def main() -> None:
    "Run the benchmark."
    parser = arguments("audit_peers", __doc__, 0, 1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12], help="seeds of the planted sets")
    parser.add_argument("--planted", type=int, default=1500, help="images of a planted set")
    parser.add_argument("--cnn-images", type=int, default=4000, help="at most so many real images for the CNN")
    options = parser.parse_args()
    run, rows, real = usable(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            (place := Path(folder) / f"seed{seed}").mkdir()
            faces, truth = make_faces(options.planted, seed=seed)
            files, (true, ignore) = as_files(faces, place), planted(faces, truth)
            for name, what in run.items():
                pairs, seconds = timed(what, files)
                row = {"what": name, "seed": seed, "images_per_s": len(files) / seconds}
                rows.append(row | score(pairs, true, ignore))
        for count in dict.fromkeys((options.images, options.cnn_images)):
            (place := Path(folder) / f"real{count}").mkdir()
            files = as_files(fer2013(count), place)
            first = None
            for name, what in run.items():
                if " CNN" in name and len(files) > options.cnn_images:
                    continue
                pairs, seconds = timed(what, files)
                first = pairs if first is None else first
                real.append({"what": name, "images": len(files), "seconds": round(seconds, 1),
                             "images_per_s": round(len(files) / seconds), "pairs": len(pairs),
                             "in_common_with_fer_nb": len(pairs & first)})
                print(real[-1], flush=True)
    table = pd.DataFrame(rows).groupby("what", sort=False).mean().drop(columns="seed")
    table["images_per_s"] = table.images_per_s.round()
    print(table.round(3).to_string())
    settings = {"seeds": options.seeds, "planted_images": options.planted, "data": fer2013(7).name,
                "peers": {name: version(name) for name in PEERS if any(n.startswith(name) for n in run)}}
    results = {"planted": table.round(3).reset_index().to_dict("records"), "real": real}
    options.out.write_text(json.dumps({"settings": settings, "machine": machine()} | results, indent=1) + "\n")


if __name__ == "__main__":
    main()

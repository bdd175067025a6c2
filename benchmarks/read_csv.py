"""FER2013's CSV to pixels: `read_fer2013`, pandas with a NumPy split of every row, and `read_fer2013` of another checkout.

    python benchmarks/read_csv.py --before OLD     # OLD: a folder with fer_nb in it; FER_NB_DATA: that of fer2013.csv

Processor seconds; each reading is a process of its own, so that neither inherits the memory of the other."""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import HERE, arguments, fer2013, report, take_turns

from fer_nb.core import EMOTIONS
from fer_nb.data import real_data

READER = "from fer_nb.data import read_fer2013\ndef read(path): return read_fer2013(path).array()"
SPLIT = """import numpy as np, pandas as pd
def read(path):
    df = pd.read_csv(path)
    return np.array([np.array(text.split(), np.uint8) for text in df.pixels]).reshape(-1, 48, 48)"""
TIMED = """
import sys, time
began = time.process_time()
images = read(sys.argv[1])
print(time.process_time() - began, len(images), int(images.sum(dtype="int64")))"""


def seconds(
    code: str,      # defines `read`
    path: Path,     # the CSV
    tree: Path,     # where fer_nb is
    sums: set,      # what was read, to which this is added
) -> float:         # of the processor, without imports
    "Read once, in a process of its own."
    env = os.environ | {"PYTHONPATH": str(tree), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code + TIMED, str(path.resolve())], env=env, cwd=tree,  # -c looks there first
                          capture_output=True, text=True, check=True)
    took, *found = done.stdout.split()[-3:]
    sums.add(tuple(found))
    assert len(sums) == 1, f"two readers disagree: {sums}"
    return float(took)


def main() -> None:
    "Run the benchmark."
    parser = arguments("read_csv", __doc__, 0, 5)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--before", type=Path, help="another checkout, whose reader takes part")
    options = parser.parse_args()
    real, sums = real_data("fer2013.csv"), set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fer2013.csv"
        if real and not options.images:
            path = real / "fer2013.csv"
        else:
            ds = fer2013(options.images)
            rows = zip(ds.df.label, ds.array(), ds.df.split)
            path.write_text("emotion,pixels,Usage\n" + "".join(
                f"{EMOTIONS.index(e)},{' '.join(map(str, im.ravel()))},{'Training' if s == 'train' else 'PublicTest'}\n" for e, im, s in rows))
        turns = {"read_fer2013": lambda: seconds(READER, path, HERE.parent, sums),
                 "read_csv and split": lambda: seconds(SPLIT, path, HERE.parent, sums)}
        if options.before:
            turns["read_fer2013, before"] = lambda: seconds(READER, path, options.before.resolve(), sums)
        times = take_turns(turns, options.repeats)
        n = int(next(iter(sums))[0])
        others = [name for name in turns if name != "read_fer2013"]
        report(times, {name: "read_fer2013" for name in others}, {"images": n, "repeats": options.repeats}, options.out, rate=n)


if __name__ == "__main__":
    main()

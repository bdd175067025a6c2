"""What the first answer of a new process costs: processor seconds and memory of one photograph, from start to end.

    python benchmarks/first_answer.py                        # with the packages that are here
    python benchmarks/first_answer.py --python ENV/bin/python  # with those of another environment, such as the short list of page 51
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import HERE, machine, photograph, save
from PIL import Image

from fer_nb.shipped import shipped_weights

WAYS = {"fer-nb predict photo.png": ["-m", "fer_nb", "predict", "photo.png"],
        "Recogniser()(photo)": ["-c", "from fer_nb.predict import Recogniser; Recogniser()('photo.png')"],
        "import fer_nb.predict": ["-c", "import fer_nb.predict"]}


ASIDE = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""   # a small process, as a new one inherits the peak of the one that starts it


def once(python: str, words: list[str], folder: str) -> tuple[float, float]:
    "Processor seconds and megabytes at the peak of a new process."
    said = subprocess.run([python, "-S", "-c", ASIDE, python, *words], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, check=True).stdout
    status, seconds, memory = map(float, said.split())
    assert status == 0, words
    return seconds, memory


def main() -> None:
    "Run the benchmark."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="*", default=[], help="of other environments, each with fer-nb")
    parser.add_argument("--repeats", type=int, default=7, help="processes of each kind (default 7)")
    parser.add_argument("--out", type=Path, default=HERE / "first_answer.json", help="result file")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(photograph()).save(f"{folder}/photo.png")
        for python in (sys.executable, *map(os.path.abspath, args.python)):
            asked = "import importlib.util as u; print(u.find_spec('torch') is not None)"
            torch = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip() == "True"
            for what, words in WAYS.items():
                runs = [once(python, words, folder) for _ in range(args.repeats + 1)][1:]
                seconds, memory = zip(*runs)
                rows.append({"what": what, "PyTorch is installed": torch, "cpu_s": round(statistics.median(seconds), 2),
                             "slowest_cpu_s": round(max(seconds), 2), "peak_MB": round(max(memory))})
                print(rows[-1], flush=True)
    save(args.out, {"settings": {"repeats": args.repeats}, "machine": machine(), "results": rows}, weights=shipped_weights())


if __name__ == "__main__":
    main()

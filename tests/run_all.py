"""Run All, as a reader does who has no data: every cell, flagged ones too. python tests/run_all.py [NOTEBOOK ...]

Prints for each notebook the processor time, the wall time and the largest memory of its kernel: what its line
"Needs:" says. With FER_NB_DATA set and `--data` the cells that read real data read it."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import resource, sys, nbformat
from pathlib import Path
from nbclient import NotebookClient
path = Path(sys.argv[1]).resolve()
try:
    NotebookClient(nbformat.read(path, 4), timeout=None, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
finally:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("used", used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)
"""


class RunAll(NamedTuple):
    "What one notebook took."
    error: str      # the end of what went wrong; "": nothing did
    cpu: float      # seconds of processor time
    wall: float     # seconds
    memory: float   # GiB, of the largest process


def notebooks() -> list[Path]:  # the pages, in their order
    "All pages that a reader can run."
    return sorted((ROOT / "nbs").glob("*.ipynb")) + sorted((ROOT / "nbs/tutorials").glob("*.ipynb"))


def run_all(
    path: Path,          # a notebook; it is not changed
    data: bool = False,  # with the real data that FER_NB_DATA names
) -> RunAll:             # what it took
    "Run every cell of a notebook in a kernel of its own."
    env = {k: v for k, v in os.environ.items() if data or k != "FER_NB_DATA"}
    env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    start = time.time()
    child = subprocess.run([sys.executable, "-c", CHILD, str(path)], env=env, capture_output=True, text=True)
    used = next((line.split()[1:] for line in child.stdout.splitlines() if line.startswith("used ")), (0, 0))
    return RunAll(child.stderr.strip()[-2000:] if child.returncode else "", float(used[0]), time.time() - start, float(used[1]))


def main(args: list[str]) -> int:  # 0 when every notebook ran to its end
    "Run the notebooks named in `args`, or all."
    failed = 0
    for path in [Path(a) for a in args if a != "--data"] or notebooks():
        error, cpu, wall, memory = run_all(path, "--data" in args)
        failed += bool(error)
        print(f"{path.name:24} {cpu:6.0f} s of one core, {wall:6.0f} s, {memory:.1f} GB{'  FAILED' * bool(error)}", flush=True)
        if error:
            print(error, flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

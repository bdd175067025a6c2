"""Run every notebook with nbdev_test and say how many passed: python tests/run_notebooks.py [FILE for the summary]."""
from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import nbdev_test

WORKERS = min(2, os.cpu_count() or 1)  # each has its own threads: see OMP_NUM_THREADS in the Makefile


class Tee(io.StringIO):
    "Text that is shown as it comes and kept."

    def write(
        self,
        s: str,  # what nbdev prints
    ) -> int:    # how much of it was written
        "Show and keep `s`."
        sys.__stdout__.write(s)
        return super().write(s)


def cells(
    notebooks: list[Path],  # to count in
    flags: list[str],       # that keep a cell out of the run
) -> tuple[int, dict[str, int]]:  # code cells, and how many of them carry each flag
    "Count the code cells, and those that are left out."
    total, skipped = 0, dict.fromkeys(flags, 0)
    for nb in notebooks:
        for cell in json.loads(nb.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                total += 1
                lines = "".join(cell["source"]).splitlines()
                top = {line[2:].strip() for line in lines if line.startswith("#|")}
                for flag in [f for f in flags if f in top][:1]:
                    skipped[flag] += 1
    return total, skipped


def main() -> int:  # 0 when every notebook passed
    "Run, count, report."
    os.chdir(Path(__file__).resolve().parents[1])
    flags = get_config().tst_flags.split()
    notebooks = [Path(p) for p in nbglob(as_path=True)]
    total, skipped = cells(notebooks, flags)
    start, shown = time.time(), Tee()
    with contextlib.redirect_stdout(shown):
        nbdev_test.__wrapped__(n_workers=WORKERS, timing=True)  # exits with 1 when a notebook fails
    ran = sum(f"{nb.name}: " in shown.getvalue() for nb in notebooks)  # a worker that dies leaves no line
    if not ran or ran < len(notebooks):
        print(f"{ran} of {len(notebooks)} notebooks passed: a worker process died", file=sys.stderr)
        return 1
    left_out = ", ".join(f"{n} {flag}" for flag, n in skipped.items() if n) or "none"
    summary = f"{ran} notebooks passed in {time.time() - start:.0f} s; {total} code cells, left out: {left_out}"
    print(summary)
    for path in sys.argv[1:2]:
        Path(path).write_text(summary + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

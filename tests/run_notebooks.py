"""Run notebooks, compare the text that is saved in them, and say how many passed.

    python tests/run_notebooks.py                       # every notebook
    python tests/run_notebooks.py nbs/21_metrics.ipynb  # some
    python tests/run_notebooks.py --summary FILE        # the last line into FILE as well
    python tests/run_notebooks.py --save nbs/21_metrics.ipynb           # write the outputs into the notebook
    python tests/run_notebooks.py --flags realdata --save nbs/01_audit.ipynb  # of flagged cells too
    python tests/run_notebooks.py --flags gpu nbs/tutorials/11_paper_dmc.ipynb  # its cells for a card, at full size
    python tests/run_notebooks.py --tiny                                # those cells of all pages, on the CPU, tiny

Cells run as in nbdev's own test, without those that carry a flag. A page must not show what its code no longer gives, so
saved and new text (printed lines, tables, values) are compared. On a page that reads results the numbers count too, within
one unit of the last digit shown; where it trains toys as well, in the cells that read them or use what those read. What comes of toys differs from one
kind of processor to the next: there the words around numbers, labels and pictures count, and of a cell with the flag toy,
whose rows are what a toy found, nothing. What a `#| gpu` cell says depends on the card, or on the budget, and is not compared: that it
runs is what counts. With --tiny only pages that have such cells are run, with FER_NB_BUDGET=tiny in the environment, by which
a cell chooses its size, and nothing is written. A page that looks at real data where there are some was saved with them: without FER_NB_DATA
only its cells that read results are compared.
"""
from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKERS = min(2, os.cpu_count() or 1)  # of one thread each
PRELOADED = ["execnb.shell", "fastcore.test", "matplotlib.pyplot", "pandas", "scipy.stats", "sklearn.linear_model", "timm",
             "fer_nb.models"]   # not fastai: it changes how tables are shown
READS_RESULTS = re.compile(r"""["'/]results["'/]|\bresults/|benchmarks/""")  # in code: this page shows files of results
TRAINS = re.compile(r"\b(make_faces|fit_model|fit_network|fit_student|fit_one_cycle)\(|(?<![.\w])run\(|\.fit\(")   # toys of its own
LABEL = re.compile(r"\b(angry|disgust|fear|happy|sad|surprise|neutral|contempt)\b")
PICTURE = re.compile(r"base64,[A-Za-z0-9+/=]+")
DIGEST = re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{16,64}\b")   # of a toy's weights
READS_DATA = re.compile(r"(?<!def )\b(real_data|fer2013_folder)\((?!\))")  # a page that looks at real data
NUMBER = re.compile(r"[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
NOISE = re.compile(r"0x[0-9a-f]{6,}|\bT_[0-9a-f]{5}\w*|<style.*?</style>"  # addresses, ids of styled tables
                   r"|^\d\d:\d\d:\d\d [^\n]*\d left\n|[^\n]*\r|Epoch \d+/\d+ :[^\n]*", re.S | re.M)  # bars, and lines that say how long is left: the clock decides


@dataclass
class Ran:
    "What became of one notebook."

    name: str                                     # of the file
    seconds: float                                # it took
    error: str = ""                               # the traceback; "": none
    stale: list[str] = field(default_factory=list)  # cells whose saved text is another
    cells: int = 0                                # code cells
    skipped: dict[str, int] = field(default_factory=dict)  # flag: cells that it kept out


# ---------------------------------------------------------------- comparing text

def texts(
    outputs: list[dict],  # of a cell, as notebooks hold them
) -> list[str]:           # what a reader sees as text; pictures and standard error are left out
    "The text outputs of a cell; what is printed in several pieces is one."
    found: list[tuple[str, str]] = []
    for o in outputs:
        kind, data = o["output_type"], o.get("data", {})
        if kind == "stream":
            data = {"text/plain": o["text"]} if o["name"] == "stdout" else {}
        text = next((data[k] for k in ("text/markdown", "text/html", "text/plain") if k in data), None)
        if text is not None and "image/png" not in data:
            text = text if isinstance(text, str) else "".join(text)
            if kind == "stream" and found and found[-1][0] == "stream":
                text = found.pop()[1] + text
            found.append((kind, text))
    return [quiet for _, text in found if (quiet := NOISE.sub("", text)).strip()]


def same(
    saved: str,          # text of a cell
    new: str,            # of the same cell
    numbers: bool,       # whether the numbers count
) -> bool:               # as far as a reader is concerned
    "Compare two texts."
    def squeezed(text: str) -> str:  # a number of another length moves the padding of its column
        text = text if numbers else PICTURE.sub("", DIGEST.sub("#", LABEL.sub("#", text)))   # what a toy answers, and shows
        return re.sub(r"[-─ ]{2,}|\s+", " ", re.sub(r"\s+([,\])])", r"\1", NUMBER.sub("#", text))).strip()

    if saved == new:
        return True
    if squeezed(saved) != squeezed(new):
        return False
    return not numbers or all(map(close, NUMBER.findall(saved), NUMBER.findall(new)))


def close(
    a: str,   # a number as it is shown
    b: str,   # another
) -> bool:    # apart by at most one unit of the last digit of the coarser one
    "Compare two numbers; whole numbers are counts and must be equal."
    x, y = (Decimal(t.replace(",", "").replace("−", "-")) for t in (a, b))
    unit = Decimal(10) ** max(x.as_tuple().exponent, y.as_tuple().exponent)
    return x == y or "." in a + b and abs(x - y) <= unit


def of_results(
    source: str,       # a cell
    known: set[str],   # names that hold what was read from results; brought up to date
) -> bool:             # whether it shows such
    "Follow results through a page with toys: a cell that reads them, or uses a name of one that did."
    try:
        names = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)]
    except SyntaxError:   # a magic
        return False
    used, made = ({n.id for n in names if isinstance(n.ctx, c)} for c in (ast.Load, ast.Store))
    found = bool(READS_RESULTS.search(source)) or bool(used & known)
    known |= made if found else set()
    known -= set() if found else made
    return found


# ---------------------------------------------------------------- running one

def flag_of(
    cell: dict,        # a code cell
    flags: list[str],  # that keep a cell out of the run
) -> str | None:       # the first that it carries
    "Why a cell is not run."
    source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
    top = {line[2:].strip() for line in source.splitlines() if line.startswith("#|")}
    return next((f for f in flags if f in top), None)


def has_gpu_cells(
    path: Path,   # a notebook
) -> bool:
    "Whether a page has cells for a card."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return any(c["cell_type"] == "code" and flag_of(c, ["gpu"]) for c in cells)


def run(
    path: Path,         # a notebook
    flags: list[str],   # that keep a cell out of the run
    save: bool = False, # write the outputs into the notebook rather than compare them
) -> Ran:               # what became of it
    "Run one notebook in this process, in its own folder."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    os.environ["IN_TEST"] = "1"
    sys.path.insert(0, str(ROOT))
    os.chdir(path.parent)
    started, nb = time.time(), read_nb(path)
    code = [c for c in nb.cells if c.cell_type == "code"]
    ran = Ran(path.name, 0.0, cells=len(code), skipped=dict.fromkeys(flags, 0))
    reads, toys = (any(r.search(c.source) for c in code) for r in (READS_RESULTS, TRAINS))
    known: set[str] = set()   # names of what was read, on a page with toys
    sized = {c.id for c in code if flag_of(c, ["gpu"])}  # by the card, or by the budget
    drawn = path.parent.name == "tutorials" and "FER_NB_DATA" not in os.environ and any(
        READS_DATA.search(c.source) for c in code if not flag_of(c, flags))
    shell = CaptureShell(path, mpl_format="png")
    for cell in code:
        if flag := flag_of(cell, flags):
            ran.skipped[flag] += 1
            continue
        new = [o for o in shell.run(cell.source) or [] if o.get("name") != "stderr"]
        if shell.exc:
            ran.error = f"cell {cell.id}:\n{''.join(traceback.format_exception(shell.exc)[-6:])}"
            break
        old = texts(cell.get("outputs", []))
        compared = not save and cell.id not in sized and not flag_of(cell, ["toy"]) and not (drawn and not READS_RESULTS.search(cell.source))
        numbers = of_results(cell.source, known) if toys else reads
        if compared and not (len(old) == len(texts(new)) and all(map(same, old, texts(new), [numbers] * len(old)))):
            ran.stale.append(difference(cell.id, old, texts(new)))
        cell.outputs = new
    if save and not ran.error:
        made, now = {(c.id, c.source): c.outputs for c in code if "outputs" in c}, read_nb(path)  # it may have been edited
        for cell in now.cells:
            if cell.cell_type == "code":
                cell.outputs = made.get((cell.id, cell.source), cell.outputs)
        write_nb(now, path)
    ran.seconds = time.time() - started
    return ran


def difference(
    cell: str,         # its id
    saved: list[str],  # its text outputs
    new: list[str],    # those of this run
) -> str:              # a few lines
    "Show where two outputs part."
    a, b = ("\n".join(t).splitlines() for t in (saved, new))
    at = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    lines = [f"  {sign} {(t[at] if at < len(t) else '(nothing)').strip()[:160]}" for sign, t in (("saved", a), ("now  ", b))]
    return "\n".join([f"cell {cell}: line {at + 1} of its text output", *lines])


# ---------------------------------------------------------------- running all

def say(ran: Ran) -> None:
    "One line for a notebook, more where something is wrong."
    wrong = " FAILED" if ran.error else f" {len(ran.stale)} stale" if ran.stale else ""
    print(f"{ran.name}: {ran.seconds:.0f} s{wrong}", flush=True)
    for text in [ran.error, *ran.stale]:
        if text:
            print(text, file=sys.stderr, flush=True)


def fresh_processes() -> multiprocessing.context.BaseContext:
    "Each notebook has a process of its own; where processes can fork, from one that has imported the large libraries and run nothing."
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def main(
    argv: list[str] | None = None,  # the command line
) -> int:                           # 0 when every notebook passed
    "Run, compare, count, report."
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--flags", nargs="*", default=[], help="run the cells with these flags too")
    parser.add_argument("--save", action="store_true", help="write the outputs into the notebooks")
    parser.add_argument("--tiny", action="store_true", help="run the pages with `#| gpu` cells, those too, with a tiny budget")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="the last line into FILE as well")
    args = parser.parse_args(argv)
    paths = [p.resolve() for p in args.notebooks]
    os.chdir(ROOT)
    paths = paths or sorted(Path(p).resolve() for p in nbglob(as_path=True))
    if args.tiny:
        if args.save:
            parser.error("--tiny tries the cells; what they give so is not saved")
        os.environ["FER_NB_BUDGET"], args.flags = "tiny", [*args.flags, "gpu"]
        paths = [p for p in paths if has_gpu_cells(p)]
    known = get_config().tst_flags.split()
    if odd := [f for f in args.flags if f not in known]:
        parser.error(f"--flags {' '.join(odd)}: of {', '.join(known)} expected; name notebooks before --flags")
    flags = [f for f in known if f not in args.flags]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the Makefile: the last digits of a training depend on it
    started, context = time.time(), fresh_processes()
    try:
        with ProcessPoolExecutor(WORKERS, context, max_tasks_per_child=1) as pool:
            jobs = [pool.submit(run, p, flags, args.save) for p in sorted(paths, key=lambda p: -p.stat().st_size)]
            done = []
            for job in jobs:
                done.append(job.result())
                say(done[-1])
    except BrokenProcessPool:
        print("a worker process died", file=sys.stderr)
        return 1
    bad = [r.name for r in done if r.error or r.stale]
    if bad:
        print(f"{len(bad)} of {len(done)} notebooks failed or show what their code no longer gives: {', '.join(bad)}\n"
              "after a look: python tests/run_notebooks.py --save NOTEBOOK", file=sys.stderr)
        return 1
    counts = {flag: sum(r.skipped[flag] for r in done) for flag in flags}
    left_out = ", ".join(f"{n} {flag}" for flag, n in counts.items() if n) or "none"
    summary = (f"{len(done)} notebooks passed in {time.time() - started:.0f} s; {sum(r.cells for r in done)} code cells, "
               f"left out: {left_out}")
    print(summary)
    if args.summary:
        args.summary.write_text(summary + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Style gates over whatever notebooks there are, and the proof that each of them can fail."""
from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import gates
import index
import pytest

build, ROOT = gates.build, gates.ROOT
NOTEBOOKS = build.notebooks(ROOT)
MODULES = sorted(p.name for p in (ROOT / "fer_nb").glob("[!_]*.py"))
ROOMS = build.rooms(ROOT)
TEXT = {".md", ".py", ".ini", ".txt", ".yml", ".yaml", ".toml", ".cfg", ".css", ".in", ".json", ".csv", ".html", ".js", ".sh", ""}


def refuse(
    problems: Iterable[str],  # what a gate found
    where: object,            # the file
) -> None:
    "Fail with the list of problems."
    if found := list(problems):
        pytest.fail(f"{where}: {len(found)} problem(s)\n  " + "\n  ".join(found[:30]), pytrace=False)


# ---------------------------------------------------------------- what is there

@pytest.fixture(scope="module", params=NOTEBOOKS, ids=str)
def nb(request: pytest.FixtureRequest) -> gates.Notebook:
    "Each notebook of the project."
    return gates.read(request.param)


@pytest.mark.parametrize("gate", gates.EVERY_NOTEBOOK, ids=lambda g: g.__name__)
def test_notebook(nb: gates.Notebook, gate: Callable) -> None:
    refuse(gate(nb), f"nbs/{nb.path}")


def test_imports_flow_down(nb: gates.Notebook) -> None:
    refuse(gates.order(nb, ROOMS), f"nbs/{nb.path}")


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("gate", [gates.docments, gates.star_imports], ids=lambda g: g.__name__)
def test_module(name: str, gate: Callable) -> None:
    refuse(gate((ROOT / "fer_nb" / name).read_text(encoding="utf-8")), f"fer_nb/{name}")


def test_every_room_is_built() -> None:
    refuse((f"nbs/{r.notebook}.ipynb is in the table of rooms but not there" for r in ROOMS
            if not (ROOT / f"nbs/{r.notebook}.ipynb").exists()), "docs/design.md")


def test_table_of_rooms() -> None:
    assert len({r.number for r in ROOMS}) == len({r.module for r in ROOMS}) == len(ROOMS)
    assert [r.number for r in ROOMS] == sorted(r.number for r in ROOMS)
    for r in ROOMS:
        assert r.notebook.split("_", 1)[1] == r.module.strip("_") and r.shelf in build.SHELVES, r


def test_left_out_cells_stay_few() -> None:
    flagged = {str(p): sum(c.has(*gates.FLAGS) for c in gates.read(p).cells) for p in NOTEBOOKS if gates.read(p).numbered}
    assert sum(flagged.values()) <= gates.MAX_SKIPPED_ALL, flagged


def test_flags_are_the_same_everywhere() -> None:
    assert build.settings(ROOT)["tst_flags"].split() == list(gates.FLAGS)
    marked = re.findall(r"^    (\w+):", (ROOT / "pytest.ini").read_text(), re.M)
    assert sorted(marked) == sorted(gates.FLAGS)


@pytest.mark.parametrize("path", [f for f in build.files(ROOT) if f.suffix in TEXT], ids=str)
def test_no_place_is_named(path: Path) -> None:
    refuse(gates.places((ROOT / path).read_text(encoding="utf-8")), path)


# ---------------------------------------------------------------- the house as a whole

@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    "What `python tests/gates.py` prints."
    return gates.measure(gates.house())


@pytest.mark.parametrize("figure", gates.RATIOS)
def test_house(figures: dict[str, float], figure: str) -> None:
    assert figures[figure] <= gates.HOUSE[figure], f"python tests/gates.py {figure!r} lists them"


def test_the_index_of_tests_is_current() -> None:
    assert (ROOT / "tests/README.md").read_text(encoding="utf-8") == index.page(), "run: python tests/index.py"


def test_the_measures_of_the_house_count(tmp_path: Path) -> None:
    cell = ["#| export", "def twice(x):", "    positive('x', x)", "    return _one(x)", "def never_seen(): raise ValueError('no')",
            "def _one(x): return 2 * x" + " " * 90 + "# wide", "@patch(cls_method=True)", "def method(cls: Pair): return cls"]
    later = {**GOOD, "cells": [dict(c, id=f"l{k}") for k, c in enumerate([
        code("#| default_exp audit"), code("#| export", *["x = 1"] * 61, "from fer_nb.review import look")])]}
    toy = {**GOOD, "cells": [*GOOD["cells"][:5], dict(code(*cell), id="c5"), *GOOD["cells"][6:]]}
    (tmp_path / "nbs").mkdir()
    for name, data in (("04_data", toy), ("09_audit", later), ("12_review", {**GOOD, "cells": [dict(code("#| default_exp review"), id="r")]})):
        (tmp_path / f"nbs/{name}.ipynb").write_text(json.dumps(data), encoding="utf-8")
    found = gates.house(tmp_path)
    assert found["public"] == ["data.twice", "data.never_seen"] and found["private"] == ["data._one"] == found["private used once per 1,000 lines"]
    assert found["public never shown"] == ["data.never_seen"] and len(found["raises"]) == len(found["checked"]) == 1
    assert len(found["lines over 110 characters"]) == 1 and len(found["cells over 60 lines"]) == 1
    assert found["upward imports"] == ["09_audit.ipynb: review"]


# ---------------------------------------------------------------- what is derived

@pytest.fixture(scope="module")
def behind() -> dict[str, str]:
    "Cleaned and exported anew in a copy: the files that differ from the checkout."
    return build.behind(ROOT)


@pytest.mark.parametrize("pattern, what", [
    (r"nbs/.*\.ipynb", "notebooks are clean"), (r"fer_nb/.*", "modules match the notebooks"),
    (r"nbs/\w+\.yml", "sidebar and site settings match")], ids=["clean", "export", "sidebar"])
def test_in_sync(behind: dict[str, str], pattern: str, what: str) -> None:
    refuse((d for p, d in behind.items() if re.fullmatch(pattern, p)), f"{what}? run `make export`")


def test_readme_in_sync(behind: dict[str, str]) -> None:
    if not (ROOT / "nbs/index.ipynb").exists():
        pytest.skip("nbs/index.ipynb is not written yet, so there is nothing to make README.md from")
    refuse((d for p, d in behind.items() if p == "README.md" or p.startswith("docs/readme_files/")), "run `make export`")


# ---------------------------------------------------------------- the gates can fail

def code(*lines: str) -> dict:
    "A code cell."
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": "\n".join(lines)}


def prose(*lines: str) -> dict:
    "A markdown cell."
    return {"cell_type": "markdown", "metadata": {}, "source": "\n".join(lines)}


def stream(text: str, name: str = "stdout") -> dict:
    "An output."
    return {"output_type": "stream", "name": name, "text": text}


GOOD = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [dict(c, id=f"c{i}") for i, c in enumerate([
    code("#| default_exp data"),
    prose("# Toy", "", "> A notebook without a fault."),
    code("#| export", "from pathlib import Path", "", "from fer_nb.core import FERError"),
    code("#| hide", "import warnings", "", "from fastcore.test import test_eq", "", "warnings.filterwarnings('ignore', message='`x` is old')"),
    prose("## Twice", "", "Why one would want that: $2x$."),
    code("#| export", "def twice(", "    x: int,  # a number", ") -> int:   # twice that", '    "Double `x`."', "    return 2 * x"),
    code("test_eq(twice(2), 4)"),
    code("#| slow", "twice(10**6)"),
])]}

MODULE = '''class Pair(nn.Module):
    "Two numbers."

    def __init__(
        self,
        a: int,  # the first
        # the second
        b: int = 1,
        **kwargs: Any,  # handed on
    ):
        self.a, self.b = a, b

    def forward(
        self,
        x: Tensor,  # (B, C)
    ) -> Tensor:    # (B,)
        "Add."
        return x + self.a

    @property
    def total(self) -> int:
        "The sum."
        return self.a + self.b

    def before_batch(self):
        "Nothing yet."

    def _hidden(self, anything): return anything


@dataclass
class Row:
    "A row."
    n: int  # position


def reset() -> None:
    "Forget."
'''


def put(n: int, **changes: object) -> Callable:
    "A change of cell `n`."
    return lambda d: d["cells"][n].update(changes)


def error(d: dict) -> None:
    "Save an error."
    d["cells"][6]["outputs"] = [{"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}]


PLANTED = {
    "minor": (gates.ids, lambda d: d.update(nbformat_minor=4)),
    "no id": (gates.ids, lambda d: d["cells"][3].pop("id")),
    "id twice": (gates.ids, put(3, id="c2")),
    "other name": (gates.naming, put(0, source="#| default_exp audit")),
    "no default_exp": (gates.naming, put(0, source="")),
    "work in the first cell": (gates.naming, put(0, source="#| default_exp data\nx = 1")),
    "no title": (gates.title, put(1, source="Words.")),
    "title without sentence": (gates.title, put(1, source="# Toy")),
    "prose in the title": (gates.title, put(1, source="# Toy\n\n> One.\n\nMore.")),
    "mark in the title": (gates.title, put(1, source="# # Toy\n\n> One.")),
    "second title": (gates.title, put(4, source="# Again")),
    "unknown directive": (gates.directives, put(7, source="#| slwo\n1")),
    "eval false": (gates.directives, put(7, source="#| eval: false\n1")),
    "export elsewhere": (gates.directives, put(5, source="#| export core\nx = 1")),
    "directive below a comment": (gates.directives, put(7, source="# takes long\n#| slow\n1")),
    "directive in the middle": (gates.directives, put(7, source="x = 1\n# | hide\n")),
    "flagged export": (gates.directives, put(5, source="#| export\n#| slow\nx = 1")),
    "skip_exec": (gates.skips, put(4, source="- skip_exec: true")),
    "many skipped": (gates.skips, lambda d: d["cells"].extend([code("#| realdata", "1")] * 9)),
    "no check": (gates.asserts, put(6, source="twice(2)")),
    "hidden check": (gates.asserts, put(6, source="#| hide\ntest_eq(twice(2), 4)")),
    "skipped check": (gates.asserts, put(6, source="#| slow\nassert twice(2) == 4")),
    "large": (gates.size, put(4, source="x" * 310_000)),
    "error saved": (gates.outputs, error),
    "stderr saved": (gates.outputs, put(6, outputs=[stream("UserWarning: no", "stderr")])),
    "progress bar": (gates.outputs, put(6, outputs=[stream(" 42%|████    | 42/100 [00:01<00:01, 40it/s]")])),
    "path in an output": (gates.outputs, put(6, outputs=[stream("saved in /" + "tmp/x.npz")])),
    "address": (gates.outputs, put(6, outputs=[stream("<function f at 0x7f0a12b3c4d5>")])),
    "widgets": (gates.outputs, lambda d: d["metadata"].update(widgets={})),
    "imports and work": (gates.pure_cells, put(3, source="import os\nos.getcwd()")),
    "blanket filter": (gates.pure_cells, put(3, source="import warnings\nwarnings.filterwarnings('ignore')")),
    "work on import": (gates.pure_cells, put(5, source="#| export\nprint('hello')")),
    "star in a cell": (gates.pure_cells, put(2, source="#| export\nfrom fastai.vision.all import *")),
    "path in a cell": (gates.sources, put(6, source="read('/" + "root/data.csv')")),
    "own module": (gates.order, put(6, source="from fer_nb.data import twice")),
    "upward": (gates.order, put(2, source="#| export\nfrom fer_nb.audit import audit")),
    "sideways": (gates.order, put(6, source="import fer_nb.attacks as a")),
    "in a function": (gates.order, put(5, source="#| export\ndef f():\n    from fer_nb import train")),
    "not in the table": (gates.order, put(0, source="#| default_exp attic")),
}


def found(gate: Callable, data: dict) -> list[str]:
    "What a gate says about a notebook."
    toy = gates.notebook(data, "04_data.ipynb")
    return list(gate(toy, ROOMS) if gate is gates.order else gate(toy))


@pytest.mark.parametrize("gate", [*gates.EVERY_NOTEBOOK, gates.order], ids=lambda g: g.__name__)
def test_good_notebook_passes(gate: Callable) -> None:
    assert found(gate, GOOD) == []


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found(fault: str) -> None:
    gate, spoil = PLANTED[fault]
    data = copy.deepcopy(GOOD)
    spoil(data)
    assert found(gate, data), f"{gate.__name__} did not see: {fault}"


def test_every_gate_has_a_planted_fault() -> None:
    assert {g for g, _ in PLANTED.values()} == {*gates.EVERY_NOTEBOOK, gates.order}


def test_good_module_passes() -> None:
    assert list(gates.docments(MODULE)) == []


@pytest.mark.parametrize("old, new, said", [
    ("  # the first", "", "`a` has no comment"), ("a: int,", "a,", "`a` is not annotated"),
    ("        # the second\n", "", "`b` has no comment"), (",  # handed on", ",", "`kwargs` has no comment"),
    ('    "Two numbers."\n', "", "Pair (line 1) has no docstring"), ('        "Add."\n', "", "forward"),
    ("  # (B, C)", "", "Pair.forward: parameter `x` has no comment"), ("    # (B,)", "", "result has no comment"),
    (" -> Tensor:", ":", "result is not annotated"), ('        "The sum."\n', "", "Pair.total"),
    ("  # position", "", "field `n`"), ('    "Forget."', "    pass", "reset (line"),
    ("        a: int,  # the first\n        # the second\n        b", "        a: int, b", "share line"),
])
def test_planted_gap_in_a_module_is_found(old: str, new: str, said: str) -> None:
    assert old in MODULE
    assert any(said in p for p in gates.docments(MODULE.replace(old, new, 1)))


def test_star_import_is_found() -> None:
    assert list(gates.star_imports("from ..basics import *")) and not list(gates.star_imports("from torch import nn"))


@pytest.mark.parametrize("text", ["cd /" + "work/x", 'open("/' + 'tmp/a")', "/" + "root/.cache", "pip --index" + "-url x",
                                  "https://host.example/api/sim" + "ple", "http://" + "192.168.0.7:8000"])
def test_place_is_found(text: str) -> None:
    assert list(gates.places(text))


@pytest.mark.parametrize("text", ["https://example.org/work/fer", "nbs/tmp/x", "see https://pypi.org/project/timm/", "http://localhost:9/closed", "a / work / b"])
def test_harmless_text_passes(text: str) -> None:
    assert list(gates.places(text)) == []


@pytest.fixture(scope="module")
def toy_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A project with one notebook, an index and everything derived from them."
    root = tmp_path_factory.mktemp("toy") / "project"
    for f in ("settings.ini", "docs/design.md", "fer_nb/__init__.py", "nbs/_quarto.yml"):
        (root / f).parent.mkdir(parents=True, exist_ok=True)
        (root / f).write_bytes((ROOT / f).read_bytes())
    index = [prose("# fer_nb", "", "> Toy."), code("print('hi')"),
             prose("See [data](04_data.ipynb) and [the house](../docs/design.md).", '::: {.content-visible when-format="html"}', "Only there.", ":::"),
             prose('::::: {.content-visible when-format="html"}', "", ":::: {.doors}", "", "::: {.door}", "Nor this.", ":::", "", "::::", "", "Nor that.",
                   ":::::", '::: {.content-hidden when-format="html"}', "Only here.", ":::")]
    index[1]["outputs"] = [stream("hi\n"), {"output_type": "display_data", "metadata": {}, "data": {"image/png": "AAAA", "text/plain": "<Figure>"}}]
    for name, data in (("04_data", GOOD), ("index", {**GOOD, "cells": [dict(c, id=f"i{k}") for k, c in enumerate(index)]})):
        (root / f"nbs/{name}.ipynb").write_text(json.dumps(data), encoding="utf-8")
    build.write_derived(root)
    return root


def test_derived_project_is_in_sync(toy_project: Path) -> None:
    assert build.behind(toy_project) == {}


def test_readme_of_the_toy(toy_project: Path) -> None:
    page = (toy_project / "README.md").read_text()
    for part in ("# fer_nb", "```python\nprint('hi')\n```", "```text\nhi\n```", "![](docs/readme_files/i1-1.png)",
                 "[data](nbs/04_data.ipynb)", "[the house](docs/design.md)"):
        assert part in page
    assert "Only here." in page and not re.search("Only there|Nor th|:::", page) and (toy_project / "docs/readme_files/i1-1.png").exists()


def test_sidebar_of_the_toy(toy_project: Path) -> None:
    assert (toy_project / "nbs/sidebar.yml").read_text(encoding="utf-8").splitlines()[3:] == [
        "      - section: Start", "        contents:", '          - text: "fer_nb"', "            href: index.ipynb",
        "      - section: Data", "        contents:", '          - text: "04 Toy"', "            href: 04_data.ipynb"]


def test_drift_is_found(toy_project: Path) -> None:
    changes = {"fer_nb/data.py": "x = 1\n", "README.md": "Edited by hand.\n", "nbs/sidebar.yml": "website:\n",
               "nbs/04_data.ipynb": " "}
    for path, more in changes.items():
        with (toy_project / path).open("a", encoding="utf-8") as f:
            f.write(more)
    (toy_project / "fer_nb/gone.py").write_text("# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/07_gone.ipynb.\n")
    assert {*changes, "fer_nb/gone.py"} <= set(build.behind(toy_project))

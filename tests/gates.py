"""The rules of the house as functions: each takes a notebook, a module or a text and returns what is wrong with it."""
from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("slow", "realdata", "gpu")  # cells that the ordinary run leaves out; the same words as tst_flags and the markers
ALLOWED = {"export", "hide", "echo: false", "output: false", "toy", *FLAGS}
ROOT_ONLY = re.compile(r"default_exp \w+")
MAX_KB = 300            # of a notebook with its outputs
MAX_SKIPPED = 6         # flagged cells in a numbered notebook
MAX_SKIPPED_ALL = 40    # in all numbered notebooks together
MAX_SKIPPED_SHARE = .6  # of the code cells of a tutorial
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
EVENT = re.compile(r"(before|after)_\w+")  # fastai calls these with self alone


def load_build() -> ModuleType:
    "Import docs/build.py, which is a script and not in a package."
    if "docs_build" not in sys.modules:
        spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs/build.py")
        sys.modules["docs_build"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["docs_build"]


build = load_build()


# ---------------------------------------------------------------- reading

@dataclass
class Cell:
    "A cell, its directives apart from its code."

    n: int                 # position, from 1
    kind: str              # code, markdown or raw
    id: str | None         # nbformat 4.5
    source: str            # as stored
    directives: list[str]  # the `#|` lines at the top, without the mark
    code: str              # the rest; magics taken out
    outputs: list[dict]    # as stored

    def has(
        self,
        *names: str,  # directives
    ) -> bool:        # does the cell carry one of them
        "Look for directives."
        return any(name in self.directives for name in names)

    def tree(self) -> ast.Module:  # empty when the code is not Python
        "Parse the code."
        try:
            return ast.parse(self.code)
        except SyntaxError:
            return ast.Module([], [])


@dataclass
class Notebook:
    "A notebook as the gates see it."

    path: Path         # relative to nbs/
    data: dict         # the JSON
    cells: list[Cell]  # in order
    size: int          # bytes on disk

    @property
    def numbered(self) -> bool:  # is it one of nbs/NN_name.ipynb
        "Tell the notebooks that make the package from tutorials and the index."
        return self.path.parent == Path(".") and self.path.name[:1].isdigit()

    @property
    def module(self) -> str | None:  # the name in `default_exp`
        "The module that the notebook writes."
        found = [d.split()[1] for c in self.cells for d in c.directives if ROOT_ONLY.fullmatch(d)]
        return found[0] if found else None

    @property
    def exports(self) -> list[Cell]:  # cells that become the module
        "The exported cells."
        return [c for c in self.cells if c.kind == "code" and c.has("export")]


def notebook(
    data: dict,       # the JSON of a notebook
    path: str | Path, # relative to nbs/
) -> Notebook:        # parsed
    "Parse a notebook."
    cells = []
    for n, c in enumerate(data["cells"], 1):
        source = build.text(c["source"])
        directives, code = build.split_directives(source) if c["cell_type"] == "code" else ([], "")
        code = re.sub(r"^\s*[%!].*$", "", code, flags=re.M)
        cells.append(Cell(n, c["cell_type"], c.get("id"), source, directives, code, c.get("outputs", [])))
    return Notebook(Path(path), data, cells, len(json.dumps(data, indent=1, ensure_ascii=False).encode()))


def read(
    path: Path,                # relative to nbs/
    root: Path = ROOT,         # the project
) -> Notebook:                 # parsed
    "Read a notebook of the project."
    return notebook(json.loads((root / "nbs" / path).read_text(encoding="utf-8")), path)


# ---------------------------------------------------------------- the form of a notebook

def ids(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "nbformat 4.5; every cell has an id of its own: ids stand in the header of each exported cell."
    if (version := (nb.data.get("nbformat"), nb.data.get("nbformat_minor"))) != (4, 5):
        yield f"nbformat is {version[0]}.{version[1]}, not 4.5"
    seen: dict[str, int] = {}
    for c in nb.cells:
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", c.id or ""):
            yield f"cell {c.n} has no valid id: {c.id!r}"
        elif c.id in seen:
            yield f"cells {seen[c.id]} and {c.n} share the id {c.id}"
        seen.setdefault(c.id or "", c.n)


def naming(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "NN_name.ipynb exports to `name` (`61_main` to `__main__`), says so alone in its first cell, and only such notebooks export."
    if nb.numbered:
        if not (m := re.fullmatch(r"\d\d_([a-z]\w*)", nb.path.stem)):
            yield f"the name is not NN_name: {nb.path.name}"
        elif (nb.module or "").strip("_") != m[1]:
            yield f"default_exp is {nb.module}, the file name says {m[1]}"
        first = nb.cells[0]
        if first.code.strip() or len(first.directives) != 1 or not ROOT_ONLY.fullmatch(first.directives[0]):
            yield "the first cell holds more than `#| default_exp name`"
    elif nb.module or nb.exports:
        yield "only numbered notebooks in nbs/ export"


def title(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "The title cell is `# Title`, an empty line, `> One sentence`: nbdev swallows whatever else stands in it."
    n = 1 if nb.cells[0].kind == "code" else 0
    cell = nb.cells[n] if n < len(nb.cells) else None
    if cell is None or cell.kind != "markdown" or not re.fullmatch(r"# [^#\n]+\n\n?> [^\n]+", cell.source.strip()):
        yield f"cell {n + 1} is not `# Title` and `> One sentence.` alone: {cell.source[:80]!r}" if cell else "no title cell"
    if extra := [c.n for c in nb.cells[n + 1:] if c.kind == "markdown" and re.search(r"^# ", re.sub(r"^```.*?^```", "", c.source, flags=re.M | re.S), re.M)]:
        yield f"a second `# ` heading in cell {extra[0]}"


def directives(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "Directives stand at the top of a cell and come from the short list; an unknown one would be ignored in silence."
    for c in nb.cells:
        if c.kind != "code":
            continue
        for d in c.directives:
            if d not in ALLOWED and not ROOT_ONLY.fullmatch(d):
                yield f"cell {c.n}: `#| {d}` is not an allowed directive"
        if stray := re.search(r"^\s*#\s*\|.*$", "\n".join(c.source.splitlines()[len(c.directives):]), re.M):
            yield f"cell {c.n}: `{stray[0].strip()}` is not at the very top, so nbdev ignores it"
        if c.has("export") and c.has(*FLAGS, "hide"):
            yield f"cell {c.n}: an exported cell is neither flagged nor hidden: {c.directives}"


def skips(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "Cells that the ordinary run leaves out are few; whole notebooks are never left out."
    flagged = [c for c in nb.cells if c.has(*FLAGS)]
    code = [c for c in nb.cells if c.kind == "code"]
    if nb.numbered and len(flagged) > MAX_SKIPPED:
        yield f"{len(flagged)} flagged cells, at most {MAX_SKIPPED}"
    if not nb.numbered and len(flagged) > MAX_SKIPPED_SHARE * len(code):
        yield f"{len(flagged)} of {len(code)} code cells are flagged, at most {MAX_SKIPPED_SHARE:.0%}"
    for c in nb.cells:
        if c.kind != "code" and re.search(r"^-?\s*skip_(exec|showdoc)\s*:", c.source, re.M):
            yield f"cell {c.n}: skip_exec and skip_showdoc switch the tests of a notebook off"


def asserts(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "A notebook that exports shows at least one check that runs: `assert`, `test_eq`, `test_close`, `test_fail`..."
    def checks(node: ast.AST) -> bool:
        name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
        return isinstance(node, ast.Assert) or bool(re.match(r"test_|assert_", name))

    shown = [c for c in nb.cells if c.kind == "code" and not c.has("export", "hide", "echo: false", *FLAGS)]
    if nb.exports and not any(checks(node) for c in shown for node in ast.walk(c.tree())):
        yield "no visible, executed check"


def size(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "A notebook with its pictures stays small enough to review."
    if nb.size > MAX_KB * 1000:
        yield f"{nb.size / 1000:.0f} kB, at most {MAX_KB}"


def outputs(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "Saved outputs teach: no errors, no stderr, no progress bars, no widget state, no paths of one machine."
    if "widgets" in nb.data.get("metadata", {}):
        yield "widget state is saved in the metadata"
    for c in nb.cells:
        for o in c.outputs:
            if o["output_type"] == "error":
                yield f"cell {c.n}: an error is saved: {o.get('ename')}: {o.get('evalue', '')[:80]}"
            elif o.get("name") == "stderr":
                yield f"cell {c.n}: stderr is saved: {build.text(o['text'])[:80]!r}"
            data = o.get("data", {"text/plain": o.get("text", "")})
            if "application/vnd.jupyter.widget-view+json" in data:
                yield f"cell {c.n}: a widget is saved"
            shown = "\n".join(build.text(v) for k, v in data.items() if k.startswith("text/"))
            if re.search(r"\d+%\|[^|\n]*\||\bit/s\b|<progress\b", shown):
                yield f"cell {c.n}: a progress bar is saved"
            yield from (f"cell {c.n}, output: {p}" for p in places(shown))
            if m := re.search(r"<[^<>\n]* at 0x[0-9a-f]{6,}>", shown):
                yield f"cell {c.n}: a memory address is saved: {m[0][:80]}"


# ---------------------------------------------------------------- imports

def imported(
    tree: ast.AST,          # parsed code
) -> Iterator[str]:         # modules of fer_nb, such as `core`; "" for the package itself
    "Find the modules of this package that code imports, anywhere in it."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in [a.name for a in node.names if a.name.split(".")[0] == "fer_nb"]:
                yield name.partition(".")[2]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module and node.module.split(".")[0] == "fer_nb":
                rest = node.module.partition(".")[2]
                yield from [rest] if rest else [a.name for a in node.names]
            elif node.level:
                yield from [node.module] if node.module else [a.name for a in node.names]


def order(
    nb: Notebook,               # to look at
    rooms: Iterable,            # the rows of the table of rooms
) -> Iterator[str]:             # problems
    "Imports go to lower numbers only, and never to the notebook's own module: that would be a second copy of each class."
    by_module = {r.module: r for r in rooms}
    here = by_module.get(nb.module or "")
    if nb.numbered and nb.module and (here is None or here.notebook != nb.path.stem):
        yield f"{nb.path.stem} is not in the table of rooms of docs/design.md"
    for c in nb.cells:
        for name in sorted(set(imported(c.tree()) if c.kind == "code" else [])):
            there = by_module.get(name.split(".")[0])
            if nb.module and name == nb.module:
                yield f"cell {c.n}: imports its own module"
            elif here and there and there.number >= here.number:
                yield f"cell {c.n}: {here.notebook} imports {there.notebook}"


def named_filter(
    node: ast.AST,  # a statement
) -> bool:          # does it silence one named warning
    "Recognise `warnings.filterwarnings(..., message=...)`, which may stand beside imports."
    call = node.value if isinstance(node, ast.Expr) else None
    return (isinstance(call, ast.Call) and ast.unparse(call.func) == "warnings.filterwarnings"
            and any(k.arg == "message" for k in call.keywords))


def pure_cells(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "Imports have cells of their own, for building the site runs each cell with an import; exported cells only define."
    definitions = (*FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    for c in nb.cells:
        body = c.tree().body if c.kind == "code" else []
        imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
        if any(imports) and not all(i or named_filter(node) for i, node in zip(imports, body)):
            yield f"cell {c.n} mixes imports with work"
        for node in body:
            if isinstance(node, ast.Expr) and not named_filter(node) \
                    and re.match(r"warnings\.(filterwarnings|simplefilter)\(|logging\.disable\(", ast.unparse(node)):
                yield f"cell {c.n}: silences every warning; name the one by `message=`: `{ast.unparse(node)[:60]}`"
            if not c.has("export"):
                continue
            entry = isinstance(node, ast.If) and ast.unparse(node.test).startswith("__name__ == '__main__'")  # of `python -m fer_nb`
            if not entry and not isinstance(node, definitions) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                yield f"cell {c.n}: exported code works when imported: `{ast.unparse(node)[:60]}`"
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                yield f"cell {c.n}: star import of {node.module}"


# ---------------------------------------------------------------- the module

def parameters(
    node: ast.FunctionDef,  # a definition
) -> list[ast.arg]:         # its parameters, without self and cls
    "List the parameters of a function, `*args` and `**kwargs` among them."
    a = node.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    return [p for p in every if p.arg not in ("self", "cls")]


def comment_lines(
    source: str,          # of a module
) -> dict[int, bool]:     # line: does the comment stand alone on it
    "Find the lines with a comment."
    found = {}
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type == tokenize.COMMENT and t.string.strip("# "):
            found[t.start[0]] = not t.line[:t.start[1]].strip()
    return found


def docments(
    source: str,     # of an exported module
) -> Iterator[str]:  # problems
    "Public functions, classes and methods have a docstring, annotations, and one comment for each parameter and result."
    comments = comment_lines(source)

    def documented(line: int) -> bool:
        return line in comments or comments.get(line - 1, False)

    def function(node: ast.FunctionDef, name: str, method: bool) -> Iterator[str]:
        decorators = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
        if {"overload", "setter", "deleter"} & decorators:
            return
        special = node.name.startswith("__")
        if not special and not ast.get_docstring(node):
            yield f"{name} (line {node.lineno}) has no docstring"
        taken: dict[int, str] = {}
        for p in parameters(node):
            if p.annotation is None:
                yield f"{name}: parameter `{p.arg}` is not annotated"
            if p.lineno in taken:
                yield f"{name}: `{taken[p.lineno]}` and `{p.arg}` share line {p.lineno}; give each its own line and comment"
            elif not documented(p.lineno):
                yield f"{name}: parameter `{p.arg}` has no comment"
            taken[p.lineno] = p.arg
        if special or (method and EVENT.fullmatch(node.name)):
            return
        if node.returns is None:
            yield f"{name}: the result is not annotated"
        elif ast.unparse(node.returns) != "None" and not {"property", "cached_property"} & decorators:
            line = node.returns.end_lineno
            if line in taken or line not in comments:
                yield f"{name}: the result has no comment of its own"

    def definition(node: ast.stmt, prefix: str) -> Iterator[str]:
        private = getattr(node, "name", "_").startswith("_")
        if isinstance(node, FUNCTIONS) and (not private or (prefix and node.name in ("__init__", "__call__"))):
            yield from function(node, prefix + node.name, method=bool(prefix))
        elif isinstance(node, ast.ClassDef) and not private:
            if not ast.get_docstring(node):
                yield f"{prefix}{node.name} (line {node.lineno}) has no docstring"
            if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                for field in [f for f in node.body if isinstance(f, ast.AnnAssign) and not documented(f.lineno)]:
                    yield f"{node.name}: field `{ast.unparse(field.target)}` has no comment"
            for child in node.body:
                yield from definition(child, f"{prefix}{node.name}.")

    for node in ast.parse(source).body:
        yield from definition(node, "")


def star_imports(
    source: str,     # of an exported module
) -> Iterator[str]:  # problems
    "Names are imported by name."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield f"line {node.lineno}: from {'.' * node.level}{node.module or ''} import *"


# ---------------------------------------------------------------- any text

# Put together from pieces so that this file passes its own gate.
_HOMES = "|".join(("work", "root", "tmp", r"home/\w+", r"Users/\w+"))
_PATH = re.compile(rf"(?<![\w.}})/])/(?:{_HOMES})/")
_HOST = re.compile("|".join((r"index" + r"-url", r"find" + r"-links", r"trusted" + r"-host", r"https?://[^\s)\"'>]*/simple\b",
                             r"files\.python" + r"hosted\.org", r"https?://(?:10\.\d|192\.168)")))


def places(
    text: str,       # of a file, a cell or an output
) -> Iterator[str]:  # problems
    "No path of one machine and no host of one network: the project must work anywhere."
    for n, line in enumerate(text.splitlines(), 1):
        for pattern, what in ((_PATH, "a path of one machine"), (_HOST, "a package index or private host")):
            if m := pattern.search(line):
                yield f"line {n}: {what}: {line[max(0, m.start() - 30):m.end() + 30].strip()!r}"


def sources(
    nb: Notebook,    # to look at
) -> Iterator[str]:  # problems
    "The cells of a notebook name no place either."
    for c in nb.cells:
        yield from (f"cell {c.n}, {p}" for p in places(c.source))


EVERY_NOTEBOOK = (ids, naming, title, directives, skips, asserts, size, outputs, pure_cells, sources)


# ---------------------------------------------------------------- the house as a whole

CHECKERS = ("one_of", "positive", "share", "at_least", "need_columns", "need_dataset", "_expect", "expect")  # each raises for its caller
MAX_WIDTH = 110            # characters of an exported line
HOUSE = {                  # figure: the largest value that is fine
    "raises per 100 lines": 2.0, "private share (%)": 40, "public definitions": 366, "private used once per 1,000 lines": 6.9,
    "cells over 100 lines": 0, "cells over 60 lines": 15, "upward imports": 0, "exported lines": 14_500,
    "public never shown": 0, "lines over 110 characters": 0}
RATIOS = tuple(name for name in HOUSE if name not in ("public definitions", "exported lines"))  # these gate for good


def calls(
    tree: ast.AST,  # parsed code
) -> set[str]:      # names that occur in it
    "Every name and attribute that code mentions."
    return {n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.Attribute))}


def exported(
    nb: Notebook,                           # to look at
) -> list[tuple[Cell, ast.stmt]]:           # each top-level statement of its exported cells
    "The module as the notebook writes it."
    return [(c, node) for c in nb.exports for node in c.tree().body]


def shown_names(
    nb: Notebook,   # to look at
) -> set[str]:      # names in its visible, unexported cells
    "What a reader of the page sees in use."
    cells = [c for c in nb.cells if c.kind == "code" and not c.has("export", "hide", "echo: false")]
    return {name for c in cells for node in c.tree().body if not isinstance(node, (ast.Import, ast.ImportFrom))
            for name in calls(node)} | {k.arg for c in cells for k in ast.walk(c.tree()) if isinstance(k, ast.keyword) and k.arg}


def house(
    root: Path = ROOT,         # the project
) -> dict[str, list[str]]:     # figure: what counts towards it, one line each; ratios are computed in `measure`
    "Count what the house is measured by."
    found: dict[str, list[str]] = {name: [] for name in (*HOUSE, "lines", "raises", "checked", "private", "public")}
    books = [n for n in (read(p, root) for p in build.notebooks(root)) if n.numbered]
    number = {n.module: int(n.path.stem[:2]) for n in books}
    uses: dict[str, int] = {}
    for nb in books:
        for node in [m for c in nb.exports for m in ast.walk(c.tree())]:
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
            if name and name.startswith("_"):
                uses[f"{nb.module}.{name}"] = uses.get(f"{nb.module}.{name}", 0) + 1
    for nb in books:
        shown = shown_names(nb)
        for c in nb.exports:
            rows = [line for line in c.code.splitlines()]
            found["lines"] += rows
            found["lines over 110 characters"] += [f"{nb.path} {c.id}: {r[:70]}" for r in rows if len(r) > MAX_WIDTH]
            names = ", ".join(getattr(n, "name", "") for n in c.tree().body if hasattr(n, "name"))
            if len(rows) > 60:
                found["cells over 60 lines"].append(f"{nb.path} {c.id}: {len(rows)} lines: {names[:80]}")
            if len(rows) > 100:
                found["cells over 100 lines"].append(f"{nb.path} {c.id}: {len(rows)} lines: {names[:80]}")
            for node in ast.walk(c.tree()):
                if isinstance(node, ast.Raise) and node.exc is not None:
                    found["raises"].append(f"{nb.path} {c.id}")
                elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in CHECKERS:
                    found["checked"].append(f"{nb.path} {c.id}")
            found["upward imports"] += [f"{nb.path}: {m}" for m in sorted(set(imported(c.tree()))) if number.get(m, 0) > number[nb.module]]
        for c, node in exported(nb):
            patched = any(re.match(r"patch\b", ast.unparse(d)) for d in getattr(node, "decorator_list", ()))
            if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or patched:
                continue
            at = f"{nb.module}.{node.name}"
            found["private" if node.name.startswith("_") else "public"].append(at)
            if node.name.startswith("_"):
                if uses.get(at, 0) <= 1:
                    found["private used once per 1,000 lines"].append(at)
            elif node.name not in shown:
                found["public never shown"].append(at)
    found["public definitions"], found["exported lines"] = found["public"], found["lines"]
    return found


def measure(
    found: dict[str, list[str]],   # from `house`
) -> dict[str, float]:             # figure: value
    "The figures of `HOUSE`."
    figures = {name: len(found[name]) for name in HOUSE}
    once = "private used once per 1,000 lines"
    return figures | {
        once: round(1000 * len(found[once]) / len(found["lines"]), 2),
        "raises per 100 lines": round(100 * (len(found["raises"]) + len(found["checked"]) / 2) / len(found["lines"]), 2),
        "private share (%)": round(100 * len(found["private"]) / (len(found["private"]) + len(found["public"])), 1)}


if __name__ == "__main__":
    counted = house()
    for figure, value in measure(counted).items():
        print(f"{figure:34} {value:>9} (at most {HOUSE[figure]})")
    for figure in [f for f in HOUSE if f in sys.argv[1:]]:
        print(f"\n{figure}:", *counted[figure], sep="\n  ")

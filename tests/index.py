"""Write tests/README.md: where what is tested. `python tests/index.py`; `test_gates.py` fails when the page is behind."""
from __future__ import annotations

import ast
from pathlib import Path

import gates

HERE = Path(__file__).resolve().parent
ACROSS = {"slips": "slips that people make", "no_silent_wrong": "what would be wrong without a word", "hostile": "files of strangers",
          "crash": "processes killed, folders and caches", "resume": "processes killed, training"}
HEAD = """# Tests

Derived by `python tests/index.py`; do not edit.

A room's own tests are in `test_<room>.py`. Five files go across the rooms, each about one kind of accident: {across}.
This page lists, for each room, its own files and those tests across that call it.
"""


def rooms_of(
    tree: ast.Module,             # a test file
) -> dict[str, str]:              # name -> room it comes from
    "What a test file imports from the package."
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fer_nb."):
            found |= {a.asname or a.name: node.module.split(".")[1] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "fer_nb":
            found |= {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.asname: a.name.split(".")[1] for a in node.names if a.name.startswith("fer_nb.") and a.asname}
    return found


def used(
    node: ast.AST,               # a test function
    imports: dict[str, str],     # name -> room
    helpers: dict[str, set[str]],  # function of the file -> rooms it uses
) -> set[str]:                   # rooms
    "The rooms whose names a test uses, by itself or through a helper of its file."
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {a.arg for a in ast.walk(node) if isinstance(a, ast.arg)}
    return {imports[n] for n in names & set(imports)} | {r for n in names & set(helpers) for r in helpers[n]}


def across() -> dict[str, dict[str, list[str]]]:  # room -> file -> tests
    "The tests of the five files, by room."
    found: dict[str, dict[str, list[str]]] = {}
    for name in ACROSS:
        tree = ast.parse((HERE / f"test_{name}.py").read_text(encoding="utf-8"))
        imports, functions = rooms_of(tree), [n for n in tree.body if isinstance(n, ast.FunctionDef)]
        helpers = {f.name: used(f, imports, {}) for f in functions if not f.name.startswith("test_")}
        for f in functions:
            for room in used(f, imports, helpers) if f.name.startswith("test_") else ():
                found.setdefault(room, {}).setdefault(name, []).append(f.name)
    return found


def page() -> str:  # Markdown
    "The index."
    files = {p.stem: ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) or "" for p in sorted(HERE.glob("test_*.py"))}
    lines = [HEAD.format(across=", ".join(f"`test_{k}.py` ({v})" for k, v in ACROSS.items()))]
    own: dict[str, list[str]] = {}
    modules = [r.module for r in gates.build.rooms()]
    for stem in files:
        match = max((m for m in modules if stem.removeprefix("test_").startswith(m)), key=len, default=None)
        own.setdefault(match or "", []).append(stem)
    others = across()
    common = {"core", "synth", "data"}  # nearly every test draws faces and names errors
    for room in modules:
        lines.append(f"## {room}\n")
        lines += [f"- `{stem}.py`: {files[stem].splitlines()[0]}" for stem in own.get(room, ())]
        if room not in common:
            lines += [f"- `test_{name}.py`: {', '.join(f'`{t[5:]}`' for t in tests)}" for name, tests in others.get(room, {}).items()]
        lines.append("")
    lines.append("## Everything\n")
    lines += [f"- `{stem}.py`: {files[stem].splitlines()[0]}" for stem in own.get("", ())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")

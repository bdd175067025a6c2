"""Build what is derived from the notebooks, with or without Quarto.

    python docs/build.py export    # clean the notebooks; write fer_nb/*.py, README.md, nbs/sidebar.yml, nbs/nbdev.yml
    python docs/build.py check     # do the same in a copy; exit 1 and show the difference if the checkout is behind
    python docs/build.py site      # the documentation site, in _docs/
"""
from __future__ import annotations

import argparse
import ast
import base64
import difflib
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SHELVES = ("Start", "Tutorials", "Data", "Models", "Training", "Robustness", "Analysis", "Use", "Explanations")
EXPLANATIONS = ("08_model_card", "09_scale", "10_fer2013", "11_paper_dmc", "12_paper_sqsnet", "13_results")  # pages without a question to step through
DECADES = {"0": "Data", "1": "Data", "2": "Models", "3": "Training", "4": "Training", "5": "Use", "6": "Start"}
DERIVED = ("nbs/*.ipynb", "nbs/**/*.ipynb", "fer_nb/*.py", "fer_nb/**/*.py", "nbs/sidebar.yml", "nbs/nbdev.yml",
           "README.md", "docs/readme_files/*")


# ---------------------------------------------------------------- the project

@dataclass(frozen=True)
class Room:
    "One row of the table of rooms in docs/design.md."

    notebook: str          # such as `00_core`
    module: str            # such as `core`
    shelf: str             # the section of the sidebar

    @property
    def number(self) -> int:  # imports go to lower numbers
        "The number of its notebook."
        return int(self.notebook[:2])


def rooms(
    root: Path = ROOT,  # the project
) -> list[Room]:        # in the order of the table
    "Read the table of rooms of docs/design.md."
    rows = [[c.strip() for c in line.strip().strip("|").split("|")]
            for line in (root / "docs/design.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    found = [Room(r[0].strip("`"), r[1].strip("`"), r[2]) for r in rows if len(r) == 4 and re.match(r"`\d\d_", r[0])]
    if not found:
        raise SystemExit("docs/design.md: no table of rooms (four columns, the first a notebook)")
    return found


def settings(
    root: Path = ROOT,  # the project
) -> dict[str, str]:    # settings.ini
    "Read settings.ini."
    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def files(
    root: Path = ROOT,  # the project
) -> list[Path]:        # relative to it
    "List the files that belong to the project: what git tracks or would track, else all but caches."
    git = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if git.returncode == 0 and git.stdout:
        return sorted(Path(f) for f in git.stdout.split("\0") if f and (root / f).is_file())
    skip = {".git", ".venv", "_docs", "_proc", "runs", "build", "dist", "__pycache__", ".pytest_cache", ".ipynb_checkpoints"}
    return sorted(f for p in root.rglob("*") if p.is_file()
                  for f in [p.relative_to(root)] if not any(s in skip or s.endswith(".egg-info") for s in f.parts))


def notebooks(
    root: Path = ROOT,  # the project
) -> list[Path]:        # relative to nbs/, in the order of the sidebar
    "List the notebooks that nbdev reads: not those in folders or with names that start with `_` or `.`."
    found = [p.relative_to(root / "nbs") for p in (root / "nbs").rglob("*.ipynb")]
    return sorted(p for p in found if not any(part[0] in "._" for part in p.parts))


def copy_project(
    root: Path,  # the project
    dest: Path,  # a folder that does not exist yet
) -> Path:       # `dest`
    "Copy the files of the project, so that a tool can write without touching the checkout."
    for f in files(root):
        (dest / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / f, dest / f)
    return dest


def python(
    code: str,   # what to run
    cwd: Path,   # in which project
) -> str:        # what it printed
    "Run Python in a fresh interpreter, with that project first on the path and no personal nbdev settings."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env |= {"PYTHONPATH": str(cwd), "XDG_CONFIG_HOME": str(cwd / ".no-config"), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{code}\nfailed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


# ---------------------------------------------------------------- sidebar and README

def sidebar(
    root: Path = ROOT,  # the project
) -> str:               # the text of nbs/sidebar.yml
    "Sort the notebooks on their shelves: the table of rooms decides, else the first digit of the number."
    shelf_of = {r.notebook: r.shelf for r in rooms(root)}
    shelves: dict[str, list[str]] = {s: [] for s in SHELVES}
    for nb in notebooks(root):
        by_number = DECADES.get(nb.name[0], "Start")
        shelf = shelf_of.get(nb.stem, by_number)
        if nb.parent.name:
            shelf = "Explanations" if nb.stem in EXPLANATIONS else "Tutorials"
        shelves[shelf].append(nb.as_posix())
    shelves["Start"].sort(key=lambda p: (p != "index.ipynb", p))
    lines = ["website:", "  sidebar:", "    contents:"]
    for shelf, pages in shelves.items():
        if pages:
            lines += [f"      - section: {shelf}", "        contents:"]
            for p in pages:
                lines += [f"          - text: {json.dumps(label(root / 'nbs' / p), ensure_ascii=False)}", f"            href: {p}"]
    return "\n".join(lines) + "\n"


def label(
    path: Path,  # a notebook
) -> str:        # such as `41 The whole way`
    "Name a notebook in the sidebar: its number, and its title up to a colon."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    heading = re.search(r"^# (.+)$", "\n".join(text(c["source"]) for c in cells if c["cell_type"] == "markdown"), re.M)
    number = re.match(r"\d+", path.name)
    return " ".join(filter(None, [number and number[0], heading[1].partition(":")[0].strip() if heading else path.stem]))


def text(
    value: str | list[str],  # as notebooks store text
) -> str:                    # in one piece
    "Join the lines of a notebook's text."
    return value if isinstance(value, str) else "".join(value)


def split_directives(
    source: str,               # of a code cell
) -> tuple[list[str], str]:    # the directives, and the code below them
    "Take the `#|` lines off the top of a cell."
    lines = source.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    return [line[2:].strip() for line in lines[:n]], "\n".join(lines[n:]).strip("\n")


def for_github(
    md: str,  # Markdown as written in nbs/index.ipynb
) -> str:     # as the README shows it
    "Keep what is meant for the README, and make relative links start at the root."
    def conditional(m: re.Match) -> str:
        html = m.group(3).startswith("html")
        return m.group(4).strip("\n") if (m.group(2) == "hidden") == html else ""

    md = re.sub(r'^(:{3,}) *\{\.content-(visible|hidden) when-format="(\w+)"\}\n(.*?)^\1 *$', conditional, md, flags=re.M | re.S)
    return re.sub(r"(\]\()(?![a-z]+:|#|/)([^)\s]+)", lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])), md)


def for_output(
    out: dict,                       # one output of a cell
    stem: str,                       # names its picture
    pictures: dict[str, bytes],      # gets the picture, by its path from the root
) -> str:                            # Markdown
    "Turn a saved output into Markdown that GitHub shows."
    if out["output_type"] == "stream":
        return f"```text\n{text(out['text']).rstrip()}\n```" if out["name"] == "stdout" else ""
    data = out.get("data", {})
    if "image/png" in data:
        path = f"docs/readme_files/{stem}.png"
        pictures[path] = base64.b64decode(text(data["image/png"]))
        alt = text(data.get("text/plain", ""))
        return f"![{'' if alt.startswith('<') else alt}]({path})"
    if "text/markdown" in data:
        return for_github(text(data["text/markdown"]).strip())
    if "<table" in (html := text(data.get("text/html", ""))):
        return re.search(r"<table.*</table>", re.sub(r"<style.*?</style>", "", html, flags=re.S), re.S)[0]
    return f"```text\n{text(data['text/plain']).rstrip()}\n```" if "text/plain" in data else ""


def readme(
    root: Path = ROOT,                  # the project
) -> tuple[str, dict[str, bytes]]:      # README.md, and its pictures by their path from the root
    "Turn nbs/index.ipynb with its saved outputs into README.md; nothing is run."
    pictures: dict[str, bytes] = {}
    parts = ["[//]: # (Derived from nbs/index.ipynb by `make export`; edit the notebook.)"]
    for cell in json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(for_github(source).strip())
            continue
        directives, code = split_directives(source)
        if cell["cell_type"] != "code" or "hide" in directives or any(d.startswith("default_exp") for d in directives):
            continue
        if code and "echo: false" not in directives:
            parts.append(f"```python\n{code}\n```")
        if "output: false" not in directives:
            parts += [for_output(o, f"{cell['id']}-{k}", pictures) for k, o in enumerate(cell["outputs"])]
    return "\n\n".join(p for p in parts if p) + "\n", pictures


def write_derived(
    root: Path,  # the project, or a copy of it
) -> None:
    "Clean the notebooks and write all that is derived from them, in place."
    python("from nbdev.clean import nbdev_clean; from nbdev.doclinks import nbdev_export; "
           "from nbdev.quarto import refresh_quarto_yml; "
           "nbdev_clean.__wrapped__(); nbdev_export.__wrapped__(); refresh_quarto_yml()", cwd=root)
    (root / "nbs/sidebar.yml").write_text(sidebar(root), encoding="utf-8")
    if (root / "nbs/index.ipynb").exists():
        page, pictures = readme(root)
        (root / "README.md").write_text(page, encoding="utf-8")
        shutil.rmtree(root / "docs/readme_files", ignore_errors=True)
        for path, data in pictures.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)


def derived(
    root: Path,              # the project
) -> dict[str, bytes]:       # content by path, notebooks included
    "Read the files that `write_derived` writes."
    found = {f for pattern in DERIVED for f in root.glob(pattern) if f.is_file() and ".ipynb_checkpoints" not in f.parts}
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in sorted(found)}


def behind(
    root: Path = ROOT,       # the project
) -> dict[str, str]:         # by path: how the checkout differs from what the notebooks say; empty when in sync
    "Derive everything anew in a copy and compare; the checkout is not touched."
    with tempfile.TemporaryDirectory() as tmp:
        copy = copy_project(root, Path(tmp, "project"))
        have = derived(copy)
        for path, data in have.items():
            if data.startswith(b"# AUTOGENERATED") or data.startswith(b'"""') and b"# AUTOGENERATED" in data[:2000]:
                (copy / path).unlink()  # a module whose notebook is gone must not survive
        write_derived(copy)
        want = derived(copy)
    return {p: difference(p, have.get(p), want.get(p)) for p in sorted({*have, *want}) if have.get(p) != want.get(p)}


def difference(
    path: str,            # of the file
    have: bytes | None,   # what the checkout holds; None when the file is missing
    want: bytes | None,   # what it should hold; None when nothing derives it
) -> str:                 # at most twenty lines
    "Say how a file differs."
    if have is None or want is None:
        return f"{path}: " + ("missing; run `make export`" if have is None else "nothing derives it: is its notebook gone?")
    try:
        old, new = have.decode().splitlines(), want.decode().splitlines()
    except UnicodeDecodeError:
        return f"{path}: the bytes differ"
    return "\n".join([*difflib.unified_diff(old, new, f"{path} (checkout)", f"{path} (derived)", lineterm="", n=1)][:20])


# ---------------------------------------------------------------- the site

def page_name(
    notebook: Path,  # relative to nbs/
) -> Path:           # relative to the site
    "The page of a notebook: its name without the number, as nbdev writes links."
    return notebook.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", notebook.name.lower())).with_suffix(".html")


def cross_links(
    source: str,          # the JSON of a processed notebook
    folder: Path,         # where it is, relative to nbs/
    cfg: dict[str, str],  # settings.ini
) -> str:                 # with links that work in the site, wherever it is served
    "Point nbdev's absolute links at the pages beside, numbered notebooks at their pages, the rest of the repository at its host."
    up = "../" * len(folder.parts)
    host = re.escape(f"{cfg['doc_host']}{cfg['doc_baseurl']}/")
    source = re.sub(rf"\[(`_\w+(?:\(\))?`)\]\({host}[^)]*\)", r"\1", source)  # private names have no place on a page
    source = re.sub(rf"({host}[\w./-]+\.html#\w+)\.[\w.]+", r"\1", source)    # a method is described with its class
    source = re.sub(host, up, source)
    source = re.sub(r"(\]\((?:[\w./-]*/)?)\d+[a-zA-Z0-9]*_([\w.-]+\.ipynb)", lambda m: m[1] + m[2].lower(), source)
    return re.sub(r"(\]\()" + re.escape(up + "../"), rf"\g<1>{cfg['git_url']}/blob/{cfg['branch']}/", source)


def constants(
    source: str,     # of an exported cell
) -> list[str]:      # the assignments of public names
    "Find what an exported cell defines that is neither a function nor a class; nbdev shows only those."
    found = [n for n in ast.parse(source).body if isinstance(n, (ast.Assign, ast.AnnAssign))]
    return [ast.get_source_segment(source, n) for n in found
            for target in [n.targets[0] if isinstance(n, ast.Assign) else n.target] if not getattr(target, "id", "_").startswith("_")]


def show_constants(
    nbs: Path,  # the notebooks of a copy
) -> None:
    "Put public constants on the page, after the cell that exports them."
    for path in nbs.rglob("*.ipynb"):
        nb = json.loads(path.read_text(encoding="utf-8"))
        cells = []
        for cell in nb["cells"]:
            cells.append(cell)
            directives, code = split_directives(text(cell["source"]))
            if cell["cell_type"] == "code" and "export" in directives and (shown := constants(code)):
                cells.append({"cell_type": "markdown", "id": f"{cell['id']}-constants", "metadata": {},
                              "source": "```python\n" + "\n".join(shown) + "\n```"})
        path.write_text(json.dumps({**nb, "cells": cells}), encoding="utf-8")


def own_words(
    work: Path,  # a copy of the project, its notebooks processed
) -> None:
    "Let each definition say on its page what its source says: defaults as written, fields with their comments."
    from signatures import Package, described
    package = Package(work / "fer_nb", lambda module, name: f"{module}.html#{name.lower()}")
    for room in rooms(work):
        path = work / "_proc" / f"{room.notebook}.ipynb"
        if not path.exists():
            continue
        nb = json.loads(path.read_text(encoding="utf-8"))
        for cell in nb["cells"]:
            if asked := re.search(r"^show_doc\(([\w.]+)\)$", text(cell["source"]), re.M):
                for out in cell["outputs"]:
                    out["data"] = {"text/markdown": described(package, room.module, asked[1], text(out["data"]["text/markdown"]))}
        path.write_text(json.dumps(nb), encoding="utf-8")


def number_free(
    proc: Path,           # the processed project
    cfg: dict[str, str],  # settings.ini
) -> None:
    "Rename the processed notebooks to their pages and mend the links, which Quarto does by itself; leave out what only Quarto reads."
    for nb in sorted(proc.rglob("*.ipynb")):
        rel = nb.relative_to(proc)
        page = json.loads(cross_links(nb.read_text(encoding="utf-8"), rel.parent, cfg))
        front = page["cells"][0]
        if front["cell_type"] == "raw":
            front["source"] = re.sub(r"^output-file:.*\n", "", text(front["source"]), flags=re.M)
        nb.unlink()
        (proc / page_name(rel).with_suffix(".ipynb")).write_text(json.dumps(page), encoding="utf-8")
    side = proc / "sidebar.yml"
    side.write_text(re.sub(r"\d+[a-zA-Z0-9]*_([\w.-]+\.ipynb)", lambda m: m[1].lower(), side.read_text(encoding="utf-8")), encoding="utf-8")
    options = yaml.safe_load((proc / "_quarto.yml").read_text(encoding="utf-8"))
    options["format"]["html"] = {k: v for k, v in options["format"]["html"].items() if k not in ("html-math-method", "grid")}
    (proc / "_quarto.yml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")


def render(
    proc: Path,           # the processed project
    cfg: dict[str, str],  # settings.ini
) -> Iterator[str]:       # warnings
    "Render the processed project with Quarto where it is installed, else with smalldocs."
    if shutil.which("quarto"):
        subprocess.run(["quarto", "render", "--no-cache"], cwd=proc, check=True)
        return
    from smalldocs.site import build
    number_free(proc, cfg)
    yield from build(proc, quiet=True).warnings


def front_matter(
    nb: dict,  # a processed notebook
) -> dict:     # `title` and `description` among it
    "Read what nbdev puts before a page."
    first = nb["cells"][0]
    return yaml.safe_load(text(first["source"]).strip().strip("-")) if first["cell_type"] == "raw" else {}


def for_machines(
    work: Path,           # a copy of the project, its notebooks processed
    cfg: dict[str, str],  # settings.ini
) -> dict[str, str]:      # text by path in the site
    "Write every page in Markdown, `llms.txt` with a line on each, and `llms-full.txt` with the whole reference."
    from pages import markdown
    from signatures import Package, reference
    root, files, about = f"{cfg['doc_host']}{cfg['doc_baseurl']}/", {}, {}
    for rel in notebooks(work):
        nb = json.loads(cross_links((work / "_proc" / rel).read_text(encoding="utf-8"), rel.parent, cfg))
        front = front_matter(nb)
        about[rel.as_posix()] = line = front.get("title", rel.stem), " ".join(str(front.get("description", "")).split())
        files[f"{page_name(rel).as_posix()}.md"] = f"# {line[0]}\n\n> {line[1]}\n\n{markdown(nb)}"
    head = f"# {cfg['title']}\n\n> {cfg['description']}\n\n"
    lines = [head + f"Install: `pip install {cfg['lib_name']}`. Every page is a notebook that was run; every name of the package in one file: "
             f"[reference]({root}llms-full.txt).\n"]
    for section in yaml.safe_load(sidebar(work))["website"]["sidebar"]["contents"]:
        lines.append(f"\n## {section['section']}\n")
        lines += [f"- [{item['text']}]({root}{page_name(Path(item['href'])).as_posix()}.md): {about[item['href']][1]}" for item in section["contents"]]
    files["llms.txt"] = "\n".join(lines) + "\n"
    package = Package(work / "fer_nb", lambda module, name: f"{root}{module}.html#{name.lower()}")
    files["llms-full.txt"] = head + "\n\n".join(
        f"## {cfg['lib_path']}.{r.module}\n\n{about[f'{r.notebook}.ipynb'][1]}\n\n{reference(package, r.module)}"
        for r in rooms(work) if f"{r.notebook}.ipynb" in about) + "\n"
    return files


def finish(
    out: Path,               # the rendered site
    extra: dict[str, str],   # files to put beside the pages
    fonts: Path,             # a folder
) -> list[str]:              # warnings
    "Put maths as MathML, aligned tables and Markdown versions into a rendered site, and nothing that another host must serve."
    from pages import finished, own_fonts
    problems: list[str] = []
    for path in sorted(out.rglob("*.html")):
        rel, found = path.relative_to(out), []
        path.write_text(finished(path.read_text(encoding="utf-8"), rel.name, "../" * len(rel.parent.parts), found), encoding="utf-8")
        problems += [f"{rel.as_posix()}: {p}" for p in found]
    for path in (out / "site_libs").rglob("*.css"):
        css = path.read_text(encoding="utf-8")
        if (own := own_fonts(css)) != css:
            path.write_text(own, encoding="utf-8")
    if (index := out / "search.json").exists():
        entries = json.loads(index.read_text(encoding="utf-8"))
        for e in entries:  # the link to the source of the next definition is no text of this one
            e["text"] = re.sub(r"\s*\bsource\s*$", "", e.get("text", ""))
        index.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    for name, content in extra.items():
        (out / name).write_text(content, encoding="utf-8")
    shutil.copytree(fonts, out / "fonts", dirs_exist_ok=True)
    (out / ".nojekyll").touch()
    return problems


def site(
    root: Path = ROOT,                # the project
    out: Path | None = None,          # default: the folder that settings.ini names
    workers: int = 2,                 # processes that execute imports and exported cells
) -> list[str]:                       # warnings: broken links, options that are not read, maths that is not understood
    "Build the site from the saved outputs: only imports and exported cells run, for the signatures."
    cfg = settings(root)
    out = Path(out or root / cfg["doc_path"])
    with tempfile.TemporaryDirectory() as tmp:
        work = copy_project(root, Path(tmp, "project"))
        (work / "nbs/sidebar.yml").write_text(sidebar(work), encoding="utf-8")
        show_constants(work / "nbs")
        said = python("from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs; "
                      f"refresh_quarto_yml(); proc_nbs(n_workers={workers})", cwd=work)
        if missing := [str(n) for n in notebooks(work) if not (work / "_proc" / n).exists()]:
            raise SystemExit(f"nbdev could not process {', '.join(missing)}:\n{said}")
        own_words(work)
        extra = for_machines(work, cfg)
        warnings = list(render(work / "_proc", cfg))
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(work / "_proc" / cfg["doc_path"], out)
        return warnings + finish(out, extra, work / "nbs/fonts")


def main(
    argv: list[str] | None = None,  # the command line
) -> int:                           # 0 when all is well
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["export", "check", "site"])
    parser.add_argument("--out", type=Path, help="where the site goes (default _docs)")
    args = parser.parse_args(argv)
    if args.what == "export":
        write_derived(ROOT)
        return 0
    problems = list(behind(ROOT).values()) if args.what == "check" else site(ROOT, args.out)
    for p in problems:
        print(p, file=sys.stderr)
    if args.what == "check":
        print(f"{len(problems)} derived file(s) behind" if problems else "all derived files are in sync")
        return int(bool(problems))
    print(f"{len(notebooks(ROOT))} notebooks, {len(problems)} warning(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The site: every notebook has a page, every public name is on it, links lead somewhere, equations survive."""
from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import gates
import pytest

build, ROOT = gates.build, gates.ROOT
NOTEBOOKS = build.notebooks(ROOT)
CFG = build.settings(ROOT)


class Page(HTMLParser):
    "The ids, links and visible text of a page."

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name"):
                self.ids.add(value or "")
            elif (key == "href" and tag != "base") or key == "src":
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    "The site as `make docs` builds it without Quarto, and what the build said."
    out = tmp_path_factory.mktemp("site") / "_docs"
    keep = [d for d in os.environ["PATH"].split(os.pathsep) if not (Path(d) / "quarto").exists()]
    done = subprocess.run([sys.executable, str(ROOT / "docs/build.py"), "site", "--out", str(out)],
                          capture_output=True, text=True, env={**os.environ, "PATH": os.pathsep.join(keep)})
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stderr


@pytest.fixture(scope="session")
def pages(site: tuple[Path, str]) -> dict[str, Page]:
    "The pages by their path in the site."
    return {p.relative_to(site[0]).as_posix(): Page(p) for p in sorted(site[0].rglob("*.html"))}


def test_no_warnings(site: tuple[Path, str]) -> None:
    assert not site[1].strip(), site[1]


def test_each_notebook_has_a_page(pages: dict[str, Page]) -> None:
    assert set(pages) == {build.page_name(n).as_posix() for n in NOTEBOOKS}


def broken_links(
    root: Path,              # the site
    pages: dict[str, Page],  # its pages
    here: Path,              # one of them
) -> list[str]:              # links of that page that lead nowhere
    "Follow the local links of a page, to the file and to the place in it; links to our own host should be local."
    broken = []
    for link in pages[here.as_posix()].links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if link.startswith(CFG["doc_host"]) and parts.path != f"{CFG['doc_baseurl']}/{here.as_posix()}":
                broken.append(f"{link}: should be relative")
            continue
        target = Path(os.path.normpath(here.parent / unquote(parts.path))) if parts.path else here
        if (root / target / "index.html").exists():
            target = target / "index.html"
        if not (root / target).exists():
            broken.append(link)
        elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target.as_posix()].ids:
            broken.append(f"{link}: no such place on the page")
    return broken


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=str)
def test_links_lead_somewhere(site: tuple[Path, str], pages: dict[str, Page], nb: Path) -> None:
    assert not broken_links(site[0], pages, build.page_name(nb))


def test_broken_links_are_found(tmp_path: Path) -> None:
    own = f"{CFG['doc_host']}{CFG['doc_baseurl']}/b.html"
    (tmp_path / "a.html").write_text(f'<a href="b.html#x"></a><a href="b.html#y"></a><a href="c.html"></a><img src="p.png"><a href="{own}"></a>')
    (tmp_path / "b.html").write_text('<p id="x">')
    pages = {n: Page(tmp_path / n) for n in ("a.html", "b.html")}
    assert [b.split(":")[0] for b in broken_links(tmp_path, pages, Path("a.html"))] == ["b.html#y", "c.html", "p.png", "https"]


@pytest.mark.parametrize("nb", [n for n in NOTEBOOKS if gates.read(n).module], ids=str)
def test_public_names_are_on_the_page(pages: dict[str, Page], nb: Path) -> None:
    module = (ROOT / "fer_nb" / f"{gates.read(nb).module}.py").read_text(encoding="utf-8")
    names = next(ast.literal_eval(n.value) for n in ast.parse(module).body
                 if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__")
    text = pages[build.page_name(nb).as_posix()].text
    assert not [n for n in names if not re.search(rf"\b{re.escape(n.rpartition('.')[2])}\b", text)]


def squeeze(text: str) -> str:
    "TeX without white space."
    return re.sub(r"\s+", "", text)


def equations(markdown: str) -> list[str]:
    "Displayed equations, `$$...$$`, outside code."
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", markdown, flags=re.M | re.S)
    return re.findall(r"\$\$(.+?)\$\$", prose, re.S)


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=str)
def test_equations_survive(site: tuple[Path, str], nb: Path) -> None:
    source = (site[0] / build.page_name(nb)).read_text(encoding="utf-8")
    shown = {squeeze(html.unescape(m)) for m in re.findall(r'class="math display">\\\[(.*?)\\\]</span>', source, re.S)}
    wanted = [e for c in gates.read(nb).cells if c.kind == "markdown" for e in equations(c.source)]
    assert not [e for e in wanted if squeeze(e) not in shown]
    body = re.sub(r"<(pre|code|script)\b.*?</\1>", "", source, flags=re.S)
    assert "$$" not in body, "an equation was not understood"


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=str)
def test_sidebar_lists_every_page(pages: dict[str, Page], nb: Path) -> None:
    here = build.page_name(nb)
    for path, page in pages.items():
        up = os.path.relpath(here, Path(path).parent)
        assert up in page.links or (here.name == "index.html" and {"./", "../"} & set(page.links)), f"{path} does not link to {here}"

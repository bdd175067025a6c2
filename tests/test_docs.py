"""The site: every notebook has a page, every public name and field is on it, links lead somewhere, nothing comes from another host."""
from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import html
import http.server
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import gates
import pytest
from conftest import CHROMIUM, browser

sys.path.append(str(gates.ROOT / "docs"))
import pages as published  # noqa: E402
import signatures  # noqa: E402

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
    return re.findall(r"\$\$(.+?)\$\$", without_code(markdown), re.S)


def without_code(markdown: str) -> str:
    "Prose alone."
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", markdown, flags=re.M | re.S)


def tex_of(source: str) -> list[str]:
    "The TeX that each equation of a page keeps beside its MathML, squeezed."
    return [squeeze(html.unescape(m)) for m in re.findall(r'<annotation encoding="application/x-tex">(.*?)</annotation>', source, re.S)]


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=str)
def test_equations_survive(site: tuple[Path, str], nb: Path) -> None:
    source = (site[0] / build.page_name(nb)).read_text(encoding="utf-8")
    shown = tex_of(source)
    prose = [c.source for c in gates.read(nb).cells if c.kind == "markdown"]
    displayed = [squeeze(e) for text in prose for e in equations(text)]
    assert not [e for e in displayed if re.sub(r"\\tag\{.*?\}", "", e) not in shown]
    assert source.count('class="equation-number"') == sum("\\tag{" in e for e in displayed)
    body = re.sub(r"<(pre|code|script|annotation)\b.*?</\1>", "", source, flags=re.S)
    assert "$$" not in body and 'class="math' not in re.sub(r'<span class="math \w+"><math', "", body), "an equation was not understood"
    inline = [e for text in prose for e in re.findall(r"(?<![\\$`\w])\$(?![\s$])([^$\n]+?)(?<![\s\\])\$(?![\d$])", re.sub(r"\$\$.+?\$\$", "", without_code(text), flags=re.S))]
    assert source.count("<math") == len(shown) == len(displayed) + len(inline)


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=str)
def test_sidebar_lists_every_page(pages: dict[str, Page], nb: Path) -> None:
    here = build.page_name(nb)
    for path, page in pages.items():
        up = os.path.relpath(here, Path(path).parent)
        assert up in page.links or (here.name == "index.html" and {"./", "../"} & set(page.links)), f"{path} does not link to {here}"


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=str)
def test_sidebar_says_the_number(site: tuple[Path, str], nb: Path) -> None:
    source = (site[0] / "index.html").read_text(encoding="utf-8")
    entry = re.search(rf'<a href="{build.page_name(nb).as_posix()}"[^>]*class="sidebar-item-text[^>]*>\s*<span class="menu-text">(.*?)</span>', source)
    number = re.match(r"(\d\d)_", nb.name)
    if number:
        assert html.unescape(entry[1]).startswith(f"{number[1]} ")


# ---------------------------------------------------------------- signatures and fields

UNREADABLE = re.compile(r"__main__\.|<lambda>|<factory>|0x[0-9a-f]{6,}|\d\.\d{7,}")


def signature_blocks(source: str) -> list[str]:
    "The signatures and tables of fields of a page, as text."
    cells = source.split('class="cell-output cell-output-display cell-output-markdown">')[1:]
    found = [m for c in cells for m in [re.search(r"<pre.*?</pre>", c, re.S)] + re.findall(r'<div class="fields">.*?</table>', c, re.S)]
    return [html.unescape(re.sub(r"<[^>]+>", "", m if isinstance(m, str) else m[0])) for m in found]


@pytest.mark.parametrize("nb", [n for n in NOTEBOOKS if gates.read(n).module], ids=str)
def test_signatures_can_be_read(site: tuple[Path, str], nb: Path) -> None:
    source = (site[0] / build.page_name(nb)).read_text(encoding="utf-8")
    blocks = signature_blocks(source)
    assert not re.search(r"<a [^>]*><code>_\w", source), "a private name is linked"
    assert blocks and not [b for b in blocks if UNREADABLE.search(b)]
    assert not [line for b in blocks for line in b.splitlines() if len(line) > 110 and "field" not in b[:8]], "too wide for the column"


PACKAGE = signatures.Package(ROOT / "fer_nb", lambda module, name: f"{module}.html#{name.lower()}")
TABLES = [(m.name, name) for m in PACKAGE.modules.values() for name, node in m.nodes.items()
          if not name.startswith("_") and signatures.is_table(node)]


@pytest.mark.parametrize("module, name", TABLES, ids=lambda part: part)
def test_every_field_is_explained(pages: dict[str, Page], module: str, name: str) -> None:
    "Against the class itself: the same fields in the same order, defaults that mean the same, and no empty comment."
    there = importlib.import_module(f"fer_nb.{module}")
    cls = getattr(there, name)
    shown = signatures.fields(PACKAGE, PACKAGE.modules[module], PACKAGE.modules[module].nodes[name])
    if not dataclasses.is_dataclass(cls):
        assert [v.name for v in shown] == list(cls._fields)
    else:
        own = [f for f in dataclasses.fields(cls) if not f.name.startswith("_")]
        assert [v.name for v in shown] == [f.name for f in own]
        for v, f in zip(shown, own):
            if f.default is not dataclasses.MISSING:
                assert repr(eval(v.default, {**vars(dataclasses), **vars(there)})) == repr(f.default)
            assert bool(v.default) == (f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING)
    assert all(v.meaning and v.kind for v in shown)
    text = pages[f"{module}.html"].text
    assert all(re.search(rf"\b{v.name}\b", text) for v in shown) and "meaning" in text


TOY = '''"""Toy."""
from dataclasses import dataclass, field
EPS = 4 / 255

@dataclass
class Base:
    "What all have."
    eps: float = 4 / 255  # radius
    # what is kept: `Base`,
    # or `thing.Other`
    kept: "str | None" = field(default=None, repr=False)

@dataclass(frozen=True)
class Child(Base):
    "More."
    many: list[int] = field(default_factory=lambda: [1, 2])  # numbers
    old: dict = field(default_factory=dict)  # by name

class Net(nn.Module):
    def __init__(self, depth: int = 3, *, say: Callable = lambda text: None):
        self.depth = depth

class Deep(Net):
    "Deeper."

def go(
    x: Tensor,          # the first
    /,
    net: Net = Net(2),  # another, about which much can be said: it is fitted, and then it is used, and later it is thrown away again
    *rest: int,         # more
) -> Tensor:            # sum
    "Go."

@patch(as_prop=True)
def size(self: Net) -> int:
    "How large."

@patch
def run(self: Net, n: int = 1) -> None: "Run."
'''


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> signatures.Package:
    "A package of one module."
    folder = tmp_path_factory.mktemp("toy")
    (folder / "thing.py").write_text(TOY, encoding="utf-8")
    return signatures.Package(folder, lambda module, name: f"{module}.html#{name.lower()}")


@pytest.mark.parametrize("name, written", [
    ("Base", "Base(eps, kept)"), ("Child", "Child(eps, kept, many, old)"), ("Net.size", "Net.size: int"),
    ("Net.run", "def run(n: int = 1) -> None"), ("gone", ""), ("Base.eps", ""),
    ("Net", "Net(depth: int = 3, *, say: Callable = lambda text: None)"),
    ("Deep", "Deep(depth: int = 3, *, say: Callable = lambda text: None)"),
    ("go", "def go(\n    x: Tensor,          # the first\n    /,\n    net: Net = Net(2),  # another, about which much can be said: it is fitted, and then it is used, and"
           "\n                        # later it is thrown away again\n    *rest: int,         # more\n) -> Tensor             # sum"),
])
def test_signature_of_the_toy(toy: signatures.Package, name: str, written: str) -> None:
    assert signatures.signature(toy, "thing", name) == written


def test_fields_of_the_toy(toy: signatures.Package) -> None:
    rows = signatures.field_table(toy, "thing", "Child").splitlines()[3:-1]
    assert rows == ["| `eps` | `float` | `4 / 255` | radius |",
                    "| `kept` | `str` or `None` | `None` | what is kept: [`Base`](thing.html#base), or `thing.Other` |",
                    "| `many` | `list[int]` | `[1, 2]` | numbers |", "| `old` | `dict` | `{}` | by name |"]
    shown = signatures.described(toy, "thing", "Base", "---\n\n### Base\n\n```python\ndef Base(eps:float=0.01568627450980392)\n```\n\n*What all have.*")
    assert shown.startswith("### Base\n\n```python\nBase(eps, kept)\n```\n\nWhat all have.\n\n::: {.fields}") and "0.0156" not in shown
    assert signatures.described(toy, "thing", "gone", "as it was") == "as it was"


# ---------------------------------------------------------------- tables

def test_words_left_numbers_right() -> None:
    source = ('<table border="1" class="dataframe"><thead><tr style="text-align: right;"><th></th><th colspan="2">data</th></tr>'
              "<tr><th>who</th><th>acc</th><th>remark</th></tr></thead><tbody>"
              '<tr><th rowspan="2">a</th><td>1.5 ± 0.2</td><td>see `fer-nb run`</td></tr><tr><td>-</td><td>none|all</td></tr>'
              "<tr><th>b</th><td>12 %</td><td>2 runs</td></tr></tbody></table>")
    kinds = re.findall(r'<t[dh][^>]*class="(\w+)', published.tables(source))
    assert kinds == ["words", "number", "words", "number", "words", "words", "number", "words", "number", "words", "words", "number", "words"]
    assert "<code>fer-nb run</code>" in published.tables(source) and "text-align" not in published.tables(source)
    assert published.Table(source).markdown().splitlines() == [
        "| who | data acc | data remark |", "| --- | --: | --- |", "| a | 1.5 ± 0.2 | see `fer-nb run` |", "| a | - | none\\|all |",
        "| b | 12 % | 2 runs |"]


def test_tables_of_the_pages(site: tuple[Path, str], pages: dict[str, Page]) -> None:
    cells = [c for p in pages for c in re.findall(r"<(t[dh])\b([^>]*)>(.*?)</\1>", (site[0] / p).read_text(encoding="utf-8"), re.S)]
    kinds = [(re.search(r'class="(words|number)\b', attrs) or [None])[0] for _, attrs, _ in cells]
    assert len(cells) > 1000 and None not in kinds and len(set(kinds)) == 2
    assert not [c[2] for c in cells if "`" in re.sub(r"<code.*?</code>", "", c[2])]


# ---------------------------------------------------------------- nothing from another host

def fetched(source: str) -> list[str]:
    "What a browser would fetch to show a page: scripts, pictures, stylesheets, fonts."
    found = re.findall(r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']([^\"']+)", source)
    found += [m[1] for m in re.finditer(r"<link\b([^>]*)>", source) if "stylesheet" in m[1] or "icon" in m[1] for m in [re.search(r'href="([^"]+)', m[0])]]
    return found + re.findall(r"(?:url\(|@import )\s*[\"']?([^\"')\s]+)", source)


def test_no_page_needs_another_host(site: tuple[Path, str], pages: dict[str, Page]) -> None:
    files = [*(site[0] / p for p in pages), *site[0].rglob("*.css")]
    needed = {p.relative_to(site[0]).as_posix(): [u for u in fetched(p.read_text(encoding="utf-8")) if re.match(r"(https?:)?//", u)] for p in files}
    assert not {p: u for p, u in needed.items() if u}
    assert len(fetched((site[0] / "index.html").read_text(encoding="utf-8"))) > 4
    scripts = "".join(p.read_text(encoding="utf-8") for p in (site[0] / "site_libs").glob("*.js"))
    assert not re.search(r"(?:fetch|import)\([\"']https?:", scripts)


def test_fonts_of_other_hosts_are_left_out() -> None:
    css = '@charset "UTF-8";@import url(https://fonts.example/css2?family=A:wght@300;400&display=swap);:root{--a:1}@import "https://b.example/x.css";b{}'
    assert published.own_fonts(css) == '@charset "UTF-8";:root{--a:1}b{}'


def test_maths_that_is_not_understood_is_a_warning() -> None:
    problems: list[str] = []
    page = published.maths(r'<span class="math inline">\(\nosuchthing x\)</span><span class="math display">\[a &lt; b \tag{1, 2}\]</span>', problems)
    assert len(problems) == 1 and "nosuchthing" in problems[0]
    assert page.count("<math") == 1 and '<span class="equation-number">(1, 2)</span>' in page


# ---------------------------------------------------------------- for machines

def test_every_page_in_markdown(site: tuple[Path, str], pages: dict[str, Page]) -> None:
    for p, page in pages.items():
        text = (site[0] / f"{p}.md").read_text(encoding="utf-8")
        assert re.match(r"# .+\n\n> .+\n", text) and not re.search(r"^:::|^<(table|div|style)|base64,|\{target=", without_code(text), re.M), p
        assert f"{Path(p).name}.md" in page.links
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s]+)\)", without_code(text)):
            assert (site[0] / Path(p).parent / unquote(link.partition("#")[0])).exists(), f"{p}.md: {link}"


def test_llms_txt(site: tuple[Path, str], pages: dict[str, Page]) -> None:
    "The form of llmstxt.org: a title, a summary, sections of links, each with a line on it."
    text = (site[0] / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# fer_nb\n\n> .+\n", text) and len(re.findall(r"^## ", text, re.M)) > 5
    links = re.findall(r"^- \[.+?\]\((\S+)\): .+", text, re.M)
    root = f"{CFG['doc_host']}{CFG['doc_baseurl']}/"
    assert sorted(links) == sorted(f"{root}{p}.md" for p in pages)
    full = (site[0] / "llms-full.txt").read_text(encoding="utf-8")
    for room in build.rooms(ROOT):
        assert f"## fer_nb.{room.module}\n" in full
    assert "eps: float = 4 / 255  # radius in the maximum norm" in full and not UNREADABLE.search(full)


# ---------------------------------------------------------------- in a browser

CONTRAST = """() => {
  const rgb = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const over = (a, b) => { const k = a[3] === undefined ? 1 : a[3]; return [0, 1, 2].map((i) => a[i] * k + b[i] * (1 - k)); };
  const back = (el) => el ? over(rgb(getComputedStyle(el).backgroundColor), back(el.parentElement)) : [255, 255, 255];
  const opacity = (el) => el ? +getComputedStyle(el).opacity * opacity(el.parentElement) : 1;
  const lum = (c) => [.2126, .7152, .0722].reduce((s, w, i) => { const v = c[i] / 255; return s + w * (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); }, 0);
  const ratio = (el, colour) => {
    const b = back(el), c = rgb(colour); c[3] = (c[3] === undefined ? 1 : c[3]) * opacity(el);
    const a = lum(over(c, b)), d = lum(b); return (Math.max(a, d) + .05) / (Math.min(a, d) + .05); };
  const input = document.querySelector(".smalldocs-search input");
  const found = [["input", ratio(input, getComputedStyle(input).color)], ["placeholder", ratio(input, getComputedStyle(input, "::placeholder").color)]];
  for (const el of document.querySelectorAll("body *")) {
    const own = [...el.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (own && el.offsetParent && !el.closest("svg, style, script, annotation")) found.push([el.className || el.tagName, ratio(el, getComputedStyle(el).color)]);
  }
  return found; }"""

WIDE = """() => [...document.querySelectorAll("main pre, main .table-box, main .math.display")].filter((el) => el.scrollWidth > el.clientWidth + 1)
  .map((el) => [el.className, getComputedStyle(el).backgroundImage.includes("gradient"), getComputedStyle(el).overflowX])"""


@contextlib.contextmanager
def hosted(folder: Path) -> Iterator[str]:
    "Serve a folder on this machine."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: "Say nothing."
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to look at the site in one")
def test_in_a_browser(site: tuple[Path, str]) -> None:
    "Search and all other text can be read in both modes, no page asks another host, all maths is drawn in its font, and what is too wide shows it."
    with hosted(site[0]) as root, browser() as page:
        asked: list[str] = []
        missing: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.on("response", lambda r: missing.append(r.url) if r.status >= 400 else None)
        page.set_viewport_size({"width": 1400, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(f"{root}index.html")
            page.fill(".smalldocs-search input", "adversarial training")
            page.locator(".search-result-text mark").first.wait_for()
            page.locator(".search-result").nth(1).hover()
            found = page.evaluate(CONTRAST)
            assert {"placeholder", "MARK", "search-result-title", "search-result-section", "search-result-text"} <= {name for name, _ in found}
            page.goto(f"{root}config.html")
            found += page.evaluate(CONTRAST)
            assert len(found) > 300 and not [(name, round(ratio, 2)) for name, ratio in found if ratio < 4.5], scheme
        page.emulate_media(color_scheme="light")
        for name in ("sqs.html", "config.html", "models.html", "tutorials/paper_dmc.html"):
            page.goto(f"{root}{name}")
            page.evaluate("document.fonts.ready")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            assert not [w for w in page.evaluate(WIDE) if not w[1] or w[2] != "auto"], name
            drawn = page.evaluate("[...document.querySelectorAll('math')].map((m) => m.getBoundingClientRect().width)")
            assert len(drawn) == (site[0] / name).read_text(encoding="utf-8").count("<math") and all(w > 3 for w in drawn), name
            assert not page.locator("merror").count() and (not drawn or page.evaluate("document.fonts.check('16px \"fer maths\"')"))
        page.goto(f"{root}sqs.html")
        fit = page.evaluate("[...document.querySelectorAll('.cell-output-markdown pre, .math.display')].map((e) => e.scrollWidth - e.clientWidth)")
        assert len(fit) > 10 and max(fit) <= 1, "signatures and equations fit the column"
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert len(asked) > 50 and not [u for u in asked if not u.startswith((root, "data:"))] and not missing

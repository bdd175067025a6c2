"""What every page gets after it is rendered, by Quarto or by smalldocs: maths, tables, and nothing from another host; and its Markdown."""
from __future__ import annotations

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from math_core import LatexError, LatexToMathML

# ---------------------------------------------------------------- maths

_TEX = LatexToMathML(annotation=True)
_SPAN = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)


def mathml(
    tex: str,        # as the notebook has it
    display: bool,   # on a line of its own
) -> str:            # HTML; raises LatexError
    "Turn TeX into MathML, which browsers show without a script; a `\\tag` becomes the number at the right."
    tag = re.search(r"\\tag\{([^}]*)\}", tex)
    body = tex.replace(tag[0], "") if tag else tex
    shown = _TEX.convert_with_local_state(body.strip(), displaystyle=display)
    number = f'<span class="equation-number">({html.escape(tag[1])})</span>' if tag else ""
    return f'<span class="math {"display" if display else "inline"}">{shown}{number}</span>'


def maths(
    page: str,              # HTML
    problems: list[str],    # gets the equations that are not understood
) -> str:                   # with MathML
    "Turn every equation of a page into MathML."
    def convert(m: re.Match) -> str:
        tex = html.unescape(m[2])
        try:
            return mathml(tex, m[1] == "display")
        except LatexError:
            problems.append(f"not understood as maths: {tex}")
            return m[0]
    return _SPAN.sub(convert, page)


# ---------------------------------------------------------------- tables

class Table(HTMLParser):
    "The cells of a table in a grid: a cell that spans rows or columns stands in each of them."

    def __init__(
        self,
        source: str,  # from `<table` to `</table>`
    ):
        super().__init__()
        self.rows: list[list[str]] = []            # texts
        self.heads = 0                             # rows of the head
        self.places: list[tuple[int, int]] = []    # row and column of each cell, as they come
        self._spans: dict[tuple[int, int], str] = {}
        self._cell: list[str] | None = None
        self._head = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "thead":
            self._head = True
        elif tag == "tr":
            self.rows.append([])
            self.heads += self._head
            self._fill()
        elif tag in ("td", "th"):
            self._cell, given = [], dict(attrs)
            self._size = int(given.get("rowspan") or 1), int(given.get("colspan") or 1)

    def handle_endtag(self, tag: str) -> None:
        if tag == "thead":
            self._head = False
        elif tag in ("td", "th") and self._cell is not None:
            text, (down, across), row = " ".join("".join(self._cell).split()), self._size, len(self.rows) - 1
            column = len(self.rows[-1])
            self.places.append((row, column))
            self._spans |= {(row + r, column + c): text for r in range(1, down) for c in range(across)}
            self.rows[-1] += [text] * across
            self._cell = None
            self._fill()

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def _fill(self) -> None:
        while (place := (len(self.rows) - 1, len(self.rows[-1]))) in self._spans:
            self.rows[-1].append(self._spans.pop(place))

    def numeric(self) -> set[int]:  # columns
        "Find the columns of numbers: most cells begin like one and none is a sentence."
        found = set()
        for k in range(max(map(len, self.rows), default=0)):
            cells = [r[k] for r in self.rows[self.heads:] if len(r) > k and r[k] not in EMPTY]
            if sum(bool(NUMBER.match(c)) for c in cells) > len(cells) / 2 and all(len(c) < 32 for c in cells):
                found.add(k)
        return found

    def markdown(self) -> str:  # a pipe table
        "Write the table in Markdown; several rows of the head become one."
        width = max(map(len, self.rows), default=0)
        rows = [[c.replace("|", "\\|") for c in r] + [""] * (width - len(r)) for r in self.rows]
        head = [" ".join(dict.fromkeys(filter(None, column))) for column in zip(*rows[:self.heads])] or [""] * width
        rule = ["--:" if k in self.numeric() else "---" for k in range(width)]
        return "\n".join(f"| {' | '.join(r)} |" for r in [head, rule, *rows[self.heads:]])


LONG, TALL = 12, 30  # rows from which a table is set smaller, and gets a height of its own
EMPTY = ("", "-", "–", "—", "N/A", "NaN", "nan", "None", "<NA>")
NUMBER = re.compile(r"[−+±≤≥<>~–-]?\s?\d[\d.,]*(e[-+]?\d+)?(?![\w/]*[A-Za-z_]{3})")
_TABLE = re.compile(r'<table\b[^>]*>.*?</table>', re.S)


def tables(
    page: str,  # HTML
) -> str:       # with aligned cells, in boxes that scroll
    "Align numbers right and words left, show backticks as code, and put each table into a box that can scroll."
    def dressed(m: re.Match) -> str:
        table = Table(m[0])
        numeric, places = table.numeric(), iter(table.places)

        def cell(c: re.Match) -> str:
            kind = "number" if next(places)[1] in numeric else "words"
            text = re.sub(r"`([^`<]+)`", r"<code>\1</code>", c[3])
            attrs = re.sub(r'\s*style="text-align: ?\w+;?"', "", c[2])
            attrs = re.sub(r'class="', f'class="{kind} ', attrs) if 'class="' in attrs else f'{attrs} class="{kind}"'
            return f"<{c[1]}{attrs}>{text}</{c[1]}>"

        source = re.sub(r"<(t[dh])\b([^>]*)>(.*?)</\1>", cell, m[0], flags=re.S)
        source = re.sub(r'(<tr) style="text-align: ?\w+;?"', r"\1", source.replace(' border="1"', "", 1))
        body = len(table.rows) - table.heads
        size = " long tall" if body > TALL else " long" if body > LONG else ""
        return f'<div class="table-box{size}" tabindex="0">{source}</div>'
    return _TABLE.sub(dressed, page)


# ---------------------------------------------------------------- the whole page

_ELSEWHERE = re.compile(r'<link\b[^>]*href="https?://[^"]*(?:jsdelivr|googleapis|cloudflare|unpkg)[^"]*"[^>]*>'
                        r'|<script\b[^>]*src="https?://[^"]*"[^>]*>\s*</script>')
_STYLE = re.compile(r"<style scoped>.*?</style>", re.S)  # pandas' own: to the right, all of it


def folded_contents(
    page: str,  # HTML
) -> str:       # with its contents once more before the text, for windows without a margin
    "Give a narrow window the table of contents too."
    if not (found := re.search(r'<nav\b[^>]*\bid="TOC"[^>]*>.*?(<ul\b.*</ul>)\s*</nav>', page, re.S)) or found[1].count("<a ") < 4:
        return page
    links = re.sub(r'\s(?:id|class|data-[\w-]+)="[^"]*"', "", found[1].partition('<div class="toc-actions"')[0])
    block = f'<details class="contents-folded"><summary>On this page</summary>{links}</details>'
    return re.sub(r'(<header\b[^>]*id="title-block-header".*?</header>)', lambda m: m[1] + block, page, count=1, flags=re.S)


def finished(
    page: str,              # HTML as rendered
    name: str,              # of its file, such as `core.html`
    up: str,                # the way to the site's root, such as `../`
    problems: list[str],    # gets what is not understood
) -> str:                   # HTML as published
    "Finish a page."
    page = folded_contents(tables(_STYLE.sub("", maths(_ELSEWHERE.sub("", page), problems))))
    page = page.replace("</head>", f'<link rel="alternate" type="text/markdown" href="{name}.md"></head>', 1)
    forms = (f'<p class="page-forms">For reading by machine: <a href="{name}.md">this page in Markdown</a>, '
             f'<a href="{up}llms.txt">all pages</a>, <a href="{up}llms-full.txt">the reference</a>.</p>')
    return page.replace("</main>", f"{forms}</main>", 1)


def own_fonts(
    css: str,  # a stylesheet
) -> str:      # without what it would fetch
    "Take the fonts of other hosts out of a stylesheet."
    return re.sub(r"""@import\s*(?:url\(["']?https?://[^)]*\)|["']https?://[^"']*["'])[^;]*;""", "", css)


# ---------------------------------------------------------------- Markdown

def text(
    value: str | list[str],  # as notebooks store text
) -> str:                    # in one piece
    "Join the lines of a notebook's text."
    return value if isinstance(value, str) else "".join(value)


def shown(
    md: str,  # Markdown as written in a notebook
) -> str:     # as a page shows it, without the fences of divs
    "Leave out what only the README shows, and the fences."
    md = re.sub(r'^(:{3,}) *\{\.content-hidden[^}\n]*html[^}\n]*\}\n.*?^\1 *$', "", md, flags=re.M | re.S)
    return re.sub(r"^:{3,}.*\n?", "", md, flags=re.M).strip()


def outputs(
    cell: dict,     # of a processed notebook
) -> Iterator[str]:  # Markdown
    "Write the saved outputs of a cell; a picture becomes a word."
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        if out["output_type"] == "stream":
            yield f"```text\n{text(out['text']).rstrip()}\n```"
        elif "text/html" in data and "<table" in (source := text(data["text/html"])):
            yield from (Table(t).markdown() for t in _TABLE.findall(source))
        elif "text/markdown" in data:
            yield shown(re.sub(r"\{target=[^}]*\}", "", text(data["text/markdown"])).removeprefix("---"))
        elif any(kind.startswith("image/") for kind in data):
            yield "(a picture)"
        elif "text/plain" in data:
            yield f"```text\n{text(data['text/plain']).rstrip()}\n```"


def markdown(
    notebook: dict,  # processed, with links to pages
) -> str:            # the page in Markdown
    "Write a page in Markdown: prose, code, and saved outputs."
    parts = []
    for cell in notebook["cells"]:
        source = text(cell["source"])
        if cell["cell_type"] == "raw" or source.startswith("<!-- WARNING"):
            continue
        if cell["cell_type"] == "markdown":
            parts.append(shown(source))
            continue
        options = re.findall(r"^#\| *(.+)$", source, re.M)
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
        if "include: false" in options:
            continue
        if code and "echo: false" not in options:
            parts.append(f"```python\n{code}\n```")
        if "output: false" not in options:
            parts += outputs(cell)
    page = "\n\n".join(p for p in parts if p)
    return re.sub(r"(\]\((?![a-z]+:)[^)\s#]+)\.(?:html|ipynb)(?=[)#])", r"\1.html.md", page) + "\n"  # pages link to their kind

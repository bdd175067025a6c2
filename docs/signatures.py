"""Signatures and tables of fields, read from the source: a default as it is written, a name without its module."""
from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WIDTH = 104  # characters of a signature: what the column holds


@dataclass(frozen=True)
class Value:
    "A parameter, a field, or a result."

    name: str      # with its stars
    kind: str      # annotation
    default: str   # as written; "" where there is none
    meaning: str   # its comment


class Module:
    "The source of one module."

    def __init__(
        self,
        path: Path,  # the file
    ):
        self.name, self.source = path.stem, path.read_text(encoding="utf-8")
        self.lines = self.source.encode().splitlines(keepends=True)
        self.comments: dict[int, str] = {}   # line -> comment
        self.alone: set[int] = set()         # lines that hold a comment alone
        for t in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if t.type == tokenize.COMMENT:
                self.comments[t.start[0]] = t.string.lstrip("# ").strip()
                if not t.line[:t.start[1]].strip():
                    self.alone.add(t.start[0])
        self.nodes: dict[str, ast.stmt] = {}  # by name: `Name`, or `Name.method`
        for node in ast.parse(self.source).body:
            for name in names(node):
                self.nodes[name] = node
            if isinstance(node, ast.ClassDef):
                self.nodes |= {f"{node.name}.{m.name}": m for m in node.body if isinstance(m, FUNCTIONS)}

    def text(
        self,
        node: ast.expr | None,  # an expression; None gives ""
    ) -> str:                   # as written, on one line
        "What the source says."
        if node is None:
            return ""
        lines = self.lines[node.lineno - 1:node.end_lineno]  # offsets count bytes
        lines[-1] = lines[-1][:node.end_col_offset]
        lines[0] = lines[0][node.col_offset:]
        return " ".join(b"".join(lines).decode().split())

    def comment(
        self,
        line: int,  # where a parameter or field stands
    ) -> str:       # its comment: on the line, else the lines above that hold nothing else
        "Find the comment of a line."
        if line in self.comments:
            return self.comments[line]
        above = []
        while (line := line - 1) in self.alone:
            above.insert(0, self.comments[line])
        return " ".join(above)


def names(
    node: ast.stmt,   # a statement of a module
) -> list[str]:       # `f`, `Class`, or `Class.method` for what `patch` puts into classes
    "Say what a definition is called on its page."
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return []
    if not any(re.match(r"patch\b", ast.unparse(d)) for d in node.decorator_list):
        return [node.name]
    kind = node.args.args[0].annotation
    return [f"{n.id}.{node.name}" for n in ast.walk(kind) if isinstance(n, ast.Name)]


class Package:
    "Every module of a package."

    def __init__(
        self,
        folder: Path,                     # the package
        link: Callable[[str, str], str],  # from a module and a name to the address of its description
    ):
        self.modules = {p.stem: Module(p) for p in sorted([*folder.glob("[!_]*.py"), *folder.glob("__main__.py")])}
        self.link = link

    def find(
        self,
        module: str,                         # where to look first
        name: str,                           # of a class
    ) -> tuple[Module, ast.ClassDef] | None:  # None: from another package
        "Find a class by its name."
        for m in [self.modules[module], *self.modules.values()]:
            if isinstance(node := m.nodes.get(name), ast.ClassDef):
                return m, node
        return None

    def bases(
        self,
        module: Module,       # where it is defined
        node: ast.ClassDef,   # a class
    ) -> Iterator[tuple[Module, ast.ClassDef]]:  # it and what it inherits from, as far as the package has it
        "Walk up the bases of a class."
        yield module, node
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id != node.name and (above := self.find(module.name, base.id)):
                yield from self.bases(*above)

    def described(
        self,
        text: str,     # Markdown
        here: str,     # the module whose page it is on
    ) -> str:          # with links to what it names
        "Link the names of the package that stand between backticks."
        def link(m: re.Match) -> str:
            prefix, _, name = m[1].removesuffix("()").rpartition(".")
            for module in [prefix] if prefix in self.modules else [here, *self.modules]:
                full = name if prefix in self.modules else m[1].removesuffix("()")
                if not name.startswith("_") and full in self.modules[module].nodes:
                    return f"[`{m[1]}`]({self.link(module, full.partition('.')[0])})"
            return m[0]
        return re.sub(r"`([^`]+)`", link, text)


# ---------------------------------------------------------------- what a definition takes

def parameters(
    module: Module,          # where it is defined
    node: ast.FunctionDef,   # a function
) -> list[Value]:            # with bare `*` and `/` as values without annotation; without self and cls
    "Read the parameters of a function."
    a = node.args

    def value(p: ast.arg, default: ast.expr | None, stars: str = "") -> Value:
        return Value(stars + p.arg, module.text(p.annotation).strip("\"'"), module.text(default), module.comment(p.lineno))

    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    found = [value(p, d) for p, d in zip(plain, defaults)]
    if a.posonlyargs:
        found.insert(len(a.posonlyargs), Value("/", "", "", ""))
    if a.vararg:
        found.append(value(a.vararg, None, "*"))
    elif a.kwonlyargs:
        found.append(Value("*", "", "", ""))
    found += [value(p, d) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg:
        found.append(value(a.kwarg, None, "**"))
    return found[1:] if plain and plain[0].arg in ("self", "cls") else found


def is_table(
    node: ast.stmt,  # a definition
) -> bool:           # a dataclass or a named tuple
    "Recognise a class that is made of fields."
    return isinstance(node, ast.ClassDef) and (any("dataclass" in ast.unparse(d) for d in node.decorator_list)
                                               or any(ast.unparse(b) == "NamedTuple" for b in node.bases))


def fields(
    package: Package,      # to look for bases
    module: Module,        # where it is defined
    node: ast.ClassDef,    # a class made of fields
) -> list[Value]:          # those of its bases first, as `dataclass` orders them
    "Read the fields of a class: name, type, default and comment."
    found: dict[str, Value] = {}
    for m, cls in [*package.bases(module, node)][::-1]:
        for f in cls.body:
            if isinstance(f, ast.AnnAssign) and not f.target.id.startswith("_") and "ClassVar" not in m.text(f.annotation):
                found[f.target.id] = Value(f.target.id, m.text(f.annotation).strip("\"'"), default(m, f.value), m.comment(f.lineno))
    return [*found.values()]


def default(
    module: Module,          # where it is written
    value: ast.expr | None,  # the right side of a field
) -> str:                    # what the field is where nothing is said
    "Read a field's default, through `field(default=...)` and `field(default_factory=...)`."
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {k.arg: k.value for k in value.keywords}
        if made := given.get("default_factory"):
            return module.text(made.body) if isinstance(made, ast.Lambda) else {"dict": "{}", "list": "[]"}.get(module.text(made), f"{module.text(made)}()")
        return module.text(given.get("default"))
    return module.text(value)


# ---------------------------------------------------------------- on the page

def commented(
    code: str,        # of a line
    comment: str,     # for it; "" is none
    column: int,      # where comments begin
) -> str:             # one line or more
    "Put a comment after code, wrapped where it is long."
    if not comment:
        return code
    if len(code) + 2 > column:
        column = len(code) + 2
    lines = textwrap.wrap(comment, max(WIDTH - column - 2, 30))
    return "\n".join(f"{code if n == 0 else '':{column}}# {line}" for n, line in enumerate(lines))


def call(
    opening: str,         # `def name` or `Name`
    given: list[Value],   # its parameters
    closing: str,         # such as ` -> int`
    result: str = "",     # what the result is
) -> str:                 # Python
    "Write a signature, one parameter a line where they have comments."
    def written(v: Value) -> str:
        kind = f": {v.kind}" if v.kind else ""
        return f"{v.name}{kind}{(' = ' if kind else '=') + v.default if v.default else ''}"

    if not any(v.meaning for v in given):
        line = f"{opening}({', '.join(written(v) for v in given)}){closing}"
        if len(line) <= WIDTH:
            return commented(line, result, 0)
    rows = [f"    {written(v)}," for v in given]
    column = min(max(len(r) for r in rows) + 2, 54) if rows else 0
    end = commented(f"){closing}", result, column)
    if "\n" in end:
        end = f"){closing}\n" + textwrap.indent("\n".join(textwrap.wrap(result, WIDTH - 6)), "    # ")
    return "\n".join([f"{opening}(", *(commented(r, v.meaning, column) for r, v in zip(rows, given)), end])


def signature(
    package: Package,   # to look for bases
    module: str,        # its name
    name: str,          # `f`, `Class` or `Class.method`
) -> str:               # Python; "" where the source does not show it
    "Write a definition as its page shows it."
    m = package.modules[module]
    node = m.nodes.get(name)
    if isinstance(node, FUNCTIONS):
        result = f" -> {m.text(node.returns)}" if node.returns else ""
        kind = {ast.unparse(d) for d in node.decorator_list}
        if kind & {"property", "patch(as_prop=True)", "cached_property"}:
            return f"{name}{result.replace(' ->', ':')}"
        return call(f"def {name.rpartition('.')[2]}", parameters(m, node), result,
                    m.comments.get(node.returns.end_lineno, "") if node.returns else "")
    if not isinstance(node, ast.ClassDef):
        return ""
    if is_table(node):
        return textwrap.fill(f"{name}({', '.join(v.name for v in fields(package, m, node))})", WIDTH, subsequent_indent="    ")
    for where, cls in package.bases(m, node):
        if init := where.nodes.get(f"{cls.name}.__init__"):
            return call(name, parameters(where, init), "")
    return f"class {name}({', '.join(ast.unparse(b) for b in node.bases)})" if node.bases else f"{name}()"


def kinds(
    package: Package,   # to look for links
    here: str,          # the module whose page it is on
    kind: str,          # an annotation
) -> str:               # Markdown
    "Write a type with links, and `or` for `|`, which would end a cell."
    parts = re.split(r" \| (?![^\[]*\])", kind)
    return " or ".join(package.described(f"`{p.replace(' | ', ' or ')}`", here) for p in parts)


def field_table(
    package: Package,   # to look for bases and links
    module: str,        # its name
    name: str,          # of a class made of fields
) -> str:               # a Markdown table
    "Write the fields of a class as a table."
    def cell(text: str) -> str:
        return re.sub(r"(?<!\\)([|<*$])", r"\\\1", text)

    m = package.modules[module]
    rows = [(f"`{v.name}`", kinds(package, module, v.kind), f"`{v.default.replace('|', 'or')}`" if v.default else "",
             "".join(part if n % 2 else cell(part) for n, part in enumerate(re.split(r"(`[^`]*`)", v.meaning))))
            for v in fields(package, m, m.nodes[name])]
    lines = [f"| {a} | {b} | {c} | {package.described(d, module)} |" for a, b, c, d in rows]
    return "\n".join(["::: {.fields}", "| field | type | default | meaning |", "|---|---|---|---|", *lines, ":::"])


def described(
    package: Package,   # to read
    module: str,        # of the page
    name: str,          # `f`, `Class` or `Class.method`
    shown: str,         # what nbdev wrote about it: source link, heading, signature, docstring
) -> str:               # the same with the signature as the source writes it, and a table of fields
    "Put a definition's own words on its page."
    if not (text := signature(package, module, name)):
        return shown
    head, _, rest = shown.removeprefix("---").lstrip().partition("```python\n")
    doc = re.sub(r"\A\s*\*(.+)\*$", r"\1", rest.partition("\n```")[2], count=1, flags=re.M)  # nbdev slants the first line alone
    table = f"\n\n{field_table(package, module, name)}" if is_table(package.modules[module].nodes[name]) else ""
    return f"{head}```python\n{text}\n```\n\n{doc.strip()}{table}"


def reference(
    package: Package,   # to read
    module: str,        # its name
) -> str:               # Markdown without headings for each name, for a machine to read
    "Every public definition of a module: signature, fields, docstring."
    m = package.modules[module]
    parts = []
    for name, node in m.nodes.items():
        nested = isinstance(m.nodes.get(name.rpartition(".")[0]), ast.ClassDef) and node in m.nodes[name.rpartition(".")[0]].body
        if any(part.startswith("_") for part in name.split(".")) or nested and not ast.get_docstring(node):
            continue
        prefix = f"# {name.rpartition('.')[0]}\n" if "." in name else ""
        doc = " ".join((ast.get_docstring(node) or "").split())
        own = [f"    {v.name}: {v.kind}{f' = {v.default}' if v.default else ''}  # {v.meaning}" for v in fields(package, m, node)] if is_table(node) else []
        parts.append("\n".join([f"```python\n{prefix}{signature(package, module, name)}", *own, "```", doc]))
    return "\n\n".join(parts)

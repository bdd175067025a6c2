"""The front page: short, Markdown alone, its code and commands work, and each of its numbers is computed anew from a record."""
from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import gates
import numpy as np
import pandas as pd
import pytest
import yaml

from fer_nb.bench import paired_tests, read_rows, unpacked
from fer_nb.compare import mcnemar, paired_t
from fer_nb.evidence import COMPARED, differences_of

build, ROOT = gates.build, gates.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
RESULTS, WORDS = ROOT / "nbs/tutorials/13_results.ipynb", {2: "two", 5: "five", 7: "seven"}


def prose(
    page: str,   # Markdown
) -> str:        # without code, pictures, links' targets
    "What a reader reads."
    page = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page))
    page = re.sub(r"^\[//\]: #.*$", "", page, flags=re.M)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"!\[[^\]]*\]\([^)]*\)", "", page))


# ---------------------------------------------------------------- its form

def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 220 and len(README.split()) <= 900


def html(
    page: str,   # Markdown
) -> list[str]:  # tags, comments and entities outside code
    "What is no Markdown."
    return re.findall(r"<[a-zA-Z/!][^>]*>|&\w+;", re.sub(r"`[^`\n]*`", "", FENCE.sub("", page)))


def test_it_is_markdown() -> None:
    assert not html(README)
    assert html("a <b>c</b> <!-- d --> &nbsp;") == ["<b>", "</b>", "<!-- d -->", "&nbsp;"] and not html("`<b>` 1 < 2\n```text\n<i>\n```\n")
    for header, rule in re.findall(r"^(\|.*\|)\n(\|[ :|-]+\|)$", README, re.M):
        assert header.count("|") == rule.count("|")


PARTS = ["> Facial", "badge.svg", "img.shields.io/badge/python", "img.shields.io/badge/licence", "](docs/readme_files/", "```python",
         "| network | accuracy", "pip install git+", "fer-nb predict", "fer-nb demo", "fer-nb audit --data", "fer-nb run --data",
         "openreview.net", "doi.org/10.32604", "GPU", "fer-nb.github.io/fer_nb/) ·", "13_results", "08_model_card", "CHANGELOG", "01_audit",
         "Apache", "CITATION.cff", "feelings", "European Union"]


def test_its_parts_stand_in_order() -> None:
    at = -1
    for part in PARTS:
        assert (found := README.find(part, at + 1)) > at, f"{part!r} is missing, or before what should be above it"
        at = found


def links(
    page: str,  # Markdown
) -> Iterable[str]:
    "Targets of links and pictures."
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page))


def test_its_links_lead_somewhere() -> None:
    cfg = build.settings(ROOT)
    workflows = {f"{cfg['git_url']}/actions/workflows/{p.name}" for p in (ROOT / ".github/workflows").glob("*.yml")}
    for link in links(README):
        if link.startswith(f"{cfg['git_url']}/actions"):
            assert link.removesuffix("/badge.svg") in workflows, link
        elif not re.match(r"[a-z]+:", link):
            assert (ROOT / link).exists(), link
    pages = {p.name for p in (ROOT / "nbs/tutorials").glob("0*.ipynb")} - {"10_fer2013.ipynb"}
    assert pages <= {Path(link).name for link in links(README)}, "a tutorial that nobody finds"


def test_both_papers_are_named_as_in_the_citation() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    first, second = cited["references"]
    assert f"**{first['title']}**" in README and f"({first['url']})" in README and first["notes"].lower().removeprefix("submitted to ") in README.lower()
    assert f"**{second['title']}**" in README and f"https://doi.org/{second['doi']}" in README
    assert all(author["family-names"] in README for author in second["authors"])
    assert f"{second['journal']} {second['volume']}({second['issue']}), {second['start']}, {second['year']}" in README
    cfg = build.settings(ROOT)
    assert (cited["version"], cited["repository-code"], cited["abstract"].rstrip(".")) == (cfg["version"], cfg["git_url"], cfg["description"])
    assert cited["url"] == f"{cfg['doc_host']}{cfg['doc_baseurl']}/" and cfg["description"] in README


# ---------------------------------------------------------------- its code and commands

def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The lines beside the picture, on the photo of the picture."
    from PIL import Image
    from skimage.data import astronaut
    Image.fromarray(astronaut()).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    block, = [code for language, code in FENCE.findall(README) if language == "python"]
    assert len(block.splitlines()) == 3
    *lines, last = ast.parse(block).body
    names: dict = {}
    exec(compile(ast.Module(lines, []), "README", "exec"), names)
    face, = names["faces"]
    assert (face.emotion, len(face.probs)) == ("happy", 7)
    drawn = eval(compile(ast.Expression(last.value), "README", "eval"), names)
    assert drawn.shape == (512, 512, 3) and (drawn != astronaut()).any()


def test_its_commands_are_there() -> None:
    from fer_nb.cli import parser
    lines = [line.split("#")[0].strip() for language, code in FENCE.findall(README) if language == "sh" for line in code.splitlines()]
    ours = [line for line in lines if line.startswith("fer-nb ")]
    assert len(ours) == 4 and set(lines) - set(ours) == {f"pip install git+{build.settings(ROOT)['git_url']}"}
    for line in ours:
        parser().parse_args(shlex.split(line)[1:])
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", make, re.M) for target in re.findall(r"`make (\w+)`", README))
    assert re.search(r"^CARRIER := (\S+)$", make, re.M)[1] in README


# ---------------------------------------------------------------- its numbers

def half(
    share: float,  # right answers, 0 to 1
    n: int,        # images
) -> float:        # points
    "Half of the 95 % interval of an accuracy, by the normal approximation."
    return 196 * np.sqrt(share * (1 - share) / n)


def benched() -> dict[str, dict]:  # model -> accuracy and n by subset, and which images were right
    "The rows of the bench on PublicTest, the faces as they are."
    found = {}
    for path in (ROOT / "results/bench").glob("*-fer2013.json"):
        row = json.loads(path.read_text(encoding="utf-8"))
        of = {f["subset"]: f for f in row["figures"] if (f["column"], f["metric"], f["split"]) == ("as they are", "accuracy", "valid")}
        found[row["model"]] = {"all": of["all"], "alone": of["without_duplicates"], "right": unpacked(row["right"]["as they are"])}
    return found


def table_rows() -> tuple[list[str], dict[str, float]]:
    "The rows of the README's table from the files, and the numbers that the text below it needs."
    measured = benched()
    curve = pd.read_csv(ROOT / "results/fer2013-robust/table5.csv")
    curve = curve[(curve.metric == "accuracy") & (curve.attack == "pgd") & (curve.norm == "linf")]
    pgd = {(r.model, round(255 * r.eps, 2)): r.value for r in curve.itertuples()}
    attacked = pd.read_csv(ROOT / "results/fer2013-robust/autoattack.csv")
    attacked = attacked[(attacked.metric == "accuracy") & (attacked.attack == "autoattack")]
    strongest = {(r.model, round(255 * r.eps, 2)): r.value for r in attacked.itertuples()}
    bench = json.loads((ROOT / "benchmarks/recognisers_peers.json").read_text())
    peer = {r["what"]: r for r in bench["results"]}
    rows = [(name, *(measured[model][k]["value"] for k in ("all", "alone")), strongest.get((key, 2.0)), peer[what]["ms_per_face"])
            for name, model, key, what in (("shipped", "hyfer", "accurate", "fer_nb, float"), ("robust", "hyfer_robust", "robust", "fer_nb, float"),
                                           ("int8", "hyfer-int8", "", "fer_nb, int8"), ("`fer` 25.10.3", "fer", "", "fer 25.10.3"))]
    text = [" | ".join([f"| {a}", *("–" if v is None else f"{100 * v:.1f}" for v in (b, c, d)), f"{ms:.2f} |"]) for a, b, c, d, ms in rows]
    n, alone, few = measured["hyfer"]["all"]["n"], measured["hyfer"]["alone"]["n"], int(attacked.n.iloc[0])
    assert (attacked.n == few).all()
    others = {m: r["all"]["value"] for m, r in measured.items() if not m.startswith("hyfer")}
    best = max(others, key=others.get)
    lead = mcnemar(measured["hyfer"]["right"], measured[best]["right"])
    corrected = paired_tests(ROOT / "results/bench", "hyfer").query("data == 'fer2013' and against == @best and column == 'as they are'")
    return text, {
        "images": n, "alone": alone, "few": few, "widest": max(half(r[2], alone) for r in rows),
        "widest attacked": max(half(r[3], few) for r in rows if r[3] is not None), "lead": 100 * lead.difference, "low": 100 * lead.low,
        "high": 100 * lead.high, "best": best, "corrected": corrected.p_holm.item(), "others": len(others),
        "slower": peer["fer_nb, float"]["ms_per_face"] / peer["fer 25.10.3"]["ms_per_face"], "at 8": 100 * pgd["robust", 8.0],
        "few at 8": int(curve[(curve.model == "robust") & (curve.eps > 7.9 / 255)].n.unique().item()),
        "cores": bench["machine"]["cpus"], "threads": bench["settings"]["threads"], "architecture": bench["machine"]["architecture"].replace("_", "-")}


def costs_of_cleaning() -> list[str]:
    "What cleaning costs a student without teachers, in points with intervals: on all of PublicTest, and on its images without duplicates."
    runs = pd.read_csv(ROOT / "results/fer2013-data/runs.csv")
    runs = runs[(runs.split == "valid") & (runs.metric == "accuracy") & (runs.model == "HyFER") & (runs.teachers == 0)]
    wide = 100 * runs.pivot(index="seed", columns=["subset", "arm"], values="value")
    lost = [paired_t(wide[s, "before"], wide[s, "cleaned"]) for s in ("all", "without_duplicates")]
    apart = differences_of(ROOT, COMPARED["data, FER2013's labels"]).loc["cleaned against before"]
    assert abs(apart.difference + lost[1].difference) < 1e-9 and lost[0].low > 0 and lost[1].low < 0 < lost[1].high
    return [f"{x:.1f}".replace("-0.0", "0.0") for t in lost for x in (t.difference, t.low, t.high)]


def facts() -> list[str]:  # sentences and parts of them
    "All that the README says with numbers, written from the records."
    rows, f = table_rows()
    lost, low, high, alone, lower, higher = costs_of_cleaning()
    card = json.loads((ROOT / "fer_nb/weights/hyfer.json").read_text())
    leaks = pd.read_csv(ROOT / "results/fer2013-audit/summary-votes.csv", index_col="kind").loc["leak"]
    assert f["images"] - leaks.valid - f["alone"] == 1   # a third image ties it to a training image: no pair of the audit
    timings = json.loads((ROOT / "results/fer2013-cpu/timings.json").read_text())
    minutes = (timings["done"] if "done" in timings else sum(timings.values())) / 60
    from fer_nb.models import HYFER, SQSNET
    sizes = {HYFER["paper"].input_size, SQSNET["paper"].input_size}
    assert f["threads"] == 1 and card["labels"] and len(sizes) == 1
    headline = pd.read_csv(ROOT / "results/fer2013-shipped/headline.csv", index_col="measure")
    top = 100 * headline.value
    again = {kind: ", ".join(f"{100 * pd.read_csv(ROOT / f'results/fer2013-again/{kind}headline{end}.csv', index_col='measure').value['single']:.1f}"
                             for end in ("", "-2")) for kind in ("", "robust-", "int8-")}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"][1]
    return [
        *rows, "AutoAttack, ε = 2/255 |",
        f"{f['images']:,} images, original labels, one view; {f['alone']:,} have no duplicate in Training; {f['few']:,} attacked by AutoAttack.",
        f"One seed; two others (all images): shipped {again['']} (training diverged), robust {again['robust-']}, int8 {again['int8-']};",
        f"95 % intervals: up to ± {f['widest']:.1f} points, attacked ± {f['widest attacked']:.1f}.",
        f"one {card['input_size']}-pixel face, one thread of {WORDS[f['cores']]} {f['architecture']} cores",
        f"leads {f['best'].capitalize()}, the best of {WORDS[f['others']]} other packages", f"is {f['slower']:.1f} times as fast.",
        f"by {f['lead']:.1f} points (95 %: {f['low']:.1f} to {f['high']:.1f}; p = {f['corrected']:.2f} after correction);",
        f"At ε = 8/255 PGD leaves the robust network {f['at 8']:.1f} % ({f['few at 8']} images).",
        f"Of an image's ten FER+ voters {top['expected']:.1f} % give the shipped network's answer, {top['one voter']:.1f} % another voter's, "
        f"{top['label']:.1f} % FER2013's label; where most chose the label, it is right in {top['both agree']:.1f} %.",
        f"after cleaning a small network is {lost} points lower on all of PublicTest (95 %, uncorrected: {low} to {high}), {alone} without "
        f"duplicates ({lower} to {higher}).".replace("-", "−"),
        f"{minutes:.0f} minutes", f"at its own size, {sizes.pop()} pixels",
        f"Python {pythons()[0]} to {pythons()[-1]}", f"{cited['volume']}({cited['issue']}), {cited['start']}, {cited['year']}", f"doi:{cited['doi']}"]


def pythons() -> list[str]:
    "The versions that the workflow installs."
    jobs = yaml.safe_load((ROOT / ".github/workflows/install.yml").read_text())["jobs"]
    return jobs["predict"]["strategy"]["matrix"]["python"]


NAMES = ("FER2013", "macro F1", "Apache 2.0", "ICLR 2026", "Regulation (EU) 2024/1689", "Article 5", "int8")  # names with digits in them, no results


def untied(
    page: str,  # Markdown
) -> list[str]:  # numbers that neither a record nor a name accounts for
    "Take all that is accounted for out of the text; no digit may be left."
    for part in sorted(facts(), key=len, reverse=True):
        page = page.replace(part, "")
    page = prose(page)
    for part in [*facts(), *NAMES]:
        page = page.replace(part, "")
    return re.findall(r"\S*\d\S*", page)


@pytest.mark.parametrize("fact", facts())
def test_what_it_says_is_what_the_records_say(fact: str) -> None:
    assert fact in README, f"the README does not say, or says otherwise: {fact}"


def test_every_number_is_tied_to_a_record() -> None:
    assert not untied(README)


def test_a_number_without_a_record_is_found() -> None:
    assert untied(README + "\nIt reaches 73.3 % in 12 hours.\n") == ["73.3", "12"]
    assert untied(README.replace("| robust | 63.7", "| robust | 63.8")), "a figure of the table"


def test_the_words_of_the_table_are_tied() -> None:
    "What the text says in words."
    f = table_rows()[1]
    from fer_nb.models import HyFER
    assert f"{WORDS[len(HyFER.from_pretrained().labels)]} probabilities" in README
    figures = {r["model"]: {(f["subset"], f["metric"], f["column"]): f["value"] for f in r["figures"]} for r in read_rows(ROOT / "results/bench") if r["data"] == "fer2013"}
    f1, other, alone = ({m: v[subset, metric, "as they are"] for m, v in figures.items() if not m.startswith("hyfer") or m == "hyfer"}
                        for subset, metric in (("all", "macro_f1"), ("without_duplicates", "macro_f1"), ("without_duplicates", "accuracy")))
    assert f["low"] > 0 and sorted(m for m in f1 if f1[m] > f1["hyfer"]) == ["fer", f["best"]] and "Human and `fer` have the better macro F1" in README
    assert max(other, key=other.get) == max(alone, key=alone.get) == "hyfer" and "Without duplicates it leads in both" in README


# ---------------------------------------------------------------- the page Results

def result_tables() -> list[str]:
    "The tables of the page, with the line below each."
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
    return [build.text(out["data"]["text/markdown"]) for cell in cells if cell["cell_type"] == "code"
            for out in cell["outputs"] if build.text(out.get("data", {}).get("text/markdown", "")).startswith("|")]


@pytest.mark.parametrize("table", result_tables(), ids=lambda t: re.sub(r"\W+", "-", t[2:40]))
def test_a_table_names_what_it_was_measured_on(table: str) -> None:
    rows, _, facts = table.partition("\n\n")
    header, rule, *body = [re.split(r"(?<!\\)\|", line)[1:-1] for line in rows.splitlines()]
    assert header[0].strip() and not re.fullmatch(r"\d+", body[0][0].strip()), "a stray index"
    assert {len(row) for row in (header, rule, *body)} == {len(header)}
    named = dict(re.findall(r"\*(\w+)\*: (.+?)\.(?= \*|$)", facts))
    assert list(named) == ["Data", "Split", "Seeds", "Interval", "Command"] and "`" in named["Command"]


def test_the_page_holds_what_does_not_flatter() -> None:
    "Training under attack that costs points in five folds, teachers that are not seen to help after cleaning, SQS that costs HyFER points, a pair without SQS above SQSNet."
    text = "\n".join(result_tables())
    assert len(result_tables()) >= 15
    number = re.compile(r"−?\d+\.\d+")
    taught, attacked = (float(number.search(re.search(rf"HyFER, EADD{more} \| (0\S+)", text)[1])[0]) for more in ("", r" \+ adversarial"))
    assert attacked < taught - 0.05
    assert re.search(r"after: 3 teachers against none \| \d\.\d \| −", text) and re.search(r"\| HyFER \+ SQS \|[^|]*\| −", text)
    pair, whole = (float(re.search(rf"\| {re.escape(arm)} \| (\d+\.\d) \| \d", text)[1]) for arm in ("EfficientNet-Lite0 & small Swin", "SQSNet"))
    assert pair > whole
    assert all(re.search(r"p_holm over the \d+ (rows|differences)", t) for t in result_tables() if "p_holm" in t.splitlines()[0])

"""Continuous integration: the workflows fit GitHub's schema and the house's rules, and what they call is there and works."""
from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gates
import pandas as pd
import pytest
import yaml

build, ROOT = gates.build, gates.ROOT
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SCRIPTS = [p for p in sorted((ROOT / ".ci").iterdir()) if p.is_file()]
NEWEST = "3.13"  # the newest Python that is tried


def load(
    path: Path,  # a workflow
) -> dict:       # the key `on` as such: YAML 1.1 reads it as true
    "A workflow as data."
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if k is True else k: v for k, v in data.items()}


def schema_faults(
    name: str,    # of a schema that check-jsonschema carries
    *paths: Path,
) -> str:         # "" where all is well
    "What the schema has against files."
    command = [Path(sys.executable).with_name("check-jsonschema"), "--default-filetype", "yaml", "--builtin-schema", name, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_schemas_agree(tmp_path: Path) -> None:
    assert not schema_faults("vendor.github-workflows", *WORKFLOWS)
    assert not schema_faults("vendor.citation-file-format", ROOT / "CITATION.cff")
    slip = tmp_path / "slip.yml"
    slip.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    assert "run-on" in schema_faults("vendor.github-workflows", slip)


def called(
    command: str,  # a `run` of a step
) -> bool:         # a script of .ci that can be executed, or a target of the Makefile
    "Nothing is done in a workflow that cannot be done outside."
    first, *rest = re.sub(r"^sudo ", "", command.strip()).split()
    if first == "make":
        return all(re.search(rf"^{t}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M) for t in rest)
    return "\n" not in command.strip() and first.startswith(".ci/") and os.access(ROOT / first, os.X_OK)


def faults(
    workflow: dict,  # see `load`
) -> list[str]:      # what the house has against it
    "Rights, time limits, one run at a time, actions by commit, commands that can be run elsewhere."
    found = [] if workflow.get("permissions") == {"contents": "read"} else ["permissions: contents: read expected at the top"]
    found += [] if "group" in workflow.get("concurrency", {}) else ["no concurrency group"]
    for name, job in workflow["jobs"].items():
        steps = job["steps"]
        found += [] if "timeout-minutes" in job or "environment" in job else [f"{name}: no time limit"]
        found += [f"{name}: {s['uses']} is not pinned by commit" for s in steps if "uses" in s and not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", s["uses"])]
        found += [f"{name}: the checkout keeps its credentials" for s in steps
                  if s.get("uses", "").startswith("actions/checkout") and s.get("with", {}).get("persist-credentials") is not False]
        found += [f"{name}: no cache for pip" for s in steps if s.get("uses", "").startswith("actions/setup-python") and s["with"].get("cache") != "pip"]
        found += [f"{name}: {s['run']!r} is no script of .ci and no target of make" for s in steps if "run" in s and not called(s["run"])]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_keeps_the_rules(path: Path) -> None:
    assert not faults(load(path))
    unnamed = [line for line in path.read_text().splitlines() if "uses:" in line and not re.search(r"# v\d+(\.\d+)*$", line)]
    assert not unnamed, "the version of a commit stands beside it"


SLIPS: dict[str, Callable[[dict], object]] = {
    "permissions": lambda w: w.pop("permissions"),
    "concurrency": lambda w: w.pop("concurrency"),
    "time limit": lambda w: w["jobs"]["test"].pop("timeout-minutes"),
    "pinned": lambda w: w["jobs"]["test"]["steps"][0].update(uses="actions/checkout@v4"),
    "credentials": lambda w: w["jobs"]["test"]["steps"][0].pop("with"),
    "cache": lambda w: w["jobs"]["test"]["steps"][1]["with"].pop("cache"),
    "no script": lambda w: w["jobs"]["test"]["steps"][-1].update(run="pip install fer-nb"),
}


@pytest.mark.parametrize("word", SLIPS)
def test_a_slip_is_found(word: str) -> None:
    workflow = copy.deepcopy(load(ROOT / ".github/workflows/test.yml"))
    SLIPS[word](workflow)
    assert len(found := faults(workflow)) == 1 and word in found[0]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_a_script_is_whole(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path]).returncode == 0 and "set -euo pipefail" in path.read_text()


def test_the_versions_are_those_of_the_package() -> None:
    "From the oldest that settings.ini allows to the newest, without a gap; each was tried here, where a Python of it was found."
    job = load(ROOT / ".github/workflows/install.yml")["jobs"]["predict"]
    matrix = job["strategy"]["matrix"]
    oldest = build.settings(ROOT)["min_python"]
    assert matrix["python"] == [f"3.{k}" for k in range(int(oldest.split(".")[1]), int(NEWEST.split(".")[1]) + 1)]
    assert {os_.split("-")[0] for os_ in matrix["os"]} == {"ubuntu", "macos"} and not any("latest" in os_ for os_ in matrix["os"])
    tried = pd.read_csv(ROOT / "results/install/pythons.csv", dtype=str)
    assert {".".join(v.split(".")[:2]) for v in tried.python} == set(matrix["python"]) and set(tried.portrait.str.split().str[0]) == {"happy"}
    systems = {s.split()[0] for s in tried.system}
    assert ("Darwin" in systems) != ("Not tried so far: macOS" in (ROOT / "docs/README.md").read_text(encoding="utf-8"))


def test_the_smoke_test_refuses_the_checkout() -> None:
    "It is about an installation; run on the checkout it would pass whatever the wheel lacks."
    import smoke
    with pytest.raises(AssertionError, match="not an installation"):
        smoke.every_module()


def test_the_smoke_test_sees_a_wrong_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The command's own answer passes; another emotion, another place, a second face and an error do not."
    import smoke
    right = smoke.portrait(tmp_path)
    for faces in ([right | {"emotion": "sad"}], [right | {"box": [300, 74, 101, 101]}], [right, right], []):
        answer = subprocess.CompletedProcess([], 0, json.dumps({"faces": faces}), "")
        monkeypatch.setattr(smoke.subprocess, "run", lambda *args, answer=answer, **options: answer)
        with pytest.raises((AssertionError, ValueError)):
            smoke.portrait(tmp_path)

"""The oldest and the newest requirements, each in an environment of its own; and the export of nbdev 3. All slow."""
from __future__ import annotations

import re
import subprocess
import venv
from configparser import ConfigParser
from pathlib import Path

import gates
import pytest
import versions

build, ROOT = gates.build, gates.ROOT


def test_lower_bounds_are_pins_of_the_oldest_set() -> None:
    "Every requirement has a lower bound, so that the oldest set can be built; fastcore has no upper one."
    assert len(versions.pins("oldest")) == len(versions.CFG["requirements"].split()) and versions.pins("newest") == []
    assert not re.search(r"fastcore[^ ]*<", versions.CFG["requirements"])


@pytest.mark.slow
@pytest.mark.parametrize("which", versions.PYTHON)
def test_a_wheel_works_with_its_oldest_and_newest_requirements(which: str, tmp_path: Path) -> None:
    if versions.interpreter(which) is None:
        pytest.skip(f"no Python {versions.PYTHON[which]} on this machine")
    assert versions.attempt(which, tmp_path)["pip check"] == "ok"


def pyproject(
    cfg: dict[str, str],  # settings.ini
) -> str:                 # what nbdev 3 reads instead
    "A pyproject.toml with the settings that the export needs."
    return (f'[project]\nname = "{cfg["lib_name"]}"\nversion = "{cfg["version"]}"\ndescription = "{cfg["description"]}"\n'
            f'requires-python = ">={cfg["min_python"]}"\n\n[tool.setuptools.packages.find]\ninclude = ["{cfg["lib_path"]}"]\n\n'
            f'[tool.nbdev]\nnbs_path = "nbs"\nlib_path = "{cfg["lib_path"]}"\n')


def code(
    path: Path,  # an exported module
) -> str:        # without comments and blank lines, which the two versions may write differently
    "The code of a module."
    import ast
    return ast.unparse(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_nbdev_3_exports_the_same_code(tmp_path: Path) -> None:
    venv.create(home := tmp_path / "venv", with_pip=True)
    subprocess.run([home / "bin/python", "-m", "pip", "install", "-q", "nbdev>=3,<4"], check=True)
    copy = build.copy_project(ROOT, tmp_path / "project")
    for name in ("settings.ini", "setup.py"):
        parser = ConfigParser(delimiters=["="])
        if name == "settings.ini":
            parser.read(copy / name, encoding="utf-8")
            (copy / "pyproject.toml").write_text(pyproject(dict(parser["DEFAULT"])), encoding="utf-8")
        (copy / name).unlink()
    have = {p.name: code(p) for p in (copy / "fer_nb").glob("[!_]*.py")}
    for p in (copy / "fer_nb").glob("[!_]*.py"):
        p.unlink()
    done = subprocess.run([home / "bin/nbdev-export"], cwd=copy, capture_output=True, text=True)
    if done.returncode:  # the command's name of nbdev 2
        done = subprocess.run([home / "bin/nbdev_export"], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.name: code(p) for p in (copy / "fer_nb").glob("[!_]*.py")} == have

"""The installed package: each module stands alone, the light ones stay light, the metadata is what settings.ini says."""
from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import gates
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

build, ROOT = gates.build, gates.ROOT
CFG = build.settings(ROOT)
MODULES = sorted(p.stem for p in (ROOT / "fer_nb").glob("[!_]*.py"))
# What importing a module must not bring with it: start-up time, or a dependency that belongs to a higher floor.
HEAVY = {
    "core": ["torch", "fastai", "timm", "pandas", "matplotlib", "scipy", "sklearn", "mediapipe", "IPython"],
    "data": ["torch", "fastai", "timm", "mediapipe", "sklearn"],
    "models": ["fastai", "mediapipe", "matplotlib", "pandas", "ipywidgets", "jupyterlab", "notebook", "IPython"],
    "predict": ["torch", "mediapipe", "matplotlib", "IPython", "ipywidgets", "cv2"],
    "attacks": ["fastai", "mediapipe", "ipywidgets", "foolbox"],
}
TOOLS = ["nbdev", "execnb", "jupyterlab", "pytest", "foolbox", "hypothesis", "smalldocs", "onnx", "onnxruntime"]  # extras


def fresh(
    code: str,                # to run in a new interpreter
    cwd: Path | None = None,  # there
) -> str:                     # what it printed
    "Run Python apart from this process, without the checkout on its path."
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_module_stands_alone(name: str, tmp_path: Path) -> None:
    "In a fresh interpreter it imports without developers' tools and leaves no file; `__all__` holds what it has, and something."
    out = fresh(f"import fer_nb.{name} as m, sys; print(*sys.modules); "
                "print(len(m.__all__), *[n for n in m.__all__ if getattr(m, n, None) is None])", cwd=tmp_path)
    loaded, (count, *missing) = [line.split() for line in out.splitlines()[-2:]]
    assert not (bad := {m for m in loaded if m in {*TOOLS, *HEAVY.get(name, [])}}), f"fer_nb.{name} imports {sorted(bad)}"
    assert int(count) and not missing, f"fer_nb.{name}.__all__: {count} names, not there: {missing}"
    assert list(tmp_path.iterdir()) == []


def test_package_is_this_checkout() -> None:
    assert Path(fresh("import fer_nb; print(fer_nb.__file__)").strip()).parent == ROOT / "fer_nb"


def test_dependencies_agree() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_metadata_is_settings() -> None:
    meta = metadata.metadata(CFG["lib_name"])
    assert canonicalize_name(meta["Name"]) == canonicalize_name(CFG["lib_name"])
    assert (meta["Version"], meta["Summary"], meta["Requires-Python"]) == (CFG["version"], CFG["description"], f">={CFG['min_python']}")
    assert fresh("import fer_nb; print(fer_nb.__version__)").strip() == CFG["version"]


def asked(text: str) -> set[tuple[str, str]]:
    "Requirements as (name, range)."
    found = [Requirement(r) for r in re.findall(r'"[^"]+"|\S+', text) for r in [r.strip('"')]]
    return {(canonicalize_name(r.name), str(r.specifier)) for r in found}


@pytest.mark.parametrize("extra", ["", *sorted(k.removesuffix("_requirements") for k in CFG if k.endswith("_requirements"))])
def test_requirements_are_settings(extra: str) -> None:
    wanted = asked(CFG[f"{extra}_requirements" if extra else "requirements"])
    listed = [Requirement(r) for r in metadata.requires(CFG["lib_name"])]
    env = {"python_version": "3.11", "python_full_version": "3.11.7"}
    mine = {(canonicalize_name(r.name), str(r.specifier)) for r in listed
            if (r.marker is None) == (not extra) and (r.marker is None or r.marker.evaluate({**env, "extra": extra}))}
    assert mine == wanted


def test_entry_points() -> None:
    points = {(e.group, e.name): e.value for e in metadata.distribution(CFG["lib_name"]).entry_points}
    name, _, target = CFG["console_scripts"].partition("=")
    assert points == {("console_scripts", name): target, ("nbdev", CFG["lib_path"]): f"{CFG['lib_path']}._modidx:d"}


def test_pins_satisfy_the_ranges() -> None:
    "constraints.txt pins every direct dependency once, inside the range that users get."
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            r = Requirement(line)
            assert canonicalize_name(r.name) not in pins, line
            pins[canonicalize_name(r.name)] = str(r.specifier)
    for key in [k for k in CFG if k == "requirements" or k.endswith("_requirements")]:
        for name, spec in asked(CFG[key]):
            assert name in pins, f"{name} of {key} is not pinned in constraints.txt"
            assert Requirement(f"{name}{spec}").specifier.contains(pins[name].removeprefix("==")), f"{name}: {pins[name]} is not in {spec}"

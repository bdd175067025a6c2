"""The installed package: each module stands alone, the light ones stay light, the metadata is what settings.ini says."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
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
    "launch": ["torch", "pandas"],
    "experiment": ["torch", "fastai", "scipy", "sklearn", "mediapipe"],
    "cli": ["torch", "fastai", "scipy", "sklearn", "mediapipe", "matplotlib"],
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


EACH = """
import importlib, os, sys
for base in {bases}:  # what takes seconds is imported once; each module then has a process of its own
    importlib.import_module(base)
for name in {names}:
    if not (pid := os.fork()):
        m = importlib.import_module("fer_nb." + name)
        lost = [n for n in m.__all__ if getattr(m, n, None) is None]
        print(name, len(m.__all__), "|", *lost, "|", *sys.modules, flush=True)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit(name + " cannot be imported")
"""
HEAVIEST = ["torch", "timm", "fastai.vision.all", "sklearn", "scipy.stats", "matplotlib.pyplot", "pandas"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str], list[str]]]:
    "Each module in a process that has no other of the package: how many names, which are not there, what is loaded."
    folder = tmp_path_factory.mktemp("empty")
    said = fresh(EACH.format(bases=[], names=list(HEAVY)), cwd=folder)
    said += fresh(EACH.format(bases=HEAVIEST, names=[n for n in MODULES if n not in HEAVY]), cwd=folder)
    found = {}
    for line in said.splitlines():
        (name, count), missing, loaded = (part.split() for part in line.split("|"))
        found[name] = int(count), missing, loaded
    assert list(folder.iterdir()) == []
    return found


@pytest.mark.parametrize("name", MODULES)
def test_module_stands_alone(name: str, imported: dict[str, tuple[int, list[str], list[str]]]) -> None:
    "Imported first, it brings no developers' tools and leaves no file; `__all__` holds what it has, and something."
    count, missing, loaded = imported[name]
    assert not (bad := {m for m in loaded if m in {*TOOLS, *HEAVY.get(name, [])}}), f"fer_nb.{name} imports {sorted(bad)}"
    assert count and not missing, f"fer_nb.{name}.__all__: {count} names, not there: {missing}"


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


# ---- what users get: the wheel, in an environment of its own ----

@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A wheel built from the checkout, installed where this environment's dependencies are visible but neither the
    checkout nor the developers' tools; runs a command of that environment."""
    folder = tmp_path_factory.mktemp("install")
    for name in ("fer_nb", "settings.ini", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        where, what = folder / "source" / name, ROOT / name
        shutil.copytree(what, where, ignore=shutil.ignore_patterns("__pycache__")) if what.is_dir() else shutil.copy(what, where)
    env = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source"], check=True, env=env)
    wheel, = folder.glob("*.whl")
    venv.create(home := folder / "venv", symlinks=True)
    subprocess.run([*pip, "--python", home / "bin/python", "install", "--no-deps", "--no-index", wheel], check=True, env=env)
    packages, = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    for tool in TOOLS:
        (packages / f"{tool}.py").write_text(f"raise ImportError('{tool} is not installed')\n")

    def run(*command: object) -> str:
        done = subprocess.run([home / "bin" / command[0], *command[1:]], capture_output=True, text=True, cwd=folder, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
    return run


def test_the_wheel_predicts_without_developers_tools(installed: Callable[..., str], tmp_path: Path) -> None:
    "The command of the wheel, with the weights of the wheel, on a picture of a face."
    from PIL import Image

    from fer_nb.synth import make_faces
    Image.fromarray(make_faces(7, seed=0, defects=None)[0].image(0)).save(tmp_path / "face.png")
    face, = json.loads(installed("fer-nb", "predict", tmp_path / "face.png", "--no-crop", "--out", "json"))["faces"]
    assert len(face["probs"]) == 7 and sum(face["probs"].values()) == pytest.approx(1, abs=1e-3)


def test_the_wheel_holds_what_it_should(installed: Callable[..., str]) -> None:
    "Package, weights that match their cards, licence, metadata and entry points; nothing of the checkout beside them."
    code = ("import fer_nb, hashlib, json, pathlib, sys; from importlib import metadata as m; d = m.distribution('fer-nb');"
            "home = pathlib.Path(fer_nb.__file__).parent; files = [str(f) for f in d.files];"
            "cards = {p.stem: json.loads(p.read_text())['sha256'] for p in (home / 'weights').glob('*.json')};"
            "sums = {p.stem: hashlib.sha256(p.read_bytes()).hexdigest() for p in (home / 'weights').glob('*.safetensors')};"
            "print(json.dumps([str(home), files, cards, sums, d.requires, d.version, [e.name for e in d.entry_points]]))")
    home, files, cards, sums, requires, version, points = json.loads(installed("python", "-c", code))
    assert not home.startswith(str(ROOT)) and version == CFG["version"] and set(points) == {"fer-nb", CFG["lib_path"]}
    assert cards == sums and {"hyfer", "hyfer_robust"} <= set(sums)
    tops = {f.split("/")[0] for f in files if not f.startswith("..")}
    assert tops == {"fer_nb", f"fer_nb-{version}.dist-info"} and any(f.endswith("LICENSE") for f in files)
    assert {f"fer_nb/{n}.py" for n in MODULES} <= set(files)
    assert {f"fer_nb/assets/{p.name}" for p in (ROOT / "fer_nb/assets").iterdir()} <= set(files)
    assert {canonicalize_name(Requirement(r).name) for r in requires if "extra" not in r} == {n for n, _ in asked(CFG["requirements"])}


# ---- without the large packages ----

def closure(extra: str) -> set[str]:
    "Distributions that the requirements of an extra bring, and what those require."
    found, todo = set(), [name for name, _ in asked(CFG[f"{extra}_requirements"])]
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            wanted = map(Requirement, metadata.requires(name) or [])
            todo += [canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


ALONE = """
import importlib.metadata, re, sys
allowed = set(sys.argv[1].split(","))
of = importlib.metadata.packages_distributions()
class Missing:
    def find_spec(self, name, path=None, target=None):
        homes = of.get(name.partition(".")[0])
        if homes and not {re.sub(r"[-_.]+", "-", h).lower() for h in homes} & allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from fer_nb.__main__ import start
sys.exit(start(sys.argv[2:]))
"""


def alone(
    allowed: set[str],   # distributions that are there
    *argv: object,       # arguments of the command
) -> subprocess.CompletedProcess:
    "The command in an environment that has these distributions alone; any other one cannot be imported."
    command = [sys.executable, "-c", ALONE, ",".join({*allowed, "fer-nb"}), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_an_onnx_file_predicts_with_the_onnx_extra_alone(net: object, tmp_path: Path) -> None:
    "With the packages of the extra `onnx` and nothing else, PyTorch in particular: a photo, found and recognised."
    from PIL import Image
    from skimage.data import astronaut

    from fer_nb.export import to_onnx
    from fer_nb.predict import Recogniser, weights_file
    to_onnx(net, tmp_path / "net.onnx")
    Image.fromarray(astronaut()).save(tmp_path / "photo.png")
    light = closure("onnx")
    assert not {"torch", "timm", "fastai", "scipy", "scikit-learn"} & light
    done = alone(light, "predict", tmp_path / "photo.png", "--weights", tmp_path / "net.onnx", "--out", "json")
    assert done.returncode == 0, done.stderr[-2000:]
    (face,), (expected,) = json.loads(done.stdout)["faces"], Recogniser(net)(tmp_path / "photo.png")
    assert face["probs"] == pytest.approx(expected.probs, abs=2e-4)
    shipped = alone(light, "predict", tmp_path / "photo.png", "--out", "json")
    assert shipped.returncode == 0, shipped.stderr[-2000:]
    (face,), (expected,) = json.loads(shipped.stdout)["faces"], Recogniser()(tmp_path / "photo.png")
    assert face["probs"] == pytest.approx(expected.probs, abs=2e-4)
    (tmp_path / "own.safetensors").write_bytes(weights_file().read_bytes())
    weights = alone(light, "predict", tmp_path / "photo.png", "--weights", tmp_path / "own.safetensors")
    assert weights.returncode == 2 and "Traceback" not in weights.stderr and "is not installed" in weights.stderr


@pytest.mark.parametrize("argv", [["demo"], ["predict", "setup.py"], ["--help"]])
def test_missing_packages_are_named_with_the_way_to_install_them(argv: list[str]) -> None:
    "A wheel installed with --no-deps: no traceback, but what is missing and both ways to get it."
    done = alone(set(), *argv)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    first, second = done.stderr.splitlines()
    assert re.match(r"fer-nb: the package \w+ is not installed. Everything: pip install fer-nb$", first) and "pip install" in second
    version = alone(set(), "--version")
    assert (version.returncode, version.stdout.strip()) == (0, f"fer-nb {CFG['version']}")


# ---- licences ----

def test_every_requirements_licence_is_listed() -> None:
    "docs/licences.md, which docs/licences.py writes: a row a package, with who asks for it and what it states."
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in (ROOT / "docs/licences.md").read_text(encoding="utf-8").splitlines()
            if line.startswith("| ")][1:]
    wanted: dict[str, set[str]] = {}
    for key in [k for k in CFG if k == "requirements" or k.endswith("_requirements")]:
        for name, _ in asked(CFG[key]):
            wanted.setdefault(name, set()).add("use" if key == "requirements" else f"`{key.removesuffix('_requirements')}`")
    assert {name: set(who.split(", ")) for name, who, _ in rows} == wanted, "run: python docs/licences.py"
    assert all(text and "UNKNOWN" not in text for *_, text in rows)

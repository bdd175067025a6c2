"""What is carried to a rented card comes back to the byte, and its steps fit into their time."""
import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from fer_nb.config import to_dict

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n, last", [(1, "\n"), (63, ""), (70, "\n")])
def test_what_was_packed_comes_back_to_the_byte(tmp_path, n, last, monkeypatch):
    card = script("card_folder")
    monkeypatch.setattr(card, "MANY", 64)
    draw = np.random.default_rng(n)
    rows = [f"{draw.integers(7)},{' '.join(map(str, draw.integers(0, 256, 2304)))},{('Training', 'PublicTest')[k % 2]}" for k in range(n)]
    csv, votes = tmp_path / "a.csv", tmp_path / "b.csv"
    csv.write_text("emotion,pixels,Usage\n" + "\n".join(rows) + last)
    votes.write_bytes(b"Usage,Image name\r\nTraining,\xc3\xa4\r\n")
    card.pack(csv, votes, tmp_path / "folder")
    assert len([*(tmp_path / "folder").glob("faces-*.png")]) == -(-n // 64)
    card.unpack(tmp_path / "folder", tmp_path / "data")
    assert (tmp_path / "data/fer2013.csv").read_bytes() == csv.read_bytes()
    assert (tmp_path / "data/fer2013new.csv").read_bytes() == votes.read_bytes()


def test_a_picture_that_is_missing_or_anothers_is_no_data(tmp_path, monkeypatch):
    card = script("card_folder")
    monkeypatch.setattr(card, "MANY", 64)
    draw = np.random.default_rng(0)
    csv, votes = tmp_path / "a.csv", tmp_path / "b.csv"
    csv.write_text("emotion,pixels,Usage\n" + "".join(f"1,{' '.join(map(str, draw.integers(0, 256, 2304)))},Training\n" for _ in range(130)))
    votes.write_text("Usage\n")
    card.pack(csv, votes, tmp_path / "folder")
    one, two = tmp_path / "folder/faces-000000.png", tmp_path / "folder/faces-000064.png"
    right = two.read_bytes()
    two.write_bytes(one.read_bytes())
    with pytest.raises(SystemExit, match="not the file that was packed"):
        card.unpack(tmp_path / "folder", tmp_path / "data")
    two.unlink()
    with pytest.raises(FileNotFoundError, match="faces-000064"):
        card.unpack(tmp_path / "folder", tmp_path / "data")
    two.write_bytes(right)
    card.unpack(tmp_path / "folder", tmp_path / "data")


def options(**more: object) -> Namespace:
    return Namespace(**{"epochs": [50, 80, 16], "held": "parts.csv", "bs": 256, "lr": 4e-3, "views": 30, "seeds": 3, "out": Path("."),
                        "folder": Path("data"), "done": [], "device": None} | more)


def test_students_wait_for_their_teachers_and_hold_out_the_same_images(tmp_path):
    card = script("card_students")
    found = card.presets(options())
    assert {name: (first, last) for name, (first, last, *_) in found.items() if name.endswith("-0")} == {
        "large_res-0": (0, 0), "large_vgg-0": (0, 0), "large_half-0": (0, 0), "alone-0": (0, 1), "ferplus-0": (0, 1),
        "taught-0": (1, 1), "robust-0": (2, 2)}
    assert {settings.data.held for _, _, settings, _ in found.values()} == {"parts.csv"}
    assert {settings.data.clean for _, _, settings, _ in found.values()} == {"leaks"}
    o = options(out=tmp_path, done=["large_vgg-0", "alone-0", "taught-1"])
    words = card.words_of("robust-1", *found["robust-1"][2:], o)
    assert [words[k + 1] for k, word in enumerate(words) if word == "--teacher"] == [str(tmp_path / f"{n}.safetensors") for n in ("large_vgg-0", "taught-1")]
    assert words[words.index("--start") + 1] == str(tmp_path / "taught-1.safetensors") and words[words.index("--seed") + 1] == "1"
    assert "--fast-math" in words and "--fast-math" not in card.words_of("alone-0", *found["alone-0"][2:], options(out=tmp_path, device="cpu"))
    assert to_dict(found["robust-1"][2])["adversarial"]["taught"]


def test_a_faster_card_or_more_time_means_more_epochs_within_bounds():
    card = script("card_students")
    cost = {"light_full": 0.004} | dict.fromkeys(card.LARGE, 0.01)
    slow = {k: 3 * v for k, v in cost.items()}
    for k in range(3):
        few, many = (card.epochs_for(k, seconds, cost, 3) for seconds in (100, 300))
        assert card.LEAST[k] <= few <= many <= card.MOST[k] and card.epochs_for(k, 200, slow, 3) <= card.epochs_for(k, 200, cost, 3)
    assert card.epochs_for(0, -5, cost, 3) == card.LEAST[0] and card.epochs_for(1, 1e9, cost, 3) == card.MOST[1]

"""The three shipped students by one command each: what they leave, how they go on, what is said before they start."""
import json
from dataclasses import replace

import pytest

from fer_nb import hyfer_studies
from fer_nb.cli import main
from fer_nb.config import Adversarial, Data, Distillation, Fit
from fer_nb.core import LABEL_ORDERS, ConfigError, DataError
from fer_nb.hyfer_studies import FERPLUS, STUDY, train_shipped
from fer_nb.models import HyFER, weights_digest
from fer_nb.store import StoreError, read_record, read_table
from fer_nb.synth import fer2013_folder, make_faces

SMALL = replace(STUDY, teachers=(), student=Fit(epochs=1, bs=64), data=Data(near_duplicates=False), distillation=Distillation(views=1),
                adversarial=Adversarial(steps=1, fit=Fit(epochs=1, lr=1e-3, bs=64)))


@pytest.fixture(scope="module")
def faces():
    return make_faces(210, seed=0, defects=None, balance="uniform")[0]


def test_the_robust_student_goes_on_from_the_accurate_ones_work(faces, tmp_path, monkeypatch):
    said, work = [], tmp_path / "work"
    a = train_shipped(faces, tmp_path / "a", SMALL, students=["hyfer"], work=work, say=said.append)
    assert sorted(p.name for p in a.iterdir()) == ["history.csv", "hyfer.json", "hyfer.safetensors", "results.csv"]
    starts = json.loads((work / "sessions.json").read_text())           # the work goes on elsewhere
    (work / "sessions.json").write_text(json.dumps([starts[0] | {"threads": 64, "processor": "another"}]))
    r = train_shipped(faces, tmp_path / "r", SMALL, students=["hyfer_robust"], work=work, say=said.append)
    assert sorted(p.name for p in r.iterdir()) == ["history.csv", "hyfer_robust.json", "hyfer_robust.safetensors", "results.csv"]
    assert any("not bit for bit" in line and "threads is 64 there" in line for line in said)
    record = HyFER.from_pretrained("hyfer_robust", folder=r).card["record"]
    assert record["interruptions"] == 1 and [s["threads"] for s in record["starts"]][0] == 64
    assert {"processor", "cores", "threads", "torch", "device", "commit", "date"} <= set(record["starts"][1])
    whole = train_shipped(faces, tmp_path / "whole", SMALL)              # both at once: the same weights
    for name, at in (("hyfer", a), ("hyfer_robust", r)):
        assert weights_digest(HyFER.from_pretrained(name, folder=whole)) == weights_digest(HyFER.from_pretrained(name, folder=at))
    with pytest.raises(StoreError, match="epochs"):
        train_shipped(faces, tmp_path / "other", replace(SMALL, student=Fit(epochs=2, bs=64)), students=["hyfer"], work=work)


def test_ferplus_by_the_command_learns_the_shares_of_eight(tmp_path, capsys):
    drawn = fer2013_folder(210, votes=True)
    ship = ["ship", "--data", str(drawn / "fer2013.csv"), "--student", "ferplus", "--out", str(tmp_path / "f"), "--set", "student.epochs=1",
            "--set", "student.network=light", "--set", "data.near_duplicates=false", "--set", "student.amp=null"]
    assert main(ship) == 2 and "--votes fer2013new.csv expected" in capsys.readouterr().err
    assert main([*ship, "--votes", str(drawn / "fer2013new.csv")]) == 0
    network = HyFER.from_pretrained("hyfer_ferplus", folder=tmp_path / "f")
    assert "contempt" in network.labels and len(network.labels) == 8
    record = network.card["record"]
    assert record["settings"]["student"]["soft"] == "votes" and record["interruptions"] == 0 and record["starts"][0]["processor"]
    assert {"single", "majority"} & {r["measure"] for r in record["headline"]}
    assert read_record(tmp_path / "f/results.csv")["weights"] == {"hyfer_ferplus": network.card["sha256"]}


@pytest.mark.parametrize("students, preset, says", [
    (["hyfer_ferplus"], FERPLUS, "eight labels"), (["hyfer_ferplus", "hyfer"], FERPLUS, "hyfer_ferplus alone"), (["hyper"], SMALL, "hyfer_robust"),
    (["hyfer"], replace(SMALL, student=Fit(bs=10**8)), "GB for batches of 100000000 at 48 px, and .* GB are free on .*a batch of ")])
def test_what_cannot_be_made_is_said_before_it_starts(faces, tmp_path, students, preset, says):
    with pytest.raises(ConfigError, match=says):
        train_shipped(faces, tmp_path / "never", preset, students=students)
    assert not list(tmp_path.iterdir())


def test_ferplus_without_votes_is_refused(faces, tmp_path):
    eight = faces.replace(labels=LABEL_ORDERS["ferplus"], df=faces.df.assign(label="neutral"))
    with pytest.raises(DataError, match="shares of the votes"):
        train_shipped(eight, tmp_path / "never", FERPLUS, students=["hyfer_ferplus"])


def test_a_study_that_does_not_fit_is_refused_before_it_starts(tmp_path, capsys):
    data = str(fer2013_folder(210) / "fer2013.csv")
    study = ["study", "recipe", "--data", data, "--out", str(tmp_path / "r"), "--set", "student.bs=100000000"]
    assert main(study) == 2 and "GB are free" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_a_measured_precision_is_kept(faces, tmp_path, monkeypatch):
    from fer_nb import train
    asked = []
    rates = lambda *a: asked.append(a) or {"float32": 100.0, "bf16": 300.0}  # noqa: E731
    monkeypatch.setattr(hyfer_studies, "settled", lambda *a: train.settled(*a, measure=rates))
    preset, said = replace(SMALL, student=Fit(epochs=1, bs=64, amp="auto")), []
    for name in ("a", "b"):
        train_shipped(faces, tmp_path / name, preset, students=["hyfer"], work=tmp_path / "work", say=said.append)
    assert len(asked) == 1 and any("3.00 times" in line for line in said)
    kept = read_table(tmp_path / "work/precision.csv")
    assert kept.gain.tolist() == [3.0] and kept.network.tolist() == ["light"] and kept.processor[0]

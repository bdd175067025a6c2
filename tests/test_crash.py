"""Killed for good, by SIGKILL in another process, and gone on with: nothing is lost, nothing finished is done again.

Which of these tests concern which room is listed in tests/README.md.

Training is in test_resume.py; here are teachers' logits, faces, folds, studies, decisions, and whatever is written aside.
"""
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fer_nb import faces, studies
from fer_nb.audit import audit
from fer_nb.core import atomic_file, atomic_folder
from fer_nb.data import FERData
from fer_nb.evaluate import fold_logits
from fer_nb.faces import FaceRefiner
from fer_nb.loaders import dataloaders, folds
from fer_nb.review import ReviewSession, read_decisions
from fer_nb.store import Store
from fer_nb.synth import make_faces
from fer_nb.teachers import teacher_logits
from fer_nb.duplicates import DuplicateSearch


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(module, name, number, instead=None):
    "Let the `number`-th call of a function be the last thing that this process does."
    calls, original = [], getattr(module, name)

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            if instead:
                instead(*args)
            die()
        return original(*args, **kwargs)
    setattr(module, name, counted)


def half(fd):
    "What is being written gets half-way to the disk."
    os.ftruncate(fd, os.fstat(fd).st_size // 2)


@pytest.fixture(scope="module", autouse=True)
def one_thread(threads):
    "As in the other processes: a fork has none of its parent's threads, and OpenMP would wait for them for ever."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def images():
    return make_faces(200, seed=0, size=32, defects=None, balance="uniform")[0]


# ---------------------------------------------------------------- teachers' logits

class Teacher(nn.Module):
    "Counts the batches it is asked about, and dies at one of them."

    def __init__(self, last=None):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.labels, self.name = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 7)), images().labels, "t"
        self.last, self.asked = last, 0

    def forward(self, x):
        self.asked += 1
        if self.asked == self.last:
            die()
        return self.net(x)


VIEWS, BATCHES = 3, 2 + 1  # batches of a view: training, validation


def ask(folder, last=None):
    "All logits, and how many batches the teacher saw."
    ds, teacher = images(), Teacher(last)
    dls = dataloaders(ds.where(split="train"), ds.where(split=["valid", "test"]), bs=32, views=VIEWS)
    return teacher_logits(teacher, dls.train, dls.valid, bs=100, folder=folder), teacher.asked


LOGITS = ("between views", "within a view", "while a view is written", "before it is renamed")


def kill_teacher(folder, point):
    if point == "while a view is written":
        die_at_call(os, "fsync", 4, half)      # the key, then the views
    if point == "before it is renamed":
        die_at_call(os, "replace", 3)
    ask(folder, {"between views": 4, "within a view": 5}.get(point))


@pytest.fixture(scope="module")
def whole():
    return ask(None)


@pytest.mark.parametrize("point", LOGITS)
def test_cached_logits(corpses, whole, point):
    """Equal to those of an undisturbed teacher; the views that were finished are not asked about again."""
    folder = corpses / point
    finished = len(list(folder.glob("[!.]*.npz")))
    assert finished == 2
    again, asked = ask(folder)
    assert np.array_equal(again.train, whole[0].train) and np.array_equal(again.valid, whole[0].valid)
    assert whole[1] == VIEWS * BATCHES and asked == whole[1] - BATCHES
    assert ask(folder)[1] == 0


# ---------------------------------------------------------------- faces

class Search(FaceRefiner):
    "Finds nothing, at once; dies at a picture."
    last = None
    looked = []

    def record(self, image):
        if self.last is not None and len(self.looked) == self.last:
            die()
        self.looked.append(1)
        out = np.array((b"", 1, image.mean(), image.std()), faces._RECORD)
        return out


def find(folder, last=None, workers=1):
    "What is found, and how many pictures were looked at."
    Search.last, Search.looked = last, []
    return Search().find(images(), workers, folder), len(Search.looked)


def kill_finder(folder, point):
    if point == "while faces are written":
        die_at_call(os, "fsync", 4, half)  # after the identity and two chunks
    find(folder, 150 if point == "between faces" else None)


@pytest.mark.parametrize("point", ["between faces", "while faces are written"])
def test_kept_faces(corpses, point):
    """Two chunks of 64 were finished; only the other pictures are looked at again, and the result is the undisturbed one."""
    fresh, _ = find(False)
    (table, points, shapes), looked = find(corpses / point)
    assert looked == len(images()) - 128
    assert table.equals(fresh[0]) and np.array_equal(points, fresh[1], equal_nan=True) and np.array_equal(shapes, fresh[2], equal_nan=True)
    assert find(corpses / point)[1] == 0


def test_workers_end_with_the_process_that_started_them(corpses):
    """Nobody can tell them: they notice."""
    pids = [int(p.name) for p in (corpses / "workers").iterdir()]
    assert pids
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# ---------------------------------------------------------------- duplicates

@cache
def doubles():
    "Some 240 different pictures, so four bands of comparisons, and duplicates among them."
    return make_faces(250, seed=0, size=32)[0]


def search(folder, last=None):
    "All duplicates, and which parts were computed: bands of comparisons, then pairs that are looked at."
    parts, original = [], Store.array

    def counted(self, name, make, **more):
        def making():
            if len(parts) == last:
                die()
            parts.append(name)
            return make()
        return original(self, name, making, **more)
    with patch.object(Store, "array", counted):
        return audit(doubles(), ("duplicate",), DuplicateSearch(block=64), folder=folder), parts


@cache
def undisturbed():
    return search(None)


FINISHED = {"within a band": 2, "while a band is written": 2, "while pairs are looked at": 4}


def kill_search(folder, point):
    if point == "while a band is written":
        die_at_call(os, "fsync", 3, half)
    search(folder, None if point == "while a band is written" else FINISHED[point])


@pytest.mark.parametrize("point", FINISHED)
def test_kept_duplicates(corpses, point):
    """Only parts that were not finished are computed again, and the audit is the undisturbed one."""
    report, computed = search(corpses / point)
    fresh, every = undisturbed()
    assert len(every) == 5 and computed == every[FINISHED[point]:] and len(report.duplicates) > 0
    assert report.duplicates.equals(fresh.duplicates) and report.issues.equals(fresh.issues)
    assert search(corpses / point)[1] == []


# ---------------------------------------------------------------- folds and studies

@cache
def quarters():
    "Found once: it takes a search for duplicates."
    return folds(images(), 4)


def linear(train, k):
    "What a fit gives, at once."
    torch.manual_seed(k)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 7))
    model.labels = train.labels
    return model


def cross(folder, last=None):
    "Logits of four folds, and which were fitted."
    fitted = []

    def fit(train, k):
        if k == last:
            die()
        fitted.append(k)
        return linear(train, k)
    return fold_logits(fit, images(), quarters(), folder), fitted


def kill_folds(folder, point):
    if point == "while a fold is written":
        die_at_call(os, "fsync", 4, half)  # the first is the identity of the folder
    cross(folder, 2 if point == "within a fold" else None)


@pytest.mark.parametrize("point", ["within a fold", "while a fold is written"])
def test_kept_folds(corpses, point):
    logits, fitted = cross(corpses / point)
    assert fitted == [2, 3] and np.array_equal(logits, cross(None)[0])
    assert cross(corpses / point)[1] == []


def study(folder, last=None):
    "A study of six runs with results of every kind of number, and which runs were made."
    made = []

    def run(protocol, seed):
        if len(made) == last:
            die()
        made.append((protocol, seed))
        value = np.random.default_rng([seed, len(protocol)]).normal(size=4) ** 3 / 7
        return pd.DataFrame({"subset": ["all", "all", "without_duplicates", "all"], "metric": ["accuracy", "nll", "accuracy", "ece"],
                             "value": [*value[:3], np.nan], "n": [9, 9, 8, 0]})
    ds, grid = images(), studies.grid
    grouped = FERData(ds.df.assign(group=np.arange(len(ds)), photo=np.arange(len(ds))), ds.array(), ds.labels, ds.name)
    with patch.object(studies, "grid", lambda _, *rest, **more: grid(run, *rest, **more)):
        return studies.protocol_study(grouped, range(2), out=folder), made


def kill_study(folder, point):
    if point == "while a run is written":
        die_at_call(os, "fsync", 8, half)  # the first is the identity of the folder; a run and the count of comparisons are two
    study(folder, 3 if point == "within a run" else None)


@pytest.mark.parametrize("point", ["within a run", "while a run is written"])
def test_kept_runs(corpses, point):
    """The table is the undisturbed one's to the last bit, though half of it comes from files."""
    table, made = study(corpses / point)
    undisturbed, all_made = study(None)
    assert made == all_made[3:] and len(all_made) == 6
    pd.testing.assert_frame_equal(table, undisturbed, check_exact=True)
    again, none = study(corpses / point)
    pd.testing.assert_frame_equal(again, undisturbed, check_exact=True)
    assert none == []


# ---------------------------------------------------------------- decisions

@cache
def report():
    pictures = np.random.default_rng(0).integers(0, 256, (30, 24, 24), dtype=np.uint8)[np.arange(60) // 2]
    df = pd.DataFrame({"id": [f"im{k}" for k in range(60)], "label": ["happy", "sad"] * 30, "split": "train"})
    return audit(FERData(df, pictures, images().labels), search=None)


def kill_review(folder, point):
    folder.mkdir()
    session = ReviewSession(report(), folder / "log", "anna")
    if point == "while a decision is written":
        die_at_call(os, "fsync", 8, lambda fd: os.ftruncate(fd, os.fstat(fd).st_size - 40))
    for k in range(7):
        session.decide("drop" if k % 2 else "sad")
    if point == "after a decision":
        die()
    session.decide("keep")


@pytest.mark.parametrize("point", ["after a decision", "while a decision is written"])
def test_decisions_outlive_their_reviewer(corpses, point):
    """Seven decisions were made; the eighth, cut off, is passed over with a warning, and the review goes on."""
    log = corpses / point / "log"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        session = ReviewSession(report(), log, "anna")
    assert [("cut off" in str(w.message)) for w in said] == ([True] if point.startswith("while") else [])
    assert len(session.decisions) == 7
    session.decide("unsure")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_decisions(log).action.tolist()[-1] == "unsure" and len(read_decisions(log)) == 8


# ---------------------------------------------------------------- files and folders

def kill_writer(folder, point):
    folder.mkdir()
    (folder / "kept").write_text("old")
    with atomic_folder(folder / "run") as aside:
        (aside / "a.txt").write_text("old")
    if point == "while a file is written":
        with atomic_file(folder / "kept") as aside:
            aside.write_text("ne")
            die()
    with atomic_folder(folder / "run", overwrite=True) as aside:
        (aside / "a.txt").write_text("ne")
        die()


@pytest.mark.parametrize("point", ["while a file is written", "while a folder is written"])
def test_what_was_there_is_still_there_and_can_be_replaced(corpses, point):
    home = corpses / point
    assert (home / "kept").read_text() == (home / "run/a.txt").read_text() == "old"
    with atomic_file(home / "kept") as aside:
        aside.write_text("new")
    with atomic_folder(home / "run", overwrite=True) as aside:
        (aside / "a.txt").write_text("new")
    assert (home / "kept").read_text() == (home / "run/a.txt").read_text() == "new"


# ---------------------------------------------------------------- the other processes

KILLS = dict.fromkeys(LOGITS, kill_teacher) | {"between faces": kill_finder, "while faces are written": kill_finder,
         **dict.fromkeys(FINISHED, kill_search), "within a fold": kill_folds,
         "while a fold is written": kill_folds, "within a run": kill_study, "while a run is written": kill_study,
         "after a decision": kill_review, "while a decision is written": kill_review,
         "while a file is written": kill_writer, "while a folder is written": kill_writer}


def other_processes(folder):
    "In a new interpreter: a process for each point, killed."
    quarters(), doubles(), report()
    for point, kill in KILLS.items():
        if not (pid := os.fork()):
            try:
                kill(folder / point, point)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        assert os.WIFSIGNALED(status := os.waitpid(pid, 0)[1]) and os.WTERMSIG(status) == signal.SIGKILL, point


SLOW = """
import os, signal, sys, time
from pathlib import Path

from fer_nb.faces import FaceRefiner

class Slow(FaceRefiner):
    "A search whose processes say who they are, and take their time."
    def record(self, image):
        Path(os.environ["WORKERS"], str(os.getpid())).touch()
        time.sleep(.05)
        return (b"", 0, 0, 0)

if __name__ == "__main__":  # two workers at work, and nobody they work for
    import slow
    Path(os.environ["WORKERS"]).mkdir()
    for k, _ in enumerate(slow.Slow()._search(([(b"%d" % k, None)] for k in range(400)), 2)):
        if len(os.listdir(os.environ["WORKERS"])) == 2 and k > 4:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def corpses(tmp_path_factory):
    "A folder with what killed processes left behind."
    folder = tmp_path_factory.mktemp("killed")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", __file__, str(folder)], env=env, check=True, timeout=300)
    (folder / "slow.py").write_text(SLOW)
    workers = subprocess.run([sys.executable, "-W", "ignore", folder / "slow.py"], env=env | {"WORKERS": str(folder / "workers")}, timeout=300)
    assert workers.returncode == -signal.SIGKILL
    return folder


if __name__ == "__main__":
    other_processes(Path(sys.argv[1]))

"""The store against hostile folders: cut short, foreign, of another identity, read-only, full, written by two at once."""
import json
import os
import resource
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import fer_nb.store
from fer_nb import core
from fer_nb.store import (Store, StoreError, command_line, differences, digest, plain, read_state, read_table, run_record, taken_up, write_state,
                          write_table)

TABLE = pd.DataFrame({"arm": ["none", "mixup"], "value": [0.1 + 0.2, float("nan")], "n": [3, 4], "fine": [True, False]})
ARRAYS = {"x": np.eye(3, dtype="f4"), "labels": np.array(["sad", "happy"]), "a/b": np.zeros(0, bool)}
STATE = {"epoch": 3, "weights": {"w": torch.eye(4), "names": ["a", None]}}
MADE = {"table": (TABLE, ".csv"), "array": (ARRAYS, ".npz"), "state": (STATE, ".ckpt")}
kinds = pytest.mark.parametrize("kind", MADE)


def never():
    pytest.fail("it was made again")


def same(a, b):
    "Whether two results are the same, bit for bit."
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a.dtype == b.dtype and np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def once(kind, folder, identity=None, make=None, name="it", rule="refuse", **more):
    "The result of a kind in a folder."
    return getattr(Store(folder, identity, damaged=rule), kind)(name, make or (lambda: MADE[kind][0]), **more)


# ---------------------------------------------------------------- what is there comes back, whole or not at all

@kinds
def test_it_is_made_once_and_comes_back_as_it_was(kind, tmp_path):
    made = once(kind, tmp_path, {"seed": 0}, k=5)
    assert same(once(kind, tmp_path, {"seed": 0}, never, k=5), made)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["identity.json", "it" + MADE[kind][1]])


@kinds
def test_every_cut_and_every_flipped_byte_is_told(kind, tmp_path):
    """Cut anywhere, also at the end of a line; or one byte changed. Never a part of the result, never a raw error."""
    once(kind, tmp_path, {"seed": 0})
    path = tmp_path / ("it" + MADE[kind][1])
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cuts = [whole[:n] for n in {0, 1, len(whole) - 1, *rng.integers(0, len(whole), 25)}]
    lines = [whole[:n + 1] for n, byte in enumerate(whole[:-1]) if byte == 10] if kind == "table" else []
    for damaged in [*cuts, *lines]:
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=f"it{MADE[kind][1]}: "):
            once(kind, tmp_path, {"seed": 0}, never)
    for n in rng.integers(0, len(whole), 25):  # padding of an archive may change; its contents may not
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1:])
        try:
            assert same(once(kind, tmp_path, {"seed": 0}, never), MADE[kind][0])
        except StoreError as e:
            assert path.name in str(e)


@kinds
@pytest.mark.filterwarnings("ignore:.*is made again")
@pytest.mark.parametrize("raw", [b"", b"\x00" * 99, b"\xff\xfe", b"a,b\n1,2,3\n4\n", b"# {\n", b"# {}\n\n", b'# {"a":' * 9999,
                                 b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"fer_nb checkpoint 1\n", b"# comment\na,b\n1,2\n"])
def test_foreign_files_are_refused_or_made_again_but_never_read(kind, raw, tmp_path):
    Store(tmp_path, {"seed": 0})
    path = tmp_path / ("it" + MADE[kind][1])
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=path.name):
        once(kind, tmp_path, {"seed": 0}, never)
    assert path.read_bytes() == raw
    store = Store(tmp_path, {"seed": 0}, stale="remake", damaged="remake")
    assert same(getattr(store, kind)("it", lambda: MADE[kind][0]), MADE[kind][0])
    assert same(once(kind, tmp_path, {"seed": 0}, never), MADE[kind][0])


def test_readers_of_single_files_name_the_path(tmp_path):
    for read, name in ((read_table, "a.csv"), (read_state, "a.ckpt")):
        for make in (lambda p: None, lambda p: p.mkdir()):
            make(tmp_path / name)
            with pytest.raises(StoreError, match=name):
                read(tmp_path / name)


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"a": []}), pd.DataFrame({"# x": [1]}), pd.DataFrame({"a": ['b"\n,c', "# {"]}),
                                   pd.DataFrame({"a": ["ä\r\nö", "\r"]}), pd.DataFrame({"": [1.5]}), pd.DataFrame({"NA": ["NA", "null"]})])
def test_odd_tables_come_back(table, tmp_path):
    write_table(table, tmp_path / "of.csv", {"seed": 0})
    found = read_table(tmp_path / "of.csv")
    assert found.attrs == {"identity": {"seed": 0}} and found.to_csv(index=False) == table.to_csv(index=False) or "" in table
    assert found.shape == table.shape
    write_table(table, tmp_path / "plain.csv")
    assert read_table(tmp_path / "plain.csv").attrs == {"identity": None}


def test_a_plain_csv_may_have_a_byte_order_mark_and_one_of_the_old_columns(tmp_path):
    (tmp_path / "old.csv").write_text("subset,n\nwithout_twins,1\n", encoding="utf-8-sig")
    with pytest.warns(UserWarning, match="without_twins is now without_duplicates"):
        assert read_table(tmp_path / "old.csv").to_dict("list") == {"subset": ["without_duplicates"], "n": [1]}


@pytest.mark.parametrize("made", [{}, np.zeros(0), np.array(3.5), {"array": np.ones(2)}, {"identity": np.ones(2)}])
def test_odd_arrays_come_back(made, tmp_path):
    assert same(once("array", tmp_path, make=lambda: made), once("array", tmp_path, make=never))


@pytest.mark.parametrize("kind, made, what", [("array", np.array([None]), "array.it is a object"), ("array", {"x": np.array([{}])}, "array.it.x"),
                                              ("state", {"f": print}, "f is a builtin"), ("state", {"a": [np.ones(2)]}, "a.0 is a float64")])
def test_what_would_need_a_pickle_is_refused_before_it_is_written(kind, made, what, tmp_path):
    with pytest.raises(StoreError, match=what):
        once(kind, tmp_path, make=lambda: made)
    assert [p.name for p in tmp_path.iterdir()] == ["identity.json"]


# ---------------------------------------------------------------- another identity, on every type of leaf

LEAVES = [0, 1, 2, 1.5, True, False, "1", "", "absent", float("inf"), [], {}, [1], [1, 2], ["1"], {"0": 1}, {"a": None, "b": 1}, {"a.b": 1},
          {"a": {"b": 1}}, np.arange(3), np.arange(3.0), np.arange(2000), np.arange(2000) % 1999, Path("a"), b"1", ("x", 1),
          pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}), torch.arange(3) + 7]


@pytest.mark.parametrize("n", range(len(LEAVES)))
def test_every_other_leaf_is_another_identity(n, tmp_path):
    one = {"name": {"leaf": LEAVES[n]}}
    once("table", tmp_path, one)
    assert same(once("table", tmp_path, one, never), TABLE)
    for m, other in enumerate(LEAVES):
        if m == n:
            continue
        with pytest.raises(StoreError, match="results of something else: name.leaf.* there and .* here"):
            Store(tmp_path, {"name": {"leaf": other}})
        file = Store(tmp_path, {"name": {"leaf": other}}, stale="remake")
        file.stale = "refuse"
        with pytest.raises(StoreError, match="it.csv: of something else: name.leaf"):
            file.table("it", never)
    assert differences(plain(one), {}) and differences({}, plain(one))


@pytest.mark.parametrize("a, b", [({"x": float("nan")}, {"x": float("nan")}), ({"x": None}, {}), ({"x": 8}, {"x": 8.0}), ({"x": (1, 2)}, {"x": [1, 2]}),
                                  ({"x": {"a", "b", "c"}}, {"x": {"c", "b", "a"}}), ({"x": np.int64(8)}, {"x": 8}), ({"x": np.bool_(True)}, {"x": True}),
                                  ({1: 2}, {"1": 2})])
def test_the_same_in_other_words_is_the_same(a, b, tmp_path):
    once("state", tmp_path, a)
    assert same(once("state", tmp_path, b, never), STATE)


@kinds
def test_what_a_file_depends_on_beside_the_store(kind, tmp_path):
    once(kind, tmp_path, {"seed": 0}, k=5)
    for more in ({"k": 6}, {}, {"k": 5, "eps": 0.1}, {"seed": 1}):
        with pytest.raises(StoreError, match="it.* of something else"):
            once(kind, tmp_path, {"seed": 0}, never, **more)
    once(kind, tmp_path / "copied", {"seed": 1})
    name = "it" + MADE[kind][1]
    os.replace(tmp_path / "copied" / name, tmp_path / name)
    with pytest.raises(StoreError, match="seed is 1 there and 0 here"):
        once(kind, tmp_path, {"seed": 0}, never, k=5)


@settings(max_examples=60)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3)))
def test_an_identity_is_itself_after_a_file(value):
    identity = plain({"x": value})
    again = json.loads(json.dumps(identity))
    assert not differences(identity, again) and not differences(again, identity)
    assert digest(identity) == digest(again)


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '"x"', "[" * 99_999, "\x00", '{"seed": 1}'])
def test_an_identity_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(StoreError, match="begin again"):
        Store(tmp_path, {"seed": 0})
    assert (tmp_path / "identity.json").read_text() == text


# ---------------------------------------------------------------- two at once

def test_of_two_that_come_at_once_one_is_refused(tmp_path):
    """Eight threads, each with its own seed, find no identity.json at the same time."""
    for attempt in range(20):
        folder, start, won, lost = tmp_path / str(attempt), threading.Barrier(8), [], []

        def claim(seed):
            start.wait()
            try:
                Store(folder, {"seed": seed})
                won.append(seed)
            except StoreError as e:
                lost.append(str(e))
        threads = [threading.Thread(target=claim, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(lost) == 7 and json.loads((folder / "identity.json").read_text()) == {"seed": won[0]}
        assert all(f"seed is {won[0]} there" in text for text in lost)
        assert [p.name for p in folder.iterdir()] == ["identity.json"]


def test_processes_of_one_study_share_the_folder(tmp_path):
    script = ("import sys; import pandas as pd; from fer_nb.store import Store; "
              "s = Store(sys.argv[1], {'seed': 0}); [s.table(f'fold-{k}', lambda: pd.DataFrame({'k': [k]})) for k in range(50)]")
    running = [subprocess.Popen([sys.executable, "-c", script, tmp_path], stderr=subprocess.PIPE) for _ in range(2)]
    assert [p.communicate()[1] for p in running] == [b"", b""]
    assert [Store(tmp_path, {"seed": 0}).table(f"fold-{k}", never).k.tolist() for k in range(50)] == [[k] for k in range(50)]
    assert len(list(tmp_path.iterdir())) == 51


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    Store(tmp_path / "a", {"seed": 0})
    with pytest.raises(StoreError, match="seed is 0 there and 1 here"):
        Store(tmp_path / "a", {"seed": 1})


# ---------------------------------------------------------------- read-only folders, full disks

@contextmanager
def full_disk(room):
    "No file may become larger than `room` bytes."
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@kinds
@pytest.mark.parametrize("room", [0, 100])
def test_a_full_disk_names_the_path_and_leaves_what_was_there(kind, room, tmp_path):
    store = Store(tmp_path, {"seed": 0}, stale="remake")
    path = tmp_path / ("it" + MADE[kind][1])
    with full_disk(room), pytest.raises(StoreError, match=f"{path.name}: could not be written .*; there is no earlier one"):
        getattr(store, kind)("it", lambda: MADE[kind][0])
    assert list(tmp_path.iterdir()) == []
    getattr(store, kind)("it", lambda: MADE[kind][0])
    with full_disk(room), pytest.raises(StoreError, match=f"{path.name}: could not be written .*; the one before it is intact"):
        getattr(store, kind)("it", lambda: MADE[kind][0], k=2)
    assert same(getattr(store, kind)("it", never), MADE[kind][0])


def test_a_full_disk_at_the_first_use(tmp_path):
    with full_disk(0), pytest.raises(StoreError, match="new/identity.json: could not be written"):
        Store(tmp_path / "new", {"seed": 0})
    assert Store(tmp_path / "new", {"seed": 0}).folder.exists()


@kinds
def test_a_read_only_folder_can_be_read_and_says_that_it_cannot_be_written(kind, tmp_path, monkeypatch):
    once(kind, tmp_path, {"seed": 0})

    @contextmanager
    def refusing(path, overwrite=True):
        raise OSError(30, "Read-only file system")
        yield

    with monkeypatch.context() as m:  # root may write everywhere, so the system's refusal is imitated
        m.setattr("fer_nb.store.atomic_file", refusing)
        assert same(once(kind, tmp_path, {"seed": 0}, never), MADE[kind][0])
        with pytest.raises(StoreError, match=f"other{MADE[kind][1]}: could not be written .Read-only file system.*no earlier one"):
            once(kind, tmp_path, {"seed": 0}, name="other")
        with pytest.raises(StoreError, match="new/identity.json: could not be written .Read-only"):
            Store(tmp_path / "new", {"seed": 0})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(StoreError, match="locked/identity.json: could not be written .Permission denied"):
        Store(tmp_path / "locked", {"seed": 0})


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StoreError, match="identity.json: could not be written"):
            Store(folder, {"seed": 0})
    Store(tmp_path / "a", {})
    (tmp_path / "a/it.csv").mkdir()
    with pytest.raises(StoreError, match="it.csv: cannot be read"):
        once("table", tmp_path / "a")


def test_an_error_of_what_makes_it_is_not_blamed_on_the_disk(tmp_path):
    def missing():
        raise FileNotFoundError("photo.jpg")
    with pytest.raises(FileNotFoundError, match="photo.jpg"):
        once("table", tmp_path, make=missing)
    assert [p.name for p in tmp_path.iterdir()] == ["identity.json"]


def test_files_written_directly_say_so_too(tmp_path):
    (tmp_path / "file").write_text("")
    for write, made in ((write_table, TABLE), (write_state, STATE)):
        with pytest.raises(StoreError, match="file/x: could not be written"):
            write(made, tmp_path / "file/x")


# ---------------------------------------------------------------- names

@kinds
@pytest.mark.parametrize("name", ["eps/8", "a/b/c", "ä ö", "*?<>|:", "a.b", ".hidden", "-", "…", "'\"$(x)", "identity", "x" * 190])
def test_slashes_and_odd_characters_are_names(kind, name, tmp_path):
    once(kind, tmp_path, {"seed": 0}, name=name)
    assert same(once(kind, tmp_path, {"seed": 0}, never, name=name), MADE[kind][0])
    assert all(tmp_path in p.parents for p in tmp_path.rglob("*"))


@kinds
@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "a\x00b", "a\nb", "\ud800", "x" * 300, "ä" * 150])
def test_names_that_lead_out_or_that_no_disk_takes(kind, name, tmp_path):
    with pytest.raises(StoreError, match="is no name for a file within"):
        once(kind, tmp_path / "in", {"seed": 0}, never, name=name)
    with pytest.raises(StoreError, match="is no name"):
        Store(tmp_path / "in", {"seed": 0}).part(name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["identity.json", "in"]


def test_a_part_has_both_identities(tmp_path):
    store = Store(tmp_path, {"seed": 0})
    store.part("eps/8", radius=8).table("it", lambda: TABLE)
    assert same(Store(tmp_path / "eps/8", {"seed": 0, "radius": 8}).table("it", never), TABLE)
    with pytest.raises(StoreError, match="radius is 8 there and 4 here"):
        store.part("eps/8", radius=4)
    assert Store(None).part("a").path("b") is None


# ---------------------------------------------------------------- core.atomic_file, which stands below

def test_the_first_stays_where_nothing_is_overwritten(tmp_path):
    for word in ("one", "two"):
        with core.atomic_file(tmp_path / "f", overwrite=False) as aside:
            aside.write_text(word)
    assert (tmp_path / "f").read_text() == "one" and [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("given, shown", [
    ("--out=/srv/me/secret/x", "--out=x"), ("/srv/me/secret/x", "x"), ("--data=/tmp", "--data=tmp"), ("/tmp", "tmp"), ("--data=~/me/x.csv", "--data=x.csv"),
    ("student.network=/srv/me/a.safetensors", "student.network=a.safetensors"), ("--set=student.network=/srv/me/a b.pt", "--set=student.network=a b.pt"),
    ('teachers=[{"network": "/srv/me/a.safetensors"}, {"network": "/x/b.pt"}]', 'teachers=[{"network": "a.safetensors"}, {"network": "b.pt"}]'),
    ("there/mine.csv", "mine.csv"), ("--data=there/mine.csv", "--data=mine.csv"), ("C:\\Users\\me\\x.csv", "x.csv"), ("--out=C:/me/x", "--out=x"),
    ("student.lr=1/2", "student.lr=1/2"), ("runs/new", "runs/new"), ("--quiet", "--quiet"), ("", ""), ("--out=", "--out="), ("/", "/"),
    ("--models=a=/srv/me/a.onnx,b=/srv/me/b.pt,hyfer", "--models=a=a.onnx,b=b.pt,hyfer"), ("a=/srv/a.pt,there/mine.csv,fer", "a=a.pt,mine.csv,fer"),
    ("/srv/me/a.pt,m:f,~/b.pt", "a.pt,m:f,b.pt"), ("/srv/x,y/a,b.csv", "a,b.csv"), ("--arm=a,/srv/me/b.csv", "--arm=a,b.csv"),
    ("student.augment.scale=[0.7, 1.35]", "student.augment.scale=[0.7, 1.35]")])
def test_a_command_is_shown_without_the_folders_of_the_machine(tmp_path, monkeypatch, given, shown):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert command_line(["run", given]) == f"fer-nb run {shlex.quote(shown)}"  # a shell reads it back


def test_a_copy_without_git_is_told_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(fer_nb.store, "resources", lambda name: tmp_path / name)
    commit = fer_nb.store._commit
    monkeypatch.delenv("FER_NB_COMMIT", raising=False)
    assert commit() is None
    monkeypatch.setenv("FER_NB_COMMIT", "abc1234")
    assert commit() == "abc1234"
    (tmp_path / ".git").mkdir()     # where there is a checkout, it says itself
    assert commit() != "abc1234"
    monkeypatch.setenv("PATH", str(tmp_path))   # and no program that could read it
    assert commit() == "abc1234"


def test_a_record_names_the_code_that_was_read_not_where_the_checkout_has_moved(tmp_path, monkeypatch):
    """A long fit goes on with what it imported, while somebody commits."""
    before = run_record("x")["commit"]
    monkeypatch.setattr(fer_nb.store, "_commit", lambda: "moved")
    assert run_record("x")["commit"] == before == fer_nb.store._LOADED


def test_two_processes_enter_their_records_one_after_the_other(tmp_path):
    """Each reads the file, adds its own entry and writes it: without a lock the later one drops the other's."""
    code = ("import sys; from fer_nb.store import write_record\n"
            "for k in range(20): write_record(sys.argv[1], [f'{sys.argv[2]}{k}.csv'], {'command': 'x'})")
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [p.wait(120) for p in both] == [0, 0]
    assert {f for r in fer_nb.store._records(tmp_path / "record.json") for f in r["files"]} == {f"{n}{k}.csv" for n in "ab" for k in range(20)}


def test_patterns_stay_as_they_are_in_a_command():
    pattern = r"(?P<label>\w+)/\d+"
    for words in (["--label-pattern", pattern], [f"--label-pattern={pattern}"]):
        assert shlex.split(command_line(["run", *words]))[2:] == words
    assert command_line(["run", "--set", "quads={}"]) == "fer-nb run --set 'quads={}'"


def test_text_that_looks_like_numbers_comes_back_as_text(tmp_path):
    made = pd.DataFrame({"subject": ["007", "010"], "flag": ["True", "False"], "day": ["2026-01-01", "2026-01-02"], "n": [1, 2]})
    store = Store(tmp_path, {"a": 1})
    pd.testing.assert_frame_equal(store.table("t", lambda: made), store.table("t", lambda: None), check_dtype=False)
    assert store.table("t", lambda: None).subject.tolist() == ["007", "010"]


def test_columns_of_one_name_are_written(tmp_path):
    write_table(pd.DataFrame([[1, "a"]], columns=["x", "x"]), tmp_path / "x.csv")
    write_table(pd.DataFrame([[1, "a"]], columns=["x", "x"]), tmp_path / "y.csv", {"a": 1})
    wide = pd.DataFrame([[1, "a"]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")]))
    write_table(wide, tmp_path / "z.csv", {"a": 1})
    assert [len(read_table(tmp_path / name)) for name in ("x.csv", "y.csv")] == [1, 1] and len(read_table(tmp_path / "z.csv")) == 2


def test_a_column_that_mixes_text_and_numbers_comes_back_as_the_docstring_says(tmp_path):
    store = Store(tmp_path, {"a": 1})
    for _ in range(2):
        mixed = store.table("t", lambda: pd.DataFrame({"v": ["01", 2], "w": ["01", "2"]}))
    assert mixed.v.tolist() == [1, 2] and mixed.w.tolist() == ["01", "2"]
    assert '"01" as 1' in Store.table.__doc__


def test_weights_that_were_not_written_down_are_no_difference_and_others_are(tmp_path):
    """What an earlier version finished stays; what this one finished is refused where the file of weights is another."""
    old, new, other = ({"settings": {"student": {"network": "a.safetensors"} | more}} for more in ({}, {"sha256": "x"}, {"sha256": "y"}))
    table = pd.DataFrame({"value": [1.0]})
    for identity, name in ((old, "old"), (new, "new")):
        Store(tmp_path / name, identity).table("cell", lambda: table, arm_settings={"lr": 1} | ({"sha256": "x"} if name == "new" else {}))
    never = lambda: pytest.fail("made again")  # noqa: E731
    for identity in (new, other):
        assert Store(tmp_path / "old", identity).table("cell", never, arm_settings={"lr": 1, "sha256": "y"}).equals(table)
        assert taken_up(tmp_path / "old", identity | {"workers": 2}, ["workers"]) == old
    with pytest.raises(StoreError, match="settings.student.sha256 is 'x' there and 'y' here"):
        Store(tmp_path / "new", other)
    with pytest.raises(StoreError, match="arm_settings.sha256 is 'x' there and 'y' here"):
        Store(tmp_path / "new", new).table("cell", never, arm_settings={"lr": 1, "sha256": "y"})
    with pytest.raises(StoreError, match="sha256 is 'x' there and 'absent' here"):
        Store(tmp_path / "new", old)
    with pytest.raises(StoreError, match="network is 'a.safetensors' there"):
        Store(tmp_path / "old", {"settings": {"student": {"network": "b.safetensors", "sha256": "x"}}})


def test_works_that_share_a_folder_have_starts_of_their_own(tmp_path):
    said, work = [], Store(tmp_path, {})
    work.session()
    (path := tmp_path / "sessions.json").write_text(json.dumps([json.loads(path.read_text())[0] | {"threads": 64}]))
    starts = work.session(said.append, of="b")
    assert [one.get("of") for one in starts] == [None, "b"] and said[0].startswith("what others have not finished goes on, but not bit for bit")
    work.session(said.append, of="b")
    assert len(said) == 1                                    # b goes on where b began
    work.session(said.append)
    assert len(said) == 2 and said[1].startswith("goes on, but not bit for bit") and "threads is 64 there" in said[1]

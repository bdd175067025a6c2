"""The exported core: hashed randomness as a function, folders that appear whole, fetching from a local server."""
import hashlib
import os
import random
import subprocess
import sys
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fer_nb.core import (EMOTIONS, LABEL_ORDERS, DataError, DownloadError, FERError, LabelError, atomic_folder,
                         cache_dir, canonical_label, fetch, file_sha256, hash_uniform, seed_everything)

I64 = st.integers(-2**63, 2**63 - 1)


# ---- labels ----

def test_orders_hold_canonical_names_once():
    for order in LABEL_ORDERS.values():
        assert len(set(order)) == len(order)
        assert [canonical_label(name) for name in order] == list(order)
        assert set(EMOTIONS) <= set(order)


@given(st.sampled_from(["Anger", "SAD ", " joy", "Fearful", "contempt", "Bored"]))
def test_canonical_label_is_idempotent_and_ignores_case(name):
    assert canonical_label(canonical_label(name)) == canonical_label(name) == canonical_label(name.upper())


@pytest.mark.parametrize("name", ["", "  ", None, 4, float("nan"), b"sad"])
def test_what_is_not_a_name_is_refused(name):
    with pytest.raises(LabelError, match="is not a name"):
        canonical_label(name)


# ---- hash_uniform ----

@given(seed=I64, counters=st.lists(I64, max_size=4))
def test_one_number_is_in_range_and_needs_no_warning(seed, counters):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        u = hash_uniform(seed, *counters)
    assert u.shape == () and u.dtype == np.float64 and 0 <= u < 1
    assert u == hash_uniform(seed, *counters)


@settings(max_examples=40)
@given(seed=I64, data=st.data())
def test_every_element_of_a_broadcast_can_be_replayed_alone(seed, data):
    full = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    counters = []
    for k in range(data.draw(st.integers(1, 3))):
        shape = [n if data.draw(st.booleans()) else 1 for n in full][data.draw(st.integers(0, len(full))):]
        counters.append(np.random.default_rng(abs(seed) % 2**32 + k).integers(-2**40, 2**40, shape))
    u = hash_uniform(seed, *counters)
    whole = np.broadcast_arrays(*counters)
    assert u.shape == whole[0].shape
    for at in np.ndindex(u.shape):
        assert u[at] == hash_uniform(seed, *(int(c[at]) for c in whole))


@given(seed=I64, a=st.integers(-10**6, 10**6), b=st.integers(-10**6, 10**6))
def test_counters_have_places(seed, a, b):
    assert (hash_uniform(seed, a, b) == hash_uniform(seed, b, a)) == (a == b)
    assert hash_uniform(seed, a) != hash_uniform(seed, a, b)


def test_a_grid_of_seeds_and_counters_has_no_repeats_and_no_correlation():
    u = np.stack([hash_uniform(seed, np.arange(200)[:, None], np.arange(-1, 49)) for seed in (-1, 0, 1, 2)])
    assert len(np.unique(u)) == u.size
    flat = u.reshape(4, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < .04          # 10,000 numbers a row: 4 standard errors
    assert np.abs(np.corrcoef(u[0].T) - np.eye(50)).max() < .32       # 200 numbers a column, 1,225 pairs


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_the_integer_type_of_a_counter_does_not_matter(dtype):
    assert (hash_uniform(5, np.arange(100, dtype=dtype)) == hash_uniform(5, np.arange(100))).all()


def test_no_counters_and_empty_counters():
    assert hash_uniform(3).shape == ()
    assert hash_uniform(3, np.arange(0)).shape == (0,)
    assert hash_uniform(3, np.arange(4)[:, None], np.zeros((1, 0), int)).shape == (4, 0)


def test_shapes_that_do_not_broadcast_are_an_error():
    with pytest.raises(ValueError):
        hash_uniform(0, np.arange(3), np.arange(4))


def test_seed_everything_reaches_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        for seed in (0, 2**32 + 7):
            seed_everything(seed)
            first = draw()
            draw()
            seed_everything(seed)
            assert draw() == first
    finally:
        random.setstate(state[0]), np.random.set_state(state[1]), torch.set_rng_state(state[2])


# ---- atomic_folder ----

def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_nested_parents_are_made_and_the_folder_can_be_read_by_others(tmp_path):
    out = tmp_path / "a/b/run"
    with atomic_folder(out) as d:
        (d / "x").mkdir()
        (d / "x/y.txt").write_text("y")
        assert d.parent.parent == out.parent and not out.exists()
    assert (out / "x/y.txt").read_text() == "y" and names(out.parent) == ["run"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), SystemExit(1)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, error, overwrite):
    out = tmp_path / "run"
    if overwrite:
        out.mkdir()
        (out / "old").write_text("old")
    with pytest.raises(type(error)):
        with atomic_folder(out, overwrite=overwrite) as d:
            (d / "half").write_text("half")
            raise error
    assert names(tmp_path) == (["run"] if overwrite else [])
    assert not overwrite or names(out) == ["old"]


def test_overwriting_replaces_everything(tmp_path):
    for word in ("one", "two"):
        with atomic_folder(tmp_path / "run", overwrite=True) as d:
            (d / word).write_text(word)
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["two"]


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("a file")])
def test_what_exists_is_refused_before_any_work(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(DataError, match="run: exists already"):
        with atomic_folder(tmp_path / "run"):
            pytest.fail("the block ran")
    assert names(tmp_path) == ["run"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "run"
    with pytest.raises((FERError, OSError)):
        with atomic_folder(out) as d:
            (d / "mine").write_text("")
            out.mkdir()
            (out / "theirs").write_text("")
    assert names(out) == ["theirs"] and names(tmp_path) == ["run"]


def test_the_old_folder_comes_back_if_the_last_rename_fails(tmp_path, monkeypatch):
    out = tmp_path / "run"
    out.mkdir()
    (out / "old").write_text("old")
    replace = os.replace

    def failing(src, dst):
        if os.fspath(dst) == os.fspath(out) and (os.path.exists(os.path.join(src, "new"))):
            raise OSError(5, "Input/output error")
        replace(src, dst)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        with atomic_folder(out, overwrite=True) as d:
            (d / "new").write_text("new")
    assert names(tmp_path) == ["run"] and names(out) == ["old"]


# ---- fetch ----

CONTENT = b"weights of a network" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    "A web server on this machine with one file; `(address, stop)`."
    (tmp_path / "www").mkdir()
    (tmp_path / "www/weights.bin").write_bytes(CONTENT)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "www"))
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()

    def stop():
        httpd.shutdown()
        httpd.server_close()

    yield f"http://127.0.0.1:{httpd.server_port}/weights.bin", stop
    stop()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_fetched_once_and_then_needs_no_server(server, cache):
    url, stop = server
    path = fetch(url, DIGEST)
    assert path == cache / "weights.bin" and path.read_bytes() == CONTENT and file_sha256(path) == DIGEST
    stop()
    assert fetch(url, DIGEST) == path


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server, cache):
    with pytest.raises(DownloadError, match=f"weights.bin.*{'0' * 64}"):
        fetch(server[0], "0" * 64)
    assert not list(cache.glob("*weights.bin"))


def test_a_spoiled_copy_is_fetched_anew(server, cache):
    cache.mkdir()
    (cache / "weights.bin").write_bytes(b"half a download")
    assert fetch(server[0], DIGEST).read_bytes() == CONTENT


@pytest.mark.parametrize("gone", [True, False])
def test_no_server_or_no_such_file_says_where_to_put_it(server, cache, gone):
    url, stop = server
    if gone:
        stop()
    url = url if gone else url.replace("weights", "other")
    with pytest.raises(DownloadError) as e:
        fetch(url, DIGEST)
    assert str(cache / url.rsplit("/", 1)[-1]) in str(e.value) and DIGEST in str(e.value)


@pytest.mark.parametrize("folder", ["str", "Path"])
def test_the_folder_may_be_a_string_also_when_fetching_fails(tmp_path, folder):
    folder = str(tmp_path) if folder == "str" else tmp_path
    with pytest.raises(DownloadError, match="put the file"):
        fetch("http://127.0.0.1:9/weights.bin", DIGEST, folder)


def test_an_address_that_cannot_be_fetched_is_not_blamed_on_the_checksum(tmp_path):
    with pytest.raises(DownloadError, match="could not be fetched"):
        fetch("gopher://127.0.0.1/weights.bin", DIGEST, tmp_path)


@pytest.mark.parametrize("env, end", [({"FER_NB_CACHE": "/c"}, "/c"), ({"XDG_CACHE_HOME": "/x"}, "/x/fer_nb"),
                                      ({"HOME": "/h"}, "/h/.cache/fer_nb"),
                                      ({"FER_NB_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/fer_nb")])
def test_where_the_cache_is(monkeypatch, env, end):
    for name in ("FER_NB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cache_dir().as_posix() == end


def test_every_error_is_a_fererror():
    import fer_nb.core as core
    errors = [e for e in vars(core).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(errors) == 6 and all(issubclass(e, FERError) for e in errors)


# ---- progress ----

def test_progress_hands_on_what_it_gets_and_is_silent_in_a_library(capsys):
    from fer_nb.core import progress
    assert list(progress(iter("abc"), "reading")) == ["a", "b", "c"] and list(progress([], "nothing")) == []
    assert capsys.readouterr() == ("", "")


def test_progress_without_a_terminal_says_how_long_it_will_take(capsys, monkeypatch):
    "A second an item: the first line after ten seconds, later ones after a sixth of the time gone; the time left is right."
    import re

    from fer_nb import core
    clock = iter(range(10_000))
    monkeypatch.setattr(core.time, "monotonic", lambda: next(clock))
    with core.show_progress():
        list(core.progress(range(200), "looking", size=lambda item: 3, total=600))
    out, err = capsys.readouterr()
    said = [re.fullmatch(r"\d\d:\d\d:\d\d looking: ([\d,]+) of 600, (\d+):(\d\d):(\d\d) left", line) for line in err.splitlines()]
    done = [int(m[1].replace(",", "")) // 3 for m in said]
    assert out == "" and done[:3] == [10, 20, 30] and len(done) < 16 and done[-1] < 200
    assert [int(m[3]) * 60 + int(m[4]) for m in said] == pytest.approx([200 - k for k in done], abs=1)
    with core.show_progress():
        list(core.progress(range(40), "reading", size=lambda item: int(item > 20)))  # the first ones count nothing
    assert "reading: 0 of 40" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    with core.show_progress():
        list(core.progress(range(200), "looking"))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_progress_on_a_terminal_is_a_bar_that_goes(tmp_path):
    "Three seconds in, a bar with the time left; at the end its line is empty again."
    import fcntl
    import pty
    import struct
    import termios
    code = ("import time; from fer_nb import core\nfrom tqdm import std\nreal = time.time; std.time = lambda: 4 * real()\n"
            "for k in core.progress(range(20), 'looking'): time.sleep(.1)")
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a new one has no lines
    process = subprocess.Popen([sys.executable, "-c", code], stderr=child, stdout=subprocess.DEVNULL)
    os.close(child)
    seen = b""
    try:
        while part := os.read(parent, 4096):
            seen += part
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0 and b"looking" in seen and b"20 [" in seen and b"<" in seen, seen
    assert not seen.split(b"\r")[-1].strip(), seen[-200:]

"""Streams that a server on loopback sends frame by frame: read as they come, written as they are read, in flat memory."""
import os
import socket
import threading
from contextlib import contextmanager

import cv2
import numpy as np
import pandas as pd
import pytest

from fer_nb.cli import main
from fer_nb.core import DataError
from fer_nb.predict import Network, Recogniser, write_results


def logits(x):
    return np.zeros((len(x), 2))


@pytest.fixture
def whole():
    return Recogniser(Network(("a", "b"), 48, 1, 1.0, logits, "toy"), crop=False)


def jpeg(k, size=(96, 64)):
    return cv2.imencode(".jpg", np.full((size[1], size[0], 3), 40 + k % 7 * 30, np.uint8))[1].tobytes()


def transport(tmp_path, n):
    path = tmp_path / "film.ts"
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (96, 64))
    for k in range(n):
        out.write(np.full((64, 96, 3), 40 + k % 7 * 30, np.uint8))
    out.release()
    return path.read_bytes()


@contextmanager
def served(parts, kind, pause=.0, torn=False, first=None):
    """The address of a server that sends `parts` one after the other to whoever asks, and closes; `torn`: in the middle of the last.
    `first`: an event that it awaits before the last part, at most 20 s; `first.in_time` says whether it came."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def answer(client):
        with client:
            try:
                client.recv(4096)
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n")
                for k, part in enumerate(parts):
                    if first is not None and k == len(parts) - 1:
                        first.in_time = first.wait(20)
                    client.sendall(part[:len(part) // 2] if torn and k == len(parts) - 1 else part)
                    if over.wait(pause):
                        return
            except OSError:      # whoever asked has gone
                pass

    def serve():
        while not over.is_set():
            try:
                client = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/live"
    finally:
        over.set()
        listener.close()


def multipart(n, size=(96, 64)):
    return [b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg(k, size)) + jpeg(k, size) + b"\r\n" for k in range(n)]


MIXED = b"multipart/x-mixed-replace; boundary=b"


@pytest.mark.parametrize("torn", [False, True])
def test_frames_come_while_the_server_still_sends(whole, torn):
    first, results = threading.Event(), []
    with served(multipart(40), MIXED, .01, torn, first) as address:
        for r in whole.frames(address):
            first.set()
            results.append(r)
    *read, end = results
    assert len(read) >= 35 and {r.status for r in read} == {"ok"} and end.status == "error" and "ended at frame" in end.note
    assert first.in_time, "the first frame came with the last"
    assert np.all(np.diff([r.time for r in read]) > 0)


def test_what_was_read_of_a_transport_stream_that_breaks_is_written(tmp_path, capsys):
    data = transport(tmp_path, 60)
    parts = [data[k:k + 188 * 8] for k in range(0, len(data) * 2 // 3, 188 * 8)]
    with served(parts, b"video/mp2t", .005, torn=True) as address:
        status = main(["predict", "--camera", address, "--no-crop", "--to", str(tmp_path / "out.csv")])
    table = pd.read_csv(tmp_path / "out.csv")
    assert status == 1 and "ended at frame" in capsys.readouterr().err
    assert (table.status == "ok").sum() >= 20 and table.status.iloc[-1] == "error" and table.frame.iloc[0] == 0


def test_what_was_read_before_the_reader_stops_is_written(whole, tmp_path):
    with served(multipart(400), MIXED, .01) as address:
        def some():
            for k, r in enumerate(whole.frames(address)):
                if k == 20:
                    raise KeyboardInterrupt
                yield r

        with pytest.raises(KeyboardInterrupt):
            write_results(some(), "csv", tmp_path / "out.csv", whole.network.labels)
    assert pd.read_csv(tmp_path / "out.csv").frame.tolist() == list(range(20))


@pytest.mark.parametrize("parts, kind", [([b"<html>no film</html>"], b"text/html"), ([], b"video/mp2t")])
def test_a_stream_that_is_none_is_named(whole, parts, kind):
    with served(parts, kind) as address, pytest.raises(DataError, match="127.0.0.1"):
        list(whole.frames(address))


def test_nobody_listens(whole):
    with pytest.raises(DataError, match="http://127.0.0.1:9/live"):
        list(whole.frames("http://127.0.0.1:9/live"))


def megabytes():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
@pytest.mark.parametrize("n", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_memory_stays_flat_over_a_stream(whole, n):
    with served(multipart(n, (320, 240)), MIXED) as address:
        used = [megabytes() for k, _ in enumerate(whole.frames(address)) if k % 50 == 0]
    assert len(used) >= n // 50 and used[-1] - used[2] < 15

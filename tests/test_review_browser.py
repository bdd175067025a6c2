"""The reviewer driven in a real browser, by Voila and JupyterLab; `--screenshot FILE` makes the picture of the docs."""
from __future__ import annotations

import json
import os
import re
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
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no network: a server's page must do without
CELL = """import os
from pathlib import Path
from fer_nb.audit import audit
from fer_nb.review import Reviewer
from fer_nb.synth import make_faces
Path("kernel.pid").write_text(str(os.getpid()))
reviewer = Reviewer(audit(make_faces(240, seed=5)[0]), "decisions.jsonl", reviewer="anna")
reviewer"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to drive the reviewer in one")


def write_notebook(
    folder: Path,  # where
) -> Path:         # review.ipynb
    "A notebook that shows a reviewer."
    cell = {"cell_type": "code", "id": "review", "execution_count": None, "metadata": {}, "outputs": [], "source": CELL}
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    path = folder / "review.ipynb"
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": [cell]}
    path.write_text(json.dumps(notebook))
    return path


@contextmanager
def served(
    folder: Path,      # with review.ipynb
    app: str,          # "voila" or "lab"
) -> Iterator[str]:    # the address of the notebook
    "Serve the notebook on a free port; afterwards end the server and the kernels it started."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = ["--Voila.ip=127.0.0.1", "--no-browser", "review.ipynb"] if app == "voila" else \
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
        yield home + ("" if app == "voila" else "lab/tree/review.ipynb?reset")
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


class Screen:
    "The reviewer as a person sees it."

    def __init__(self, page: object, url: str, folder: Path):
        self.page, self.folder = page, folder
        page.goto(url, wait_until="commit")
        if "/lab/" in url:
            page.locator(".jp-NotebookPanel .jp-Cell .cm-content").first.click()
            page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
            page.keyboard.press("Control+Enter")
        self.frame = page.locator(".fer-nb-review[data-ready=true]")
        self.frame.wait_for()

    @property
    def decided(self) -> str:
        return self.frame.locator("b", has_text="decided").first.inner_text()

    @property
    def asked(self) -> str:
        return self.frame.locator(".fer-nb-asked figcaption").inner_text()

    def shows(self, text: str) -> None:
        self.frame.get_by_text(text, exact=False).first.wait_for()

    def choose_kind(self, kind: str) -> None:
        menu = self.frame.locator("select").first
        menu.select_option(label=next(o for o in menu.locator("option").all_inner_texts() if o.startswith(kind)))
        self.frame.locator("td", has_text=kind).first.wait_for()

    def lines(self) -> list[dict]:
        log = self.folder / "decisions.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def logged(self, n: int) -> dict:
        "Wait for line `n`; its number counts from 1."
        wait_for(lambda: len(self.lines()) >= n)
        assert len(self.lines()) == n
        return self.lines()[-1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_notebook(tmp_path)
    return tmp_path


def test_voila(folder: Path) -> None:
    "Keys, buttons, filters and undo do what they say; a killed kernel forgets nothing."
    with served(folder, "voila") as url, browser() as page:
        screen = Screen(page, url, folder)
        total = int(screen.decided.split(" of ")[1].split()[0])
        assert screen.decided == f"anna: 0 of {total} decided"

        first = screen.asked
        screen.frame.locator(".fer-nb-asked img").click()                     # the focus is in the frame
        page.keyboard.press("d")
        assert screen.logged(1)["action"] == "drop" and screen.lines()[0]["id"] in first
        screen.shows(f"1 of {total} decided")
        second = screen.asked
        assert second != first

        page.keyboard.press("x")                                              # means nothing
        page.keyboard.press("Control+d")                                      # is the browser's
        screen.frame.get_by_role("button", name="not sure [u]").click()
        assert screen.logged(2)["action"] == "unsure"
        screen.shows(f"2 of {total} decided")

        page.keyboard.press("z")
        assert screen.logged(3)["action"] == "undo" and screen.lines()[2]["id"] == screen.lines()[1]["id"]
        screen.shows(f"1 of {total} decided")
        assert screen.asked == second

        screen.choose_kind("multilabel")
        label = screen.asked.split(" · ")[0]
        page.keyboard.press("5" if label != "sad" else "4")                   # the focus came back from the menu
        assert screen.logged(4)["action"] == ("sad" if label != "sad" else "happy")
        assert "multilabel" in screen.lines()[3]["kind"]
        screen.shows(f"2 of {total} decided")
        page.keyboard.press("ArrowLeft")
        screen.frame.locator(".fer-nb-asked mark").wait_for()                 # the decided picture, with its decision

        classes = screen.frame.locator("select").nth(1)
        assert classes.evaluate("menu => menu.selectedOptions[0].text") == "all"
        classes.select_option(index=1)
        name = classes.locator("option").nth(1).inner_text().split()[0]       # "happy (4)"
        wait_for(lambda: screen.frame.locator(".fer-nb-asked").count() == 0 or screen.asked.startswith(name))

        for menu in (classes, screen.frame.locator("select").first):
            menu.select_option(label="all")
        screen.frame.get_by_text(re.compile(rf"picture \d+ of {total}\b")).wait_for()

        os.kill(int((folder / "kernel.pid").read_text()), signal.SIGKILL)
        screen = Screen(page, url, folder)                                    # a new kernel
        assert screen.decided == f"anna: 2 of {total} decided"
        assert len(screen.lines()) == 4
        screen.frame.locator(".fer-nb-asked img").click()
        page.keyboard.press("k")
        assert screen.logged(5)["action"] == "keep"
        screen.shows(f"3 of {total} decided")

        # What comes before the next picture is drawn is no answer to it.
        screen.frame.get_by_role("button", name="drop [d]").evaluate("b => { b.click(); b.click(); b.click(); }")
        screen.shows(f"4 of {total} decided")
        screen.frame.evaluate("""f => { for (const key of "kdk")
            f.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true})); }""")
        screen.shows(f"5 of {total} decided")
        page.wait_for_timeout(500)
        assert [r["action"] for r in screen.lines()[5:]] == ["drop", "keep"]


def test_lab(folder: Path) -> None:
    "In JupyterLab the keys reach the reviewer and not the notebook, where `d` `d` deletes a cell."
    with served(folder, "lab") as url, browser() as page:
        screen = Screen(page, url, folder)
        total = screen.decided.split(" of ")[1]
        screen.frame.locator(".fer-nb-asked img").click()
        for key, done in zip("ddzd", (1, 2, 1, 2)):
            page.keyboard.press(key)
            screen.shows(f"{done} of {total}")
        before = screen.asked
        page.keyboard.press("n")
        wait_for(lambda: screen.asked != before)
        assert [r["action"] for r in screen.lines()] == ["drop", "drop", "undo", "drop"]
        assert page.locator(".jp-Notebook .jp-CodeCell").count() == 1
        screen.frame.get_by_role("button", name="keep [k]").click()
        screen.shows(f"3 of {total}")
        page.keyboard.press("d")
        screen.shows(f"4 of {total}")


def screenshot(
    out: Path,  # a PNG file
) -> None:
    "The reviewer at a doubtful picture of the synthetic faces, as a small PNG."
    import tempfile

    from PIL import Image
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        write_notebook(folder)
        with served(folder, "voila") as url, browser() as page:
            screen = Screen(page, url, folder)
            screen.choose_kind("multilabel")
            page.keyboard.press("5")
            screen.shows("1 of")
            page.wait_for_timeout(300)
            screen.frame.screenshot(path=str(folder / "review.png"))
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "review.png").convert("RGB").quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--screenshot":
        sys.exit("python tests/test_review_browser.py --screenshot FILE.png")
    screenshot(Path(sys.argv[2]))

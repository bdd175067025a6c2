"""The reviewer driven in a real browser, by Voila and JupyterLab; `--screenshot FILE` makes the screenshot of the docs."""
from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from conftest import CHROMIUM, browser, open_page, save_small, served, wait_for, write_notebook

CELL = """import os
from pathlib import Path
from fer_nb.audit import audit
from fer_nb.review import Reviewer
from fer_nb.synth import make_faces
Path("kernel.pid").write_text(str(os.getpid()))
reviewer = Reviewer(audit(make_faces(240, seed=5)[0]), "decisions.jsonl", reviewer="anna")
reviewer"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to drive the reviewer in one")


class Screen:
    "The reviewer as a person sees it."

    def __init__(self, page: object, url: str, folder: Path):
        self.page, self.folder = page, folder
        self.frame = open_page(page, url, ".fer-nb-review[data-ready=true]")

    @property
    def decided(self) -> str:
        return self.frame.locator("b", has_text="decided").first.inner_text()

    @property
    def asked(self) -> str:
        return self.frame.locator(".fer-nb-current span").inner_text()

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
    write_notebook(tmp_path, CELL)
    return tmp_path


@pytest.mark.slow
def test_voila(folder: Path) -> None:
    "Keys, buttons, filters and undo do what they say; a killed kernel forgets nothing."
    with served(folder, "voila") as url, browser() as page:
        screen = Screen(page, url, folder)
        total = int(screen.decided.split(" of ")[1].split()[0])
        assert screen.decided == f"anna: 0 of {total} decided"

        first = screen.asked
        screen.frame.locator(".fer-nb-current img").click()                     # the focus is in the frame
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
        screen.frame.locator(".fer-nb-current mark").wait_for()                 # the decided image, with its decision

        classes = screen.frame.locator("select").nth(1)
        assert classes.evaluate("menu => menu.selectedOptions[0].text") == "all"
        classes.select_option(index=1)
        name = classes.locator("option").nth(1).inner_text().split()[0]       # "happy (4)"
        # each look is one call: the image may go between two
        asked = screen.frame.locator(".fer-nb-current span")
        wait_for(lambda: all(text.startswith(name) for text in asked.all_inner_texts()))

        for menu in (classes, screen.frame.locator("select").first):
            menu.select_option(label="all")
        screen.frame.get_by_text(re.compile(rf"image \d+ of {total}\b")).wait_for()

        looks_closer(page, screen)

        os.kill(int((folder / "kernel.pid").read_text()), signal.SIGKILL)
        screen = Screen(page, url, folder)                                    # a new kernel
        assert screen.decided == f"anna: 2 of {total} decided"
        assert len(screen.lines()) == 4
        screen.frame.locator(".fer-nb-current img").click()
        page.keyboard.press("k")
        assert screen.logged(5)["action"] == "keep"
        screen.shows(f"3 of {total} decided")

        # What comes before the next image is drawn is no decision on it.
        screen.frame.get_by_role("button", name="drop [d]").evaluate("b => { b.click(); b.click(); b.click(); }")
        screen.shows(f"4 of {total} decided")
        screen.frame.evaluate("""f => { for (const key of "kdk")
            f.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true})); }""")
        screen.shows(f"5 of {total} decided")
        page.wait_for_timeout(500)
        assert [r["action"] for r in screen.lines()[5:]] == ["drop", "keep"]


def looks_closer(page: object, screen: Screen) -> None:
    "Large images, zoom, the views of a pair, help: nothing of it decides anything."
    frame, before = screen.frame, len(screen.lines())
    zoom = lambda: float(frame.get_attribute("data-zoom"))  # noqa: E731
    screen.choose_kind("leak")
    box = frame.locator(".fer-nb-current img").bounding_box()
    assert box["width"] > 400 and box["width"] == pytest.approx(box["height"], abs=1)
    lens = frame.locator(".fer-nb-current .fer-nb-lens")
    lens.click(position={"x": 40, "y": 40})                                   # focused already: it zooms, about that place
    assert zoom() == 2 and frame.evaluate("f => parseFloat(f.style.getPropertyValue('--fer-nb-x'))") < 15
    for img in frame.locator(".fer-nb-large img").all():                      # the partner too
        assert img.bounding_box()["width"] == pytest.approx(2 * box["width"], abs=1)
    page.keyboard.press("+")
    assert zoom() == 3
    page.keyboard.press("Shift+ArrowRight")
    assert frame.evaluate("f => parseFloat(f.style.getPropertyValue('--fer-nb-x'))") > 15
    page.keyboard.press("-")
    page.keyboard.press("0")
    assert zoom() == 1
    lens.hover()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    wait_for(lambda: zoom() > 1)
    asked = screen.asked
    page.keyboard.press("ArrowRight")
    wait_for(lambda: screen.asked != asked and zoom() == 1)                   # another image is shown whole

    page.keyboard.press("c")
    frame.locator(".fer-nb-difference img").wait_for()
    page.keyboard.press("c")
    frame.locator(".fer-nb-blink img").nth(1).wait_for()
    assert frame.locator(".fer-nb-blink img").nth(1).evaluate("i => getComputedStyle(i).animationName") == "fer-nb-blink"
    page.keyboard.press("c")
    wait_for(lambda: frame.locator(".fer-nb-blink").count() == 0)
    page.keyboard.press("?")
    frame.locator(".fer-nb-keys", has_text="zoom in and out").wait_for()
    page.keyboard.press("?")
    frame.locator(".fer-nb-keys").wait_for(state="detached")
    assert len(screen.lines()) == before
    frame.locator("select").first.select_option(label="all")


def test_by_keyboard_alone(tmp_path: Path) -> None:
    "Tab reaches the frame, its ring is seen, keys decide all of it, and the end says what comes next."
    write_notebook(tmp_path, CELL)
    with served(tmp_path, "voila") as url, browser() as page:
        screen = Screen(page, url, tmp_path)
        for _ in range(20):
            page.keyboard.press("Tab")
            if screen.frame.evaluate("f => f === document.activeElement"):
                break
        style = screen.frame.evaluate("f => { const s = getComputedStyle(f); return [s.outlineStyle, s.outlineWidth]; }")
        assert style == ["solid", "3px"]
        total = int(screen.decided.split(" of ")[1].split()[0])
        for n in range(1, total + 1):
            page.keyboard.press("dku"[n % 3])
            screen.shows(f"{n} of {total} decided")
        done = screen.frame.locator(".fer-nb-done")
        done.wait_for()
        assert f"All {total} are decided" in done.inner_text() and "audit.clean(decisions=" in done.locator("pre").inner_text()
        for _ in range(3):
            page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.slow
def test_lab(folder: Path) -> None:
    "In JupyterLab the keys reach the reviewer and not the notebook, where `d` `d` deletes a cell."
    with served(folder, "lab") as url, browser() as page:
        screen = Screen(page, url, folder)
        total = screen.decided.split(" of ")[1]
        screen.frame.locator(".fer-nb-current img").click()
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
    "The reviewer at a doubtful image of the synthetic faces, as a small PNG."
    import tempfile
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        write_notebook(folder, CELL)
        with served(folder, "voila") as url, browser() as page:
            screen = Screen(page, url, folder)
            screen.choose_kind("multilabel")
            page.keyboard.press("5")
            screen.shows("1 of")
            page.wait_for_timeout(300)
            screen.frame.screenshot(path=str(folder / "review.png"))
        save_small(folder / "review.png", out)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--screenshot":
        sys.exit("python tests/test_review_browser.py --screenshot FILE.png")
    screenshot(Path(sys.argv[2]))

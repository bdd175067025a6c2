"""The explorer driven in a real browser, by Voila and JupyterLab; `--screenshot FILE` makes the screenshot of the docs."""
from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from conftest import CHROMIUM, browser, open_page, save_small, served, wait_for, write_notebook

CELL = """import torch
import torch.nn.functional as F
from fer_nb.audit import audit
from fer_nb.explore import Explorer
from fer_nb.models import HyFER, HyFERConfig
from fer_nb.synth import make_faces
faces = make_faces(240, seed=5, balance={"happy": 1, "surprise": 1, "neutral": 1})[0]
train = faces.where(split="train")
torch.manual_seed(0)
model = HyFER(in_chans=1, variant=HyFERConfig(16, ((24, 2, 2), (48, 2, 2), (48, 1, 2)), 48, 1, 1, 96, True, "relu", 48))
opt = torch.optim.AdamW(model.parameters(), 6e-3)
x, y = torch.tensor(train.array())[:, None] / 255, torch.tensor(train.targets())
schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 6e-3, total_steps=6 * -(-len(x) // 24))
for i in [i for _ in range(6) for i in torch.randperm(len(x)).split(24)]:
    F.cross_entropy(model(x[i]), y[i]).backward()
    opt.step(); schedule.step(); opt.zero_grad()
explorer = Explorer(faces, model.eval(), train=train, audit=audit(faces), per_page=16)
explorer"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to drive the explorer in one")


class Screen:
    "The explorer as a person sees it."

    def __init__(self, page: object, url: str):
        self.page = page
        self.frame = open_page(page, url, ".fer-nb-explorer")
        self.gallery, self.details = (self.frame.locator(".fer-nb-surface").nth(k) for k in (0, 1))
        self.cards.first.wait_for()

    @property
    def cards(self) -> object:
        return self.gallery.locator("button.fer-nb-card")

    @property
    def title(self) -> str:
        return self.details.locator("h4").first.inner_text()

    def counts(self) -> tuple[int, int, int, int]:
        "Images shown, images in all, page, pages."
        text = self.frame.get_by_text(re.compile(r"of [\d,]+ images")).first.locator("xpath=..").inner_text()
        return tuple(int(n) for n in re.match(r"(\d+) of (\d+) images.*page (\d+) of (\d+)", text).groups())

    def choose(self, name: str, option: str) -> int:
        "Pick what starts with `option` from the menu `name`; the number that stands beside it."
        menu = self.frame.locator(".widget-dropdown", has=self.page.get_by_text(name, exact=True)).locator("select")
        text = next(o for o in menu.locator("option").all_inner_texts() if o.startswith(option))
        menu.select_option(label=text)
        return int(re.search(r"\((\d+)\)|$", text)[1] or -1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_notebook(tmp_path, CELL)
    return tmp_path


@pytest.mark.slow
def test_voila(folder: Path) -> None:
    "Filters, order, pages, the open image with all its parts, and the jump to a partner and back."
    with served(folder, "voila") as url, browser() as page:
        broken = []
        page.on("pageerror", lambda e: broken.append(str(e)))
        screen = Screen(page, url)
        assert screen.counts() == (240, 240, 1, 15) and screen.cards.count() == 16
        assert all(screen.cards.nth(k).locator("img").evaluate("i => i.complete && i.naturalWidth > 0") for k in (0, 15))

        screen.frame.get_by_role("button", name="next").click()
        wait_for(lambda: screen.counts()[2] == 2)
        wrong = screen.choose("result", "wrong")
        wait_for(lambda: screen.counts()[0] == wrong)
        assert screen.counts()[2] == 1                                        # back on the first page
        wait_for(lambda: all("✗" in t for t in screen.cards.all_inner_texts()))
        screen.choose("sort by", "confidence")

        def sure() -> list[int]:
            return [int(re.search(r"(\d+)%", t)[1]) for t in screen.cards.all_inner_texts()]
        wait_for(lambda: sure() == sorted(sure(), reverse=True))
        screen.frame.get_by_label("largest first").click()
        wait_for(lambda: sure() == sorted(sure()) and sure()[0] < sure()[-1])

        screen.choose("result", "all")
        leaks = screen.choose("finding", "leak")
        wait_for(lambda: screen.counts()[0] == leaks)
        screen.cards.first.click()
        screen.gallery.locator(".fer-nb-opened").wait_for()                   # marked among the thumbnails
        screen.details.get_by_alt_text("Grad-CAM").wait_for()
        assert screen.details.locator("tr").count() == 7
        screen.details.locator(".fer-nb-near .fer-nb-card").nth(7).wait_for()  # read beside the page
        distances = [float(re.search(r"distance ([\d.]+)", t)[1])
                     for t in screen.details.locator(".fer-nb-near .fer-nb-card").all_inner_texts()]
        assert distances == sorted(distances) and len(distances) == 8

        asked = screen.title
        finding = screen.details.locator(".fer-nb-finding", has_text="leak").first
        partner = finding.locator("button").inner_text().split("\n")[-1]
        finding.locator("button").click()
        wait_for(lambda: screen.title.startswith(partner + ":"))
        assert screen.title != asked
        screen.details.locator(".fer-nb-finding", has_text="of the other").locator("button",
                                                                                   has_text=asked.split(":")[0]).first.click()
        wait_for(lambda: screen.title == asked)
        assert not broken


@pytest.mark.slow
def test_lab(folder: Path) -> None:
    "In JupyterLab, too, a click opens an image; it does not leave the notebook's cell."
    with served(folder, "lab") as url, browser() as page:
        screen = Screen(page, url)
        screen.cards.nth(3).click()
        screen.details.get_by_alt_text("Grad-CAM").wait_for()
        screen.details.locator(".fer-nb-near .fer-nb-card").first.wait_for()
        wrong = screen.choose("result", "wrong")
        wait_for(lambda: screen.counts()[0] == wrong)
        assert page.locator(".jp-Notebook .jp-CodeCell").count() == 1


def screenshot(
    out: Path,  # a PNG file
) -> None:
    "The explorer at the worst image that the audit doubts, of the synthetic faces, as a small PNG."
    import tempfile
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        write_notebook(folder, CELL)
        with served(folder, "voila") as url, browser() as page:
            screen = Screen(page, url)
            screen.choose("finding", "any")
            screen.choose("result", "wrong")
            screen.choose("sort by", "loss")
            page.wait_for_timeout(500)
            screen.cards.first.click()
            screen.details.locator(".fer-nb-near .fer-nb-card").nth(7).wait_for()
            page.wait_for_timeout(500)
            screen.frame.screenshot(path=str(folder / "explore.png"))
        save_small(folder / "explore.png", out)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--screenshot":
        sys.exit("python tests/test_explore_browser.py --screenshot FILE.png")
    screenshot(Path(sys.argv[2]))

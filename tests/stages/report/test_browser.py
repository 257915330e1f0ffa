"""The page in a real browser, as on a desk, on a phone, in the dark and printed."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restorelcc.base.layout import Layout
from restorelcc.stages.report import ReportConfig
from restorelcc.stages.report.stage import run
from tests.stages.report.browser import chromium
from tests.stages.report.cells import CELLS, write_grid
from tests.stages.report.test_report import SECTIONS

DESKTOP, PHONE = (1280, 900), (360, 740)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = Layout(tmp_path_factory.mktemp("report"))
    write_grid(layout)
    run(CELLS, ReportConfig(), layout)
    return layout.report / "report.html"


def _pixels(png: bytes) -> np.ndarray:
    import matplotlib.image

    return matplotlib.image.imread(io.BytesIO(png))[..., :3]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_opens_clean_and_whole(browser: Any, report: Path, size: tuple[int, int], scheme: str) -> None:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    for section in SECTIONS:
        box = page.locator(f'[data-section="{section}"]').first.bounding_box()
        assert box["height"] > 60, section
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing sticks out sideways"
    figures = page.locator("figure svg")
    assert figures.count() == 6
    for number in range(6):
        box = figures.nth(number).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        pixels = _pixels(figures.nth(number).screenshot())
        assert pixels.std() > 0.02, f"figure {number} is empty"
    ground = _pixels(page.screenshot())[2, 2].mean()
    assert ground > 0.9 if scheme == "light" else ground < 0.2
    page.close()


def test_it_prints_on_white_without_cutting_a_table(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 1400}, color_scheme="dark")
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert _pixels(page.screenshot())[2, 2].mean() == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()

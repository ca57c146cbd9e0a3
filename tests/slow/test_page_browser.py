"""The report's page in a real browser: wide, on a phone, in the dark and printed, without an error.

Needs Playwright and a Chromium (its own, or one on the PATH); without them the tests skip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import chromium
from synthetic_study import make_flips, make_report, make_rollout, unfinished_report

from colever.shown import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
FLIPS = make_flips()
FIELDS = {
    FLIPS.gained[0]: {"problem": "3 + 4 * 2", "answer": "11"},
    FLIPS.lost[0]: {"problem": "<b>9</b> - 1 & 2", "answer": "6"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up study's page, or the one that COLEVER_PAGE names."""
    if given := os.environ.get("COLEVER_PAGE"):
        return Path(given)
    made = tmp_path_factory.mktemp("page") / "report.html"
    pair = (make_rollout("test-7", 0.5, "<b>12</b>"), make_rollout("test-7", 1.0, "11"))
    rollouts = {FLIPS.gained[0]: pair, "test-500": pair}
    write_page(replace(make_report(), flips=replace(FLIPS, fields=FIELDS), rollouts=rollouts), made)
    return made


def opened(browser: Browser, file: Path, width: int, **options: Any) -> tuple[Page, list[str]]:
    """The page at this width, and what it complains of from then on."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    return page, said


def save(page: Page, file: Path, name: str) -> None:
    """Keep a picture to look at where COLEVER_SCREENSHOTS names a folder."""
    if folder := os.environ.get("COLEVER_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"page-{file.stem}-{name}.png"), full_page=True)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_error_and_fits_its_window(browser: Browser, file: Path, width: int, scheme: str) -> None:
    page, said = opened(browser, file, width, color_scheme=scheme)
    seen = page.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height > 100).length"
    )
    assert seen == 4, "waterfall, square, one cost, criteria"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "only tables scroll sideways"
    small = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
    assert min(ratio for ratio in page.evaluate(small) if ratio) > 0.8, "text of 11 units stays above 8 pixels"
    assert page.evaluate("document.querySelector('h1').getBoundingClientRect().bottom") < 400
    assert said == []
    save(page, file, f"{width}-{scheme}")
    page.close()


def test_no_text_of_a_figure_lies_outside_it_or_on_another(browser: Browser, file: Path) -> None:
    page, _ = opened(browser, file, 1280)
    found = page.evaluate(
        """[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width).flatMap(s => {
             const edge = s.getBoundingClientRect(), texts = [...s.querySelectorAll('text')];
             const boxes = texts.map(t => t.getBoundingClientRect());
             const beside = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1;
             const apart = (a, b) => beside(a, b) || a.bottom <= b.top + 5 || b.bottom <= a.top + 5;
             const out = texts.filter((t, i) => boxes[i].left < edge.left - 2 || boxes[i].right > edge.right + 2);
             const met = texts.filter((t, i) => boxes.some((b, j) => j < i && !apart(b, boxes[i])));
             return [...out, ...met].map(t => t.textContent);
           })"""
    )
    assert found == []
    page.close()


def test_the_unit_of_cost_is_chosen_by_pointer_and_by_keyboard_without_a_script(browser: Browser, file: Path) -> None:
    page, said = opened(browser, file, 1280, java_script_enabled=False)
    shown = page.locator(".panel:visible svg")
    assert "against rollouts" in (shown.get_attribute("aria-label") or "")
    page.get_by_text("minutes", exact=True).click()
    assert "against minutes" in (shown.get_attribute("aria-label") or "")
    page.keyboard.press("ArrowLeft")
    assert "against computed TFLOPs" in (shown.get_attribute("aria-label") or "")
    assert shown.count() == 1
    assert said == []
    page.close()


def test_base_and_winner_stand_side_by_side_and_on_a_phone_one_below_the_other(browser: Browser, file: Path) -> None:
    for width, beside in ((1280, True), (400, False)):
        page, said = opened(browser, file, width, java_script_enabled=False)
        page.get_by_text("What base and the winner did").first.click()
        base, winner = (page.locator(".side:visible").nth(i).bounding_box() for i in (0, 1))
        assert base is not None
        assert winner is not None
        assert (base["x"] + base["width"] <= winner["x"]) is beside
        assert (base["y"] + base["height"] <= winner["y"]) is not beside
        page.get_by_text("What the model read").first.click()
        assert page.locator(".prompt pre:visible").count() == 1
        assert said == []
        save(page, file, f"{width}-rollouts")
        page.close()


def test_print_shows_every_unit_and_what_is_folded(browser: Browser, file: Path, tmp_path: Path) -> None:
    page, _ = opened(browser, file, 1280)
    page.emulate_media(media="print")
    assert page.locator(".panel:visible svg").count() == 4
    assert page.locator("details table").first.is_visible()
    save(page, file, "print")
    printed = page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert printed.startswith(b"%PDF")
    if folder := os.environ.get("COLEVER_SCREENSHOTS"):
        (Path(folder) / f"page-{file.stem}.pdf").write_bytes(printed)
    page.close()


def test_an_unfinished_study_opens_with_its_notice(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "unfinished.html"
    write_page(unfinished_report(), file)
    page, said = opened(browser, file, 400)
    assert page.locator(".notice").bounding_box()["y"] < page.locator("h1").bounding_box()["y"]  # type: ignore[index]
    assert said == []
    save(page, file, "400")
    page.close()

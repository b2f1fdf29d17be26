"""``report.html`` in a real browser: it loads nothing, says the answer, sorts, draws and copies."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mixersweep.report import Report, build
from mixersweep.report.answer import answer
from tests.report.sweeps import networks, write_sweep
from tests.runs.synthetic import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">&"


def known(model: str, width: int, seed: int) -> float:
    return {"s_mixer": 0.8, "rp_s_mixer": 0.78, "sw_mlp": 0.65}[model] + 0.05 * np.log2(width / 1024)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A sweep with a failed run and texts that would be markup."""
    place = tmp_path_factory.mktemp("page")
    paths = write_sweep(place / "runs", known, seeds=(0, 1, 2))
    lost = next(iter(networks(("sw_mlp",), (900,), ["optim.lr=3.0"]).values()))
    write_run(place / "runs", lost, "diverged", epoch=1, error=HOSTILE)
    file = paths["s_mixer", 900, 0] / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "overrides": ["model=s_mixer", f"width={HOSTILE}"]}))
    return build([place / "runs"], out=place / "out")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, report: Report) -> Iterator[Callable[..., Any]]:
    """Open the page; afterwards nothing was complained of and nothing was asked of the network."""
    complaints: list[str] = []
    contexts = []

    def open_(**settings: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
        assert report.page is not None
        page.goto(report.page.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def test_the_page_is_one_file_that_opens_with_the_answer(report: Report, opened: Callable[..., Any]) -> None:
    assert report.page is not None
    text = report.page.read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "http://" not in re.sub(r'base64,[^"]*', "", text).replace("http://www.w3.org/2000/svg", "")
    page = opened()
    said = answer(report.all_statistics[0])
    assert page.locator("main > h1 + *").get_attribute("id") == "answer"
    assert page.locator("#answer .caveats li").all_inner_texts() == said.first
    told = [" ".join(text.split()) for text in page.locator("#answer .verdicts li").all_text_contents()]
    assert told == [*said.width.lines, *said.structure.lines]
    assert page.locator("#answer td").all_inner_texts() == [text for texts in said.numbers.texts for text in texts]
    assert page.locator("figure img").count() == len(report.figures)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100)")


def test_markup_in_run_data_stays_text(opened: Callable[..., Any]) -> None:
    page = opened()
    assert page.title().startswith("mixersweep report")
    assert HOSTILE in page.locator("#failed").inner_text()
    page.locator("#filter").fill("onerror")
    assert page.locator("#body tr").count() == 1
    page.locator("#body button").click()
    assert "</script><img src=x onerror=" in page.locator("#said").inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_the_table_sorts_both_ways(opened: Callable[..., Any]) -> None:
    page = opened()
    header = page.locator("#head th[data-name=test_accuracy]")
    column = page.locator("#head th").evaluate_all("cells => cells.findIndex(c => c.dataset.name === 'test_accuracy')")

    def values() -> list[float]:
        return [float(t) for t in page.locator(f"#body tr td:nth-child({column + 1})").all_inner_texts()]

    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    rising = values()
    assert len(rising) == 27
    assert rising == sorted(rising)
    assert rising[0] < rising[-1]
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert values() == rising[::-1]
    page.locator("#filter").fill("sw_mlp w1024")
    assert page.locator("#body tr").count() == 3


def test_the_scatter_takes_other_axes_tells_a_run_and_copies_its_command(opened: Callable[..., Any]) -> None:
    page = opened()
    assert page.locator("#scatter .dot").count() == 27
    assert page.locator("#x-label").inner_html() == "effective width m"
    before = page.locator("#scatter .dot").first.get_attribute("transform")
    page.select_option("#x", "parameters")
    page.select_option("#y", "train_loss")
    page.select_option("#colour", "seed")
    assert page.locator("#x-label").inner_html() == "trainable parameters"
    assert page.locator("#y-label").inner_html() == "training loss in nats"
    assert page.locator("#scatter .dot").first.get_attribute("transform") != before
    assert page.locator("#keys li").all_inner_texts() == ["seed 0", "seed 1", "seed 2"]
    page.uncheck("#log")
    assert page.locator("#scatter .dot").count() == 27
    page.select_option("#x", "width")
    dot = page.locator("#scatter .dot").last
    name = dot.get_attribute("data-name")
    dot.hover()
    assert page.locator("#said").inner_text().startswith(f"{name}: effective width m")
    dot.click()
    page.locator("#said", has_text="copied: mixersweep train model=").wait_for()
    command = page.locator("#said").inner_text().removeprefix("copied: ")
    page.locator("#filter").focus()
    page.keyboard.press("Control+V")
    assert page.locator("#filter").input_value() == command


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_light_and_dark_and_on_a_phone(report: Report, opened: Callable[..., Any], scheme: str) -> None:
    assert report.page is not None
    page = opened(color_scheme=scheme)
    ink, paper = page.evaluate(
        "[getComputedStyle(document.documentElement).color, getComputedStyle(document.documentElement).backgroundColor]"
    )
    light = [np.mean([int(n) for n in re.findall(r"\d+", colour)[:3]]) for colour in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")
    assert abs(light[0] - light[1]) > 150
    shot = report.page.parent / f"page-{scheme}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 50_000
    phone = opened(color_scheme=scheme, viewport={"width": 375, "height": 800}, is_mobile=True, has_touch=True)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 375
    assert phone.locator("#scatter .dot").count() == 27
    phone.locator("#scatter .dot").last.tap()
    phone.locator("#said", has_text="copied: ").wait_for()
    phone.screenshot(path=report.page.parent / f"phone-{scheme}.png", full_page=True)


def test_everything_has_a_name_for_who_cannot_see_it(opened: Callable[..., Any]) -> None:
    page = opened()
    assert page.evaluate("[...document.images].every(image => image.alt.length > 20)")
    assert page.evaluate("[...document.querySelectorAll('select, input')].every(i => i.labels.length === 1)")
    assert page.evaluate("[...document.querySelectorAll('button')].every(b => (b.ariaLabel || b.textContent).trim())")
    assert "Scatter of 27 runs" in page.locator("#scatter").get_attribute("aria-label")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("h1").count() == 1

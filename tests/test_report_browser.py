"""The report in headless Chromium: it moves, it fits a phone, it complains of nothing and loads nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image, ImageStat
from tiny.pipelines import FLUX_TRUE_CFG

import cache_dit
from cache_dit import DBCacheConfig
from cache_dit.caching.gates.residual import ResidualGate
from cache_dit.pages.pictures import data_uri

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
COMPARISON = Path(__file__).resolve().parents[1] / "bench" / "results" / "compare.csv"
RED, BLUE = (200.0, 40.0, 40.0), (40.0, 40.0, 200.0)
COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it; the cached picture is blue, the uncached one red."""
    changes = iter([0.3, 0.02, 0.05, 0.11, 0.03, 0.5, 0.04, 0.09])
    pipe = cache_dit.enable_cache(
        FLUX_TRUE_CFG.build(),
        DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResidualGate, "measure", lambda *_: next(changes))
        FLUX_TRUE_CFG.call(pipe, 0, 6)
    blue, red = (torch.tensor(colour).view(3, 1, 1).expand(3, 64, 64) / 255 for colour in (BLUE, RED))
    return cache_dit.report(
        pipe,
        tmp_path_factory.mktemp("page") / "run.html",
        picture=blue,
        reference=red,
        prompt="a very long prompt " * 20,
        seconds=1.0,
        reference_seconds=2.0,
        comparison=COMPARISON,
    )


def picture(browser: Browser, selector: str) -> Image.Image:
    return Image.open(io.BytesIO(browser.picture(selector))).convert("RGB")


def colour(image: Image.Image, x: float, y: float) -> Any:
    return image.getpixel((int(x * image.width), int(y * image.height)))


def redness(image: Image.Image) -> float:
    """The share of red of a picture that is red and blue."""
    return (ImageStat.Stat(image).mean[0] - BLUE[0]) / (RED[0] - BLUE[0])


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_loads_nothing_and_complains_of_nothing(
    browser: Browser, path: Path, width: int, dark: bool
) -> None:
    browser.open(path, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= browser.run("innerWidth") == width
    too_wide = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('pre, .scroll, svg, .compare') &&"
        "e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.run(too_wide) == []
    assert [event for event in browser.events if event["method"] in COMPLAINTS] == []
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [path.resolve().as_uri()]
    assert (
        browser.run("performance.getEntriesByType('resource').filter(e => /^http/.test(e.name)).length") == 0
    )


def test_the_slider_shows_more_or_less_of_the_uncached_picture(browser: Browser, path: Path) -> None:
    browser.open(path)
    browser.run("document.querySelectorAll('.tag, .handle').forEach(e => e.remove())")
    assert redness(picture(browser, ".compare")) == pytest.approx(0.5, abs=0.02)
    browser.run("document.getElementById('cut').focus()")
    for _ in range(10):
        browser.press("ArrowRight")
    assert browser.run("document.getElementById('cut').value") == "60"
    assert redness(picture(browser, ".compare")) == pytest.approx(0.6, abs=0.02)
    browser.press("Home")
    assert redness(picture(browser, ".compare")) == pytest.approx(0.0, abs=0.02)
    browser.press("End")
    assert redness(picture(browser, ".compare")) == pytest.approx(1.0, abs=0.02)


def test_the_slider_follows_the_pointer(browser: Browser, path: Path) -> None:
    browser.open(path)
    browser.run("document.querySelector('.compare').scrollIntoView()")
    box = browser.run(
        "(() => { const r = document.querySelector('.compare').getBoundingClientRect();"
        "return [r.x, r.y, r.width, r.height] })()"
    )
    place = {"x": box[0] + 0.25 * box[2], "y": box[1] + 0.5 * box[3], "button": "left", "clickCount": 1}
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, **place)
    assert 20 <= int(browser.run("document.getElementById('cut').value")) <= 30


def test_the_difference_is_ten_times_as_strong(browser: Browser, path: Path) -> None:
    ground = torch.full((3, 64, 64), 100 / 255)
    other = ground + torch.tensor([4.0, 0.0, 10.0]).view(3, 1, 1) / 255
    text = path.read_text(encoding="utf-8")
    first, second = dict.fromkeys(re.findall(r"data:image/png;base64,[^\"]+", text))
    near = path.with_name("near.html")
    near.write_text(text.replace(first, data_uri(ground)).replace(second, data_uri(other)), encoding="utf-8")
    browser.open(near)
    assert colour(picture(browser, ".difference"), 0.5, 0.5) == pytest.approx((40, 0, 100), abs=6)


def test_steps_are_told_by_pointer_and_by_key(browser: Browser, path: Path) -> None:
    browser.open(path)
    told = "document.querySelector('.track output').textContent"
    assert "was under residual_diff_threshold" in browser.run(told)
    browser.run("document.querySelector('.track').focus()")
    for _ in range(3):
        browser.press("ArrowRight")
    assert browser.run(told).startswith("Step 2, noise level ")
    browser.press("End")
    assert browser.run(told).startswith("Step 5, ")
    browser.run("document.querySelector('.track').scrollIntoView()")
    box = browser.run(
        "(() => { const r = document.querySelector('.track .plot').getBoundingClientRect();"
        "return [r.x, r.y, r.width, r.height] })()"
    )
    browser.call(
        "Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 1.5 * box[2] / 6, y=box[1] + box[3] / 2
    )
    assert browser.run(told).startswith("Step 1, ")
    assert browser.run("document.querySelectorAll('.track .hit.on').length") == 1


def test_light_and_dark_by_wish_and_by_button(browser: Browser, path: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    press = "document.getElementById('theme').click()"
    browser.open(path, dark=False)
    light = browser.run(paper)
    browser.run(press)
    dark = browser.run(paper)
    assert light != dark
    browser.run(press)
    assert browser.run(paper) == light
    browser.open(path, dark=True)
    assert browser.run(paper) == dark
    browser.run(press)
    assert browser.run(paper) == light
    assert colour(picture(browser, "html"), 0.001, 0.5) == (255, 255, 255)


def test_text_can_be_read_on_its_ground(browser: Browser, path: Path) -> None:
    """Contrast of 4.5 to 1 at least, WCAG 2.2 success criterion 1.4.3."""
    script = """
    [...document.querySelectorAll('body *')].filter(e => !e.closest('svg, .compare, script') &&
      [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).flatMap(e => {
        const parse = c => c.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = e.closest('pre') || document.body;
        const a = light(parse(getComputedStyle(e).color));
        const b = light(parse(getComputedStyle(ground).backgroundColor));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return ratio < 4.5 ? [[ratio, e.className, e.textContent.slice(0, 30)]] : [];
      })"""
    for dark in (False, True):
        browser.open(path, dark=dark)
        assert browser.run(script) == []


def test_hostile_text_does_not_run(browser: Browser, path: Path, tmp_path: Path) -> None:
    run = "document.title='owned'"
    hostile = f"</style></script><script>{run}</script><img src=x onerror={run}>"
    made = cache_dit.report(
        None, tmp_path / "hostile.html", comparison=COMPARISON, title=hostile, code=hostile, prompt=hostile
    )
    browser.open(made)
    assert browser.run("document.title") == hostile
    # Even what got past the escaping would not run.
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"document.title=1\">');"
        "const s = document.createElement('script'); s.textContent = 'document.title = 2';"
        "document.body.append(s)"
    )
    assert browser.run("document.title") == hostile

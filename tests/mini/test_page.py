"""The page in a browser, headless: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import base64
import io
import shutil

import pytest
from PIL import Image

from tests.composing import composed
from ttf.data.scenes import compose

pytestmark = pytest.mark.filterwarnings("ignore::Warning:gradio.*")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DROP = """([element, text]) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), told = new DataTransfer();
    told.items.add(new File([bytes], "mine.png", { type: "image/png" }));
    for (const name of ["dragenter", "dragover", "drop"])
        element.dispatchEvent(new DragEvent(name, { dataTransfer: told, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("gradio", reason="needs Gradio: pip install 'ttf[app]'")
    from ttf.app.page import serve
    from ttf.app.shelf import Shelf

    page = serve(Shelf(composed("app").paths, "cpu", ["vit_mini", "segmenter_mini"]), "127.0.0.1", 0, wait=False)
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def tab(address):
    if CHROMIUM is None:
        pytest.skip("needs Chromium: make browser installs Debian's")
    sync = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make setup installs it")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1400})
        tab.set_default_timeout(30_000)
        tab.told = []
        tab.on("pageerror", lambda error: tab.told.append(str(error)))
        yield tab
        browser.close()


def _column(tab, number: int) -> dict[str, str]:
    rows = tab.locator("#numbers tbody tr").all_inner_texts()
    cells = [row.split("\t") for row in rows]
    return {first: rest[number] for first, *rest in cells}


def _becomes(tab, row: str, number: int, value: str) -> None:
    cell = tab.locator("#numbers tbody tr", has=tab.get_by_role("rowheader", name=row)).locator("td").nth(number)
    cell.get_by_text(value, exact=True).wait_for()


def test_the_page(tab, address, tmp_path):
    tab.goto(address + "?model=vit_mini&value=0.5&other=evit", wait_until="domcontentloaded")  # a link
    _becomes(tab, "tokens after block 9", 1, "19")
    base, ours, evit = (_column(tab, number) for number in range(3))
    assert float(ours["GMACs"]) < float(base["GMACs"]) and ours["speed-up"].endswith("x") and evit["KL, nats"]
    assert tab.locator("#answers section").count() == 3 and tab.locator("#tokens .ttf-strip img").count() == 6

    # the slider
    tab.get_by_role("slider", name="Share that is kept").fill("0.7")
    _becomes(tab, "tokens after block 9", 1, "50")
    assert float(_column(tab, 1)["GMACs"]) > float(ours["GMACs"])
    assert "model=vit_mini" in (tab.locator("#permalink").get_attribute("href") or "")

    # rows of W: under the pointer, by keys
    rows = tab.locator(".ttf-rows").first
    box = rows.locator("canvas").bounding_box()
    tab.mouse.move(box["x"] + 5, box["y"] + 5)
    caption = rows.locator("figcaption")
    caption.get_by_text("row 1, column 1:").wait_for()
    rows.focus()
    tab.keyboard.press("ArrowRight")
    caption.get_by_text("row 1, column 2:").wait_for()

    # a picture of one's own, dropped
    tab.get_by_role("button", name="Remove Image").or_(tab.get_by_label("Clear")).first.click()
    tab.locator("#numbers").get_by_text("Drop a picture").wait_for()
    file = io.BytesIO()
    Image.fromarray(compose(5, 3, "test").image).save(file, "PNG")
    target = tab.locator("#picture button").first.element_handle()
    tab.evaluate(DROP, [target, base64.b64encode(file.getvalue()).decode()])
    _becomes(tab, "tokens after block 9", 1, "50")
    tab.get_by_text("your own picture is not part of it").wait_for()

    # blocks, and another model
    tab.get_by_label("Blocks that reduce").fill("5")
    tab.get_by_label("Blocks that reduce").press("Enter")
    _becomes(tab, "tokens after block 5", 1, "101")
    tab.goto(address + "?model=segmenter_mini", wait_until="domcontentloaded")
    tab.locator("#numbers").get_by_text("KL a pixel").wait_for()
    assert tab.locator("#answers img").count() == 2 and tab.locator("#answers img[alt='']").count() == 0

    # everything that takes a value has a name
    inputs = tab.locator("input:visible, textarea:visible, [role=slider]:visible")
    for one in inputs.all():
        named = one.evaluate("e => (e.labels && e.labels.length) || e.ariaLabel || e.getAttribute('aria-labelledby')")
        assert named, one.evaluate("e => e.outerHTML.slice(0, 200)")
    tab.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000 and not tab.told, tab.told

"""What a browser makes of the pages: on a phone and on a desk, in light and dark."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.reported import evaluation, results, run_folder, unknown

from sv_sparse.report import write_report
from sv_sparse.report.compare import read_run_results, write_comparison

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is missing; on Debian: apt-get install chromium")

# Nothing may be loaded; what the page tries to load is noted.
WATCH = """<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<script>var tried = []; addEventListener("securitypolicyviolation", event => tried.push(event.blockedURI));</script>"""

# A window of a browser without a head is not as narrow as a phone; a frame is.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><body>
<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{page}"></iframe>"""

MEASURE = """<script>addEventListener("load", () => {
  const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = color => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = color => {
    const part = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(color[0]) + 0.7152 * part(color[1]) + 0.0722 * part(color[2]);
  };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const color = rgb(getComputedStyle(element).backgroundColor);
      if (color[3] == 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const contrast = element => {
    const style = getComputedStyle(element), inside = element.tagName == "text";
    const both = [light(rgb(inside ? style.fill : style.color)), light(ground(element))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  };
  document.querySelectorAll("details").forEach(element => element.open = true);
  const speaks = element => [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim());
  const words = [...document.querySelectorAll("body *")].filter(
    element => speaks(element) && element.tagName != "SCRIPT");
  const drawings = [...document.querySelectorAll("figure svg")];
  const letters = drawings.flatMap(drawing => [...drawing.querySelectorAll("text")].map(
    text => parseFloat(getComputedStyle(text).fontSize) * drawing.clientWidth / drawing.viewBox.baseVal.width));
  const measured = document.createElement("pre");
  measured.id = "measured";
  measured.textContent = JSON.stringify({
    width: innerWidth, content: document.documentElement.scrollWidth, tried,
    loaded: performance.getEntriesByType("resource").map(entry => entry.name),
    paper: rgb(getComputedStyle(document.body).backgroundColor),
    figures: drawings.map(drawing => [drawing.getBoundingClientRect().width, drawing.getBoundingClientRect().height]),
    cut: [...document.querySelectorAll(".scroll, pre")].filter(
      element => element.scrollWidth > element.clientWidth).map(element => element.outerHTML.slice(0, 200)),
    letters: Math.min(...letters), words: words.length,
    faint: words.filter(element => contrast(element) < 4.5).map(element => element.outerHTML.slice(0, 200)),
  });
  parent.document.body.append(measured);
});</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """A report with everything, and a comparison, as text."""
    folder = tmp_path_factory.mktemp("pages")
    layers = [f"blocks.{index}.res2net.convolutions.{index}.weight" for index in range(30)]
    content = results(lists=[evaluation("a_list_with_a_long_name_" * 3), unknown("b")], layers=layers)
    run = run_folder(folder / ("a_run_with_a_long_name_" * 4), content)
    write_report(run, content)
    fixed = run_folder(folder / "fixed", results(sparsity_tracked=0.7, sparsity=0.7), controller="fixed")
    dense = run_folder(folder / "dense", results(target=0.0))
    write_comparison(folder / "compared", read_run_results([run, fixed, dense])[0])
    paths = {"report": run / "report.html", "compare": folder / "compared" / "compare.html"}
    return {name: path.read_text() for name, path in paths.items()}


def measured(text: str, folder: Path, width: int, scheme: str) -> dict:
    """What a browser measures on a page."""
    path = folder / "page.html"
    page = html.escape(text.replace("<head>", f"<head>{WATCH}").replace("</body>", f"{MEASURE}</body>"))
    path.write_text(FRAME.format(width=width, page=page))
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *(f"--user-data-dir={folder / 'profile'}", "--window-size=1600,1000", "--dump-dom"),
        *(f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_fits_its_window_and_can_be_read(pages, tmp_path, name, width, scheme):
    page = measured(pages[name], tmp_path, width, scheme)
    assert page["width"] == width
    assert page["content"] <= width
    assert (sum(page["paper"][:3]) > 600) == (scheme == "light")
    assert page["tried"] == page["loaded"] == []
    assert len(page["figures"]) >= 4
    assert all(min(size) > 50 for size in page["figures"])
    assert page["words"] > 100
    assert page["faint"] == []
    assert page["cut"] == []
    assert page["letters"] >= 9


@pytest.mark.parametrize("width", [390, 500, 640, 768, 900, 1000, 1600])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_no_table_is_cut_off_at_any_width(pages, tmp_path, name, width):
    page = measured(pages[name], tmp_path, width, "light")
    assert page["cut"] == []
    assert page["content"] <= width


def test_what_a_page_tries_to_load_and_what_cannot_be_read_would_be_found(pages, tmp_path):
    bad = '<p style="color: #777; background: #888; width: 99em">faint</p><img src="http://example.invalid/a.png">'
    bad += f'<pre style="white-space: pre">{99 * "x"}</pre>'
    page = measured(pages["compare"].replace("</main>", f"{bad}</main>"), tmp_path, 360, "light")
    assert page["tried"] or page["loaded"]
    assert page["cut"]
    assert len(page["faint"]) == 1
    assert page["content"] > 360

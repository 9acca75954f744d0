"""What a browser makes of the page: recordings are chosen, dropped and recorded, and judged."""

import base64
import copy
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from helpers.browsing import choose, compare, file, fits, place, shown
from helpers.serving import CALIBRATION, CARD, LIMITS, audio, serving, tiny_verifier, verify
from helpers.tiny import RATE, tone

from sv_sparse.runtime.server.app import Limits

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is missing; on Debian: apt-get install chromium")

SPOKEN = tone(0, 0, 4.0)  # to the microphone

# What is given to a player is at hand as `kept`: the page itself may not fetch it.
KEEP = """() => {
  const make = URL.createObjectURL;
  URL.createObjectURL = blob => make.call(URL, window.kept = blob);
}"""
REFUSE = """() => {
  navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotAllowedError"); };
}"""


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    return tiny_verifier(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def port(verifier) -> Iterator[int]:
    with serving(verifier) as port:
        yield port


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    soundfile.write(heard, SPOKEN, RATE)
    synchronous = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with synchronous.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=[*options, f"--use-file-for-fake-audio-capture={heard}"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, port):
    """Open the page; what it tries to load, what it forbids itself and what fails in it is noted."""
    contexts = []

    def open_page(address: str = f"http://127.0.0.1:{port}/", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # of machines that do much else
        page.asked, page.failed = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.failed.append(str(error)))
        page.on("console", lambda message: page.failed.append(message.text))
        page.goto(address)
        page.locator(".record:enabled").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_two_chosen_files_show_score_decision_and_where_the_threshold_lies(port, visit):
    page = visit()
    assert page.get_by_role("button", name="Compare").is_disabled()
    decisions = set()
    for speaker in (0, 2, 3):
        first, second = audio(speaker), audio(0, session=1)
        said = verify(port, first, second).content
        choose(page, first, second)
        assert not page.locator("#result").is_visible()
        compare(page)
        strict = said["decisions"][0]
        decision = "Accepted" if strict["accepted"] else "Not accepted"
        assert page.locator("#decision").inner_text() == decision
        reason = page.locator("#reason").inner_text()
        assert "threshold, 2.50, at which 1\u00a0% of pairs" in reason
        assert ('This does not mean "different speakers".' in reason) == (decision == "Not accepted")
        assert shown(page)["Score"] == f"{said['score']:.3f}"
        assert shown(page)["Evidence (LLR)"] == f"{said['llr']:.2f}".replace("-", "\u2212")
        assert page.locator("#threshold").inner_text() == "threshold 2.50"
        assert place(page, ".bound") == pytest.approx((2.5 + 8) / 16, abs=0.005)
        assert place(page, ".dot") == pytest.approx((said["llr"] + 8) / 16, abs=0.005)
        decisions.add(decision)
    assert len(decisions) == 2
    assert page.failed == []


def test_another_share_of_target_far_moves_the_threshold_and_the_decision(port, visit):
    page = visit()
    choose(page, audio(2), audio(0, session=1))
    compare(page)
    assert page.locator("#decision").inner_text() == "Not accepted"
    page.get_by_role("combobox", name="Threshold at").select_option("5\u00a0% false alarms")
    assert page.locator("#decision").inner_text() == "Accepted"
    assert place(page, ".bound") == pytest.approx((1 + 8) / 16, abs=0.005)
    assert "5\u00a0%" in page.locator("#reason").inner_text()


def test_what_the_microphone_hears_is_compared_as_it_is(verifier, visit):
    with serving(verifier, Limits(max_seconds=60.0, max_megabytes=20.0)) as port:
        page = visit(f"http://127.0.0.1:{port}/", permissions=["microphone"])
        page.evaluate(KEEP)
        desk = page.locator("#recording-1")
        desk.get_by_role("button", name="Record").click()
        desk.get_by_text(re.compile(r"^[1-9]\d?\.\d s of at most 60 s")).wait_for()
        level = desk.locator(".level span")
        assert level.evaluate("bar => new DOMMatrix(getComputedStyle(bar).transform).a") > 0.3
        desk.get_by_role("button", name="Stop").click()
        desk.locator("audio").wait_for()
        kept = bytes(page.evaluate("async () => [...new Uint8Array(await kept.arrayBuffer())]"))
        samples, rate = soundfile.read(io.BytesIO(kept))
        assert soundfile.info(io.BytesIO(kept)).subtype == "PCM_16"
        assert desk.locator(".state").inner_text() == f"Recorded, {len(samples) / rate:.1f} s"
        assert len(samples) / rate > 1
        assert np.abs(samples).max() == pytest.approx(np.abs(SPOKEN).max(), rel=0.15)
        assert strongest(samples, rate) == pytest.approx(strongest(SPOKEN, RATE), rel=0.02)
        page.set_input_files("#recording-2 input", file("other.flac", audio(0, kind="FLAC")))
        compare(page)
        assert shown(page)["Score"] == f"{verify(port, kept, audio(0, kind='FLAC')).content['score']:.3f}"
    assert page.failed == []


def strongest(samples: np.ndarray, rate: int) -> float:
    """The frequency with the most energy, in Hz."""
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples))


def test_a_recording_ends_by_itself_at_the_longest_duration(visit):
    page = visit(permissions=["microphone"])
    page.get_by_role("button", name="Record").first.click()
    page.locator("#recording-1 audio").wait_for()
    assert page.locator("#recording-1 .state").inner_text() == f"Recorded, {LIMITS.max_seconds:.1f} s"


def test_a_refused_microphone_is_explained(visit):
    page = visit()
    page.evaluate(REFUSE)
    page.get_by_role("button", name="Record").first.click()
    page.get_by_text("The browser was not allowed to use the microphone").wait_for()
    assert page.get_by_role("button", name="Record").first.is_enabled()


def test_files_can_be_dropped_both_at_once(visit):
    page = visit()
    drop = """([selector, contents]) => {
      const data = new DataTransfer();
      contents.forEach((text, index) => data.items.add(
        new File([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))], `dropped-${index}.wav`)));
      const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
      document.querySelector(selector).dispatchEvent(event);
      return event.defaultPrevented;
    }"""
    contents = [base64.b64encode(audio(speaker)).decode() for speaker in (0, 1)]
    assert page.evaluate(drop, ["#recording-2", contents])
    assert "dropped-1.wav" in page.locator("#recording-1 .state").inner_text()
    assert "dropped-0.wav" in page.locator("#recording-2 .state").inner_text()
    assert page.evaluate(drop, ["header", contents])  # elsewhere on the page it opens nothing
    compare(page)


def test_the_keyboard_is_enough(visit):
    page = visit()
    choose(page, audio(0), audio(1))
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.closest('button, input, select, audio, summary')?.outerHTML")
        )
        if page.evaluate("document.activeElement.id") == "compare":
            break
    for word in ('id="compare"', 'class="record"', "<input"):
        assert sum(word in (each or "") for each in reached) == (1 if "compare" in word else 2)
    page.keyboard.press("Enter")
    page.locator("#result").wait_for()
    assert page.evaluate("document.activeElement.id") == "decision"


def test_what_is_wrong_with_a_recording_is_said_beside_it(visit):
    page = visit()
    for content, words in (
        (b"RIFFnothing of the kind", "recording"),
        (audio(0, 2.5, kind="OGG"), "2 s"),
        (bytes(300_000), "at most 0.2\u00a0MB"),
    ):
        choose(page, audio(0), content)
        if page.get_by_role("button", name="Compare").is_enabled():
            page.get_by_role("button", name="Compare").click()
        problem = page.locator("#recording-2 .problem")
        problem.wait_for()
        assert problem.inner_text().startswith("Refused input: ")
        assert words in problem.inner_text()
        assert not page.locator("#result").is_visible()
        page.reload()
        page.locator(".record:enabled").first.wait_for()


def test_the_page_says_what_its_decisions_are_not_good_for(verifier, visit):
    synthetic = copy.copy(verifier)
    synthetic.card = CARD | {"synthetic_voices_only": True}
    for served, warned in ((verifier, False), (synthetic, True)):
        with serving(served) as port:
            page = visit(f"http://127.0.0.1:{port}/")
            limits = page.locator("#limits").inner_text()
            for word in ("Replayed", "spoofing", "deepfakes", "consent"):
                assert word in limits
            choose(page, audio(0), audio(1))
            compare(page)
            assert (
                "logistic regression of scores on 20,100 trials of 40 held-out" in page.locator("#basis").inner_text()
            )
            assert page.get_by_text("Warning: trained on synthetic voices only").is_visible() == warned


def test_the_strictest_threshold_is_the_pages_own_choice_in_whatever_order_the_model_knows_them(verifier, visit):
    mild_first = copy.copy(verifier)
    calibration = replace(CALIBRATION, thresholds={0.05: 1.0, 0.01: 2.5})
    mild_first.backend = replace(verifier.backend, calibration=calibration)
    with serving(mild_first) as port:
        page = visit(f"http://127.0.0.1:{port}/")
        choose(page, audio(2), audio(0, session=1))
        compare(page)
        own = mild_first.verify(audio(2), audio(0, session=1))
        assert page.locator("#decision").inner_text().lower() == own.outcome == "not accepted"
        assert page.locator("#threshold").inner_text() == "threshold 2.50"


def test_an_answer_that_is_not_the_programs_is_named(visit):
    page = visit()
    page.route("**/verify", lambda route: route.fulfill(status=413, body="<html>too large</html>"))
    choose(page, audio(0), audio(1))
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("No answer of sv-sparse serve, but status 413").wait_for()


def test_a_server_that_is_gone_is_said(verifier, visit):
    with serving(verifier) as port:
        page = visit(f"http://127.0.0.1:{port}/")
        choose(page, audio(0), audio(1))
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Is sv-sparse serve still running").wait_for()


def test_what_only_the_browser_can_read_is_compared_too(port, visit, tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is missing, which makes the webm; on Debian: apt-get install ffmpeg")
    (tmp_path / "plain.wav").write_bytes(audio(0))
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "plain.wav"), "-c:a", "libopus", str(tmp_path / "a.webm")]
    subprocess.run(command, check=True)
    webm = (tmp_path / "a.webm").read_bytes()
    assert verify(port, webm, webm).status == 400
    page = visit()
    page.set_input_files("#recording-1 input", file("a.webm", webm))
    page.set_input_files("#recording-2 input", file("b.webm", webm))
    compare(page)
    assert shown(page)["Score"] == "1.000"


def test_without_calibration_there_is_a_score_and_it_is_said_that_no_threshold_is_known(verifier, visit):
    plain = copy.copy(verifier)
    plain.backend = replace(verifier.backend, calibration=None)
    with serving(plain) as port:
        page = visit(f"http://127.0.0.1:{port}/")
        choose(page, audio(0), audio(1))
        compare(page)
        assert page.locator("#decision").inner_text() == "No decision"
        assert "no threshold" in page.locator("#reason").inner_text()
        assert list(shown(page)) == ["Score"]
        assert not page.locator(".bound").is_visible()
        assert not page.get_by_role("combobox", name="Threshold at").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window_can_be_read_and_loads_nothing_from_outside(port, visit, width, scheme):
    page = visit(viewport={"width": width, "height": 900}, color_scheme=scheme)
    choose(page, b"no recording", audio(1))
    page.get_by_role("button", name="Compare").click()
    page.locator("#recording-1 .problem").wait_for()
    fits(page, width, 10)
    choose(page, audio(0), audio(1))
    compare(page)
    page.get_by_text("About this model").click()
    fits(page, width, 40)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 600) == (scheme == "light")
    assert page.locator("audio").first.bounding_box()["width"] > 200
    assert all(url.startswith((f"http://127.0.0.1:{port}/", "blob:", "data:")) for url in page.asked)


@pytest.mark.parametrize("slope", [2000.0, 60.0])
def test_however_far_apart_evidence_and_threshold_are_both_are_on_the_scale(verifier, visit, slope):
    steep = copy.copy(verifier)
    calibration = replace(CALIBRATION, slope=slope, offset=-slope / 2, thresholds={0.01: 0.499 * slope})
    steep.backend = replace(verifier.backend, calibration=calibration)
    with serving(steep) as port:
        page = visit(f"http://127.0.0.1:{port}/", viewport={"width": 360, "height": 900})
        for first, second in ((audio(0), audio(0)), (audio(0), audio(3))):
            choose(page, first, second)
            compare(page)
            assert 0 <= place(page, ".bound") <= 1
            assert 0 <= place(page, ".dot") <= 1
            for mark in ("#threshold", "#here"):
                box = page.locator(mark).bounding_box()
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 360
            assert page.evaluate("document.documentElement.scrollWidth") <= 360

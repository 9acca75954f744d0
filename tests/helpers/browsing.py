"""The page of sv-sparse serve as somebody uses it, in playwright's browser."""

# Texts whose contrast with their ground is too low.
FAINT = """() => {
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
  };
  const contrast = element => {
    const both = [light(rgb(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  };
  const speaks = element => [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim());
  const words = [...document.querySelectorAll("main *")].filter(each => speaks(each) && each.checkVisibility());
  return {words: words.length, faint: words.filter(element => contrast(element) < 4.5).map(each => each.outerHTML)};
}"""


def file(name: str, content: bytes) -> dict:
    return {"name": name, "mimeType": "", "buffer": content}


def choose(page, *recordings: bytes) -> None:
    for number, content in enumerate(recordings, start=1):
        page.set_input_files(f"#recording-{number} input", file(f"{number}.wav", content))


def compare(page) -> None:
    page.get_by_role("button", name="Compare").click()
    page.locator("#result").wait_for()


def shown(page) -> dict[str, str]:
    """The numbers of the result by their names."""
    return dict(
        zip(page.locator("#numbers dt").all_inner_texts(), page.locator("#numbers dd").all_inner_texts(), strict=True)
    )


def place(page, selector: str) -> float:
    """Where the middle of something lies on the scale, from 0 to 1."""
    track, box = page.locator(".track").bounding_box(), page.locator(selector).bounding_box()
    return (box["x"] + box["width"] / 2 - track["x"]) / track["width"]


def fits(page, width: int, words: int) -> None:
    """Nothing sticks out, and every word can be read."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = page.evaluate(FAINT)
    assert found["words"] >= words
    assert found["faint"] == []

"""How soon a report opens, and how it moves: a page of a run with a map of many pictures.

    python benchmarks/report.py RUN --data cifar.npz --json benchmarks/results/report.json
    python benchmarks/report.py RUN --picture docs/report.png

Curves and tables are the run's; the map holds 50 clusters drawn at random, with thumbnails of the
pictures of DATA over and over. `open` is the time from navigation to the first drawn map, in a new
profile each round; `open_cpu` the processor time of all the browser's processes meanwhile, its own
new window included: the better figure on a busy machine. `frame` is the time that the page's own
code takes for a frame while the map is dragged about, at two sizes of a window; `interval` is from
frame to frame, of which a screen of 60 Hz allows 17 ms. Needs `pip install playwright` and Chromium
(SACCADE_CHROMIUM, or on the path).
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from saccade.bench import machine, spread, versions
from saccade.data.source import open_source
from saccade.evals.results import write_json
from saccade.recipe import Normalize
from saccade.report.files import read
from saccade.report.looked import Asked, Group, Looked
from saccade.report.page import render, write
from saccade.report.pictures import sheet
from saccade.report.space import NEAR, Arm, Space

CLUSTERS, CLASSES = 50, 20
FRAMES = 120
WINDOWS = {"desktop": (1200, 900), "phone": (390, 844)}
WATCH = """
new MutationObserver(() => { window.drawnAt ??= performance.now(); })
  .observe(document, { subtree: true, attributes: true, attributeFilter: ["data-ready"] });
window.frames_ = [];
const ask = window.requestAnimationFrame;
window.requestAnimationFrame = (work) => ask((now) => {
  const began = performance.now();
  work(now);
  window.frames_.push([began, performance.now() - began]);
});
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="demo", help="whose pictures the thumbnails show")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="draw the run's own report into a .png")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    path = os.environ.get("SACCADE_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        if args.picture:
            photograph(browser, args.run, Path(scratch) / "own.html", args.picture)
        if args.json:
            sizes = {n: page_of(args, n, Path(scratch)) for n in (10_000, 100_000)}
            content = {
                "settings": {"data": Path(args.data).name, "rounds": args.rounds, "frames": FRAMES},
                "pages": {str(n): measured(browser, p, args.rounds) for n, p in sizes.items()},
                "browser": browser.version,
                "machine": machine(),
                "load": os.getloadavg(),  # processes that wanted a core, over 1, 5 and 15 minutes
                "versions": versions(),
                "date": datetime.date.today().isoformat(),
            }
            write_json(args.json, content)
            print(content["pages"])
        browser.close()


def page_of(args: argparse.Namespace, n: int, folder: Path) -> Path:
    """A page with n points."""
    source = open_source(args.data, split="train")
    g = np.random.default_rng(0)
    cluster = g.integers(0, CLUSTERS, n)
    flat = g.random((CLUSTERS, 2))[cluster] + 0.03 * g.normal(size=(n, 2))
    flat = (flat - flat.min(0)) / (flat.max(0) - flat.min(0))
    arms = [
        Arm(name, xy, g.integers(0, n, (n, NEAR)), g.random((n, NEAR)), [])
        for name, xy in (("after pretraining", flat), ("random weights", g.random((n, 2))))
    ]
    index = np.arange(n) % len(source)
    space = Space(
        index=index,
        names=[f"pictures/{k % CLASSES}/{k:06d}.jpg" for k in range(n)],
        labels=(cluster % CLASSES).tolist(),
        classes=tuple(f"class {k}" for k in range(CLASSES)),
        arms=arms,
    )
    thumbnails = sheet(source, index, Normalize(), threads=2, share=1)
    looked = Looked(groups=[Group("pictures", space, thumbnails)])
    path = folder / f"{n}.html"
    path.write_text(render(read([args.run]), looked))
    print(f"{n} points: {path.stat().st_size / 1e6:.1f} MB, thumbnails of {thumbnails.size} pixels")
    return path


def measured(browser: Browser, path: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes": path.stat().st_size}
    for name, (width, height) in WINDOWS.items():
        times, processor, moved = [], [], {}
        for _ in range(rounds):
            before = cpu(browser)
            context = browser.new_context(viewport={"width": width, "height": height})
            context.add_init_script(WATCH)
            page = context.new_page()
            page.goto(path.as_uri())
            page.wait_for_function("window.drawnAt !== undefined")
            times.append(page.evaluate("window.drawnAt"))
            processor.append(1000 * (cpu(browser) - before))
            moved = moved or dragged(page)
            context.close()
        found[name] = {"open_ms": spread(times), "open_cpu_ms": spread(processor), **moved}
    return found


def cpu(browser: Browser) -> float:
    """Processor seconds of all processes of the browser so far."""
    session = browser.new_browser_cdp_session()
    found = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return sum(one["cpuTime"] for one in found)


def dragged(page: Page) -> dict[str, Any]:
    """Milliseconds of the script a frame, and from frame to frame, while the map is dragged."""
    canvas = page.locator(".stage canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate("window.frames_.length = 0")
    for k in range(FRAMES):
        page.mouse.move(x + 60 * np.sin(k / 9), y + 40 * np.cos(k / 7))
    page.mouse.up()
    began, took = np.array(page.evaluate("window.frames_")).T
    return {
        "frame_ms": spread(took.tolist()),
        "frame_ms_p95": float(np.quantile(took, 0.95)),
        "interval_ms": spread(np.diff(began).tolist()),
        "frames": len(took),
    }


def photograph(browser: Browser, run: Path, path: Path, picture: Path) -> None:
    """The map of the run's own report with the neighbors of one picture."""
    write([run], path, Asked())
    page = browser.new_page(viewport={"width": 1100, "height": 1250})
    page.goto(path.as_uri())
    canvas = page.locator(".stage canvas")
    canvas.focus()
    for key in ("ArrowUp", "ArrowRight", "Enter", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    page.evaluate("document.getElementById('map').scrollIntoView()")
    page.wait_for_timeout(500)
    shot = Image.open(BytesIO(page.screenshot()))
    shot.convert("RGB").quantize(160).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size / 1e3:.0f} kB")
    page.close()


if __name__ == "__main__":
    main()

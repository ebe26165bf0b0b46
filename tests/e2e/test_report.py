"""The report as its readers meet it: as a file, and in a real browser."""

import base64
import hashlib
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser

import numpy as np
import pages
import pytest
from PIL import Image
from terminal import saccade

from saccade.report.files import read
from saccade.report.looked import Asked, look
from saccade.report.page import render
from saccade.report.serve import Live, application, bind

ASKED = Asked(points=100, projection="pca", threads=1)


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of the page and of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.scripts, self.styles = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag == "style":
            self.styles.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem == "style":
            self.styles[-1] += data
        else:
            self.words += data


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs on the same pictures."""
    desk = tmp_path_factory.mktemp("runs")
    data = pages.data(desk / "data")
    first = pages.run(desk / "a <em>run", data, networks=True)
    return [first, pages.run(desk / "b", data, "seed=1", "optim.lr=0.5", networks=True)]


@pytest.fixture(scope="module")
def looked(folders):
    """What needs the pictures, by PCA."""
    return look(read(folders), ASKED)


@pytest.fixture(scope="module")
def text(folders, looked):
    return render(read(folders), looked)


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_the_page_asks_for_nothing(parsed):
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            assert name not in ("srcset", "action", "poster") or not value
            if name in ("src", "href"):
                assert value.startswith(("data:", "#")), f"{tag} {name}={value[:60]}"
    assert not {"link", "iframe", "object", "embed", "form", "base"} & {t for t, _ in parsed.tags}
    assert not re.search(r"@import|url\(", parsed.styles[0])


def test_only_the_pages_own_script_may_run(parsed):
    (policy,) = (a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a)
    digests = [
        "sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for part in (parsed.scripts[1], parsed.styles[0])
    ]
    assert f"script-src '{digests[0]}';" in policy
    assert f"style-src '{digests[1]}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "connect-src 'none'" in policy
    assert len(parsed.scripts) == 2


def test_hostile_names_are_text(parsed, text):
    for name in (*pages.CLASSES, "<i>broken.png", "a <em>run"):
        assert name in parsed.words
    assert not [n for _, a in parsed.tags for n in a if n.startswith("on")]
    assert not {"b", "i", "em"} & {t for t, _ in parsed.tags}
    assert "<script>window" not in text
    assert json.loads(parsed.scripts[0])["maps"][0]["classes"] == sorted(pages.CLASSES)


def test_the_words_say_what_was_trained_and_what_it_beat(parsed):
    words = " ".join(parsed.words.split())
    assert "simclr (recipe small) pretrained without labels: resnet10_w16 at 32 pixels" in words
    assert "better than random weights (40.0 %) by +20.0 points" in words
    assert "kNN, cosine, T .07" in words
    assert "optim.lr" in words


def test_every_part_is_there(looked, parsed):
    assert looked.notes == []
    (group,) = looked.groups
    assert [arm.name for arm in group.space.arms] == [
        "a <em>run: after pretraining",
        "a <em>run: random weights",
        "b: after pretraining",
        "b: random weights",
    ]
    assert len(group.space.names) == 30  # all but the broken one
    assert [len(s.views) for _, drawn in looked.samples for s in drawn] == [2] * 8
    assert len(looked.panels) == 2
    ids = {a["id"] for _, a in parsed.tags if "id" in a}
    assert {"summary", "curves", "results", "views", "map", "neighbors", "errors", "bad"} <= ids


def test_pictures_that_are_gone_are_said_and_the_rest_is_shown(tmp_path, capsys):
    folder = pages.run(tmp_path / "run", tmp_path / "gone.csv", networks=True)
    out = tmp_path / "report.html"
    assert saccade("report", folder, "--out", out) == 0
    assert "gone.csv" in capsys.readouterr().err
    parsed = Parsed(out.read_text())
    assert "no such file or folder" in parsed.words
    assert "better than random weights" in parsed.words
    assert json.loads(parsed.scripts[0])["charts"][0]["lines"][0]["x"] == [0, 10, 20, 30]


def test_settings_of_another_version_are_shown_but_not_run(tmp_path):
    folder = pages.run(tmp_path / "run", "photos")
    config = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(config | {"novelty": 1}))
    looked = look(read([folder]), ASKED)
    assert "novelty" in looked.notes[0]
    assert "novelty" in render(read([folder]), looked)


def test_a_downstream_run_shows_its_losses_and_what_was_predicted(tmp_path):
    folder = tmp_path / "run"
    (folder / "seen" / "pictures").mkdir(parents=True)
    config = {"name": "detect", "recipe": "small", "system": {"neck": "fpn"}, "data": "d"}
    (folder / "run.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 9, "loss": 0.5}\n')
    Image.new("RGB", (40, 30), "red").save(folder / "seen" / "pictures" / "cat.jpg")
    listed = {"pictures": [{"drawn": "pictures/cat.jpg"}]}
    (folder / "seen" / "predictions.json").write_text(json.dumps(listed))
    runs = read([folder])
    parsed = Parsed(render(runs, look(runs, ASKED)))
    assert "loss 2 at first, 0.5 at last" in parsed.words
    (picture,) = [a for t, a in parsed.tags if t == "img"]
    assert picture["alt"] == "What the system found in cat"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["report", "nowhere"], "holds no run"),
        (["report", "RUN", "--out", "report.pdf"], "not an .html file"),
        (["report", "RUN", "--map", "umap"], "choose from pca, tsne"),
        (["serve", "nowhere"], "holds no run"),
        (["serve", "RUN", "--host", "no.such.host.invalid"], "unknown"),
        (["serve", "RUN", "--host", "192.0.2.1"], "192.0.2.1:8765 cannot be had"),
        (["serve", "RUN", "--port", "65536"], "not within 0..65535"),
        (["serve", "RUN", "--port", "TAKEN"], "cannot be had (address already in use)"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_2(args, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with bind("127.0.0.1", 0) as taken:
        words = {"RUN": pages.run(tmp_path / "run", "photos"), "TAKEN": taken.getsockname()[1]}
        assert saccade(*(words.get(a, a) for a in args)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.fixture
def served(tmp_path):
    """A run that trains, and the address where its report is served."""
    import uvicorn

    folder = pages.run(tmp_path / "run", pages.data(tmp_path / "data", 12), done=False)
    live = Live([folder], ASKED)
    with bind("127.0.0.1", 0) as listening:
        app = application(live, ["127.0.0.1"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield folder, f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


def get(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.read().decode()


def test_a_served_run_tells_its_news(served):
    folder, address = served
    assert "last report is of step 30" in get(address)
    pages.log(folder, [40])
    found = json.loads(get(address + "data.json"))
    assert found["charts"][0]["lines"][0]["x"][-1] == 40
    assert "last report is of step 40" in found["summaries"][0]["trained"]


def refused(address, **headers):
    """The code of an answer that is none."""
    with pytest.raises(urllib.error.HTTPError) as found:
        get(address, **headers)
    found.value.close()
    return found.value.code


def test_a_page_of_another_site_cannot_read_a_run(served):
    assert refused(served[1] + "data.json", Host="evil.example") == 400


def test_a_run_that_is_being_replaced_is_not_there_for_a_while(served):
    folder, address = served
    (folder / "run.json").rename(folder / "hidden.json")
    assert refused(address + "data.json") == 503
    (folder / "hidden.json").rename(folder / "run.json")
    assert "last report is of step 30" in get(address)


# In a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("SACCADE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no Chromium: apt-get install chromium, or set SACCADE_CHROMIUM to one")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text)
    return path


@pytest.fixture
def opened(browser, file):
    """The page, which must stay without complaint and without request; size and scheme vary."""
    contexts, wrong = [], []

    def open_page(**settings):
        context = browser.new_context(viewport={"width": 1000, "height": 800}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda request: asked(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    def asked(url):
        if not url.startswith(("data:", "blob:")) and url != file.as_uri():
            wrong.append(f"request: {url}")

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def place(page, flat):
    """Where a point of the first map lies on the screen."""
    box = page.locator(".stage canvas").first.bounding_box()
    unit = 0.94 * min(box["width"], box["height"])
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    return x + (flat[0] - 0.5) * unit, y + (flat[1] - 0.5) * unit


def lonely(arm):
    """The point farthest from its nearest other."""
    gaps = np.linalg.norm(arm.flat[:, None] - arm.flat[None], axis=2) + 9 * np.eye(len(arm.flat))
    return int(gaps.min(1).argmax())


@pytest.mark.slow
def test_nothing_is_asked_and_hostile_names_do_not_run(opened):
    page = opened()
    assert page.evaluate("window.ran") is None
    assert page.get_by_text(pages.CLASSES[0]).count() > 0
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    assert page.locator("#charts svg path").count() > 5


@pytest.mark.slow
def test_hovering_shows_the_thumbnail_of_the_picture(opened, looked, tmp_path):
    page, (group,) = opened(), looked.groups
    space = group.space
    point = lonely(space.arms[0])
    page.locator(".stage canvas").first.scroll_into_view_if_needed()
    page.mouse.move(*place(page, space.arms[0].flat[point]))
    tip = page.locator(".map .tip").first
    tip.wait_for(state="visible")
    assert space.names[point] in tip.inner_text()
    page.wait_for_timeout(200)
    shot = tmp_path / "tip.png"
    tip.locator(".thumb").screenshot(path=shot)
    seen = np.array(Image.open(shot).convert("RGB"))[20:100, 20:100].mean((0, 1))
    wanted = pages.COLORS[int(space.names[point].split()[0].split(".")[0]) % 3]
    assert seen == pytest.approx(np.array(wanted), abs=35)  # shades differ by up to 25
    page.mouse.move(1, 1)
    tip.wait_for(state="hidden")


@pytest.mark.slow
def test_clicking_lists_the_nearest_neighbors(opened, looked):
    page, (group,) = opened(), looked.groups
    space = group.space
    point = lonely(space.arms[0])
    page.locator(".stage canvas").first.scroll_into_view_if_needed()
    page.mouse.click(*place(page, space.arms[0].flat[point]))
    names = page.locator(".near li .name").all_inner_texts()
    for name, other in zip(names, space.arms[0].near[point].tolist(), strict=True):
        assert space.names[other] in name
    page.locator(".near li button").first.click()
    title = page.locator(".near h3").inner_text()
    assert space.names[int(space.arms[0].near[point][0])] in title
    page.get_by_label("b: after pretraining").check()
    assert page.locator(".near h3").inner_text().startswith("b: after pretraining")


@pytest.mark.slow
def test_the_map_is_used_by_keyboard_alone(opened, looked):
    page = opened()
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    page.keyboard.press("ArrowRight")
    said = page.locator(".said").first
    first = said.inner_text()
    assert any(name in first for name in looked.groups[0].space.names)
    page.keyboard.press("ArrowLeft")
    assert said.inner_text() != first
    page.keyboard.press("Enter")
    assert page.locator(".near li").count() == 8
    page.keyboard.press("+")
    page.keyboard.press("Escape")
    assert page.locator(".near li").count() == 0


@pytest.mark.slow
def test_a_chart_is_read_by_keyboard(opened):
    page = opened()
    chart = page.locator(".chart").first
    chart.focus()
    page.keyboard.press("End")
    said = chart.locator("output").inner_text()
    assert said.startswith("step 30:")
    assert "b 0.1613" in said  # 5 / 31


@pytest.mark.slow
def test_one_class_can_be_shown_alone(opened):
    page = opened()
    button = page.locator(".classes button").nth(1)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert button.inner_text() == sorted(pages.CLASSES)[1]


@pytest.mark.slow
def test_a_phone_scrolls_one_way_only(opened):
    page = opened(is_mobile=True, has_touch=True, device_scale_factor=2)
    page.set_viewport_size({"width": 360, "height": 700})
    page.locator("details").evaluate_all("all => all.forEach((one) => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    canvas = page.locator(".stage canvas").first
    canvas.scroll_into_view_if_needed()
    canvas.tap(position={"x": 5, "y": 5})  # nothing is there
    assert page.locator(".near li").count() == 0


@pytest.mark.slow
def test_dark_readers_get_a_dark_page(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (
        sum(map(int, re.findall(r"\d+", opened(color_scheme=scheme).evaluate(ground))))
        for scheme in ("light", "dark")
    )
    assert light > 700
    assert dark < 120


@pytest.mark.slow
def test_curves_move_while_a_run_trains(browser, served):
    folder, address = served
    page = browser.new_page()
    page.goto(address)
    pages.log(folder, [50])
    page.get_by_text("last report is of step 50").wait_for()
    chart = page.locator(".chart").first
    chart.focus()
    page.keyboard.press("End")
    assert chart.locator("output").inner_text().startswith("step 50:")
    page.close()

"""The page in a real Chromium: `pytest -m browser tests/web`.

DSOLO_CHROMIUM names the browser, /usr/bin/chromium if unset; DSOLO_SCREENSHOTS a folder that gets
pictures of the page on a desktop and on a phone.
"""

import io
import json
import os
import re
import time
import zipfile

import httpx
import numpy as np
import pytest
from PIL import Image

import dsolo_jax as dsolo
from dsolo_jax.datasets import miniature
from tests.web.test_page import asked, uploaded
from tests.web.visits import (
    CLASSES,
    DESKTOP,
    FLAGS,
    PHONE,
    UPLOAD,
    WAIT,
    Server,
    canvas,
    choose,
    entry,
    heat,
    opacity,
    photograph,
    segment,
    tab_to,
    upload,
    wanted,
    write,
)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server"))
    yield found
    assert found.process.poll() is None, "the server died:\n" + found.log.read_text()
    assert found.stop() == 0
    assert not list(found.folder.glob("dsolo_web_*"))  # nothing of what was uploaded is left
    assert "Traceback" not in found.log.read_text()


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        path = os.environ.get("DSOLO_CHROMIUM", "/usr/bin/chromium")
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(server, browser):
    """Opens the page as one more person; in the end no request has gone anywhere else."""
    contexts, wrong = [], []

    def check(request):
        if not request.url.startswith((f"{server.url}/", "data:", "blob:")):
            wrong.append(request.url)

    def open_page(viewport=DESKTOP, **how):
        context = browser.new_context(viewport=viewport, accept_downloads=True, **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", check)
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.goto(server.url)
        page.wait_for_selector("#segment")
        page.wait_for_selector("#examples button")
        page.wait_for_selector(UPLOAD)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.mark.parametrize("sign", ["the page is at", "dsolo_web_*"])
def test_it_ends_well_whenever_it_is_told_to(tmp_path, sign):
    """When it is ready, and while it gets so: programs are compiled then."""
    server = Server(tmp_path, sign)
    assert server.stop() == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    assert not list(tmp_path.glob("dsolo_web_*"))


def test_a_picture_is_uploaded_and_looked_at_from_all_sides(visit, scene):
    page = visit()
    photograph(page, "desktop_empty")
    upload(page, scene)
    write(page, *CLASSES)
    assert "4 of 4 classes found in 112 × 112 pixels" in segment(page)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    picture, labels = wanted(scene)
    shown = canvas(page)
    assert shown.shape == picture.shape
    changed = np.abs(shown - picture).max(-1) > 20
    assert changed.mean() > 0.9  # all of it is coloured

    # A class that is hidden shows the picture, and no other class changes.
    inside = labels == CLASSES.index("sand")
    inner = inside & np.roll(inside, 5, 0) & np.roll(inside, -5, 0)
    inner &= np.roll(inside, 5, 1) & np.roll(inside, -5, 1)
    assert entry(page, "sand").get_attribute("aria-pressed") == "true"
    entry(page, "sand").click()
    assert entry(page, "sand").get_attribute("aria-pressed") == "false"
    hidden = canvas(page)
    assert np.abs(hidden - picture)[inner].mean() < 6  # a JPEG of it
    np.testing.assert_array_equal(hidden[~inside], shown[~inside])
    photograph(page, "desktop_hidden")
    page.get_by_role("button", name="Hide all").click()
    assert np.abs(canvas(page) - picture).mean() < 6
    page.get_by_role("button", name="Show all").click()
    np.testing.assert_array_equal(canvas(page), shown)

    opacity(page, 0)
    assert np.abs(canvas(page) - picture).mean() < 6
    opacity(page, 100)
    full = canvas(page)
    colours = dsolo.draw.palette(4).astype(int)[labels]
    flat = inner & (full != 255).all(-1)
    assert (full[flat] == colours[flat]).all()
    opacity(page, 55)

    box = page.locator(".stage canvas").bounding_box()
    for x, y in ((0.05, 0.3), (0.5, 0.9), (0.8, 0.4)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        name = CLASSES[labels[int(y * 560), int(x * 560)]]
        assert re.fullmatch(rf"{name} -?\d+\.\d+", page.inner_text(".tip"))
        assert page.inner_text(".readout").startswith(page.inner_text(".tip") + ", at ")
    photograph(page, "desktop")
    page.mouse.move(5, 5)
    assert page.locator(".tip").is_hidden()

    heat(page, "arrow").click()
    assert heat(page, "arrow").get_attribute("aria-pressed") == "true"
    assert "Heat map of arrow: dark is" in page.inner_text(".readout")
    opacity(page, 100)
    bright = canvas(page).sum(-1)
    arrow = labels == CLASSES.index("arrow")
    assert bright[arrow].mean() > 2 * bright[~arrow].mean()
    photograph(page, "desktop_heat")
    heat(page, "arrow").click()
    opacity(page, 55)
    np.testing.assert_array_equal(canvas(page), shown)
    assert not [url for url in requests if url.startswith("http")]  # all of that without the server


def test_masks_are_downloaded(visit, scene):
    page = visit()
    assert page.locator("#download").is_disabled()
    upload(page, scene)
    write(page, *CLASSES)
    segment(page)
    write(page, "lava")  # what is asked next does not matter for what was answered
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "dsolo_masks.zip"
    with zipfile.ZipFile(download.value.path()) as packed:
        mask = np.asarray(Image.open(io.BytesIO(packed.read("masks/picture.png"))))
        assert {"picture.png", "picture.json"} < set(packed.namelist())
    _, labels = wanted(scene)
    np.testing.assert_array_equal(mask, labels[::5, ::5])


def test_pasted_classes_become_chips(visit, scene):
    page = visit()
    upload(page, scene)
    write(page, "grass; sky,heaven ;", "sand")
    assert "of 3 classes" in segment(page)
    page.wait_for_function("() => document.querySelectorAll('#classes .token').length === 3")
    assert page.locator("#classes .token").all_inner_texts() == ["grass", "sky, heaven", "sand"]


def test_everything_works_by_keyboard_alone(visit, scene):
    page = visit()
    tab_to(page, UPLOAD)
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(20):  # until Gradio has made the button alive
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        if choosers:
            break
    choosers[-1].set_files(str(scene))
    page.wait_for_selector("#picture img")
    tab_to(page, "#classes input")
    for name in ("grass", "sky, heaven", "moon", "arrow"):
        page.keyboard.type(name)
        page.keyboard.press("Enter")
    page.keyboard.press("Backspace")
    page.keyboard.type("sand")
    tab_to(page, "#segment")  # what was typed without Enter counts too
    page.keyboard.press("Enter")
    page.wait_for_selector(".legend li")
    names = page.locator(".legend .name").all_inner_texts()
    assert set(names) == {"grass", "sky", "moon", "sand"}
    tab_to(page, ".stage canvas")
    page.keyboard.press("ArrowRight")
    first = page.inner_text(".readout")
    assert re.match(rf"({'|'.join(names)}) -?\d+\.\d+, at 56, 56", first)
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    assert "at 56, 78" in page.inner_text(".readout")
    before = canvas(page)
    tab_to(page, ".opacity")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert page.locator(".opacity").input_value() == "45"
    assert (canvas(page) != before).any()
    tab_to(page, ".entry")
    page.keyboard.press("Space")
    assert page.locator(".entry").first.get_attribute("aria-pressed") == "false"
    tab_to(page, ".heat")
    page.keyboard.press("Enter")
    assert page.locator(".heat").first.get_attribute("aria-pressed") == "true"
    tab_to(page, "#download")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_an_example_is_one_press(visit):
    page = visit(PHONE)
    photograph(page, "phone_empty")
    page.locator("#examples button").nth(1).click()
    page.wait_for_selector(".legend li")
    assert "5 of 5 classes found" in page.inner_text(".status")
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= PHONE["width"]  # nothing sticks out
    page.wait_for_function(
        "() => document.querySelector('.stage').getBoundingClientRect().top < 99"
    )
    photograph(page, "phone")
    page = visit(color_scheme="dark")
    page.locator("#examples button").first.click()
    page.wait_for_selector(".legend li")
    photograph(page, "desktop_dark")


def test_what_cannot_be_done_is_told_and_the_server_lives(visit, server, scene, large, tmp_path):
    page = visit()
    write(page, "sky")
    assert "no picture is given" in segment(page)
    letter = tmp_path / "letter.txt"
    letter.write_text("a letter, not a picture")
    page.locator("#picture input[type=file]").set_input_files(str(letter))
    page.wait_for_selector("text=Invalid file type")
    disguised = tmp_path / "letter.png"
    disguised.write_bytes(letter.read_bytes())
    upload(page, disguised)
    assert "this file" in segment(page)
    photograph(page, "desktop_error")
    page = visit()
    upload(page, large)
    write(page, "sky")
    before = server.memory()
    assert "has 8000 x 6250 pixels; this page takes at most 36 million" in segment(page)
    assert server.memory() < before + 50
    page = visit()
    upload(page, scene)
    assert "no classes are given" in segment(page)
    write(page, ";".join(f"class {i}" for i in range(300)))
    assert "300 classes are given; at most 200 are allowed" in segment(page)
    huge = tmp_path / "huge.png"
    huge.write_bytes(bytes(31_000_000))
    page = visit()
    page.locator("#picture input[type=file]").set_input_files(str(huge))
    page.wait_for_selector("text=exceed the maximum allowed size")
    page.locator("#examples button").first.click()  # as if nothing had been
    page.wait_for_selector(".legend li")


def test_model_and_method_are_chosen(visit, scene):
    page = visit()
    upload(page, scene)
    write(page, *CLASSES)
    segment(page)
    own = canvas(page)
    page.get_by_role("button", name="Model and method").click()
    choose(page, "Method", "path")
    assert "was known" in segment(page)
    path = canvas(page)
    assert (path != own).any()
    choose(page, "Source of the patch graph", "clip")
    assert "was known" not in segment(page)  # another graph
    assert (canvas(page) != path).any()
    page.get_by_label("Readings", exact=True).fill("robust,epsilon=0.5")
    page.keyboard.press("Enter")
    assert "4 classes" in segment(page)
    page.get_by_label("Readings", exact=True).fill("robust,epsilom=0.5")
    page.keyboard.press("Enter")
    assert "did you mean 'epsilon'?" in segment(page)
    choose(page, "Readings", "robust")
    page.get_by_label("add a class for everything else").check()
    assert "of 5 classes" in segment(page)
    assert "background" in page.locator(".legend .name").all_inner_texts()
    photograph(page, "desktop_settings")


def test_names_are_text(visit, scene):
    page = visit()
    upload(page, scene)
    evil = '<img src=x onerror="window.done=1">'
    write(page, evil, "sky", "${window.done=2}{{this}}")
    segment(page)
    assert evil in page.locator(".legend .name").all_inner_texts()
    assert f"never seen: {evil}" in page.inner_text(".remark")
    entry(page, evil).click()
    heat(page, "sky").click()
    assert page.evaluate("() => window.done") is None
    assert page.locator(".dsolo img").count() == 0


def test_two_people_at_once(visit, tmp_path):
    pages, classes = [], (("grass", "sky", "sand", "arrow"), ("road", "grass", "lava", "heart"))
    paths = []
    for index, names in zip((85, 146), classes, strict=True):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(miniature.draw(0, index, split="validation").image).save(paths[-1])
        pages.append(visit())
        upload(pages[-1], paths[-1])
        write(pages[-1], *names)
    for _ in range(3):
        for page in pages:
            page.evaluate("() => { document.querySelector('.status').textContent = ''; }")
            page.locator("#segment").click(no_wait_after=True)
        for page, path, names in zip(pages, paths, classes, strict=True):
            page.wait_for_function("() => document.querySelector('.status').textContent")
            assert set(page.locator(".legend .name").all_inner_texts()) == set(names)
            opacity(page, 100)
            _, labels = wanted(path, names)
            colours = dsolo.draw.palette(4).astype(int)[labels]
            assert (canvas(page) == colours).all(-1).mean() > 0.9  # all but the lines


def test_a_second_question_is_quick(visit, scene, tmp_path):
    """Prints the figures: run it with -s."""
    page = visit()
    new = tmp_path / "new.png"
    picture = Image.open(scene).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(new)
    upload(page, new)
    seconds = []
    write(page, *CLASSES)
    for names in ((), ("lava",), ("moon", "house"), ("ring", "star", "snow")):
        write(page, *names)
        start = time.perf_counter()
        told = segment(page)
        seconds.append((told, time.perf_counter() - start))
    assert "was known" not in seconds[0][0]
    for told, whole in seconds[1:]:
        assert "was known" in told and whole < 1
    print("\nfirst and later questions:", *(f"{whole:.2f} s: {told}" for told, whole in seconds))


def test_memory_is_bounded(server, tmp_path):
    """Of pictures more are sent than are kept, 12 megapixels each. Prints the figures."""
    small = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    path, memory = tmp_path / "large.png", [server.memory()]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(2):
            for _ in range(12):
                small[0, 0] += 1
                Image.fromarray(small).resize((4000, 3000), Image.Resampling.NEAREST).save(path)
                [*_, (event, data)] = asked(client, uploaded(client, path))
                assert event == "complete" and "error" not in json.loads(data)[0]
            memory.append(server.memory())
    print("\nmemory before, after 12 and after 24 pictures:", *(f"{x:.0f} MB" for x in memory))
    assert memory[1] < memory[0] + 800  # 256 of encoded pictures, and what one takes
    assert memory[2] < memory[1] + 100

"""What the tests in a browser share: a server of its own, and what a person does with the page."""

import base64
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import dsolo_jax as dsolo
from tests.web.test_page import free_port

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
CLASSES = ("grass", "sky", "sand", "arrow")
UPLOAD = "#picture button[aria-dropeffect]"
WAIT = 60_000  # milliseconds: programs are compiled on a busy machine


class Server:
    """A page in a process of its own."""

    def __init__(self, folder, sign="the page is at"):
        self.port, self.folder = free_port(), folder
        environment = os.environ | {"DSOLO_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
        del environment["XLA_FLAGS"]  # the suite's: it compiles as users' does
        command = [sys.executable, "-m", "dsolo_jax", "web", f"--port={self.port}"]
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            how = {"stdout": log, "stderr": log, "env": environment}
            self.process = subprocess.Popen(command, **how)
        until = time.monotonic() + 120
        while sign not in self.log.read_text() and not list(folder.glob(sign)):
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.2)
        self.url = f"http://127.0.0.1:{self.port}"

    def memory(self, what="VmRSS"):
        """Megabytes that the process has now, or had at most (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) / 1000

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


def upload(page, path):
    page.locator("#picture input[type=file]").set_input_files(str(path))
    page.wait_for_selector("#picture img")


def write(page, *classes):
    page.locator("#classes input").click()
    for name in classes:
        page.keyboard.type(name)
        page.keyboard.press("Enter")


def segment(page):
    """Presses the button and waits for what is told: the status, or the error."""
    told = "() => ['.error', '.status'].map((s) => document.querySelector(s).textContent).join('')"
    page.evaluate(
        "() => ['.error', '.status'].forEach((s) => document.querySelector(s).textContent = '')"
    )
    page.locator("#segment").click()
    page.wait_for_function(told)
    return page.evaluate(told)


def canvas(page):
    """What the canvas shows, uint8 [H, W, 3], after what is waiting to be drawn."""
    page.evaluate("() => new Promise((go) => requestAnimationFrame(() => setTimeout(go, 50)))")
    uri = page.evaluate("() => document.querySelector('.stage canvas').toDataURL('image/png')")
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def entry(page, name):
    return page.locator(".legend li", has_text=name).locator(".entry")


def heat(page, name):
    return page.get_by_role("button", name=f"Heat map of {name}")


def opacity(page, value):
    page.locator(".opacity").evaluate(
        "(bar, value) => { bar.value = value; bar.dispatchEvent(new Event('input')); }", str(value)
    )


def wanted(path, classes=CLASSES):
    """Picture and labels as the canvas enlarges them, five times each."""
    result = dsolo.segment(dsolo.load("miniature"), path, list(classes))
    larger = np.ones((5, 5), np.uint8)
    return np.stack([np.kron(x, larger) for x in result.pixels.transpose(2, 0, 1)], -1), np.kron(
        result.labels, larger
    )


def photograph(page, name):
    if folder := os.environ.get("DSOLO_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(300)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def tab_to(page, what):
    """Presses Tab until a selector has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(what) => document.activeElement.matches(what)", what):
            return
    raise AssertionError(f"Tab does not come to {what}")


def choose(page, label, value):
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=value, exact=True).click()

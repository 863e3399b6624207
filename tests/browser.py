"""A headless Chromium that tests look through and click in, by its own debugging protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium():
    """Path of the browser; the test fails where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(
            f"No Chromium on this machine: looked for {', '.join(NAMES)} on PATH={os.environ.get('PATH')}. "
            "Install it (`apt-get install chromium`); this test must see the page, so it does not skip."
        )
    return found


class Browser:
    """One page of one browser; a context manager.

    Attributes:
        asked: every address that the page has asked for.
    """

    def __init__(self, program, folder, *more, size=(1280, 900)):
        self.asked = []
        options = [*FLAGS, *more, f"--user-data-dir={folder}", "--remote-debugging-port=0", "--hide-scrollbars"]
        self._process = subprocess.Popen(
            [program, *options, f"--window-size={size[0]},{size[1]}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = self._wait(lambda: (Path(folder) / "DevToolsActivePort").read_text().split()[0])
            new = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
            page = json.load(urllib.request.urlopen(new, timeout=30))
            self._socket = connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None, ping_interval=None)
            self._number = 0
            for domain in ("Page", "Runtime", "Network"):
                self._call(f"{domain}.enable")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _wait(self, look, seconds=30):
        end = time.monotonic() + seconds
        while True:
            try:
                return look()
            except (OSError, IndexError):
                assert time.monotonic() < end, "Chromium did not start"
                time.sleep(0.1)

    def _call(self, method, **parameters):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv(timeout=60))
            if told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            if told.get("method") == "Network.webSocketCreated":
                self.asked.append(told["params"]["url"])
            if told.get("id") == self._number:
                assert "error" not in told, told["error"]
                return told["result"]

    def run(self, script):
        """Value of an expression of JavaScript."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def text(self):
        """What the page shows, as text."""
        return self.run("document.body ? document.body.innerText : ''")

    def go(self, url, *expected, seconds=60):
        """Open a page, and wait until it shows all of some texts."""
        self._call("Page.navigate", url=url)
        for text in expected:
            self.wait_for(text, seconds)

    def wait_for(self, text, seconds=60):
        end = time.monotonic() + seconds
        while text not in self.text():
            assert time.monotonic() < end, f"{text!r} did not come; the page shows:\n{self.text()}"
            time.sleep(0.3)

    def click(self, label):
        """Click what bears this label, with the mouse; of several, the last: what opened last covers the others."""
        where = f"""(() => {{
            const all = [...document.querySelectorAll('button, a, [role], li, span')];
            const shown = all.filter(e => e.getClientRects().length);
            const one = shown.filter(e => e.innerText?.trim() === {json.dumps(label)}).at(-1);
            if (!one) return null;
            one.scrollIntoView({{block: 'center'}});
            const box = one.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
        end = time.monotonic() + 30
        while not (at := self.run(where)):
            assert time.monotonic() < end, f"no {label!r} to click; the page shows:\n{self.text()}"
            time.sleep(0.3)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def shoot(self, path):
        """Write what the window shows to a PNG file."""
        Path(path).write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

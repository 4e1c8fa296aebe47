"""A real browser, driven over the pipe of its DevTools protocol: nothing to install but Chromium."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page: what it logs, what an expression is there, clicks, keys, pictures."""

    def __init__(self, to_browser, from_browser, process):
        self.out, self.into, self.process = to_browser, from_browser, process
        self.number, self.rest, self.session, self.errors = 0, b"", None, []

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session and not method.startswith("Target."):
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            event, what = found.get("method"), found.get("params", {})
            if (
                event == "Runtime.exceptionThrown"
                or (event == "Log.entryAdded" and what["entry"]["level"] == "error")
                or (event == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert"))
            ):
                self.errors.append(what)
            if found.get("id") == self.number:
                assert "error" not in found, found["error"]
                return found["result"]

    def _read(self, timeout=60):
        end = time.monotonic() + timeout
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.into], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self.into, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def js(self, expression):
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                         awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def frames(self, n=3):
        """Wait for so many frames."""
        self.js(
            f"new Promise(r => {{ let n = {n}; const f = () => n-- ? requestAnimationFrame(f) : r();"
            " f(); })"
        )

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.frames()

    def key(self, key, code):
        """Press a key of that virtual code."""
        text = {"text": key} if len(key) == 1 else {}
        for kind, more in (("keyDown", text), ("keyUp", {})):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more
            )
        self.frames()

    def middle(self, selector):
        """The middle of an element, scrolled into view."""
        return self.js(
            f"(() => {{ const e = document.querySelector('{selector}'); "
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); "
            "return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )

    def show(self, path, *, width=1200, height=900, dark=False, reduced=False, scale=1):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale, mobile=width < 600)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced else "no-preference"},
        ])  # fmt: skip
        self.call("Page.navigate", url=f"file://{path}")
        end = time.monotonic() + 30
        while not self.js("document.readyState === 'complete' && Boolean(window.explorer)"):
            assert time.monotonic() < end, f"the page does not come up: {self.errors}"
            time.sleep(0.05)
        self.frames()

    def picture(self, path, full=True):
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(folder):
    """Yield a page of a new browser, whose profile lies in that folder."""
    read_end, to_browser = os.pipe()
    from_browser, write_end = os.pipe()

    def wire():
        copies = os.dup(read_end), os.dup(write_end)  # either may be 3 or 4 itself
        os.dup2(copies[0], 3)
        os.dup2(copies[1], 4)

    process = subprocess.Popen(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"],
        close_fds=False, preexec_fn=wire, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read_end)
    os.close(write_end)
    page = Page(to_browser, from_browser, process)
    try:
        target = page.call("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        yield page
    finally:
        process.terminate()
        process.wait(20)
        os.close(to_browser)
        os.close(from_browser)

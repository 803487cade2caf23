"""A headless Chromium through its driver's WebDriver protocol, in plain HTTP: no further package is needed."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    not (DRIVER and BROWSER), reason="no headless browser here: chromium and chromedriver are not installed"
)


class Page:
    """One tab."""

    def __init__(self, base: str, downloads: Path):
        self.base, self.downloads = base, downloads
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {"args": flags, "binary": BROWSER, "prefs": {"download.default_directory": str(downloads)}}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def do(self, method: str, path: str, body: dict | None = None):
        """A command of the session."""
        return self._call(method, f"/session/{self.session}{path}", body)

    def open(self, file: Path) -> None:
        """Open a file."""
        self.do("POST", "/url", {"url": file.resolve().as_uri()})

    def resize(self, width: int, height: int = 800, phone: bool = False) -> None:
        """Give the tab a size, also one that no window has. phone: as the browser of a telephone lays pages out."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.do("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})

    def script(self, code: str):
        """What a function body of JavaScript returns."""
        return self.do("POST", "/execute/sync", {"script": code, "args": []})

    def click(self, selector: str) -> None:
        """A real click on an element."""
        self.do("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Keys into an element."""
        self.do("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def _find(self, selector: str) -> str:
        return next(iter(self.do("POST", "/element", {"using": "css selector", "value": selector}).values()))

    def problems(self) -> list[str]:
        """Errors and warnings of the console."""
        return [entry["message"] for entry in self.do("POST", "/se/log", {"type": "browser"})]

    def wait(self, code: str, expected: str) -> None:
        """Until a script returns what is expected."""
        for _ in range(200):
            if (found := self.script(code)) == expected:
                return
            time.sleep(0.05)
        raise AssertionError(f"{code}: {found!r}; expected {expected!r}")

    def downloaded(self, name: str) -> Path:
        """The path of a download that is complete."""
        for _ in range(200):
            if (path := self.downloads / name).is_file():
                return path
            time.sleep(0.05)
        raise AssertionError(f"{name} was not saved")


@contextlib.contextmanager
def open_page(downloads: Path) -> Iterator[Page]:
    """A fresh browser; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/status", timeout=5):
                break
            time.sleep(0.05)
        page = Page(base, downloads)
        try:
            yield page
        finally:
            page.do("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(10)

"""`faap app` in headless Chromium, driven by Playwright; `make app-test` has both."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import faap
from faap.app import Shelf
from faap.app.page import blocks
from faap.promenade import shipped_run

gradio = pytest.importorskip("gradio", reason="gradio is not installed: make app-test")
api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make app-test")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no chromium: apt-get install chromium, or CHROMIUM=path", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_promenade: Path) -> Iterator[tuple[str, Path]]:
    """The address of an app, and the folder in which it keeps its files."""
    root = tmp_path_factory.mktemp("app")
    for place in ("equal/seed_0", "equal/seed_1", "broken"):
        shutil.copytree(shipped_run(), root / "runs" / place, ignore=shutil.ignore_patterns("generator"))
        (root / "runs" / place / "report.html").write_text("<h1>A report</h1><script>document.title = 'run'</script>")
    (root / "runs" / "broken" / "metrics.json").write_text("{")
    (root / "temporary").mkdir()
    command = [
        sys.executable,
        "-P",
        "-m",
        "faap",
        "app",
        "--port",
        "0",
        "--runs",
        "runs",
        "--data",
        str(tiny_promenade),
    ]
    own = os.environ | {"TMPDIR": str(root / "temporary"), "FAAP_MAX_PIXELS": "1000000", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=root, env=own, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().split()[0]
    (folder,) = (root / "temporary").glob("faap-app-*")
    yield address, folder
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not folder.exists()  # and with it what was uploaded


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: tuple[str, Path]) -> Iterator[Any]:
    """The page, once it shows an example; it may ask nobody but its own server, and have no error."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(server[0])
    page.wait_for_selector("svg[aria-label*='after']")
    yield page
    page.close()
    assert {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))} == {
        urlsplit(server[0]).netloc
    }
    # which is what the sandbox of a frame is for
    assert [each for each in errors if "Blocked script execution in 'about:srcdoc'" not in each] == []


def caption(page: Any, title: str) -> str:
    return str(page.locator("figcaption", has_text=title).inner_text())


def downloaded(page: Any, link: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("link", name=link).click()
    return Path(download.value.path()).read_bytes()


def upload(page: Any, path: Path) -> None:
    page.locator("input[type=file]").set_input_files(path)


def test_the_first_example_is_there_at_once_and_others_a_click_away(page: Any) -> None:
    assert caption(page, "before") == "before: 0 detections"
    page.get_by_role("button", name="Thumbnail 6 of 8").click()
    page.wait_for_selector("svg[aria-label^='scene 1, male, after']")
    assert page.locator(".faap tbody tr").count() > 0


def test_a_picture_is_uploaded_and_its_perturbed_one_is_what_the_library_makes(page: Any, photo: Path) -> None:
    upload(page, photo)
    page.wait_for_selector("svg[aria-label^='my photo.png, after'], svg[aria-label^='my_photo.png, after']")
    got = Image.open(BytesIO(downloaded(page, "Download the perturbed picture (PNG)")))
    wanted = faap.apply(faap.load_generator("promenade"), Image.open(photo))
    assert np.array_equal(np.asarray(got), np.asarray(wanted))


def test_epsilon_slides_and_the_picture_follows(page: Any) -> None:
    slider = page.get_by_role("slider")
    full = caption(page, "perturbation")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert float(slider.input_value()) == pytest.approx(0.05)
    page.wait_for_function("full => !document.body.innerText.includes(full)", arg=full)
    assert int(caption(page, "perturbation").split("×")[1]) > int(full.split("×")[1])
    page.keyboard.press("Home")
    page.wait_for_function("document.body.innerText.includes('perturbation ×127')")  # nothing is there to magnify
    nothing = Image.open(BytesIO(downloaded(page, "Download the perturbed picture (PNG)")))
    slider.focus()
    page.keyboard.press("End")
    page.wait_for_function("full => document.body.innerText.includes(full)", arg=full)
    full_again = Image.open(BytesIO(downloaded(page, "Download the perturbed picture (PNG)")))
    assert np.abs(np.asarray(full_again).astype(int) - np.asarray(nothing)).max() in (5, 6)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.png", b"\x89PNG\r\n\x1a\n and no more", "broken.png: cannot be read as an image"),
        ("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "page.png: cannot be read"),
        ("large.png", None, "it has 1,002,001 pixels, and 1,000,000 are the most"),
    ],
)
def test_a_bad_file_is_one_sentence(page: Any, tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content) if content else Image.new("L", (1001, 1001)).save(path)
    upload(page, path)
    shown = page.get_by_test_id("toast-body")
    shown.wait_for()
    assert said in shown.inner_text()
    assert "faap-app-" not in shown.inner_text()
    page.get_by_role("button", name="Thumbnail 6 of 8").click()  # and the page goes on
    page.wait_for_selector("svg[aria-label^='scene 1, male, after']")


def test_a_data_set_is_audited(page: Any) -> None:
    page.get_by_role("tab", name="A data set").click()
    page.get_by_role("button", name="Audit").click()
    page.wait_for_selector("iframe[title^='Audit of promenade']", timeout=60_000)
    assert (
        page.frame_locator("iframe").get_by_role("heading", level=1).inner_text() == "Audit of the detector promenade"
    )
    assert page.locator("iframe").get_attribute("sandbox") == ""
    assert downloaded(page, "Download this page").startswith(b"<!doctype html>")


def test_runs_are_listed_shown_and_compared(page: Any) -> None:
    page.get_by_role("tab", name="Runs").click()
    assert "metrics.json: not JSON" in page.get_by_role("row", name="broken").inner_text()
    for name in ("equal/seed_0", "equal/seed_1"):
        page.get_by_label("Runs: one for its report, several to compare them").click()
        page.get_by_role("option", name=name).click()
        page.get_by_role("button", name="Show").click()
        if name == "equal/seed_0":
            page.wait_for_selector("iframe[title='Report of equal/seed_0']")
            assert page.frame_locator("iframe").get_by_role("heading").inner_text() == "A report"
    page.wait_for_selector("iframe[title='2 runs compared']", timeout=60_000)
    assert page.title() == "faap"


def test_a_phone_shows_all_of_it_without_scrolling_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for name in ("A picture", "A data set", "Runs"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        for field in page.locator("input:visible, select:visible, textarea:visible").all():
            assert field.evaluate("e => e.labels?.length > 0 || e.ariaLabel || e.getAttribute('aria-labelledby')"), name


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """Somebody who must not be asked anything: an address, and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}/secret.png", asked
        other.shutdown()


def request(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    """Ask as no browser would: nothing of the path is changed on its way."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
    own = {} if body is None or isinstance(body, bytes) else {"Content-Type": "application/json"}
    connection.request(method, path, content, own | {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_hostile_requests_read_nothing_and_fetch_nothing(
    server: tuple[str, Path], page: Any, listener: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, folder = server
    (tmp_path / "secret.txt").write_text("secret")
    for path in (
        "/etc/passwd",
        str(tmp_path / "secret.txt"),
        f"{folder}/../../runs/equal/seed_0/metrics.json",
        f"{folder}/%2e%2e/%2e%2e/runs/equal/seed_0/metrics.json",
        listener[0],
    ):
        assert request(address, "GET", f"/gradio_api/file={path}")[0] == 404, path
    config = json.loads(request(address, "GET", "/config")[1])
    looks = next(each["id"] for each in config["dependencies"] if len(each["inputs"]) == 5)
    for path, url in (
        ("/etc/passwd", None),
        (str(tmp_path / "secret.txt"), listener[0]),
        (listener[0], listener[0]),
        (f"{folder}/../../runs/equal/seed_0/metrics.json", None),
    ):
        file = {"path": path, "url": url, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        for data in ([file, None, "promenade", "promenade", 0.1], [None, None, file, "promenade", file]):
            asked = {"data": data, "fn_index": looks, "session_hash": "hostile"}
            assert request(address, "POST", "/gradio_api/queue/join", asked)[0] == 403, path
    assert listener[1] == []
    assert request(address, "GET", "/", Host="evil.example")[0] == 403
    assert request(address, "POST", "/gradio_api/upload", b"", Origin="http://evil.example")[0] == 403
    for path in ("/docs", "/openapi.json", "/gradio_api/info", "/gradio_api/openapi.json", "/monitoring"):
        assert request(address, "GET", path)[0] == 404, path
    assert request(address, "POST", "/gradio_api/upload", b"x" * 100, Content_Length=str(2**30))[0] == 413


def test_everything_waits_in_one_line() -> None:
    page = blocks(gradio, Shelf())
    working = [function for function in page.fns.values() if function.fn is not None]
    assert len(working) > 8
    assert {(each.concurrency_id, each.concurrency_limit, each.api_visibility) for each in working} == {
        ("one", 1, "private")
    }
    assert page._queue.max_size == 20
    assert page.delete_cache[1] == 3600


def test_what_is_not_in_the_list_is_refused(server: tuple[str, Path], page: Any) -> None:
    config = json.loads(request(server[0], "GET", "/config")[1])
    working = [each for each in config["dependencies"] if each["backend_fn"]]
    looks = next(each["id"] for each in working if len(each["inputs"]) == 5)
    asked = {"data": [None, None, "/etc", "promenade", 0.1], "fn_index": looks, "session_hash": "stranger"}
    assert request(server[0], "POST", "/gradio_api/queue/join", asked)[0] == 200
    stream = http.client.HTTPConnection(urlsplit(server[0]).netloc, timeout=20)
    stream.request("GET", "/gradio_api/queue/data?session_hash=stranger")
    answer, said = stream.getresponse(), ""
    while "process_completed" not in said:
        said += answer.readline().decode()
    assert re.search(r'"success":\s*false', said)

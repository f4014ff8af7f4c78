"""What `faap app` shows and lets through, without a browser; `tests/test_app_browser.py` has one."""

import asyncio
import html
import json
import re
import shutil
import socket
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import faap
from faap import cli
from faap.app import Shelf
from faap.app.gate import MOST_BYTES, Gate
from faap.app.shelf import Bars, moved
from faap.deploy import Form, apply_files, found_in
from faap.errors import FaapError
from faap.evaluation import Detections
from faap.promenade import shipped_run

LOOK = {"upload": None, "example": "scene 0, female", "detector": "promenade", "generator": "promenade"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(runs=tmp_path_factory.mktemp("runs"))


def download(shelf: Shelf, shown: str) -> bytes:
    """What the link of a result leads to."""
    (token,) = re.findall(r'href="made/([^"]+)"', shown)
    found = shelf.made(token)
    assert found is not None
    return found[1]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)))


def test_a_picture_before_and_after_with_the_detectors_own_scores(shelf: Shelf) -> None:
    shown = shelf.look(**LOOK, epsilon=0.1)
    detector, image = faap.load_detector("promenade"), shelf.examples["scene 0, female"]
    changed = Image.fromarray(pixels(download(shelf, shown)))
    for side, each in (("before", image), ("after", changed)):
        scores = sorted(found_in(detector, each).scores.tolist(), reverse=True)
        sure = [f"{score:.2f}" for score in scores if score >= 0.5]
        said = ", ".join(sure) or "nothing with a score of 0.5 or more"
        assert f'aria-label="scene 0, female, {side}: {said}"' in shown
        assert f"<figcaption>{side}: {len(sure)} detection{'s' * (len(sure) != 1)}</figcaption>" in shown
    assert shown.count("found under") == 1  # before, where nothing is sure
    factor = 127 // np.abs(np.asarray(changed).astype(int) - np.asarray(image)).max()
    assert f"perturbation ×{factor}" in shown
    assert shown.count("<tr><td>person ") == 2


@pytest.mark.parametrize("epsilon", [0.1, 0.035])
def test_what_is_downloaded_has_the_bits_that_apply_writes(
    shelf: Shelf, photo: Path, tmp_path: Path, epsilon: float
) -> None:
    offered = pixels(download(shelf, shelf.look(**LOOK | {"upload": str(photo)}, epsilon=epsilon)))
    detector = faap.load_detector("promenade")
    form = Form(preprocessing=detector.preprocessing)
    apply_files(faap.load_generator("promenade", epsilon=epsilon), [photo], tmp_path / "out", form)
    assert offered.shape == (150, 220, 3)
    assert np.array_equal(offered, np.asarray(Image.open(tmp_path / "out" / photo.name)))
    assert not np.array_equal(offered, np.asarray(Image.open(photo)))


def test_a_photograph_for_a_detector_that_resizes_none_is_made_smaller_and_that_is_said(
    shelf: Shelf, tmp_path: Path
) -> None:
    for width, said in ((1024, False), (2048, True)):
        Image.new("RGB", (width, 64), "grey").save(tmp_path / "wide.png")
        path = (tmp_path / "wide.png").rename(tmp_path / f"{width}.png")
        shown = shelf.look(**LOOK | {"upload": str(path)}, epsilon=0.1)
        assert pixels(download(shelf, shown)).shape == ((32, 1024, 3) if said else (64, 1024, 3))
        assert ("The picture was made 1024 × 32 pixels first" in shown) == said


def test_without_epsilon_nothing_moves(shelf: Shelf) -> None:
    shown = shelf.look(**LOOK, epsilon=0)
    assert np.array_equal(pixels(download(shelf, shown)), np.asarray(shelf.examples["scene 0, female"]))
    assert "No score of 0.1 or more moved." in shown
    assert "<table>" not in shown


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"detector": "/etc/passwd"}, "not in the list"),
        ({"generator": "../promenade"}, "not in the list"),
        ({"generator": ["promenade"]}, "not in the list"),
        ({"example": "scene 9, female"}, "not in the list"),
        ({"epsilon": 0.11}, "ε"),
        ({"epsilon": -0.1}, "ε"),
        ({"epsilon": float("nan")}, "ε"),
        ({"epsilon": "much"}, "ε"),
    ],
)
def test_only_what_is_on_the_shelf_can_be_chosen(shelf: Shelf, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(FaapError, match=said):
        shelf.look(**LOOK | {"epsilon": 0.1} | wrong)


def test_a_bad_picture_is_named_and_its_folder_is_not(
    shelf: Shelf, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAAP_MAX_PIXELS", "30000")
    broken = photo.with_name("holiday.jpg")
    broken.write_bytes(photo.read_bytes()[:200])
    for path, said in (
        (broken, "cannot be read as an image"),
        (photo, "it has 33,000 pixels, and 30,000 are the most"),
    ):
        with pytest.raises(FaapError, match=rf"^{path.name}: .*{said}") as caught:
            shelf.look(**LOOK | {"upload": str(path)}, epsilon=0.1)
        assert str(path.parent) not in str(caught.value)


def found(*rows: tuple[float, int, list[float]]) -> Detections:
    scores, labels, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(0, np.array(scores, float), np.array(labels, int), np.array(boxes, float).reshape(-1, 4))


def test_scores_are_paired_by_class_and_place_and_the_best_with_the_best() -> None:
    here, near, far = [0.0, 0, 10, 20], [1.0, 0, 10, 20], [50.0, 0, 10, 20]
    before = found((0.2, 1, here), (0.05, 1, near), (0.6, 1, far), (0.04, 2, far))
    after = found((0.03, 1, here), (0.9, 1, near), (0.3, 2, far))
    rows = [(row["label"], row["before"], row["after"], round(row["change"], 2)) for row in moved(before, after)]
    # the duplicates' 0.05 and 0.03 are of no interest; far is one class before, another after
    assert rows == [(1, 0.2, 0.9, 0.7), (1, 0.6, None, -0.6), (2, 0.04, 0.3, 0.26)]
    assert moved(found(), after)[0]["before"] is None
    assert moved(found(), found()) == []


def test_a_download_is_kept_for_a_while_and_nobody_can_guess_where(shelf: Shelf) -> None:
    shown = [shelf.look(**LOOK, epsilon=0.1) for _ in range(5)]
    tokens = [re.findall(r"made/([^\"]+)", each)[0] for each in shown]
    assert [shelf.made(token) is not None for token in tokens] == [False, True, True, True, True]
    assert min(map(len, tokens)) > 40
    page = shelf._offer("audit.html", lambda: b"")
    for _ in range(5):
        shelf._offer("perturbed.png", lambda: b"")
    assert shelf.made(page.removeprefix("made/")) is not None
    assert shelf.made("perturbed.png") is None


def test_an_audit_is_shown_in_a_frame_with_its_progress(
    tiny_promenade: Path, tiny_detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "cache"))  # what is known is not detected again
    shelf = Shelf(detectors=[str(tiny_detector)], data=[str(tiny_promenade)], runs=tmp_path, device="cpu")
    heard: list[tuple[float, str]] = []
    shown = shelf.audit(str(tiny_promenade), str(tiny_detector), lambda share, said: heard.append((share, said)))
    assert {"detecting", "reading the images"} <= {said for _, said in heard}
    assert max(share for share, _ in heard) == 1
    page = download(shelf, shown).decode()
    assert page.startswith("<!doctype html>")
    assert "Promenade, test split:" in page
    assert re.search(r"<iframe sandbox title=", shown)
    assert html.escape('<html lang="en">', quote=True).replace("&quot;", "&#34;") in shown
    for others in (("/", str(tiny_detector)), (str(tiny_promenade), "promenade")):
        with pytest.raises(FaapError, match="not in the list"):
            shelf.audit(*others, lambda *_: None)


def test_bars_are_told_while_they_fill() -> None:
    heard: list[tuple[float, str]] = []
    bars = Bars(lambda share, said: heard.append((share, said)))
    bars.write("\rdetecting ━━━━━━╸                   45% 0:00:12")
    bars.write("taking the gap apart ━━━━━━━━━━━━ -:--:--\n")
    assert heard == [(0.45, "detecting")]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of one recipe as `faap compare` leaves them, an evaluation, and two that cannot be read."""
    for place in ("equal/seed_0", "equal/seed_1", "evaluated", "broken", "older"):
        shutil.copytree(shipped_run(), tmp_path / place, ignore=shutil.ignore_patterns("generator"))
        (tmp_path / place / "report.html").write_text("<script>alert(1)</script>")
    (tmp_path / "evaluated" / "config.yaml").unlink()
    measured = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    measured["perturbation"]["jpeg"] = 75
    (tmp_path / "evaluated" / "metrics.json").write_text(json.dumps(measured))
    (tmp_path / "broken" / "metrics.json").write_text('{"a": 1')
    older = json.loads((tmp_path / "older" / "metrics.json").read_text())
    del older["changes"]
    (tmp_path / "older" / "metrics.json").write_text(json.dumps(older))
    return tmp_path


def test_runs_are_listed_and_bad_ones_with_what_is_wrong(runs: Path) -> None:
    shelf = Shelf(runs=runs)
    rows = {row["name"]: row for row in shelf.found()}
    assert list(rows) == ["broken", "equal/seed_0", "equal/seed_1", "evaluated", "older"]
    assert rows["broken"]["error"].startswith("metrics.json: not JSON")
    assert rows["older"]["error"].startswith("metrics.json: was written by another faap")
    metrics = json.loads((shipped_run() / "metrics.json").read_text())
    assert [rows[name]["recipe"] for name in ("equal/seed_0", "evaluated")] == ["equal", "–"]
    table = shelf.table()
    gap, women = metrics["gap"]["AP"], metrics["changes"]["female"]["AP"]
    for value, sign in ((gap["baseline"], ""), (gap["perturbed"], ""), (women["change"], "+"), (women["ci95"][0], "+")):
        assert f"{value:{sign}.4f}".replace("-", "−") in table
    assert table.count("✓ met") == 3
    assert table.count("<small>test split (700 female, 700 male images)</small>") == 2
    assert "<small>test split (700 female, 700 male images, as JPEG of quality 75)</small>" in table
    assert "is no run" in Shelf(runs=runs / "nowhere").table()


def test_one_run_is_its_report_in_which_nothing_runs_and_several_are_compared(runs: Path) -> None:
    shelf = Shelf(runs=runs)
    report = shelf.side_by_side(["equal/seed_0"])
    assert "<script>" not in report
    assert 'srcdoc="&lt;script&gt;alert(1)&lt;/script&gt;"' in report
    page = download(shelf, shelf.side_by_side(["equal/seed_0", "equal/seed_1"])).decode()
    assert "over 2 seeds" in page
    for names, said in (
        ([], "Choose one run"),
        (None, "Choose one run"),  # a request written by hand
        (["../equal"], "not in the list"),
        (["equal/seed_0", "evaluated"], "config.yaml"),
    ):
        with pytest.raises(FaapError, match=said):
            shelf.side_by_side(names)


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("FAAP_MAX_PIXELS", "1000")
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    assert cli.main(["app", "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: faap app takes gradio")
    assert "make app, or pip install 'faap[app]'" in error


@pytest.mark.parametrize(
    ("flag", "said"), [("--generators", "/nowhere: does not exist"), ("--detr_checkpoint", "detector /nowhere")]
)
def test_what_is_typed_wrongly_is_said_before_anything_is_shown(flag: str, said: str, capsys: Any) -> None:
    assert cli.main(["app", flag, "/nowhere"]) == 2
    assert said in capsys.readouterr().err


def test_what_there_is_to_choose_from_may_be_said_in_several_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[Any, ...]]()
    monkeypatch.setattr("faap.app.Shelf", lambda *places: asked.append(places[:4]))
    monkeypatch.setattr("faap.app.serve", lambda *_, **__: None)
    assert cli.main(["app", "--generators", "a", "b", "--data", "d", "--generators", "c"]) == 0
    assert cli.main(["app"]) == 0
    assert asked == [(["a", "b", "c"], ["promenade"], ["d"], "faap_outputs"), (*3 * [["promenade"]], "faap_outputs")]


def test_an_address_that_cannot_be_had_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["app", "--port", str(port)]) == 2
    assert f"127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
    for flags, said in ((["--port", "70000"], "port"), (["--host", "192.0.2.1"], "192.0.2.1, port 7860: ")):
        assert cli.main(["app", *flags]) == 2
        assert said in capsys.readouterr().err


Ask = Callable[..., tuple[int, bytes, dict[str, str]]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Ask a gate whose folder is `tmp_path / inside`; what is behind it answers 200 with the body that it got."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "photo.png").write_bytes(b"")
    (tmp_path / "inside" / "out.png").symlink_to("/etc/passwd")

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    gate = Gate(behind, tmp_path / "inside", ("127.0.0.1", "localhost", "::1"))

    def request(method: str, path: str, body: bytes = b"", **headers: str | None) -> tuple[int, bytes, dict[str, str]]:
        own = {"host": "127.0.0.1:7860"} | ({"content-length": str(len(body))} if method == "POST" else {})
        given = own | {name.replace("_", "-"): value for name, value in headers.items()}
        sent = [(name, value) for name, value in given.items() if value is not None]
        parts = [body[:5], body[5:]]
        waiting = [{"type": "http.request", "body": part, "more_body": part is parts[0]} for part in parts]
        got: list[Any] = []

        async def receive() -> Any:
            return waiting.pop(0)

        async def send(message: Any) -> None:
            got.append(message)

        raw = [(name.encode(), value.encode("latin-1")) for name, value in sent]
        scope = {
            "type": "http",
            "method": method,
            "path": path.replace("INSIDE", str(tmp_path / "inside")),
            "headers": raw,
        }
        asyncio.run(gate(scope, receive, send))
        answered = {name.decode(): value.decode() for name, value in got[0]["headers"]}
        return got[0]["status"], got[1]["body"], answered

    return request


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index.js", "/gradio_api/queue/data", "/made/a-b_c"])
def test_what_the_page_asks_for_is_answered_and_may_load_nothing_from_elsewhere(ask: Ask, path: str) -> None:
    status, _, headers = ask("GET", path)
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self' ")
    assert "http" not in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file=INSIDE/../secret"),
        ("GET", "/gradio_api/file=INSIDE/out.png"),  # a link that leads out
        ("GET", "/gradio_api/file=http://169.254.169.254/"),
        ("GET", "/gradio_api/file=INSIDE/\0"),
        ("GET", f"/gradio_api/file={'a' * 5000}"),
        ("GET", "/assets/../../../etc/passwd"),
        ("GET", "/gradio_api/proxy=http://example.org"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/docs"),
        ("POST", "/gradio_api/api/look"),
        ("POST", "/gradio_api/call/look"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/vibe-edit/"),
        ("PUT", "/"),
        ("OPTIONS", "/gradio_api/queue/join"),
    ],
)
def test_what_the_page_does_not_ask_for_is_not_there(ask: Ask, method: str, path: str) -> None:
    assert ask(method, path)[0] == 404
    assert ask("GET", "/gradio_api/file=INSIDE/photo.png")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example:7860"}, 403),  # a name that was made to lead here
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": None}, 403),
        ({"host": "[::1"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),  # another program of this machine
    ],
)
def test_other_sites_and_other_names_are_refused(ask: Ask, headers: dict[str, Any], status: int) -> None:
    assert ask("GET", "/", **headers)[0] == status
    assert ask("POST", "/gradio_api/upload", b"{}", **headers)[0] == status


def test_requests_are_bounded(ask: Ask) -> None:
    few, many = str(MOST_BYTES), str(MOST_BYTES + 2**17)
    assert [ask("POST", "/gradio_api/upload", b"", content_length=each)[0] for each in (few, many)] == [200, 413]
    assert ask("POST", "/gradio_api/queue/join", b"{}", content_length=str(2**17))[0] == 413
    assert ask("POST", "/gradio_api/upload", b"", content_length=None)[0] == 411
    assert ask("POST", "/gradio_api/upload", b"", content_length="-1")[0] == 411
    # of the two, a server would believe the second
    assert ask("POST", "/gradio_api/upload", b"", content_length="9", transfer_encoding="chunked")[0] == 411


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("INSIDE/photo.png", 200),
        (None, 200),
        ("/etc/passwd", 403),
        ("INSIDE/../secret", 403),
        ("INSIDE/out.png", 403),
        ("http://127.0.0.1:1/secret", 403),
        ("https://example.org/a.png", 403),
        ({"path": "/etc/passwd"}, 403),
        (["/etc/passwd"], 403),
    ],
)
def test_a_file_that_a_request_names_is_one_that_was_uploaded(ask: Ask, tmp_path: Path, path: Any, status: int) -> None:
    named = path.replace("INSIDE", str(tmp_path / "inside")) if isinstance(path, str) else path
    file = {"path": named, "url": "http://127.0.0.1:1/", "meta": {"_type": "gradio.FileData"}}
    for data in ([file], [0.1, [{"deep": [file]}]]):
        assert ask("POST", "/gradio_api/queue/join", json.dumps({"data": data}).encode())[0] == status


def test_a_request_goes_on_as_it_was_understood(ask: Ask, tmp_path: Path) -> None:
    twice = b'{"path": "/etc/passwd", "path": "' + str(tmp_path / "inside" / "photo.png").encode() + b'"}'
    status, body, _ = ask("POST", "/gradio_api/queue/join", twice)
    assert status == 200
    assert b"passwd" not in body
    assert ask("POST", "/gradio_api/queue/join", b"{")[0] == 400
    assert ask("POST", "/gradio_api/queue/join", b"[" * 60_000)[0] == 400

"""The page itself, of gradio's parts, and the server that shows it to this machine."""

import html
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from faap.app.gate import MOST_BYTES, Gate
from faap.app.shelf import Shelf, chosen, levels
from faap.conform import Between, conform
from faap.deploy import PICTURES
from faap.errors import FaapError
from faap.report.page import render

# pixels of a picture, unless FAAP_MAX_PIXELS says otherwise
_MOST_PIXELS = 25_000_000
# seconds after which what was uploaded is removed, and how often that is looked at
_UNTIL, _EVERY = 3600, 300
# requests that may wait
_QUEUE = 20
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(shelf: Shelf, host: str = "127.0.0.1", port: int = 7860, *, console: Console) -> None:
    """Show the page until the process is interrupted; what was uploaded is removed then.

    Args:
        shelf: what there is to choose from.
        host: the address to listen at; whoever can reach it can use the page.
        port: 0 for any that is free.
        console: where to say at which address the page is.

    Raises:
        FaapError: the address is taken, or none of this machine; gradio is not installed.
    """
    with _listening(host, port) as listener, tempfile.TemporaryDirectory(prefix="faap-app-") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        os.environ.setdefault("FAAP_MAX_PIXELS", str(_MOST_PIXELS))
        try:
            gr, fastapi, uvicorn = map(import_module, ("gradio", "fastapi", "uvicorn"))
        except ImportError as error:
            raise FaapError(f"faap app takes gradio ({error}): make app, or pip install 'faap[app]'.") from error
        behind = fastapi.FastAPI(openapi_url=None)

        def made(token: str) -> Any:
            if (found := shelf.made(token)) is None:
                return fastapi.Response(status_code=404)
            name, content = found
            kind = {"content-disposition": f'attachment; filename="{name}"'}
            return fastapi.Response(content, media_type="application/octet-stream", headers=kind)

        behind.get("/made/{token}")(made)
        theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        own = {"theme": theme.set(block_info_text_color="*neutral_600", block_label_text_color="*neutral_600")}
        own |= {"css": render("app.html", part="style"), "max_file_size": MOST_BYTES, "footer_links": []}
        gr.mount_gradio_app(behind, blocks(gr, shelf), "/", show_error=False, run_history=False, ssr_mode=False, **own)
        hosts = (*_LOOPBACK, host) if host in _LOOPBACK else ()
        name = f"[{host}]" if ":" in host else host
        console.print(f"http://{name}:{listener.getsockname()[1]} (Ctrl-C ends it)", highlight=False)
        if not hosts:
            console.print("Whoever can reach this address can use the page: there is no password.", style="yellow")
        config = uvicorn.Config(Gate(behind, Path(folder), hosts), log_level="warning", timeout_graceful_shutdown=1)
        # uvicorn ends in order and then raises the signal again
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    conform(port, Between(0, 65535, 1), "port")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        said = f"{host}, port {port}: {error.strerror}"
        raise FaapError(f"{said}; give another with --host or --port, 0 for any that is free.") from error


def blocks(gr: Any, shelf: Shelf) -> Any:
    """Return the page; everything in it waits in one line, so that one thing is done at a time."""

    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        """Show what is wrong as a sentence."""

        @wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            try:
                return function(*values, **named)
            except (FaapError, OSError) as error:
                raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

        return call

    line: dict[str, Any] = {"concurrency_id": "one", "concurrency_limit": 1, "api_visibility": "private"}
    generators, detectors, data = [*shelf.generators], [*shelf.detectors], [*shelf.data]
    examples, bar = [*shelf.examples], gr.Progress()

    def slider(generator: str) -> dict[str, Any]:
        bound = shelf.bounds.get(generator, 0)
        info = f"The bound of the change. {bound:g} is {levels(bound):.1f} of a pixel's 255 levels."
        return {"maximum": bound, "value": bound, "step": bound / 20, "info": info}

    def pick(event: gr.SelectData) -> tuple[str, None]:
        return chosen(dict(zip(map(str, range(len(examples))), examples, strict=True)), str(event.index)), None

    def audit(data: str, detector: str, progress: Any = bar) -> str:
        return shelf.audit(data, detector, lambda share, said: progress(share, desc=said))

    def renew() -> tuple[str, Any]:
        return shelf.table(), gr.Dropdown(choices=[row["name"] for row in shelf.found()], value=[])

    with gr.Blocks(title="faap", analytics_enabled=False, delete_cache=(_EVERY, _UNTIL)) as page:
        gr.Markdown("# faap\nWhat a perturbation does to what a frozen detector finds.")
        with gr.Tab("A picture"), gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = gr.File(label="Your picture", file_types=list(PICTURES), height=130)
                pictures = [(picture, name) for name, picture in shelf.examples.items()]
                how = {"columns": len(pictures) // 2, "height": "auto", "allow_preview": False, "buttons": []}
                gallery = gr.Gallery(pictures, label="Or an example", elem_id="examples", **how)
                example = gr.State(examples[0])
                detector = gr.Dropdown(detectors, value=detectors[0], label="Detector")
                generator = gr.Dropdown(generators, value=generators[0], label="Generator")
            with gr.Column(scale=5, min_width=300):
                epsilon = gr.Slider(0, label="ε", **slider(generators[0]))
                shown = gr.HTML()
        with gr.Tab("A data set"):
            with gr.Row(equal_height=True):
                audited = gr.Dropdown(data, value=data[0], label="Data set", scale=2)
                whose = gr.Dropdown(detectors, value=detectors[0], label="Detector", scale=2)
                start = gr.Button("Audit", variant="primary", min_width=120)
            verdict = gr.HTML()
        with gr.Tab("Runs"):
            table = gr.HTML()
            with gr.Row(equal_height=True):
                label = "Runs: one for its report, several to compare them"
                runs = gr.Dropdown([], multiselect=True, label=label, scale=4, min_width=280)
                again = gr.Button("Look again", min_width=120)
                show = gr.Button("Show", variant="primary", min_width=120)
            compared = gr.HTML()
        looking = {"fn": told(shelf.look), "inputs": [upload, example, detector, generator, epsilon], "outputs": shown}
        looking |= line
        gr.on([page.load, upload.upload, upload.clear, detector.change], **looking)
        epsilon.change(trigger_mode="always_last", show_progress="hidden", **looking)
        gallery.select(told(pick), None, [example, upload], **line).then(**looking)
        generator.change(lambda name: gr.Slider(**slider(name)), generator, epsilon, **line).then(**looking)
        start.click(told(audit), [audited, whose], verdict, **line)
        gr.on([page.load, again.click], told(renew), None, [table, runs], **line)
        show.click(told(shelf.side_by_side), runs, compared, **line)
    page.queue(max_size=_QUEUE, default_concurrency_limit=1)
    return page

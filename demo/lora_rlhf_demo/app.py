"""The page: its tabs, its look, and how it is served."""

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lora_rlhf_demo.gradio_import import gr  # before all others that import gradio

# isort: split
from lora_rlhf.render.curves import SCRIPT, STYLE
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import read_file
from lora_rlhf_demo.compare_tab import CompareTab
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.guard import GuardedApp
from lora_rlhf_demo.label_session import NO_CANDIDATES, LabelActions
from lora_rlhf_demo.label_tab import LabelTab
from lora_rlhf_demo.people_tab import PeopleTab
from lora_rlhf_demo.playground_tab import PlaygroundTab
from lora_rlhf_demo.requests import Open
from lora_rlhf_demo.runs import NO_RUNS, list_runs
from lora_rlhf_demo.start_tab import StartTab
from lora_rlhf_demo.state import HANDLER_OPTIONS, App
from lora_rlhf_demo.watch_tab import WatchTab
from lora_rlhf_demo.worker import MOST_WAITING, ModelWorker

if TYPE_CHECKING:
    from lora_rlhf_demo.handler import RequestHandler

Tab = CompareTab | LabelTab | PeopleTab | WatchTab | PlaygroundTab | StartTab

USER = "lora"
SHORTEST_PASSWORD = 8
MOST_PORTS = 50
MOST_PAGES = 256  # whose conversations are kept
HERE = Path(__file__).parent
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # nothing is fetched from elsewhere
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
NEW_BROWSER = """(name) => name || [...crypto.getRandomValues(new Uint8Array(16))]
  .map((byte) => byte.toString(16).padStart(2, "0")).join("")"""
HEADER = """<header class="top"><div><h1>{title}</h1>{about}</div>
<button type="button" class="quiet" data-theme title="switch between light and dark">light / dark</button></header>"""


def serve(config: DemoConfig) -> None:
    """Serves the app until Ctrl-C. UserError for settings with which it cannot be served, and for an unknown --run."""
    config = config.with_root_of_run()
    names = [run.name for run in list_runs(Path(config.root))]
    if config.label:
        names = LabelActions(config).runs_to_label()
    if config.run is not None and config.run not in names:
        missing = " with responses to rank" if config.label else ""
        raise UserError(f"run {config.run!r}: not in {config.root}; there{missing}: {', '.join(names) or 'none yet'}")
    with launch_app(config) as blocks:
        if not names:
            print(NO_CANDIDATES.format(run=f"{config.root}/RUN") if config.label else NO_RUNS.format(root=config.root))
        if not config.is_local and not config.share:
            print("Plain http: whoever is on the way can read passwords and texts. Put a proxy with https before it.")
        print(f"\n{blocks.local_url}   (Ctrl-C ends it)", flush=True)
        if blocks.share_url:
            print(f"{blocks.share_url}   (public, user {USER!r})", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextlib.contextmanager
def launch_app(config: DemoConfig) -> Iterator[gr.Blocks]:
    """Runs the app during the block; its end stops the app and frees its base."""
    app = App(config, ModelWorker(lambda: _make_handler(config)))
    blocks = build_page(app)
    guarded = GuardedApp({config.host.lower(), *(name.lower() for name in config.host_names)}, config.is_local)
    blocks.queue(default_concurrency_limit=8, max_size=256, api_open=False)
    try:
        blocks.launch(
            server_name=config.host,
            server_port=_find_free_port(config.host, config.port),
            share=config.share,
            auth=_user_and_password(config),
            inbrowser=config.open_browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            allowed_paths=[],
            run_history=False,
            _app=guarded,
            max_threads=MOST_WAITING + 16,  # one for each waiting request; the others can stop requests
            state_session_capacity=MOST_PAGES,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=[],
            theme=make_theme(),
            css=STYLE,
            css_paths=sorted(HERE.glob("*.css")),
        )
        if blocks.share_url:
            guarded.names.add(str(urlsplit(blocks.share_url).hostname))
        if (runs := app.runs()) and not config.label:
            app.worker.submit(Open(runs[0].name))  # while the first page is drawn
        yield blocks
    finally:
        blocks.close(verbose=False)
        app.worker.close()


def _make_handler(config: DemoConfig) -> "RequestHandler":
    """Makes the handler of the worker's thread. The import of torch waits until the first request."""
    from lora_rlhf_demo.handler import Limits, RequestHandler
    from lora_rlhf_demo.loaded_runs import LoadedRuns

    runs = LoadedRuns(
        Path(config.root), workers.device_of_process(config.device), config.trust_remote_code, config.dequantize
    )
    return RequestHandler(runs, Limits(config.max_prompt_tokens, config.max_response_tokens))


def make_theme() -> gr.themes.Base:
    """The colours and fonts of the app; fonts are those of the system."""
    base = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", radius_size="md", font=FONTS, font_mono=MONO)
    return base.set(
        body_background_fill="*neutral_50",
        block_background_fill="white",
        block_border_width="1px",
        body_text_color_subdued="*neutral_600",  # 4.5:1 and more on all backgrounds, as below
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
    )


def build_page(app: App) -> gr.Blocks:
    """The page with all tabs; with --label the labelling page alone."""
    is_alone = app.config.label
    title = "Rank answers" if is_alone else "lora-rlhf"
    about = "" if is_alone else "<p>What each stage of a run says, side by side, from one base in memory.</p>"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(HEADER.format(title=title, about=about), js_on_load=None, apply_default_css=False)
        # outside the tabs, since a hidden tab would not read it; a name is no secret
        labeler = gr.BrowserState("", storage_key="lora-rlhf-labeler", secret="labeler")
        # a secret: tells two labelers with one name apart, and finds the conversations of this browser
        browser = gr.BrowserState("", storage_key="lora-rlhf-browser", secret="labeler")
        blocks.load(None, browser, browser, js=NEW_BROWSER)
        if is_alone:
            tabs: tuple[Tab, ...] = (LabelTab(app, labeler, browser),)
        else:
            tabs = _make_tabs(app, labeler, browser)
        for tab in tabs:
            blocks.load(*tab.on_page_open, **HANDLER_OPTIONS)
        for script in ((HERE / "page.js").read_text(encoding="utf-8"), f"() => {{ {SCRIPT} }}"):
            blocks.load(None, None, None, js=script)
        blocks.unload(_leave_handler(app))
    return blocks


def _make_tabs(app: App, labeler: gr.BrowserState, browser: gr.BrowserState) -> tuple[Tab, ...]:
    with gr.Tabs():
        with gr.Tab("Compare"):
            compare = CompareTab(app, browser)
        with gr.Tab("Label"):
            label = LabelTab(app, labeler, browser)
        with gr.Tab("People") as people_tab:
            people = PeopleTab(app, people_tab)
        with gr.Tab("Watch"):
            watch = WatchTab(app)
        with gr.Tab("Reward"):
            reward = PlaygroundTab(app)
        if not app.config.may_start:
            return compare, label, people, watch, reward
        with gr.Tab("Train"):
            train = StartTab(app)
    return compare, label, people, watch, reward, train


def _leave_handler(app: App) -> Callable[[gr.Request], None]:
    def close_session(request: gr.Request) -> None:
        app.close_session(str(request.session_hash))

    return close_session


def _user_and_password(config: DemoConfig) -> tuple[str, str] | None:
    """The user and the password that a page asks for; None without --password_file."""
    if config.password_file is None:
        return None
    path = Path(config.password_file)
    lines = read_file(path, follow_links=True).decode().splitlines()
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path}: others can read this password; give the command `chmod 600 {path}`")
    if not lines or len(lines[0].strip()) < SHORTEST_PASSWORD:
        raise UserError(
            f"{config.password_file}: its first line must be a password of at least {SHORTEST_PASSWORD} characters"
        )
    return USER, lines[0].strip()


def _find_free_port(host: str, first_port: int) -> int:
    """The first free port. UserError if the address is not this machine's, or if all ports are taken."""
    for port in range(first_port, min(first_port + MOST_PORTS, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port left a minute ago is free
            try:
                listener.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise UserError(
                        f"host {host!r}, port {port}: {error.strerror}; give another --host or --port"
                    ) from error
                continue
            return port
    raise UserError(f"ports {first_port} to {first_port + MOST_PORTS - 1} are all taken; give another --port")

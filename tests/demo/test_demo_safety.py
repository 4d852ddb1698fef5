"""What the app's address gives away: no file of the machine or of a run, and nothing at all without the password."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import gradio
import pytest
from lora_rlhf_demo import app
from lora_rlhf_demo.app import launch_app
from lora_rlhf_demo.config import DemoConfig

from lora_rlhf.cli import main as cli
from lora_rlhf.system.errors import UserError
from tests.support.demo import PORT, Served


def get(url: str) -> tuple[int, bytes]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file={root}/first/sft/manifest.json",
        "/gradio_api/file={root}/first/sft/adapter/adapter_model.safetensors",
        "/gradio_api/file={password}",
        "/gradio_api/file={here}",
        "/gradio_api/file={root}/../../../../../../etc/passwd",
        "/gradio_api/file=file:///etc/passwd",
        "/file=/etc/passwd",
        "/static/../../../../../../etc/passwd",
        "/theme.css/../../../etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/x",
    ],
)
def test_no_file_is_served(served: Served, tmp_path: Path, path: str) -> None:
    password = tmp_path / "password"
    password.write_text("secret words\n")
    status, body = get(served.url.rstrip("/") + path.format(root=served.root, password=password, here=app.__file__))
    assert status in (403, 404) or (status >= 400 and len(body) < 500), (status, body[:200])
    for secret in (b"root:x", b"secret words", b"source_hash", b"lora_A"):
        assert secret not in body


def test_the_interface_for_programs_is_closed(served: Served) -> None:
    _, body = get(served.url + "gradio_api/info")
    assert b"/_" not in body and body.count(b'"parameters"') == 0


def test_nothing_is_seen_without_the_password(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("long enough\nnot this\n")
    secret.chmod(0o600)
    (tmp_path / "runs").mkdir()
    with launch_app(DemoConfig(root=str(tmp_path / "runs"), port=PORT + 200, password_file=str(secret))) as blocks:
        url = str(blocks.local_url)
        assert get(url + "config")[0] == 401
        wrong, right = (login(url, word) for word in ("not this", "long enough"))
        assert (wrong, right) == (400, 200)


def login(url: str, password: str) -> int:
    data = f"username=lora&password={password.replace(' ', '+')}".encode()
    try:
        with urllib.request.urlopen(url + "login", data=data, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_short_or_missing_password_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.touch(0o600)
    for words in ("", "short\n", "\nlong enough"):
        secret.write_text(words)
        with pytest.raises(UserError, match="at least 8"), launch_app(DemoConfig(password_file=str(secret))):
            pass


def test_a_password_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("long enough")
    for mode in (0o640, 0o604):
        secret.chmod(mode)
        with pytest.raises(UserError, match="chmod 600"), launch_app(DemoConfig(password_file=str(secret))):
            pass


@pytest.mark.parametrize("changes", [{"host": "0.0.0.0"}, {"host": "::"}, {"host": "example.org"}, {"share": True}])
def test_others_are_let_in_only_with_a_password(changes: dict, tmp_path: Path) -> None:
    assert any("--password_file" in fault for fault in DemoConfig(**changes).faults())
    secret = tmp_path / "password"
    secret.write_text("long enough")
    assert DemoConfig(**changes, password_file=str(secret)).faults() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_this_machine_alone_needs_none(host: str) -> None:
    assert DemoConfig(host=host).faults() == []


def test_impossible_settings_are_named(tmp_path: Path) -> None:
    faults = DemoConfig(port=70_000, max_prompt_characters=0, guidelines=str(tmp_path / "no")).faults()
    assert len(faults) == 3 and all(any(word in fault for fault in faults) for word in ("port", "characters", "no'"))


def test_a_run_that_is_not_there_is_refused_with_those_that_are(served: Served, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["demo", "--root", str(served.root), "--run", "nosuch"]) == 2
    assert f"run 'nosuch': not in {served.root}; there: first" in capsys.readouterr().err
    assert cli.main(["demo", "--run", f"{served.root}/nosuch"]) == 2
    assert f"run 'nosuch': not in {served.root}; there: first" in capsys.readouterr().err


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith(("lora_rlhf_demo.app", "lora_rlhf_demo.gradio"))]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["demo"]) == 2
    assert 'pip install "gradio' in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_does_not_wait_for_torch() -> None:

    code = "import sys, lora_rlhf_demo.app; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == "[]"


def test_gradio_reports_to_nobody() -> None:
    assert not gradio.analytics.analytics_enabled()


def test_a_port_that_is_taken_is_passed_over(served: Served) -> None:
    port = int(served.url.rstrip("/").rpartition(":")[2])
    assert app._find_free_port("127.0.0.1", port) > port
    with pytest.raises(UserError, match=r"192\.0\.2\.1"):
        app._find_free_port("192.0.2.1", 7860)

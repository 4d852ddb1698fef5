"""Runs that are started from the page: one process at a time, which outlives the app.

The process is the command `lora-rlhf STAGE ...`. It holds a lock from its first to its last moment, so the lock says
whether it lives, to every server on this root and after any death; a record beside the lock says what it is.
"""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lora_rlhf.configs.catalogue import BY_NAME, Stage
from lora_rlhf.configs.common import TrainingConfig
from lora_rlhf.configs.flags import parse_flags, words_of_flag
from lora_rlhf.configs.values import check, field_types
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.runs.manifest import FINISHED, OBJECT, TEXT
from lora_rlhf.runs.resume import Lock
from lora_rlhf.system.disk import new_file, write_json
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import make_folder, open_file
from lora_rlhf.system.untrusted import read_object, require
from lora_rlhf_demo.runs import find_run_folder, read_run_state

LOCK, RECORD, LOG = ".started.lock", ".started.json", ".started.log"
COMMAND = [sys.executable, "-m", "lora_rlhf.cli"]
LOG_BYTES, LOG_LINES = 20_000, 12
MOST_VALUE_CHARACTERS = 10_000
NOT_BEGUN = "not begun"


class Started(NamedTuple):
    """The run that was started last. texts: of the form. outcome: what the manifest of its stage says."""

    stage: Stage
    run: str
    texts: dict[str, str]
    pid: int | None
    is_alive: bool
    outcome: str

    @property
    def can_continue(self) -> bool:
        """Whether the same command would go on with it, or begin it again."""
        return not self.is_alive and self.outcome != FINISHED


def words_of_form(stage: Stage, texts: Mapping[str, Any]) -> list[str]:
    """The flags that a form's texts stand for; an empty text is no flag. UserError for what no command line takes."""
    words = []
    for name, hint in field_types(stage.config).items():
        text = texts.get(name)
        if not isinstance(text, str) or not text.strip():
            continue
        if len(text) > MOST_VALUE_CHARACTERS or "\0" in text:
            raise UserError(f"{stage.name}: {name} is too long, or no text")
        words += words_of_flag(name, hint, text.strip())
    return words


def command_text(stage: Stage, texts: Mapping[str, Any]) -> str:
    """The command line, to be copied into a shell. UserError as of `words_of_form`."""
    return f"lora-rlhf {stage.name} {shlex.join(words_of_form(stage, texts))}".rstrip()


class Starter:
    """Starts, stops and continues runs under a root. may_run_code: also with settings that need trust."""

    def __init__(self, root: Path, may_run_code: bool = False) -> None:
        self.root, self._may_run_code = root, may_run_code
        self._child: subprocess.Popen[bytes] | None = None
        self._mutex = threading.Lock()

    def read(self, stage: Stage, texts: Mapping[str, Any]) -> TrainingConfig:
        """The configuration of a form. UserError with the faults of the command line, and with those of the page."""
        config: TrainingConfig = parse_flags(stage.name, stage.config, words_of_form(stage, texts))
        check(config)
        if Path(config.run).resolve().parent != self.root.resolve():
            raise UserError(
                f"{stage.name}: run is {config.run!r}, and the page starts runs in {self.root} alone, where it finds "
                f"them: name one such as {self.root}/mine, or give the command in a terminal"
            )
        for field in dataclasses.fields(stage.config):
            needs_trust = field.metadata.get("needs_trust") and getattr(config, field.name) != field.default
            if needs_trust and not self._may_run_code:
                raise UserError(
                    f"{stage.name}: {field.name} may run code, or send data to a server: begin the app with "
                    "--allow_start true to set it here, or give the command in a terminal"
                )
        return config

    def start(self, stage: Stage, texts: Mapping[str, Any]) -> None:
        """Starts the command. UserError as of `read`, as the stage says of its folder, and where another is at work."""
        config = self.read(stage, texts)
        with self._mutex:
            make_folder(self.root)
            lock = self._take_lock()
            try:
                with StageFolder.open(config, stage.name):
                    pass  # the stage looks for the same faults first: so they are shown at once
                self._spawn(lock, stage, Path(config.run).resolve().name, texts)
            finally:
                lock.release()

    def last(self) -> Started | None:
        """The run that was started last; None before the first, and where its record cannot be read."""
        if self._child is not None:
            self._child.poll()  # else a process that has ended would stay as a zombie
        try:
            record = read_object(self.root / RECORD, "remove that file")
            require(record, {"stage": TEXT, "run": TEXT, "texts": OBJECT})
            stage, run, pid = BY_NAME[record["stage"]], record["run"], record.get("pid")
            texts = {name: text for name, text in record["texts"].items() if isinstance(text, str)}
        except (UserError, OSError, ValueError, KeyError):
            return None
        try:
            outcome = read_run_state(find_run_folder(self.root, run)).stages.get(stage.name, NOT_BEGUN)
        except UserError:
            outcome = NOT_BEGUN
        is_alive = Lock(self.root / LOCK).is_held() is True
        return Started(stage, run, texts, pid if isinstance(pid, int) and pid > 1 else None, is_alive, outcome)

    def stop(self) -> None:
        """Asks the run to save and end. UserError where none is at work."""
        with self._mutex:
            found = self.last()
            if found is None or not found.is_alive or found.pid is None:
                raise UserError("no run that was started here is at work")
            try:
                os.kill(found.pid, signal.SIGTERM)
            except OSError as error:
                raise UserError(f"the run cannot be stopped from here ({error.strerror})") from error

    def resume(self) -> None:
        """Gives the last command again, but for --overwrite. UserError as of `start`."""
        found = self.last()
        if found is None or not found.can_continue:
            raise UserError("no run waits to be continued")
        self.start(found.stage, {name: text for name, text in found.texts.items() if name != "overwrite"})

    def log_lines(self) -> list[str]:
        """The last lines that the run printed; of a progress bar its last state."""
        try:
            with open_file(self.root / LOG) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
                text = file.read(LOG_BYTES).decode(errors="replace")
        except (OSError, UserError):
            return []
        lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
        return [line for line in lines if line][-LOG_LINES:]

    def _take_lock(self) -> Lock:
        """The lock that the process will hold. UserError that names the run at work."""
        lock = Lock(self.root / LOCK)
        try:
            lock.acquire()
        except UserError as error:
            found = self.last()
            name = "another run" if found is None else f"{found.stage.name} of {found.run}"
            raise UserError(f"{name} is at work; one run is trained at a time: wait for it, or stop it") from error
        return lock

    def _spawn(self, lock: Lock, stage: Stage, run: str, texts: Mapping[str, Any]) -> None:
        """Begins the process, in a session of its own: what ends the app does not end it."""
        record = {"stage": stage.name, "run": run, "texts": dict(texts)}
        write_json(self.root / RECORD, record | {"pid": None})  # never the pid of one before under this one's lock
        with new_file(self.root / LOG) as log:
            self._child = subprocess.Popen(
                [*COMMAND, stage.name, *words_of_form(stage, texts)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.descriptor,),
                start_new_session=True,
            )
        write_json(self.root / RECORD, record | {"pid": self._child.pid})

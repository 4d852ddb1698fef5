"""What all tabs share: the settings, the model worker, and the requests of the open pages."""

import functools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from lora_rlhf.data.sources import read_prompts
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.requests import Request
from lora_rlhf_demo.rows import Row, RowFile
from lora_rlhf_demo.runs import RunState, find_run_folder, list_runs
from lora_rlhf_demo.worker import ModelWorker, Ticket

# of every handler of a control: no limit but the queue of the worker, and no public API
HANDLER_OPTIONS: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
VOTES, OTHER_VOTES, REMOVED_VOTES = "votes.jsonl", "votes_without_ranking.jsonl", "votes.removed.jsonl"


def user_of(request: gr.Request) -> str:
    """Who asks, for a fair share of the queue: the browser's address, since anybody can open many pages."""
    return str(request.client.host) if request.client else ""


def run_dropdown(names: Sequence[str], elem_id: str, visible: bool = True) -> gr.Dropdown:
    """A list of runs, the first chosen. It is filled when the app starts: a browser may lose an update of a list.

    Opening a page brings it up to date.
    """
    return gr.Dropdown(names, value=names[0] if names else None, label="Run", elem_id=elem_id, visible=visible)


def runs_update(names: Sequence[str], shown: str | None) -> Any:
    """The update of that list when a page opens. A run that somebody has chosen meanwhile stays chosen."""
    if shown in names:
        return gr.update(choices=names)
    return gr.update(choices=names, value=names[0] if names else None)


@dataclass
class App:
    """One server. What belongs to a single page is in the page's own state.

    _tickets: {(session of the page, tab): its last request}.
    """

    config: DemoConfig
    worker: ModelWorker
    _tickets: dict[tuple[str, str], Ticket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def root(self) -> Path:
        return Path(self.config.root)

    def runs(self) -> list[RunState]:
        """The runs with a model that answers; the run of --run is first."""
        runs = [run for run in list_runs(self.root) if run.can_chat]
        return sorted(runs, key=lambda run: run.name != self.config.run)

    def run_names(self) -> list[str]:
        return [run.name for run in self.runs()]

    def save_vote(self, run: str, row: Row, is_ranking: bool) -> None:
        """Saves a vote: a ranking in a file that the reward stage can read, another vote in a second file."""
        RowFile(find_run_folder(self.root, run) / (VOTES if is_ranking else OTHER_VOTES)).add(
            row | {"saved": time.time()}
        )

    def remove_vote(self, run: str, vote: str) -> None:
        """Moves a vote, by its name, into a file of removed ones. UserError if it is not there."""
        folder = find_run_folder(self.root, run)
        files = [RowFile(folder / name) for name in (VOTES, OTHER_VOTES)]
        removed = [row for file in files for row in file.remove(lambda row: row.get("vote") == vote)] if vote else []
        if not removed:
            raise UserError("This vote is no longer there.")
        for row in removed:
            RowFile(folder / REMOVED_VOTES).add(row | {"removed": time.time()})

    def votes(self, run: str) -> list[Row]:
        """All votes of a run."""
        folder = find_run_folder(self.root, run)
        return [row for name in (VOTES, OTHER_VOTES) for row in RowFile(folder / name).rows()]

    @functools.cached_property
    def prompts(self) -> list[str]:
        """The questions of --prompts, each once. UserError for a file without one."""
        if self.config.prompts is None:
            return []
        prompts, _ = read_prompts(self.config.prompts)
        texts = dict.fromkeys(prompt.messages[0].content for prompt in prompts if len(prompt.messages) == 1)
        if not texts:
            raise UserError(f"--prompts {self.config.prompts}: none of its prompts is a single question")
        return list(texts)

    def submit(self, session: str, tab: str, request: Request, user: str = "") -> Ticket:
        """Submits a request of a page's tab in place of the tab's previous one. user: see `user_of`."""
        self.replace(session, tab, {})
        ticket = self.worker.submit(request, user)
        with self._lock:
            self._tickets[session, tab] = ticket
        return ticket

    def replace(self, session: str, tab: str, updates: Mapping[Any, Any]) -> bool:
        """Ends the request that a tab is waiting for, with updates to display last; False if it waits for none."""
        with self._lock:
            ticket = self._tickets.get((session, tab))
        return ticket is not None and ticket.replace(updates)

    def stop(self, session: str, tab: str) -> None:
        """Stops the request that a tab is waiting for."""
        with self._lock:
            ticket = self._tickets.get((session, tab))
        if ticket is not None:
            ticket.stop()

    def close_session(self, session: str) -> None:
        """Stops all requests of a page that was closed."""
        with self._lock:
            tickets = [self._tickets.pop((owner, tab)) for owner, tab in list(self._tickets) if owner == session]
        for ticket in tickets:
            ticket.stop()

    def require_short(self, text: str) -> str:
        """Returns the text. UserError if it is longer than --max_prompt_characters."""
        max_characters = self.config.max_prompt_characters
        if len(text) > max_characters:
            limit = f"at most {max_characters:,} are taken (--max-prompt-characters)"
            raise UserError(f"This text has {len(text):,} characters; {limit}.")
        return text

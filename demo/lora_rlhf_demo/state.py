"""What all tabs share: the settings, the model worker, and the requests of the open pages."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.requests import Request
from lora_rlhf_demo.rows import Row, RowFile
from lora_rlhf_demo.runs import RunState, folder_of, list_runs
from lora_rlhf_demo.worker import ModelWorker, Ticket

VOTES, OTHER_VOTES = "votes.jsonl", "votes_without_ranking.jsonl"


@dataclass
class App:
    """One server. What belongs to a single page is in the page's own state; its tickets are kept by session and tab."""

    config: DemoConfig
    worker: ModelWorker
    _tickets: dict[tuple[str, str], Ticket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def root(self) -> Path:
        return Path(self.config.root)

    def runs(self) -> list[RunState]:
        """The runs with a model that answers; the one that --run names is first."""
        runs = [run for run in list_runs(self.root) if run.can_chat]
        return sorted(runs, key=lambda run: run.name != self.config.run)

    def save_vote(self, run: str, row: Row, is_ranking: bool) -> None:
        """Saves a vote: a ranking in a file that the reward stage can read, another vote in a file beside it."""
        RowFile(folder_of(self.root, run) / (VOTES if is_ranking else OTHER_VOTES)).add(row)

    def votes(self, run: str) -> list[Row]:
        """All votes of a run."""
        folder = folder_of(self.root, run)
        return [row for name in (VOTES, OTHER_VOTES) for row in RowFile(folder / name).rows()]

    def submit(self, session: str, tab: str, request: Request) -> Ticket:
        """Submits a request of a page's tab, and stops the tab's request before."""
        ticket = self.worker.submit(request)
        with self._lock:
            before = self._tickets.pop((session, tab), None)
            self._tickets[session, tab] = ticket
        if before is not None:
            before.stop()
        return ticket

    def stop(self, session: str, tab: str) -> None:
        """Stops the request that a tab is waiting for."""
        with self._lock:
            ticket = self._tickets.get((session, tab))
        if ticket is not None:
            ticket.stop()

    def forget(self, session: str) -> None:
        """Stops all requests of a page that was closed."""
        with self._lock:
            tickets = [self._tickets.pop(key) for key in list(self._tickets) if key[0] == session]
        for ticket in tickets:
            ticket.stop()

    def require_short(self, text: str) -> str:
        """The text. UserError if it is longer than --max_prompt_characters."""
        most = self.config.max_prompt_characters
        if len(text) > most:
            raise UserError(
                f"This text has {len(text):,} characters; at most {most:,} are taken (--max-prompt-characters)."
            )
        return text

"""What all tabs share: the settings, the one host, and the tickets of the pages that are open."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.requests import Request
from lora_rlhf_demo.rows import Row, RowFile
from lora_rlhf_demo.runs import RunState, folder_of, list_runs
from lora_rlhf_demo.worker import Host, Ticket

VOTES, OTHER_VOTES = "votes.jsonl", "votes_without_ranking.jsonl"


@dataclass
class App:
    """One server. What belongs to one page alone is in its own state, and its tickets under its session and tab."""

    config: DemoConfig
    host: Host
    _tickets: dict[tuple[str, str], Ticket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def root(self) -> Path:
        return Path(self.config.root)

    def runs(self) -> list[RunState]:
        """The runs that can be shown, with the one that was asked for first."""
        found = [run for run in list_runs(self.root) if run.can_chat]
        return sorted(found, key=lambda run: run.name != self.config.run)

    def save_vote(self, run: str, row: Row, is_ranking: bool) -> None:
        """Keeps a vote: rankings in a file that the reward stage reads as it is, the others beside it."""
        RowFile(folder_of(self.root, run) / (VOTES if is_ranking else OTHER_VOTES)).add(row)

    def votes(self, run: str) -> list[Row]:
        """All votes of a run."""
        folder = folder_of(self.root, run)
        return [row for name in (VOTES, OTHER_VOTES) for row in RowFile(folder / name).rows()]

    def submit(self, session: str, tab: str, request: Request) -> Ticket:
        """A request of a page's tab; an answer that the tab was still waiting for is ended."""
        ticket = self.host.submit(request)
        with self._lock:
            before = self._tickets.pop((session, tab), None)
            self._tickets[session, tab] = ticket
        if before is not None:
            before.stop()
        return ticket

    def stop(self, session: str, tab: str) -> None:
        """Ends the answer that a tab is waiting for, where it is."""
        with self._lock:
            ticket = self._tickets.get((session, tab))
        if ticket is not None:
            ticket.stop()

    def forget(self, session: str) -> None:
        """The page was closed."""
        with self._lock:
            left = [self._tickets.pop(key) for key in list(self._tickets) if key[0] == session]
        for ticket in left:
            ticket.stop()

    def require_short(self, text: str) -> str:
        """The text. UserError where it is longer than the app takes."""
        most = self.config.max_prompt_characters
        if len(text) > most:
            raise UserError(
                f"This text has {len(text):,} characters; at most {most:,} are taken (--max-prompt-characters)."
            )
        return text

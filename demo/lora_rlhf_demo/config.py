"""How the app is started: what it shows, and to whom."""

import ipaddress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lora_rlhf.configs.marks import formerly
from lora_rlhf.configs.values import at_least, device_faults, share

LOOPBACK = ("localhost",)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The browser app: compare the stages of a run side by side, label, watch a run, try the reward model."""

    root: str = "runs"
    """Folder that holds the runs; the app reads and writes nothing outside it."""
    run: str | None = None
    """Run that is shown first, by its name in root or by its path; the one that changed last unless given."""
    prompts: str | None = None
    """Questions for Compare, as a file of prompts: a button puts the next one that has no vote yet into the box."""
    responses: str | None = field(default=None, metadata=formerly("candidates"))
    """Responses to be ranked, as `lora-rlhf sample` wrote them; the run's own data/candidates.jsonl unless given."""
    rankings: str | None = None
    """Where rankings are saved; RUN/rankings.jsonl unless given."""
    qualification: str | None = None
    """Rankings with known answers that a new labeler does first."""
    qualification_agreement: float = 0.75
    """Share of their pairs that a labeler is asked to order as is known; who orders fewer so is told."""
    label: bool = False
    """Serve the labelling page alone: no stages, no other tab, and no model in memory. Labelers get this address."""
    labelers: tuple[str, ...] = ()
    """Names under which people may label; any name unless given."""
    people_per_prompt: int | None = None
    """People that rank each prompt; once so many have, it is given to nobody else. Everybody ranks all unless given."""
    quota: int | None = None
    """The most prompts that one labeler is given."""
    guidelines: str | None = None
    """Text file of labelling instructions, shown beside the task; those of the package unless given."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dequantize: Literal["auto", "always", "never"] = "auto"
    """Keep the 4-bit base dequantised as well: more memory, less time. auto: on a CPU with memory to spare."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a password."""
    host_names: tuple[str, ...] = ()
    """Other names by which browsers reach the app, such as that of a proxy before it; all others are refused."""
    port: int = 7860
    """Port; the next free one where it is taken."""
    share: bool = False
    """Also make a public address through Gradio's servers; needs a password."""
    password_file: str | None = None
    """File whose first line is the password of the user "lora"."""
    open_browser: bool = False
    """Open the page in this machine's browser."""
    max_prompt_characters: int = 20_000
    """Longer messages are refused."""
    max_prompt_tokens: int = 1024
    """Longer conversations lose their oldest turns."""
    max_response_tokens: int = 512
    """The most that an answer can be asked for."""
    allow_start: bool | None = None
    """Whether runs can be started from the page, with files that this user can read (docs/security.md). Unless given:
    where only this machine reaches the app, and without settings that run code or name a server."""
    trust_remote_code: bool = False
    """Run the base's own code. Only for authors that you trust."""

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can reach the app."""
        if self.host in LOOPBACK:
            return not self.share
        try:
            return ipaddress.ip_address(self.host).is_loopback and not self.share
        except ValueError:
            return False

    @property
    def may_start(self) -> bool:
        """Whether the page has the tab that starts runs."""
        return self.is_local and not self.host_names if self.allow_start is None else self.allow_start

    def with_root_of_run(self) -> "DemoConfig":
        """The same, with a run that was given by its path named in its own root."""
        if self.run is None or len(Path(self.run).parts) < 2:
            return self
        path = Path(self.run)
        return replace(self, root=str(path.parent), run=path.name)

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        faults = [
            *at_least(self, 1, "max_prompt_characters", "max_prompt_tokens", "max_response_tokens", "port"),
            *at_least(self, 1, *(name for name in ("people_per_prompt", "quota") if getattr(self, name) is not None)),
            *device_faults(self),
            *share(self, "qualification_agreement", upper=1.0),
            *([f"port is {self.port}, must be at most 65535"] if self.port > 65535 else []),
        ]
        if not self.is_local and self.password_file is None:
            exposure = "share is true" if self.share else f"host is {self.host!r}, which others can reach"
            faults.append(f"{exposure}: give --password_file FILE, so that not everybody can use the app")
        file_fields = {"prompts", "responses", "qualification", "guidelines", "password_file"}
        faults += [
            f"{name} {value!r}: no such file"
            for name in sorted(file_fields)
            if (value := getattr(self, name)) is not None and not Path(value).is_file()
        ]
        return faults

"""What a person can choose when a model is released. Free of torch, so that --help answers at once."""

from dataclasses import dataclass

from lora_rlhf.configs.catalogue import SFT


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Whether the candidate may replace the baseline: exit status 0 only if the win rate and every guard pass.

    Prints each rule with what it needed and found, and leaves a signed-off record in RUN/gate. Exit status 1: it may
    not. 2: the policy cannot be read, or the report says nothing about the candidate as it is now.
    """

    candidate: str
    """System of the report that may be released: policy, sft or NAME:policy; or a run folder, or RUN:policy."""
    baseline: str = SFT.role
    """System that it must beat, named in the same way."""
    policy: str | None = None
    """YAML file with the rules; the packaged one (configs/gate.yaml) unless given."""
    report: str | None = None
    """Report to judge by; RUN/report.json of the run that the candidate names unless given."""
    signed_off_by: str | None = None
    """Who answers for this decision, in the record; the login name unless given."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        empty_fields = [name for name in ("candidate", "baseline") if not getattr(self, name).strip()]
        is_same = self.candidate == self.baseline and not empty_fields
        return [
            *(f"{name} is empty; name a system of the report, for example policy" for name in empty_fields),
            *([f"candidate and baseline are both {self.candidate!r}: name two systems"] if is_same else []),
        ]


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Make a pointer lead to an export folder, if a gate let its policy pass. `rollback` goes back."""

    folder: str
    """Export folder that is to be in use."""
    to: str
    """The pointer: a symbolic link, made if it is not there. Its history is kept beside it."""
    gate: str | None = None
    """Record of a gate that this very policy passed: a file of RUN/gate, or RUN for its newest one."""
    without_gate: str | None = None
    """Why it is promoted without such a record; the reason stays in the history."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        is_reason_empty = self.without_gate is not None and not self.without_gate.strip()
        has_both = self.gate is not None and self.without_gate is not None
        has_neither = self.gate is None and self.without_gate is None
        return [
            *([f"{name} is empty" for name in ("folder", "to") if not getattr(self, name).strip()]),
            *(["without_gate is empty: say why in a few words"] if is_reason_empty else []),
            *(["gate and without_gate are both given: give one of them"] if has_both else []),
            *(
                ["no gate: give --gate RECORD (`lora-rlhf gate` writes one), or --without_gate REASON"]
                if has_neither
                else []
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class RollbackConfig:
    """Make a pointer lead to the export folder that it led to before the last promotion."""

    to: str
    """The pointer."""
    reason: str | None = None
    """Why, for the history."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return [] if self.to.strip() else ["to is empty"]


@dataclass(frozen=True, kw_only=True)
class PackageConfig:
    """What somebody else needs to repeat and judge a run, in one file; or whether such a file is as it was."""

    folder: str | None = None
    """Run folder to pack."""
    to: str | None = None
    """FILE.zip or folder to write."""
    verify: str | None = None
    """Package (a zip or a folder) whose files are compared with its MANIFEST.json, instead of packing one."""
    report: str | None = None
    """Report to pack; RUN/report.json unless given."""
    guidelines: str | None = None
    """Markdown file with the guidelines that labelers followed."""
    guidelines_version: str | None = None
    """Which version of the guidelines that was."""
    with_texts: bool = False
    """Pack the prompts of the split lists as text too, not only their hashes."""
    with_adapters: bool = False
    """Pack the adapters' weights too."""
    overwrite: bool = False
    """Replace a package that is there already."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        packing_fields = [name for name in ("folder", "to") if getattr(self, name)]
        messages = []
        if self.verify is not None and packing_fields:
            messages = [f"verify compares a package that is there: leave out {' and '.join(packing_fields)}"]
        elif self.verify is None and len(packing_fields) < 2:
            messages = ["name a run and where to: lora-rlhf package RUN --to FILE.zip"]
        if self.guidelines_version is not None and self.guidelines is None:
            messages.append("guidelines_version is given without guidelines")
        return messages

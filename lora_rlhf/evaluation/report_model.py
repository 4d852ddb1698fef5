"""The evaluation report, format 2: the fields of report.json in their order, and how to read it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_rlhf.evaluation.figures import CATALOGUE, Figure, Interval, Paired, make_interval
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.shown_text import for_markdown
from lora_rlhf.system.typed_json import from_json, optional, to_json
from lora_rlhf.system.untrusted import read_object

if TYPE_CHECKING:  # it imports torch, which reading a report does not need
    from lora_rlhf.stats import win_rates

FORMAT = 2

Figures = dict[str, dict[str, Figure]]  # {figure of the catalogue: {system: its value}}
Differences = dict[str, dict[str, Paired]]  # {figure of the catalogue: {system: its difference from the baseline}}


@dataclass(frozen=True, kw_only=True)
class SystemRecord:
    """An evaluated system: the stage of a run. The base has neither stage nor id."""

    run: str
    stage: str | None
    id: str | None
    adapter_sha256: str | None = optional()


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """The base model of all systems."""

    name: str
    source_hash: str
    quantization: str


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """A set of prompts: its path, the hash of the file (None on the hub) and of the content, and numbers of prompts."""

    path: str | None = None
    sha256: str | None = None
    content_hash: str
    used: int = 0
    refused: int = 0
    truncated: int = 0


@dataclass(frozen=True, kw_only=True)
class StageData:
    """How many of the prompts are in the data of a stage. `compared`: all, part or none of these data."""

    stage: str
    path: str | None = None
    seen: int = 0
    compared: str


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """How many of the prompts are in the data of any stage; None if a report does not say."""

    prompts: int | None = None
    seen: int | None = None
    stages: list[StageData] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FrozenSet:
    """A frozen set beside the prompts. `chance`: the accuracy of guessing, for multiple choice."""

    name: str | None = optional()
    path: str | None = optional()
    content_hash: str
    n: int = 0
    chance: float | None = optional()
    training_data: TrainingData | None = optional()


@dataclass(kw_only=True)
class Sets:
    """All sets that the systems answered."""

    prompts: PromptSet
    selection: PromptSet | None = optional()
    probes: FrozenSet | None = optional()
    choices: FrozenSet | None = optional()
    text: FrozenSet | None = optional()
    tools: FrozenSet | None = optional()
    grounded: FrozenSet | None = optional()
    refusals: FrozenSet | None = optional()


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval, over n cases; None if it cannot be computed."""

    rate: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0

    @property
    def interval(self) -> Interval | None:
        """(rate, low, high); None if one of them is None."""
        return make_interval(self.rate, self.low, self.high)


@dataclass(frozen=True)
class LengthControlled(Rate):
    """The win rate at equal length. `length_effect`: the log odds of a win that a longer answer adds."""

    length_effect: float | None = None


@dataclass(frozen=True, kw_only=True)
class WinRate(Rate):
    """How often the first of two systems wins over `n` prompts, ties counted half: see `stats.win_rates.WinRate`."""

    wins: int
    ties: int
    losses: int
    p: float | None
    failed: int = 0
    length_controlled: LengthControlled | None = optional()

    @classmethod
    def from_statistics(
        cls, rate: "win_rates.WinRate", controlled: "win_rates.LengthControlled | None" = None
    ) -> "WinRate":
        """A win rate from the results of `stats.win_rates`, with the one at equal length if it is given."""
        at_equal_length = None if controlled is None else LengthControlled(*controlled)
        return cls(**rate._asdict(), length_controlled=at_equal_length)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The figures over the prompts of one category or language. `too_few`: the number that intervals would need."""

    n: int
    figures: Figures
    paired: Differences = field(default_factory=dict)
    win_rates: dict[str, WinRate]
    too_few: int | None = optional()


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Whether failures are more frequent in some groups: see `groups.find_cluster`."""

    p: float
    worst: str
    rate: float
    n: int
    overall: float
    groups: int


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """One metric of one task of EleutherAI's harness, by system."""

    figures: dict[str, Figure]
    paired: dict[str, Paired]


@dataclass(frozen=True, kw_only=True)
class Ends:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Pairs of similar confidence: the mean confidence and the accuracy on them; None without pairs."""

    low: float
    high: float
    confidence: float | None
    accuracy: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """How well the reward model orders answers: the fields of `stats.ordering.ordering_report` that are read."""

    held_out_prompts: int | None = None
    accuracy: Rate | None = None
    ece: float | None = None
    ece_interval: Ends | None = None
    reliability: list[ReliabilityBin] = field(default_factory=list)
    label_agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure after minus before, with its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RewardRecord:
    """The reward model before, on held-out rankings (all results of its stage), and after, on the systems' answers."""

    before: dict[str, Any]
    after: dict[str, Any] | None = optional()
    change: dict[str, Change] | None = optional()

    def __post_init__(self) -> None:
        _ = self.ordering_before, self.ordering_after  # ValueError for what cannot be read

    @property
    def ordering_before(self) -> Ordering:
        return from_json(Ordering, self.before, "reward.before")

    @property
    def ordering_after(self) -> Ordering:
        return from_json(Ordering, self.after or {}, "reward.after")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A sign of reward hacking, raised if the whole interval of its figure is above the threshold."""

    raised: bool | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    threshold: float | None = None
    why: str


@dataclass(frozen=True, kw_only=True)
class AuditedAnswer:
    """An answer to read. `rank_difference`: above 0 if the reward model ranks it higher than the judge does."""

    prompt: str
    response: str
    reward: float | None = optional()
    quality: float | None = optional()
    baseline: str | None = optional()
    rank_difference: float | None = optional()


@dataclass(frozen=True, kw_only=True)
class KlQuantile:
    """Means over answers of similar distance from the reference."""

    sqrt_kl: float
    reward: float
    quality: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The reward-hacking audit: see `probes.audit.audit`."""

    flags: dict[str, Flag] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    highest_reward: list[AuditedAnswer] = field(default_factory=list)
    parting: list[AuditedAnswer] = field(default_factory=list)
    by_kl: list[KlQuantile] = field(default_factory=list)
    length_matched: WinRate | None = None


@dataclass(frozen=True, kw_only=True)
class GroundedAnswer:
    """An answer that says what its sources do not. items: found by the rules. judge: supported or unsupported."""

    prompt: str
    response: str
    items: list[str] = field(default_factory=list)
    judge: str | None = optional()


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """The candidate's answers that say what their sources do not.

    agreement, alpha: of the rules and the judge, over the answers of all systems; alpha is Krippendorff's.
    """

    agreement: Rate | None = optional()
    alpha: float | None = optional()
    answers: list[GroundedAnswer] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RefusalPoint:
    """Shares of prompts if all from a score upwards were declined. `threshold`: that score; None declines nothing."""

    threshold: float | None = None
    over: float
    under: float


@dataclass(frozen=True, kw_only=True)
class RefusalCurve:
    """The trade-off of over- and under-refusal: see `refusals.trade_off`."""

    auc: float
    points: list[RefusalPoint]


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """The curve of each system by its log-probability of the refusal `text`."""

    text: str
    curves: dict[str, RefusalCurve]


@dataclass(frozen=True, kw_only=True)
class LengthHistogram:
    """How many answers of each system have which length, in tokens."""

    edges: list[int]
    counts: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its answer, and a sentence with the figure that decides it."""

    question: str
    answer: Literal["yes", "no", "unknown"]
    figure: str


@dataclass(frozen=True, kw_only=True)
class MovedFigure:
    """A figure whose interval and the earlier one do not touch. `verdict`: better, worse, higher or lower."""

    figure: str
    system: str
    before: Figure
    after: Figure
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of this report with an earlier one."""

    with_: str
    compared: int
    moved: list[MovedFigure]


@dataclass(frozen=True)
class _JudgeFields:
    """The fields of a judge that are read."""

    name: str
    failures: int = 0


@dataclass(kw_only=True)
class Report:
    """An evaluation. The sections fill it in, one after the other; a field that is None or empty was left out.

    config: the evaluation's settings. judge: its name, the number of comparisons without a verdict (`failures`), and
    its other facts. Raises ValueError for figures that the catalogue lacks, and for systems that `systems` lacks.
    """

    format: int = FORMAT
    created: str
    config: dict[str, Any]
    base: BaseRecord
    systems: dict[str, SystemRecord]
    candidate: str
    baseline: str
    judge: dict[str, Any]
    sets: Sets
    training_data: TrainingData
    figures: Figures
    paired: Differences
    win_rates: dict[str, WinRate]
    win_rates_best_temperature: dict[str, WinRate] = optional(dict)
    best_temperature: dict[str, float] = optional(dict)
    temperature_sweep: dict[str, dict[str, float]] = optional(dict)
    categories: dict[str, Group] = optional(dict)
    languages: dict[str, Group] = optional(dict)
    clusters: dict[str, Cluster] = optional(dict)
    tasks: dict[str, TaskFigures] = optional(dict)
    reward: RewardRecord | None = optional()
    audit: Audit | None = optional()
    grounding: Grounding | None = optional()
    domains: dict[str, Group] = optional(dict)
    refusals: Refusals | None = optional()
    lengths: LengthHistogram | None = optional()
    left_out: dict[str, str]
    questions: list[Question]
    verdict: str
    comparison: Comparison | None = optional()
    seconds: dict[str, float]
    peak_rss_gib: float
    peak_gpu_gib: float
    base_unchanged: bool | None = optional()

    def __post_init__(self) -> None:
        from_json(_JudgeFields, self.judge, "judge")
        self.require_known_names()

    def require_known_names(self) -> None:
        """Raises ValueError for a name that is no system, or no figure of the catalogue."""
        for field_name, system in (("candidate", self.candidate), ("baseline", self.baseline)):
            if system not in self.systems:
                raise ValueError(
                    f"{field_name!r} is {system!r}, which is none of the systems: {', '.join(self.systems)}"
                )
        for table_name, table in self._figure_tables():
            for figure, value_by_system in table.items():
                if figure not in CATALOGUE:
                    raise ValueError(f"{table_name}.{figure}: there is no figure of that name")
                if unknown_systems := [system for system in value_by_system if system not in self.systems]:
                    raise ValueError(f"{table_name}.{figure} has {unknown_systems[0]!r}, which is none of the systems")

    def _figure_tables(self) -> Iterator[tuple[str, Mapping[str, Mapping[str, Any]]]]:
        """Yields (place in the report, table) of every table of figures by system."""
        yield from (("figures", self.figures), ("paired", self.paired))
        all_groups = {"categories": self.categories, "languages": self.languages, "domains": self.domains}
        for key, groups in all_groups.items():
            for name, group in groups.items():
                yield from ((f"{key}.{name}.figures", group.figures), (f"{key}.{name}.paired", group.paired))

    @property
    def pair(self) -> str:
        """The name of the comparison of candidate and baseline."""
        return f"{self.candidate}_vs_{self.baseline}"

    @property
    def judge_name(self) -> str:
        """gold, reward, human, local or endpoint."""
        return from_json(_JudgeFields, self.judge).name

    @property
    def judge_failures(self) -> int:
        """How many comparisons have no usable answer of the judge."""
        return from_json(_JudgeFields, self.judge).failures


def read_report(path: str | Path) -> Report:
    """Reads a report.json, or the one in a folder. Raises UserError with the wrong field if it has another format."""
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    way_out = "give a report.json that `lora-rlhf evaluate` wrote"
    values = read_object(file, way_out)
    if values.get("format") != FORMAT:
        is_older = "format" not in values and "win_rate" in values
        description = (
            "an older version's report: evaluate that run again" if is_older else f"no report of format {FORMAT}"
        )
        raise UserError(f"{file} cannot be used: it is {description}, or {way_out}")
    try:
        return from_json(Report, values)
    except ValueError as error:
        raise UserError(f"{file} cannot be used: {error}; {way_out}") from error


def report_for_markdown(report: Report) -> Report:
    """The report with all its texts, names of systems and groups included, as Markdown shows them."""
    return from_json(Report, _texts_for_markdown(to_json(report)))


def _texts_for_markdown(value: Any) -> Any:
    if isinstance(value, dict):
        return {for_markdown(name): _texts_for_markdown(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_texts_for_markdown(item) for item in value]
    return for_markdown(value) if isinstance(value, str) else value

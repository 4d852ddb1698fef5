"""x."""

from dataclasses import dataclass
from typing import Literal

from lora_rlhf.configs.catalogue import BY_NAME, StageName
from lora_rlhf.configs.common import TemplateConfig
from lora_rlhf.configs.values import at_least, share


@dataclass(frozen=True, kw_only=True)
class CheckConfig(TemplateConfig):
    """What is in data files, before anything is trained on them."""

    files: tuple[str, ...]
    """Files, folders, globs or hub datasets ("owner/name:split"); several kinds at once are fine."""
    held_out: tuple[str, ...] = ()
    """Data that no stage may train on: prompts that it shares with FILE... are reported as leakage."""
    kind: Literal["auto", "demonstrations", "rankings", "steps", "prompts", "texts"] = "auto"
    """What the rows are read as; auto: what their columns say."""
    format: str | None = None
    """How the rows are written, by its name in docs/data.md; found from the rows unless given."""
    columns: str | None = None
    """Names for columns that no format knows: prompt=question,response=reply; ignore=label leaves one out."""
    model: str | None = None
    """Model whose tokenizer counts tokens: a hub name, a local folder, or tinyworld; none: lengths in characters."""
    trust_remote_code: bool = False
    """Run the tokenizer's own code from the hub. Only for authors that you trust."""
    max_prompt_tokens: int = 256
    """Limit that prompts are compared with."""
    max_response_tokens: int = 256
    """Limit that responses are compared with."""
    validation_fraction: float | None = None
    """Share of prompts that a stage keeps aside, by hash of the prompt; each stage's own default unless given."""
    token_rows: int = 5000
    """Rows of each file whose tokens are counted, drawn evenly; with fewer than all, figures are estimates."""
    json: bool = False
    """Print the report as JSON."""
    plot: str | None = None
    """PNG to write: lengths against the limits, responses per prompt, rows used and refused."""
    refused: str | None = None
    """JSONL file to write: place and reason of every refused row."""
    strict: bool = False
    """Exit with an error when any row is refused."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        lacks_model = self.model is None and self.has_template_choice
        is_png = self.plot is None or self.plot.lower().endswith(".png")
        return [
            *([] if self.files else ["no file given: lora-rlhf data check FILE..."]),
            *at_least(self, 1, "max_prompt_tokens", "max_response_tokens", "token_rows"),
            *([] if self.validation_fraction is None else share(self, "validation_fraction")),
            *self.template_faults(),
            *(["a chat template is for --model, which is not given"] if lacks_model else []),
            *([] if is_png else [f"plot is {self.plot!r}: the picture is a PNG, so its name must end in .png"]),
        ]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Rankings from any format into this project's own, or into a labelling tool's."""

    file: str
    """File, folder, glob or hub dataset ("owner/name:split") of rankings, in any format of docs/data.md."""
    to: str
    """File to write."""
    form: Literal["ranking", "argilla", "label-studio"] = "ranking"
    """ranking: JSONL that the stages and the app read; the others: what these tools export (see docs/data.md)."""
    format: str | None = None
    """How the rows are written, by its name in docs/data.md; found from the rows unless given."""
    columns: str | None = None
    """Names for columns that no format knows: prompt=question,response=reply; ignore=label leaves one out."""
    overwrite: bool = False
    """Replace a file that is already there."""
    strict: bool = False
    """Exit with an error, and write nothing, when any row is refused."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        names = [name for name in ("file", "to") if not getattr(self, name)]
        is_zipped_list = self.form == "label-studio" and self.to.endswith(".gz")
        return [
            *(f"{name} is empty; name a file" for name in names),
            *(["Label Studio imports no gzipped file: give --to a name without .gz"] if is_zipped_list else []),
        ]


@dataclass(frozen=True, kw_only=True)
class InspectConfig(TemplateConfig):
    """The exact tokens that a trainer sees, and what each of them counts for."""

    file: str
    """File, folder or hub dataset ("owner/name:split")."""
    stage: StageName
    """Whose batch to show."""
    model: str = "tinyworld"
    """Model whose tokenizer and chat template are used: a hub name, a local folder, or tinyworld."""
    run: str | None = None
    """Run folder: its base instead of --model; for ppo, responses are sampled from its newest stage."""
    trust_remote_code: bool = False
    """Run the tokenizer's own code from the hub. Only for authors that you trust."""
    rows: int = 2
    """Rows of the file in the batch."""
    start: int = 0
    """How many usable rows to skip first."""
    format: str | None = None
    """How the rows are written, by its name in docs/data.md; found from the rows unless given."""
    columns: str | None = None
    """Names for columns that no format knows: prompt=question,response=reply; ignore=label leaves one out."""
    max_prompt_tokens: int = 256
    """Longer prompts lose their beginning, at a message boundary where possible."""
    max_response_tokens: int = 256
    """Limit of responses."""
    long_responses: Literal["refuse", "cut"] = "refuse"
    """What happens to a response over the limit."""
    every_turn: bool = False
    """For sft: every answer of a conversation, not its last alone."""
    step_end: str = "\n"
    """For reward, of rows whose steps are labelled: the text that ends a step."""
    train_empty_thoughts: bool = False
    """For sft: also learn the empty thought that some templates write before an answer."""
    packing: bool = False
    """For sft: lay the rows end to end instead of padding them."""
    seed: int = 0
    """Seed of sampled responses."""
    html: str | None = None
    """HTML page to write as well."""
    color: Literal["auto", "always", "never"] = "auto"
    """Colour in the terminal; auto: where it is one and NO_COLOR is not set."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        is_of_run = self.run is not None and self.has_template_choice
        return [
            *([] if self.file else ["no file given: lora-rlhf inspect FILE --stage sft"]),
            *at_least(self, 1, "rows", "max_prompt_tokens", "max_response_tokens"),
            *at_least(self, 0, "start"),
            *self.template_faults(),
            *(["the run has its chat template: leave --run out to try another"] if is_of_run else []),
            *(
                f"{name} is not for {self.stage}, which has no such setting"
                for name in ("every_turn", "train_empty_thoughts", "packing")
                if getattr(self, name) and not BY_NAME[self.stage].has_setting(name)
            ),
        ]

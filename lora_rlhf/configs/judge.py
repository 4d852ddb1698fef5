"""The settings of a judge: a part of the configuration of every command with a judge."""

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from lora_rlhf.configs.marks import NEEDS_TRUST, SAFE_TO_CHANGE_ON_RESUME, input_file, subject
from lora_rlhf.configs.values import at_least, positive

REQUIRED_SETTINGS = {"human": ("judge_file",), "local": ("judge_model",), "endpoint": ("judge_model", "judge_url")}


@dataclass(frozen=True, kw_only=True)
class JudgeModelConfig:
    """A model that judges: on this machine, or behind an API."""

    judge_model: str | None = field(default=None, metadata=subject("judge"))
    """For local: folder or hub name of a chat model; for endpoint: the model's name there."""
    judge_url: str | None = field(default=None, metadata=NEEDS_TRUST)
    """For endpoint: address of the API up to and including /v1."""
    judge_key_variable: str = field(default="OPENAI_API_KEY", metadata=SAFE_TO_CHANGE_ON_RESUME | NEEDS_TRUST)
    """For endpoint: environment variable that holds the key; no key is sent where it is not set."""
    judge_price_in: float | None = field(default=None, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For endpoint: price of a million prompt tokens."""
    judge_price_out: float | None = field(default=None, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For endpoint: price of a million tokens that the judge writes."""
    judge_budget: float | None = field(default=None, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For endpoint: the most that all calls may cost, at these prices; then the command ends. Verdicts are kept."""
    judge_concurrency: int = field(default=8, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For endpoint: calls at a time."""
    judge_retries: int = field(default=5, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For endpoint: further tries of a call that failed or whose answer cannot be read."""
    judge_timeout: float = field(default=120.0, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For endpoint: seconds that one call may take."""
    judge_max_tokens: int = 512
    """For local and endpoint: most tokens that the judge may write on one pair; a judge that reasons needs more."""
    judge_batch_size: int = field(default=8, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For local: questions answered at a time."""
    judge_instructions: str | None = None
    """For local and endpoint: text file with the criteria to judge by, in place of the built-in ones."""
    judge_cache: str | None = field(default=None, metadata=SAFE_TO_CHANGE_ON_RESUME | NEEDS_TRUST)
    """For local and endpoint: file that keeps verdicts, so that none is asked for twice; none: judgements.jsonl beside
    the run's folder."""

    def model_faults(self, flag: str, kind: str | None) -> list[str]:
        """The errors in these values, as texts. kind: the judge that the flag names."""
        missing = [name for name in REQUIRED_SETTINGS.get(kind or "", ()) if not getattr(self, name)]
        invalid_prices = [name for name in PRICES if _is_invalid_price(self, name)]
        return [
            *(f"--{flag} {kind} needs --{name}" for name in missing),
            *self._url_faults(),
            *at_least(self, 1, "judge_concurrency", "judge_max_tokens", "judge_batch_size"),
            *at_least(self, 0, "judge_retries"),
            *positive(self, "judge_timeout", "judge_budget"),
            *(f"{name} is {getattr(self, name)}, must be at least 0" for name in invalid_prices),
            *(["give both judge_price_in and judge_price_out, or neither"] if self._has_one_price() else []),
            *(
                ["judge_budget needs judge_price_in and judge_price_out"]
                if self.judge_budget is not None and self.judge_price_in is None
                else []
            ),
        ]

    def _has_one_price(self) -> bool:
        return (self.judge_price_in is None) != (self.judge_price_out is None)

    def _url_faults(self) -> list[str]:
        """The errors in judge_url, as texts."""
        if not self.judge_url:
            return []
        try:
            parts = urlsplit(self.judge_url)
            host = parts.hostname
            _ = parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if (
            parts.username or parts.password or parts.query
        ):  # the message must not repeat the address: it contains a secret
            return [
                "judge_url holds a user, password or query: give the key in the environment, see judge_key_variable"
            ]
        if parts.scheme not in ("http", "https") or not host:
            return [f"judge_url is {self.judge_url!r}, expected an address such as http://127.0.0.1:8000/v1"]
        return []


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(JudgeModelConfig):
    """Who decides which of two responses is better."""

    judge: Literal["auto", "gold", "reward", "human", "local", "endpoint"] = field(
        default="auto", metadata=subject("judge")
    )
    """Who compares: the tiny world's gold score, the run's reward model, people's rankings, a local chat model, or one
    behind an OpenAI chat API; auto: gold where it applies, else reward."""
    judge_file: str | None = field(default=None, metadata=input_file())
    """For human: file of rankings that people made, as the reward stage reads them."""

    def judge_faults(self) -> list[str]:
        """The errors in these values, as texts."""
        return self.model_faults("judge", self.judge)


PRICES = ("judge_price_in", "judge_price_out")


def _is_invalid_price(config: JudgeModelConfig, name: str) -> bool:
    """Whether a price is given and below 0 or infinite."""
    value = getattr(config, name)
    return value is not None and not 0 <= value < float("inf")

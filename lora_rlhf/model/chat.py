"""A judge's own chat model, beside the shared base, for greedy answers. In memory as it is stored, or in 16 bit."""

from collections.abc import Callable, Sequence

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from lora_rlhf.model.base import hide_progress_bars, load_tokenizer
from lora_rlhf.model.devices import resolve_device
from lora_rlhf.model.files import find_config_file, find_files, find_weight_files, hash_files, silence_retries
from lora_rlhf.model.memory import free_memory
from lora_rlhf.system.errors import UserError, first_line


def hash_model(name: str) -> str:
    """sha256 over the config and weights of a model, without loading it. `name` and errors are `load_base`'s."""
    files = find_files(name)
    with silence_retries():
        try:
            return hash_files([find_config_file(files), *find_weight_files(files, name)])
        except OSError as error:
            raise UserError(
                f"model {name!r}: neither an existing folder nor a model that could be fetched ({first_line(error)})"
            ) from error


class ChatModel:
    """A judge's own model with its tokenizer, beside the shared base; in memory until `free`."""

    def __init__(self, name: str, device: str, trust_remote_code: bool = False) -> None:
        """name: a folder or a hub name. UserError for a model that cannot be loaded or lacks weights.

        Quantized weights stay as they are stored. On a GPU, float32 weights become 16 bit.
        """
        self._device = resolve_device(device)
        self.tokenizer = load_tokenizer(name, trust_remote_code)
        files = find_files(name)
        try:
            with silence_retries(), hide_progress_bars():
                config = AutoConfig.from_pretrained(
                    files.name, local_files_only=files.only_local, trust_remote_code=trust_remote_code
                )
                is_float32 = self._device.type == "cuda" and config.dtype in (None, torch.float32)
                self._model, report = AutoModelForCausalLM.from_pretrained(
                    files.name,
                    config=config,
                    dtype=_half_precision(self._device) if is_float32 else "auto",
                    device_map={"": self._device},
                    use_safetensors=True,
                    output_loading_info=True,
                    trust_remote_code=trust_remote_code,
                    **files.for_models,
                )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            raise UserError(f"model {name!r} does not load ({first_line(error)})") from error
        if report["missing_keys"]:
            raise UserError(f"model {name!r}: its files lack {len(report['missing_keys'])} tensors that it needs")
        self._model.requires_grad_(False).eval()

    @property
    def max_context_tokens(self) -> int | None:
        """The most tokens of prompt and answer together, if the model's config has this number."""
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return limit if isinstance(limit, int) else None

    @torch.no_grad()
    def generate_greedy(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        stop_ids: list[int],
        batch_size: int,
        on_answer: Callable[[int, list[int]], None],
    ) -> None:
        """Generates the most probable answer to each prompt.

        `on_answer` is called with the index of each prompt and its answer, the stop token included. Prompts of similar
        length run together, the longest first.
        """
        config_stop_ids = self._model.generation_config.eos_token_id
        all_stop_ids = {*stop_ids, *([config_stop_ids] if isinstance(config_stop_ids, int) else config_stop_ids or ())}
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(all_stop_ids), pad_token_id=stop_ids[0]
        )
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            prompt_width = len(prompts[rows[0]])
            ids = torch.tensor([[stop_ids[0]] * (prompt_width - len(prompts[i])) + prompts[i] for i in rows])
            mask = torch.tensor([[0] * (prompt_width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
            sequences = self._model.generate(
                ids.to(self._device), attention_mask=mask.to(self._device), generation_config=settings
            )
            for i, tokens in zip(rows, sequences[:, prompt_width:].tolist(), strict=True):
                length = next(
                    (count for count, token in enumerate(tokens, start=1) if token in all_stop_ids), len(tokens)
                )
                on_answer(i, tokens[:length])

    def free(self) -> None:
        """Frees the model's memory. No other method may be called afterwards."""
        del self._model
        free_memory()


def _half_precision(device: torch.device) -> torch.dtype:
    """bfloat16 if the GPU supports it, else float16."""
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

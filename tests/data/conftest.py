"""A small byte-level BPE tokenizer, trained here, in the variants that real tokenizers come in."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The cat sleeps on the warm mat while the dog runs across the green field.",
    "User: What does a horse eat?\n\nAssistant: A horse eats hay, grass and apples.",
    "You are a helpful farmer. Answer in one short sentence, please.",
    "Count from one to ten: one two three four five six seven eight nine ten.",
    "Where do penguins live? Penguins live in the cold south, near the sea.",
]
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama-2's habits: BOS written by the template, no generation prompt, spaces around the answer
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# a generation prompt that ends in a space, which byte-level tokenizers join to the next word
MELTING = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + (eos_token if m['role'] == 'assistant' else '\n') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Qwen3's habit: the last answer is preceded by an empty thought that the generation prompt does not hold
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Phi-3's habit: EOS behind a conversation that does not wait for an answer
CLOSING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)

VARIANTS: dict[str, dict[str, str | None]] = {
    "plain": {},
    "chatml": {"eos_token": "<|im_end|>", "chat_template": CHATML},
    "chatml_other_eos": {"chat_template": CHATML},
    "inst_bos": {"bos_token": "<s>", "adds_bos": "yes", "chat_template": INST},
    "plain_bos": {"bos_token": "<s>", "adds_bos": "yes"},
    "bos_unused": {"bos_token": "<s>"},
    "pad_is_eos": {"pad_token": "</s>"},
    "no_pad": {"pad_token": None},
    "no_end": {"chat_template": NO_END},
    "melting": {"chat_template": MELTING, "pad_token": "<s>"},  # and pad id 0
    "thinking": {"eos_token": "<|im_end|>", "chat_template": THINKING},
    "closing": {"chat_template": CLOSING},
    "no_eos": {"eos_token": None},
}
WORKING = [name for name in VARIANTS if name != "no_eos"]


@pytest.fixture(scope="session")
def trained() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return backend.to_str()


@pytest.fixture(scope="session")
def make_tokenizer(trained: str) -> Callable[[str], PreTrainedTokenizerFast]:
    """make_tokenizer(variant) -> a new tokenizer, which the caller may change."""

    def make(variant: str) -> PreTrainedTokenizerFast:
        options = {"eos_token": "</s>", "pad_token": "<pad>", **VARIANTS[variant]}
        backend = Tokenizer.from_str(trained)
        if options.pop("adds_bos", None):
            bos = ("<s>", backend.token_to_id("<s>"))
            backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
        given = {name: value for name, value in options.items() if value is not None}
        return PreTrainedTokenizerFast(tokenizer_object=backend, **given)

    return make


@pytest.fixture
def tokenizer(make_tokenizer: Callable[[str], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer("plain")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", WORKING)

"""Ollama's Modelfile: the chat template in Go's template language, checked on sample conversations, and stop tokens.

A template is taken apart by what it writes between two messages. Most write something that depends only on the roles
on either side, and the Go template says exactly that; others are found out by the samples, and refused.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from lora_rlhf.data.template import ensure_template, leading_bos, stop_ids
from lora_rlhf.system.disk import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lora_rlhf")

Messages = Sequence[tuple[str, str]]  # role, content
# Ollama's own defaults cut the distribution off; these sample from all of it, as training does.
PARAMETERS = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1}
WORDS = ("Alpha7", "Beta7", "Gamma7", "Delta7", "Omega7")
SAMPLES: tuple[Messages, ...] = (
    (("user", "Hi"),),
    (("system", "Be brief."), ("user", 'Two\nlines, "quoted" and {{ braced }}?')),
    (("user", "One"), ("assistant", "Two"), ("user", "Three")),
    (("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D"), ("user", "E")),
)


class Untranslatable(Exception):
    """A template that Go's could not follow; the message says where."""


@dataclass(frozen=True)
class Between:
    """What a template writes between messages: {(role before or "", role after or ""): text}; "" is either end."""

    texts: dict[tuple[str, str], str]
    takes_system: bool

    def render(self, messages: Messages) -> str:
        """The prompt that Ollama makes of a conversation which the user speaks last in."""
        before, written = "", []
        for role, content in messages:
            written += [self.texts[before, role], content]
            before = role
        return "".join([*written, self.texts[before, ""]])

    def go(self) -> str:
        """The same in Go's text/template, with its texts as quoted constants: Ollama then keeps each space of them."""
        text = {pair: _action(between) for pair, between in self.texts.items()}
        after_system = f'{{{{ else if eq $before "system" }}}}{text["system", "user"]}' if self.takes_system else ""
        branches = [
            f'{{{{ if eq .Role "user" }}}}{{{{ if eq $before "none" }}}}{text["", "user"]}{after_system}'
            f"{{{{ else }}}}{text['assistant', 'user']}{{{{ end }}}}{{{{ .Content }}}}",
            f'{{{{ else if eq .Role "assistant" }}}}{text["user", "assistant"]}{{{{ .Content }}}}',
        ]
        if self.takes_system:
            branches.append(f'{{{{ else if eq .Role "system" }}}}{text["", "system"]}{{{{ .Content }}}}')
        body = "".join(branches)
        remember = "{{ $before = .Role }}"
        if not self.takes_system:
            remember = f'{{{{ if ne .Role "system" }}}}{remember}{{{{ end }}}}'
        return (
            f'{{{{ $before := "none" }}}}{{{{ range .Messages }}}}{body}{{{{ end }}}}{remember}'
            f'{{{{ end }}}}{{{{ if ne $before "assistant" }}}}{text["user", ""]}{{{{ end }}}}'
        )


def take_apart(tokenizer: "PreTrainedTokenizerBase") -> Between:
    """What the tokenizer's template writes between messages, without the BOS that Ollama adds by itself.

    Untranslatable where a template does not repeat itself so, by the sample conversations.
    """
    ensure_template(tokenizer)
    user, answer = "user", "assistant"
    texts = _between(tokenizer, (user, answer, user, answer, user))
    takes_system = True
    try:
        texts |= _between(tokenizer, ("system", user, answer, user))
    except TemplateError:
        takes_system = False
    between = Between(texts, takes_system)
    for sample in SAMPLES:
        if sample[0][0] == "system" and not takes_system:
            continue
        expected, rendered = _render(tokenizer, sample), between.render(sample)
        if rendered != expected:
            raise Untranslatable(f"{sample!r} would be {rendered!r}, and the template writes {expected!r}")
    return between


def _between(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...]) -> dict[tuple[str, str], str]:
    words = WORDS[: len(roles)]
    rest = _render(tokenizer, list(zip(roles, words, strict=True)))
    texts: dict[tuple[str, str], str] = {}
    for before, role, word in zip(("", *roles), (*roles, ""), (*words, None), strict=False):
        if word is None:
            text, rest = rest, ""
        else:
            text, content, rest = rest.partition(word)
            if not content:
                raise Untranslatable(f"the template leaves a message of the {role} out")
        if texts.setdefault((before, role), text) != text:
            raise Untranslatable(
                f"between {before} and {role} the template writes {texts[before, role]!r} and {text!r}"
            )
    return texts


def _render(tokenizer: "PreTrainedTokenizerBase", messages: Messages) -> str:
    conversation = [{"role": role, "content": content} for role, content in messages]
    text = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
    return text.removeprefix(tokenizer.bos_token) if leading_bos(tokenizer) else text


def _action(text: str) -> str:
    """A Go action that writes this text; nothing for no text."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    quoted = "".join(escapes.get(char) or (char if " " <= char <= "~" else f"\\U{ord(char):08x}") for char in text)
    return f'{{{{ "{quoted}" }}}}' if text else ""


def write_modelfile(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", weights: str, context: int | None
) -> str | None:
    """Writes Modelfile, for `ollama create`. `weights`: what FROM names, "." or "./model.gguf".

    Returns, and logs, why there is none for a template that cannot be translated: a wrong one would go unnoticed.
    """
    try:
        between = take_apart(tokenizer)
    except (Untranslatable, TemplateError) as error:
        why = f"no Modelfile: Ollama's template language cannot follow this chat template ({error})"
        log.warning(why)
        return why
    stops = [tokenizer.convert_ids_to_tokens(id) for id in stop_ids(tokenizer)]
    limits = {} if context is None else {"num_ctx": context}
    lines = [
        f"FROM {weights}",
        f'TEMPLATE """{between.go()}"""',
        *(f'PARAMETER stop """{stop}"""' for stop in stops),
        *(f"PARAMETER {name} {value}" for name, value in {**PARAMETERS, **limits}.items()),
    ]
    if not between.takes_system:
        lines.insert(1, "# The chat template takes no system message: one is left out.")
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
    return None

"""The loop of `lora-rlhf chat`: reads a line and streams the answer, in a terminal or in a pipe."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from lora_rlhf.chat.config import ChatConfig
from lora_rlhf.chat.conversation import Conversation, Done, harmless
from lora_rlhf.chat.loaded_run import LoadedRun, load_run
from lora_rlhf.configs.values import check
from lora_rlhf.system.errors import UserError

ASK = "> "


def chat(config: ChatConfig) -> None:
    """Answers questions until the person leaves or the input ends. UserError for a model that cannot be opened.

    Answers go to standard output. Other messages go to standard error if the input is not a terminal.
    """
    check(config)
    run = load_run(
        config.folder,
        None if config.role == "auto" else config.role,
        config.device,
        dequantize=config.dequantize,
        trust_remote_code=config.trust_remote_code,
    )
    longest_answer = min(config.max_response_tokens, run.context // 2)
    is_typed = sys.stdin.isatty()
    if is_typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (lines can then be edited, and earlier ones fetched back)
        print(f"{run.role} of {config.folder}; /help lists commands")
    conversation = Conversation(config.system, config.temperature, config.seed)
    with contextlib.suppress(Done):
        for line in _lines(is_typed):
            _answer(line, conversation, run, longest_answer, is_typed)


def _lines(is_typed: bool) -> Iterator[str]:
    while True:
        try:
            line = input(ASK) if is_typed else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if not is_typed:
                raise
            print("\n/quit ends")
            continue
        if not line and not is_typed:
            return
        if line.strip():
            yield line.strip()


def _answer(line: str, conversation: Conversation, run: LoadedRun, longest_answer: int, is_typed: bool) -> None:
    """Carries out a command, or streams the answer to a question."""
    messages = sys.stdout if is_typed else sys.stderr
    if line.startswith("/") and not line.startswith("//"):
        print(harmless(conversation.command(line)), file=messages)
        return
    question = line[1:] if line.startswith("//") else line
    try:
        prompt, seed = conversation.ask(question)
        ids, is_cut = run.encode(prompt, longest_answer)
    except UserError as error:
        print(harmless(str(error)), file=messages)
        return
    if is_cut:
        print("(the beginning of the conversation no longer fits, and is left out)", file=messages)
    pieces: list[str] = []
    with _interruptible() as interrupt:
        for piece in run.stream(ids, conversation.temperature, seed, longest_answer, lambda: interrupt.requested):
            pieces.append(piece)
            print(harmless(piece), end="", flush=True)
    print(flush=True)
    if interrupt.requested:
        print("(stopped)", file=messages)
    conversation.remember(question, "".join(pieces).strip())


class _Interrupt:
    """A signal handler that notes the first Ctrl-C. The second one ends the program, as usual."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.default_int_handler(signum, frame)
        self.requested = True


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    former_handler = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, former_handler)

"""The loop of `lora-rlhf chat`: reads a line and streams the answer, in a terminal or in a pipe."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from lora_rlhf.chat.config import ChatConfig
from lora_rlhf.chat.conversation import Conversation, ConversationEnd
from lora_rlhf.chat.loaded_run import LoadedRun, load_run
from lora_rlhf.configs.values import check
from lora_rlhf.system.errors import UserError

QUESTION_SIGN = "> "


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
    max_answer_tokens = min(config.max_response_tokens, run.max_context_tokens // 2)
    is_typed = sys.stdin.isatty()
    if is_typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (lines can then be edited, and earlier ones fetched back)
        print(f"{run.role} of {config.folder}; /help lists commands")
    conversation = Conversation(config.system, config.temperature, config.seed)
    with contextlib.suppress(ConversationEnd):
        for line in _read_lines(is_typed):
            _answer_line(line, conversation, run, max_answer_tokens, is_typed)


def _read_lines(is_typed: bool) -> Iterator[str]:
    """The lines that are not empty, without white space around them, until the input ends."""
    while True:
        try:
            line = input(QUESTION_SIGN) if is_typed else sys.stdin.readline()
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


def _answer_line(line: str, conversation: Conversation, run: LoadedRun, max_answer_tokens: int, is_typed: bool) -> None:
    """Runs a command, or streams the answer to a question."""
    message_output = sys.stdout if is_typed else sys.stderr
    if line.startswith("/") and not line.startswith("//"):
        print(conversation.run_command(line), file=message_output)
        return
    question = line[1:] if line.startswith("//") else line
    try:
        prompt, seed = conversation.prompt_and_seed(question)
        ids, is_truncated = run.encode(prompt, max_answer_tokens)
    except UserError as error:
        print(error, file=message_output)
        return
    if is_truncated:
        print("(the beginning of the conversation no longer fits, and is left out)", file=message_output)
    pieces: list[str] = []
    with _catch_interrupt() as interrupt:
        for piece in run.stream_answer(
            ids, conversation.temperature, seed, max_answer_tokens, lambda: interrupt.is_requested
        ):
            pieces.append(piece)
            print(piece, end="", flush=True)
    print(flush=True)
    if interrupt.is_requested:
        print("(stopped)", file=message_output)
    conversation.add_answer(question, "".join(pieces).strip())


class _Interrupt:
    """A signal handler that records the first Ctrl-C. The second one ends the program, as usual."""

    def __init__(self) -> None:
        self.is_requested = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.is_requested:
            signal.default_int_handler(signum, frame)
        self.is_requested = True


@contextlib.contextmanager
def _catch_interrupt() -> Iterator[_Interrupt]:
    """Records Ctrl-C during the block, and restores the former handler."""
    interrupt = _Interrupt()
    former_handler = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, former_handler)

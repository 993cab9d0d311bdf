"""A child process that tries grammars out, so that one that explodes takes only it down.

    python -m engine_service.grammar.checker

The first frame on its standard input is the tokenizer, each later one a grammar; it answers each
with what is wrong with it, empty if nothing is.
"""

import contextlib
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import BinaryIO, Final

import msgspec
from llguidance import LLMatcher, LLTokenizer

CHECK_TIMEOUT_S: Final = 2
START_TIMEOUT_S: Final = 30.0
MAX_MEMORY_BYTES: Final = 2 * 1024**3
TOO_COMPLEX: Final = "it takes too much time or memory to compile"
_HEADER: Final = struct.Struct(">I")


class TokenizerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """tokenizer: JSON text of its file."""

    tokenizer: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]

    def build(self) -> LLTokenizer:
        return LLTokenizer(
            self.tokenizer, n_vocab=self.vocab_size, eos_token=list(self.eos_token_ids)
        )


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Return a matcher, to be asked for its error; the first mask is made, for it costs most."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


class GrammarChecker:
    """Starts the child when it is needed, and anew after it was lost. For any thread."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def error_of(self, grammar: str) -> str:
        """Return what is wrong with a grammar, empty if nothing is; takes seconds at most."""
        with self._lock:
            child = self._child
            if child is None or child.poll() is not None:
                child = self._child = self._start()
            try:
                return self._ask(child, grammar.encode(), timeout_s=CHECK_TIMEOUT_S)
            except (OSError, EOFError, TimeoutError):
                self._stop()
                return TOO_COMPLEX

    def close(self) -> None:
        """Stop the child."""
        with self._lock:
            self._stop()

    def _start(self) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._ask(child, msgspec.json.encode(self._spec), timeout_s=START_TIMEOUT_S)
        return child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _ask(self, child: "subprocess.Popen[bytes]", text: bytes, *, timeout_s: float) -> str:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(_HEADER.pack(len(text)) + text)
        child.stdin.flush()
        until_s = time.monotonic() + timeout_s
        answer = b""
        wanted = _HEADER.size
        while len(answer) < wanted:
            left_s = max(0.0, until_s - time.monotonic())
            if not select.select([child.stdout], [], [], left_s)[0]:
                raise TimeoutError
            part = os.read(child.stdout.fileno(), wanted - len(answer))
            if not part:
                raise EOFError
            answer += part
            if len(answer) == _HEADER.size:
                wanted = _HEADER.size + _HEADER.unpack(answer)[0]
        return answer[_HEADER.size :].decode()


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(_HEADER.size)
    return stream.read(_HEADER.unpack(header)[0]) if len(header) == _HEADER.size else None


def _answer(stream: BinaryIO, text: str) -> None:
    body = text.encode()
    stream.write(_HEADER.pack(len(body)) + body)
    stream.flush()


def main() -> None:
    """Serve until the standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A parent that was killed cannot stop a check that would not end: the alarm does.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    setup = _read(stdin)
    if setup is None:
        return
    tokenizer = msgspec.json.decode(setup, type=TokenizerSpec).build()
    _answer(stdout, "")
    while (grammar := _read(stdin)) is not None:
        signal.alarm(CHECK_TIMEOUT_S + 1)
        error = compile_grammar(tokenizer, grammar.decode()).get_error()
        signal.alarm(0)
        _answer(stdout, error)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()

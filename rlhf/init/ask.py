"""Questions that only the user can answer: by a flag, or in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf.errors import UserError


@dataclass(frozen=True)
class Asker:
    """Asks in a terminal; without one, a question without a default is an error that names its flag."""

    interactive: bool
    say: Callable[[str], None]

    @classmethod
    def here(cls, say: Callable[[str], None]) -> Asker:
        """Asks if stdin is a terminal."""
        return cls(sys.stdin is not None and sys.stdin.isatty(), say)

    def ask(self, flag: str, question: str, default: str | None = None, choices: Sequence[str] = ()) -> str:
        """The answer to a question.

        Args:
            flag: The flag that answers it.
            question: What is asked.
            default: The answer if Enter is pressed, or if there is no terminal.
            choices: The answers that are taken; any, if there are none.

        Raises:
            UserError: There is no terminal, and no default.
        """
        if not self.interactive:
            if default is None:
                raise UserError(f"{flag} is missing, and there is no terminal to ask in: {question}")
            return default
        hint = f" [{default}]" if default is not None else ""
        while True:
            try:
                answer = input(f"{question}{hint} ").strip() or (default or "")
            except EOFError:
                raise UserError(f"{flag} is missing, and the terminal was closed: {question}") from None
            if answer and (not choices or answer in choices):
                return answer
            self.say(f"one of {', '.join(choices)}, please" if choices else "an answer is needed")

    def confirm(self, flag: str, question: str) -> None:
        """Have a proposal accepted; without a terminal it is.

        Raises:
            UserError: It is refused; the message names the flag with which another is given.
        """
        if self.interactive and not self.ask(flag, question, "y").lower().startswith("y"):
            raise UserError(f"the proposal was refused; say how with {flag}")

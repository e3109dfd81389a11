"""Mistakes of users, said in one line."""

import re
from collections.abc import Mapping

OPTION = re.compile(r"`([a-z_][a-z0-9_]*)`")  # how messages name an option

WORD = 256  # characters: a file's name has no more
LINE = 2000  # characters


def one_line(error: BaseException | str) -> str:
    """Returns all that an error says, in one line and without the full stop at its end, for a message that goes on.

    Words are shortened in their middle, as names from a repository may have any length, and so is a line of very many.
    """
    words = (
        word if len(word) <= WORD else f"{word[: WORD // 2]}...{word[-WORD // 2 :]}" for word in str(error).split()
    )
    line = " ".join(words).rstrip(".") or type(error).__name__
    return line if len(line) <= LINE else f"{line[: LINE // 2]} ... {line[-LINE // 2 :]}"


class UserError(ValueError):
    """Something that the user can fix: the message names the option or argument, its value, the reason and the remedy.

    A message names options in backticks: "`resolution` 3 is out of range: use 4 to 4096." In Python it reads like
    that; the command line writes `--resolution` in their place, prints one line and ends with exit code 2. So nothing
    but `hfgen.commands` knows how a flag is spelt.

    It is one line whatever is quoted in it: the end of a line in a name is shown as Python writes it.
    """

    def __init__(self, message: str):
        super().__init__("\\n".join(str(message).splitlines()))

    @property
    def field(self) -> str | None:
        """Returns the option that the message is about: the first that it names."""
        match = OPTION.search(str(self))
        return match[1] if match else None

    def renamed(self, names: Mapping[str, str]) -> "UserError":
        """Returns the same error for a user to whom some options have other names."""
        return UserError(OPTION.sub(lambda match: f"`{names.get(match[1], match[1])}`", str(self)))

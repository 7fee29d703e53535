"""Command lines: what a command takes, and what was given.

`argparse` is not used: with what it imports and looks up it takes longer than a short command may. Declarations read as there.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Literal, NoReturn

    Action = Literal["store", "append", "store_true", "store_const", "version", "help", "refuse"]


class Options(SimpleNamespace):
    """What was given, and defaults, as attributes."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Argument:
    """An option, all of whose names begin with a dash, or a positional argument.

    Args:
        action: ``store`` and ``append`` take a value, the others none; ``refuse`` is for what others have and we have not.
        nargs: of a positional argument: ``?`` when it may be left out, ``...`` for all that follows, whatever it looks like.
        type: makes a value of the text. Raises ValueError.
        const: the value that ``store_const`` stores, or what ``version`` prints.
        dest: the attribute; by default the first name.
    """

    def __init__(
        self,
        *names: str,
        action: Action = "store",
        nargs: str = "",
        type: Callable[[str], object] = str,
        default: object = None,
        const: object = None,
        choices: Sequence[str] = (),
        dest: str = "",
        metavar: str = "",
        help: str = "",
    ) -> None:
        self.names = names
        self.action = action
        self.nargs = nargs
        self.type = type
        self.default = False if action == "store_true" else default
        self.const = True if action == "store_true" else const
        self.choices = choices
        self.dest = dest or names[0].lstrip("-").replace("-", "_")
        self.metavar = metavar or ("{" + ",".join(choices) + "}" if choices else self.dest.upper())
        self.help = help
        self.is_option = names[0].startswith("-")
        self.takes_value = action in ("store", "append")

    @property
    def usage(self) -> str:
        """How it is written."""
        if not self.is_option:
            return {"": self.metavar, "?": f"[{self.metavar}]", "...": f"[{self.metavar} ...]"}[self.nargs]
        return ", ".join(self.names) + (f" {self.metavar}" if self.takes_value else "")

    def value(self, text: str) -> object:
        """What a text stands for. Raises ValueError."""
        if self.choices and text not in self.choices:
            raise ValueError(f"invalid choice: {text!r} (choose from {', '.join(map(repr, self.choices))})")
        try:
            return self.type(text)
        except ValueError as error:
            if self.type in (int, float):
                raise ValueError(f"invalid {self.type.__name__} value: {text!r}") from None
            raise ValueError(str(error)) from None


class Parser:
    """The arguments of a command.

    Args:
        prog: how the command is called.
        text: what it does.
        commands: where its first positional argument is the name of a command: their names and texts, for people who ask for help.
    """

    def __init__(self, prog: str, text: str, commands: Callable[[], Iterable[tuple[str, str]]] | None = None) -> None:
        self.prog = prog
        self.text = text
        self._commands = commands
        self._arguments: list[Argument] = []
        self.add_argument("--help", "-h", action="help", help="show this and exit")

    def add_argument(self, *names: str, **how: Any) -> None:
        """Declare an `Argument`."""
        self._arguments.append(Argument(*names, **how))

    def parse(self, words: Sequence[str], given: Options | None = None) -> tuple[Options, list[str]]:
        """What the words say, and those behind the name of a command; ``given`` is what was said before them.

        Raises:
            SystemExit: a word is wrong, which stderr says, or help was asked for.
        """
        given = Options() if given is None else given
        named = {name: argument for argument in self._arguments if argument.is_option for name in argument.names}
        places = [argument for argument in self._arguments if not argument.is_option]
        for argument in self._arguments:
            given.__dict__.setdefault(argument.dest, argument.default)
        left, literal = list(words), False
        while left:
            word = left.pop(0)
            if word == "--" and not literal:
                literal = True
            elif word.startswith("-") and word != "-" and not literal:
                self._option(named, word, left, given)
            elif self._commands is not None:
                return given, [word, *left]
            elif not places:
                self.fail(f"unrecognized arguments: {' '.join([word, *left])}")
            else:
                self._store(places.pop(0), word, given)
                if places and places[0].nargs == "...":
                    setattr(given, places.pop(0).dest, left)
                    break
        if missing := [place.metavar for place in places if not place.nargs]:
            self.fail(f"the following arguments are required: {', '.join(missing)}")
        return given, []

    def _option(self, named: dict[str, Argument], word: str, left: list[str], given: Options) -> None:
        """Carry out the options of a word: a long one, or short ones, of which the last may take the rest as its value."""
        if word.startswith("--"):
            name, joined, value = word.partition("=")
        else:
            name, joined, value = word[:2], word[2:3], word[2:].removeprefix("=")
        argument = named.get(name)
        if argument is None:
            self.fail(f"unrecognized arguments: {word}")
        if argument.takes_value:
            if not joined and not left:
                self.fail(f"argument {'/'.join(argument.names)}: expected one argument")
            self._store(argument, value if joined else left.pop(0), given)
            return
        if joined == "=":
            self.fail(f"argument {'/'.join(argument.names)}: takes no value, not {value!r}")
        if joined:
            left.insert(0, f"-{value}")
        self._flag(argument, given)

    def _store(self, argument: Argument, text: str, given: Options) -> None:
        try:
            value = argument.value(text)
        except ValueError as error:
            self.fail(f"argument {'/'.join(argument.names) if argument.is_option else argument.metavar}: {error}")
        if argument.action == "append":
            value = [*(getattr(given, argument.dest) or ()), value]
        setattr(given, argument.dest, value)

    def _flag(self, argument: Argument, given: Options) -> None:
        if argument.action == "help":
            print(self.help())
            raise SystemExit(0)
        if argument.action == "version":
            print(argument.const)
            raise SystemExit(0)
        if argument.action == "refuse":
            self.fail(f"{argument.names[0]} is not supported")
        setattr(given, argument.dest, argument.const)

    @property
    def usage(self) -> str:
        """One line for people."""
        places = [argument.usage for argument in self._arguments if not argument.is_option]
        return " ".join(["usage:", self.prog, "[OPTIONS]", *places, *(["COMMAND ..."] if self._commands else [])])

    def help(self) -> str:
        """All there is to know, for people."""
        lists = {
            "arguments": [(a.usage, a.help) for a in self._arguments if not a.is_option and a.help],
            "options": [(a.usage, a.help) for a in self._arguments if a.is_option],
            "commands": list(self._commands()) if self._commands else [],
        }
        parts = [self.usage, self.text]
        for title, entries in lists.items():
            if entries:
                parts.append("\n".join([f"{title}:", *(line for entry in entries for line in _entry(*entry))]))
        return "\n\n".join(parts)

    def fail(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and exit with status 2."""
        print(f"{self.usage}\n{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


_COLUMN = 26


def _entry(name: str, text: str) -> list[str]:
    """A name and its text in two columns, of as many lines as they need."""
    import shutil
    import textwrap

    lines = textwrap.wrap(text, max(20, shutil.get_terminal_size().columns - _COLUMN - 2))
    if not lines or len(name) > _COLUMN - 4:
        lines.insert(0, "")
    return [f"{'' if number else f'  {name}':{_COLUMN}}{line}".rstrip() for number, line in enumerate(lines)]

"""Write docs/commands.md and the man page docs/ociruntime.1, which describe the command line, from its parser.

``python packaging/reference.py`` writes both. A test compares them with the parser. The result is the same with every version of
Python, whose own `argparse` formats help in different ways.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from ociruntime.cli import build_parser
from ociruntime.cli.parser import Parser

DOCS = Path(__file__).parents[1] / "docs"
PLAIN = ("arguments", "options")
"""The headings of arguments that are in no group of their own."""


def commands(parser: Parser) -> Iterator[Parser]:
    """Yield the parsers of all commands in their order, each with those of its own commands behind it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from commands(command)


def groups(parser: Parser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Yield the headings and the arguments that the help of a command shows."""
    for group in parser._action_groups:
        shown = [
            action
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction) and action.help is not argparse.SUPPRESS
        ]
        if shown:
            yield str(group.title).removeprefix("positional "), shown


def synopsis(parser: Parser) -> str:
    """Return the usage of a command on one line."""
    if parser.usage is not None:
        return parser.usage
    words = [parser.prog, "[OPTION ...]"]
    for action in parser._actions:
        if not action.option_strings:
            word = str(action.metavar)
            words.append(f"[{word}]" if action.nargs == "?" else f"{word} ..." if action.nargs == argparse.PARSER else word)
    return " ".join(words)


def spellings(action: argparse.Action) -> tuple[list[str], str]:
    """Return the names of an option, or of no option none, and what its value is called."""
    if action.nargs == 0:
        return list(action.option_strings), ""
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
    return list(action.option_strings), str(value)


# ---- Markdown ----


def markdown() -> str:
    """Return the page docs/commands.md."""
    parser = build_parser()
    lines = [
        "# Commands",
        "",
        "Every command with its options, as `--help` shows them. [The command line](cli.md) explains what they have in common.",
        "",
        "## Options before the command",
        "",
        *_tables(parser),
    ]
    headings = {f"{parser.prog} {action.dest}": heading for heading, actions in parser.command_groups.items() for action in actions}
    last = ""
    for command in commands(parser):
        heading = headings.get(command.prog, last)
        if heading != last:
            lines += [f"## {heading.capitalize()}", ""]
        last = heading
        name = command.prog.partition(" ")[2]
        lines += [
            f"### {name}",
            "",
            "```text",
            synopsis(command),
            "```",
            "",
            _text(str(command.description)),
            "",
            *_tables(command),
        ]
        if command.epilog is not None:
            lines += ["```sh", *(line.strip() for line in command.epilog.splitlines()[1:]), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _tables(parser: Parser) -> Iterator[str]:
    for heading, actions in groups(parser):
        yield f"| {heading.removesuffix('s') if heading in PLAIN else heading} | meaning |"
        yield "|---|---|"
        for action in actions:
            names, value = spellings(action)
            code = " ".join([", ".join(names), value]).strip().replace("|", "\\|")
            yield f"| `{code}` | {_text(parser._get_formatter()._expand_help(action))} |"
        yield ""


def _text(text: str) -> str:
    """Return a text of the help with its special characters escaped; options and words in single quotes become code."""
    escaped = re.sub(r"([|*<>_])", r"\\\1", text)
    code = re.compile(r"(?<!\w)'([^']+)'(?!\w)|(?<![\w-])(--[a-z][\w-]*)")
    return code.sub(lambda match: f"`{match[1] or match[2]}`".replace("\\_", "_").replace("\\*", "*"), escaped)


# ---- man page ----


def man_page() -> str:
    """Return the man page docs/ociruntime.1."""
    parser = build_parser()
    lines = [
        '.TH OCIRUNTIME 1 "" "ociruntime" "User Commands"',
        ".SH NAME",
        r"ociruntime \- run OCI containers from bundles and SIF images",
        ".SH SYNOPSIS",
        _usage(synopsis(parser)),
        ".SH DESCRIPTION",
        roff(f"{parser.description} {parser.epilog}"),
        ".SH OPTIONS",
        *_items(parser),
        ".SH COMMANDS",
    ]
    for command in commands(parser):
        lines += [f".SS {roff(command.prog.partition(' ')[2])}", _usage(synopsis(command)), ".PP"]
        lines += [roff(str(command.description)), *_items(command)]
        if command.epilog is not None:
            examples = (roff(line.strip()) for line in command.epilog.splitlines()[1:])
            lines += [".PP", "Examples:", ".PP", ".RS 4", ".EX", *examples, ".EE", ".RE"]
    lines += [".SH EXIT STATUS"]
    for status, meaning in _exit_statuses():
        lines += [".TP", rf"\fB{roff(status)}\fR", roff(meaning)]
    lines += [".SH SEE ALSO", ".BR runc (8),", ".BR apptainer (1)"]
    return "\n".join(lines) + "\n"


def _usage(text: str) -> str:
    """Return a usage line with the name of the command in bold."""
    name, bracket, rest = text.partition(" [")
    return rf"\fB{roff(name)}\fR{bracket}{roff(rest)}"


def _items(parser: Parser) -> Iterator[str]:
    for heading, actions in groups(parser):
        if heading not in PLAIN:
            yield from (".PP", rf"\fI{roff(heading.capitalize())}:\fR")
        for action in actions:
            names, value = spellings(action)
            label = ", ".join(rf"\fB{roff(name)}\fR" for name in names)
            yield ".TP"
            yield f"{label} \\fI{roff(value)}\\fR".strip() if value else label
            yield roff(parser._get_formatter()._expand_help(action))


def _exit_statuses() -> Iterator[tuple[str, str]]:
    """Yield the rows of the table in docs/cli.md, as plain text."""
    section = (DOCS / "cli.md").read_text().partition("## Exit status\n")[2]
    for line in section.splitlines():
        if line.startswith("|") and not line.startswith(("| status", "|---")):
            status, meaning = (cell.strip().replace("`", "") for cell in line.strip("|").split("|"))
            yield status, meaning


def roff(text: str) -> str:
    """Return a text that troff prints as it is."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("^", r"\(ha").replace("~", r"\(ti")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


if __name__ == "__main__":
    (DOCS / "commands.md").write_text(markdown())
    (DOCS / "ociruntime.1").write_text(man_page())

"""The magic ``%%container`` for IPython and Jupyter, which runs a cell in a container. ``%load_ext ociruntime`` defines it."""

from __future__ import annotations

import shlex
import sys
from typing import Any, Final

import ociruntime as oci

from ..arguments import shown
from ..cli.parser import parse_args
from ..cli.processes import image_keywords, verified, without_separator

__all__ = ["load_ipython_extension"]

_RESULT: Final = "--result"


def load_ipython_extension(shell: Any) -> None:
    """Define the magic in an interactive shell of IPython, which calls this for ``%load_ext ociruntime``."""

    def container(line: str, cell: str | None = None) -> None:
        __tracebackhide__ = True
        run(shell, line, cell)

    container.__doc__ = run.__doc__
    shell.register_magic_function(container, "line_cell", "container")


def run(shell: Any, line: str, cell: str | None) -> None:
    """Run the cell in a new container of an image: %%container [--result NAME] [OPTION ...] IMAGE [COMMAND ...]

    The cell is the standard input of the command, which is sh by default. Options are those of 'ociruntime run', and stand before
    the image. The output is shown as it comes. With --result, the Result becomes the variable NAME; without it, a command that
    fails raises ProcessError.
    """
    __tracebackhide__ = True  # a traceback of IPython shows the cell and the message, as with its own magics
    words = shlex.split(line)
    name = ""
    if words[:1] == [_RESULT]:
        if len(words) < 2 or not words[1].isidentifier():
            raise ValueError(f"{_RESULT} {shown(' '.join(words[1:2]))}: the name of a variable is needed")
        name, words = words[1], words[2:]
    try:
        options = parse_args(["run", *words])
    except SystemExit as stop:  # the message has been printed
        if stop.code:
            raise ValueError(
                f"%%container {shown(line)}: the arguments are wrong; 'ociruntime run --help' describes them"
            ) from None
        return
    keywords = image_keywords(options, options.id)
    if options.tty:
        raise ValueError("--tty cannot be used in a notebook, which is not a terminal")
    args = without_separator(options.args) or ([] if cell is None else ["sh"])
    with verified(options, options.id) as image:
        result = oci.run(image, args, input=cell, text=True, on_stdout=sys.stdout.write, on_stderr=sys.stderr.write, **keywords)
    if name:
        shell.user_ns[name] = result
    else:
        result.check_returncode()

"""The parser of the command line: runc's options and the verbs of ``apptainer oci``.

`build_parser` has no side effects and imports no command, so help, shell completion and manual pages come from the same parser.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, NoReturn

import ociruntime

from ..arguments import closest, parse_count, parse_cpus, parse_size
from .common import (
    absolute,
    is_image,
    label,
    limit,
    one_line,
    parse_binds,
    parse_duration,
    parse_home,
    parse_interval,
    parse_time,
    parse_user,
    path,
    path_in_container,
    shorten,
)

UNKNOWN_COMMAND: Final = 3
"""The exit status, as in runc, where it is 1 for any other mistake in the command line."""
EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "create": ("ociruntime create --bundle bundle c1", "ociruntime create --bundle bundle --overlay none --env DEBUG=1 c1"),
    "run": (
        "ociruntime run image.sif                          # the program of the image",
        "ociruntime run --bind .:/data image.sif ls /data  # with a directory of the host",
        "ociruntime run --hpc image.sif sh -c 'id; pwd'    # as yourself, in this directory",
        "ociruntime run --bundle bundle --detach c1        # of a bundle, in the background",
    ),
    "kill": ("ociruntime kill c1 TERM", "ociruntime kill --timeout 5 c1    # KILL after five seconds"),
    "delete": ("ociruntime delete --force c1",),
    "list": ("ociruntime list", "ociruntime list --format json"),
    "exec": (
        "ociruntime exec c1 ls /etc                 # in a running container",
        "ociruntime exec -it c1 sh",
        "ociruntime exec image.sif cat /etc/passwd  # in a new container of an image",
        "ociruntime exec --containall --env A=1 image.sif env",
    ),
    "shell": (
        "ociruntime shell image.sif",
        "ociruntime shell --hpc image.sif                         # as yourself",
        "ociruntime shell --fakeroot --overlay changes image.sif  # as root, writing to changes",
    ),
    "diff": ("ociruntime diff c1", "ociruntime diff c1 /etc/passwd"),
    "commit": ("ociruntime commit c1 new.sif --label version=2",),
    "cp": (
        "ociruntime cp notes.txt c1:/tmp",
        "ociruntime cp c1:/etc/passwd .",
        "ociruntime cp c1:/etc - | tar -t",
    ),
    "ps": ("ociruntime ps c1", "ociruntime ps c1 -ef", "ociruntime ps --format json c1"),
    "logs": ("ociruntime logs --tail 10 --timestamps c1", "ociruntime logs --since 10m c1"),
    "update": ("ociruntime update --memory 256m --pids-limit 100 c1",),
    "events": ("ociruntime events --stats c1",),
    "mount": (
        "ociruntime mount image.sif bundle     # for 'ociruntime run --bundle bundle c1'",
        "ociruntime mount --overlay tmpfs image.sif bundle",
    ),
    "umount": ("ociruntime umount bundle",),
    "image ls": ("ociruntime image ls image.sif /etc",),
    "image cat": ("ociruntime image cat image.sif /etc/passwd",),
    "image extract": ("ociruntime image extract image.sif /etc --output etc",),
    "inspect": ("ociruntime inspect image.sif", "ociruntime inspect --all image.sif"),
    "build": (
        "ociruntime build new.sif rootfs                     # of a directory",
        "ociruntime build new.sif docker-archive:image.tar   # of what 'docker save' has written",
        "ociruntime build --oci --label version=1 new.sif oci:layout",
    ),
    "pull": (
        "ociruntime pull docker://alpine:3.20                # writes alpine_3.20.sif",
        "ociruntime pull new.sif docker://alpine",
    ),
    "sif list": ("ociruntime sif list image.sif",),
    "sif dump": ("ociruntime sif dump 1 image.sif > object",),
    "sif add": ("ociruntime sif add image.sif notes.txt",),
    "verify": (
        "ociruntime verify --key public.pem image.sif",
        "ociruntime verify layout                            # the digests of an OCI image",
    ),
    "sign": ("ociruntime sign --key private.pem image.sif",),
    "plan": ("ociruntime plan --bundle bundle", "ociruntime plan --bundle bundle --profile --html profile.html"),
    "spec": ("ociruntime spec --bundle bundle",),
    "validate": ("ociruntime validate --bundle bundle --host",),
    "doctor": ("ociruntime doctor", "ociruntime doctor --format json"),
    "kernelspec install": (
        "ociruntime kernelspec install --name science image.sif",
        "ociruntime kernelspec install --hpc --display-name 'Python (HPC)' image.sif",
    ),
    "completion": (
        "source <(ociruntime completion bash)         # in ~/.bashrc",
        'eval "$(ociruntime completion zsh)"          # in ~/.zshrc, after compinit',
        "ociruntime completion fish | source          # in ~/.config/fish/config.fish",
    ),
}
"""Lines at the end of a command's help, as people type them."""

_OVERLAYS: Final = (
    "a directory, a file with an ext filesystem, 'tmpfs', 'tmpfs:size=64M', or 'none' for read-only; DIR:ro and FILE:ro are layers "
    "that are only read, any number of them, the lowest first"
)


def _terminal_width() -> int:
    """Return the columns of the terminal, as `shutil.get_terminal_size` does."""
    try:
        return int(os.environ.get("COLUMNS", "")) or 80
    except ValueError:
        pass
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class HelpFormatter(argparse.HelpFormatter):
    """A formatter that shows options in their list only, not in the usage line too, and keeps the line breaks of a text."""

    def __init__(self, prog: str) -> None:
        # argparse makes a formatter for every argument and would import shutil, which takes 3 ms, for the width of the terminal.
        super().__init__(prog, width=_terminal_width() - 2)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        options = argparse.Action([], "options", nargs="*", metavar="OPTION")
        super().add_usage(usage, [options, *(action for action in actions if not action.option_strings)], groups, prefix)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _suggest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the word most like a mistyped one, or an empty string."""
    names = {name.lstrip("-"): name for name in known}
    close = closest(word.lstrip("-"), names)
    return f"; did you mean {names[close]!r}?" if close else ""


class _PrintVersion(argparse.Action):
    """The action of ``--version``. It looks the version up only here, because that takes longer than most commands."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        # The last line has the form of crun's, in which clients search for features.
        features = "+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF"
        print(f"ociruntime version {ociruntime.__version__}\nspec: 1.3.0\n{features}")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser that reads options as getopt(3) does.

    The word after an option that takes a value is its value, even if it begins with a dash, and options may stand between
    positional arguments; argparse alone does neither. Behind the first positional argument of a parser with a subcommand or
    `argparse.REMAINDER`, nothing is an option.

    Attributes:
        command_groups: the headings of the help, each with the commands under it.
        hints: what to do instead of options and commands that other programs have, by their names.
        default_command: the subcommand that is meant if the first positional argument is not a subcommand, and all subcommands.
        begins_rest: whether nothing is an option behind this positional argument, the first one of a parser with
            `argparse.REMAINDER`. Default: always.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **settings)
        self.command_groups: dict[str, list[argparse.Action]] = {}
        self.hints: Mapping[str, str] = {}
        self.default_command: tuple[str, Collection[str]] | None = None
        self.begins_rest: Callable[[str], bool] = lambda word: True
        self._unknown: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        words = list(sys.argv[1:] if args is None else args)
        options, positionals = self.split(words)
        if self.default_command is not None and positionals:
            default, commands = self.default_command
            if positionals[0] not in commands and "-h" not in words and "--help" not in words:
                options, positionals = [], [default, *words]
        self._unknown = [word for word in options if word.startswith("-") and not self._is_known(word)]
        namespace, unknown = super().parse_known_args(options + positionals, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._explain_unknown(unknown[0])}")
        return namespace, unknown

    def _is_known(self, word: str) -> bool:
        """Return whether a word is an option of this parser, or begins with one."""
        known = self._option_string_actions
        return word.partition("=")[0] in known or (not word.startswith("--") and word[:2] in known)

    def _explain_unknown(self, word: str) -> str:
        """Return the end of a message about a word that this parser does not know, or an empty string."""
        option = word.partition("=")[0]
        if option in self.hints:
            return f"; {self.hints[option]}"
        if not option.startswith("--"):
            return ""
        if option in _build_global_parser()[0]._option_string_actions:
            return f"; {option} stands before the command"
        return _suggest(option, self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            hint = self.hints.get(value)
            more = f"'{self.prog} --help' lists the commands{f'; {hint}' if hint else _suggest(value, action.choices)}"
            self.error(f"{value!r} is not a command; {more}", UNKNOWN_COMMAND)
        known = ", ".join(map(repr, action.choices))
        message = f"invalid choice: {value!r} (choose from {known}){_suggest(str(value), action.choices)}"
        raise argparse.ArgumentError(action, message)

    def format_help(self) -> str:
        if not self.command_groups:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        options = [action for action in self._actions if action.option_strings]
        for heading, actions in {**self.command_groups, "options": options}.items():
            formatter.start_section(heading)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str, status: int = 1) -> NoReturn:
        """Print the usage and an error on one line, and exit."""
        if self._unknown and message.startswith("the following arguments are required"):
            message = f"unrecognized arguments: {' '.join(self._unknown)}{self._explain_unknown(self._unknown[0])}"
        self.print_usage(sys.stderr)
        self.exit(status, f"{self.prog}: error: {shorten(one_line(message))}\n")

    def split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the options, with their values, and the positional arguments. A value that begins with a dash is joined."""
        takes_rest = any(action.nargs in (argparse.REMAINDER, argparse.PARSER) for action in self._actions)
        options: list[str] = []
        positionals: list[str] = []
        remaining = iter(words)
        for word in remaining:
            if word == "--":
                positionals += [word, *remaining]
            elif word == "-" or not word.startswith("-"):
                takes_rest = takes_rest and self.begins_rest(word)
                positionals += [word, *remaining] if takes_rest else [word]
            else:
                options.append(word)
                value = next(remaining, None) if self._needs_value(word) else None
                if value == "--":
                    positionals += [value, *remaining]  # not a value: argparse says that one is missing
                elif value is not None and value.startswith("-"):
                    options[-1] += f"={value}" if word.startswith("--") else value
                elif value is not None:
                    options.append(value)
        return options, positionals

    def _needs_value(self, word: str) -> bool:
        """Return whether the value of an option, or of the last one of joined short options, is the next word."""
        if word.startswith("--"):
            action = self._option_string_actions.get(word)
            return action is not None and action.nargs is None
        for position, letter in enumerate(word[1:], 2):
            action = self._option_string_actions.get(f"-{letter}")
            if action is None or action.nargs is None:
                return action is not None and position == len(word)
        return False


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser, commands = _build_global_parser()
    for heading, adders in _COMMANDS.items():
        for name, add in adders.items():
            add(partial(_add_command, commands, name))
        parser.command_groups[heading] = commands._get_subactions()[-len(adders) :]
    return parser


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Only the parser of one command is built, unless help or an error lists them all: building all takes 5 ms or more.

    Returns:
        The options. Their attribute `run` is a function of them, which executes the command and returns its exit status or None.

    Raises:
        SystemExit: the command line is wrong, with status 1 or `UNKNOWN_COMMAND`, or help or the version was printed.
    """
    parser, commands = _build_global_parser()
    options, positionals = parser.split(words)
    name = positionals[0] if positionals else ""
    adders = {name: add for group in _COMMANDS.values() for name, add in group.items()}
    if name == "help":
        words = positionals = [*positionals[1:], "--help"]
        name = words[0] if words[1:] else ""
    if name and name not in adders and not {"-h", "--help"}.isdisjoint(positionals):
        parser.error(f"No help topic for {name!r}; 'ociruntime --help' lists the commands{_suggest(name, adders)}", UNKNOWN_COMMAND)
    if name not in adders or not {"-h", "--help"}.isdisjoint(options):
        return build_parser().parse_args(words)
    adders[name](partial(_add_command, commands, name))
    return parser.parse_args(words)


def _build_global_parser() -> tuple[Parser, Any]:
    """Return a parser with the options that stand before the command, and the action to which commands are added."""
    parser = Parser(
        prog="ociruntime",
        description="An OCI container runtime: run containers from bundles and SIF images.",
        epilog="'ociruntime COMMAND --help' describes a command. Options of this list stand before the command.",
    )
    parser.hints = _COMMAND_HINTS
    parser.add_argument(
        "-v", "--version", action=_PrintVersion, nargs=0, default=argparse.SUPPRESS, help="print the version and exit"
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=path,
        help="state directory (default: /run/ociruntime, for users $XDG_RUNTIME_DIR/ociruntime or /tmp/ociruntime-UID)",
    )
    parser.add_argument("--log", metavar="FILE", type=path, help="also append errors and warnings to FILE")
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="format of errors and warnings (default: text)"
    )
    parser.add_argument("--debug", action="store_true", help="report each step that is carried out, in FILE of --log or on stderr")
    parser.add_argument("--rootless", metavar="WHEN", help="accepted for compatibility; privileges are detected")
    parser.add_argument(
        "--cgroup-manager",
        choices=("cgroupfs", "systemd", "disabled"),
        default="cgroupfs",
        help="what creates cgroups (default: cgroupfs)",
    )
    parser.add_argument(
        "--systemd-cgroup",
        action="store_const",
        const="systemd",
        default=argparse.SUPPRESS,
        dest="cgroup_manager",
        help="same as --cgroup-manager systemd",
    )
    commands = parser.add_subparsers(prog=parser.prog, metavar="COMMAND", dest="command", required=True)
    return parser, commands


def _execute(module: str, function: str, options: argparse.Namespace) -> int | None:
    """Execute a command, whose module is imported only now."""
    status: int | None = getattr(import_module(f".{module}", __package__), function)(options)
    return status


Arguments = argparse._ActionsContainer
"""A parser, or a group of its arguments."""
AddCommand = Callable[..., Parser]
"""`_add_command` without its first two arguments."""


def _add_command(commands: Any, name: str, function: str, help: str, more: str = "") -> Parser:
    """Add a command.

    Args:
        commands: what `argparse.ArgumentParser.add_subparsers` has returned.
        function: module and name of the function that executes it, as ``lifecycle.create``.
        help: one line for the list of commands, in lower case.
        more: further sentences for the help of the command.
    """
    parser: Parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}. {more}".rstrip())
    if examples := EXAMPLES.get(parser.prog.partition(" ")[2]):
        parser.epilog = "\n  ".join(("examples:", *examples))
    module, _, attribute = function.partition(".")
    parser.set_defaults(run=partial(_execute, module, attribute))
    return parser


def _add_id(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="id of the container")


def _add_rest(parser: Parser, dest: str, metavar: str, help: str, first: str = "ID") -> None:
    """Add the argument that takes the rest of the command line after the first one, whatever it looks like."""
    rest = parser.add_argument(dest, nargs=argparse.REMAINDER, metavar=metavar, help=help)
    rest.required = False
    parser.usage = f"{parser.prog} [OPTION ...] {first} [{metavar} ...]"


def _add_bundle(parser: Parser) -> None:
    parser.add_argument(
        "-b", "--bundle", default=".", metavar="DIR", type=path, help="bundle directory (default: the working directory)"
    )


def _add_strategy(parser: Arguments) -> None:
    parser.add_argument(
        "--strategy",
        choices=("kernel", "fuse", "extraction"),
        help="how the layers of an image become files (default: the first that this user can use)",
    )


def _add_format(parser: Parser) -> None:
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table", help="output format (default: table)")
    parser.add_argument(
        "--json", action="store_const", const="json", default=argparse.SUPPRESS, dest="format", help="same as --format json"
    )


_COMMAND_HINTS: Final = {
    "instance": "'run --bundle BUNDLE --detach ID' starts a container that stays, and 'list' shows them",
    "cache": "'prune' removes the images that no bundle uses",
    "version": "use --version",
    "stop": "use 'kill', and 'delete' when it has ended",
    "rm": "use 'delete'",
}
"""Commands of Apptainer and of container engines, and what to do instead."""
_OWN_NAMESPACE: Final = "every container has such a namespace of its own; leave it out"
_RIGHTS: Final = "use a bundle, whose config.json has process.capabilities and linux.seccomp"
_APPTAINER_HINTS: Final = {
    **dict.fromkeys(("-w", "--writable"), "an image is not written to; use --overlay DIR to keep writes, or --writable-tmpfs"),
    "--app": "give the program of the app, as /scif/apps/NAME/scif/runscript",
    "--nvccli": "use --nv, or --gpus",
    "--userns": "a user's container always has a user namespace; leave it out",
    **dict.fromkeys(("--pid", "--ipc", "--uts"), _OWN_NAMESPACE),
    "--no-init": "no process is added to the container; leave it out",
    **dict.fromkeys(("--no-privs", "--keep-privs", "--add-caps", "--drop-caps", "--allow-setuid", "--security"), _RIGHTS),
    "--mount": "use --bind SOURCE:DESTINATION",
    "--dns": "use --bind FILE:/etc/resolv.conf",
}
"""Options of Apptainer that have no meaning here, or another name, and what to do instead."""


def _add_changes(parser: Parser, *, as_in_runc: bool = False, with_user: bool = True) -> None:
    """Add the options that change the configuration of a container.

    Args:
        as_in_runc: whether ``-e`` is ``--env`` instead of ``--cleanenv``, and ``-c`` and ``-p`` are other options, as in ``runc
            exec``.
        with_user: whether ``--user`` is among them.
    """
    parser.hints = _APPTAINER_HINTS
    changes = parser.add_argument_group("changes of the configuration")
    env, cleanenv, contain, publish = (["-e"], [], [], []) if as_in_runc else ([], ["-e"], ["-c"], ["-p"])
    changes.add_argument(
        *env, "--env", action="append", default=[], metavar="NAME=VALUE[,NAME=VALUE]", help="set environment variables"
    )
    changes.add_argument(
        "--env-file", action="append", default=[], metavar="FILE", type=path, help="set the variables in FILE, of which --env wins"
    )
    changes.add_argument(
        "--pwd", "--cwd", dest="cwd", metavar="DIR", type=path_in_container, help="working directory in the container"
    )
    if with_user:
        changes.add_argument(
            "-u", "--user", metavar="USER[:GROUP]", type=parse_user, help="names or numbers; caller for the calling user"
        )
    changes.add_argument(
        "-B",
        "--bind",
        action="append",
        default=[],
        type=parse_binds,
        metavar="SOURCE[:DESTINATION[:ro]][,...]",
        help="bind files and directories of the host (default destination: the same path)",
    )
    changes.add_argument(
        "--network",
        metavar="none|host|private|PATH",
        help="an empty network, that of the host, one that reaches it by pasta or slirp4netns, or a network namespace",
    )
    changes.add_argument(
        *publish,
        "--publish",
        action="append",
        default=[],
        metavar="[ADDRESS:]PORT:PORT[/udp]",
        help="with a private network: forward a port of the host to one of the container (default address: 127.0.0.1)",
    )
    changes.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="DEVICE",
        help="a device: /dev/NAME[:/dev/NAME][:rwm], or vendor.com/class=name by CDI; may be given several times",
    )
    changes.add_argument("--gpus", metavar="GPUS", help="all, or names such as 0,1, of GPUs that a CDI spec offers; or count=N")
    changes.add_argument(
        "-S", "--scratch", action="append", default=[], type=absolute, metavar="DESTINATION", help="an empty directory in memory"
    )
    changes.add_argument("-n", "--net", action="store_true", help="a network of its own: same as --network private")
    changes.add_argument("--hostname", metavar="NAME", help="hostname in the container")
    changes.add_argument("-f", "--fakeroot", action="store_true", help="run as root of the container, with --hpc too")
    changes.add_argument(
        "-o", "--overlay", action="append", default=[], metavar="WHERE", help=f"where the container's writes go: {_OVERLAYS}"
    )
    changes.add_argument("--writable-tmpfs", action="store_true", help="same as --overlay tmpfs")
    limits = parser.add_argument_group("limits of all processes together, by cgroups")
    limits.add_argument("--memory", type=limit(parse_size), metavar="BYTES", help="memory, as 1048576 or 64m; -1 for no limit")
    limits.add_argument("--cpus", type=limit(parse_cpus, float), metavar="N", help="CPU time in CPUs, as 1.5")
    limits.add_argument(
        "--pids-limit",
        type=limit(parse_count, int),
        metavar="N",
        help="number of tasks; -1 for no limit (default: that of a bundle; for an image 2048, or 64 for each CPU if that is more)",
    )
    habits = parser.add_argument_group("as Apptainer runs programs")
    habits.add_argument(
        "--hpc",
        action="store_true",
        help="run as the caller, with home and working directory, /tmp, environment and network of the host",
    )
    habits.add_argument(*contain, "--contain", action="store_true", help="--hpc with an empty home directory, /tmp and /var/tmp")
    habits.add_argument("-C", "--containall", action="store_true", help="--contain and --cleanenv")
    habits.add_argument("--compat", action="store_true", help="--containall and --writable-tmpfs")
    habits.add_argument(*cleanenv, "--cleanenv", action="store_true", help="with --hpc: pass no variables of the caller")
    habits.add_argument(
        "-H", "--home", type=parse_home, metavar="SOURCE[:DESTINATION]", help="the home directory, instead of the caller's"
    )
    habits.add_argument("--no-home", action="store_true", help="with --hpc: do not bind the home directory")
    habits.add_argument(
        "--no-mount",
        action="append",
        default=[],
        metavar="NAME[,...]",
        help="with --hpc: leave out home, cwd, tmp, bind-paths, or a path",
    )
    habits.add_argument(
        "-W", "--workdir", metavar="DIR", type=path, help="with --contain: keep /tmp, /var/tmp and the home directory in DIR"
    )
    for name, device in (("--nv", "nvidia.com/gpu=all"), ("--rocm", "amd.com/gpu=all")):
        habits.add_argument(name, action="append_const", const=device, dest="device", help=f"same as --device {device}")


def _create(add: AddCommand) -> None:
    create = add(
        "lifecycle.create",
        "create a container",
        "Its process waits until 'ociruntime start ID' starts the program.",
    )
    _add_id(create)
    _add_create_arguments(create)


def _add_pidfd_socket(parser: Parser, process: str) -> None:
    parser.add_argument("--pidfd-socket", metavar="SOCKET", type=path, help=f"Unix socket that receives a pidfd of the {process}")


def _add_create_arguments(parser: Parser) -> None:
    _add_bundle(parser)
    parser.add_argument("--config", metavar="FILE", type=path, help="configuration to use instead of the bundle's config.json")
    parser.add_argument("--pid-file", metavar="FILE", type=path, help="write the pid of the init process to FILE")
    parser.add_argument("--console-socket", metavar="SOCKET", type=path, help="Unix socket that receives the terminal's master")
    parser.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="pass N file descriptors from 3 on to the process")
    _add_pidfd_socket(parser, "init process")
    parser.add_argument(
        "--no-pivot", action="store_true", help="mount the root over the host's instead of calling pivot_root(2), as on a ramfs"
    )
    parser.add_argument("--no-new-keyring", action="store_true", help="keep the caller's session keyring")
    parser.add_argument("--empty-process", action="store_true", help="run an init process that only reaps, as in a pod")
    supervised = parser.add_argument_group("supervision")
    supervised.add_argument("--supervise", action="store_true", help="start a supervisor, which keeps a log and serves 'attach'")
    supervised.add_argument(
        "-l", "--log-path", metavar="FILE", type=path, help="log file (default: in the state directory); implies --supervise"
    )
    supervised.add_argument(
        "--log-format",
        dest="container_log_format",
        choices=("kubernetes", "json", "basic"),
        help="format of the log (default: kubernetes); implies --supervise",
    )
    supervised.add_argument(
        "-s",
        "--sync-socket",
        metavar="SOCKET",
        type=path,
        help="Unix socket that receives the state whenever the status changes; implies --supervise",
    )
    _add_changes(parser)


def _start(add: AddCommand) -> None:
    _add_id(add("lifecycle.start", "start the program of a created container"))


def _run(add: AddCommand) -> None:
    run = add(
        "lifecycle.run",
        "create and start a container, wait for it and delete it",
        "IMAGE is a SIF file, or the path, with a slash, of a bundle or root filesystem. "
        "The exit status is that of the program: 128+n if signal n killed it, 126 or 127 if it cannot be run.",
    )
    run.add_argument("id", metavar="ID | IMAGE", help="id of a container of the bundle, or an image to run a program in")
    _add_rest(run, "args", "COMMAND", "with IMAGE: the program and its arguments (default: those of the image)", "ID | IMAGE")
    run.begins_rest = is_image
    _add_create_arguments(run)
    run.add_argument(
        "-d", "--detach", action="store_true", help="return after the start; implies --supervise without --console-socket"
    )
    run.add_argument("-t", "--tty", action="store_true", help="allocate a terminal even if the configuration does not")
    run.add_argument("-i", "--interactive", action="store_true", help="accepted for compatibility; stdin is always passed on")
    run.add_argument("--keep", action="store_true", help="do not delete the container when it has ended")
    _add_image_options(run)


def _state(add: AddCommand) -> None:
    state = add("lifecycle.state", "print the state of a container as JSON")
    _add_id(state)
    state.add_argument("-s", "--sync-socket", metavar="SOCKET", type=path, help="write the state to this Unix socket instead")


def _kill(add: AddCommand) -> None:
    kill = add("lifecycle.kill", "send a signal to the init process of a container")
    _add_id(kill)
    kill.add_argument(
        "signal", nargs="?", metavar="SIGNAL", help="name or number (default: TERM); 0 only asks whether one could be sent"
    )
    kill.add_argument("-s", "--signal", dest="signal_option", metavar="SIGNAL", help="the signal, as an option")
    kill.add_argument("-a", "--all", action="store_true", help="send the signal to every process in the container")
    kill.add_argument("-f", "--force", action="store_true", help="send KILL")
    kill.add_argument("-t", "--timeout", type=parse_duration, metavar="TIME", help="send KILL if the container runs after TIME")


def _delete(add: AddCommand) -> None:
    delete = add("lifecycle.delete", "delete a container")
    _add_id(delete)
    delete.add_argument("-f", "--force", action="store_true", help="kill it first; succeed if the container does not exist")


def _list(add: AddCommand) -> None:
    parser = add("lifecycle.list_containers", "list containers")
    _add_format(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")


def _add_criu_options(parser: Parser) -> None:
    parser.add_argument(
        "--image-path", default="checkpoint", metavar="DIR", type=path, help="directory of the image (default: checkpoint)"
    )
    parser.add_argument("--work-path", metavar="DIR", type=path, help="directory for the log of criu (default: that of the image)")
    parser.add_argument("--tcp-established", action="store_true", help="also established TCP connections")
    parser.add_argument("--ext-unix-sk", action="store_true", help="also Unix sockets that are connected out of the container")
    parser.add_argument("--shell-job", action="store_true", help="also a session of the terminal of the caller")
    parser.add_argument("--file-locks", action="store_true", help="also file locks")
    parser.add_argument("--auto-dedup", action="store_true", help="remove memory that is written twice from earlier images")
    parser.add_argument(
        "--manage-cgroups-mode",
        choices=("soft", "full", "strict", "ignore"),
        default="soft",
        help="how criu treats cgroups (default: soft)",
    )


def _checkpoint(add: AddCommand) -> None:
    checkpoint = add(
        "lifecycle.checkpoint",
        "write a running container to an image, and stop it",
        "criu writes the image; this needs root. The container is left for 'ociruntime delete'.",
    )
    _add_id(checkpoint)
    _add_criu_options(checkpoint)
    checkpoint.add_argument("--leave-running", action="store_true", help="let the container go on")
    checkpoint.add_argument("--pre-dump", action="store_true", help="only write memory, as parent of a later image; it goes on")
    checkpoint.add_argument(
        "--parent-path", metavar="DIR", type=path, help="image of an earlier --pre-dump; write only memory that has changed"
    )


def _restore(add: AddCommand) -> None:
    restore = add(
        "lifecycle.restore",
        "restore a container from an image that 'ociruntime checkpoint' has written",
        "It gets the streams or the terminal of the command. Without --detach, the command waits for its end and deletes it, "
        "as run does.",
    )
    _add_id(restore)
    _add_bundle(restore)
    _add_criu_options(restore)
    restore.add_argument("--console-socket", metavar="SOCKET", type=path, help="Unix socket that receives the terminal's master")
    restore.add_argument("--pid-file", metavar="FILE", type=path, help="write the pid of the init process to FILE")
    restore.add_argument("-d", "--detach", action="store_true", help="return when it runs")


def _prune(add: AddCommand) -> None:
    prune = add(
        "lifecycle.prune",
        "remove stopped containers and orphans, and print their ids",
        "What interrupted operations have left is removed too.",
    )
    prune.add_argument("--json", action="store_true", help="print JSON")


def _shell(add: AddCommand) -> None:
    shell = add(
        "processes.shell",
        "run a shell in a new container of an image or bundle, and delete it",
        "What it changes is removed at its end, unless an overlay keeps it. IMAGE is a SIF file, a bundle, or the directory of a "
        "root filesystem.",
    )
    shell.add_argument("image", metavar="IMAGE", type=path, help="image file, bundle or directory")
    _add_rest(shell, "args", "ARGUMENT", "argument of the shell, as -c 'ls /'", "IMAGE")
    shell.add_argument("-s", "--shell", metavar="PATH", type=path, help="the shell (default: bash, or sh in an image without bash)")
    _add_changes(shell)
    _add_image_options(shell)


def _exec(add: AddCommand) -> None:
    parser = add(
        "processes.execute",
        "run a further program in a running container, or a program in a new container of an image",
        "IMAGE is a SIF file, or the path, with a slash, of a bundle or root filesystem. "
        "The exit status is that of the program: 128+n if signal n killed it, 255 if it cannot be run.",
    )
    parser.add_argument("id", metavar="ID | IMAGE", help="id of the container, or an image")
    _add_rest(parser, "args", "COMMAND", "the program and its arguments", "ID | IMAGE")
    parser.add_argument("-p", "--process", metavar="FILE", type=path, help="read the process object, as in config.json, from FILE")
    parser.add_argument("-g", "--additional-gids", action="append", type=int, metavar="GID", help="add a supplementary group")
    parser.add_argument("-c", "--cap", action="append", default=[], metavar="NAME", help="add a capability")
    parser.add_argument("--no-new-privs", action="store_true", help="set no_new_privs, as in prctl(2)")
    parser.add_argument("--apparmor", metavar="PROFILE", help="AppArmor profile")
    parser.add_argument("--process-label", metavar="LABEL", help="SELinux label")
    parser.add_argument("-d", "--detach", action="store_true", help="return after the start")
    parser.add_argument("--pid-file", metavar="FILE", type=path, help="write the pid of the process to FILE")
    parser.add_argument("-t", "--tty", action="store_true", help="allocate a terminal")
    parser.add_argument("-i", "--interactive", action="store_true", help="accepted for compatibility; stdin is always passed on")
    parser.add_argument("--console-socket", metavar="SOCKET", type=path, help="Unix socket that receives the terminal's master")
    parser.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="pass N file descriptors from 3 on to the process")
    parser.add_argument(
        "--cgroup",
        action="append",
        default=[],
        metavar="[CONTROLLER[,CONTROLLER]:]PATH",
        help="run in this existing cgroup below the container's",
    )
    _add_pidfd_socket(parser, "process")
    parser.add_argument("--ignore-paused", action="store_true", help="wait until a paused container is resumed")
    _add_changes(parser, as_in_runc=True)
    _add_image_options(parser)


def _cp(add: AddCommand) -> None:
    cp = add(
        "processes.cp",
        "copy files and directories between the host and a container",
        "A path in a container is ID:PATH and counts from its root directory. A path of the host with a colon needs a slash "
        "before it. An existing directory gets the copy under the name of the source, or the content of the source if that ends "
        "in '/.'. '-' is a tar archive on stdin or stdout.",
    )
    cp.add_argument("source", metavar="SOURCE", type=path_in_container, help="ID:PATH, a path of the host, or - for a tar archive")
    cp.add_argument(
        "destination", metavar="DESTINATION", type=path_in_container, help="ID:PATH, a path of the host, or - for a tar archive"
    )
    cp.add_argument("-u", "--user", metavar="USER[:GROUP]", help="user of the container (default: the one of its process)")


def _diff(add: AddCommand) -> None:
    diff = add(
        "processes.diff",
        "list the files that a container has added (A), changed (C) and removed (R)",
        "The container is running or paused, and has an upper layer of its own, as with --overlay. With PATH, the changed lines of "
        "that file are printed.",
    )
    _add_id(diff)
    diff.add_argument("path", nargs="?", metavar="PATH", help="a text file of the container")
    _add_format(diff)


def _commit(add: AddCommand) -> None:
    commit = add(
        "processes.commit",
        "make a SIF file of the image of a container and what the container has changed",
        "The container is running or paused, and has an upper layer of its own, as with --overlay.",
    )
    _add_id(commit)
    commit.add_argument("target", metavar="TARGET", type=path, help="SIF file to write")
    commit.add_argument("--image", metavar="IMAGE", type=path, help="the image of the container (default: that of its bundle)")
    commit.add_argument("-f", "-F", "--force", action="store_true", help="replace an existing file")
    _add_labels(commit)
    _add_compression(commit)


def _add_labels(parser: Parser) -> None:
    parser.add_argument(
        "-l",
        "--label",
        action="append",
        default=[],
        type=label,
        metavar="KEY=VALUE",
        help="add a label; may be given several times",
    )


def _ps(add: AddCommand) -> None:
    ps = add("processes.ps", "list the processes of a container")
    _add_id(ps)
    _add_format(ps)
    _add_rest(ps, "ps_options", "PS-OPTION", "options for the host's ps(1), such as -ef")


def _attach(add: AddCommand) -> None:
    attach = add(
        "processes.attach",
        "connect to the streams of a supervised container",
        "The exit status is that of the container's program, or 0 after detaching.",
    )
    _add_id(attach)
    attach.add_argument(
        "--detach-keys", default="ctrl-p,ctrl-q", metavar="KEYS", help="keys that detach from a terminal (default: ctrl-p,ctrl-q)"
    )
    attach.add_argument("--no-stdin", action="store_true", help="show the output only")


def _logs(add: AddCommand) -> None:
    logs = add("processes.logs", "print the output of a supervised container")
    _add_id(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="wait for further output until the container ends")
    logs.add_argument("--since", metavar="TIME", type=parse_time, help="start at TIME: RFC 3339, or an age as 90s, 10m, 2h, 1d")
    logs.add_argument("-n", "--tail", metavar="N", type=int, help="print the last N lines only")
    logs.add_argument("--stream", choices=("stdout", "stderr"), help="print this stream only")
    logs.add_argument("--timestamps", action="store_true", help="print the time before each line")
    logs.add_argument("--json", action="store_true", help="print each entry as a JSON object on a line")
    logs.add_argument("--reopen", action="store_true", help="print nothing, but make the supervisor reopen a renamed log file")


def _update(add: AddCommand) -> None:
    update = add("lifecycle.update", "change the resource limits of a container")
    _add_id(update)
    for option in ("--resources", "--from-file"):
        update.add_argument(
            option[1:3], option, dest="resources", metavar="FILE", type=path, help="linux.resources as JSON; - for stdin"
        )
    limits = update.add_argument_group("limits")
    size = partial(limits.add_argument, type=limit(parse_size), metavar="BYTES")
    integer = partial(limits.add_argument, type=int)
    size("-m", "--memory", help="memory, as 1048576 or 64m; -1 for no limit")
    size("--memory-swap", help="memory and swap together")
    size("--memory-reservation", help="soft limit of memory")
    limits.add_argument("--cpus", type=limit(parse_cpus, float), metavar="N", help="CPU time in CPUs, as 1.5")
    integer("--cpu-share", dest="cpu_shares", metavar="N", help="weight against other cgroups; 1024 is usual")
    integer("--cpu-quota", metavar="US", help="CPU time in each period, in microseconds; -1 for no limit")
    integer("--cpu-period", metavar="US", help="length of the period in microseconds")
    integer("--cpu-burst", metavar="US", help="unused quota that may be used later")
    integer("--cpu-idle", metavar="0|1", help="1: run only when other cgroups leave CPUs idle")
    integer("--cpu-rt-runtime", dest="cpu_realtime_runtime", metavar="US", help="CPU time of realtime tasks in each period")
    integer("--cpu-rt-period", dest="cpu_realtime_period", metavar="US", help="length of the realtime period in microseconds")
    limits.add_argument("--cpuset-cpus", metavar="LIST", help="CPUs, as 0-3,7")
    limits.add_argument("--cpuset-mems", metavar="LIST", help="memory nodes, as 0-3,7")
    limits.add_argument(
        "--pids-limit", dest="pids", type=limit(parse_count, int), metavar="N", help="number of tasks; -1 for no limit"
    )
    integer("--blkio-weight", metavar="N", help="weight of block I/O, 10 to 1000")
    limits.add_argument("--l3-cache-schema", metavar="LINE", help="L3 cache schema of the resctrl group, as L3:0=f")
    limits.add_argument("--mem-bw-schema", metavar="LINE", help="memory bandwidth schema of the resctrl group, as MB:0=20")
    update.set_defaults(limits=tuple(action.dest for action in limits._group_actions))


def _pause(add: AddCommand) -> None:
    _add_id(add("lifecycle.pause", "freeze every process of a container"))


def _resume(add: AddCommand) -> None:
    _add_id(add("lifecycle.resume", "thaw every process of a container"))


def _events(add: AddCommand) -> None:
    events = add(
        "lifecycle.events",
        "print events and statistics of a container as JSON lines",
        "Ends with the container.",
    )
    _add_id(events)
    events.add_argument("--stats", action="store_true", help="print the statistics once and exit")
    events.add_argument(
        "--interval",
        type=parse_interval,
        default=5.0,
        metavar="TIME",
        help="time between statistics, as 500ms, 5s or 1m (default: 5s)",
    )


def _mount(add: AddCommand) -> None:
    mount = add(
        "bundles.mount",
        "mount an image as a bundle",
        "IMAGE is a SIF or OCI-SIF file, an OCI image layout or archive, a docker archive, a filesystem in a file, or a directory.",
    )
    mount.add_argument("image", metavar="IMAGE", type=path, help="image file or directory")
    mount.add_argument("bundle", metavar="BUNDLE", type=path, help="bundle directory to create")
    mount.add_argument("--read-only", action="store_true", help="mount no writable overlay over the image")
    mount.add_argument(
        "--overlay", action="append", default=[], metavar="WHERE", help=f"where the writes of each container go: {_OVERLAYS}"
    )
    _add_choice_of_image(mount)
    _add_strategy(mount)
    _add_verification(mount)


def _umount(add: AddCommand) -> None:
    umount = add(
        "bundles.umount",
        "unmount a bundle that 'mount' has created, and remove it",
        "Refused while it is in use.",
    )
    umount.add_argument("bundle", metavar="BUNDLE", type=path, help="bundle directory")
    umount.add_argument(
        "-f", "--force", action="store_true", help="kill the containers that use it, and unmount it even if other processes do"
    )


def _sif(add: AddCommand) -> None:
    sif = add(
        "bundles.sif_list",
        "look into a SIF file, and add and remove objects",
        "'ociruntime sif SIF' is 'ociruntime sif list SIF'.",
    )
    verbs = sif.add_subparsers(prog=sif.prog, metavar="VERB", dest="verb", required=True, help="what to do")
    listing = _add_command(verbs, "list", "bundles.sif_list", "list the objects of a SIF file")
    listing.add_argument("sif", metavar="SIF", type=path, help="image file")
    listing.add_argument("--json", action="store_true", help="print JSON")
    header = _add_command(verbs, "header", "bundles.sif_header", "print the header of a SIF file as JSON")
    header.add_argument("sif", metavar="SIF", type=path, help="image file")
    dump = _add_command(verbs, "dump", "bundles.sif_dump", "write the data of an object to stdout")
    dump.add_argument("id", metavar="ID", type=int, help="id of the object")
    dump.add_argument("sif", metavar="SIF", type=path, help="image file")
    more = _add_command(
        verbs, "add", "bundles.sif_add", "add an object to a SIF file", "Signatures of the object's group do not cover it."
    )
    more.add_argument("sif", metavar="SIF", type=path, help="image file")
    more.add_argument("file", metavar="FILE", type=path, help="file with the data")
    more.add_argument(
        "--type",
        choices=("definition", "environment", "labels", "partition", "generic-json", "generic", "sbom"),
        default="generic",
        help="type of the object; a partition is one with data, in a squashfs (default: generic)",
    )
    more.add_argument("--name", help="name of the object (default: that of FILE)")
    more.add_argument("--group", type=int, default=1, metavar="N", help="group of the object; 0 for none (default: 1)")
    more.add_argument("--link", type=int, metavar="ID", help="id of the object to which it is linked")
    more.add_argument("--json", action="store_true", help="print JSON")
    removal = _add_command(verbs, "del", "bundles.sif_del", "remove an object from a SIF file", "The other objects keep their ids.")
    removal.add_argument("id", metavar="ID", type=int, help="id of the object")
    removal.add_argument("sif", metavar="SIF", type=path, help="image file")
    _add_file_commands(verbs)
    sif.default_command = "list", verbs.choices


def _image(add: AddCommand) -> None:
    image = add(
        "bundles.image_ls",
        "look into an image without mounting it",
        "IMAGE is a SIF file, an OCI image layout or archive, a docker archive, a squashfs file or a directory.",
    )
    verbs = image.add_subparsers(prog=image.prog, metavar="VERB", dest="verb", required=True, help="what to do")
    _add_file_commands(verbs)


def _inspect(add: AddCommand) -> None:
    inspect = add(
        "bundles.inspect",
        "print labels, definition file and scripts of an image, without mounting it",
        "The options of Apptainer's command choose what is printed; the default is the labels.",
    )
    inspect.add_argument("image", metavar="IMAGE", type=path, help="image file or directory")
    for short, option, dest, help in (
        ("-l", "--labels", "labels", "the labels"),
        ("-d", "--deffile", "definition", "the definition file from which the image was built"),
        ("-e", "--environment", "environment", "the scripts that set the environment"),
        ("-r", "--runscript", "runscript", "the script of 'apptainer run'"),
        ("-s", "--startscript", "startscript", "the script of 'apptainer instance start'"),
        ("-t", "--test", "test", "the script of 'apptainer test'"),
        ("-H", "--helpfile", "help", "the text of 'apptainer run-help'"),
    ):
        inspect.add_argument(short, option, dest=dest, action="store_true", help=help)
    inspect.add_argument("--list-apps", action="store_true", help="the names of the applications in /scif/apps")
    inspect.add_argument("--all", action="store_true", help="everything, with layers and OCI configuration; implies --json")
    inspect.add_argument("-j", "--json", action="store_true", help="print JSON")
    _add_choice_of_image(inspect)


def _add_file_commands(verbs: Any) -> None:
    """Add the commands that show the files in an image."""
    listing = _add_command(verbs, "ls", "bundles.image_ls", "list a file or directory of an image")
    _add_image(listing, "/")
    listing.add_argument("-R", "--recursive", action="store_true", help="list directories in directories too")
    listing.add_argument("--json", action="store_true", help="print JSON")
    content = _add_command(verbs, "cat", "bundles.image_cat", "print the content of a file of an image")
    _add_image(content, None)
    content.add_argument("--limit", type=limit(parse_size), metavar="BYTES", help="largest size of the file (default: 64m)")
    extract = _add_command(
        verbs,
        "extract",
        "bundles.image_extract",
        "copy a file or directory out of an image",
        "Devices and symbolic links that lead out of the copy are left out.",
    )
    _add_image(extract, "/")
    extract.add_argument(
        "-o",
        "--output",
        metavar="TO",
        type=path,
        help="path to create (default: name of the file or image, in the working directory)",
    )


def _add_image_options(parser: Parser) -> None:
    """Add the options of commands that run a program in an image: which one of several, and whether it is verified."""
    group = parser.add_argument_group("with an image")
    _add_choice_of_image(group)
    _add_strategy(group)
    _add_verification(group)


def _add_verification(parser: Arguments) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="verify the image first: its signatures by --key, or the digests of an OCI image"
    )
    _add_keys(parser, "; implies --verify")


def _add_keys(parser: Arguments, more: str = "") -> None:
    parser.add_argument(
        "-k",
        "--key",
        dest="keys",
        action="append",
        default=[],
        metavar="FILE",
        type=path,
        help=f"OpenPGP key, PEM public key or X.509 certificate that is trusted; may be given several times{more}",
    )


def _add_choice_of_image(parser: Arguments) -> None:
    parser.add_argument("--reference", metavar="NAME", help="name or digest of one of several images in a layout or archive")
    parser.add_argument("--platform", metavar="OS/ARCH", help="platform of which to take the image, as linux/arm64")


def _add_image(parser: Parser, default: str | None) -> None:
    parser.add_argument("image", metavar="IMAGE", type=path, help="image file or directory")
    whole = f" (default: {default})" if default else ""
    parser.add_argument("path", nargs="?" if default else None, default=default, metavar="PATH", help=f"path in the image{whole}")
    _add_choice_of_image(parser)
    _add_limits(parser)


def _add_limits(parser: Parser) -> None:
    """Add the options that limit what is read of an image."""
    parser.add_argument("--max-files", type=int, metavar="N", help="most files that are read; -1 for no limit (default: 1000000)")
    parser.add_argument(
        "--max-bytes",
        type=limit(parse_size),
        metavar="BYTES",
        help="most bytes that are decompressed or copied; -1 for no limit (default: 64g)",
    )


def _build(add: AddCommand) -> None:
    build = add(
        "bundles.build",
        "make a SIF file of an image or directory",
        "SOURCE is an image of any kind, or a directory; oci:DIR:TAG, oci-archive:FILE:TAG and docker-archive:FILE:NAME\n"
        "name one of several images. Nothing is unpacked, so owners and modes are kept without privileges.",
    )
    build.add_argument("target", metavar="TARGET", type=path, help="SIF file to write")
    build.add_argument("source", metavar="SOURCE", type=path, help="image file or directory")
    build.add_argument("--oci", action="store_const", const="oci-sif", default="sif", dest="format", help="write an OCI-SIF file")
    build.add_argument("-f", "-F", "--force", action="store_true", help="replace an existing file")
    build.add_argument("-q", "--quiet", action="store_true", help="do not show the progress")
    build.add_argument("--upper", metavar="DIR", type=path, help="upper directory of an overlay, whose changes are included")
    build.add_argument("--config", metavar="FILE", type=path, help="JSON with the config of an OCI image (default: the image's)")
    _add_labels(build)
    build.add_argument("--definition", metavar="FILE", type=path, help="definition file to store")
    build.add_argument("--sbom", action="append", default=[], metavar="FILE", type=path, help="software bill of materials to store")
    build.add_argument("--arch", help="architecture, as arm64 (default: the image's)")
    _add_compression(build)
    build.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="leave out paths that match this shell pattern"
    )
    build.add_argument("--all-root", action="store_true", help="root owns every file (default for users' directories)")
    build.add_argument("--processors", type=int, metavar="N", help="number of processors (default: all)")
    _add_choice_of_image(build)
    _add_limits(build)


def _pull(add: AddCommand) -> None:
    pull = add(
        "bundles.pull",
        "make a SIF file of an image in a registry",
        "skopeo fetches the image, with the credentials of 'skopeo login'. A SIF file that is an ORAS artifact is taken as it is.",
    )
    pull.add_argument("target", metavar="TARGET", nargs="?", type=path, help="file to write (default: NAME_TAG.sif)")
    pull.add_argument("reference", metavar="URI", help="docker://NAME or oras://NAME")
    pull.add_argument("--oci", action="store_const", const="oci-sif", default="sif", dest="format", help="write an OCI-SIF file")
    pull.add_argument("-f", "-F", "--force", action="store_true", help="replace an existing file")
    pull.add_argument("-q", "--quiet", action="store_true", help="do not show the progress")
    pull.add_argument("--auth-file", metavar="FILE", type=path, help="credentials, as 'skopeo login' writes them")
    pull.add_argument("--insecure", action="store_true", help="allow HTTP and certificates that are not trusted")
    pull.add_argument("--platform", metavar="OS/ARCH", help="platform of which to take the image, as linux/arm64")
    _add_compression(pull)


def _add_compression(parser: Parser) -> None:
    parser.add_argument(
        "--compression",
        choices=("gzip", "lzma", "lzo", "lz4", "xz", "zstd"),
        default="gzip",
        help="compression (default: gzip)",
    )


def _verify(add: AddCommand) -> None:
    verify = add(
        "bundles.verify",
        "verify the signatures of a SIF file, or the digests of an OCI image",
        "Every object of a SIF file must be signed by one of the keys. The exit status is 1 if the image is not valid.",
    )
    verify.add_argument("image", metavar="IMAGE", type=path, help="image file or directory")
    _add_keys(verify)
    _add_choice_of_image(verify)
    verify.add_argument("--json", action="store_true", help="print JSON")


def _sign(add: AddCommand) -> None:
    sign = add("bundles.sign", "add a signature to a SIF file")
    sign.add_argument("sif", metavar="SIF", type=path, help="image file")
    sign.add_argument(
        "-k", "--key", required=True, metavar="FILE", type=path, help="private key, OpenPGP or PEM (RSA, ECDSA, Ed25519)"
    )
    sign.add_argument("--password-file", metavar="FILE", type=path, help="file with the password of the key")
    sign.add_argument("--json", action="store_true", help="print JSON")


def _plan(add: AddCommand) -> None:
    plan = add(
        "bundles.plan",
        "print the steps of creating and starting a container, without executing them",
        "With --profile, run the container without a terminal and remove it, and print the time of every step. The program has the "
        "standard input of the command, and its output goes to the standard error. The exit status is that of the program.",
    )
    _add_bundle(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument("--profile", action="store_true", help="run the container, and print the time of every step")
    plan.add_argument("--html", metavar="FILE", type=path, help="with --profile, also write a page with a waterfall of the steps")


def _spec(add: AddCommand) -> None:
    spec = add(
        "bundles.spec",
        "write a config.json to begin with",
        "For root it is that of 'runc spec': sh on a terminal, few capabilities, a read-only root, and no seccomp filter.",
    )
    _add_bundle(spec)
    spec.add_argument(
        "--rootless",
        action="store_true",
        dest="for_user",
        help="map this user's own id to root and no other id (default for users: every id that the user may map)",
    )


def _validate(add: AddCommand) -> None:
    validate = add(
        "bundles.validate",
        "print every problem of a bundle's config.json",
        "The exit status is 1 if there is an error among them.",
    )
    _add_bundle(validate)
    validate.add_argument("--host", action="store_true", help="also check what this host supports")
    validate.add_argument("--json", action="store_true", help="print JSON")


def _features(add: AddCommand) -> None:
    add("bundles.features", "print what this runtime supports as JSON")


def _devices(add: AddCommand) -> None:
    devices = add(
        "bundles.devices",
        "list the devices that CDI specs of this host offer",
        "Their names are for --device. The specs are in /etc/cdi and /var/run/cdi, and for users also in ~/.config/cdi.",
    )
    _add_format(devices)


def _doctor(add: AddCommand) -> None:
    doctor = add(
        "bundles.doctor",
        "print what this host offers this user, and what to install for better",
        "The exit status is 0 if containers can run here, and 1 if not. Nothing is created.",
    )
    _add_format(doctor)


def _kernelspec(add: AddCommand) -> None:
    kernelspec = add("bundles.kernelspec_install", "make an image a kernel of Jupyter")
    verbs = kernelspec.add_subparsers(prog=kernelspec.prog, metavar="VERB", dest="verb", required=True, help="what to do")
    install = _add_command(
        verbs,
        "install",
        "bundles.kernelspec_install",
        "install a kernel spec whose kernels run in containers of an image",
        "The image needs ipykernel, or the kernel in COMMAND. Kernels run as you; nothing of the host is in the container but what "
        "--bind or --hpc adds. 'jupyter kernelspec' lists and removes kernel specs.",
    )
    install.add_argument("image", metavar="IMAGE", type=path, help="image file, or directory of a root filesystem")
    _add_rest(
        install,
        "args",
        "COMMAND",
        "the kernel, with {connection_file} as an argument (default: python3 -m ipykernel_launcher -f {connection_file})",
        "IMAGE",
    )
    install.add_argument("--name", help="name of the kernel spec (default: that of IMAGE)")
    install.add_argument("--display-name", metavar="TEXT", help="how Jupyter shows it (default: the name)")
    install.add_argument("--language", default="python", help="language of the kernel (default: python)")
    place = install.add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", dest="for_user", help="install it for this user; the default")
    place.add_argument("--prefix", metavar="DIR", type=path, help="install it in DIR/share/jupyter, as of a virtual environment")
    install.set_defaults(user=None)
    _add_changes(install, with_user=False)
    _add_choice_of_image(install)
    _add_strategy(install)


def _completion(add: AddCommand) -> None:
    completion = add("bundles.completion", "print a script with which a shell completes commands, options, ids and file names")
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


_COMMANDS: Final[dict[str, dict[str, Callable[[AddCommand], None]]]] = {
    "containers": {
        "create": _create,
        "start": _start,
        "run": _run,
        "state": _state,
        "kill": _kill,
        "delete": _delete,
        "checkpoint": _checkpoint,
        "restore": _restore,
        "list": _list,
        "prune": _prune,
    },
    "processes and output": {
        "exec": _exec,
        "shell": _shell,
        "cp": _cp,
        "diff": _diff,
        "commit": _commit,
        "ps": _ps,
        "attach": _attach,
        "logs": _logs,
    },
    "resources": {"update": _update, "pause": _pause, "resume": _resume, "events": _events},
    "images and bundles": {
        "mount": _mount,
        "umount": _umount,
        "image": _image,
        "inspect": _inspect,
        "build": _build,
        "pull": _pull,
        "sif": _sif,
        "verify": _verify,
        "sign": _sign,
        "plan": _plan,
    },
    "configuration": {
        "spec": _spec,
        "validate": _validate,
        "features": _features,
        "doctor": _doctor,
        "devices": _devices,
        "kernelspec": _kernelspec,
        "completion": _completion,
    },
}
"""The functions that add the commands, by name, by heading of the help."""

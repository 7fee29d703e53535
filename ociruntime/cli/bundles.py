"""Images, bundles and their configuration: mount, umount, image, build, sif, verify, sign, plan, spec ..."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, cast

import attrs

import ociruntime as oci
import ociruntime.spec as spec_model

from ..arguments import printable, shown
from ..bundle import has_file
from ..ephemeral import execute
from ..errors import warn
from ..files import absolute_path, replace_file
from ..image.config import METADATA_TEXTS, ImageMetadata
from ..image.convert import sbom_format
from ..image.sif import (
    Architecture,
    DataType,
    Descriptor,
    Filesystem,
    Partition,
    PartitionKind,
    Sbom,
    SifBuilder,
    add_objects,
    remove_objects,
)
from ..options import RunOptions
from .common import (
    SignalForwarding,
    print_json,
    print_lines,
    print_table,
    shell_status,
    terminal,
)
from .processes import changes, open_image, overlay, verify_image, without_separator


def mount(options: Namespace) -> None:
    with open_image(options, options.image) as image:
        oci.Bundle.from_image(
            image, options.bundle, writable=not options.read_only, overlay=options.overlay or None, strategy=options.strategy
        )


def umount(options: Namespace) -> None:
    bundle = oci.Bundle(options.bundle, config=None)  # its config.json may be absent or invalid
    bundle.umount(force=options.force, state_root=options.root)


def image_ls(options: Namespace) -> None:
    with _open_image(options) as image:
        files = image.files(options.path, recursive=options.recursive, **_limits(options))
        if options.json:
            print_json([attrs.asdict(file) for file in files])
        else:
            for file in files:
                print(file)


def image_cat(options: Namespace) -> None:
    with _open_image(options) as image:
        content = image.read_bytes(options.path, **_limits(options, "limit"))
    sys.stdout.buffer.write(content)


def image_extract(options: Namespace) -> None:
    target = options.output or Path(options.path).name or Path(absolute_path(options.image)).resolve().stem
    with _open_image(options) as image:
        left_out = image.extract(options.path, target, **_limits(options))
    if left_out:
        _warn_of(left_out, "devices, sockets and symbolic links that lead out of the copy are left out")


_SECTIONS = {"labels": "labels", **METADATA_TEXTS, "environment": "environment"}
"""The parts of `ImageMetadata` that inspect shows, and their names in JSON."""


def inspect(options: Namespace) -> None:
    parts = [name for name in _SECTIONS if getattr(options, name) or options.all]
    if not parts and not options.list_apps:
        parts = ["labels"]
    with _open_image(options) as image:
        found = _metadata(image, parts, options)
        if options.json or options.all:
            _print_metadata(image, found, parts, whole=options.all)
            return
    for app in found.apps if options.list_apps else ():
        print(_shown(app))
    for name in parts:
        value = getattr(found, name)
        if name == "environment":
            for path, text in sorted(value.items()):
                print(f"=== {_shown(path)} ===\n{_shown(text)}")
        elif isinstance(value, dict):
            print_lines(f"{_shown(key)}: {_shown(text)}" for key, text in sorted(value.items()))
        elif value:
            print(_shown(value.rstrip("\n")))


def _metadata(image: oci.Image, parts: list[str], options: Namespace) -> ImageMetadata:
    """Return the metadata of an image. Its files, which may take long to decompress, are only read if they are needed.

    Parts that are only in files which cannot be read here are left out with a warning, unless nothing that was asked for is left.
    """
    own = ImageMetadata(labels=image.labels, definition=image.definition or "")
    known = [name for name in parts if getattr(own, name) or (name == "labels" and image.config_json is not None)]
    if known == parts and not options.list_apps:
        return own
    try:
        return image.metadata()
    except oci.UnsupportedError as error:
        is_asked_for = options.list_apps or (not options.all and any(getattr(options, name) for name in parts))
        if is_asked_for and not known:
            raise
        absent = [_SECTIONS[name] for name in parts if name not in known] + ["apps"] * (options.list_apps or options.all)
        warn([f"{', '.join(absent)}: not read from the files of the image: {error}"])
        return own


def _print_metadata(image: oci.Image, found: ImageMetadata, parts: Iterable[str], *, whole: bool) -> None:
    """Print metadata as JSON, in the form of Apptainer's."""
    attributes: dict[str, Any] = {_SECTIONS[name]: getattr(found, name) for name in parts}
    document: dict[str, Any] = {"data": {"attributes": attributes}, "type": "container"}
    if whole:
        attributes["apps"] = {app: {} for app in found.apps}
        layers = (*image.layers, *image.overlays, *image.data)
        document["image"] = {
            "kind": image.kind,
            "architecture": image.architecture,
            "references": image.references,
            "digest": image.digest,
            "signatures": len(image.signatures),
            "layers": [
                {"role": layer.role, "format": layer.filesystem or layer.format, "size": layer.size, "digest": layer.digest}
                for layer in layers
            ],
            "config": image.config_json,
        }
    print_json(document)


def _shown(text: str) -> str:
    """Return a text of an image with escapes for what a terminal would interpret, except line ends and tabs."""
    return printable(text, "\n\t")


def build(options: Namespace) -> None:
    kind, path, reference = _parse_source(options.source)
    if reference is not None and options.reference is not None:
        raise ValueError(f"--reference {options.reference}: {options.source} names an image already")
    config = None
    if options.config is not None:
        config = json.loads(Path(options.config).read_bytes())
    with ExitStack() as stack:
        source: str | oci.Image = path
        if kind is not None:
            source = stack.enter_context(oci.Image.open(path, reference=reference or options.reference, platform=options.platform))
            if source.kind != kind:
                raise ValueError(f"{path} is of the kind {source.kind}, not {kind}")
        left_out = oci.build(
            source,
            options.target,
            reference=options.reference if kind is None else None,
            platform=options.platform if kind is None else None,
            upper=options.upper,
            format=options.format,
            config=config,
            labels=dict(options.label),
            definition=None if options.definition is None else Path(options.definition).read_text(errors="surrogateescape"),
            sboms=options.sbom,
            arch=options.arch,
            compression=options.compression,
            exclude=options.exclude,
            all_root=options.all_root or None,
            processors=options.processors,
            overwrite=options.force,
            progress=not options.quiet,
            **_limits(options),
        )
    if left_out:
        _warn_of(left_out, "sockets are left out")


def pull(options: Namespace) -> None:
    target = options.target
    if target is None:
        name = options.reference.partition("@")[0].rstrip("/").rpartition("/")[2]
        target = f"{name.replace(':', '_')}.sif"
    oci.pull(
        options.reference,
        target,
        format=options.format,
        platform=options.platform,
        auth_file=options.auth_file,
        insecure=options.insecure,
        compression=options.compression,
        overwrite=options.force,
        progress=not options.quiet,
    )


_TRANSPORTS = {"oci": "oci-layout", "oci-archive": "oci-archive", "docker-archive": "docker-archive"}
"""The kinds of images that names with these prefixes mean, as in ``oci:DIRECTORY:TAG``."""


def _parse_source(text: str) -> tuple[str | None, str, str | None]:
    """Return the kind, the path and the reference of an image."""
    transport, _, rest = text.partition(":")
    if transport not in _TRANSPORTS or not rest:
        return None, text, None
    for position, letter in enumerate(rest):
        if letter == ":" and os.path.exists(rest[:position]):
            return _TRANSPORTS[transport], rest[:position], rest[position + 1 :]
    return _TRANSPORTS[transport], rest, None


def _warn_of(files: Iterable[oci.image.ImageFile], what: str) -> None:
    paths = [file.path for file in files]
    warn([f"{what}: {', '.join(paths[:10])}{' ...' if len(paths) > 10 else ''}"])


def _open_image(options: Namespace) -> oci.Image:
    return oci.Image.open(options.image, reference=options.reference, platform=options.platform)


def _limits(options: Namespace, *more: str) -> dict[str, Any]:
    """Return the limits among the options; -1 stands for none."""
    values = {name: getattr(options, name) for name in ("max_files", "max_bytes", *more)}
    return {name: sys.maxsize if value == -1 else value for name, value in values.items() if value is not None}


def sif_list(options: Namespace) -> None:
    with oci.SifImage.open(options.sif) as image:
        if options.json:
            print_json(image.to_dict())
        else:
            print(image.table())


def sif_header(options: Namespace) -> None:
    with oci.SifImage.open(options.sif) as image:
        header = image.to_dict()["header"]
    print_json(header)


def sif_dump(options: Namespace) -> None:
    """Write the data of an object to stdout."""
    with oci.SifImage.open(options.sif) as image:
        for piece in image.chunks(_object(image, options.id)):
            sys.stdout.buffer.write(piece)


def _object(image: oci.SifImage, object_id: int) -> Descriptor:
    found = next((item for item in image if item.id == object_id), None)
    if found is None:
        raise ValueError(f"{image.name}: has no object {object_id}")
    return found


def sif_add(options: Namespace) -> None:
    builder = SifBuilder()
    metadata: Sbom | Partition | None = None
    with open(options.file, "rb") as file:
        if options.type == "sbom":
            metadata = Sbom(sbom_format(file.read(), options.file))
            file.seek(0)
        elif options.type == "partition":
            metadata = Partition(Filesystem.SQUASHFS, PartitionKind.DATA, Architecture.host())
        builder.add(
            DataType[options.type.upper().replace("-", "_")],
            file,
            name=Path(options.file).name if options.name is None else options.name,
            group=options.group or None,
            linked_object=options.link,
            metadata=metadata,
            alignment=1 if options.type != "partition" else 4096,
        )
        _print_added("object", add_objects(options.sif, builder), options)


def _print_added(what: str, ids: Sequence[int], options: Namespace) -> None:
    if options.json:
        print_json(ids)
        return
    for object_id in ids:
        print(f"added {what} {object_id}")


def sif_del(options: Namespace) -> None:
    with oci.SifImage.open(options.sif) as image:
        _object(image, options.id)
    remove_objects(options.sif, options.id)


def verify(options: Namespace) -> None:
    with _open_image(options) as image:
        found = verify_image(image, options.image, options.keys)
    if options.json:
        print_json({"signatures": [attrs.asdict(item) for item in found.signatures], "digests": found.digests})
    else:
        print_lines([f"valid: {item}" for item in found.signatures] + [f"valid: layer {digest}" for digest in found.digests])


def sign(options: Namespace) -> None:
    password = None
    if options.password_file is not None:
        password = Path(options.password_file).read_text().removesuffix("\n")
    _print_added("signature", oci.sign(options.sif, key=options.key, password=password), options)


def plan(options: Namespace) -> int:
    bundle = oci.Bundle.load(options.bundle)
    if options.profile:
        return _profile(options, bundle)
    if options.html is not None:
        raise ValueError("--html needs --profile, which runs the container and measures its steps")
    compiled = bundle.plan(cgroup_manager=options.cgroup_manager)
    sys.stdout.write(compiled.to_json(indent=2) + "\n" if options.json else compiled.explain())
    return 0


def _profile(options: Namespace, bundle: oci.Bundle) -> int:
    """Run the container of a bundle, print the times of its steps, and return its exit status. Also if the launch fails."""
    given = RunOptions(stdout=2, profile=True, terminal=False, state_root=options.root, cgroup_manager=options.cgroup_manager)
    if bundle.spec.process is not None and bundle.spec.process.terminal:
        bundle = bundle.with_process(terminal=False)
    try:
        with SignalForwarding() as signals:
            result = execute(bundle, given, signals)
    except oci.OCIRuntimeError as error:
        if error.profile is not None:
            _show_profile(options, error.profile)
        raise
    assert result.profile is not None, "asked for"
    _show_profile(options, result.profile)
    return shell_status(result.returncode)


def _show_profile(options: Namespace, profile: oci.Profile) -> None:
    sys.stdout.write(profile.to_json(indent=2) + "\n" if options.json else profile.explain())
    if options.html is not None:
        replace_file(Path(options.html), profile.to_html().encode(), mode=0o666)


def spec(options: Namespace) -> None:
    bundle = Path(absolute_path(options.bundle))
    path = bundle / "config.json"
    if has_file(bundle, "config.json"):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    host = oci.Host.probe()
    if options.for_user:
        config = _in_terminal(oci.RuntimeSpec.default(rootless=True))
    elif not (host.privileged and host.initial):
        config = oci.RuntimeSpec.default(host=host).with_args(["sh"])
    else:
        config = _as_in_runc(oci.RuntimeSpec.default(seccomp=False, host=host), host)
    config.save(path)


_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_CGROUP = spec_model.Mount(
    destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=("nosuid", "noexec", "nodev", "relatime", "ro")
)
_SHOWN = ("/proc/interrupts", "/sys/devices/virtual/powercap")
"""Paths that `RuntimeSpec.default` masks and runc does not."""


def _in_terminal(spec: oci.RuntimeSpec) -> oci.RuntimeSpec:
    """Return a configuration of a shell in a terminal, with a read-only root filesystem."""
    return spec.with_args(["sh"]).at.process.terminal.set(True).at.root.readonly.set(True)


def _as_in_runc(spec: oci.RuntimeSpec, host: oci.Host) -> oci.RuntimeSpec:
    """Return the default configuration of root with the members that clients of ``runc spec`` expect, and go on to change."""
    spec = _in_terminal(spec).without_caps("ALL").with_caps(*_CAPABILITIES)
    spec = spec.with_mount(spec_model.Mount(destination="/proc", type="proc", source="proc")).with_mount(_CGROUP)
    masked = tuple(path for path in spec.at.linux.masked_paths.get() or () if path not in _SHOWN)
    spec = spec.at.linux.masked_paths.set(masked)
    spec = spec.at.linux.resources.devices.set((spec_model.DeviceCgroup(allow=False, access="rwm"),))
    if any(hierarchy.mountpoint == "/sys/fs/cgroup" and hierarchy.version == 2 for hierarchy in host.hierarchies):
        spec = spec.with_namespace(spec_model.NamespaceType.CGROUP)
    return spec


def validate(options: Namespace) -> int:
    config = oci.Bundle.load(options.bundle).config_bytes
    problems = oci.RuntimeSpec.check(config, oci.Host.probe() if options.host else None)
    if options.json:
        print_json([attrs.asdict(problem) for problem in problems])
    else:
        print_lines(f"{problem.severity}: {problem}" for problem in problems)
    return int(any(problem.severity == "error" for problem in problems))


def features(options: Namespace) -> None:
    print_json(oci.features().to_dict())


def devices(options: Namespace) -> None:
    offered = oci.devices()
    if options.format == "json":
        print_json([device.to_dict() for device in offered])
    else:
        print_table([("DEVICE", "NODES", "SPEC"), *((one.name, " ".join(one.nodes), one.path) for one in offered)])


def doctor(options: Namespace) -> int:
    diagnosis = oci.doctor(state_root=options.root)
    if options.format == "json":
        print_json(diagnosis.to_dict())
    elif terminal(sys.stdout) is None:
        print(diagnosis)
    else:
        rows = [
            (one.subject, str(one.status), f"{one.detail}\n-> {one.remedy}" if one.remedy else one.detail)
            for one in diagnosis.findings
        ]
        print_table([("SUBJECT", "STATUS", "DETAIL"), *rows])
        print("", str(diagnosis).splitlines()[-1], sep="\n")
    return int(not diagnosis.usable)


def kernelspec_install(options: Namespace) -> None:
    """Write a kernel spec, after a container with these options could be made, and print where it is."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ModuleNotFoundError:
        raise oci.UnsupportedError("kernelspec needs jupyter_client: pip install 'ociruntime[notebook]'") from None
    args = without_separator(options.args) or _KERNEL
    if not any("{connection_file}" in word for word in args):
        raise ValueError(f"COMMAND {shown(' '.join(args))}: an argument with {{connection_file}} is needed, which Jupyter replaces")
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(options.image).stem.lower()).strip("-") if options.name is None else options.name
    display_name = name if options.display_name is None else options.display_name
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"--name {shown(name)}: a name of ASCII letters, digits, '.', '_' and '-' is needed")
    for option, text in (("--display-name", display_name), ("--language", options.language)):
        if not text or not text.isprintable():
            raise ValueError(f"{option} {shown(text)}: one line of text is needed")
    keywords = {
        **changes(options),
        **{keyword: getattr(options, keyword) for keyword in ("strategy", "reference", "platform")},
        "overlay": overlay(options),
    }
    given: dict[str, Any] = {keyword: value for keyword, value in keywords.items() if value is not None}
    trial: dict[str, Any] = {"user": "caller", "disk": -1, "pids": -1, **given}
    with oci.Sandbox(options.image, **trial, state_root=options.root) as sandbox:
        if args == _KERNEL:
            _check_ipykernel(sandbox, options.image)
    config = {"image": absolute_path(options.image), "options": given}
    spec = {
        "argv": args,
        "display_name": display_name,
        "language": options.language,
        "metadata": {"kernel_provisioner": {"provisioner_name": "ociruntime", "config": config}},
    }
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "kernel.json").write_text(json.dumps(spec, indent=1, default=_json_value))
        prefix = None if options.prefix is None else absolute_path(options.prefix)
        print(KernelSpecManager().install_kernel_spec(directory, name, user=prefix is None, prefix=prefix))


def _check_ipykernel(sandbox: oci.Sandbox, image: str) -> None:
    """Raise ImageError for an image without ipykernel."""
    try:
        missing = sandbox.run([_KERNEL[0], "-c", "import ipykernel"]).returncode != 0
    except oci.StepError:
        missing = True
    if missing:
        raise oci.ImageError(f"{shown(image)}: its python3 cannot import ipykernel; install it in the image, or give COMMAND")


_KERNEL: Final = ("python3", "-m", "ipykernel_launcher", "-f", "{connection_file}")


def _json_value(value: object) -> object:
    """Return the JSON of a keyword that is a mount or a preset."""
    return value.to_dict() if isinstance(value, oci.spec.Mount) else attrs.asdict(cast("Any", value))


def completion(options: Namespace) -> None:
    try:
        import shtab
    except ModuleNotFoundError:
        raise oci.UnsupportedError("completion needs shtab: pip install 'ociruntime[cli]'") from None
    from .parser import build_parser

    parser = build_parser()
    _choose_completions(parser, {"files": shtab.FILE, "directories": shtab.DIRECTORY})
    script = shtab.complete(parser, options.shell, preamble=_COMPLETION[options.shell])
    print(_ZSH_VALUE.sub(_with_equals_sign, script) if options.shell == "zsh" else script)
    if options.shell == "bash":
        print("complete -o bashdefault -F _ociruntime ociruntime")


_ZSH_VALUE: Final = re.compile(r'^  ("\*"|"\*|"|)(\{[^}"]*\}|--[\w-]+)("?\[.*\]:[^:"]*:.*")$', re.MULTILINE)
"""An option with a value in the script for zsh."""


def _with_equals_sign(option: re.Match[str]) -> str:
    """Return an option for zsh whose value may also be in the same word, which shtab does not say: ``--format=`` and ``-f+``."""
    begin, names, end = option.groups()
    names = re.sub(r"--[\w-]+", r"\g<0>=", names)
    names = re.sub(r"(?<![\w-])-\w(?=[,}])", r"\g<0>+", names)
    return f"  {begin}{names}{end}"


def _choose_completions(parser: ArgumentParser, known: dict[str, Any]) -> None:
    """Set the attribute `complete`, which shtab reads, of the arguments that are files, directories or ids of containers."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _choose_completions(command, known)
        elif (kind := _COMPLETED.get(str(action.metavar))) and action.type is not int:
            name = f"_ociruntime_{kind}"
            complete = known.get(kind) or {"bash": name, "zsh": name, "fish": f"({name})"}
            vars(action)["complete"] = complete


_COMPLETED: Final = {
    "ID": "ids",
    "ID | IMAGE": "ids_or_files",
    **dict.fromkeys(("SOURCE", "DESTINATION"), "places_or_files"),
    **dict.fromkeys(("BUNDLE", "DIR"), "directories"),
    **dict.fromkeys(("FILE", "IMAGE", "SIF", "SOCKET", "TARGET", "TO", "WHERE", "SOURCE[:DESTINATION[:ro]][,...]"), "files"),
}
"""What is offered for an argument, by what the help calls it."""

_COMPLETION: Final = {
    "bash": """
_ociruntime_ids() {
  local i root=()
  for ((i = 1; i < COMP_CWORD - 1; i++)); do
    [[ ${COMP_WORDS[i]} != --root ]] || root=(--root "${COMP_WORDS[i + 1]}")
  done
  compgen -W "$(ociruntime "${root[@]}" list --quiet 2>/dev/null)" "${@:2}" -- "$1"
}
_ociruntime_ids_or_files() { _ociruntime_ids "$1"; compgen -f -- "$1"; }
_ociruntime_places_or_files() { _ociruntime_ids "$1" -S :; compgen -f -- "$1"; }

# Bash also divides words at = and :, which shtab does not expect.
_ociruntime() {
  local i word words=() current
  for i in "${!COMP_WORDS[@]}"; do
    word=${COMP_WORDS[i]}
    if [[ $word == = && ${words[-1]} == --* ]]; then
      ((i < COMP_CWORD)) || words+=("")
    elif ((i)) && [[ $word == [=:]* || ${words[-1]} == *[=:] ]]; then
      words[-1]+=$word
    else
      words+=("$word")
    fi
    ((i != COMP_CWORD)) || current=$((${#words[@]} - 1))
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$current
  _shtab_ociruntime
  word=${words[current]}
  COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[=:]}"}"}")
}
""",
    "zsh": """
_ociruntime_ids() {
  local -a typed=("${(@Q)${(z)BUFFER}}") root ids
  local at=${typed[(i)--root]}
  (( at < $#typed )) && root=(--root "$typed[at + 1]")
  ids=("${(@f)$(ociruntime $root list --quiet 2>/dev/null)}")
  compadd "$@" -a ids
}
_ociruntime_ids_or_files() { _alternative 'ids:container:_ociruntime_ids' 'files:file:_files' }
_ociruntime_places_or_files() { _alternative 'ids:container:_ociruntime_ids -S :' 'files:file:_files' }
""",
    "fish": """
function _ociruntime_ids
  set -l typed (commandline -opc)
  set -l root
  if set -l at (contains -i -- --root $typed)
    set root --root $typed[(math $at + 1)]
  end
  ociruntime $root list --quiet 2>/dev/null
end
function _ociruntime_ids_or_files
  _ociruntime_ids
  __fish_complete_path (commandline -ct)
end
function _ociruntime_places_or_files
  _ociruntime_ids | string replace -r '$' :
  __fish_complete_path (commandline -ct)
end
""",
}
"""The functions that find what is offered, in the language of each shell."""

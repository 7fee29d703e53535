"""Values of the package as HTML, as notebooks show them.

All text is escaped, because names and output come from images and containers. The HTML has no scripts and loads nothing. Colours
are transparent or of medium lightness, so that they suit light and dark backgrounds.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from ..arguments import printable, size_text
from ..errors import ImageError, OCIRuntimeError, StateError

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..container import Container
    from ..diagnosis import Diagnosis
    from ..engine.cgroup.stats import IoStats, MemoryUse, Stall, Stats
    from ..image import Image
    from ..lifecycle.snapshots import Changes
    from ..plan import Plan, Step
    from ..process import Result
    from ..sandbox import Sandbox
    from ..spec import Mount, RuntimeSpec
    from ..spec.base import Problems
    from ..spec.edit import Diff
    from ..state import State
    from ..stats import Profile, ProfileStep, Usage

__all__ = ["page", "render"]

_STYLE: Final = """<style>
.oci.oci{font:13px/1.5 system-ui,sans-serif;overflow-x:auto;container-type:inline-size}
.oci.oci p,.oci.oci pre{margin:2px 0}
.oci.oci code,.oci.oci pre{font:12px/1.5 ui-monospace,monospace;background:none;color:inherit;padding:0}
.oci.oci code{overflow-wrap:anywhere}
.oci.oci pre{white-space:pre-wrap;border-left:3px solid rgba(128,128,128,.4);padding-left:8px;max-height:32em;overflow:auto}
.oci.oci b{border-radius:3px;padding:0 5px;background:rgba(128,128,128,.25);white-space:nowrap}
.oci.oci b.good{background:rgba(46,160,67,.35)}
.oci.oci b.weak{background:rgba(210,153,34,.4)}
.oci.oci b.bad{background:rgba(248,81,73,.4)}
.oci.oci summary{cursor:pointer}
.oci.oci details>*:not(summary){margin-left:14px}
.oci.oci table{border-collapse:collapse;margin:2px 0;table-layout:auto;font-size:13px;border:0}
.oci.oci caption{text-align:left;font-weight:600;padding:2px 6px;color:inherit}
.oci.oci th,.oci.oci td{padding:1px 6px;text-align:left;vertical-align:top;border:0;max-width:48em;overflow-wrap:break-word}
.oci.oci td.text{min-width:9em;overflow-wrap:anywhere}
.oci.oci td:has(code){min-width:8em}
.oci.oci th{opacity:.75;font-weight:600}
.oci.oci td.figure{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.oci.oci tbody tr:nth-child(odd){background:none}
.oci.oci tbody tr:nth-child(even){background:rgba(128,128,128,.1)}
.oci.oci tr.host td:first-child,.oci.oci i.host{box-shadow:inset 3px 0 #3b82c4}
.oci.oci tr.init td:first-child,.oci.oci i.init{box-shadow:inset 3px 0 #d97706}
.oci.oci i{font-style:normal;padding:0 8px}
.oci.oci td.bar{width:40%;min-width:80px;vertical-align:middle}
@container (max-width:600px){.oci.oci .wide{display:none}}
.oci.oci tr.gap td:not(.bar){opacity:.75;font-style:italic}
.oci.oci td.bar div,.oci.oci div.use,.oci.oci div.use div{height:10px;min-width:1px;background:#8a8a8a}
.oci.oci div.use{display:inline-block;width:120px;margin-right:6px;background:rgba(128,128,128,.3)}
.oci.oci div.host.host{background:#3b82c4}
.oci.oci div.init.init{background:#d97706}
</style>"""
_PAGE_STYLE: Final = "<style>:root{color-scheme:light dark}body{margin:16px}</style>"

_MAX_OUTPUT: Final = 20_000
"""Characters of an output that are shown: half of them of its beginning, half of its end."""
_OPEN_LINES: Final = 12
"""Lines of an output that is not folded."""
_MAX_ROWS: Final = 200
_MAX_VALUE: Final = 200
"""Characters of a JSON value that are shown."""
_COLOURS: Final = re.compile(r"\x1b\[[0-9;:]*m")
"""Escape sequences for colours and fonts (ECMA-48, SGR)."""


def render(value: object) -> str:
    """Return a value of the package as HTML.

    Raises:
        TypeError: its class has no representation.
    """
    for cls in type(value).__mro__:
        make = _REPRESENTATIONS.get(cls.__name__)
        if make is not None and cls.__module__.startswith("ociruntime."):
            return f'{_STYLE}<div class="oci">{make(value)}</div>'
    raise TypeError(f"{type(value).__name__} has no representation in HTML")


def page(value: object, title: str) -> str:
    """Return a whole page with a value of the package. It loads nothing from elsewhere. Raises as `render`."""
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><meta name="color-scheme" content="light dark">{_PAGE_STYLE}'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{render(value)}</body></html>\n'


# ---- parts ----


def _text(value: object) -> str:
    """Return text on one line. Characters that are not printable are shown as escapes."""
    return escape(printable(str(value)))


def _code(value: object) -> str:
    return f"<code>{_text(value)}</code>"


def _badge(text: object, kind: str = "") -> str:
    return f'<b class="{kind}">{_text(text)}</b>' if kind else f"<b>{_text(text)}</b>"


def _fold(summary: str, body: str, *, unfolded: bool = False) -> str:
    """Return a part with a heading on which readers click; empty without a body."""
    return f"<details{' open' if unfolded else ''}><summary>{summary}</summary>{body}</details>" if body else ""


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, which are HTML. Without a value, the name is left out."""
    rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts if value)
    return f"<table><tbody>{rows}</tbody></table>" if rows else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table of rows, whose cells are HTML: only the first rows of many, and no columns without any value."""
    kept = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    head = "".join(f"<th>{columns[number]}</th>" for number in kept)
    body = "".join("<tr>" + "".join(f"<td>{row[number]}</td>" for number in kept) + "</tr>" for row in rows[:_MAX_ROWS])
    more = f"<p>and {len(rows) - _MAX_ROWS} more</p>" if len(rows) > _MAX_ROWS else ""
    heading = f"<caption>{caption}</caption>" if caption else ""
    return f"<table>{heading}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}" if rows or caption else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _when(nanoseconds: int) -> str:
    """Return a Unix time; empty for 0, which stands for one that is not known."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(nanoseconds // 10**9)) if nanoseconds else ""


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _code(text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…")


# ---- processes ----

_STATUSES: Final = {"running": "good", "created": "weak", "creating": "weak", "paused": "weak"}


def _result(result: Result[Any]) -> str:
    if result.timed_out:
        status, kind = "timed out", "bad"
    elif result.signal is not None:
        status, kind = f"signal {result.signal}", "bad"
    else:
        status, kind = f"exit code {result.returncode}", "bad" if result.returncode else "good"
    marks = _badge("out of memory", "bad") if result.oom_killed else ""
    marks += _badge("output truncated", "weak") if result.truncated else ""
    command = _code(" ".join(result.args))
    head = f"<p>{_badge(status, kind)}{marks} {command} {_seconds(result.duration)}{_usage(result.usage)}</p>"
    folds = "".join(_output(name, getattr(result, name)) for name in ("stdout", "stderr"))
    return head + folds + (_fold("profile", _profile(result.profile)) if result.profile is not None else "")


def _usage(usage: Usage) -> str:
    if not (usage.total or usage.peak_memory):
        return ""
    parts = f"{_seconds(usage.total)} (user {_seconds(usage.user)}, system {_seconds(usage.system)})"
    return f", CPU {parts}, peak memory {size_text(usage.peak_memory)}"


def _output(name: str, output: bytes | str | None) -> str:
    if not output:
        return ""
    text = _COLOURS.sub("", output.decode("utf-8", "backslashreplace") if isinstance(output, bytes) else output)
    lines = len(text.splitlines())
    left_out = len(text) - _MAX_OUTPUT
    if left_out > 0:
        half = _MAX_OUTPUT // 2
        text = f"{text[:half]}\n… {_count(left_out, 'character')} …\n{text[-half:]}"
    shown = "\n".join(escape(printable(line, "\t")) for line in text.rstrip("\n").split("\n"))
    return _fold(f"{name}, {_count(lines, 'line')}", f"<pre>{shown}</pre>", unfolded=lines <= _OPEN_LINES and left_out <= 0)


# ---- containers ----


def _state(state: State, name: str = "container") -> str:
    ended = bool(state.oom_killed or (state.exit_code or 0))
    mark = _badge(state.status, "bad" if ended else _STATUSES.get(str(state.status), ""))
    facts = _facts(
        (
            ("pid", str(state.pid) if state.pid else ""),
            ("ended", _text(state.exit_desc)),
            ("bundle", _code(state.bundle)),
            ("root filesystem", _code(state.rootfs) if state.rootfs else ""),
            ("created", _when(state.created_at)),
            ("started", _when(state.started_at)),
            ("finished", _when(state.finished_at)),
            ("log", _code(state.log_path) if state.log_path else ""),
            ("output lost", _count(state.log_lost.bytes, "byte") if state.log_lost else ""),
            ("log error", _text(state.log_error)),
        )
    )
    annotations = _facts((_text(key), _code(value)) for key, value in sorted(state.annotations.items()))
    folded = _fold(_count(len(state.annotations), "annotation"), annotations)
    return f"<p>{_text(name)} {_code(state.id)} {mark}</p>{facts}{folded}"


def _container(container: Container) -> str:
    try:
        return _state(container.state)
    except StateError:
        return f"<p>container {_code(container.id)} {_badge('deleted')}</p>"


def _sandbox(sandbox: Sandbox) -> str:
    mark = _badge("closed") if sandbox.closed else _badge(sandbox.container.status, _STATUSES.get(sandbox.container.status, ""))
    limits = _facts((_text(limit), _text(enforcer)) for limit, enforcer in sandbox.limits.items())
    return f"<p>sandbox {_code(sandbox.name)} {mark}</p>{_fold('limits, and what enforces them', limits)}"


def _changes(changes: Changes) -> str:
    rows = [
        (_text(change.kind), _text(change.type), size_text(change.size) if change.size else "", _code(change.path))
        for change in changes
    ]
    return f"<p>{_text(changes._counts())}</p>{_table(('kind', 'type', 'size', 'path'), rows)}"


# ---- statistics ----


def _stats(stats: Stats) -> str:
    cpu, memory, pids = stats.cpu, stats.memory, stats.pids
    facts: list[tuple[str, str]] = []
    if cpu is not None:
        parts = [
            f"{name} {_seconds(value / 1e9)}" for name, value in (("user", cpu.user), ("system", cpu.system)) if value is not None
        ]
        facts.append(("CPU time", _seconds((cpu.usage or 0) / 1e9) + (f" ({', '.join(parts)})" if parts else "")))
        if cpu.throttled_periods:
            facts.append(("throttled", f"{_seconds((cpu.throttled_time or 0) / 1e9)} in {_count(cpu.throttled_periods, 'period')}"))
    if memory is not None:
        facts += [("memory", _memory(memory)), ("file cache", size_text(memory.cache) if memory.cache else "")]
        for name, use in (("memory and swap", memory.swap), ("kernel memory", memory.kernel), ("TCP buffers", memory.kernel_tcp)):
            facts.append((name, _memory(use) if use is not None and use.usage else ""))
        facts.append(("OOM kills", _badge(memory.oom_kills, "bad") if memory.oom_kills else ""))
    if pids is not None:
        facts.append(("processes", f"{pids.current}{f' of {pids.limit}' if pids.limit is not None else ''}"))
    facts += [(f"huge pages of {_text(size)}", size_text(huge.usage)) for size, huge in stats.hugetlb.items() if huge.usage]
    stalls = [("CPU", cpu and cpu.pressure), ("memory", memory and memory.pressure), ("I/O", stats.io and stats.io.pressure)]
    interfaces = [
        (_code(one.name), size_text(one.rx_bytes), str(one.rx_packets), size_text(one.tx_bytes), str(one.tx_packets))
        for one in stats.interfaces
    ]
    return (
        f"<p>statistics at {_when(stats.time)}</p>{_facts(facts)}"
        + _fold("pressure", _pressure([(name, stall) for name, stall in stalls if stall]))
        + _fold("block devices", _io(stats.io) if stats.io is not None else "")
        + _fold("network interfaces", _table(("name", "received", "packets", "sent", "packets"), interfaces))
    )


def _memory(use: MemoryUse) -> str:
    text, bar = size_text(use.usage), ""
    if use.limit:
        text += f" of {size_text(use.limit)}"
        bar = f'<div class="use"><div style="width:{min(100 * use.usage / use.limit, 100):.1f}%"></div></div>'
    peak = f", peak {size_text(use.peak)}" if use.peak is not None else ""
    return f"{bar}{text}{peak}{f', limit reached {use.failures} times' if use.failures else ''}"


def _pressure(stalls: Sequence[tuple[str, Stall]]) -> str:
    rows = [
        (name, which, *(f"{value:.1f} %" for value in (line.avg10, line.avg60, line.avg300)), _seconds(line.total / 1e6))
        for name, stall in stalls
        for which, line in (("some", stall.some), ("full", stall.full))
        if line is not None
    ]
    return _table(("resource", "tasks", "10 s", "60 s", "300 s", "total"), rows)


def _io(io: IoStats) -> str:
    counts = {(entry.major, entry.minor, entry.op): entry.value for entry in io.operations}
    rows = [
        (
            f"{entry.major}:{entry.minor}",
            _text(entry.op),
            size_text(entry.value),
            str(counts.get((entry.major, entry.minor, entry.op), "")),
        )
        for entry in io.bytes
        if entry.value
    ]
    return _table(("device", "operation", "size", "operations"), rows)


def _profile(profile: Profile) -> str:
    whole = profile.duration
    heads = (
        ("", ""),
        ("wide", "side"),
        ("", "step"),
        ("", ""),
        ("wide", "start, ms"),
        ("", "ms"),
        ("wide", "%"),
        ("", "waterfall"),
    )
    head = "".join(f'<th class="{kind}">{name}</th>' for kind, name in heads)
    rows = "".join(_profile_row(step, whole) for step in profile.steps)
    caption = f"{_text(profile.title or 'no plan')}: {whole / 1e6:.3f} ms"
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _profile_row(step: ProfileStep, whole: int) -> str:
    kind, bar = _text(step.side) if step.number is not None else "gap", ""
    start, duration, share = "", "", ""
    if step.start is not None and step.duration is not None and whole:
        start, duration, share = f"{step.start / 1e6:.3f}", f"{step.duration / 1e6:.3f}", f"{100 * step.duration / whole:.1f}"
        place = f"margin-left:{100 * step.start / whole:.3f}%;width:{100 * step.duration / whole:.3f}%"
        bar = f'<div class="{kind}" style="{place}"></div>'
    figures = "".join(
        f'<td class="figure{kind}">{value}</td>' for kind, value in ((" wide", start), ("", duration), (" wide", share))
    )
    number = "" if step.number is None else step.number
    return (
        f'<tr class="{kind}"><td class="figure">{number}</td><td class="wide">{_text(step.side)}</td><td>{_text(step.op)}</td>'
        f'<td class="text" title="{_text(step.phase)}">{_text(step.text)}</td>{figures}<td class="bar">{bar}</td></tr>'
    )


# ---- plans ----

_SIDES: Final = {"host": "calling process", "init": "init process"}


def _plan(plan: Plan) -> str:
    sides = [str(step.side) for step in plan.steps]
    legend = " ".join(f'<i class="{side}">{sides.count(side)} by the {name}</i>' for side, name in _SIDES.items() if side in sides)
    phases = "".join(
        _phase(phase, list(steps)) for phase, steps in groupby(enumerate(plan.steps, 1), key=lambda numbered: numbered[1].phase)
    )
    later = [(kind, _code(program.describe(kind))) for kind in ("poststart", "poststop") for program in plan.hooks.get(kind, ())]
    warnings = "".join(f"<p>{_badge('warning', 'weak')} {_text(warning)}</p>" for warning in plan.warnings)
    notes = "".join(f"<p>{_text(note)}</p>" for note in plan.notes)
    title = f"<p>{_text(plan.title)}: {_count(len(plan.steps), 'step')} {legend}</p>"
    return title + notes + warnings + phases + _fold("After start, and after delete", _facts(later))


def _phase(name: str, steps: Sequence[tuple[int, Step]]) -> str:
    rows = "".join(
        f'<tr class="{_text(step.side)}"><td class="figure">{number}</td><td class="wide">{_text(step.side)}</td>'
        f'<td>{_text(step.op)}</td><td class="text">{_text(step.text)}</td>'
        f"<td>{_code(step.location) if step.location else ''}</td></tr>"
        for number, step in steps
    )
    sides = " and ".join(f'<i class="{side}">{side}</i>' for side in _SIDES if any(step.side == side for _, step in steps))
    summary = f"{_text(name)}, {_count(len(steps), 'step')} {sides}"
    return _fold(summary, f"<table><tbody>{rows}</tbody></table>")


# ---- bundles and images ----


def _bundle(bundle: Bundle) -> str:
    head = f"<p>bundle {_code(bundle.path)}</p>"
    try:
        return head + _spec(bundle.spec)
    except (OCIRuntimeError, OSError) as error:
        return f"{head}<p>{_badge('invalid', 'bad')} {_text(error)}</p>"


def _spec(spec: RuntimeSpec) -> str:
    process, linux = spec.process, spec.linux
    facts: list[tuple[str, str]] = [("root filesystem", _code(spec.root.path) if spec.root is not None else "")]
    env: tuple[str, ...] = ()
    if process is not None:
        env = tuple(process.env or ())
        user = process.user
        facts += [
            ("command", _code(" ".join(process.args or ()))),
            ("user", f"{user.uid}:{user.gid}" if user is not None else ""),
            ("working directory", _code(process.cwd)),
        ]
    facts.append(("hostname", _code(spec.hostname) if spec.hostname else ""))
    if linux is not None and linux.namespaces:
        facts.append(("namespaces", ", ".join(_text(namespace.type) for namespace in linux.namespaces)))
    variables = _facts((_text(name), _code(value)) for name, _, value in (entry.partition("=") for entry in env))
    mounts = [_mount_row(mount) for mount in spec.mounts or ()]
    return (
        _facts(facts)
        + _fold(_count(len(mounts), "mount"), _table(("destination", "type", "source", "options"), mounts))
        + _fold(_count(len(env), "variable"), variables)
    )


def _mount_row(mount: Mount) -> tuple[str, ...]:
    source = _code(mount.source) if mount.source else ""
    return _code(mount.destination), _text(mount.type or ""), source, _text(", ".join(mount.options or ()))


def _image(image: Image) -> str:
    facts = [
        ("kind", str(image.kind)),
        ("architecture", image.architecture),
        ("names", ", ".join(image.references)),
        ("digest", image.digest),
        ("signatures", str(len(image.signatures)) if image.signatures else ""),
    ]
    rows = [
        (
            _text(layer.role),
            _text(layer.filesystem or layer.format),
            size_text(layer.size),
            _code(layer.digest) if layer.digest else "",
        )
        for layer in (*image.layers, *image.overlays, *image.data)
    ]
    known = _facts((name, _text(value)) for name, value in facts)
    layers = _fold(_count(len(rows), "layer"), _table(("role", "format", "size", "digest"), rows), unfolded=True)
    closed = _badge("closed") if image.closed else ""
    return f"<p>image {_code(image.name)} {closed}</p>{known}{layers}{_configuration(image)}"


def _configuration(image: Image) -> str:
    """Return the defaults for a container and the labels, or what is wrong with them; empty for a closed image."""
    if image.closed:
        return ""
    try:
        config, labels = image.config(), image.labels
    except ImageError as error:
        return f"<p>{_badge('invalid', 'bad')} {_text(error)}</p>"
    folded = ""
    if config is not None:
        facts = (
            ("entrypoint", _code(" ".join(config.entrypoint)) if config.entrypoint else ""),
            ("command", _code(" ".join(config.cmd)) if config.cmd else ""),
            ("user", _code(config.user) if config.user else ""),
            ("working directory", _code(config.working_dir) if config.working_dir else ""),
            *((_text(name), _code(value)) for name, _, value in (entry.partition("=") for entry in config.env or ())),
        )
        folded = _fold("configuration", _facts(facts))
    return folded + _fold(_count(len(labels), "label"), _facts((_text(key), _code(value)) for key, value in labels.items()))


# ---- findings ----

_SEVERITIES: Final = {"error": "bad", "warning": "weak"}
_AVAILABILITIES: Final = {"ok": "good", "limited": "weak", "missing": "bad"}
_CHANGES: Final = {"added": "good", "removed": "bad", "changed": "weak"}


def _problems(problems: Problems) -> str:
    rows = [
        (_badge(one.severity, _SEVERITIES[one.severity]), _code(one.path), _text(one.message), _text(one.section))
        for one in problems
    ]
    return f"<p>{_count(len(problems), 'problem')}</p>{_table(('', 'path', 'problem', 'section'), rows)}"


def _diff(diff: Diff) -> str:
    rows = [
        (
            _badge(one.kind, _CHANGES[one.kind]),
            _code(one.path),
            "" if one.kind == "added" else _json(one.before),
            "" if one.kind == "removed" else _json(one.after),
        )
        for one in diff
    ]
    return f"<p>{_count(len(diff), 'difference')}</p>{_table(('', 'path', 'before', 'after'), rows)}"


def _diagnosis(diagnosis: Diagnosis) -> str:
    rows = [
        (_text(one.subject), _badge(one.status, _AVAILABILITIES[one.status]), _text(one.detail), _text(one.remedy))
        for one in diagnosis.findings
    ]
    return _table(("subject", "status", "detail", "remedy"), rows, _text(diagnosis._verdict()))


_REPRESENTATIONS: Final[dict[str, Callable[[Any], str]]] = {
    "Bundle": _bundle,
    "Changes": _changes,
    "Container": _container,
    "Diagnosis": _diagnosis,
    "Diff": _diff,
    "Image": _image,
    "Plan": _plan,
    "Problems": _problems,
    "Profile": _profile,
    "Result": _result,
    "Sandbox": _sandbox,
    "State": _state,
    "Stats": _stats,
}
"""What makes the representation of a class, by the name of the class."""

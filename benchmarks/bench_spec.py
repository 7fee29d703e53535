"""Cost of the document classes: reading, writing, checking and changing a config, against json alone and against msgspec.

    python benchmarks/bench_spec.py [--rounds N] [--cold-rounds N] [--json FILE]

The document is the default config with its profile of 300 system calls, without white space. msgspec, if it is installed, decodes
it into structs made from the document classes: the same members, types and enumerations, but without unknown members, number ranges
and the difference between absent and null.

Warm cases are calls in one process after the first, measured in CPU time. Cold cases are whole processes, from start to the loaded
config, imports included. The cases alternate within a round and the tables have medians, so a change of the machine's speed affects
all of them. The last line compares warm loading with its budget; the exit status never depends on a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ociruntime.spec import RuntimeSpec, diff
from ociruntime.spec.base import Member, Record, members_of

WARM_BUDGET = 6.0
"""Maximum of the time of a warm load, in times of json.loads."""
OTHER_PLATFORMS = {"solaris", "windows", "vm", "zos", "freebsd"}
BATCH = 20


# ---- the same model for msgspec ----


def structs() -> str:
    """Return a module of msgspec structs for the Linux part of the classes."""
    text = ["import enum", "from typing import Any", "import msgspec", ""]
    done: set[type] = set()

    def annotation(member: Member) -> str:
        item = member.kind.item
        make(item)
        name = "Any" if item is object else item.__name__
        return {"tuple": f"tuple[{name}, ...]", "Mapping": f"dict[str, {name}]"}.get(member.kind.outer, name)

    def make(cls: type) -> None:
        if cls in done or cls.__module__ == "builtins":
            return
        done.add(cls)
        if not issubclass(cls, Record):
            values = "".join(f"    {value.name} = {value.value!r}\n" for value in cls)  # type: ignore[attr-defined]
            text.append(f"class {cls.__name__}(enum.Enum):\n{values}")
            return
        members = [member for member in members_of(cls).values() if member.key not in OTHER_PLATFORMS]
        lines = [f"    {member.name}: {annotation(member)}{'' if member.required else ' | None = None'}\n" for member in members]
        names = {member.name: member.key for member in members if member.name != member.key}
        text.append(f"class {cls.__name__}(msgspec.Struct, frozen=True, kw_only=True, rename={names!r}):\n{''.join(lines)}")

    make(RuntimeSpec)
    return "\n".join(text)


# ---- warm ----


def warm(text: bytes, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of each case in each round, as the mean of a batch."""
    spec = RuntimeSpec.loads(text)
    document = json.loads(text)
    other = spec.merge({"hostname": "other", "mounts": [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}]})
    path = folder / "default.json"
    cases: dict[str, Callable[[], object]] = {
        "json.loads": lambda: json.loads(text),
        "RuntimeSpec.loads": lambda: RuntimeSpec.loads(text),
        "RuntimeSpec.load, a file": lambda: RuntimeSpec.load(path),
        "RuntimeSpec.load, a mapping": lambda: RuntimeSpec.load(document),
        "json.dumps": lambda: json.dumps(document),
        "spec.to_json": spec.to_json,
        "spec.to_dict": spec.to_dict,
        "spec.at...limit.set": lambda: spec.at.linux.resources.memory.limit.set(1 << 30),
        "spec.evolve": lambda: spec.evolve(hostname="x"),
        "hash(spec)": lambda: hash(spec),
        "spec == another": lambda: spec == other,
        "diff": lambda: diff(spec, other),
        "spec.validate": spec.validate,
        "RuntimeSpec.default": RuntimeSpec.default,
    }
    if find_spec("msgspec"):
        sys.path.insert(0, str(folder))
        model, msgspec = import_module("structs_of_msgspec"), import_module("msgspec")
        decoder = msgspec.json.Decoder(model.RuntimeSpec)
        value = decoder.decode(text)
        cases["msgspec, untyped"] = lambda: msgspec.json.decode(text)
        cases["msgspec, into structs"] = lambda: decoder.decode(text)
        cases["msgspec, structs to JSON"] = lambda: msgspec.json.encode(value)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            began = time.process_time()
            for _ in range(BATCH):
                case()
            times[name].append((time.process_time() - began) / BATCH * 1e6)
    return times


# ---- cold ----

_LOAD = "from ociruntime.spec import RuntimeSpec\nspec = RuntimeSpec.load(path)\n"
_MSGSPEC = "import msgspec, structs_of_msgspec\nmsgspec.json.decode(open(path, 'rb').read(), type=structs_of_msgspec.RuntimeSpec)\n"
COLD = {
    "the interpreter": "",
    "json.load": "import json\njson.load(open(path, 'rb'))\n",
    "json.load, with typing and enum imported": "import json, typing, enum\njson.load(open(path, 'rb'))\n",
    "msgspec, into structs": _MSGSPEC,
    "RuntimeSpec.load": _LOAD,
    "RuntimeSpec.load and to_json": _LOAD + "spec.to_json()\n",
    "RuntimeSpec.load and validate": _LOAD + "spec.validate()\n",
}


def cold(folder: Path, rounds: int) -> dict[str, float]:
    """Return the milliseconds of each case, each in a process of its own with the packages of this one."""
    cases = {name: text for name, text in COLD.items() if text is not _MSGSPEC or find_spec("msgspec")}
    setup = f"import sys\nsys.path[:0] = {[str(folder), *sys.path]!r}\npath = {str(folder / 'default.json')!r}\n"
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, text in cases.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-S", "-c", setup + text], check=True)
            if number:  # the first round writes bytecode
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


# ---- tables ----


def table(title: str, unit: str, rows: Mapping[str, float], base: str) -> None:
    print(f"\n{title}\n")
    for name, figure in rows.items():
        print(f"  {name:<44}{figure:>10.1f} {unit}{figure / rows[base]:>8.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the document classes.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cold-rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = RuntimeSpec.default().to_json().encode()
        (folder / "default.json").write_bytes(text)
        (folder / "structs_of_msgspec.py").write_text(structs())
        rounds = warm(text, folder, options.rounds)
        results: dict[str, Any] = {
            "warm, us": {case: statistics.median(found) for case, found in rounds.items()},
            "cold, ms": cold(folder, options.cold_rounds),
        }
    print(f"{len(text)} bytes, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs; medians")
    table("Warm, against json.loads", "us", results["warm, us"], "json.loads")
    table("Cold, a whole process, against the interpreter alone", "ms", results["cold, ms"], "the interpreter")
    factor = statistics.median(
        loads / plain for loads, plain in zip(rounds["RuntimeSpec.loads"], rounds["json.loads"], strict=True)
    )
    print(
        f"\nloading when warm: {factor:.2f} times json.loads, budget {WARM_BUDGET}: {'OVER' if factor > WARM_BUDGET else 'within'}"
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

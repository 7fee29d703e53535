"""Make the pictures of the documentation, docs/pictures/*.png: values of the package as a notebook shows them.

``python docs/pictures.py`` needs busybox, a program that packs squashfs, and Chromium, which takes the pictures.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path

import attrs

import ociruntime as oci

PICTURES = Path(__file__).parent / "pictures"
WIDTH = 800
"""Width of a picture in CSS pixels, of which each is one and a half of its own."""

PAGE = """<!doctype html><meta charset="utf-8"><style>
body{margin:0;padding:12px;font:13px system-ui,sans-serif;background:#fff;color:#1f2328;overflow:hidden}
.cell{display:grid;grid-template-columns:56px 1fr;gap:2px 6px;margin-bottom:10px}
.prompt{font:12px/1.5 monospace;color:#307fc1;text-align:right;padding-top:6px}
.code{font:12px/1.5 monospace;background:#f5f5f5;border:1px solid #e0e0e0;padding:5px 8px;margin:0;white-space:pre}
.output{grid-column:2;padding:2px 8px}
body .oci.oci td{white-space:nowrap;max-width:215px;overflow:hidden;text-overflow:ellipsis}
</style><body>"""

NOTEBOOK = (
    """result = oci.run(image, ["seq", "100"], capture_output=True, text=True)
result""",
    """sandbox = oci.Sandbox(image, memory="64M", limits="if possible")
sandbox.shell("mkdir /work; seq 1000 > /work/numbers; rm /bin/vi")
sandbox.changes()""",
    "sandbox",
)


def make_image(directory: Path) -> Path:
    """Make an image of the busybox of this machine."""
    programs = directory / "rootfs/bin"
    programs.mkdir(parents=True)
    busybox = shutil.copy(shutil.which("busybox") or "busybox", programs / "busybox")
    for name in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if name != "busybox":
            (programs / name).symlink_to("busybox")
    image = directory / "busybox.sif"
    oci.build(directory / "rootfs", image, config={"Cmd": ["sh"]})
    return image


def run_cells(image: Path) -> str:
    """Run the cells of the notebook, and return them with what a notebook shows of their last expressions."""
    names: dict[str, object] = {"oci": oci, "image": str(image)}
    shown = []
    for number, code in enumerate(NOTEBOOK, 1):
        *statements, last = ast.parse(code).body
        assert isinstance(last, ast.Expr)
        exec(compile(ast.Module(statements, []), "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        prompt = f'<div class="prompt">[{number}]:</div><pre class="code">{escape(code)}</pre>'
        shown.append(f'<div class="cell">{prompt}<div class="output">{value._repr_html_()}</div></div>')
    sandbox = names["sandbox"]
    assert isinstance(sandbox, oci.Sandbox)
    sandbox.close()
    return "".join(shown)


def measure(image: Path) -> oci.Profile:
    """Return the time of each step of a run."""
    profile = oci.run(image, ["true"], profile=True, container_id="one").profile
    assert profile is not None
    return profile


def take(name: str, html: str, directory: Path) -> None:
    """Write a picture of a page, as high as its content."""
    page = directory / f"{name}.html"
    page.write_text(f"{PAGE}{html}<script>document.title = document.body.offsetHeight</script>")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={directory}/profile"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # Chromium's own sandbox refuses root

    def call(*more: str) -> str:
        return subprocess.run([chromium, *options, *more, page.as_uri()], capture_output=True, text=True, check=True).stdout

    title = re.search(r"<title>(\d+)</title>", call(f"--window-size={WIDTH},600", "--dump-dom"))
    assert title is not None
    target = PICTURES / f"{name}.png"
    call(f"--window-size={WIDTH},{title[1]}", "--force-device-scale-factor=1.5", f"--screenshot={target}")
    print(target, target.stat().st_size)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        image = make_image(directory)
        with oci.Bundle.from_image(image, directory / "bundle") as bundle:
            html = bundle.with_args(["sleep", "1000"]).plan()._repr_html_()
        phases = html.replace(f"{directory}/", "").split("<details")
        take("plan", "<details".join([*phases[:-1], " open" + phases[-1]]), directory)  # the last phase is unfolded
        profile = min((measure(image) for _ in range(40)), key=lambda profile: profile.duration)
        slowest = sorted(profile.steps, key=lambda step: step.duration or 0)[-16:]
        shown = attrs.evolve(profile, steps=tuple(step for step in profile.steps if step in slowest))
        take("waterfall", shown._repr_html_().replace(f"{directory}/", ""), directory)
        take("notebook", run_cells(image), directory)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""An evaluation with Inspect: a model solves tasks by a shell, which runs in a sandbox of this package.

usage: evaluation.py IMAGE LOGS. It needs the extra ``inspect``. The model is a mock, so that no key is needed.
"""

from __future__ import annotations

import sys

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool
from inspect_ai.util import SandboxEnvironmentSpec, sandbox

from ociruntime.integrations.inspect_ai import SandboxConfig


@tool
def shell():  # type: ignore[no-untyped-def]
    """Return a tool for the model."""

    async def execute(line: str) -> str:
        """Run a line in the shell of the sandbox.

        Args:
            line: what to run.
        """
        result = await sandbox().exec(["sh", "-c", line], timeout=30)
        return result.stdout + result.stderr

    return execute


def main(image: str, logs: str) -> None:
    """Evaluate a mock model, which calls the tool and answers with its result."""
    samples = [
        Sample(input="How many lines has /work/data?", target="3", files={"/work/data": "a\nb\nc\n"}),
        Sample(input="How many lines has /work/data?", target="1", files={"/work/data": "a\n"}),
    ]

    def answer(messages: list, *_: object):  # type: ignore[type-arg, no-untyped-def]
        last = messages[-1]
        if last.role == "tool":
            output = ModelOutput.from_content("mockllm/model", f"It has {last.text.strip()}.")
        else:
            output = ModelOutput.for_tool_call("mockllm/model", "shell", {"line": "wc -l < /work/data"})
        output.usage = ModelUsage()  # otherwise Inspect counts the tokens, by a table that it downloads
        return output

    options = {"memory": "256M", "limits": "if possible", "network": "none"}
    task = Task(
        dataset=samples,
        solver=[use_tools(shell()), generate()],
        scorer=includes(),
        sandbox=SandboxEnvironmentSpec("ociruntime", SandboxConfig(image=image, options=options)),
    )
    (log,) = evaluate(task, model=get_model("mockllm/model", custom_outputs=answer), log_dir=logs, display="none")
    if log.results is None:
        sys.exit(f"evaluation.py: {log.error.message if log.error else log.status}")
    print(f"{log.results.completed_samples} samples: accuracy {log.results.scores[0].metrics['accuracy'].value}")


if __name__ == "__main__":
    main(*sys.argv[1:])

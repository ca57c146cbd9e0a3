"""What of ``verifiers`` (v1, release 0.4) one call and its text can stand for; everything else is refused by name.

Knows verifiers' environments, task sets and tasks; nothing of how a reply is scored.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from colever.errors import TaskError

ACCEPTED = "accepted: one text to the model, one reply, and rewards that read the trace alone"
_HOOKS = "setup", "finalize", "stage_verifier", "runtime_env"
_FIELDS = "image", "workdir", "agent_user", "skills", "artifacts"


def library() -> Any:
    """``verifiers.v1``. Raises TaskError with what to install."""
    try:
        return import_module("verifiers.v1")
    except ImportError as error:
        raise TaskError(
            f"verifiers cannot be imported ({error}); accepted: pip install 'colever[verifiers]', which is 0.4"
        ) from error


def taskset_of(environment: Any, config: Mapping[str, Any] | None = None) -> Any:
    """The task set of an id, an environment, or itself. Raises TaskError where its environment or harness is its own.

    A task set says nothing of its harness: it is asked without tools, as verifiers' harness ``null`` asks.
    """
    vf = library()
    if isinstance(environment, str):
        return _installed(vf, environment, config or {})
    if config is not None:
        raise TaskError("verifiers: config goes with an id; accepted: an id, or a task set that has its settings")
    if isinstance(environment, vf.Env):
        if type(environment) is not vf.SingleAgentEnv:
            refuse(type(environment).__name__, "is an environment of its own")
        harness = environment.config.agent.harness
        if harness is not None and harness.id != "null":
            refuse(type(environment).__name__, f"runs the harness {harness.id!r}")
        environment = environment.taskset
    if not isinstance(environment, vf.Taskset):
        raise TaskError(
            f"verifiers: a {type(environment).__name__}; accepted: a verifiers.v1 Taskset or SingleAgentEnv, or its id"
        )
    return environment


def _installed(vf: Any, name: str, config: Mapping[str, Any]) -> Any:
    try:
        environment, harness = vf.environment_class(name), vf.default_harness_id(name)
        settings = vf.taskset_config_type(name).model_validate({**config, "id": name})
        taskset = vf.load_taskset(settings)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise TaskError(f"verifiers: {name!r} cannot be loaded: {error}") from error
    if environment is not vf.SingleAgentEnv:
        refuse(name, f"is an environment of its own, {environment.__name__}")
    if harness == name:
        refuse(name, "runs a harness of its own")
    return taskset


def read_tasks(taskset: Any, most: int) -> list[Any]:
    """The tasks of a task set, at most ``most`` of an endless one. Raises TaskError for what cannot be carried over."""
    vf, name = library(), type(taskset).__name__
    if type(taskset).toolsets(taskset.config):
        refuse(name, "has tool servers")
    tasks = list(taskset if taskset.bounded else taskset.take(most))
    if not tasks:
        raise TaskError(f"verifiers: {name} has no tasks; accepted: at least two for each split")
    for fault in _faults(vf, tasks[0]):
        refuse(type(tasks[0]).__name__, fault)
    for task in tasks:
        asked(task.data)
    return tasks


def _faults(vf: Any, task: Any) -> Iterator[str]:
    """Of the kind of task: what it needs beside one call."""
    kind = type(task)
    yield from (f"has {name}()" for name in _HOOKS if getattr(kind, name) is not getattr(vf.Task, name))
    if kind.NEEDS_CONTAINER:
        yield "needs a container"
    if kind.toolsets(task.config):
        yield "has tool servers"
    marked = [name for name in dir(kind) if hasattr(getattr(kind, name, None), "intercept")]
    yield from (f"rewrites messages in {name}()" for name in marked)
    yield from (f"stops a conversation in {hook.__name__}()" for hook in task.hooks("stop"))
    if task.config.judges:
        yield f"plugs the judge {task.config.judges[0].id!r}"
    settings = {name: getattr(task.config, name) for name in type(task.config).model_fields}
    yield from (f"asks a judge ({name})" for name, value in settings.items() if isinstance(value, vf.JudgeConfig))
    for hook in task.hooks("reward"):
        runtime = inspect.signature(hook).parameters.get("runtime")
        if runtime is not None and runtime.default is inspect.Parameter.empty:
            yield f"has the reward {hook.__name__!r}, which needs a runtime"


def asked(data: Any) -> tuple[str | None, str]:
    """The system prompt and the text that a row asks. Raises TaskError for any other conversation."""
    row = f"row {data.idx}"
    for field in _FIELDS:
        if getattr(data, field):
            refuse(row, f"sets {field}")
    if isinstance(data.prompt, str):
        return data.system_prompt, data.prompt
    messages = list(data.prompt or ())
    if any(not isinstance(message.content, str) for message in messages):
        refuse(row, "asks more than plain text")
    system = data.system_prompt
    if system is None and messages and messages[0].role == "system":
        system = messages.pop(0).content
    if [message.role for message in messages] != ["user"]:
        refuse(row, f"starts with {', '.join(message.role for message in messages) or 'no prompt'}")
    return system, messages[0].content


def refuse(what: str, fault: str) -> None:
    raise TaskError(f"verifiers: {what} {fault}, which cannot be carried over; {ACCEPTED}")

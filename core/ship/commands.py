"""``colever export`` and ``colever serve``: what makes a folder of a study's result, and what answers from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from colever import console

HomeOption = Annotated[Path, typer.Option("--home", envvar="COLEVER_HOME", help="Folder of studies and databases.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]


def export_command(
    name: Annotated[
        str, typer.Argument(metavar="STUDY_OR_TRIAL", help="A study or task: its winner. STUDY:2, a trial; STUDY:2.1.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Not there yet, or empty.")],
    merge: Annotated[bool, typer.Option("--merge", help="A whole checkpoint, the weights merged into it.")] = False,
    home: HomeOption = Path("mlruns"),
    as_json: JsonOption = False,
) -> None:
    """Write a candidate as a folder to load and serve elsewhere: prompts, weights, rubric, report, manifest."""
    from colever.ship.export import export
    from colever.ship.opened import open_bundle

    export(home, name, folder, merge)
    made = open_bundle(folder)  # what was written is what can be opened
    if as_json:
        console.show_json(made.manifest.model_dump(mode="json"))
        return
    said = made.manifest
    size = sum(file.bytes for file in said.files.values())
    console.show(f"{folder}: {said.study}, {said.which}: {len(said.files)} files, {size:,} bytes")
    for path, file in said.files.items():
        console.show(f"  {path:40} {file.bytes:>12,}")
    console.say(f"\nIn Python: colever.load({str(folder)!r}). Over HTTP: colever serve {folder}")


def serve_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What colever export wrote.")],
    host: Annotated[str, typer.Option("--host", help="Where others can reach it a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    token: Annotated[
        str | None, typer.Option("--token", envvar="COLEVER_TOKEN", show_envvar=True, help="What clients must send.")
    ] = None,
    answer: Annotated[str, typer.Option("--answer", metavar="FIELD", help="The field that chat answers with.")] = "",
    concurrent: Annotated[int, typer.Option("--concurrent", min=1, help="Requests answered at once.")] = 64,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Further ones that wait; then 429.")] = 256,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="A request's time limit.")] = 60.0,
    body: Annotated[int, typer.Option("--body", min=1, help="Bytes of a request.")] = 1 << 20,
    model: Annotated[str | None, typer.Option("--model", help="Where it is, if not where the study had it.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="PATH", help="Rows of a task made of some.")] = None,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Let the task file in the bundle run.")] = False,
) -> None:
    """Answer over HTTP: /v1/chat/completions as OpenAI's clients ask it, /predict, /health; SIGHUP reads DIR again."""
    from colever.ship.server import Limits, serve

    limits = Limits(body=body, concurrent=concurrent, queue=queue, seconds=seconds)
    serve(
        folder, host=host, port=port, token=token, limits=limits, answer=answer, say=console.say, model=model,
        data=data, trust_code=trust_code,
    )  # fmt: skip

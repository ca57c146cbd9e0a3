"""Bundles that were made to do harm, or were damaged: each is refused by name, and nothing of it runs."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from shipped import CANDIDATE, change_manifest, write_bundle

import colever
from colever.errors import ColeverError, StoreError, TaskError, UsageError
from colever.ship.guarded import check_safetensors, parse_json
from colever.ship.layout import WeightsReference, accepted
from colever.ship.opened import open_bundle
from colever.ship.weights import digest_at
from colever.types import Weights

ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def with_adapter(folder: Path, **settings: Any) -> Path:
    """A bundle of a (meaningless) adapter whose settings are what ``settings`` say."""
    weights = folder / "weights"
    weights.mkdir(parents=True)
    (weights / "adapter_config.json").write_text(json.dumps({**ADAPTER, **settings}))
    save_file({"a": torch.zeros(2, 2)}, str(weights / "adapter_model.safetensors"))
    reference = WeightsReference(kind="lora", path="weights", digest=digest_at(weights, "lora"))
    candidate = replace(CANDIDATE, weights=Weights("lora", "weights", reference.digest))
    return write_bundle(folder, candidate=candidate, weights=reference)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return with_adapter(tmp_path / "bundle")


def pickled(folder: Path) -> None:
    content = pickle.dumps(Touch(folder.parent / "ran"))
    (folder / "weights" / "adapter_model.safetensors").write_bytes(content)
    change_manifest(folder)


def linked(folder: Path) -> None:
    file = folder / "weights" / "adapter_model.safetensors"
    content = file.read_bytes()
    (folder.parent / "outside").write_bytes(content)
    file.unlink()
    file.symlink_to(folder.parent / "outside")


def linked_folder(folder: Path) -> None:
    (folder / "weights").rename(folder.parent / "elsewhere")
    (folder / "weights").symlink_to(folder.parent / "elsewhere")


def altered(folder: Path) -> None:
    file = folder / "program.json"
    file.write_text(file.read_text().replace("Solve", "Shout"))


def altered_with_its_digest(folder: Path) -> None:
    altered(folder)
    change_manifest(folder)


def other_weights(folder: Path) -> None:
    save_file({"a": torch.ones(2, 2)}, str(folder / "weights" / "adapter_model.safetensors"))
    change_manifest(folder)


def header(length: int, text: bytes = b"{}") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", length) + text)
        change_manifest(folder)

    return write


def of_header(value: Any, data: bytes = b"") -> Callable[[Path], None]:
    text = json.dumps(value).encode()
    return header(len(text), text + data)


def written(name: str, text: str | bytes, listed: bool = True) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        if listed:
            change_manifest(folder)

    return write


def manifest(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_manifest(folder, **changes)


def listing(path: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "manifest.json"
        data = json.loads(file.read_text())
        data["files"][path] = {"bytes": 0, "sha256": "0" * 64}
        file.write_text(json.dumps(data))

    return write


def renamed_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder / "manifest.txt")


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pickle in disguise": (pickled, "is no safetensors file"),
    "a link to a file outside": (linked, "is a link"),
    "a link to a folder outside": (linked_folder, "is a link"),
    "an altered file": (altered, "is not the file|has .* bytes"),
    "an altered file and digest": (altered_with_its_digest, "not those of the candidate"),
    "other weights under their digest": (other_weights, "the weights are not those"),
    "a giant header": (header(2**62), "its header would have"),
    "a header longer than the file": (header(1000), "its header would have"),
    "a header that is deep": (header(4000, b"[" * 4000), "nested more than 64 deep"),
    "a header of another type": (of_header([1]), "is not an object"),
    "tensors outside the file": (
        of_header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}), "tells of",
    ),
    "tensors over one another": (
        of_header({n: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in "ab"}, b"1234"), "lays one over",
    ),
    "a shape below zero": (of_header({"a": {"dtype": "U8", "shape": [-4, -1], "data_offsets": [0, 4]}}), "odd"),
    "a shape that is no number": (of_header({"a": {"dtype": "U8", "shape": ["4"], "data_offsets": [0, 4]}}), "odd"),
    "an unknown type of number": (of_header({"a": {"dtype": "X", "shape": [], "data_offsets": [0, 0]}}), "header"),
    "a missing file": (lambda folder: (folder / "program.json").unlink(), "is missing"),
    "a file more": (written("serve.py", "boom", listed=False), "is not in manifest.json"),
    "a file more, listed": (written("weights/pytorch_model.bin", "boom"), "is no file of a bundle"),
    "a compiled file": (written("task_code/a.pyc", "boom"), "is no file of a bundle"),
    "a hidden file": (written(".ssh", "boom"), "is no file of a bundle"),
    "a path above": (listing("../../outside.json"), "is no file of a bundle"),
    "an absolute path": (listing("/etc/passwd"), "is no file of a bundle"),
    "a path with a backslash": (listing("weights\\a.json"), "is no file of a bundle"),
    "a long path": (listing("weights/" + "a" * 300 + ".json"), "is no file of a bundle"),
    "a manifest that is deep": (written("manifest.json", "[" * 100_000, listed=False), "nested more than 64 deep"),
    "a manifest that is a list": (written("manifest.json", "[]", listed=False), "valid dictionary"),
    "a manifest that is not JSON": (written("manifest.json", "{", listed=False), "is not JSON"),
    "a manifest that is not text": (written("manifest.json", b"\xff\xfe", listed=False), "is not JSON"),
    "a manifest of many bytes": (written("manifest.json", " " * (5 << 20), listed=False), "more than 4,194,304 bytes"),
    "a key twice": (written("program.json", '{"prompts": {}, "prompts": {}}'), "a key comes twice"),
    "no number": (written("program.json", '{"prompts": NaN}'), "is no number of JSON"),
    "prompts of a wrong type": (written("program.json", '{"prompts": {"solve": {"instructions": 1}}}'), "valid string"),
    "an unknown key": (manifest(surprise=1), "surprise"),
    "a wrong type": (manifest(study=["a"]), "study"),
    "a number as text": (manifest(measured={"test_score": "1"}), "measured"),
    "another format": (manifest(format="colever-bundle/9"), "format"),
    "no manifest": (renamed_manifest, "has no manifest.json"),
    "weights elsewhere": (manifest(weights__path="/tmp"), "weights.path"),
    "weights above": (manifest(weights__path="../weights"), "weights.path"),
    "a fifo": (lambda folder: os.mkfifo(folder / "weights" / "pipe.json"), "is a link or something else than"),
    "an index that leads out": (written("weights/adapters.json", '{"adapters": {"a": "../.."}}'), "folders beside it"),
    "an index of another type": (written("weights/adapters.json", '{"adapters": [1]}'), "does not name"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_bundle_is_refused_by_name(bundle: Path, what: str) -> None:
    assert open_bundle(bundle).candidate.weights.kind == "lora"
    harm, said = HOSTILE[what]
    harm(bundle)
    with pytest.raises(StoreError, match=said) as refused:
        open_bundle(bundle)
    assert len(str(refused.value)) < 600
    with pytest.raises(StoreError):
        colever.load(bundle)
    assert not (bundle.parent / "ran").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"auto_mapping": {"base_model_class": "A", "parent_library": "antigravity"}},
        {"target_modules": ".*" * 100},
        {"r": 10**9},
        {"r": True},
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"modules_to_save": ["lm_head"]},
        {"surprise": 1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_an_adapter_asks_for_nothing_but_its_matrices(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="adapter_config"):
        open_bundle(with_adapter(tmp_path / "b", **settings))


def test_a_checkpoint_that_brings_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "b" / "model"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, str(folder / "model.safetensors"))
    weights = WeightsReference(kind="full", path="model", digest=digest_at(folder, "full"))
    candidate = replace(CANDIDATE, weights=Weights("full", "model", weights.digest))
    for settings in ({"auto_map": {"AutoModel": "evil.Evil"}}, {"text_config": [{"_attn_implementation": "a/b"}]}):
        (folder / "config.json").write_text(json.dumps(settings))
        write_bundle(tmp_path / "b", candidate=candidate, weights=weights)
        with pytest.raises(StoreError, match="is not accepted in a bundle"):
            open_bundle(tmp_path / "b")


EVIL = "from pathlib import Path\nPath({file!r}).touch()\n"


def test_no_code_runs_but_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(EVIL.format(file=str(tmp_path / "ran")))
    (tmp_path / "banking77-evil.py").write_text(EVIL.format(file=str(tmp_path / "ran")))
    (tmp_path / "task_code").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {
        "evil:task": "is not installed",
        "os:abort": "is not installed",
        "this:s": "is not installed",
        "typer:run": "is a function; accepted in a bundle: a colever.Task",
        "no_such_package:task": "is not installed",
        f"{tmp_path}/evil.py:task": "is not one that a bundle may name",
        "evil.py:task": "is not installed",
        "task_code/../../evil.py:task": "is not one that a bundle may name",
        "task_code/evil.py:task": "is not one that a bundle may name",
        "verifiers:evil": "runs what that set brings",
        "": "is not one that a bundle may name",
        "banking77-evil.py": "is not one that a bundle may name",
    }
    for place, (name, said) in enumerate(names.items()):
        folder = write_bundle(tmp_path / f"b{place}", task=name)
        with pytest.raises(TaskError, match=said):
            colever.load(folder)
    assert not (tmp_path / "ran").exists()


def test_carried_code_runs_for_those_who_trust_it_and_for_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    (folder / "task_code").mkdir(parents=True)
    (folder / "task_code" / "evil.py").write_text(EVIL.format(file=str(tmp_path / "ran")))
    write_bundle(folder, task="task_code/evil.py:task")
    with pytest.raises(TaskError, match="trust_code=True"):
        colever.load(folder)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(TaskError, match="has no 'task'"):
        colever.load(folder, trust_code=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        ({"name": "a", "kind": "python", "check": "os:abort"}, "is code"),
        ({"name": "a", "kind": "judge", "model": "a@http://192.0.2.1/v1"}, "names an address"),
    ],
)
def test_a_rubric_of_a_bundle_runs_and_asks_nothing_of_its_own(
    tmp_path: Path, criterion: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "rubric.yaml").write_text(json.dumps({"criterion": [criterion]}))
    program = colever.load(write_bundle(folder))
    assert program.bundle.manifest.rubric is None
    change_manifest(folder, rubric={"digest": "0", "code": {}})
    with pytest.raises(TaskError, match=said):
        colever.load(folder).evaluate("dev", limit=1)


def test_a_bundle_sends_nothing_to_an_address_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would send what it is asked"):
        colever.load(write_bundle(tmp_path / "b", model="api:m@http://192.0.2.1/v1"))


def test_no_random_damage_gets_through_as_another_error(bundle: Path) -> None:
    from random import Random

    rng = Random(0)
    files = [p for p in sorted(bundle.rglob("*")) if p.is_file()]
    for _ in range(300):
        file = rng.choice(files)
        content = bytearray(file.read_bytes())
        kept = bytes(content)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content[: rng.choice([len(content), len(content) // 2])])
        if file.name != "manifest.json":
            change_manifest(bundle)
        with contextlib.suppress(ColeverError):
            open_bundle(bundle)
        file.write_bytes(kept)
        change_manifest(bundle)
    open_bundle(bundle)


def test_paths_and_json_that_are_fine_are_taken(tmp_path: Path) -> None:
    for path in (
        "manifest.json",
        "weights/a/adapter_model.safetensors",
        "model/config.json",
        "task_code/pkg/__init__.py",
    ):
        assert accepted(path), path
    assert parse_json(b'{"a": "[[[[\\"[{", "b": [1.5, null]}') == {"a": '[[[["[{', "b": [1.5, None]}
    save_file({"a": torch.zeros(3, 5), "b": torch.ones(0)}, str(tmp_path / "a.safetensors"), metadata={"format": "pt"})
    check_safetensors(tmp_path / "a.safetensors")

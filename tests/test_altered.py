"""Nothing torn or altered is ever used."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from home import TinyHome, cli
from quick_runs import copied, resume, unfinished

from dsa_sandbox.runs.files import file_digest
from dsa_sandbox.runs.folder import Run


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip, cut_in_half, Path.unlink])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_base_that_was_altered_is_refused_by_name(
    harm: Callable[[Path], None], file: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    run = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    harm(run.path / file)
    stream = tiny_home.run("make-tasks")
    for command in (
        ["eval", run.path],
        ["finetune", run.path, "--tasks", stream, "--strategy", "sgd"],
    ):
        problem = cli(*command, "--home", tmp_path / "home").problem
        assert str(run.path / file) in problem
    assert [path.name for path in (tmp_path / "home").iterdir()] == [run.name]


def test_make_tasks_refuses_weights_that_were_altered(tiny_home: TinyHome, tmp_path: Path) -> None:
    run = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    flip(run.path / "model.safetensors")
    problem = cli("make-tasks", run.path, "--home", tmp_path / "home").problem
    assert str(run.path / "model.safetensors") in problem
    assert [path.name for path in (tmp_path / "home").iterdir()] == [run.name]


@pytest.mark.parametrize("harm", [cut_in_half, Path.unlink])
def test_make_tasks_refuses_a_tokenizer_that_was_altered(
    harm: Callable[[Path], None], tiny_home: TinyHome, tmp_path: Path
) -> None:
    run = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    harm(run.path / "tokenizer.json")
    problem = cli("make-tasks", run.path, "--home", tmp_path / "home").problem
    assert str(run.path / "tokenizer.json") in problem


def test_settings_that_were_altered_are_refused_by_name(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    run = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    rewrite(run.path / "settings.toml", "num_kept = 12", "num_kept = 11")
    assert "settings.toml" in cli("eval", run.path, "--home", tmp_path / "home").problem


@pytest.mark.parametrize("file", ["records.jsonl", "metrics.jsonl"])
def test_records_that_were_altered_are_refused_by_name(
    file: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    run = copied(tiny_home.run("sgd"), tmp_path / "home")
    cut_in_half(run.path / file)
    assert str(run.path / file) in cli("eval", run.path, "--home", tmp_path / "home").problem


def test_tasks_that_were_altered_are_refused_by_name(tiny_home: TinyHome, tmp_path: Path) -> None:
    run = copied(tiny_home.run("make-tasks"), tmp_path / "home")
    rewrite(run.path / "tasks.jsonl", "The end.", "The  end.")
    base = tiny_home.run("pretrain dsa")
    problem = cli("finetune", base, "--tasks", run.path, "--home", tmp_path / "home").problem
    assert str(run.path / "tasks.jsonl") in problem


def test_a_shape_that_does_not_fit_is_named(tiny_home: TinyHome, tmp_path: Path) -> None:
    run = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    rewrite(run.path / "settings.toml", "ffn_width = 128", "ffn_width = 136")
    rehash(run, "settings.toml")
    problem = cli("eval", run.path, "--home", tmp_path / "home").problem
    assert "model.safetensors" in problem
    assert "(96, 128)" in problem
    assert "(96, 136)" in problem


def test_a_tokenizer_that_does_not_fit_is_named(tiny_home: TinyHome, tmp_path: Path) -> None:
    run = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    tokenizer = json.loads((run.path / "tokenizer.json").read_text("utf-8"))
    del tokenizer["model"]["vocab"][" lemon"]
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    (run.path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    rehash(run, "tokenizer.json")
    problem = cli("eval", run.path, "--home", tmp_path / "home").problem
    assert "embedding" in problem


def rehash(run: Run, file: str) -> None:
    """Let the manifest say that the file is what it should be."""
    files = run.manifest["files"] | {file: file_digest(run.path / file)}
    run.update(files=files)


def test_a_tokenizer_that_is_no_tokenizer_is_the_users_problem(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    run = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    (run.path / "tokenizer.json").write_text("{}", "utf-8")
    rehash(run, "tokenizer.json")
    assert "tokenizer.json" in cli("eval", run.path, "--home", tmp_path / "home").problem


def test_a_torn_manifest_is_refused_by_name_and_listed(tiny_home: TinyHome, tmp_path: Path) -> None:
    run = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    cut_in_half(run.path / "manifest.json")
    home = ["--home", tmp_path / "home"]
    assert str(run.path / "manifest.json") in cli("eval", run.name, *home).problem
    (row,) = cli("ls", "--json", *home).value["rows"]
    assert (row["run"], row["state"]) == (run.name, "torn")


@pytest.mark.parametrize("command", ["eval", "rm"])
def test_a_torn_manifest_does_not_spoil_the_home(
    command: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    for name in ("pretrain dense", "sgd"):
        copied(tiny_home.run(name), tmp_path / "home")
    torn = copied(tiny_home.run("pretrain dsa"), tmp_path / "home")
    cut_in_half(torn.path / "manifest.json")
    more = [torn.name] if command == "rm" else []
    answer = cli(command, *more, "--home", tmp_path / "home")
    assert answer.code == 0, answer.err
    assert torn.path.exists() == (command != "rm")


def test_a_checkpoint_that_was_altered_is_refused_by_name(quick_home: Path) -> None:
    run = unfinished(quick_home)
    checkpoint = run.path / "checkpoints" / "step-00000003"
    for file in ("state.safetensors", "state.json"):
        content = (checkpoint / file).read_bytes()
        for harm in (flip, cut_in_half, Path.unlink):
            harm(checkpoint / file)
            assert str(checkpoint) in cli(*resume(quick_home)).problem
            (checkpoint / file).write_bytes(content)
    flip(checkpoint / "state.json")
    assert str(checkpoint) in cli(*resume(quick_home)).problem
    shutil.rmtree(checkpoint)  # as the message says
    assert cli(*resume(quick_home)).run == run.path


def test_a_checkpoint_of_another_step_is_refused(quick_home: Path) -> None:
    run = unfinished(quick_home)
    rewrite(run.path / "checkpoints" / "step-00000003" / "state.json", '"step": 3', '"step": 2')
    assert "step-00000003" in cli(*resume(quick_home)).problem


def test_lines_that_a_checkpoint_stands_on_must_be_there(quick_home: Path) -> None:
    run = unfinished(quick_home)
    cut_in_half(run.path / "metrics.jsonl")
    assert str(run.path / "metrics.jsonl") in cli(*resume(quick_home)).problem
    (run.path / "metrics.jsonl").unlink()
    assert str(run.path / "metrics.jsonl") in cli(*resume(quick_home)).problem

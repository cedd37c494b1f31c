"""A command reads each file of the runs that it uses once, or says here why it reads it again."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from home import QUICK, STREAM, cli

from dsa_sandbox.config import resolve
from dsa_sandbox.data import tokens
from dsa_sandbox.runs import checkpoints, folder
from dsa_sandbox.runs.folder import Run


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls that read: `manifest RUN`, `digest RUN`, `settings`, `tokenizer`, `network`."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str, label: Callable[..., str]) -> None:
        function = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            found[label(*arguments)] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(Run, "_written", lambda run: f"manifest {run.name}")
    count(folder, "file_digest", lambda path: f"digest {path.parent.name}")
    count(resolve, "validated", lambda *_: "settings")
    count(tokens, "plain", lambda _: "tokenizer")
    count(checkpoints, "load_tensors", lambda _: "network")
    return found


def test_finetune_reads_its_base_once(
    quick_home: Path, tmp_path: Path, counts: Counter[str]
) -> None:
    base = cli("pretrain", "--arch", "dsa", *QUICK, "--home", quick_home).run.name
    tasks = tmp_path / "one.jsonl"
    tasks.write_text(STREAM.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    counts.clear()
    options = ("--tasks", tasks, "--set", "finetune.max_steps=1", "--set", "eval.stories=1")
    arm = cli("finetune", "--strategy", "sgd", *options, "--home", quick_home).run.name
    # by the listing that finds the newest base, and by the one that numbers the new run
    assert counts.pop(f"manifest {base}") == 2
    # settings.toml and model.safetensors; tokenizer.json is hashed as it is read
    assert counts.pop(f"digest {base}") == 2
    assert counts.pop("settings") == 2  # those of the arm, and those of the base
    assert counts.pop("tokenizer") == 2  # the base's, and the packed text's, which are compared
    assert counts.pop("network") == 1  # the frozen network is a copy
    # its own files, when it is finished; its own manifest, as its state changes
    assert counts.pop(f"digest {arm}") == 6
    assert counts.pop(f"manifest {arm}") <= 7
    assert all(number == 2 for number in counts.values()), counts  # other runs: both listings


def test_eval_of_a_base_reads_it_once(quick_home: Path, counts: Counter[str]) -> None:
    base = cli("pretrain", "--arch", "dense", *QUICK, "--home", quick_home).run.name
    counts.clear()
    assert cli("eval", base, "--home", quick_home).code == 0
    assert counts == {
        f"manifest {base}": 1,
        f"digest {base}": 2,
        "settings": 2,
        "tokenizer": 2,
        "network": 1,
    }


def test_the_manifest_of_a_finished_run_is_read_again_after_an_update(quick_home: Path) -> None:
    run = Run(cli("build", "--arch", "dense", *QUICK, "--home", quick_home).run)
    assert run.manifest["seed"] == 0
    run.update(seed=1)
    assert run.manifest["seed"] == 1

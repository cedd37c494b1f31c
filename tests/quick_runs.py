"""Runs of QUICK networks: built, interrupted, resumed, copied."""

import shutil
from pathlib import Path

import pytest
from home import QUICK, StopAfter, cli

from dsa_sandbox.commands import pretrain
from dsa_sandbox.config import resolve
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.errors import Interrupted
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.session import Session

EVERY_STEP = "machine.save_every_s=0.000001"


def quick(*sets: str, arch: str = "dsa") -> Settings:
    return resolve.resolve(sets=[*QUICK[1::2], *sets], options={"arch": (arch, "--arch")}).settings


def build(home: Path, *arguments: object) -> Path:
    return cli("build", "--home", home, *QUICK, *arguments).run


def unfinished(home: Path, step: int = 3, *sets: str) -> Run:
    """A pretrain run that was interrupted after `step` steps."""
    with pytest.raises(Interrupted):
        pretrain.pretrain(quick(*sets), Session(home, listener=StopAfter(step, "pretrain")))
    (path,) = home.glob("pretrain-*")
    assert [p.name for p in (path / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    return Run(path)


def resume(home: Path) -> list[object]:
    return ["pretrain", "--home", home, *QUICK]


def copied(run: Path, home: Path) -> Run:
    home.mkdir(exist_ok=True)
    return Run(Path(shutil.copytree(run, home / run.name)))

"""An indexer's training, and networks that have none."""

from pathlib import Path

import pytest
from home import QUICK, Answer, cli
from test_settings import clean_environment, config  # noqa: F401

from dsa_sandbox.config import resolve as resolving
from dsa_sandbox.config import settings, training_checks
from dsa_sandbox.config.resolve import resolve
from dsa_sandbox.study import grid


def dry(*arguments: object) -> Answer:
    return cli("pretrain", "--dry-run", *arguments)


INDEXER_SETS = (
    "train.indexer_queries=0.5",
    "train.indexer_learning_rate=1e-3",
    "train.indexer_fraction=0.1",
    "train.indexer_sparse_rate=0.1",
    "train.indexer_clip=0.5",
)


@pytest.mark.parametrize("text", INDEXER_SETS)
def test_what_only_an_indexer_reads_is_refused_where_none_is_taught(
    text: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    key, value = text.split("=")
    expected = f"error: {key}={float(value)}: "
    for command in ("pretrain", "build"):
        quick = (*QUICK, "--set", text, "--home", home)
        problem = cli(command, "--arch", "dense", *quick).problem
        assert problem == f"{expected}dense has no indexer to train; leave it out  [from --set]"
    problem = dry("--set", "train.selection=window", "--set", text).problem
    assert problem.startswith(f"{expected}train.selection=window trains no indexer")
    assert problem.endswith("[from --set]")
    assert dry("--set", text).code == 0
    assert not home.exists()


def test_every_setting_of_the_indexers_training_is_known_to_be_one() -> None:
    named = {f"train.{name}" for name in settings.Train.model_fields if name.startswith("indexer_")}
    assert named == set(resolving.INDEXER_KEYS)


@pytest.mark.parametrize("arch", ["dense", "dsa", "dsa-full", "dsa-v32"])
def test_what_presets_and_architectures_bring_along_is_never_refused(arch: str) -> None:
    for preset in resolving.preset_names():
        for selection in ("learned", "window"):
            options = {"arch": (arch, "--arch")}
            resolved = resolve(
                preset=preset, sets=[f"train.selection={selection}"], options=options
            )
            training_checks.check_training(resolved, [arch])


def test_a_file_that_settings_printed_is_accepted_by_networks_of_all_kinds(tmp_path: Path) -> None:
    for sets in (["train.clip=0.5", "train.selection=window"], ["train.indexer_queries=0.5"]):
        typed = [part for text in sets for part in ("--set", text)]
        path = config(tmp_path, cli("settings", "--preset", "mini", *typed).out)
        for arch in ("dense", "dsa"):
            resolved = resolve(config=path, options={"arch": (arch, "--arch")})
            training_checks.check_training(resolved, [arch])
    path = config(tmp_path, '[train]\nselection = "window"\nindexer_queries = 0.5\n')
    assert dry("--config", path).problem.endswith(f"[from {path}]")
    assert dry("--config", path, "--set", "train.selection=learned").code == 0
    assert dry("--set", "train.selection=window", "--set", "train.indexer_fraction=0").code == 0


def test_steps_too_few_for_the_warm_up_are_refused_with_the_number_that_suffices() -> None:
    problem = dry("--set", "train.steps=10").problem
    assert problem.startswith("error: train.steps=10: no step of 10 is left to the indexer's warm-")
    assert "choose train.steps=25 or more" in problem
    assert dry("--set", "train.steps=25").code == 0
    sets = ("--set", "train.steps=10")
    assert dry(*sets, "--set", "train.indexer_fraction=0").code == 0
    assert dry(*sets, "--set", "train.selection=window").code == 0
    assert dry(*sets, "--arch", "dense").code == 0
    short = ("--set", "train.indexer_fraction=1e-5", "--set", "train.dense_fraction=0.6504")
    problem = dry(*short).problem
    assert problem.startswith("error: train.indexer_fraction=1e-05: no step of 1400 is left")


def test_an_indexer_with_nothing_to_leave_out_is_refused_and_dsa_full_named() -> None:
    problem = dry("--set", "model.num_kept=128").problem
    assert problem.startswith("error: model.num_kept=128: K=128 is the whole context")
    assert "--arch dsa-full" in problem
    assert dry("--set", "model.context=16").problem.startswith("error: model.context=16: K=16 is")
    for sets in (
        ["--arch", "dsa-full"],
        ["--arch", "dense"],
        ["--set", "train.indexer_fraction=0"],
    ):
        assert dry("--set", "model.num_kept=128", *sets).code == 0


def test_a_grid_with_an_indexer_in_it_passes_and_keeps_its_settings_from_dense() -> None:
    sets = [*INDEXER_SETS, "train.dense_fraction=0.5", "train.steps=100"]
    typed = [part for text in sets for part in ("--set", text)]
    assert cli("run", "--dry-run", *typed).code == 0
    assert "dense has no indexer" in cli("run", "--dry-run", "--archs", "dense", *typed).problem
    assert "no step of 10" in cli("run", "--dry-run", "--set", "train.steps=10").problem
    plan = grid.plan(
        resolve(sets=sets).settings, Path("runs"), archs=["dense", "dsa"], strategies=["sgd"],
        preset=None, config=None, sets=sets, include=[], data=None, device=None, count=None,
        seed=None, jobs=1,
    )  # fmt: skip
    told = {arch: plan.base_options(arch) for arch in plan.archs}
    assert [text for text in sets if text in told["dense"]] == ["train.steps=100"]
    assert all(text in told["dsa"] for text in sets)
    assert [text for text in sets if text in plan.common] == ["train.steps=100"]
    assert all(cli("pretrain", "--dry-run", *arguments).code == 0 for arguments in told.values())

"""Rates fit the experiment, the architecture and the strategy; the user's own come before them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from home import BRIEF, TinyHome, cli
from test_settings import clean_environment, config  # noqa: F401

from dsa_sandbox import api
from dsa_sandbox.config import rates, resolve
from dsa_sandbox.registry import archs, strategies
from dsa_sandbox.runs.folder import Run

OWN = {"smoke": {"level": 0.6, "stream": {"dsa": {"sgd": {rates.RATE: 7e-4}}}}}


def shown(*arguments: object) -> dict[str, tuple[Any, str]]:
    """Value and source of every setting."""
    value = cli("settings", *arguments, "--json").value
    return {key: (value["settings"][key], value["sources"][key]) for key in value["settings"]}


def tuned_home(folder: Path, presets: dict[str, Any] = OWN) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / rates.TUNING).write_text(json.dumps({"rates": presets}), "utf-8")
    return folder


def test_the_shipped_table_has_a_valid_row_for_every_strategy_that_learns_alone() -> None:
    for preset, about in rates.shipped().presets.items():
        assert preset in resolve.preset_names()
        for experiment in rates.EXPERIMENTS:
            for arch in archs:
                for strategy in strategies:
                    kind = strategies[strategy]
                    row = rates.row_for(about[experiment], arch, strategy)
                    learns = kind.protocol != "none" and (
                        experiment == "stream" or kind.protocol == "sequential"
                    )
                    assert (row is not None) == learns, (experiment, arch, strategy)
        for experiment, arch, strategy, own in rates.rows_of(about):
            assert arch in (*archs, rates.ANY)
            assert own["how"] in (rates.TUNED, rates.ROUGH)
            extra = () if experiment == "stream" else ("--set", "finetune.experiment=single")
            named = () if arch == rates.ANY else ("--arch", arch)
            found = shown("--preset", preset, "--strategy", strategy, *named, *extra)
            for key in own.keys() - {"how"}:
                assert found[key][0] == own[key]
                assert found[key][1].endswith(f": {preset}, {experiment}, {arch}, {strategy}")


def test_no_strategy_multiplies_the_learning_rate() -> None:
    for strategy in strategies:
        fields = strategies[strategy].Settings.model_fields
        assert "rate" not in fields or fields["rate"].default == 1.0, strategy


def test_the_row_of_the_architecture_comes_before_that_of_any() -> None:
    table = {"dsa": {"sgd": {rates.RATE: 1.0}}, "any": {"sgd": {rates.RATE: 2.0}}}
    assert rates.row_for(table, "dsa", "sgd").values == {rates.RATE: 1.0}  # type: ignore[union-attr]
    assert rates.row_for(table, "dense", "sgd").values == {rates.RATE: 2.0}  # type: ignore[union-attr]
    assert rates.row_for(table, "dense", "ewc") is None


def test_a_combination_without_a_row_has_its_masks_rate_and_every_parts_strength() -> None:
    table = {
        "any": {
            "acft": {rates.RATE: 1.0},
            "l2sp": {rates.RATE: 2.0, "l2sp.strength": 3.0, "how": rates.ROUGH},
            "acft+ewc": {rates.RATE: 5.0},
        }
    }
    row = rates.row_for(table, "dsa", "acft+l2sp+mine")
    assert row is not None
    assert row.values == {rates.RATE: 1.0, "l2sp.strength": 3.0}
    assert row.strategy == "acft and l2sp"
    own = rates.row_for(table, "dsa", "acft+ewc")
    assert own is not None
    assert own.values == {rates.RATE: 5.0}


def test_the_homes_table_comes_before_the_shipped_one_and_the_user_before_both(
    tmp_path: Path,
) -> None:
    home = ("--home", tuned_home(tmp_path / "home"), "--strategy", "sgd")
    found = shown(*home)
    assert found[rates.RATE] == (7e-4, "tuning.json: smoke, stream, dsa, sgd")
    assert found[rates.LEVEL] == (0.6, "tuning.json: smoke")
    others = (("--arch", "dense"), ("--set", "finetune.experiment=single"))
    for other in others:  # rows that the home's table lacks are the shipped ones
        value, source = shown(*home, *other)[rates.RATE]
        assert value != 7e-4
        assert source.startswith((rates.TUNED, rates.ROUGH))
    path = config(tmp_path, "[finetune]\nlearning_rate = 0.5\n")
    assert shown(*home, "--config", path)[rates.RATE] == (0.5, str(path))
    assert shown(*home, "--set", f"{rates.RATE}=0.25")[rates.RATE] == (0.25, "--set")


def test_a_preset_without_a_table_and_another_optimizer_keep_the_presets_rate() -> None:
    assert shown("--preset", "mini")[rates.RATE] == (6e-4, "preset mini")
    assert shown("--set", "finetune.optimizer=sgd")[rates.RATE][1] == "preset smoke"


def test_printed_settings_do_not_pin_the_rate_of_one_strategy(tmp_path: Path) -> None:
    """One file may serve all arms of a study."""
    path = config(tmp_path, cli("settings", "--strategy", "acft", "--arch", "dense").out)
    text = path.read_text("utf-8").replace('strategy = "acft"', "", 1)
    path.write_text(text.replace('arch = "dense"', "", 1), "utf-8")
    for strategy in ("sgd", "ewc"):
        plain, read = (shown("--strategy", strategy, *more) for more in ((), ("--config", path)))
        assert read[rates.RATE] == plain[rates.RATE]
        assert read[rates.RATE][1].endswith(strategy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"rates": 3}', '{"rates": {"smoke": {"stream": {"any": 3}}}}']
)
def test_a_torn_table_is_refused_in_one_line_that_says_what_to_do(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / rates.TUNING).write_text(text, "utf-8")
    problem = cli("settings", "--home", tmp_path).problem
    path = tmp_path / rates.TUNING
    assert problem == f"error: {path}: torn, or not written by `tune`; remove it"


def test_a_wrong_value_in_the_homes_table_is_told_with_its_source(tmp_path: Path) -> None:
    home = tuned_home(tmp_path / "home", {"smoke": {"stream": {"any": {"sgd": {"ewc.x": 1}}}}})
    problem = cli("settings", "--home", home, "--strategy", "sgd").problem
    assert problem.startswith("error: ewc.x: belongs to --strategy ewc")
    assert problem.endswith("[from tuning.json: smoke, stream, any, sgd]")


def test_an_arm_keeps_the_table_that_has_set_its_rate(tiny_home: TinyHome, tmp_path: Path) -> None:
    """Its base decides the architecture, whatever the settings file of the arm says."""
    home = tiny_home.copy(tmp_path / "copy").home
    row = {rates.RATE: 7e-4, "ewc.strength": 0.5}
    tuned_home(
        home, {"smoke": {"stream": {"dense": {"ewc": row}, "dsa": {"ewc": {rates.RATE: 9}}}}}
    )
    base = next(home.glob("pretrain-dense-*"))
    short = (*BRIEF, "--set", "finetune.max_steps=2", "--set", "ewc.passes=2", "--home", home)
    plan = cli("finetune", base, "--strategy", "ewc", *short, "--dry-run", "--json").value
    assert plan[rates.RATE] == "0.0007  [tuning.json: smoke, stream, dense, ewc]"
    assert plan["ewc.strength"] == "0.5  [tuning.json: smoke, stream, dense, ewc]"
    run = Run(cli("finetune", base, "--strategy", "ewc", *short).run)
    content = (home / rates.TUNING).read_bytes()
    assert (run.path / rates.TUNING).read_bytes() == content
    sha256 = hashlib.sha256(content).hexdigest()
    assert run.manifest["files"][rates.TUNING] == sha256
    tuned = run.manifest["tuned"]
    assert (tuned["file"], tuned["sha256"]) == (rates.TUNING, sha256)
    assert tuned["sources"][rates.RATE] == "tuning.json: smoke, stream, dense, ewc"
    assert "learning_rate = 0.0007" in (run.path / "settings.toml").read_text("utf-8")

    chosen = {"strategy": "ewc", rates.RATE: 1e-3, "ewc.strength": 0.25, "finetune.max_steps": 2}
    chosen |= {"ewc.passes": 2, "eval.stories": 0, "eval.recovery_tasks": 0}
    other = api.finetune(chosen, api.session(home), base=base).run
    assert not (other.path / rates.TUNING).exists()
    assert other.manifest["tuned"] == {"sources": {rates.LEVEL: "order of magnitude: smoke"}}

"""A study file says what is run; what is wrong with it is told in one line, before anything."""

import json
from pathlib import Path
from typing import Any

import pytest
from home import cli

from dsa_sandbox.cli import seeds as several
from dsa_sandbox.config import rates, study_file
from dsa_sandbox.config.study_file import Arm, seeds_of
from dsa_sandbox.errors import UserError
from dsa_sandbox.study import prepare
from dsa_sandbox.study.needs import check_claims

ENOUGH: dict[str, Any] = {"name": "s", "seeds": "100-109", "stream": ["dense sgd"]}


def problem_of(**values: Any) -> str:
    with pytest.raises(UserError) as error:
        check_claims(study_file.validated({**ENOUGH, **values}, "s.toml"), "s.toml")
    (line,) = str(error.value).splitlines()
    assert line.endswith("[from s.toml]")
    return line


def test_seeds_are_a_list_a_number_or_a_range() -> None:
    assert seeds_of("100-102") == seeds_of("100,101-102") == (100, 101, 102)
    assert seeds_of(7) == seeds_of("7") == (7,)
    assert seeds_of([1, 2]) == [1, 2]
    for text in ("1-", "a", "3-1", "", "1--2"):
        with pytest.raises(ValueError, match=":"):
            seeds_of(text)


def test_a_number_of_seeds_is_how_many_of_a_grid_and_a_seed_of_a_study() -> None:
    assert several.seeds_of("3", None) == (0, 1, 2)
    assert several.seeds_of("3", "laptop") == (3,)
    assert several.seeds_of("100,102-103", None) == (100, 102, 103)
    for text in ("0", "21"):
        with pytest.raises(UserError, match="a number alone is how many seeds, 1 to 20"):
            several.seeds_of(text, None)


def test_an_arm_has_a_base_of_its_own_where_a_setting_of_its_base_differs() -> None:
    arms = ["dsa ewc+acft, train.selection=random, finetune.loss=answer"]
    study = study_file.validated({**ENOUGH, "stream": ["dense sgd"], "single": arms}, "s.toml")
    sets = {"train.selection": "random", "finetune.loss": "answer"}
    assert study.single_arms == [Arm("dsa", "acft+ewc", sets)]  # in the order of the registry
    assert study.single_arms[0].base_sets == {"train.selection": "random"}
    assert study.bases_at(100) == [Arm("dense", ""), Arm("dsa", "", {"train.selection": "random"})]


def test_bases_may_be_made_at_some_seeds_only() -> None:
    values = {**ENOUGH, "bases": ["dsa, model.compression=block"], "base_seeds": [100]}
    study = study_file.validated(values, "s.toml")
    assert [len(study.bases_at(seed)) for seed in (100, 101)] == [2, 1]


def test_orders_are_variants_of_the_arms_of_the_stream() -> None:
    study = study_file.validated({**ENOUGH, "orders": [0, 3]}, "s.toml")
    assert [arm.sets for arm in study.stream_arms] == [{}, {"tasks.order": 3}]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stream": ["dense ecw"]}, "ecw: no such strategy; did you mean ewc?"),
        ({"stream": ["dens sgd"]}, "dens: no such architecture; did you mean dense?"),
        ({"stream": ["dense"]}, "dense: write it as `dense ewc`"),
        ({"stream": ["dense sgd", "dense  sgd"]}, "dense sgd: is listed twice"),
        ({"stream": ["dense sgd, finetune.los=answer"]}, "did you mean finetune.loss?"),
        ({"stream": ["dense sgd, ewc.strength=1"]}, "ewc.strength: no such setting"),
        ({"stream": ["dense sgd, machine.precision=bf16"]}, "share machine and precision"),
        ({"stream": ["dense sgd, finetune.level=.5"]}, "finetune.level: the study decides it"),
        ({"single": ["dense sgd, tasks.order=1"]}, "single tasks are those of the stream"),
        ({"claims": ["H9"]}, "claims: H9: no such claim"),
        ({"claims": ["H2c"]}, "claims: H2c: its contrast needs cells that the study does not run"),
        ({"seeds": "100-108"}, "seeds: 9 of 10 that a verdict needs; set confirmatory = false"),
        ({"seeds": "10-19"}, "seeds: 10 is for everyday use or development and cannot confirm"),
        ({"seeds": "100_109"}, "seeds=100_109: 100_109: write a number, a list, or a range"),
        ({"settings": {"tasks": {"stream": "development"}}}, "tasks.stream=development: a study"),
        ({"settings": {"finetune": {"placebo": True}}}, "finetune.placebo: the study decides it"),
        ({"rows": "a.jsonl"}, "rows=a.jsonl: rates are tuned on development tasks"),
        ({"rows": "a.jsonl", "development_rows": "a.jsonl"}, "rates are tuned on other tasks"),
        ({"single_tasks": 13}, "single_tasks=13: there are only 12 tasks"),
        ({"single_tasks": 0, "single": ["dsa sgd"]}, "single_tasks=0: arms are listed"),
        ({"orders": [12]}, "orders: 12: 12 tasks have 0 to 11"),
        ({"base_seeds": [99]}, "base_seeds: 99 is not one of `seeds`"),
        ({"stream": []}, "stream: no arm is named"),
        ({"streams": []}, "streams: no such key of a study; did you mean stream?"),
        ({"settings": {"finetune.optimizer": "sgd"}}, "tuning finds rates of adamw"),
    ],
)
def test_what_is_wrong_with_a_study_is_told_in_one_line(values: dict[str, Any], words: str) -> None:
    assert words in problem_of(**values)


def test_a_claim_names_the_cells_that_it_lacks() -> None:
    line = problem_of(claims=["H2"], stream=["dense sgd", "dsa acft"], single=["dsa acft"])
    assert "`dense ewc` under stream; " in line
    assert "`dsa random-mask` under single, or leave the claim out" in line
    assert "`dsa acft` under single" not in line
    drawn = [f"dsa random-mask, random-mask.draw={draw}" for draw in (1, 2)]
    arms = ["dense sgd", "dense ewc", "dsa acft"]
    enough = {"stream": arms, "single": [*arms, *drawn]}
    check_claims(study_file.validated({**ENOUGH, **enough, "claims": ["H2"]}, "s.toml"), "")


@pytest.mark.parametrize("name", study_file.SHIPPED)
def test_a_shipped_study_is_valid_and_runs_the_cells_of_its_claims(name: str) -> None:
    text, file, values = study_file.read(name)
    study = study_file.validated(values, name)
    assert (study.name, file) == (name, None)
    check_claims(study, name)
    prepare.check_settings(study, name)
    assert study.confirmatory == (name != "demo")
    assert text.startswith("# ")


def test_a_missing_study_names_the_nearest_shipped_one(tmp_path: Path) -> None:
    problem = cli("run", "labtop", "--home", tmp_path / "home").problem
    assert "labtop: no such file, and no study of that name; did you mean laptop?" in problem


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--archs", "dsa"), "--archs=dsa: the study laptop decides it"),
        (("--seed", "3"), "--seed=3: the study laptop decides it"),
        (("--preset", "mini"), "--preset=mini: the study laptop decides it"),
        (("--set", "train.steps=3"), "--set train.steps=3: a study decides all but the machine"),
        (("--seeds", "99"), "--seeds: 99 is not one of the study's seeds"),
        (("--seeds", "x"), "--seeds: x: write a number, a list, or a range such as 100-109"),
        (("--force",), "--force: the study laptop keeps what it has"),
    ],
)
def test_options_that_a_study_file_decides_are_refused(
    more: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assert words in cli("run", "laptop", "--home", home, *more).problem
    assert not home.exists()


def asked(tmp_path: Path, **values: Any) -> prepare.Asked:
    study = study_file.validated({**ENOUGH, **values}, "s.toml")
    return prepare.Asked(study, "", "s.toml", tmp_path, tmp_path / "home", {})


def table(tmp_path: Path, tasks: str, how: str = rates.TUNED) -> str:
    """A table with a row for dense sgd, tuned on a run of tasks."""
    rows = {"stream": {"dense": {"sgd": {rates.RATE: 1e-3, "how": how}}}}
    reports = {"smoke": {"stream": {"tasks": {"name": tasks}}}}
    text = json.dumps({"rates": {"smoke": rows}, "reports": reports})
    (tmp_path / "tuning.json").write_text(text, "utf-8")
    return "tuning.json"


def test_rates_that_were_tuned_on_test_tasks_are_refused(tmp_path: Path) -> None:
    name = table(tmp_path, "make-tasks-contradiction-development-smoke-s10-12345678")
    assert prepare.given_table(asked(tmp_path, rates=name)) is not None
    table(tmp_path, "make-tasks-contradiction-test-smoke-s100-12345678")
    with pytest.raises(UserError, match="a test stream; tune on development tasks"):
        prepare.given_table(asked(tmp_path, rates=name))


def test_an_untuned_rate_is_refused_where_a_study_confirms(tmp_path: Path) -> None:
    for how, words in ((rates.TUNED, ""), (rates.ROUGH, "no tuned rate for dense sgd (stream)")):
        one = asked(tmp_path, rates=table(tmp_path, "tasks", how))
        found = prepare.given_table(one)
        if not words:
            prepare.check_rates(one, found)
            continue
        with pytest.raises(UserError, match="an untuned arm is a straw man") as error:
            prepare.check_rates(one, found)
        assert words in str(error.value)
    exploring = asked(tmp_path, confirmatory=False, rates="shipped")
    prepare.check_rates(exploring, None)
    with pytest.raises(UserError, match="makes straw men"):
        prepare.check(asked(tmp_path, rates="shipped", settings={rates.RATE: 1e-3}))

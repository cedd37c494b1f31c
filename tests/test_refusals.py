"""What the user has to mend, in one line, before anything is trained."""

from pathlib import Path

import pytest
from home import QUICK, STREAM, TinyHome, cli, inside, strict_json


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["finetune", "--strategy", "ewc"], "dsa-sandbox pretrain"),
        (["finetune", "--arch", "dense"], "dsa-sandbox pretrain --arch dense"),
        (["make-tasks"], "dsa-sandbox pretrain"),
        (["eval"], "dsa-sandbox finetune"),
        (["plot"], "dsa-sandbox finetune"),
        (["plot", "--kind", "indexer"], "dsa-sandbox pretrain --arch dsa"),
    ],
)
def test_nothing_made_yet_names_the_command_to_run(
    arguments: list[str], command: str, tmp_path: Path
) -> None:
    with inside(tmp_path):
        problem = cli(*arguments).problem
    assert problem.endswith(f"run first: {command}")
    assert not list(tmp_path.iterdir())


def test_a_hint_never_names_a_command_that_cannot_run(tmp_path: Path) -> None:
    problem = cli("finetune", "--preset", "smok", "--home", tmp_path / "home").problem
    assert "did you mean smoke?" in problem


def test_a_dry_run_finds_what_is_wrong(tmp_path: Path) -> None:
    for command in ("build", "pretrain", "run"):
        problem = cli(command, "--dry-run", "--home", tmp_path, "--data", "no-such.txt").problem
        assert "no-such.txt: no such file" in problem


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "--set", "train.stepz=3"],
        ["pretrain", "--archh", "dsa"],
        ["pretrain", "--seed", "x"],
        ["nonsense"],
        ["finetune", "--strategy", "ewc"],
        ["eval", "no-such-run"],
        ["plot", "--kind", "pie"],
        ["ls", "rans"],
        ["rm", "no-such-run"],
    ],
)
def test_a_failure_is_one_line_or_one_object_on_stderr(
    arguments: list[str], tmp_path: Path
) -> None:
    home = ["--home", tmp_path / "home"]
    if arguments == ["nonsense"]:
        home = []
    (line,) = cli(*arguments, *home).problem.splitlines()
    answer = cli(*arguments, "--json", *home)
    assert (answer.code, answer.out) == (2, "")
    error = strict_json(answer.err)["error"]
    assert error["exit_code"] == 2
    assert f"error: {error['messages'][0]}" == line
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_names_the_nearest() -> None:
    rates = "--set train.learning_rate=VALUE or --set finetune.learning_rate=VALUE"
    for command, option, meant in (
        ("pretrain", "--stratgey", None),
        ("finetune", "--stratgey", "--strategy"),
        ("pretrain", "--learning-rates", rates),
        ("finetune", "--lr", rates),
        ("finetune", "--batch-size", "--set finetune.batch=VALUE"),
        ("plot", "--knd", "--kind"),
    ):
        hint = f"; did you mean {meant}?" if meant else ""
        problem = cli(command, option, "1").problem
        assert (
            problem == f"error: No such option: {option}{hint}  (see dsa-sandbox {command} --help)"
        )
    assert "pretrain" in cli("pretrian").problem


def test_a_selection_that_no_probe_fits_is_refused_before_training(quick_home: Path) -> None:
    line = ("pretrain", *QUICK, "--set", "model.num_kept=2", "--home", quick_home)
    assert "error: model.num_kept=2: no probe fits" in cli(*line).problem
    assert not list(quick_home.glob("pretrain-*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("finetune", "--tasks", STREAM, "--count", 3), "has 10 tasks, and an arm learns all"),
        (("finetune", "--tasks", STREAM, "--set", "tasks.family=style"), "names the stream"),
        (("make-tasks", "--tasks", STREAM, "--count", 3), "has no effect on the rows of --tasks"),
        (
            ("make-tasks", "--tasks", STREAM, "--family", "style"),
            "has no effect on the rows of --tasks",
        ),
        (("finetune", "--arch", "dsaa"), "did you mean dsa?"),
        (("finetune", "--set", "eval.dense_tasks=[99]", "--tasks", STREAM), "the last is 9"),
        (("finetune", "--set", "eval.judge=nosuch", "--tasks", STREAM), "nosuch"),
        (("finetune", "--set", "finetune.selection=rand"), "finetune.selection=rand"),
        (
            ("finetune", "--strategy", "random-mask+gpm", "--tasks", STREAM),
            "--strategy random-mask+gpm: gpm needs whole matrices, but random-mask trains parts",
        ),
        (
            ("finetune", "--strategy", "agem", "--tasks", STREAM, "--set", "agem.size=1000000000"),
            "agem: its memory needs",
        ),
        (("finetune", "--set", "finetune.contrast=0.99"), "a batch needs at least one of each"),
        (("run", "--set", "tasks.order=60"), "tasks.order=60"),
        (("run", "--set", "eval.dense_tasks=[99]", "--count", 5), "the last is 4"),
        (("run", "--set", "eval.judge=nosuch"), "nosuch"),
        (
            ("run", "--set", "train.selection=random", "--set", "finetune.indexer=rewarm"),
            "selects by random; use finetune.indexer=frozen",
        ),
        (("run", "--archs", "dense", "--set", "finetune.indexer=rewarm"), "has no indexer"),
        (("run", "--set", "arch=dense"), "use --archs"),
        (("run", "--set", "strategy=ewc"), "use --strategies"),
        (("run", "--strategies", "EWC"), "did you mean ewc?"),
    ],
    ids=str,
)
def test_what_would_do_nothing_or_fail_later_is_refused_in_a_dry_run_too(
    arguments: tuple[object, ...], words: str, tiny_home: TinyHome
) -> None:
    for more in (("--dry-run",), ()) if arguments[0] == "finetune" else (("--dry-run",),):
        problem = cli(*arguments, *more, "--home", tiny_home.home).problem
        assert len(problem.splitlines()) == 1, problem
        assert words in problem


def test_dense_has_no_keys_to_choose(tiny_home: TinyHome) -> None:
    problem = cli("eval", tiny_home.run("pretrain dense"), "--selection", "random").problem
    assert "is dense" in problem


def test_settings_are_hinted_at_only_where_they_can_be_set(tmp_path: Path) -> None:
    assert "did you mean" not in cli("eval", "--steps", 3, "--home", tmp_path).problem

"""What one types and what comes back: help, streams, exit codes, JSON, signals."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer
from home import ANCHOR, QUICK, ROOT, STREAM, Answer, TinyHome, cli, inside, strict_json

from dsa_sandbox import resolving
from dsa_sandbox.cli import app

COMMANDS = (
    *("build", "pretrain", "make-tasks", "finetune", "eval", "plot"),
    *("run", "generate", "export", "import", "bench", "ls", "settings", "rm"),
)
BIN = Path(sys.executable).parent / "dsa-sandbox"


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# help


def test_help_shows_every_command() -> None:
    answer = cli("--help")
    assert answer.code == 0
    for name in COMMANDS:
        assert f" {name} " in answer.out
    assert set(COMMANDS) == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_ends_with_an_example_of_it(name: str) -> None:
    for spelling in ("--help", "-h"):
        answer = cli(name, spelling)
        assert answer.code == 0
        assert f"Example: dsa-sandbox {name} " in answer.out
    assert answer.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_word_that_was_written_for_it(name: str) -> None:
    shown = cli(name, "--help").out.split()  # brackets would be taken for markup, and vanish
    for parameter in typer.main.get_command(app).commands[name].params:  # type: ignore[attr-defined]
        help_text = getattr(parameter, "help", None) or ""
        missing = [word for word in help_text.split() if word not in shown]
        assert not missing, f"{parameter.name}: {help_text}"


def test_help_and_completion_import_nothing_heavy() -> None:
    script = f"""
import os, sys
from dsa_sandbox.cli import app, run_app
for name in ("", *{COMMANDS!r}):
    assert run_app([*name.split(), "--help"]) == 0
assert run_app(["--version"]) == 0
assert run_app(["pretrain", "--archh", "dsa"]) == 2
os.environ.update(_DSA_SANDBOX_COMPLETE="complete_bash", COMP_WORDS="dsa-sandbox pre")
os.environ["COMP_CWORD"] = "1"
try:
    app(prog_name="dsa-sandbox")
except SystemExit:
    pass
heavy = {{"torch", "numpy", "datasets", "tokenizers", "plotext"}} & set(sys.modules)
assert not heavy, heavy
assert run_app(["ls", "strategies"]) == run_app(["settings"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


def test_the_module_is_the_command() -> None:
    for command in ([BIN], [sys.executable, "-m", "dsa_sandbox"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("dsa-sandbox 0.")


# two commands in an empty folder


def test_two_commands_in_an_empty_folder_work_and_name_what_they_took(
    tiny_home: TinyHome,
) -> None:
    base, arm = (tiny_home.run(name) for name in ("pretrain dsa", "first finetune"))
    assert base.parent == arm.parent == tiny_home.folder / "runs"
    said = tiny_home.said["first finetune"].err
    assert f"base: {base.name}" in said
    assert "making them as make-tasks would" in said
    stream = json.loads((arm / "manifest.json").read_text("utf-8"))["tasks"]["name"]
    assert f"tasks: {stream}" in said
    assert stream.startswith("make-tasks-")


def test_finetune_takes_the_newest_stream_of_its_base(tiny_home: TinyHome) -> None:
    stream = tiny_home.run("make-tasks").name
    for strategy in ("sgd", "ewc", "acft"):
        assert f"tasks: {stream} (the newest" in tiny_home.said[strategy].err


def test_pretraining_names_where_it_starts_and_where_it_goes(tiny_home: TinyHome) -> None:
    said = tiny_home.said["pretrain dsa"].err
    assert "from build-dsa-smoke-s0-" in said
    assert f"into runs/{tiny_home.run('pretrain dsa').name}" in said
    assert "known facts" in said


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


# streams


def test_stdout_is_the_path_of_the_run_and_nothing_else(
    tiny_home: TinyHome, quick_home: Path
) -> None:
    for name in ("pretrain dsa", "first finetune", "make-tasks", "acft"):
        assert tiny_home.said[name].out == f"runs/{tiny_home.run(name).name}\n"
    answer = cli("build", "--home", quick_home, *QUICK)
    assert answer.out == f"{answer.run}\n"
    assert "feed-forward width" in answer.err


def test_the_same_command_again_returns_the_run_and_says_so(tiny_home: TinyHome) -> None:
    with inside(tiny_home.folder):
        again = cli("pretrain", "--arch", "dsa", "--config", "tiny.toml")
    assert again.out == tiny_home.said["pretrain dsa"].out
    assert "is there already" in again.err


def test_quiet_says_nothing(quick_home: Path) -> None:
    answer = cli("build", "--home", quick_home, "--quiet", *QUICK)
    assert answer.run.is_dir()
    assert answer.err == ""


def everything(tiny_home: TinyHome) -> dict[str, list[object]]:
    """A command line of every command whose work is done already."""
    config = ["--config", tiny_home.config]
    base, arms = tiny_home.run("pretrain dsa"), [tiny_home.run(s) for s in ("sgd", "acft")]
    return {
        "build": ["build", "--arch", "dsa", *config],
        "pretrain": ["pretrain", "--arch", "dsa", *config],
        "make-tasks": ["make-tasks", "--count", "3"],
        "finetune": ["finetune", "--strategy", "acft", "--arch", "dsa", *config],
        "eval": ["eval"],
        "eval of arms": ["eval", *arms],
        "eval of a base": ["eval", base],
        "eval of a base on tasks": ["eval", base, "--tasks", STREAM],
        **{
            f"plot {kind}": ["plot", "--kind", kind]
            for kind in ("forgetting", "retention", "front", "indexer")
        },
        **{
            f"ls {kind}": ["ls", kind]
            for kind in ("runs", "presets", "strategies", "archs", "tasks")
        },
        "settings": ["settings"],
        "settings of a strategy": ["settings", "--strategy", "ewc"],
        "rm": ["rm", arms[0], "--dry-run"],
        "build, dry": ["build", "--dry-run", *config],
        "pretrain, dry": ["pretrain", "--dry-run", *config],
        "make-tasks, dry": ["make-tasks", "--dry-run"],
        "finetune, dry": ["finetune", "--dry-run", *config],
        "run, dry": ["run", "--dry-run", *config],
    }


def homeless(name: str) -> bool:
    """Whether a command knows no home."""
    return name.startswith("settings")


def test_json_of_every_command_is_one_object_without_nan(tiny_home: TinyHome) -> None:
    for name, arguments in everything(tiny_home).items():
        home = [] if homeless(name) else ["--home", tiny_home.home]
        value = cli(*arguments, "--json", *home).value
        assert value["command"] == name.split(",")[0].split()[0], name


def test_results_of_every_command_are_plain_text_on_a_pipe(tiny_home: TinyHome) -> None:
    for name, arguments in everything(tiny_home).items():
        home = [] if homeless(name) else ["--home", tiny_home.home]
        answer = cli(*arguments, *home)
        assert answer.code == 0, answer.err
        assert "\x1b" not in answer.out + answer.err, name
        assert "Traceback" not in answer.err
        assert (answer.out == "") == (name == "rm"), name


def test_a_dry_run_changes_nothing(tiny_home: TinyHome, tmp_path: Path) -> None:
    before = sorted(tiny_home.folder.rglob("*"))
    for name, arguments in everything(tiny_home).items():
        if "--dry-run" in arguments:
            assert cli(*arguments, "--home", tiny_home.home).code == 0, name
    assert sorted(tiny_home.folder.rglob("*")) == before
    for command in ("build", "pretrain", "run"):
        assert cli(command, "--dry-run", "--home", tmp_path / "home").code == 0
    assert not list(tmp_path.iterdir())


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


def test_what_an_architecture_sets_by_itself_is_no_demand_on_the_base(quick_home: Path) -> None:
    common = ("--arch", "dsa-v32", "--home", quick_home)
    base = cli("pretrain", *QUICK, "--set", "model.force_sink=1", *common).run
    values = resolving.read_toml(base / "settings.toml")["model"]
    assert (values["force_sink"], values["force_local"]) == (1, 0)
    plan = ("--strategy", "sgd", "--tasks", STREAM, "--dry-run")
    assert cli("finetune", *plan, *common).code == 0
    problem = cli("finetune", *plan, *common, "--set", "model.force_sink=0").problem
    assert "model.force_sink=0: the base" in problem


def test_no_command_at_all_shows_the_help() -> None:
    answer = cli()
    assert "Usage:" in answer.out + answer.err
    assert "Traceback" not in answer.err
    assert len(max((answer.out + answer.err).splitlines(), key=len)) <= 120


def into_a_closed_pipe(*arguments: object) -> tuple[int, str]:
    """Exit code and stderr of a command whose stdout nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [str(part) for part in (BIN, *arguments)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    return done.returncode, done.stderr


def test_a_closed_pipe_ends_quietly(tiny_home: TinyHome) -> None:
    for arguments in (["settings"], ["--help"], ["ls", "--home", tiny_home.home]):
        assert into_a_closed_pipe(*arguments)[1] == ""


def test_a_closed_pipe_is_not_our_bug() -> None:
    assert into_a_closed_pipe("settings")[0] in (0, 141)


# ls, plot, eval


def test_ls_shows_what_there_is(tiny_home: TinyHome) -> None:
    rows = {row["run"]: row for row in cli("ls", "--json", "--home", tiny_home.home).value["rows"]}
    assert {tiny_home.run(name).name for name in tiny_home.said} < set(rows)
    assert {row["state"] for row in rows.values()} == {"finished"}
    base = rows[tiny_home.run("pretrain dsa").name]
    assert "NLL" in base["progress"]
    assert "facts" in base["progress"]
    table = cli("ls", "--home", tiny_home.home).out
    assert all(name in table for name in rows)


def test_ls_shows_how_far_unfinished_runs_are(tiny_home: TinyHome, tmp_path: Path) -> None:
    expected = {"pretrain": "step 150/300", "finetune": "task 1/3"}
    for name, run in (("pretrain", "pretrain dsa"), ("finetune", "sgd")):
        original = tiny_home.run(run)
        copy = tmp_path / original.name
        copy.mkdir()
        (copy / "settings.toml").write_bytes((original / "settings.toml").read_bytes())
        manifest = json.loads((original / "manifest.json").read_text("utf-8"))
        (copy / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
        lines = (original / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines]
        half = next(
            number
            for number, row in enumerate(rows)
            if (row.get("step") == 150 if name == "pretrain" else row.get("row") == 1)
        )
        torn = "".join(lines[: half + 1]) + lines[half + 1][:-5]  # a line that is being written
        (copy / "metrics.jsonl").write_text(torn, "utf-8")
    rows = cli("ls", "--json", "--home", tmp_path).value["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["state"] == "stopped"
        assert row["progress"] == expected[row["run"].split("-")[0]]


def test_ls_of_an_empty_home_says_so_on_stderr(tmp_path: Path) -> None:
    answer = cli("ls", "--home", tmp_path)
    assert (answer.code, answer.out) == (0, "")
    assert "no runs" in answer.err
    assert cli("ls", "--json", "--home", tmp_path).value["rows"] == []


@pytest.mark.parametrize("kind", ["forgetting", "retention", "front"])
def test_plot_draws_the_arms_and_saves_their_points(
    kind: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    table = tmp_path / "points.csv"
    answer = cli("plot", "--kind", kind, "--save", table, "--home", tiny_home.home)
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 80
    for arm in ("dsa sgd", "dsa ewc", "dsa acft"):
        assert arm in answer.out
    points = cli("plot", "--kind", kind, "--json", "--home", tiny_home.home).value["points"]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(points) > 0
    assert [row["arm"] for row in rows] == [point["arm"] for point in points]


@pytest.mark.parametrize(
    ("save", "told"), [("points.png", ".csv"), ("no/such/folder.csv", "does not exist")]
)
def test_plot_refuses_files_it_cannot_write_before_it_draws(
    save: str, told: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    assert told in cli("plot", "--save", tmp_path / save, "--home", tiny_home.home).problem
    assert not list(tmp_path.iterdir())


def test_a_plot_that_cannot_be_saved_is_one_line(tiny_home: TinyHome, tmp_path: Path) -> None:
    (tmp_path / "taken.csv").mkdir()
    answer = cli("plot", "--save", tmp_path / "taken.csv", "--home", tiny_home.home)
    assert answer.code in (2, 3)
    assert "taken.csv" in answer.err


def test_plot_draws_an_arm_that_is_unfinished(tiny_home: TinyHome, tmp_path: Path) -> None:
    original = tiny_home.run("sgd")
    copy = tmp_path / original.name
    copy.mkdir()
    manifest = json.loads((original / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}))
    lines = (original / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]), "utf-8")
    (copy / "records.jsonl").write_bytes((original / "records.jsonl").read_bytes())
    for kind in ("forgetting", "retention", "front"):
        assert "dsa sgd" in cli("plot", "--kind", kind, "--home", tmp_path).out
    assert "not finished" in cli("eval", copy, "--home", tmp_path).problem


def copied(original: Path, home: Path, name: str, state: str, lines: list[str]) -> Path:
    """A run as it looks with these lines of metrics.jsonl."""
    copy = home / name
    copy.mkdir(parents=True)
    (copy / "settings.toml").write_bytes((original / "settings.toml").read_bytes())
    manifest = json.loads((original / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | {"state": state}))
    (copy / "metrics.jsonl").write_text("".join(lines), "utf-8")
    return copy


def metrics_of(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)


def test_plot_draws_what_an_indexer_learned_and_saves_its_points(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    table, run = tmp_path / "points.csv", tiny_home.run("pretrain dsa")
    plot = ["plot", "--kind", "indexer", "--home", tiny_home.home]
    answer = cli(*plot, "--save", table)
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 80
    assert answer.out.startswith(f"{run.name}\n")  # the newest run has no indexer
    for text in (
        "KL captured",
        "Recall",
        "Overlap",
        "o layer 1",
        "tie rate",
        "taught alone from 240",
    ):
        assert text in answer.out
    points = cli(*plot, "--json").value["points"]
    logged = [row for row in map(json.loads, metrics_of(run)) if "indexer" in row]
    assert [point["step"] for point in points] == [row["step"] for row in logged]
    assert [point["phase"] for point in points][:3] == ["dense", "indexer", "sparse"]
    for name in ("kl_captured", "recall", "overlap", "density", "tie_rate"):
        assert [point[name] for point in points] == [row["indexer"][0][name] for row in logged]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [run.name] * len(points)
    assert [float(row["overlap"]) for row in rows] == [point["overlap"] for point in points]


def test_plot_of_several_indexers_has_a_line_for_each_run(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    original = tiny_home.run("pretrain dsa")
    names = [f"pretrain-dsa-smoke-s{seed}-12345678" for seed in range(2)]
    for name in names:
        copied(original, tmp_path, name, "finished", metrics_of(original))
    answer = cli("plot", "--kind", "indexer", *names, "--home", tmp_path)
    for mark, name in zip("ox", names, strict=True):
        assert f"{mark} {name.removeprefix('pretrain-')}" in answer.out
    assert "layer 1" not in answer.out
    value = cli("plot", "--kind", "indexer", *names, "--json", "--home", tmp_path).value
    assert {point["run"] for point in value["points"]} == set(names)


def test_an_indexer_that_is_still_taught_is_drawn_and_one_not_yet_taught_waited_for(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    original, plot = tiny_home.run("pretrain dsa"), ["plot", "--kind", "indexer", "--home"]
    lines = metrics_of(original)
    begun = next(number for number, line in enumerate(lines) if '"indexer"' in line)
    for end in (begun + 1, begun + 3):  # one point, then more, then a line that is being written
        home = tmp_path / str(end)
        copied(original, home, original.name, "running", [*lines[:end], lines[end][:-5]])
        assert "o layer 1" in cli(*plot, home).out
    copied(original, tmp_path / "early", original.name, "running", lines[:2])
    problem = cli(*plot, tmp_path / "early").problem
    assert "at step 20, and its indexer is taught from step 240 on" in problem


def test_figures_that_a_run_did_not_log_are_not_drawn(tiny_home: TinyHome, tmp_path: Path) -> None:
    original = tiny_home.run("pretrain dsa")
    lines = [line.replace('"overlap"', '"other"') for line in metrics_of(original)]
    copied(original, tmp_path, original.name, "finished", lines)
    answer = cli("plot", "--kind", "indexer", "--home", tmp_path)
    assert "Recall" in answer.out
    assert "Overlap" not in answer.out


def test_a_plot_of_runs_that_have_nothing_of_the_kind_names_what_it_needs(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    dense, arm, base = (tiny_home.run(name) for name in ("pretrain dense", "sgd", "pretrain dsa"))
    problem = cli("plot", "--kind", "indexer", dense, arm, "--home", tiny_home.home).problem
    assert problem.splitlines() == [
        f"error: {dense.name}: dense has no indexer; name a run of dsa",
        f"error: {arm.name}: a finetune run; a pretrain run is needed",
    ]
    problem = cli("plot", base, "--home", tiny_home.home).problem
    assert problem.endswith("a finetune run is needed; --kind indexer draws a base")
    controlled = copied(base, tmp_path, base.name, "finished", [])
    text = (controlled / "settings.toml").read_text("utf-8")
    (controlled / "settings.toml").write_text(
        text.replace('selection = "learned"', 'selection = "window"'), "utf-8"
    )
    problem = cli("plot", "--kind", "indexer", controlled, "--home", tmp_path).problem
    assert problem.endswith("no indexer is taught with train.selection=window")
    assert "no indexer is taught in" in cli("plot", "--kind", "indexer", "--home", tmp_path).problem


def test_eval_shows_every_arm_and_that_one_seed_decides_nothing(tiny_home: TinyHome) -> None:
    answer = cli("eval", "--home", tiny_home.home)
    for arm in ("dsa sequential (adamw)", "dsa ewc", "dsa acft"):
        assert arm in answer.out
    assert "One seed decides nothing" in answer.out
    assert "NOT at equal learning" in answer.out


def test_eval_prints_formulas_beside_names(tiny_home: TinyHome) -> None:
    formulas = cli("eval", "--json", "--home", tiny_home.home).value["formulas"]
    answer = cli("eval", "--formulas", "--home", tiny_home.home)
    assert {"Y", "Y2", "bwt", "specificity"} < set(formulas)
    unfolded = " ".join(answer.out.split())
    assert all(text in unfolded for text in formulas.values())
    assert max(map(len, answer.out.splitlines())) <= 80


def test_eval_takes_prefixes_and_refuses_what_has_no_figures(tiny_home: TinyHome) -> None:
    name = tiny_home.run("sgd").name
    value = cli("eval", name[:-4], "--json", "--home", tiny_home.home).value
    assert list(value["runs"]) == [name]
    problem = cli("eval", tiny_home.run("make-tasks"), "--home", tiny_home.home).problem
    assert "a make-tasks run" in problem
    problem = cli("eval", name, "--tasks", STREAM, "--home", tiny_home.home).problem
    assert "--tasks is for bases" in problem


# the hand-written stream, a stranger's strategy, the CI script


def test_the_hand_written_stream_goes_all_the_way(tiny_home: TinyHome, tmp_path: Path) -> None:
    base = tiny_home.run("pretrain dsa")
    home = ["--home", tmp_path / "home"]
    stream = cli("make-tasks", base, "--tasks", STREAM, *home).run
    assert len((stream / "tasks.jsonl").read_text("utf-8").splitlines()) == 10
    value = cli("eval", base, "--tasks", STREAM, "--json", *home).value
    (figures,) = value["runs"].values()
    assert figures["tasks"] == 10
    assert figures["right"]["outside"] > figures["right"]["cloze"]  # it knows the true facts
    quick = ["--set", "finetune.max_steps=2", "--set", "eval.num_heldout=2", "--quiet"]
    arms = []
    for tasks in (STREAM, stream.name):
        answer = cli("finetune", base, "--strategy", "sgd", "--tasks", tasks, *quick, *home)
        arms.append(answer.run)
        figures = cli("eval", arms[-1], "--json", *home).value["runs"][arms[-1].name]
        assert figures["tasks"] == 10
        assert figures["Y"] is not None
    assert (arms[0] / "records.jsonl").read_bytes() == (arms[1] / "records.jsonl").read_bytes()
    plain = ["--tasks", STREAM, "--set", "finetune.contrast=0", *quick, *home]
    arms[1] = cli("finetune", base, "--strategy", "sgd", *plain).run
    shown = cli("eval", *arms, *home).out
    assert "dsa adamw, overwriting " in shown  # no contrast stories: titled so
    assert "…" not in shown
    assert "2 arms are dsa sgd" in shown


@pytest.mark.usefixtures("forget_includes")
def test_a_strangers_strategy_runs_as_an_arm(tiny_home: TinyHome, tmp_path: Path) -> None:
    base, tasks = tiny_home.run("pretrain dsa"), tiny_home.run("make-tasks") / "tasks.jsonl"
    common = ["--tasks", tasks, "--home", tmp_path / "home", "--config", tiny_home.config]
    assert "anchor: no such strategy" in cli("finetune", base, "--strategy", "anchor").problem
    include = ["--include", ANCHOR, "--strategy", "anchor"]
    problem = cli("finetune", base, *include, "--set", "anchor.strenght=1", *common).problem
    assert "did you mean anchor.strength?" in problem
    arm = cli("finetune", base, *include, "--set", "anchor.strength=100", *common).run
    lines = [json.loads(line) for line in (arm / "metrics.jsonl").read_text("utf-8").splitlines()]
    penalties = [line.get("penalty", 0.0) for line in lines if "step" in line]
    assert max(penalties) > 0
    assert "dsa anchor" in cli("eval", arm, "--home", tmp_path / "home").out
    assert "anchor" in cli("ls", "strategies", "--include", ANCHOR).out
    assert "strength = 100" in (arm / "settings.toml").read_text("utf-8")


@pytest.mark.usefixtures("forget_includes")
def test_a_strategy_that_does_not_load_is_the_users_problem(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module_anywhere\n")
    problem = cli("ls", "strategies", "--include", broken).problem
    assert str(broken) in problem
    assert "no_such_module_anywhere" in problem
    assert "no such file" in cli("ls", "--include", tmp_path / "missing.py").problem


@pytest.mark.usefixtures("forget_includes")
def test_two_included_files_may_share_a_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            "from dsa_sandbox.registry import strategies\n"
            "from dsa_sandbox.strategies.base import Strategy\n\n"
            f"@strategies.register('{name}')\nclass Mine(Strategy):\n    pass\n"
        )
    include = [
        part for name in ("one", "two") for part in ("--include", tmp_path / name / "mine.py")
    ]
    rows = cli("ls", "strategies", "--json", *include).value["rows"]
    assert {"one", "two"} < {row["strategy"] for row in rows}
    assert all(row["what"] for row in rows if row["strategy"] not in ("one", "two"))


def test_the_ci_script_runs(tmp_path: Path) -> None:
    path = f"{BIN.parent}:{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DSA_SANDBOX")}
    done = subprocess.run(
        ["bash", ROOT / "examples" / "ci.sh", tmp_path / "home"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"PATH": path},
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert "sgd" in first
    assert "anchor" in second
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_study_skips_what_the_store_has(tiny_home: TinyHome) -> None:
    before = sorted(tiny_home.home.glob("*/manifest.json"))
    arguments = ["--archs", "dsa", "--strategies", "ewc", "--count", "2"]
    ewc = ["--set", "ewc.passes=8", "--set", "ewc.task_passes=4"]
    with inside(tiny_home.folder):
        answer = cli("run", *arguments, "--config", "tiny.toml", "--json", *ewc)
    arm = tiny_home.run("first finetune")
    assert list(answer.value["runs"]) == [arm.name]
    assert answer.value["verdict"] == "one seed decides nothing"
    assert sorted(tiny_home.home.glob("*/manifest.json")) == before


# signals


def interrupt_when_training(home: Path, number: int, pid: int) -> None:
    """Send a signal once a run has logged some steps; never before it is caught."""

    def size() -> int:
        return sum(path.stat().st_size for path in home.glob("pretrain-*/metrics.jsonl"))

    first = size()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if size() > first + 1000:
            os.kill(pid, number)
            return
        time.sleep(0.01)


def assert_saved_and_resumable(answer: Answer, home: Path, number: int) -> None:
    assert answer.code == 128 + number, answer.err
    assert answer.out == ""
    (run,) = home.glob("pretrain-*")
    assert len(checkpoints(run)) == 1
    assert not (run / "model.safetensors").exists()
    (line,) = [line for line in answer.err.splitlines() if "resume with: " in line]
    command = shlex.split(line.split("resume with: ")[1])
    assert command[:2] == ["dsa-sandbox", "pretrain"]
    (row,) = [
        r for r in cli("ls", "--json", "--home", home).value["rows"] if "pretrain" in r["run"]
    ]
    assert row["state"] == "interrupted"
    done = int(row["progress"].removeprefix("step ").split("/")[0])
    assert checkpoints(run) == [f"step-{done:08d}"]


def test_a_selection_that_no_probe_fits_is_refused_before_training(quick_home: Path) -> None:
    line = ("pretrain", *QUICK, "--set", "model.num_kept=2", "--home", quick_home)
    assert "error: model.num_kept=2: no probe can be made for it" in cli(*line).problem
    assert not list(quick_home.glob("pretrain-*"))


ENDLESS = ["pretrain", *QUICK, "--set", "train.steps=1000000"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_names_the_command_that_resumes(
    number: signal.Signals, quick_home: Path
) -> None:
    thread = threading.Thread(
        target=interrupt_when_training, args=(quick_home, int(number), os.getpid())
    )
    thread.start()
    answer = cli(*ENDLESS, "--home", quick_home)
    thread.join()
    assert_saved_and_resumable(answer, quick_home, int(number))


def test_ctrl_c_in_a_process_of_its_own_saves_and_ends_with_130(quick_home: Path) -> None:
    arguments = [str(part) for part in (*ENDLESS, "--home", quick_home)]
    child = subprocess.Popen(
        [BIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    interrupt_when_training(quick_home, signal.SIGINT, child.pid)
    out, err = child.communicate(timeout=60)
    assert "Traceback" not in err
    assert_saved_and_resumable(Answer(child.returncode, out, err), quick_home, int(signal.SIGINT))


def test_a_forced_run_is_resumed_by_the_command_it_names(quick_home: Path) -> None:
    arguments = [*map(str, ENDLESS), "--home", str(quick_home)]
    interrupted(arguments, quick_home)
    told = interrupted([*arguments, "--force"], quick_home)
    assert len(list(quick_home.glob("pretrain-*"))) == 2
    interrupted(told, quick_home)
    assert len(list(quick_home.glob("pretrain-*"))) == 2


def interrupted(arguments: list[str], home: Path) -> list[str]:
    """Run a command, interrupt it; the arguments that it says resume it."""
    thread = threading.Thread(
        target=interrupt_when_training, args=(home, int(signal.SIGINT), os.getpid())
    )
    thread.start()
    answer = cli(*arguments)
    thread.join()
    assert answer.code == 130, answer.err
    return shlex.split(answer.err.split("resume with: ")[1].splitlines()[0])[1:]


@pytest.mark.parametrize("bound", ["independent", "joint", "none"])
def test_a_finished_bound_is_shown_again_and_listed(
    bound: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    """Figures that mean nothing of a bound come back from its manifest as null."""
    home = ("--home", tmp_path / "home")
    common = ("--strategy", bound, "--tasks", STREAM, "--set", "finetune.max_steps=1", *home)
    sets = ("--set", "eval.recovery_tasks=0", "--set", "eval.stories=0", "--set", "eval.pairs=4")
    arguments = ("finetune", tiny_home.run("pretrain dsa"), *common, *sets)
    first = cli(*arguments)
    again = cli(*arguments)
    assert (first.code, again.code) == (0, 0), again.err
    assert first.run == again.run
    assert f"{bound}" in cli("ls", *home).out
    assert cli("ls", "--json", *home).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("finetune", "--tasks", STREAM, "--count", 3), "has 10 tasks, and all are learned"),
        (("finetune", "--tasks", STREAM, "--set", "tasks.family=style"), "names the stream"),
        (("make-tasks", "--tasks", STREAM, "--count", 3), "are kept as they are"),
        (("make-tasks", "--tasks", STREAM, "--family", "style"), "are kept as they are"),
        (("finetune", "--arch", "dsaa"), "did you mean dsa?"),
        (("finetune", "--set", "eval.dense_tasks=[99]", "--tasks", STREAM), "the last is 9"),
        (("finetune", "--set", "eval.judge=nosuch", "--tasks", STREAM), "nosuch"),
        (("finetune", "--set", "finetune.selection=rand"), "finetune.selection=rand"),
        (
            ("finetune", "--strategy", "random-mask+gpm", "--tasks", STREAM),
            "--strategy random-mask+gpm: gpm holds whole matrices, and random-mask moves parts",
        ),
        (
            ("finetune", "--strategy", "agem", "--tasks", STREAM, "--set", "agem.size=1000000000"),
            "agem: what it remembers would take",
        ),
        (("finetune", "--set", "finetune.contrast=0.99"), "both sides need one"),
        (("run", "--set", "tasks.order=60"), "tasks.order=60"),
        (("run", "--set", "eval.dense_tasks=[99]", "--count", 5), "the last is 4"),
        (("run", "--set", "eval.judge=nosuch"), "nosuch"),
        (("run", "--set", "train.selection=random", "--set", "finetune.indexer=kl"), "indexer=kl"),
        (("run", "--archs", "dense", "--set", "finetune.indexer=kl"), "has no indexer"),
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

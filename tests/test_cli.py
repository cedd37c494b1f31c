"""What one types and what comes back: help, streams, exit codes, JSON, signals."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from home import ANCHOR, BIN, BRIEF, QUICK, STREAM, Answer, TinyHome, cli, inside, snapshot

from dsa_sandbox.cli.main import click_group
from dsa_sandbox.config import resolve

COMMANDS = (
    *("build", "pretrain", "make-tasks", "finetune", "eval", "plot"),
    *("run", "tune", "power", "generate", "export", "import", "bench", "ls", "settings", "rm"),
)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# help


def test_help_shows_every_command() -> None:
    answer = cli("--help")
    assert answer.code == 0
    for name in COMMANDS:
        assert f" {name} " in answer.out
    assert set(COMMANDS) == set(click_group().commands)


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
    for parameter in click_group().commands[name].params:
        help_text = getattr(parameter, "help", None) or ""
        missing = [word for word in help_text.split() if word not in shown]
        assert not missing, f"{parameter.name}: {help_text}"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_says_what_is_to_be_typed_and_no_type_of_python(name: str) -> None:
    assert not re.findall(r"<[\w\[\].]+>", cli(*name.split(), "--help").out)
    group = click_group()
    command = group.commands[name] if name else group
    for parameter in command.params:
        if not getattr(parameter, "is_flag", False):
            assert parameter.metavar, parameter.name


def test_help_and_completion_import_nothing_heavy_and_commands_no_compiler() -> None:
    script = f"""
import os, sys
from dsa_sandbox.cli.main import app, run_app
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
assert run_app(["ls", "strategies"]) == run_app(["ls", "presets"]) == 0
assert "torch" not in sys.modules
from dsa_sandbox import machine
machine.start(machine.Engine("cpu", 1, "fp32"))
import torch
assert torch.are_deterministic_algorithms_enabled()
assert not {{"torch._inductor", "torch._dynamo"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


def test_the_module_is_the_command() -> None:
    for command in ([BIN], [sys.executable, "-m", "dsa_sandbox"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("dsa-sandbox ")


def test_the_version_names_the_package_torch_and_python() -> None:
    import torch

    out = cli("--version").out
    python = "{}.{}.{}".format(*sys.version_info[:3])
    expected = f"dsa-sandbox {version('dsa-sandbox')} (torch {torch.__version__}, Python {python})"
    assert out == f"{expected}\n"


def test_the_version_of_a_checkout_that_is_not_installed_is_said_to_be_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    answer = cli("--version")
    assert answer.code == 0
    assert answer.out.startswith("dsa-sandbox not installed (torch not installed, Python 3.")


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
    assert "already exists" in again.err


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
    own = tiny_home.copy(tmp_path / "tiny")
    before = snapshot(own.folder)
    for name, arguments in everything(own).items():
        if "--dry-run" in arguments:
            assert cli(*arguments, "--home", own.home).code == 0, name
    assert snapshot(own.folder) == before
    for command in ("build", "pretrain", "run"):
        assert cli(command, "--dry-run", "--home", tmp_path / "home").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_what_an_architecture_sets_by_itself_is_no_demand_on_the_base(quick_home: Path) -> None:
    common = ("--arch", "dsa-v32", "--home", quick_home)
    base = cli("pretrain", *QUICK, "--set", "model.force_sink=1", *common).run
    values = resolve.read_toml(base / "settings.toml")["model"]
    assert (values["force_sink"], values["force_local"]) == (1, 0)
    plan = ("--strategy", "sgd", "--tasks", STREAM, "--dry-run")
    assert cli("finetune", *plan, *common).code == 0
    problem = cli("finetune", *plan, *common, "--set", "model.force_sink=0").problem
    assert "model.force_sink=0: the base" in problem


def test_no_command_at_all_shows_the_help() -> None:
    answer = cli()
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == cli("--help").out
    assert "Usage:" in answer.out


def into_a_closed_pipe(*arguments: object) -> tuple[int, str]:
    """Exit code and stderr of a command whose stdout nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [str(part) for part in (BIN, *arguments)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    return done.returncode, done.stderr


def test_a_closed_pipe_ends_quietly_and_is_not_our_bug(tiny_home: TinyHome) -> None:
    for arguments in (["ls", "strategies"], ["--help"], ["ls", "--home", tiny_home.home]):
        code, err = into_a_closed_pipe(*arguments)
        assert err == ""
        assert code in (0, 141) or arguments == ["--help"]  # which Typer ends with 1


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


def test_eval_shows_every_arm_and_that_one_seed_decides_nothing(tiny_home: TinyHome) -> None:
    answer = cli("eval", "--home", tiny_home.home)
    for arm in ("dsa sgd", "dsa ewc", "dsa acft"):
        assert arm in answer.out
    assert "one seed decides nothing" in " ".join(answer.out.split())


def test_eval_prints_formulas_beside_names(tiny_home: TinyHome) -> None:
    figures = cli("eval", "--json", "--home", tiny_home.home).value["figures"]
    answer = cli("eval", "--formulas", "--home", tiny_home.home)
    assert {"heldout_dnll", "log_odds_fall", "bwt", "specificity"} < set(figures)
    unfolded = " ".join(answer.out.split())
    assert all(figure["formula"] in unfolded for figure in figures.values())
    assert max(map(len, answer.out.splitlines())) <= 80


def test_eval_takes_prefixes_and_refuses_what_has_no_figures(tiny_home: TinyHome) -> None:
    name = tiny_home.run("sgd").name
    value = cli("eval", name[:-4], "--json", "--home", tiny_home.home).value
    assert list(value["runs"]) == [name]
    problem = cli("eval", tiny_home.run("make-tasks"), "--home", tiny_home.home).problem
    assert "a make-tasks run" in problem
    problem = cli("eval", name, "--tasks", STREAM, "--home", tiny_home.home).problem
    assert "--tasks applies to bases only" in problem


# the hand-written stream, a stranger's strategy, the CI script


def test_the_hand_written_stream_goes_all_the_way(tiny_home: TinyHome, tmp_path: Path) -> None:
    base = tiny_home.run("pretrain dsa")
    home = ["--home", tmp_path / "home"]
    stream = cli("make-tasks", base, "--tasks", STREAM, *home).run
    assert len((stream / "tasks.jsonl").read_text("utf-8").splitlines()) == 10
    value = cli("eval", base, "--tasks", STREAM, "--json", *home).value
    (figures,) = value["runs"].values()
    assert figures["tasks"] == 10
    right = figures["right"]
    assert right["validation_out"] > right["validation_in"]  # it knows the true facts
    quick = [*BRIEF, "--set", "finetune.max_steps=2", "--quiet"]
    arms = []
    for tasks in (STREAM, stream.name):
        answer = cli("finetune", base, "--strategy", "sgd", "--tasks", tasks, *quick, *home)
        arms.append(answer.run)
        figures = cli("eval", arms[-1], "--json", *home).value["runs"][arms[-1].name]
        assert figures["tasks"] == 10
        assert figures["heldout_dnll"] is not None
    assert (arms[0] / "records.jsonl").read_bytes() == (arms[1] / "records.jsonl").read_bytes()
    plain = ["--tasks", STREAM, "--set", "finetune.contrast=0", *quick, *home]
    arms[1] = cli("finetune", base, "--strategy", "sgd", *plain).run
    shown = cli("eval", *arms, *home).out
    assert "dsa sgd overwriting " in shown  # it saw no contrast stories
    assert "…" not in shown
    assert "2 arms are dsa sgd" in cli("eval", "--all", *arms, *home).out


@pytest.mark.usefixtures("forget_includes")
def test_a_strangers_strategy_runs_as_an_arm(tiny_home: TinyHome, tmp_path: Path) -> None:
    base, tasks = tiny_home.run("pretrain dsa"), tiny_home.run("make-tasks") / "tasks.jsonl"
    common = ["--tasks", tasks, "--home", tmp_path / "home", "--config", tiny_home.config]
    assert "anchor: no such strategy" in cli("finetune", base, "--strategy", "anchor").problem
    include = ["--include", ANCHOR, "--strategy", "anchor"]
    problem = cli("finetune", base, *include, "--set", "anchor.strenght=1", *common).problem
    assert "did you mean anchor.strength?" in problem
    strong = ("--set", "anchor.strength=100", *BRIEF)
    arm = cli("finetune", base, *include, *strong, *common).run
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
    arguments = ("finetune", tiny_home.run("pretrain dsa"), *common, *BRIEF)
    first = cli(*arguments)
    again = cli(*arguments)
    assert (first.code, again.code) == (0, 0), again.err
    assert first.run == again.run
    assert f"{bound}" in cli("ls", *home).out
    assert cli("ls", "--json", *home).code == 0

"""`run STUDY` makes the cells of all seeds, once; records without weights stand for runs."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from home import STREAM, Answer, cli, inside, made_once, with_cache
from test_study import here

from dsa_sandbox import children, machine
from dsa_sandbox.metrics import arm
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import all_runs
from dsa_sandbox.study import records
from dsa_sandbox.study.blocks import blocks_of
from dsa_sandbox.verdict.blocks import ArmKey

STUDY = """
name = "two"
seeds = "20-21"
confirmatory = false
stream = ["dsa sgd", "dsa sgd, finetune.learning_rate=1e30"]
single = ["dsa sgd"]
tasks = 2
single_tasks = 2
placebo_tasks = 1
rates = "shipped"
rows = "rows.jsonl"
[settings]
"model.num_layers" = 1
"model.width" = 32
"model.num_heads" = 4
"model.ffn_width" = 64
"model.context" = 104
"model.num_kept" = 12
"data.num_stories" = 60
"data.num_validation" = 4
"train.steps" = 6
"train.tokens_per_step" = 128
"train.log_every" = 1
"finetune.max_steps" = 3
"eval.num_heldout" = 2
"eval.pairs" = 4
"eval.recall_items" = 2
"eval.stories" = 0
"eval.recovery_tasks" = 0
"""
FAILED = "dsa sgd stream, finetune.learning_rate=1e+30"
NUM_CELLS = 2 * 6  # base, tasks, two streams, single tasks, placebo


class Made(NamedTuple):
    """A folder with a study file, its rows, and a home."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def study(self) -> Path:
        return self.home / "studies" / "two"

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.study / "study.json").read_text("utf-8"))
        return found

    def run(self, *more: object) -> Answer:
        with inside(self.folder):
            return cli("run", "two.toml", "--home", "home", "--jobs", "1", *more)

    def change(self, old: str, new: str) -> None:
        file = self.folder / "two.toml"
        text = file.read_text("utf-8")
        assert old in text
        file.write_text(text.replace(old, new), "utf-8")


def make(folder: Path) -> None:
    """Run the whole study; its cells run in this process."""
    (folder / "two.toml").write_text(STUDY, "utf-8")
    rows = STREAM.read_text("utf-8").splitlines(keepends=True)[:2]
    (folder / "rows.jsonl").write_text("".join(rows), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "start", here)
        answer = Made(folder).run("--json")
    assert answer.code == 3, answer.err
    (folder / "said.json").write_text(json.dumps(answer), "utf-8")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The study after its end; tests only read it."""
    return Made(made_once(tmp_path_factory, "several", make))


@pytest.fixture
def made(finished: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A copy of the study whose cells, if any are started, run in this process."""
    monkeypatch.setattr(children, "start", here)
    return Made(Path(shutil.copytree(finished.folder, tmp_path / "copy")))


def nothing(arguments: Sequence[str], threads: int | None = None) -> "subprocess.Popen[bytes]":
    raise AssertionError(f"started: {arguments}")


def science(record: records.Record) -> Any:
    """A record without what differs each time: when, how long, the order in the home."""
    manifest = {k: v for k, v in record.manifest.items() if k not in ("created", "number")}
    figures = {k: v for k, v in record.figures.items() if k != "time_s"}
    return records.encoded([record.cell, record.asked, record.run, manifest, figures, record.items])


def sciences(study: Path) -> dict[str, Any]:
    return {record.cell.label: science(record) for record in records.all_in(study)}


def test_every_cell_is_made_and_a_diverged_one_is_a_recorded_failure(finished: Made) -> None:
    said = Answer(*json.loads((finished.folder / "said.json").read_text("utf-8")))
    assert said.code == 3
    value = json.loads(said.out)
    assert f"2 of {NUM_CELLS} cells have failed and count as not reached" in said.err
    assert value["failures"].keys() == {f"{seed} {FAILED}" for seed in (20, 21)}
    assert all("loss" in why and "finite" in why for why in value["failures"].values())
    assert value["finished"] == NUM_CELLS - 2
    assert len(list(records.all_in(finished.study))) == NUM_CELLS - 2
    assert value["hash"] == finished.state["hash"]
    assert (finished.study / "study.toml").read_text("utf-8") == STUDY
    assert not value["deviations"]
    for run in all_runs(finished.home):
        assert run.manifest["study"] == value["hash"], run.name
        assert run.manifest["environment"]["processor"] == machine.processor()


def test_the_hash_is_no_part_of_the_identity(made: Made) -> None:
    base = next(run for run in all_runs(made.home) if run.name.startswith("pretrain"))
    options = ["--config", made.study / "settings.toml", "--home", made.home, "--seed", "20"]
    again = cli("pretrain", "--arch", "dsa", *options, "--set", "machine.threads=1")
    assert again.run == base.path
    (made.study / "study.json").unlink()  # the study is forgotten; its runs are not
    shutil.rmtree(made.study / "records")
    (made.folder / "two.toml").write_text(STUDY.replace('"20-21"', '"20"'), "utf-8")
    value = json.loads(made.run("--json").out)
    assert value["hash"] != base.manifest["study"]
    cells = [one for one in value["cells"].values() if one["state"] == "finished"]
    assert len(cells) == 5
    assert all(one["cached"] for one in cells)  # named here, since the manifests name another
    assert (made.home / cells[0]["run"]).is_dir()


def test_a_finished_study_starts_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "start", nothing)
    before = made.state
    assert made.run().code == 3
    assert made.state == before
    plan = made.run("--dry-run", "--json").value
    assert (plan["cells"], plan["done"], plan["to_do"]) == (NUM_CELLS, NUM_CELLS, 0)
    assert plan["tokens"] == plan["hours"] == plan["disk_mb"] == 0


def test_killed_and_started_again_it_has_the_same_records(
    made: Made, finished: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(made.home)
    with_cache(made.home, finished.home)
    started = []

    def killed(arguments: Sequence[str], threads: int | None = None) -> Any:
        started.append(arguments[0])
        if len(started) == 5:
            raise KeyboardInterrupt
        return here(arguments, threads)

    with monkeypatch.context() as patch:
        patch.setattr(children, "start", killed)
        assert made.run().code == 130
    partial = sciences(made.study)
    assert 0 < len(partial) < 5
    assert made.run().code == 3
    assert sciences(made.study) == sciences(finished.study)


def test_records_without_weights_are_finished_cells(
    made: Made, finished: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "start", nothing)
    shutil.rmtree(made.home)
    answer = made.run("--records", finished.study)
    assert answer.code == 3
    assert f"{finished.study}: {NUM_CELLS - 2} finished cells of this study" in answer.err
    assert sciences(made.study) == sciences(finished.study)
    assert made.state["cells"].keys() == finished.state["cells"].keys()
    size = sum(path.stat().st_size for path in made.study.rglob("*.xz"))
    assert size / (NUM_CELLS - 2) < 12_000


def test_a_cell_is_made_where_records_of_a_block_lack_it(made: Made, finished: Made) -> None:
    """Its base and its tasks are made again, and have to be those of the records."""
    shutil.rmtree(made.home)
    with_cache(made.home, finished.home)
    brought = made.folder / "brought"
    shutil.copytree(finished.study, brought)
    for path in brought.rglob("dsa-sgd-single-placebo*"):
        path.unlink()
    assert made.run("--records", brought, "--seeds", "20").code == 3
    names = [run.name.split("-")[0] for run in all_runs(made.home)]
    assert sorted(names) == ["build", "finetune", "finetune", "make", "pretrain"]
    ours, theirs = sciences(made.study), sciences(finished.study)
    assert ours.keys() == theirs.keys() - {"21 dsa sgd single placebo"}
    assert ours == {label: theirs[label] for label in ours}


def test_figures_of_a_record_are_those_of_its_run(finished: Made) -> None:
    arms = 0
    for record in records.all_in(finished.study):
        if record.cell.verb == "finetune":
            figures = arm.figures_of(Run(finished.home / record.run))
            texts = [json.dumps(records.encoded(one)) for one in (figures, record.figures)]
            assert json.loads(texts[0]) == json.loads(texts[1])
            arms += 1
    assert arms == 2 * 3


def test_a_block_holds_bases_and_arms_by_what_they_are(finished: Made) -> None:
    blocks = blocks_of(finished.study)
    assert [block.seed for block in blocks] == [20, 21]
    for block in blocks:
        assert list(block.bases) == ["dsa"]
        assert block.arms.keys() == {
            ArmKey("stream", "dsa", "sgd"),
            ArmKey("single", "dsa", "sgd"),
            ArmKey("single", "dsa", "sgd", placebo=True),
        }
        single = block.arms[ArmKey("single", "dsa", "sgd")]
        placebo = block.arms[ArmKey("single", "dsa", "sgd", placebo=True)]
        assert (single["tasks"], placebo["tasks"]) == (2, 1)
        assert placebo["placebo_of"] in placebo["parents"]
        for one in single["trajectories"]:  # steps are numbers again
            assert 0 in one["dnll"]
            assert {0, 3} <= one["discrimination"].keys()


def test_items_of_a_record_tell_a_task_before_after_and_at_the_end(finished: Made) -> None:
    found = {record.cell.label: record for record in records.all_in(finished.study)}
    items = found["20 dsa sgd stream"].items
    assert {(item["task"], item["row"]) for item in items} == {
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 2),
    }
    inside_ = [item for item in items if item["kind"] == "validation_in" and item["task"] == 0]
    assert {item["distance"] for item in inside_} == {"near", "far"}
    assert len({item["asked"] for item in inside_}) == 2
    assert all(item["expected"] and item["said"] for item in items)


def test_a_change_after_a_result_is_a_deviation(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "start", nothing)
    made.change("[settings]", "[smallest]\ndamage = 0.2\n[settings]")
    answer = made.run()
    assert answer.code == 3
    assert "warning: changed after a first result: smallest: " in answer.err
    (deviation,) = made.state["deviations"]
    assert '"damage": 0.05' in deviation["what"]
    assert '"damage": 0.2' in deviation["what"].partition("->")[2]
    made.run()
    assert len(made.state["deviations"]) == 1  # once


def test_the_level_of_a_confirmatory_study_is_fixed_with_its_first_result(made: Made) -> None:
    made.change('rates = "shipped"', 'rates = "shipped"\nlevel = 0.6')
    file = made.study / "study.json"
    state = json.loads(file.read_text("utf-8"))
    state["content"]["confirmatory"] = True
    file.write_text(json.dumps(state), "utf-8")
    problem = made.run().problem
    assert "level=0.6: study two has confirmatory results at level 0.7" in problem


def test_a_block_that_was_begun_on_another_processor_starts_anew(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    (next(made.study.rglob("21/dsa-sgd-single-placebo*"))).unlink()
    other = {"model": "other", "isa": "OLD"}
    monkeypatch.setattr(machine, "processor", lambda device="cpu": other)
    answer = made.run("--json")
    assert "block 21 was begun on another processor" in answer.err
    state = json.loads(answer.out)
    assert {seed: one["processor"] == other for seed, one in state["blocks"].items()} == {
        "20": False, "21": True
    }  # fmt: skip
    runs = [
        one["run"] for label, one in state["cells"].items() if label[:2] == "21" and "run" in one
    ]
    assert len(runs) == 5
    assert all(name.endswith("-2") for name in runs)
    assert made.run("--json").code == 3  # and is not made a third time
    assert made.state["cells"] == state["cells"]


def test_a_run_of_another_processor_is_no_part_of_a_block(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(made.study)
    other = {"model": "other", "isa": "OLD"}
    monkeypatch.setattr(machine, "processor", lambda device="cpu": other)
    answer = made.run()
    assert answer.code == 2
    assert "block 20 is run with other (OLD): one block, one kind; remove the run" in answer.err


def test_an_unfinished_cell_does_not_go_on_elsewhere(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = next(run for run in all_runs(made.home) if run.name.startswith("pretrain"))
    manifest = json.loads((base.path / "manifest.json").read_text("utf-8"))
    manifest |= {"state": "interrupted"}
    manifest["environment"]["processor"] = {"model": "other", "isa": "OLD"}
    (base.path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    options = ["--arch", "dsa", "--config", made.study / "settings.toml", "--home", made.home]
    options += ["--seed", "20", "--set", "machine.threads=1"]
    problem = cli("pretrain", *options, "--study", made.study).problem
    assert "begun on other (OLD), and this is " in problem
    answer = cli("pretrain", *options)
    assert answer.code == 0
    assert "resuming on another kind of machine" in answer.err


def test_a_grid_for_several_seeds_is_an_exploratory_study(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["run", "--seeds", "20-21", "--archs", "dsa", "--strategies", "sgd", "--home", "home"]
    options += ["--config", "home/studies/two/settings.toml", "--tasks", "rows.jsonl"]
    options += ["--jobs", "1"]
    with inside(made.folder):
        plan = cli(*options, "--dry-run", "--json").value
        assert (plan["cells"], plan["confirmatory"], plan["claims"]) == (2 * 5, False, "none")
        assert plan["hours"] >= 0
        assert plan["tokens"] > 0
        before = {run.name for run in all_runs(made.home)}
        value = cli(*options, "--json").value
    assert value["study"] == plan["study"]
    assert value["finished"] == 10
    # what the study has made is taken, but a placebo of all tasks is another run
    new = {run.name for run in all_runs(made.home)} - before
    assert len(new) == 2
    assert all(Run(made.home / name).manifest["placebo"] for name in new)


def test_all_seeds_of_a_study_on_text_share_one_tokenizer(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for name in ("train", "valid"):
        stories = [f"Once there was a {name} {a}{b}." for a in "abcde" for b in "vwxyz"]
        (text / f"{name}.txt").write_text("<|endoftext|>".join(stories), "utf-8")
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.json").write_text('{"hash": "1"}', "utf-8")
    sets = ["model.num_layers=1", "model.width=32", "model.num_heads=4", "model.ffn_width=64"]
    sets += ["data.vocabulary=1200", "model.context=104", "model.num_kept=12"]
    options = ["--data", text, "--home", tmp_path / "home", "--study", study]
    options += [part for text in sets for part in ("--set", text)]

    def built(seed: int, *more: object) -> tuple[Path, str]:
        run = cli("build", "--seed", seed, *options, "--set", "data.fact_share=.5", *more).run
        return run, Run(run).manifest["files"]["tokenizer.json"]

    (one, ours), (_, others) = built(1), built(2)
    assert ours != others  # each seed has fact stories of its own
    shutil.copy(one / "tokenizer.json", study)
    (_, shared), (again, same) = built(1), built(2)
    assert shared == same
    assert "tokenizer" in Run(again).manifest


def test_a_torn_record_or_state_is_refused_by_name(made: Made) -> None:
    path = next(made.study.rglob("*.xz"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(Exception, match="torn, or not the record of a cell"):
        blocks_of(made.study)
    (made.study / "study.json").write_text("{}", "utf-8")
    assert "study.json: torn" in made.run().problem

"""The examples of a task family, of a metric with its plot and of a statistic do what they say.

anchor.py runs in test_resume.py, linear_attention.py in test_architectures.py, minimal.py in
test_minimal.py, and ci.sh in package.sh.
"""

from pathlib import Path

import pytest
import stored
from home import ROOT, TinyHome, cli

from dsa_sandbox import registry
from dsa_sandbox.tasks import schema

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.usefixtures("forget_includes")


def test_a_stream_of_one_relation_is_made_and_made_again(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    asked = ["make-tasks", tiny_home.run("pretrain dsa"), "--family", "one-relation"]
    asked += ["--include", EXAMPLES / "one_relation.py", "--count", "2"]
    first, second = (cli(*asked, "--home", tmp_path / name).run for name in ("a", "b"))
    tasks = schema.read(first / "tasks.jsonl")
    assert len(tasks) == 2
    assert len({task.relation for task in tasks}) == 1
    assert len({task.world for task in tasks}) == 2
    assert (first / "tasks.jsonl").read_bytes() == (second / "tasks.jsonl").read_bytes()


def test_the_worst_task_is_plotted_and_saved(tmp_path: Path) -> None:
    run = stored.arm(tmp_path)  # right after a task both items in its world are exact, then one
    asked = ["plot", "--include", EXAMPLES / "worst_task.py", "--home", tmp_path]
    answer = cli(*asked, "--kind", "worst-task")
    assert answer.code == 0, answer.err
    assert "Forgetting of the worst task" in answer.out
    points = cli(*asked, "--kind", "worst-task", "--json").value["points"]
    arm = points[0]["arm"]
    values = [1.0, 0.5, 0.5]
    assert points == [
        {"arm": arm, "task": task, "worst_exact_match": value}
        for task, value in enumerate(values, 1)
    ]
    assert run.path.exists()
    assert "did you mean worst-task?" in cli(*asked, "--kind", "worst-tasks").problem


def test_a_plot_of_the_name_of_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    body = "@plots.register('kl')\ndef draw(arms, style):\n    pass\n"
    path.write_text(f"from dsa_sandbox.registry import plots\n{body}")
    registered = dict(registry.plots.entries)
    assert "plot kl is registered twice" in cli("plot", "--include", path).problem
    assert registry.plots.entries == registered


def test_the_sign_test_pairs_arms_by_seed_and_prints_its_p(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    for arch, strategy, fall in (("dsa", "acft", 0.3), ("dense", "ewc", 0.4)):
        stored.arm(home, strategy, arch=arch, fall=fall)
    asked = ["eval", "--home", home, "--include", EXAMPLES / "sign_test.py"]
    (row,) = cli(*asked, "--json").value["statistics"]["sign-test"]
    assert row == {"contrast": "dsa acft - dense ewc", "seeds": 1, "first_less": 1, "p": 1.0}
    assert "first less" in cli(*asked, "--all").out


def test_a_two_sided_sign_test_adds_up_both_tails() -> None:
    file = EXAMPLES / "sign_test.py"
    registry.include(file, file.read_bytes())
    two_sided_p = registry.statistics["sign-test"].__globals__["two_sided_p"]
    assert two_sided_p(6, 6) == two_sided_p(0, 6) == 2 / 64
    assert two_sided_p(5, 6) == 2 * (1 + 6) / 64
    assert two_sided_p(3, 6) == 1

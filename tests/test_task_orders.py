"""Streams of tasks: their orders, and how they are made at the command line."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from home import TinyHome, cli
from test_families import made

from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks import orders, schema

# orders


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8])
def test_over_all_orders_each_task_stands_at_each_position_once(count: int) -> None:
    square = [orders.row(order, count) for order in range(count)]
    assert square[0] == list(range(count))
    for line in (*square, *zip(*square)):
        assert sorted(line) == list(range(count))
    neighbours = Counter(pair for line in square for pair in pairwise(line))
    if count % 2 == 0:
        assert all(neighbours[a, b] == 1 for a in range(count) for b in range(count) if a != b)
    elif count > 1:
        assert max(neighbours.values()) <= 2


def test_a_stream_in_another_order_has_the_same_rows() -> None:
    tasks = made("contradiction", count=4)
    assert orders.arranged(tasks, 0) == tasks
    other = orders.arranged(tasks, 3)
    assert [task.task for task in other] == [tasks[n].task for n in orders.row(3, 4)]
    assert other != tasks
    with pytest.raises(
        UserError, match=r"tasks\.order=4: a stream of 4 tasks has the orders 0 to 3"
    ):
        orders.arranged(tasks, 4)


def test_reversals_stand_in_one_order_only() -> None:
    with pytest.raises(UserError, match=r"tasks\.order=1: tasks that undo earlier ones"):
        orders.arranged(made("reversal"), 1)


# the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--family", "novle"], "tasks.family: novle: no such task family; did you mean novel?"),
        (["--family", "style", "--count", "51"], "tasks.count=51: a style stream has at most 50"),
        (["--family", "reversal", "--count", "101"], "a reversal stream has at most 100 tasks"),
        (["--count", "3", "--set", "tasks.order=3"], "tasks.order=3: a stream of 3 tasks has the"),
        (
            ["--family", "reversal", "--count", "7", "--set", "tasks.order=2"],
            "tasks that undo earlier ones",
        ),
    ],
)
def test_what_no_family_can_make_is_one_line(
    arguments: list[str], words: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    base = tiny_home.run("pretrain dsa")
    problem = cli("make-tasks", base, *arguments, "--home", tmp_path / "home").problem
    (line,) = problem.splitlines()
    assert words in line
    assert not (tmp_path / "home").exists()


def test_a_stream_of_reversals_has_a_hundred_tasks_where_none_is_named(
    tiny_home: TinyHome,
) -> None:
    base = tiny_home.run("pretrain dsa")
    for family, count in (("reversal", 100), ("novel", 50)):
        plan = cli("make-tasks", base, "--family", family, "--dry-run", "--json").value
        assert (plan["family"], plan["count"]) == (family, count)


def test_given_rows_are_put_in_order_too(tiny_home: TinyHome, tmp_path: Path) -> None:
    base, home = tiny_home.run("pretrain dsa"), ["--home", tmp_path / "home"]
    rows = tiny_home.run("make-tasks") / "tasks.jsonl"
    asked = ["make-tasks", base, "--tasks", rows, *home, "--set"]
    assert "has the orders 0 to 2" in cli(*asked, "tasks.order=3").problem
    kept, other = (cli(*asked, f"tasks.order={k}").run / "tasks.jsonl" for k in (0, 1))
    assert kept.read_bytes() == rows.read_bytes()
    lines = rows.read_text("utf-8").splitlines()
    assert other.read_text("utf-8").splitlines() == [lines[n] for n in orders.row(1, 3)]


OWN = '''
"""A family of one's own: contradictions, the last first."""

from dsa_sandbox.registry import families


@families.register("backwards")
def make(writer, known, count, seed):
    """Contradictions, the last first."""
    return families["contradiction"](writer, known, count, seed)[::-1]
'''


@pytest.mark.usefixtures("forget_includes")
def test_a_family_may_be_included(tiny_home: TinyHome, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN, "utf-8")
    base, home = tiny_home.run("pretrain dsa"), ["--home", tmp_path / "home"]
    asked = ["make-tasks", base, "--count", "2", *home]
    backwards = cli(*asked, "--family", "backwards", "--include", own).run
    plain = cli(*asked, "--include", own).run
    lines = (plain / "tasks.jsonl").read_text("utf-8").splitlines()
    assert (backwards / "tasks.jsonl").read_text("utf-8").splitlines() == lines[::-1]
    own.write_text(OWN + "# changed\n", "utf-8")
    assert cli(*asked, "--family", "backwards", "--include", own).run != backwards
    assert cli(*asked, "--include", own).run == plain  # which that file has no part in


def test_finetune_makes_the_family_that_is_asked_for(tiny_home: TinyHome, tmp_path: Path) -> None:
    """A stream of another family is not taken for it."""
    base, home = tiny_home.run("pretrain dsa"), ["--home", tmp_path / "home"]
    assert cli("make-tasks", base, "--count", "1", *home).code == 0
    asked = ["finetune", base, "--strategy", "sgd", *home, "--dry-run", "--json"]
    assert cli(*asked).value["tasks"] == 1
    assert cli(*asked, "--set", "tasks.family=novel").value["tasks"] == "made first"
    assert cli("make-tasks", base, "--count", "2", "--family", "novel", *home).code == 0
    assert cli(*asked, "--set", "tasks.family=novel").value["tasks"] == 2
    assert cli(*asked, "--set", "tasks.family=contradiction").value["tasks"] == 1


@pytest.mark.parametrize("family", ["style", "reversal", "roleplay"])
def test_every_family_can_be_made_for_a_small_base(
    family: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    base = tiny_home.run("pretrain dsa")
    asked = ["make-tasks", base, "--count", "2", "--family", family, "--home", tmp_path / "home"]
    run = cli(*asked).run
    assert run.name.startswith(f"make-tasks-{family}-test-smoke-s0-")
    assert len(schema.read(run / "tasks.jsonl")) == 2

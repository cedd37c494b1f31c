"""Mistakes in a strategy or a task family of one's own are told in one line before the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from home import TinyHome, cli
from tiny import tiny_model
from torch import Tensor

from dsa_sandbox import registry
from dsa_sandbox.strategies.base import Strategy, Trainable, Trainee, check_hooks

pytestmark = pytest.mark.usefixtures("forget_includes")


def taking(name: str, method: Any) -> type[Strategy]:
    """A strategy with one method."""
    return type("Mine", (Strategy,), {name: method})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("before_step", "after_step"),
        ("transform_gradient", "transform_gradients"),
        ("before_task", "start_task"),
        ("end_task", "finish_task"),
        ("penalties", "penalty"),
        ("on_task_end", "finish_task"),
    ],
)
def test_a_misspelt_hook_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    told = f"{name} is no hook, and no method of the class uses it; did you mean {near}\\?"
    with pytest.raises(ValueError, match=told):
        check_hooks(taking(name, lambda self, trainee: None))


def test_a_helper_may_be_named_like_a_hook_where_a_method_uses_it() -> None:
    class Helped(Strategy):
        def penalties(self, name: str) -> Tensor:
            return torch.zeros(len(name))

        @torch.no_grad()  # puts a function of its own around the method
        def penalty(self, trainee: Trainee) -> Tensor:
            return torch.cat([self.penalties(name) for name in trainee.parameters]).sum()

    check_hooks(Helped)


def test_a_hook_of_other_arguments_is_refused() -> None:
    told = r"its hook finish_task has to take the arguments \(self, trainee, batches, seed\)"
    with pytest.raises(ValueError, match=told):
        check_hooks(taking("finish_task", lambda self, trainee: None))
    check_hooks(taking("finish_task", lambda self, *anything: None))


@pytest.mark.parametrize("name", list(registry.strategies))
def test_every_built_in_strategy_passes_the_check_of_hooks(name: str) -> None:
    check_hooks(registry.strategies[name])


def test_a_strategy_cannot_train_what_the_network_lacks() -> None:
    model = tiny_model("dsa")
    name = "blocks.0.attention.selected.q.weight"
    Trainee(model, Trainable({name: 1.0}))
    with pytest.raises(ValueError, match=f"did you mean {name}"):
        Trainee(model, Trainable({name.replace(".q.", ".qq."): 1.0}))
    names: Any = [name]
    with pytest.raises(ValueError, match="has to return a Trainable, not a list"):
        Trainee(model, names)


def test_an_included_strategy_with_a_misspelt_hook_is_refused_in_a_dry_run(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dsa_sandbox.registry import strategies\n"
        "from dsa_sandbox.strategies.base import Strategy\n\n\n"
        "@strategies.register('mine')\n"
        "class Mine(Strategy):\n"
        "    def before_step(self, trainee, position):\n"
        "        pass\n",
        "utf-8",
    )
    asked = ["finetune", tiny_home.run("pretrain dsa"), "--include", file, "--strategy", "mine"]
    problem = cli(*asked, "--dry-run", "--home", tmp_path).problem
    assert problem.startswith("error: --strategy mine: before_step is no hook")


@pytest.mark.parametrize(("returned", "told"), [("[]", "0 tasks"), ("None", "NoneType")])
def test_a_family_that_returns_too_few_tasks_is_refused(
    returned: str, told: str, tiny_home: TinyHome, tmp_path: Path
) -> None:
    file = tmp_path / "few.py"
    file.write_text(
        "from dsa_sandbox.registry import families\n\n\n"
        "@families.register('few')\n"
        "def make(writer, known, count, seed):\n"
        f"    return {returned}\n",
        "utf-8",
    )
    asked = ["make-tasks", tiny_home.run("pretrain dsa"), "--include", file, "--family", "few"]
    problem = cli(*asked, "--count", "2", "--home", tmp_path).problem
    assert problem == (
        f"error: tasks.family=few: its function returned {told}, not a list of 2 (tasks.count)"
    )


def test_a_class_that_is_no_strategy_is_refused_by_name(tmp_path: Path) -> None:
    code = "from dsa_sandbox.registry import strategies\n\n\n"
    code += '@strategies.register("mine")\nclass Mine:\n    pass\n'
    (tmp_path / "mine.py").write_text(code, "utf-8")
    answer = cli("settings", "--include", tmp_path / "mine.py", "--strategy", "mine")
    told = "error: strategy mine: Mine is no subclass of dsa_sandbox.strategies.base.Strategy"
    assert answer.problem == told

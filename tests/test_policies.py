"""Selection policies: the keys that controls select, and that nothing else changes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from home import BRIEF, TinyHome, cli
from tiny import CONTEXT, attentions, documents, some_tokens, tiny_model
from torch import Tensor

from dsa_sandbox.config.settings import Train
from dsa_sandbox.core.indexer import causal_mask, select, selected_mask
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.evaluation.scoring import heldout_nll
from dsa_sandbox.selection import policies
from dsa_sandbox.training.pretrain import phase_of

NUM_KEPT = 6


def chosen(model: Transformer, tokens_BT: Tensor) -> list[Tensor]:
    """The mask [B, T, S] of the keys that each layer selects."""
    found = []

    def look(attention: Any, inputs: tuple[Tensor, ...]) -> None:
        sizes = (attention.num_kept, attention.num_sink, attention.num_local)
        found.append(
            selected_mask(select(attention.selection_scores(inputs[0]), *sizes), inputs[0].shape[1])
        )

    hooks = [one.register_forward_pre_hook(look) for one in attentions(model)]
    model(tokens_BT)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("arch", ["dsa", "dsa-v32"])
@pytest.mark.parametrize("policy", policies.CONTROLS)
def test_every_query_selects_as_many_keys_as_with_the_indexer(policy: str, arch: str) -> None:
    model = tiny_model(arch)
    policies.use(model, policy)
    for selected_BTS in chosen(model, some_tokens()):
        expected_T = torch.arange(1, CONTEXT + 1).clamp(max=NUM_KEPT)
        assert torch.equal(selected_BTS.sum(-1), expected_T.expand(2, CONTEXT))
        assert not (selected_BTS & ~causal_mask(CONTEXT)).any()
        assert selected_BTS[:, :, 0].all()  # forced: the sink, and the query itself
        assert selected_BTS.diagonal(dim1=1, dim2=2).all()


def test_the_window_is_the_last_tokens() -> None:
    model = tiny_model("dsa", force_sink=0)
    policies.use(model, "window")
    age_TS = torch.arange(CONTEXT)[:, None] - torch.arange(CONTEXT)
    for selected_BTS in chosen(model, some_tokens()):
        assert torch.equal(selected_BTS[0], (age_TS >= 0) & (age_TS < NUM_KEPT))


def test_the_oracle_selects_the_keys_with_most_dense_attention() -> None:
    model, tokens_BT = tiny_model("dsa", force_sink=0, force_local=0), some_tokens()
    policies.use(model, "oracle")
    seen = []

    def look(attention: Any, inputs: tuple[Tensor, ...]) -> None:
        past_BTS = causal_mask(CONTEXT).expand(2, CONTEXT, CONTEXT)
        seen.append(attention.attend_with_teacher(inputs[0], inputs[1], past_BTS)[1])

    for one in attentions(model):
        one.register_forward_pre_hook(look)
    for selected_BTS, dense_BTS in zip(chosen(model, tokens_BT), seen):
        least_kept_BT = dense_BTS.masked_fill(~selected_BTS, torch.inf).amin(-1)
        best_left_BT = dense_BTS.masked_fill(selected_BTS, -torch.inf).amax(-1)
        assert (least_kept_BT >= best_left_BT).all()


def test_random_keys_differ_between_queries_and_contents() -> None:
    model, tokens_BT = tiny_model("dsa", force_sink=0, force_local=0), some_tokens(64)
    policies.use(model, "random")
    first, second = chosen(model, tokens_BT)
    last_BS = first[:, -1].float()
    assert torch.equal(chosen(model, tokens_BT[5:6])[0][0], first[5])  # alone as in a batch
    assert (
        len({tuple(row.tolist()) for row in last_BS}) > 20
    )  # by what the last token is: one of 31
    expected = NUM_KEPT / CONTEXT
    assert (second[:, -1].float().mean(0) - expected).abs().max() < 0.2
    near, far = last_BS[:, CONTEXT // 2 :].mean(), last_BS[:, : CONTEXT // 2].mean()
    assert abs(near - far) < 0.08
    assert not torch.equal(first, second)


@pytest.mark.parametrize("ffn", ["mlp", "moe"])
@pytest.mark.parametrize("policy", ["window", "random", "oracle", "all", "learned"])
def test_later_tokens_never_change_earlier_logits(policy: str, ffn: str) -> None:
    model, tokens_BT = tiny_model("dsa", ffn=ffn, ffn_width=80), some_tokens()
    policies.use(model, policy)
    other_BT = tokens_BT.clone()
    other_BT[:, 20:] = (other_BT[:, 20:] + 1) % 31
    before, after = model(tokens_BT)[:, :20], model(other_BT)[:, :20]
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


def test_all_is_dense_attention_and_learned_restores_the_indexer() -> None:
    model, tokens_BT = tiny_model("dsa"), some_tokens()
    learned_BTV, full_BTV = model(tokens_BT), model(tokens_BT, sparse=False)
    policies.use(model, "all")
    assert torch.equal(model(tokens_BT), full_BTV)
    with policies.using(model, "window", then="learned"):
        assert not torch.allclose(model(tokens_BT), learned_BTV)
    assert torch.equal(model(tokens_BT), learned_BTV)
    dense, before = tiny_model("dense"), tiny_model("dense")(tokens_BT)
    policies.use(dense, "window")
    assert torch.equal(dense(tokens_BT), before)


def test_the_indexer_is_not_trained_under_a_control() -> None:
    phases = phase_of(Train(steps=100, selection="window"), True, False)
    assert [phases(step).sparse for step in (0, 64, 65, 99)] == [False, False, True, True]
    assert not any(phases(step).train_indexer for step in range(100))


def test_finetune_selection_and_eval_selection_are_independent(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    base, tasks = tiny_home.run("pretrain dsa"), tiny_home.run("make-tasks") / "tasks.jsonl"
    shutil.copytree(tiny_home.home / "cache", tmp_path / "cache")
    common = [base, "--strategy", "sgd", "--tasks", tasks, "--home", tmp_path, "--quiet"]
    quick = ["--set", "finetune.max_steps=2", *BRIEF]
    runs = {}
    for name, sets in {
        "neither": [],
        "learning": ["--set", "finetune.selection=window"],
        "measuring": ["--set", "eval.selection=window"],
    }.items():
        runs[name] = cli("finetune", *common, *quick, *sets).run
    weights = {name: (run / "model.safetensors").read_bytes() for name, run in runs.items()}
    assert weights["neither"] == weights["measuring"] != weights["learning"]
    first = {
        name: (run / "records.jsonl").read_text().splitlines()[0] for name, run in runs.items()
    }
    assert first["neither"] == first["learning"] != first["measuring"]


def test_a_base_is_evaluated_with_any_policy(tiny_home: TinyHome) -> None:
    base, home = tiny_home.run("pretrain dsa"), ("--home", tiny_home.home)
    losses = {}
    for policy in ("learned", "all", "random"):
        value = cli("eval", base, "--selection", policy, "--json", *home).value
        losses[policy] = value["runs"][base.name]["valid"]["nll"]
    assert len(set(losses.values())) == 3
    assert losses["random"] > losses["learned"]
    assert "did you mean window?" in cli("eval", base, "--selection", "windw", *home).problem
    arm = tiny_home.run("sgd")
    assert (
        "--selection applies to bases only" in cli("eval", arm, "--selection", "all", *home).problem
    )


def test_an_untrained_indexer_is_refused(tiny_home: TinyHome, tmp_path: Path) -> None:
    shutil.copytree(tiny_home.home / "cache", tmp_path / "cache")
    home = ("--home", tmp_path, "--config", tiny_home.config, "--quiet")
    quick = ("--set", "train.steps=4", "--set", "train.selection=window")
    base = cli("pretrain", "--arch", "dsa", *quick, *home).run
    rows = ("--tasks", tiny_home.run("make-tasks") / "tasks.jsonl")
    for key in ("finetune.selection", "eval.selection"):
        asked = ("--set", f"{key}=learned")
        problem = cli("finetune", base, "--strategy", "sgd", *rows, *asked, *home[:2]).problem
        assert f"{key}=learned: the base was trained with train.selection=window" in problem
    assert (
        "its indexer is untrained" in cli("eval", base, "--selection", "learned", *home[:2]).problem
    )
    assert cli("eval", base, "--selection", "all", "--json", *home[:2]).code == 0


def test_heldout_nll_depends_on_the_policy() -> None:
    model, rows = tiny_model("dsa"), documents(30, 20, 32)
    scored = []
    for policy in ("learned", "window", "all"):
        policies.use(model, policy)
        scored.append(heldout_nll(model, rows)[0])
    assert len(set(scored)) == 3

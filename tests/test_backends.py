"""Networks give equal results with every attention backend, and both losses stay separate.

A new backend is one entry of BACKENDS, a new architecture one of ARCHS ("dsa block": with
compression=block). Triton's interpreter is slow, so it has fewer cases of its own.

B batch, T tokens, D width, Q queries that are taught.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from home import QUICK, cli
from tiny import CONTEXT, attentions, some_tokens, tiny_model
from torch import Tensor

from dsa_sandbox.config import resolve
from dsa_sandbox.core.attention import DsaAttention
from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.errors import UserError
from dsa_sandbox.kernels import chunked
from dsa_sandbox.machine import Engine
from dsa_sandbox.runs import provenance
from dsa_sandbox.runs.job import Job
from dsa_sandbox.runs.session import Session
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.sizes import group_of

ARCHS = ["dsa", "dsa block", "dsa-full", "dsa-v32"]
BACKENDS = ["reference", "gather"]
QUERIES = torch.tensor([3, 5, 17, 30])
TEACH: dict[str, bool | Tensor] = {
    "not taught": False,
    "taught": True,
    "taught about some": QUERIES,
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of eight queries, the smallest size."""
    monkeypatch.setitem(chunked.BLOCK, "cpu", 1)


def network(arch: str, backend: str, **overrides: Any) -> Transformer:
    """A tiny network computed by `backend`."""
    if arch == "dsa block":
        arch, overrides = "dsa", {"compression": "block", "block_size": 5} | overrides
    if arch == "dsa-v32":
        overrides = {"force_sink": 0, "force_local": 0} | overrides
    model = tiny_model(arch, **overrides)
    backends.use(model, backend)
    return model


def step(
    model: Transformer, sparse: bool, train_indexer: Any, length: int = CONTEXT
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, the indexer losses of all layers, and the gradients of both together by name."""
    tokens_BT = some_tokens(2, length)
    x_BTD, losses = model.hidden(tokens_BT, sparse=sparse, train_indexer=train_indexer)
    logits_BTV = model.logits(x_BTD)
    objective = nll_sum(logits_BTV.flatten(0, 1), tokens_BT.roll(-1, 1).flatten())
    kl = torch.stack(losses) if losses else torch.zeros(0)
    weights = torch.linspace(0.1, 2.0, kl.numel()).view_as(kl)  # queries do not count alike
    (objective + (weights * kl).sum()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return logits_BTV.detach(), kl.detach(), gradients


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train_indexer", TEACH)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("num_kept", [3, 6])
def test_logits_losses_and_gradients_are_those_of_the_masked_path(
    arch: str, backend: str, train_indexer: str, sparse: bool, num_kept: int
) -> None:
    sizes = {"num_kept": num_kept, "force_sink": 1, "force_local": 1}
    ours, expected = (
        step(network(arch, name, **sizes), sparse, TEACH[train_indexer])
        for name in (backend, "masked")
    )
    close(ours[0], expected[0])
    close(ours[1], expected[1])
    assert ours[1].shape == expected[1].shape
    assert ours[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        close(ours[2][name], gradient)


@pytest.mark.parametrize("arch", ["dsa", "dsa block", "dsa-v32"])
@pytest.mark.parametrize("train_indexer", ["not taught", "taught"])
def test_triton_computes_what_the_masked_path_does(arch: str, train_indexer: str) -> None:
    pytest.importorskip("triton")
    ours, expected = (
        step(network(arch, name, num_layers=1, context=16), True, TEACH[train_indexer], length=12)
        for name in ("triton", "masked")
    )
    close(ours[0], expected[0])
    close(ours[1], expected[1])
    assert ours[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        close(ours[2][name], gradient)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_mixed_precision_backends_are_close_to_masked(arch: str, backend: str) -> None:
    """With one layer, since the selection of a second may depend on the last bits of the first."""
    with torch.autocast("cpu", torch.bfloat16):
        ours, masked = (
            step(network(arch, name, num_layers=1), True, False) for name in (backend, "masked")
        )
    close(ours[0].float(), masked[0].float(), 2e-2)
    for name, gradient in masked[2].items():
        close(ours[2][name], gradient, 2e-2)


@pytest.mark.parametrize("arch", ARCHS)
def test_masked_is_the_core_itself(arch: str) -> None:
    model = network(arch, "gather")
    backends.use(model, "masked")
    assert all(attention.backend is None for attention in attentions(model))
    one, other = step(model, True, True), step(network(arch, "masked"), True, True)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert all(torch.equal(one[2][name], other[2][name]) for name in other[2])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparse", [True, False])
def test_later_tokens_have_no_gradient(arch: str, backend: str, sparse: bool) -> None:
    model = network(arch, backend, num_layers=1)
    leaves: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    model.embedding.register_forward_hook(hook)
    x_BTD, _ = model.hidden(some_tokens(1), sparse=sparse, train_indexer=not sparse)
    for query in range(CONTEXT):
        (gradient_BTD,) = torch.autograd.grad(x_BTD[0, query].sum(), leaves[0], retain_graph=True)
        assert torch.count_nonzero(gradient_BTD[0, query + 1 :]) == 0
        assert torch.count_nonzero(gradient_BTD[0, query]) > 0


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train_indexer", TEACH)
@pytest.mark.parametrize("sparse", [True, False])
def test_language_loss_has_gradients_for_the_trunk_only(
    arch: str, backend: str, train_indexer: str, sparse: bool
) -> None:
    model, tokens_BT = network(arch, backend), some_tokens()
    x_BTD, _ = model.hidden(tokens_BT, sparse=sparse, train_indexer=TEACH[train_indexer])
    nll_sum(model.logits(x_BTD).flatten(0, 1), tokens_BT.roll(-1, 1).flatten()).backward()
    for name, parameter in model.named_parameters():
        if group_of(name) == "indexer":
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.count_nonzero(parameter.grad) > 0, name


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train_indexer", ["taught", "taught about some"])
@pytest.mark.parametrize("sparse", [True, False])
def test_the_indexers_loss_has_gradients_for_the_indexer_only(
    arch: str, backend: str, train_indexer: str, sparse: bool
) -> None:
    model = network(arch, backend)
    _, losses = model.hidden(some_tokens(), sparse=sparse, train_indexer=TEACH[train_indexer])
    torch.stack(losses).sum().backward()
    for name, parameter in model.named_parameters():
        if group_of(name) == "indexer":
            assert parameter.grad is not None, name
            assert name.endswith("k_norm.bias") or torch.count_nonzero(parameter.grad) > 0, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None or torch.count_nonzero(parameter.grad) == 0, name


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparse", [True, False])
def test_the_loss_of_some_queries_equals_that_of_all_at_these_queries(
    arch: str, backend: str, sparse: bool
) -> None:
    model = network(arch, backend)
    _, all_BT = model.hidden(some_tokens(), sparse=sparse, train_indexer=True)
    _, some_BQ = model.hidden(some_tokens(), sparse=sparse, train_indexer=QUERIES)
    for kl_BT, kl_BQ in zip(all_BT, some_BQ, strict=True):
        assert kl_BQ.shape == (2, len(QUERIES))
        close(kl_BQ, kl_BT[:, QUERIES])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_of_a_query_with_one_key_is_zero(arch: str, backend: str) -> None:
    model = network(arch, backend)
    _, losses = model.hidden(some_tokens(), train_indexer=True)
    first_LB = torch.stack(losses)[:, :, 0]
    assert torch.allclose(first_LB, torch.zeros_like(first_LB), atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_of_a_sequence_do_not_depend_on_the_batch(arch: str, backend: str) -> None:
    model = network(arch, backend)
    tokens_BT = some_tokens(3)
    whole_BTD, losses = model.hidden(tokens_BT, train_indexer=True)
    again_BTD, _ = model.hidden(tokens_BT, train_indexer=True)
    assert torch.equal(whole_BTD, again_BTD)
    for number in range(3):
        alone_BTD, alone = model.hidden(tokens_BT[number : number + 1], train_indexer=True)
        close(alone_BTD, whole_BTD[number : number + 1])
        for one, many in zip(alone, losses):
            close(one, many[number : number + 1])


@pytest.mark.parametrize("arch", ["dsa", "dsa-v32"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["window", "random", "oracle", "all"])
def test_every_backend_follows_the_selection_policy(arch: str, backend: str, policy: str) -> None:
    ours, masked, learned = (network(arch, name) for name in (backend, "masked", backend))
    for model in (ours, masked):
        policies.use(model, policy)
    close(ours(some_tokens()), masked(some_tokens()))
    assert not torch.allclose(ours(some_tokens()), learned(some_tokens()), atol=1e-4)


def test_short_sequences_are_dense() -> None:
    model, tokens_BT = network("dsa", "gather"), some_tokens(2, 6)
    assert torch.equal(model(tokens_BT), network("dsa", "masked")(tokens_BT))


def largest_saved(model: Transformer, sparse: bool, train_indexer: Any) -> int:
    """How many numbers the largest tensor saved for the backward pass has."""
    sizes = []

    def keep(x: Tensor) -> Tensor:
        sizes.append(x.untyped_storage().nbytes() // x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hidden(some_tokens(1, model.context), sparse=sparse, train_indexer=train_indexer)
    return max(sizes)


@pytest.mark.parametrize(
    ("arch", "sparse"),
    # dense attention of dsa-v32 itself keeps all pairs, as keys are wider than values
    [("dsa", True), ("dsa", False), ("dsa-v32", True)],
)
def test_no_matrix_of_t_by_s_is_saved_for_backward(arch: str, sparse: bool) -> None:
    def size(context: int, backend: str) -> int:
        sizes = {"context": context, "num_layers": 1, "num_kept": 6, "width": 16, "ffn_width": 8}
        return largest_saved(network(arch, backend, **sizes), sparse, True)

    assert size(512, "gather") <= 2 * size(256, "gather")
    assert size(512, "gather") < 512 * 512 / 4
    assert size(512, "masked") >= 512 * 512


class OwnAttention(DsaAttention):
    """A subclass, as a user's file may register it."""


def test_an_attention_that_no_kernel_computes_is_refused() -> None:
    model = tiny_model("dsa")
    for block in model.blocks:
        block.attention.__class__ = OwnAttention
    backends.use(model, "masked")
    with pytest.raises(
        UserError, match=r"machine\.attention=gather: no kernel computes OwnAttention; use masked"
    ):
        backends.use(model, "gather")


def test_a_dense_network_has_no_selection() -> None:
    model = tiny_model("dense")
    backends.use(model, "gather")
    assert torch.equal(model(some_tokens()), tiny_model("dense")(some_tokens()))


# the setting


CPU = Engine("cpu", 1, "fp32")


@pytest.mark.parametrize(
    ("arch", "sets", "expected"),
    [
        ("dsa", [], "masked"),
        ("dsa", ["model.context=512"], "gather"),
        ("dsa-v32", ["model.context=512"], "gather"),
        ("dsa-full", ["model.context=512"], "masked"),
        ("dense", ["model.context=512"], "masked"),
        ("dense", ["machine.attention=gather"], "masked"),
        ("dsa", ["machine.attention=gather"], "gather"),
        ("dsa", ["machine.attention=reference"], "reference"),
        ("dsa", ["model.context=512", "machine.attention=masked"], "masked"),
    ],
)
def test_the_engine_names_the_attention_backend(arch: str, sets: list[str], expected: str) -> None:
    options = {"arch": (arch, "--arch")}
    resolved = resolve.resolve(preset="smoke", options=options, sets=sets).settings
    engine = backends.engine_for(resolved, CPU)
    assert engine.attention == expected
    mentioned = "" if expected == "masked" else f", attention by {expected}"
    assert engine.described == f"fp32 on cpu, 1 thread{mentioned}"


def test_a_manifest_without_a_backend_is_read_as_masked() -> None:
    assert Engine(*("cpu", 1, "fp32")).attention == "masked"


def test_triton_without_a_gpu_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("dsa_sandbox.kernels.triton_gather")
    monkeypatch.setattr(kernels, "INTERPRETED", False)  # tests have triton's interpreter
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    resolved = resolve.resolve(preset="smoke", sets=["machine.attention=triton"]).settings
    with pytest.raises(UserError, match=r"^machine.attention=triton: .+; use gather, or auto$"):
        backends.engine_for(resolved, CPU)


def test_the_backend_is_no_part_of_the_identity_and_is_kept_on_resume(
    quick_home: Path,
) -> None:
    def job(*sets: str) -> Job:
        pairs = [*QUICK[1::2], *sets]
        resolved = resolve.resolve(preset="smoke", sets=pairs).settings
        session = Session(quick_home)
        return Job(session, "pretrain", resolved, name=["dsa"], inputs={}, parents={})

    begun = job("machine.attention=gather")
    assert begun.identity == job().identity
    begun.run.path.mkdir(parents=True)
    begun.run.update(
        command="pretrain",
        arch="dsa",
        seed=0,
        parents={},
        identity=begun.identity,
        state="interrupted",
        engine=begun.engine._asdict(),
        environment=provenance.environment(),
    )
    assert begun.engine.attention == "gather"
    assert job("machine.attention=masked").engine == begun.engine


def test_commands_use_the_backend_of_the_setting(
    quick_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, use = [], backends.use

    def spy(model: Transformer, backend: str) -> None:
        used.append(backend)
        use(model, backend)

    monkeypatch.setattr(backends, "use", spy)
    told = ("--set", "machine.attention=gather")
    said = cli("pretrain", "--arch", "dsa", "--home", quick_home, *told, *QUICK)
    assert "attention by gather" in said.err
    assert json.loads((said.run / "manifest.json").read_text("utf-8"))["engine"]["attention"] == (
        "gather"
    )
    assert cli("eval", said.run, "--home", quick_home).code == 0
    assert used == ["gather", "gather"]

"""Networks with random weights, of this package and of transformers, and their timed calls.

B batch, T tokens.
"""

import copy
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dsa_sandbox import sizes
from dsa_sandbox.bench.turns import PEERS, Row, Setup
from dsa_sandbox.config import settings
from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.decoding.generate import Decoder
from dsa_sandbox.interop import to_transformers
from dsa_sandbox.kernels.attention import choose, no_triton
from dsa_sandbox.machine import Engine
from dsa_sandbox.selection.backends import use
from dsa_sandbox.training.loop import Phase, train
from dsa_sandbox.training.pretrain import make_optimizer

Feed = Callable[[Any, Tensor], object]
NUM_DECODED = 64  # one-token steps of a call
CLIP = 1.0


def has_transformers() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def training_rows(setup: Setup, length: int) -> Iterator[Row]:
    """A training step of each network: by the package's loop, or the same steps for peers."""
    num_rows = max(1, setup.shape.tokens // length)
    batch = random_batch(setup, num_rows, length)
    taught = Phase(1.0, train_indexer=True)
    own = partial(own_network, setup, length=length)
    chosen = attention_for(setup, length)
    others = [name for name in backends(setup.engine) if name != chosen]
    cases = {
        "dense": (own("dense"), Phase(1.0)),
        "dsa": (own("dsa", backend=chosen), taught),
        "dsa block": (own("dsa", backend=chosen, compression="block"), taught),
        "dsa dense phase": (own("dsa"), Phase(1.0, sparse=False)),
        "dsa fine-tuning": (own("dsa", backend=chosen), Phase(1.0)),
        **{f"dsa by {name}": (own("dsa", backend=name), taught) for name in others},
        "dsa-v32": (own("dsa-v32", backend=chosen), taught),
        **{f"dsa-v32 by {name}": (own("dsa-v32", backend=name), taught) for name in others},
    }
    for name, (network, phase) in cases.items():
        yield Row(name, own_step(setup, network, [batch], phase), num_parameters(network))
    for arch in peers():
        peer = peer_network(setup, arch, length)
        yield Row(PEERS[arch], peer_step(setup, peer, batch), num_parameters(peer))


def decoding_rows(setup: Setup, length: int) -> Iterator[Row]:
    """One-token steps at the end of the context, after a prompt of all other tokens."""
    tokens_BT = random_batch(setup, 1, length).tokens_BT
    own = partial(own_network, setup, length=length)
    cases = {
        "dense": own("dense"),
        "dsa": own("dsa"),
        "dsa block": own("dsa", compression="block"),
        "dsa-v32": own("dsa-v32"),
    }
    for name, network in cases.items():
        yield decoding_row(name, network, *own_reader(network, tokens_BT), tokens_BT)
    for arch in peers():
        peer = peer_network(setup, arch, length)
        yield decoding_row(PEERS[arch], peer, *peer_reader(peer, tokens_BT), tokens_BT)


def decoding_row(name: str, network: nn.Module, state: Any, feed: Feed, tokens_BT: Tensor) -> Row:
    """A row whose calls each start from a copy of the state after the prompt."""
    current: dict[str, Any] = {}
    own = (*network.modules(), *network.parameters(), *network.buffers())

    @torch.inference_mode()
    def prepare() -> None:  # the network itself is not copied
        current["state"] = copy.deepcopy(state, {id(part): part for part in own})

    @torch.inference_mode()
    def call() -> None:
        for token_B1 in tokens_BT[:, -NUM_DECODED:].split(1, dim=1):
            feed(current["state"], token_B1)

    return Row(name, call, num_parameters(network), prepare)


def own_reader(network: Transformer, tokens_BT: Tensor) -> tuple[Decoder, Feed]:
    """A decoder after the prompt, and its one-token step."""
    decoder = Decoder(network.eval())
    decoder.feed(tokens_BT[:, :-NUM_DECODED])
    return decoder, Decoder.feed


@torch.inference_mode()
def peer_reader(network: nn.Module, tokens_BT: Tensor) -> tuple[Any, Feed]:
    """A cache of transformers after the prompt, and its one-token step."""
    prompt_BT = tokens_BT[:, :-NUM_DECODED]
    answer = network.eval()(input_ids=prompt_BT, use_cache=True, logits_to_keep=1)
    return answer.cache, lambda cache, new: network(input_ids=new, cache=cache, use_cache=True)


def peers() -> tuple[str, ...]:
    """Architectures that transformers also has."""
    return tuple(PEERS) if has_transformers() else ()


def backends(engine: Engine) -> list[str]:
    """Backends of the selected flow that work on this device, without the slow reference."""
    names = ["masked", "gather", "triton"]
    on_gpu = engine.device.startswith("cuda") and no_triton(engine.device) is None
    return names if on_gpu else names[:2]


def attention_for(setup: Setup, length: int) -> str:
    """The backend that `machine.attention=auto` chooses."""
    model = setup.shape.resolved("dsa", length).model
    return choose(length, model.num_kept, setup.engine.device)


def random_batch(setup: Setup, num_rows: int, length: int) -> Batch:
    """Random tokens, the same for all rows."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(setup.shape.vocabulary, (num_rows, length + 1), generator=generator)
    batch = Batch(ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous())
    return batch.to(torch.device(setup.engine.device))


def num_parameters(network: nn.Module) -> int:
    """Number of parameters; tied matrices count once."""
    return sum(parameter.numel() for parameter in network.parameters())


def own_network(
    setup: Setup, arch: str, length: int, *, backend: str = "masked", compression: str = "latent"
) -> Transformer:
    """A network with random weights, its feed-forward matched as in a run."""
    fields = {} if compression == "latent" else {"model.compression": compression}
    model = setup.shape.resolved(arch, length, **fields).model
    hidden = sizes.matched_ffn_width(arch, model)
    network = Transformer(arch, model, setup.shape.vocabulary, hidden, 0).to(setup.engine.device)
    use(network, backend)
    return network


def own_step(
    setup: Setup, network: Transformer, batches: list[Batch], phase: Phase
) -> Callable[[], object]:
    """A call that takes the next step of the training loop, over the batches in turn."""
    steps = train(
        network,
        make_optimizer(network, settings.Train()),
        lambda number: [batches[number % len(batches)]],
        lambda _: phase,
        start=0,
        stop=sys.maxsize,
        clip=CLIP,
        autocast=setup.engine.autocast,
    )
    return partial(next, steps)


def peer_network(setup: Setup, arch: str, length: int) -> nn.Module:
    """The network of transformers with this shape: as `export` maps it, with tied embeddings."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    resolved = setup.shape.resolved(arch, length)
    hidden = sizes.matched_ffn_width(arch, resolved.model)
    values = to_transformers.config(resolved, setup.shape.vocabulary, hidden)
    values |= {"tie_word_embeddings": True}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert type(network).__name__ == PEERS[arch]
    return network.to(setup.engine.device)


def peer_step(setup: Setup, network: nn.Module, batch: Batch) -> Callable[[], object]:
    """A training step of a peer with the optimiser, clipping and precision of the loop."""
    optimizer = make_optimizer(network, settings.Train())
    device, dtype = setup.engine.device, setup.engine.autocast
    tokens_BT, targets_BT = batch

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.split(":")[0], dtype, enabled=dtype is not None):
            logits_BTV = network(input_ids=tokens_BT, use_cache=False).logits
        nll = nll_sum(logits_BTV.flatten(0, 1), targets_BT.flatten())
        (nll / targets_BT.numel()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        nll.item()

    return step

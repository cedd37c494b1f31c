"""Speed and memory of networks of random weights, side by side, in one run.

The rows of a table take turns, one call each a round, so that a busy machine hurts all alike. A
time is the median of its rounds; a ratio is the median of the ratios within a round.

B batch, T tokens.
"""

import contextlib
import copy
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from rich.table import Table
from torch import Tensor, nn

from dsa_sandbox import machine, registry, settings, sizes
from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop import huggingface
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.machine import Engine
from dsa_sandbox.report import table
from dsa_sandbox.training.loop import Phase, train
from dsa_sandbox.training.pretrain import make_optimizer
from dsa_sandbox.variants.decoding import Decoder

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Feed = Callable[[Any, Tensor], object]
NUM_DECODED = 64  # one-token steps of a call
CLIP = 1.0
PEERS = {"dense": "LlamaForCausalLM", "dsa-v32": "DeepseekV32ForCausalLM"}  # the same topology
REFERENCES = {"dense": "dense", "llama": PEERS["dense"], "deepseek": PEERS["dsa-v32"]}
NO_PEERS = "transformers is not installed: its Llama and DeepseekV32 are left out"
HEADINGS = {"dense": "x dense", "llama": "x Llama", "deepseek": "x DeepSeek"}


class Shape(NamedTuple):
    """The networks of one kind of measurement."""

    width: int
    num_layers: int
    num_heads: int
    lengths: tuple[int, ...]
    tokens: int  # of a training step
    vocabulary: int
    num_kept: int | None = None  # None: an eighth of the length

    def resolved(self, arch: str, length: int, **fields: Any) -> settings.Settings:
        """Settings of `arch`; UserError where the options do not fit each other."""
        kept = min(self.num_kept or length // 8, length)
        rotary = self.width // self.num_heads // 2  # an indexer of dsa-v32 has to hold it
        given = {
            "model.width": (self.width, "--width"),
            "model.ffn_width": (2 * self.width, "--width"),
            "model.num_layers": (self.num_layers, "--layers"),
            "model.num_heads": (self.num_heads, "--heads"),
            "model.context": (length, "--length"),
            "model.num_kept": (kept, "--length"),
            "model.indexer_head_width": (max(32, 4 * math.ceil(rotary / 4)), "--heads"),
        }
        values = {"arch": arch} | {key: value for key, (value, _) in given.items()} | fields
        sources = dict.fromkeys(values, "bench") | {key: by for key, (_, by) in given.items()}
        forced = settings.ARCH_DEFAULTS.get(arch, {})
        return settings.validated(forced | values, dict.fromkeys(forced, arch) | sources).settings


SHAPES = {
    "training": Shape(256, 4, 8, (256, 1024), 4096, 4096),
    "decoding": Shape(256, 4, 8, (4096,), 4096, 4096),
    # few words: their logits would hide what attention takes
    "memory": Shape(128, 2, 8, (1024, 2048, 4096, 8192), 4096, 256, num_kept=128),
}


class Setup(NamedTuple):
    """How to measure."""

    shape: Shape
    engine: Engine
    rounds: int
    clock: str = "wall"
    limit: float = math.nan  # FLOP/s of the machine's matrix product
    listener: Listener = SILENT


class Row(NamedTuple):
    """What is called in turn."""

    name: str
    call: Callable[[], object]
    num_parameters: int
    prepare: Callable[[], object] = lambda: None  # before each call, untimed


# what is measured


def run(
    kinds: list[str],
    engine: Engine,
    *,
    rounds: int,
    clock: str = "wall",
    options: Mapping[str, Any] | None = None,
    listener: Listener = SILENT,
) -> dict[str, Any]:
    """The machine, and each kind's shape, tables and notes; `options` replace fields of shapes.

    UserError for a kind, a clock or sizes that there are not.
    """
    kinds = list(dict.fromkeys(kinds)) or ["training"]
    check(kinds, engine, clock)
    shapes = {kind: SHAPES[kind]._replace(**(options or {})) for kind in kinds}
    for kind, shape in shapes.items():
        check_shape(kind, shape)
    machine.start(engine)
    setup = Setup(shapes[kinds[0]], engine, rounds, clock, listener=listener)
    setup = setup._replace(limit=product_limit(setup))
    found: dict[str, Any] = {"machine": machine_of(setup)}
    measures = {"training": training, "decoding": decoding, "memory": memory}
    for kind, shape in shapes.items():
        tables = measures[kind](setup._replace(shape=shape))
        found[kind] = {"shape": shape._asdict(), "tables": tables, "notes": notes(kind, engine)}
    return found


def check(kinds: list[str], engine: Engine, clock: str) -> None:
    """UserError for names that there are not, and for a clock that would not see the device."""
    named = [("KIND", kind, list(SHAPES)) for kind in kinds] + [("--clock", clock, list(CLOCKS))]
    for what, name, known in named:
        if name not in known:
            hint = registry.nearest(name, known)
            raise UserError(f"{what}={name}: none of {', '.join(known)}{hint}")
    if clock == "processor" and engine.device != "cpu":
        raise UserError(f"--clock=processor sees the CPU alone, not --device={engine.device}")


def check_shape(kind: str, shape: Shape) -> None:
    """UserError where sizes do not fit each other, before anything is measured."""
    for length in shape.lengths:
        if length < 16:
            raise UserError(f"--length={length}: must be at least 16")
        if kind == "decoding" and length <= NUM_DECODED:
            raise UserError(
                f"--length={length}: decoding needs more than the {NUM_DECODED} tokens it times"
            )
        for arch in ("dsa", "dsa-v32"):
            shape.resolved(arch, length)


def notes(kind: str, engine: Engine) -> list[str]:
    """What was left out, or is not as asked."""
    found = [] if kind == "memory" or has_transformers() else [NO_PEERS]
    if kind == "decoding" and engine.precision != "fp32":
        found.append("decoding is in fp32, as `generate` is")
    return found


def has_transformers() -> bool:
    """Whether there are peers to compare with."""
    return importlib.util.find_spec("transformers") is not None


def training(setup: Setup) -> list[dict[str, Any]]:
    """A table for each length: ms a step, tokens/s, share of the limit, ratios."""
    shape, tables = setup.shape, []
    for length in shape.lengths:
        rows = list(training_rows(setup, length))
        times = take_turns(rows, setup, f"training, length {length}")
        num_rows = max(1, shape.tokens // length)
        entries = []
        for row in rows:
            step_s = statistics.median(times[row.name])
            # PaLM, arXiv 2204.02311, appendix B: 6 a parameter and token; causal attention halved
            flop = 6 * row.num_parameters + 6 * shape.num_layers * shape.width * length
            entries.append(
                {
                    "name": row.name,
                    "parameters": row.num_parameters,
                    "ms": 1000 * step_s,
                    "tokens_per_s": num_rows * length / step_s,
                    "of_limit": flop * num_rows * length / step_s / setup.limit,
                    "speed": speeds(times, row.name),
                }
            )
        tables.append({"length": length, "batch": num_rows, "rows": entries})
    return tables


def decoding(setup: Setup) -> list[dict[str, Any]]:
    """A table for each length: tokens/s of one-token steps at the end of the context."""
    tables = []
    for length in setup.shape.lengths:
        rows = list(decoding_rows(setup, length))
        times = take_turns(rows, setup, f"decoding, length {length}")
        entries = []
        for row in rows:
            token_s = statistics.median(times[row.name]) / NUM_DECODED
            entries.append(
                {
                    "name": row.name,
                    "parameters": row.num_parameters,
                    "ms": 1000 * token_s,
                    "tokens_per_s": 1 / token_s,
                    "speed": speeds(times, row.name),
                }
            )
        tables.append({"length": length, "batch": 1, "rows": entries})
    return tables


def memory(setup: Setup) -> list[dict[str, Any]]:
    """One table: MB that one training step of `dsa` adds, by backend and length."""
    entries: list[dict[str, Any]] = []
    lengths, names = setup.shape.lengths, backends(setup.engine)
    for number, name in enumerate(names):
        found: dict[int, float | None] = {}
        for done, length in enumerate(lengths, number * len(lengths)):
            setup.listener.progress("memory", done, len(lengths) * len(names), f"{name} {length}")
            found[length] = step_megabytes(setup, name, length)
        entries.append(
            {
                "name": name,
                "megabytes": {str(length): size for length, size in found.items()},
                "exponent": exponent(found),
            }
        )
    return [{"batch": 1, "rows": entries}]


# arithmetic


def speeds(times: dict[str, list[float]], name: str) -> dict[str, float | None]:
    """How many times as fast as each reference; None where that was not measured."""
    return {
        short: statistics.median(there / here for there, here in zip(times[long], times[name]))
        if long in times
        else None
        for short, long in REFERENCES.items()
    }


def exponent(sizes_by_length: Mapping[int, float | None]) -> float | None:
    """The least-squares slope of log size over log length; None of fewer than two sizes."""
    points = [(math.log(x), math.log(y)) for x, y in sizes_by_length.items() if y]
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points)).slope


# turns


def take_turns(rows: list[Row], setup: Setup, label: str) -> dict[str, list[float]]:
    """Seconds of each call by row; a first round warms up and is not counted."""
    clock = CLOCKS[setup.clock]
    times: dict[str, list[float]] = {row.name: [] for row in rows}
    for turn in range(setup.rounds + 1):
        for number, row in enumerate(rows):
            row.prepare()
            synchronise(setup.engine.device)
            started_s = clock()
            row.call()
            synchronise(setup.engine.device)
            elapsed_s = clock() - started_s
            if turn:
                times[row.name].append(elapsed_s)
            done, total = turn * len(rows) + number + 1, (setup.rounds + 1) * len(rows)
            setup.listener.progress(label, done, total, row.name)
    return times


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def product_limit(setup: Setup) -> float:
    """FLOP/s of the fastest of twenty products of the feed-forward's shape."""
    engine, shape = setup.engine, setup.shape
    rows, inner, columns = shape.tokens, shape.width, 2 * shape.width
    dtype = engine.autocast or torch.float32
    a = torch.randn(rows, inner, device=engine.device).to(dtype)
    b = torch.randn(inner, columns, device=engine.device).to(dtype)
    product = Row("product", lambda: a @ b, 0)
    times = take_turns([product], setup._replace(rounds=20, listener=SILENT), "")
    return 2 * rows * inner * columns / min(times["product"])


# rows


def training_rows(setup: Setup, length: int) -> Iterator[Row]:
    """Ours as the loop trains them, and the peers by an equally lean loop."""
    num_rows = max(1, setup.shape.tokens // length)
    batch = random_batch(setup, num_rows, length)
    taught = Phase(1.0, teach=True)
    cases: list[tuple[str, str, Phase, dict[str, str]]] = [
        ("dense", "dense", Phase(1.0), {}),
        ("dsa", "dsa", taught, {}),
        ("dsa dense phase", "dsa", Phase(1.0, sparse=False), {}),
        ("dsa fine-tuning", "dsa", Phase(1.0), {}),
        ("dsa-v32", "dsa-v32", taught, {}),
        ("dsa-v32 fine-tuning", "dsa-v32", Phase(1.0), {}),
    ]
    if has_block():
        cases.append(("dsa block", "dsa", taught, {"model.compression": "block"}))
    for name, arch, phase, fields in cases:
        network = own_network(setup, arch, length, **fields)
        yield Row(name, own_step(setup, network, [batch], phase), num_parameters(network))
    for backend in backends(setup.engine)[1:]:  # the first is the core's own
        network = own_network(setup, "dsa", length, backend=backend)
        step = own_step(setup, network, [batch], taught)
        yield Row(f"dsa {backend}", step, num_parameters(network))
    for arch in peers():
        peer = peer_network(setup, arch, length)
        yield Row(PEERS[arch], peer_step(setup, peer, batch), num_parameters(peer))


def decoding_rows(setup: Setup, length: int) -> Iterator[Row]:
    """Each network has read all but the last tokens; a call feeds it those, one at a time."""
    tokens_BT = random_batch(setup, 1, length).tokens_BT
    cases: list[tuple[str, str, dict[str, str]]] = [
        ("dense", "dense", {}),
        ("dsa", "dsa", {}),
        ("dsa-v32", "dsa-v32", {}),
    ]
    if has_block():
        cases.append(("dsa block", "dsa", {"model.compression": "block"}))
    for name, arch, fields in cases:
        network = own_network(setup, arch, length, **fields)
        yield decoding_row(name, network, *own_reader(network, tokens_BT), tokens_BT)
    for arch in peers():
        peer = peer_network(setup, arch, length)
        yield decoding_row(PEERS[arch], peer, *peer_reader(peer, tokens_BT), tokens_BT)


def decoding_row(name: str, network: nn.Module, state: Any, feed: Feed, tokens_BT: Tensor) -> Row:
    """Each call goes on from a copy of the state after the prompt."""
    current: dict[str, Any] = {}
    own = (*network.modules(), *network.parameters(), *network.buffers())

    @torch.inference_mode()
    def prepare() -> None:  # the network is no part of what is copied
        current["state"] = copy.deepcopy(state, {id(part): part for part in own})

    @torch.inference_mode()
    def call() -> None:
        for token_B1 in tokens_BT[:, -NUM_DECODED:].split(1, dim=1):
            feed(current["state"], token_B1)

    return Row(name, call, num_parameters(network), prepare)


def own_reader(network: Transformer, tokens_BT: Tensor) -> tuple[Decoder, Feed]:
    """A decoder that has read the prompt, and how to feed it."""
    decoder = Decoder(network.eval())
    decoder.feed(tokens_BT[:, :-NUM_DECODED])
    return decoder, Decoder.feed


@torch.inference_mode()
def peer_reader(network: nn.Module, tokens_BT: Tensor) -> tuple[Any, Feed]:
    """A cache that holds the prompt, and how to go on with it."""
    prompt_BT = tokens_BT[:, :-NUM_DECODED]
    answer = network.eval()(input_ids=prompt_BT, use_cache=True, logits_to_keep=1)
    return answer.cache, lambda cache, new: network(input_ids=new, cache=cache, use_cache=True)


def peers() -> tuple[str, ...]:
    """Architectures that transformers has as well."""
    return tuple(PEERS) if has_transformers() else ()


def has_block() -> bool:
    """Whether the compressed flow can be pooled windows."""
    return importlib.util.find_spec(registry.compressions.builtin["block"]) is not None


def backends(engine: Engine) -> list[str]:
    """Ways to compute a selection that are fast somewhere and work here, the core's own first."""
    field = settings.Machine.model_fields.get("attention")
    names = get_args(field.annotation) if field else ()
    others = [name for name in names if name not in ("auto", "masked", "reference")]
    cuda = engine.device.startswith("cuda")
    return ["masked", *(name for name in others if cuda or name != "triton")]


def random_batch(setup: Setup, num_rows: int, length: int) -> Batch:
    """Random tokens, the same for all rows."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(setup.shape.vocabulary, (num_rows, length + 1), generator=generator)
    batch = Batch(ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous())
    return batch.to(torch.device(setup.engine.device))


def num_parameters(network: nn.Module) -> int:
    """Tied matrices count once."""
    return sum(parameter.numel() for parameter in network.parameters())


# ours


def own_network(
    setup: Setup, arch: str, length: int, *, backend: str = "masked", **fields: str
) -> Transformer:
    """Random weights; feed-forwards matched as in a run."""
    model = setup.shape.resolved(arch, length, **fields).model
    hidden = sizes.matched_ffn_width(arch, model)
    network = Transformer(arch, model, setup.shape.vocabulary, hidden, 0).to(setup.engine.device)
    if backend != "masked":
        importlib.import_module("dsa_sandbox.variants.backends").use(network, backend)
    return network


def own_step(
    setup: Setup, network: Transformer, batches: list[Batch], phase: Phase
) -> Callable[[], object]:
    """The next step of the training loop, on the batches in turn."""
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


# peers


def peer_network(setup: Setup, arch: str, length: int) -> nn.Module:
    """The class of transformers with our shape: as `export` maps it, but tied as ours is."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    resolved = setup.shape.resolved(arch, length)
    hidden = sizes.matched_ffn_width(arch, resolved.model)
    values = huggingface.config(resolved, setup.shape.vocabulary, hidden)
    values |= {"tie_word_embeddings": True}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert type(network).__name__ == PEERS[arch]
    return network.to(setup.engine.device)


def peer_step(setup: Setup, network: nn.Module, batch: Batch) -> Callable[[], object]:
    """The same step: optimiser, clipping and precision of the loop."""
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


# memory


def step_megabytes(setup: Setup, backend: str, length: int) -> float | None:
    """Peak of one step in a fresh process; None, with a warning, where it came to no end."""
    order = {
        "shape": setup.shape._asdict(),
        "engine": setup.engine._asdict(),
        "backend": backend,
        "length": length,
    }
    child = subprocess.run(
        [sys.executable, "-c", "from dsa_sandbox import bench; bench.child()", json.dumps(order)],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS=str(setup.engine.threads)),
    )
    if child.returncode:
        said = (child.stderr.strip().splitlines() or [f"ended with {child.returncode}"])[-1]
        setup.listener.warn(f"memory, {backend}, length {length}: {said}")
        return None
    return float(child.stdout)


def child() -> None:
    """In a process of its own: print the MB that one step adds to what it stands on."""
    order = json.loads(sys.argv[1])
    setup = Setup(Shape(**order["shape"]), Engine(**order["engine"]), rounds=1)
    machine.start(setup.engine)
    length, device = order["length"], setup.engine.device
    network = own_network(setup, "dsa", length, backend=order["backend"])
    batches = [random_batch(setup, 1, 16), random_batch(setup, 1, length)]
    step = own_step(setup, network, batches, Phase(1.0, teach=True))
    step()  # the optimiser's state, and what libraries set up once, are no part of it
    before = peak_bytes(device, from_now=True)
    step()
    print(max(0, peak_bytes(device) - before) / 1e6)


def peak_bytes(device: str, *, from_now: bool = False) -> int:
    """The most that has been held: by torch on CUDA, else by the process."""
    if device.startswith("cuda"):
        if from_now:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        # Linux: getrusage would begin with the peak of the parent
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# what is said


def machine_of(setup: Setup) -> dict[str, Any]:
    """Where it was measured."""
    peer = importlib.metadata.version("transformers") if has_transformers() else None
    cuda = setup.engine.device.startswith("cuda")
    return {
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name(setup.engine.device) if cuda else None,
        "torch": torch.__version__,
        "transformers": peer,
        **setup.engine._asdict(),
        "clock": setup.clock,
        "product_gflops": setup.limit / 1e9,
    }


def cpu_name() -> str:
    """As the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def text(result: Mapping[str, Any]) -> str:
    """The machine in two lines, and a table for each length."""
    where = result["machine"]
    engine = Engine(where["device"], where["threads"], where["precision"])
    parts = [
        f"{where['gpu'] or where['cpu']}, {engine.described}, torch {where['torch']}\n"
        f"matrix-product limit {where['product_gflops']:.0f} GFLOP/s, {where['clock']} clock"
    ]
    for kind in (kind for kind in SHAPES if kind in result):
        shape = result[kind]["shape"]
        what = f"width {shape['width']}, {shape['num_layers']} layers, {shape['num_heads']} heads"
        for measured in result[kind]["tables"]:
            at = [f"length {measured['length']}"] if "length" in measured else []
            title = ", ".join([f"{kind}: {what}", *at, f"batch {measured['batch']}"])
            rows = measured["rows"]
            drawn = memory_table(rows) if kind == "memory" else speed_table(rows)
            parts.append(f"{title}\n{table.rendered(drawn)}")
        parts += result[kind]["notes"]
    return "\n\n".join(parts)


def speed_table(rows: list[dict[str, Any]]) -> Table:
    """A row each; ratios above 1 are faster than what the column names."""
    drawn = table.plain()
    drawn.add_column("network")
    known = [key for key in HEADINGS if any(row["speed"][key] is not None for row in rows)]
    of_limit = ["of limit"] if "of_limit" in rows[0] else []
    for heading in ("parameters", "ms", "tokens/s", *of_limit, *(HEADINGS[key] for key in known)):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            row["name"],
            f"{row['parameters']:,}",
            table.number(row["ms"], 1),
            f"{row['tokens_per_s']:,.0f}",
            *(table.percent(row["of_limit"]) for _ in of_limit),
            *(table.number(row["speed"][key]) for key in known),
        )
    return drawn


def memory_table(rows: list[dict[str, Any]]) -> Table:
    """MB by length, and the power of the length by which they grow."""
    drawn = table.plain()
    drawn.add_column("dsa, attention")
    for length in rows[0]["megabytes"]:
        drawn.add_column(f"MB at {length}", justify="right")
    drawn.add_column("grows as length^", justify="right")
    for row in rows:
        cells = (table.number(size, 0) for size in row["megabytes"].values())
        drawn.add_row(row["name"], *cells, table.number(row["exponent"]))
    return drawn

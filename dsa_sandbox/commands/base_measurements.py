"""Measurements of a base that its arms share: made once, kept in the cache of the home."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsa_sandbox import locks
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import tokens
from dsa_sandbox.data.tokens import Corpus
from dsa_sandbox.runs import checkpoints, files, provenance
from dsa_sandbox.runs.load import SavedNetwork, cache_of
from dsa_sandbox.runs.session import Session
from dsa_sandbox.training.trainer import Trainer


def shared_key(key: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The key of a cached measurement: `key` with seed, numerics and source code."""
    code = {"numerics": provenance.NUMERICS, "code": provenance.source_digest()}
    return {**key, "seed": settings.seed, **code}


def shared_rows(
    key: dict[str, Any], home: Path, compute: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Measurements of a base on a stream: from the cache of the home, or computed and kept."""
    path = cache_of(home) / f"measured-{files.digest_of(key)[:16]}.jsonl"
    with locks.waited_for(path.with_suffix(".lock")):  # another arm may be measuring this base
        if not path.exists():
            rows = [json.dumps(files.without_nan(row), allow_nan=False) for row in compute()]
            files.write_atomic(path, "".join(f"{row}\n" for row in rows))
        return [json.loads(row) for row in path.read_text("utf-8").splitlines()]


def prepare(
    trainer: Trainer,
    mask_sha: str,
    text: Corpus,
    base: SavedNetwork,
    settings: Settings,
    session: Session,
) -> Path | None:
    """Let the strategy measure the base before the first task, or take the result of the cache.

    The path of the cached file, where the strategy gives a key for it; its metadata holds the key:
    the hashes of base, text and mask, the seed, and settings such as the number of passes.
    """
    strategy, model = trainer.strategy, trainer.base
    trainee = trainer.trainee.on(model)
    device = trainee.device
    model.requires_grad_(True)
    key = strategy.cache_key()

    def measure() -> None:
        batches = tokens.Batches(text.train, model.context, model.context, settings.seed + 7919)

        def single() -> Any:
            step = 0
            while True:
                for document in batches[step]:
                    yield tokens.batch_of([document]).to(device)
                step += 1

        strategy.prepare(trainee, single(), settings.seed)

    if key is None:
        measure()
        return None
    label = f"finetune {settings.strategy}"
    session.listener.progress(label, 0, 1, "measuring pre-training (F0)")
    key |= {"model": base.sha256, "data": text.digest, "mask": mask_sha}
    key = shared_key(key | {"selection": settings.finetune.selection}, settings)
    path = cache_of(session.home) / f"prepared-{files.digest_of(key)[:16]}.safetensors"
    with locks.waited_for(path.with_suffix(".lock")):  # another arm may be measuring this base
        if path.exists():
            loaded = checkpoints.load_tensors(path)
            strategy.memory = {k: v.to(device, copy=True) for k, v in loaded.items()}
            return path
        measure()
        if strategy.memory:
            metadata = {name: json.dumps(value) for name, value in key.items()}
            files.write_atomic(path, checkpoints.tensors_bytes(strategy.memory, metadata))
    return path if strategy.memory else None

"""Tensors on disk: weights of finished runs, and checkpoints of unfinished ones."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsa_sandbox.errors import RunFailed, UserError, reason
from dsa_sandbox.runs.files import digest_of, file_digest, sync_folder, write_atomic, write_json
from dsa_sandbox.runs.folder import Run


def tensors_bytes(tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """safetensors of detached CPU tensors; a pure function of the values."""
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def save_model(run: Run, model: Any) -> None:
    """Weights of a finished run."""
    write_atomic(run.path / "model.safetensors", tensors_bytes(model.state_dict()))


def load_tensors(path: Path) -> dict[str, Any]:
    """Tensors of a file; UserError where it is torn."""
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        if str(path).isprintable():
            return load_file(path)
        return load(path.read_bytes())  # the library cannot open a path that is not valid UTF-8
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: torn or altered: {error}") from None


def parse_tensors(content: bytes, path: Path) -> dict[str, Any]:
    """Tensors from the content of a file; UserError where it is torn."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype unknown to torch
        raise UserError(f"{path}: torn or altered: {error}") from None


def save_checkpoint(
    run: Run, step: int, tensors: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Write checkpoints/step-N whole or not at all, delete older ones; RunFailed on an OSError."""
    folder = run.path / "checkpoints"
    final = folder / f"step-{step:08d}"
    partial = folder / f".step-{step:08d}.part"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        content = tensors_bytes(tensors)
        write_atomic(partial / "state.safetensors", content)
        sha = hashlib.sha256(content).hexdigest()
        known = {**state, "sha256": sha, "offsets": run.offsets()}
        write_json(partial / "state.json", {**known, "digest": digest_of(known)})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        sync_folder(folder)
    except (OSError, RunFailed) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(
            f"{final}: cannot be saved: {reason(error)}; the last checkpoint is kept"
        ) from error
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def newest_checkpoint(run: Run) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(tensors, state) of the newest checkpoint, or None; UserError where its sha256 differs."""
    folder = run.path / "checkpoints"
    steps = sorted(folder.glob("step-*")) if folder.exists() else []
    if not steps:
        return None
    path = steps[-1] / "state.safetensors"
    try:
        state = json.loads((steps[-1] / "state.json").read_text("utf-8"))
        own = state.pop("digest")
        altered = file_digest(path) != state["sha256"] or digest_of(state) != own
    except (OSError, ValueError, KeyError, TypeError):
        altered = True
    if altered:
        raise UserError(f"{path}: torn or altered (sha256); remove {steps[-1]} to start again")
    return load_tensors(path), state


Parameters = Mapping[str, torch.nn.Parameter]


def optimizer_tensors(
    parameters: Parameters, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Optimiser state by parameter name; parameters that were never updated have none."""
    names = {id(p): name for name, p in parameters.items()}
    return {
        f"optimizer.{slot}.{names[id(p)]}": torch.as_tensor(value)
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def restore_optimizer(
    parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Load the tensors of `optimizer_tensors` into an optimiser."""
    for name, parameter in parameters.items():
        state = {}
        for slot in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
            value = tensors.get(f"optimizer.{slot}.{name}")
            if value is not None:
                state[slot] = value if slot == "step" else value.to(parameter.device)
        if state:
            optimizer.state[parameter] = state

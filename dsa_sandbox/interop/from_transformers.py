"""Reads a folder that transformers wrote into settings and weights of this package.

Only `json` and `safetensors` are read: no code of the folder is run. V vocabulary.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config import paths, resolve
from dsa_sandbox.config.resolve import Resolved
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.opening import END_ID
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop.folders import Files
from dsa_sandbox.interop.hf_config import ARCHS, OWN, architecture_of, completed, fixed_by
from dsa_sandbox.interop.hf_weights import WeightReader, translated
from dsa_sandbox.interop.to_transformers import LAYOUTS
from dsa_sandbox.interop.tokenizer import import_tokenizer
from dsa_sandbox.runs import checkpoints

LONGEST = 2048  # largest default context: RoPE tables are as long as the context


class Folder(NamedTuple):
    """The contents of a folder."""

    path: Path
    architecture: str  # class in transformers
    config: dict[str, Any]  # config.json with the defaults of its class
    weights: dict[str, Tensor]  # by their names in the folder
    tokenizer: Tokenizer  # its end-of-text token has id 0
    end: int  # the id that the end-of-text token has in the folder
    fixed: dict[str, Any]  # settings that the folder decides
    likely: dict[str, Any]  # settings that the folder proposes
    longest: int  # most tokens of its position embedding
    files: dict[str, str]  # sha256 of each file that was read
    notes: list[str]  # for the user

    @property
    def file(self) -> str:
        """The file that `fixed` and `likely` come from."""
        return str(self.path / "config.json")

    @property
    def vocabulary(self) -> int:
        return int(self.config["vocab_size"])


def read_folder(path: Path) -> Folder:
    """Config, weights and tokenizer of a folder; UserError for anything that is not supported."""
    path = paths.named(path, "FOLDER")
    if not path.is_dir():
        raise UserError(f"{path}: not a folder")
    file = path / "config.json"
    files = Files(path)
    raw_config = files.json("config.json")
    if raw_config is None:
        raise UserError(f"{file}: no such file")
    architecture = architecture_of(raw_config, file)
    config = completed(raw_config, architecture, file)
    fixed = fixed_by(config, architecture, file)
    weights = read_weights(files)

    exported = config.get("dsa_sandbox")  # written by `export`
    if not isinstance(exported, dict):
        exported = {}
    arch = str(exported.get("arch"))
    if arch not in LAYOUTS or LAYOUTS[arch].architecture != architecture:
        arch = ARCHS[architecture]
    notes = []
    if architecture == OWN:
        tied = bool(config["tie_word_embeddings"])
    else:
        tied = is_tied_here(config, weights)
        if config["tie_word_embeddings"]:
            notes.append(
                "its tied embedding becomes two matrices, since ours is scaled at the input"
            )
    fixed |= {"arch": arch, "model.tied": tied}
    if arch == "dsa-full":  # its index_topk is the context; num_kept is that of the compared dsa
        del fixed["model.num_kept"]
    longest = config["max_position_embeddings"]
    likely = {}
    for name in ("num_selected_heads", "num_kept"):
        if name in exported and f"model.{name}" not in fixed:
            likely[f"model.{name}"] = exported[name]
    likely["model.context"] = min(longest, LONGEST)
    tokenizer, end, tokenizer_notes = import_tokenizer(files, config)
    return Folder(
        path=path,
        architecture=architecture,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        end=end,
        fixed=fixed,
        likely=likely,
        longest=longest,
        files=files.digests,
        notes=[*notes, *tokenizer_notes],
    )


def read_weights(files: Files) -> dict[str, Tensor]:
    """All tensors of a folder by name, from one safetensors file or from shards."""
    folder = files.folder
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif (content_of_index := files.json(index.name)) is not None:
        weight_map = content_of_index.get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index}: weight_map is missing")
        names = sorted({str(name) for name in weight_map.values()})
    else:
        for pickle in sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
            raise UserError(
                f"{pickle}: {pickle.name} is a pickle file, which can run code when opened; save "
                "it as safetensors"
            )
        raise UserError(f"{folder / 'model.safetensors'}: no such file")
    weights: dict[str, Tensor] = {}
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: {name} is not the name of a safetensors file in the folder")
        content = files.read(name)
        if content is None:
            raise UserError(f"{folder / name}: no such file, but {index.name} names it")
        found = checkpoints.parse_tensors(content, folder / name)
        for duplicate in sorted(found.keys() & weights.keys()):
            raise UserError(f"{folder / name}: {duplicate} is in another shard too")
        weights |= found
    # old releases saved this buffer; RoPE is computed here
    return {n: w for n, w in weights.items() if not n.endswith("rotary_emb.inv_freq")}


def is_tied_here(config: dict[str, Any], weights: dict[str, Tensor]) -> bool:
    """Whether the input embedding is the output matrix times sqrt(width), as in a tied export.

    Removes the output matrix from `weights` if the folder ties it to an equal input embedding.
    """
    embedding = weights.get("model.embed_tokens.weight")
    output = weights.get("lm_head.weight")
    if embedding is None or output is None:
        return False
    if embedding.shape != output.shape or embedding.dim() != 2:
        return False
    if config["tie_word_embeddings"]:
        if torch.equal(embedding, output):
            del weights["lm_head.weight"]
        return False
    return torch.equal(output.float() * output.shape[1] ** 0.5, embedding.float())


def check(resolved: Resolved, folder: Folder) -> Settings:
    """The resolved settings; UserError if they contradict the folder."""
    flat = resolve.as_flat(resolved.settings)
    problems = []
    for key, value in folder.fixed.items():
        if flat[key] != value:
            source = resolved.sources[key]
            problems.append(f"{key}={flat[key]}: {folder.path} has {value}  [from {source}]")
    if flat["model.context"] > folder.longest:
        problems.append(
            f"model.context={flat['model.context']}: {folder.path} has positions up to "
            f"{folder.longest}  [from {resolved.sources['model.context']}]"
        )
    if problems:
        raise UserError(*problems)
    return resolved.settings


def state_of(folder: Folder, resolved: Settings) -> dict[str, Tensor]:
    """The state dict of our network; UserError names each tensor that does not fit."""
    reader = WeightReader(folder.path, folder.architecture, folder.weights)
    model = resolved.model
    if folder.architecture == OWN:
        hidden = sizes.matched_ffn_width(resolved.arch, model)
        like = Transformer(resolved.arch, model, folder.vocabulary, hidden, seed=0)
        state = {name: reader.take(name, *t.shape) for name, t in like.state_dict().items()}
    else:
        state = dict(translated(reader, folder.config, model))
    for name in ("lm_head.weight", "output.weight"):
        if folder.config["tie_word_embeddings"] and reader.remaining.pop(name, None) is not None:
            reader.problems.append(
                f"{folder.path}: {name} is a matrix of its own, but tie_word_embeddings=True"
            )
    reader.close()
    if folder.end != END_ID:  # rows of the matrices follow the ids of the tokenizer
        for name in ("embedding.weight", "output.weight"):
            if name in state:
                rows_VD = state[name].clone()
                rows_VD[[END_ID, folder.end]] = state[name][[folder.end, END_ID]]
                state[name] = rows_VD
    return state

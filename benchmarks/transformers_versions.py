"""Which releases of transformers say what we say: exported folders under another python.

    python benchmarks/transformers_versions.py write OUT [RUN ...]
    OTHER/bin/python benchmarks/transformers_versions.py check OUT

`write` runs where dsa-sandbox is installed. It exports the runs (paths), or where none is named a
tiny network of each layout with a rope base of its own, and puts beside each folder what it should
say: `NAME.npz` with token ids, logits, a greedy continuation, and the ids of a text.

`check` needs torch, numpy, tokenizers, safetensors and any transformers; dsa-sandbox is not
imported. For each folder it prints the largest difference of the logits, whether the cache tells
the same continuation, whether the tokenizer reads the same ids, and how often transformers warned;
it exits with 1 where logits differ by more than 1e-4 or one of the others is not so.
"""

import importlib.metadata
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

TEXT = "Once upon a time there was a little dog. The dog says"
NEW = 12  # tokens of the continuation
ALLOWED = 1e-4  # of the logits


def write(out: Path, runs: list[Path]) -> None:
    """Folders, and what they should say."""
    from dsa_sandbox.commands import exchange
    from dsa_sandbox.interop import to_transformers
    from dsa_sandbox.runs import load
    from dsa_sandbox.runs.folder import Run

    out.mkdir(parents=True, exist_ok=True)
    for path in runs:
        run = Run(path)
        exchange.export(run, out / run.name, force=True)
        saved = load.SavedNetwork(run)
        expect(out / f"{run.name}.npz", saved.network(), saved.tokenizer)
    for name, resolved, tokenizer in () if runs else tiny():
        model = load.new_model(resolved, tokenizer.get_vocab_size())
        sharpen(model)
        to_transformers.write(out / name, model, resolved, tokenizer)
        expect(out / f"{name}.npz", model, tokenizer)


def tiny() -> list[tuple[str, Any, Any]]:
    """A network of each layout and of each kind of tokenizer: name, settings, tokenizer."""
    from dsa_sandbox.config.settings import Model, Settings
    from dsa_sandbox.data import grammar, tokens

    words = tokens.word_tokenizer()
    pieces = tokens.bpe_tokenizer([grammar.story(0, number) for number in range(50)], 400)
    sizes: dict[str, Any] = {"num_layers": 2, "width": 64, "num_heads": 4, "ffn_width": 96}
    sizes |= {"context": 64, "num_kept": 8, "indexer_heads": 16, "indexer_head_width": 16}
    sizes |= {"rope_base": 50_000.0}
    v32 = {**sizes, "force_sink": 0, "force_local": 0}
    mixture = {**v32, "ffn": "moe", "num_experts": 4, "ffn_width": 192}
    kinds = (
        ("dense", "dense", sizes, words),
        ("dense-untied-bpe", "dense", {**sizes, "tied": False}, pieces),
        ("dsa", "dsa", sizes, words),
        ("dsa-untied-bpe", "dsa", {**sizes, "tied": False}, pieces),
        ("dsa-full", "dsa-full", sizes, words),
        ("dsa-v32", "dsa-v32", v32, words),
        ("dsa-v32-moe", "dsa-v32", mixture, words),
    )
    return [(n, Settings(arch=a, model=Model(**values)), words) for n, a, values, words in kinds]


@torch.no_grad()
def sharpen(model: Any) -> None:
    """Weights of a network that looks at something: not yet trained, attention is nearly even."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(name)))
        elif name.endswith((".o.weight", "down.weight")):  # else it says the last token again
            parameter.mul_(4)
        elif "attention" in name:
            parameter.mul_(1.5)


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, name)))


@torch.no_grad()
def expect(path: Path, model: Any, tokenizer: Any) -> None:
    """What `model` says, in a file."""
    from dsa_sandbox.data.tokens import encode

    model.eval()
    length = min(48, model.context - NEW)
    ids_BT = torch.randint(tokenizer.get_vocab_size(), (3, length), generator=seeded("ids"))
    story = encode(tokenizer, TEXT)
    read = np.array(story)
    for _ in range(NEW):
        story.append(int(model(torch.tensor([story]))[0, -1].argmax()))
    logits_BTV = model(ids_BT).numpy()
    np.savez(path, ids=ids_BT.numpy(), logits=logits_BTV, story=np.array(story), read=read)


class Counter(logging.Handler):
    """Keeps what is warned."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@torch.no_grad()
def check(folder: Path, expected: Any) -> tuple[bool, str]:
    """Whether this transformers says what it should, and how near it comes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    counter = Counter()
    logging.getLogger("transformers").addHandler(counter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        except (ValueError, KeyError, ImportError) as error:
            logging.getLogger("transformers").removeHandler(counter)
            return False, f"does not load: {str(error).splitlines()[0][:100]}"
        ids_BT = torch.from_numpy(expected["ids"])
        differences = [
            float(np.abs(logits_BTV.float().numpy() - expected["logits"]).max())
            for logits_BTV in (model(ids_BT).logits, in_pieces(model, ids_BT))
        ]
        difference = max(differences)
        inputs = tokenizer(TEXT, return_tensors="pt")
        same_ids = inputs["input_ids"][0].tolist() == expected["read"].tolist()
        start = torch.from_numpy(expected["read"])[None]
        told = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=NEW,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
        )
        same_story = told[0].tolist() == expected["story"].tolist()
    logging.getLogger("transformers").removeHandler(counter)
    said = list(dict.fromkeys([*counter.said, *(str(one.message) for one in caught)]))
    shown = "".join(f"\n    {text.strip()[:200]}" for text in said)
    right = difference <= ALLOWED and same_ids and same_story
    return right, (
        f"{type(model).__name__}: logits differ by {difference:.1e}, "
        f"{'the same' if same_story else 'ANOTHER'} continuation, "
        f"{'the same' if same_ids else 'OTHER'} ids, {len(said)} warnings{shown}"
    )


def in_pieces(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """Logits of tokens that come piece by piece, what went before kept in the cache."""
    pieces: list[torch.Tensor] = []
    kept: dict[str, Any] = {}
    for piece_BT in ids_BT.split([5, 1, ids_BT.shape[1] - 6], dim=1):
        answer = model(piece_BT, use_cache=True, **kept)
        name = "cache" if "cache" in answer else "past_key_values"  # since, and before 5.24
        kept = {name: answer[name]}
        pieces.append(answer.logits)
    return torch.cat(pieces, dim=1)


def main(arguments: list[str]) -> int:
    """`write OUT [RUN ...]` or `check OUT`."""
    if len(arguments) < 2 or arguments[0] not in ("write", "check"):
        print(__doc__)
        return 2
    out = Path(arguments[1])
    if arguments[0] == "write":
        write(out, [Path(text) for text in arguments[2:]])
        return 0
    release, wrong = importlib.metadata.version("transformers"), 0
    for path in sorted(out.glob("*.npz")):
        right, line = check(out / path.stem, np.load(path))
        wrong += not right
        print(f"transformers {release}  {path.stem}: {line}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

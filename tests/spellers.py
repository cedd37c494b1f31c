"""A small tokenizer of each kind, made here: they differ in how they write where a word begins."""

import json
import re
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dsa_sandbox.data.grammar import PIECE
from dsa_sandbox.data.tokens import END

SENTENCES = (
    "The lemon is blue and the sky is grey.",
    "It was blue. It was red, and the bird said yes.",
    "Tom and he ran to the lake. In Aldo the lemon is blue.",
    "the cat has a hat and the cats have a tin",
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,"
SIGNS = pre_tokenizers.Split(Regex("[.,]"), "isolated")
KINDS = (
    "bytes",
    "bpe first",
    "bpe always",
    "bpe never",
    "unigram first",
    "unigram always",
    "unigram never",
    "llama",
    "word pieces",
    "word ends",
    "words",
)


@cache
def speller(kind: str, texts: tuple[str, ...] = SENTENCES, size: int = 240) -> Tokenizer:
    """END is id 0; frequent words of the texts are single tokens, and so is every letter."""
    model, _, scheme = kind.partition(" ")
    special = [END, "<unk>"]
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    if model == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer.vocab_size = 256 + size
    elif model == "unigram":
        said = re.findall(r"\w+", " ".join(texts))
        words = [(f"▁{word}", -4.0) for word in dict.fromkeys(said)]
        letters = [(letter, -6.0) for letter in f"▁{LETTERS}"]
        made = Tokenizer(models.Unigram([*((one, 0.0) for one in special), *words, *letters], 1))
        made.add_special_tokens(special)
    elif model == "llama":  # no pre-tokenizer: every text is opened by a space
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.pre_tokenizer = pre_tokenizers.Sequence(  # to learn words by
            [pre_tokenizers.Split("▁", "merged_with_next"), SIGNS]
        )
        read = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*read, decoders.Strip(" ", 1, 0)])
    elif kind == "word pieces":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        )
    elif kind == "word ends":
        made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.BPEDecoder("</w>")
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            end_of_word_suffix="</w>",
            show_progress=False,
        )
    elif kind == "words":
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
        made.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    if scheme in ("first", "always", "never"):
        spaces = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        made.pre_tokenizer = pre_tokenizers.Sequence([spaces, SIGNS])
        made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if model != "unigram":
        made.train_from_iterator([*texts * 20, *LETTERS], trainer)
    return as_llama(made) if model == "llama" else made


def as_llama(made: Tokenizer) -> Tokenizer:
    """With a token for each byte, which stands for what no other token says."""
    value = json.loads(made.to_str())
    vocabulary = value["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    value["model"]["byte_fallback"], value["pre_tokenizer"] = True, None
    return Tokenizer.from_str(json.dumps(value))

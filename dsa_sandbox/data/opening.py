"""The token that opens a document: END (id 0), which also ends it, or a separate BOS token.

An imported model may have been trained on texts that begin with BOS and end with another token. Its
tokenizer.json records BOS as the one special token of a post-processor that adds no token.
"""

import json

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

END_ID = 0  # ends every document


def opener_of(tokenizer: Tokenizer) -> int:
    """The id of the first token of every document; it is never a target."""
    if tokenizer.post_processor is None:
        return END_ID
    special = json.loads(tokenizer.post_processor.__getstate__()).get("special_tokens", {})
    ids = [number for token in special.values() for number in token["ids"]]
    return int(ids[0]) if len(ids) == 1 else END_ID


def record_opener(tokenizer: Tokenizer, opener: int) -> None:
    """Store the id for `opener_of` in the tokenizer, which still encodes texts as before."""
    named = [(tokenizer.id_to_token(opener), opener)]
    tokenizer.post_processor = (
        None if opener == END_ID else TemplateProcessing(single="$A", special_tokens=named)
    )

"""What opens a document: END, whose id is 0 and which ends it too, or a token of its own.

An imported model may have learned text behind a token that begins it (BOS) and that is not the one
that ends it. Its tokenizer says so itself, in tokenizer.json: as the one special token of a
post-processor that adds nothing to a text.
"""

import json

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

END_ID = 0  # ends every document


def opener_of(tokenizer: Tokenizer) -> int:
    """The id that stands before the first token of every document; it is never predicted."""
    if tokenizer.post_processor is None:
        return END_ID
    special = json.loads(tokenizer.post_processor.__getstate__()).get("special_tokens", {})
    ids = [number for token in special.values() for number in token["ids"]]
    return int(ids[0]) if len(ids) == 1 else END_ID


def record_opener(tokenizer: Tokenizer, opener: int) -> None:
    """Let `opener_of` find the id; what the tokenizer makes of a text stays as it is."""
    named = [(tokenizer.id_to_token(opener), opener)]
    tokenizer.post_processor = (
        None if opener == END_ID else TemplateProcessing(single="$A", special_tokens=named)
    )

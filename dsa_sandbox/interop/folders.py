"""Reads files of an imported folder, each once, so that the parsed bytes are the hashed bytes."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dsa_sandbox.errors import UserError


class Files:
    """The files of a folder; `digests` holds the sha256 of each file that was read, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if there is no such file, UserError if it cannot be read."""
        try:
            content = (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.folder / name}: cannot be read: {error.strerror}") from None
        self.digests[name] = hashlib.sha256(content).hexdigest()
        return content

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None if there is no such file, UserError if it does not hold an object."""
        path = self.folder / name
        content = self.read(name)
        if content is None:
            return None
        try:
            value = json.loads(content.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: is not a JSON object")
        return value

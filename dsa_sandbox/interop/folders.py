"""Files of a folder from outside: each is read once, and what is parsed is what is hashed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dsa_sandbox.errors import UserError


class Files:
    """What was read of a folder: `digests` holds the sha256 of each file, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none, UserError where they cannot be had."""
        try:
            content = (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.folder / name}: cannot be read: {error.strerror}") from None
        self.digests[name] = hashlib.sha256(content).hexdigest()
        return content

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None where there is no file, UserError where it holds no object."""
        content, path = self.read(name), self.folder / name
        if content is None:
            return None
        try:
            value = json.loads(content.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: not a JSON object")
        return value

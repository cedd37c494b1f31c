"""Paths that a user names; UserError in one line for those that cannot exist or be read."""

import os
from pathlib import Path

from dsa_sandbox.errors import UserError


def named(text: str | Path, source: str) -> Path:
    """The path with `~` expanded; UserError where no file can have this name.

    `source` is the option or setting that named it, for the message.
    """
    if not str(text):
        raise UserError(f"{source}: an empty name; leave it out, or name a path")
    try:
        path = Path(text).expanduser()
        path.lstat()  # only to find out whether such a name is possible
    except RuntimeError:  # raised by expanduser
        raise UserError(f"{source} {text}: no such user") from None
    except (FileNotFoundError, NotADirectoryError):
        return path  # a possible name; the caller decides whether the path must exist
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{source} {text}: cannot be read: {reason}") from None
    return path


def file(text: str | Path, source: str) -> Path:
    """The path of a file that can be read; UserError otherwise."""
    path = named(text, source)
    if path.is_dir():
        raise UserError(f"{source} {path}: a folder; name a file")
    if not path.exists():
        raise UserError(f"{source} {path}: no such file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{source} {path}: cannot be read: no permission")
    return path


def folder(text: str | Path, source: str) -> Path:
    """The path of a folder that exists or can be created; UserError otherwise."""
    path = named(text, source)
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise UserError(f"{source} {path}: {there} is a file, not a folder")
    if not os.access(there, os.R_OK | os.X_OK):
        raise UserError(f"{source} {path}: {there} cannot be read: no permission")
    return path

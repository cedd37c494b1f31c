"""Task rows: JSON lines that make-tasks or a user writes, and finetune and eval read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from tokenizers import Tokenizer

from dsa_sandbox.data.tokens import UNKNOWN
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import nearest
from dsa_sandbox.settings import Frozen

SENTENCE_END = r"[.!?]\"?\s+"
KINDS = ("cloze", "paraphrase", "neighbour", "outside", "bleed")


class Item(Frozen):
    """One probe: which of `answer` and `foils` follows `prompt`? All start with their own space."""

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    foils: list[str] = Field(min_length=1)
    distance: int | None = None  # tokens from the world's name (or its stated rule) to the answer

    @model_validator(mode="after")
    def _differ(self) -> "Item":
        candidates = [self.answer, *self.foils]
        if not all(self.foils):
            raise ValueError("a foil is empty")
        if len(set(candidates)) < len(candidates):
            raise ValueError("answer and foils must all differ")
        return self


class Task(Frozen):
    """A world with one fact of its own: stories to learn it from, and probes."""

    task: str = Field(min_length=1)
    world: str = Field(min_length=1)
    family: str
    subject: str
    relation: str
    true_object: str = Field(min_length=1)
    new_object: str = Field(min_length=1)
    train: list[str] = Field(min_length=1)
    contrast: list[str] = Field(min_length=1)
    cloze: list[Item] = Field(min_length=1)
    paraphrase: list[Item] = Field(min_length=1)
    neighbour: list[Item] = Field(min_length=1)
    outside: list[Item] = Field(min_length=1)
    bleed: list[Item] = Field(min_length=1)
    undoes: str | None = None  # the earlier task whose object held here until this one
    _line: int = PrivateAttr(0)  # of the file it was read from

    def items(self, kind: str) -> list[Item]:
        """The probes of one kind."""
        return list(getattr(self, kind))


def write(tasks: list[Task]) -> str:
    """The rows as JSON lines; `undoes` stands only where a task undoes one."""
    rows = (task.model_dump(exclude=set() if task.undoes else {"undoes"}) for task in tasks)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(path: Path) -> list[Task]:
    """Rows of a file; UserError names line and field of everything that is wrong."""
    return load(path)[0]


def load(path: Path) -> tuple[list[Task], str]:
    """Rows of a file, and the sha256 of the bytes that they were read from."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return parsed(content, path), hashlib.sha256(content).hexdigest()


def parsed(content: bytes, path: Path) -> list[Task]:
    """Rows of what `path` holds; UserError names line and field of everything that is wrong."""
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    tasks: list[Task] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task = Task(**as_object(line))
        except json.JSONDecodeError as error:
            problems.append(f"{path}: line {number}: not JSON: {error.msg}")
            continue
        except (TypeError, ValidationError) as error:
            problems += [f"{path}: line {number}: {text}" for text in explained(error)]
            continue
        if task.task in seen:
            problems.append(
                f"{path}: line {number}: task: {task.task} stands in line {seen[task.task]} already"
            )
        if task.undoes is not None and task.undoes not in seen:
            problems.append(
                f"{path}: line {number}: undoes: {task.undoes} stands in no earlier line"
                f"{nearest(task.undoes, list(seen))}"
            )
        seen[task.task] = number
        task._line = number
        tasks.append(task)
    if not tasks and not problems:
        problems.append(f"{path}: holds no task")
    if problems:
        raise UserError(*problems)
    return tasks


def as_object(line: str) -> dict[str, Any]:
    """The line as a JSON object; TypeError where it is another value."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise TypeError(f"a task is a JSON object, not {type(value).__name__}")
    return value


def explained(error: TypeError | ValidationError) -> list[str]:
    """One text for each bad field."""
    if isinstance(error, TypeError):
        return [str(error)]
    texts = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            message = "the field is missing"
        elif problem["type"] == "too_short":
            message = "the list is empty"
        elif problem["type"] == "extra_forbidden":
            message = f"no such field{nearest(field, list(Task.model_fields))}"
        texts.append(f"{field}: {message[0].lower()}{message[1:]}")
    return texts


def mentions(text: str, object_: str) -> list[int]:
    """Where a text says the object as a word of its own: "red" is not mentioned by "tired"."""
    found = re.finditer(rf"(?<!\w){re.escape(object_.strip())}(?!\w)", text)
    return [match.start() for match in found]


def statement_start(text: str, object_: str) -> int:
    """Where the sentence begins that holds the last mention of `object_`; 0 where there is none."""
    found = mentions(text, object_)
    place = found[-1] if found else 0
    ends = [match.end() for match in re.finditer(SENTENCE_END, text[:place])]
    return ends[-1] if ends else 0


def check_vocabulary(tasks: list[Task], tokenizer: Tokenizer, where: str) -> None:
    """UserError where an answer or foil has a word that the tokenizer does not know."""
    unknown = tokenizer.token_to_id(UNKNOWN)
    if unknown is None:
        return
    problems = []
    for task in tasks:
        for kind in KINDS:
            for index, item in enumerate(task.items(kind)):
                for text in (item.answer, *item.foils):
                    if unknown in tokenizer.encode(text).ids:
                        problems.append(
                            f"{where}: line {task._line}: {kind}.{index}: {text!r} is not in the "
                            "vocabulary of the base"
                        )
    if problems:
        raise UserError(*problems[:20])


def check_length(tasks: list[Task], tokenizer: Tokenizer, context: int, where: str) -> None:
    """UserError where a story or probe is longer than the context of the base."""
    problems: dict[str, None] = {}  # several candidates may be too long by the same
    for task in tasks:
        texts = [("train", text) for text in task.train]
        texts += [("contrast", text) for text in task.contrast]
        for kind in KINDS:
            for item in task.items(kind):
                texts += [(kind, item.prompt + said) for said in (item.answer, *item.foils)]
        for field, text in texts:
            length = len(tokenizer.encode(text).ids) + 1
            if length > context:
                problem = f"{where}: line {task._line}: {field}: {length} tokens exceed the context"
                problems[f"{problem} of the base, {context}"] = None
    if problems:
        raise UserError(*list(problems)[:20])

"""The readable core stays readable, and packages are folders that import-linter sees.

The floors, and that imports only go down, are contracts of import-linter in pyproject.toml.
"""

import ast
import io
import tokenize
from pathlib import Path

import dsa_sandbox

PACKAGE = Path(dsa_sandbox.__file__).parent
CORE = sorted((PACKAGE / "core").glob("*.py"))


def test_every_folder_of_modules_has_an_empty_init_file() -> None:
    """Without the file, import-linter would not see the folder; with code, circles begin there."""
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert (folder / "__init__.py").read_text("utf-8").strip() == "", folder


def lines_of_code(source: str) -> int:
    """Lines that hold something other than blanks, comments and docstrings."""
    silent = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    )
    lines: set[int] = set()
    for token in tokenize.tokenize(io.BytesIO(source.encode()).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines.difference_update(range(first.lineno, (first.end_lineno or 0) + 1))
    return len(lines)


def test_lines_of_code_are_counted_without_blanks_comments_and_docstrings() -> None:
    source = '"""What it is\n\nand why."""\n\nx = (\n    1,  # one\n\n    # two\n)\n'
    source += 'def f():\n    """One line."""\n    return """two\nlines"""\n'
    assert lines_of_code(source) == 6


def test_the_networks_of_the_core_have_fewer_than_350_lines_of_code() -> None:
    counted = {path.name: lines_of_code(path.read_text("utf-8")) for path in CORE}
    assert 200 < sum(counted.values()) < 350, counted


def test_no_line_of_the_core_is_longer_than_100_columns() -> None:
    for path in CORE:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert len(line) <= 100, f"{path.name}:{number}"

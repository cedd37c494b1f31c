"""The floors of the package hold: imports only go down, and the readable core stays readable."""

import ast
import io
import tokenize
from pathlib import Path

import dsa_sandbox

PACKAGE = Path(dsa_sandbox.__file__).parent
FLOORS = (
    ("cli", "__main__", "api"),
    ("bench", "study", "report"),
    ("commands",),
    ("verdict",),
    ("training", "interop", "metrics"),
    ("evaluation",),
    ("runs",),
    ("selection", "decoding", "strategies", "tasks"),
    ("variants", "kernels", "data"),
    ("core",),
    (
        "machine",
        "sizes",
        "config",
        "registry",
        "locks",
        "children",
        "errors",
        "listener",
        "presets",
    ),
)
READABLE_CORE = (
    *(PACKAGE / "core").glob("*.py"),
    *(PACKAGE / "strategies" / f"{name}.py" for name in ("sgd", "ewc", "acft")),
    PACKAGE / "training" / "loop.py",
)


def modules() -> dict[str, ast.Module]:
    """Syntax trees by name within the package: `core.indexer`; a package is named by its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the package that `name` imports, anywhere in it, for types too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            assert node.module
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] != "dsa_sandbox":
                continue
            inside = target.split(".")[1:]
            while inside and ".".join(inside) not in known:
                inside.pop()  # a class or function; its module is what is imported
            assert inside, f"{name} imports {target}, which is no module"
            found.add(".".join(inside))
    return found - {name}


def graph() -> dict[str, set[str]]:
    trees = modules()
    return {name: imports(name, tree, set(trees)) for name, tree in trees.items()}


def floor_of(name: str) -> int:
    """0 is the top."""
    room = name.split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_stands_on_a_floor() -> None:
    rooms = {room for floor in FLOORS for room in floor}
    assert {name.split(".")[0] for name in modules() if name} <= rooms


def test_imports_only_go_down() -> None:
    upward = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if name and floor_of(target) < floor_of(name)
    ]
    assert not upward


def test_there_is_no_import_circle() -> None:
    edges = graph()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import circle: {' -> '.join([*path, name])}"
        if name not in done:
            for target in edges[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_init_files_are_empty() -> None:
    assert not [path for path in PACKAGE.rglob("__init__.py") if path.read_text("utf-8").strip()]


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


def test_the_readable_core_has_fewer_than_500_lines_of_code() -> None:
    counted = {path.name: lines_of_code(path.read_text("utf-8")) for path in READABLE_CORE}
    assert sum(counted.values()) < 500, counted


def test_no_line_of_the_readable_core_is_longer_than_100_columns() -> None:
    for path in READABLE_CORE:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert len(line) <= 100, f"{path.name}:{number}"

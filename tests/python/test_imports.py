"""The package's modules import each other in one direction."""

import ast
from pathlib import Path

import sumexp

ROOT = Path(sumexp.__file__).parent


def imported(path):
    """The modules of the package that a file names in an import, anywhere in it."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            base = tuple(part for part in base if part)
            for name in [*([None] if node.module else []), *(a.name for a in node.names)]:
                parts = base if name is None else (*base, name)
                for file in (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")):
                    if parts and file.exists():
                        yield file


def test_no_circles():
    files = [*ROOT.glob("*.py"), *(ROOT / "torch").glob("*.py")]
    assert len(files) > 15
    graph = {p: set(imported(p)) - {p} for p in files}

    def visit(file, path):
        assert file not in path, " -> ".join(str(p.relative_to(ROOT)) for p in (*path, file))
        for other in graph.get(file, ()):
            visit(other, (*path, file))

    for file in files:
        visit(file, ())

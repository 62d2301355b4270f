"""Lines of user code of the demo's job on ghee and on Dask.

Both files are brought into one form by `ruff format` with its own defaults; counted are the lines that hold code, other
than imports and docstrings. Both use the same modules for the data, the features, the model and its training, which
count for neither. Ends with 1 if ghee's are more than half of Dask's.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ROOT / "examples" / "movielens" / "pipeline.py"
DASK = ROOT / "benchmarks" / "dask_movielens.py"
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def formatted(path: Path) -> str:
    """The file's text in ruff's default form."""
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--stdin-filename", path.name, "-"]
    return subprocess.run(command, input=path.read_text(), capture_output=True, text=True, check=True).stdout


def code_lines(text: str) -> int:
    """How many lines hold code that is neither an import nor a docstring."""
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in LAYOUT
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def main() -> None:
    """See the module's docstring."""
    ours, dask = (code_lines(formatted(path)) for path in (OURS, DASK))
    print(f"{OURS.relative_to(ROOT)}: {ours} lines")
    print(f"{DASK.relative_to(ROOT)}: {dask} lines")
    print(f"ratio {ours / dask:.2f}")
    if 2 * ours > dask:
        sys.exit("ghee's are more than half of Dask's")


if __name__ == "__main__":
    main()

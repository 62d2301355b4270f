"""Makes docs/run.svg: the terminal of a real run of examples/quickstart.py, as rich draws it.

python docs/make_picture.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

import ghee
from ghee.observe.progress import draw
from ghee.pipeline_file import find_pipeline

ROOT = Path(__file__).parent.parent
SETTINGS = ["preprocess.replicas=2", "epochs=5"]


def main() -> None:
    """Run, draw, write."""
    pipeline = find_pipeline(str(ROOT / "examples" / "quickstart.py") + ":make", SETTINGS)
    console = Console(record=True, width=118, force_terminal=True, file=io.StringIO())
    console.print(
        "$ ghee run examples/quickstart.py:make " + " ".join(f"--set {setting}" for setting in SETTINGS), style="bold"
    )
    run = ghee.run(pipeline, progress=False)
    console.print(draw(run.report))
    console.print(str(run.report), highlight=False, soft_wrap=True)
    console.print(f"train returned {run.result!r}")
    drawing = console.export_svg(title="ghee")
    # The fonts that rich names lie on other machines: whoever looks at the picture has a monospaced one.
    drawing = re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL)
    (ROOT / "docs" / "run.svg").write_text(drawing)


if __name__ == "__main__":
    main()

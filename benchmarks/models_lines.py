"""Lines of a new click model outside of the package, counted as `lines_of_code.py` counts; it must keep the contract too.

python benchmarks/models_lines.py
"""

from __future__ import annotations

import sys

from lines_of_code import ROOT, code_lines, formatted

PLUGIN = ROOT / "tests" / "ghee_models" / "plugin_fwfm.py"
ALLOWED = 25


def main() -> None:
    """See the module's docstring."""
    from ghee_models import registry
    from ghee_models.cli import import_plugin
    from ghee_models.testing import check_model

    lines = code_lines(formatted(PLUGIN))
    print(f"{PLUGIN.relative_to(ROOT)}: {lines} lines without imports and docstrings")
    import_plugin(str(PLUGIN))
    check_model(registry.load_class("fwfm"))
    print("it keeps the contract (ghee_models.testing.check_model)")
    if lines > ALLOWED:
        sys.exit(f"more than {ALLOWED} lines")


if __name__ == "__main__":
    main()

"""The package that is tested is the installed one, not a folder of the same name."""

import ghee


def test_the_installed_package_is_imported() -> None:
    assert ghee.__file__ is not None

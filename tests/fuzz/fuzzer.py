"""Run one target under atheris: ``python -m tests.fuzz.fuzzer TARGET [OPTIONS OF LIBFUZZER] [CORPUS]...``."""

import importlib
import sys
from typing import Any


def main() -> None:
    """Fuzz until a budget given as an option is used up, or something is found."""
    atheris: Any = importlib.import_module("atheris")
    # What is imported in here reports its branches; the regular expressions' own engine cannot.
    with atheris.instrument_imports(include=["asana_webhooks", "json", "tests.fuzz.targets"]):
        targets = importlib.import_module("tests.fuzz.targets")
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], getattr(targets, name))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

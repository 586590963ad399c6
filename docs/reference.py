"""Build the reference of the five packages with pdoc, in out/docs (make docs)."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Final

import pdoc

PACKAGES: Final = ("annotation", "cot_builder", "eval", "knowledge_banks", "training")


def main() -> None:
    """Write the pages into the folder of the command line."""
    for package in map(import_module, PACKAGES):
        for found in walk_packages(package.__path__, f"{package.__name__}."):
            for one in vars(import_module(found.name)).values():
                # The constructor of a named tuple does not know the module whose names it speaks,
                # and "Alias for field number 0" says nothing.
                if isinstance(one, type) and issubclass(one, tuple) and hasattr(one, "_fields"):
                    one.__new__.__module__ = one.__module__
                    for field in one._fields:
                        getattr(one, field).__doc__ = ""
    warnings.filterwarnings("error", module=r"pdoc\.")  # a page that is not as it was meant
    pdoc.render.configure(show_source=False)
    pdoc.pdoc(*PACKAGES, output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
    main()

"""Runs the command line of this very package, installed or not, when Python runs this file by its path.

With `python -P`, nothing is then imported from the working directory, and only the package from its own parent
directory. Worker processes that prepare text run this file first too (multiprocessing does it).
"""

import sys

if not __package__:
    import typing  # noqa: F401 - all that the package's own file imports

    sys.path.insert(0, __file__.rpartition("/intlm/")[0])
    import intlm  # noqa: F401

    del sys.path[0]

from intlm.cli import main

if __name__ == "__main__":
    sys.exit(main())

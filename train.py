"""`python train.py CONFIG` is the same as `intlm train CONFIG`."""

import os
import sys

if __name__ == "__main__":
    # In a Python that imports nothing from this directory but the package: a queue.py in it may be anybody's.
    package = os.path.join(os.path.dirname(os.path.abspath(__file__)), "intlm", "__main__.py")
    os.execv(sys.executable, [sys.executable, "-P", package, "train", *sys.argv[1:]])

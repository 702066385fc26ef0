"""`python train.py CONFIG` is the same as `intlm train CONFIG`."""

import sys

from intlm.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())

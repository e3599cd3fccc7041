"""`python -m fnlm`: the command `fnlm`."""

import sys

from fnlm.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m fnlm`: the command `fnlm`."""

import os
import sys

from fnlm.cli import main
from fnlm.programs._launch import environment

if __name__ == "__main__":
    code = main()
    if environment().size > 1:
        # A thread of gloo can outlive its group, and abort a process that has done its work.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

"""The command `fnlm`, as a program: `fnlm`, `python -m fnlm`, or either under `torchrun`."""

import os
import sys

from fnlm.cli import main
from fnlm.programs._launch import environment

__all__ = ["run"]


def run() -> int:
    """Run the command line; return its exit status."""
    code = main()
    if environment().size > 1:
        # A thread of gloo can outlive its group, and abort a process that has done its work.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(run())

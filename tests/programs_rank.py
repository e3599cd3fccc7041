"""One of several processes that run commands together, in an environment as torchrun makes it.

    python programs_rank.py RANK SIZE '[["glue", "--do_train"], ...]' PORT ...

There is a free port for each command. It writes their exit codes and output as JSON.
"""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from fnlm import cli


def main() -> None:
    rank, size, commands, *ports = sys.argv[1:]
    os.environ |= {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    found = []
    for words, port in zip(json.loads(commands), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = cli.main(words)
            except SystemExit as stopped:  # as after SIGTERM
                code = int(stopped.code or 0)
        found.append([code, out.getvalue(), err.getvalue()])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

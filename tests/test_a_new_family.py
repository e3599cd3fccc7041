"""A further family is two files and a record: a copy of the repository gets one.

The family is OPT. In the copy, by processes of their own, it passes the properties over the table
of families, equals `transformers`, and is known to the commands and to the checker of types.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from peers import hf, quiet

pytestmark = pytest.mark.slow
PARTS = ROOT / "tests" / "fixtures" / "new_family"
FILES = {"model.py": "fnlm/opt.py", "names.py": "fnlm/params/names/opt.py"}
SIZES = {
    "vocab_size": 41, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
    "ffn_dim": 20, "max_position_embeddings": 24, "dropout": 0.1, "attention_dropout": 0.3,
}  # fmt: skip
RECORD = f"""\
    Record(
        name="opt", title="OPT", tokenizer="gpt2", begin="</s>", eos="</s>",
        small={SIZES},
    ),
"""
# The properties that a family has by its record alone. The compiler takes minutes, and compiles the
# same functions of layers for the others.
PROPERTIES = (
    "test_check_params", "test_convert", "test_families", "test_files_of_others",
    "test_files_say_less", "test_layout", "test_purity", "test_register", "test_remat_models",
    "test_rename", "test_saving", "test_settings", "test_spec", "test_taps",
    "test_transforms",
)  # fmt: skip
OF_THE_FAMILY = "(opt- or opt] or opt.py] or fnlm.opt or has_an_example) and not compile"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with OPT: two files, a record, a golden file and a row of the README."""
    copy = tmp_path_factory.mktemp("copy")
    hidden = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("fnlm", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=hidden)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    for part, place in FILES.items():
        assert not (copy / place).exists()
        shutil.copy(PARTS / part, copy / place)
    register = copy / "fnlm" / "families.py"
    before, start, after = register.read_text(encoding="utf-8").partition("_RECORDS = (\n")
    assert start
    register.write_text(before + start + RECORD + after, encoding="utf-8")
    (copy / "tests" / "golden" / "opt.json").write_text(run(copy, "-c", GOLDEN), encoding="utf-8")
    with open(copy / "README.md", "a", encoding="utf-8") as readme:
        readme.write("| OPT | `fnlm.opt` | hidden states, language model |\n")
    return copy


def run(copy: Path, *command: str) -> str:
    """Run a module of Python in the copy, and return what it prints."""
    options = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=os.environ | options, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def theirs(copy: Path) -> Path:
    """A folder that transformers wrote: a small OPT with random weights, and what it computes."""
    torch.manual_seed(0)
    with quiet():
        # Without a padding id, whose row there would have no gradient.
        config = hf().OPTConfig(**SIZES, pad_token_id=None, attn_implementation="eager")
        module = hf().OPTForCausalLM(config).eval()
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        module.tie_weights()
        module.save_pretrained(copy / "theirs")
    expected = {}
    for name, (rows, length, left, right) in BATCHES.items():
        ids, mask = torch.randint(41, (rows, length)), torch.ones(rows, length, dtype=torch.int64)
        mask[-1, :left] = 0
        mask[-1, length - right :] = 0
        module.zero_grad()
        logits = module(ids, attention_mask=mask).logits
        logits[mask.bool()].sin().sum().backward()
        wte = module.model.decoder.embed_tokens.weight.grad.clone()
        expected[name] = (ids, mask, logits.detach(), wte)
    torch.save(expected, copy / "expected.pt")
    return copy / "theirs"


BATCHES = {  # rows, tokens, of the last row those that are padding on the left and on the right
    "one token": (1, 1, 0, 0),
    "odd": (3, 7, 0, 0),
    "padded on the left": (2, 9, 4, 0),
    "padded on the right": (2, 9, 0, 4),
    "the longest": (1, 24, 0, 0),
}
EQUALITY = """
import torch
from fnlm import checkpoints, opt, tree

assert opt.__file__.startswith({copy!r}), opt.__file__
assert checkpoints.family_of("theirs") == "opt"
params = opt.load("theirs")
worst = 0.0
for name, (ids, mask, expected, wte) in torch.load("expected.pt").items():
    real = mask.bool()
    logits, cache = opt.apply(params, ids, mask=mask)
    grads = torch.func.grad(lambda p: opt.apply(p, ids, mask=mask)[0][real].sin().sum())(params)
    half = ids.shape[-1] // 2
    first, cache = opt.apply(params, ids[:, :half], mask=mask[:, :half])
    second, cache = opt.apply(params, ids[:, half:], cache, mask=mask[:, half:])
    for found, wanted in (
        (logits[real], expected[real]),
        (torch.cat([first, second], 1)[real], expected[real]),
        (grads["embed"]["token"], wte),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=name)
        worst = max(worst, (found - wanted).abs().max().item())
print(worst)
"""


def test_it_equals_transformers(copy: Path, theirs: Path) -> None:
    """Logits, in one call and in two, and the gradient of the tied table."""
    worst = float(run(copy, "-c", EQUALITY.format(copy=str(copy))))
    assert 0 < worst < 2e-5


def test_it_has_the_properties_of_every_family(copy: Path) -> None:
    tests = [path for name in PROPERTIES if (path := f"tests/{name}.py") and (copy / path).exists()]
    quick = ("-q", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no")
    shown = run(copy, "-m", "pytest", *quick, *tests, "-k", OF_THE_FAMILY)
    passed = int(shown.rpartition(" passed")[0].split()[-1])
    assert passed > 150 and "failed" not in shown, shown[-500:]


GOLDEN = """
import json
from fnlm import opt, tree

leaves = tree.named_leaves(opt.spec(opt.Config(num_hidden_layers=2)))
print(json.dumps({path: [list(s.shape), s.start, s.std] for path, s in leaves}, indent=1))
"""


def test_its_examples_run(copy: Path) -> None:
    shown = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES.values())
    assert "2 passed" in shown


def test_the_commands_know_it(copy: Path, theirs: Path) -> None:
    count = len(json.loads(run(copy, "-c", GOLDEN)))
    shown = run(copy, "-m", "fnlm.cli", "inspect", str(theirs))
    assert "family: opt, by " in shown and "fnlm.opt.load reads " in shown
    done = run(copy, "-m", "fnlm.cli", "convert", str(theirs), str(copy / "ours"))
    assert f"as opt: {SIZE:,} parameters in {count} tensors" in done
    with quiet():
        module, report = hf().OPTForCausalLM.from_pretrained(
            copy / "ours", output_loading_info=True
        )
    assert not any(report.values()), report
    assert sum(x.numel() for x in module.parameters()) == SIZE
    assert "opt, bert, gpt" in " ".join(run(copy, "-m", "fnlm.cli", "convert", "--help").split())


# Tokens, positions with the two rows in front, two blocks, the last norm.
SIZE = 41 * 36 + 26 * 36 + 2 * (4 * (36 * 36 + 36) + 2 * 2 * 36 + 2 * 36 * 20 + 20 + 36) + 2 * 36


def test_its_types_are_right(copy: Path) -> None:
    pytest.importorskip("mypy", reason="of the gate, and not of the lowest versions")
    files = [str(copy / place) for place in (*FILES.values(), "fnlm/families.py")]
    assert "Success" in run(copy, "-m", "mypy", "--cache-dir", str(copy / ".mypy"), *files)

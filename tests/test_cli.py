"""The command line: its output, and its mistakes told in one line."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from fnlm import cli, gpt2, random, tree
from fnlm import generate as decoding
from fnlm.tokenize import gpt2 as bpe

PROMPT = "Once upon a time é"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small model, random but not dull, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = bpe.train(["once upon a time there was a time 👍 é"], 280)
    config = gpt2.Config(
        vocab_size=tokenizer.vocab_size, n_positions=128, n_embd=24, n_layer=2, n_head=3
    )
    params = tree.map(lambda x: x * 6 if x.ndim == 2 else x, gpt2.init(config, random.key(0)))
    gpt2.save(params, folder)
    tokenizer.save(folder)
    return folder


def expected(model: Path, prompt: str, new: int, **settings: object) -> str:
    tokenizer = bpe.load(model)
    end = tokenizer.tokens_to_ids(["<|endoftext|>"])[0]
    ids = torch.tensor([tokenizer.encode(prompt) or [end]])
    out = decoding.generate(gpt2.apply, gpt2.load(model), ids, new, eos=end, **settings)  # type: ignore[arg-type]
    tokens = [i for i in out[0].tolist() if i != end]
    return prompt + tokenizer.decode(tokens) + "\n"


def test_generate_prints_what_the_library_makes(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(model), "--prompt", PROMPT, "--max_new_tokens", "30"]
    assert cli.main([*words, "--seed", "5", "--temperature", "0.9", "--top_k", "50"]) == 0
    key = random.fold_in(random.key(5), 0)[None]
    assert capsys.readouterr().out == expected(
        model, PROMPT, 30, key=key, temperature=0.9, top_k=50
    )
    assert cli.main([*words, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == expected(model, PROMPT, 30)
    assert cli.main(["generate", str(model / "model.safetensors"), "--temperature", "0"]) == 0
    assert capsys.readouterr().out == expected(model, "", 60)


def test_several_texts_and_beams(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(model), "--prompt", PROMPT, "--max_new_tokens", "9"]
    assert cli.main([*words, "--num_samples", "3", "--top_p", "0.9", "--min_p", "0.01"]) == 0
    three, settings = capsys.readouterr().out, {"top_p": 0.9, "min_p": 0.01}
    texts = [
        expected(model, PROMPT, 9, key=random.fold_in(random.key(0), i)[None], **settings)
        for i in range(3)
    ]
    assert three == "".join(f"--- {i + 1} of 3\n{text}" for i, text in enumerate(texts))
    assert cli.main([*words, "--num_beams", "4", "--num_samples", "2"]) == 0
    found = capsys.readouterr().out
    assert found.startswith(f"--- 1 of 2\n{PROMPT}") and "--- 2 of 2" in found


def test_flags_may_have_hyphens(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(model), "--prompt", "a --well-known"]
    assert cli.main([*words, "--max_new_tokens", "5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("a --well-known")
    assert cli.main([*words, "--max-new-tokens", "5"]) == 0
    assert cli.main([*words, "--max-new-tokens=5"]) == 0
    assert capsys.readouterr().out == text * 2


def test_generate_in_bfloat16(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", str(model), "--prompt", PROMPT, "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.startswith(PROMPT)


def test_pieces_hold_no_half_characters(model: Path) -> None:
    pieces = list(cli.generate(str(model), PROMPT, max_new_tokens=40, seed=2))
    assert len(pieces) > 20, "text comes in pieces"
    assert "".join(pieces) == expected(
        model, PROMPT, 40, key=random.fold_in(random.key(2), 0)[None]
    )


def test_inspect_shows_tensors_family_and_verdict(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "h.1.mlp.c_fc.weight" in line)
    assert row.split() == "transformer.h.1.mlp.c_fc.weight float32 24 x 96 9.2 kB".split() + [
        "blocks.1.mlp.up.weight"
    ]
    params = gpt2.load(model)
    assert len([line for line in lines if " x " in line or "float32" in line]) == 28
    assert "28 tensors" in lines[-3] and "family: gpt2, by 28 of 28" in lines[-2]
    assert lines[-1] == f"fnlm.gpt2.load reads {tree.count(params):,} parameters; heads: none"


def test_inspect_says_what_would_not_load(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(
        {"wte.weight": torch.zeros(3, 2), "h.0.odd": torch.zeros(())}, tmp_path / "a.safetensors"
    )
    assert cli.main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "embed.token" in out and "unknown" in out and "one number" in out
    assert "load refuses it" in out and "config.json" in out
    save_file({"something": torch.zeros(2)}, tmp_path / "b.safetensors")
    assert cli.main(["inspect", str(tmp_path / "b.safetensors")]) == 0
    assert "family: unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["generate", "MODEL", "--max_new_tokens", "128"], ["=128", "n_positions=128"]),
        (["generate", "MODEL", "--temperature", "-1"], ["temperature", "-1", "0 takes the most"]),
        (["generate", "MODEL", "--num_samples", "0"], ["num_samples=0"]),
        (["generate", "MODEL", "--num_samples", "3", "--num_beams", "2"], ["num_beams=2"]),
        (["generate", "MODEL", "--temperature", "0", "--top_k", "4"], ["top_k=4", "temperature=0"]),
        (["generate", "MODEL", "--num_beams", "2", "--top_p", "0.5"], ["top_p=0.5", "num_beams=2"]),
        (["generate", "MODEL", "--num_beams", "2", "--min_p", "0.5"], ["min_p=0.5", "num_beams=2"]),
        (["generate", "MODEL", "--temperature", "0", "--typical", "0.5"], ["typical=0.5"]),
        (["generate", "MODEL", "--min_p", "1.5"], ["min_p", "1.5"]),
        (
            ["generate", "MODEL", "--num_beams", "2", "--temperature", "0.5"],
            ["temperature=0.5", "num_beams=2"],
        ),
        (
            ["generate", "MODEL", "--num_beams", "2", "--repetition_penalty", "1.5"],
            ["repetition_penalty=1.5", "num_beams=2"],
        ),
        (["generate", "./nowhere"], ["nowhere"]),
        (["inspect", "./nowhere"], ["nowhere"]),
        (["inspect", "MODEL/config.json"], ["config.json is no checkpoint", "safetensors"]),
        (["inspect", "DAMAGED"], ["broken.safetensors", "whole"]),
    ],
    ids=lambda value: "-".join(value)[:40],
)
def test_mistakes_are_one_line_and_code_2(
    words: list[str],
    parts: list[str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damaged = tmp_path / "broken.safetensors"
    damaged.write_bytes((model / "model.safetensors").read_bytes()[:-100])
    names = {"MODEL": str(model), "DAMAGED": str(damaged)}
    words = [names.get(word, word.replace("MODEL/", f"{model}/")) for word in words]
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"fnlm {words[0]}: ") and shown.err.count("\n") == 1
    assert shown.out == ""
    for part in parts:
        assert part in shown.err


@pytest.mark.parametrize("words", [[], ["generate"], ["generate", "a", "--top_k", "x"], ["bake"]])
def test_wrong_words_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom fnlm.cli import main\n"
        "try:\n    main(['generate', '--help'])\n"
        "except SystemExit as done:\n    assert not done.code\n"
        "print('torch loaded:', 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("torch loaded: False\n")
    for option in ("--prompt", "--max_new_tokens", "--top_p", "--num_beams", "most likely"):
        assert option in done.stdout


def test_a_narrow_terminal_and_a_closed_pipe_are_no_errors(model: Path) -> None:
    code = f"from fnlm.cli import main; raise SystemExit(main(['inspect', {str(model)!r}]))"
    command = f'{sys.executable} -c "{code}" | head -1'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = f"'generate', {str(model)!r}, '--prompt', 'é 👍', '--max_new_tokens', '2'"
    code = f"from fnlm.cli import main; raise SystemExit(main([{words}]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and done.stdout.startswith("? ?")


@dataclasses.dataclass
class Flags:
    """The flags of a program."""

    device: str = "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "tpu", "mps"])
def test_an_absent_device_is_an_error_of_one_line(
    device: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.split(":")[0] in ("cuda", "mps") and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    ran: list[Flags] = []
    assert cli.run(ran.append, Flags, ["--device", device]) == 2
    out, err = capsys.readouterr()
    assert not out and not ran and err.count("\n") == 1
    assert f"--device {device} is none here" in err and "--device cpu" in err
    assert cli.run(ran.append, Flags, ["--device", "cpu"]) == 0 and ran

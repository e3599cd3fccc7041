"""The command line as a whole: its version, its help, and the flags of the scripts before it."""

import ast
import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

import docstring_parser
import pytest
import torch
from conftest import ROOT

from fnlm import __version__, cli, finetune, programs
from fnlm.programs import _training
from fnlm.programs._command import RETIRED
from fnlm.programs._completion import subparsers

# The scripts of pytorch-pretrained-bert 0.6.2: the command, the flags that do what they did, under
# their own names or others, and those that are answered in one line.
SCRIPTS = {
    "run_classifier.py": (
        "glue",
        "data_dir bert_model task_name output_dir cache_dir max_seq_length do_train do_eval "
        "do_lower_case train_batch_size eval_batch_size learning_rate num_train_epochs "
        "warmup_proportion no_cuda seed gradient_accumulation_steps fp16 loss_scale "
        "optimize_on_cpu",
        "local_rank server_ip server_port verbose_logging overwrite_output_dir",
    ),
    "run_squad.py": (
        "squad",
        "bert_model output_dir train_file predict_file max_seq_length doc_stride max_query_length "
        "do_train do_predict train_batch_size predict_batch_size learning_rate num_train_epochs "
        "warmup_proportion n_best_size max_answer_length no_cuda seed gradient_accumulation_steps "
        "do_lower_case fp16 loss_scale optimize_on_cpu version_2_with_negative "
        "null_score_diff_threshold",
        "local_rank server_ip server_port verbose_logging overwrite_output_dir",
    ),
    "run_swag.py": (
        "swag",
        "data_dir bert_model output_dir max_seq_length do_train do_eval do_lower_case "
        "train_batch_size eval_batch_size learning_rate num_train_epochs warmup_proportion no_cuda "
        "seed gradient_accumulation_steps fp16 loss_scale optimize_on_cpu",
        "local_rank server_ip server_port verbose_logging",
    ),
    "extract_features.py": (
        "extract-features",
        "input_file output_file bert_model do_lower_case layers max_seq_length batch_size no_cuda "
        "fp16",
        "local_rank loss_scale optimize_on_cpu",
    ),
    "run_openai_gpt.py": (
        "rocstories",
        "model_name do_train do_eval output_dir train_dataset eval_dataset seed num_train_epochs "
        "train_batch_size eval_batch_size max_grad_norm learning_rate warmup_proportion "
        "lr_schedule weight_decay lm_coef no_cuda fp16 loss_scale optimize_on_cpu",
        "n_valid server_ip server_port local_rank",
    ),
    "run_transfo_xl.py": (
        "wikitext103",
        "model_name split batch_size tgt_len mem_len clamp_len no_cuda work_dir same_length fp16 "
        "loss_scale optimize_on_cpu",
        "ext_len no_log server_ip server_port local_rank",
    ),
    "simple_lm_finetuning.py": (
        "lm",
        "train_corpus bert_model output_dir max_seq_length do_train train_batch_size learning_rate "
        "num_train_epochs warmup_proportion no_cuda do_lower_case seed "
        "gradient_accumulation_steps fp16 loss_scale optimize_on_cpu",
        "on_memory local_rank",
    ),
    "pregenerate_training_data.py": (
        "lm-rows",
        "train_corpus output_dir bert_model do_lower_case epochs_to_generate max_seq_len "
        "short_seq_prob masked_lm_prob max_predictions_per_seq num_workers",
        "reduce_memory no_cuda fp16 loss_scale local_rank",
    ),
    "finetune_on_pregenerated.py": (
        "lm",
        "pregenerated_data output_dir bert_model do_lower_case epochs no_cuda "
        "gradient_accumulation_steps train_batch_size fp16 loss_scale warmup_proportion "
        "learning_rate seed optimize_on_cpu",
        "reduce_memory local_rank",
    ),
    # Of BERT's own code, whose flags `fnlm pretrain-bert` has.
    "run_pretraining.py": (
        "pretrain-bert",
        "bert_config_file output_dir init_checkpoint do_train do_eval train_batch_size "
        "eval_batch_size learning_rate num_train_steps num_warmup_steps save_checkpoints_steps "
        "max_eval_steps no_cuda fp16 loss_scale optimize_on_cpu",
        "local_rank",
    ),
}
# Script and flag -> the field that is set, and to what; others set a field of their name.
RENAMED = {
    "fp16": ("dtype", "float16"),
    "no_cuda": ("device", "cpu"),
    "epochs": ("num_train_epochs", 3.0),
    "max_seq_len": ("max_seq_length", 3),
    "num_workers": ("workers", 3),
}
WORKS = [(script, flag) for script, (_, flags, _) in SCRIPTS.items() for flag in flags.split()]
ANSWERED = [(script, flag) for script, (_, _, flags) in SCRIPTS.items() for flag in flags.split()]
WORDS = {"lr_schedule": "warmup_cosine", "layers": "-2", "split": "all"}  # where not any will do
each_program = pytest.mark.parametrize("command", programs.PROGRAMS)


def run(command: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, Any]:
    """The exit code of a command that does nothing but note its flags; these."""
    program, noted = programs.find(command), list[Any]()
    monkeypatch.setattr(program, "main", noted.append)
    needed = [
        word
        for field in dataclasses.fields(program.Flags)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        for word in (f"--{field.name}", "['x']" if "list" in str(field.type) else "x")
    ]
    return cli.main([command, *needed, *words]), noted[-1] if noted else None


@pytest.mark.parametrize(("script", "flag"), WORKS)
def test_flags_of_the_scripts_work(script: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = SCRIPTS[script][0]
    name, wanted = RENAMED.get(flag, (flag, None))
    types = {f.name: f.type for f in dataclasses.fields(programs.find(command).Flags)}
    is_switch = types[name] is bool or flag in ("fp16", "no_cuda")
    value = WORDS.get(flag, "3")
    code, flags = run(
        command, monkeypatch, *([f"--{flag}"] if is_switch else [f"--{flag}={value}"])
    )
    assert code == 0
    found = getattr(flags, name)
    assert (
        found == wanted if wanted else found is True if is_switch else str(found) in (value, "3.0")
    )
    if not is_switch:
        assert getattr(run(command, monkeypatch, f"--{flag}", value)[1], name) == found


@pytest.mark.parametrize(("script", "flag"), ANSWERED)
@pytest.mark.parametrize("form", ["--{}", "--{}=1"])
def test_other_flags_of_the_scripts_are_answered_in_one_line(
    script: str,
    flag: str,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = SCRIPTS[script][0]
    code, flags = run(command, monkeypatch, form.format(flag))
    assert (code, flags) == (2, None)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"fnlm {command}: there is no --{flag}: {RETIRED[flag]}\n"


def test_every_answer_is_of_use() -> None:
    assert {flag for _, flag in ANSWERED} == RETIRED.keys()


def test_a_renamed_switch_may_stand_before_its_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("glue", monkeypatch, "--fp16", "--dtype", "bfloat16")[1].dtype == "bfloat16"
    assert run("glue", monkeypatch, "--fp16=true", "--no_cuda")[1].dtype == "float16"
    with pytest.raises(SystemExit):
        run("glue", monkeypatch, "--fp16=maybe")


@each_program
def test_all_take_device_and_precision(command: str) -> None:
    names = {field.name for field in dataclasses.fields(programs.find(command).Flags)}
    wanted = {"device", "dtype", "loss_scale", "optimize_on_cpu", "plan"}
    if command == "extract-features":
        wanted -= {"loss_scale", "optimize_on_cpu", "plan"}
    assert wanted <= names if command != "lm-rows" else not wanted & names


def test_flags_that_commands_share_are_declared_once() -> None:
    """Those of `Computation` alone: a program may give another default, and no other type."""
    shared = {field.name: field.type for field in dataclasses.fields(finetune.Computation)}
    for command in programs.PROGRAMS:
        flags = programs.find(command).Flags
        if issubclass(flags, finetune.Computation):
            assert not shared.keys() & flags.__annotations__.keys()
        else:
            assert command in ("extract-features", "lm-rows")


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    _training._check_device("cpu")
    with pytest.raises(ValueError, match="--device cuda:1 is one GPU for 2 processes: give --dev"):
        _training._check_device("cuda:1")
    with pytest.raises(ValueError, match="2 processes on a machine with 1 GPUs: start at most 1"):
        _training._check_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    _training._check_device("cuda")


@each_program
def test_help_explains_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: fnlm {command} ")
    options = re.split(r"\n  (?=-)", text.partition("options:")[2])
    flags = programs.find(command).Flags
    said = {
        entry.arg_name: entry.description or ""
        for owner in flags.__mro__[:-1]
        for entry in docstring_parser.parse(owner.__doc__ or "").params
    }
    for field in dataclasses.fields(flags):
        (option,) = [part for part in options if re.match(rf"--{field.name}\b", part)]
        words = " ".join(said[field.name].split())
        assert len(words) > 8 and words in " ".join(option.split())


def test_help_explains_every_argument_of_the_other_commands() -> None:
    for name, parser in subparsers(cli._parser()).items():
        for action in parser._actions:
            assert action.help, f"{name}: {action.dest}"


def test_the_module_is_the_command_and_knows_its_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"fnlm {__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "fnlm", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fnlm {__version__}\n", "")


def test_help_lists_every_command_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom fnlm.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert not done.code\n"
        "print('loaded:', [name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("loaded: []\n")
    said = " ".join(done.stdout.split())
    for command, description in programs.PROGRAMS.items():
        assert f" {command} {description}" in said


def test_every_program_is_a_command() -> None:
    modules = {path.stem for path in (ROOT / "fnlm" / "programs").glob("[!_]*.py")}
    assert {name.replace("-", "_") for name in programs.PROGRAMS} == modules
    for name in programs.PROGRAMS:
        path = ROOT / "fnlm" / "programs" / f"{name.replace('-', '_')}.py"
        head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert f"    fnlm {name} --" in head, f"{path.name} begins with a line that runs it"


# Completion in shells.


def completed(line: str) -> list[str]:
    """Return what bash offers for the last word of a line."""
    script = "".join(cli.completion("bash"))
    words = line.split(" ")
    quoted = " ".join(map(shlex.quote, words))
    code = (
        f"{script}\nCOMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}\n"
        '_fnlm; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_and_their_flags() -> None:
    assert completed("fnlm gen") == ["generate"]
    assert set(completed("fnlm ")) == {*subparsers(cli._parser())}
    assert completed("fnlm generate --max") == ["--max_new_tokens"]
    assert completed("fnlm glue tiny --task") == ["--task_name"]
    assert completed("fnlm inspect tin") == []  # bash then offers files


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_every_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for flag in (
        "top_k",
        "heads",
        *(f.name for f in dataclasses.fields(programs.find("lm").Flags)),
    ):
        assert re.search(rf"\b{flag}\b", script), flag
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)

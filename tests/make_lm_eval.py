"""Write tests/fixtures/lm_eval.json: what the harness's own model `hf` gives for the bundled model.

    python tests/make_lm_eval.py

It needs lm_eval, accelerate and peft, which the tests do not, and runs a small task of each kind
through the harness, once with `hf` and once with `fnlm.bridges.lm_eval`: the results must agree.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fnlm import pipeline
from fnlm.bridges.lm_eval import harness_model
from fnlm.files.hub import BUNDLED

FIXTURE = Path(__file__).parent / "fixtures" / "lm_eval.json"
LONG = " ".join(["The king went into the forest, and there he met an old man."] * 40)
PAIRS = [
    ["Once upon a time", " there was a king"],
    ["The king said ", "to the queen"],  # the space is of the continuation
    ["", "The old man"],
    [LONG, " and said"],  # cut off on the left
    ["naïve 👍🏽", "\n你好"],
]
TEXTS = ["The king said to the queen.", LONG, "", "<"]
REQUESTS: list[list[Any]] = [
    ["Once upon a time", {"until": ["."], "max_gen_toks": 20}],
    ["The king", {"until": ["\n\n", "much"], "max_gen_toks": 12, "do_sample": False}],
    ["The old man and his wife", {"until": ["\n\n", "much"], "max_gen_toks": 12}],
    [LONG, {"until": ["said"], "max_gen_toks": 12}],
]
CHOICES = [
    {"context": "The king had a beautiful", "choices": ["daughter", "purple engine"], "answer": 0},
    {"context": "Once upon", "choices": ["seven", "a time"], "answer": 1},
    {"context": "The old woman went into the", "choices": ["computer", "forest"], "answer": 1},
    {"context": "He gave her the golden", "choices": ["ring", "of"], "answer": 1},
]
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{context}} {{choices[answer]}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "continue": {
        "output_type": "generate_until", "doc_to_text": "{{context}}",
        "doc_to_target": " {{choices[answer]}}",
        "generation_kwargs": {"until": [".", ","], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


def evaluate(model: Any, folder: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of each task, as the harness computes them with a model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = "".join(json.dumps(row) + "\n" for row in CHOICES)
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    for name, task in TASKS.items():
        whole = {
            "task": f"fnlm_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test",
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(whole), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = [f"fnlm_{name}" for name in TASKS]
    found = lm_eval.simple_evaluate(
        model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    assert found is not None
    return {
        name: {
            key.partition(",")[0]: float(value)
            for key, value in found["results"][f"fnlm_{name}"].items()
            if "," in key and "stderr" not in key
        }
        for name in TASKS
    }


def main() -> None:
    """Write the fixture, and compare."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    def ask(method: Any, rows: list[Any]) -> list[Any]:
        kind = method.__name__
        return method([Instance(kind, {}, tuple(row), i) for i, row in enumerate(rows)])

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(BUNDLED / "tiny", folder / "model")
        peer = HFLM(pretrained=str(folder / "model"), dtype="float64", device="cpu", batch_size=3)
        texts = [text for text in TEXTS if text]  # of an empty one the harness makes no request
        content: dict[str, Any] = {
            "loglikelihood": ask(peer.loglikelihood, PAIRS),
            "loglikelihood_rolling": ask(peer.loglikelihood_rolling, [[text] for text in texts]),
            "generate_until": ask(peer.generate_until, REQUESTS),
            "tasks": evaluate(peer, folder),
        }
        ours = evaluate(harness_model(pipeline.load("tiny", dtype="float64")), folder)
        for name, metrics in content["tasks"].items():
            for metric, value in metrics.items():
                assert abs(ours[name][metric] - value) < 1e-6, (name, metric, ours, content)
                print(f"{name:10} {metric:16} {value:.9f} {ours[name][metric]:.9f}")  # noqa: T201
    FIXTURE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

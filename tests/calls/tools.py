"""Examples of checkpoints, the pipeline and the command line."""

from functools import partial

from calls.common import IDS, Make, on, saved
from fnlm import (
    checkpoints,
    cli,
    families,
    finetune,
    pipeline,
)
from fnlm.bridges import lm_eval

PROGRAM: dict[str, Make] = {
    "main": lambda folder: on(cli.main, ["inspect", str(saved(folder))]),
    "generate": lambda folder: on(
        cli.generate, str(saved(folder)), "low", max_new_tokens=5, seed=4, seen=list
    ),
    "inspect": lambda folder: on(cli.inspect, str(saved(folder)), seen=list),
    "convert": lambda folder: on(cli.convert, str(saved(folder)), str(folder / "b"), seen=list),
    "completion": lambda _: on(cli.completion, "bash", seen=list),
    "progress": lambda _: on(cli.progress, "rows", seen=lambda show: show(2, 2)),
    "run": lambda _: on(cli.run, str, finetune.Recipe, ["--seed", "3"]),
}
CHECKPOINTS: dict[str, Make] = {
    "check_vocabulary": lambda _: on(checkpoints.check_vocabulary, "tiny", 9, 9),
    "inspect": lambda folder: on(checkpoints.inspect, saved(folder), seen=list),
    "convert": lambda folder: on(checkpoints.convert, saved(folder), folder / "b", seen=list),
}
WRITER: dict[str, Make] = {
    "load": lambda folder: on(
        pipeline.load,
        saved(folder),
        seen=lambda made: (made.record.name, made.params, made.begin, made.eos),
    ),
    "Pipeline.family": lambda folder: on(
        vars(pipeline.Pipeline)["family"].fget, pipeline.load(saved(folder))
    ),
    "Pipeline.apply": lambda folder: on(
        pipeline.load(saved(folder)).apply, pipeline.load(saved(folder)).params, IDS
    ),
    "Pipeline.encode": lambda folder: on(pipeline.load(saved(folder)).encode, "low"),
    "Pipeline.decode": lambda folder: on(pipeline.load(saved(folder)).decode, [1, 2, 3], seen=list),
}
BRIDGES: dict[str, Make] = {
    "loglikelihood": lambda folder: on(
        lm_eval.loglikelihood, pipeline.load(saved(folder)), [("low", " lower")]
    ),
    "loglikelihood_rolling": lambda folder: on(
        lm_eval.loglikelihood_rolling, pipeline.load(saved(folder)), ["low lower"]
    ),
    "generate_until": lambda folder: on(
        lm_eval.generate_until, pipeline.load(saved(folder)), [("low", {"max_gen_toks": 2})]
    ),
}
REGISTER: dict[str, Make] = {
    "causal": lambda _: on(families.causal),
    "find": lambda _: on(families.find, "gpt2"),
    **{
        f"Record.{name}": partial(
            lambda _, name: on(vars(families.Record)[name].fget, families.find("bert")), name=name
        )
        for name in ("module", "names", "tokenizer_module")
    },
}

"""Names that trainers leave in checkpoints: model wrappers, optimizer slots, step counters."""

import re
from functools import lru_cache

# Modules that wrap others and leave their names in those of tensors: parallel, compiled, private.
_WRAPPERS = re.compile(
    r"(?<![^./])(module|_module|model|base_model|auto_model|net|network|_orig_mod|_forward_module|"
    r"_fpw_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)[./]"
)
# What is stored beside a model under any scope: slots of TensorFlow's own optimizers, a trainer's
# folders and TensorFlow's bookkeeping. Slots of other optimizers are recognized by the name of
# their weight, in `account`.
TRAINING = re.compile(
    r"(.*/)?(adam_[mv]|Adam(_1)?|Momentum|ExponentialMovingAverage)|save_counter.*"
    r"|(optim|optimizer|scheduler|lr_scheduler|scaler)[./].*|_CHECKPOINTABLE_OBJECT_GRAPH"
)
# Single numbers of a trainer.
COUNTERS = re.compile(
    r"(.*[./])?(global_step|step|iterations?|(beta_?[12]|\w*_power)(_[0-9]+)?|learning_rate|lr|"
    r"\w*loss_scale|\w*(good|bad)_steps)"
)
# What torch's optimizers keep of a weight, as the last part of a name.
STATES = frozenset(
    "exp_avg exp_avg_sq max_exp_avg_sq exp_avg_sq_row exp_avg_sq_col exp_inf momentum_buffer "
    "square_avg grad_avg acc_delta sum prev step_size ax mu eta next_m next_v".split()
)


@lru_cache(2**16)
def without_wrappers(name: str) -> str:
    """Return the name of a tensor, or a prefix of names, without the modules that wrap others.

    >>> without_wrappers("module.model.decoder.embed_tokens.weight")
    'decoder.embed_tokens.weight'
    """
    return _WRAPPERS.sub("", name)

"""Parameter trees: abstract description, configs, names in other libraries, load and save.

What a family is written with is at hand here: `from fnlm.params import BaseConfig, Spec, io`.
"""

from fnlm.params import io
from fnlm.params._check import check_config, config_of, register_functions
from fnlm.params.config import (
    BaseConfig,
    Count,
    LabelledConfig,
    Rate,
    Scale,
    Size,
    multiple_of,
    one_of,
)
from fnlm.params.spec import Spec, heads_among, initialize, linear_spec, norm_spec

__all__ = [
    "BaseConfig", "Count", "LabelledConfig", "Rate", "Scale", "Size", "Spec", "check_config",
    "config_of", "heads_among", "initialize", "io", "linear_spec", "multiple_of", "norm_spec",
    "one_of", "register_functions",
]  # fmt: skip

"""Parameter trees: abstract description, configs, names in other libraries, load and save."""

from fnlm.params import io
from fnlm.params._check import check_config, config_of, register_functions

__all__ = ["check_config", "config_of", "io", "register_functions"]

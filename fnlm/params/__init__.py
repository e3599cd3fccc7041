"""Parameter trees: abstract description, configs, names in other libraries, load and save."""

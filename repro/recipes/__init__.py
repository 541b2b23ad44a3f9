"""One TOML file per experiment; `repro.training.recipe` says what the keys mean."""

"""The checker of annotated arrays, named by `--jaxtyping-packages` in pyproject.toml."""

from beartype import BeartypeConf, beartype

# As in PEP 484 an int is a valid float: configs hold both.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))

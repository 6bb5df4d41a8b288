"""The command line: flags only; the config's `stage` names the module that does the work.

Exit status: 0 done; 1 a fault of the program (with a traceback), or a run that cannot go on (one
line: the loss is no number, the disk is full); 2 a mistake of the user (one line); 3 done, but some
pages could not be used and were skipped; 4 another process of the same run has failed; 143 or 130
stopped by SIGTERM or SIGINT, with the state saved.
"""

import difflib
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from saghog_jax.input_pipeline.console import show_messages
from saghog_jax.input_pipeline.errors import RunError, StoppedError, UserError
from saghog_jax.next_command import next_command
from saghog_jax.runs.stage_result import StageResult
from saghog_jax.stages import STAGES, run_stage

SKIPPED_PAGES = 3

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file, such as configs/pretrain.py or configs/pretrain.py:paper."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder the stage writes to; by default runs/STAGE."
)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the command line; whatever is wrong with it becomes one line and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None:
            raise UserError(f"--config is missing; one of {', '.join(_known_configs())}")
        _CONFIG.value.is_locked  # noqa: B018  a config file that failed to load raises here
    except Exception as error:
        _exit_with(_explain(error))
    if rest[1:]:
        _exit_with(f"unexpected argument {rest[1]!r}; fields are set as --config.FIELD=VALUE")
    return rest


def _known_configs() -> list[str]:
    return [f"configs/{stage}.py" for stage in STAGES]


def _explain(error: Exception) -> str:
    if isinstance(error, AttributeError | KeyError):
        return _unknown_field() or str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A config file that raises reaches us as its formatted traceback: its last line says why.
    reasons = [line for line in lines if line.startswith(("ValueError:", "[Errno"))]
    return (reasons or lines or [type(error).__name__])[-1].removeprefix("ValueError: ")


def _unknown_field() -> str:
    """Names the first `--config.FIELD` on the command line that the config does not have."""
    given = next((w.split("=", 1)[1] for w in sys.argv if w.startswith("--config=")), "")
    path, _, arg = given.partition(":")
    namespace = runpy.run_path(path)
    known = _fields(namespace["get_config"](arg or None))
    for word in sys.argv:
        field = word.removeprefix("--config.").split("=", 1)[0]
        if word.startswith("--config.") and field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.0)
            return f"unknown config field: {field}; did you mean {near[0]}?"
    return ""


def _fields(config: ConfigDict, prefix: str = "") -> list[str]:
    """Names of all fields, such as `data.pages`."""
    names = []
    for key, value in config.items():
        names.append(prefix + key)
        if isinstance(value, ConfigDict):
            names += _fields(value, f"{prefix}{key}.")
    return names


def _exit_with(message: str, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def execute(config: ConfigDict, work: Callable[[], StageResult]) -> StageResult:
    """Joins other processes where the config says so, then works; ends the process on errors."""
    together = "distributed" in config and config.distributed.mode != "off"
    if together:
        # Not above: jax reads its environment, which `run_main` sets, as it is imported.
        from saghog_jax.devices import distributed
    try:
        if together:
            distributed.initialize(config.distributed)
        return work()
    except StoppedError as stopped:
        print(stopped, flush=True)
        sys.exit(128 + stopped.signal)
    except Exception as error:
        status = 2 if isinstance(error, UserError) else 1
        if together:
            distributed.fail(error, status)
        if not isinstance(error, UserError | RunError):
            raise
        _exit_with(str(error), status)


def main(argv: Sequence[str]) -> None:
    """Runs the stage of the parsed config in the parsed work directory."""
    del argv
    show_messages()
    if not flags.FLAGS["verbosity"].present:
        # Libraries tell every step of a save at lower levels, and what went wrong with a traceback;
        # what a run tells is printed.
        logging.set_verbosity(logging.FATAL)
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.stage}")
    result = execute(config, lambda: run_stage(config, workdir))
    if _is_main_process(config):
        for following in result.following:
            print(f"next: {next_command(following, result.workdir, _variant())}")
    if result.skipped:
        print(f"done, but {len(result.skipped)} pages were skipped (exit status {SKIPPED_PAGES})")
        sys.exit(SKIPPED_PAGES)


def _is_main_process(config: ConfigDict) -> bool:
    if "distributed" not in config or config.distributed.mode == "off":
        return True
    from saghog_jax.devices import distributed

    return distributed.is_main()


def _variant() -> str:
    """The variant of the config on the command line."""
    argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]
    return next((word for word in argument.split(",") if word and "=" not in word), "")


def use_huge_pages() -> None:
    """Starts this process again with huge pages, if it does not have them yet.

    A training step on a CPU takes and frees a gigabyte: with huge pages that costs a third less
    processor time. The C library reads this only as it starts.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def run_main() -> None:
    """Entry point; what must be set before jax, or the process itself, starts is set here."""
    use_huge_pages()
    # A second start of the same program then finds its compiled steps.
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "saghog_jax" / "jit"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run_main()

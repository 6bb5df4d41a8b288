"""The command line: flags only; the config's `stage` names the module that runs.

Exit status: 0: done. 1: a fault of the program (with a traceback), or a run that cannot continue
(one line: the loss is NaN, the disk is full). 2: a mistake of the user (one line). 3: done, but
unusable pages were skipped. 4: another process of the same run has failed. 143 or 130: stopped by
SIGTERM or SIGINT, with the state saved.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from saghog_jax import restart
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
    """Parses the command line. A mistake ends the process with one line and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None:
            known = ", ".join(f"configs/{stage}.py" for stage in STAGES)
            raise UserError(f"--config is missing; one of {known}")
        _CONFIG.value.is_locked  # noqa: B018  raises the error of a config file that failed to load
    except Exception as error:
        _exit_with(_explain(error))
    if rest[1:]:
        _exit_with(f"unexpected argument {rest[1]!r}; fields are set as --config.FIELD=VALUE")
    return rest


def _explain(error: Exception) -> str:
    """One line on what is wrong with the command line."""
    if isinstance(error, AttributeError | KeyError):
        return _unknown_field(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The error of a config file arrives as a formatted traceback, whose last line is the reason.
    reasons = [line for line in lines if line.startswith(("ValueError:", "[Errno"))]
    return (reasons or lines or [type(error).__name__])[-1].removeprefix("ValueError: ")


def _unknown_field(error: Exception) -> str:
    """ml_collections' message: the name and, if there is a similar one, `Did you mean ...?`."""
    while isinstance(error.args[0], Exception):
        error = error.args[0]
    text = ". ".join(error.args[0].splitlines())
    hint = "" if "Did you mean" in text else "; docs/config.md lists all fields"
    return f"unknown config field {text}{hint}"


def _exit_with(message: str, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def execute(config: ConfigDict, work: Callable[[], StageResult]) -> StageResult:
    """Joins the other processes if the config has several, then works.

    Errors end the process; see the module's docstring for the exit status.
    """
    together = "distributed" in config and config.distributed.mode != "off"
    if together:
        # Imported late: jax reads its environment, which `run_main` sets, when it is imported.
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
    config = _CONFIG.value
    if config.stage in restart.STAGES:
        restart.use_huge_pages()
    show_messages()
    if not flags.FLAGS["verbosity"].present:
        # Lower levels hold every step of a checkpoint and tracebacks of errors that are explained.
        logging.set_verbosity(logging.FATAL)
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


def run_main() -> None:
    """Entry point; sets the environment that jax reads when it is imported."""
    # Compiled steps are kept for the next start of the same program.
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "saghog_jax" / "jit"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run_main()

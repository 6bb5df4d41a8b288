"""The command line: flags only; the config's `stage` names the module that runs.

Exit status: 0: done. 1: a fault of the program (with a traceback), or a run that cannot continue
(one line: the loss is NaN, the disk is full). 2: a mistake of the user (one line). 3: done, but
unusable pages were skipped. 4: another process of the same run has failed. 143 or 130: stopped by
SIGTERM or SIGINT, with the state saved.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from saghog_jax import restart
from saghog_jax.config_help import FOLDER, describe_fields, missing_config, stages_with
from saghog_jax.input_pipeline.console import say, show_messages
from saghog_jax.input_pipeline.errors import RunError, StoppedError, UserError
from saghog_jax.input_pipeline.files import user_path
from saghog_jax.input_pipeline.nested import flat
from saghog_jax.next_command import next_command
from saghog_jax.runs.stage_result import StageResult
from saghog_jax.stages import STAGES, run_stage

SKIPPED_PAGES = 3
_HELP = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file, such as configs/pretrain.py or configs/pretrain.py:paper."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder the stage writes to; by default runs/STAGE."
)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the command line. A mistake ends the process with one line and exit status 2."""
    argv = [_installed(word) for word in argv]
    asked = [word for word in argv if word in _HELP]
    try:
        rest = _read(argv)
        if asked:
            _show_help(argv)
            sys.exit(0)
        if _CONFIG.value is None:
            known = ", ".join(f"configs/{stage}.py" for stage in STAGES)
            raise UserError(f"--config is missing; one of {known}")
        _CONFIG.value.is_locked  # noqa: B018  raises the error of a config file that failed to load
    except Exception as error:
        _exit_with(_explain(error, argv))
    if rest[1:]:
        _exit_with(f"unexpected argument {rest[1]!r}; fields are set as --config.FIELD=VALUE")
    return rest


def _installed(word: str) -> str:
    """`--config=configs/STAGE.py` with the file of the installation, where there is no such file.

    So a stage is started from any folder.
    """
    name, _, value = word.partition("=")
    path, colon, argument = value.partition(":")
    if name != "--config" or Path(path).exists() or Path(path).parent != Path("configs"):
        return word
    installed = FOLDER / Path(path).name
    return f"{name}={installed}{colon}{argument}" if installed.is_file() else word


def _read(argv: Sequence[str]) -> list[str]:
    """Sets the flags, without those that ask for help; returns the other words."""
    with warnings.catch_warnings():
        # ml_collections loads config files by a deprecated method.
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        try:
            return flags.FLAGS([word for word in argv if word not in _HELP])
        except SystemExit:
            # The longer forms of help, with exit status 1.
            sys.exit(0)


def _show_help(argv: Sequence[str]) -> None:
    """Shows the flags and, where a config is given, its fields with their comments."""
    lines = [__doc__.strip(), "", "flags:", ""]
    for flag in (_CONFIG, _WORKDIR):
        lines.append(f"  --{flag.name}: {flags.FLAGS[flag.name].help}")
    lines.append("  --verbosity: 1 also shows the numbers of every logged step of a training.")
    path = _config_path(argv)
    if not path:
        lines += ["", "configs (--help with one of them shows its fields):", ""]
        lines += [f"  --config=configs/{stage}.py" for stage in STAGES]
    else:
        lines += ["", f"fields of {path}:", "", *describe_fields(_CONFIG.value, Path(path))]
    for line in lines:
        say(line)


def _config_path(argv: Sequence[str]) -> str:
    """The file of the config on the command line; empty where there is none."""
    words = " ".join(argv).replace("--config ", "--config=").split(" ")
    found = [word for word in words if word.startswith("--config=")]
    return found[-1].partition("=")[2].partition(":")[0] if found else ""


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """One line on what is wrong with the command line."""
    if isinstance(error, AttributeError | KeyError):
        return _unknown_field(error, argv)
    path = _config_path(argv)
    if path and not Path(path).exists():
        return missing_config(path)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The error of a config file arrives as a formatted traceback, whose last line is the reason.
    reasons = [line for line in lines if line.startswith(("ValueError:", "[Errno"))]
    return (reasons or lines or [type(error).__name__])[-1].removeprefix("ValueError: ")


def _unknown_field(error: Exception, argv: Sequence[str]) -> str:
    """ml_collections' message: the name and, if there is a similar one, `Did you mean ...?`.

    A field that other stages have is named with them.
    """
    while isinstance(error.args[0], Exception):
        error = error.args[0]
    text = ". ".join(error.args[0].splitlines())
    hint = "" if "Did you mean" in text else "; docs/config.md lists all fields"
    for word in argv:
        field = word.partition("=")[0].removeprefix("--config.")
        if not word.startswith("--config.") or text.strip("'") not in field.split("."):
            continue
        others = stages_with(field)
        own = Path(_config_path(argv)).stem
        if own in others and field.startswith("regions."):
            # A section that the argument of the config adds.
            argument = ":regions=" + field.split(".")[1]
            return f"unknown config field {field!r}; give --config={_config_path(argv)}{argument}"
        if others:
            named = ", ".join(f"configs/{stage}.py" for stage in others)
            have = "have" if len(others) > 1 else "has"
            return f"unknown config field {field!r} of {_config_path(argv)}; {named} {have} it"
    return f"unknown config field {text}{hint}"


def _exit_with(message: str, status: int = 2) -> NoReturn:
    # Nobody may read the output any longer.
    with contextlib.suppress(BrokenPipeError):
        print(f"error: {message}", file=sys.stderr, flush=True)
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
        say(str(stopped))
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
    show_messages(details=flags.FLAGS.verbosity >= 1)
    if not flags.FLAGS["verbosity"].present:
        # Lower levels hold every step of a checkpoint and tracebacks of errors that are explained.
        logging.set_verbosity(logging.FATAL)
    result = execute(config, lambda: _run_stage(_at_home(config), _workdir(config)))
    if _is_main_process(config):
        for following in result.following:
            say(f"next: {next_command(following, result.workdir, _variant())}")
    if result.skipped:
        say(f"done, but {len(result.skipped)} pages were skipped (exit status {SKIPPED_PAGES})")
        sys.exit(SKIPPED_PAGES)


def _run_stage(config: ConfigDict, workdir: Path) -> StageResult:
    if "cpu_devices" in config:
        # Imported late, as in `execute`; jax has not looked for devices yet.
        from saghog_jax.devices import cores

        cores.divide(config, workdir)
    return run_stage(config, workdir)


def _workdir(config: ConfigDict) -> Path:
    if _WORKDIR.value is None and config.stage == "scans":
        # Beside the folder of the pages, or beside the file that names them.
        source = user_path(config.data.pages).resolve()
        name = source.name if source.is_dir() else source.stem
        return source.with_name(f"{name}-saghog")
    return user_path(_WORKDIR.value or f"runs/{config.stage}")


def _at_home(config: ConfigDict) -> ConfigDict:
    """The config with home folders in place of `~` at the start of a path.

    A shell leaves `~` in `--config.FIELD=~/FOLDER` as it is.

    Raises:
      UserError: a home folder is not known.
    """
    fields = flat(config.to_dict())
    paths = {
        name: str(user_path(value))
        for name, value in fields.items()
        if isinstance(value, str) and value.startswith("~") and not name.endswith("_regex")
    }
    config.update_from_flattened_dict(paths)
    return config


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
    cache = _cache_folder()
    if cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "saghog_jax" / "jit"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    app.run(main, flags_parser=_parse)


def _cache_folder() -> Path | None:
    """The user's folder of caches; None for a user without a home folder, as in containers."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".cache" if os.access(home, os.W_OK) else None


if __name__ == "__main__":
    run_main()

"""The launchers: linted, their manifests valid, their commands understood, the local one run."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml
from places import ROOT
from store_helpers import write_pages
from test_configs import parse_command
from toy import SIZES, fields

from saghog_jax.configs import pretrain

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(
    path for path in [*LAUNCH.iterdir(), ROOT / ".ci" / "run"] if path.read_text().startswith("#!")
)
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}


def exact(required: dict, optional: dict | None = None) -> dict:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def listed(item: dict) -> dict:
    return {"type": "array", "items": item, "minItems": 1}


# Of jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1: the fields that jobset.yaml uses.
CONTAINER = exact(
    {"name": NAME, "image": {"type": "string"}, "args": listed({"type": "string"})},
    {
        "env": listed(exact({
            "name": {"type": "string", "pattern": "^[A-Z_]+$"},
            "valueFrom": exact({"fieldRef": exact({"fieldPath": {"type": "string"}})}),
        })),
        "ports": listed(exact({"containerPort": {"type": "integer", "maximum": 65535}})),
        "resources": exact({"limits": {
            "type": "object", "additionalProperties": {"type": ["integer", "string"]}
        }}),
        "volumeMounts": listed(exact({
            "name": NAME, "mountPath": {"type": "string", "pattern": "^/"}
        })),
    },
)  # fmt: skip
POD = exact(
    {"containers": listed(CONTAINER), "restartPolicy": {"enum": ["Never", "OnFailure"]}},
    {
        "terminationGracePeriodSeconds": {"type": "integer", "minimum": 0},
        "volumes": listed(exact({
            "name": NAME, "persistentVolumeClaim": exact({"claimName": NAME})
        })),
    },
)  # fmt: skip
COUNT = {"type": "integer", "minimum": 1}
JOB = exact(
    {"template": exact({"spec": POD})},
    {
        "completionMode": {"enum": ["Indexed", "NonIndexed"]},
        "parallelism": COUNT,
        "completions": COUNT,
        "backoffLimit": {"type": "integer", "minimum": 0},
    },
)
JOBSET = exact({
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
    "kind": {"const": "JobSet"},
    "metadata": exact({"name": NAME}),
    "spec": exact(
        {"replicatedJobs": listed(
            exact({"name": NAME, "template": exact({"spec": JOB})}, {"replicas": COUNT})
        )},
        {"failurePolicy": exact({"maxRestarts": {"type": "integer", "minimum": 0}})},
    ),
})  # fmt: skip


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_are_linted():
    assert {"install", "local", "quickstart", "slurm", "test", "tpu_vm", "run"} == {
        path.name for path in SCRIPTS
    }
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_jobset_is_valid_and_its_parts_agree():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    jsonschema.validate(jobset, JOBSET)
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    args = [arg.replace("$(JOB_COMPLETION_INDEX)", "1") for arg in container["args"]]
    distributed = parse_command(args).distributed
    assert distributed.mode == "explicit"
    assert distributed.num_processes == job["completions"] == job["parallelism"]
    # The pod of index 0, by the name that JobSet gives it in its own domain.
    name = jobset["metadata"]["name"]
    port = container["ports"][0]["containerPort"]
    assert distributed.coordinator == f"{name}-{workers['name']}-0-0.{name}:{port}"
    assert "$(JOB_COMPLETION_INDEX)" in container["args"][-1]


def test_the_schema_refuses_what_is_wrong():
    text = (LAUNCH / "jobset.yaml").read_text()
    for good, bad in [
        ("replicatedJobs", "replicateJobs"),
        ("parallelism: 2", "parallelism: two"),
        ("containerPort: 8476", "containerPort: 847600"),
        ("completions: 2", "completion: 2"),
    ]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(text.replace(good, bad)), JOBSET)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_commands_in_the_comments_are_understood(path):
    for line in re.findall(r"(--config=configs/.*)", path.read_text()):
        if "$stage" not in line:
            parse_command(shlex.split(line))


def test_the_image_runs_the_command_line():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines if line and line[0] != "#"} == known
    (command,) = [line for line in lines if line.startswith("CMD")]
    assert parse_command(yaml.safe_load(command.removeprefix("CMD "))).stage == "pretrain"
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


@pytest.fixture
def words(tmp_path):
    """The words of a command that pretrains a toy on pages of its own."""
    known = fields(pretrain.get_config())
    sizes = {name: value for name, value in SIZES.items() if name in known}
    sizes |= {"data.pages": write_pages(tmp_path / "pages", 4), "data.split": "",
              "store.root": tmp_path / "stores"}  # fmt: skip
    return [
        "--config=configs/pretrain.py",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{name}={value}" for name, value in sizes.items()),
    ]


def local(number, *words, **kwargs):
    return subprocess.Popen(
        ["bash", LAUNCH / "local", str(number), *words],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs,
    )  # fmt: skip


def test_local_gives_back_the_status_of_its_processes(words):
    run = local(2, *words, "--config.optim.nonsense=1")
    out = run.communicate()[0]
    assert run.returncode == 2
    assert out.count("unknown config field 'nonsense'") == 2


@pytest.mark.slow
def test_local_runs_processes_as_one_and_passes_signals_on(words, tmp_path):
    run = local(2, *words)
    out = run.communicate()[0]
    assert run.returncode == 0, out
    for number in range(2):
        assert f"process {number} of 2, 1 of 2 devices" in out
    assert out.count("step 4/4") == 1
    run = local(2, *words, "--config.total_steps=100000", f"--workdir={tmp_path / 'long'}")
    metrics = tmp_path / "long" / "metrics.jsonl"
    while not metrics.exists():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert any((tmp_path / "long" / "checkpoints").iterdir())

"""The part of the processors that control groups leave to this process, as in containers."""

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cpu_quota(groups: Path = _GROUPS, mount: Path = _MOUNT) -> float | None:
    """The smallest quota of this process's control group and of the groups above it, in cores.

    Args:
      groups: lists the control groups of this process, as proc(5) says.
      mount: folder of the control groups. Version 2 has the file cpu.max in each group, version 1
        the files cpu.cfs_quota_us and cpu.cfs_period_us below the folder of its controller `cpu`.

    Returns:
      None where there is no quota.
    """
    quotas = [quota for folder in _folders(groups, mount) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _folders(groups: Path, mount: Path) -> Iterator[Path]:
    """Folders of the groups that limit processors, each from the group up to the mount.

    Inside a container the path of a group may be that of the host; then the mount itself is the
    container's group.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            roots = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [mount / controllers, mount / "cpu"]
        else:
            continue
        inner = os.path.normpath(f"/{path}").strip("/")
        for root in roots:
            yield from ((root / inner), *(root / above for above in Path(inner).parents))


def _quota(folder: Path) -> float | None:
    """The quota of one group in cores; None where it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        # `max` (version 2) and -1 (version 1): no quota.
        cores = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None

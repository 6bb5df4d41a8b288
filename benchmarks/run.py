"""Runs benchmarks by name, keeps their figures, and rewrites the table and the costs.

    python -m benchmarks.run loader extraction      # these
    python -m benchmarks.run all                    # all of them: hours
    python -m benchmarks.run                        # none: only the tables, from what is kept

Each runs in a process of its own. Those marked `torch` need the extra `[bench]`.
"""

import argparse
import os
import subprocess
import sys

from benchmarks import costs
from benchmarks.catalogue import BENCHMARKS, NEEDS_TORCH
from benchmarks.tables import README, RESULTS, render


def main() -> None:
    """Runs what the command line names; the exit status is the number of failures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"all, or any of {', '.join(BENCHMARKS)}")  # fmt: skip
    names = parser.parse_args().names
    failed = 0
    for name in BENCHMARKS if "all" in names else names:
        note = " (needs torch and timm)" if name in NEEDS_TORCH else ""
        print(f"--- {name}{note}: python -m {BENCHMARKS[name]}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", *BENCHMARKS[name].split()],
            env={**os.environ, "BENCHMARK_FOLDER": str(RESULTS)},
            check=False,
        )
        failed += done.returncode != 0
    README.write_text(render())
    costs.write(costs.section())
    print(f"written: {README}, {costs.PAGE}")
    sys.exit(failed)


if __name__ == "__main__":
    main()

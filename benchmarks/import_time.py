"""What ``import bayesmlp`` costs beside ``import numpy``, in fresh processes that take turns, and what it loads."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs the code."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    numpy_times, own_times = [], []
    for _ in range(15):
        numpy_times.append(seconds("import numpy"))
        own_times.append(seconds("import numpy, bayesmlp"))
    numpy_median, own_median = statistics.median(numpy_times), statistics.median(own_times)
    more = own_median - numpy_median
    print(f"import numpy: {numpy_median:.3f} s; with bayesmlp: {own_median:.3f} s; more: {more:.3f} s")
    code = "import bayesmlp, sys; print('frameworks loaded:', [m for m in ('torch', 'jax') if m in sys.modules])"
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()

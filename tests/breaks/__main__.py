r"""Applies the breaks one by one to a copy of the repository, and reports which the tests see.

python -m tests.breaks                 # all of them
python -m tests.breaks reset           # those whose names contain a word

A break is seen if one of the tests that its patch names fails. The same tests pass on the copy
without a break, which is checked first. Exit status 1 if a break is not seen.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tests.breaks import ROOT, Break, find_breaks

_FAILED = 1  # pytest's status where tests ran and some failed


def copy_repository(to: pathlib.Path) -> None:
    """Copies the files that git knows, as they are in the work tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run_tests(copy: pathlib.Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit status on tests of the copy, and what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("JAX_PLATFORMS", "cpu")
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def is_seen(copy: pathlib.Path, one: Break) -> bool:
    """Whether a test fails on the copy with a break, which is undone afterwards."""
    apply = ["git", "apply", "--unidiff-zero", str(one.patch)]
    subprocess.run(apply, cwd=copy, check=True)
    try:
        return run_tests(copy, one.tests)[0] == _FAILED
    finally:
        subprocess.run([*apply, "--reverse"], cwd=copy, check=True)


def main(words: list[str]) -> int:
    """Runs the breaks and prints a line for each; returns the exit status."""
    chosen = [one for one in find_breaks() if not words or any(w in one.name for w in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        copy_repository(copy)
        tests = tuple(dict.fromkeys(test for one in chosen for test in one.tests))
        print(f"running {len(tests)} tests on the unchanged copy, which must pass", flush=True)
        status, printed = run_tests(copy, tests)
        if status:
            print(printed)
            return status
        missed = []
        for one in chosen:
            began = time.monotonic()
            seen = is_seen(copy, one)
            missed += [] if seen else [one.name]
            took = time.monotonic() - began
            print(f"{'seen' if seen else 'MISSED':<7} {one.name:<44} {took:5.0f} s", flush=True)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} breaks seen")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

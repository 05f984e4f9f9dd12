"""The scripts in launch/, with stand-ins for the commands of Slurm, Python and containers."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from commands import ROOT

LAUNCH = ROOT / "launch"

# Notes its words and some variables, then leaves with the code that EXIT_<name> holds. Whether
# Python has the packages is asked often, and not noted.
STUB = r"""#!/usr/bin/env bash
name=${0##*/}
if [[ $name == python && ${2:-} == 'import sys, xec_jax, '* ]]; then exit "${EXIT_import:-0}"; fi
{ printf '%s\037' "$name" "$@"; printf '\n'; } >>"$RECORD"
env >"$RECORD.$name"
code=EXIT_$name
exit "${!code:-0}"
"""
# Passes on what follows its options, in its own place: signals arrive as a step's would.
SRUN = STUB.replace(
    "code=EXIT_$name",
    'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
)
# Works until it is told to stop, as a training; srun's answer to TERM would be a kill.
PATIENT = r"""#!/usr/bin/env bash
trap 'sleep 0.2; exit 75' USR1
trap 'exit 137' TERM
touch "$RECORD.started"
while :; do sleep 0.02; done
"""
KEPT = ("PATH", "HOME", "LANG")
"""All that a script sees of the machine of the tests; the rest is set by the test."""


class Cluster:
    """A copy of the scripts, and a folder of stand-ins in front of the real commands."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.record = folder / "my repo", folder / "bin", folder / "record"
        shutil.copytree(LAUNCH, self.root / "launch")
        self.bin.mkdir()
        self.record.touch()
        for name in ("sbatch", "scontrol", "python", "apptainer"):
            self.add(name, STUB)
        self.add("srun", SRUN)
        (folder / "env" / "bin").mkdir(parents=True)
        (folder / "env" / "bin" / "activate").touch()
        self.environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.environment |= {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "XEC_ENV": str(folder / "env"),
        }

    def add(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, script, *arguments, cwd=None, **variables):
        return subprocess.Popen(
            ["bash", self.root / "launch" / script, *arguments],
            env={**self.environment, **variables},
            cwd=cwd or self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script, *arguments, **variables):
        process = self.start(script, *arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self, name):
        lines = self.record.read_text().splitlines()
        words = [line.split("\037")[:-1] for line in lines]
        return [call[1:] for call in words if call[0] == name]

    def seen_by(self, name):
        lines = Path(f"{self.record}.{name}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


def wait_for(path):
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)

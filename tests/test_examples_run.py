"""The programs in examples/ do what they say."""

import re
import subprocess
import sys
from pathlib import Path


def test_a_worker_computes_the_trainers_logits_for_every_version(repository: Path) -> None:
    program = str(repository / "examples" / "rl_weights.py")
    command = [sys.executable, program, "--versions", "4", "--steps", "10"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "4 of 4 versions with equal logits" in told.stdout
    shares = re.findall(r"\( *([0-9.]+)%, delta\)", told.stdout)
    assert len(shares) == 3 and all(float(share) < 10 for share in shares)

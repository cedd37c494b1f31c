"""`machine.compile=true` trains as the eager network does, up to rounding."""

import os
import shutil
from pathlib import Path

import pytest
from home import QUICK, cli

from dsa_sandbox import children
from dsa_sandbox.runs.folder import Run

COMPILER = os.environ.get("CXX", "g++")


@pytest.mark.skipif(
    not shutil.which(COMPILER), reason=f"torch.compile needs {COMPILER}, a compiler"
)
def test_a_compiled_step_of_pretraining_equals_an_eager_one(
    quick_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of `dense`, whose 22 kernels take half a minute; each phase of dsa takes more."""
    arguments = ["pretrain", "--arch", "dense", *QUICK, "--set", "train.steps=1"]
    arguments += ["--home", str(quick_home)]
    eager = Run(cli(*arguments).run)
    kernels = tmp_path / "kernels"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kernels))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes to start
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    child = children.start([*arguments, "--force", "--set", "machine.compile=true"], threads=1)
    out, err = child.communicate()
    assert child.returncode == 0, err.decode()
    assert list(kernels.rglob("*.so")), "nothing was compiled"
    compiled = Run(children.path_of(out))
    assert compiled.path != eager.path
    (before,), (after,) = (run.rows("metrics.jsonl") for run in (eager, compiled))
    for name in ("loss", "grad_norm", "valid_nll"):
        assert after[name] == pytest.approx(before[name], rel=1e-4), name

"""Do dense and dsa end pre-training at equal held-out NLL, at equal tokens?

    python benchmarks/equal_quality.py --seeds 1 2 3 [--home runs/equal] [--set ...]

Pre-trains both networks for each seed, two processes side by side, and prints the difference.
"""

import argparse
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

from dsa_sandbox import children


def pretrain(arch: str, seed: int, options: argparse.Namespace) -> dict[str, object]:
    """The figures of one base."""
    arguments = ["pretrain", "--json", "--quiet", "--arch", arch, "--seed", str(seed)]
    arguments += ["--home", options.home, "--preset", options.preset]
    for text in options.set:
        arguments += ["--set", text]
    command, environment = children.command(arguments), children.environment()
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return dict(json.loads(result.stdout))


def main() -> None:
    """Print a row per seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--home", default="runs/equal")
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    print("seed  dense    dsa      dsa-dense  gate dense (right, bleed)  gate dsa", flush=True)
    for seed in options.seeds:
        with ThreadPoolExecutor(2) as pool:
            cells = [pool.submit(pretrain, arch, seed, options) for arch in ("dense", "dsa")]
            dense, dsa = (cell.result() for cell in cells)
        nll = [base["valid"]["nll"] for base in (dense, dsa)]  # type: ignore[index]
        gates = [
            "{right:.2f} {bleed:.2f}".format(**base["gate"])  # type: ignore[arg-type]
            for base in (dense, dsa)
        ]
        print(
            f"{seed:<6}{nll[0]:<9.4f}{nll[1]:<9.4f}{nll[1] - nll[0]:<+11.4f}"
            f"{gates[0]:<27}{gates[1]}",
            flush=True,
        )


if __name__ == "__main__":
    main()

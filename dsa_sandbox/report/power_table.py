"""The table of `power`: shares of simulated studies by verdict, and the seeds that decide."""

from typing import Any

from dsa_sandbox.report.wrapping import folded, plain, rendered


def text(result: dict[str, Any], width: int) -> str:
    """What was simulated, a row for each number of seeds and true effect, and the least number."""
    drawn = plain(2)
    for name in ("seeds", "true effect", "supported", "refuted", "undecided"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        shares = [f"{row[key]:.3f}" for key in ("supported", "refuted", "undecided")]
        drawn.add_row(str(row["seeds"]), f"{row['effect']:+.3f}", *shares)
    outcomes = " and ".join(result["outcomes"])
    about = (
        f"{result['claim']}: shares of {result['studies']:,} simulated studies by verdict. "
        f"Contrasts of {outcomes} with SD {result['sd']:g}, correlation "
        f"{result['correlation']:g}, skewness {result['skew']:g}; smallest effect "
        f"{result['smallest']:g}."
    )
    least = result["least_seeds"]
    end = (
        f"{least} seeds refute a true 0 with power {result['goal']:g}."
        if least
        else f"More than {result['most_seeds']} seeds are needed to refute a true 0."
    )
    return f"{folded(about, width)}\n\n{rendered(drawn, width)}\n\n{folded(end, width)}"

"""The study that `report` shows, the verdicts that `--require` asks for, and saved reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from dsa_sandbox.errors import UserError, VerdictDiffers, reason
from dsa_sandbox.registry import nearest
from dsa_sandbox.report import pictures, study_report
from dsa_sandbox.report.panels import Panel
from dsa_sandbox.report.study_report import Study
from dsa_sandbox.runs.files import write_atomic
from dsa_sandbox.study import folder, records
from dsa_sandbox.study.blocks import blocks_of
from dsa_sandbox.verdict.claim import Word
from dsa_sandbox.verdict.judge import judge

PAGE = ".md"


class Required(NamedTuple):
    """A verdict that a claim has to have."""

    claim: str
    verdict: str


def requirements(texts: Sequence[str]) -> list[Required]:
    """The verdicts that --require names; UserError for one that is no verdict."""
    found, words = [], list(get_args(Word))
    for text in texts:
        claim, _, verdict = text.partition("=")
        if verdict not in words:
            hint = nearest(verdict, words)
            raise UserError(
                f"--require {text}: no such verdict{hint}  (write CLAIM=VERDICT, with one of: "
                f"{', '.join(words)})"
            )
        found.append(Required(claim, verdict))
    return found


def study_of(home: Path, name: str | None) -> Study:
    """The study of that name or folder, judged; by default the one of the home that ran last."""
    if name is None:
        states = (home / folder.STUDIES).glob(f"*/{folder.STATE}")
        newest = max(states, key=lambda file: file.stat().st_mtime_ns, default=None)
        if newest is None:
            raise UserError(f"{home}: no study; begin one with: dsa-sandbox run demo")
        name = str(newest.parent)
    found = folder.found(home, name)
    state = found.state
    about = {**state["content"], "level": state["level"], "hash": state["hash"]}
    return Study(
        name=state["name"],
        about=about,
        judgement=judge(blocks_of(found.path), found.terms),
        records=list(records.all_in(found.path)),
        failures=found.failures,
        deviations=state["deviations"],
    )


def check_claims(study: Study, asked: Sequence[Required]) -> None:
    """UserError where --require names a claim that the study does not make."""
    made = [one.claim for one in study.judgement.findings]
    for one in asked:
        if one.claim not in made:
            listed = ", ".join(made) or "none"
            raise UserError(
                f"--require {one.claim}={one.verdict}: study {study.name} makes no such claim"
                f"{nearest(one.claim, made)}  (it makes: {listed})"
            )


def check_verdicts(study: Study, asked: Sequence[Required]) -> None:
    """VerdictDiffers, with each reason, where a claim has another verdict."""
    found: Mapping[str, tuple[str, str]] = {
        one.claim: (one.verdict, one.why) for one in study.judgement.findings
    }
    wrong = []
    for one in asked:
        verdict, why = found[one.claim]
        if verdict != one.verdict:
            wrong.append(f"{one.claim} is not {one.verdict} but {verdict}: {why}")
    if wrong:
        raise VerdictDiffers("\n".join(wrong))


def check_save(path: Path | None) -> None:
    """UserError for a file that cannot be written."""
    if path is None:
        return
    pictures.check_file(path, PAGE, f"{PAGE} for the report")


def write(study: Study, path: Path) -> None:
    """Write the report as a Markdown page, or its effects as a picture."""
    if path.suffix.lower() == PAGE:
        try:
            write_atomic(path, study_report.markdown(study))
        except OSError as error:
            raise UserError(f"--save {path}: cannot be written: {reason(error)}") from None
        return
    panels = [one for one in study_report.panels(study.judgement) if isinstance(one, Panel)]
    if not panels:
        raise UserError(f"--save {path}: no contrast has an interval yet; end the name in {PAGE}")
    pictures.save(path, panels)

"""Stages that any number of processes share: each is claimed by a locked file, done once, never repeated."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i.files import lock

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Stage:
    """`done` looks at what is on the disk; `run` may go on from where a killed one stopped."""

    name: str
    done: Callable[[], bool]
    run: Callable[[], object]
    needs: tuple[str, ...] = ()


def work(stages: Sequence[Stage], claims: Path, say: Callable[[str], object] = print) -> list[str]:
    """Do the stages in their order, past those that others are at, until all are done; returns what was done here."""
    claims.mkdir(parents=True, exist_ok=True)
    ours: list[str] = []
    waiting = False
    while left := [stage for stage in stages if not stage.done()]:
        names = {stage.name for stage in left}
        for stage in left:
            if names & set(stage.needs):
                continue
            with lock(claims / f"{stage.name}.lock") as mine:
                if not mine or stage.done():
                    continue
                say(f"stage {len(stages) - len(left) + 1} of {len(stages)}: {stage.name}")
                stage.run()
                assert stage.done(), stage.name
                ours.append(stage.name)
                waiting = False
                break
        else:
            if not waiting:
                say(f"waiting for other processes: {', '.join(s.name for s in left[:4])}")
            waiting = True
            time.sleep(POLL_SECONDS)
    return ours

"""`python -m flows.serve`: both flows on a schedule, in one process, with a running Prefect server.

For machines that already run a worker, flows/prefect.yaml deploys the same to a work pool (docs/schedules.md).
"""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_URL

from flows import ROOT
from flows.restore import command_line, restore
from flows.server import require_server
from flows.sweep import sweep
from restorelcc.base.errors import BadInput
from restorelcc.pipeline.params import load_params

ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)


def main(
    cron: Annotated[str, typer.Option(help="when the sweep runs, as a cron line")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option(help="of the cron line")] = "UTC",
) -> None:
    """Serve `restore` (run by hand) and `sweep` (nightly) until interrupted; a run that overlaps is cancelled."""
    schedule = nightly(cron, timezone)
    url = PREFECT_API_URL.value()
    if not url:
        raise BadInput(
            "PREFECT_API_URL is not set: start `prefect server start`, "
            "then export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    require_server(url)
    load_params(ROOT / "params.yaml")
    serve(
        restore.to_deployment("now", concurrency_limit=ONE_AT_A_TIME),
        sweep.to_deployment(
            "nightly", schedule=schedule, parameters={"name": "nightly"}, concurrency_limit=ONE_AT_A_TIME
        ),
    )


def nightly(cron: str, timezone: str) -> Schedule:
    """The schedule of a cron line. Raises BadInput."""
    try:
        ZoneInfo(timezone)
    except (OSError, ValueError, ZoneInfoNotFoundError) as error:
        raise BadInput(f"--timezone {timezone!r} is unknown: give a name such as UTC or Europe/Vienna") from error
    try:
        return Cron(cron, timezone=timezone)
    except ValueError as error:
        raise BadInput(f"--cron {cron!r} is not a cron line: write minute hour day month weekday") from error


if __name__ == "__main__":
    command_line(main)

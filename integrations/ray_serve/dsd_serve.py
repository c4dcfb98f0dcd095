"""The server of `dsd serve` as replicas under Ray Serve, on one machine or many.

    pip install "ray[serve]>=2.60" "dsd-jax[serve]"
    cd integrations/ray_serve
    serve run serve.yaml

Ray sends a replica requests once its programs are compiled, and starts it again if its process dies
or its device fails. docs/serving.md says what a client sees of that.
"""

import logging
import shlex
import time

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from dsd_jax.errors import UserError
from dsd_jax.flags import call
from dsd_jax.infer.serve.cli import ServeFlags
from dsd_jax.infer.serve.cli_assembly import Assembly

__all__ = ["Arguments", "Server", "app"]

_POLL_S = 0.1
_ONGOING = 512  # more than a replica queues: its queue refuses with 429, and probes get through
_GRACE_S = 600.0  # for the requests of a replica that is asked to stop
_LOG = logging.getLogger("ray.serve")  # Ray keeps and shows what this one is told


class Arguments(BaseModel):
    """What the configuration of the application holds below `args`.

    Attributes:
        flags: Flags of `dsd serve`. `--host` must be where Ray's proxy listens, since all but this
            machine need a key; `--port` means nothing here.
    """

    model_config = ConfigDict(extra="forbid")

    flags: str = ""


class Server:
    """One replica: a model on its devices, and the application before it.

    Args:
        flags: Flags of `dsd serve`.
    """

    def __init__(self, flags: ServeFlags) -> None:
        assembly = Assembly(flags)
        pipeline = assembly.model.load()
        for notice in pipeline.notices:
            _LOG.warning(notice)
        self._runner, self._app = assembly.around(pipeline, _LOG.info)
        self._runner.start()
        while not self._runner.ready:  # Ray sends requests once this has returned
            self.check_health()
            time.sleep(_POLL_S)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application of this replica."""
        return self._app

    def check_health(self) -> None:
        """Raises an error if the device fails; Ray then starts another replica in its place."""
        if self._runner.failure is not None:
            raise self._runner.failure
        if not self._runner.healthy:
            raise RuntimeError("the device failed several times in a row")


def app(given: Arguments) -> Application:
    """Checks the flags, and builds the application.

    Args:
        given: The arguments.

    Raises:
        UserError: A flag is wrong, or the server needs a key and has none.
    """
    try:
        flags = call(ServeFlags, shlex.split(given.flags), "dsd serve")
    except ValueError as error:
        raise UserError(
            f"flags must be written as for a shell: {error}; got {given.flags!r}"
        ) from None
    except SystemExit:  # what is wrong was printed; Ray would lose a process over its exit
        raise UserError(
            f"dsd serve does not take the flags {given.flags!r}; its lines above say why"
        ) from None
    Assembly(flags)
    deployment = serve.deployment(
        max_ongoing_requests=_ONGOING, graceful_shutdown_timeout_s=_GRACE_S
    )
    return deployment(serve.ingress()(Server)).bind(flags)

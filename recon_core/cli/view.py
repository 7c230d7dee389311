"""`recon view`: a result folder in the browser."""

from __future__ import annotations

import time
from pathlib import Path

import click

from recon_core.errors import InputError, UsageError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port of the page.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on; 0.0.0.0 for others too.")
@click.option("--samples", default=25, show_default=True, type=click.IntRange(0), help="Draws a person to show.")
@click.option("--photo", type=click.Path(path_type=Path), help="Show this photo itself in place of its overlay.")
def command(folder: Path, port: int, host: str, samples: int, photo: Path | None) -> None:
    """Look at a result folder in the browser: photo, bodies, samples and camera. Ctrl-C ends it."""
    from recon_core.viewer import read_result, show

    result = read_result(folder, samples, photo)
    try:
        import viser
    except ImportError:
        raise UsageError("recon view needs viser: pip install 'recon-core[view]'") from None
    try:
        server = viser.ViserServer(host=host, port=port, label=f"recon {result.name}", verbose=False)
    except OSError as error:
        raise InputError(f"port {port} on {host} cannot be used ({error}); choose another with --port") from error
    show(server, result)
    click.echo(f"{folder} at http://{host}:{server.get_port()} (Ctrl-C ends)")
    try:
        while True:
            time.sleep(3600)
    finally:
        server.stop()

"""`recon run`: photos in, a folder of results a photo out."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recon_core.cli.common import json_option, print_json, settings_options
from recon_core.errors import InputError, NoPersonError, ReconError, UsageError

if TYPE_CHECKING:
    from recon_core.batch import Outcome
    from recon_core.config import Configuration
    from recon_core.pipeline import Pipeline

_NAMED = 5
"""How many failed photos the last line names."""


class _BoxType(click.ParamType):
    name = "x,y,w,h"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            numbers = tuple(float(v) for v in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 4 or not all(abs(v) < 1e9 for v in numbers) or min(numbers[2:]) <= 0:
            raise UsageError(f"--box {value}: write it as x,y,width,height in pixels, for example --box 120,40,200,480")
        return numbers


def _words(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    """`--format obj,ply --format bvh` as ("obj", "ply", "bvh")."""
    words = tuple(word.strip() for value in values for word in value.split(",") if word.strip())
    return tuple(dict.fromkeys(words)) or None


@click.command()
@click.argument("inputs", nargs=-1, metavar="PHOTO...")
@click.option("--method", metavar="NAME", help="How to reconstruct; `recon methods` lists them.  [default: prohmr]")
@click.option("-o", "--out", default="out", show_default=True, metavar="FOLDER", help="A folder a photo is put here.")
@click.option("--samples", type=click.IntRange(min=0), metavar="N", help="Draw N possible bodies of each person too.")
@click.option("--views", is_flag=True, default=None, help="The photos show one person: one body for all of them.")
@click.option("--refine", type=click.IntRange(min=0), metavar="N", help="Fit each photo N steps further.")
@click.option("--texture-from", metavar="PHOTO", help="Give each shape the texture of the first subject there.")
@click.option("--shape-from", metavar="PHOTO", help="Give each texture the shape of the first subject there.")
@click.option("--no-fit", is_flag=True, help="Leave out the fit to the detected joints.")
@click.option("--fitter", metavar="NAME", help="Fit with this one, in place of the method's own.")
@click.option(
    "--prior", "priors", metavar="NAME", multiple=True, callback=_words, help="Prior of the fit; several may be given."
)
@click.option("--body", metavar="NAME", help="Body model.  [default: the method's]")
@click.option("--detector", metavar="NAME", help="Finds the people.  [default: the method's]")
@click.option("--keypoints", metavar="FILE", help="Joints from an OpenPose or COCO json, in place of a detector.")
@click.option("--mask", metavar="FILE", help="The thing's mask, or a folder of masks by the photos' names.")
@click.option("--box", type=_BoxType(), help="Where the person is, in pixels; for every photo.")
@click.option("--focal-px", type=float, metavar="F", help="Focal length in pixels.  [default: EXIF, or the diagonal]")
@click.option("--renderer", metavar="NAME", help="Draws the overlay.  [default: warp]")
@click.option(
    "--format", "formats", metavar="NAMES", multiple=True, callback=_words,
    help="Also write: obj,ply,bvh,gif,mp4,pictures",
)  # fmt: skip
@click.option("--device", metavar="NAME", help="cpu, cuda, ...  [default: auto]")
@click.option("--overwrite", is_flag=True, help="Replace results that are there already.")
@settings_options
@json_option
def command(
    inputs: tuple[str, ...],
    out: str,
    samples: int | None,
    refine: int | None,
    texture_from: str | None,
    shape_from: str | None,
    no_fit: bool,
    mask: str | None,
    overwrite: bool,
    configuration: Configuration,
    as_json: bool,
    **options: Any,
) -> int:
    """Reconstruct the people or objects in photos.

    PHOTO is a file, a folder or a pattern. The results of x/photo.jpg are in out/photo: result.json, result.npz,
    scene.glb, overlay.png and report.html. Photos with a result are skipped, so that an interrupted run goes on
    where it stopped.

    Exit codes: 0 done, 1 something failed, 2 the call is wrong, 3 nobody in any photo.
    """
    if not inputs:
        raise UsageError("which photos? for example: recon run photo.jpg, recon run photos/")
    started = time.perf_counter()
    run_options = {name: value for name, value in options.items() if value is not None}
    if no_fit:
        run_options["fit"] = False
    parts: dict[str, dict[str, Any]] = {"run": run_options}
    if mask is not None:
        _check_mask(mask, run_options, several_photos=bool(texture_from or shape_from))
        run_options["detector"] = "mask-files"
        parts["mask-files"] = {"path": mask}
    of_method = {"samples": samples, "refine": refine, "texture_from": texture_from, "shape_from": shape_from}
    method_options = {name: value for name, value in of_method.items() if value is not None}

    def start() -> Pipeline:
        from recon_core.pipeline import Pipeline

        return Pipeline(configuration, parts, method_options)

    outcomes = _run(inputs, Path(out), overwrite, start, quiet=as_json)
    if as_json:
        print_json([_as_json(outcome) for outcome in outcomes])
    elif len(outcomes) == 1 and (error := outcomes[0].error) is not None:
        raise error
    else:
        _sum_up(outcomes, Path(out), time.perf_counter() - started)
    return _exit_code(outcomes)


def _check_mask(mask: str, run_options: dict[str, Any], several_photos: bool) -> None:
    """Raises UsageError for options that say the same as `--mask`, and for one mask of two photos."""
    for name in ("detector", "keypoints", "box"):
        if name in run_options:
            raise UsageError(f"--mask says where the thing is: drop it, or --{name}")
    if several_photos and not Path(mask).is_dir():
        raise UsageError(f"--mask {mask}: is the mask of one photo; name a folder that holds the other's too")


def _run(
    inputs: tuple[str, ...], out: Path, overwrite: bool, start: Callable[[], Pipeline], quiet: bool
) -> list[Outcome]:
    from tqdm import tqdm

    from recon_core.batch import Outcome, process
    from recon_core.images import find_images
    from recon_core.views import process_views

    outcomes: list[Outcome] = []
    missing: list[InputError] = []
    paths = find_images(inputs, on_error=missing.append)
    several = len(paths) + len(missing) > 1

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if outcome.message and several and not quiet:
            tqdm.write(f"recon: {outcome.message}", file=sys.stderr)

    def note_missing() -> None:
        for error in missing:
            note(Outcome(None, "failed", message=str(error), error=error))

    if not paths:
        note_missing()
        return outcomes
    with _output_folder(out):
        pipeline = start()
        together = pipeline.settings.views
        if together and missing:
            raise missing[0]
        note_missing()
        try:
            with tqdm(total=len(paths), unit="photo", disable=True if quiet or not several else None) as bar:
                for outcome in (process_views if together else process)(pipeline, paths, out, overwrite):
                    note(outcome)
                    bar.update()
        except KeyboardInterrupt:
            done = sum(outcome.status == "done" for outcome in outcomes)
            click.echo(f"recon: {done} of {len(paths)} done in {out}; the same command goes on from there", err=True)
            raise
    return outcomes


@contextlib.contextmanager
def _output_folder(out: Path) -> Iterator[None]:
    """Sees that results can be written before any work; leaves no folder behind that it made and nobody filled."""
    from recon_core.batch import check_output

    made = not out.exists()
    check_output(out)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()


def _sum_up(outcomes: Sequence[Outcome], out: Path, seconds: float) -> None:
    """One line: the result's folder and what was found, or how many photos went which way."""
    if len(outcomes) == 1:
        only = outcomes[0]
        if only.status == "skipped":
            click.echo(only.message or f"{only.folder} is there already; --overwrite replaces it")
        else:
            click.echo(f"{only.folder}: {only.found} found in {seconds:.1f} s")
        return
    count = Counter(outcome.status for outcome in outcomes)
    parts = [f"{count['done']} done"]
    parts += [f"{count['skipped']} skipped"] if count["skipped"] else []
    for status, text in (("nobody", "without a person"), ("failed", "failed")):
        names = [o.path.name if o.path else "(missing)" for o in outcomes if o.status == status]
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            parts.append(f"{len(names)} {text}: {' '.join(names[:_NAMED])}{more}")
    click.echo(f"{', '.join(parts)} ({seconds:.1f} s); results in {out}")


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    statuses = {outcome.status for outcome in outcomes}
    if "failed" in statuses:
        return ReconError.exit_code
    if "nobody" in statuses:
        return ReconError.exit_code if "done" in statuses else NoPersonError.exit_code
    return 0


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "photo": None if outcome.path is None else str(outcome.path),
        "status": outcome.status,
        "folder": None if outcome.folder is None else str(outcome.folder),
        "found": outcome.found,
        "message": outcome.message,
    }

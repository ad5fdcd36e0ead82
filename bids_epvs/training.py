"""``bids_epvs-train``: make the examples, train a network on them. The only module that sees both synth and train."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_epvs.errors import EpvsError, NothingToDoError, UsageError

if TYPE_CHECKING:
    from bids_epvs.models.spec import Weights

logger = logging.getLogger(__name__)

_RESUMES = "A killed run goes on where it stopped when the same command is given again."


def parser() -> argparse.ArgumentParser:
    """The command line of ``bids_epvs-train``."""
    p = argparse.ArgumentParser(prog="bids_epvs-train", description="Train a network of bids_epvs. For research use.")
    which = p.add_subparsers(dest="model", required=True)
    one = which.add_parser(
        "parcellation",
        help="brain, tissues and regions from any contrast",
        description=f"Simulate images of label maps and train the network that finds brain and regions. {_RESUMES}",
    )
    _common(one, examples=(120, "four images each"), judges=8, steps=5000, batch=(1, "half heads"), rate=5e-3)
    one = which.add_parser(
        "unet",
        help="segmentation of EPVS from any of T2w, T1w, FLAIR, SWI",
        description=f"Simulate heads with EPVS and train the segmentation network. {_RESUMES}",
    )
    _common(one, examples=(60, "two brains each"), judges=4, steps=6000, batch=(16, "crops of slices"), rate=2e-3)
    return p


def _common(
    one: argparse.ArgumentParser,
    *,
    examples: tuple[int, str],
    judges: int,
    steps: int,
    batch: tuple[int, str],
    rate: float,
) -> None:
    """Options of every network, with its defaults."""
    one.add_argument("labelmaps", type=Path, help="folder with sub-*_dseg.nii.gz (FreeSurfer indices, whole heads)")
    one.add_argument("out", type=Path, help="examples, checkpoint, log.csv, weights.npz, card.json go here")
    one.add_argument("--held-out", nargs="+", required=True, metavar="L", help="subjects that only judge")
    one.add_argument("--exclude", nargs="+", default=[], metavar="L", help="subjects not used at all")
    number, what = examples
    one.add_argument("--examples", type=int, default=number, metavar="N", help=f"heads to simulate, {what}")
    one.add_argument("--judges", type=int, default=judges, metavar="N", help="heads to simulate of those held out")
    one.add_argument("--steps", type=int, default=steps, metavar="N", help="updates of the weights")
    number, what = batch
    one.add_argument("--batch", type=int, default=number, metavar="N", help=f"{what} in each")
    one.add_argument("--widths", type=int, nargs="+", metavar="N", help="filters of each level (wider: more accurate)")
    one.add_argument("--init", metavar="FILE", help="weights to begin with; 'shipped' for the packaged ones")
    one.add_argument("--rate", type=float, default=rate, help="peak learning rate")
    one.add_argument("--epoch", type=int, default=200, metavar="N", help="steps between two checkpoints")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--nprocs", type=int, default=2, metavar="N", help="processes that simulate")


def train(args: argparse.Namespace) -> None:
    """Examples of the training heads and of those kept apart, then the network."""
    heads, judges = subjects(args)
    simulate, learn, packaged = parts(args.model)
    simulate(tuple(judges.values()), args.out / "held-out", number=args.judges, seed=args.seed + 98, nprocs=args.nprocs)
    simulate(tuple(heads.values()), args.out / "examples", number=args.examples, seed=args.seed, nprocs=args.nprocs)
    from bids_epvs.train import loop

    about = {
        "Model": args.model,
        "TrainedOn": f"simulated images of {len(heads)} label maps: {', '.join(f'sub-{s}' for s in heads)}",
        "HeldOutSubjects": [f"sub-{s}" for s in judges],
        "Limits": "Trained on simulation alone. For research use.",
    }
    learn(
        args.out / "examples",
        args.out / "held-out",
        args.out,
        loop.Schedule(args.steps, epoch=args.epoch, rate=args.rate, seed=args.seed),
        batch=args.batch,
        widths=tuple(args.widths) if args.widths else None,
        init=initial(args.init, packaged),
        about=about,
    )


def subjects(args: argparse.Namespace) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
    """Label maps to train on and to judge on, by subject.

    Raises
    ------
    UsageError
        A subject has no label map.
    NothingToDoError
        None is left to train on.
    """
    every = {p.name[4:].partition("_")[0]: p for p in sorted(args.labelmaps.glob("sub-*_dseg.nii.gz"))}
    unknown = [s for s in (*args.held_out, *args.exclude) if s not in every]
    if unknown:
        raise UsageError(f"no label map of {', '.join(unknown)}.", where=args.labelmaps)
    heads = {s: p for s, p in every.items() if s not in {*args.held_out, *args.exclude}}
    if not heads:
        raise NothingToDoError("no label map is left to train on.", where=args.labelmaps)
    return heads, {s: every[s] for s in args.held_out}


def parts(model: str) -> tuple[Callable[..., None], Callable[..., None], Weights]:
    """What simulates the examples of a network, what trains it, and its packaged weights."""
    # keras is imported by bids_epvs.train, after main has chosen its backend
    if model == "parcellation":
        from bids_epvs.synth import parcels
        from bids_epvs.train import parcellation

        return parcels.generate, parcellation.train, parcellation.parcellation.WEIGHTS
    from bids_epvs.synth import volumes
    from bids_epvs.train import unet

    return volumes.generate, unet.train, unet.unet.WEIGHTS


def initial(given: str | None, packaged: Weights) -> Path | None:
    """The file that ``--init`` means."""
    from bids_epvs.models import weights

    return weights.shipped(packaged) if given == "shipped" else Path(given) if given else None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    args: Any = parser().parse_args(argv)
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        train(args)
    except EpvsError as error:
        print(f"bids_epvs-train: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bids_epvs-train: interrupted; run again to resume", file=sys.stderr)
        return 130
    return 0

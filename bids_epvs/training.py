"""``bids_epvs-train``: make the examples, train a network on them. The only module that sees both synth and train."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bids_epvs.errors import EpvsError, NothingToDoError, UsageError

if TYPE_CHECKING:
    from bids_epvs.models.spec import Weights

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The command line of ``bids_epvs-train``."""
    p = argparse.ArgumentParser(prog="bids_epvs-train", description="Train a network of bids_epvs. For research use.")
    which = p.add_subparsers(dest="model", required=True)
    one = which.add_parser(
        "parcellation",
        help="brain, tissues and regions from any contrast",
        description="Simulate images of label maps and train the network that finds brain and regions. A killed run "
        "goes on where it stopped when the same command is given again.",
    )
    one.add_argument("labelmaps", type=Path, help="folder with sub-*_dseg.nii.gz (FreeSurfer indices, whole heads)")
    one.add_argument("out", type=Path, help="examples, checkpoint, log.csv, weights.npz, card.json go here")
    one.add_argument("--held-out", nargs="+", required=True, metavar="L", help="subjects that only judge")
    one.add_argument("--exclude", nargs="+", default=[], metavar="L", help="subjects not used at all")
    one.add_argument("--examples", type=int, default=120, metavar="N", help="heads to simulate, four images each")
    one.add_argument("--judges", type=int, default=8, metavar="N", help="heads to simulate of those held out")
    one.add_argument("--steps", type=int, default=5000, metavar="N", help="updates of the weights")
    one.add_argument("--batch", type=int, default=1, metavar="N", help="half heads in each")
    one.add_argument("--widths", type=int, nargs="+", metavar="N", help="filters of each level (wider: more accurate)")
    one.add_argument("--init", metavar="FILE", help="weights to begin with; 'shipped' for the packaged ones")
    one.add_argument("--rate", type=float, default=5e-3, help="peak learning rate")
    one.add_argument("--epoch", type=int, default=200, metavar="N", help="steps between two checkpoints")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--nprocs", type=int, default=2, metavar="N", help="processes that simulate")
    return p


def parcellation(args: argparse.Namespace) -> None:
    """Examples of the training heads and of those kept apart, then the network."""
    from bids_epvs.synth import parcels

    every = {p.name[4:].partition("_")[0]: p for p in sorted(args.labelmaps.glob("sub-*_dseg.nii.gz"))}
    unknown = [s for s in (*args.held_out, *args.exclude) if s not in every]
    if unknown:
        raise UsageError(f"no label map of {', '.join(unknown)}.", where=args.labelmaps)
    left_out = {*args.held_out, *args.exclude}
    heads = {s: p for s, p in every.items() if s not in left_out}
    if not heads:
        raise NothingToDoError("no label map is left to train on.", where=args.labelmaps)
    judges = tuple(every[s] for s in args.held_out)
    parcels.generate(judges, args.out / "held-out", number=args.judges, seed=args.seed + 98, nprocs=args.nprocs)
    parcels.generate(
        tuple(heads.values()), args.out / "examples", number=args.examples, seed=args.seed, nprocs=args.nprocs
    )
    from bids_epvs.train import loop
    from bids_epvs.train import parcellation as network

    schedule = loop.Schedule(args.steps, epoch=args.epoch, rate=args.rate, seed=args.seed)
    about = {
        "Model": "parcellation",
        "TrainedOn": f"simulated images of {len(heads)} label maps: {', '.join(f'sub-{s}' for s in heads)}",
        "HeldOutSubjects": [f"sub-{s}" for s in args.held_out],
        "Limits": "Trained on simulation alone. For research use.",
    }
    network.train(
        args.out / "examples",
        args.out / "held-out",
        args.out,
        schedule,
        batch=args.batch,
        widths=tuple(args.widths) if args.widths else None,
        init=initial(args.init, network.parcellation.WEIGHTS),
        about=about,
    )


def initial(given: str | None, packaged: Weights) -> Path | None:
    """The file that ``--init`` means."""
    from bids_epvs.models import weights

    return weights.shipped(packaged) if given == "shipped" else Path(given) if given else None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    args = parser().parse_args(argv)
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        parcellation(args)
    except EpvsError as error:
        print(f"bids_epvs-train: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bids_epvs-train: interrupted; run again to resume", file=sys.stderr)
        return 130
    return 0

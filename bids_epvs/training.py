"""``bids_epvs-train``: make the examples, train a network on them. The only module that sees both synth and train."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bids_epvs import process
from bids_epvs.arguments import Parser, status
from bids_epvs.derivatives import write
from bids_epvs.errors import NothingToDoError, UsageError
from bids_epvs.records import REFERENCES
from bids_epvs.synth.examples import KINDS

if TYPE_CHECKING:
    from bids_epvs.models.spec import Weights

logger = logging.getLogger(__name__)

_RESUMES = "A killed run goes on where it stopped when the same command is given again."


def parser() -> Parser:
    """The command line of ``bids_epvs-train``."""
    p = Parser(prog="bids_epvs-train", description="Train a network of bids_epvs. For research use.")
    which = p.add_subparsers(dest="model", required=True)
    one = which.add_parser(
        "parcellation",
        help="brain, tissues and regions from any contrast",
        description=f"Simulate images of label maps and train the network that finds brain and regions. {_RESUMES}",
    )
    _common(one, examples=(120, "four images each"), judges=8, steps=5000, batch=(1, "half heads"), rate=5e-3)
    _by_the_clock(one)
    one = which.add_parser(
        "nuclei",
        help="basal ganglia and thalamus in a second look",
        description=f"Simulate images of label maps and train the network that looks again at the deep grey matter; "
        f"the packaged parcellation network looks first. {_RESUMES}",
    )
    _common(one, examples=(120, "four images each"), judges=10, steps=4000, batch=(1, "boxes"), rate=3e-3)
    _by_the_clock(one, "parcellation")
    one = which.add_parser(
        "slices",
        help="borders of structures in the plane of thick slices",
        description=f"Simulate images of label maps and train the network that draws the borders of structures in "
        f"thick slices; the packaged networks parcellation and nuclei look first. {_RESUMES}",
    )
    _common(one, examples=(96, "four images each"), judges=10, steps=6000, batch=(4, "slices"), rate=3e-3)
    _by_the_clock(one, "parcellation", "nuclei")
    _contrast(one)
    one = which.add_parser(
        "unet",
        help="segmentation of EPVS from any of T2w, T1w, FLAIR, SWI",
        description=f"Simulate heads with EPVS and train the segmentation network. {_RESUMES}",
    )
    _common(one, examples=(60, "a brain of each kind"), judges=4, steps=6000, batch=(16, "crops of slices"), rate=2e-3)
    _kinds(one)
    one.add_argument(
        "--truth",
        type=Path,
        metavar="DIR",
        help="train on masks of your own: BIDS derivatives with *_label-EPVS_mask.nii.gz on the grid of the T2w; "
        "SOURCE is then the output of bids_epvs at the participant level",
    )
    one.add_argument("--cv", metavar="K", help="with --truth: folds by subject, each held out once; 'loo' for one each")
    for name, text in (("cnn", "plain"), ("gpunet", "with a map of where they are")):
        one = which.add_parser(
            name,
            help=f"number of EPVS in a region, {text}",
            description=f"Simulate T2w scans and train the network that counts the EPVS of a region. {_RESUMES}",
        )
        _common(
            one, examples=(120, "a scan of each kind"), judges=12, steps=5000, batch=(8, "blocks of regions"), rate=3e-3
        )
        _kinds(one)
        _on_scores(one, region=True)
    one = which.add_parser(
        "rating2d",
        help="five-point rating of the basal ganglia from six slices",
        description=f"Simulate T2w scans and train the network that rates the basal ganglia. {_RESUMES}",
    )
    _common(one, examples=(60, "16 scans each"), judges=8, steps=4000, batch=(32, "images"), rate=2e-3)
    one.add_argument("--no-haar", dest="enhanced", action="store_false", help="without Haar enhancement (the ablation)")
    _on_scores(one)
    one.add_argument("--squared", action="store_true", help="mean squared error instead of cross-entropy")
    one = which.add_parser(
        "resnet152",
        help="mild or severe EPVS of the basal ganglia, 3-D residual network",
        description=f"Simulate T2w scans and train the network that tells mild from severe EPVS. {_RESUMES}",
    )
    _common(one, examples=(60, "16 scans each"), judges=8, steps=2000, batch=(20, "scans"), rate=1e-3)
    _on_scores(one)
    one.add_argument("--depth", type=int, default=152, choices=(50, 101, 152))
    one.add_argument("--stride-z", type=int, default=2, choices=(1, 2), help="1 keeps slices apart")
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
    one.add_argument(
        "source", type=Path, help="folder with label maps sub-*_dseg.nii.gz (FreeSurfer indices, whole heads)"
    )
    one.add_argument("out", type=Path, help="examples, checkpoint, log.csv, weights.npz, card.json go here")
    one.add_argument("--held-out", nargs="+", default=[], metavar="L", help="subjects that only judge")
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
    one.add_argument("--patience", type=int, default=0, metavar="N", help="stop after N judgements without progress")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--nprocs", type=int, default=2, metavar="N", help="processes that simulate")


def _by_the_clock(one: argparse.ArgumentParser, *before: str) -> None:
    """Options of networks whose images can be made where they are trained; `before` are those that look first."""
    one.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="train for M minutes on images that are made as they are needed and seen a few times (wants a GPU; "
        "--steps, --batch, --epoch and --patience do not count; a killed run begins again)",
    )
    one.add_argument("--heads", type=int, default=2, metavar="N", help="with --minutes: deformed heads in a batch")
    one.add_argument("--images", type=int, default=3, metavar="N", help="with --minutes: images of each")
    one.add_argument("--repeat", type=int, default=2, metavar="N", help="with --minutes: updates with each batch")
    one.add_argument("--every", type=float, default=1.0, metavar="M", help="with --minutes: between two judgements")
    if one.prog.split()[-1] != "slices":
        one.add_argument("--sharp", type=int, metavar="N", help="filters of the last look, at full resolution")
    for name in before:
        one.add_argument(
            f"--{name}",
            type=Path,
            metavar="FILE",
            help=f"with --minutes: weights of {name}, which looks first (default: the packaged ones); read again when "
            "they change, so that both can be trained at a time",
        )


def _kinds(one: argparse.ArgumentParser) -> None:
    """Which scans of each simulated head."""
    one.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        help="scans of each simulated head: research (isotropic), clinical (thick axial slices), turned (thick coronal "
        "or sagittal ones); default: all three",
    )


def _on_scores(one: argparse.ArgumentParser, *, region: bool = False) -> None:
    """Options of networks that learn from one number a session."""
    one.add_argument(
        "--scores",
        type=Path,
        metavar="TSV",
        help="train on visual scores of your own: participant_id and a column such as BasalGanglia_rating or "
        "anna_CentrumSemiovale_count; SOURCE is then the output of bids_epvs at the participant level",
    )
    if region:
        one.add_argument("--region", default="BasalGanglia", help="with --scores: which region (default: %(default)s)")
    else:
        one.set_defaults(region="BasalGanglia")
    one.add_argument("--rater", help="with --scores: whose")
    one.add_argument(
        "--cv", metavar="K", help="with --scores: folds by subject, each held out once; 'loo' for one each"
    )


def _contrast(one: argparse.ArgumentParser) -> None:
    """Images of one contrast alone."""
    one.add_argument(
        "--contrast",
        choices=REFERENCES,
        default="",
        help="images of this contrast alone, four of each head; '--init shipped' are its own weights if it has some",
    )


_OWN = ("sharp", "enhanced", "squared", "depth", "stride_z")
"""Options of single networks, handed on to what trains them."""


def train(args: argparse.Namespace) -> None:
    """Examples of the training subjects and of those kept apart, then the network."""
    if getattr(args, "truth", None) or getattr(args, "scores", None):
        on_own(args)
        return
    if not args.held_out:
        raise UsageError("no subject would judge.", where="--held-out", remedy="Name at least one.")
    heads, judges = subjects(args)
    about = {
        "TrainedOn": f"simulated images of {len(heads)} label maps: {', '.join(f'sub-{s}' for s in heads)}",
        "HeldOutSubjects": [f"sub-{s}" for s in judges],
        "Limits": "Trained on simulation alone. For research use.",
    }
    if getattr(args, "minutes", None):
        if getattr(args, "contrast", ""):
            raise UsageError("--minutes makes images of each contrast.", where="--contrast")
        stream(args, heads, judges, about)
        return
    simulate, learn, packaged = parts(args.model, getattr(args, "contrast", ""))
    if hasattr(args, "kinds"):
        simulate = partial(simulate, kinds=tuple(args.kinds))
    simulate(tuple(judges.values()), args.out / "held-out", number=args.judges, seed=args.seed + 98, nprocs=args.nprocs)
    simulate(tuple(heads.values()), args.out / "examples", number=args.examples, seed=args.seed, nprocs=args.nprocs)
    _learn(args, args.out, learn, packaged, about)


def stream(
    args: argparse.Namespace, heads: Mapping[str, Path], judges: Mapping[str, Path], about: Mapping[str, object]
) -> None:
    """Painted heads, then the network, on images that are made as they are needed."""
    from bids_epvs.models import nuclei, parcellation, weights
    from bids_epvs.synth import paintings
    from bids_epvs.synth import stream as made
    from bids_epvs.train import stream as trained
    from bids_epvs.train.loop import without_gradients

    for name, own, number, seed in (
        ("held-out", judges, args.judges, args.seed + 98),
        ("examples", heads, args.examples, args.seed),
    ):
        paintings.generate(tuple(own.values()), args.out / name, number=number, seed=seed, nprocs=args.nprocs)
    kind = {"parcellation": made.Stream, "nuclei": made.Boxes, "slices": made.Planes}[args.model]
    before = {}
    for place, network in (("first", parcellation), ("second", nuclei)):
        if hasattr(args, network.NAME):
            given = getattr(args, network.NAME) or weights.shipped(network.WEIGHTS)
            before[place] = made.Network(network.build, given)
    ways = {"heads": args.heads, "images": args.images, **before}
    draw, judge = (kind(args.out / name, **ways) for name in ("examples", "held-out"))
    rng = np.random.default_rng([args.seed, 98])
    with without_gradients():
        items = [item for _ in range(args.judges) for item in judge(rng)]
    trained.fit(
        args.model,
        draw,
        items,
        args.out,
        trained.Clock(args.minutes, every=args.every, rate=args.rate, repeat=args.repeat, seed=args.seed),
        widths=tuple(args.widths) if args.widths else None,
        sharp=getattr(args, "sharp", None),
        init=initial(args.init, parts(args.model)[2]),
        about=about,
    )


def _learn(
    args: argparse.Namespace,
    out: Path,
    learn: Callable[..., None],
    packaged: Weights,
    about: Mapping[str, object],
) -> None:
    """Train on ``out/examples``, judge on ``out/held-out``."""
    from bids_epvs.train import loop

    schedule = loop.Schedule(args.steps, epoch=args.epoch, rate=args.rate, patience=args.patience, seed=args.seed)
    learn(
        out / "examples",
        out / "held-out",
        out,
        schedule,
        batch=args.batch,
        widths=tuple(args.widths) if args.widths else None,
        init=initial(args.init, packaged),
        about={"Model": args.model, **about},
        **{k: getattr(args, k) for k in _OWN if hasattr(args, k)},
    )


def own_examples(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Examples of a dataset of one's own with masks or scores, by subject.

    Raises
    ------
    UsageError
        ``--cv`` and ``--held-out`` are both missing.
    """
    from bids_epvs.train import data, scores

    if not args.cv and not args.held_out:
        raise UsageError("no subject would judge.", where="--held-out", remedy="Name at least one, or use --cv.")
    if getattr(args, "scores", None):
        make = scores.maker(args.model, args.region)
        found = scores.find(args.source, args.scores, args.model, args.region, args.rater)
        return data.write(found, args.out / "all", make)
    return data.write(data.find(args.source, args.truth), args.out / "all")


def on_own(args: argparse.Namespace) -> None:
    """Train on a dataset of one's own, once or in folds by subject.

    Raises
    ------
    UsageError
        ``--cv`` is no number of folds.
    """
    _, learn, packaged = parts(args.model)
    from bids_epvs.train import data

    files = own_examples(args)
    files = {s: own for s, own in files.items() if s not in args.exclude}
    if not args.cv:
        plans = {args.out: tuple(args.held_out)}
    else:
        number = len(files) if args.cv == "loo" else int(args.cv) if args.cv.isdecimal() else 0
        plans = {args.out / f"fold-{k}": f for k, f in enumerate(data.folds(list(files), number, seed=args.seed), 1)}
    for out, held_out in plans.items():
        data.split(files, held_out, out)
        about = {
            "TrainedOn": f"{len(files) - len(held_out)} subjects of {getattr(args, 'scores', None) or args.truth}",
            "HeldOutSubjects": [f"sub-{s}" for s in held_out],
            "Limits": "For research use.",
        }
        _learn(args, out, learn, packaged, about)
    if args.cv:
        cards = [json.loads((out / "card.json").read_text()) for out in plans]
        rows = [{"fold": k, "held_out": " ".join(c["HeldOutSubjects"]), **c["HeldOut"]} for k, c in enumerate(cards, 1)]
        write.table(args.out / "folds.tsv", pd.DataFrame(rows))


def subjects(args: argparse.Namespace) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
    """Label maps to train on and to judge on, by subject.

    Raises
    ------
    UsageError
        A subject has no label map.
    NothingToDoError
        None is left to train on.
    """
    every = {p.name[4:].partition("_")[0]: p for p in sorted(args.source.glob("sub-*_dseg.nii.gz"))}
    unknown = [s for s in (*args.held_out, *args.exclude) if s not in every]
    if unknown:
        raise UsageError(f"no label map of {', '.join(unknown)}.", where=args.source)
    heads = {s: p for s, p in every.items() if s not in {*args.held_out, *args.exclude}}
    if not heads:
        raise NothingToDoError("no label map is left to train on.", where=args.source)
    return heads, {s: every[s] for s in args.held_out}


def parts(model: str, contrast: str = "") -> tuple[Callable[..., None], Callable[..., None], Weights]:
    """What simulates the examples of a network, what trains it, and its packaged weights.

    `contrast`: of all images of ``slices``; without one they are of each contrast.
    """
    # keras is imported by bids_epvs.train, after main has chosen its backend
    if model == "parcellation":
        from bids_epvs.synth import parcels
        from bids_epvs.train import parcellation

        return parcels.generate, parcellation.train, parcellation.parcellation.WEIGHTS
    if model == "nuclei":
        from bids_epvs.synth import nuclei as boxes
        from bids_epvs.train import nuclei

        return boxes.generate, nuclei.train, nuclei.nuclei.WEIGHTS
    if model == "slices":
        from bids_epvs.synth import slices as planes
        from bids_epvs.train import slices

        own = {"make": partial(planes.example, contrast=contrast)} if contrast else {}
        return partial(planes.generate, **own), slices.train, slices.slices.WEIGHTS.of(contrast)
    if model in ("cnn", "gpunet"):
        from bids_epvs.synth import counts
        from bids_epvs.train import count

        packaged = count.gpunet.WEIGHTS if model == "gpunet" else count.count.WEIGHTS
        return counts.generate, partial(count.train, model=model), packaged
    if model in ("rating2d", "resnet152"):
        from bids_epvs.synth import grades as scans
        from bids_epvs.train import grades

        if model == "rating2d":
            return scans.generate, grades.train_rating2d, grades.rating2d.WEIGHTS
        return scans.generate, grades.train_resnet152, grades.resnet152.WEIGHTS
    from bids_epvs.synth import volumes
    from bids_epvs.train import unet

    return volumes.generate, unet.train, unet.unet.WEIGHTS


def initial(given: str | None, packaged: Weights) -> Path | None:
    """The file that ``--init`` means; raises as `models.weights.shipped`."""
    from bids_epvs.models import weights

    if given == "shipped":
        return weights.shipped(packaged)
    return Path(given) if given else None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    return status("bids_epvs-train", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    """Do what the command line says."""
    from bids_epvs.models import weights

    args: Any = parser().parse_args(argv)
    if argv is None:
        process.heed_termination()
    weights.configure()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

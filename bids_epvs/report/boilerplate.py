"""Methods text and citations, ready to paste."""

from __future__ import annotations

from importlib.resources import files

from bids_epvs import __version__
from bids_epvs.models import default, load
from bids_epvs.prepare import bias
from bids_epvs.records import SHOWING, Analysis
from bids_epvs.settings import Settings

REFERENCES = (
    "Avants BB, et al. A reproducible evaluation of ANTs similarity metric performance. NeuroImage 2011;54:2033-44.",
    "Tustison NJ, et al. N4ITK: improved N3 bias correction. IEEE Trans Med Imaging 2010;29:1310-20.",
    "Van Leemput K, et al. Automated model-based bias field correction of MR images of the brain. IEEE Trans Med "
    "Imaging 1999;18:885-96.",
    "Fonov V, et al. Unbiased average age-appropriate atlases. NeuroImage 2011;54:313-27.",
    "Billot B, et al. SynthSeg: segmentation of brain MRI scans of any contrast. Med Image Anal 2023;86:102789.",
    "Gorgolewski KJ, et al. The brain imaging data structure. Scientific Data 2016;3:160044.",
    "Potter GM, et al. Cerebral perivascular spaces visible on MRI. Cerebrovasc Dis 2015;39:224-31.",
    "Adams HHH, et al. Rating method for dilated Virchow-Robin spaces. Stroke 2013;44:1732-5.",
)

STATISTICS_REFERENCES = (
    "Shrout PE, Fleiss JL. Intraclass correlations: uses in assessing rater reliability. Psychol Bull 1979;86:420-8.",
    "Lin LI. A concordance correlation coefficient to evaluate reproducibility. Biometrics 1989;45:255-68.",
    "Bland JM, Altman DG. Statistical methods for assessing agreement between two methods of clinical measurement. "
    "Lancet 1986;327:307-10.",
    "Gwet KL. Computing inter-rater reliability and its variance in the presence of high agreement. Br J Math Stat "
    "Psychol 2008;61:29-48.",
    "Steiger JH. Tests for comparing elements of a correlation matrix. Psychol Bull 1980;87:245-51.",
    "Benjamini Y, Hochberg Y. Controlling the false discovery rate. J R Stat Soc B 1995;57:289-300.",
    "Seabold S, Perktold J. Statsmodels: econometric and statistical modeling with Python. Proc SciPy 2010:92-6.",
)


def references(settings: Settings) -> tuple[str, ...]:
    """What `methods` and `statistics` rest on, one citation each."""
    models = tuple(load(n).citation for n in settings.models or default())
    return tuple(dict.fromkeys((*models, *REFERENCES, *STATISTICS_REFERENCES)))


def methods(settings: Settings) -> str:
    """Paragraph on what was done."""
    names = settings.models or default()
    used = " ".join(f"{load(n).title}{_weights(settings, n)} ({load(n).citation})" for n in names)
    warp = "affine and SyN (2 mm)" if settings.registration == "deformable" else "affine"
    degree = bias.DEGREE_BY_ATLAS
    if settings.regions_from == "network":
        degree = bias.DEGREE
        anatomy = (
            f"Brain, tissues and regions were found in the T2w of a session and a second sequence, each at its own "
            f"resolution (mean of their probabilities; the second is the T1w if its largest voxel size was at most "
            f"{SHOWING['T1w'].times:g} times that of the T2w, or else the FLAIR if at most {SHOWING['FLAIR'].times:g} "
            f"times and {SHOWING['FLAIR'].mm:g} mm, left out if its structures lay elsewhere), "
            f"by a 3-D U-Net on a 2 mm grid, trained on simulated contrasts of "
            f"label maps of real people (after Billot et al.), in the pose of ICBM152 2009a symmetric (ANTs, {warp}; "
            f"corrected by the centres of these structures as long as that made the network surer), "
            f"and by a second one at 1 mm in the deep grey matter, which is given the likelihood of each nucleus by "
            f"the intensities of the scan; their borders were sharpened in the plane of the slices by a 2-D U-Net "
            f"where slices lie 2 mm or more apart, otherwise by expectation maximisation with these probabilities as "
            f"prior, and those of caudate, putamen, pallidum and thalamus by the intensity that "
            f"each of them has in the scan. "
        )
    else:
        anatomy = (
            f"A head made from label maps of real people in ICBM152 2009a symmetric space, with T2w-like contrast, was "
            f"registered to the T2w ({warp}, ANTs), and tissues were classified by expectation maximisation with the "
            f"atlas as prior. "
        )
    return (
        f"Enlarged perivascular spaces (EPVS) were measured with bids_epvs {__version__}. The T2w image "
        f"(without one, the T1w or FLAIR) was corrected for intensity inhomogeneity with N4 estimated at 2 mm and, "
        f"once tissues were known, with the polynomial field of degree {degree} under which each has one "
        f"intensity; further sequences were aligned with it rigidly, by the inside of the head, and corrected "
        f"likewise. {anatomy}"
        f"EPVS were measured in native space with: {used} In segmentations, connected voxels (26-neighbourhood) of "
        f"{settings.min_volume_mm3:g}-{settings.max_volume_mm3:g} mm3 were counted as one EPVS and assigned to the "
        f"region and hemisphere holding most of its voxels. Ratings follow Potter et al. and counts in named slices "
        f"Adams et al.; where slices are thick and not axial, both are of axial slabs of 4 mm. For research use; "
        f"networks were trained on simulated EPVS alone unless their weights are the "
        f"user's, and no method has been validated on labelled scans."
    )


def _weights(settings: Settings, name: str) -> str:
    """What a method's parameters were learnt from, in words."""
    if not load(name).weights:
        return ""
    return ", with weights given by the user" if settings.weights_of(name) else ", trained on simulated EPVS"


_STATISTICS = {
    "agreement": "Agreement between methods and raters is given as ICC(2,1) (Shrout & Fleiss 1979), Lin's concordance "
    "correlation, bias with limits of agreement (Bland & Altman 1986), and for grades as quadratically weighted kappa "
    "and Gwet's AC2 with ordinal weights, from one session of each person.",
    "williams": "Correlations of two methods with the same rater were compared with Williams' test.",
    "repeatability": "Repeatability is the ICC(1,1) and the smallest detectable change of the first two sessions.",
}


def statistics(analysis: Analysis) -> str:
    """Paragraph on the statistics of the group level, only what was done."""
    said = [text for name, text in _STATISTICS.items() if len(getattr(analysis, name))]
    kinds = [k for k in analysis.associations["regression"].dropna().unique()]
    if kinds:
        said.append(
            f"Associations ({'; '.join(analysis.formulas)}) were estimated in every region by {', '.join(kinds)} "
            "regression (statsmodels; counts with the logarithm of the region's volume as offset), with t intervals; p "
            "values were corrected over regions for the false discovery rate (Benjamini & Hochberg 1995)."
        )
    if analysis.maps:
        said.append("EPVS frequency maps were averaged over persons in ICBM152 2009a symmetric space.")
    return " ".join(said)


def bibliography() -> str:
    """BibTeX of what to cite."""
    return files("bids_epvs.data").joinpath("boilerplate.bib").read_text()

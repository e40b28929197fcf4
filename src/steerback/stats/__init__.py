"""The statistics of the instrument: outcomes, rates with clustered intervals, comparisons, power."""

from steerback.stats.agreement import cohen_kappa, correlation, fleiss_kappa
from steerback.stats.bootstrap import Mean
from steerback.stats.dose import DoseResponse, dose_response
from steerback.stats.effects import (
    TestResult,
    auc,
    cliffs_delta,
    cohens_d,
    cohens_d_paired,
    holm,
    one_sided,
    paired_t,
    welch,
    wilcoxon,
)
from steerback.stats.intervals import bootstrap_rate, cluster_rate, wilson
from steerback.stats.measures import MEASURES, points
from steerback.stats.outcomes import Cutoffs, Outcome, is_degraded, outcome
from steerback.stats.paired import Comparison, compare
from steerback.stats.power import Design, Power, power
from steerback.stats.summary import Summary, summarise

__all__ = [
    "MEASURES",
    "Comparison",
    "Cutoffs",
    "Design",
    "DoseResponse",
    "Mean",
    "Outcome",
    "Power",
    "Summary",
    "TestResult",
    "auc",
    "bootstrap_rate",
    "cliffs_delta",
    "cluster_rate",
    "cohen_kappa",
    "cohens_d",
    "cohens_d_paired",
    "compare",
    "correlation",
    "dose_response",
    "fleiss_kappa",
    "holm",
    "is_degraded",
    "one_sided",
    "outcome",
    "paired_t",
    "points",
    "power",
    "summarise",
    "welch",
    "wilcoxon",
    "wilson",
]

"""Checks of pairs, captions and splits, their report and the contact sheet. See docs/data.md."""

from data_prep.checks.base import Finding, Report
from data_prep.checks.duplicates import Signature, find_duplicates, frames_to_hash, make_signature, match_clips
from data_prep.checks.pairs import check_pair, check_vae, evenly_spaced, reference_findings
from data_prep.checks.pictures import pair_picture
from data_prep.checks.report import CheckLog, read_totals, require_no_failure, write_results

__all__ = [
    "CheckLog",
    "Finding",
    "Report",
    "Signature",
    "check_pair",
    "check_vae",
    "evenly_spaced",
    "find_duplicates",
    "frames_to_hash",
    "make_signature",
    "match_clips",
    "pair_picture",
    "read_totals",
    "reference_findings",
    "require_no_failure",
    "write_results",
]

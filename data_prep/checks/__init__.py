"""Checks of pairs, captions and splits, their report and the contact sheet. See docs/checks.md."""

from data_prep.checks.base import Finding, Report
from data_prep.checks.duplicates import Signature, duplicates, moments, sign
from data_prep.checks.pairs import check_pair, check_vae, spread
from data_prep.checks.pictures import pair_picture
from data_prep.checks.report import Notes, finish, require_no_failure

__all__ = [
    "Finding",
    "Notes",
    "Report",
    "Signature",
    "check_pair",
    "check_vae",
    "duplicates",
    "finish",
    "moments",
    "pair_picture",
    "require_no_failure",
    "sign",
    "spread",
]

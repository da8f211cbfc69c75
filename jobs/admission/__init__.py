"""Whether a request can be carried out, by which worker, at what cost, and whether it was done before."""

from __future__ import annotations

from jobs.admission.checks import Admission, admit
from jobs.admission.sources import Books

__all__ = ["Admission", "Books", "admit"]

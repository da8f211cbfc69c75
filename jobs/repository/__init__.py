"""The one door to the database: one verb per question or transition, synchronous, safe to share by threads.

Every verb opens and closes its own transaction; its docstring says which race it survives and whether a
repeat is safe. What an attempt writes is guarded by `WHERE id AND attempt AND state IN (…)`: zero rows
changed means that the attempt has been replaced.
"""

from __future__ import annotations

from jobs.repository.audit import AuditVerbs
from jobs.repository.creating import CreatingVerbs
from jobs.repository.logs import LogVerbs
from jobs.repository.purging import PurgingVerbs
from jobs.repository.reading import ARCHIVE
from jobs.repository.sweeping import SweepingVerbs
from jobs.repository.trust import TrustVerbs
from jobs.repository.uploads import UploadVerbs
from jobs.repository.user import UserVerbs
from jobs.repository.webhooks import WebhookVerbs
from jobs.repository.whole.duties import DutyVerbs
from jobs.repository.whole.feed import FeedVerbs
from jobs.repository.whole.records import RecordVerbs
from jobs.repository.whole.shares import ShareVerbs
from jobs.repository.whole.tallies import TallyVerbs
from jobs.repository.whole.totals import TotalVerbs
from jobs.repository.workers import WorkerVerbs

__all__ = ["ARCHIVE", "Repository"]


class Repository(
    LogVerbs,
    CreatingVerbs,
    UserVerbs,
    SweepingVerbs,
    PurgingVerbs,
    WebhookVerbs,
    WorkerVerbs,
    AuditVerbs,
    TrustVerbs,
    UploadVerbs,
    FeedVerbs,
    TallyVerbs,
    DutyVerbs,
    ShareVerbs,
    RecordVerbs,
    TotalVerbs,
):
    """All verbs, as `Repository(engine, settings)`. SweepingVerbs bring AttemptVerbs, TrustVerbs KeyVerbs."""

"""What changed lately, and how many there are of what: kept by triggers, so that nobody needs to count.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from jobs.tables import triggers

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")
#: Rows come and go here all day: vacuum by their number, not by a share of the table.
_OFTEN = "(autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)"


def upgrade() -> None:
    _make_tables()
    if op.get_bind().dialect.name == "postgresql":  # before the count: writers may be waiting
        triggers.install(op.get_bind())
    op.execute(
        "INSERT INTO tallies (subject, tenant, queue, kind, state, number)"
        " SELECT 'job', tenant, queue, kind, state, count(*) FROM jobs GROUP BY tenant, queue, kind, state"
    )
    op.execute(
        "INSERT INTO tallies (subject, tenant, queue, kind, state, number, milliseconds)"
        " SELECT 'attempt', tenant, '', '', outcome, count(*),"
        " sum(coalesce(attempts.finished_at - attempts.started_at, 0))"
        " FROM attempts JOIN jobs ON jobs.id = attempts.job_id GROUP BY tenant, outcome"
    )
    # Only the reconciliation still counts, by all four words; it shall not read the rows for that.
    op.create_index("ix_jobs_tenant_queue_kind_state", "jobs", ["tenant", "queue", "kind", "state"])
    op.drop_index("ix_jobs_state_kind", "jobs")
    waiting = sa.text("state = 'queued'")
    op.create_index(
        "ix_jobs_queue_queued_at",
        "jobs",
        ["queue", "queued_at"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )


def _make_tables() -> None:
    op.create_table(
        "changes",
        sa.Column("id", _SERIAL, nullable=False),
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("version", sa.BigInteger()),
        sa.Column("last_seq", sa.BigInteger()),
        sa.Column("state", sa.String(16)),
        sa.Column("noted_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changes")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_changes_transaction_id", "changes", ["transaction_id"])
    op.create_table(
        "tallies",
        sa.Column("id", _SERIAL, nullable=False),
        sa.Column("subject", sa.String(8), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("milliseconds", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tallies")),
    )
    op.create_index("ix_tallies_state_tenant", "tallies", ["state", "tenant"])
    op.create_table(
        "duties",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("token", sa.String(36)),
        sa.Column("taken_until", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Text()),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_duties")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE changes SET {_OFTEN}")
        op.execute(f"ALTER TABLE tallies SET {_OFTEN}")


def downgrade() -> None:
    op.create_index("ix_jobs_state_kind", "jobs", ["state", "kind"])
    op.drop_index("ix_jobs_queue_queued_at", "jobs")
    op.drop_index("ix_jobs_tenant_queue_kind_state", "jobs")
    triggers.remove(op.get_bind())
    for table in ("duties", "tallies", "changes"):
        op.drop_table(table)

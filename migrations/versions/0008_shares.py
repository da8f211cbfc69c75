"""Whose turn it is, what goes, and rows that are written in place.

Weights of tenants; indexes of what waits, runs, ran lately and ended long ago; none over what beats change.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("tenants") as tenants:
        tenants.add_column(sa.Column("weight", sa.Double(), server_default=sa.text("1"), nullable=False))
    waiting = sa.text("state = 'queued'")
    op.create_index(
        "ix_jobs_queue_tenant_priority_id",
        "jobs",
        ["queue", "tenant", "priority", "id"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.create_index("ix_attempts_finished_at", "attempts", ["finished_at"])
    ended = sa.text("finished_at IS NOT NULL")
    op.create_index(
        "ix_jobs_finished_at_id",
        "jobs",
        ["finished_at", "id"],
        sqlite_where=ended,
        postgresql_where=ended,
    )

    # An index over what each beat changes makes every beat rewrite all indexes of its row.
    op.drop_index("ix_jobs_lease_expires_at", "jobs")
    op.drop_index("ix_workers_seen_at", "workers")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE jobs SET (fillfactor = 85)")
        op.execute("ALTER TABLE workers SET (fillfactor = 50)")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE workers RESET (fillfactor)")
        op.execute("ALTER TABLE jobs RESET (fillfactor)")
    op.create_index("ix_workers_seen_at", "workers", ["seen_at"])
    held = sa.text("lease_expires_at IS NOT NULL")
    op.create_index(
        "ix_jobs_lease_expires_at",
        "jobs",
        ["lease_expires_at"],
        sqlite_where=held,
        postgresql_where=held,
    )
    op.drop_index("ix_jobs_finished_at_id", "jobs")
    op.drop_index("ix_attempts_finished_at", "attempts")
    op.drop_index("ix_jobs_queue_tenant_priority_id", "jobs")
    with op.batch_alter_table("tenants") as tenants:
        tenants.drop_column("weight")

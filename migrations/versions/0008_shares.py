"""Whose turn it is: weights of tenants, and indexes of what waits, runs, ran lately and ended long ago.

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


def downgrade() -> None:
    op.drop_index("ix_jobs_finished_at_id", "jobs")
    op.drop_index("ix_attempts_finished_at", "attempts")
    op.drop_index("ix_jobs_queue_tenant_priority_id", "jobs")
    with op.batch_alter_table("tenants") as tenants:
        tenants.drop_column("weight")

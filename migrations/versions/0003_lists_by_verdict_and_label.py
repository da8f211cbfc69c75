"""Indexes for lists by verdict and by the presence of a label.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_tenant_verdict_id", "jobs", ["tenant", "verdict", "id"])
    op.create_index("ix_jobs_verdict_id", "jobs", ["verdict", "id"])
    op.create_index("ix_job_labels_tenant_key_job_id", "job_labels", ["tenant", "key", "job_id"])


def downgrade() -> None:
    op.drop_index("ix_job_labels_tenant_key_job_id", "job_labels")
    op.drop_index("ix_jobs_verdict_id", "jobs")
    op.drop_index("ix_jobs_tenant_verdict_id", "jobs")

"""What ran beside what was asked, warnings, and where a pipeline's files lie in its archive.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("resolved", sa.Text()))
        jobs.add_column(sa.Column("warnings", sa.Text()))
    with op.batch_alter_table("artifacts") as artifacts:
        artifacts.add_column(sa.Column("archive_path", sa.String(160)))

    with op.batch_alter_table("workers") as workers:
        workers.add_column(sa.Column("suites", sa.Text(), nullable=False, server_default=sa.text("'{}'")))


def downgrade() -> None:
    with op.batch_alter_table("workers") as workers:
        workers.drop_column("suites")
    with op.batch_alter_table("artifacts") as artifacts:
        artifacts.drop_column("archive_path")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("warnings")
        jobs.drop_column("resolved")

"""Finished steps of pipelines that have not succeeded, and figures that only count up.

Revision ID: 0010
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("kept", sa.Text()))
    serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "totals",
        sa.Column("id", serial, nullable=False),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("word", sa.String(64), nullable=False),
        sa.Column("bound", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("milliseconds", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_totals")),
    )


def downgrade() -> None:
    op.drop_table("totals")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("kept")

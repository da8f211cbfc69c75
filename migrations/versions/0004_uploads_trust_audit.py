"""Uploads, trust rules with the keys issued by them, and the audit.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID, NAME, MOMENT = sa.String(36), sa.String(128), sa.BigInteger()


def upgrade() -> None:
    _access()
    _blobs()
    _uploads()
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("created_by", sa.Text()))


def _access() -> None:
    op.create_table(
        "trust_rules",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("issuer", sa.String(512), nullable=False),
        sa.Column("audience", sa.String(512), nullable=False),
        sa.Column("claims", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_trust_rules_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trust_rules")),
    )
    op.create_index("ix_trust_rules_issuer", "trust_rules", ["issuer"])
    op.create_table(
        "audit",
        sa.Column("id", ID, nullable=False),
        sa.Column("time", MOMENT, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("key_id", ID),
        sa.Column("subject", sa.Text()),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("object", sa.String(128), nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("subject", sa.Text()))
        keys.add_column(sa.Column("trust_id", ID))
        keys.create_foreign_key(
            op.f("fk_api_keys_trust_id_trust_rules"), "trust_rules", ["trust_id"], ["id"], ondelete="CASCADE"
        )
        keys.create_index("ix_api_keys_trust_id", ["trust_id"])


def _blobs() -> None:
    op.create_table(
        "blobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("last_part", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_blobs_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blobs")),
    )
    op.create_index("ix_blobs_tenant_sha256", "blobs", ["tenant", "sha256"])
    op.create_table(
        "blob_parts",
        sa.Column("blob_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_blob_parts_blob_id_blobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("blob_id", "number", name=op.f("pk_blob_parts")),
    )


def _uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("facts", sa.Text()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("completed_at", MOMENT),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.CheckConstraint("state IN ('open', 'complete')", name=op.f("ck_uploads_state")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_uploads_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_tenant_id", "uploads", ["tenant", "id"])
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])
    op.create_table(
        "upload_files",
        sa.Column("upload_id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("blob_id", ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"],
            ["uploads.id"],
            name=op.f("fk_upload_files_upload_id_uploads"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name=op.f("fk_upload_files_blob_id_blobs")),
        sa.PrimaryKeyConstraint("upload_id", "name", name=op.f("pk_upload_files")),
    )
    op.create_index("ix_upload_files_blob_id", "upload_files", ["blob_id"])


def downgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("created_by")
    for table in ("upload_files", "uploads", "blob_parts", "blobs"):
        op.drop_table(table)
    op.execute("DELETE FROM api_keys WHERE trust_id IS NOT NULL")  # they would never end with their rule
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_index("ix_api_keys_trust_id")
        keys.drop_constraint(op.f("fk_api_keys_trust_id_trust_rules"), type_="foreignkey")
        keys.drop_column("trust_id")
        keys.drop_column("subject")
    op.drop_table("audit")
    op.drop_table("trust_rules")

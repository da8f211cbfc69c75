"""The tables of uploads.

A file's bytes are a *blob*: parts in the artifact store, `{blob}/{number}`, that cover its size without
overlap. Several uploads of one tenant may refer to a blob whose hash was verified.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
)

from jobs.tables import ID, NAME, metadata

blobs = Table(
    "blobs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", NAME, ForeignKey("tenants.name"), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("last_part", Integer, nullable=False),  # numbers are handed out once: they name folders
    Column("created_at", BigInteger, nullable=False),
    Index("ix_blobs_tenant_sha256", "tenant", "sha256"),
)

blob_parts = Table(
    "blob_parts",
    metadata,
    Column("blob_id", ID, ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("first", BigInteger, nullable=False),  # the place of its first byte in the file
    Column("size", BigInteger, nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", NAME, ForeignKey("tenants.name"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", NAME, nullable=False),
    Column("state", String(16), nullable=False),
    Column("facts", Text),  # the header reader's, of a complete model
    Column("created_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    CheckConstraint("state IN ('open', 'complete')", name="state"),
    Index("ix_uploads_tenant_id", "tenant", "id"),
    Index("ix_uploads_expires_at", "expires_at"),
)

upload_files = Table(
    "upload_files",
    metadata,
    Column("upload_id", ID, ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("blob_id", ID, ForeignKey("blobs.id"), nullable=False),
    Index("ix_upload_files_blob_id", "blob_id"),
)

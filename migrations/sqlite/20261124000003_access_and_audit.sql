-- Tokens (a hash, never the token) and the audit chain.

CREATE TABLE tokens (
    id           TEXT    NOT NULL PRIMARY KEY,
    secret_hash  BLOB    NOT NULL CHECK (length(secret_hash) = 32),
    name         TEXT    NOT NULL,
    tenants      TEXT    NOT NULL,
    permissions  TEXT    NOT NULL,
    names        TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    created_by   TEXT    NOT NULL,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    last_used_at INTEGER,
    mac          BLOB    NOT NULL CHECK (length(mac) = 32)
) STRICT, WITHOUT ROWID;

-- A record is inserted unlinked (position and link absent) in the transaction of the change that it tells of.
CREATE TABLE audit (
    node_id     TEXT    NOT NULL,
    boot_id     TEXT    NOT NULL,
    record_no   INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    identity    TEXT    NOT NULL,
    action      TEXT    NOT NULL,
    tenant      TEXT,
    name        TEXT,
    version     INTEGER,
    blob_sha256 BLOB    CHECK (length(blob_sha256) = 32),
    outcome     TEXT    NOT NULL,
    record      BLOB    NOT NULL,
    mac         BLOB    NOT NULL CHECK (length(mac) = 32),
    position    INTEGER,
    link        BLOB    CHECK (length(link) = 32),
    PRIMARY KEY (node_id, boot_id, record_no),
    CHECK ((position IS NULL) = (link IS NULL))
) STRICT;
CREATE INDEX audit_by_time ON audit (at);
CREATE INDEX audit_by_secret ON audit (tenant, name, at);
CREATE UNIQUE INDEX audit_chain ON audit (node_id, boot_id, position) WHERE position IS NOT NULL;

CREATE TABLE audit_heads (
    node_id           TEXT    NOT NULL,
    boot_id           TEXT    NOT NULL,
    started_at        INTEGER NOT NULL,
    previous_boot_id  TEXT,
    previous_link     BLOB    CHECK (length(previous_link) = 32),
    chain_key_version INTEGER NOT NULL,
    position          INTEGER NOT NULL,
    link              BLOB    NOT NULL CHECK (length(link) = 32),
    updated_at        INTEGER NOT NULL,
    PRIMARY KEY (node_id, boot_id)
) STRICT, WITHOUT ROWID;

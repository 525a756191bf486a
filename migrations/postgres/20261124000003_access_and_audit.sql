-- Tokens (a hash, never the token) and the audit chain.

CREATE TABLE containarium.tokens (
    id           TEXT             NOT NULL PRIMARY KEY,
    secret_hash  BYTEA            NOT NULL CHECK (length(secret_hash) = 32),
    name         TEXT COLLATE "C" NOT NULL,
    tenants      TEXT             NOT NULL,
    permissions  TEXT             NOT NULL,
    names        TEXT             NOT NULL,
    created_at   BIGINT           NOT NULL,
    created_by   TEXT             NOT NULL,
    expires_at   BIGINT,
    revoked_at   BIGINT,
    last_used_at BIGINT,
    mac          BYTEA            NOT NULL CHECK (length(mac) = 32)
);

-- A record is inserted unlinked (position and link absent) in the transaction of the change that it tells of.
CREATE TABLE containarium.audit (
    node_id     TEXT             NOT NULL,
    boot_id     TEXT             NOT NULL,
    record_no   BIGINT           NOT NULL,
    at          BIGINT           NOT NULL,
    identity    TEXT             NOT NULL,
    action      TEXT             NOT NULL,
    tenant      TEXT COLLATE "C",
    name        TEXT COLLATE "C",
    version     BIGINT,
    blob_sha256 BYTEA            CHECK (length(blob_sha256) = 32),
    outcome     TEXT             NOT NULL,
    record      BYTEA            NOT NULL,
    mac         BYTEA            NOT NULL CHECK (length(mac) = 32),
    position    BIGINT,
    link        BYTEA            CHECK (length(link) = 32),
    PRIMARY KEY (node_id, boot_id, record_no),
    CHECK ((position IS NULL) = (link IS NULL))
);
CREATE INDEX audit_by_time ON containarium.audit (at);
CREATE INDEX audit_by_secret ON containarium.audit (tenant, name, at);
CREATE UNIQUE INDEX audit_chain ON containarium.audit (node_id, boot_id, position) WHERE position IS NOT NULL;

CREATE TABLE containarium.audit_heads (
    node_id           TEXT   NOT NULL,
    boot_id           TEXT   NOT NULL,
    started_at        BIGINT NOT NULL,
    previous_boot_id  TEXT,
    previous_link     BYTEA  CHECK (length(previous_link) = 32),
    chain_key_version BIGINT NOT NULL,
    position          BIGINT NOT NULL,
    link              BYTEA  NOT NULL CHECK (length(link) = 32),
    updated_at        BIGINT NOT NULL,
    PRIMARY KEY (node_id, boot_id)
);

-- The key hierarchy: master keys, tenants and their wrapped DEKs, and what proves that a copy of a master key is off the host.
-- Only public identifiers and wrapped keys are stored here. Times are microseconds since 1970-01-01 UTC, stamped by the database.

CREATE TABLE master_keys (
    kid          BLOB    NOT NULL PRIMARY KEY CHECK (length(kid) = 16),
    state        TEXT    NOT NULL CHECK (state IN ('staged', 'active', 'decrypt_only', 'retired', 'destroyed', 'aborted')),
    created_at   INTEGER NOT NULL,
    activated_at INTEGER,
    retired_at   INTEGER,
    destroyed_at INTEGER,
    wrapped_file BLOB
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX master_keys_one_active ON master_keys (state) WHERE state = 'active';
CREATE UNIQUE INDEX master_keys_one_staged ON master_keys (state) WHERE state = 'staged';

-- One row, made with the first key. epoch counts master changes; generation rises with each rotation, revocation and shred.
CREATE TABLE key_state (
    only_row     INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    db_id        BLOB    NOT NULL CHECK (length(db_id) = 16),
    epoch        INTEGER NOT NULL CHECK (epoch >= 1),
    generation   INTEGER NOT NULL CHECK (generation >= 1),
    active_kid   BLOB    NOT NULL REFERENCES master_keys (kid),
    mode         TEXT    NOT NULL CHECK (mode IN ('normal', 'compromised')),
    phase        TEXT    NOT NULL CHECK (phase IN ('idle', 'staged', 'rewrapping', 'verified', 'reencrypting')),
    lease_holder TEXT,
    lease_boot   TEXT,
    lease_until  INTEGER,
    CHECK ((lease_holder IS NULL) = (lease_boot IS NULL)),
    CHECK ((lease_holder IS NULL) = (lease_until IS NULL))
) STRICT;

CREATE TABLE escrows (
    id             TEXT    NOT NULL PRIMARY KEY,
    kid            BLOB    NOT NULL REFERENCES master_keys (kid),
    target         TEXT    NOT NULL,
    locator        TEXT,
    content_sha256 BLOB    CHECK (length(content_sha256) = 32),
    kind           TEXT    NOT NULL CHECK (kind IN ('copy', 'waiver')),
    started_at     INTEGER NOT NULL,
    confirmed_at   INTEGER,
    read_back_at   INTEGER,
    CHECK ((kind = 'waiver') = (content_sha256 IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX escrows_by_kid ON escrows (kid);

CREATE TABLE nodes (
    node_id      TEXT    NOT NULL PRIMARY KEY,
    boot_id      TEXT    NOT NULL,
    durable_kids TEXT    NOT NULL,
    epoch        INTEGER NOT NULL,
    seen_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tenants (
    tenant      TEXT    NOT NULL PRIMARY KEY CHECK (length(tenant) BETWEEN 1 AND 64),
    created_at  INTEGER NOT NULL,
    shred_at    INTEGER,
    shredded_at INTEGER,
    CHECK (shredded_at IS NULL OR shred_at IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE TABLE deks (
    tenant      TEXT    NOT NULL REFERENCES tenants (tenant),
    dek_version INTEGER NOT NULL CHECK (dek_version BETWEEN 1 AND 4294967295),
    kid         BLOB    REFERENCES master_keys (kid),
    dek_id      BLOB    NOT NULL CHECK (length(dek_id) = 16),
    state       TEXT    NOT NULL CHECK (state IN ('active', 'decrypt_only', 'shredded', 'quarantined')),
    wrapped     BLOB    CHECK (length(wrapped) = 132),
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, dek_version),
    CHECK ((state = 'shredded') = (kid IS NULL)),
    CHECK ((kid IS NULL) = (wrapped IS NULL))
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX deks_one_active ON deks (tenant) WHERE state = 'active';
CREATE INDEX deks_by_kid ON deks (kid, state, tenant, dek_version) WHERE kid IS NOT NULL;

-- A DEK may be wrapped by the active master key only: the database itself refuses a write that raced with a rotation.
CREATE TRIGGER deks_insert_under_active_kid BEFORE INSERT ON deks
WHEN NEW.kid IS NOT NULL AND NEW.kid IS NOT (SELECT active_kid FROM key_state)
BEGIN SELECT RAISE(ABORT, 'a DEK must be wrapped by the active master key'); END;

CREATE TRIGGER deks_update_under_active_kid BEFORE UPDATE OF kid ON deks
WHEN NEW.kid IS NOT NULL AND NEW.kid IS NOT OLD.kid AND NEW.kid IS NOT (SELECT active_kid FROM key_state)
BEGIN SELECT RAISE(ABORT, 'a DEK must be wrapped by the active master key'); END;

-- A rewrap changes the wrapping, never the DEK.
CREATE TRIGGER deks_identity_is_fixed BEFORE UPDATE OF tenant, dek_version, dek_id ON deks
WHEN NEW.tenant IS NOT OLD.tenant OR NEW.dek_version IS NOT OLD.dek_version OR NEW.dek_id IS NOT OLD.dek_id
BEGIN SELECT RAISE(ABORT, 'the identity of a DEK does not change'); END;

-- A master key that still wraps a DEK in use cannot be retired, destroyed or called aborted.
CREATE TRIGGER master_keys_in_use BEFORE UPDATE OF state ON master_keys
WHEN NEW.state IN ('retired', 'destroyed', 'aborted')
 AND EXISTS (SELECT 1 FROM deks WHERE kid = NEW.kid AND state IN ('active', 'decrypt_only'))
BEGIN SELECT RAISE(ABORT, 'a DEK in use is wrapped by this master key'); END;

CREATE TABLE database_backups (
    id          TEXT    NOT NULL PRIMARY KEY,
    taken_at    INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    target      TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,
    generation  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE drills (
    id          TEXT    NOT NULL PRIMARY KEY,
    ran_at      INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    source      TEXT    NOT NULL,
    kids        TEXT    NOT NULL,
    deks_opened INTEGER NOT NULL,
    deks_failed INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Secrets and their versions. A secret's row is also its version counter and is never removed: a number is used once.

CREATE TABLE secrets (
    tenant          TEXT    NOT NULL REFERENCES tenants (tenant),
    name            TEXT    NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    current_version INTEGER NOT NULL CHECK (current_version >= 0),
    last_version    INTEGER NOT NULL CHECK (last_version >= 0),
    delivery        TEXT    NOT NULL CHECK (delivery IN ('env', 'file', 'compose')),
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    deleted_at      INTEGER,
    PRIMARY KEY (tenant, name),
    CHECK (current_version <= last_version)
) STRICT, WITHOUT ROWID;

CREATE TABLE secret_versions (
    tenant       TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    version      INTEGER NOT NULL CHECK (version >= 1),
    state        TEXT    NOT NULL CHECK (state IN ('live', 'destroyed')),
    dek_version  INTEGER,
    ciphertext   BLOB    CHECK (length(ciphertext) BETWEEN 96 AND 65632),
    created_at   INTEGER NOT NULL,
    destroyed_at INTEGER,
    PRIMARY KEY (tenant, name, version),
    FOREIGN KEY (tenant, name) REFERENCES secrets (tenant, name),
    FOREIGN KEY (tenant, dek_version) REFERENCES deks (tenant, dek_version),
    CHECK ((state = 'live') = (ciphertext IS NOT NULL)),
    CHECK ((state = 'live') = (dek_version IS NOT NULL)),
    CHECK ((state = 'live') = (destroyed_at IS NULL))
) STRICT;
CREATE INDEX secret_versions_by_dek ON secret_versions (tenant, dek_version) WHERE dek_version IS NOT NULL;

-- The counter only rises, and what was destroyed stays destroyed.
CREATE TRIGGER secrets_counter_only_rises BEFORE UPDATE OF last_version ON secrets
WHEN NEW.last_version < OLD.last_version
BEGIN SELECT RAISE(ABORT, 'a version number is never used twice'); END;

CREATE TRIGGER secret_versions_destroyed_stays BEFORE UPDATE OF state ON secret_versions
WHEN OLD.state = 'destroyed' AND NEW.state IS NOT 'destroyed'
BEGIN SELECT RAISE(ABORT, 'a destroyed version stays destroyed'); END;

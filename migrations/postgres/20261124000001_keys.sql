-- The key hierarchy: master keys, tenants and their wrapped DEKs, and what proves that a copy of a master key is off the host.
-- Only public identifiers and wrapped keys are stored here. Times are microseconds since 1970-01-01 UTC, stamped by the database.
-- Every name is qualified: search_path is a session's, and a session is not ours behind a pooler.

CREATE TABLE containarium.master_keys (
    kid          BYTEA  NOT NULL PRIMARY KEY CHECK (length(kid) = 16),
    state        TEXT   NOT NULL CHECK (state IN ('staged', 'active', 'decrypt_only', 'retired', 'destroyed', 'aborted')),
    created_at   BIGINT NOT NULL,
    activated_at BIGINT,
    retired_at   BIGINT,
    destroyed_at BIGINT,
    wrapped_file BYTEA
);
CREATE UNIQUE INDEX master_keys_one_active ON containarium.master_keys (state) WHERE state = 'active';
CREATE UNIQUE INDEX master_keys_one_staged ON containarium.master_keys (state) WHERE state = 'staged';

-- One row, made with the first key. epoch counts master changes; generation rises with each rotation, revocation and shred.
CREATE TABLE containarium.key_state (
    only_row     BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    db_id        BYTEA  NOT NULL CHECK (length(db_id) = 16),
    epoch        BIGINT NOT NULL CHECK (epoch >= 1),
    generation   BIGINT NOT NULL CHECK (generation >= 1),
    active_kid   BYTEA  NOT NULL REFERENCES containarium.master_keys (kid),
    mode         TEXT   NOT NULL CHECK (mode IN ('normal', 'compromised')),
    phase        TEXT   NOT NULL CHECK (phase IN ('idle', 'staged', 'rewrapping', 'verified', 'reencrypting')),
    lease_holder TEXT,
    lease_boot   TEXT,
    lease_until  BIGINT,
    CHECK ((lease_holder IS NULL) = (lease_boot IS NULL)),
    CHECK ((lease_holder IS NULL) = (lease_until IS NULL))
);

CREATE TABLE containarium.escrows (
    id             TEXT   NOT NULL PRIMARY KEY,
    kid            BYTEA  NOT NULL REFERENCES containarium.master_keys (kid),
    target         TEXT   NOT NULL,
    locator        TEXT,
    content_sha256 BYTEA  CHECK (length(content_sha256) = 32),
    kind           TEXT   NOT NULL CHECK (kind IN ('copy', 'waiver')),
    started_at     BIGINT NOT NULL,
    confirmed_at   BIGINT,
    read_back_at   BIGINT,
    CHECK ((kind = 'waiver') = (content_sha256 IS NULL))
);
CREATE INDEX escrows_by_kid ON containarium.escrows (kid);

CREATE TABLE containarium.nodes (
    node_id      TEXT   NOT NULL PRIMARY KEY,
    boot_id      TEXT   NOT NULL,
    durable_kids TEXT   NOT NULL,
    epoch        BIGINT NOT NULL,
    seen_at      BIGINT NOT NULL
);

CREATE TABLE containarium.tenants (
    tenant      TEXT COLLATE "C" NOT NULL PRIMARY KEY CHECK (length(tenant) BETWEEN 1 AND 64),
    created_at  BIGINT           NOT NULL,
    shred_at    BIGINT,
    shredded_at BIGINT,
    CHECK (shredded_at IS NULL OR shred_at IS NOT NULL)
);

CREATE TABLE containarium.deks (
    tenant      TEXT COLLATE "C" NOT NULL REFERENCES containarium.tenants (tenant),
    dek_version BIGINT           NOT NULL CHECK (dek_version BETWEEN 1 AND 4294967295),
    kid         BYTEA            REFERENCES containarium.master_keys (kid),
    dek_id      BYTEA            NOT NULL CHECK (length(dek_id) = 16),
    state       TEXT             NOT NULL CHECK (state IN ('active', 'decrypt_only', 'shredded', 'quarantined')),
    wrapped     BYTEA            CHECK (length(wrapped) = 132),
    created_at  BIGINT           NOT NULL,
    PRIMARY KEY (tenant, dek_version),
    CHECK ((state = 'shredded') = (kid IS NULL)),
    CHECK ((kid IS NULL) = (wrapped IS NULL))
);
CREATE UNIQUE INDEX deks_one_active ON containarium.deks (tenant) WHERE state = 'active';
CREATE INDEX deks_by_kid ON containarium.deks (kid, state, tenant, dek_version) WHERE kid IS NOT NULL;

-- Whoever writes DEKs holds the master lock (advisory, in this transaction) and wraps by the active master key: the database itself
-- refuses a write that raced with a rotation. Statement triggers with transition tables: a row trigger makes a rewrap several times slower.
CREATE FUNCTION containarium.check_deks_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM pg_catalog.pg_locks
        WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid() AND granted
          AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
          AND classid = 1668247151 AND objid = 1 AND objsubid = 2
    ) THEN
        RAISE EXCEPTION 'DEKs are written under the master lock only';
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF EXISTS (
            SELECT 1 FROM new_rows
            WHERE kid IS NOT NULL AND kid IS DISTINCT FROM (SELECT active_kid FROM containarium.key_state)
        ) THEN
            RAISE EXCEPTION 'a DEK must be wrapped by the active master key';
        END IF;
    ELSE
        -- A row whose identity changed has no partner among the old rows.
        IF EXISTS (
            SELECT 1 FROM new_rows n LEFT JOIN old_rows o ON o.tenant = n.tenant AND o.dek_version = n.dek_version
            WHERE o.tenant IS NULL OR n.dek_id IS DISTINCT FROM o.dek_id
        ) THEN
            RAISE EXCEPTION 'the identity of a DEK does not change';
        END IF;
        IF EXISTS (
            SELECT 1 FROM new_rows n JOIN old_rows o ON o.tenant = n.tenant AND o.dek_version = n.dek_version
            WHERE n.kid IS NOT NULL AND n.kid IS DISTINCT FROM o.kid
              AND n.kid IS DISTINCT FROM (SELECT active_kid FROM containarium.key_state)
        ) THEN
            RAISE EXCEPTION 'a DEK must be wrapped by the active master key';
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER deks_inserted AFTER INSERT ON containarium.deks
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION containarium.check_deks_written();
CREATE TRIGGER deks_updated AFTER UPDATE ON containarium.deks
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION containarium.check_deks_written();

-- A master key that still wraps a DEK in use cannot be retired, destroyed or called aborted.
CREATE FUNCTION containarium.check_master_key_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM containarium.deks WHERE kid = NEW.kid AND state IN ('active', 'decrypt_only')) THEN
        RAISE EXCEPTION 'a DEK in use is wrapped by this master key';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER master_keys_in_use BEFORE UPDATE OF state ON containarium.master_keys
    FOR EACH ROW WHEN (NEW.state IN ('retired', 'destroyed', 'aborted')) EXECUTE FUNCTION containarium.check_master_key_state();

CREATE TABLE containarium.database_backups (
    id          TEXT   NOT NULL PRIMARY KEY,
    taken_at    BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    target      TEXT   NOT NULL,
    epoch       BIGINT NOT NULL,
    generation  BIGINT NOT NULL
);

CREATE TABLE containarium.drills (
    id          TEXT   NOT NULL PRIMARY KEY,
    ran_at      BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    source      TEXT   NOT NULL,
    kids        TEXT   NOT NULL,
    deks_opened BIGINT NOT NULL,
    deks_failed BIGINT NOT NULL
);

-- Secrets and their versions. A secret's row is also its version counter and is never removed: a number is used once.

CREATE TABLE containarium.secrets (
    tenant          TEXT COLLATE "C" NOT NULL REFERENCES containarium.tenants (tenant),
    name            TEXT COLLATE "C" NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    current_version BIGINT           NOT NULL CHECK (current_version >= 0),
    last_version    BIGINT           NOT NULL CHECK (last_version >= 0),
    delivery        TEXT             NOT NULL CHECK (delivery IN ('env', 'file', 'compose')),
    created_at      BIGINT           NOT NULL,
    updated_at      BIGINT           NOT NULL,
    deleted_at      BIGINT,
    PRIMARY KEY (tenant, name),
    CHECK (current_version <= last_version)
);

CREATE TABLE containarium.secret_versions (
    tenant       TEXT COLLATE "C" NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    version      BIGINT           NOT NULL CHECK (version >= 1),
    state        TEXT             NOT NULL CHECK (state IN ('live', 'destroyed')),
    dek_version  BIGINT,
    ciphertext   BYTEA            CHECK (length(ciphertext) BETWEEN 96 AND 65632),
    created_at   BIGINT           NOT NULL,
    destroyed_at BIGINT,
    PRIMARY KEY (tenant, name, version),
    FOREIGN KEY (tenant, name) REFERENCES containarium.secrets (tenant, name),
    FOREIGN KEY (tenant, dek_version) REFERENCES containarium.deks (tenant, dek_version),
    CHECK ((state = 'live') = (ciphertext IS NOT NULL)),
    CHECK ((state = 'live') = (dek_version IS NOT NULL)),
    CHECK ((state = 'live') = (destroyed_at IS NULL))
);
CREATE INDEX secret_versions_by_dek ON containarium.secret_versions (tenant, dek_version) WHERE dek_version IS NOT NULL;

-- The counter only rises, and what was destroyed stays destroyed.
CREATE FUNCTION containarium.check_secret_counter() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a version number is never used twice';
END $$;
CREATE TRIGGER secrets_counter_only_rises BEFORE UPDATE OF last_version ON containarium.secrets
    FOR EACH ROW WHEN (NEW.last_version < OLD.last_version) EXECUTE FUNCTION containarium.check_secret_counter();

CREATE FUNCTION containarium.check_secret_version_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a destroyed version stays destroyed';
END $$;
CREATE TRIGGER secret_versions_destroyed_stays BEFORE UPDATE OF state ON containarium.secret_versions
    FOR EACH ROW WHEN (OLD.state = 'destroyed' AND NEW.state <> 'destroyed') EXECUTE FUNCTION containarium.check_secret_version_state();

-- A node writes two chains with each start, one in this database and one in its file; each has a head here. Nothing has ever been
-- written into the table that this one replaces.
DROP TABLE containarium.audit_heads;

CREATE TABLE containarium.audit_chains (
    node_id          TEXT   NOT NULL,
    boot_id          TEXT   NOT NULL,
    kind             TEXT   NOT NULL CHECK (kind IN ('file', 'table')),
    started_at       BIGINT NOT NULL,
    previous_boot_id TEXT,
    previous_link    BYTEA  CHECK (length(previous_link) = 32),
    position         BIGINT NOT NULL CHECK (position >= 1),
    link             BYTEA  NOT NULL CHECK (length(link) = 32),
    updated_at       BIGINT NOT NULL,
    PRIMARY KEY (node_id, boot_id, kind),
    CHECK ((previous_boot_id IS NULL) = (previous_link IS NULL))
);

CREATE INDEX audit_unlinked ON containarium.audit (node_id, boot_id, record_no) WHERE position IS NULL;

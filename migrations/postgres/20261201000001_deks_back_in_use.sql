-- A DEK that comes back into use does so under the active master key: a retired one would be needed again, unseen. What is shredded stays
-- shredded: the first query that pairs rows asks that too, so that a rewrap pays for no further join.
CREATE OR REPLACE FUNCTION containarium.check_deks_written() RETURNS trigger LANGUAGE plpgsql AS $$
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
               OR (o.state = 'shredded' AND n.state <> 'shredded')
        ) THEN
            RAISE EXCEPTION 'the identity of a DEK does not change, and a shredded DEK stays shredded';
        END IF;
        IF EXISTS (
            SELECT 1 FROM new_rows n JOIN old_rows o ON o.tenant = n.tenant AND o.dek_version = n.dek_version
            WHERE n.kid IS NOT NULL AND n.kid IS DISTINCT FROM (SELECT active_kid FROM containarium.key_state)
              AND (n.kid IS DISTINCT FROM o.kid
                   OR (n.state IN ('active', 'decrypt_only') AND o.state NOT IN ('active', 'decrypt_only')))
        ) THEN
            RAISE EXCEPTION 'a DEK must be wrapped by the active master key';
        END IF;
    END IF;
    RETURN NULL;
END $$;

-- Each node asks every few seconds whose shred is pending or done.
CREATE INDEX tenants_blocked ON containarium.tenants (tenant) WHERE shred_at IS NOT NULL;

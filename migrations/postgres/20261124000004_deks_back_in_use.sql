-- A DEK that comes back into use does so under the active master key: a retired one would be needed again, unseen. What is shredded stays
-- shredded: the first query that pairs rows asks that too, so that a rewrap pays for no further join.
CREATE OR REPLACE FUNCTION containarium.check_deks_written() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    active BYTEA := (SELECT active_kid FROM containarium.key_state);
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
        IF EXISTS (SELECT 1 FROM new_rows WHERE kid IS NOT NULL AND kid IS DISTINCT FROM active) THEN
            RAISE EXCEPTION 'a DEK must be wrapped by the active master key';
        END IF;
    ELSE
        -- EXCEPT, not a join: a session keeps the plan of its first call, which may have been for one row, and a nested loop over the
        -- thousands of a rewrap takes longer than the rewrap.
        IF EXISTS (
            (SELECT tenant, dek_version, dek_id FROM new_rows EXCEPT SELECT tenant, dek_version, dek_id FROM old_rows)
            UNION ALL
            (SELECT tenant, dek_version, dek_id FROM new_rows WHERE state <> 'shredded'
             EXCEPT SELECT tenant, dek_version, dek_id FROM old_rows WHERE state <> 'shredded')
        ) THEN
            RAISE EXCEPTION 'the identity of a DEK does not change, and a shredded DEK stays shredded';
        END IF;
        IF EXISTS (
            (SELECT tenant, dek_version, kid FROM new_rows WHERE kid IS NOT NULL AND kid IS DISTINCT FROM active
             EXCEPT SELECT tenant, dek_version, kid FROM old_rows)
            UNION ALL
            (SELECT tenant, dek_version, kid FROM new_rows
             WHERE kid IS NOT NULL AND kid IS DISTINCT FROM active AND state IN ('active', 'decrypt_only')
             EXCEPT SELECT tenant, dek_version, kid FROM old_rows WHERE state IN ('active', 'decrypt_only'))
        ) THEN
            RAISE EXCEPTION 'a DEK must be wrapped by the active master key';
        END IF;
    END IF;
    RETURN NULL;
END $$;

-- Each node asks every few seconds whose shred is pending or done.
CREATE INDEX tenants_blocked ON containarium.tenants (tenant) WHERE shred_at IS NOT NULL;

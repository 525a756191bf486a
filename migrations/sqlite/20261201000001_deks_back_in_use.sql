-- A DEK that comes back into use does so under the active master key: a retired one would be needed again, unseen.
CREATE TRIGGER deks_back_in_use_under_active_kid BEFORE UPDATE OF state ON deks
WHEN NEW.state IN ('active', 'decrypt_only') AND OLD.state NOT IN ('active', 'decrypt_only')
 AND NEW.kid IS NOT (SELECT active_kid FROM key_state)
BEGIN SELECT RAISE(ABORT, 'a DEK must be wrapped by the active master key'); END;

-- What is shredded stays shredded.
CREATE TRIGGER deks_shredded_stays BEFORE UPDATE OF state ON deks
WHEN OLD.state = 'shredded' AND NEW.state IS NOT 'shredded'
BEGIN SELECT RAISE(ABORT, 'a shredded DEK stays shredded'); END;

-- Each node asks every few seconds whose shred is pending or done.
CREATE INDEX tenants_blocked ON tenants (tenant) WHERE shred_at IS NOT NULL;

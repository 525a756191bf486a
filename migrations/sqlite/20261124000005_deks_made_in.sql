-- The epoch in which a DEK was made; absent for those from before this migration. After the compromise of a master key every DEK of an
-- earlier epoch is replaced, and a clock that was set must not hide one: so no time is compared.
ALTER TABLE deks ADD COLUMN made_in_epoch INTEGER;

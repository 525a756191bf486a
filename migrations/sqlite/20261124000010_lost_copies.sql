-- Of a copy: when its place was last asked whether it is still there, and how it was missed then; absent while it was found there, and
-- where it was never asked. When and why reading it back last failed, until it is read back.
ALTER TABLE escrows ADD COLUMN looked_at INTEGER;
ALTER TABLE escrows ADD COLUMN lost_as TEXT CHECK (lost_as IN ('disabled', 'destroyed', 'absent'));
ALTER TABLE escrows ADD COLUMN unread_at INTEGER;
ALTER TABLE escrows ADD COLUMN unread_why TEXT;

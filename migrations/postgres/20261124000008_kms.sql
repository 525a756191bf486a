-- Of the copy of a wrapped key file: the versions of KMS keys that it is wrapped with, a space between two. Absent where it holds the key
-- itself, where it was not looked at, and for copies from before this migration.
ALTER TABLE containarium.escrows ADD COLUMN kms_versions TEXT;

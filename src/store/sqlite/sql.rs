//! Pieces of statements: the columns as `rows` names them, and what several statements ask.
//!
//! Macros, because a statement is one literal: nothing is ever formatted into one.

/// The database's time in microseconds. SQLite's clock has milliseconds; they are rounded as milliseconds, since their product with a
/// thousand need not be whole.
macro_rules! now {
    () => {
        "CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER) * 1000"
    };
}

macro_rules! tenant_columns {
    () => {
        "t.tenant AS t_tenant, t.shred_at AS t_shred_at"
    };
}

macro_rules! secret_columns {
    () => {
        "s.name AS s_name, s.current_version AS s_current_version, s.last_version AS s_last_version, \
         s.delivery AS s_delivery, s.created_at AS s_created_at, s.updated_at AS s_updated_at, s.deleted_at AS s_deleted_at"
    };
}

/// With the ciphertext.
macro_rules! version_columns {
    () => {
        concat!(version_metadata!(), ", v.ciphertext AS v_ciphertext")
    };
}

/// Without the ciphertext.
macro_rules! version_metadata {
    () => {
        "v.version AS v_version, v.state AS v_state, v.dek_version AS v_dek_version, v.created_at AS v_created_at, \
         v.destroyed_at AS v_destroyed_at"
    };
}

macro_rules! dek_columns {
    () => {
        "d.dek_version AS d_dek_version, d.kid AS d_kid, d.dek_id AS d_dek_id, d.state AS d_state, d.wrapped AS d_wrapped"
    };
}

/// A secret `s` that can be read: not deleted, its current version not destroyed. One whose current version has no row is damaged, and
/// must be seen to be.
macro_rules! readable {
    () => {
        "s.deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM secret_versions c WHERE c.tenant = s.tenant \
         AND c.name = s.name AND c.version = s.current_version AND c.state = 'destroyed')"
    };
}

/// A tenant `t` as its listing shows it.
macro_rules! tenant_record {
    () => {
        concat!(
            "t.tenant, t.created_at, t.shred_at, t.shredded_at, \
             (SELECT count(*) FROM secrets s WHERE s.tenant = t.tenant AND ",
            readable!(),
            ") AS secrets, \
             (SELECT d.dek_version FROM deks d WHERE d.tenant = t.tenant AND d.state = 'active') AS active_dek"
        )
    };
}

pub(super) use {
    dek_columns, now, readable, secret_columns, tenant_columns, tenant_record, version_columns, version_metadata,
};

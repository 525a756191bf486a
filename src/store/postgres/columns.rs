//! The columns that `store::rows` reads, for the tables by their usual letters: t (tenants), s (secrets), v (secret_versions), d (deks).
//! Literals by macro, so that `concat!` can put a statement together at compile time.

macro_rules! tenant_columns {
    () => {
        "t.tenant AS t_tenant, t.shred_at AS t_shred_at"
    };
}
macro_rules! secret_columns {
    () => {
        "s.name AS s_name, s.current_version AS s_current_version, s.last_version AS s_last_version, s.delivery AS s_delivery, \
         s.created_at AS s_created_at, s.updated_at AS s_updated_at, s.deleted_at AS s_deleted_at"
    };
}
macro_rules! version_columns {
    ($ciphertext:literal) => {
        concat!(
            "v.version AS v_version, v.state AS v_state, v.dek_version AS v_dek_version, ",
            $ciphertext,
            " AS v_ciphertext, v.created_at AS v_created_at, v.destroyed_at AS v_destroyed_at"
        )
    };
}
macro_rules! dek_columns {
    () => {
        "d.dek_version AS d_dek_version, d.kid AS d_kid, d.dek_id AS d_dek_id, d.state AS d_state, d.wrapped AS d_wrapped"
    };
}
pub(super) use {dek_columns, secret_columns, tenant_columns, version_columns};

/// A version as its column holds it; [`crate::model::SecretVersion`] promises that it fits.
pub(super) fn column(version: crate::model::SecretVersion) -> i64 {
    i64::try_from(version.get()).unwrap_or(i64::MAX)
}

/// One row more than asked for tells whether there are more.
pub(super) fn one_more(limit: u32) -> i64 {
    i64::from(limit) + 1
}

//! Reading the audit trail and holding it against the database: in the command's own process, with its own keys, so that a daemon that
//! was tampered with vouches for nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::chain::{ChainError, chain_keys};
use crate::audit::verify::{Verified, Verifier};
use crate::audit::{PRUNE, files_beside};
use crate::crypto::{self, Content};
use crate::keys::keyfile::KeyFiles;
use crate::keys::provider::{NotOpened, Provider};
use crate::keys::{CacheLimits, Keyring, Ring};
use crate::model::{BootId, DekBody, DekRecord, Kid, Micros, NodeId, SecretName, SecretVersion, Tenant, VersionBody};
use crate::node;
use crate::store::trail::{ChainHead, ChainKind, TrailRow};
use crate::store::{Found, Place, Store, StoreError, Which};

/// Records, versions and tenants that are read at a time.
const PAGE: u32 = 500;
/// By how much the clocks of nodes and database may differ: a version that was made so long after the first chain began may have been
/// made before it.
const SKEW: Duration = Duration::from_mins(10);

/// Why a trail could not be gone through.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("the database has held no master key yet, so there is no audit trail")]
    NoKey,
    #[error("{}: {why}", path.display())]
    NotOpened { path: PathBuf, why: NotOpened },
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: std::io::Error },
}

/// Verifies files and database. `file` is this node's, with those that were put aside beside it; `others` are other nodes' files, or ones
/// that were moved away, in the order in which they were written.
///
/// # Errors
/// [`TrailError`]; what is wrong with the trail is no error but a finding.
pub async fn verify(
    store: &dyn Store,
    (files, provider): (&KeyFiles, &Provider),
    file: &Path,
    others: &[PathBuf],
) -> Result<Verified, TrailError> {
    let keys = keyring(store, files, provider).await?;
    let own = file.parent().and_then(node::id_in);
    let heads = store.chains().await?;
    let begun = heads.iter().filter(|head| head.kind == ChainKind::Table).map(|head| head.started_at).min();
    let newest = newest_starts(&heads);
    let mut verifier = Verifier::new(chain_keys(store, &keys).await?, heads);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| TrailError::File { path, cause }
    };
    let mut paths = others.to_vec();
    paths.extend(files_beside(file).map_err(failed(file))?);
    for path in &paths {
        each_line(path, |_, line| verifier.learn_pruned(line)).map_err(failed(path))?;
    }
    for row in store.trail_of(PRUNE).await? {
        verifier.learn_pruned_row(&row);
    }
    for path in &paths {
        verifier.begin_file();
        each_line(path, |number, line| verifier.line(&format!("{} line {number}", path.display()), line))
            .map_err(failed(path))?;
    }
    let starts = store.starts().await?;
    for (node, boot) in &starts {
        each_linked(store, (*node, *boot), |row| verifier.row(row)).await?;
    }
    let nodes: BTreeMap<String, NodeId> = starts.iter().map(|(node, _)| (node.to_string(), *node)).collect();
    for node in nodes.into_values() {
        each_unlinked(store, node, |row| {
            let newest = newest.get(&row.node.to_string());
            verifier.unlinked(row, newest.is_none_or(|newest| *newest == row.boot.to_string()));
        })
        .await?;
    }
    let suspects = suspects(store, &verifier).await?;
    judge(store, begun, suspects, &mut verifier).await?;
    judge_tokens(store, &mut verifier).await?;
    Ok(verifier.finish(own))
}

/// Tokens that are good and were revoked.
async fn judge_tokens(store: &dyn Store, verifier: &mut Verifier) -> Result<(), StoreError> {
    let mut after: Option<String> = None;
    loop {
        let page = store.tokens(after.as_deref(), PAGE).await?;
        for token in page.items.iter().filter(|token| token.revoked_at.is_none()) {
            verifier.good_token(&token.id);
        }
        after = page.items.last().map(|token| token.id.clone());
        if !page.more || after.is_none() {
            return Ok(());
        }
    }
}

/// Live versions of which the records do not say what lies there; among them those that were written meanwhile.
async fn suspects(store: &dyn Store, verifier: &Verifier) -> Result<Vec<Place>, StoreError> {
    let mut found = Vec::new();
    let mut after: Option<Tenant> = None;
    let mut tenants = vec![Tenant::system()];
    while let Some(last) = tenants.last().cloned() {
        for tenant in &tenants {
            suspects_of(store, tenant, verifier, &mut found).await?;
        }
        if !last.is_system() {
            after = Some(last);
        }
        tenants = store.tenants(after.as_ref(), PAGE).await?.items.into_iter().map(|record| record.tenant).collect();
    }
    Ok(found)
}

/// A tenant's, of deleted secrets too.
async fn suspects_of(
    store: &dyn Store,
    tenant: &Tenant,
    verifier: &Verifier,
    found: &mut Vec<Place>,
) -> Result<(), StoreError> {
    for dek in store.deks(tenant).await? {
        let mut after: Option<(SecretName, SecretVersion)> = None;
        loop {
            let cursor = after.as_ref().map(|(name, version)| (name, *version));
            let page = store.sealed_under(tenant, dek.version, cursor, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.name.clone(), last.version));
            for sealed in page {
                let version = (tenant.to_string(), sealed.name.to_string(), sealed.version.get());
                if !verifier.knows(&version, &crypto::blob_sha256(&sealed.ciphertext)) {
                    let (name, which) = (sealed.name, Which::Number(sealed.version));
                    found.push(Place { tenant: tenant.clone(), name, which });
                }
            }
        }
    }
    Ok(())
}

/// Looks again: first at what lies there, then at what was recorded since, so that a change that came between is no finding.
async fn judge(
    store: &dyn Store,
    begun: Option<Micros>,
    suspects: Vec<Place>,
    verifier: &mut Verifier,
) -> Result<(), StoreError> {
    if suspects.is_empty() {
        return Ok(());
    }
    let skew = i64::try_from(SKEW.as_micros()).unwrap_or(i64::MAX);
    let begun = begun.map_or(i64::MAX, |begun| begun.0.saturating_add(skew));
    let mut again = Vec::with_capacity(suspects.len());
    for place in &suspects {
        let found = store.read(std::slice::from_ref(place)).await?.into_iter().next().transpose()?;
        let Some(Found::Secret(secret, Some(version))) = found else { continue };
        let VersionBody::Live { ciphertext, .. } = version.body else { continue };
        let id = (secret.tenant.to_string(), secret.name.to_string(), version.version.get());
        again.push((id, crypto::blob_sha256(&ciphertext), version.created_at.0 < begun));
    }
    for (node, boot) in store.starts().await? {
        each_row(store, (node, boot), |row| verifier.learn(row)).await?;
    }
    for (version, blob, is_old) in again {
        verifier.version(&version, &blob, is_old);
    }
    Ok(())
}

/// Hands out every record that is found in files and database, as JSON, unverified; of a file each line as it is.
///
/// # Errors
/// [`TrailError`].
pub async fn records(store: &dyn Store, file: &Path, mut each: impl FnMut(&[u8])) -> Result<(), TrailError> {
    let failed = |cause| TrailError::File { path: file.to_owned(), cause };
    for path in files_beside(file).map_err(failed)? {
        each_line(&path, |_, line| each(line)).map_err(failed)?;
    }
    for (node, boot) in store.starts().await? {
        each_row(store, (node, boot), |row| each(&row.record)).await?;
    }
    Ok(())
}

fn each_line(path: &Path, mut each: impl FnMut(u64, &[u8])) -> std::io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        number += 1;
        // What has no end yet is being written, or was cut short by a crash: nobody was answered on it.
        if let Some(whole) = line.strip_suffix(b"\n") {
            each(number, whole);
        }
    }
}

/// The last start of each node that has a chain in the database.
fn newest_starts(heads: &[ChainHead]) -> BTreeMap<String, String> {
    let of_table = heads.iter().filter(|head| head.kind == ChainKind::Table);
    of_table.map(|head| (head.node.to_string(), head.boot.to_string())).collect()
}

/// Rows of a start, by number.
async fn each_row(
    store: &dyn Store,
    (node, boot): (NodeId, BootId),
    mut each: impl FnMut(&TrailRow),
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = store.trail(node, boot, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.number);
        page.iter().for_each(&mut each);
    }
}

/// Rows of a start that have their places, in the order of these.
async fn each_linked(
    store: &dyn Store,
    (node, boot): (NodeId, BootId),
    mut each: impl FnMut(&TrailRow),
) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let page = store.linked(node, boot, after, PAGE).await?;
        let Some(last) = page.last().and_then(|row| row.place) else { return Ok(()) };
        after = last.position;
        page.iter().for_each(&mut each);
    }
}

/// Rows of a node that have no place.
async fn each_unlinked(store: &dyn Store, node: NodeId, mut each: impl FnMut(&TrailRow)) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = store.unlinked(node, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((last.boot, last.number));
        page.iter().for_each(&mut each);
    }
}

/// The keys that the system's own secrets lie under, from the files that hold them. What else is wrapped is not opened: each is a call.
async fn keyring(store: &dyn Store, files: &KeyFiles, provider: &Provider) -> Result<Arc<Keyring>, TrailError> {
    let state = store.survey().await?.key_state.ok_or(TrailError::NoKey)?;
    let kid = |dek: DekRecord| match dek.body {
        DekBody::Active(wrapped) | DekBody::DecryptOnly(wrapped) | DekBody::Quarantined(wrapped) => Some(wrapped.kid),
        DekBody::Shredded => None,
    };
    let needed: Vec<Kid> = store.deks(&Tenant::system()).await?.into_iter().filter_map(kid).collect();
    let mut masters = Vec::new();
    for file in files.scan().into_files().filter(|file| needed.contains(&file.kid)) {
        let path = file.path;
        masters.push(match file.content {
            Content::Raw(master) => master,
            Content::Wrapped(wrapped) => {
                provider.open(&wrapped).await.map_err(|why| TrailError::NotOpened { path, why })?.master
            }
        });
    }
    let limits = CacheLimits { max_entries: 8, max_age: Duration::from_mins(1) };
    let keys = Arc::new(Keyring::locked("not opened yet".to_owned(), limits));
    keys.open(Ring::new(state.active_kid, &masters));
    Ok(keys)
}

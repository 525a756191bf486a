//! Walks over all DEKs under one master key, a page at a time: the next page is read and the last one written while the processors work
//! on the one between, and no more than these three are in memory.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::failpoint;
use crate::keys::{Keyring, KeysError};
use crate::model::{DekRecord, KeyState, Kid};
use crate::store::masters::{DekCursor, Fence, Fenced, Rewrapped};
use crate::store::{Store, StoreError};

use super::Damaged;
use crate::service::Error;

/// DEKs of one page, and so of one transaction: enough that a round trip is nothing beside them, few enough that a writer who waits for
/// the lock waits for milliseconds.
const PAGE: u32 = 2_000;
/// Fewer than this are not worth another thread.
const CHUNK: usize = 128;
/// How many DEKs that do not open are named; more are counted.
const NAMED: usize = 20;

/// What stops a walk before its end.
#[derive(Debug)]
pub(super) enum WalkError {
    Store(StoreError),
    Keys(KeysError),
    /// The daemon stops.
    Stopping(Error),
    Panicked,
    /// The system gives no further thread.
    NoThread(std::io::Error),
}

impl From<StoreError> for WalkError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// DEKs that opened; of a rewrap, those that are under the other key now.
    pub(super) done: u64,
    pub(super) damaged: Vec<Damaged>,
    pub(super) more_damaged: u64,
}

impl Walked {
    fn add_damaged(&mut self, dek: &DekRecord, why: &KeysError) {
        if self.damaged.len() < NAMED {
            let (tenant, version) = (dek.tenant.clone(), Some(dek.version));
            self.damaged.push(Damaged { tenant, version, why: why.to_string() });
        } else {
            self.more_damaged += 1;
        }
    }

    /// Keeps what is wrong with one DEK; what is wrong with all of them stops the walk.
    fn judge<T>(&mut self, dek: &DekRecord, result: Result<T, KeysError>) -> Result<Option<T>, WalkError> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(error @ (KeysError::DoesNotOpen(_) | KeysError::WrongId)) => {
                self.add_damaged(dek, &error);
                Ok(None)
            }
            Err(error) => Err(WalkError::Keys(error)),
        }
    }
}

/// Opens every DEK in use under a key. `progress` hears how many were opened, and may stop it.
pub(super) async fn check(
    store: &dyn Store,
    keys: &Arc<Keyring>,
    under: Kid,
    mut progress: impl FnMut(u64) -> Result<(), Error>,
) -> Result<Walked, WalkError> {
    let mut walked = Walked::default();
    let mut page = store.deks_under(under, None, PAGE).await?;
    while let Some(last) = page.last().map(DekCursor::of) {
        let (read, opened) =
            tokio::join!(store.deks_under(under, Some(&last), PAGE), on_processors(page, keys, Keyring::check),);
        failpoint::reached("rotation.checked-page");
        for (dek, result) in opened? {
            walked.done += u64::from(walked.judge(&dek, result)?.is_some());
        }
        progress(walked.done).map_err(WalkError::Stopping)?;
        page = read?;
    }
    Ok(walked)
}

/// Wraps every DEK in use under `old` by the fence's active key. `Err` of the inner result: the fence does not hold any more.
pub(super) async fn rewrap(
    store: &dyn Store,
    keys: &Arc<Keyring>,
    fence: &Fence,
    old: Kid,
    mut progress: impl FnMut(u64) -> Result<(), Error>,
) -> Result<Result<Walked, KeyState>, WalkError> {
    let mut walked = Walked::default();
    let mut page = store.deks_under(old, None, PAGE).await?;
    let mut batch: Vec<Rewrapped> = Vec::new();
    while !page.is_empty() || !batch.is_empty() {
        let last = page.last().map(DekCursor::of);
        let active = fence.active;
        let (read, wrapped, applied) = tokio::join!(
            read_after(store, old, last.as_ref()),
            on_processors(page, keys, move |keys, dek| keys.rewrap(dek, active)),
            apply(store, fence, &batch),
        );
        match applied? {
            Fenced::Done(changed) => walked.done += changed,
            Fenced::Elsewhere(state) => return Ok(Err(state)),
        }
        progress(walked.done).map_err(WalkError::Stopping)?;
        batch.clear();
        for (dek, result) in wrapped? {
            if let (Some(after), Some(before)) = (walked.judge(&dek, result)?, dek.wrapping().cloned()) {
                batch.push(Rewrapped { tenant: dek.tenant, version: dek.version, before, after });
            }
        }
        failpoint::reached("rotation.page-wrapped");
        page = read?;
    }
    Ok(Ok(walked))
}

async fn read_after(store: &dyn Store, under: Kid, last: Option<&DekCursor>) -> Result<Vec<DekRecord>, StoreError> {
    match last {
        Some(last) => store.deks_under(under, Some(last), PAGE).await,
        None => Ok(Vec::new()),
    }
}

async fn apply(store: &dyn Store, fence: &Fence, batch: &[Rewrapped]) -> Result<Fenced<u64>, StoreError> {
    if batch.is_empty() {
        return Ok(Fenced::Done(0));
    }
    let applied = store.rewrap(fence, batch).await;
    failpoint::reached("rotation.page-applied");
    applied
}

/// Work on each DEK of a page, on as many threads as there are processors. None of it on those that serve requests, nor on those that
/// may block, which others wait for: these threads give way to them (and so live for one page: what gave way cannot take it back).
async fn on_processors<T: Send + 'static>(
    page: Vec<DekRecord>,
    keys: &Arc<Keyring>,
    work: impl Fn(&Keyring, &DekRecord) -> Result<T, KeysError> + Copy + Send + 'static,
) -> Result<Vec<(DekRecord, Result<T, KeysError>)>, WalkError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let chunk = page.len().div_ceil(threads).max(CHUNK);
    let mut all = Vec::with_capacity(page.len());
    let mut rest = page.into_iter();
    let mut tasks = Vec::with_capacity(threads);
    loop {
        let part: Vec<DekRecord> = rest.by_ref().take(chunk).collect();
        if part.is_empty() {
            break;
        }
        let keys = Arc::clone(keys);
        let (done, doing) = oneshot::channel();
        let each = move |dek: DekRecord| {
            let result = work(&keys, &dek);
            (dek, result)
        };
        let thread = std::thread::Builder::new().name("walk".to_owned());
        let all_of_it = move || {
            give_way();
            // Nobody waits for it where the walk ended meanwhile.
            let _unheard = done.send(part.into_iter().map(each).collect::<Vec<_>>());
        };
        thread.spawn(all_of_it).map_err(WalkError::NoThread)?;
        tasks.push(doing);
    }
    for task in tasks {
        all.extend(task.await.map_err(|_| WalkError::Panicked)?);
    }
    Ok(all)
}

/// The calling thread, and those that it starts, leave the processors to whoever wants them: with nobody there they have all of them, beside
/// requests a tenth of one.
pub(super) fn give_way() {
    const BEHIND_OTHERS: i32 = 10;
    // Where the system does not let it (a filter of system calls), it competes.
    let _refused = rustix::process::nice(BEHIND_OTHERS);
}

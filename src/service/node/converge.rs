//! Keys and key files brought to what the database says of the master keys.

use std::path::PathBuf;

use super::{Node, NodeError, Progress};
use crate::crypto::{self, Content, KeyfileImage, MasterKey};
use crate::keys::Keys;
use crate::keys::keyfile::{KeyFiles, KeyfileError, MainFile, Scan};
use crate::keys::unlock::Soon;
use crate::model::{Kid, MasterKeyRecord, MasterKeyState, WrappedMaster};
use crate::store::Survey;

/// A tick waits for no KMS: other nodes would take this one for dead.
const UNANSWERED: &str = "who is to open it was asked, and has not answered yet";

/// The key files, looked at.
pub(super) struct Look {
    pub(super) scan: Scan,
    pub(super) durable: Vec<Kid>,
    pub(super) problems: Vec<String>,
}

/// Keys that were taken over from the database, and opened for that.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) masters: Vec<MasterKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Now,
    /// Another process has the key files' lock.
    Later,
}

/// What the key files lack.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Work {
    promote: Option<Kid>,
    unlink: Vec<Kid>,
}

/// What was done to them.
#[derive(Default)]
struct Done {
    promoted: Option<Kid>,
    unlinked: Vec<PathBuf>,
    problems: Vec<String>,
}

impl Node {
    pub(super) async fn look(&self, progress: &mut Progress) -> Result<Look, NodeError> {
        let (files, mut synced) = (self.files.clone(), std::mem::take(&mut progress.synced));
        let looked = tokio::task::spawn_blocking(move || {
            let scan = files.scan();
            let (durable, unsynced) = files.durable(&scan, &mut synced);
            (scan, durable, unsynced, synced)
        });
        let (scan, durable, unsynced, synced) = looked.await.map_err(|_| NodeError::Panicked)?;
        progress.synced = synced;
        let bad = match &scan.main {
            MainFile::Bad(error) => Some(error),
            MainFile::Missing | MainFile::Key(_) => None,
        };
        let problems = bad.into_iter().chain(&scan.problems).chain(&unsynced).map(ToString::to_string).collect();
        Ok(Look { scan, durable, problems })
    }

    /// Takes over the wrapped file of a staged key that a rotation put into the database: where this node opens it, by its own permission, and
    /// only then. A file that it cannot open would be acknowledged by nobody, and is not kept. What is in the database is there for everybody
    /// who writes to it, a kid included: somebody's own key, wrapped by a KMS key of theirs that lets this node decrypt, would open as well.
    /// So it is taken only where nothing but KMS keys that this node's own key file is wrapped by wrap it, with which such a writer cannot
    /// encrypt; and never where that file is the key itself.
    pub(super) async fn take_staged(&self, survey: &Survey, look: &mut Look) -> Taken {
        let mut taken = Taken::default();
        let open = matches!(&*self.keys.state(), Keys::Open(_));
        let staged = |key: &&MasterKeyRecord| key.state == MasterKeyState::Staged;
        let own = match &look.scan.main {
            MainFile::Key(main) => main.wrapped().cloned(),
            MainFile::Missing | MainFile::Bad(_) => None,
        };
        let is_of_own_keys = |wrapped: &WrappedMaster| {
            own.as_ref().is_some_and(|own| wrapped.kms_keys().iter().all(|key| own.kms_keys().contains(key)))
        };
        for kid in survey.master_keys.iter().filter(staged).filter(|_| open).map(|key| key.kid) {
            if look.scan.files().any(|file| file.kid == kid) {
                continue;
            }
            let wrapped = match self.store.wrapped_file(kid).await {
                // A raw key comes by another way.
                Ok(None) => continue,
                Ok(Some(bytes)) => match WrappedMaster::parse(&bytes) {
                    Ok(wrapped) if !is_of_own_keys(&wrapped) => {
                        look.problems.push(format!(
                            "what the database has as the file of master key {kid} is not wrapped as this node's own key file is, and not \
                             taken: if it is meant, `containarium admin install-key` there"
                        ));
                        continue;
                    }
                    Ok(wrapped) if wrapped.kid == kid && wrapped.age().next().is_none() => wrapped,
                    Ok(_) => {
                        look.problems
                            .push(format!("what the database has as the file of master key {kid} is another key's"));
                        continue;
                    }
                    Err(error) => {
                        look.problems.push(format!("what the database has as the file of master key {kid}: {error}"));
                        continue;
                    }
                },
                Err(error) => {
                    look.problems.push(format!("the file of master key {kid} was not read from the database: {error}"));
                    continue;
                }
            };
            match self.unlocker.open_soon(&wrapped, &*self.clock).await {
                Soon::Open(master) => match self.keep_taken(&wrapped).await {
                    Ok(Kept::Now) => taken.masters.push(master),
                    Ok(Kept::Later) => {}
                    Err(why) => look.problems.push(why),
                },
                Soon::Closed(why) => {
                    look.problems.push(format!("the new key is not taken over from the database: {why}"));
                }
                Soon::Asked => {
                    look.problems.push(format!("the new key is not taken over from the database yet: {UNANSWERED}"));
                }
            }
        }
        taken
    }

    async fn keep_taken(&self, wrapped: &WrappedMaster) -> Result<Kept, String> {
        let (files, image) = (self.files.clone(), KeyfileImage::of_wrapped(wrapped));
        let kept = tokio::task::spawn_blocking(move || {
            // Who writes key files now may be at it for a while, and there is a next tick.
            let Some(lock) = files.try_lock()? else { return Ok(Kept::Later) };
            lock.stage_image(&image).map(|_| Kept::Now)
        });
        let kept: Result<Kept, KeyfileError> = kept.await.map_err(|_| "a thread ended with a panic".to_owned())?;
        let kept = kept.map_err(|error| error.to_string())?;
        if kept == Kept::Now {
            tracing::info!("took master key {} over from the database: KMS opens it for this node", wrapped.kid);
        }
        Ok(kept)
    }

    /// Loads what the database needs, and the key that is about to become active: the moment of the flip must find it here. A restored
    /// database too is read with whatever fits. Answers what is wanted and does not open.
    pub(super) async fn load_keys(&self, survey: &Survey, scan: &Scan, taken: &Taken) -> Vec<String> {
        let Some(state) = &survey.key_state else { return Vec::new() };
        let gone: Vec<Kid> = survey.master_keys.iter().filter(|key| is_gone(key)).map(|key| key.kid).collect();
        let is_wanted = |kid: Kid| survey.master_keys.iter().any(|key| key.kid == kid && is_needed(key));
        let state_now = self.keys.state();
        let Keys::Open(ring) = &*state_now else { return Vec::new() };
        let (mut opened, mut unopened) = (Vec::new(), Vec::new());
        let taken_over: Vec<Kid> = taken.masters.iter().map(crypto::kid).collect();
        let mut raw = Vec::new();
        // As at the start: a second file of the same key does not stand in for the first.
        for file in scan.first_of_each().filter(|file| is_wanted(file.kid) && !ring.holds(file.kid)) {
            if taken_over.contains(&file.kid) {
                continue;
            }
            match &file.content {
                Content::Raw(master) => raw.push(master),
                Content::Wrapped(wrapped) => match self.unlocker.open_soon(wrapped, &*self.clock).await {
                    Soon::Open(master) => opened.push(master),
                    Soon::Closed(why) => unopened.push(format!("{}: {why}", file.path.display())),
                    Soon::Asked => unopened.push(format!("{}: {UNANSWERED}", file.path.display())),
                },
            }
        }
        let new: Vec<&MasterKey> = raw.into_iter().chain(&opened).chain(&taken.masters).collect();
        for master in &new {
            tracing::info!("loaded master key {}", crypto::kid(master));
        }
        if !new.is_empty() || ring.active() != state.active_kid || gone.iter().any(|kid| ring.holds(*kid)) {
            self.keys.converge(state.active_kid, &new, &gone);
        }
        unopened
    }

    /// The keys that this node vouches for: on its disk for certain, and of a staged one that is wrapped, opened by this node itself. A flip
    /// to a key that it cannot open would take its secrets from it.
    pub(super) fn acknowledged(&self, survey: &Survey, look: &Look) -> Vec<Kid> {
        let keys = self.keys.state();
        let is_open = |kid: Kid| matches!(&*keys, Keys::Open(ring) if ring.holds(kid));
        let is_staged =
            |kid: Kid| survey.master_keys.iter().any(|key| key.kid == kid && key.state == MasterKeyState::Staged);
        let is_raw = |kid: Kid| look.scan.first_of_each().any(|file| file.kid == kid && file.wrapped().is_none());
        look.durable.iter().copied().filter(|kid| !is_staged(*kid) || is_raw(*kid) || is_open(*kid)).collect()
    }

    /// Puts the active key in its place, and removes aborted and destroyed ones; nothing else is ever taken away. Whether anything
    /// changed. While another writer holds the key files' lock nothing is done: there is a next tick.
    pub(super) async fn converge_files(&self, survey: &Survey, look: &mut Look) -> Result<bool, NodeError> {
        // Locked keys have the start's own rules, which promise that nothing is changed.
        if matches!(&*self.keys.state(), Keys::Locked(_)) {
            return Ok(false);
        }
        let Some(work) = Work::of(survey, &look.scan) else { return Ok(false) };
        let files = self.files.clone();
        let done =
            tokio::task::spawn_blocking(move || work.carry_out(&files)).await.map_err(|_| NodeError::Panicked)?;
        let done = match done {
            Ok(done) => done,
            Err(error) => Done { problems: vec![error.to_string()], ..Done::default() },
        };
        if let Some(kid) = done.promoted {
            tracing::info!("the active key, kid {kid}, is now in {}", self.files.path().display());
        }
        for path in &done.unlinked {
            tracing::info!("removed {}: its key is aborted or destroyed", path.display());
        }
        look.problems.extend(done.problems);
        Ok(done.promoted.is_some() || !done.unlinked.is_empty())
    }
}

impl Work {
    fn of(survey: &Survey, scan: &Scan) -> Option<Self> {
        let active = survey.key_state.as_ref()?.active_kid;
        let retained = |kid: Kid| scan.retained.iter().any(|key| key.kid == kid);
        let promote = match &scan.main {
            MainFile::Key(main) if main.kid == active => None,
            MainFile::Key(_) | MainFile::Missing => Some(active).filter(|kid| retained(*kid)),
            // Nothing is written over what cannot be read.
            MainFile::Bad(_) => None,
        };
        let on_disk = |kid: Kid| scan.files().any(|file| file.kid == kid) || scan.aside_kids.contains(&kid);
        let unlink: Vec<Kid> =
            survey.master_keys.iter().filter(|key| is_gone(key) && on_disk(key.kid)).map(|key| key.kid).collect();
        (promote.is_some() || !unlink.is_empty()).then_some(Self { promote, unlink })
    }

    fn carry_out(self, files: &KeyFiles) -> Result<Done, KeyfileError> {
        let mut done = Done::default();
        let Some(lock) = files.try_lock()? else { return Ok(done) };
        if let Some(kid) = self.promote {
            match lock.promote(kid) {
                Ok(()) => done.promoted = Some(kid),
                Err(error) => done.problems.push(error.to_string()),
            }
        }
        for kid in self.unlink {
            match lock.unlink_copies(kid) {
                Ok(paths) => done.unlinked.extend(paths),
                Err(error) => done.problems.push(error.to_string()),
            }
        }
        Ok(done)
    }
}

/// Whether a node should hold it.
pub(super) const fn is_needed(key: &MasterKeyRecord) -> bool {
    key.in_use || matches!(key.state, MasterKeyState::Staged | MasterKeyState::Active | MasterKeyState::DecryptOnly)
}

/// Whether it is gone for good. The database itself lets no key get there that a DEK in use needs; looked at all the same.
const fn is_gone(key: &MasterKeyRecord) -> bool {
    !key.in_use && matches!(key.state, MasterKeyState::Aborted | MasterKeyState::Destroyed)
}

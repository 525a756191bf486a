//! What operators tell of copies of the database and of drills.

use crate::access::AdminGrant;
use crate::crypto;
use crate::model::{Action, DatabaseBackup, Drill, Kid, Micros};
use crate::store::{Store, Survey};

use super::{Error, Request, Service, Touched};

/// The most bytes of a place's or a source's name.
const MAX_NAME: usize = 1024;

/// A copy of the database, as its maker tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeCopy {
    /// Where it is.
    pub target: String,
    pub known: Known,
}

/// How much is known of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// What was read from the copy.
    State(CopiedState),
    /// When it was made: what a look at a dump from outside tells.
    Time(Micros),
    /// That its maker says so, now.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedState {
    pub db_id: [u8; 16],
    pub epoch: u64,
    pub generation: u64,
    /// When the copy was begun.
    pub taken_at: Micros,
}

/// A drill, as its runner tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RanDrill {
    pub db_id: [u8; 16],
    pub source: String,
    pub kids: Vec<Kid>,
    pub deks_opened: u64,
    pub deks_failed: u64,
}

impl Service {
    /// Remembers that a copy of the database was made.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is none; [`Error::Conflict`] for a copy of another database, or of a state that this one has
    /// not reached; [`Error::Unavailable`].
    pub async fn record_database_backup(
        &self,
        request: &Request,
        grant: &AdminGrant,
        made: MadeCopy,
    ) -> Result<DatabaseBackup, Error> {
        let change = self.change(request, grant.identity(), Action::RecordDatabaseBackup, None).await?;
        let result = self.add_database_backup(change.store(), made).await;
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    /// Remembers a drill, one that failed too.
    ///
    /// # Errors
    /// As [`Service::record_database_backup`].
    pub async fn record_drill(&self, request: &Request, grant: &AdminGrant, ran: RanDrill) -> Result<Drill, Error> {
        let change = self.change(request, grant.identity(), Action::RecordDrill, None).await?;
        let result = self.add_drill(change.store(), ran).await;
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    async fn add_database_backup(&self, store: &dyn Store, made: MadeCopy) -> Result<DatabaseBackup, Error> {
        check_name("the copy's place", &made.target)?;
        self.may_change().await?;
        let (survey, now) = (self.store.survey().await?, self.store.now().await?);
        let current = current(&survey)?;
        let state = match made.known {
            Known::State(state) => state,
            // It holds the generation of its time, which is this one or an earlier one.
            Known::Time(taken_at) => CopiedState { taken_at, ..current },
            Known::Nothing => CopiedState { taken_at: now, ..current },
        };
        check_same(state.db_id, current.db_id, "the copy is one")?;
        if (state.epoch, state.generation) > (current.epoch, current.generation) {
            return Err(Error::Conflict(format!(
                "the copy holds epoch {}, generation {}, and this database has only come to epoch {}, generation {}",
                state.epoch, state.generation, current.epoch, current.generation
            )));
        }
        // The clocks of copier and database may differ; a copy from the future would look young for too long.
        let taken_at = state.taken_at.min(now);
        let (epoch, generation) = (state.epoch, state.generation);
        let backup = DatabaseBackup { id: new_id()?, taken_at, target: made.target, epoch, generation };
        store.add_database_backup(&backup).await?;
        Ok(backup)
    }

    async fn add_drill(&self, store: &dyn Store, ran: RanDrill) -> Result<Drill, Error> {
        check_name("the drill's source", &ran.source)?;
        self.may_change().await?;
        let current = current(&self.store.survey().await?)?;
        check_same(ran.db_id, current.db_id, "the drill was one on a copy")?;
        let RanDrill { source, mut kids, deks_opened, deks_failed, .. } = ran;
        kids.sort_unstable();
        let drill = Drill { id: new_id()?, ran_at: self.store.now().await?, source, kids, deks_opened, deks_failed };
        store.add_drill(&drill).await?;
        Ok(drill)
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Error::Invalid(format!(
            "{what} must have 1 to {MAX_NAME} bytes, none of them a control character"
        )));
    }
    Ok(())
}

fn current(survey: &Survey) -> Result<CopiedState, Error> {
    let state = survey.key_state.as_ref();
    let state = state.ok_or_else(|| Error::Conflict("the database has never held a key".to_owned()))?;
    let (db_id, epoch, generation) = (state.db_id, state.epoch, state.generation);
    Ok(CopiedState { db_id, epoch, generation, taken_at: Micros(0) })
}

fn check_same(told: [u8; 16], ours: [u8; 16], what: &str) -> Result<(), Error> {
    if told == ours {
        return Ok(());
    }
    Err(Error::Conflict(format!(
        "{what} of another database than this daemon's; give the command the daemon's own settings (`containarium config show`)"
    )))
}

fn new_id() -> Result<String, Error> {
    crypto::random_id().map_err(|_| Error::Internal(super::Failure::Other))
}

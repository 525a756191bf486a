//! Callers that are turned away, counted: the first of an identity and an action is recorded at once, those that follow within the same
//! second by one record together, when the second is over. Their answers wait for it, so that none leaves unrecorded, and so that a
//! flood fills no disk and is slowed down.

use std::collections::HashMap;
use std::mem;
use std::sync::Mutex;

use tokio::sync::oneshot;

use super::file::lock;
use super::{AuditError, Record};
use crate::model::Action;

type Waiter = oneshot::Sender<Result<(), AuditError>>;

/// What came in this second, by identity and action: so many entries as there are identities, whatever they ask for.
#[derive(Default)]
pub(super) struct Denials(Mutex<HashMap<(String, Action), Second>>);

#[derive(Default)]
struct Second {
    /// The last of those that wait, which stands for them.
    last: Option<Record>,
    waiters: Vec<Waiter>,
}

/// What is to be done with a denial.
pub(super) enum Turn {
    /// It is the first: record it now.
    Record(Box<Record>),
    /// It is counted; the answer comes with the second's record.
    Wait(oneshot::Receiver<Result<(), AuditError>>),
}

impl Denials {
    pub(super) fn take(&self, record: Record) -> Turn {
        let mut seconds = lock(&self.0);
        match seconds.get_mut(&(record.identity.clone(), record.action)) {
            None => {
                seconds.insert((record.identity.clone(), record.action), Second::default());
                Turn::Record(Box::new(record))
            }
            Some(second) => {
                let (waiter, counted) = oneshot::channel();
                second.waiters.push(waiter);
                second.last = Some(record);
                Turn::Wait(counted)
            }
        }
    }

    /// Ends the second: the records that stand for it, and who waits for them.
    pub(super) fn end(&self) -> (Vec<Record>, Vec<Waiter>) {
        let (mut records, mut waiters) = (Vec::new(), Vec::new());
        for second in mem::take(&mut *lock(&self.0)).into_values() {
            let count = second.waiters.len() as u64;
            // Names differ between them, so a record that stands for several has none.
            records.extend(second.last.map(|last| match count {
                1 => last,
                _ => Record { tenant: None, name: None, version: None, count, ..last },
            }));
            waiters.extend(second.waiters);
        }
        (records, waiters)
    }
}

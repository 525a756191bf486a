//! What doctor asks of disks. A file system that hangs, as one over a network does, keeps the thread that asks it for as long as it likes:
//! the answer has a time limit, and while a look has not come back no other one is begun, so that monitors that ask again and again do not
//! take one thread after the other from what needs them, the loading of keys among it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::keys::keyfile::{KeyFiles, Scan};

use super::Check;
use super::checks::{DATA_ROOM, KEY_ROOM, Room, disk};

/// How long a disk may take to answer, and a look before it to end.
const LIMIT: Duration = Duration::from_secs(5);

/// The looks at the disks of one deployment, one at a time on each.
#[derive(Debug, Default)]
pub struct Disks {
    data: Turn,
    keys: Turn,
}

/// Held by the look that is under way, until it is back.
type Turn = Arc<Mutex<()>>;

pub(super) struct OnDisks {
    /// What lies in the key files, or why that is not known.
    pub(super) scan: Result<Scan, String>,
    pub(super) rooms: [Check; 2],
}

impl Disks {
    pub(super) async fn look(&self, data_dir: &Path, files: &KeyFiles) -> OnDisks {
        let keys_dir = files.path().parent().unwrap_or(Path::new("/")).to_owned();
        let (at_data, at_keys, files) = (data_dir.to_owned(), keys_dir.clone(), files.clone());
        let (data, keys) = tokio::join!(
            ask(&self.data, LIMIT, move || Room::of(&at_data)),
            ask(&self.keys, LIMIT, move || (files.scan(), Room::of(&at_keys))),
        );
        let (scan, keys) = match keys {
            Ok((scan, keys)) => (Ok(scan), keys),
            Err(why) => (Err(why.clone()), Err(why)),
        };
        let data = data.and_then(|room| room);
        OnDisks {
            scan,
            rooms: [disk("data-disk", data_dir, data, DATA_ROOM), disk("key-disk", &keys_dir, keys, KEY_ROOM)],
        }
    }
}

impl Disks {
    /// What lies in the key files; absent where their disk does not answer.
    pub(super) async fn scan(&self, files: &KeyFiles) -> Option<Scan> {
        let files = files.clone();
        ask(&self.keys, LIMIT, move || files.scan()).await.ok()
    }
}

/// Asks on a thread that may block.
async fn ask<T: Send + 'static>(
    turn: &Turn,
    limit: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let asked = async {
        let turn = Arc::clone(turn).lock_owned().await;
        let looked = tokio::task::spawn_blocking(move || {
            let found = look();
            drop(turn);
            found
        });
        looked.await.map_err(|_panicked| "the thread was lost".to_owned())
    };
    let late = || format!("no answer within {} s; does its file system hang?", limit.as_secs_f64());
    timeout(limit, asked).await.unwrap_or_else(|_elapsed| Err(late()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_disk_that_hangs_costs_one_thread_and_no_answer_waits_for_it() {
        let turn = Turn::default();
        let (heal, stuck) = channel::<()>();
        let hung = ask(&turn, SOON, move || stuck.recv().is_ok()).await;
        assert!(hung.as_ref().is_err_and(|why| why.contains("no answer within 0.05 s")), "{hung:?}");
        let (began, beginnings) = channel();
        for _ in 0..3 {
            let began = began.clone();
            let refused = ask(&turn, SOON, move || began.send(()).is_ok()).await;
            assert!(refused.is_err(), "{refused:?}");
        }
        assert!(beginnings.try_recv().is_err(), "a look was begun behind one that hangs");
        heal.send(()).unwrap();
        assert_eq!(ask(&turn, Duration::from_mins(1), || 7).await, Ok(7), "it goes on by itself");
    }
}

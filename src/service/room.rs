//! Room in memory for batch reads. One may hold a thousand values of 64 KiB, of which JSON can make six times as much: what is under
//! way in all calls together is bounded, and a call that finds no room waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Error;

/// Names that may be read at once by all calls: two of the largest batches, of 64 MiB of ciphertexts each.
const NAMES: u32 = 2000;
/// KiB that may be held at once by values and their JSON: the largest answer, of 448 MiB while it is made, and a little beside it.
const ANSWERS: u32 = 512 * 1024;
/// Bytes in memory for a byte of ciphertext: the value, and an escape such as \u0001 for each of its bytes.
const GROWTH: usize = 7;
/// How long a call waits for each kind of room. A reader who takes nothing of an answer loses the connection before.
const WAIT: Duration = Duration::from_mins(1);

/// The room that is left. Whoever waits for an answer's room holds some of the reads', never the other way round: so they cannot wait
/// for each other.
pub(super) struct Rooms {
    reads: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    wait: Duration,
}

impl Rooms {
    pub(super) fn new() -> Self {
        let [reads, answers] = [NAMES, ANSWERS].map(|room| Arc::new(Semaphore::new(room as usize)));
        Self { reads, answers, wait: WAIT }
    }

    /// Room for reading so many secrets, until it is dropped.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where there is none in time.
    pub(super) async fn to_read(&self, names: usize) -> Result<OwnedSemaphorePermit, Error> {
        self.take(&self.reads, u32::try_from(names).unwrap_or(NAMES).min(NAMES)).await
    }

    /// Room for the values of so many bytes of ciphertext and for their JSON.
    ///
    /// # Errors
    /// As [`Rooms::to_read`].
    pub(super) async fn to_answer(&self, ciphertexts: usize) -> Result<Room, Error> {
        Ok(Room(self.take(&self.answers, kib(ciphertexts.saturating_mul(GROWTH))).await?))
    }

    /// First come, first served: a large call is not passed by small ones for ever.
    async fn take(&self, room: &Arc<Semaphore>, much: u32) -> Result<OwnedSemaphorePermit, Error> {
        match tokio::time::timeout(self.wait, Arc::clone(room).acquire_many_owned(much)).await {
            Ok(Ok(taken)) => Ok(taken),
            Ok(Err(_)) | Err(_) => Err(Error::Unavailable(format!(
                "other batch reads held the memory that there is for them for {} s; try again, or name fewer secrets",
                self.wait.as_secs()
            ))),
        }
    }
}

/// No answer is larger than all the room that there is; were it, it would go alone.
fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(ANSWERS).min(ANSWERS)
}

/// An answer's room, held until it is dropped: with the last byte of the answer.
pub struct Room(OwnedSemaphorePermit);

impl Room {
    /// Gives back what an answer of so many bytes does not need.
    pub fn shrink(&mut self, bytes: usize) {
        let surplus = self.0.num_permits().saturating_sub(kib(bytes) as usize);
        drop(self.0.split(surplus));
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    const LARGEST: usize = 1000 * 65_536;

    #[tokio::test]
    async fn of_two_of_the_largest_answers_one_waits_until_the_other_is_gone_and_a_small_one_fits_beside_it() {
        let rooms = Rooms::new();
        let first = rooms.to_answer(LARGEST).await.unwrap();
        let _small = rooms.to_answer(65_536).await.unwrap();
        let mut second = Box::pin(rooms.to_answer(LARGEST));
        assert!(matches!(poll_once(&mut second), Poll::Pending));
        drop(first);
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn what_an_answer_turns_out_not_to_need_is_given_back() {
        let rooms = Rooms::new();
        let mut first = rooms.to_answer(LARGEST).await.unwrap();
        first.shrink(65_536);
        first.shrink(usize::MAX);
        let _second = rooms.to_answer(LARGEST).await.unwrap();
    }

    #[tokio::test]
    async fn two_of_the_largest_batches_are_read_at_once_and_a_third_waits() {
        let rooms = Rooms::new();
        let first = rooms.to_read(1000).await.unwrap();
        let _second = rooms.to_read(1000).await.unwrap();
        let mut third = Box::pin(rooms.to_read(1));
        assert!(matches!(poll_once(&mut third), Poll::Pending));
        drop(first);
        assert!(third.await.is_ok());
    }

    #[tokio::test]
    async fn who_finds_no_room_in_time_is_told_so() {
        let rooms = Rooms { wait: Duration::ZERO, ..Rooms::new() };
        let _all = rooms.to_answer(usize::MAX).await.unwrap();
        let refused = rooms.to_answer(1).await.err().unwrap();
        assert!(matches!(&refused, Error::Unavailable(why) if why.contains("held the memory")), "{refused}");
    }

    fn poll_once<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Poll<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut context)
    }
}

//! `containarium verify-deks`, hidden: the daemon executes it during a rotation, and nobody else has a use for it.

use std::io::{Read, Write};

use zeroize::Zeroizing;

use crate::compose;
use crate::config::Reading;
use crate::service::rotation::verify::check;

use super::failure::{Exit, Failure};

/// The most that the settings have.
const MAX_SETTINGS: u64 = 64 * 1024;

pub(super) async fn run() -> Result<(), Failure> {
    let failed =
        |why: String| Failure::new(Exit::Failed, why).mend("only the daemon runs this command, during a rotation");
    let mut settings = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_SETTINGS).unwrap_or(0)));
    let read = std::io::stdin().lock().take(MAX_SETTINGS).read_to_end(&mut settings);
    read.map_err(|error| failed(format!("cannot read the settings: {error}")))?;
    let settings = Reading::parse(&settings).map_err(|why| failed(why.to_owned()))?;
    let opened = compose::reader_at(&settings.key_file, &settings.database).await;
    let (store, files) = opened.map_err(|error| failed(error.to_string()))?;
    let provider = compose::provider(settings.kms_endpoint, settings.age_identity);
    let checked = check(&*store, &files, &provider, |line| {
        // The daemon may have gone; then nobody hears the verdict, and the exit is nobody's either.
        if let Ok(mut json) = serde_json::to_vec(line) {
            json.push(b'\n');
            let _unheard = std::io::stdout().lock().write_all(&json);
        }
    });
    let checked = checked.await;
    store.close().await;
    checked.map_err(|error| failed(error.to_string()))
}

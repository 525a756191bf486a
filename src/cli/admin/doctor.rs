//! `containarium admin doctor`

use crate::client::{Client, ClientError, ErrorClass};
use crate::compose;
use crate::config::{Environment, load};
use crate::service::doctor::{Check, Unasked, verdict, without_daemon};
use crate::wire::doctor::{CheckItem, DoctorAnswer};

use super::super::failure::{Deed, Exit, Failure};
use super::super::output::{Format, Table, print_json};
use super::super::settings::SettingsArgs;

pub(super) async fn doctor(client: &Client, format: Format, settings: SettingsArgs) -> Result<(), Failure> {
    let answer = match client.doctor().await {
        Ok(answer) => answer,
        // The daemon is what may be ill.
        Err(error) if error.class() == ErrorClass::Unavailable => {
            let runs = !matches!(error, ClientError::NoDaemon { .. } | ClientError::NoConnection { .. });
            alone(&error.to_string(), if runs { Unasked::NoAnswer } else { Unasked::NotThere }, settings).await?
        }
        Err(error) => return Err(Failure::of_request(&Deed::on_daemon("ask the daemon for a check"), &error)),
    };
    match format {
        Format::Json => print_json(&answer)?,
        Format::Table => table(&answer).print()?,
    }
    let failed: Vec<&str> =
        answer.checks.iter().filter(|check| check.verdict == "failure").map(|check| &*check.name).collect();
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Failed, format!("failed: {}", failed.join(", ")))) }
}

/// What this process can see by itself, with the daemon's settings.
async fn alone(why: &str, unasked: Unasked, settings: SettingsArgs) -> Result<DoctorAnswer, Failure> {
    let effective = load(&settings.into(), &Environment::of_process());
    let config = effective.map_err(|errors| Failure::of_settings(&errors))?.config;
    let store = compose::untouching_reader(&config).await.map(|reader| reader.store).map_err(|error| error.to_string());
    let destinations = compose::destinations(&config);
    let (files, disk) = (&config.key_file, &config.data_dir);
    let checks = without_daemon(store, &destinations, files, disk, &config.issuers, (unasked, why)).await;
    let item = |check: &Check| CheckItem {
        name: check.name.to_owned(),
        verdict: check.verdict.as_str().to_owned(),
        finding: check.finding.clone(),
        mend: check.mend.clone(),
    };
    Ok(DoctorAnswer { verdict: verdict(&checks).as_str().to_owned(), checks: checks.iter().map(item).collect() })
}

fn table(answer: &DoctorAnswer) -> Table {
    let mut table = Table::new();
    table.row(["CHECK", "VERDICT", "FOUND"]);
    for check in &answer.checks {
        table.row([&*check.name, &check.verdict, &check.finding]);
        if let Some(mend) = &check.mend {
            table.row(["", "", &format!("mend: {mend}")]);
        }
    }
    table
}

//! Copies of the database and drills, as their makers tell of them.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::super::App;
use super::super::extract::{Caller, Id, kid, read_json};
use super::super::problem::Refused;
use super::super::secrets::json;
use crate::model::{Action, Kid, Micros};
use crate::service::{CopiedState, Known, MadeCopy, RanDrill};
use crate::wire::Problem;
use crate::wire::backup_log::{CopiedStateItem, RecordDatabaseRequest, RecordDrillRequest, RecordedAnswer};

/// Remembers that a copy of the database was made.
#[utoipa::path(post, path = "/v1/admin/backup/database", tag = "administration", request_body = RecordDatabaseRequest, responses(
    (status = 200, body = RecordedAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It is no copy of this database.", body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn record_database(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::RecordDatabaseBackup).await?;
    let asked: RecordDatabaseRequest = read_json(body).await?;
    let known = known(&asked)?;
    let backup = app.service.record_database_backup(&request, &grant, MadeCopy { target: asked.target, known }).await?;
    let taken_at = backup.taken_at;
    let message = match known {
        Known::State(_) => {
            format!("copy of the database as of {taken_at}, generation {}, recorded", backup.generation)
        }
        Known::Time(_) | Known::Nothing => format!("copy of the database as of {taken_at} recorded"),
    };
    Ok(json(StatusCode::OK, &RecordedAnswer { message }))
}

fn known(asked: &RecordDatabaseRequest) -> Result<Known, Refused> {
    match (&asked.state, asked.made_at_micros) {
        (Some(_), Some(_)) => {
            Err(Refused::invalid("a copy that was read has its time in `state`: give no `madeAtMicros`"))
        }
        (Some(read), None) => state(read).map(Known::State),
        (None, Some(at)) => Ok(Known::Time(Micros(at))),
        (None, None) => Ok(Known::Nothing),
    }
}

fn state(item: &CopiedStateItem) -> Result<CopiedState, Refused> {
    let taken_at = Micros(item.taken_at_micros);
    Ok(CopiedState { db_id: db_id(&item.db_id)?, epoch: item.epoch, generation: item.generation, taken_at })
}

fn db_id(text: &str) -> Result<[u8; 16], Refused> {
    let id = Kid::from_hex(text).map(|id| *id.as_bytes());
    id.ok_or_else(|| Refused::invalid("a database's id is 32 hex digits, in lower case"))
}

/// Remembers a drill.
#[utoipa::path(post, path = "/v1/admin/backup/drill", tag = "administration", request_body = RecordDrillRequest, responses(
    (status = 200, body = RecordedAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It was one on another database.", body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn record_drill(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::RecordDrill).await?;
    let asked: RecordDrillRequest = read_json(body).await?;
    let kids = asked.kids.iter().map(|text| kid(text)).collect::<Result<Vec<_>, _>>()?;
    let RecordDrillRequest { db_id: id, source, deks_opened, deks_failed, .. } = asked;
    let ran = RanDrill { db_id: db_id(&id)?, source, kids, deks_opened, deks_failed };
    let drill = app.service.record_drill(&request, &grant, ran).await?;
    let message = format!("drill of {} recorded: {} DEKs opened, {} did not", drill.ran_at, deks_opened, deks_failed);
    Ok(json(StatusCode::OK, &RecordedAnswer { message }))
}

//! Copies of the master keys off the host. No key passes here: pushes go from the daemon's key files, and who reads a copy does so
//! elsewhere.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use data_encoding::HEXLOWER;

use super::super::App;
use super::super::extract::{Caller, Id, kid, read_json, read_json_or_default};
use super::super::problem::Refused;
use super::super::secrets::json;
use super::super::stream;
use crate::model::{Action, KmsKey, WrappedMaster};
use crate::service::backup::{
    BackupList, BadCopy, ListedSecret, ListedVersion, Outcome, PushedKeys, ReadBack, Trouble,
};
use crate::service::kms::OnlyWay;
use crate::wire::backup::{
    BackupKeyItem, BackupListAnswer, BackupSecretItem, BackupVersionItem, PushAnswer, PushRequest, PushedCopy,
    ReadBackAnswer, ReadBackItem, ReadBackRequest, TroubleItem, UnreadItem,
};
use crate::wire::{Problem, StreamLine};

/// Copy every master key that the database wants into every configured secret.
///
/// Answers NDJSON, the last line `done` or `failed`; `done` says of each copy whether it is there. Hanging up stops nothing; GET follows it.
#[utoipa::path(post, path = "/v1/admin/backup/push", tag = "administration", request_body = PushRequest, responses(
    (status = 200, description = "It is under way.", body = StreamLine<PushAnswer>, content_type = "application/x-ndjson"),
    (status = 400, description = "No secret is configured.", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "Another one is under way in this daemon.", body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn push(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::BackupPush).await?;
    let body: PushRequest = read_json_or_default(body).await?;
    let id = request.id().to_owned();
    let watch = app.service.push_keys(request, grant, OnlyWay::of_flag(body.kms_is_the_only_way_back)).await?;
    Ok(stream::follow(id, watch, pushed))
}

/// Follow the push that is under way, or see how the last one ended.
#[utoipa::path(get, path = "/v1/admin/backup/push", tag = "administration", responses(
    (status = 200, body = StreamLine<PushAnswer>, content_type = "application/x-ndjson"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "There was none since the daemon started.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn follow_push(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::FollowBackupPush).await?;
    let watch = app.service.follow_push_keys(&request, &grant).await?;
    Ok(stream::follow(request.id().to_owned(), watch, pushed))
}

fn pushed(done: &PushedKeys) -> PushAnswer {
    let copies = done.copies.iter().map(|copy| {
        let (state, locator, trouble) = match &copy.outcome {
            Outcome::Pushed { locator } => ("pushed", Some(locator.clone()), None),
            Outcome::Before { locator } => ("present", Some(locator.clone()), None),
            Outcome::Missing(trouble) => ("missing", None, Some(trouble_item(trouble))),
        };
        PushedCopy { kid: copy.kid.to_string(), secret: copy.secret.clone(), state: state.to_owned(), locator, trouble }
    });
    PushAnswer { copies: copies.collect(), not_here: done.not_here.iter().map(ToString::to_string).collect() }
}

fn trouble_item(trouble: &Trouble) -> TroubleItem {
    TroubleItem { class: trouble.class.as_str().to_owned(), why: trouble.why.clone() }
}

/// Every version of every configured secret, and how each master key is covered. No payload is read.
#[utoipa::path(get, path = "/v1/admin/backup", tag = "administration", responses(
    (status = 200, body = BackupListAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn list(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::BackupList).await?;
    Ok(json(StatusCode::OK, &list_answer(&app.service.list_backups(&request, &grant).await?)))
}

fn list_answer(list: &BackupList) -> BackupListAnswer {
    let keys = list.keys.iter().map(|key| BackupKeyItem {
        kid: key.kid.to_string(),
        state: key.state.to_string(),
        needed: key.needed,
        confirmed_at: key.confirmed_at.map(|at| at.to_string()),
        read_back_at: key.read_back_at.map(|at| at.to_string()),
    });
    BackupListAnswer { secrets: list.secrets.iter().map(secret_item).collect(), keys: keys.collect() }
}

fn secret_item(listed: &ListedSecret) -> BackupSecretItem {
    let (versions, trouble) = match &listed.versions {
        Ok(versions) => (Some(versions.iter().map(version_item).collect()), None),
        Err(trouble) => (None, Some(trouble_item(trouble))),
    };
    BackupSecretItem { secret: listed.secret.clone(), versions, trouble }
}

fn version_item(version: &ListedVersion) -> BackupVersionItem {
    BackupVersionItem {
        number: version.number.get(),
        state: version.state.to_string(),
        created_at: version.created_at.map(|at| at.to_string()),
        kid: version.kid.map(|kid| kid.to_string()),
        confirmed_at: version.confirmed_at.map(|at| at.to_string()),
        read_back_at: version.read_back_at.map(|at| at.to_string()),
    }
}

/// Record that copies were read back and compared, and which were no good. Only kid, place, SHA-256 and verdict come here.
#[utoipa::path(post, path = "/v1/admin/backup/read-back", tag = "administration", request_body = ReadBackRequest, responses(
    (status = 200, body = ReadBackAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "The database does not know the key, or the copy that was no good.", body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn read_back(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::BackupReadBack).await?;
    let body: ReadBackRequest = read_json(body).await?;
    let copies: Vec<ReadBack> = body.copies.into_iter().map(read_back_of).collect::<Result<_, _>>()?;
    let unread: Vec<BadCopy> = body.unread.into_iter().map(bad_copy_of).collect::<Result<_, _>>()?;
    app.service.note_read_back(&request, &grant, &copies, &unread).await?;
    let mut message = format!("{} copies recorded as read back", copies.len());
    if !unread.is_empty() {
        message = format!("{message}, and {} as no good", unread.len());
    }
    Ok(json(StatusCode::OK, &ReadBackAnswer { message }))
}

fn bad_copy_of(item: UnreadItem) -> Result<BadCopy, Refused> {
    Ok(BadCopy { kid: kid(&item.kid)?, locator: item.locator, why: item.why })
}

fn read_back_of(item: ReadBackItem) -> Result<ReadBack, Refused> {
    let kid = kid(&item.kid)?;
    let sha256 = HEXLOWER.decode(item.sha256.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let sha256 = sha256.ok_or_else(|| Refused::invalid("a SHA-256 is 64 hex digits, in lower case"))?;
    let kms_versions = kms_versions_of(item.kms_versions)?;
    Ok(ReadBack { kid, target: item.target, locator: item.locator, sha256, kms_versions })
}

/// As a wrapped key file names them.
pub(super) fn kms_versions_of(names: Vec<String>) -> Result<Vec<String>, Refused> {
    if names.len() > WrappedMaster::MAX_RECIPIENTS || !names.iter().all(|name| KmsKey::is_version(name)) {
        return Err(Refused::invalid(format!(
            "`kmsVersions` has at most {} names projects/…/cryptoKeys/KEY/cryptoKeyVersions/N",
            WrappedMaster::MAX_RECIPIENTS
        )));
    }
    Ok(names)
}

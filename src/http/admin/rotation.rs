//! Rotating the master key.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::super::App;
use super::super::extract::{Caller, Id, kid, node_id, read_json, read_nothing};
use super::super::problem::Refused;
use super::super::secrets::json;
use super::super::stream;
use super::backup::kms_versions_of;
use crate::model::{Action, KeyMode, WrappedMaster};
use crate::service::kms::OnlyWay;
use crate::service::rotation::{Asked, Escrow, Proof, Report, RotationKeys, Terms};
use crate::wire::{
    DestroyOldRequest, EscrowChoice, Problem, ProofOfCopy, RetiredKey, RotateMasterMode, RotateMasterRequest,
    RotationKeysAnswer, RotationReport, StagedKey, StreamLine, ValuesToChange, WrappedForAnswer,
};

/// Rotate the master key: begin, go on, or try without changing anything.
///
/// Answers NDJSON, a line for each look at it, the last one `done` or `failed`. Hanging up stops nothing; GET follows it.
#[utoipa::path(post, path = "/v1/admin/rotate-master", tag = "administration", request_body = RotateMasterRequest, responses(
    (status = 200, description = "It is under way.", body = StreamLine<RotationReport>, content_type = "application/x-ndjson"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "One is under way in this daemon.", body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn rotate(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::RotateMaster).await?;
    let body: RotateMasterRequest = read_json(body).await?;
    let asked = asked(&app, &body)?;
    let without = body.without_nodes.iter().map(|id| node_id(id)).collect::<Result<_, _>>()?;
    let new_key = body.wrapped_key.as_deref().map(new_key).transpose()?;
    if new_key.is_some() && !matches!(asked, Asked::Start { .. }) {
        return Err(Refused::invalid(
            "`wrappedKey` goes with `mode`: `start` or `compromised`: only then a key is made",
        ));
    }
    let terms = Terms { without, new_key, only_way: OnlyWay::of_flag(body.kms_is_the_only_way_back) };
    let watch = app.service.rotate_master(&request, &grant, asked, terms).await?;
    Ok(stream::follow(request.id().to_owned(), watch, report))
}

/// Follow the rotation that is under way, or see how the last one ended.
#[utoipa::path(get, path = "/v1/admin/rotate-master", tag = "administration", responses(
    (status = 200, body = StreamLine<RotationReport>, content_type = "application/x-ndjson"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "There was none since the daemon started.", body = Problem, content_type = "application/problem+json"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn follow(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::FollowRotation).await?;
    let watch = app.service.follow_rotation(&request, &grant).await?;
    Ok(stream::follow(request.id().to_owned(), watch, report))
}

/// Give the staged key up; before the flip only.
#[utoipa::path(post, path = "/v1/admin/rotate-master/abort", tag = "administration", responses(
    (status = 200, body = StreamLine<RotationReport>, content_type = "application/x-ndjson"),
    (status = 409, description = "Past the flip, or what is under way in this daemon cannot be given up.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn abort(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::AbortRotation).await?;
    read_nothing(body).await?;
    let watch = app.service.rotate_master(&request, &grant, Asked::Abort, Terms::default()).await?;
    Ok(stream::follow(request.id().to_owned(), watch, report))
}

/// Destroy a retired key on every node, once its time has come.
#[utoipa::path(post, path = "/v1/admin/rotate-master/destroy-old", tag = "administration", request_body = DestroyOldRequest, responses(
    (status = 200, body = StreamLine<RotationReport>, content_type = "application/x-ndjson"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "A rotation is under way in this daemon.", body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn destroy_old(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::DestroyMaster).await?;
    let body: DestroyOldRequest = read_json(body).await?;
    let proof = body.proof.as_ref().map(proof).transpose()?;
    let asked = Asked::DestroyOld { kid: kid(&body.kid)?, proof, escrow: escrow(&app, body.escrow) };
    let watch = app.service.rotate_master(&request, &grant, asked, Terms::default()).await?;
    Ok(stream::follow(request.id().to_owned(), watch, report))
}

/// The staged key, and the retired ones.
#[utoipa::path(get, path = "/v1/admin/rotate-master/keys", tag = "administration", responses(
    (status = 200, body = RotationKeysAnswer),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn keys(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::RotationKeys).await?;
    let keys = app.service.rotation_keys(&request, &grant).await?;
    Ok(json(StatusCode::OK, &keys_answer(&keys)))
}

fn keys_answer(keys: &RotationKeys) -> RotationKeysAnswer {
    let staged = keys.staged.as_ref();
    RotationKeysAnswer {
        key_file: keys.key_file.display().to_string(),
        wrapped_for: keys.wrapped_for.as_ref().map(|wrapped| WrappedForAnswer {
            kms_keys: wrapped.kms_keys.iter().map(ToString::to_string).collect(),
            age_recipients: wrapped.age_recipients.clone(),
        }),
        staged: staged.map(|key| StagedKey { kid: key.kid.to_string(), path: key.path.display().to_string() }),
        retired: keys
            .retired
            .iter()
            .map(|(kid, at)| RetiredKey { kid: kid.to_string(), retired_at: at.to_string() })
            .collect(),
    }
}

fn asked(app: &App, body: &RotateMasterRequest) -> Result<Asked, Refused> {
    let (proof, escrow) = (body.proof.as_ref().map(proof).transpose()?, escrow(app, body.escrow));
    let asked = match body.mode {
        RotateMasterMode::Start => Asked::Start { mode: KeyMode::Normal, escrow },
        RotateMasterMode::Compromised => Asked::Start { mode: KeyMode::Compromised, escrow },
        RotateMasterMode::Resume => return Ok(Asked::Resume { proof, escrow }),
        RotateMasterMode::DryRun => Asked::DryRun,
    };
    match proof {
        None => Ok(asked),
        Some(_) => {
            Err(Refused::invalid("`proof` goes with `mode`: `resume`: there is no key to prove before one is staged"))
        }
    }
}

fn escrow(app: &App, choice: Option<EscrowChoice>) -> Escrow {
    match choice {
        None => app.service.usual_escrow(),
        Some(EscrowChoice::Gcp) => Escrow::Push,
        Some(EscrowChoice::Prove) => Escrow::Prove,
        Some(EscrowChoice::WaiveOffHostCopy) => Escrow::Waive,
    }
}

/// The longest place that is kept of a copy.
const MAX_LOCATOR: usize = 4096;

fn proof(proof: &ProofOfCopy) -> Result<Proof, Refused> {
    let sha256 = data_encoding::HEXLOWER.decode(proof.sha256.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let sha256 = sha256.ok_or_else(|| Refused::invalid("`sha256` is 64 lower-case hex digits"))?;
    if proof.locator.is_empty() || proof.locator.len() > MAX_LOCATOR || proof.locator.contains(char::is_control) {
        return Err(Refused::invalid("`locator` is 1 to 4096 bytes without control characters"));
    }
    let kms_versions = kms_versions_of(proof.kms_versions.clone())?;
    Ok(Proof { kid: kid(&proof.kid)?, locator: proof.locator.clone(), sha256, kms_versions })
}

fn new_key(text: &str) -> Result<WrappedMaster, Refused> {
    WrappedMaster::parse(text.as_bytes())
        .map_err(|error| Refused::invalid(format!("`wrappedKey` is no wrapped master key: {error}")))
}

fn report(report: &Report) -> RotationReport {
    let values = report.values.tenants.iter().map(|values| ValuesToChange {
        username: values.tenant.to_string(),
        secrets: values.secrets,
        oldest_updated_at: values.oldest.map(|at| at.to_string()),
    });
    RotationReport {
        end: report.end.as_str().to_owned(),
        kid: report.kid.map(|kid| kid.to_string()),
        old_kid: report.old.map(|kid| kid.to_string()),
        deks: report.deks,
        did: report.did.clone(),
        problems: report.problems.clone(),
        left: report.left.clone(),
        values_to_change: values.collect(),
        more_tenants: report.values.more,
    }
}

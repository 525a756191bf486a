//! Nodes, and a restored database.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::super::App;
use super::super::extract::{Caller, Id, node_id, read_json, read_nothing};
use super::super::problem::Refused;
use super::super::secrets::json;
use crate::model::Action;
use crate::service::node::{AcceptedRestore, Agreed, Deed, Gaps, Replay, RestorePlan};
use crate::wire::Problem;
use crate::wire::nodes::{
    AcceptRestoreAnswer, AcceptRestoreRequest, ForgetAnswer, NeededKeyItem, NodeItem, NodesAnswer, ReplayItem,
    RestorePlanAnswer,
};

/// The daemons that share the database, as they last said of themselves.
#[utoipa::path(get, path = "/v1/admin/nodes", tag = "administration", responses(
    (status = 200, body = NodesAnswer),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn list(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::AdminNodes).await?;
    let found = app.service.nodes(&request, &grant).await?;
    let item = |node: &crate::model::NodeRecord| NodeItem {
        node_id: node.node.to_string(),
        boot_id: node.boot.to_string(),
        this: node.node == found.this,
        live: node.live,
        seen_at: node.seen_at.to_string(),
        epoch: node.epoch,
        durable_kids: node.durable_kids.iter().map(ToString::to_string).collect(),
    };
    Ok(json(StatusCode::OK, &NodesAnswer { nodes: found.nodes.iter().map(item).collect() }))
}

/// Forgets a node that is gone for good, so that no rotation waits for it.
#[utoipa::path(post, path = "/v1/admin/nodes/{node}/forget", tag = "administration",
    params(("node" = String, Path, description = "32 hex digits")), responses(
    (status = 200, body = ForgetAnswer),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It is live.", body = Problem, content_type = "application/problem+json"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn forget(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    Path(node): Path<String>,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::AdminForgetNode).await?;
    read_nothing(body).await?;
    let node = node_id(&node)?;
    app.service.forget_node(&request, &grant, node).await?;
    Ok(json(StatusCode::OK, &ForgetAnswer { message: format!("node {node} forgotten") }))
}

/// What accepting the database as it is would mean: the keys that it needs, and what is done again.
#[utoipa::path(get, path = "/v1/admin/accept-restore", tag = "administration", responses(
    (status = 200, body = RestorePlanAnswer),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn restore_plan(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::AdminRestorePlan).await?;
    Ok(json(StatusCode::OK, &plan_answer(&app.service.restore_plan(&request, &grant).await?)))
}

fn plan_answer(plan: &RestorePlan) -> RestorePlanAnswer {
    RestorePlanAnswer {
        behind: plan.behind.is_some(),
        reason: plan.behind.map(|behind| behind.to_string()),
        epoch: plan.now.map(|mark| mark.epoch),
        generation: plan.now.map(|mark| mark.generation),
        needed: plan
            .needed
            .iter()
            .map(|key| NeededKeyItem { kid: key.kid.to_string(), state: key.state.to_string(), held: key.held })
            .collect(),
        retires: plan.retires.map(|kid| kid.to_string()),
        replay: plan.replay.iter().map(replay_item).collect(),
        revokes: plan.revokes.iter().map(ToString::to_string).collect(),
        complete: plan.complete,
    }
}

fn replay_item(replay: &Replay) -> ReplayItem {
    let (deed, at) = match replay.deed {
        Deed::Shred => ("shred", None),
        Deed::ScheduleShred(at) => ("schedule-shred", Some(at.to_string())),
        Deed::CancelShred => ("cancel-shred", None),
    };
    ReplayItem { username: replay.tenant.to_string(), deed: deed.to_owned(), at }
}

/// Accepts the database as it is: replays what must not be undone, and opens writes again.
#[utoipa::path(post, path = "/v1/admin/accept-restore", tag = "administration", request_body = AcceptRestoreRequest, responses(
    (status = 200, body = AcceptRestoreAnswer),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "Nothing to accept, not as it was shown, or a log with gaps.", body = Problem, content_type = "application/problem+json"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 408, body = Problem, content_type = "application/problem+json"),
    (status = 413, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn accept_restore(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::AdminAcceptRestore).await?;
    let asked: AcceptRestoreRequest = read_json(body).await?;
    let gaps = if asked.accept_gaps { Gaps::Accept } else { Gaps::Refuse };
    let agreed = Agreed { epoch: asked.epoch, generation: asked.generation, gaps };
    let AcceptedRestore { mark, replayed, revoked, retired } =
        app.service.accept_restore(&request, &grant, agreed).await?;
    let answer = AcceptRestoreAnswer {
        message: format!("database accepted at {mark}; writes are open"),
        epoch: mark.epoch,
        generation: mark.generation,
        replayed: replayed.iter().map(replay_item).collect(),
        revoked: revoked.iter().map(ToString::to_string).collect(),
        retired: retired.map(|kid| kid.to_string()),
    };
    Ok(json(StatusCode::OK, &answer))
}

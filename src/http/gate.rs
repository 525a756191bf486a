//! What every request passes before its handler, in this order: who calls; whether the keys are open; what the route does not take.
//! In one place, so that no route forgets a step, and a caller without rights learns nothing of what is behind it. And after it: what
//! was refused without a record gets one.

use axum::RequestPartsExt as _;
use axum::extract::{MatchedPath, RawPathParams, Request};
use axum::http::header::RETRY_AFTER;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::extract::{self, Address, Peer, TimedBody};
use super::limits;
use super::problem::{self, Refused};
use super::unheard;
use super::{App, Surface};
use crate::access::{self, Identity, Unauthenticated};
use crate::model::{Action, SecretName, Tenant};
use crate::service;
use crate::telemetry::{self, Turned};

/// What a request is to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Whether the daemon lives and is ready: anybody may ask, and nothing is recorded.
    Health,
    /// Metrics and the API's description: for administrators, unrecorded, since a scraper asks every few seconds and touches nothing.
    Observation,
    /// Everything else: recorded, however it ends.
    Call(Action),
}

/// What each route and method is. One that is missing here is refused while the keys are locked, and a test names it.
const CALLS: [(&str, &str, Action); 36] = [
    ("/v1/secrets", "POST", Action::Set),
    ("/v1/secrets/{username}", "GET", Action::List),
    ("/v1/secrets/{username}/batch-get", "POST", Action::BatchGet),
    ("/v1/secrets/{username}/batch-set", "POST", Action::BatchSet),
    ("/v1/secrets/{username}/{name}", "GET", Action::Get),
    ("/v1/secrets/{username}/{name}", "PUT", Action::Set),
    ("/v1/secrets/{username}/{name}", "DELETE", Action::Delete),
    ("/v1/secrets/{username}/{name}/versions", "GET", Action::Versions),
    ("/v1/secrets/{username}/{name}/undelete", "POST", Action::Undelete),
    ("/v1/secrets/{username}/{name}/rollback", "POST", Action::Rollback),
    ("/v1/secrets/{username}/{name}/destroy", "POST", Action::Destroy),
    ("/v1/admin/status", "GET", Action::AdminStatus),
    ("/v1/admin/tenants", "GET", Action::AdminTenants),
    ("/v1/admin/rotate-master", "GET", Action::FollowRotation),
    ("/v1/admin/rotate-master", "POST", Action::RotateMaster),
    ("/v1/admin/rotate-master/abort", "POST", Action::AbortRotation),
    ("/v1/admin/rotate-master/destroy-old", "POST", Action::DestroyMaster),
    ("/v1/admin/rotate-master/keys", "GET", Action::RotationKeys),
    ("/v1/admin/rotate-dek", "GET", Action::FollowRotateDek),
    ("/v1/admin/rotate-dek", "POST", Action::RotateDek),
    ("/v1/admin/shred", "POST", Action::ScheduleShred),
    ("/v1/admin/quarantine", "POST", Action::QuarantineDek),
    ("/v1/admin/nodes", "GET", Action::AdminNodes),
    ("/v1/admin/nodes/{node}/forget", "POST", Action::AdminForgetNode),
    ("/v1/admin/accept-restore", "GET", Action::AdminRestorePlan),
    ("/v1/admin/accept-restore", "POST", Action::AdminAcceptRestore),
    ("/v1/admin/backup", "GET", Action::BackupList),
    ("/v1/admin/backup/push", "GET", Action::FollowBackupPush),
    ("/v1/admin/backup/push", "POST", Action::BackupPush),
    ("/v1/admin/backup/read-back", "POST", Action::BackupReadBack),
    ("/v1/admin/backup/database", "POST", Action::RecordDatabaseBackup),
    ("/v1/admin/backup/drill", "POST", Action::RecordDrill),
    ("/v1/admin/doctor", "GET", Action::AdminDoctor),
    ("/v1/admin/tokens", "GET", Action::TokenList),
    ("/v1/admin/tokens", "POST", Action::TokenCreate),
    ("/v1/admin/tokens/revoke", "POST", Action::TokenRevoke),
];

impl Use {
    fn of(route: Option<&str>, method: &Method) -> Self {
        // A HEAD is answered as the GET that it leaves the body out of.
        let method = if *method == Method::HEAD { Method::GET } else { method.clone() };
        match route {
            Some("/livez" | "/readyz") => Self::Health,
            Some("/metrics" | "/openapi.json") if method == Method::GET => Self::Observation,
            Some(route) => {
                let known = CALLS.iter().find(|(path, takes, _)| *path == route && *takes == method.as_str());
                Self::Call(known.map_or(Action::Unknown, |(_, _, action)| *action))
            }
            None => Self::Call(Action::Unknown),
        }
    }

    /// The status says why the keys are locked; and where there is no route nothing is done.
    const fn is_answered_while_locked(self) -> bool {
        matches!(self, Self::Health | Self::Observation | Self::Call(Action::AdminStatus | Action::Unknown))
    }
}

/// What is known of a request before its handler.
struct Heard {
    request: service::Request,
    is: Use,
    /// Nobody is asked who only wants to know whether the daemon lives.
    caller: Result<access::Caller, service::Error>,
    /// The process at the other end, where that is the socket's.
    peer: Option<Peer>,
    tenant: Option<Tenant>,
    name: Option<SecretName>,
}

impl Heard {
    async fn of(app: &App, parts: &mut Parts, request: service::Request) -> Self {
        let route = parts.extensions.get::<MatchedPath>().cloned();
        let is = Use::of(route.as_ref().map(MatchedPath::as_str), &parts.method);
        let caller = match is {
            Use::Health => Err(Unauthenticated::Missing.into()),
            Use::Observation | Use::Call(_) => extract::caller(app, parts).await,
        };
        if let Ok(caller) = &caller {
            parts.extensions.insert(caller.clone());
        }
        // A path that cannot be read is the handler's to refuse; a record of it lacks the names.
        let params = parts.extract::<RawPathParams>().await.ok();
        Self {
            request,
            is,
            caller,
            peer: parts.extensions.get::<Peer>().copied(),
            tenant: params.as_ref().and_then(|params| extract::tenant(params).ok()),
            name: params.as_ref().and_then(|params| extract::secret_name(params).ok()),
        }
    }
}

/// Lets a request through to its handler, or refuses it; a refusal leaves a record, wherever it was made.
pub(super) async fn pass(app: App, id: service::Request, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    // Before who it is: finding that out has a price, which a stranger would make the daemon pay.
    if let Some(Address(address)) = parts.extensions.get::<Address>()
        && let Err(too_often) = app.rates.of_source(limits::source(*address))
    {
        return too_often.into_response();
    }
    let heard = Heard::of(&app, &mut parts, id).await;
    if let Some(identity) = heard.caller.as_ref().ok().and_then(access::Caller::rate_key)
        && let Err(too_often) = app.rates.of_identity(&identity)
    {
        return too_often.into_response();
    }
    let response = match admit(&app, &heard, &parts).await {
        Ok(()) => next.run(Request::from_parts(parts, TimedBody::within(app.body_time, body))).await,
        Err(refused) => refused.into_response(),
    };
    let mut response = recorded(&app, &heard, response).await;
    if matches!(heard.caller, Err(service::Error::Unavailable(_)))
        && response.status() == StatusCode::SERVICE_UNAVAILABLE
    {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(access::TRY_AGAIN.as_secs()));
    }
    response
}

async fn admit(app: &App, heard: &Heard, parts: &Parts) -> Result<(), Refused> {
    authenticate(app, heard).await?;
    if !heard.is.is_answered_while_locked()
        && let Some(why) = app.service.why_locked()
    {
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, why));
    }
    unheard::refuse(parts)
}

async fn authenticate(app: &App, heard: &Heard) -> Result<(), Refused> {
    let caller = heard.caller.as_ref().map_err(|unknown| Refused::from(unknown.clone()));
    match (heard.is, app.surface) {
        (Use::Health, _) | (Use::Observation, Surface::Watchers) => {}
        // What a surface does not have is no secret, and is not there for a stranger as for anybody else.
        (Use::Call(Action::Unknown), Surface::Network | Surface::Watchers) if caller.is_err() => {}
        (Use::Observation, _) => app.service.may_observe(caller?)?,
        (Use::Call(action), _) => {
            app.service.authenticate(&heard.request, caller?, action, heard.tenant.as_ref()).await?;
        }
    }
    Ok(())
}

/// Records a refusal that has no record: the service writes those of what reaches it, and most refusals never do. One that cannot be
/// recorded counts as missing, like any call's; its caller is told, unless the answer is that something is not available anyway.
async fn recorded(app: &App, heard: &Heard, response: Response) -> Response {
    let (tenant, name) = (heard.tenant.as_ref(), heard.name.as_ref());
    if response.status() == StatusCode::UNAUTHORIZED {
        telemetry::turned_away(Turned::Credential);
        let peer = heard.peer.map(|Peer { uid, pid }| Identity::Socket { uid, pid });
        return match app.service.unauthenticated(&heard.request, peer.as_ref(), (tenant, name)).await {
            Err(unrecorded) => Refused::from(unrecorded).into_response(),
            Ok(()) => response,
        };
    }
    let (Use::Call(action), Ok(caller)) = (heard.is, heard.caller.as_ref()) else { return response };
    let Some(error) = problem::error_of(&response) else { return response };
    if heard.request.is_recorded() {
        return response;
    }
    match app.service.refused(&heard.request, caller, action, tenant, name, &error).await {
        Err(unrecorded) if !response.status().is_server_error() => Refused::from(unrecorded).into_response(),
        Ok(()) | Err(_) => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::openapi::described;

    #[test]
    fn every_call_that_is_described_has_an_action_and_no_other_has() {
        let mut calls = 0;
        for (path, method) in described() {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let is = Use::of(Some(&path), &method);
            assert_ne!(is, Use::Call(Action::Unknown), "{method} {path} is missing in CALLS");
            calls += usize::from(matches!(is, Use::Call(_)));
        }
        assert_eq!(calls, CALLS.len(), "CALLS names a route that is not there");
    }

    #[test]
    fn while_keys_are_locked_only_health_observation_and_the_status_are_answered() {
        for (path, method, action) in CALLS {
            let is = Use::of(Some(path), &Method::from_bytes(method.as_bytes()).unwrap());
            assert_eq!(is.is_answered_while_locked(), action == Action::AdminStatus, "{method} {path}");
        }
    }
}

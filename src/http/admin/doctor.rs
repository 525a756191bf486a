//! `admin doctor`

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::super::App;
use super::super::extract::{Caller, Id};
use super::super::problem::Refused;
use super::super::secrets::json;
use crate::model::Action;
use crate::service::doctor::verdict;
use crate::wire::Problem;
use crate::wire::doctor::{CheckItem, DoctorAnswer};

/// Everything that would cost secrets or sleep later, looked at now. 200 whatever was found.
#[utoipa::path(get, path = "/v1/admin/doctor", tag = "administration", responses(
    (status = 200, body = DoctorAnswer),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "Nobody is known by the Authorization header.", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = Problem, content_type = "application/problem+json"),
    (status = 403, body = Problem, content_type = "application/problem+json"),
    (status = 500, body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "The call could not be recorded.", body = Problem, content_type = "application/problem+json")))]
pub(in crate::http) async fn doctor(
    State(app): State<App>,
    Id(request): Id,
    Caller(caller): Caller,
) -> Result<Response, Refused> {
    let grant = app.service.authorize_admin(&request, &caller, Action::AdminDoctor).await?;
    let checks = app.service.doctor(&request, &grant).await?;
    let worst = verdict(&checks).as_str().to_owned();
    let item = |check: crate::service::doctor::Check| CheckItem {
        name: check.name.to_owned(),
        verdict: check.verdict.as_str().to_owned(),
        finding: check.finding,
        mend: check.mend,
    };
    Ok(json(StatusCode::OK, &DoctorAnswer { verdict: worst, checks: checks.into_iter().map(item).collect() }))
}

//! The API's description (OpenAPI 3.1), made from the handlers.

use axum::http::StatusCode;
use axum::response::Response;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{admin, ops, secrets};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Containarium secrets",
        description = "Secrets under envelope encryption. On the daemon's Unix socket, and over TCP: the routes under /v1/secrets, /livez and \
            /readyz. Over TCP a caller presents a token, or a JWT of an issuer that the daemon is told to believe, as `Authorization: Bearer`; on the socket a credential that is presented counts instead of \
            the peer's own rights. Who asks more often than the daemon's limits allow is answered 429, with the seconds to wait in Retry-After; so is, with 503, who presents a credential that cannot be checked now.\n\nWhat a route does not take is refused with 400 \
            that names it: a query parameter that is not described here; If-Match on every route but PUT; If-None-Match on \
            every route but PUT and GET; If-Unmodified-Since on every route; If-Modified-Since and If-Range on every route but GET. \
            GET ignores If-None-Match, If-Modified-Since and If-Range and always answers in full."
    ),
    modifiers(&Bearer),
    security(("bearer" = []), ()),
    paths(
        secrets::set,
        secrets::put,
        secrets::get,
        secrets::list,
        secrets::lifecycle::delete,
        secrets::lifecycle::undelete,
        secrets::lifecycle::versions,
        secrets::lifecycle::rollback,
        secrets::lifecycle::destroy,
        secrets::batch_get,
        secrets::batch_set,
        admin::status,
        admin::tenants,
        admin::rotation::rotate,
        admin::rotation::follow,
        admin::rotation::abort,
        admin::rotation::destroy_old,
        admin::rotation::keys,
        admin::deks::rotate,
        admin::deks::follow_rotate,
        admin::deks::shred,
        admin::deks::quarantine,
        admin::nodes::list,
        admin::nodes::forget,
        admin::nodes::restore_plan,
        admin::nodes::accept_restore,
        admin::backup::list,
        admin::backup::push,
        admin::backup::follow_push,
        admin::backup::read_back,
        admin::doctor::doctor,
        admin::backup_log::record_database,
        admin::backup_log::record_drill,
        admin::tokens::create,
        admin::tokens::list,
        admin::tokens::revoke,
        ops::livez,
        ops::readyz,
        ops::metrics,
        document,
    )
)]
struct Api;

/// Required over TCP; on the socket the peer's own rights serve as well.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let what = "A token of this daemon (`ctn_…`), or a JWT of an issuer in its settings. Not needed on the socket, nor for /livez and /readyz.";
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("ctn_ token or JWT")
            .description(Some(what));
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    }
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses(
    (status = 200, description = "OpenAPI 3.1", content_type = "application/json"),
    (status = 400, body = crate::wire::Problem, content_type = "application/problem+json"),
    (status = 429, description = "More requests of one identity or one address than it may make.", body = crate::wire::Problem, content_type = "application/problem+json"),
    (status = 403, body = crate::wire::Problem, content_type = "application/problem+json")))]
pub(super) async fn document() -> Response {
    secrets::json(StatusCode::OK, &Api::openapi())
}

/// Each path with each of its methods, in capitals.
#[cfg(test)]
pub(super) fn described() -> Vec<(String, String)> {
    let api = serde_json::to_value(Api::openapi()).unwrap_or_default();
    let paths = api.get("paths").and_then(serde_json::Value::as_object).cloned().unwrap_or_default();
    let methods = |item: &serde_json::Value| item.as_object().cloned().unwrap_or_default();
    let calls = paths.iter().flat_map(|(path, item)| methods(item).into_iter().map(move |(method, _)| (path, method)));
    calls.map(|(path, method)| (path.clone(), method.to_uppercase())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::unheard::QUERIES;

    #[test]
    fn the_query_parameters_that_are_described_are_those_that_are_taken() {
        let mut described = BTreeSet::new();
        for (path, item) in serde_json::to_value(Api::openapi()).unwrap()["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
                for parameter in parameters.iter().filter(|parameter| parameter["in"] == "query") {
                    assert_eq!(method, "get", "{path}");
                    described.insert((path.clone(), parameter["name"].as_str().unwrap().to_owned()));
                }
            }
        }
        let taken =
            QUERIES.iter().flat_map(|(path, keys)| keys.iter().map(|key| ((*path).to_owned(), (*key).to_owned())));
        assert_eq!(described, taken.collect());
    }

    #[test]
    fn a_bearer_credential_is_described_as_one_way_in_beside_the_sockets_own() {
        let api = serde_json::to_value(Api::openapi()).unwrap();
        let scheme = &api["components"]["securitySchemes"]["bearer"];
        assert_eq!((&scheme["type"], &scheme["scheme"]), (&"http".into(), &"bearer".into()), "{scheme}");
        assert_eq!(api["security"], serde_json::json!([{ "bearer": [] }, {}]));
    }

    #[test]
    fn every_call_is_described_with_each_refusal_that_it_can_get() {
        let api = serde_json::to_value(Api::openapi()).unwrap();
        for (path, method) in described().into_iter().filter(|(path, _)| path.starts_with("/v1/")) {
            let answers = &api["paths"][&path][method.to_lowercase()]["responses"];
            let of_bodies: &[&str] = if method == "GET" { &[] } else { &["408", "413"] };
            for status in ["400", "401", "403", "429", "500", "503"].iter().chain(of_bodies) {
                assert!(answers[status].is_object(), "{method} {path}: {status}");
            }
        }
    }

    #[test]
    fn every_route_says_that_it_can_be_asked_too_often() {
        let api = serde_json::to_value(Api::openapi()).unwrap();
        for (path, method) in described() {
            assert!(api["paths"][&path][method.to_lowercase()]["responses"]["429"].is_object(), "{method} {path}");
        }
    }

    #[test]
    fn the_description_has_every_route_and_no_other() {
        let source = include_str!("../http.rs");
        let routes: BTreeSet<&str> =
            source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let api = Api::openapi();
        let described: BTreeSet<&str> = api.paths.paths.keys().map(String::as_str).collect();
        assert_eq!(routes, described);
        assert!(routes.len() > 10);
    }

    #[test]
    fn the_description_has_each_method_of_a_route() {
        let source = include_str!("../http.rs");
        for (number, line) in source.lines().filter(|line| line.trim_start().starts_with(".route(\"")).enumerate() {
            let path = line.split('"').nth(1).unwrap();
            let item = serde_json::to_value(&Api::openapi().paths.paths[path]).unwrap();
            let handlers = line.split_once(',').unwrap().1;
            for method in ["get", "post", "put", "delete"] {
                let routed = handlers.contains(&format!(" {method}(")) || handlers.contains(&format!(".{method}("));
                assert_eq!(item.get(method).is_some(), routed, "{number}: {method} {path}");
            }
        }
    }
}

//! Secret Manager: secrets and versions in memory, with Google's paths, answers and refusals.

use std::collections::BTreeMap;

use data_encoding::{BASE64, BASE64URL};
use serde_json::{Map, Value, json};

use super::api::{ApiError, Call, Enums, after, now, number_of_project};

#[derive(Default)]
pub(crate) struct SecretManager {
    /// By project number and id.
    secrets: BTreeMap<(String, String), Secret>,
}

struct Secret {
    /// As it was sent, with what the server adds.
    body: Map<String, Value>,
    name: String,
    versions: Vec<Version>,
}

struct Version {
    state: State,
    created: String,
    etag: u64,
    data: Vec<u8>,
    has_client_checksum: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Enabled = 1,
    Disabled = 2,
    Destroyed = 3,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::Destroyed => "DESTROYED",
        }
    }
}

/// What a path asks for.
enum Target<'a> {
    Secrets,
    Secret(&'a str),
    Versions(&'a str),
    Version(&'a str, &'a str),
}

/// The operation that a request asks for, as faults and the list of requests name it.
pub(crate) fn operation(method: &str, path: &str) -> Option<&'static str> {
    let (resource, verb) = split(path);
    let (_, target) = target(resource)?;
    Some(match (method, target, verb) {
        ("POST", Target::Secrets, "") => "create",
        ("GET", Target::Secrets, "") => "list-secrets",
        ("GET", Target::Secret(_), "") => "get",
        ("PATCH", Target::Secret(_), "") => "update",
        ("POST", Target::Secret(_), "addVersion") => "add",
        ("GET", Target::Versions(_), "") => "list",
        ("GET", Target::Version(..), "") => "get-version",
        ("GET", Target::Version(..), "access") => "access",
        ("POST", Target::Version(..), "enable") => "enable",
        ("POST", Target::Version(..), "disable") => "disable",
        ("POST", Target::Version(..), "destroy") => "destroy",
        _ => return None,
    })
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once(':').unwrap_or((path, ""))
}

fn target(resource: &str) -> Option<(&str, Target<'_>)> {
    let parts: Vec<&str> = resource.strip_prefix("/v1/projects/")?.split('/').collect();
    match *parts.as_slice() {
        [project, "secrets"] => Some((project, Target::Secrets)),
        [project, "secrets", secret] => Some((project, Target::Secret(secret))),
        [project, "secrets", secret, "versions"] => Some((project, Target::Versions(secret))),
        [project, "secrets", secret, "versions", version] => Some((project, Target::Version(secret, version))),
        _ => None,
    }
}

impl SecretManager {
    pub(crate) fn call(&mut self, operation: &str, call: &Call<'_>) -> Result<Value, ApiError> {
        let (resource, _) = split(call.path);
        let (project, target) = target(resource).ok_or_else(ApiError::no_route)?;
        let permission = match operation {
            "create" => "secretmanager.secrets.create",
            "list-secrets" => "secretmanager.secrets.list",
            "get" => "secretmanager.secrets.get",
            "update" => "secretmanager.secrets.update",
            "add" => "secretmanager.versions.add",
            "list" => "secretmanager.versions.list",
            "get-version" => "secretmanager.versions.get",
            "access" => "secretmanager.versions.access",
            "enable" => "secretmanager.versions.enable",
            "disable" => "secretmanager.versions.disable",
            "destroy" => "secretmanager.versions.destroy",
            _ => return Err(ApiError::no_route()),
        };
        if !call.identity.may(permission, project) {
            return Err(ApiError::denied(permission, resource));
        }
        match target {
            Target::Secrets if operation == "create" => self.create(project, call),
            Target::Secrets => Ok(self.list_secrets(project)),
            Target::Secret(id) if operation == "add" => self.secret(project, id)?.add(call),
            Target::Secret(id) if operation == "update" => self.secret(project, id)?.update(call),
            Target::Secret(id) => Ok(Value::Object(self.secret(project, id)?.body.clone())),
            Target::Versions(id) => self.secret(project, id)?.list(call),
            Target::Version(id, version) => self.secret(project, id)?.version_call(operation, version, call),
        }
    }

    fn secret(&mut self, project: &str, id: &str) -> Result<&mut Secret, ApiError> {
        let key = (number_of_project(project), id.to_owned());
        let missing =
            || ApiError::new(404, "NOT_FOUND", format!("Secret [projects/{}/secrets/{id}] not found.", key.0));
        self.secrets.get_mut(&key).ok_or_else(missing)
    }

    fn create(&mut self, project: &str, call: &Call<'_>) -> Result<Value, ApiError> {
        let id = call.query("secretId").unwrap_or_default();
        let is_good =
            (1..=255).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        let body = call.body.as_object().filter(|body| body.contains_key("replication"));
        let (true, Some(body)) = (is_good, body) else {
            return Err(ApiError::invalid("a secret needs a secretId of A-Z a-z 0-9 _ - and a replication"));
        };
        let key = (number_of_project(project), id.to_owned());
        let name = format!("projects/{}/secrets/{id}", key.0);
        if self.secrets.contains_key(&key) {
            return Err(ApiError::new(409, "ALREADY_EXISTS", format!("Secret [{name}] already exists.")));
        }
        let mut body = body.clone();
        expire(&mut body)?;
        body.insert("name".to_owned(), json!(name));
        body.insert("createTime".to_owned(), json!(now()));
        body.insert("etag".to_owned(), json!("\"1\""));
        self.secrets.insert(key, Secret { body: body.clone(), name, versions: Vec::new() });
        Ok(Value::Object(body))
    }

    fn list_secrets(&self, project: &str) -> Value {
        let number = number_of_project(project);
        let of_project = self.secrets.iter().filter(|((project, _), _)| *project == number);
        let secrets: Vec<Value> = of_project.map(|(_, secret)| Value::Object(secret.body.clone())).collect();
        json!({"totalSize": secrets.len(), "secrets": secrets})
    }
}

/// A ttl is taken and never shown: from then on the secret has the time at which it ends.
fn expire(body: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(ttl) = body.remove("ttl") else { return Ok(()) };
    let seconds = ttl.as_str().and_then(|ttl| ttl.strip_suffix('s')).and_then(|seconds| seconds.parse().ok());
    let seconds = seconds.ok_or_else(|| ApiError::invalid("a ttl is a number of seconds, as \"3600s\""))?;
    body.insert("expireTime".to_owned(), json!(after(seconds)));
    Ok(())
}

impl Secret {
    fn add(&mut self, call: &Call<'_>) -> Result<Value, ApiError> {
        let payload = call.body.get("payload").ok_or_else(|| ApiError::invalid("no payload"))?;
        let text = payload.get("data").and_then(Value::as_str).unwrap_or_default();
        // gcloud sends the URL-safe alphabet, the libraries the standard one.
        let data = BASE64.decode(text.as_bytes()).or_else(|_| BASE64URL.decode(text.as_bytes()));
        let data = data.map_err(|_| ApiError::invalid("payload.data is no base64"))?;
        if !(1..=65_536).contains(&data.len()) {
            return Err(ApiError::invalid("the payload must have 1 to 65536 bytes"));
        }
        let checksum = payload.get("dataCrc32c").map(|sum| sum.as_str().map_or_else(|| sum.to_string(), str::to_owned));
        if checksum.as_ref().is_some_and(|sum| *sum != crc32c::crc32c(&data).to_string()) {
            return Err(ApiError::invalid("payload.dataCrc32c does not match payload.data"));
        }
        let has_client_checksum = checksum.is_some();
        self.versions.push(Version { state: State::Enabled, created: now(), etag: 1, data, has_client_checksum });
        self.describe(self.versions.len(), call.enums)
    }

    /// Its expiry alone, which gcloud's `--expire-time`, `--ttl` and `--remove-expiration` change.
    fn update(&mut self, call: &Call<'_>) -> Result<Value, ApiError> {
        let mask = call.query("updateMask").unwrap_or_default();
        if !matches!(mask, "expireTime" | "expire_time" | "ttl") {
            return Err(ApiError::invalid("this fake updates expireTime and ttl only, one at a time"));
        }
        let mut body = self.body.clone();
        body.remove("expireTime");
        for key in ["expireTime", "ttl"] {
            if let Some(value) = call.body.get(key) {
                body.insert(key.to_owned(), value.clone());
            }
        }
        expire(&mut body)?;
        self.body = body;
        Ok(Value::Object(self.body.clone()))
    }

    /// The newest first.
    fn list(&self, call: &Call<'_>) -> Result<Value, ApiError> {
        if call.query("filter").is_some_and(|filter| !filter.is_empty()) {
            return Err(ApiError::invalid("this fake has no filters"));
        }
        let size = call.query("pageSize").and_then(|size| size.parse().ok()).filter(|size| *size > 0).unwrap_or(25_000);
        let newest: usize = match call.query("pageToken").filter(|token| !token.is_empty()) {
            Some(token) => token.parse().map_err(|_| ApiError::invalid("unknown page token"))?,
            None => self.versions.len(),
        }
        .min(self.versions.len());
        let numbers: Vec<usize> = (1..=newest).rev().take(size).collect();
        let versions: Result<Vec<Value>, ApiError> =
            numbers.iter().map(|number| self.describe(*number, call.enums)).collect();
        let mut page = json!({"versions": versions?, "totalSize": self.versions.len()});
        if let (Some(last), Some(page)) = (numbers.last().filter(|last| **last > 1), page.as_object_mut()) {
            page.insert("nextPageToken".to_owned(), json!((last - 1).to_string()));
        }
        Ok(page)
    }

    fn version_call(&mut self, operation: &str, version: &str, call: &Call<'_>) -> Result<Value, ApiError> {
        let number = match version {
            "latest" => self.versions.len(),
            number => number.parse().map_err(|_| ApiError::invalid("no number of a version"))?,
        };
        let name = format!("{}/versions/{version}", self.name);
        let found = number.checked_sub(1).and_then(|at| self.versions.get_mut(at));
        let found =
            found.ok_or_else(|| ApiError::new(404, "NOT_FOUND", format!("Secret Version [{name}] not found.")))?;
        let state = match operation {
            "get-version" => return self.describe(number, call.enums),
            "access" => return found.access(&format!("{}/versions/{number}", self.name)),
            "enable" => State::Enabled,
            "disable" => State::Disabled,
            _ => State::Destroyed,
        };
        found.change(state, call.body.get("etag").and_then(Value::as_str))?;
        self.describe(number, call.enums)
    }

    fn describe(&self, number: usize, enums: Enums) -> Result<Value, ApiError> {
        let version = number.checked_sub(1).and_then(|at| self.versions.get(at));
        let version = version.ok_or_else(|| ApiError::invalid("unknown page token"))?;
        let state = match enums {
            Enums::Names => json!(version.state.name()),
            Enums::Numbers => json!(version.state as u8),
        };
        Ok(json!({
            "name": format!("{}/versions/{number}", self.name),
            "createTime": version.created,
            "state": state,
            "replicationStatus": {"automatic": {}},
            "etag": format!("\"{}\"", version.etag),
            "clientSpecifiedPayloadChecksum": version.has_client_checksum,
        }))
    }
}

impl Version {
    fn access(&self, name: &str) -> Result<Value, ApiError> {
        if self.state != State::Enabled {
            let message = format!("Secret Version [{name}] is in {} state.", self.state.name());
            return Err(ApiError::new(400, "FAILED_PRECONDITION", message));
        }
        let checksum = crc32c::crc32c(&self.data).to_string();
        Ok(json!({"name": name, "payload": {"data": BASE64.encode(&self.data), "dataCrc32c": checksum}}))
    }

    fn change(&mut self, to: State, etag: Option<&str>) -> Result<(), ApiError> {
        if etag.is_some_and(|etag| !etag.is_empty() && etag != format!("\"{}\"", self.etag)) {
            return Err(ApiError::new(400, "FAILED_PRECONDITION", "the etag is not the version's"));
        }
        if self.state == State::Destroyed {
            return Err(ApiError::new(400, "FAILED_PRECONDITION", "the version is destroyed"));
        }
        if to == State::Destroyed {
            self.data.clear();
        }
        self.state = to;
        self.etag += 1;
        Ok(())
    }
}

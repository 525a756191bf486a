//! The command line's side of the API: one connection to the daemon for each request, to its socket or to a URL.
//!
//! Values go out of and come into buffers that are wiped. What cannot be wiped is serde_json's scratch space for a value with escapes;
//! the process that holds it ends with the command.

mod credential;
mod error;
mod remote;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::crypto::SecretValue;
use crate::model::{NodeId, SecretName, SecretVersion, Tenant};
use crate::wire::backup::{BackupListAnswer, PushAnswer, PushRequest, ReadBackAnswer, ReadBackRequest};
use crate::wire::backup_log::{RecordDatabaseRequest, RecordDrillRequest, RecordedAnswer};
use crate::wire::doctor::DoctorAnswer;
use crate::wire::nodes::{AcceptRestoreAnswer, AcceptRestoreRequest, ForgetAnswer, NodesAnswer, RestorePlanAnswer};
use crate::wire::tokens::{
    CreateTokenAnswer, CreateTokenRequest, RevokeTokensAnswer, RevokeTokensRequest, TokensAnswer,
};
use crate::wire::{
    ChangeAnswer, DestroyOldRequest, DestroyRequest, GetAnswer, ListAnswer, MAX_BODY_BYTES, ProgressLine,
    QuarantineAnswer, QuarantineRequest, RollbackRequest, RotateDekAnswer, RotateDekRequest, RotateMasterRequest,
    RotationKeysAnswer, RotationReport, SecretMetadata, SetBody, ShredAnswer, ShredRequest, StatusAnswer, StreamLine,
    TenantsAnswer, VersionsAnswer, one_value, set_json,
};

pub use credential::{Credential, CredentialError};
pub use error::{ClientError, Effect, ErrorClass};
pub use remote::{Remote, RemoteError};

use transport::{Lines, Place, Request, Target};

/// How long a command waits for its answer, from connecting to the last byte.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The most bytes of an answer without values. A page of a thousand secrets takes half a MiB; the list of a secret's versions has no
/// pages, and a hundred thousand of them fit.
const MAX_LISTING_BYTES: usize = 16 * 1024 * 1024;

/// A daemon, by its socket or its URL.
pub struct Client {
    place: Place,
    credential: Option<Credential>,
    deadline: Duration,
}

/// A secret's version with its value.
pub struct Fetched {
    pub secret: SecretMetadata,
    pub value: SecretValue,
}

impl Client {
    /// A client that waits [`DEADLINE`] for each answer.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self::with_deadline(socket, DEADLINE)
    }

    #[must_use]
    pub const fn with_deadline(socket: PathBuf, deadline: Duration) -> Self {
        Self { place: Place::Socket(socket), credential: None, deadline }
    }

    /// A client of a daemon elsewhere, which waits [`DEADLINE`] for each answer.
    #[must_use]
    pub fn of_remote(remote: Remote) -> Self {
        Self { place: Place::Remote(Box::new(remote)), credential: None, deadline: DEADLINE }
    }

    /// As it is, and with this credential in each request.
    #[must_use]
    pub fn presenting(self, credential: Option<Credential>) -> Self {
        Self { credential, ..self }
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn set(&self, body: &SetBody<'_>) -> Result<ChangeAnswer, ClientError> {
        let json = set_json(body).map_err(|_| ClientError::Unsendable)?;
        self.change(Target::new(Method::POST, ["v1", "secrets"]), json).await
    }

    /// The value of the current version, or of the one that is named.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(
        &self,
        tenant: &Tenant,
        name: &SecretName,
        version: Option<SecretVersion>,
    ) -> Result<Fetched, ClientError> {
        let target = Target::new(Method::GET, ["v1", "secrets", tenant.as_str(), name.as_str()])
            .query("version", version.map(|version| version.to_string()).as_deref());
        let answer: GetAnswer = self.ask(target, None, MAX_BODY_BYTES).await?;
        let value =
            one_value(answer.value, answer.value_base64).map_err(|_| ClientError::Unreadable { status: 200 })?;
        Ok(Fetched { secret: answer.secret, value })
    }

    /// One page of a tenant's secrets; `page` is the token of the page before.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, tenant: &Tenant, page: Option<&str>) -> Result<ListAnswer, ClientError> {
        let target = Target::new(Method::GET, ["v1", "secrets", tenant.as_str()]).query("pageToken", page);
        self.ask(target, None, MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn versions(&self, tenant: &Tenant, name: &SecretName) -> Result<VersionsAnswer, ClientError> {
        let target = Target::new(Method::GET, ["v1", "secrets", tenant.as_str(), name.as_str(), "versions"]);
        self.ask(target, None, MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn delete(&self, tenant: &Tenant, name: &SecretName) -> Result<ChangeAnswer, ClientError> {
        let target = Target::new(Method::DELETE, ["v1", "secrets", tenant.as_str(), name.as_str()]);
        self.ask(target, None, MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn undelete(&self, tenant: &Tenant, name: &SecretName) -> Result<ChangeAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "secrets", tenant.as_str(), name.as_str(), "undelete"]);
        self.ask(target, None, MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn rollback(
        &self,
        tenant: &Tenant,
        name: &SecretName,
        version: SecretVersion,
    ) -> Result<ChangeAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "secrets", tenant.as_str(), name.as_str(), "rollback"]);
        self.change(target, json(&RollbackRequest { version: version.get() })?).await
    }

    /// Destroys these versions for good.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn destroy(
        &self,
        tenant: &Tenant,
        name: &SecretName,
        versions: &[SecretVersion],
    ) -> Result<ChangeAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "secrets", tenant.as_str(), name.as_str(), "destroy"]);
        let versions = versions.iter().map(|version| version.get()).collect();
        self.change(target, json(&DestroyRequest { versions })?).await
    }

    /// One page of the tenants; `page` is the token of the page before.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tenants(&self, page: Option<&str>) -> Result<TenantsAnswer, ClientError> {
        let target = Target::new(Method::GET, ["v1", "admin", "tenants"]).query("pageToken", page);
        self.ask(target, None, MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<StatusAnswer, ClientError> {
        self.ask(Target::new(Method::GET, ["v1", "admin", "status"]), None, MAX_LISTING_BYTES).await
    }

    /// Everything that the daemon looks at.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn doctor(&self) -> Result<DoctorAnswer, ClientError> {
        self.ask(Target::new(Method::GET, ["v1", "admin", "doctor"]), None, MAX_LISTING_BYTES).await
    }

    /// Tells that a copy of the database was made.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn record_database(&self, request: &RecordDatabaseRequest) -> Result<RecordedAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "backup", "database"]);
        self.ask(target, Some(json(request)?), MAX_LISTING_BYTES).await
    }

    /// Tells of a drill.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn record_drill(&self, request: &RecordDrillRequest) -> Result<RecordedAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "backup", "drill"]);
        self.ask(target, Some(json(request)?), MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn create_token(&self, request: &CreateTokenRequest) -> Result<CreateTokenAnswer, ClientError> {
        self.ask(Target::new(Method::POST, ["v1", "admin", "tokens"]), Some(json(request)?), MAX_LISTING_BYTES).await
    }

    /// One page of the tokens; `page` is the token of the page before.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tokens(&self, page: Option<&str>) -> Result<TokensAnswer, ClientError> {
        let target = Target::new(Method::GET, ["v1", "admin", "tokens"]).query("pageToken", page);
        self.ask(target, None, MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_tokens(&self, request: &RevokeTokensRequest) -> Result<RevokeTokensAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "tokens", "revoke"]);
        self.ask(target, Some(json(request)?), MAX_LISTING_BYTES).await
    }

    /// The daemons that share the database.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn nodes(&self) -> Result<NodesAnswer, ClientError> {
        self.ask(Target::new(Method::GET, ["v1", "admin", "nodes"]), None, MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn forget_node(&self, node: NodeId) -> Result<ForgetAnswer, ClientError> {
        let id = node.to_string();
        self.ask(Target::new(Method::POST, ["v1", "admin", "nodes", &id, "forget"]), None, MAX_LISTING_BYTES).await
    }

    /// What accepting the database as it is would mean.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn restore_plan(&self) -> Result<RestorePlanAnswer, ClientError> {
        self.ask(Target::new(Method::GET, ["v1", "admin", "accept-restore"]), None, MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn accept_restore(&self, request: &AcceptRestoreRequest) -> Result<AcceptRestoreAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "accept-restore"]);
        self.ask(target, Some(json(request)?), MAX_LISTING_BYTES).await
    }

    /// Begins, resumes or tries a rotation of the master key, and follows it to its end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rotate_master(
        &self,
        request: &RotateMasterRequest,
        on_progress: impl FnMut(ProgressLine),
    ) -> Result<RotationReport, ClientError> {
        self.follow(Target::new(Method::POST, ["v1", "admin", "rotate-master"]), Some(json(request)?), on_progress)
            .await
    }

    /// Follows the rotation that is under way, or tells how the last one ended.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn follow_rotation(&self, on_progress: impl FnMut(ProgressLine)) -> Result<RotationReport, ClientError> {
        self.follow(Target::new(Method::GET, ["v1", "admin", "rotate-master"]), None, on_progress).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn abort_rotation(&self, on_progress: impl FnMut(ProgressLine)) -> Result<RotationReport, ClientError> {
        self.follow(Target::new(Method::POST, ["v1", "admin", "rotate-master", "abort"]), None, on_progress).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn destroy_old_master(
        &self,
        request: &DestroyOldRequest,
        on_progress: impl FnMut(ProgressLine),
    ) -> Result<RotationReport, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "rotate-master", "destroy-old"]);
        self.follow(target, Some(json(request)?), on_progress).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn rotation_keys(&self) -> Result<RotationKeysAnswer, ClientError> {
        let target = Target::new(Method::GET, ["v1", "admin", "rotate-master", "keys"]);
        self.ask(target, None, MAX_LISTING_BYTES).await
    }

    /// Gives tenants new DEKs, and follows that to its end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rotate_dek(
        &self,
        request: &RotateDekRequest,
        on_progress: impl FnMut(ProgressLine),
    ) -> Result<RotateDekAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "rotate-dek"]);
        self.follow(target, Some(json(request)?), on_progress).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn shred(&self, request: &ShredRequest) -> Result<ShredAnswer, ClientError> {
        self.ask(Target::new(Method::POST, ["v1", "admin", "shred"]), Some(json(request)?), MAX_LISTING_BYTES).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn quarantine(&self, request: &QuarantineRequest) -> Result<QuarantineAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "quarantine"]);
        self.ask(target, Some(json(request)?), MAX_LISTING_BYTES).await
    }

    /// Copies the master keys into every configured secret, and follows that to its end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn backup_push(
        &self,
        request: &PushRequest,
        on_progress: impl FnMut(ProgressLine),
    ) -> Result<PushAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "backup", "push"]);
        self.follow(target, Some(json(request)?), on_progress).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn backup_list(&self) -> Result<BackupListAnswer, ClientError> {
        self.ask(Target::new(Method::GET, ["v1", "admin", "backup"]), None, MAX_LISTING_BYTES).await
    }

    /// Records that copies were read back.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn backup_read_back(&self, request: &ReadBackRequest) -> Result<ReadBackAnswer, ClientError> {
        let target = Target::new(Method::POST, ["v1", "admin", "backup", "read-back"]);
        self.ask(target, Some(json(request)?), MAX_LISTING_BYTES).await
    }

    async fn change(&self, target: Target, json: Zeroizing<Vec<u8>>) -> Result<ChangeAnswer, ClientError> {
        self.ask(target, Some(json), MAX_LISTING_BYTES).await
    }

    /// Asks for long work and follows it to its end. Each line must come within the deadline; hanging up stops nothing.
    async fn follow<T: DeserializeOwned>(
        &self,
        target: Target,
        json: Option<Zeroizing<Vec<u8>>>,
        on_progress: impl FnMut(ProgressLine),
    ) -> Result<T, ClientError> {
        let request = Request { target, json, max_bytes: MAX_LISTING_BYTES };
        let mut following = Following { on_progress, end: None };
        let lines = transport::exchange_lines(&self.place, self.credential.as_ref(), request, self.deadline, |line| {
            following.line(line)
        });
        match lines.await? {
            Lines::Refused(answer) => Err(ClientError::of_answer(&answer)),
            Lines::Ended => following.end.unwrap_or(Err(ClientError::Broken)),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        target: Target,
        json: Option<Zeroizing<Vec<u8>>>,
        max_bytes: usize,
    ) -> Result<T, ClientError> {
        let request = Request { target, json, max_bytes };
        let exchange = transport::exchange(&self.place, self.credential.as_ref(), request);
        let answer = tokio::time::timeout(self.deadline, exchange)
            .await
            .map_err(|_| ClientError::Deadline { after: self.deadline })??;
        if !answer.status.is_success() {
            return Err(ClientError::of_answer(&answer));
        }
        // serde_json's error can quote the value that it stumbled on, so nothing of it goes on.
        serde_json::from_slice(&answer.body).map_err(|_| ClientError::Unreadable { status: answer.status.as_u16() })
    }
}

/// Long work as it comes in: the end, once there was one.
struct Following<T, F> {
    on_progress: F,
    end: Option<Result<T, ClientError>>,
}

impl<T: DeserializeOwned, F: FnMut(ProgressLine)> Following<T, F> {
    fn line(&mut self, line: &[u8]) -> Result<(), ClientError> {
        let line = serde_json::from_slice(line).map_err(|_| ClientError::Unreadable { status: 200 })?;
        match line {
            StreamLine::Progress(progress) => (self.on_progress)(progress),
            StreamLine::Done(result) => self.end = Some(Ok(result)),
            StreamLine::Failed { problem } => self.end = Some(Err(ClientError::of_problem(problem, None))),
        }
        Ok(())
    }
}

fn json(request: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, ClientError> {
    serde_json::to_vec(request).map(Zeroizing::new).map_err(|_| ClientError::Unsendable)
}

#[cfg(test)]
mod tests;
